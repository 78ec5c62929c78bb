//! What is known of a slot's snapshot right now, found out once for all who ask at the same time.
//!
//! Every bootstrap needs the head, the epoch and the number of pending actions: one look-up in the store and two small
//! statements. While the store does not answer, the head is the one that the last look found; while the database does
//! not, what is kept is served for what it is. A look is shared by those who come while it runs and, for a short time, by those who come after; whoever
//! finds nothing usable in a shared look looks again before anything expensive is begun.

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

use dashmap::DashMap;
use tokio::sync::Mutex;
use tokio::time::{Instant, timeout};
use tracing::Instrument;

use crate::chain::Chain;
use crate::dump::policy::{Candidate, Limits};
use crate::dump::{Dumps, LiveDump};
use crate::model::{Epoch, SnapshotId, SyncId, Watermark};
use crate::source::{Source, SourceError};
use crate::store::{Head, Published, Slot, SnapshotStore};
use crate::trace::span;

/// More slots than this are not remembered past their use.
const REMEMBERED: usize = 10_000;

/// Looks at slots.
pub struct Freshness {
    source: Arc<dyn Source>,
    store: Arc<dyn SnapshotStore>,
    dumps: Dumps,
    limits: Limits,
    /// How long the database may take to say what came after a snapshot, before that is served as it is.
    database_wait: Duration,
    looks: DashMap<Slot, Arc<Mutex<Last>>>,
}

/// The last looks at a slot.
#[derive(Default)]
struct Last {
    look: Option<Arc<Look>>,
    /// The one that failed last: when it ended, and why.
    failed: Option<(Instant, SourceError)>,
}

/// What one look found.
pub struct Look {
    /// When it began: whatever was true before is in it.
    pub began: Instant,
    /// The newest state of the slot that is kept somewhere.
    pub kept: Option<Kept>,
    /// The head, as this look or an earlier one found it.
    head: Head,
    /// The database's history; `None` while the database does not answer.
    pub epoch: Option<Epoch>,
    /// Models of which nothing may be served.
    pub unlogged: Arc<BTreeMap<usize, SourceError>>,
    /// Actions after what is kept, counted up to the hard limit and one.
    pub pending: u64,
}

/// A state of an org that is kept.
#[derive(Clone)]
pub enum Kept {
    /// The published snapshot.
    Published(Published),
    /// The one that was published when the store was last heard of, and may still be in the cache.
    Remembered(Published),
    /// A finished dump that the store did not take.
    Unstored {
        /// The dump, for as long as others keep it: a look that is remembered keeps no spool.
        live: Weak<LiveDump>,
        /// What it is true at.
        watermark: Watermark,
        /// How long ago its read began, when this was found.
        age: Duration,
    },
}

impl Kept {
    /// The history it belongs to, and what it is true at.
    fn point(&self) -> (&Epoch, SyncId) {
        match self {
            Self::Published(current) | Self::Remembered(current) => (&current.facts.epoch, current.facts.sync_id),
            Self::Unstored { watermark, .. } => (&watermark.epoch, watermark.sync_id),
        }
    }

    fn age(&self) -> Duration {
        match self {
            Self::Published(current) | Self::Remembered(current) => current.age,
            Self::Unstored { age, .. } => *age,
        }
    }

    fn unstored(live: &Arc<LiveDump>, age: Duration) -> Option<Self> {
        let watermark = live.opened()?.watermark.clone();
        Some(Self::Unstored { live: Arc::downgrade(live), watermark, age })
    }
}

impl Look {
    /// The snapshot that is published, as far as is known.
    pub fn published(&self) -> Option<SnapshotId> {
        self.head.current.as_ref().map(|current| current.facts.id)
    }

    /// The head that this look found, as old as it is by now.
    fn head_now(&self) -> Head {
        let mut head = self.head.clone();
        if let Some(current) = &mut head.current {
            current.age += self.began.elapsed();
        }
        head
    }

    /// What is kept, as the policy sees it.
    pub fn candidate(&self) -> Option<Candidate<'_>> {
        let kept = self.kept.as_ref()?;
        let (epoch, sync_id) = kept.point();
        Some(Candidate { epoch, sync_id, age: kept.age() + self.began.elapsed(), pending: self.pending })
    }
}

