//! How fast clients take what they are given, and the end of those who don't.
//!
//! An answer goes to its connection in pieces, the next one only when less than [`PIECE`] bytes of those before wait for the
//! socket (slices of packs: a few slices). So a client that stops reading costs what its body gives at once, what that holds
//! behind it, and what the kernel may keep unsent. And it can be told how slow a client is: by how long so many bytes have been
//! waiting, however few of them trickle away meanwhile.
//!
//! What is made for one answer comes in small pieces. Slices of packs and spools take no memory of the connection's, so they
//! are handed over whole, up to a [MiB](WHOLE), and those of a snapshot several at once, since a caller in few teams, or a
//! snapshot that was refreshed, has many short ones: the kernel copies them, and the fewer the calls and the fuller the packets,
//! the less of that is anything but copying. (`sendfile` copies nothing, but gives the socket single pages of 4 KiB: by
//! loopback, ten clients got 1.5 times as much a second this way, and took half the processor time to read it.)
//!
//! A client is slow once a piece has waited for a second; a gauge counts those. It is cut, its connection reset,
//! when the piece has waited for the progress deadline, or earlier when its answer keeps packs in memory while somebody
//! waits for room in the pack cache: then whoever has been stalled for longest goes first.
//!
//! Everything of one connection happens in its one task; only the order to be cut comes from outside.

mod body;
mod socket;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

pub use body::PacedBody;
pub use socket::{PacedIo, Socket};

use crate::metrics::{Gauge, Held, Metrics, level};

/// How many bytes may wait for a socket when it is given more; and how many a client has to take in a time.
pub const PIECE: usize = 64 << 10;

/// How many bytes a connection is given at once at most.
pub const WHOLE: usize = 1 << 20;

/// How many bytes all connections together may be given at once while there are few, and the least for each: what the kernel
/// copies in for many has to be in the processor's cache still when they take it.
const TOGETHER: usize = 16 << 20;
const EACH: usize = WHOLE / 2;

/// How many slices of packs may wait for a socket: each keeps its whole pack in memory. One while others wait for such room. With
/// four, a snapshot that was refreshed 24 times, whose slices are short, was read at 0.90 of the pace of one made as a whole; with
/// eight, or sixteen, at 0.98.
const SLICES: usize = 8;

/// How much of an answer the kernel keeps of what it has not sent yet, in bytes. Without it the kernel takes megabytes for
/// a client that does not read. It says that there is room again when half of it is sent (Linux, `tcp_stream_memory_free`),
/// so this is also how finely a client's progress is seen: a [`PIECE`].
pub const UNSENT: u32 = 2 * PIECE as u32;

/// The same for a client that is fast: each write is then for more, and one client alone gets a fifth more a second.
const UNSENT_FAST: u32 = 1 << 20;

/// A client is fast that takes so many bytes within [`SLOW_AFTER`], until it is slow.
const FAST: usize = 2 << 20;

/// How long a piece waits before its client counts as slow.
const SLOW_AFTER: Duration = Duration::from_secs(1);

/// How long a client that was cut may take to be gone before the next one is cut.
const CUT_WITHIN: Duration = Duration::from_secs(1);

/// Why a client was cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// It did not take a piece within the progress deadline.
    Progress,
    /// It had been stalled for longest when the packs it kept in memory were in the way of others.
    Room,
}

impl Cut {
    /// It in one fixed word, for metrics.
    pub fn word(self) -> &'static str {
        match self {
            Self::Progress => "progress",
            Self::Room => "room",
        }
    }
}

impl fmt::Display for Cut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Progress => "the client did not take a piece within the progress deadline",
            Self::Room => "the client was stalled, and others waited for the memory its packs took",
        })
    }
}

/// What the pieces of an answer are. A response that says nothing is [`Made`](Pieces::Made).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Pieces {
    /// Made for this answer.
    #[default]
    Made,
    /// Made for it from packs, which it keeps in memory meanwhile.
    MadeOfPacks,
    /// Slices of packs, which it keeps in memory meanwhile.
    Slices,
}

/// The pace of all connections of a service. Clones share it.
#[derive(Clone)]
pub struct Pacing {
    shared: Arc<Shared>,
}

struct Shared {
    /// How long a client may take for one piece.
    progress: Duration,
    metrics: Metrics,
    /// Those who are slow now, by since when their piece has been waiting. At most one entry a connection.
    slow: Mutex<BTreeMap<(Instant, u64), Arc<Pace>>>,
    /// Somebody has become slow.
    slowed: Notify,
    next: AtomicU64,
    /// Answers that have not ended.
    answers: AtomicUsize,
    /// Whether somebody waits for room that packs take.
    crowded: AtomicBool,
}

