//! How fast clients take what they are given, and the end of those who don't.
//!
//! An answer goes to its connection in pieces of [`PIECE`] bytes, the next one only when the socket has taken the last
//! one whole. So a client that stops reading costs one piece, what its body holds behind it, and what the kernel may
//! keep unsent. And it can be told how slow a client is: by how long so many bytes have been waiting, however few of them
//! trickle away meanwhile.
//!
//! What lies in a file that is [mapped](crate::mapped) takes no memory of the connection's, and is not copied: the kernel
//! is told where it is, up to [`MAPPED_PIECE`] bytes at once.
//!
//! A client is slow once a piece has waited for a second; a gauge counts those. It is cut, its connection reset,
//! when the piece has waited for the progress deadline, or earlier when its answer keeps packs in memory while somebody
//! waits for room in the pack cache: then whoever has been stalled for longest goes first.
//!
//! Everything of one connection happens in its one task; only the order to be cut comes from outside.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use axum::body::{Body, Bytes, HttpBody};
use http_body::{Frame, SizeHint};
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::rt::TokioIo;
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, Interest};
use tokio::net::TcpStream;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use crate::mapped::{self, Place};
use crate::metrics::{Gauge, Held, Metrics, level};

/// How many bytes a connection is given at once.
pub const PIECE: usize = 64 << 10;

/// How many bytes of a mapped file a connection is given at once.
const MAPPED_PIECE: usize = 256 << 10;

/// How many bytes a connection may be given before others have their turn: a socket that takes everything at once would
/// keep its thread from them, and they would wait for their first byte.
const TURN: usize = 256 << 10;

/// The line break behind a chunk (RFC 9112, section 7.1).
const CHUNK_END: usize = 2;

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
}

