//! The service between its two seams, under everything that goes wrong there: outages, lost answers, damaged packs,
//! crashes, leases that are lost, time. No server, a paused clock, one seed after the other.
//!
//! What holds throughout: a published snapshot is whole, its counts hold, and each of its rows is what was true at its sync
//! id, or became so while it was made; none replaces a newer one; a whole answer holds exactly the rows that its caller saw; an instance scans an org once at a
//! time. At the end, when all is well again: everybody is served, everything is published, and nothing is left behind:
//! no task, lease, spool, follower or key in flight.
//!
//! `HEADSTART_TEST_SEED` replays one seed, `HEADSTART_TEST_SEEDS` says how many there are (default 500).

mod history;
mod links;
mod visitor;

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use headstart::auth::{AuthSettings, Secret};
use headstart::dump::runner::Runner;
use headstart::dump::{DumpSettings, Dumps};
use headstart::http::admission::AdmissionSettings;
use headstart::http::{self, HttpSettings};
use headstart::metrics::Metrics;
use headstart::model::{Org, SnapshotId};
use headstart::serve::batch::answer::BatchSettings;
use headstart::serve::batch::{Loader, LoaderSettings};
use headstart::serve::bootstrap::BootstrapSettings;
use headstart::serve::delta::DeltaSettings;
use headstart::serve::{ServeSettings, Service};
use headstart::source::memory::MemorySource;
use headstart::store::{CacheSettings, GuardedStore, MemoryStore, PackCache, SnapshotStore};
use headstart::task::Tasks;
use tokio::task::JoinSet;
use tokio::time::sleep;

use self::history::{History, ORGS};
use self::links::{Link, LinkedSource, LinkedStore};
use self::visitor::{Outcome, Visitor};
use crate::support::dice::Dice;
use crate::support::world::{LIMITS, retention, schema};

/// The seeds in which something panicked: a panic within a task of the service ends there, and must fail the test all the
/// same.
static PANICKED: Mutex<BTreeSet<u64>> = Mutex::new(BTreeSet::new());

thread_local! {
    /// The seed that this thread plays, or works for.
    static PLAYED: Cell<u64> = const { Cell::new(0) };
}

/// How often everything that can happen is thrown for.
const STEPS: usize = 40;

/// One process.
struct Instance {
    link: Arc<Link>,
    dumps: Dumps,
    tasks: Tasks,
    metrics: Metrics,
    router: Router,
}

struct World {
    dice: Dice,
    history: History,
    store: Arc<MemoryStore>,
    auth: Arc<AuthSettings>,
    instances: Vec<Instance>,
    visits: JoinSet<Outcome>,
    outcomes: BTreeMap<Outcome, u64>,
    /// How many instances and visitors there were, so that each rolls dice of its own.
    born: u64,
}

impl World {
    fn new(dice: Dice) -> Self {
        let auth = AuthSettings { hs256_secret: Some(Secret::new("k".repeat(32))), ..AuthSettings::default() };
        let mut world = Self {
            history: History::new(Arc::new(MemorySource::new(schema("text")))),
            store: Arc::new(MemoryStore::new(retention())),
            auth: Arc::new(auth),
            instances: Vec::new(),
            visits: JoinSet::new(),
            outcomes: BTreeMap::new(),
            born: 0,
            dice,
        };
        for _ in 0..2 {
            let instance = world.boot();
            world.instances.push(instance);
        }
        world
    }

    fn fork(&mut self) -> Dice {
        self.born += 1;
        self.dice.fork(self.born)
    }

    fn boot(&mut self) -> Instance {
        let link = Link::new(self.fork());
        let source = Arc::new(LinkedSource { history: self.history.clone(), link: link.clone() });
        let store = LinkedStore { store: self.store.clone(), history: self.history.clone(), link: link.clone() };
        let store: Arc<dyn SnapshotStore> = Arc::new(store);
        let (tasks, metrics) = (Tasks::new(), Metrics::new());
        let store: Arc<dyn SnapshotStore> =
            Arc::new(GuardedStore::new(store, Duration::from_secs(2), tasks.clone(), metrics.clone()));
        // Small, so that there are several frames and dumps that wait.
        let settings = DumpSettings {
            concurrent: 1,
            open_bytes: 4096,
            compressors: 1,
            // Orgs are small: a few changes are a large part of them.
            refresh_max_percent: 70,
            refresh_max_count: 6,
            orgs_interval_s: 30,
            sweep_interval_s: 60,
            ..DumpSettings::default()
        };
        let dumps = Dumps::new(source.clone(), store.clone(), tasks.clone(), settings, metrics.clone());
        let cache = CacheSettings::default();
        let cache = PackCache::new(store.clone(), &cache, tasks.clone(), metrics.pack_cache.clone());
        let loader = Loader::new(source.clone(), tasks.clone(), LoaderSettings::default(), metrics.clone());
        let settings = ServeSettings {
            freshness: LIMITS,
            bootstrap: BootstrapSettings::default(),
            delta: DeltaSettings::default(),
            batch: BatchSettings::default(),
        };
        let service =
            Service::new(source.clone(), store.clone(), cache, dumps.clone(), loader, settings, metrics.clone());
        let keys = self.auth.keys().unwrap();
        let (settings, admission) = (HttpSettings::default(), AdmissionSettings::default());
        let router = http::router(service, keys, metrics.clone(), &settings, &admission).unwrap();
        Runner::new(source, store, dumps.clone(), LIMITS, None, tasks.clone(), metrics.clone())
            .start(tasks.token().clone());
        Instance { link, dumps, tasks, metrics, router }
    }

