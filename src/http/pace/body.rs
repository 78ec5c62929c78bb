//! The other end: a body that gives its connection one piece after the other.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, ready};

use axum::body::{Body, Bytes, HttpBody};
use http_body::{Frame, SizeHint};

use crate::http::pace::{Pace, Pieces};

/// How many bytes a connection may be given before others have their turn, the last piece not counted: a socket that takes
/// everything at once would keep its thread from them, and they would wait for their first byte.
const TURN: usize = 256 << 10;

/// A body that is handed over in pieces, each when those before are with the socket. Slices of packs are handed over while they
/// are few and short: what waits for the socket goes to it in one call. Where the length is known, the last piece waits for
/// all before it, so that an answer ends for the service when no more than that is left.
pub struct PacedBody {
    body: Body,
    pace: Arc<Pace>,
    pieces: Pieces,
    rest: Bytes,
    /// Why it breaks off, once what came before is with the socket: else the client would lose that too.
    broken: Option<axum::Error>,
    /// How much it has handed over since others had their turn.
    since_turn: usize,
}

impl PacedBody {
    /// A body of such pieces on a connection.
    pub fn new(body: Body, pieces: Pieces, pace: Arc<Pace>) -> Self {
        pace.pacing.shared.answers.fetch_add(1, Ordering::Relaxed);
        pace.begin_answer(pieces);
        Self { body, pace, pieces, rest: Bytes::new(), broken: None, since_turn: 0 }
    }
}

impl Drop for PacedBody {
    fn drop(&mut self) {
        self.pace.pacing.shared.answers.fetch_sub(1, Ordering::Relaxed);
    }
}

impl HttpBody for PacedBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let handed = ready!(self.pace.poll_room(self.pieces, cx));
        // Not between pieces that are to go together.
        if handed == 0 && self.since_turn >= TURN {
            self.since_turn = 0;
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        while self.rest.is_empty() {
            if self.broken.is_some() {
                ready!(self.pace.poll_taken(cx));
                return Poll::Ready(self.broken.take().map(Err));
            }
            match ready!(Pin::new(&mut self.body).poll_frame(cx)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => self.rest = data,
                    Err(trailers) => return Poll::Ready(Some(Ok(trailers))),
                },
                Some(Err(error)) => self.broken = Some(error),
                None => return Poll::Ready(None),
            }
        }
        let len = self.pace.most().saturating_sub(handed).min(self.rest.len());
        if len == self.rest.len() && self.pieces == Pieces::Slices && self.body.is_end_stream() {
            ready!(self.pace.poll_taken(cx));
        }
        self.since_turn += len;
        let piece = if len == self.rest.len() { std::mem::take(&mut self.rest) } else { self.rest.split_to(len) };
        self.pace.hand_over(len);
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.broken.is_none() && self.body.is_end_stream()
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
