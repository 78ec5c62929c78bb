//! The manifest: what a snapshot consists of.
//!
//! Compact on purpose: an org of many small groups has hundreds of thousands of frames. Frames stand in the order of
//! their packs, so offsets need not be written; each number has a column of its own, and the whole is one zstd frame
//! (with its checksum) behind a magic and a version.

use crate::model::GroupSet;
use crate::model::ids::{Epoch, Generation, Org, SchemaHash, SnapshotId, SyncId};
use crate::snapshot::bytes::{Malformed, Reader, put_number, put_sets, put_text};
use crate::snapshot::frame::{self, Compressor, FrameError};
use crate::snapshot::pack::PackId;

const MAGIC: &[u8; 4] = b"HSMF";
const VERSION: u32 = 2;
/// The version before, which has no index: it is read all the same, and replaced by the next full dump.
const WITHOUT_INDEX: u32 = 1;
/// What a manifest may hold once decompressed; 250,000 frames take about 3 MiB.
const MAX_RAW: u64 = 256 << 20;

/// How many models a schema may have. What reads a manifest counts rows by model, so a damaged one must not make that
/// large.
const MAX_MODELS: u32 = 1 << 16;

/// The immutable state of one org at a known watermark.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    /// Its random name.
    pub id: SnapshotId,
    /// Whose state it is.
    pub org: Org,
    /// The generation it is published as.
    pub generation: Generation,
    /// The history `sync_id` belongs to.
    pub epoch: Epoch,
    /// The watermark: everything up to here is in it.
    pub sync_id: SyncId,
    /// How its rows look and who sees them.
    pub schema_hash: SchemaHash,
    /// How many models the schema has.
    pub models: u32,
    /// How many refreshes lie between it and the last full dump.
    pub refreshes: u32,
    /// The shards of its index; none in a snapshot of an older version.
    pub index: Vec<PackEntry>,
    /// The packs its frames stand in.
    pub packs: Vec<PackEntry>,
    /// The group sets its frames carry.
    pub sets: Vec<GroupSet>,
    /// The frames, ordered by pack and offset.
    pub frames: Vec<FrameEntry>,
}

/// One pack of a snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PackEntry {
    /// Its name in the store.
    pub id: PackId,
    /// Bytes of it as stored, table and trailer included.
    pub len: u32,
}

/// One frame of a snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameEntry {
    /// Index of the model in the schema.
    pub model: u32,
    /// Index into the manifest's group sets.
    pub set: u32,
    /// Index into the manifest's packs.
    pub pack: u32,
    /// Where it begins in the pack.
    pub offset: u32,
    /// Bytes of it.
    pub len: u32,
    /// Bytes of its lines.
    pub raw_len: u32,
    /// How many lines.
    pub rows: u32,
}

impl Manifest {
    /// Rows of all models together.
    pub fn rows(&self) -> u64 {
        self.frames.iter().map(|frame| u64::from(frame.rows)).sum()
    }

