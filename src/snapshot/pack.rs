//! A pack: frames one after the other, a table of them, and a trailer.
//!
//! ```text
//! frame | frame | … | table | table length (u32) | version (u32) | xxh3-64 of all before (u64) | "HSPK"
//! ```
//! Integers of the trailer are little-endian. The frames come first, so that adjacent ones leave as one slice. The
//! table makes a pack readable without its manifest: it names each frame's model (an index into the schema of the
//! snapshot), group set, lengths and rows. The checksum covers everything, so a pack is verified once, when it is
//! loaded, at memory speed, and not again for each reader.

use bytes::Bytes;
use xxhash_rust::xxh3::xxh3_64;

use crate::model::GroupSet;
use crate::model::ids::SnapshotId;
use crate::snapshot::bytes::{Malformed, Reader, put_number, put_sets};

/// How many bytes of frames a pack is meant to hold.
pub const TARGET_LEN: usize = 4 << 20;

const MAGIC: &[u8; 4] = b"HSPK";
const VERSION: u32 = 1;
const TRAILER_LEN: usize = 4 + 4 + 8 + 4;

/// Bytes of a pack besides its frames and what its table says of each, about.
pub const FRAMING: u64 = TRAILER_LEN as u64 + 4;

/// Bytes that a frame takes in a pack's table, about.
pub fn table_len(len: u32, raw_len: u32, rows: u32) -> u64 {
    // Model and set take a byte each, or two.
    2 + [len, raw_len, rows].map(|number| u64::from(32 - number.leading_zeros()).div_ceil(7).max(1)).iter().sum::<u64>()
}

/// Bytes that a set takes in a pack's table, about.
pub fn set_len(set: &GroupSet) -> u64 {
    1 + set.as_slice().iter().map(|group| group.as_str().len() as u64 + 1).sum::<u64>()
}

/// Names a pack: the snapshot it was first written for and its number there. A later snapshot may use it again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PackId {
    /// The snapshot it was made for.
    pub snapshot: SnapshotId,
    /// Counted from 0 within that snapshot.
    pub number: u32,
}

impl std::fmt::Display for PackId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.snapshot, self.number)
    }
}

/// One frame of a pack's table. Frames stand in the order of the table, without gaps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PackedFrame {
    /// Index of the model in the schema.
    pub model: u32,
    /// Index into the table's group sets.
    pub set: u32,
    /// Bytes of the frame.
    pub len: u32,
    /// Bytes of its lines.
    pub raw_len: u32,
    /// How many lines.
    pub rows: u32,
}

/// Collects frames into one pack. Memory: the frames.
#[derive(Debug, Default)]
pub struct PackBuilder {
    bytes: Vec<u8>,
    sets: Vec<GroupSet>,
    frames: Vec<PackedFrame>,
}

impl PackBuilder {
    /// None yet, and room for so many bytes of frames and for a table of the usual size.
    pub fn with_capacity(frames: usize) -> Self {
        Self { bytes: Vec::with_capacity(frames + frames / 128), ..Self::default() }
    }

    /// Appends a frame. Its offset in the pack is the length before.
    ///
    /// # Panics
    /// When the pack would exceed 4 GiB, far above what any store takes.
    pub fn push(&mut self, model: u32, set: &GroupSet, frame: &[u8], raw_len: u32, rows: u32) {
        // Packs keep one group set together, so the set is nearly always the last one.
        let set = match self.sets.iter().rposition(|known| known == set) {
            Some(index) => index,
            None => {
                self.sets.push(set.clone());
                self.sets.len() - 1
            }
        };
        self.bytes.extend_from_slice(frame);
        assert!(u32::try_from(self.bytes.len()).is_ok(), "packs are cut long before 4 GiB");
        self.frames.push(PackedFrame { model, set: set as u32, len: frame.len() as u32, raw_len, rows });
    }

    /// Bytes of frames so far.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Whether there is no frame yet.
    pub fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    /// The pack, as it is stored.
    pub fn finish(self) -> Bytes {
        let Self { mut bytes, sets, frames } = self;
        let table_start = bytes.len();
        put_sets(&mut bytes, sets.iter());
        put_number(&mut bytes, frames.len() as u64);
        for frame in &frames {
            for number in [frame.model, frame.set, frame.len, frame.raw_len, frame.rows] {
                put_number(&mut bytes, number.into());
            }
        }
        let table_len = (bytes.len() - table_start) as u32;
        bytes.extend_from_slice(&table_len.to_le_bytes());
        bytes.extend_from_slice(&VERSION.to_le_bytes());
        let checksum = xxh3_64(&bytes);
        bytes.extend_from_slice(&checksum.to_le_bytes());
        bytes.extend_from_slice(MAGIC);
        bytes.into()
    }
}

