//! What one snapshot consists of, for operators: its models, and page by page its frames and group sets.
//!
//! Manifests come through the pack cache, so looking at one costs what serving it does. A quarter of a million frames are
//! gone through in some milliseconds, off the runtime's threads; an answer holds a page of them.

use std::cmp::Reverse;
use std::sync::Arc;

use schemars::JsonSchema;
use serde::Serialize;

use crate::model::{GroupSet, Org, Schema, SchemaHash, SnapshotId, SyncGroup};
use crate::serve::{ServeError, Service};
use crate::snapshot::{FrameEntry, Manifest};
use crate::store::{PinnedManifest, Slot, StoreError};
use crate::task;

/// More groups of one set are not listed, only counted.
const LISTED_GROUPS: usize = 20;

/// Which snapshot is meant.
#[derive(Clone, Debug)]
pub struct SnapshotName {
    /// Whose, by its id as it is listed.
    pub org: Org,
    /// In which schema; `None`: the present one.
    pub schema: Option<SchemaHash>,
    /// Which one, if still kept; `None`: the current one.
    pub id: Option<SnapshotId>,
}

/// What a snapshot consists of.
#[derive(Clone, Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SnapshotContent {
    /// Whose it is.
    #[schemars(with = "String")]
    pub org: Org,
    /// Its id.
    #[schemars(with = "String")]
    pub id: SnapshotId,
    /// As what it was published.
    pub generation: u64,
    /// The schema it is in.
    #[schemars(with = "String")]
    pub schema: SchemaHash,
    /// The history its sync id belongs to.
    pub epoch: String,
    /// What it is true at.
    pub sync_id: u64,
    /// Its packs.
    pub packs: u64,
    /// Its frames.
    pub frames: u64,
    /// Its sets of sync groups.
    pub group_sets: u64,
    /// Its rows.
    pub rows: u64,
    /// Bytes of its frames.
    pub bytes: u64,
    /// Bytes of its lines.
    pub raw_bytes: u64,
    /// Its models that have rows, the largest first.
    pub models: Vec<ModelContent>,
}

/// What one model takes in a snapshot.
#[derive(Clone, Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ModelContent {
    /// Its place in the catalog.
    pub index: u32,
    /// Its name, if the snapshot is in the present schema.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Its frames.
    pub frames: u64,
    /// Its rows.
    pub rows: u64,
    /// Bytes of its frames.
    pub bytes: u64,
    /// Bytes of its lines.
    pub raw_bytes: u64,
}

/// Some frames of a snapshot.
#[derive(Clone, Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct FramePage {
    /// The snapshot.
    #[schemars(with = "String")]
    pub id: SnapshotId,
    /// How many there are.
    pub total: u64,
    /// Those of this page, in the order they are stored.
    pub frames: Vec<FrameContent>,
}

/// One frame.
#[derive(Clone, Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct FrameContent {
    /// Its model's place in the catalog.
    pub model: u32,
    /// The groups its rows carry, the first of them.
    #[schemars(with = "Vec<String>")]
    pub groups: Vec<SyncGroup>,
    /// How many groups these are.
    pub group_count: u64,
    /// The pack it stands in, by its place in the manifest.
    pub pack: u32,
    /// Where in the pack.
    pub offset: u32,
    /// Its bytes.
    pub bytes: u32,
    /// Bytes of its lines.
    pub raw_bytes: u32,
    /// Its rows.
    pub rows: u32,
}

/// Some group sets of a snapshot.
#[derive(Clone, Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct GroupPage {
    /// The snapshot.
    #[schemars(with = "String")]
    pub id: SnapshotId,
    /// How many there are.
    pub total: u64,
    /// Those of this page, the largest first.
    pub group_sets: Vec<GroupContent>,
}

/// One set of sync groups that rows carry.
#[derive(Clone, Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct GroupContent {
    /// The groups, the first of them.
    #[schemars(with = "Vec<String>")]
    pub groups: Vec<SyncGroup>,
    /// How many groups these are.
    pub group_count: u64,
    /// Its frames.
    pub frames: u64,
    /// Its rows.
    pub rows: u64,
    /// Bytes of its frames.
    pub bytes: u64,
    /// Bytes of its lines.
    pub raw_bytes: u64,
}

/// What some frames take together.
#[derive(Clone, Copy, Default)]
struct Sum {
    frames: u64,
    rows: u64,
    bytes: u64,
    raw_bytes: u64,
}

impl Sum {
    fn add(&mut self, frame: &FrameEntry) {
        self.frames += 1;
        self.rows += u64::from(frame.rows);
        self.bytes += u64::from(frame.len);
        self.raw_bytes += u64::from(frame.raw_len);
    }
}

impl Service {
    /// What a snapshot consists of.
    ///
    /// # Errors
    /// [`ServeError::NoSnapshot`], the store's, the source's.
    pub async fn snapshot(&self, name: &SnapshotName) -> Result<SnapshotContent, ServeError> {
        let manifest = self.manifest(name).await?;
        let schema = self.schema().await?;
        Ok(task::blocking(move || content(&manifest, &schema)).await)
    }