    /// Everything in the store that belongs to it: its packs, and the shards of its index.
    pub fn stored(&self) -> impl Iterator<Item = PackEntry> + '_ {
        self.packs.iter().chain(&self.index).copied()
    }

    /// Bytes of all lines.
    pub fn raw_len(&self) -> u64 {
        self.frames.iter().map(|frame| u64::from(frame.raw_len)).sum()
    }

    /// Bytes of all frames.
    pub fn len(&self) -> u64 {
        self.frames.iter().map(|frame| u64::from(frame.len)).sum()
    }

    /// Whether it holds no row.
    pub fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    /// Bytes it takes in memory, about; what caches weigh it by.
    pub fn weight(&self) -> usize {
        let sets: usize = self.sets.iter().flat_map(GroupSet::as_slice).map(|group| group.as_str().len() + 32).sum();
        self.frames.len() * size_of::<FrameEntry>() + self.packs.len() * size_of::<PackEntry>() + sets + 256
    }

    /// The manifest as it is stored.
    ///
    /// # Errors
    /// When the schema has more than 65,536 models, or zstd runs out of memory.
    pub fn encode(&self) -> Result<Vec<u8>, ManifestError> {
        if self.models > MAX_MODELS {
            return Err(ManifestError::Malformed(Malformed::Number));
        }
        let mut body = Vec::with_capacity(64 + self.frames.len() * 10);
        body.extend_from_slice(self.id.as_bytes());
        for text in [self.org.as_str(), self.epoch.as_str(), self.schema_hash.as_str()] {
            put_text(&mut body, text);
        }
        for number in [self.generation.0, self.sync_id.0, self.models.into()] {
            put_number(&mut body, number);
        }
        put_number(&mut body, self.refreshes.into());
        put_packs(&mut body, &self.index);
        put_packs(&mut body, &self.packs);
        put_sets(&mut body, self.sets.iter());
        put_number(&mut body, self.frames.len() as u64);
        let columns: [fn(&FrameEntry) -> u32; 7] =
            [|f| f.model, |f| f.set, |f| f.pack, |f| f.offset, |f| f.len, |f| f.raw_len, |f| f.rows];
        for column in columns {
            for frame in &self.frames {
                put_number(&mut body, column(frame).into());
            }
        }
        let mut bytes = Vec::from(MAGIC);
        bytes.extend_from_slice(&VERSION.to_le_bytes());
        bytes.extend_from_slice(&(body.len() as u64).to_le_bytes());
        bytes.extend(Compressor::new(3)?.compress(&body)?);
        Ok(bytes)
    }

    /// Reads a stored manifest. Every index and every range in it is checked, so that nothing that uses one can reach
    /// outside a pack.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn decode(bytes: &[u8]) -> Result<Self, ManifestError> {
        let mut reader = Reader(bytes);
        if reader.array::<4>()? != *MAGIC {
            return Err(ManifestError::Malformed(Malformed::Text));
        }
        let version = u32::from_le_bytes(reader.array()?);
        if version != VERSION && version != WITHOUT_INDEX {
            return Err(ManifestError::Version(version));
        }
        let raw_len = u64::from_le_bytes(reader.array()?);
        if raw_len > MAX_RAW {
            return Err(ManifestError::Malformed(Malformed::Number));
        }
        let body = frame::decompress(reader.0, raw_len as usize)?;
        Self::decode_body(version, Reader(&body))
    }

    fn decode_body(version: u32, mut reader: Reader<'_>) -> Result<Self, ManifestError> {
        let id = SnapshotId::from_bytes(reader.array()?);
        let org = Org::new(reader.text()?);
        let epoch = Epoch::new(reader.text()?);
        let schema_hash = SchemaHash::new(reader.text()?);
        let generation = Generation(reader.number()?);
        let sync_id = SyncId(reader.number()?);
        let models = reader.number()?;
        let (refreshes, index) = match version {
            WITHOUT_INDEX => (0, Vec::new()),
            _ => (reader.number()?, decode_packs(&mut reader)?),
        };
        let packs = decode_packs(&mut reader)?;
        let sets = reader.sets()?;
        let count = reader.count()?;
        let blank = FrameEntry { model: 0, set: 0, pack: 0, offset: 0, len: 0, raw_len: 0, rows: 0 };
        let mut frames = vec![blank; count];
        let columns: [fn(&mut FrameEntry) -> &mut u32; 7] = [
            |f| &mut f.model,
            |f| &mut f.set,
            |f| &mut f.pack,
            |f| &mut f.offset,
            |f| &mut f.len,
            |f| &mut f.raw_len,
            |f| &mut f.rows,
        ];
        for column in columns {
            for frame in &mut frames {
                *column(frame) = reader.number()?;
            }
        }
        let manifest =
            Self { id, org, generation, epoch, sync_id, schema_hash, models, refreshes, index, packs, sets, frames };
        if reader.0.is_empty() && models <= MAX_MODELS && manifest.is_sound() {
            Ok(manifest)
        } else {
            Err(ManifestError::Malformed(Malformed::Number))
        }
    }

    /// Whether every frame lies within its pack, after the one before it, and names a model and a set that exist.
    fn is_sound(&self) -> bool {
        let mut before = (0, 0);
        self.frames.iter().all(|frame| {
            let in_order = (frame.pack, frame.offset) >= before;
            let end = u64::from(frame.offset) + u64::from(frame.len);
            before = (frame.pack, end.min(u64::from(u32::MAX)) as u32);
            in_order
                && frame.model < self.models
                && (frame.set as usize) < self.sets.len()
                && self.packs.get(frame.pack as usize).is_some_and(|pack| end <= u64::from(pack.len))
        })
    }
}

fn put_packs(body: &mut Vec<u8>, packs: &[PackEntry]) {
    put_number(body, packs.len() as u64);
    let mut owner = None;
    for pack in packs {
        // Most packs were made for the same snapshot as the one before: its id is written only where it changes.
        let changed = owner != Some(pack.id.snapshot);
        put_number(body, changed.into());
        if changed {
            body.extend_from_slice(pack.id.snapshot.as_bytes());
            owner = Some(pack.id.snapshot);
        }
        put_number(body, pack.id.number.into());
        put_number(body, pack.len.into());
    }
}

fn decode_packs(reader: &mut Reader<'_>) -> Result<Vec<PackEntry>, Malformed> {
    let count = reader.count()?;
    let mut owner = None;
    (0..count)
        .map(|_| {
            if reader.number::<u8>()? != 0 {
                owner = Some(SnapshotId::from_bytes(reader.array()?));
            }
            let snapshot = owner.ok_or(Malformed::Number)?;
            Ok(PackEntry { id: PackId { snapshot, number: reader.number()? }, len: reader.number()? })
        })
        .collect()
}