impl Freshness {
    /// Nothing was looked at yet.
    pub fn new(
        source: Arc<dyn Source>,
        store: Arc<dyn SnapshotStore>,
        dumps: Dumps,
        limits: Limits,
        database_wait: Duration,
    ) -> Self {
        Self { source, store, dumps, limits, database_wait, looks: DashMap::new() }
    }

    /// A look that began at `not_before` or later. Callers of one slot take turns, so that one look serves all who came
    /// before it began, and one that fails is the answer of all who waited for it; a caller that goes away in the middle leaves
    /// its turn to the next.
    ///
    /// # Errors
    /// The source's, except that it does not answer: a published snapshot is then served for what it is.
    pub async fn look(&self, slot: &Slot, not_before: Instant) -> Result<Arc<Look>, SourceError> {
        let came = Instant::now();
        let turn = self.looks.entry(slot.clone()).or_default().clone();
        let mut last = turn.lock().await;
        if let Some(look) = last.look.as_ref().filter(|look| look.began >= not_before) {
            return Ok(look.clone());
        }
        if let Some((_, error)) = last.failed.as_ref().filter(|(at, _)| *at > came) {
            return Err(error.clone());
        }
        let look = self.look_now(slot, last.look.as_deref()).instrument(span!("look")).await;
        let look = look.inspect_err(|error| last.failed = Some((Instant::now(), error.clone())))?;
        let look = Arc::new(look);
        *last = Last { look: Some(look.clone()), failed: None };
        drop(last);
        if self.looks.len() > REMEMBERED {
            self.looks.retain(|_, turn| Arc::strong_count(turn) > 1);
        }
        Ok(look)
    }

    /// A look that is no older than `age`.
    ///
    /// # Errors
    /// As [`Self::look`].
    pub async fn recent(&self, slot: &Slot, age: Duration) -> Result<Arc<Look>, SourceError> {
        let now = Instant::now();
        self.look(slot, now.checked_sub(age).unwrap_or(now)).await
    }

    async fn look_now(&self, slot: &Slot, last: Option<&Look>) -> Result<Look, SourceError> {
        let began = Instant::now();
        let (head, published) = match self.store.head(slot).await {
            Ok(head) => (head.clone(), head.current.map(Kept::Published)),
            Err(error) => {
                tracing::debug!(org = %slot.org, error = %Chain(&error), "the store does not tell what is published");
                let head = last.map(Look::head_now).unwrap_or_default();
                (head.clone(), head.current.map(Kept::Remembered))
            }
        };
        let unstored = self.dumps.unstored(slot).and_then(|(live, age)| Kept::unstored(&live, age));
        let kept: Vec<Kept> = published.into_iter().chain(unstored).collect();
        let since: Vec<_> = kept.iter().map(|kept| (slot.org.clone(), kept.point().1)).collect();
        let pending = async {
            match &*since {
                [] => Ok(Vec::new()),
                since => self.source.pending(since, self.limits.count_cap()).await,
            }
        };
        let state = async { tokio::try_join!(self.source.epoch(), self.source.unlogged(), pending) };
        // Only who has something to serve may give up waiting.
        let state = match kept.is_empty() {
            true => state.await.map(Some),
            false => timeout(self.database_wait, state).await.map_or(Ok(None), |state| state.map(Some)),
        };
        let (epoch, unlogged, pending) = match state {
            Ok(Some((epoch, unlogged, pending))) => (Some(epoch), unlogged, pending),
            Ok(None) => (None, Arc::default(), Vec::new()),
            Err(SourceError::Unavailable(_) | SourceError::Busy(_)) if !kept.is_empty() => {
                (None, Arc::default(), Vec::new())
            }
            Err(error) => return Err(error),
        };
        let pending = pending.into_iter().chain(std::iter::repeat(0));
        let newest = kept.into_iter().zip(pending).max_by_key(|(kept, _)| {
            let (of, sync_id) = kept.point();
            (epoch.as_ref().is_none_or(|epoch| of == epoch), sync_id)
        });
        let (kept, pending) = newest.map_or((None, 0), |(kept, pending)| (Some(kept), pending));
        Ok(Look { began, kept, head, epoch, unlogged, pending })
    }
}