    fn send(&mut self, place: usize, patient: bool) {
        let visitor = Visitor {
            router: self.instances[place].router.clone(),
            auth: self.auth.clone(),
            history: self.history.clone(),
            dice: self.fork(),
            patient,
        };
        self.visits.spawn(visitor.visit());
    }

    fn gather(&mut self, ended: Result<Outcome, tokio::task::JoinError>) {
        match ended {
            Ok(outcome) => *self.outcomes.entry(outcome).or_default() += 1,
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        }
    }

    async fn step(&mut self) {
        let place = self.dice.below(self.instances.len());
        let weather = &self.instances[place].link.weather;
        match self.dice.below(16) {
            0..=4 => {
                // Now and then more than an answer tells of.
                let most = if self.dice.below(8) == 0 { 300 } else { 30 };
                for _ in 0..1 + self.dice.below(most) {
                    self.history.change(&mut self.dice);
                }
            }
            5..=8 => {
                for _ in 0..1 + self.dice.below(5) {
                    self.send(place, false);
                }
            }
            9 => weather.clear(),
            10 => {
                let faults =
                    [&weather.database_down, &weather.store_down, &weather.flaky, &weather.rotten, &weather.frozen];
                faults[self.dice.below(faults.len())].store(true, Ordering::SeqCst);
            }
            11 => {
                // Killed: nothing that it does from now on reaches anything.
                weather.dead.store(true, Ordering::SeqCst);
                let instance = self.boot();
                let killed = std::mem::replace(&mut self.instances[place], instance);
                killed.tasks.shutdown(Duration::from_secs(300)).await.unwrap();
            }
            12 => {
                let instance = self.boot();
                let stopped = std::mem::replace(&mut self.instances[place], instance);
                stopped.tasks.shutdown(Duration::from_secs(300)).await.unwrap();
            }
            13 => {
                let org = Org::new(ORGS[self.dice.below(ORGS.len())]);
                self.store.delete(&org).await.unwrap();
            }
            14 if self.dice.below(4) == 0 => self.history.database.change_epoch(&format!("epoch-{}", self.born)),
            _ => {}
        }
        sleep(Duration::from_millis([1, 10, 100, 1000, 20_000][self.dice.below(5)])).await;
        while let Some(ended) = self.visits.try_join_next() {
            self.gather(ended);
        }
    }

    /// All is well again: after a while everybody is served, and everything is published.
    async fn recover(&mut self) {
        self.instances.iter().for_each(|instance| instance.link.weather.clear());
        while let Some(ended) = self.visits.join_next().await {
            self.gather(ended);
        }
        sleep(Duration::from_secs(120)).await;
        let before = self.served();
        for round in 0..12 {
            self.send(round % self.instances.len(), true);
        }
        while let Some(ended) = self.visits.join_next().await {
            self.gather(ended);
        }
        assert_eq!(self.served(), before + 12, "not everybody was served: {:?}", self.outcomes);
        sleep(Duration::from_secs(120)).await;
    }

    fn served(&self) -> u64 {
        let served = [Outcome::Snapshot, Outcome::Dump, Outcome::CaughtUp];
        served.iter().filter_map(|outcome| self.outcomes.get(outcome)).sum()
    }

