//! How the last dumps of this process ended, for operators: a dump that failed leaves nothing else to be seen but a line in
//! the log.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::dump::live::LiveDump;
use crate::dump::queue::Dumps;
use crate::model::{Org, SnapshotId};

/// More than these are not remembered; the oldest goes.
const REMEMBERED: usize = 20;

/// A dump that has ended.
#[derive(Clone, Debug)]
pub struct Ended {
    /// The snapshot it was to be.
    pub id: SnapshotId,
    /// Whose.
    pub org: Org,
    /// Rows it had read; for a refresh, those of its snapshot.
    pub rows: u64,
    /// Bytes in its spool; for a refresh, those put in the store.
    pub bytes: u64,
    /// How long it took from the opening of its scan; `None` when it never opened, or followed another instance.
    pub took: Option<Duration>,
    /// When it ended.
    pub at: Instant,
    /// `published`, or in one fixed word why it was not.
    pub outcome: &'static str,
}

/// The last ones. Memory: some 200 bytes each.
#[derive(Default)]
pub(super) struct LastEnded(Mutex<VecDeque<Ended>>);

impl LastEnded {
    pub fn note(&self, live: &LiveDump, outcome: &'static str) {
        let refreshed = live.refreshed();
        let ended = Ended {
            id: live.id(),
            org: live.slot().org.clone(),
            rows: refreshed.map_or_else(|| live.rows(), |refreshed| refreshed.rows),
            bytes: refreshed.map_or_else(|| live.spooled(), |refreshed| refreshed.written),
            took: refreshed.map(|refreshed| refreshed.took).or_else(|| Some(live.opened()?.at?.elapsed())),
            at: Instant::now(),
            outcome,
        };
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        last.truncate(REMEMBERED - 1);
        last.push_front(ended);
    }
}

impl Dumps {
    /// The dumps that ended last, the newest first.
    pub fn ended(&self) -> Vec<Ended> {
        self.shared.ended.0.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
    }
}
