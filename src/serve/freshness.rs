//! What is known of a slot's snapshot right now, found out once for all who ask at the same time.
//!
//! Every bootstrap needs the head, the epoch and the number of pending actions: one look-up in the store and two small
//! statements. A look is shared by those who come while it runs and, for a short time, by those who come after; whoever
//! finds nothing usable in a shared look looks again before anything expensive is begun.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use dashmap::DashMap;
use tokio::sync::Mutex;
use tokio::time::Instant;

use crate::chain::Chain;
use crate::dump::policy::{Candidate, Limits};
use crate::model::{Epoch, SyncId};
use crate::source::{Source, SourceError};
use crate::store::{Head, Slot, SnapshotStore};

/// More slots than this are not remembered past their use.
const REMEMBERED: usize = 10_000;

/// Looks at slots.
pub struct Freshness {
    source: Arc<dyn Source>,
    store: Arc<dyn SnapshotStore>,
    limits: Limits,
    looks: DashMap<Slot, Arc<Mutex<Option<Arc<Look>>>>>,
}

/// What one look found.
pub struct Look {
    /// When it began: whatever was true before is in it.
    pub began: Instant,
    /// What is published; the empty head while the store does not answer.
    pub head: Head,
    /// The database's history; `None` while the database does not answer.
    pub epoch: Option<Epoch>,
    /// Models of which nothing may be served.
    pub unlogged: Arc<BTreeMap<usize, SourceError>>,
    /// Actions after the published snapshot, counted up to the hard limit and one.
    pub pending: u64,
}

impl Look {
    /// The published snapshot as the policy sees it.
    pub fn candidate(&self) -> Option<Candidate<'_>> {
        self.head.current.as_ref().map(|current| Candidate {
            epoch: &current.facts.epoch,
            sync_id: current.facts.sync_id,
            age: current.age + self.began.elapsed(),
            pending: self.pending,
        })
    }
}

impl Freshness {
    /// Nothing was looked at yet.
    pub fn new(source: Arc<dyn Source>, store: Arc<dyn SnapshotStore>, limits: Limits) -> Self {
        Self { source, store, limits, looks: DashMap::new() }
    }

    /// A look that began at `not_before` or later. Callers of one slot take turns, so that one look serves all who came
    /// before it began; a caller that goes away in the middle leaves its turn to the next.
    ///
    /// # Errors
    /// The source's, except that it does not answer: a published snapshot is then served for what it is.
    pub async fn look(&self, slot: &Slot, not_before: Instant) -> Result<Arc<Look>, SourceError> {
        let turn = self.looks.entry(slot.clone()).or_default().clone();
        let mut last = turn.lock().await;
        if let Some(look) = last.as_ref().filter(|look| look.began >= not_before) {
            return Ok(look.clone());
        }
        let look = Arc::new(self.look_now(slot).await?);
        *last = Some(look.clone());
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

    async fn look_now(&self, slot: &Slot) -> Result<Look, SourceError> {
        let began = Instant::now();
        let head = self.store.head(slot).await.unwrap_or_else(|error| {
            tracing::warn!(org = %slot.org, error = %Chain(&error), "the snapshot store does not tell what is published");
            Head::default()
        });
        let since = head.current.as_ref().map_or(SyncId::ZERO, |current| current.facts.sync_id);
        let pending = async {
            match &head.current {
                Some(_) => self.pending(slot, since).await,
                None => Ok(0),
            }
        };
        let changes = tokio::try_join!(self.source.epoch(), self.source.unlogged(), pending);
        let (epoch, unlogged, pending) = match changes {
            Ok((epoch, unlogged, pending)) => (Some(epoch), unlogged, pending),
            Err(SourceError::Unavailable(_)) if head.current.is_some() => (None, Arc::default(), 0),
            Err(error) => return Err(error),
        };
        Ok(Look { began, head, epoch, unlogged, pending })
    }

    /// Actions of the slot's org after a sync id, counted up to the hard limit and one.
    ///
    /// # Errors
    /// The source's.
    pub async fn pending(&self, slot: &Slot, since: SyncId) -> Result<u64, SourceError> {
        let counts = self.source.pending(&[(slot.org.clone(), since)], self.limits.count_cap()).await?;
        Ok(counts.first().copied().unwrap_or_default())
    }
}
