//! The bytes of an answer, in the encoding the client takes.
//!
//! zstd: the stored frames as they are, then the metadata line as a small frame of its own; nothing is decoded.
//! Identity: frames are decoded some 320 KiB at a time ([`TARGET_RAW`]), on blocking threads, and what can't be sent at once is kept for as
//! long as there is [room](crate::http::rests). Gzip is made from that.
//!
//! Sync actions follow the rows. Few of them are read before the head is sent and leave with the metadata line, so that
//! the length of such an answer is known; the rest is read while the client takes it.
//!
//! Everything is pulled: a piece is read, or decoded, when the connection asks for the next one, so an answer holds one
//! piece of its own however slow its client is (slices of packs and spools are shared): 128 KiB of decoded lines, 256 KiB
//! of a batch, or 512 sync actions with their rows, of which there are two. Gzip has its compressor's 300 KiB besides. An error is the last item of the stream and breaks the connection: no body ends
//! before its metadata line and looks whole.

use std::io::Write;
use std::ops::Range;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use async_stream::try_stream;
use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use futures_util::StreamExt;
use futures_util::stream::{self, BoxStream};
use http_body::{Body, Frame, SizeHint};
use tokio::time::{Instant, timeout_at};

use crate::http::encoding::Encoding;
use crate::http::lines::framed;
use crate::http::rests::Rests;
use crate::serve::delta::CatchUp;
use crate::serve::{Facts, Frames, Part, ServeError, SliceLen, Stored};
use crate::snapshot::frame::{self, FrameError, TARGET_RAW};
use crate::task;

/// Sync actions of up to so many bytes are read before the head of an answer is sent.
const READ_AHEAD: usize = 256 << 10;

/// How much of an answer is read, or handed on, at once, in bytes.
const STEP: usize = 128 << 10;

/// The bytes of an answer. Unless it is complete, its last item is an error.
pub type ByteStream = BoxStream<'static, Result<Bytes, BodyError>>;

