//! What is served while the store, the database or the rows are not as they should be: over the two seams in memory.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::TryStreamExt;
use futures_util::future::join_all;
use headstart::dump::{DumpError, DumpSettings};
use headstart::metrics::Metrics;
use headstart::model::{DeltaQuery, Generation, Org, SnapshotId, SyncId};
use headstart::serve::ServeError;
use headstart::serve::batch::LoaderSettings;
use headstart::snapshot::PackId;
use headstart::source::Source;
use headstart::store::{Facts, GuardedStore, Head, Lease, MemoryStore, Slot, SnapshotStore, StoreError};
use headstart::task::Tasks;
use tokio::time::sleep;

use crate::service::{full, settled};
use crate::support::world::{World, caller, org, retention, team_set};

/// A store that can be switched off.
struct Switch {
    inner: MemoryStore,
    off: AtomicBool,
    /// Whether no pack is taken, as by a folder that may only be read.
    read_only: AtomicBool,
    /// How long the look at a head takes.
    slow: Duration,
}

impl Switch {
    fn check(&self) -> Result<(), StoreError> {
        let down = || Err(StoreError::Unavailable(Arc::new(std::io::Error::other("switched off by the test"))));
        if self.off.load(Ordering::SeqCst) { down() } else { Ok(()) }
    }
}

#[async_trait]
impl SnapshotStore for Switch {
    async fn head(&self, slot: &Slot) -> Result<Head, StoreError> {
        sleep(self.slow).await;
        self.check()?;
        self.inner.head(slot).await
    }
    async fn heads(&self) -> Result<Vec<(Slot, Head)>, StoreError> {
        self.check()?;
        self.inner.heads().await
    }
    async fn manifest(&self, slot: &Slot, snapshot: SnapshotId) -> Result<Bytes, StoreError> {
        self.check()?;
        self.inner.manifest(slot, snapshot).await
    }
    async fn pack(&self, org: &Org, pack: PackId) -> Result<Bytes, StoreError> {
        self.check()?;
        self.inner.pack(org, pack).await
    }
    async fn put_pack(&self, org: &Org, pack: PackId, bytes: Bytes) -> Result<(), StoreError> {
        self.check()?;
        if self.read_only.load(Ordering::SeqCst) {
            return Err(StoreError::Unavailable(Arc::new(std::io::Error::other("it may only be read"))));
        }
        self.inner.put_pack(org, pack, bytes).await
    }
    async fn publish(&self, slot: &Slot, over: Generation, facts: &Facts, manifest: Bytes) -> Result<(), StoreError> {
        self.check()?;
        self.inner.publish(slot, over, facts, manifest).await
    }
    async fn delete(&self, org: &Org) -> Result<u64, StoreError> {
        self.check()?;
        self.inner.delete(org).await
    }
    async fn retire(&self, slot: &Slot, over: Generation) -> Result<(), StoreError> {
        self.check()?;
        self.inner.retire(slot, over).await
    }
    async fn acquire(&self, org: &Org, owner: SnapshotId, ttl: Duration) -> Result<Option<Lease>, StoreError> {
        self.check()?;
        self.inner.acquire(org, owner, ttl).await
    }
    async fn renew(&self, lease: &Lease, ttl: Duration) -> Result<bool, StoreError> {
        self.check()?;
        self.inner.renew(lease, ttl).await
    }
    async fn release(&self, lease: &Lease) -> Result<(), StoreError> {
        self.check()?;
        self.inner.release(lease).await
    }
    async fn sweep(&self) -> Result<u64, StoreError> {
        self.check()?;
        self.inner.sweep().await
    }
    async fn ping(&self) -> Result<(), StoreError> {
        self.check()
    }
}

/// A store that takes nothing more still gives what it holds; one that does not answer is left alone.
#[tokio::test(start_paused = true)]
async fn a_store_that_may_only_be_read_is_read() {
    let (off, read_only) = (AtomicBool::new(false), AtomicBool::new(true));
    let store = Arc::new(Switch { inner: MemoryStore::new(retention()), off, read_only, slow: Duration::ZERO });
    let guarded = GuardedStore::new(store.clone(), Duration::from_secs(1), Tasks::new(), Metrics::new());
    let (acme, slot) = (org("acme"), World::new().slot(&org("acme")));
    let pack = PackId { snapshot: SnapshotId::random(), number: 0 };
    let put = async || guarded.put_pack(&acme, pack, Bytes::from_static(b"x")).await;
    assert!(put().await.is_err());
    assert!(guarded.head(&slot).await.is_ok());
    store.off.store(true, Ordering::SeqCst);
    assert!(put().await.is_err());
    store.off.store(false, Ordering::SeqCst);
    assert!(guarded.head(&slot).await.is_err(), "it is closed until the store is found to answer");
    sleep(Duration::from_secs(2)).await;
    assert!(guarded.head(&slot).await.is_ok());
}

