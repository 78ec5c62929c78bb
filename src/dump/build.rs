//! Making one snapshot: scan to spool, spool to packs, packs to a published manifest.
//!
//! [`Builder::scan`] and [`Builder::store`] run side by side. The first owns the database's snapshot and ends as soon
//! as the last frame is in the spool; the second follows like any reader, so a slow or dead store costs the scan
//! nothing.

use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};

use async_stream::try_stream;
use futures_util::stream::BoxStream;
use futures_util::{Stream, StreamExt, TryStreamExt};
use tokio::sync::Semaphore;
use tokio::time::Instant;

use crate::chain::Chain;
use crate::dump::DumpError;
use crate::dump::frames::{FullFrame, OpenFrames};
use crate::dump::live::{LiveDump, LiveFrame, Opened};
use crate::dump::packs::PackPlan;
use crate::dump::settings::DumpSettings;
use crate::dump::stored::StoredPacks;
use crate::metrics::Metrics;
use crate::model::Generation;
use crate::snapshot::index::{self, RowIds};
use crate::snapshot::pack::TARGET_LEN;
use crate::snapshot::{Compressor, ManifestError, PackBuilder, PackEntry, PackId};
use crate::source::{RowBatch, Source, SourceError};
use crate::store::{Facts, SnapshotStore, StoreError};
use crate::task;

/// Packs that a dump puts at a time: a store takes longer to make one durable than it takes to build it, and in the end there
/// is a small one for almost every set.
const PUTS: usize = 6;

/// What the packs that are being put may hold together, in bytes; one may be larger.
const PUT_BYTES: u32 = 2 << 20;

/// What every dump of a process shares.
pub struct Builder {
    source: Arc<dyn Source>,
    store: Arc<dyn SnapshotStore>,
    settings: DumpSettings,
    metrics: Metrics,
    /// Compressors that are not in use; at most one for each frame that was ever compressed at the same time.
    compressors: Mutex<Vec<Compressor>>,
}

impl Builder {
    /// Nothing is opened yet.
    pub fn new(
        source: Arc<dyn Source>,
        store: Arc<dyn SnapshotStore>,
        settings: DumpSettings,
        metrics: Metrics,
    ) -> Self {
        Self { source, store, settings, metrics, compressors: Mutex::default() }
    }

    /// What is read.
    pub fn source(&self) -> &dyn Source {
        &*self.source
    }

    /// Where it goes.
    pub(super) fn destination(&self) -> &dyn SnapshotStore {
        &*self.store
    }

    /// How.
    pub(super) fn settings(&self) -> &DumpSettings {
        &self.settings
    }

    /// Reads the org into the dump's spool, announcing each frame. Memory: the open frames
    /// ([`DumpSettings::open_bytes`]) and [`DumpSettings::compressors`] frames being compressed. Dropping the future
    /// ends the transaction.
    ///
    /// # Errors
    /// What went wrong; the caller ends the dump with it.
    pub async fn scan(self: &Arc<Self>, live: &Arc<LiveDump>) -> Result<(), DumpError> {
        let scan = self.source.scan(&live.slot().org).await?;
        if scan.schema.hash != live.slot().schema {
            return Err(DumpError::SchemaChanged);
        }
        let ids = Arc::new(RowIds::new(&scan.schema));
        live.open(Opened {
            watermark: scan.watermark,
            schema: scan.schema,
            sets: scan.sets,
            estimated_rows: scan.estimated_rows,
            at: Some(Instant::now()),
        });
        let metrics = self.metrics.clone();
        let batches = scan.batches.inspect_ok(move |batch| {
            metrics.scanned_rows.inc_by(batch.rows.len() as u64);
            metrics.scanned_bytes.inc_by(batch.lines.len() as u64);
        });
        let frames = full_frames(batches.boxed(), OpenFrames::new(self.settings.open_bytes));
        let written = frames
            .map(|frame| {
                let (builder, live, ids) = (self.clone(), live.clone(), ids.clone());
                async move {
                    let frame = frame?;
                    task::blocking(move || builder.write(&live, &ids, &frame)).await
                }
            })
            .buffer_unordered(self.settings.compressors());
        let mut written = pin!(written);
        let (began, mut bytes) = (Instant::now(), 0);
        while let Some(frame) = written.try_next().await? {
            bytes += u64::from(frame.raw_len);
            live.announce(frame);
        }
        self.metrics.scanned(live.rows(), bytes, began.elapsed());
        Ok(())
    }

