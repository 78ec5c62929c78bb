//! What every store must do: one suite for all of them, and for whoever writes another.
//!
//! It panics at the first thing that is not as [`SnapshotStore`] promises. It needs a tokio runtime with time; a store
//! on tokio's clock passes under a paused one. What only shows with time is waited for: the store is swept and asked
//! again until it has happened, and the suite fails when that takes more than a minute.

pub mod announcing;
mod expiry;
mod leases;
mod publishing;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use crate::model::{Epoch, Generation, Org, SchemaHash, SnapshotId, SyncId};
use crate::snapshot::PackId;
use crate::store::{Facts, Retention, Slot, SnapshotStore, StoreError};

/// How long anything may take that is only a matter of time.
const PATIENCE: Duration = Duration::from_secs(60);

/// Nothing expires while the suite runs.
const LONG: Retention =
    Retention { grace: Duration::from_secs(24 * 60 * 60), unpublished: Duration::from_secs(24 * 60 * 60) };

/// Everything expires while the suite runs, but not while it makes a few calls.
const SHORT: Retention = Retention { grace: Duration::from_secs(2), unpublished: Duration::from_secs(3) };

/// Runs the suite, but for [`announcing`], which stores of one instance need not keep. `open` makes a store with these times in an empty place of its own, at each call another.
///
/// # Panics
/// When a promise is broken.
pub async fn run(open: impl AsyncFn(Retention) -> Arc<dyn SnapshotStore>) {
    let long = open(LONG).await;
    publishing::run(&*long).await;
    leases::run(&*long).await;
    expiry::run(&*open(SHORT).await).await;
    publishing::odd_orgs_stay_apart(&*open(LONG).await).await;
}

/// An org of one's own in a shared store.
fn new_slot() -> Slot {
    Slot { org: Org::new(format!("org-{}", SnapshotId::random())), schema: SchemaHash::new("5c4e3a") }
}

/// A snapshot, with packs of its own and others that it takes over.
struct Draft {
    facts: Facts,
    manifest: Bytes,
    packs: Vec<(PackId, Bytes)>,
}

impl Draft {
    /// One with this many new packs.
    fn new(packs: u32, taken_over: &[PackId]) -> Self {
        let id = SnapshotId::random();
        let new = |number| (PackId { snapshot: id, number }, Bytes::from(format!("pack {number} of {id}")));
        let packs: Vec<_> = (0..packs).map(new).collect();
        let facts = Facts {
            id,
            epoch: Epoch::new("7123456789/1/sync_actions"),
            sync_id: SyncId(41),
            rows: 3,
            raw_len: 3_000_000_000_000,
            len: 500,
            packs: taken_over.iter().copied().chain(packs.iter().map(|(pack, _)| *pack)).collect(),
        };
        Self { facts, manifest: Bytes::from(format!("manifest of {id}")), packs }
    }

    /// The name of its `index`th pack.
    fn pack(&self, index: usize) -> PackId {
        self.facts.packs[index]
    }

    async fn put_packs(&self, store: &dyn SnapshotStore, slot: &Slot) {
        for (pack, bytes) in &self.packs {
            store.put_pack(&slot.org, *pack, bytes.clone()).await.expect("put a pack");
        }
    }

    async fn publish(&self, store: &dyn SnapshotStore, slot: &Slot, over: Generation) -> Result<(), StoreError> {
        store.publish(slot, over, &self.facts, self.manifest.clone()).await
    }

    /// Puts all packs and publishes.
    async fn establish(&self, store: &dyn SnapshotStore, slot: &Slot, over: u64) {
        self.put_packs(store, slot).await;
        self.publish(store, slot, Generation(over)).await.expect("publish");
    }

    /// Asserts that its manifest and its own packs are what was put.
    async fn assert_readable(&self, store: &dyn SnapshotStore, slot: &Slot) {
        assert_eq!(store.manifest(slot, self.facts.id).await.expect("the manifest"), self.manifest);
        for (pack, bytes) in &self.packs {
            assert_eq!(store.pack(&slot.org, *pack).await.expect("a pack"), *bytes);
        }
    }
}

/// The id of what is published in a slot, and its generation.
async fn published(store: &dyn SnapshotStore, slot: &Slot) -> (u64, Option<SnapshotId>) {
    let head = store.head(slot).await.expect("head");
    (head.generation.0, head.current.map(|current| current.facts.id))
}

fn is_missing<T>(result: &Result<T, StoreError>) -> bool {
    matches!(result, Err(StoreError::Missing(_)))
}

/// Asks again and again until the answer is yes, but not for ever.
async fn wait_until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let begun = Instant::now();
    while !holds().await {
        assert!(begun.elapsed() < PATIENCE, "{what} did not happen within {PATIENCE:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
