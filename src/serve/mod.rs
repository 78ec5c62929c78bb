//! What the service does for a caller, without a word of HTTP.
//!
//! Floor 5. A call takes a [`Caller`](crate::model::Caller) (whom `access` made of verified claims) and a parsed query, and gives an
//! [`Answer`]: facts that are known before the first byte, and content as compressed frames. Encoding, headers, ranges
//! and status codes are the floor above.

pub mod access;
pub mod batch;
pub mod bootstrap;
pub mod delta;
pub mod freshness;
pub mod inspect;
pub mod last;
pub mod operate;
pub mod refused;
pub mod stored;
pub mod survey;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::BoxStream;
use serde::Serialize;
use tokio::sync::watch;
use tokio::time::timeout;

pub use crate::auth::Claims;
use crate::chain::Chain;
use crate::dump::policy::Limits;
use crate::dump::{DumpError, Dumps};
pub use crate::dump::{Frames, Part};
use crate::metrics::Metrics;
use crate::model::{Epoch, Grants, QueryError, Schema, SnapshotId, SyncGroup, SyncId};
use crate::serve::batch::answer::BatchSettings;
use crate::serve::batch::{LoadError, Loader};
use crate::serve::bootstrap::BootstrapSettings;
use crate::serve::delta::{CatchUp, DeltaSettings, Resync};
use crate::serve::freshness::Freshness;
use crate::serve::last::LastAnswers;
use crate::serve::refused::Refused;
use crate::serve::survey::Surveyor;
use crate::source::{Source, SourceError};
use crate::store::{PackCache, SnapshotStore, StoreError};
use crate::wire::trailer::Method;
use crate::wire::{Metadata, action};

/// How long a part may take to say how it is: less than whoever asks waits.
const READY_WITHIN: Duration = Duration::from_millis(1000);

/// The service. Clones share everything.
#[derive(Clone)]
pub struct Service {
    shared: Arc<Shared>,
}

struct Shared {
    source: Arc<dyn Source>,
    store: Arc<dyn SnapshotStore>,
    cache: PackCache,
    dumps: Dumps,
    freshness: Freshness,
    loader: Loader,
    refused: Refused,
    last: LastAnswers,
    surveyor: Surveyor,
    settings: ServeSettings,
    metrics: Metrics,
}

/// How callers are served.
#[derive(Clone, Debug)]
pub struct ServeSettings {
    /// Until when a snapshot is served.
    pub freshness: Limits,
    /// What a bootstrap allows.
    pub bootstrap: BootstrapSettings,
    /// What a delta allows.
    pub delta: DeltaSettings,
    /// What a batch may ask for.
    pub batch: BatchSettings,
}

/// How one part the service leans on is doing.
#[derive(Clone, Debug, Serialize)]
pub struct PartHealth {
    /// Its name: `database`, `store`.
    #[serde(rename = "name")]
    pub part: &'static str,
    /// What it can do now.
    #[serde(rename = "status")]
    pub state: Health,
    /// Why it is not well. For operators: it may name hosts and sessions.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// What can be done, from best to worst.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Health {
    /// Everything.
    Ok,
    /// Some requests, or slower.
    Degraded,
    /// Nothing.
    Down,
}

impl Service {
    /// Puts the rooms below together.
    pub fn new(
        source: Arc<dyn Source>,
        store: Arc<dyn SnapshotStore>,
        cache: PackCache,
        dumps: Dumps,
        loader: Loader,
        settings: ServeSettings,
        metrics: Metrics,
    ) -> Self {
        let wait = settings.bootstrap.database_wait();
        let freshness = Freshness::new(source.clone(), store.clone(), dumps.clone(), settings.freshness, wait);
        let (refused, last, surveyor) = (Refused::default(), LastAnswers::default(), Surveyor::default());
        let shared =
            Shared { source, store, cache, dumps, freshness, loader, refused, last, surveyor, settings, metrics };
        Self { shared: Arc::new(shared) }
    }

