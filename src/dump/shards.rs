//! The index of the snapshot that is refreshed, shard by shard.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use crate::dump::build::Builder;
use crate::dump::course::Full;
use crate::dump::refresh::RefreshError;
use crate::model::Org;
use crate::snapshot::index::{self, IndexError, PackFilters};
use crate::snapshot::{Manifest, PackEntry, PackId};
use crate::store::StoreError;
use crate::task;

/// Shards in memory at a time. Packs are mostly asked for in the order in which their filters stand.
const HELD: usize = 4;

/// Reads shards. Memory: [`HELD`] of them, and 40 bytes a pack.
pub(super) struct Shards {
    builder: Arc<Builder>,
    org: Org,
    entries: Vec<PackEntry>,
    /// For each pack its shard.
    of: HashMap<PackId, usize>,
    /// For each shard its packs, each with the bytes it takes.
    packs: Vec<Vec<(PackId, usize)>>,
    held: Vec<(usize, Arc<Vec<PackFilters>>)>,
}

impl Shards {
    pub fn new(builder: Arc<Builder>, org: Org, manifest: &Manifest) -> Self {
        let entries = manifest.index.clone();
        Self { builder, org, packs: vec![Vec::new(); entries.len()], entries, of: HashMap::new(), held: Vec::new() }
    }

    /// For each frame of the manifest whether one of the changed rows may stand in it. Reads every shard once.
    pub async fn hits(
        &mut self,
        manifest: &Arc<Manifest>,
        changed: &[(usize, Vec<Arc<str>>)],
    ) -> Result<Vec<bool>, RefreshError> {
        let mut hashes: HashMap<u32, Vec<u64>> = HashMap::new();
        for (model, ids) in changed {
            let model = u32::try_from(*model).map_err(|_| RefreshError::Line)?;
            let hashes = hashes.entry(model).or_default();
            hashes.extend(ids.iter().map(|id| index::hash(id)));
            hashes.sort_unstable();
        }
        let hashes = Arc::new(hashes);
        let mut frames: HashMap<PackId, Vec<usize>> = HashMap::new();
        for (place, frame) in manifest.frames.iter().enumerate() {
            frames.entry(manifest.packs[frame.pack as usize].id).or_default().push(place);
        }
        let mut hit = vec![false; manifest.frames.len()];
        for shard in 0..self.entries.len() {
            let filters = self.load(shard).await?;
            for filters in filters.iter() {
                self.packs[shard].push((filters.pack, filters.len()));
            }
            let asked: Vec<(usize, Vec<usize>)> = (filters.iter().enumerate())
                .filter_map(|(place, filters)| Some((place, frames.remove(&filters.pack)?)))
                .collect();
            for (place, _) in &asked {
                self.of.insert(filters[*place].pack, shard);
            }
            let (manifest, hashes) = (manifest.clone(), hashes.clone());
            // Some 20 ms for a million rows.
            let found = task::blocking(move || {
                let mut found = Vec::new();
                for (pack, frames) in asked {
                    for place in frames {
                        let frame = &manifest.frames[place];
                        let filter = filters[pack].at(frame.offset).ok_or(Full::NotIndexed)?;
                        let sorted = hashes.get(&frame.model).map_or(&[][..], Vec::as_slice);
                        if filter.is_empty() && !sorted.is_empty() {
                            return Err(Full::Ids.into());
                        }
                        if index::may_hold(filter, sorted).map_err(IndexError::from)? {
                            found.push(place);
                        }
                    }
                }
                Ok::<_, RefreshError>(found)
            });
            for place in found.await? {
                hit[place] = true;
            }
        }
        if frames.is_empty() { Ok(hit) } else { Err(Full::NotIndexed.into()) }
    }

    /// The filters of a pack.
    pub async fn of(&mut self, pack: PackId) -> Result<Arc<PackFilters>, RefreshError> {
        let shard = *self.of.get(&pack).ok_or(Full::NotIndexed)?;
        let filters = self.load(shard).await?;
        let found = filters.iter().find(|filters| filters.pack == pack).cloned();
        Ok(Arc::new(found.ok_or(Full::NotIndexed)?))
    }

    /// Whether a shard is large and mostly of packs that stay, so that it is used again as it is.
    pub fn is_worth_keeping(&self, shard: usize, stays: &HashSet<PackId>) -> bool {
        let len = self.entries[shard].len as usize;
        let live: usize = self.packs[shard].iter().filter(|(pack, _)| stays.contains(pack)).map(|(_, len)| len).sum();
        len >= index::TARGET_LEN / 4 && live * 2 >= len
    }

    /// Whether a shard says anything of a pack that stays.
    pub fn holds_any(&self, shard: usize, stays: &HashSet<PackId>) -> bool {
        self.packs[shard].iter().any(|(pack, _)| stays.contains(pack))
    }

    /// A shard, verified.
    pub async fn load(&mut self, shard: usize) -> Result<Arc<Vec<PackFilters>>, RefreshError> {
        if let Some((_, filters)) = self.held.iter().find(|(held, _)| *held == shard) {
            return Ok(filters.clone());
        }
        let entry = self.entries[shard];
        let bytes = self.builder.destination().pack(&self.org, entry.id).await?;
        if bytes.len() != entry.len as usize {
            let (what, fault) =
                (format!("index {} of org {:?}", entry.id, self.org), "it has another length".to_owned());
            return Err(StoreError::Damaged { what, fault }.into());
        }
        let filters = Arc::new(task::blocking(move || index::read(&bytes)).await?);
        self.held.truncate(HELD - 1);
        self.held.insert(0, (shard, filters.clone()));
        Ok(filters)
    }
}
