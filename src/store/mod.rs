//! Where snapshots are kept: the second of the two seams.
//!
//! [`SnapshotStore`] is the contract; `mongo` (production), `object` (a folder, the embedded default) and `memory`
//! (tests) keep it, and `contract` is the one suite that shows it. `guard` and `cache` stand in front of any of them.
//!
//! # What a store holds
//! For each *slot* (org and schema hash) a [`Head`]: the generation and what was published as it. For each snapshot
//! its manifest and the packs made for it. For each org at most one lease; on it stands which snapshot its holder makes, and
//! beside it what the holder tells of that, pack by pack, for instances that follow.
//!
//! # How a snapshot appears and goes
//! Packs are put first, under the random id of a snapshot that no head names yet: nobody reads them. Then `publish`
//! moves the head in one atomic step, only from the generation the dump began from. A reader that took the old head
//! goes on reading the old packs: they stay for the grace period and then expire. Packs that were put and never
//! published, because the dump failed or lost the race, are found by [`SnapshotStore::sweep`].
//!
//! Times are the store's own, never a caller's clock.

mod cache;
pub mod contract;
mod guard;
mod memory;
mod mongo;
mod object;
mod pages;
mod record;
mod settings;

use std::collections::HashSet;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;

use crate::model::{Epoch, Generation, Org, SchemaHash, SnapshotId, SyncId};
use crate::snapshot::{PackEntry, PackId, pack};
use crate::task;

pub use cache::{CacheSettings, CacheStats, PackCache, PinnedManifest, PinnedPack};
pub use guard::GuardedStore;
pub use memory::MemoryStore;
pub use mongo::{MongoSettings, MongoStore};
pub use object::{BucketStore, FolderSettings};
pub use settings::{OpenError, StoreSettings, open};

/// So many bytes are worked on where they are.
const FEW: usize = 128 << 10;

/// One place for a current snapshot. Two versions of a rolling deploy have one each.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Slot {
    /// Whose snapshots.
    pub org: Org,
    /// In which schema.
    pub schema: SchemaHash,
}

/// The state of a slot.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Head {
    /// How often it was moved.
    pub generation: Generation,
    /// What is published; `None` before the first snapshot and after a deletion.
    pub current: Option<Published>,
}

/// What a head tells of a snapshot, so that most decisions need no manifest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Published {
    /// The facts the publisher gave.
    pub facts: Facts,
    /// How long ago it was published, by the store's clock, when this was read.
    pub age: Duration,
}

/// What a publisher says of a snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// The snapshot.
    pub id: SnapshotId,
    /// The history its sync id belongs to.
    pub epoch: Epoch,
    /// Its watermark.
    pub sync_id: SyncId,
    /// Rows in it.
    pub rows: u64,
    /// Bytes of its lines.
    pub raw_len: u64,
    /// Bytes of its frames.
    pub len: u64,
    /// The packs its manifest names, those taken over from earlier snapshots included.
    pub packs: Vec<PackId>,
}

impl Facts {
    /// Tells the log that they are published.
    pub fn log(&self, slot: &Slot) {
        tracing::info!(org = %slot.org, snapshot = %self.id, sync_id = %self.sync_id, rows = self.rows,
            raw_bytes = self.raw_len, bytes = self.len, packs = self.packs.len(), "a snapshot is published");
    }

    /// The packs that were made for this snapshot.
    fn own_packs(&self) -> impl Iterator<Item = PackId> + '_ {
        self.packs.iter().copied().filter(|pack| pack.snapshot == self.id)
    }

    /// Only the snapshot that is being replaced is certain to be kept until the moment of publishing, so packs can be
    /// taken over from it and from no other.
    fn check_reuse(&self, replaced: Option<&Facts>) -> Result<(), StoreError> {
        let kept: HashSet<PackId> = replaced.into_iter().flat_map(|facts| facts.packs.iter().copied()).collect();
        match self.packs.iter().find(|pack| pack.snapshot != self.id && !kept.contains(pack)) {
            Some(pack) => Err(StoreError::Missing(format!("pack {pack} of the replaced snapshot"))),
            None => Ok(()),
        }
    }

    /// The packs that nobody needs once `next` is current.
    fn dropped_by(&self, next: Option<&Facts>) -> Vec<PackId> {
        let kept: HashSet<PackId> = next.into_iter().flat_map(|facts| facts.packs.iter().copied()).collect();
        self.packs.iter().copied().filter(|pack| !kept.contains(pack)).collect()
    }
}

/// A right to dump an org, until it ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    /// The org.
    pub org: Org,
    /// Who holds it: random, one for each instance.
    pub owner: SnapshotId,
    /// Grows with each lease of the org, so that a lost one can't be renewed or released by its former holder.
    pub token: u64,
}

/// How long a store keeps what nobody needs any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retention {
    /// How long a replaced or deleted snapshot stays readable. Longer than the longest answer.
    pub grace: Duration,
    /// How long packs may wait to be published. Longer than the longest dump.
    pub unpublished: Duration,
}

