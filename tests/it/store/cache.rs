//! The cache in front of a store that counts, holds calls back, damages and panics.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::future::join_all;
use headstart::metrics::CacheMetrics;
use headstart::model::{Epoch, Generation, GroupSet, Org, SchemaHash, SnapshotId, SyncId};
use headstart::snapshot::{FrameEntry, Manifest, PackBuilder, PackEntry, PackId};
use headstart::store::{
    CacheSettings, Facts, Head, Lease, MemoryStore, PackCache, Retention, Slot, SnapshotStore, StoreError,
};
use headstart::task::Tasks;
use tokio::sync::Semaphore;

const MIB: usize = 1 << 20;

/// A store of which the reading calls are scripted.
struct Scripted {
    inner: MemoryStore,
    calls: AtomicU32,
    /// Each reading call takes one of these for itself.
    gate: Semaphore,
    panics: bool,
}

impl Scripted {
    fn new(gate: usize) -> Self {
        let long = Duration::from_secs(1 << 20);
        let inner = MemoryStore::new(Retention { grace: long, unpublished: long });
        Self { inner, calls: AtomicU32::new(0), gate: Semaphore::new(gate), panics: false }
    }

    async fn enter(&self) {
        self.calls.fetch_add(1, Ordering::SeqCst);
        self.gate.acquire().await.expect("open").forget();
        assert!(!self.panics, "on purpose");
    }

    fn calls(&self) -> u32 {
        self.calls.load(Ordering::SeqCst)
    }
}

#[async_trait]
impl SnapshotStore for Scripted {
    async fn head(&self, slot: &Slot) -> Result<Head, StoreError> {
        self.inner.head(slot).await
    }

    async fn heads(&self) -> Result<Vec<(Slot, Head)>, StoreError> {
        self.inner.heads().await
    }

    async fn manifest(&self, slot: &Slot, snapshot: SnapshotId) -> Result<Bytes, StoreError> {
        self.enter().await;
        self.inner.manifest(slot, snapshot).await
    }

    async fn pack(&self, org: &Org, pack: PackId) -> Result<Bytes, StoreError> {
        self.enter().await;
        self.inner.pack(org, pack).await
    }

    async fn put_pack(&self, org: &Org, pack: PackId, bytes: Bytes) -> Result<(), StoreError> {
        self.inner.put_pack(org, pack, bytes).await
    }

    async fn publish(&self, slot: &Slot, over: Generation, facts: &Facts, manifest: Bytes) -> Result<(), StoreError> {
        self.inner.publish(slot, over, facts, manifest).await
    }

    async fn delete(&self, org: &Org) -> Result<u64, StoreError> {
        self.inner.delete(org).await
    }

    async fn retire(&self, slot: &Slot, over: Generation) -> Result<(), StoreError> {
        self.inner.retire(slot, over).await
    }

    async fn acquire(&self, org: &Org, owner: SnapshotId, ttl: Duration) -> Result<Option<Lease>, StoreError> {
        self.inner.acquire(org, owner, ttl).await
    }

    async fn renew(&self, lease: &Lease, ttl: Duration) -> Result<bool, StoreError> {
        self.inner.renew(lease, ttl).await
    }

    async fn release(&self, lease: &Lease) -> Result<(), StoreError> {
        self.inner.release(lease).await
    }

    async fn sweep(&self) -> Result<u64, StoreError> {
        self.inner.sweep().await
    }

    async fn ping(&self) -> Result<(), StoreError> {
        self.inner.ping().await
    }
}

fn slot() -> Slot {
    Slot { org: Org::new("acme"), schema: SchemaHash::new("s") }
}

fn cache(store: &Arc<Scripted>, limit_mib: u32) -> PackCache {
    PackCache::new(
        store.clone(),
        &CacheSettings { limit_mib, room_wait_ms: 1000 },
        Tasks::new(),
        CacheMetrics::default(),
    )
}

/// Puts real packs of about this many bytes; they are published by nobody.
async fn put_packs(store: &Scripted, count: u32, len: usize) -> Vec<PackEntry> {
    let snapshot = SnapshotId::random();
    let mut entries = Vec::new();
    for number in 0..count {
        let mut builder = PackBuilder::default();
        builder.push(0, &GroupSet::new(Vec::new()), &vec![number as u8; len - 100], 9, 1);
        let (id, bytes) = (PackId { snapshot, number }, builder.finish());
        entries.push(PackEntry { id, len: bytes.len() as u32 });
        store.put_pack(&slot().org, id, bytes).await.expect("put");
    }
    entries
}

