//! The work of a refresh: see [`crate::dump::refresh`](super::refresh) for its steps and why they are sound.

use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::sync::Arc;

use async_stream::try_stream;
use bytes::Bytes;
use futures_util::future::try_join;
use futures_util::stream::{self, BoxStream, FuturesUnordered};
use futures_util::{StreamExt, TryStreamExt};
use tokio::time::Instant;

use crate::dump::build::Builder;
use crate::dump::course::{Basis, Bounds, Full, most_changed};
use crate::dump::frames::{FullFrame, OpenFrames};
use crate::dump::live::{LiveDump, LiveFrame, Opened};
use crate::dump::news::{News, left_over};
use crate::dump::packs::PackPlan;
use crate::dump::refresh::RefreshError;
use crate::dump::reuse::{Fate, Plan};
use crate::dump::shards::Shards;
use crate::dump::stored::StoredPacks;
use crate::dump::taken::{Apart, Taken};
use crate::model::key::canonical;
use crate::model::{Generation, Grants, Org, Schema, SyncId, Watermark};
use crate::snapshot::index::{self, RowIds};
use crate::snapshot::pack::TARGET_LEN;
use crate::snapshot::{FrameEntry, Manifest, PackEntry};
use crate::source::{ActionRange, By, Found, GroupSets, Lookup, Object, SetId, SourceError};
use crate::store::Facts;
use crate::task;

/// Ids one statement asks for.
const LOOKUP_IDS: usize = 1000;

/// Bytes of lines one statement may bring, but for a single row; past it fewer ids are asked for at a time.
const LOOKUP_BYTES: usize = 16 << 20;

/// Statements, and packs that are read, at a time.
const AT_ONCE: usize = 2;

/// Frames of a pack that are taken apart by one thread: so what it holds decoded is bounded, and several work on a large pack.
const RUN: usize = 8;

/// A refresh whose changes are known.
pub(super) struct Renewal {
    builder: Arc<Builder>,
    manifest: Arc<Manifest>,
    opened: Opened,
    ids: Arc<RowIds>,
    /// What changed, by model, in no order.
    changed: Vec<(usize, Vec<Arc<str>>)>,
    /// The set of each of the manifest's sets.
    set_ids: Arc<Vec<SetId>>,
}

impl Renewal {
    /// Reads the manifest and the log, and decides.
    pub async fn begin(builder: Arc<Builder>, live: &LiveDump, facts: &Facts) -> Result<Self, RefreshError> {
        let slot = live.slot();
        let source = builder.source();
        let schema = source.schema().await?;
        if schema.hash != slot.schema {
            return Err(Full::SchemaChanged.into());
        }
        let bytes = builder.destination().manifest(slot, facts.id).await?;
        let manifest = task::blocking(move || Manifest::decode(&bytes)).await?;
        if manifest.id != facts.id || manifest.org != slot.org || manifest.models as usize != schema.models.len() {
            return Err(RefreshError::Line);
        }
        let watermark = source.watermark().await?;
        let models = schema.catalog.models();
        if source.unlogged().await?.keys().any(|model| models[*model].load.in_snapshot()) {
            return Err(Full::Unlogged.into());
        }
        if watermark.epoch == manifest.epoch && watermark.sync_id <= manifest.sync_id {
            // Nothing is in this range, but the log has to reach back to it: a trigger that is made anew raises its floor, and what
            // was missed before that is in no watermark.
            let nothing = Watermark { sync_id: manifest.sync_id, ..watermark };
            changed(&builder, live, &schema, &nothing, manifest.sync_id, 0).await?;
            return Err(RefreshError::Newest);
        }
        let basis = Basis {
            epoch: &manifest.epoch,
            is_indexed: !manifest.index.is_empty() || manifest.frames.is_empty(),
            refreshes: manifest.refreshes,
            rows: manifest.rows(),
        };
        let settings = builder.settings();
        let bounds = Bounds { max_percent: settings.refresh_max_percent, max_count: settings.refresh_max_count };
        let most = most_changed(&basis, &watermark.epoch, &bounds)?;
        let changed = changed(&builder, live, &schema, &watermark, manifest.sync_id, most).await?;
        let ids = RowIds::new(&schema);
        if changed.iter().any(|(model, _)| !ids.are_known(*model)) {
            return Err(Full::Ids.into());
        }
        let sets = Arc::new(GroupSets::default());
        let set_ids = manifest.sets.iter().map(|set| sets.intern(set.clone())).collect();
        let opened = Opened { watermark, schema, sets, estimated_rows: basis.rows, at: Some(Instant::now()) };
        Ok(Self {
            builder,
            manifest: Arc::new(manifest),
            opened,
            ids: Arc::new(ids),
            changed,
            set_ids: Arc::new(set_ids),
        })
    }

