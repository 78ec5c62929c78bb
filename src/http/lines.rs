//! Answers made of plain lines: batches, and whatever else is made for one caller and kept nowhere.
//!
//! Lines come in pieces of some hundred KiB, the metadata line at the end of the last. Each piece is encoded when the
//! connection asks for it: in zstd as a frame of its own, so that the body is valid however many there are (RFC 8878).

use async_stream::try_stream;
use axum::body::Body;
use axum::http::header::{CACHE_CONTROL, CONTENT_ENCODING, CONTENT_TYPE};
use axum::http::{HeaderMap, HeaderName, HeaderValue};
use bytes::Bytes;
use futures_util::stream::{self, BoxStream};
use futures_util::{FutureExt, StreamExt, TryStreamExt};
use tokio::time::Instant;

use crate::http::body::{BodyError, ByteStream, gzip};
use crate::http::encoding::Encoding;
use crate::model::{SchemaHash, SyncId};
use crate::serve::ServeError;
use crate::snapshot::{Compressor, frame};
use crate::task;
use crate::wire::trailer::Method;

const SYNC_METHOD: HeaderName = HeaderName::from_static("x-sync-method");
const SYNC_ID: HeaderName = HeaderName::from_static("x-sync-id");
const SCHEMA_HASH: HeaderName = HeaderName::from_static("x-schema-hash");
const SERVER_TIMING: HeaderName = HeaderName::from_static("server-timing");

/// Level 1: frames are made anew for every client, on our processors.
const LEVEL: i32 = 1;

/// Pieces up to this many bytes are compressed in place: handing them to another thread would take longer.
const SMALL: usize = 32 << 10;

/// What the head of every answer with rows says.
pub struct Head<'a> {
    /// Where the rows come from.
    pub method: Method,
    /// The answer holds everything up to here.
    pub sync_id: SyncId,
    /// How the rows look.
    pub schema_hash: &'a SchemaHash,
    /// How they are encoded.
    pub encoding: Encoding,
    /// When the request came.
    pub started: Instant,
}

impl Head<'_> {
    /// Writes the headers.
    pub fn write(&self, headers: &mut HeaderMap) {
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/x-ndjson"));
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("private, no-cache"));
        if let Some(name) = self.encoding.name() {
            headers.insert(CONTENT_ENCODING, HeaderValue::from_static(name));
        }
        headers.insert(SYNC_METHOD, HeaderValue::from_static(self.method.as_str()));
        headers.insert(SYNC_ID, HeaderValue::from(self.sync_id.0));
        headers.insert(SCHEMA_HASH, text(self.schema_hash.as_str()));
        let millis = self.started.elapsed().as_secs_f64() * 1000.0;
        headers.insert(SERVER_TIMING, text(&format!("answer;dur={millis:.1}")));
    }
}

/// A header's value made of digits, hex and punctuation.
pub(super) fn text(value: &str) -> HeaderValue {
    HeaderValue::from_str(value).expect("ids, hashes and numbers can stand in a header")
}

/// A body of bytes that are made when they are asked for. One that is there at once, as most answers of a few rows are, is
/// sent with its length, which is one write to the socket; else the end would be another.
pub fn body(mut bytes: ByteStream) -> Body {
    let (first, second) = match bytes.next().now_or_never() {
        None => return Body::from_stream(bytes),
        Some(None) => return Body::empty(),
        Some(Some(first)) => (first, bytes.next().now_or_never()),
    };
    match (first, second) {
        (Ok(whole), Some(None)) => Body::from(whole),
        // Nothing follows an error.
        (first, None | Some(None)) => Body::from_stream(stream::iter([first]).chain(bytes)),
        (first, Some(Some(second))) => Body::from_stream(stream::iter([first, second]).chain(bytes)),
    }
}

/// Encodes pieces of lines. An error ends them and breaks the connection.
pub fn encode(pieces: BoxStream<'static, Result<Bytes, ServeError>>, encoding: Encoding) -> ByteStream {
    match encoding {
        Encoding::Gzip => gzip(framed(pieces, encoding)),
        _ => framed(pieces, encoding),
    }
}

/// The same without gzip, for what is gzipped with all that comes before it.
pub(super) fn framed(pieces: BoxStream<'static, Result<Bytes, ServeError>>, encoding: Encoding) -> ByteStream {
    match encoding {
        Encoding::Zstd => zstd(pieces),
        Encoding::Gzip | Encoding::Identity => pieces.map_err(BodyError::from).boxed(),
    }
}

fn zstd(mut pieces: BoxStream<'static, Result<Bytes, ServeError>>) -> ByteStream {
    Box::pin(try_stream! {
        while let Some(piece) = pieces.next().await {
            let piece = piece?;
            // A compressor for each piece, or each thread: kept with the answer, it would cost a slow client half a MiB.
            let frame = if piece.len() <= SMALL {
                frame::compress_small(&piece)?
            } else {
                task::blocking(move || Compressor::new(LEVEL)?.compress(&piece)).await?
            };
            yield frame.into();
        }
    })
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;
    use crate::http::fake::{broken, lines};

    #[tokio::test]
    async fn every_encoding_gives_the_same_lines_and_no_error_ends_cleanly() {
        let pieces: Vec<Bytes> = [1, 100_000, 500].map(|count| lines(7, count / 40 + 1).into()).to_vec();
        let whole = pieces.concat();
        for encoding in [Encoding::Zstd, Encoding::Gzip, Encoding::Identity] {
            let good = stream::iter(pieces.clone().into_iter().map(Ok)).boxed();
            let sent: Vec<Bytes> = encode(good, encoding).try_collect().await.unwrap();
            let sent = sent.concat();
            let mut decoded = Vec::new();
            match encoding {
                Encoding::Zstd => zstd::stream::copy_decode(&sent[..], &mut decoded).unwrap(),
                Encoding::Gzip => drop(flate2::read::GzDecoder::new(&sent[..]).read_to_end(&mut decoded).unwrap()),
                Encoding::Identity => decoded = sent,
            }
            assert!(decoded == whole, "{encoding:?}");
            let bad = stream::iter([Ok(pieces[0].clone()), Err(broken())]).boxed();
            assert!(encode(bad, encoding).try_collect::<Vec<_>>().await.is_err(), "{encoding:?}");
        }
    }
}