/// What is wrong with a manifest.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// It is no manifest, or its parts contradict each other.
    #[error("the manifest is malformed: {0}")]
    Malformed(#[from] Malformed),
    /// Written by another version of the service.
    #[error("the manifest is of format {0}, which this version does not read")]
    Version(u32),
    /// Its compressed body is damaged.
    #[error("the manifest is damaged")]
    Body(#[from] FrameError),
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::model::SyncGroup;

    /// A manifest of `frames` frames over a few packs, models and sets.
    pub(crate) fn sample(frames: u32) -> Manifest {
        let id = SnapshotId::from_bytes([7; 16]);
        let per_pack = 50;
        let packs = (0..frames.div_ceil(per_pack))
            .map(|number| PackEntry { id: PackId { snapshot: id, number }, len: per_pack * 1000 })
            .collect();
        let sets = (0..4).map(|team| GroupSet::new(vec![SyncGroup::of("team", &team.to_string())])).collect();
        let frames = (0..frames)
            .map(|n| FrameEntry {
                model: n % 3,
                set: n / 10 % 4,
                pack: n / per_pack,
                offset: n % per_pack * 1000,
                len: 1000 - n % 2,
                raw_len: 9000 + n % 77,
                rows: 10,
            })
            .collect();
        Manifest {
            id,
            org: Org::new("acme"),
            generation: Generation(3),
            epoch: Epoch::new("e"),
            sync_id: SyncId(99),
            schema_hash: SchemaHash::new("h"),
            models: 3,
            refreshes: 2,
            index: vec![PackEntry { id: PackId { snapshot: id, number: 1 << 30 }, len: 99 }],
            packs,
            sets,
            frames,
        }
    }

    #[test]
    fn it_survives_and_a_quarter_of_a_million_frames_fit() {
        let manifest = sample(250_000);
        let bytes = manifest.encode().unwrap();
        assert_eq!(Manifest::decode(&bytes).unwrap(), manifest);
        assert!(bytes.len() < 4 << 20, "{} bytes", bytes.len());
    }

    #[test]
    fn the_version_before_is_read() {
        let mut manifest = sample(20);
        (manifest.refreshes, manifest.index) = (0, Vec::new());
        let bytes = manifest.encode().unwrap();
        let body =
            frame::decompress(&bytes[16..], u64::from_le_bytes(bytes[8..16].try_into().unwrap()) as usize).unwrap();
        // Without the number of refreshes and that of shards, one byte each, before the packs.
        let head = 16 + 5 + 2 + 2 + 3;
        assert_eq!(&body[head..head + 2], [0, 0]);
        let body = [&body[..head], &body[head + 2..]].concat();
        let mut old = Vec::from(MAGIC);
        old.extend_from_slice(&WITHOUT_INDEX.to_le_bytes());
        old.extend_from_slice(&(body.len() as u64).to_le_bytes());
        old.extend(Compressor::new(3).unwrap().compress(&body).unwrap());
        assert_eq!(Manifest::decode(&old).unwrap(), manifest);
    }

    #[test]
    fn damage_is_an_error() {
        let bytes = sample(20).encode().unwrap();
        for at in 0..bytes.len() {
            assert!(Manifest::decode(&bytes[..at]).is_err(), "cut at {at}");
            let mut bad = bytes.clone();
            bad[at] ^= 0x04;
            if let Ok(decoded) = Manifest::decode(&bad) {
                assert_eq!(decoded, sample(20), "flip at {at}");
            }
        }
    }

    /// Found by fuzzing: 36 bytes that made whoever counted rows by model take gigabytes.
    #[test]
    fn a_number_of_models_that_nobody_has_is_refused() {
        let body = b"\x7f\0\0\0\0\xff\xff\xff\0\xff\xff\xff\xff\xff\xff\xff\xff\0\0\0\xff\xff\xff\x7f\xff\xff\xff\xff\0\xff\xff\xff\xff\x08\0\0\0";
        assert!(Manifest::decode_body(WITHOUT_INDEX, Reader(&body[1..])).is_err());
        let mut manifest = sample(10);
        manifest.models = MAX_MODELS + 1;
        assert!(manifest.encode().is_err());
    }

    #[test]
    fn frames_that_reach_outside_are_refused() {
        let spoil: [fn(&mut FrameEntry); 5] =
            [|f| f.model = 3, |f| f.set = 4, |f| f.pack = 9, |f| f.len = 60_000, |f| f.offset = u32::MAX];
        for spoil in spoil {
            let mut manifest = sample(10);
            spoil(&mut manifest.frames[4]);
            assert!(Manifest::decode(&manifest.encode().unwrap()).is_err());
        }
    }
}