/// Whoever waited for a look that failed has its answer: they do not try one after the other.
#[tokio::test(start_paused = true)]
async fn a_look_that_fails_is_shared_by_all_who_waited_for_it() {
    let slow = Duration::from_secs(5);
    let store = Arc::new(Switch {
        inner: MemoryStore::new(retention()),
        off: AtomicBool::new(false),
        read_only: AtomicBool::new(false),
        slow,
    });
    let world = World::with(DumpSettings::default(), store);
    let who = caller(&org("acme"), &["team:1"]);
    let began = tokio::time::Instant::now();
    let query = full();
    // They wait for the look at the head when the database goes away.
    let answers = join_all((0..10).map(|_| world.bootstrap(&who, &query)));
    let going = async {
        sleep(slow / 5).await;
        world.source.switch_off(true);
    };
    let (answers, ()) = tokio::join!(answers, going);
    assert!(answers.iter().all(|answer| matches!(answer, Err(ServeError::Source(_)))), "{:?}", answers[0]);
    assert_eq!(began.elapsed(), slow, "one look for all of them");
    world.source.switch_off(false);
    world.issues(&org("acme"), "1", 0, 3);
    assert_eq!(world.bootstrap(&who, &query).await.unwrap().lines.len(), 3);
}

#[tokio::test]
async fn without_the_store_one_scan_serves_until_it_is_stale() {
    let store = Arc::new(Switch {
        inner: MemoryStore::new(retention()),
        off: AtomicBool::new(true),
        read_only: AtomicBool::new(false),
        slow: Duration::ZERO,
    });
    let world = World::with(DumpSettings::default(), store.clone());
    let acme = org("acme");
    world.issues(&acme, "1", 0, 10);
    let who = caller(&acme, &["team:1"]);
    for _ in 0..3 {
        let answer = world.bootstrap(&who, &full()).await.unwrap();
        assert_eq!((answer.method(), answer.lines.len()), ("postgres", 10));
        settled(&world).await;
    }
    assert_eq!(world.source.scans(), 1);
    world.issues(&acme, "1", 10, 21);
    assert_eq!(world.bootstrap(&who, &full()).await.unwrap().lines.len(), 31);
    settled(&world).await;
    assert_eq!(world.source.scans(), 2);
    store.off.store(false, Ordering::SeqCst);
    world.runner().round(true, false).await.unwrap();
    while world.dumps.unstored(&world.slot(&acme)).is_some() || world.dumps.spool_bytes() > 0 {
        sleep(Duration::from_millis(20)).await;
    }
    let head = world.store.head(&world.slot(&acme)).await.unwrap();
    assert_eq!(head.current.unwrap().facts.sync_id, SyncId(31), "it is published afterwards");
    assert_eq!((world.source.scans(), world.dumps.spool_bytes()), (2, 0), "without a scan, and the spool is let go");
}

#[tokio::test]
async fn without_a_place_for_its_spool_a_dump_fails_at_once_for_all_who_wait() {
    let settings = DumpSettings { spool_dir: "/nowhere".into(), ..DumpSettings::default() };
    let world = World::with(settings, Arc::new(MemoryStore::new(retention())));
    let acme = org("acme");
    world.issues(&acme, "1", 0, 3);
    let (who, query) = (caller(&acme, &["team:1"]), full());
    for _ in 0..2 {
        let answers = join_all((0..3).map(|_| world.bootstrap(&who, &query))).await;
        let failed = |answer: &_| matches!(answer, Err(ServeError::Dump(DumpError::Spool(_))));
        assert!(answers.iter().all(failed), "{:?}", answers[0]);
        settled(&world).await;
        assert!(world.dumps.in_progress().is_empty());
    }
}

/// Rows that are more together than answers may hold are told all the same, some at a time.
#[tokio::test(start_paused = true)]
async fn a_delta_of_long_rows_gets_to_its_end() {
    let loader = LoaderSettings { statement_bytes: 20_000, held_bytes: 50_000, ..LoaderSettings::default() };
    let world = World::loading(DumpSettings::default(), Arc::new(MemoryStore::new(retention())), loader);
    let (acme, who) = (org("acme"), caller(&org("acme"), &["team:1"]));
    for id in 0..600 {
        let line = format!("{{\"__class\":\"Issue\",\"id\":\"{id}\",\"text\":\"{}\"}}\n", "x".repeat(1000));
        world.source.put(&acme, 0, &id.to_string(), team_set("1"), line);
    }
    let epoch = world.source.epoch().await.unwrap();
    let query = DeltaQuery { last_sync_id: SyncId::ZERO, epoch, to_sync_id: None, schema_hash: None };
    let reached = world.service.reach(&query).await;
    let answer = world.service.delta(&who, &query, reached).await.unwrap();
    let pieces: Vec<Bytes> = answer.actions.unwrap().lines().try_collect().await.unwrap();
    assert_eq!(pieces.iter().flat_map(|piece| piece.iter()).filter(|byte| **byte == b'\n').count(), 600);
}
