//! A dump in progress, as its readers see it.
//!
//! One task writes frames to the spool and announces them; any number of readers follow, each at its own pace, from
//! the first frame on. A reader holds a position and what it reads, nothing else: a slow one costs memory for that
//! only, and never holds a PostgreSQL snapshot open, because the scan does not wait for it. When the dump fails every
//! reader gets the error; when it ends, each ends after its last frame. The spool lives until the last reader lets go.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use async_stream::try_stream;
use futures_util::Stream;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::dump::DumpError;
use crate::dump::part::{Frames, Part, Spooled};
use crate::dump::queue::Wish;
use crate::dump::spool::{Spool, SpoolBudget};
use crate::metrics::Level;
use crate::model::{Grants, GroupSet, Schema, SnapshotId, SyncId, Watermark};
use crate::source::{GroupSets, SetId};
use crate::store::{Head, Published, Slot};
use crate::task;

/// How long a reader may wait for what gives no rows, a refresh, when a dump gives the first at once.
const PATIENCE: Duration = Duration::from_secs(5);

/// How many bytes of frames a reader is told of at once. A single longer frame is one piece.
const PIECE_LEN: u64 = 1 << 20;

/// One dump. Shared by the task that makes it and everyone who reads from it.
pub struct LiveDump {
    id: SnapshotId,
    slot: Slot,
    /// Where its frames are, once it is prepared.
    spool: OnceLock<Spool>,
    /// When whoever asked for it first looked for a snapshot that would do.
    looked: Instant,
    opened: OnceLock<Opened>,
    progress: watch::Sender<Progress>,
    /// Whether anyone but the background job asked for it. This and the next three change under the queue's lock.
    wanted: AtomicBool,
    /// Since when anyone waits for its rows.
    read_since: OnceLock<Instant>,
    /// Whether anyone asked for a read that begins after the request.
    must_be_new: AtomicBool,
    /// The sync id that it must hold for those who wait.
    must_hold: AtomicU64,
    /// What took its place: a refresh of the snapshot before.
    refreshed: OnceLock<Refreshed>,
    /// Counts who follows.
    followers: Level,
}

/// A snapshot that was made by reading only what had changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refreshed {
    /// Rows in it.
    pub rows: u64,
    /// Rows that were read from the database.
    pub read: u64,
    /// Bytes of packs and indexes that were put in the store.
    pub written: u64,
    /// How long it took.
    pub took: Duration,
}

/// What is known once the scan is open.
#[derive(Clone)]
pub struct Opened {
    /// True of everything the dump will hold.
    pub watermark: Watermark,
    /// How its rows look.
    pub schema: Arc<Schema>,
    /// The group sets its frames refer to.
    pub sets: Arc<GroupSets>,
    /// About how many rows will come.
    pub estimated_rows: u64,
    /// When the read began; `None`: at another instance, perhaps before any request here.
    pub at: Option<Instant>,
}

/// A frame in the spool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LiveFrame {
    /// Index of the model in the schema.
    pub model: u32,
    /// The groups its rows carry.
    pub set: SetId,
    /// Where it begins in the spool.
    pub offset: u64,
    /// Bytes of it.
    pub len: u32,
    /// Bytes of its lines.
    pub raw_len: u32,
    /// How many lines.
    pub rows: u32,
    /// Where its filter begins among those of the spool.
    pub filter: u64,
    /// Bytes of it; 0: it has none.
    pub filter_len: u32,
}

/// How far a dump is. Memory: 40 bytes a frame.
#[derive(Default)]
struct Progress {
    begun: bool,
    frames: Vec<LiveFrame>,
    rows: u64,
    end: Option<Result<(), DumpError>>,
    settled: Option<Settled>,
}

/// What became of a dump after its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Settled {
    /// It is published.
    Published,
    /// It is not: it failed, another one was faster, or the store did not take it.
    Unpublished,
}

impl LiveDump {
    /// One that waits for its turn.
    pub fn new(slot: Slot, looked: Instant, followers: Level) -> Self {
        let progress = watch::Sender::new(Progress::default());
        Self {
            id: SnapshotId::random(),
            slot,
            spool: OnceLock::new(),
            looked,
            opened: OnceLock::new(),
            progress,
            wanted: AtomicBool::new(false),
            read_since: OnceLock::new(),
            must_be_new: AtomicBool::new(false),
            must_hold: AtomicU64::new(0),
            refreshed: OnceLock::new(),
            followers,
        }
    }

    /// The id of the snapshot it will be.
    pub fn id(&self) -> SnapshotId {
        self.id
    }

    /// Whose snapshot, in which schema.
    pub fn slot(&self) -> &Slot {
        &self.slot
    }