impl Pacing {
    /// With a progress deadline.
    pub fn new(progress: Duration, metrics: Metrics) -> Self {
        let (slow, slowed, next) = (Mutex::default(), Notify::new(), AtomicU64::new(0));
        Self { shared: Arc::new(Shared { progress, metrics, slow, slowed, next }) }
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
            ordered: CancellationToken::new(),
            gone: CancellationToken::new(),
            verdict: OnceLock::new(),
        })
    }

    /// Cuts the longest-stalled clients that keep packs in memory, one after the other, whenever somebody waits for room
    /// and for as long as that is so. Never returns while the other end of `crowded` lives.
    pub async fn make_room(self, mut crowded: watch::Receiver<bool>) {
        while crowded.wait_for(|crowded| *crowded).await.is_ok() {
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
        let pace = longest.and_then(|place| slow.remove(&place));
        pace.inspect(|pace| pace.ordered.cancel())
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
    /// Cancelled when the connection is to be cut.
    ordered: CancellationToken,
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
    /// Bytes of the piece that was handed over and that the socket has not taken whole; 0: there is none. It may be made
    /// of several short ones.
    handed: usize,
    /// Of these, what lies in no file and so takes memory.
    copied: usize,
    /// The body that waits to hand over the next one.
    body: Option<Waker>,
}

impl Pace {
    /// Says whether the answer that begins keeps packs in memory.
    pub fn begin_answer(&self, pins: bool) {
        self.pins.store(pins, Ordering::Relaxed);
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
                    () = self.ordered.cancelled() => return Cut::Room,
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

    /// The socket took some of what it was given. With every [`PIECE`] its client's time begins anew.
    fn progress(&self, len: usize) {
        let mut state = self.state();
        if state.since.is_none() {
            return;
        }
        state.taken += len;
        if state.taken >= PIECE {
            (state.since, state.taken) = (Some(Instant::now()), 0);
            self.accepted.notify_one();
            self.blocked.notify_one();
        }
    }

    /// The socket has taken all that it was given.
    fn accept(&self) {
        let mut state = self.state();
        if state.since.take().is_some() {
            self.accepted.notify_one();
        }
        state.handed = 0;
        self.in_flight().dec_by(level(std::mem::take(&mut state.copied)));
        if let Some(body) = state.body.take() {
            body.wake();
        }
    }

    /// Ready, with how much there is room for, unless a whole piece waits for the socket.
    fn poll_room(&self, cx: &Context<'_>) -> Poll<usize> {
        let mut state = self.state();
        if let Some(room) = PIECE.checked_sub(state.handed).filter(|room| *room > 0) {
            return Poll::Ready(room);
        }
        state.body = Some(cx.waker().clone());
        Poll::Pending
    }

    fn hand_over(&self, len: usize, is_mapped: bool) {
        let copied = if is_mapped { 0 } else { len };
        let mut state = self.state();
        state.handed += len;
        state.copied += copied;
        self.in_flight().inc_by(level(copied));
    }

    fn in_flight(&self) -> &Gauge {
        &self.pacing.shared.metrics.in_flight_bytes
    }
}

impl Drop for Pace {
    fn drop(&mut self) {
        self.in_flight().dec_by(level(self.state().copied));
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

/// What clients are connected by.
pub trait Socket: AsyncRead + AsyncWrite + Unpin + Send + 'static {
    /// Makes closing it reset the connection: else the kernel would keep what the client did not take for minutes.
    ///
    /// # Errors
    /// The kernel's.
    fn reset_on_close(&self) -> io::Result<()>;

    /// Sends from a file, as a write would, and says how many bytes.
    ///
    /// # Errors
    /// The kernel's; `Unsupported` where there is no such call.
    fn poll_send(&self, cx: &mut Context<'_>, place: &Place) -> Poll<io::Result<usize>>;

    /// Writes what comes right before something that is sent from a file.
    ///
    /// # Errors
    /// Those of [`Self::poll_send`].
    fn poll_send_before(&self, cx: &mut Context<'_>, bufs: &[IoSlice<'_>]) -> Poll<io::Result<usize>>;
}

impl Socket for TcpStream {
    fn poll_send(&self, cx: &mut Context<'_>, place: &Place) -> Poll<io::Result<usize>> {
        poll_try(self, cx, || place.send(self, MAPPED_PIECE))
    }

    fn poll_send_before(&self, cx: &mut Context<'_>, bufs: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        poll_try(self, cx, || mapped::send_before(self, bufs))
    }

    fn reset_on_close(&self) -> io::Result<()> {
        SockRef::from(self).set_linger(Some(Duration::ZERO))
    }
}

/// Tries something that writes, until the socket takes it.
fn poll_try(
    socket: &TcpStream,
    cx: &mut Context<'_>,
    mut write: impl FnMut() -> io::Result<usize>,
) -> Poll<io::Result<usize>> {
    loop {
        ready!(socket.poll_write_ready(cx))?;
        match socket.try_io(Interest::WRITABLE, &mut write) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            written => return Poll::Ready(written),
        }
    }
}

/// A socket that tells what it took. It is reset when its client was cut.
pub struct PacedIo<S: Socket> {
    io: TokioIo<S>,
    pace: Arc<Pace>,
    /// Whether the kernel sends from files; found out by trying.
    sends: bool,
    /// Whether the last that was given came from a file.
    sent: bool,
}

impl<S: Socket> PacedIo<S> {
    /// A socket and the pace of its connection.
    pub fn new(io: S, pace: Arc<Pace>) -> Self {
        Self { io: TokioIo::new(io), pace, sends: true, sent: false }
    }

    fn watch(&self, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        match &written {
            Poll::Pending => self.pace.block(),
            Poll::Ready(Ok(len)) => self.pace.progress(*len),
            Poll::Ready(Err(_)) => {}
        }
        written
    }

    /// Writes what comes before the first slice that lies in a file, or sends that one.
    fn poll_give(&mut self, cx: &mut Context<'_>, bufs: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let places = bufs.iter().map(|buf| if self.sends { mapped::locate(buf) } else { None });
        let first = places.enumerate().find_map(|(index, place)| Some((index, place?)));
        let after_file = std::mem::take(&mut self.sent);
        let Some((index, place)) = first else {
            if after_file && bufs.iter().map(|buf| buf.len()).sum::<usize>() <= CHUNK_END {
                // Not worth a packet: the next chunk takes it along, or else the kernel sends it within 200 ms (tcp(7)).
                return self.io.inner().poll_send_before(cx, bufs);
            }
            return Pin::new(&mut self.io).poll_write_vectored(cx, bufs);
        };
        if bufs[..index].iter().any(|buf| !buf.is_empty()) {
            return self.io.inner().poll_send_before(cx, &bufs[..index]);
        }
        match ready!(self.io.inner().poll_send(cx, &place)) {
            // A socket, or a file system, that can't: the bytes are in memory too.
            Err(error) if matches!(error.kind(), io::ErrorKind::Unsupported | io::ErrorKind::InvalidInput) => {
                self.sends = false;
                Pin::new(&mut self.io).poll_write_vectored(cx, bufs)
            }
            sent => {
                self.sent = true;
                Poll::Ready(sent)
            }
        }
    }
}

impl<S: Socket> Drop for PacedIo<S> {
    fn drop(&mut self) {
        if self.pace.verdict().is_some()
            && let Err(error) = self.io.inner().reset_on_close()
        {
            tracing::debug!(%error, "a connection that is cut can't be reset");
        }
    }
}

impl<S: Socket> Read for PacedIo<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl<S: Socket> Write for PacedIo<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.io).poll_write(cx, buf);
        self.watch(written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = self.poll_give(cx, bufs);
        self.watch(written)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    /// hyper flushes once it has nothing left to write.
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = ready!(Pin::new(&mut self.io).poll_flush(cx));
        self.pace.accept();
        Poll::Ready(flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

/// A body that is handed over in pieces, each when the one before is with the socket.
pub struct PacedBody {
    body: Body,
    pace: Arc<Pace>,
    rest: Bytes,
    /// How much it has handed over since others had their turn.
    since_turn: usize,
}

impl PacedBody {
    /// A body on a connection.
    pub fn new(body: Body, pace: Arc<Pace>) -> Self {
        Self { body, pace, rest: Bytes::new(), since_turn: 0 }
    }
}

impl HttpBody for PacedBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let room = ready!(self.pace.poll_room(cx));
        if self.since_turn >= TURN {
            self.since_turn = 0;
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        while self.rest.is_empty() {
            match ready!(Pin::new(&mut self.body).poll_frame(cx)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => self.rest = data,
                    Err(trailers) => return Poll::Ready(Some(Ok(trailers))),
                },
                end => return Poll::Ready(end),
            }
        }
        let is_mapped = mapped::locate(&self.rest).is_some();
        let most = if is_mapped { MAPPED_PIECE } else { room };
        let len = most.min(self.rest.len());
        self.since_turn += len;
        let piece = if len == self.rest.len() { std::mem::take(&mut self.rest) } else { self.rest.split_to(len) };
        self.pace.hand_over(len, is_mapped);
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let (inner, rest) = (self.body.size_hint(), self.rest.len() as u64);
        let mut hint = SizeHint::new();
        hint.set_lower(inner.lower() + rest);
        if let Some(upper) = inner.upper() {
            hint.set_upper(upper + rest);
        }
        hint
    }
}