    /// Reads, writes and publishes, with `fresh` as the new snapshot. Gives the facts, the rows read and the bytes put.
    pub async fn make(
        self: &Arc<Self>,
        fresh: Arc<LiveDump>,
        over: Generation,
    ) -> Result<(Facts, u64, u64), RefreshError> {
        fresh.open(self.opened.clone());
        let mut open = OpenFrames::new(self.builder.settings().open_bytes);
        let mut stored = StoredPacks::new(false, self.manifest.refreshes + 1);
        let mut packs = PackPlan::new(TARGET_LEN);

        let mut news = News::default();
        let frames = self.looked_up(&fresh.slot().org, &mut open, &mut news);
        let mut shards = Shards::new(self.builder.clone(), fresh.slot().org.clone(), &self.manifest);
        // The database answers while the index is searched.
        let looked_up = self.store(&fresh, frames, &mut packs, &mut stored);
        let ((), hit) = try_join(looked_up, shards.hits(&self.manifest, &self.changed)).await?;
        let plan = Plan::new(&self.manifest, &hit, &news.written(&self.set_ids));
        for (pack, frames) in kept_frames(&self.manifest, &plan) {
            for frame in &frames {
                packs.hold(self.set_ids[frame.set as usize], frame.len.into());
            }
            let placed = frames.into_iter().map(|frame| (frame, self.set_ids[frame.set as usize]));
            stored.add_placed(self.manifest.packs[pack], placed, |set| self.opened.sets.get(set));
        }
        let read = news.read;
        let apart = Arc::new(Apart {
            builder: self.builder.clone(),
            ids: self.ids.clone(),
            set_ids: self.set_ids.clone(),
            gone: news.gone(&self.changed),
            fresh: fresh.clone(),
        });
        let frames = self.rewritten(open, &plan, &mut shards, apart);
        self.store(&fresh, frames, &mut packs, &mut stored).await?;
        let rest = packs.finish(|set| self.opened.sets.get(set)).into_iter().map(Ok::<_, RefreshError>);
        self.builder.put_all(&fresh, &self.opened, stream::iter(rest), &mut stored).await?;
        self.keep_index(&fresh, &plan, &mut shards, &mut stored).await?;
        // Another history, or other columns, since the watermark was taken: the rows are not what it is a watermark of. A new
        // column changes no row in the log, and what reads the old ones does not notice.
        let source = self.builder.source();
        if source.epoch().await? != self.manifest.epoch {
            return Err(Full::OtherEpoch.into());
        }
        if source.schema_now().await?.hash != self.opened.schema.hash {
            return Err(Full::SchemaChanged.into());
        }
        self.builder.put_shard(&fresh, &mut stored, 1).await?;
        let written = stored.written;
        let facts = self.builder.publish(&fresh, &self.opened, stored, over).await?;
        Ok((facts, read, written))
    }