    /// The frames of a snapshot from one place on.
    ///
    /// # Errors
    /// As [`Self::snapshot`].
    pub async fn frames(&self, name: &SnapshotName, offset: usize, limit: usize) -> Result<FramePage, ServeError> {
        let manifest = self.manifest(name).await?;
        let page = manifest.frames.iter().skip(offset).take(limit).map(|frame| {
            let (groups, group_count) = listed(&manifest.sets[frame.set as usize]);
            let FrameEntry { model, pack, offset, len: bytes, raw_len: raw_bytes, rows, .. } = *frame;
            FrameContent { model, groups, group_count, pack, offset, bytes, raw_bytes, rows }
        });
        Ok(FramePage { id: manifest.id, total: manifest.frames.len() as u64, frames: page.collect() })
    }

    /// The group sets of a snapshot from one place on, the largest first.
    ///
    /// # Errors
    /// As [`Self::snapshot`].
    pub async fn groups(&self, name: &SnapshotName, offset: usize, limit: usize) -> Result<GroupPage, ServeError> {
        let manifest = self.manifest(name).await?;
        Ok(task::blocking(move || group_page(&manifest, offset, limit)).await)
    }

    async fn manifest(&self, name: &SnapshotName) -> Result<PinnedManifest, ServeError> {
        let schema = match &name.schema {
            Some(schema) => schema.clone(),
            None => self.schema().await?.hash.clone(),
        };
        let slot = Slot { org: name.org.clone(), schema };
        let id = match name.id {
            Some(id) => id,
            None => {
                let head = self.shared.store.head(&slot).await?;
                head.current.ok_or(ServeError::NoSnapshot)?.facts.id
            }
        };
        match self.cache().manifest(&slot, id).await {
            // Snapshots are cached by their id alone.
            Ok(manifest) if manifest.org == slot.org && manifest.schema_hash == slot.schema => Ok(manifest),
            Ok(_) | Err(StoreError::Missing(_)) => Err(ServeError::NoSnapshot),
            Err(error) => Err(error.into()),
        }
    }
}

fn content(manifest: &Manifest, schema: &Arc<Schema>) -> SnapshotContent {
    let mut sums = vec![Sum::default(); manifest.models as usize];
    let mut all = Sum::default();
    for frame in &manifest.frames {
        sums[frame.model as usize].add(frame);
        all.add(frame);
    }
    let names: Vec<&str> = if schema.hash == manifest.schema_hash { schema.names().collect() } else { Vec::new() };
    let mut models: Vec<ModelContent> = (sums.iter().zip(0..))
        .filter(|(sum, _)| sum.frames > 0)
        .map(|(sum, index)| ModelContent {
            index,
            name: names.get(index as usize).map(|name| (*name).to_owned()),
            frames: sum.frames,
            rows: sum.rows,
            bytes: sum.bytes,
            raw_bytes: sum.raw_bytes,
        })
        .collect();
    models.sort_by_key(|model| (Reverse(model.bytes), model.index));
    SnapshotContent {
        org: manifest.org.clone(),
        id: manifest.id,
        generation: manifest.generation.0,
        schema: manifest.schema_hash.clone(),
        epoch: manifest.epoch.to_string(),
        sync_id: manifest.sync_id.0,
        packs: manifest.packs.len() as u64,
        frames: all.frames,
        group_sets: manifest.sets.len() as u64,
        rows: all.rows,
        bytes: all.bytes,
        raw_bytes: all.raw_bytes,
        models,
    }
}

fn group_page(manifest: &Manifest, offset: usize, limit: usize) -> GroupPage {
    let mut sums = vec![Sum::default(); manifest.sets.len()];
    for frame in &manifest.frames {
        sums[frame.set as usize].add(frame);
    }
    let mut order: Vec<usize> = (0..sums.len()).collect();
    order.sort_by_key(|set| (Reverse(sums[*set].bytes), *set));
    let page = order.into_iter().skip(offset).take(limit).map(|set| {
        let (groups, group_count) = listed(&manifest.sets[set]);
        let Sum { frames, rows, bytes, raw_bytes } = sums[set];
        GroupContent { groups, group_count, frames, rows, bytes, raw_bytes }
    });
    GroupPage { id: manifest.id, total: sums.len() as u64, group_sets: page.collect() }
}

fn listed(set: &GroupSet) -> (Vec<SyncGroup>, u64) {
    let groups = set.as_slice();
    (groups.iter().take(LISTED_GROUPS).cloned().collect(), groups.len() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::manifest::tests::sample;

    #[test]
    fn pages_and_sums_hold_every_frame_once() {
        let manifest = sample(250_000);
        let mut sets = Vec::new();
        for offset in 0..3 {
            let page = group_page(&manifest, offset * 2, 2);
            assert_eq!(page.total, 4);
            sets.extend(page.group_sets);
        }
        assert_eq!(sets.len(), 4);
        assert!(sets.windows(2).all(|pair| pair[0].bytes >= pair[1].bytes));
        assert_eq!(sets.iter().map(|set| set.frames).sum::<u64>(), 250_000);
        assert_eq!(sets.iter().map(|set| set.rows).sum::<u64>(), manifest.rows());
        assert_eq!(sets.iter().map(|set| set.bytes).sum::<u64>(), manifest.len());
    }
}
