//! One zstd frame of whole lines.
//!
//! Frames go to clients as they are stored: a body of several frames is one valid zstd body (RFC 8878, section 3: a
//! decoder handles concatenated frames). Each carries its content size, so that a client or a proxy can allocate
//! once, and the content checksum, so that damage is found by whoever decodes it. Browsers refuse windows beyond
//! 8 MiB (RFC 9659); levels up to 19 stay within that.

use std::cell::RefCell;

use memchr::memchr;
use zstd::bulk;
use zstd::zstd_safe::{self, CParameter};

/// How many raw bytes a frame is meant to hold. A single longer line makes a longer frame.
///
/// It is what a refresh writes anew for one changed row. Of the demonstration's comments and issues frames of 1 MiB take 4 %
/// less, those of 512 KiB 2 %; at 256 KiB zstd turns to other parameters, and frames take 5 % more.
pub const TARGET_RAW: usize = 320 << 10;

/// The highest compression level whose window every browser accepts.
pub const MAX_LEVEL: i32 = 19;

/// The level that is tuned for rows as lines: the default.
const FOR_ROWS: i32 = 3;

/// How: what repeats in rows, ids, times and names of fields, is longer than the five bytes that zstd looks for, and tables a
/// half as large stay in a core's cache. A sixth faster; the demonstration's rows take 1 % less by it, prose 2 % more.
const ROWS: [CParameter; 3] = [CParameter::MinMatch(6), CParameter::HashLog(16), CParameter::ChainLog(15)];

/// Compresses frame after frame, keeping its working memory (1.3 MB at level 3, 0.9 MB where it is tuned for rows).
pub struct Compressor(bulk::Compressor<'static>);

impl Compressor {
    /// One for this level, brought into 1 to [`MAX_LEVEL`].
    ///
    /// # Errors
    /// When zstd can't allocate its context.
    pub fn new(level: i32) -> Result<Self, FrameError> {
        let mut inner = bulk::Compressor::new(level.clamp(1, MAX_LEVEL)).map_err(FrameError::Compress)?;
        inner.set_parameter(CParameter::ChecksumFlag(true)).map_err(FrameError::Compress)?;
        Ok(Self(inner))
    }

    /// One for frames of rows: at level 3, the default, with parameters of their own.
    ///
    /// # Errors
    /// Those of [`Self::new`].
    pub fn for_rows(level: i32) -> Result<Self, FrameError> {
        let mut compressor = Self::new(level)?;
        let parameters: &[CParameter] = if level == FOR_ROWS { &ROWS } else { &[] };
        for parameter in parameters {
            compressor.0.set_parameter(*parameter).map_err(FrameError::Compress)?;
        }
        Ok(compressor)
    }

    /// One frame of these lines.
    ///
    /// # Errors
    /// When zstd runs out of memory.
    pub fn compress(&mut self, lines: &[u8]) -> Result<Vec<u8>, FrameError> {
        self.0.compress(lines).map_err(FrameError::Compress)
    }
}

thread_local! {
    /// The compressor of [`compress_small`].
    static SMALL: RefCell<Option<Compressor>> = const { RefCell::new(None) };
}

/// One frame of a few lines, at level 1, which is made for one client. Every thread that calls this keeps a compressor,
/// some hundred KiB: making one would cost more than the frame. Meant for the few threads that serve, and not for those
/// that may block.
///
/// # Errors
/// When zstd runs out of memory.
pub fn compress_small(lines: &[u8]) -> Result<Vec<u8>, FrameError> {
    SMALL.with_borrow_mut(|kept| {
        let compressor = match kept {
            Some(compressor) => compressor,
            None => kept.insert(Compressor::new(1)?),
        };
        compressor.compress(lines)
    })
}

/// Decodes one frame that is known to hold `raw_len` bytes; its checksum is verified.
///
/// # Errors
/// When the bytes are not exactly one whole frame of that many bytes.
pub fn decompress(frame: &[u8], raw_len: usize) -> Result<Vec<u8>, FrameError> {
    // The length comes from a checked manifest, but the frame's own header is asked first: a lie in either must not
    // make a large allocation.
    match zstd_safe::get_frame_content_size(frame) {
        Ok(Some(size)) if size == raw_len as u64 => {}
        _ => return Err(FrameError::Length),
    }
    let lines = bulk::decompress(frame, raw_len).map_err(FrameError::Damaged)?;
    if lines.len() == raw_len { Ok(lines) } else { Err(FrameError::Length) }
}

/// The lines of a frame, each with its end.
pub fn lines(raw: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = raw;
    std::iter::from_fn(move || {
        let len = memchr(b'\n', rest).map_or(rest.len(), |end| end + 1);
        let (line, after) = rest.split_at(len);
        rest = after;
        (!line.is_empty()).then_some(line)
    })
}

/// Cuts a slice of whole frames into its frames, each with the bytes it decodes to by its own header.
///
/// # Errors
/// An item is an error when the rest is no whole frame; nothing comes after it.
pub fn frames(slice: &[u8]) -> impl Iterator<Item = Result<(&[u8], usize), FrameError>> {
    let mut rest = slice;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let cut = zstd_safe::find_frame_compressed_size(rest).ok().and_then(|len| rest.split_at_checked(len));
        let raw_len = zstd_safe::get_frame_content_size(rest).ok().flatten().and_then(|len| usize::try_from(len).ok());
        let (Some((frame, after)), Some(raw_len)) = (cut, raw_len) else {
            rest = &[];
            return Some(Err(FrameError::Length));
        };
        rest = after;
        Some(Ok((frame, raw_len)))
    })
}

/// What is wrong with a frame.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// zstd refused to compress.
    #[error("a frame can't be compressed")]
    Compress(#[source] std::io::Error),
    /// The bytes are no whole zstd frame, or its checksum does not hold.
    #[error("a frame is damaged")]
    Damaged(#[source] std::io::Error),
    /// It holds another number of bytes than is written down for it.
    #[error("a frame has another length than its entry says")]
    Length,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slice_falls_apart_into_its_frames() {
        let mut compressor = Compressor::new(1).unwrap();
        let mut slice = compressor.compress(b"one\n").unwrap();
        slice.extend(compressor.compress(b"second\n").unwrap());
        let lines: Vec<_> =
            frames(&slice).map(|frame| frame.and_then(|(bytes, len)| decompress(bytes, len)).unwrap()).collect();
        assert_eq!(lines, [b"one\n".to_vec(), b"second\n".to_vec()]);
        let cut: Vec<_> = frames(&slice[..slice.len() - 1]).collect();
        assert!(cut.len() == 2 && cut[1].is_err());
    }

    #[test]
    fn every_flipped_byte_is_found() {
        let lines = b"{\"__class\":\"Issue\",\"id\":1}\n".repeat(40);
        let frame = Compressor::new(3).unwrap().compress(&lines).unwrap();
        assert_eq!(decompress(&frame, lines.len()).unwrap(), lines);
        assert!(decompress(&frame, lines.len() - 1).is_err());
        for at in 0..frame.len() {
            assert!(decompress(&frame[..at], lines.len()).is_err(), "cut at {at}");
            let mut bad = frame.clone();
            bad[at] ^= 0x10;
            // A reserved header bit may be ignored by the decoder; what may not happen is other lines.
            if let Ok(decoded) = decompress(&bad, lines.len()) {
                assert_eq!(decoded, lines, "flip at {at}");
            }
        }
    }
}