    /// Looks up what changed and gives the frames that are full by it.
    fn looked_up<'a>(
        self: &'a Arc<Self>,
        org: &Org,
        open: &'a mut OpenFrames,
        news: &'a mut News,
    ) -> BoxStream<'a, Result<Made, RefreshError>> {
        let org = org.clone();
        let frames = try_stream! {
            let mut waiting = Waiting::new(&self.changed);
            let mut asked = FuturesUnordered::new();
            loop {
                while asked.len() < AT_ONCE && let Some(part) = waiting.next() {
                    asked.push(self.find(&org, part));
                }
                let Some((part, found)) = asked.next().await else { break };
                let found = match found {
                    Ok(found) => found,
                    Err(SourceError::TooLarge(_)) if part.ids.len() > 1 => {
                        waiting.again(part);
                        continue;
                    }
                    Err(error) => Err(error)?,
                };
                if found.schema.hash != self.opened.schema.hash {
                    Err(Full::SchemaChanged)?;
                }
                waiting.took(found.rows.iter().map(|row| row.line.len()).sum());
                let (model, _) = &self.changed[part.place];
                if let Some(batch) = news.take(*model, found.rows, &self.opened.sets) {
                    for frame in open.push(&batch) {
                        yield Made::Full(frame);
                    }
                }
            }
        };
        frames.boxed()
    }

    /// The rows with some ids.
    async fn find(&self, org: &Org, part: Part) -> (Part, Result<Found, SourceError>) {
        let (model, ids) = &self.changed[part.place];
        // One row may be as long as the database lets it be.
        let max_bytes = if part.ids.len() > 1 { LOOKUP_BYTES } else { usize::MAX };
        let values = ids[part.ids.clone()].to_vec();
        let lookup = Lookup { org: org.clone(), model: *model, by: By::Id, values, max_bytes };
        let found = self.builder.source().lookup(&lookup).await;
        (part, found)
    }

    /// Takes apart what does not stay, and gives the frames that are full by it or by what was looked up, and then those that are
    /// left.
    fn rewritten<'a>(
        self: &'a Arc<Self>,
        mut open: OpenFrames,
        plan: &Plan,
        shards: &'a mut Shards,
        apart: Arc<Apart>,
    ) -> BoxStream<'a, Result<Made, RefreshError>> {
        let mut by_pack: Vec<(usize, Vec<(FrameEntry, Fate)>)> = Vec::new();
        let moved = self.manifest.frames.iter().zip(&plan.fates).filter(|(_, fate)| **fate != Fate::Kept);
        for (frame, fate) in moved {
            match by_pack.last_mut() {
                Some((pack, frames)) if *pack == frame.pack as usize => frames.push((*frame, *fate)),
                _ => by_pack.push((frame.pack as usize, vec![(*frame, *fate)])),
            }
        }
        let jobs: BoxStream<'a, Result<_, RefreshError>> = Box::pin(try_stream! {
            for (pack, frames) in by_pack {
                let entry = self.manifest.packs[pack];
                let copies = frames.iter().any(|(_, fate)| *fate == Fate::Copied);
                let filters = if copies { Some(shards.of(entry.id).await?) } else { None };
                yield (entry, frames, filters);
            }
        });
        let (reader, taking) = (self.clone(), apart.clone());
        let read = jobs.map_ok(move |(entry, frames, filters)| {
            let refresh = reader.clone();
            async move { Ok((refresh.stored(entry, &frames).await?, frames, filters)) }
        });
        let runs = read.try_buffer_unordered(AT_ONCE).map_ok(|(stored, frames, filters)| {
            let runs = frames.chunks(RUN).zip(stored.chunks(RUN));
            let runs: Vec<_> =
                runs.map(|(frames, stored)| Ok((frames.to_vec(), stored.to_vec(), filters.clone()))).collect();
            stream::iter(runs)
        });
        let taken = runs.try_flatten().map_ok(move |(frames, stored, filters)| {
            let apart = taking.clone();
            task::blocking(move || apart.take(&frames, &stored, filters.as_deref()))
        });
        let mut taken = taken.try_buffer_unordered(self.builder.settings().compressors()).boxed();
        let frames = try_stream! {
            while let Some(Taken { spooled, batches }) = taken.try_next().await? {
                for frame in spooled {
                    yield Made::Spooled(frame);
                }
                for batch in &batches {
                    for frame in open.push(batch) {
                        yield Made::Full(frame);
                    }
                }
            }
            let left = task::blocking(move || left_over(&apart.gone)).await;
            for batch in &left {
                for frame in open.push(batch) {
                    yield Made::Full(frame);
                }
            }
            for frame in open.finish() {
                yield Made::Full(frame);
            }
        };
        frames.boxed()
    }

    /// The bytes of some frames of a pack: only theirs where they are few, as their own checksums say whether they are
    /// whole. A frame that is copied is not decoded, so the whole pack is read.
    async fn stored(&self, entry: PackEntry, frames: &[(FrameEntry, Fate)]) -> Result<Vec<Bytes>, RefreshError> {
        let (store, org) = (self.builder.destination(), &self.manifest.org);
        // Every range was checked against its pack when the manifest was decoded.
        let end = |frame: &FrameEntry| frame.offset + frame.len;
        let len: u64 = frames.iter().map(|(frame, _)| u64::from(frame.len)).sum();
        if frames.iter().all(|(_, fate)| *fate == Fate::Rewritten) && len < u64::from(entry.len / 2) {
            let parts: Vec<_> = frames.iter().map(|(frame, _)| frame.offset.into()..end(frame).into()).collect();
            let read = store.pack_parts(org, entry.id, &parts).await?;
            // A store that gives fewer would lose rows.
            return if read.len() == parts.len() { Ok(read) } else { Err(RefreshError::Line) };
        }
        let bytes = store.whole_pack(org, entry).await?;
        Ok(frames.iter().map(|(frame, _)| bytes.slice(frame.offset as usize..end(frame) as usize)).collect())
    }

    /// Compresses what has to be, and puts the packs that are full by it.
    async fn store(
        &self,
        fresh: &Arc<LiveDump>,
        frames: BoxStream<'_, Result<Made, RefreshError>>,
        packs: &mut PackPlan,
        stored: &mut StoredPacks,
    ) -> Result<(), RefreshError> {
        let written = frames
            .map_ok(|made| {
                let (builder, fresh, ids) = (self.builder.clone(), fresh.clone(), self.ids.clone());
                async move {
                    match made {
                        Made::Spooled(frame) => Ok(frame),
                        Made::Full(frame) => Ok(task::blocking(move || builder.write(&fresh, &ids, &frame)).await?),
                    }
                }
            })
            .try_buffer_unordered(self.builder.settings().compressors());
        let full = written.try_filter_map(|frame| std::future::ready(Ok(packs.push(frame))));
        self.builder.put_all(fresh, &self.opened, full, stored).await
    }

    /// Takes the shards over that are still of use, and copies what others hold of packs that stay.
    async fn keep_index(
        &self,
        fresh: &LiveDump,
        plan: &Plan,
        shards: &mut Shards,
        stored: &mut StoredPacks,
    ) -> Result<(), RefreshError> {
        let stays = self.manifest.packs.iter().zip(&plan.stays).filter(|(_, stays)| **stays);
        let stays: HashSet<_> = stays.map(|(pack, _)| pack.id).collect();
        for shard in 0..self.manifest.index.len() {
            if shards.is_worth_keeping(shard, &stays) {
                stored.index.push(self.manifest.index[shard]);
                continue;
            }
            if !shards.holds_any(shard, &stays) {
                continue;
            }
            for filters in shards.load(shard).await?.iter().filter(|filters| stays.contains(&filters.pack)) {
                stored.keep_filters(filters);
                self.builder.put_shard(fresh, stored, index::TARGET_LEN).await?;
            }
        }
        Ok(())
    }
}