    /// Nothing is left behind. Gives what came of the visits, and how many refreshes lay between two full dumps at most.
    async fn end(self) -> (BTreeMap<Outcome, u64>, u64) {
        let refreshed = self.instances.iter().map(|instance| instance.link.refreshed.load(Ordering::SeqCst)).max();
        for Instance { dumps, tasks, metrics, router, .. } in self.instances {
            assert!(dumps.in_progress().is_empty(), "a dump has no end");
            assert_eq!(dumps.unstored_slots(), [], "what was not stored is kept for ever");
            assert_eq!(dumps.spool_bytes(), 0, "a spool is left");
            drop(router);
            tasks.shutdown(Duration::from_secs(60)).await.unwrap();
            let text = metrics.encode();
            let home = [
                "followers",
                "live_dumps",
                "waiting_dumps",
                "keys_waiting",
                "in_progress",
                "unstored_dumps",
                "spool_bytes",
            ];
            for gauge in home {
                let levels: Vec<&str> = text
                    .lines()
                    .filter_map(|line| line.strip_prefix("headstart_")?.strip_prefix(gauge))
                    .filter_map(|rest| rest.rsplit_once(' ').filter(|(labels, _)| !labels.starts_with('_')))
                    .map(|(_, level)| level)
                    .collect();
                assert!(!levels.is_empty() && levels.iter().all(|level| *level == "0"), "{gauge}: {text}");
            }
        }
        for org in ORGS {
            let lease = self.store.acquire(&Org::new(org), SnapshotId::random(), Duration::from_secs(1)).await.unwrap();
            assert!(lease.is_some(), "the lease of {org} is held by nobody");
        }
        (self.outcomes, refreshed.unwrap_or_default())
    }
}

async fn play(dice: Dice) -> (BTreeMap<Outcome, u64>, u64) {
    let mut world = World::new(dice);
    for _ in 0..STEPS {
        world.step().await;
    }
    world.recover().await;
    world.end().await
}

#[test]
fn whatever_goes_wrong_at_the_seams_no_answer_is_wrong() {
    // Silent unless RUST_LOG says what to tell.
    let silent = tracing_subscriber::filter::LevelFilter::OFF;
    let told = tracing_subscriber::EnvFilter::builder().with_default_directive(silent.into()).from_env_lossy();
    tracing_subscriber::fmt().with_env_filter(told).with_test_writer().init();
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        usual(panic);
        let seed = PLAYED.get();
        eprintln!("HEADSTART_TEST_SEED={seed}");
        PANICKED.lock().unwrap().insert(seed);
    }));
    let first = Dice::seeded();
    let replay = std::env::var("HEADSTART_TEST_SEED").is_ok();
    let seeds = std::env::var("HEADSTART_TEST_SEEDS").map_or(500, |seeds| seeds.parse().expect("a number"));
    let seeds = if replay { 1 } else { seeds };
    let threads = std::thread::available_parallelism().map_or(1, |cores| cores.get() as u64).min(seeds);
    let refreshed = AtomicU64::new(0);
    let play_some = |thread: u64| {
        let mut outcomes: BTreeMap<Outcome, u64> = BTreeMap::new();
        for number in (thread..seeds).step_by(threads as usize) {
            let seed = first.seed() + number;
            PLAYED.set(seed);
            let mut runtime = tokio::runtime::Builder::new_current_thread();
            runtime.enable_all().start_paused(true).on_thread_start(move || PLAYED.set(seed));
            let (played, most) = runtime.build().unwrap().block_on(play(Dice::of(seed)));
            assert!(!PANICKED.lock().unwrap().contains(&seed), "something panicked");
            refreshed.fetch_max(most, Ordering::SeqCst);
            played.into_iter().for_each(|(outcome, count)| *outcomes.entry(outcome).or_default() += count);
        }
        outcomes
    };
    let parts: Vec<BTreeMap<Outcome, u64>> = std::thread::scope(|scope| {
        let play_some = &play_some;
        let threads: Vec<_> = (0..threads).map(|thread| scope.spawn(move || play_some(thread))).collect();
        let ended = threads.into_iter().map(std::thread::ScopedJoinHandle::join);
        ended.map(|ended| ended.unwrap_or_else(|panic| std::panic::resume_unwind(panic))).collect()
    });
    let mut outcomes: BTreeMap<Outcome, u64> = BTreeMap::new();
    parts.into_iter().flatten().for_each(|(outcome, count)| *outcomes.entry(outcome).or_default() += count);
    let refreshed = refreshed.into_inner();
    println!("{seeds} seeds from {}: {outcomes:?}, {refreshed} refreshes in a row", first.seed());
    assert!(replay || seeds < 20 || refreshed > 3, "hardly anything was refreshed");
    let all = [Outcome::Snapshot, Outcome::Dump, Outcome::CaughtUp, Outcome::Refused, Outcome::Broken, Outcome::Left];
    assert!(
        replay || all.iter().all(|outcome| outcomes.contains_key(outcome)),
        "something never happened: {outcomes:?}"
    );
}
