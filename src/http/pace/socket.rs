//! The writing end: a socket that tells its connection's [pace](super) what it took.

use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use hyper::rt::{Read, ReadBuf, ReadBufCursor, Write};
use hyper_util::rt::TokioIo;
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::Instant;

use crate::http::pace::{FAST, Pace, SLOW_AFTER, UNSENT, UNSENT_FAST};

/// What clients are connected by.
pub trait Socket: AsyncRead + AsyncWrite + Unpin + Send + 'static {
    /// Makes closing it reset the connection: else the kernel would keep what the client did not take for minutes.
    ///
    /// # Errors
    /// The kernel's.
    fn reset_on_close(&self) -> io::Result<()>;

    /// Bounds how much the kernel keeps of what it has not sent yet, in bytes. Where that can't be, it stays as it is.
    fn keep_unsent(&self, most: u32);
}

impl Socket for TcpStream {
    fn keep_unsent(&self, most: u32) {
        if let Err(error) = SockRef::from(self).set_tcp_notsent_lowat(most) {
            tracing::debug!(%error, "a connection keeps the kernel's own bound of what is not sent yet");
        }
    }

    fn reset_on_close(&self) -> io::Result<()> {
        SockRef::from(self).set_linger(Some(Duration::ZERO))
    }
}

/// A socket that tells what it took. It is reset when its client was cut.
pub struct PacedIo<S: Socket> {
    io: TokioIo<S>,
    pace: Arc<Pace>,
    /// Since when its speed is measured, and how much it has taken since then.
    since: Instant,
    taken: usize,
    is_fast: bool,
}

impl<S: Socket> PacedIo<S> {
    /// A socket and the pace of its connection.
    pub fn new(io: S, pace: Arc<Pace>) -> Self {
        Self { io: TokioIo::new(io), pace, since: Instant::now(), taken: 0, is_fast: false }
    }

    fn watch(&mut self, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        match &written {
            Poll::Pending => self.pace.block(),
            Poll::Ready(Ok(len)) => {
                let was_slow = self.pace.progress(*len);
                self.keep_pace(*len, was_slow);
            }
            Poll::Ready(Err(_)) => {}
        }
        written
    }

    /// Lets the kernel keep more for a client that is fast, and less again once it was slow.
    fn keep_pace(&mut self, len: usize, was_slow: bool) {
        self.taken += len;
        if self.is_fast && was_slow {
            self.is_fast = false;
            self.io.inner().keep_unsent(UNSENT);
        }
        if self.taken >= FAST {
            if !self.is_fast && self.since.elapsed() < SLOW_AFTER {
                self.is_fast = true;
                self.io.inner().keep_unsent(UNSENT_FAST);
            }
            (self.since, self.taken) = (Instant::now(), 0);
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

/// How much is read at once. hyper makes its buffer larger while reads fill it, so this keeps it small however much is sent.
const READ: usize = 16 << 10;

impl<S: Socket> Read for PacedIo<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, mut buf: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        let mut bytes = [const { MaybeUninit::uninit() }; READ];
        let room = READ.min(buf.remaining());
        let mut read = ReadBuf::uninit(&mut bytes[..room]);
        ready!(Pin::new(&mut self.io).poll_read(cx, read.unfilled()))?;
        buf.put_slice(read.filled());
        Poll::Ready(Ok(()))
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
        let written = Pin::new(&mut self.io).poll_write_vectored(cx, bufs);
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