/// Ids that one statement asks for: a range of those of a model that changed.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Part {
    place: usize,
    ids: Range<usize>,
}

/// What is still to be looked up.
struct Waiting {
    /// The next one last.
    parts: Vec<Part>,
    /// Ids that a statement asks for: fewer once their rows were too long, more again when they are short.
    at_once: usize,
}

impl Waiting {
    fn new(changed: &[(usize, Vec<Arc<str>>)]) -> Self {
        let parts = changed.iter().enumerate().map(|(place, (_, ids))| Part { place, ids: 0..ids.len() });
        Self { parts: parts.rev().collect(), at_once: LOOKUP_IDS }
    }

    fn next(&mut self) -> Option<Part> {
        let Part { place, ids } = self.parts.pop()?;
        let end = ids.end.min(ids.start + self.at_once);
        if end < ids.end {
            self.parts.push(Part { place, ids: end..ids.end });
        }
        Some(Part { place, ids: ids.start..end })
    }

    /// The rows were longer than a statement may bring.
    fn again(&mut self, part: Part) {
        self.at_once = self.at_once.min(part.ids.len() / 2).max(1);
        self.parts.push(part);
    }

    /// A statement brought so many bytes.
    fn took(&mut self, bytes: usize) {
        if bytes < LOOKUP_BYTES / 4 {
            self.at_once = LOOKUP_IDS.min(self.at_once * 2);
        }
    }
}

