//! The selected part of a published snapshot, read through the pack cache.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::stream::{self, BoxStream, StreamExt};

use crate::model::{Grants, Org};
use crate::serve::{ServeError, SliceLen, Stored};
use crate::snapshot::{Selection, select};
use crate::store::{PackCache, PinnedManifest};

/// Slices of packs that are loaded when their turn comes.
pub struct StoredSnapshot {
    cache: PackCache,
    org: Org,
    manifest: PinnedManifest,
    selection: Selection,
    slices: Vec<SliceLen>,
}

impl StoredSnapshot {
    /// What a caller with these grants gets of the wanted models.
    pub fn new(cache: PackCache, org: Org, manifest: PinnedManifest, grants: &Grants, wanted: &[bool]) -> Self {
        let selection = select(&manifest, grants, |model| wanted.get(model).copied().unwrap_or_default());
        let slices = (selection.slices.iter())
            .map(|slice| SliceLen {
                len: u64::from(slice.bytes.end - slice.bytes.start),
                raw_len: manifest.frames[slice.frames.clone()].iter().map(|frame| u64::from(frame.raw_len)).sum(),
            })
            .collect();
        Self { cache, org, manifest, selection, slices }
    }

    async fn slice(&self, index: usize) -> Result<Bytes, ServeError> {
        let slice = &self.selection.slices[index];
        let pack = self.manifest.packs[slice.pack as usize];
        let pack = self.cache.pack(&self.org, pack).await?;
        Ok(pack.slice(slice.bytes.start as usize..slice.bytes.end as usize))
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
        // One after the other: whoever held a pack while asking for the next could be what others wait for.
        stream::iter(from..self.slices.len())
            .then(move |index| {
                let stored = self.clone();
                async move { stored.slice(index).await }
            })
            .boxed()
    }
}
