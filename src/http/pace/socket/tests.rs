use std::cell::RefCell;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use axum::serve::Listener;
use tokio::io::{AsyncWriteExt, DuplexStream};
use tokio::net::TcpListener;
use tokio::sync::Notify;

use super::*;
use crate::http::fake::{Fake, noise, stored};
use crate::http::pace::{Pacing, WHOLE};
use crate::http::tests::door_on;
use crate::metrics::Metrics;

/// Accepts connections and watches what is written to them.
struct Watching {
    inner: TcpListener,
    watch: Arc<Watch>,
}

struct Watch {
    fake: Arc<Fake>,
    /// How long each slice is.
    slice: usize,
    written: AtomicU64,
    /// The most that was taken from the snapshot and not yet by the kernel.
    held: AtomicU64,
    /// The most slices that were given to the kernel at once.
    together: AtomicUsize,
    stalled: Notify,
}

impl Watch {
    fn new(fake: &Arc<Fake>, slice: usize) -> Arc<Self> {
        fake.taken.store(0, Ordering::SeqCst);
        Arc::new(Self {
            fake: fake.clone(),
            slice,
            written: AtomicU64::new(0),
            held: AtomicU64::new(0),
            together: AtomicUsize::new(0),
            stalled: Notify::new(),
        })
    }

    fn see(&self, result: &Poll<io::Result<usize>>) {
        let taken = (self.fake.taken.load(Ordering::SeqCst) * self.slice) as u64;
        self.held.fetch_max(taken.saturating_sub(self.written.load(Ordering::SeqCst)), Ordering::SeqCst);
        match result {
            Poll::Ready(Ok(count)) => drop(self.written.fetch_add(*count as u64, Ordering::SeqCst)),
            Poll::Ready(Err(_)) => {}
            Poll::Pending => self.stalled.notify_one(),
        }
    }
}

impl Listener for Watching {
    type Io = Watched;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Watched, SocketAddr) {
        let (inner, address) = self.inner.accept().await.unwrap();
        (Watched { inner, watch: self.watch.clone() }, address)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.inner.local_addr()
    }
}

struct Watched {
    inner: TcpStream,
    watch: Arc<Watch>,
}

impl Socket for Watched {
    fn reset_on_close(&self) -> io::Result<()> {
        self.inner.reset_on_close()
    }

    fn keep_unsent(&self, most: u32) {
        self.inner.keep_unsent(most);
    }
}

impl AsyncRead for Watched {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut tokio::io::ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(cx, buf)
    }
}

impl AsyncWrite for Watched {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.inner).poll_write(cx, buf);
        self.watch.see(&result);
        result
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.inner).poll_write_vectored(cx, bufs);
        self.watch.together.fetch_max(bufs.len(), Ordering::SeqCst);
        self.watch.see(&result);
        result
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

#[tokio::test]
async fn a_slow_reader_holds_one_piece() {
    const PIECE: usize = 1 << 20;
    const PIECES: usize = 24;
    let fake = Arc::new(Fake::new(&vec![vec![noise(PIECE)]; PIECES]));
    for accept in ["zstd", "identity"] {
        let watch = Watch::new(&fake, PIECE);
        let inner = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let listener = Watching { inner, watch: watch.clone() };
        let answer = fake.clone();
        let door = door_on(listener, move || stored(&answer), |_| {});
        let request = format!("GET / HTTP/1.1\r\nhost: t\r\nconnection: close\r\naccept-encoding: {accept}\r\n\r\n");
        let mut slow = door.connect(&request).await;
        watch.stalled.notified().await;
        // The kernel's buffers took some; what the client does not take is not read ahead.
        let taken = fake.taken.load(Ordering::SeqCst);
        assert!(taken < PIECES, "{accept}: all {taken} pieces were taken while nobody read");
        let mut sink = tokio::io::sink();
        assert!(tokio::io::copy(&mut slow, &mut sink).await.unwrap() > (PIECES * PIECE) as u64);
        let held = watch.held.load(Ordering::SeqCst);
        assert!(held <= 2 * PIECE as u64, "{accept}: {held} bytes were held at once");
    }
}