    /// The schema in force.
    ///
    /// # Errors
    /// The source's.
    pub async fn schema(&self) -> Result<Arc<Schema>, ServeError> {
        Ok(self.shared.source.schema().await?)
    }

    /// How the parts are doing. Without the store bootstraps go on from the database. Without the database published
    /// snapshots are served to callers whose token lists their groups, once the tables are known; taking the instance
    /// away would help nobody, since all of them lean on the same database. A part that does not say within
    /// a second does not answer.
    pub async fn readiness(&self) -> Vec<PartHealth> {
        let Shared { source, store, .. } = &*self.shared;
        let (database, store, unknown) =
            tokio::join!(fault_of(source.epoch()), fault_of(store.ping()), fault_of(source.schema()));
        let unstored = self.dumps().unstored_slots().len();
        let waiting = (unstored > 0).then(|| format!("the last dumps of {unstored} orgs could not be stored"));
        let health = |part, reason: Option<String>, failed| PartHealth {
            part,
            state: if reason.is_some() { failed } else { Health::Ok },
            reason,
        };
        vec![
            health("database", database, if unknown.is_some() { Health::Down } else { Health::Degraded }),
            health("store", store.or(waiting), Health::Degraded),
        ]
    }

    /// Whether answers wait for room in the pack cache that others hold, as it changes.
    pub fn crowded(&self) -> watch::Receiver<bool> {
        self.cache().crowded()
    }

    fn source(&self) -> &dyn Source {
        &*self.shared.source
    }

    fn cache(&self) -> &PackCache {
        &self.shared.cache
    }

    fn dumps(&self) -> &Dumps {
        &self.shared.dumps
    }

    fn refused(&self) -> &Refused {
        &self.shared.refused
    }

    fn freshness(&self) -> &Freshness {
        &self.shared.freshness
    }

    fn limits(&self) -> &Limits {
        &self.shared.settings.freshness
    }

    fn loader(&self) -> &Loader {
        &self.shared.loader
    }

    /// What a batch may ask for.
    pub fn batches(&self) -> &BatchSettings {
        &self.shared.settings.batch
    }

    fn metrics(&self) -> &Metrics {
        &self.shared.metrics
    }

    fn settings(&self) -> &BootstrapSettings {
        &self.shared.settings.bootstrap
    }
}

/// Why a part does not answer, if it does not.
async fn fault_of<T, E: std::error::Error>(answer: impl Future<Output = Result<T, E>>) -> Option<String> {
    match timeout(READY_WITHIN, answer).await {
        Ok(answer) => answer.err().map(|error| Chain(&error).to_string()),
        Err(_) => Some(format!("no answer within {} ms", READY_WITHIN.as_millis())),
    }
}

/// The beginning of an answer; the rest comes as it is read.
pub struct Answer {
    /// What is known now.
    pub facts: Facts,
    /// The rows, compressed.
    pub content: Content,
    /// The sync actions that follow the rows; `None` where they were not asked for.
    pub actions: Option<CatchUp>,
}

/// What is known of an answer before its first byte.
#[derive(Clone, Debug)]
pub struct Facts {
    /// Where the rows come from.
    pub method: Method,
    /// Why from there, in one fixed word, for metrics.
    pub why: &'static str,
    /// The snapshot the rows are of, published or not yet; a delta has none.
    pub snapshot: Option<SnapshotRef>,
    /// The history the sync ids belong to.
    pub epoch: Epoch,
    /// The answer holds everything up to here.
    pub last_sync_id: SyncId,
    /// How the rows look.
    pub schema: Arc<Schema>,
    /// The groups the answer is filtered by.
    pub groups: Grants,
    /// For each model of the schema, whether it was asked for; only these are counted.
    pub wanted: Vec<bool>,
}

/// A snapshot and what it is true at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SnapshotRef {
    /// Which one.
    pub id: SnapshotId,
    /// Its watermark.
    pub sync_id: SyncId,
}

