//! Finished dumps that the store did not take: served from their spools, and stored again until the store takes them.
//!
//! An outage of the store so costs one scan an org, not one a client, and none when it is over. A dump leaves when it
//! is stored, when a newer one takes its place, or when it is too old to be served.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::sleep;

use crate::chain::Chain;
use crate::dump::build::StoreFailure;
use crate::dump::live::LiveDump;
use crate::dump::queue::Dumps;
use crate::metrics::Held;
use crate::model::Generation;
use crate::store::{Slot, StoreError};

/// The pause before the first try to store a dump again. Each further one is twice as long.
const FIRST_PAUSE: Duration = Duration::from_secs(1);

/// The longest pause: a store that is full may be so for hours, and each try may send a pack in vain.
const LONGEST_PAUSE: Duration = Duration::from_secs(16);

/// A dump that waits for the store.
pub(super) struct Unstored {
    pub live: Arc<LiveDump>,
    pub _counted: Held,
}

impl Dumps {
    /// The last complete dump of a slot that could not be stored, and how long ago its read began.
    pub fn unstored(&self, slot: &Slot) -> Option<(Arc<LiveDump>, Duration)> {
        let live = self.shared.lock().queues.get(slot)?.unstored.as_ref()?.live.clone();
        let age = live.opened()?.at?.elapsed();
        Some((live, age))
    }

    /// Lets go of an unstored dump that is no longer of use.
    pub fn forget_unstored(&self, live: &Arc<LiveDump>) {
        let mut slots = self.shared.lock();
        let queue = slots.queues.get_mut(live.slot());
        if let Some(queue) = queue.filter(|queue| queue.holds_unstored(live)) {
            queue.unstored = None;
        }
        slots.forget_if_idle(live.slot());
    }

    /// Slots with an unstored dump.
    pub fn unstored_slots(&self) -> Vec<Slot> {
        let slots = self.shared.lock();
        slots.queues.iter().filter(|(_, queue)| queue.unstored.is_some()).map(|(slot, _)| slot.clone()).collect()
    }

    /// Starts the task that stores a dump again. `over`: the generation it began from, if the store told it then.
    pub(super) fn store_again(&self, live: Arc<LiveDump>, over: Option<Generation>) {
        let dumps = self.clone();
        self.shared.tasks.spawn("store again", async move {
            let stopping = dumps.shared.tasks.token().clone();
            stopping.run_until_cancelled(dumps.keep_storing(&live, over)).await;
        });
    }

    async fn keep_storing(&self, live: &Arc<LiveDump>, over: Option<Generation>) {
        let mut pause = FIRST_PAUSE;
        loop {
            sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
            // One at a time: each holds a pack, and there may be many after an outage.
            let Ok(_turn) = self.shared.storing_again.acquire().await else { return };
            if !self.shared.lock().queues.get(live.slot()).is_some_and(|queue| queue.holds_unstored(live)) {
                return;
            }
            let org = &live.slot().org;
            match self.try_storing(live, over).await {
                Ok(()) => return self.published_late(live),
                Err(StoreFailure::Store(StoreError::Conflict)) => {
                    tracing::info!(%org, snapshot = %live.id(), "another snapshot was published meanwhile");
                    return self.forget_unstored(live);
                }
                Err(error) => {
                    tracing::warn!(%org, snapshot = %live.id(), error = %Chain(&error), "a dump can still not be stored");
                }
            }
        }
    }

    async fn try_storing(&self, live: &Arc<LiveDump>, over: Option<Generation>) -> Result<(), StoreFailure> {
        let over = match over {
            Some(over) => over,
            None => self.replaceable(live).await?,
        };
        self.shared.builder.store(live, over, false).await?.log(live.slot());
        Ok(())
    }

    /// The generation that a dump may be published over, though the store did not tell where it was when the dump began:
    /// only over what is certainly older. What holds nothing may have been deleted since.
    async fn replaceable(&self, live: &LiveDump) -> Result<Generation, StoreError> {
        let head = self.shared.store.head(live.slot()).await?;
        let watermark = live.opened().map(|opened| &opened.watermark);
        let is_older = match (&head.current, watermark) {
            (None, _) => head.generation == Generation::NONE,
            (Some(current), Some(ours)) => current.facts.epoch == ours.epoch && current.facts.sync_id < ours.sync_id,
            (Some(_), None) => false,
        };
        if is_older { Ok(head.generation) } else { Err(StoreError::Conflict) }
    }
}