/// A pack's own table.
#[derive(Debug, PartialEq, Eq)]
pub struct PackTable {
    /// The group sets its frames carry.
    pub sets: Vec<GroupSet>,
    /// The frames, in the order they stand.
    pub frames: Vec<PackedFrame>,
}

/// Checks that these bytes are a whole, undamaged pack; says how many of them are frames.
///
/// # Errors
/// What is wrong with them.
pub fn verify(pack: &[u8]) -> Result<usize, PackError> {
    let split = pack.len().checked_sub(TRAILER_LEN).ok_or(PackError::Truncated)?;
    let mut trailer = Reader(&pack[split..]);
    let table_len = u32::from_le_bytes(trailer.array()?) as usize;
    let version = u32::from_le_bytes(trailer.array()?);
    let checksum = u64::from_le_bytes(trailer.array()?);
    if trailer.0 != MAGIC {
        return Err(PackError::Truncated);
    }
    if xxh3_64(&pack[..split + 8]) != checksum {
        return Err(PackError::Checksum);
    }
    if version != VERSION {
        return Err(PackError::Version(version));
    }
    split.checked_sub(table_len).ok_or(PackError::Truncated)
}

/// Verifies a pack and reads its table.
///
/// # Errors
/// What is wrong with it.
pub fn table(pack: &[u8]) -> Result<PackTable, PackError> {
    let frames_len = verify(pack)?;
    let mut reader = Reader(&pack[frames_len..pack.len() - TRAILER_LEN]);
    let sets = reader.sets()?;
    let count = reader.count()?;
    let mut frames = Vec::with_capacity(count);
    let mut offset = 0usize;
    for _ in 0..count {
        let frame = PackedFrame {
            model: reader.number()?,
            set: reader.number()?,
            len: reader.number()?,
            raw_len: reader.number()?,
            rows: reader.number()?,
        };
        offset += frame.len as usize;
        if frame.set as usize >= sets.len() {
            return Err(PackError::Table(Malformed::Number));
        }
        frames.push(frame);
    }
    if offset != frames_len || !reader.0.is_empty() {
        return Err(PackError::Table(Malformed::Number));
    }
    Ok(PackTable { sets, frames })
}

/// What is wrong with a pack.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PackError {
    /// It is not a pack, or a part of one.
    #[error("the pack is cut off or not a pack")]
    Truncated,
    /// A byte is not what was written.
    #[error("the pack's checksum does not hold")]
    Checksum,
    /// Written by another version of the service.
    #[error("the pack is of format {0}, which this version does not read")]
    Version(u32),
    /// Its table makes no sense, though the checksum holds.
    #[error("the pack's table is malformed: {0}")]
    Table(Malformed),
}

impl From<Malformed> for PackError {
    fn from(malformed: Malformed) -> Self {
        Self::Table(malformed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::SyncGroup;

    fn pack() -> (Bytes, GroupSet, GroupSet) {
        let team = GroupSet::new(vec![SyncGroup::of("team", "1")]);
        let org = GroupSet::new(vec![SyncGroup::of("org", "o")]);
        let mut builder = PackBuilder::default();
        builder.push(0, &team, b"frame one", 100, 2);
        builder.push(1, &team, b"frame two", 120, 3);
        builder.push(0, &org, b"three", 7, 1);
        (builder.finish(), team, org)
    }

    #[test]
    fn the_table_survives() {
        let (bytes, team, org) = pack();
        let table = table(&bytes).unwrap();
        assert_eq!(table.sets, [team, org]);
        assert_eq!(table.frames[1], PackedFrame { model: 1, set: 0, len: 9, raw_len: 120, rows: 3 });
        assert_eq!(&bytes[..verify(&bytes).unwrap()], b"frame oneframe twothree");
    }

    #[test]
    fn every_flip_and_every_cut_is_found() {
        let (bytes, ..) = pack();
        for at in 0..bytes.len() {
            assert!(verify(&bytes[..at]).is_err(), "cut at {at}");
            let mut bad = bytes.to_vec();
            bad[at] ^= 1;
            assert!(verify(&bad).is_err(), "flip at {at}");
        }
    }
}