impl Facts {
    /// The last line of the answer, given how many rows of each model (by index) it held, and how many sync actions if
    /// they were asked for.
    pub fn trailer(&self, rows: &[u64], actions: Option<u64>) -> Vec<u8> {
        let mut counts: BTreeMap<&str, u64> = (self.schema.names().zip(&self.wanted).zip(rows))
            .filter(|((_, wanted), _)| **wanted)
            .map(|((name, _), rows)| (name, *rows))
            .collect();
        counts.extend(actions.map(|actions| (action::CLASS, actions)));
        Metadata {
            method: self.method,
            epoch: &self.epoch,
            last_sync_id: self.last_sync_id,
            snapshot_sync_id: self.snapshot.map(|snapshot| snapshot.sync_id),
            schema_hash: &self.schema.hash,
            subscribed_sync_groups: self.groups.as_slice(),
            returned_models_count: counts,
        }
        .line()
    }
}

/// The rows of an answer.
pub enum Content {
    /// A published snapshot: every length is known, any part can be read again.
    Stored(Arc<dyn Stored>),
    /// A dump in progress.
    Live(BoxStream<'static, Result<Part, ServeError>>),
    /// None: a delta.
    Nothing,
}

/// The selected part of a published snapshot.
pub trait Stored: Send + Sync {
    /// Its slices, in order: whole frames each.
    fn slices(&self) -> &[SliceLen];

    /// Rows of each model, by index.
    fn rows(&self) -> &[u64];

    /// Reads the slices from index `from` on, one item each; the stream ends after the last. At most a few packs are
    /// held, in the shared cache, however slowly it is polled. An error is the last item.
    fn read(self: Arc<Self>, from: usize) -> BoxStream<'static, Result<Bytes, ServeError>>;
}

/// How long a slice is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SliceLen {
    /// As it is stored.
    pub len: u64,
    /// Decompressed.
    pub raw_len: u64,
}

/// Why there is no answer, or why it broke.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ServeError {
    /// `onlyModels` names a model that the catalog does not have.
    #[error("there is no model `{0}`")]
    UnknownModel(String),
    /// `onlyModels` names a model that only batches give.
    #[error("the model `{0}` is loaded by batch only")]
    ExplicitModel(String),
    /// `syncGroups` names a group the caller does not hold.
    #[error("the group `{0}` is not the caller's")]
    GroupNotHeld(SyncGroup),
    /// The client was made for another schema.
    #[error("the schema is {server} now")]
    SchemaMismatch {
        /// The server's schema hash.
        server: String,
    },
    /// `noCache` is not allowed here.
    #[error("`noCache` is turned off")]
    NoCacheRefused,
    /// What was asked for lies beyond the watermark, and it did not get there in time.
    #[error("the watermark is at {watermark}, below the sync id asked for")]
    Ahead {
        /// Where it is.
        watermark: SyncId,
    },
    /// Only a bootstrap helps.
    #[error(transparent)]
    Resync(#[from] Resync),
    /// The token's org or user can't be an id of this database.
    #[error("the token's `{claim}` can't be an id of this database")]
    ForeignClaim {
        /// `org` or `user`.
        claim: &'static str,
    },
    /// The database did not answer, or failed.
    #[error(transparent)]
    Source(#[from] Arc<SourceError>),
    /// The store did not answer, or what it gave is damaged.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A request of a batch names a model that the catalog does not have.
    #[error(transparent)]
    NoSuchModel(QueryError),
    /// A request of a batch asks by a field that is no key, or for a value that can't be one.
    #[error(transparent)]
    NoSuchKey(QueryError),
    /// A batch, or one request of it, asks for more than one answer may hold.
    #[error(transparent)]
    TooMuch(QueryError),
    /// An operator named an org that the database does not know.
    #[error("the database knows no such org")]
    UnknownOrg,
    /// An operator asked for a snapshot that is not there, or not any more.
    #[error("the store holds no such snapshot of the org")]
    NoSnapshot,
    /// The rows could not be loaded.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The dump that was followed failed.
    #[error(transparent)]
    Dump(#[from] DumpError),
}

impl From<SourceError> for ServeError {
    fn from(error: SourceError) -> Self {
        Self::Source(Arc::new(error))
    }
}