/// Why a body breaks off.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    /// The rows could not be read to their end.
    #[error(transparent)]
    Serve(#[from] ServeError),
    /// A frame is damaged, or could not be made.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// There are more or fewer bytes than were announced.
    #[error("the rows have another length than was announced")]
    Length,
    /// The dump stopped without saying that it had given all rows.
    #[error("the dump stopped before its end")]
    Unfinished,
    /// Gzip failed; it writes to memory, so it should not.
    #[error("gzip failed")]
    Gzip(#[source] std::io::Error),
    /// The answer took longer than it may.
    #[error("the answer took longer than {0:?}")]
    Deadline(Duration),
}

/// The answer of a published snapshot in zstd or identity: every byte has its place, so lengths are known and any range
/// can be read.
pub struct Measured {
    stored: Arc<dyn Stored>,
    encoding: Encoding,
    trailer: Bytes,
    len: u64,
}

impl Measured {
    /// In zstd or, for anything else, identity. `tail` are the lines that follow the rows, the metadata line last.
    ///
    /// # Errors
    /// When zstd can't make the last frame.
    pub fn new(stored: Arc<dyn Stored>, tail: Vec<u8>, encoding: Encoding) -> Result<Self, FrameError> {
        let trailer: Bytes = match encoding {
            Encoding::Zstd => frame::compress_small(&tail)?.into(),
            Encoding::Gzip | Encoding::Identity => tail.into(),
        };
        let rows: u64 = stored.slices().iter().map(|slice| sent(slice, encoding)).sum();
        Ok(Self { len: rows + trailer.len() as u64, stored, encoding, trailer })
    }

    /// How many bytes it has. Never 0: there is always a metadata line.
    pub fn total(&self) -> u64 {
        self.len
    }

    /// What follows the rows, as it is sent.
    pub fn trailer(&self) -> &[u8] {
        &self.trailer
    }

    /// The bytes of a range that lies within the answer. Slices before it are not read, frames before it not decoded.
    pub fn read(self, range: Range<u64>, rests: Rests) -> ByteStream {
        let Self { stored, encoding, trailer, .. } = self;
        Box::pin(try_stream! {
            let (first, skip) = seek(stored.slices(), encoding, range.start);
            let mut window = Window { skip, left: range.end - range.start };
            let mut slices = stored.clone().read(first);
            for len in &stored.slices()[first..] {
                if window.is_over() {
                    return;
                }
                let slice = slices.next().await.ok_or(BodyError::Length)??;
                if slice.len() as u64 != len.len {
                    Err(BodyError::Length)?;
                }
                if encoding == Encoding::Zstd {
                    yield window.cut(slice);
                    continue;
                }
                let frames = Frames::Held(slice);
                let groups = groups(&frames)?;
                if groups.iter().map(|group| group.raw_len as u64).sum::<u64>() != len.raw_len {
                    Err(BodyError::Length)?;
                }
                for group in groups {
                    if window.is_over() {
                        return;
                    }
                    if window.passes(group.raw_len as u64) {
                        continue;
                    }
                    let mut lines = lines(frames.clone(), group, rests.clone());
                    while let Some(piece) = lines.next().await {
                        let piece = window.cut(piece?);
                        if !piece.is_empty() {
                            yield piece;
                        }
                    }
                }
            }
            if !window.is_over() {
                yield window.cut(trailer);
            }
        })
    }
}

/// How many bytes of an encoded answer a slice takes.
fn sent(slice: &SliceLen, encoding: Encoding) -> u64 {
    if encoding == Encoding::Zstd { slice.len } else { slice.raw_len }
}

/// The slice that holds a byte, and where in it that byte is; behind the last slice for a byte of the metadata line.
fn seek(slices: &[SliceLen], encoding: Encoding, start: u64) -> (usize, u64) {
    let mut skip = start;
    for (index, slice) in slices.iter().enumerate() {
        match skip.checked_sub(sent(slice, encoding)) {
            Some(behind) => skip = behind,
            None => return (index, skip),
        }
    }
    (slices.len(), skip)
}

/// What is left of a range while pieces go by.
struct Window {
    /// Bytes to leave out.
    skip: u64,
    /// Bytes to give after them.
    left: u64,
}

impl Window {
    fn is_over(&self) -> bool {
        self.left == 0
    }

    /// Whether a piece lies wholly before the range; it is behind us then.
    fn passes(&mut self, len: u64) -> bool {
        let behind = self.skip.checked_sub(len);
        self.skip = behind.unwrap_or(self.skip);
        behind.is_some()
    }

    /// The part of a piece that lies in the range.
    fn cut(&mut self, mut piece: Bytes) -> Bytes {
        let fit =
            |count: u64, piece: &Bytes| usize::try_from(count).map_or(piece.len(), |count| count.min(piece.len()));
        let skipped = piece.split_to(fit(self.skip, &piece));
        self.skip -= skipped.len() as u64;
        piece.truncate(fit(self.left, &piece));
        self.left -= piece.len() as u64;
        piece
    }
}

/// The rows of a dump in progress, and what follows them.
pub fn follow(
    mut parts: BoxStream<'static, Result<Part, ServeError>>,
    tail: Tail,
    encoding: Encoding,
    rests: Rests,
) -> ByteStream {
    Box::pin(try_stream! {
        loop {
            match parts.next().await.ok_or(BodyError::Unfinished)?? {
                Part::Frames(frames) if encoding == Encoding::Zstd => {
                    // What is mapped is shared by all who follow: it is handed on as it lies there.
                    if let Some(runs) = frames.mapped() {
                        for run in runs {
                            yield run;
                        }
                        continue;
                    }
                    for start in (0..frames.len()).step_by(STEP) {
                        yield frames.read(start..start + STEP as u64).await.map_err(ServeError::from)?;
                    }
                }
                Part::Frames(frames) => for group in groups(&frames)? {
                    let mut lines = lines(frames.clone(), group, rests.clone());
                    while let Some(piece) = lines.next().await {
                        yield piece?;
                    }
                },
                Part::End(rows) => {
                    let mut bytes = tail.bytes(rows, encoding);
                    while let Some(piece) = bytes.next().await {
                        yield piece?;
                    }
                    return;
                }
            }
        }
    })
}

/// The rows of a published snapshot, and what follows them, where that is too long to be measured.
pub fn unmeasured(stored: Arc<dyn Stored>, tail: Tail, encoding: Encoding, rests: Rests) -> ByteStream {
    let rows = stored.rows().to_vec();
    let frames = stored.read(0).map(|slice| slice.map(|slice| Part::Frames(Frames::Held(slice))));
    follow(Box::pin(frames.chain(stream::once(async { Ok(Part::End(rows)) }))), tail, encoding, rests)
}

/// What follows the rows of an answer: its sync actions and the metadata line.
pub struct Tail {
    facts: Facts,
    /// How many actions there are, if they were asked for.
    count: Option<u64>,
    /// Those that were read already.
    ready: Vec<u8>,
    /// The others.
    rest: Option<CatchUp>,
}

impl Tail {
    /// Reads the first actions, all of them if they are few.
    ///
    /// # Errors
    /// When their rows can't be read.
    pub async fn begin(facts: Facts, actions: Option<CatchUp>) -> Result<Self, ServeError> {
        let count = actions.as_ref().map(|actions| actions.len() as u64);
        let mut tail = Self { facts, count, ready: Vec::new(), rest: actions };
        while let Some(rest) = tail.rest.take_if(|rest| rest.is_empty() || tail.ready.len() <= READ_AHEAD) {
            // Nothing of the others is under way meanwhile: the rows of a whole org may be sent before they are.
            let Some((piece, rest)) = rest.first().await? else { break };
            tail.ready.extend_from_slice(&piece);
            tail.rest = Some(rest);
        }
        Ok(tail)
    }

    /// What is known of the answer.
    pub fn facts(&self) -> &Facts {
        &self.facts
    }

    /// All lines, given how many rows of each model came before; `None` when some actions are still to be read.
    pub fn whole(&self, rows: &[u64]) -> Option<Vec<u8>> {
        let line = self.facts.trailer(rows, self.count);
        self.rest.is_none().then(|| [&*self.ready, &line].concat())
    }

    /// The lines, as they are sent; for gzip they are plain until the stream is gzipped.
    pub fn bytes(self, rows: Vec<u64>, encoding: Encoding) -> ByteStream {
        let Self { facts, count, ready, rest } = self;
        let last = facts.trailer(&rows, count);
        let pieces = match rest {
            None => stream::iter([Ok([ready, last].concat().into())]).boxed(),
            Some(rest) => {
                stream::iter([Ok(ready.into())]).chain(rest.lines()).chain(stream::iter([Ok(last.into())])).boxed()
            }
        };
        framed(pieces, encoding)
    }
}

/// An identity stream, gzipped piece by piece. Level 1: it is made anew for every client, on our processors.
pub fn gzip(mut lines: ByteStream) -> ByteStream {
    Box::pin(try_stream! {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        while let Some(piece) = lines.next().await {
            let piece = piece?;
            let zipped;
            (encoder, zipped) = task::blocking(move || {
                let written = encoder.write_all(&piece);
                let zipped = std::mem::take(encoder.get_mut());
                written.map(|()| (encoder, zipped))
            })
            .await
            .map_err(BodyError::Gzip)?;
            if !zipped.is_empty() {
                yield zipped.into();
            }
        }
        yield encoder.finish().map_err(BodyError::Gzip)?.into();
    })
}

/// Breaks a stream off at a deadline, `limit` after the request came. It is noticed when the client takes the next
/// piece; one that takes nothing at all is the connection's matter.
pub fn until(deadline: Instant, limit: Duration, mut bytes: ByteStream) -> ByteStream {
    Box::pin(try_stream! {
        while let Some(piece) = timeout_at(deadline, bytes.next()).await.map_err(|_| BodyError::Deadline(limit))? {
            // What is there at once is given however late it is: `timeout_at` looks at the clock last.
            if Instant::now() >= deadline {
                Err(BodyError::Deadline(limit))?;
            }
            yield piece?;
        }
    })
}

/// Frames that are decoded together.
struct Group {
    /// Where they are.
    bytes: Range<u64>,
    /// How many bytes they decode to.
    raw_len: usize,
}

/// Puts frames together: as many as decode to [`TARGET_RAW`], at least one.
fn groups(frames: &Frames) -> Result<Vec<Group>, FrameError> {
    let mut groups: Vec<Group> = Vec::new();
    let mut start = 0;
    for (len, raw_len) in frames.lens()? {
        let end = start + len;
        match groups.last_mut().filter(|group| group.raw_len.saturating_add(raw_len) <= TARGET_RAW) {
            Some(group) => *group = Group { bytes: group.bytes.start..end, raw_len: group.raw_len + raw_len },
            None => groups.push(Group { bytes: start..end, raw_len }),
        }
        start = end;
    }
    Ok(groups)
}

/// The lines of some frames, a step at a time. What is left of them meanwhile may be dropped, and is then decoded again.
fn lines(frames: Frames, group: Group, rests: Rests) -> ByteStream {
    Box::pin(try_stream! {
        let read = async || frames.read(group.bytes.clone()).await.map_err(ServeError::from);
        let mut lines = decode(read().await?).await?;
        if lines.len() != group.raw_len {
            Err(BodyError::Length)?;
        }
        for start in (0..group.raw_len).step_by(STEP) {
            let end = group.raw_len.min(start + STEP);
            // A copy: a slice of the lines would keep them all.
            let piece = Bytes::copy_from_slice(&lines[start..end]);
            let rest = (end < group.raw_len).then(|| rests.keep(std::mem::take(&mut lines)));
            let Some(rest) = rest else {
                drop(lines);
                yield piece;
                break;
            };
            yield piece;
            lines = match rest.take() {
                Some(lines) => lines,
                None => decode(read().await?).await?,
            };
        }
    })
}

/// The lines of some frames, decoded beside the runtime.
async fn decode(frames: Bytes) -> Result<Vec<u8>, FrameError> {
    let lines = task::blocking(move || {
        let mut lines = Vec::new();
        for frame in frame::frames(&frames) {
            let (frame, raw_len) = frame?;
            let decoded = frame::decompress(frame, raw_len)?;
            // Most often there is one frame, which need not be copied.
            if lines.is_empty() { lines = decoded } else { lines.extend(decoded) }
        }
        Ok::<_, FrameError>(lines)
    });
    lines.await
}

/// A body whose length is known. It breaks off when its stream gives another number of bytes.
pub struct Exact {
    bytes: ByteStream,
    left: u64,
}

impl Exact {
    /// `len` bytes of a stream.
    pub fn new(bytes: ByteStream, len: u64) -> Self {
        Self { bytes, left: len }
    }
}

impl Body for Exact {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let item = match ready!(self.bytes.poll_next_unpin(cx)) {
            None if self.left > 0 => Err(BodyError::Length),
            None => return Poll::Ready(None),
            Some(Ok(bytes)) => match self.left.checked_sub(bytes.len() as u64) {
                None => Err(BodyError::Length),
                Some(left) => {
                    self.left = left;
                    Ok(Frame::data(bytes))
                }
            },
            Some(Err(error)) => Err(error),
        };
        Poll::Ready(Some(item))
    }

    fn is_end_stream(&self) -> bool {
        self.left == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}

#[cfg(test)]
mod tests;
