//! A refreshed snapshot equals a full dump, always: random changes of a real database, of its catalog and of who belongs
//! to what, crashes at any step of a refresh, and after each round the same rows for every group set.
//!
//! `HEADSTART_TEST_SECONDS` says for how long (default 10), `HEADSTART_TEST_SEED` replays the choices of a run.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use headstart::dump::{DumpError, DumpSettings, Dumps, Joined, Settled, Wish};
use headstart::metrics::Metrics;
use headstart::model::{Catalog, Generation, GroupSet, Org, SnapshotId, SyncId};
use headstart::snapshot::{Manifest, PackId, frame, pack};
use headstart::source::Source;
use headstart::source::postgres::PostgresSource;
use headstart::source::postgres::scan::ScanSettings;
use headstart::source::postgres::watermark::WatermarkSettings;
use headstart::store::{Facts, Head, Lease, MemoryStore, Slot, SnapshotStore, StoreError};
use headstart::task::Tasks;

use crate::support::dice::Dice;
use crate::support::postgres::Database;
use crate::support::reader::pool;
use crate::support::server::Setup;
use crate::support::world::retention;
use crate::workspace::{self, ORGS};

/// A store whose process dies after some more calls: from then on nothing reaches it.
struct Dying {
    store: Arc<MemoryStore>,
    calls: AtomicI64,
}

impl Dying {
    fn call(&self) -> Result<(), StoreError> {
        match self.calls.fetch_sub(1, Ordering::SeqCst) {
            left if left > 0 => Ok(()),
            _ => Err(StoreError::Unavailable(Arc::from(Box::from("died by the test")))),
        }
    }
}

#[async_trait]
impl SnapshotStore for Dying {
    async fn head(&self, slot: &Slot) -> Result<Head, StoreError> {
        self.call()?;
        self.store.head(slot).await
    }

    async fn heads(&self) -> Result<Vec<(Slot, Head)>, StoreError> {
        self.store.heads().await
    }

    async fn manifest(&self, slot: &Slot, snapshot: SnapshotId) -> Result<Bytes, StoreError> {
        self.call()?;
        self.store.manifest(slot, snapshot).await
    }

    async fn pack(&self, org: &Org, pack: PackId) -> Result<Bytes, StoreError> {
        self.call()?;
        self.store.pack(org, pack).await
    }

    async fn put_pack(&self, org: &Org, pack: PackId, bytes: Bytes) -> Result<(), StoreError> {
        self.call()?;
        self.store.put_pack(org, pack, bytes).await
    }

    async fn publish(&self, slot: &Slot, over: Generation, facts: &Facts, manifest: Bytes) -> Result<(), StoreError> {
        self.call()?;
        self.store.publish(slot, over, facts, manifest).await?;
        // Now and then its answer is what is lost.
        self.call()
    }

    async fn delete(&self, org: &Org) -> Result<u64, StoreError> {
        self.store.delete(org).await
    }

    async fn retire(&self, slot: &Slot, over: Generation) -> Result<(), StoreError> {
        self.call()?;
        self.store.retire(slot, over).await
    }

    // A process that died keeps its lease until it ends; here it is given back, to go on at once.
    async fn acquire(&self, org: &Org, owner: SnapshotId, ttl: Duration) -> Result<Option<Lease>, StoreError> {
        self.store.acquire(org, owner, ttl).await
    }

    async fn renew(&self, lease: &Lease, ttl: Duration) -> Result<bool, StoreError> {
        self.store.renew(lease, ttl).await
    }

    async fn release(&self, lease: &Lease) -> Result<(), StoreError> {
        self.store.release(lease).await
    }

    async fn sweep(&self) -> Result<u64, StoreError> {
        self.store.sweep().await
    }

    async fn ping(&self) -> Result<(), StoreError> {
        self.call()
    }
}

/// How the catalog is at times.
fn catalogs() -> [String; 3] {
    let plain = workspace::CATALOG.to_owned();
    let filtered = plain.replace("filter = \"not hidden\"", "filter = \"hidden\"");
    let ungrouped = plain.replace("load = \"instant\"", "load = \"instant\"\n    ungrouped = \"org\"");
    assert!(filtered != plain && ungrouped != plain);
    [plain, filtered, ungrouped]
}

fn reads(database: &Database, catalog: &str) -> (Arc<dyn Source>, Tasks) {
    let (pool, tasks) = pool(database, 6);
    let catalog = Arc::new(Catalog::parse(catalog).unwrap());
    let (scans, watermarks) = (ScanSettings::default(), WatermarkSettings::default());
    (Arc::new(PostgresSource::new(catalog, pool, None, scans, watermarks, tasks.clone(), Metrics::new())), tasks)
}

/// One process that makes snapshots.
struct Maker {
    dumps: Dumps,
    metrics: Metrics,
    tasks: Tasks,
}

impl Maker {
    fn new(source: &Arc<dyn Source>, store: Arc<dyn SnapshotStore>, refreshes: u32, open_bytes: usize) -> Self {
        let (tasks, metrics) = (Tasks::new(), Metrics::new());
        let settings = DumpSettings {
            open_bytes,
            refresh_max_count: refreshes,
            refresh_max_percent: 90,
            ..DumpSettings::default()
        };
        let dumps = Dumps::new(source.clone(), store, tasks.clone(), settings, metrics.clone());
        Self { dumps, metrics, tasks }
    }