/// Keeps snapshots. Every method may be called from many tasks and many processes at once.
///
/// A call whose future is dropped may or may not have had its effect; none leaves a state that another call can't
/// live with. Implementations set their own timeouts and do not retry beyond what their driver does.
#[async_trait]
pub trait SnapshotStore: Send + Sync + 'static {
    /// The state of a slot. After `publish` returned, every later call on any instance sees that generation or a
    /// later one.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    async fn head(&self, slot: &Slot) -> Result<Head, StoreError>;

    /// The states of all slots that hold a snapshot, in no order. Collected whole: about 200 bytes an entry and 20 a
    /// pack.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    async fn heads(&self) -> Result<Vec<(Slot, Head)>, StoreError>;

    /// The manifest of a snapshot, the current or one replaced less than the grace period ago; as it was published,
    /// unchecked.
    ///
    /// # Errors
    /// [`StoreError::Missing`] when it is not there (any more).
    async fn manifest(&self, slot: &Slot, snapshot: SnapshotId) -> Result<Bytes, StoreError>;

    /// A pack, as it was put, unchecked.
    ///
    /// # Errors
    /// [`StoreError::Missing`] when it is not there (any more).
    async fn pack(&self, org: &Org, pack: PackId) -> Result<Bytes, StoreError>;

    /// A pack that a manifest names, whole and undamaged: its length and its checksum are compared. A store that has a
    /// thread for its reads does that there.
    ///
    /// # Errors
    /// Those of [`Self::pack`], and [`StoreError::Damaged`].
    async fn whole_pack(&self, org: &Org, entry: PackEntry) -> Result<Bytes, StoreError> {
        let bytes = self.pack(org, entry.id).await?;
        let org = org.clone();
        off_runtime(bytes.len(), move || check(&org, Some(entry), bytes)).await
    }

    /// Ranges of a pack's bytes, in their order, unchecked. A store that keeps packs in one piece reads it whole.
    ///
    /// # Errors
    /// [`StoreError::Missing`] when it is not there (any more), [`StoreError::Damaged`] when it ends before a range does.
    async fn pack_parts(&self, org: &Org, pack: PackId, parts: &[Range<u64>]) -> Result<Vec<Bytes>, StoreError> {
        cut(org, pack, &self.pack(org, pack).await?, parts)
    }

    /// Keeps a pack of a snapshot that is not published yet. It expires after [`Retention::unpublished`] unless a
    /// `publish` names it. Putting the same pack again replaces it. Any size is taken.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`], [`StoreError::Full`].
    async fn put_pack(&self, org: &Org, pack: PackId, bytes: Bytes) -> Result<(), StoreError>;

    /// Makes a snapshot the current one of its slot, in one atomic step, and only if the slot is still at generation
    /// `over`; it is then at `over.next()`. All packs of `facts` are kept from then on; those of the replaced
    /// snapshot that `facts` does not name expire after the grace period. Packs are those put for this very snapshot,
    /// or taken over from the one it replaces, and from no other. On any error the slot is unchanged or, when the
    /// answer was lost, moved as asked; readers never see a half. Asking again after a lost answer succeeds if the
    /// snapshot is the current one.
    ///
    /// # Errors
    /// [`StoreError::Conflict`] when another publisher was faster, [`StoreError::Missing`] when a pack is not there.
    async fn publish(&self, slot: &Slot, over: Generation, facts: &Facts, manifest: Bytes) -> Result<(), StoreError>;

    /// Takes away the snapshots of an org, in all schemas: each slot moves to a next generation that holds nothing, so
    /// that a dump that began before can't publish. What was there stays readable by id for the grace period. Says how
    /// many snapshots it took away.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    async fn delete(&self, org: &Org) -> Result<u64, StoreError>;

    /// Takes away the snapshot of one slot, if the slot is still at generation `over`: it is then at `over.next()` and
    /// holds nothing, so that a dump that began before can't publish. What was there stays readable by id for the grace
    /// period. Other schemas of the org are not touched.
    ///
    /// # Errors
    /// [`StoreError::Conflict`] when the slot was moved meanwhile.
    async fn retire(&self, slot: &Slot, over: Generation) -> Result<(), StoreError>;

    /// Takes the lease of an org for `ttl`, or says `None` while somebody holds it, the asker included.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    async fn acquire(&self, org: &Org, owner: SnapshotId, ttl: Duration) -> Result<Option<Lease>, StoreError>;

    /// Holds a lease for another `ttl` from now; `false` when it was lost, that is released, or taken by another after
    /// it ended.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    async fn renew(&self, lease: &Lease, ttl: Duration) -> Result<bool, StoreError>;

    /// Gives a lease back; nothing happens when it was lost.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    async fn release(&self, lease: &Lease) -> Result<(), StoreError>;

    /// Tells other instances that the holder of a lease makes this snapshot of a slot, until the lease ends or is given
    /// back. Nothing happens when it was lost, or in a store that only one instance uses: those keep no announcements.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    async fn declare(&self, lease: &Lease, slot: &Slot, snapshot: SnapshotId) -> Result<(), StoreError> {
        let _ = (lease, slot, snapshot);
        Ok(())
    }

    /// The snapshot of a slot that the holder of its org's lease makes now.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    async fn declared(&self, slot: &Slot) -> Result<Option<SnapshotId>, StoreError> {
        let _ = slot;
        Ok(None)
    }

    /// Keeps a piece of what is told of a declared snapshot, by its number. It expires after
    /// [`Retention::unpublished`].
    ///
    /// # Errors
    /// [`StoreError::Unavailable`], [`StoreError::Full`].
    async fn announce(&self, org: &Org, snapshot: SnapshotId, number: u32, piece: Bytes) -> Result<(), StoreError> {
        let _ = (org, snapshot, number, piece);
        Ok(())
    }

    /// A piece, if it was announced.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    async fn announced(&self, org: &Org, snapshot: SnapshotId, number: u32) -> Result<Option<Bytes>, StoreError> {
        let _ = (org, snapshot, number);
        Ok(None)
    }

    /// Removes what nobody needs any more: packs and manifests past their time, packs never published. Says how many
    /// packs it removed. Safe at any moment beside dumps, publishers and other sweeps.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    async fn sweep(&self) -> Result<u64, StoreError>;

    /// Whether the store answers now; cheap.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    async fn ping(&self) -> Result<(), StoreError>;
}

