//! Is what clients get what the database holds? Each org's snapshot, with the actions after it, is held against the live
//! rows.
//!
//! Floor 4. The change log rests on triggers; whoever passes them by (a disabled trigger, a table swapped for another, a
//! restored copy) changes rows that no client ever hears of. Nothing else in the service would notice: this room does.
//!
//! # What is compared
//! Let the snapshot be true at S. Its rows are digested, then the live ones are read as a dump reads them, and every row
//! that is other, new or gone is a *change*. Whatever committed after the snapshot's own read drew its sync ids above S,
//! because S was a watermark before that read began. So each change must be named by an action above S, for each group
//! that the row carried or carries: that is what tells the clients who hold the group. A change that is not named so is a
//! [`Difference`]. The actions are read after the rows, so what the rows show is logged by then if it ever is.
//!
//! What nobody sees (rows without a group) and what no snapshot holds (explicit models) is not compared, nor are models
//! whose ids are points in time, which rows and log write differently.
//!
//! # What it costs
//! A scan of the org, as a dump does, its packs read from the store, and about 150 bytes of memory for each row of the
//! snapshot.

pub mod rounds;
mod rows;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use futures_util::StreamExt;

use crate::metrics::Metrics;
use crate::model::{Grants, GroupSet, Org, Schema, SyncGroup, SyncId};
use crate::snapshot::{FrameError, Manifest, ManifestError, frame};
use crate::source::{ActionRange, Object, Source, SourceError};
use crate::store::{Facts, Slot, SnapshotStore, StoreError};
use crate::task;
use rows::{Change, Ids, Kept};

/// Compares orgs. Cheap to clone.
#[derive(Clone)]
pub struct Verifier {
    source: Arc<dyn Source>,
    store: Arc<dyn SnapshotStore>,
    metrics: Metrics,
}

/// What came of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Snapshot and actions give the live rows.
    Agrees {
        /// Live rows that were compared.
        rows: u64,
        /// How many of them, or of the snapshot's, changed since, each named by the log.
        changed: u64,
    },
    /// They don't.
    Differs {
        /// Live rows that were compared.
        rows: u64,
        /// How many differ.
        count: u64,
        /// The first of them, by model and id.
        first: Vec<Difference>,
    },
    /// There is nothing that clients would be served and that could be compared; why.
    Nothing(&'static str),
}

/// A row of which the log does not tell what happened to it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Difference {
    /// The model.
    pub model: String,
    /// Its id.
    pub id: String,
    /// What happened.
    pub what: What,
    /// The groups whose clients never hear of it.
    pub groups: Vec<SyncGroup>,
}

/// What happened to a row behind the log's back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum What {
    /// It is in the database only.
    Appeared,
    /// It is in the snapshot only.
    Vanished,
    /// It is another one, or seen by others.
    Changed,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match self.what {
            What::Appeared => "is in the database, not in the snapshot",
            What::Vanished => "is in the snapshot, no longer in the database",
            What::Changed => "is not as in the snapshot",
        };
        let groups = self.groups.iter().take(3).map(SyncGroup::as_str).collect::<Vec<_>>().join(", ");
        let more = if self.groups.len() > 3 { ", …" } else { "" };
        write!(f, "{} {}: {what}, and the log does not tell {groups}{more}", self.model, self.id)
    }
}