    /// Compresses a frame into the spool, and puts its filter there. Blocks.
    pub(super) fn write(&self, live: &LiveDump, ids: &RowIds, frame: &FullFrame) -> Result<LiveFrame, DumpError> {
        let compress = |error| DumpError::Frame(Arc::new(error));
        let idle = self.compressors.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let mut compressor = match idle {
            Some(compressor) => compressor,
            None => Compressor::for_rows(self.settings.compression_level).map_err(compress)?,
        };
        let bytes = compressor.compress(&frame.lines).map_err(compress)?;
        self.compressors.lock().unwrap_or_else(PoisonError::into_inner).push(compressor);
        let filter = ids.filter(frame.model as usize, &frame.lines);
        let length = |len: usize| u32::try_from(len).map_err(|_| too_long());
        Ok(LiveFrame {
            model: frame.model,
            set: frame.set,
            offset: live.spool().append(&bytes)?,
            len: length(bytes.len())?,
            filter: live.spool().append_filter(&filter)?,
            filter_len: length(filter.len())?,
            raw_len: length(frame.lines.len())?,
            rows: frame.rows,
        })
    }

    /// Follows the dump, puts its packs and publishes it over generation `over`; what is `declared` is announced to other
    /// instances piece by piece. Memory: 2 MiB of packs, or one. Dropping the future leaves packs that nobody names; the store
    /// sweeps them.
    ///
    /// # Errors
    /// The dump's own failure, or the store's.
    pub async fn store(&self, live: &Arc<LiveDump>, over: Generation, declared: bool) -> Result<Facts, StoreFailure> {
        let opened = live.wait_opened().await?;
        let mut stored = StoredPacks::new(declared, 0);
        let packs = full_packs(live.clone(), opened.clone());
        self.put_all(live, &opened, packs, &mut stored).await?;
        self.announce(live, &opened, stored.packs.len(), StoredPacks::default(), &mut stored.declared).await;
        self.publish(live, &opened, stored, over).await
    }

    /// Puts what is left of the index and publishes a manifest of what is stored.
    ///
    /// # Errors
    /// The store's.
    pub(super) async fn publish(
        &self,
        live: &LiveDump,
        opened: &Opened,
        mut stored: StoredPacks,
        over: Generation,
    ) -> Result<Facts, StoreFailure> {
        self.put_shard(live, &mut stored, 1).await?;
        let manifest = stored.manifest(live, opened, over.next());
        let facts = Facts {
            id: manifest.id,
            epoch: manifest.epoch.clone(),
            sync_id: manifest.sync_id,
            rows: manifest.rows(),
            raw_len: manifest.raw_len(),
            len: manifest.len(),
            packs: manifest.stored().map(|pack| pack.id).collect(),
        };
        let bytes = task::blocking(move || manifest.encode()).await?;
        self.metrics.stored_bytes.inc_by(bytes.len() as u64);
        self.store.publish(live.slot(), over, &facts, bytes.into()).await?;
        Ok(facts)
    }

    /// Puts the shard of the index that is being filled, if it holds so many bytes.
    pub(super) async fn put_shard(
        &self,
        live: &LiveDump,
        stored: &mut StoredPacks,
        from: usize,
    ) -> Result<(), StoreFailure> {
        let Some((id, bytes)) = stored.take_shard(live.id(), from) else { return Ok(()) };
        let len = u32::try_from(bytes.len()).map_err(|_| too_long())?;
        self.metrics.stored_bytes.inc_by(u64::from(len));
        stored.written += u64::from(len);
        self.store.put_pack(&live.slot().org, id, bytes).await?;
        stored.index.push(PackEntry { id, len });
        Ok(())
    }

    /// Puts packs of these frames, several at a time, and takes note of them in their order. Memory: [`PUT_BYTES`], or one pack.
    ///
    /// # Errors
    /// Those of the packs, the spool's or the store's.
    pub(super) async fn put_all<E: From<StoreFailure>>(
        &self,
        live: &Arc<LiveDump>,
        opened: &Opened,
        packs: impl Stream<Item = Result<Vec<LiveFrame>, E>> + Send,
        stored: &mut StoredPacks,
    ) -> Result<(), E> {
        let (first, room) = (stored.packs.len(), &Semaphore::new(PUT_BYTES as usize));
        let puts = packs.enumerate().map(|(place, frames)| async move {
            let frames = frames?;
            let number = u32::try_from(first + place).expect("a snapshot has fewer than 2^32 packs");
            // Given back once it is put, whether or not it was its turn to be noted.
            let len = frames.iter().fold(0_u32, |len, frame| len.saturating_add(frame.len));
            let _room = room.acquire_many(len.min(PUT_BYTES)).await.expect("never closed");
            Ok::<_, E>(self.put(live, opened, number, frames).await?)
        });
        let mut puts = pin!(puts.buffered(PUTS));
        while let Some(put) = puts.try_next().await? {
            self.note(live, opened, put, stored).await?;
        }
        Ok(())
    }

