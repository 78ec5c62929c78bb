//! The snapshot stores against real servers and folders: the contract, deaths midway, and the cache in front.

use std::sync::Arc;
use std::time::Duration;

use headstart::model::SnapshotId;
use headstart::store::{
    BucketStore, FolderSettings, MemoryStore, MongoSettings, MongoStore, Retention, SnapshotStore, contract,
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
    let settings = FolderSettings { fsync: false };
    contract::run(async |retention| {
        let folder = root.path().join(SnapshotId::random().to_string());
        Arc::new(BucketStore::folder(&folder, &settings, retention).await.expect("open")) as _
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mongodb_keeps_the_contract() {
    contract::run(async |retention| mongo(&mongo_url(), retention).await).await;
}
