//! Making a snapshot out of the one before: only what changed is read, only the frames in which it stands are written.
//!
//! 1. A watermark W is taken, and the log says which objects of the org changed after the snapshot's own, S, up to W.
//! 2. Their rows are looked up by id. What is not found is gone: deleted, of another org, or left out by its model's filter.
//!    What nobody may see is not kept either.
//! 3. The index says in which frames the objects may stand ([`crate::snapshot::index`]). There their lines are exchanged for
//!    those that were found, or taken out. Rows that no frame takes, new ones and those that moved, go into new frames, and
//!    so does what is left of frames that are full no more. [`super::reuse`] says which other frames move with them, so that
//!    frames and packs stay full. All else is taken over as it is.
//! 4. New packs, what is left of the index, and a manifest: published as any snapshot, over the generation it began from.
//!
//! # Why rows may be newer than W
//! A look-up shows a row as it is at that moment, which may be after W. A snapshot that is tagged W promises that
//! everything up to W is in it, and clients add all that is logged above W. Whatever made the row newer is logged above W,
//! for the groups it left and those it came to, so every client that the row concerns hears of it again: applying a line
//! twice, or a newer row early, is harmless. A row that is not in the log up to W is not looked up, so none comes that W
//! does not know. That a row stands twice can't be: each object is looked up once, taken out of all frames, and put into one.
//!
//! An id that is used again, and a row that goes to another org and comes back, are the same object to the log and to the
//! index. A row that gets another id is two objects, and both are logged. A parent that moves, comes or goes has its
//! children logged, so they are found by their own names.
//!
//! # Who waits
//! It runs in the place and under the lease of the dump whose turn it is. Nobody can read from it: readers who join
//! meanwhile wait for its end and then find what it published; when it is given up they get the dump they joined. After
//! five seconds of a reader's waiting it is given up for a dump, whose first rows come at once. Where the watermark is still the
//! snapshot's own, as while a writer stays open, nothing is made: readers are served what is there. Other instances are told
//! that a dump is made, of which nothing comes: they wait as well.
//!
//! # Memory
//! The ids of what changed (some 250 bytes each, 500,000 at most), two statements' rows (16 MiB each, or one row) and two batches of
//! them on their way, up to 16 MiB of lines that wait for the frames in which they
//! stood, and as much again for those that no frame took; the manifest, the open frames, two packs that are read, and for each
//! compressor eight frames, decoded, and the pack and the shard of the index they are of; four shards more.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep};
use tracing::Instrument;

use crate::chain::Chain;
use crate::dump::DumpError;
use crate::dump::build::StoreFailure;
use crate::dump::course::Full;
use crate::dump::driving::Driving;
use crate::dump::live::{LiveDump, Refreshed};
use crate::dump::queue::Dumps;
use crate::dump::renewal::Renewal;
use crate::model::Generation;
use crate::snapshot::{FrameError, IndexError, ManifestError};
use crate::source::SourceError;
use crate::store::{Facts, Head, Lease, StoreError};
use crate::trace::span;

