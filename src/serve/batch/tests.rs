//! The loader over a source in memory: who shares what, and who is told what.

mod room;
mod told;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::task::{JoinHandle, yield_now};
use tokio::time::Instant;

use crate::metrics::Metrics;
use crate::model::schema::JsonKind;
use crate::model::{Catalog, Field, Grants, GroupSet, ModelSchema, Org, Schema, SyncGroup, SyncId, User};
use crate::serve::batch::inflight::Need;
use crate::serve::batch::{Ask, By, LoadError, Loaded, Loader, LoaderSettings};
use crate::source::memory::{Fate, MemorySource};
use crate::task::Tasks;

const CATALOG: &str = r#"
    [[models]]
    name = "Comment"
    table = "comment"
    id = "id"
    org = "org"
    load = "partial"
    keys = ["issueId", "labelIds"]
"#;

const BY_ISSUE: By = By::Key(0);

type Outcome = Result<Vec<Arc<Loaded>>, LoadError>;

struct Bench {
    source: Arc<MemorySource>,
    loader: Loader,
    metrics: Metrics,
}

fn schema() -> Arc<Schema> {
    let field = |name: &str, sql_type: &str| Field {
        column: name.into(),
        name: name.into(),
        sql_type: sql_type.into(),
        json: JsonKind::String,
        nullable: true,
    };
    let fields = vec![field("id", "bigint"), field("issueId", "bigint"), field("labelIds", "text[]")];
    Arc::new(Schema::new(Arc::new(Catalog::parse(CATALOG).unwrap()), vec![ModelSchema { fields }]))
}

impl Bench {
    fn new(settings: LoaderSettings) -> Self {
        let (source, metrics) = (Arc::new(MemorySource::new(schema())), Metrics::new());
        let loader = Loader::new(source.clone(), Tasks::new(), settings, metrics.clone());
        Self { source, loader, metrics }
    }

    /// Comment `id` of issue `id / 10`.
    fn put(&self, org: &Org, id: usize, text: &str) -> SyncId {
        let line = format!("{{\"__class\":\"Comment\",\"id\":{id},\"issueId\":{},\"text\":\"{text}\"}}\n", id / 10);
        self.source.put(org, 0, &id.to_string(), GroupSet::new(vec![SyncGroup::new("org:o")]), line)
    }

    fn fill(&self, org: &Org, ids: std::ops::Range<usize>, text: &str) {
        for id in ids {
            self.put(org, id, text);
        }
    }

    fn spawn(&self, org: &Org, asks: Vec<Ask>, at_least: SyncId) -> JoinHandle<Outcome> {
        self.spawn_with(org, asks, need(at_least))
    }

    fn spawn_with(&self, org: &Org, asks: Vec<Ask>, need: Need) -> JoinHandle<Outcome> {
        let (loader, org) = (self.loader.clone(), org.clone());
        tokio::spawn(async move { loader.load(&org, &asks, need, soon()).await })
    }

    async fn load(&self, org: &Org, asks: &[Ask]) -> Outcome {
        self.loader.load(org, asks, need(SyncId::ZERO), soon()).await
    }