/// Runs until nothing more can happen without the paused clock moving.
async fn settle() {
    tokio::time::sleep(Duration::from_nanos(1)).await;
}

#[tokio::test(start_paused = true)]
async fn a_pack_is_loaded_once_however_many_ask_and_whoever_goes_away() {
    let store = Arc::new(Scripted::new(0));
    let cache = cache(&store, 8);
    let entry = put_packs(&store, 1, MIB).await[0];
    let org = slot().org;
    let first = tokio::time::timeout(Duration::from_millis(5), cache.pack(&org, entry)).await;
    assert!(first.is_err(), "it went away before the store answered");
    let rest = tokio::spawn({
        let (cache, org) = (cache.clone(), org.clone());
        async move { join_all((0..100).map(|_| cache.pack(&org, entry))).await }
    });
    settle().await;
    store.gate.add_permits(1);
    for pack in rest.await.expect("no panic") {
        assert_eq!(pack.expect("a pack")[0], 0);
    }
    cache.pack(&org, entry).await.expect("out of the cache");
    assert_eq!(store.calls(), 1);
    let stats = cache.stats();
    assert_eq!((stats.loads, stats.joins, stats.hits, stats.bytes), (1, 100, 1, entry.len.into()));
}

#[tokio::test(start_paused = true)]
async fn damage_is_named_and_never_shown_nor_kept() {
    let store = Arc::new(Scripted::new(100));
    let cache = cache(&store, 8);
    let entries = put_packs(&store, 3, 1000).await;
    let org = slot().org;
    let whole = store.inner.pack(&org, entries[0].id).await.expect("a pack");
    let mut flipped = whole.to_vec();
    flipped[500] ^= 1;
    store.put_pack(&org, entries[1].id, flipped.into()).await.expect("put");
    store.put_pack(&org, entries[2].id, whole.slice(1..)).await.expect("put");
    for entry in &entries[1..] {
        let refused = join_all((0..3).map(|_| cache.pack(&org, *entry))).await;
        for refused in refused {
            match refused {
                Err(StoreError::Damaged { what, .. }) => assert!(what.contains(&entry.id.to_string()), "{what}"),
                other => panic!("{other:?}"),
            }
        }
    }
    assert_eq!(cache.stats().bytes, 0);
    store.put_pack(&org, entries[1].id, whole).await.expect("mend");
    assert!(cache.pack(&org, entries[1]).await.is_ok(), "the next one asks anew");
    let gone = PackEntry { id: PackId { number: 99, ..entries[0].id }, len: 5 };
    assert!(matches!(cache.pack(&org, gone).await, Err(StoreError::Missing(_))));
}

#[tokio::test(start_paused = true)]
async fn slices_hold_the_pack_until_the_last_is_gone_and_loads_wait_for_them() {
    let store = Arc::new(Scripted::new(100));
    let cache = cache(&store, 4);
    let entries = put_packs(&store, 3, 2 * MIB - 100).await;
    let org = slot().org;
    let (first, second) = (cache.pack(&org, entries[0]).await, cache.pack(&org, entries[1]).await);
    let slices = [first.expect("a pack").slice(10..20), second.expect("a pack").slice(0..MIB)];
    assert_eq!(slices[0], [0; 10][..]);
    let busy = cache.pack(&org, entries[2]).await;
    assert!(matches!(busy, Err(StoreError::NoRoom)), "{busy:?}");
    assert_eq!(cache.stats().bytes, u64::from(entries[0].len + entries[1].len));

    let waiting = tokio::spawn({
        let (cache, org, entry) = (cache.clone(), org.clone(), entries[2]);
        async move { cache.pack(&org, entry).await }
    });
    settle().await;
    assert!(!waiting.is_finished());
    let [slice, _held] = slices;
    let part = slice.slice(2..4);
    drop(slice);
    settle().await;
    assert!(!waiting.is_finished(), "a part of the slice still holds the pack");
    drop(part);
    assert_eq!(waiting.await.expect("no panic").expect("a pack")[0], 2);
    let stats = cache.stats();
    assert_eq!((stats.evictions, stats.waits), (1, 2));
    assert!(stats.bytes <= stats.limit);
}

