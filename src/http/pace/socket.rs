//! The writing end: a socket that tells its connection's [pace](super) what it took, and is given what lies in files from
//! there.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::rt::TokioIo;
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, Interest};
use tokio::net::TcpStream;

use crate::http::pace::{MAPPED_PIECE, Pace};
use crate::mapped::{self, Place};

/// The line break behind a chunk (RFC 9112, section 7.1).
const CHUNK_END: usize = 2;

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

#[cfg(test)]
mod tests;