/// Whether bytes are the pack that a manifest names, whole and undamaged, if an entry of one is given.
fn check(org: &Org, entry: Option<PackEntry>, bytes: Bytes) -> Result<Bytes, StoreError> {
    let Some(entry) = entry else { return Ok(bytes) };
    check_len(org, entry, bytes.len() as u64)?;
    match pack::verify(&bytes) {
        Ok(_) => Ok(bytes),
        Err(fault) => Err(damaged(org, entry, fault.to_string())),
    }
}

/// Whether a pack has the length that its manifest says.
fn check_len(org: &Org, entry: PackEntry, len: u64) -> Result<(), StoreError> {
    if len == u64::from(entry.len) {
        return Ok(());
    }
    Err(damaged(org, entry, format!("it has {len} bytes, its manifest says {}", entry.len)))
}

fn damaged(org: &Org, entry: PackEntry, fault: String) -> StoreError {
    StoreError::Damaged { what: format!("pack {} of org {org:?}", entry.id), fault }
}

/// Work on so many bytes, where it keeps nobody waiting: a few are done with sooner than they are handed to another
/// thread and back.
async fn off_runtime<T: Send + 'static>(bytes: usize, work: impl FnOnce() -> T + Send + 'static) -> T {
    if bytes <= FEW { work() } else { task::blocking(work).await }
}

/// Ranges of a pack that was read whole.
fn cut(org: &Org, pack: PackId, whole: &Bytes, parts: &[Range<u64>]) -> Result<Vec<Bytes>, StoreError> {
    let part = |range: &Range<u64>| {
        let (start, end) = (usize::try_from(range.start).ok()?, usize::try_from(range.end).ok()?);
        (start <= end && end <= whole.len()).then(|| whole.slice(start..end))
    };
    parts.iter().map(part).collect::<Option<_>>().ok_or_else(|| StoreError::Damaged {
        what: format!("pack {pack} of org {org:?}"),
        fault: format!("it has only {} bytes", whole.len()),
    })
}

/// Why a store did not do as asked.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// It can't be reached, or did not answer in time.
    #[error("the snapshot store does not answer")]
    Unavailable(#[source] Arc<dyn std::error::Error + Send + Sync>),
    /// It has no room.
    #[error("the snapshot store is full")]
    Full(#[source] Arc<dyn std::error::Error + Send + Sync>),
    /// Readers hold all the room that the cache has, and gave none up in time.
    #[error("the snapshot cache has no room")]
    NoRoom,
    /// What was asked for is not there.
    #[error("{0} is not in the snapshot store")]
    Missing(String),
    /// The slot is at another generation than the publisher began from.
    #[error("another snapshot was published meanwhile")]
    Conflict,
    /// What was read is not what was written.
    #[error("{what} is damaged in the snapshot store: {fault}")]
    Damaged {
        /// Which pack or manifest.
        what: String,
        /// What is wrong with it.
        fault: String,
    },
}

impl StoreError {
    /// Whether asking again would give the same: what is wrong lies in the store and not on the way to it.
    pub fn is_lasting(&self) -> bool {
        matches!(self, Self::Missing(_) | Self::Damaged { .. })
    }

    fn unavailable(cause: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::Unavailable(cause.into().into())
    }
}