/// Why an org could not be compared.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// The database.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The stored manifest is damaged.
    #[error("the manifest in the store is damaged")]
    Manifest(#[from] ManifestError),
    /// A stored frame is damaged.
    #[error("a frame in the store is damaged")]
    Frame(#[from] FrameError),
    /// A line that names no row.
    #[error("a line of {0} has no id")]
    Line(String),
}

/// Told of rows as they are read: from the snapshot first, then from the database. The second number says about how many
/// there are in all, as far as is known yet.
pub type Progress<'a> = &'a (dyn Fn(u64, u64) + Send + Sync);

impl Verifier {
    /// Over a source and the snapshots made from it.
    pub fn new(source: Arc<dyn Source>, store: Arc<dyn SnapshotStore>, metrics: Metrics) -> Self {
        Self { source, store, metrics }
    }

    /// Compares one org. Of the differences the first `most` are told.
    ///
    /// # Errors
    /// What keeps the database or the store from answering; damage in the store.
    pub async fn verify(&self, org: &Org, most: usize, progress: Progress<'_>) -> Result<Outcome, VerifyError> {
        let compared = self.compare(org, most, progress).await;
        let (outcome, differences) = match &compared {
            Ok(Outcome::Agrees { .. }) => ("agrees", 0),
            Ok(Outcome::Differs { count, .. }) => ("differs", *count),
            Ok(Outcome::Nothing(_)) => ("nothing", 0),
            Err(_) => ("failed", 0),
        };
        self.metrics.verified(outcome, differences);
        compared
    }

    async fn compare(&self, org: &Org, most: usize, progress: Progress<'_>) -> Result<Outcome, VerifyError> {
        let schema = self.source.schema().await?;
        let slot = Slot { org: org.clone(), schema: schema.hash.clone() };
        let Some(current) = self.store.head(&slot).await?.current else {
            return Ok(Outcome::Nothing("no snapshot of the present schema is stored"));
        };
        let facts = current.facts;
        if facts.epoch != self.source.epoch().await? {
            return Ok(Outcome::Nothing("the snapshot is of another history of the database, so nobody is served it"));
        }
        let ids = Arc::new(Ids::new(&schema));
        let (manifest, kept) = self.stored(&slot, &facts, &ids, progress).await?;
        let scan = self.source.scan(org).await?;
        if scan.schema.hash != schema.hash {
            return Ok(Outcome::Nothing("the tables changed meanwhile"));
        }
        let (mut rows, total) = (0, facts.rows + scan.estimated_rows);
        let mut changes = Vec::new();
        let mut kept = kept;
        let mut batches = scan.batches;
        while let Some(batch) = batches.next().await {
            let batch = batch?;
            let mut start = 0;
            for row in &batch.rows {
                let line = &batch.lines[start..row.end as usize];
                start = row.end as usize;
                rows += 1;
                let Some(object) = ids.object(batch.model, line)? else { continue };
                let now = scan.sets.get(row.set);
                match kept.remove(&object) {
                    Some(was) if was.digest == ids.digest(line) && manifest.sets[was.set as usize] == now => {}
                    was => {
                        let was = was.map(|was| manifest.sets[was.set as usize].clone());
                        changes.push(Change { object, was, now: Some(now) });
                    }
                }
            }
            progress(facts.rows + rows, total);
        }
        let gone = kept.into_iter().map(|(object, was)| Change {
            object,
            was: Some(manifest.sets[was.set as usize].clone()),
            now: None,
        });
        changes.extend(gone);
        let changed = changes.len() as u64;
        match self.unlogged(org, facts.sync_id, changes).await {
            Ok(unlogged) if unlogged.is_empty() => Ok(Outcome::Agrees { rows, changed }),
            Ok(unlogged) => {
                let count = unlogged.len() as u64;
                let mut first: Vec<Difference> =
                    unlogged.into_iter().map(|(change, groups)| change.difference(&schema, groups)).collect();
                first.sort_unstable();
                first.truncate(most);
                Ok(Outcome::Differs { rows, count, first })
            }
            Err(SourceError::Trimmed { .. }) => {
                Ok(Outcome::Nothing("the log no longer reaches back to the snapshot, so nobody is served it"))
            }
            Err(error) => Err(error.into()),
        }
    }

    /// The snapshot's rows, digested, pack by pack.
    async fn stored(
        &self,
        slot: &Slot,
        facts: &Facts,
        ids: &Arc<Ids>,
        progress: Progress<'_>,
    ) -> Result<(Arc<Manifest>, BTreeMap<Object, Kept>), VerifyError> {
        let manifest = Arc::new(Manifest::decode(&self.store.manifest(slot, facts.id).await?)?);
        let (mut kept, mut rows) = (BTreeMap::new(), 0);
        for (number, entry) in manifest.packs.iter().enumerate() {
            let bytes = self.store.whole_pack(&slot.org, *entry).await?;
            let (manifest, ids) = (manifest.clone(), ids.clone());
            // Decoding a pack takes longer than other tasks should wait for.
            let read = task::blocking(move || {
                let mut read = Vec::new();
                for entry in manifest.frames.iter().filter(|frame| frame.pack as usize == number) {
                    let stored = &bytes[entry.offset as usize..][..entry.len as usize];
                    let lines = frame::decompress(stored, entry.raw_len as usize)?;
                    for line in frame::lines(&lines) {
                        if let Some(object) = ids.object(entry.model as usize, line)? {
                            read.push((object, Kept { digest: ids.digest(line), set: entry.set }));
                        }
                    }
                }
                Ok::<_, VerifyError>(read)
            });
            let read = read.await?;
            rows += read.len() as u64;
            kept.extend(read);
            progress(rows, facts.rows * 2);
        }
        Ok((manifest, kept))
    }

    /// The changes that some group's clients are not told of, with those groups.
    async fn unlogged(
        &self,
        org: &Org,
        after: SyncId,
        changes: Vec<Change>,
    ) -> Result<Vec<(Change, Vec<SyncGroup>)>, SourceError> {
        let mut by_group: BTreeMap<SyncGroup, Vec<usize>> = BTreeMap::new();
        for (place, change) in changes.iter().enumerate() {
            let groups = change.was.iter().chain(&change.now).flat_map(GroupSet::as_slice);
            for group in groups.collect::<BTreeSet<_>>() {
                by_group.entry(group.clone()).or_default().push(place);
            }
        }
        let mut untold: Vec<Vec<SyncGroup>> = vec![Vec::new(); changes.len()];
        for (group, places) in by_group {
            let groups = Grants::new(vec![group.clone()]);
            let range = ActionRange { org: org.clone(), after, to: SyncId::MAX, groups, limit: usize::MAX };
            let actions = self.source.actions(&range).await?;
            let told: BTreeSet<Object> = actions.into_iter().filter_map(|action| action.object).collect();
            for place in places {
                if !told.contains(&changes[place].object) {
                    untold[place].push(group.clone());
                }
            }
        }
        Ok(changes.into_iter().zip(untold).filter(|(_, groups)| !groups.is_empty()).collect())
    }
}

impl Change {
    fn difference(self, schema: &Schema, groups: Vec<SyncGroup>) -> Difference {
        let what = match (self.was, self.now) {
            (None, _) => What::Appeared,
            (Some(_), None) => What::Vanished,
            (Some(_), Some(_)) => What::Changed,
        };
        let model = schema.names().nth(self.object.model).unwrap_or_default().to_owned();
        Difference { model, id: self.object.id.to_string(), what, groups }
    }
}
