//! Following the dump that another instance makes, instead of scanning too.
//!
//! Whoever dumps under a lease *declares* the snapshot on the lease, and *announces* each pack once it is put: a
//! numbered piece of the manifest that holds this one pack with its frames and group sets. A last piece without a pack
//! says that all have come. The follower loads each pack once, checks it, and copies its frames into a spool of its own,
//! so that its readers, each with their own groups and pace, read it as any dump of this process.
//!
//! | who ends | what the follower does |
//! |---|---|
//! | the dump, after its last piece | its readers end well; it waits until the snapshot is published, so that whoever asks next finds that |
//! | the dumper, before a first pack came (it failed, died, or its lease was lost) | nobody got a byte: it makes a dump of its own |
//! | the dumper, later | its readers break off: what they have can't be completed from another snapshot |
//! | the store | as if the dumper had |
//!
//! Nothing of a dead dumper is waited for longer than its lease lasts.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::chain::Chain;
use crate::dump::DumpError;
use crate::dump::live::{LiveDump, LiveFrame, Opened};
use crate::dump::queue::Dumps;
use crate::model::{SnapshotId, Watermark};
use crate::snapshot::Manifest;
use crate::source::GroupSets;
use crate::store::StoreError;
use crate::task;

/// The pause between two looks for the next piece.
const POLL: Duration = Duration::from_millis(200);

/// How long after taking the lease a dumper may take to declare what it makes. One that never does makes a snapshot of
/// another schema, or can't be followed.
const DECLARED_WITHIN: Duration = Duration::from_millis(600);

/// For how long a dump that was followed to its end may take to be published before it no longer matters.
const PUBLISHED_WITHIN: Duration = Duration::from_secs(60);

/// How following went.
pub(super) enum Followed {
    /// To the end; the snapshot is published, or will not be.
    Whole {
        /// Which of the two.
        published: bool,
    },
    /// Not at all: there is nothing to follow that would do, or it ended before its first pack.
    Not,
    /// A part of it was given to readers.
    Lost(DumpError),
}

