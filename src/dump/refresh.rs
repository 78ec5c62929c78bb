//! Making a snapshot out of the one before: only what changed is read, only the frames in which it stands are written.
//!
//! 1. A watermark W is taken, and the log says which objects of the org changed after the snapshot's own, S, up to W.
//! 2. Their rows are looked up by id and put into open frames. What is not found is gone: deleted, of another org, or left
//!    out by its model's filter. What nobody may see is not kept either.
//! 3. The index says in which frames the objects may stand ([`crate::snapshot::index`]). From these their lines are taken
//!    out; what is left goes into the open frames too. [`Plan`] says which other frames move with them, so that frames and
//!    packs stay full. All else is taken over as it is.
//! 4. New packs, what is left of the index, and a manifest: published as any snapshot, over the generation it began from.
//!
//! # Why rows may be newer than W
//! A look-up shows a row as it is at that moment, which may be after W. A snapshot that is tagged W promises that
//! everything up to W is in it, and clients add all that is logged above W. Whatever made the row newer is logged above W,
//! for the groups it left and those it came to, so every client that the row concerns hears of it again: applying a line
//! twice, or a newer row early, is harmless. A row that is not in the log up to W is not looked up, so none comes that W
//! does not know. That a row stands twice can't be: each object is looked up once, and taken out of all frames first.
//!
//! An id that is used again, and a row that goes to another org and comes back, are the same object to the log and to the
//! index. A row that gets another id is two objects, and both are logged. A parent that moves, comes or goes has its
//! children logged, so they are found by their own names.
//!
//! # Who waits
//! It runs in the place and under the lease of the dump whose turn it is. Nobody can read from it: readers who join
//! meanwhile wait for its end and then find what it published; when it is given up they get the dump they joined. After
//! [`PATIENCE`] of somebody's waiting it is given up for a dump, whose first rows come at once. Other instances are told
//! that a dump is made, of which nothing comes: they wait as well.
//!
//! # Memory
//! The ids of what changed (some 150 bytes each, 500,000 at most), the manifest, the open frames, two packs as they are
//! decoded, and up to five shards of the index.

use std::collections::{HashMap, HashSet};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use async_stream::try_stream;
use futures_util::stream::{self, BoxStream};
use futures_util::{StreamExt, TryStreamExt};
use tokio::time::{Instant, sleep};
use tracing::Instrument;

use crate::chain::Chain;
use crate::dump::DumpError;
use crate::dump::build::{Builder, StoreFailure};
use crate::dump::course::{Basis, Bounds, Full, most_changed};
use crate::dump::driving::Driving;
use crate::dump::frames::{FullFrame, OpenFrames};
use crate::dump::live::{LiveDump, LiveFrame, Opened, Refreshed};
use crate::dump::packs::PackPlan;
use crate::dump::queue::Dumps;
use crate::dump::reuse::{Fate, Plan};
use crate::dump::shards::Shards;
use crate::dump::spool::Spool;
use crate::dump::stored::StoredPacks;
use crate::dump::taken::{Apart, Gone, Taken};
use crate::model::{Generation, Org, SyncId, Watermark};
use crate::snapshot::index::{self, RowIds};
use crate::snapshot::pack::TARGET_LEN;
use crate::snapshot::{FrameEntry, FrameError, IndexError, Manifest, ManifestError, PackError};
use crate::source::{ActionRange, By, Found, GroupSets, Lookup, Object, RowBatch, RowRef, SetId, SourceError};
use crate::store::{Facts, Head, Lease, StoreError};
use crate::task;
use crate::trace::span;

/// How long somebody may wait for a refresh, who would get the first rows of a dump at once.
const PATIENCE: Duration = Duration::from_secs(15);

/// Ids one statement asks for.
const LOOKUP_IDS: usize = 1000;

/// Bytes of lines one statement may bring; past it fewer ids are asked for at a time.
const LOOKUP_BYTES: usize = 16 << 20;