#[tokio::test(start_paused = true)]
async fn a_panic_reaches_those_who_waited_and_nobody_else() {
    let store = Arc::new(Scripted { panics: true, ..Scripted::new(100) });
    let cache = cache(&store, 8);
    let entry = put_packs(&store, 1, 1000).await[0];
    let org = slot().org;
    for round in 1..3 {
        let failed = join_all((0..5).map(|_| cache.pack(&org, entry))).await;
        assert!(failed.iter().all(|pack| matches!(pack, Err(StoreError::Unavailable(_)))), "{failed:?}");
        assert_eq!(store.calls(), round, "each round loads anew");
    }
    assert_eq!(cache.stats().bytes, 0);
}

#[tokio::test(start_paused = true)]
async fn manifests_are_decoded_once_checked_and_counted() {
    let store = Arc::new(Scripted::new(100));
    let cache = cache(&store, 8);
    let (id, slot) = (SnapshotId::random(), slot());
    let pack = PackEntry { id: PackId { snapshot: id, number: 0 }, len: 1 << 30 };
    let frame = |offset| FrameEntry { model: 0, set: 0, pack: 0, offset, len: 10, raw_len: 100, rows: 1 };
    let manifest = Manifest {
        id,
        org: slot.org.clone(),
        generation: Generation(1),
        epoch: Epoch::new("e"),
        sync_id: SyncId(3),
        schema_hash: slot.schema.clone(),
        models: 1,
        refreshes: 0,
        index: Vec::new(),
        packs: vec![pack],
        sets: vec![GroupSet::new(Vec::new())],
        frames: (0..1000).map(|number| frame(number * 10)).collect(),
    };
    let publish = async |slot: &Slot, id: SnapshotId, bytes: Vec<u8>| {
        let facts =
            Facts { id, epoch: Epoch::new("e"), sync_id: SyncId(3), rows: 1, raw_len: 1, len: 1, packs: Vec::new() };
        let over = store.head(slot).await.expect("head").generation;
        store.publish(slot, over, &facts, bytes.into()).await.expect("publish");
    };
    publish(&slot, id, manifest.encode().expect("encode")).await;
    let read = join_all((0..20).map(|_| cache.manifest(&slot, id))).await;
    assert!(read.into_iter().all(|read| **read.expect("a manifest") == manifest));
    assert_eq!(store.calls(), 1);
    assert_eq!(cache.stats().bytes, manifest.weight() as u64);

    let (stranger, cut) = (SnapshotId::random(), SnapshotId::random());
    publish(&slot, stranger, manifest.encode().expect("encode")).await;
    publish(&slot, cut, manifest.encode().expect("encode")[..50].to_vec()).await;
    for damaged in [stranger, cut] {
        match cache.manifest(&slot, damaged).await {
            Err(StoreError::Damaged { what, .. }) => assert!(what.contains(&damaged.to_string()), "{what}"),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(cache.stats().bytes, manifest.weight() as u64);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memory_stays_within_the_limit_with_readers_of_any_pace() {
    let store = Arc::new(Scripted::new(1 << 20));
    let settings = CacheSettings { limit_mib: 4, room_wait_ms: 30_000 };
    let cache = PackCache::new(store.clone(), &settings, Tasks::new(), CacheMetrics::default());
    let entries = Arc::new(put_packs(&store, 40, MIB / 2).await);
    let served = Arc::new(AtomicU64::new(0));
    let readers = (0..16u32).map(|reader| {
        let (cache, entries, served) = (cache.clone(), entries.clone(), served.clone());
        tokio::spawn(async move {
            let org = slot().org;
            for step in 0..200u32 {
                let index = (reader * 7 + step * (reader % 5 + 1)) as usize % entries.len();
                let slice = cache.pack(&org, entries[index]).await.expect("a pack").slice(0..1000);
                let stats = cache.stats();
                assert!(stats.bytes <= stats.limit, "{stats:?}");
                for _ in 0..reader {
                    tokio::task::yield_now().await;
                }
                assert!(slice.iter().all(|byte| *byte == index as u8));
                served.fetch_add(1, Ordering::Relaxed);
            }
        })
    });
    for reader in readers.collect::<Vec<_>>() {
        reader.await.expect("no panic");
    }
    let stats = cache.stats();
    assert_eq!(served.load(Ordering::Relaxed), stats.hits + stats.joins + stats.loads);
    assert!(stats.evictions > 0 && stats.waits > 0 && stats.hits > 0, "{stats:?}");
    assert_eq!(stats.idle_bytes, stats.bytes, "nothing is held any more");
}
