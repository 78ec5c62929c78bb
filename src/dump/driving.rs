//! The end of a dump: what its queue, its readers and the metrics are told, however its task ends.

use std::sync::Arc;

use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;

use crate::dump::DumpError;
use crate::dump::live::{LiveDump, Settled};
use crate::dump::queue::Dumps;
use crate::dump::unstored::Unstored;
use crate::metrics::Held;
use crate::model::Generation;

/// The word for a dump that was published.
const PUBLISHED: &str = "published";

/// Ends a dump in the queue, however its task ends: by return, by cancellation or by panic.
pub(super) struct Driving {
    pub dumps: Dumps,
    pub live: Arc<LiveDump>,
    pub waiting: bool,
    /// Free again once its end is counted, so that no more are ever counted as made than may be.
    pub place: Option<OwnedSemaphorePermit>,
    /// Held once it is made, for the metrics.
    pub counted: Option<Held>,
    /// The generation it began from, if the store told.
    pub over: Option<Generation>,
    pub stored: bool,
    pub superseded: bool,
}

impl Driving {
    /// It has a place: it no longer counts among those that wait.
    pub fn got_place(&mut self, place: OwnedSemaphorePermit) {
        self.place = Some(place);
        self.waiting = false;
        self.dumps.shared.lock().waiting -= 1;
        self.dumps.shared.metrics.waiting_dumps.dec();
    }

    /// It is made: counted until its end.
    pub fn count(&mut self) {
        let metrics = &self.dumps.shared.metrics;
        metrics.dumps_started.inc();
        self.counted = Some(metrics.live_dumps.hold());
    }

    /// Counts how it ended, if its beginning was counted.
    fn count_end(&mut self) {
        let Some(_until_its_end_is_counted) = self.counted.take() else { return };
        let metrics = &self.dumps.shared.metrics;
        match self.outcome() {
            PUBLISHED => {
                metrics.dumps_finished.inc();
            }
            reason => metrics.dump_failed(reason),
        }
    }

    /// How it ended, in one fixed word.
    fn outcome(&self) -> &'static str {
        match self.live.end() {
            // A refresh took its place.
            _ if self.live.refreshed().is_some() => PUBLISHED,
            Some(Ok(())) if self.stored => PUBLISHED,
            Some(Ok(())) if self.superseded => "superseded",
            Some(Ok(())) => "store",
            Some(Err(error)) => error.word(),
            None => DumpError::Broken.word(),
        }
    }
}

impl Drop for Driving {
    fn drop(&mut self) {
        self.live.finish(Err(DumpError::Broken));
        self.count_end();
        // One that was left to another instance was not made.
        if !self.live.is_left() {
            self.dumps.shared.ended.note(&self.live, self.outcome());
        }
        let complete = matches!(self.live.end(), Some(Ok(())));
        let slot = self.live.slot().clone();
        {
            let mut slots = self.dumps.shared.lock();
            slots.waiting -= usize::from(self.waiting);
            self.dumps.shared.metrics.waiting_dumps.dec_by(i64::from(self.waiting));
            self.dumps.leave(&mut slots, &self.live);
            if complete && let Some(queue) = slots.queues.get_mut(&slot) {
                // A published snapshot makes an older unstored one useless.
                let unstored = (!self.stored && !self.superseded).then(|| self.live.clone());
                let counted = || self.dumps.shared.metrics.unstored_dumps.hold();
                queue.unstored = unstored.map(|live| Unstored { live, _counted: counted() });
                queue.published = if self.stored { Some(Instant::now()) } else { queue.published };
            }
            slots.forget_if_idle(&slot);
        }
        if complete && !self.stored && !self.superseded {
            self.dumps.store_again(self.live.clone(), self.over);
        }
        self.live.settle(if self.stored { Settled::Published } else { Settled::Unpublished });
    }
}
