//! Many publishers, deleters, sweepers and readers of the same slots at once, while everything expires quickly.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use headstart::model::{Org, SchemaHash, SnapshotId};
use headstart::store::{BucketStore, Retention, Slot, SnapshotStore, StoreError};
use object_store::memory::InMemory;

use super::{folder, mongo, mongo_url, publish, read_whole};

/// Long enough for a reader to read what it found, short enough that much expires meanwhile.
const RETENTION: Retention = Retention { grace: Duration::from_secs(2), unpublished: Duration::from_secs(4) };
const RUN: Duration = Duration::from_secs(6);
/// Between two publications of a publisher, which otherwise leaves the readers no turn in a store that never waits.
const PAUSE: Duration = Duration::from_millis(20);

/// Which snapshot was published as which generation of a slot; two of the same generation are a failure.
type Published = Arc<Mutex<HashMap<(Slot, u64), SnapshotId>>>;

async fn publisher(store: Arc<dyn SnapshotStore>, slot: Slot, published: Published) {
    let begun = Instant::now();
    while begun.elapsed() < RUN {
        let head = store.head(&slot).await.expect("head");
        let current = head.current.map(|current| current.facts.packs).unwrap_or_default();
        // Some packs stay for a few generations, some for one.
        let reused: Vec<_> = current.into_iter().skip(1).take(2).collect();
        match publish(&*store, &slot, head.generation, 2, &reused).await {
            Ok(id) => {
                let before = published.lock().expect("whole").insert((slot.clone(), head.generation.next().0), id);
                assert_eq!(before, None, "{} was published twice", head.generation.next());
            }
            Err(StoreError::Conflict) => {}
            Err(error) => panic!("{error:?}"),
        }
        tokio::time::sleep(PAUSE).await;
    }
}

async fn reader(store: Arc<dyn SnapshotStore>, slot: Slot, published: Published) -> u32 {
    let (begun, mut read, mut last) = (Instant::now(), 0, 0);
    while begun.elapsed() < RUN {
        let head = store.head(&slot).await.expect("head");
        assert!(head.generation.0 >= last, "heads never go back");
        last = head.generation.0;
        let Some(current) = head.current else {
            tokio::task::yield_now().await;
            continue;
        };
        read_whole(&*store, &slot, &current).await;
        if let Some(id) = published.lock().expect("whole").get(&(slot.clone(), head.generation.0)) {
            assert_eq!(*id, current.facts.id, "{} is what its publisher was told", head.generation);
        }
        read += 1;
        tokio::task::yield_now().await;
    }
    read
}

async fn sweeper(store: Arc<dyn SnapshotStore>, org: Org) -> u64 {
    let (begun, mut removed, mut deletions) = (Instant::now(), 0, 0);
    while begun.elapsed() < RUN {
        removed += store.sweep().await.expect("sweep");
        if begun.elapsed() > RUN.mul_f64(0.2) * (deletions + 1) {
            deletions += 1;
            store.delete(&org).await.expect("delete");
        }
        tokio::task::yield_now().await;
    }
    removed
}

async fn live_together(store: Arc<dyn SnapshotStore>) {
    let org = Org::new("acme");
    let slots = ["a", "b"].map(|schema| Slot { org: org.clone(), schema: SchemaHash::new(schema) });
    let published = Published::default();
    let publishers = slots
        .iter()
        .cycle()
        .take(4)
        .map(|slot| tokio::spawn(publisher(store.clone(), slot.clone(), published.clone())));
    let publishers: Vec<_> = publishers.collect();
    let readers = slots.iter().map(|slot| tokio::spawn(reader(store.clone(), slot.clone(), published.clone())));
    let readers: Vec<_> = readers.collect();
    let sweepers: Vec<_> = (0..2).map(|_| tokio::spawn(sweeper(store.clone(), org.clone()))).collect();
    for publisher in publishers {
        publisher.await.expect("a publisher");
    }
    for reader in readers {
        assert!(reader.await.expect("a reader") > 0, "nothing was read");
    }
    let mut removed = 0;
    for sweeper in sweepers {
        removed += sweeper.await.expect("a sweeper");
    }
    assert!(removed > 0, "nothing expired");
    assert!(published.lock().expect("whole").len() > 4, "hardly anything was published");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_a_bucket() {
    live_together(Arc::new(BucketStore::new(Arc::new(InMemory::new()), RETENTION))).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_a_folder() {
    let root = tempfile::tempdir().expect("a folder");
    live_together(folder(root.path(), RETENTION).await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_mongodb() {
    live_together(mongo(&mongo_url(), RETENTION).await).await;
}