impl Pacing {
    /// With a progress deadline.
    pub fn new(progress: Duration, metrics: Metrics) -> Self {
        let (slow, slowed) = (Mutex::default(), Notify::new());
        let (next, answers, crowded) = (AtomicU64::new(0), AtomicUsize::new(0), AtomicBool::new(false));
        Self { shared: Arc::new(Shared { progress, metrics, slow, slowed, next, answers, crowded }) }
    }

    /// The pace of a new connection.
    pub fn connection(&self) -> Arc<Pace> {
        Arc::new(Pace {
            number: self.shared.next.fetch_add(1, Ordering::Relaxed),
            _open: self.shared.metrics.connections.hold(),
            pacing: self.clone(),
            state: Mutex::default(),
            blocked: Notify::new(),
            accepted: Notify::new(),
            pins: AtomicBool::new(false),
            ordered: Notify::new(),
            gone: CancellationToken::new(),
            verdict: OnceLock::new(),
        })
    }

    /// Cuts the longest-stalled clients that keep packs in memory, one after the other, whenever somebody waits for room
    /// and for as long as that is so. Never returns while the other end of `crowded` lives.
    pub async fn make_room(self, mut crowded: watch::Receiver<bool>) {
        loop {
            self.shared.crowded.store(*crowded.borrow(), Ordering::Relaxed);
            if crowded.wait_for(|crowded| *crowded).await.is_err() {
                return;
            }
            self.shared.crowded.store(true, Ordering::Relaxed);
            if let Some(cut) = self.cut_longest() {
                // What it held is free now, and others may have room.
                let _ = timeout(CUT_WITHIN, cut.gone.cancelled()).await;
                continue;
            }
            // Nobody can be cut: whoever holds the packs is on its way, or about to be slow.
            tokio::select! {
                () = self.shared.slowed.notified() => {}
                _ = crowded.wait_for(|crowded| !*crowded) => {}
            }
        }
    }

    fn cut_longest(&self) -> Option<Arc<Pace>> {
        let mut slow = self.slow();
        let longest = slow.iter().find(|(_, pace)| pace.pins.load(Ordering::Relaxed)).map(|(place, _)| *place);
        let (place, pace) = longest.and_then(|place| slow.remove_entry(&place))?;
        pace.order(place.0);
        Some(pace)
    }

    fn slow(&self) -> MutexGuard<'_, BTreeMap<(Instant, u64), Arc<Pace>>> {
        self.shared.slow.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The pace of one connection.
pub struct Pace {
    number: u64,
    _open: Held,
    pacing: Pacing,
    state: Mutex<State>,
    /// The socket did not take all of a piece.
    blocked: Notify,
    /// It has, after all.
    accepted: Notify,
    /// Whether the answer in progress keeps packs in memory.
    pins: AtomicBool,
    /// The connection is to be cut.
    ordered: Notify,
    /// Cancelled when the connection is gone, with all it held.
    gone: CancellationToken,
    verdict: OnceLock<Cut>,
}

#[derive(Default)]
struct State {
    /// Since when the socket has not taken all it was given, nor another [`PIECE`] of it.
    since: Option<Instant>,
    /// How much it has taken since then.
    taken: usize,
    /// Bytes of the pieces that were handed over and that the socket has not taken whole.
    handed: usize,
    /// How many pieces those are.
    pieces: usize,
    /// The time since which it was stalled when it was to be cut: once it has taken more it is not, after all.
    ordered: Option<Instant>,
    /// The body that waits to hand over the next one.
    body: Option<Waker>,
}

impl Pace {
    /// Notes what the answer that begins is made of.
    fn begin_answer(&self, pieces: Pieces) {
        self.pins.store(pieces != Pieces::Made, Ordering::Relaxed);
    }

    /// Has the connection cut that has been stalled since then.
    fn order(&self, since: Instant) {
        self.state().ordered = Some(since);
        self.ordered.notify_one();
    }

    /// Whether it is to be cut, and has been stalled since then.
    fn is_to_be_cut(&self, since: Instant) -> bool {
        let state = self.state();
        state.ordered == Some(since) && state.since == Some(since)
    }

    /// The connection is gone.
    pub fn end(&self) {
        self.gone.cancel();
    }

    /// Why the client was cut, if it was.
    pub fn verdict(&self) -> Option<Cut> {
        self.verdict.get().copied()
    }

    /// Waits until the client is to be cut, and counts it as slow while it is. Cancel safe.
    pub async fn cut(self: &Arc<Self>) -> Cut {
        let cut = self.too_slow().await;
        self.pacing.shared.metrics.cut(cut.word());
        *self.verdict.get_or_init(|| cut)
    }

