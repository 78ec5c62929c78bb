//! The snapshot stores against a real server and real folders.

mod cache;
mod deaths;
mod folder;
mod mongodb;
mod together;

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use headstart::model::{Epoch, Generation, SnapshotId, SyncId};
use headstart::snapshot::PackId;
use headstart::store::{
    BucketStore, Facts, FolderSettings, MemoryStore, MongoSettings, MongoStore, Published, Retention, Slot,
    SnapshotStore, StoreError, contract,
};
use headstart::task::Tasks;
use object_store::memory::InMemory;

use super::support::required;

/// The test server's URL with a database of its own.
fn mongo_url() -> String {
    let url = required("HEADSTART_TEST_MONGODB_URL");
    let (server, options) = url.split_once("/?").unwrap_or((url.trim_end_matches('/'), ""));
    format!("{server}/t_{}?{options}", SnapshotId::random())
}

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
}