#[tokio::test]
async fn short_slices_go_together_and_what_is_made_of_them_does_not() {
    const SLICE: usize = 100 << 10;
    const SLICES: usize = 240;
    let fake = Arc::new(Fake::new(&vec![vec![noise(SLICE)]; SLICES]));
    for (accept, together, most) in [("zstd", 8..=9, WHOLE), ("identity", 1..=2, 2 * SLICE)] {
        let watch = Watch::new(&fake, SLICE);
        let inner = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let answer = fake.clone();
        let door = door_on(Watching { inner, watch: watch.clone() }, move || stored(&answer), |_| {});
        let request = format!("GET / HTTP/1.1\r\nhost: t\r\nconnection: close\r\naccept-encoding: {accept}\r\n\r\n");
        let mut client = door.connect(&request).await;
        assert!(tokio::io::copy(&mut client, &mut tokio::io::sink()).await.unwrap() > (SLICES * SLICE) as u64);
        let at_once = watch.together.load(Ordering::SeqCst);
        // The head goes with the first of them.
        assert!(together.contains(&at_once), "{accept}: {at_once} at once");
        let held = watch.held.load(Ordering::SeqCst);
        assert!(held <= most as u64, "{accept}: {held} bytes were held at once");
    }
}

thread_local! {
    /// What sockets of a test were told to keep.
    static KEPT: RefCell<Vec<u32>> = const { RefCell::new(Vec::new()) };
}

impl Socket for DuplexStream {
    fn reset_on_close(&self) -> io::Result<()> {
        Ok(())
    }

    fn keep_unsent(&self, most: u32) {
        KEPT.with_borrow_mut(|kept| kept.push(most));
    }
}

#[tokio::test(start_paused = true)]
async fn the_kernel_keeps_more_for_whoever_is_fast_until_they_are_slow() {
    const NOTHING: [u32; 0] = [];
    let pacing = Pacing::new(Duration::from_secs(60), Metrics::new());
    let mut io = PacedIo::new(tokio::io::duplex(1).0, pacing.connection());
    let mut takes = async |len: usize, after: Duration| -> Vec<u32> {
        if !after.is_zero() {
            assert!(io.watch(Poll::Pending).is_pending());
            tokio::time::advance(after).await;
        }
        assert!(matches!(io.watch(Poll::Ready(Ok(len))), Poll::Ready(Ok(_))));
        KEPT.with_borrow_mut(std::mem::take)
    };
    let (at_once, soon, late) = (Duration::ZERO, SLOW_AFTER / 2, SLOW_AFTER * 2);
    assert_eq!(takes(FAST - 1, late).await, NOTHING, "too little");
    assert_eq!(takes(1, at_once).await, NOTHING, "too slow");
    assert_eq!(takes(FAST / 2, soon).await, NOTHING);
    assert_eq!(takes(FAST / 2, at_once).await, [UNSENT_FAST]);
    assert_eq!(takes(FAST, soon).await, NOTHING, "it has it already");
    assert_eq!(takes(1, late).await, [UNSENT]);
    assert_eq!(takes(FAST, at_once).await, NOTHING, "it was slow in this time");
    assert_eq!(takes(FAST, at_once).await, [UNSENT_FAST]);
}

#[tokio::test]
async fn little_is_read_at_once_however_much_has_come() {
    let (mut client, server) = tokio::io::duplex(1 << 20);
    let pacing = Pacing::new(Duration::from_secs(60), Metrics::new());
    let mut io = PacedIo::new(server, pacing.connection());
    client.write_all(&vec![7; READ + 5]).await.unwrap();
    for expected in [READ, 5] {
        let mut room = vec![0; 1 << 20];
        let mut read = ReadBuf::new(&mut room);
        std::future::poll_fn(|cx| Pin::new(&mut io).poll_read(cx, read.unfilled())).await.unwrap();
        assert_eq!(read.filled(), vec![7; expected]);
    }
}