/// Statements, and packs, at a time.
const AT_ONCE: usize = 2;

/// Why a refresh was not made.
#[derive(Debug, thiserror::Error)]
pub(super) enum RefreshError {
    /// It can't be, or should not.
    #[error("{0}")]
    Full(Full),
    #[error(transparent)]
    Source(#[from] SourceError),
    #[error(transparent)]
    Dump(#[from] DumpError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    #[error(transparent)]
    Index(#[from] IndexError),
    #[error(transparent)]
    Pack(#[from] PackError),
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// A line without an id, or a frame that is not what the manifest says of it.
    #[error("a frame does not hold what the manifest says")]
    Line,
}

impl RefreshError {
    /// Why everything is read instead.
    fn full(&self) -> Full {
        match self {
            Self::Full(full) => *full,
            Self::Source(SourceError::Trimmed { .. }) => Full::Trimmed,
            Self::Source(_) | Self::Dump(_) => Full::Failed,
            Self::Store(error) if error.is_lasting() => Full::Damaged,
            Self::Store(_) => Full::Store,
            Self::Manifest(_) | Self::Index(_) | Self::Pack(_) | Self::Frame(_) | Self::Line => Full::Damaged,
        }
    }
}

impl From<Full> for RefreshError {
    fn from(full: Full) -> Self {
        Self::Full(full)
    }
}

impl From<StoreFailure> for RefreshError {
    fn from(failure: StoreFailure) -> Self {
        match failure {
            StoreFailure::Dump(error) => error.into(),
            StoreFailure::Store(error) => error.into(),
            StoreFailure::Manifest(error) => error.into(),
        }
    }
}

impl Dumps {
    /// Refreshes what is published, or makes the dump where that can't be or should not.
    pub(super) async fn refresh_or_make(
        &self,
        driving: &mut Driving,
        lease: Option<&Lease>,
        head: Result<Head, StoreError>,
    ) {
        let live = driving.live.clone();
        let org = &live.slot().org;
        let mut head = head;
        let made = match &head {
            Ok(now) => self.refresh_while_bearable(&live, lease, now).instrument(span!("refresh")).await,
            Err(error) => Err(error.clone().into()),
        };
        let error = match made {
            Ok(refreshed) => {
                driving.stored = true;
                live.note_refreshed(refreshed);
                let metrics = &self.shared.metrics;
                metrics.refreshes.inc();
                metrics.refreshed_rows.inc_by(refreshed.read);
                return self.leave_for_published(&live);
            }
            Err(error) => error,
        };
        if let RefreshError::Store(StoreError::Conflict) = error {
            tracing::info!(%org, "another snapshot was published during a refresh");
            head = self.shared.store.head(live.slot()).await;
            if head.as_ref().is_ok_and(|head| live.is_granted_by(head)) {
                return self.leave_for_published(&live);
            }
        }
        let full = error.full();
        self.shared.metrics.full_dump(full.word());
        match error {
            RefreshError::Full(_) => tracing::info!(%org, reason = %full, "the org is read as a whole"),
            error => {
                tracing::warn!(%org, reason = %full, error = %Chain(&error), "a refresh failed; the org is read as a whole");
            }
        }
        self.make(driving, lease, head).await;
    }

    async fn refresh_while_bearable(
        &self,
        live: &Arc<LiveDump>,
        lease: Option<&Lease>,
        head: &Head,
    ) -> Result<Refreshed, RefreshError> {
        if live.must_be_new() {
            return Err(Full::Asked.into());
        }
        let current = head.current.as_ref().ok_or(Full::NoSnapshot)?;
        if let Some(lease) = lease {
            // So that other instances wait; whether they can be told is of no matter here.
            let _ = self.shared.store.declare(lease, live.slot(), live.id()).await;
        }
        tokio::select! {
            refreshed = self.refresh(live, &current.facts, head.generation) => refreshed,
            () = waited_for(live) => Err(Full::Slow.into()),
        }
    }

    async fn refresh(&self, live: &Arc<LiveDump>, facts: &Facts, over: Generation) -> Result<Refreshed, RefreshError> {
        let began = Instant::now();
        let shared = &self.shared;
        let refresh = Arc::new(Refresh::begin(shared.builder.clone(), live, facts).await?);
        let spool = Spool::create(&shared.builder.settings().spool_dir(), shared.budget.clone());
        let spool = spool.map_err(|error| DumpError::Spool(Arc::new(error)))?;
        let fresh = LiveDump::new(live.slot().clone(), spool, began, shared.metrics.followers.clone());
        let (facts, read, written) = refresh.make(Arc::new(fresh), over).await?;
        facts.log(live.slot());
        let took = began.elapsed();
        tracing::info!(org = %live.slot().org, snapshot = %facts.id, read, written,
            ms = took.as_millis() as u64, "a snapshot was refreshed");
        Ok(Refreshed { rows: facts.rows, read, written, took })
    }
}

/// Ends once somebody has waited for too long.
async fn waited_for(live: &LiveDump) {
    let mut since: Option<Instant> = None;
    loop {
        sleep(Duration::from_secs(1)).await;
        if live.is_wanted() && since.get_or_insert_with(Instant::now).elapsed() >= PATIENCE {
            return;
        }
    }
}

/// A refresh whose changes are known.
struct Refresh {
    builder: Arc<Builder>,
    manifest: Arc<Manifest>,
    opened: Opened,
    ids: Arc<RowIds>,
    /// What changed, by model, in no order.
    changed: Vec<(usize, Vec<Arc<str>>)>,
    /// The set of each of the manifest's sets.
    set_ids: Arc<Vec<SetId>>,
}

impl Refresh {
    /// Reads the manifest and the log, and decides.
    async fn begin(builder: Arc<Builder>, live: &LiveDump, facts: &Facts) -> Result<Self, RefreshError> {
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
        let mut watermark = source.watermark().await?;
        let basis = Basis {
            epoch: &manifest.epoch,
            sync_id: manifest.sync_id,
            is_indexed: !manifest.index.is_empty() || manifest.frames.is_empty(),
            refreshes: manifest.refreshes,
            rows: manifest.rows(),
        };
        let settings = builder.settings();
        let bounds = Bounds { max_percent: settings.refresh_max_percent, max_count: settings.refresh_max_count };
        let most = most_changed(&basis, &watermark.epoch, &bounds)?;
        let models = schema.catalog.models();
        if source.unlogged().await?.keys().any(|model| models[*model].load.in_snapshot()) {
            return Err(Full::Unlogged.into());
        }
        // What was a watermark stays one, though a writer may have held the next one back since.
        watermark.sync_id = watermark.sync_id.max(manifest.sync_id);
        let changed = changed(&builder, live, &watermark, manifest.sync_id, most).await?;
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
    async fn make(self: &Arc<Self>, fresh: Arc<LiveDump>, over: Generation) -> Result<(Facts, u64, u64), RefreshError> {
        fresh.open(self.opened.clone());
        let mut open = OpenFrames::new(self.builder.settings().open_bytes);
        let mut stored = StoredPacks::new(false, self.manifest.refreshes + 1);
        let mut packs = PackPlan::new(TARGET_LEN);

        let mut news = News::default();
        let frames = self.looked_up(&fresh.slot().org, &mut open, &mut news);
        self.store(&fresh, frames, &mut packs, &mut stored).await?;

        let mut shards = Shards::new(self.builder.clone(), fresh.slot().org.clone(), &self.manifest);
        let hit = shards.hits(&self.manifest, &self.changed).await?;
        let plan = Plan::new(&self.manifest, &hit, &news.written(&self.set_ids));
        for (pack, frames) in kept_frames(&self.manifest, &plan) {
            let placed = frames.into_iter().map(|frame| (frame, self.set_ids[frame.set as usize]));
            stored.add_placed(self.manifest.packs[pack], placed, |set| self.opened.sets.get(set));
        }
        let apart = Arc::new(Apart {
            ids: self.ids.clone(),
            set_ids: self.set_ids.clone(),
            gone: Arc::new(news.gone(&self.changed)),
            fresh: fresh.clone(),
        });
        let frames = self.rewritten(&mut open, &plan, &mut shards, apart);
        self.store(&fresh, frames, &mut packs, &mut stored).await?;
        let rest: Vec<_> = open.finish().into_iter().map(|frame| Ok(Made::Full(frame))).collect();
        self.store(&fresh, stream::iter(rest).boxed(), &mut packs, &mut stored).await?;
        for pack in packs.finish(|set| self.opened.sets.get(set)) {
            self.builder.put(&fresh, &self.opened, pack, &mut stored).await?;
        }
        self.keep_index(&fresh, &plan, &mut shards, &mut stored).await?;
        // Another history since the rows were read: they are not what this one holds.
        if self.builder.source().epoch().await? != self.manifest.epoch {
            return Err(Full::OtherEpoch.into());
        }
        self.builder.put_shard(&fresh, &mut stored, 1).await?;
        let written = stored.written;
        let facts = self.builder.publish(&fresh, &self.opened, stored, over).await?;
        Ok((facts, news.read, written))
    }

    /// Looks up what changed and gives the frames that are full by it.
    fn looked_up<'a>(
        self: &'a Arc<Self>,
        org: &Org,
        open: &'a mut OpenFrames,
        news: &'a mut News,
    ) -> BoxStream<'a, Result<Made, RefreshError>> {
        let mut parts = Vec::new();
        for (place, (_, ids)) in self.changed.iter().enumerate() {
            parts
                .extend((0..ids.len()).step_by(LOOKUP_IDS).map(|from| (place, from..ids.len().min(from + LOOKUP_IDS))));
        }
        let (refresh, org) = (self.clone(), org.clone());
        let lookups = stream::iter(parts).map(move |(place, range)| {
            let (refresh, org) = (refresh.clone(), org.clone());
            async move {
                let (model, ids) = &refresh.changed[place];
                Ok::<_, RefreshError>((*model, refresh.find(&org, *model, &ids[range]).await?))
            }
        });
        let mut lookups = lookups.buffered(AT_ONCE).boxed();
        let frames = try_stream! {
            while let Some((model, parts)) = lookups.try_next().await? {
                for found in parts {
                    if found.schema.hash != self.opened.schema.hash {
                        Err(Full::SchemaChanged)?;
                    }
                    if let Some(batch) = news.take(model, found, &self.opened.sets) {
                        for frame in open.push(&batch) {
                            yield Made::Full(frame);
                        }
                    }
                }
            }
        };
        frames.boxed()
    }

    /// The rows with these ids, in one piece or several.
    async fn find(&self, org: &Org, model: usize, ids: &[Arc<str>]) -> Result<Vec<Found>, SourceError> {
        let (mut waiting, mut all) = (vec![ids], Vec::new());
        while let Some(ids) = waiting.pop() {
            // One row may be as long as the database lets it be.
            let max_bytes = if ids.len() > 1 { LOOKUP_BYTES } else { usize::MAX };
            let lookup = Lookup { org: org.clone(), model, by: By::Id, values: ids.to_vec(), max_bytes };
            match self.builder.source().lookup(&lookup).await {
                Ok(found) => all.push(found),
                Err(SourceError::TooLarge(_)) if ids.len() > 1 => {
                    let (head, tail) = ids.split_at(ids.len() / 2);
                    waiting.extend([head, tail]);
                }
                Err(error) => return Err(error),
            }
        }
        Ok(all)
    }

    /// Takes apart what does not stay, and gives the frames that are full by it.
    fn rewritten<'a>(
        self: &'a Arc<Self>,
        open: &'a mut OpenFrames,
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
        let refresh = self.clone();
        let taken = jobs.map_ok(move |(entry, frames, filters)| {
            let (refresh, apart) = (refresh.clone(), apart.clone());
            async move {
                let bytes = refresh.builder.destination().pack(&apart.fresh.slot().org, entry.id).await?;
                task::blocking(move || apart.take(&bytes, entry, &frames, filters.as_deref())).await
            }
        });
        let mut taken = taken.try_buffered(AT_ONCE).boxed();
        let frames = try_stream! {
            while let Some(Taken { copied, batches }) = taken.try_next().await? {
                for frame in copied {
                    yield Made::Spooled(frame);
                }
                for batch in &batches {
                    for frame in open.push(batch) {
                        yield Made::Full(frame);
                    }
                }
            }
        };
        frames.boxed()
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
        let mut written = pin!(written);
        while let Some(frame) = written.try_next().await? {
            if let Some(pack) = packs.push(frame) {
                self.builder.put(fresh, &self.opened, pack, stored).await?;
            }
        }
        Ok(())
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

/// The objects that changed, by model.
async fn changed(
    builder: &Builder,
    live: &LiveDump,
    watermark: &Watermark,
    after: SyncId,
    most: u64,
) -> Result<Vec<(usize, Vec<Arc<str>>)>, RefreshError> {
    let limit = usize::try_from(most).unwrap_or(usize::MAX).saturating_add(1);
    let org = live.slot().org.clone();
    let range = ActionRange { org, after, to: watermark.sync_id, groups: Vec::new(), limit };
    let objects = builder.source().changed(&range).await?;
    if objects.len() >= limit {
        return Err(Full::Large(most).into());
    }
    let mut by_model: HashMap<usize, Vec<Arc<str>>> = HashMap::new();
    for Object { model, id } in objects {
        by_model.entry(model).or_default().push(id);
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

/// What the look-ups brought.
#[derive(Default)]
struct News {
    /// Rows read.
    read: u64,
    /// The objects found, as the database names them.
    found: HashSet<(usize, Arc<str>)>,
    /// Models and sets of rows that are put in.
    keys: HashSet<(u32, SetId)>,
}

impl News {
    /// The rows of a look-up that somebody sees, each object once.
    fn take(&mut self, model: usize, found: Found, sets: &GroupSets) -> Option<RowBatch> {
        let mut batch = RowBatch { model, lines: Vec::new(), rows: Vec::new(), by_set: false };
        for row in found.rows {
            self.read += 1;
            if !self.found.insert((model, row.id.clone())) || row.groups.as_slice().is_empty() {
                continue;
            }
            let set = sets.intern(row.groups);
            self.keys.insert((u32::try_from(model).ok()?, set));
            batch.lines.extend_from_slice(&row.line);
            batch.rows.push(RowRef { end: u32::try_from(batch.lines.len()).ok()?, set });
        }
        (!batch.rows.is_empty()).then_some(batch)
    }

    /// The models and sets that are written, where the manifest has them, by its index.
    fn written(&self, set_ids: &[SetId]) -> HashSet<(u32, u32)> {
        let places: HashMap<SetId, u32> = set_ids.iter().zip(0..).map(|(set, place)| (*set, place)).collect();
        self.keys.iter().filter_map(|(model, set)| Some((*model, *places.get(set)?))).collect()
    }

    /// What has to be taken out of the old frames.
    fn gone(&self, changed: &[(usize, Vec<Arc<str>>)]) -> Gone {
        let mut gone = Gone::default();
        for (model, ids) in changed {
            gone.entry(*model).or_default().extend(ids.iter().cloned());
        }
        for (model, id) in &self.found {
            gone.entry(*model).or_default().insert(id.clone());
        }
        gone
    }
}
