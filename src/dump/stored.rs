//! What the manifest will say, collected while packs are stored. Pure.

use std::collections::HashMap;

use bytes::Bytes;

use crate::dump::live::{LiveDump, LiveFrame, Opened};
use crate::model::{Generation, GroupSet, SnapshotId};
use crate::snapshot::index::{PackFilters, ShardBuilder};
use crate::snapshot::{FrameEntry, Manifest, PackEntry, PackId};
use crate::source::SetId;

/// The number of a snapshot's first shard; packs are counted from 0.
const FIRST_SHARD: u32 = 1 << 30;

/// The packs of a snapshot so far. Memory: the manifest's, and one shard of the index.
#[derive(Default)]
pub(super) struct StoredPacks {
    /// Whether others are told.
    pub declared: bool,
    pub packs: Vec<PackEntry>,
    /// Shards that are stored.
    pub index: Vec<PackEntry>,
    /// Refreshes since the last full dump, this one included.
    pub refreshes: u32,
    /// Bytes put in the store.
    pub written: u64,
    /// The shard that is being filled.
    shard: ShardBuilder,
    /// How many shards were made.
    shards: u32,
    sets: Vec<GroupSet>,
    set_index: HashMap<SetId, u32>,
    frames: Vec<FrameEntry>,
}

impl StoredPacks {
    /// None yet. `declared`: whether others are told; `refreshes`: how many lie between the last full dump and this.
    pub fn new(declared: bool, refreshes: u32) -> Self {
        Self { declared, refreshes, ..Self::default() }
    }

    /// A pack of frames that stand one after the other.
    pub fn add(&mut self, pack: PackEntry, frames: &[LiveFrame], set: impl Fn(SetId) -> GroupSet) {
        let mut offset = 0;
        let placed: Vec<_> = (frames.iter())
            .map(|frame| {
                let LiveFrame { model, len, raw_len, rows, .. } = *frame;
                let entry = FrameEntry { model, set: 0, pack: 0, offset, len, raw_len, rows };
                offset += len;
                (entry, frame.set)
            })
            .collect();
        self.add_placed(pack, placed, set);
    }

    /// A pack of which these frames are used, each with its set.
    pub fn add_placed(
        &mut self,
        pack: PackEntry,
        frames: impl IntoIterator<Item = (FrameEntry, SetId)>,
        set: impl Fn(SetId) -> GroupSet,
    ) {
        let pack_index = self.packs.len() as u32;
        self.packs.push(pack);
        for (frame, set_id) in frames {
            let sets = &mut self.sets;
            let set = *self.set_index.entry(set_id).or_insert_with(|| {
                sets.push(set(set_id));
                sets.len() as u32 - 1
            });
            self.frames.push(FrameEntry { set, pack: pack_index, ..frame });
        }
    }

    /// Puts the filters of a new pack's frames into the index.
    pub fn note_filters(&mut self, pack: PackId, frames: &[LiveFrame], filters: &[Vec<u8>]) {
        let mut offset = 0;
        let placed: Vec<_> = (frames.iter().zip(filters))
            .map(|(frame, filter)| {
                let at = offset;
                offset += frame.len;
                (at, filter.as_slice())
            })
            .collect();
        self.shard.push(pack, placed.into_iter());
    }

    /// Takes the filters of a pack over from an earlier index.
    pub fn keep_filters(&mut self, filters: &PackFilters) {
        self.shard.push(filters.pack, filters.frames.iter().map(|(offset, filter)| (*offset, &filter[..])));
    }

    /// The shard being filled, if it holds so many bytes.
    pub fn take_shard(&mut self, snapshot: SnapshotId, from: usize) -> Option<(PackId, Bytes)> {
        if self.shard.len() < from {
            return None;
        }
        let id = PackId { snapshot, number: FIRST_SHARD + self.shards };
        self.shards += 1;
        Some((id, std::mem::take(&mut self.shard).finish()))
    }

    pub fn manifest(self, live: &LiveDump, opened: &Opened, generation: Generation) -> Manifest {
        let models = opened.schema.models.len();
        Manifest {
            id: live.id(),
            org: live.slot().org.clone(),
            generation,
            epoch: opened.watermark.epoch.clone(),
            sync_id: opened.watermark.sync_id,
            schema_hash: opened.schema.hash.clone(),
            models: u32::try_from(models).expect("a catalog has fewer than 2^32 models"),
            refreshes: self.refreshes,
            index: self.index,
            packs: self.packs,
            sets: self.sets,
            frames: self.frames,
        }
    }
}