    async fn until_lookups(&self, count: usize) {
        let limit = Instant::now() + Duration::from_secs(60);
        while self.source.lookups().len() < count {
            assert!(Instant::now() < limit, "{} look-ups, not {count}", self.source.lookups().len());
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    async fn until_idle(&self) {
        let limit = Instant::now() + Duration::from_secs(60);
        while self.loader.in_flight() > 0 || self.loader.shared.flight.busy().0 > 0 {
            assert!(Instant::now() < limit, "something is left in flight");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
}

fn need(at_least: SyncId) -> Need {
    Need { at_least, told: true }
}

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(10)
}

fn org(name: &str) -> Org {
    Org::new(name)
}

fn ids(ids: impl IntoIterator<Item = usize>) -> Vec<Ask> {
    ids.into_iter().map(|id| Ask { model: 0, by: By::Id, value: id.to_string().into() }).collect()
}

fn issue(issue: usize) -> Ask {
    Ask { model: 0, by: BY_ISSUE, value: issue.to_string().into() }
}

fn found(loaded: &Loaded) -> BTreeSet<String> {
    loaded.rows.iter().map(|row| row.id.to_string()).collect()
}

#[tokio::test(start_paused = true)]
async fn rows_come_in_the_order_of_the_asks_and_repeats_are_read_once() {
    let bench = Bench::new(LoaderSettings::default());
    let o = org("o");
    bench.fill(&o, 0..25, "x");
    bench.put(&org("other"), 7, "not ours");
    let asks = [ids([7, 99, 7]), vec![issue(2), issue(0)], ids([3])].concat();
    let loaded = bench.load(&o, &asks).await.unwrap();
    let rows: Vec<_> = loaded.iter().map(|load| load.rows.len()).collect();
    assert_eq!(rows, [1, 0, 1, 5, 10, 1]);
    assert!(Arc::ptr_eq(&loaded[0], &loaded[2]));
    assert!(loaded.iter().all(|load| load.sync_id == SyncId(26)));
    let asked: Vec<_> = bench.source.lookups().iter().map(|lookup| (lookup.by, lookup.values.len())).collect();
    assert_eq!(asked, [(By::Id, 3), (BY_ISSUE, 2)]);
    bench.until_idle().await;
}

#[tokio::test(start_paused = true)]
async fn callers_share_what_is_in_flight_and_what_waits() {
    let bench = Bench::new(LoaderSettings { statements: 1, ..LoaderSettings::default() });
    let o = org("o");
    bench.fill(&o, 0..40, "x");
    bench.source.set_fate(Fate::Held);
    let first = bench.spawn(&o, ids(0..20), SyncId::ZERO);
    bench.until_lookups(1).await;
    let more: Vec<_> =
        (0..50).map(|client| bench.spawn(&o, ids(client % 20..client % 20 + 20), SyncId::ZERO)).collect();
    for _ in 0..1000 {
        yield_now().await;
    }
    assert_eq!(bench.source.lookups().len(), 1);
    assert_eq!(bench.loader.in_flight(), 39);
    bench.source.set_fate(Fate::Answered);
    for (client, outcome) in join_all(more).await.into_iter().enumerate() {
        let loaded = outcome.unwrap().unwrap();
        for (at, load) in loaded.iter().enumerate() {
            assert_eq!(found(load), BTreeSet::from([(client % 20 + at).to_string()]));
        }
    }
    assert!(first.await.unwrap().is_ok());
    assert_eq!(bench.source.lookups().len(), 2, "all that came meanwhile is one statement");
    bench.until_idle().await;
    let text = bench.metrics.encode();
    for line in ["headstart_keys_asked_total 1020", "headstart_keys_read_total 39", "headstart_keys_waiting 0"] {
        assert!(text.contains(line), "{line} in\n{text}");
    }
}

#[tokio::test(start_paused = true)]
async fn half_a_statement_of_keys_waits_for_no_company() {
    let minute = Duration::from_secs(60);
    let settings = LoaderSettings { statement_keys: 20, window_ms: 60_000, ..LoaderSettings::default() };
    let bench = Bench::new(settings);
    let o = org("o");
    bench.fill(&o, 0..40, "x");
    bench.source.set_fate(Fate::Held);
    let limit = Instant::now() + 3 * minute;
    let spawn = |ids: Vec<Ask>| {
        let (loader, o) = (bench.loader.clone(), o.clone());
        tokio::spawn(async move { loader.load(&o, &ids, need(SyncId::ZERO), limit).await })
    };
    let first = spawn(ids(0..5));
    bench.until_lookups(1).await;
    let few = spawn(ids(10..19));
    tokio::time::sleep(minute / 2).await;
    assert_eq!(bench.source.lookups().len(), 1, "nine of twenty wait for the end of the window");
    let began = Instant::now();
    let more = spawn(ids(19..20));
    bench.until_lookups(2).await;
    assert!(began.elapsed() < minute / 4, "ten wait no longer");
    bench.source.set_fate(Fate::Answered);
    for load in [first, few, more] {
        assert!(load.await.unwrap().is_ok());
    }
}

#[tokio::test(start_paused = true)]
async fn a_load_that_is_too_old_is_not_joined() {
    let bench = Bench::new(LoaderSettings::default());
    let o = org("o");
    bench.put(&o, 1, "old");
    bench.source.set_fate(Fate::Held);
    let old = bench.spawn(&o, ids([1]), SyncId::ZERO);
    bench.until_lookups(1).await;
    let needed = bench.put(&o, 1, "new");
    let fresh = bench.spawn(&o, ids([1]), needed);
    let joins = bench.spawn(&o, ids([1]), SyncId::ZERO);
    bench.until_lookups(2).await;
    bench.source.set_fate(Fate::Answered);
    assert_eq!(old.await.unwrap().unwrap()[0].sync_id, SyncId(1));
    let fresh = fresh.await.unwrap().unwrap();
    assert!(fresh[0].sync_id >= needed && fresh[0].rows[0].line.ends_with(b"\"new\"}\n"));
    joins.await.unwrap().unwrap();
    assert_eq!(bench.source.lookups().len(), 2);
    let beyond = bench.loader.load(&o, &ids([1]), need(SyncId(9)), soon()).await;
    assert!(matches!(beyond, Err(LoadError::Ahead { watermark: SyncId(2) })), "{beyond:?}");
    bench.until_idle().await;
}

#[tokio::test(start_paused = true)]
async fn what_was_read_is_joined_by_callers_that_overlap_and_not_for_long() {
    let bench = Bench::new(LoaderSettings { share_ms: 50, ..LoaderSettings::default() });
    let o = org("o");
    bench.put(&o, 1, "old");
    let text = |loaded: &Outcome| String::from_utf8(loaded.as_ref().unwrap()[0].rows[0].line.to_vec()).unwrap();
    // Alone, it reads anew each time.
    bench.load(&o, &ids([1])).await.unwrap();
    bench.put(&o, 1, "newer");
    assert!(text(&bench.load(&o, &ids([1])).await).contains("newer"));
    assert_eq!(bench.source.lookups().len(), 2);
    // While somebody is at work it shares, but not with whoever needs more, and what that one reads is newer for all.
    let other = bench.loader.visit();
    bench.load(&o, &ids([1])).await.unwrap();
    let needed = bench.put(&o, 1, "newest");
    let shared = bench.load(&o, &ids([1])).await;
    assert!(text(&shared).contains("newer") && shared.unwrap()[0].sync_id < needed);
    assert_eq!(bench.source.lookups().len(), 3);
    let anew = bench.loader.load(&o, &ids([1]), need(needed), soon()).await;
    assert!(text(&anew).contains("newest"));
    assert!(text(&bench.load(&o, &ids([1])).await).contains("newest"));
    assert_eq!(bench.source.lookups().len(), 4);
    assert_eq!(bench.loader.in_flight(), 1);
    tokio::time::sleep(Duration::from_millis(60)).await;
    bench.put(&o, 1, "last");
    assert!(text(&bench.load(&o, &ids([1])).await).contains("last"));
    drop(other);
    assert_eq!(bench.loader.in_flight(), 0, "nothing is left behind");
    // Failures are not kept.
    let other = bench.loader.visit();
    bench.source.set_fate(Fate::Refused);
    assert!(bench.load(&o, &ids([1])).await.is_err());
    bench.source.set_fate(Fate::Answered);
    assert!(bench.load(&o, &ids([1])).await.is_ok());
    drop(other);
    bench.until_idle().await;
}

#[tokio::test(start_paused = true)]
async fn whoever_goes_away_takes_nobody_along() {
    let bench = Bench::new(LoaderSettings { statements: 1, ..LoaderSettings::default() });
    let o = org("o");
    bench.put(&o, 1, "x");
    bench.source.set_fate(Fate::Held);
    let first = bench.spawn(&o, ids([1]), SyncId::ZERO);
    bench.until_lookups(1).await;
    let second = bench.spawn(&o, ids([1, 2]), SyncId::ZERO);
    yield_now().await;
    first.abort();
    let _ = first.await;
    assert_eq!(bench.loader.in_flight(), 2, "the second still waits for both");
    // All go away: the statement is stopped, what waits is forgotten.
    second.abort();
    let _ = second.await;
    assert_eq!(bench.loader.in_flight(), 0);
    bench.until_idle().await;
    bench.source.set_fate(Fate::Answered);
    assert_eq!(bench.load(&o, &ids([1])).await.unwrap()[0].rows.len(), 1);
    assert_eq!(bench.source.lookups().len(), 2);
}

#[tokio::test(start_paused = true)]
async fn failures_and_panics_reach_those_who_waited() {
    let bench = Bench::new(LoaderSettings::default());
    let o = org("o");
    bench.put(&o, 1, "x");
    for fate in [Fate::Refused, Fate::Panics] {
        bench.source.set_fate(Fate::Held);
        let before = bench.source.lookups().len();
        let waiting: Vec<_> = (0..5).map(|_| bench.spawn(&o, ids([1]), SyncId::ZERO)).collect();
        bench.until_lookups(before + 1).await;
        for _ in 0..100 {
            yield_now().await;
        }
        bench.source.set_fate(fate);
        for outcome in join_all(waiting).await {
            match (fate, outcome.unwrap()) {
                (Fate::Refused, Err(LoadError::Source(_))) | (Fate::Panics, Err(LoadError::Broken)) => {}
                (_, other) => panic!("{fate:?}: {other:?}"),
            }
        }
        bench.until_idle().await;
    }
    bench.source.set_fate(Fate::Answered);
    assert!(bench.load(&o, &ids([1])).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_stalled_database_costs_the_deadline_and_no_more() {
    let bench = Bench::new(LoaderSettings { statements: 2, waiting_keys: 20, ..LoaderSettings::default() });
    bench.source.set_fate(Fate::Held);
    let began = Instant::now();
    let a = org("a");
    let stuck: Vec<_> = (0..5).map(|client| bench.spawn(&a, ids(client * 5..client * 5 + 5), SyncId::ZERO)).collect();
    let other = bench.spawn(&org("b"), ids([1]), SyncId::ZERO);
    let (mut late, mut refused) = (0, 0);
    for outcome in join_all(stuck).await {
        match outcome.unwrap() {
            Err(LoadError::Deadline) => late += 1,
            Err(LoadError::Overloaded) => refused += 1,
            other => panic!("{other:?}"),
        }
    }
    assert!(matches!(other.await.unwrap(), Err(LoadError::Deadline)), "the other org found room");
    assert_eq!((late, refused), (3, 2), "five run, ten wait, the rest is turned away");
    assert_eq!(began.elapsed().as_secs(), 10);
    bench.until_idle().await;
    bench.source.set_fate(Fate::Answered);
    assert!(bench.load(&a, &ids([1])).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn another_history_midway_is_loaded_anew() {
    let bench = Bench::new(LoaderSettings { statements: 2, statement_keys: 1, ..LoaderSettings::default() });
    let o = org("o");
    bench.put(&o, 1, "x");
    bench.source.set_fate(Fate::Held);
    let both = bench.spawn(&o, ids([1, 2]), SyncId::ZERO);
    bench.until_lookups(1).await;
    bench.source.change_epoch("memory-2");
    bench.source.set_fate(Fate::Answered);
    let loaded = both.await.unwrap().unwrap();
    assert!(loaded.iter().all(|load| load.epoch.as_str() == "memory-2"), "{loaded:?}");
}

#[tokio::test(start_paused = true)]
async fn memberships_of_many_are_one_read_and_never_older_than_the_call() {
    let bench = Bench::new(LoaderSettings::default());
    let (o, group) = (org("o"), |name: &str| vec![SyncGroup::of("team", name)]);
    let held = |user: usize, team: &str| {
        let own = [SyncGroup::of("org", "o"), SyncGroup::of("user", &user.to_string())];
        Grants::new(group(team).into_iter().chain(own).collect())
    };
    let ask = |user: usize| {
        let (loader, o, user) = (bench.loader.clone(), o.clone(), User::new(user.to_string()));
        tokio::spawn(async move { loader.grants(&o, &user).await })
    };
    (0..100).for_each(|user| bench.source.set_memberships(&o, &User::new(user.to_string()), group(&user.to_string())));
    bench.source.set_fate(Fate::Held);
    let first = ask(0);
    while bench.source.membership_reads().is_empty() {
        yield_now().await;
    }
    let gone = ask(99);
    let more: Vec<_> = (0..100).map(|client| ask(client % 50)).collect();
    yield_now().await;
    gone.abort();
    // What the first reads is held back until here: it is not for those who came after it began.
    bench.source.set_memberships(&o, &User::new("0"), group("new"));
    bench.source.set_fate(Fate::Answered);
    assert!(first.await.unwrap().is_ok());
    for (client, groups) in join_all(more).await.into_iter().enumerate() {
        let name = if client % 50 == 0 { "new".to_owned() } else { (client % 50).to_string() };
        assert_eq!(groups.unwrap().unwrap(), held(client % 50, &name));
    }
    assert_eq!(bench.source.membership_reads(), [1, 50], "each user once, and nobody who has gone");
    bench.source.set_fate(Fate::Panics);
    assert!(matches!(ask(1).await.unwrap(), Err(LoadError::Broken)));
    bench.source.set_fate(Fate::Refused);
    assert!(matches!(ask(1).await.unwrap(), Err(LoadError::Source(_))));
    bench.source.set_fate(Fate::Answered);
    assert_eq!(ask(1).await.unwrap().unwrap(), held(1, "1"));
}

/// Clients that come, change their minds, go away and meet failures, many rounds: nobody gets another's rows or older ones
/// than it asked for, and nothing is left behind.
#[tokio::test(start_paused = true)]
async fn many_seeded_rounds() {
    for seed in 0..300_u64 {
        let mut state = seed;
        let mut below = move |end: usize| {
            // SplitMix64.
            state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
            let mut mixed = state;
            mixed = (mixed ^ mixed >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
            usize::try_from((mixed ^ mixed >> 31) % end as u64).unwrap()
        };
        let settings = LoaderSettings {
            statements: 1 + below(3),
            statement_keys: 1 + below(8),
            window_ms: below(3) as u64,
            waiting_keys: 20 + below(200),
            statement_bytes: 200 + below(2000),
            ..LoaderSettings::default()
        };
        let bench = Bench::new(settings);
        let orgs = [org("a"), org("b")];
        let mut last = SyncId::ZERO;
        for id in 0..40 {
            last = bench.put(&orgs[id % 2], id, "0");
        }
        let mut clients = Vec::new();
        for step in 0..60 {
            match below(12) {
                0 => bench.source.set_fate(Fate::Held),
                1 => bench.source.set_fate(Fate::Refused),
                2 => bench.source.set_fate(Fate::Panics),
                3..6 => bench.source.set_fate(Fate::Answered),
                6 => last = bench.put(&orgs[below(2)], below(40), &step.to_string()),
                7 if !clients.is_empty() => {
                    let (handle, ..): (JoinHandle<Outcome>, _, _) = clients.swap_remove(below(clients.len()));
                    handle.abort();
                }
                _ => {
                    let asks: Vec<Ask> = (0..1 + below(6))
                        .flat_map(|_| if below(3) == 0 { vec![issue(below(5))] } else { ids([below(45)]) })
                        .collect();
                    let at_least = if below(3) == 0 { last } else { SyncId::ZERO };
                    let org = &orgs[below(2)];
                    clients.push((bench.spawn(org, asks.clone(), at_least), asks, at_least));
                }
            }
            for _ in 0..below(30) {
                yield_now().await;
            }
        }
        bench.source.set_fate(Fate::Answered);
        for (handle, asks, at_least) in clients {
            let Ok(loaded) = handle.await.unwrap() else { continue };
            assert_eq!(loaded.len(), asks.len(), "seed {seed}");
            for (ask, load) in asks.iter().zip(&loaded) {
                assert!(load.sync_id >= at_least, "seed {seed}: {:?} is older than {at_least:?}", load.sync_id);
                for row in &load.rows {
                    let of = if ask.by == By::Id {
                        row.id.to_string()
                    } else {
                        (row.id.parse::<usize>().unwrap() / 10).to_string()
                    };
                    assert_eq!(of, *ask.value, "seed {seed}");
                }
            }
        }
        bench.until_idle().await;
        assert!(bench.load(&orgs[0], &ids([0])).await.is_ok(), "seed {seed}: it goes on");
    }
}
