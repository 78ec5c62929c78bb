//! The selected part of a published snapshot, read through the pack cache.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::stream::{self, BoxStream, StreamExt};

use crate::dump::Dumps;
use crate::metrics::Counter;
use crate::model::Grants;
use crate::serve::{ServeError, SliceLen, Stored};
use crate::snapshot::{PackEntry, Selection, select};
use crate::store::{PackCache, PinnedManifest, PinnedPack, Slot, StoreError};

/// How many bytes of packs are loaded before their turn, while an answer comes from the store. Enough for a store that takes
/// a few milliseconds a pack; more would only wait longer in the cache.
const AHEAD: u32 = 8 << 20;

/// Slices of packs that are loaded when their turn comes.
pub struct StoredSnapshot {
    cache: PackCache,
    dumps: Dumps,
    slot: Slot,
    manifest: PinnedManifest,
    selection: Selection,
    slices: Vec<SliceLen>,
    /// Counts the lines that were read.
    read: Counter,
    /// Packs that may not be had again.
    held: Vec<PinnedPack>,
}

impl StoredSnapshot {
    /// What a caller with these grants gets of the wanted models. A snapshot that turns out to be unreadable is put
    /// aside by `dumps`.
    pub fn new(
        cache: PackCache,
        dumps: Dumps,
        slot: Slot,
        manifest: PinnedManifest,
        grants: &Grants,
        wanted: &[bool],
        read: Counter,
    ) -> Self {
        let selection = select(&manifest, grants, |model| wanted.get(model).copied().unwrap_or_default());
        let slices = (selection.slices.iter())
            .map(|slice| SliceLen {
                len: u64::from(slice.bytes.end - slice.bytes.start),
                raw_len: manifest.frames[slice.frames.clone()].iter().map(|frame| u64::from(frame.raw_len)).sum(),
            })
            .collect();
        Self { cache, dumps, slot, manifest, selection, slices, read, held: Vec::new() }
    }

    /// Holds every pack it needs, if all are in memory, for as long as it lives: then it can be read without the store.
    pub fn hold(&mut self) -> bool {
        let mut needed: Vec<u32> = self.selection.slices.iter().map(|slice| slice.pack).collect();
        needed.dedup();
        let held = |pack: u32| self.cache.held_pack(&self.slot.org, self.manifest.packs[pack as usize].id);
        match needed.into_iter().map(held).collect() {
            Some(held) => {
                self.held = held;
                true
            }
            None => false,
        }
    }

    /// Whether the pack of a slice is in memory.
    fn is_held(&self, index: usize) -> bool {
        let pack = self.manifest.packs[self.selection.slices[index].pack as usize];
        self.cache.has_pack(&self.slot.org, pack.id)
    }

    /// Begins to load the pack of a slice and those behind it, as far as [`AHEAD`] goes.
    fn load_behind(&self, index: usize) {
        let (mut last, mut behind) = (None, 0);
        for slice in &self.selection.slices[index..] {
            if last == Some(slice.pack) {
                continue;
            }
            let entry = self.manifest.packs[slice.pack as usize];
            behind += if last.is_some() { entry.len } else { 0 };
            if behind > AHEAD {
                break;
            }
            last = Some(slice.pack);
            self.cache.ahead(&self.slot.org, entry);
        }
    }

    async fn slice(&self, index: usize) -> Result<Bytes, ServeError> {
        let slice = &self.selection.slices[index];
        let entry = self.manifest.packs[slice.pack as usize];
        match self.cache.pack(&self.slot.org, entry).await {
            Ok(pack) => {
                self.read.inc_by(self.slices[index].raw_len);
                Ok(pack.slice(slice.bytes.start as usize..slice.bytes.end as usize))
            }
            Err(error) => {
                if error.is_lasting() {
                    self.put_aside(entry, &error);
                }
                Err(error.into())
            }
        }
    }

    /// This answer breaks; the next one is to find another snapshot.
    fn put_aside(&self, entry: PackEntry, error: &StoreError) {
        tracing::warn!(org = %self.slot.org, snapshot = %self.manifest.id, pack = %entry.id, %error, "an answer broke");
        let (cache, org) = (self.cache.clone(), self.slot.org.clone());
        let again = async move { cache.pack(&org, entry).await.map(|_| ()) };
        self.dumps.put_aside(self.slot.clone(), self.manifest.id, again);
    }
}

impl Stored for StoredSnapshot {
    fn slices(&self) -> &[SliceLen] {
        &self.slices
    }

    fn rows(&self) -> &[u64] {
        &self.selection.rows
    }

    fn read(self: Arc<Self>, from: usize) -> BoxStream<'static, Result<Bytes, ServeError>> {
        // One after the other: whoever held a pack while asking for the next could be what others wait for. Once one has to
        // come from the store, those behind it are on their way before their turn, and held by nobody.
        let mut is_cold = false;
        stream::iter(from..self.slices.len())
            .then(move |index| {
                let stored = self.clone();
                is_cold = is_cold || !stored.is_held(index);
                let ahead = is_cold;
                async move {
                    if ahead {
                        stored.load_behind(index);
                    }
                    stored.slice(index).await
                }
            })
            .boxed()
    }
}