    async fn too_slow(self: &Arc<Self>) -> Cut {
        let progress = self.pacing.shared.progress;
        loop {
            self.blocked.notified().await;
            let Some(since) = self.since() else { continue };
            sleep_until(since + SLOW_AFTER.min(progress)).await;
            if self.since() != Some(since) {
                continue;
            }
            let _slow = Slow::new(self.clone(), since);
            while self.since() == Some(since) {
                tokio::select! {
                    () = sleep_until(since + progress) => return Cut::Progress,
                    () = self.ordered.notified() => if self.is_to_be_cut(since) { return Cut::Room },
                    () = self.accepted.notified() => {}
                }
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn since(&self) -> Option<Instant> {
        self.state().since
    }

    /// The socket took less than it was given.
    fn block(&self) {
        let mut state = self.state();
        if state.since.is_none() {
            (state.since, state.taken) = (Some(Instant::now()), 0);
            self.blocked.notify_one();
        }
    }

    /// The socket took some of what it was given. With every [`PIECE`] its client's time begins anew. Says whether the client
    /// was slow to take it.
    fn progress(&self, len: usize) -> bool {
        let mut state = self.state();
        let Some(since) = state.since else { return false };
        let was_slow = since.elapsed() >= SLOW_AFTER;
        state.taken += len;
        if state.taken >= PIECE {
            (state.since, state.taken) = (Some(Instant::now()), 0);
            self.accepted.notify_one();
            self.blocked.notify_one();
        }
        was_slow
    }

    /// The socket has taken all that it was given.
    fn accept(&self) {
        let mut state = self.state();
        if state.since.take().is_some() {
            self.accepted.notify_one();
        }
        self.in_flight().dec_by(level(std::mem::take(&mut state.handed)));
        state.pieces = 0;
        if let Some(body) = state.body.take() {
            body.wake();
        }
    }

    /// Ready when there is room for another piece of this kind, with how many bytes wait for the socket.
    fn poll_room(&self, pieces: Pieces, cx: &Context<'_>) -> Poll<usize> {
        let together = pieces == Pieces::Slices && !self.pacing.shared.crowded.load(Ordering::Relaxed);
        let few = |state: &State| together && state.pieces < SLICES && state.handed < self.most();
        self.poll_until(cx, |state| state.handed < PIECE || few(state))
    }

    /// Ready when nothing waits for the socket.
    fn poll_taken(&self, cx: &Context<'_>) -> Poll<()> {
        self.poll_until(cx, |state| state.handed == 0).map(drop)
    }

    /// Ready, with how many bytes wait for the socket, once that is so; it is looked at again when the socket has taken them.
    fn poll_until(&self, cx: &Context<'_>, is_so: impl FnOnce(&State) -> bool) -> Poll<usize> {
        let mut state = self.state();
        if is_so(&state) {
            return Poll::Ready(state.handed);
        }
        state.body = Some(cx.waker().clone());
        Poll::Pending
    }

    /// How many bytes it may be handed at once.
    fn most(&self) -> usize {
        let answers = self.pacing.shared.answers.load(Ordering::Relaxed);
        (TOGETHER / answers.max(1)).clamp(EACH, WHOLE)
    }

    fn hand_over(&self, len: usize) {
        let mut state = self.state();
        state.handed += len;
        state.pieces += 1;
        drop(state);
        self.in_flight().inc_by(level(len));
    }

    fn in_flight(&self) -> &Gauge {
        &self.pacing.shared.metrics.in_flight_bytes
    }
}

impl Drop for Pace {
    fn drop(&mut self) {
        self.in_flight().dec_by(level(self.state().handed));
    }
}

/// A client that is slow now.
struct Slow {
    pace: Arc<Pace>,
    since: Instant,
    _counted: Held,
}

impl Slow {
    fn new(pace: Arc<Pace>, since: Instant) -> Self {
        let pacing = &pace.pacing;
        let counted = pacing.shared.metrics.slow_clients.hold();
        pacing.slow().insert((since, pace.number), pace.clone());
        pacing.shared.slowed.notify_one();
        Self { since, _counted: counted, pace }
    }
}

impl Drop for Slow {
    fn drop(&mut self) {
        self.pace.pacing.slow().remove(&(self.since, self.pace.number));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn an_order_is_for_the_stall_it_was_given_for() {
        let pacing = Pacing::new(Duration::from_secs(60), Metrics::new());
        let pace = pacing.connection();
        pace.hand_over(3 * PIECE);
        pace.block();
        let stalled = pace.since().expect("it is stalled");
        let cutting = async {
            tokio::time::sleep(2 * SLOW_AFTER).await;
            // It takes a piece in the very moment in which it is ordered to be cut.
            pace.progress(PIECE);
            pace.order(stalled);
            tokio::time::sleep(2 * SLOW_AFTER).await;
            assert_eq!(pace.verdict(), None);
            pace.order(pace.since().expect("it is stalled again"));
        };
        let (cut, ()) = tokio::join!(pace.cut(), cutting);
        assert_eq!(cut, Cut::Room);
    }
}
