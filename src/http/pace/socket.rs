//! The writing end: a socket that tells its connection's [pace](super) what it took.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::rt::TokioIo;
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

use crate::http::pace::Pace;

/// What clients are connected by.
pub trait Socket: AsyncRead + AsyncWrite + Unpin + Send + 'static {
    /// Makes closing it reset the connection: else the kernel would keep what the client did not take for minutes.
    ///
    /// # Errors
    /// The kernel's.
    fn reset_on_close(&self) -> io::Result<()>;
}

impl Socket for TcpStream {
    fn reset_on_close(&self) -> io::Result<()> {
        SockRef::from(self).set_linger(Some(Duration::ZERO))
    }
}

/// A socket that tells what it took. It is reset when its client was cut.
pub struct PacedIo<S: Socket> {
    io: TokioIo<S>,
    pace: Arc<Pace>,
}

impl<S: Socket> PacedIo<S> {
    /// A socket and the pace of its connection.
    pub fn new(io: S, pace: Arc<Pace>) -> Self {
        Self { io: TokioIo::new(io), pace }
    }

    fn watch(&self, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        match &written {
            Poll::Pending => self.pace.block(),
            Poll::Ready(Ok(len)) => self.pace.progress(*len),
            Poll::Ready(Err(_)) => {}
        }
        written
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