    /// Makes room for its frames, unless there is some. Whoever drives it does so before the first of them.
    ///
    /// # Errors
    /// [`DumpError::Spool`].
    pub(super) async fn prepare(&self, folder: PathBuf, budget: Arc<SpoolBudget>) -> Result<(), DumpError> {
        if self.spool.get().is_none() {
            let spool = task::blocking(move || Spool::create(&folder, budget)).await;
            let spool = spool.map_err(|error| DumpError::Spool(Arc::new(error)))?;
            self.spool.get_or_init(|| spool);
        }
        Ok(())
    }

    /// Where its frames are.
    ///
    /// # Panics
    /// Before it is prepared: there is no frame then.
    pub fn spool(&self) -> &Spool {
        self.spool.get().expect("a dump is prepared before its first frame")
    }

    /// Bytes of frames in its spool.
    pub fn spooled(&self) -> u64 {
        self.spool.get().map_or(0, Spool::len)
    }

    /// What is known of it, if its scan is open already.
    pub fn opened(&self) -> Option<&Opened> {
        self.opened.get()
    }

    /// Whether its watermark may have been taken already; until then it is true of whatever was asked before.
    pub fn has_begun(&self) -> bool {
        self.progress.borrow().begun
    }

    /// Rows in announced frames.
    pub fn rows(&self) -> u64 {
        self.progress.borrow().rows
    }

    /// What was published in its place, if a refresh was enough.
    pub fn refreshed(&self) -> Option<Refreshed> {
        self.refreshed.get().copied()
    }

    /// A refresh was published in its place.
    pub(super) fn note_refreshed(&self, refreshed: Refreshed) {
        let _ = self.refreshed.set(refreshed);
    }

    /// How it ended, if it did.
    pub fn end(&self) -> Option<Result<(), DumpError>> {
        self.progress.borrow().end.clone()
    }

    /// Whether nothing was made: what it was asked for is, or will be, there without it.
    pub(super) fn is_left(&self) -> bool {
        matches!(self.end(), Some(Err(DumpError::Elsewhere))) && self.refreshed().is_none()
    }

    pub(super) fn is_wanted(&self) -> bool {
        self.wanted.load(Ordering::Relaxed)
    }

    /// Whether a reader has waited for its rows for long, since then or later.
    pub(super) fn is_waited_for(&self, since: Instant) -> bool {
        self.read_since.get().is_some_and(|at| since.max(*at).elapsed() >= PATIENCE)
    }

    /// Somebody waits for it, with this wish.
    pub(super) fn want(&self, wish: Wish) {
        match wish {
            Wish::Background => return,
            Wish::Published => return self.wanted.store(true, Ordering::Relaxed),
            Wish::Any => {}
            Wish::AtLeast(sync_id) => drop(self.must_hold.fetch_max(sync_id.0, Ordering::Relaxed)),
            Wish::New => self.must_be_new.store(true, Ordering::Relaxed),
        }
        self.wanted.store(true, Ordering::Relaxed);
        self.read_since.get_or_init(Instant::now);
    }

    /// Whether this head holds what all who wait for the dump look for: published after they looked.
    pub(super) fn is_granted_by(&self, head: &Head) -> bool {
        let since =
            |current: &Published| current.age < self.looked.elapsed() && current.facts.sync_id >= self.must_hold();
        !self.must_be_new() && head.current.as_ref().is_some_and(since)
    }

    pub(super) fn must_be_new(&self) -> bool {
        self.must_be_new.load(Ordering::Relaxed)
    }

    pub(super) fn must_hold(&self) -> SyncId {
        SyncId(self.must_hold.load(Ordering::Relaxed))
    }

    /// Its turn has come.
    pub(super) fn begin(&self) {
        self.progress.send_modify(|progress| progress.begun = true);
    }

    /// Its scan is open. Called once.
    pub(super) fn open(&self, opened: Opened) {
        let first = self.opened.set(opened).is_ok();
        debug_assert!(first, "a dump opens one scan");
        self.progress.send_modify(|_| ());
    }

    /// A frame is in the spool.
    pub(super) fn announce(&self, frame: LiveFrame) {
        self.progress.send_modify(|progress| {
            progress.rows += u64::from(frame.rows);
            progress.frames.push(frame);
        });
    }

    /// It is complete, or failed. Only the first end counts.
    pub(super) fn finish(&self, end: Result<(), DumpError>) {
        self.progress.send_modify(|progress| {
            progress.end.get_or_insert(end);
        });
    }

    /// Waits until the scan is open.
    ///
    /// # Errors
    /// The dump's, when it fails before.
    pub async fn wait_opened(&self) -> Result<Opened, DumpError> {
        let mut progress = self.progress.subscribe();
        loop {
            if let Some(opened) = self.opened.get() {
                return Ok(opened.clone());
            }
            if let Some(Err(error)) = &progress.borrow_and_update().end {
                return Err(error.clone());
            }
            progress.changed().await.map_err(|_| DumpError::Broken)?;
        }
    }