/// The objects that changed, by model.
async fn changed(
    builder: &Builder,
    live: &LiveDump,
    schema: &Schema,
    watermark: &Watermark,
    after: SyncId,
    most: u64,
) -> Result<Vec<(usize, Vec<Arc<str>>)>, RefreshError> {
    let limit = usize::try_from(most).unwrap_or(usize::MAX).saturating_add(1);
    let org = live.slot().org.clone();
    let range = ActionRange { org, after, to: watermark.sync_id, groups: Grants::default(), limit };
    let objects = builder.source().changed(&range).await?;
    if objects.len() >= limit {
        return Err(Full::Large(most).into());
    }
    let mut by_model: HashMap<usize, Vec<Arc<str>>> = HashMap::new();
    for Object { model, id } in objects {
        let column = &schema.catalog.models()[model].id;
        let field = schema.models[model].fields.iter().find(|field| field.column == *column);
        // An application that writes its own log may spell an id as it likes.
        let canonical = field.and_then(|field| canonical(&field.sql_type, &id)).map(Arc::from);
        by_model.entry(model).or_default().push(canonical.unwrap_or(id));
    }
    for ids in by_model.values_mut() {
        ids.sort_unstable();
        ids.dedup();
    }
    Ok(by_model.into_iter().collect())
}

/// The packs that stay, each with its frames that stay.
fn kept_frames(manifest: &Manifest, plan: &Plan) -> Vec<(usize, Vec<FrameEntry>)> {
    let mut packs: Vec<(usize, Vec<_>)> = Vec::new();
    for (frame, _) in manifest.frames.iter().zip(&plan.fates).filter(|(_, fate)| **fate == Fate::Kept) {
        match packs.last_mut() {
            Some((pack, frames)) if *pack == frame.pack as usize => frames.push(*frame),
            _ => packs.push((frame.pack as usize, vec![*frame])),
        }
    }
    packs
}

/// A frame for the new snapshot.
enum Made {
    /// To be compressed.
    Full(FullFrame),
    /// In the spool already.
    Spooled(LiveFrame),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_rows_are_asked_for_in_smaller_parts_and_each_once() {
        let ids: Vec<Arc<str>> = (0..2500).map(|id| Arc::from(id.to_string())).collect();
        let changed = vec![(3, ids), (5, vec![Arc::from("x")])];
        // Rows of so many bytes, for each model.
        for len in [[100, 100], [1 << 20, 1 << 20], [LOOKUP_BYTES, 10 * LOOKUP_BYTES]] {
            let mut waiting = Waiting::new(&changed);
            let mut seen = [0, 0];
            let (mut statements, mut in_vain) = (0, 0);
            while let Some(part) = waiting.next() {
                let bytes = len[part.place] * part.ids.len();
                statements += 1;
                if bytes > LOOKUP_BYTES && part.ids.len() > 1 {
                    in_vain += 1;
                    waiting.again(part);
                    continue;
                }
                assert!(part.ids.len() <= LOOKUP_IDS && part.ids.start == seen[part.place], "{part:?}");
                seen[part.place] = part.ids.end;
                waiting.took(bytes);
            }
            assert_eq!(seen, [2500, 1], "rows of {len:?} bytes");
            assert!(in_vain <= 12, "{in_vain} of {statements} statements for rows of {len:?} bytes");
        }
    }
}
