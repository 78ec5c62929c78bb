//! Published snapshots that can't be read: damaged or missing in the store. They are put aside, and made anew.
//!
//! Putting aside moves the slot to a next generation that holds nothing, for all instances and after any restart. What
//! was there stays in the store for the grace period, for whoever wants to know what happened to it.

use crate::chain::Chain;
use crate::dump::policy::Reason;
use crate::dump::queue::{Dumps, Wish};
use crate::model::SnapshotId;
use crate::store::{Slot, StoreError};

use tokio::time::Instant;

impl Dumps {
    /// Puts a snapshot aside if it is still the current one of its slot and `again`, which reads the faulty part once
    /// more, fails alike; then starts a dump. However many ask at the same time, it is done once.
    pub fn put_aside(
        &self,
        slot: Slot,
        snapshot: SnapshotId,
        again: impl Future<Output = Result<(), StoreError>> + Send + 'static,
    ) {
        if !self.shared.lock().aside.insert(snapshot) {
            return;
        }
        let dumps = self.clone();
        self.shared.tasks.spawn("put aside", async move {
            if let Err(error) = dumps.check_and_retire(&slot, snapshot, again).await {
                tracing::warn!(org = %slot.org, %snapshot, error = %Chain(&error), "a snapshot that can't be read could not be put aside");
            }
            dumps.shared.lock().aside.remove(&snapshot);
        });
    }

    async fn check_and_retire(
        &self,
        slot: &Slot,
        snapshot: SnapshotId,
        again: impl Future<Output = Result<(), StoreError>>,
    ) -> Result<(), StoreError> {
        let looked = Instant::now();
        let head = self.shared.store.head(slot).await?;
        if head.current.is_none_or(|current| current.facts.id != snapshot) {
            // Replaced meanwhile, and perhaps expired: there is nothing wrong with the current one.
            return Ok(());
        }
        let Err(fault) = again.await else { return Ok(()) };
        if !fault.is_lasting() {
            return Err(fault);
        }
        match self.shared.store.retire(slot, head.generation).await {
            Ok(()) => {}
            Err(StoreError::Conflict) => return Ok(()),
            Err(error) => return Err(error),
        }
        self.shared.metrics.snapshots_put_aside.inc();
        tracing::error!(org = %slot.org, %snapshot, error = %Chain(&fault), "a published snapshot can't be read: it is put aside and made anew");
        if let Err(error) = self.join(slot, Wish::Background, looked, &Reason::Unreadable) {
            tracing::warn!(org = %slot.org, error = %Chain(&error), "a dump could not begin; the next request starts one");
        }
        Ok(())
    }
}