/// Why a piece was not taken.
#[derive(Debug, thiserror::Error)]
enum Unfit {
    /// The store did not give it, or gave what is damaged.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The database or the spool failed.
    #[error(transparent)]
    Dump(#[from] DumpError),
    /// It is of another snapshot, schema or history than is wanted here, or too old for those who wait.
    #[error("what the other instance makes does not fit: {0}")]
    Other(&'static str),
    /// The one that made it has gone.
    #[error("the instance that made it has gone")]
    Gone,
}

impl Dumps {
    /// Follows the dump that the holder of the org's lease makes, if there is one that grants the wishes of all who
    /// wait for this one. Memory: one pack. Ends this dump only when it was followed to the end or lost.
    pub(super) async fn follow_other(&self, live: &Arc<LiveDump>) -> Followed {
        if live.must_be_new() {
            return Followed::Not;
        }
        let Some(snapshot) = self.declared(live).await else { return Followed::Not };
        let org = &live.slot().org;
        tracing::info!(%org, %snapshot, "another instance makes a dump; it is followed");
        match self.take_pieces(live, snapshot).await {
            Ok(()) => {
                self.shared.metrics.dumps_followed.inc();
                live.finish(Ok(()));
                Followed::Whole { published: self.until_published(live, snapshot).await }
            }
            Err(error) => {
                tracing::warn!(%org, %snapshot, error = %Chain(&error), "the dump of another instance could not be followed");
                match (live.opened(), error) {
                    (None, _) => Followed::Not,
                    (Some(_), Unfit::Dump(error)) => Followed::Lost(error),
                    (Some(_), _) => Followed::Lost(DumpError::Orphaned),
                }
            }
        }
    }

    /// What the holder of the lease makes in this slot.
    async fn declared(&self, live: &LiveDump) -> Option<SnapshotId> {
        let deadline = Instant::now() + DECLARED_WITHIN;
        loop {
            match self.shared.store.declared(live.slot()).await {
                Ok(Some(snapshot)) => return Some(snapshot),
                Ok(None) if Instant::now() < deadline => sleep(POLL).await,
                Ok(None) | Err(_) => return None,
            }
        }
    }

    async fn take_pieces(&self, live: &Arc<LiveDump>, snapshot: SnapshotId) -> Result<(), Unfit> {
        self.prepare(live).await?;
        let (store, began) = (&self.shared.store, Instant::now());
        let mut number = 0;
        loop {
            // Asked before the piece: who ends well announces the last piece and lets go of the lease afterwards.
            let alive = store.declared(live.slot()).await? == Some(snapshot);
            let Some(bytes) = store.announced(&live.slot().org, snapshot, number).await? else {
                if !alive {
                    return Err(Unfit::Gone);
                }
                // A refresh has no rows for anybody, however long it takes.
                if number == 0 && live.is_waited_for(began) {
                    return Err(Unfit::Other("it sends no rows"));
                }
                sleep(POLL).await;
                continue;
            };
            let piece = task::blocking(move || Manifest::decode(&bytes)).await;
            let piece = piece.map_err(|_| Unfit::Other("a malformed announcement"))?;
            if piece.id != snapshot || piece.org != live.slot().org || piece.schema_hash != live.slot().schema {
                return Err(Unfit::Other("an announcement of another snapshot"));
            }
            let sets = self.opened_by(live, &piece).await?;
            if piece.packs.is_empty() {
                return Ok(());
            }
            self.take_pack(live, piece, &sets).await?;
            number += 1;
        }
    }

    /// Opens the dump with what its first piece says.
    async fn opened_by(&self, live: &LiveDump, piece: &Manifest) -> Result<Arc<GroupSets>, Unfit> {
        if let Some(opened) = live.opened() {
            let same = opened.watermark.sync_id == piece.sync_id && opened.watermark.epoch == piece.epoch;
            return if same { Ok(opened.sets.clone()) } else { Err(Unfit::Other("another watermark")) };
        }
        let source = self.shared.builder.source();
        let schema = source.schema().await.map_err(DumpError::from)?;
        if schema.hash != piece.schema_hash || schema.models.len() != piece.models as usize {
            return Err(Unfit::Other("another schema"));
        }
        if source.epoch().await.map_err(DumpError::from)? != piece.epoch {
            return Err(Unfit::Other("another epoch"));
        }
        if piece.sync_id < live.must_hold() {
            return Err(Unfit::Other("older than what waits for it"));
        }
        let sets = Arc::new(GroupSets::default());
        live.open(Opened {
            watermark: Watermark { epoch: piece.epoch.clone(), sync_id: piece.sync_id },
            schema,
            sets: sets.clone(),
            estimated_rows: 0,
            at: None,
        });
        Ok(sets)
    }

    /// Copies the frames of a piece's pack into the spool.
    async fn take_pack(&self, live: &Arc<LiveDump>, piece: Manifest, sets: &GroupSets) -> Result<(), Unfit> {
        let [entry] = *piece.packs else {
            return Err(Unfit::Other("an announcement of several packs"));
        };
        let bytes = self.shared.store.whole_pack(&live.slot().org, entry).await?;
        let spooled = live.clone();
        let ids: Vec<_> = piece.sets.iter().map(|set| sets.intern(set.clone())).collect();
        let frames = task::blocking(move || {
            let frames = piece.frames.iter().map(|frame| {
                let start = frame.offset as usize;
                let offset = spooled.spool().append(&bytes[start..start + frame.len as usize])?;
                let set = ids[frame.set as usize];
                Ok(LiveFrame {
                    model: frame.model,
                    set,
                    offset,
                    len: frame.len,
                    raw_len: frame.raw_len,
                    rows: frame.rows,
                    // Whoever makes it stores it, and its index.
                    filter: 0,
                    filter_len: 0,
                })
            });
            frames.collect::<Result<Vec<_>, DumpError>>()
        })
        .await?;
        for frame in frames {
            live.announce(frame);
        }
        Ok(())
    }

    /// Waits until the dumper has let go, and says whether the snapshot is published. Whoever comes meanwhile reads what
    /// was followed.
    async fn until_published(&self, live: &LiveDump, snapshot: SnapshotId) -> bool {
        let store = &self.shared.store;
        let deadline = Instant::now() + PUBLISHED_WITHIN;
        while Instant::now() < deadline && matches!(store.declared(live.slot()).await, Ok(Some(now)) if now == snapshot)
        {
            sleep(POLL).await;
        }
        let head = store.head(live.slot()).await;
        head.is_ok_and(|head| head.current.is_some_and(|current| current.facts.id == snapshot))
    }
}
