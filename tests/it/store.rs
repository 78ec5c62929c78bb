//! The snapshot stores against a real server and real folders.

mod cache;
mod deaths;
mod folder;
mod mongodb;
mod together;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use headstart::metrics::Metrics;
use headstart::model::{Epoch, Generation, SnapshotId, SyncId};
use headstart::snapshot::PackId;
use headstart::store::{
    BucketStore, Facts, FolderSettings, GuardedStore, MemoryStore, MongoSettings, MongoStore, Published, Retention,
    Slot, SnapshotStore, StoreError, contract,
};
use headstart::task::Tasks;
use object_store::memory::InMemory;

use super::support::mongo_url;

/// Nothing expires while a test runs.
const LONG: Retention = Retention { grace: Duration::from_secs(3600), unpublished: Duration::from_secs(3600) };

async fn mongo(url: &str, retention: Retention) -> Arc<dyn SnapshotStore> {
    Arc::new(MongoStore::open(url, &MongoSettings::default(), retention, Tasks::new()).await.expect("open"))
}

async fn folder(root: &Path, retention: Retention) -> Arc<dyn SnapshotStore> {
    Arc::new(BucketStore::folder(root, &FolderSettings { fsync: false }, retention).await.expect("open"))
}

/// Publishes a snapshot of `packs` new packs over what is current, of which it takes over `taken_over`.
async fn publish(
    store: &dyn SnapshotStore,
    slot: &Slot,
    over: Generation,
    packs: u32,
    taken_over: &[PackId],
) -> Result<SnapshotId, StoreError> {
    let id = SnapshotId::random();
    let own = (0..packs).map(|number| PackId { snapshot: id, number });
    let facts = Facts {
        id,
        epoch: Epoch::new("e"),
        sync_id: SyncId(7),
        rows: 1,
        raw_len: 1,
        len: 1,
        packs: taken_over.iter().copied().chain(own.clone()).collect(),
    };
    for pack in own {
        store.put_pack(&slot.org, pack, pack_bytes(pack)).await?;
    }
    store.publish(slot, over, &facts, Bytes::from(format!("manifest {id}"))).await?;
    Ok(id)
}

fn pack_bytes(pack: PackId) -> Bytes {
    Bytes::from(format!("pack {pack} ").repeat(100))
}

/// Reads all that is published in a slot, as a reader would, and holds it against what was put.
async fn read_whole(store: &dyn SnapshotStore, slot: &Slot, current: &Published) {
    let id = current.facts.id;
    assert_eq!(store.manifest(slot, id).await.expect("the manifest"), format!("manifest {id}"));
    for pack in &current.facts.packs {
        assert_eq!(store.pack(&slot.org, *pack).await.expect("a pack"), pack_bytes(*pack));
    }
}

#[tokio::test(start_paused = true)]
async fn memory_keeps_the_contract() {
    contract::run(async |retention| Arc::new(MemoryStore::new(retention)) as _).await;
    contract::announcing::run(&MemoryStore::new(LONG)).await;
}

#[tokio::test(start_paused = true)]
async fn a_guarded_store_keeps_the_contract() {
    let guarded = |store| GuardedStore::new(store, Duration::from_secs(1), Tasks::new(), Metrics::new());
    contract::run(async |retention| Arc::new(guarded(Arc::new(MemoryStore::new(retention)))) as _).await;
    contract::announcing::run(&guarded(Arc::new(MemoryStore::new(LONG)))).await;
}

#[tokio::test]
async fn a_bucket_keeps_the_contract() {
    contract::run(async |retention| Arc::new(BucketStore::new(Arc::new(InMemory::new()), retention)) as _).await;
}

#[tokio::test]
async fn a_folder_keeps_the_contract() {
    let root = tempfile::tempdir().expect("a folder");
    contract::run(async |retention| folder(&root.path().join(SnapshotId::random().to_string()), retention).await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mongodb_keeps_the_contract() {
    contract::run(async |retention| mongo(&mongo_url(), retention).await).await;
    contract::announcing::run(&*mongo(&mongo_url(), LONG).await).await;
}