    /// Puts a pack of these frames.
    async fn put(
        &self,
        live: &Arc<LiveDump>,
        opened: &Opened,
        number: u32,
        frames: Vec<LiveFrame>,
    ) -> Result<Put, StoreFailure> {
        let id = PackId { snapshot: live.id(), number };
        let (sets, spooled, entries) = (opened.sets.clone(), live.clone(), frames.clone());
        let pack = task::blocking(move || {
            let mut builder = PackBuilder::with_capacity(entries.iter().map(|frame| frame.len as usize).sum());
            let mut bytes = Vec::new();
            for frame in &entries {
                bytes.clear();
                spooled.spool().read_into(&mut bytes, frame.offset, frame.len as usize)?;
                builder.push(frame.model, &sets.get(frame.set), &bytes, frame.raw_len, frame.rows);
            }
            Ok::<_, DumpError>(builder.finish())
        })
        .await?;
        let len = u32::try_from(pack.len()).map_err(|_| too_long())?;
        self.store.put_pack(&live.slot().org, id, pack).await?;
        Ok(Put { entry: PackEntry { id, len }, frames })
    }

    /// Takes note of a pack that is in the store, and puts the shard of the index that is full by it.
    async fn note(
        &self,
        live: &Arc<LiveDump>,
        opened: &Opened,
        Put { entry, frames }: Put,
        stored: &mut StoredPacks,
    ) -> Result<(), StoreFailure> {
        self.metrics.stored_bytes.inc_by(u64::from(entry.len));
        stored.written += u64::from(entry.len);
        let mut piece = StoredPacks::default();
        piece.add(entry, &frames, |set| opened.sets.get(set));
        self.announce(live, opened, stored.packs.len(), piece, &mut stored.declared).await;
        stored.add(entry, &frames, |set| opened.sets.get(set));
        let filters = live.clone().filters(frames.clone()).await?;
        stored.note_filters(entry.id, &frames, &filters);
        self.put_shard(live, stored, index::TARGET_LEN).await
    }

    /// Tells other instances of a pack, or with none that all have come. One that can't be told of ends the telling:
    /// whoever follows finds that nothing comes after it.
    async fn announce(&self, live: &LiveDump, opened: &Opened, number: usize, piece: StoredPacks, declared: &mut bool) {
        if !*declared {
            return;
        }
        let org = &live.slot().org;
        let piece = piece.manifest(live, opened, Generation::NONE);
        let told = match task::blocking(move || piece.encode()).await {
            Ok(piece) => self.store.announce(org, live.id(), number as u32, piece.into()).await,
            Err(error) => Err(StoreError::Unavailable(Arc::new(error))),
        };
        if let Err(error) = told {
            tracing::warn!(%org, snapshot = %live.id(), error = %Chain(&error), "other instances can't follow this dump any more");
            *declared = false;
        }
    }
}

/// A row or a pack beyond 4 GiB: PostgreSQL's own limit for a value is 1 GiB, so this takes several in one row.
fn too_long() -> DumpError {
    let cause = std::io::Error::other("a frame or pack would exceed 4 GiB");
    DumpError::Spool(Arc::new(cause))
}

/// Follows a dump and gives the frames of each pack: those that are full as they come, what is left at the end.
fn full_packs(live: Arc<LiveDump>, opened: Opened) -> impl Stream<Item = Result<Vec<LiveFrame>, StoreFailure>> + Send {
    try_stream! {
        let (mut plan, mut next) = (PackPlan::new(TARGET_LEN), 0);
        loop {
            let frames = live.frames_from(next, 0).await?;
            if frames.is_empty() {
                break;
            }
            next += frames.len();
            for pack in frames.into_iter().filter_map(|frame| plan.push(frame)) {
                yield pack;
            }
        }
        for pack in plan.finish(|set| opened.sets.get(set)) {
            yield pack;
        }
    }
}

/// A pack that is in the store, with its frames.
struct Put {
    entry: PackEntry,
    frames: Vec<LiveFrame>,
}

/// Turns batches into full frames; the open ones come at the end.
fn full_frames(
    mut batches: BoxStream<'static, Result<RowBatch, SourceError>>,
    mut open: OpenFrames,
) -> impl Stream<Item = Result<FullFrame, DumpError>> + Send {
    try_stream! {
        while let Some(batch) = batches.next().await {
            for frame in open.push(&batch?) {
                yield frame;
            }
        }
        for frame in open.finish() {
            yield frame;
        }
    }
}

/// Why a dump was not stored.
#[derive(Debug, thiserror::Error)]
pub enum StoreFailure {
    /// The dump itself failed; its readers know.
    #[error(transparent)]
    Dump(#[from] DumpError),
    /// The store did; readers are not affected.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The manifest could not be made.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
}
