//! The guard in front of a store that others share: a store that is down costs its callers one wait, not one each.
//!
//! A store that does not answer lets every call run into a time limit of its own, one after the other: the look at the
//! head, the lease, the head again. Whoever asks could be served from the database meanwhile. So the first call that
//! gets no answer closes the guard. Behind a closed guard every call fails at once, and one task goes on asking; when
//! the store answers, the guard opens.
//!
//! Calls that a client waits for before its first byte (what is published, the lease, is it there) may take
//! `store.patience_ms`: a store slower than that counts as down. Calls that move bytes have the store's own limits.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::time::{sleep, timeout};

use crate::chain::Chain;
use crate::metrics::Metrics;
use crate::model::{Generation, Org, SnapshotId};
use crate::snapshot::{PackEntry, PackId};
use crate::store::{Facts, Head, Lease, Slot, SnapshotStore, StoreError};
use crate::task::Tasks;

/// The pause between two tries to reach a store that is down.
const RETRY: Duration = Duration::from_millis(500);

/// A store behind a guard. Clones share both.
#[derive(Clone)]
pub struct GuardedStore {
    store: Arc<dyn SnapshotStore>,
    patience: Duration,
    closed: Arc<AtomicBool>,
    tasks: Tasks,
    metrics: Metrics,
}

impl GuardedStore {
    /// An open guard. `patience`: see [`super::StoreSettings::patience_ms`].
    pub fn new(store: Arc<dyn SnapshotStore>, patience: Duration, tasks: Tasks, metrics: Metrics) -> Self {
        Self { store, patience, closed: Arc::default(), tasks, metrics }
    }

    /// A call with the store's own limits.
    async fn call<T>(&self, call: impl Future<Output = Result<T, StoreError>>) -> Result<T, StoreError> {
        if self.closed.load(Ordering::Relaxed) {
            return Err(StoreError::unavailable(Closed));
        }
        let answer = call.await;
        if let Err(error @ StoreError::Unavailable(_)) = &answer {
            self.close(error);
        }
        answer
    }

    /// A call that writes. A store that refuses it, and is there all the same (a folder that may only be read, a replica set
    /// without a majority), goes on serving what it holds.
    async fn write<T>(&self, call: impl Future<Output = Result<T, StoreError>>) -> Result<T, StoreError> {
        if self.closed.load(Ordering::Relaxed) {
            return Err(StoreError::unavailable(Closed));
        }
        let answer = call.await;
        if let Err(error @ StoreError::Unavailable(_)) = &answer
            && !self.answers().await
        {
            self.close(error);
        }
        answer
    }

    /// A call that somebody waits for.
    async fn ask<T>(&self, call: impl Future<Output = Result<T, StoreError>>) -> Result<T, StoreError> {
        self.call(self.patiently(call)).await
    }

    async fn patiently<T>(&self, call: impl Future<Output = Result<T, StoreError>>) -> Result<T, StoreError> {
        timeout(self.patience, call).await.unwrap_or_else(|_| Err(StoreError::unavailable(TooSlow(self.patience))))
    }

    /// Closes the guard until the store answers.
    fn close(&self, why: &StoreError) {
        if self.closed.swap(true, Ordering::Relaxed) {
            return;
        }
        tracing::warn!(error = %Chain(why), "the snapshot store is down; clients are served without it");
        let guard = self.clone();
        self.tasks.spawn("store guard", async move {
            let down = guard.metrics.store_down.hold();
            let stopping = guard.tasks.token().clone();
            if stopping.run_until_cancelled(guard.wait_for_answer()).await.is_some() {
                drop(down);
                guard.closed.store(false, Ordering::Relaxed);
                tracing::info!("the snapshot store answers again");
            }
        });
    }

    async fn wait_for_answer(&self) {
        loop {
            sleep(RETRY).await;
            if self.answers().await {
                return;
            }
        }
    }

    async fn answers(&self) -> bool {
        matches!(timeout(self.patience, self.store.ping()).await, Ok(Ok(())))
    }
}

#[async_trait]
impl SnapshotStore for GuardedStore {
    async fn head(&self, slot: &Slot) -> Result<Head, StoreError> {
        self.ask(self.store.head(slot)).await
    }

    async fn heads(&self) -> Result<Vec<(Slot, Head)>, StoreError> {
        self.call(self.store.heads()).await
    }

    async fn manifest(&self, slot: &Slot, snapshot: SnapshotId) -> Result<Bytes, StoreError> {
        self.call(self.store.manifest(slot, snapshot)).await
    }

    async fn pack(&self, org: &Org, pack: PackId) -> Result<Bytes, StoreError> {
        self.call(self.store.pack(org, pack)).await
    }

    async fn whole_pack(&self, org: &Org, entry: PackEntry) -> Result<Bytes, StoreError> {
        self.call(self.store.whole_pack(org, entry)).await
    }

    async fn pack_parts(&self, org: &Org, pack: PackId, parts: &[Range<u64>]) -> Result<Vec<Bytes>, StoreError> {
        self.call(self.store.pack_parts(org, pack, parts)).await
    }

    async fn put_pack(&self, org: &Org, pack: PackId, bytes: Bytes) -> Result<(), StoreError> {
        self.write(self.store.put_pack(org, pack, bytes)).await
    }

    async fn publish(&self, slot: &Slot, over: Generation, facts: &Facts, manifest: Bytes) -> Result<(), StoreError> {
        self.write(self.store.publish(slot, over, facts, manifest)).await
    }

    async fn delete(&self, org: &Org) -> Result<u64, StoreError> {
        self.write(self.store.delete(org)).await
    }

    async fn retire(&self, slot: &Slot, over: Generation) -> Result<(), StoreError> {
        self.write(self.store.retire(slot, over)).await
    }

    async fn acquire(&self, org: &Org, owner: SnapshotId, ttl: Duration) -> Result<Option<Lease>, StoreError> {
        self.write(self.patiently(self.store.acquire(org, owner, ttl))).await
    }

    async fn renew(&self, lease: &Lease, ttl: Duration) -> Result<bool, StoreError> {
        self.write(self.store.renew(lease, ttl)).await
    }

    async fn release(&self, lease: &Lease) -> Result<(), StoreError> {
        self.write(self.store.release(lease)).await
    }

    async fn declare(&self, lease: &Lease, slot: &Slot, snapshot: SnapshotId) -> Result<(), StoreError> {
        self.write(self.store.declare(lease, slot, snapshot)).await
    }

    async fn declared(&self, slot: &Slot) -> Result<Option<SnapshotId>, StoreError> {
        self.ask(self.store.declared(slot)).await
    }

    async fn announce(&self, org: &Org, snapshot: SnapshotId, number: u32, piece: Bytes) -> Result<(), StoreError> {
        self.write(self.store.announce(org, snapshot, number, piece)).await
    }

    async fn announced(&self, org: &Org, snapshot: SnapshotId, number: u32) -> Result<Option<Bytes>, StoreError> {
        self.ask(self.store.announced(org, snapshot, number)).await
    }

    async fn sweep(&self) -> Result<u64, StoreError> {
        self.write(self.store.sweep()).await
    }

    async fn ping(&self) -> Result<(), StoreError> {
        self.ask(self.store.ping()).await
    }
}

/// The guard is closed.
#[derive(Debug, thiserror::Error)]
#[error("it did not answer a moment ago")]
struct Closed;

/// The store is slower than a client is to wait for.
#[derive(Debug, thiserror::Error)]
#[error("no answer within {} ms", .0.as_millis())]
struct TooSlow(Duration);
