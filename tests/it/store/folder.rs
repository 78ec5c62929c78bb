//! What is particular to a folder.

use std::fs::File;
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, SystemTime};

use headstart::model::{Generation, Org, SchemaHash};
use headstart::store::{BucketStore, FolderSettings, OpenError, Retention, Slot, StoreError, StoreSettings, open};
use headstart::task::Tasks;

use super::{folder, publish, read_whole};

const LONG: Retention = Retention { grace: Duration::from_secs(3600), unpublished: Duration::from_secs(3600) };

fn slot() -> Slot {
    Slot { org: Org::new("acme"), schema: SchemaHash::new("s") }
}

#[tokio::test]
async fn it_is_private_and_durable_by_default_and_opened_by_its_url() {
    let root = tempfile::tempdir().expect("a folder");
    let url = format!("file://{}/a%20b/c", root.path().display());
    let settings = StoreSettings::default();
    assert!(settings.folder.fsync);
    let store = open(&url, &settings, &Tasks::new()).await.expect("open");
    publish(&*store, &slot(), Generation::NONE, 1, &[]).await.expect("publish");
    store.ping().await.expect("ping");
    let objects = root.path().join("a b/c/v1");
    let mode = || std::fs::metadata(&objects).expect("the folder").permissions().mode() & 0o777;
    assert_eq!(mode(), 0o700);

    std::fs::set_permissions(&objects, std::fs::Permissions::from_mode(0o755)).expect("chmod");
    let again = open(&url, &settings, &Tasks::new()).await.expect("open again");
    assert_eq!(mode(), 0o700, "a folder others can read is closed");
    let current = again.head(&slot()).await.expect("head").current.expect("what the first published");
    read_whole(&*again, &slot(), &current).await;
}

#[tokio::test]
async fn another_layout_is_refused() {
    let root = tempfile::tempdir().expect("a folder");
    drop(folder(root.path(), LONG).await);
    std::fs::write(root.path().join("v1/format"), "headstart snapshots 2\n").expect("write");
    let opened = BucketStore::folder(root.path(), &FolderSettings::default(), LONG).await;
    assert!(matches!(opened, Err(StoreError::Damaged { .. })), "{opened:?}");
    let url = format!("file://{}/v1/format", root.path().display());
    let opened = open(&url, &StoreSettings::default(), &Tasks::new()).await;
    assert!(matches!(opened, Err(OpenError::Store(StoreError::Unavailable(_)))), "a file is no folder");
}

#[tokio::test]
async fn what_killed_processes_left_is_swept_and_what_is_being_written_is_not() {
    let root = tempfile::tempdir().expect("a folder");
    let store = folder(root.path(), LONG).await;
    publish(&*store, &slot(), Generation::NONE, 1, &[]).await.expect("publish");
    let packs = root.path().join("v1/orgs/acme/packs");
    let [old, new, stranger] = ["a#1", "b#12", "c#1x"].map(|name| packs.join(name));
    for path in [&old, &new, &stranger] {
        let file = File::create(path).expect("create");
        if *path != new {
            file.set_modified(SystemTime::now() - LONG.unpublished * 2).expect("touch");
        }
    }
    store.sweep().await.expect("sweep");
    assert_eq!([&old, &new, &stranger].map(|path| path.exists()), [false, true, true]);
}

#[tokio::test]
async fn a_damaged_head_is_mended_by_the_next_dump() {
    let root = tempfile::tempdir().expect("a folder");
    let store = folder(root.path(), LONG).await;
    publish(&*store, &slot(), Generation::NONE, 1, &[]).await.expect("publish");
    std::fs::write(root.path().join("v1/orgs/acme/heads/s/00000000000000000001"), "").expect("cut it off");
    let head = store.head(&slot()).await.expect("head");
    assert_eq!((head.generation, &head.current), (Generation(1), &None));
    assert!(store.heads().await.expect("heads").is_empty());
    publish(&*store, &slot(), head.generation, 1, &[]).await.expect("publish over it");
    let current = store.head(&slot()).await.expect("head").current.expect("mended");
    read_whole(&*store, &slot(), &current).await;
}