    /// Waits until it has ended.
    ///
    /// # Errors
    /// The dump's.
    pub async fn wait_end(&self) -> Result<(), DumpError> {
        let mut progress = self.progress.subscribe();
        let ended = progress.wait_for(|progress| progress.end.is_some()).await.map_err(|_| DumpError::Broken)?;
        ended.end.clone().unwrap_or(Err(DumpError::Broken))
    }

    /// It has left the queue.
    pub(super) fn settle(&self, settled: Settled) {
        self.progress.send_modify(|progress| progress.settled = Some(settled));
    }

    /// Waits until it has ended and is published, or will not be.
    pub async fn wait_settled(&self) -> Settled {
        let mut progress = self.progress.subscribe();
        let settled = progress.wait_for(|progress| progress.settled.is_some()).await;
        settled.ok().and_then(|progress| progress.settled).unwrap_or(Settled::Unpublished)
    }

    /// The frames announced from position `from` on, waiting for at least one, and for `least` bytes of them or the dump's
    /// end; none when the dump has ended there.
    pub(super) async fn frames_from(&self, from: usize, least: u64) -> Result<Vec<LiveFrame>, DumpError> {
        let mut progress = self.progress.subscribe();
        loop {
            {
                let progress = progress.borrow_and_update();
                let frames = progress.frames.get(from..).unwrap_or_default();
                let is_enough = || frames.iter().map(|frame| u64::from(frame.len)).sum::<u64>() >= least;
                if !frames.is_empty() && (progress.end.is_some() || is_enough()) {
                    return Ok(frames.to_vec());
                }
                if let Some(end) = &progress.end {
                    return end.clone().map(|()| Vec::new());
                }
            }
            progress.changed().await.map_err(|_| DumpError::Broken)?;
        }
    }

    /// The rows of the wanted models that meet the grants, from the first frame on. Holds the places of a
    /// few frames, not their bytes.
    /// Dropping the stream leaves the dump as it is.
    pub fn follow(
        self: Arc<Self>,
        grants: Grants,
        wanted: Vec<bool>,
    ) -> impl Stream<Item = Result<Part, DumpError>> + Send + 'static {
        let following = self.followers.hold();
        try_stream! {
            let _following = following;
            let opened = self.wait_opened().await?;
            let mut seen = Sight { grants, sets: opened.sets, known: Vec::new() };
            let mut rows = vec![0; wanted.len()];
            let mut next = 0;
            loop {
                // The first frame at once; then as much as is worth waking each of a thousand readers for.
                let least = if next == 0 { 0 } else { PIECE_LEN };
                let frames = self.frames_from(next, least).await?;
                if frames.is_empty() {
                    break;
                }
                next += frames.len();
                let selected: Vec<LiveFrame> = (frames.into_iter())
                    .filter(|frame| wanted[frame.model as usize] && seen.sees(frame.set))
                    .collect();
                for piece in pieces(&selected) {
                    for frame in piece {
                        rows[frame.model as usize] += u64::from(frame.rows);
                    }
                    yield Part::Frames(Frames::Spooled(Spooled { live: self.clone(), frames: piece.into() }));
                }
            }
            yield Part::End(rows);
        }
    }

    /// The filters of some frames, in their order.
    pub(super) async fn filters(self: Arc<Self>, frames: Vec<LiveFrame>) -> Result<Vec<Vec<u8>>, DumpError> {
        task::blocking(move || {
            frames.iter().map(|frame| self.spool().filter(frame.filter, frame.filter_len as usize)).collect()
        })
        .await
    }
}

/// Cuts frames into runs of at most [`PIECE_LEN`] bytes, or one frame.
fn pieces(mut frames: &[LiveFrame]) -> impl Iterator<Item = &[LiveFrame]> {
    std::iter::from_fn(move || {
        let mut len = 0;
        let fitting = frames.iter().take_while(|frame| {
            len += u64::from(frame.len);
            len <= PIECE_LEN
        });
        let count = fitting.count().max(1).min(frames.len());
        let (piece, rest) = frames.split_at(count);
        frames = rest;
        (!piece.is_empty()).then_some(piece)
    })
}

/// Which group sets a reader sees, found out once each.
struct Sight {
    grants: Grants,
    sets: Arc<GroupSets>,
    known: Vec<Option<bool>>,
}

impl Sight {
    fn sees(&mut self, set: SetId) -> bool {
        let index = set.0 as usize;
        if self.known.len() <= index {
            self.known.resize(index + 1, None);
        }
        let (grants, sets) = (&self.grants, &self.sets);
        *self.known[index].get_or_insert_with(|| {
            let groups: GroupSet = sets.get(set);
            grants.sees(&groups)
        })
    }
}