    /// Makes a snapshot, or fails. Where nothing happened since the last one there is none to make.
    async fn make(&self, slot: &Slot) -> bool {
        match self.dumps.join(slot, Wish::Background, tokio::time::Instant::now(), &"the test asks").unwrap() {
            Joined::Live(live) => {
                let is_published = live.wait_settled().await == Settled::Published;
                is_published || matches!(live.end(), Some(Err(DumpError::Elsewhere)))
            }
            Joined::Published => true,
        }
    }

    fn counted(&self, series: &str) -> u64 {
        let text = self.metrics.encode();
        let values = text.lines().filter_map(|line| line.strip_prefix(series)?.rsplit_once(' '));
        values.map(|(_, value)| value.parse::<f64>().unwrap() as u64).sum()
    }
}

/// Every row of what is published, by group set, model and line, and the sync id; counts and order are checked.
async fn held(store: &MemoryStore, slot: &Slot) -> (BTreeMap<(GroupSet, u32, String), usize>, SyncId) {
    let facts = store.head(slot).await.unwrap().current.expect("something is published").facts;
    let manifest = Manifest::decode(&store.manifest(slot, facts.id).await.unwrap()).unwrap();
    assert_eq!((manifest.rows(), manifest.raw_len(), manifest.len()), (facts.rows, facts.raw_len, facts.len));
    let mut rows = BTreeMap::new();
    for (number, entry) in manifest.packs.iter().enumerate() {
        let bytes = store.pack(&slot.org, entry.id).await.unwrap();
        pack::verify(&bytes).unwrap();
        let frames = manifest.frames.iter().filter(|frame| frame.pack as usize == number);
        assert!(frames.clone().count() > 0, "a pack without a frame in use");
        for entry in frames {
            let stored = &bytes[entry.offset as usize..][..entry.len as usize];
            let lines = String::from_utf8(frame::decompress(stored, entry.raw_len as usize).unwrap()).unwrap();
            assert_eq!(lines.lines().count(), entry.rows as usize);
            for line in lines.lines() {
                let set = manifest.sets[entry.set as usize].clone();
                *rows.entry((set, entry.model, line.to_owned())).or_default() += 1;
            }
        }
    }
    (rows, facts.sync_id)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refresh_equals_a_full_dump() {
    let mut dice = Dice::seeded();
    println!("seed {}", dice.seed());
    let seconds = std::env::var("HEADSTART_TEST_SECONDS").map_or(10, |text| text.parse().expect("a number"));
    let until = Instant::now() + Duration::from_secs(seconds);

    let database = Database::create().await;
    let writer = database.connect().await;
    writer.batch_execute(workspace::TABLES).await.unwrap();
    let catalogs = catalogs();
    let setups = catalogs.each_ref().map(|catalog| Setup::new(&database.url(), catalog));
    setups[0].must(&["migrate", "--apply"]);
    let (mut source, mut tasks) = reads(&database, &catalogs[0]);
    let store = Arc::new(MemoryStore::new(retention()));
    let (mut rounds, mut refreshed, mut full, mut deaths) = (0_u64, 0, 0, 0);
    while Instant::now() < until {
        if dice.below(25) == 0 {
            let catalog = dice.below(catalogs.len());
            setups[catalog].must(&["migrate", "--apply"]);
            tasks.shutdown(Duration::from_secs(20)).await.unwrap();
            (source, tasks) = reads(&database, &catalogs[catalog]);
        }
        let most = [2, 6, 25][dice.below(3)];
        for _ in 0..dice.below(most) {
            workspace::write(&writer, &mut dice).await;
        }
        let about = format!("seed {}, round {rounds}, database {:?}", dice.seed(), database.config().get_dbname());
        let schema = source.schema().await.unwrap().hash.clone();
        // Few, so that rows of one set come in several frames; or more than all rows have, so that frames are full by long ones.
        let open_bytes = [2048, 8 << 20][dice.below(2)];
        for org in ORGS {
            let slot = Slot { org: Org::new(org), schema: schema.clone() };
            if dice.below(3) == 0 {
                let dying = Dying { store: store.clone(), calls: AtomicI64::new(dice.below(12) as i64) };
                let maker = Maker::new(&source, Arc::new(dying), 50, open_bytes);
                deaths += u64::from(!maker.make(&slot).await);
                maker.tasks.shutdown(Duration::from_secs(20)).await.unwrap();
            }
            let maker = Maker::new(&source, store.clone(), 50, open_bytes);
            assert!(maker.make(&slot).await, "{about}: not published");
            refreshed += maker.counted("headstart_refreshes_total");
            full += maker.counted("headstart_full_dumps_total");
            maker.tasks.shutdown(Duration::from_secs(20)).await.unwrap();

            let other = Arc::new(MemoryStore::new(retention()));
            let whole = Maker::new(&source, other.clone(), 0, open_bytes);
            assert!(whole.make(&slot).await, "{about}: no full dump");
            whole.tasks.shutdown(Duration::from_secs(20)).await.unwrap();
            let ((ours, at), (theirs, now)) = (held(&store, &slot).await, held(&other, &slot).await);
            assert!(ours.values().all(|times| *times == 1), "{about}: a row stands twice in {ours:?}");
            // What others wrote meanwhile is nothing: nobody else writes.
            assert_eq!(at, now, "{about}");
            assert_eq!(ours, theirs, "{about}, org {org}");
        }
        rounds += 1;
    }
    tasks.shutdown(Duration::from_secs(20)).await.unwrap();
    println!("{rounds} rounds: {refreshed} refreshes, {full} full dumps, {deaths} deaths");
    assert!(rounds < 10 || (refreshed > full && deaths > 0), "hardly anything was refreshed");
}