/// Why a refresh was not made.
#[derive(Debug, thiserror::Error)]
pub(super) enum RefreshError {
    /// It can't be, or should not.
    #[error("{0}")]
    Full(Full),
    /// A writer holds the watermark back: nothing newer than what is published can be made yet.
    #[error("what is published is at the watermark")]
    Newest,
    #[error(transparent)]
    Source(#[from] SourceError),
    #[error(transparent)]
    Dump(#[from] DumpError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    #[error(transparent)]
    Index(#[from] IndexError),
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// A line without an id, or a frame that is not what the manifest says of it.
    #[error("a frame does not hold what the manifest says")]
    Line,
}

impl RefreshError {
    /// Why everything is read instead.
    fn full(&self) -> Full {
        match self {
            Self::Full(full) => *full,
            Self::Newest => Full::Failed,
            Self::Source(SourceError::Trimmed { .. }) => Full::Trimmed,
            Self::Source(_) | Self::Dump(_) => Full::Failed,
            Self::Store(StoreError::Conflict) => Full::Replaced,
            Self::Store(error) if error.is_lasting() => Full::Damaged,
            Self::Store(_) => Full::Store,
            Self::Manifest(_) | Self::Index(_) | Self::Frame(_) | Self::Line => Full::Damaged,
        }
    }
}

impl From<Full> for RefreshError {
    fn from(full: Full) -> Self {
        Self::Full(full)
    }
}

impl From<StoreFailure> for RefreshError {
    fn from(failure: StoreFailure) -> Self {
        match failure {
            StoreFailure::Dump(error) => error.into(),
            StoreFailure::Store(error) => error.into(),
            StoreFailure::Manifest(error) => error.into(),
        }
    }
}

impl Dumps {
    /// Refreshes what is published, or makes the dump where that can't be or should not.
    pub(super) async fn refresh_or_make(
        &self,
        driving: &mut Driving,
        lease: Option<&Lease>,
        head: Result<Head, StoreError>,
    ) {
        let live = driving.live.clone();
        let org = &live.slot().org;
        let mut head = head;
        let refreshed = match &head {
            Ok(now) => self.refresh_while_bearable(&live, lease, now).instrument(span!("refresh")).await,
            Err(error) => Err(error.clone().into()),
        };
        let error = match refreshed {
            Ok(refreshed) => {
                driving.stored = true;
                live.note_refreshed(refreshed);
                let metrics = &self.shared.metrics;
                metrics.refreshes.inc();
                metrics.refreshed_rows.inc_by(refreshed.read);
                return self.leave_for_published(&live);
            }
            Err(RefreshError::Newest) => {
                tracing::debug!(%org, "what is published is at the watermark; nothing is made");
                return self.leave_for_published(&live);
            }
            Err(error) => error,
        };
        // Another one was published meanwhile, or this one, though it was given up.
        if matches!(error, RefreshError::Store(StoreError::Conflict) | RefreshError::Full(Full::Slow)) {
            let now = self.shared.store.head(live.slot()).await;
            // An older head is better than none: a dump over it may lose, one over nothing can't be stored at once.
            head = now.or(head);
            if head.as_ref().is_ok_and(|head| live.is_granted_by(head)) {
                tracing::info!(%org, "a snapshot was published during a refresh");
                return self.leave_for_published(&live);
            }
        }
        let full = error.full();
        self.shared.metrics.full_dump(full.word());
        match error {
            RefreshError::Full(_) => tracing::info!(%org, reason = %full, "the org is read as a whole"),
            error => {
                tracing::warn!(%org, reason = %full, error = %Chain(&error), "a refresh failed; the org is read as a whole");
            }
        }
        self.make(driving, lease, head).await;
    }

    async fn refresh_while_bearable(
        &self,
        live: &Arc<LiveDump>,
        lease: Option<&Lease>,
        head: &Head,
    ) -> Result<Refreshed, RefreshError> {
        if live.must_be_new() {
            return Err(Full::Asked.into());
        }
        let current = head.current.as_ref().ok_or(Full::NoSnapshot)?;
        if let Some(lease) = lease {
            // So that other instances wait; whether they can be told is of no matter here.
            let _ = self.shared.store.declare(lease, live.slot(), live.id()).await;
        }
        tokio::select! {
            refreshed = self.refresh(live, &current.facts, head.generation) => refreshed,
            () = waited_for(live) => Err(Full::Slow.into()),
        }
    }

    async fn refresh(&self, live: &Arc<LiveDump>, facts: &Facts, over: Generation) -> Result<Refreshed, RefreshError> {
        let began = Instant::now();
        let shared = &self.shared;
        let refresh = Arc::new(Renewal::begin(shared.builder.clone(), live, facts).await?);
        let fresh = LiveDump::new(live.slot().clone(), began, shared.metrics.followers.clone());
        self.prepare(&fresh).await?;
        let (facts, read, written) = refresh.make(Arc::new(fresh), over).await?;
        facts.log(live.slot());
        let took = began.elapsed();
        tracing::info!(org = %live.slot().org, snapshot = %facts.id, read, written,
            ms = took.as_millis() as u64, "a snapshot was refreshed");
        Ok(Refreshed { rows: facts.rows, read, written, took })
    }
}

/// Ends once a reader has waited for too long.
async fn waited_for(live: &LiveDump) {
    let began = Instant::now();
    while !live.is_waited_for(began) {
        sleep(Duration::from_secs(1)).await;
    }
}
