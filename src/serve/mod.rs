//! What the service does for a caller, without a word of HTTP.
//!
//! Floor 5. A call takes a [`Caller`] (whom `access` made of verified claims) and a parsed query, and gives an
//! [`Answer`]: facts that are known before the first byte, and content as compressed frames. Encoding, headers, ranges
//! and status codes are the floor above.

pub mod access;
pub mod bootstrap;

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::stream::BoxStream;
use serde::Serialize;

pub use crate::auth::Claims;
use crate::dump::DumpError;
use crate::model::{BootstrapQuery, Caller, Epoch, Schema, SnapshotId, SyncGroup, SyncId};
use crate::source::SourceError;
use crate::store::StoreError;
use crate::wire::{Metadata, trailer::Method};

/// The beginning of an answer; the rest comes as it is read.
pub struct Answer {
    /// What is known now.
    pub facts: Facts,
    /// The rows, compressed.
    pub content: Content,
}

/// What is known of an answer before its first byte.
#[derive(Clone, Debug)]
pub struct Facts {
    /// Where the rows come from.
    pub method: Method,
    /// The snapshot, published or not yet.
    pub snapshot: SnapshotId,
    /// The history the sync ids belong to.
    pub epoch: Epoch,
    /// The answer holds everything up to here.
    pub last_sync_id: SyncId,
    /// The watermark of the snapshot.
    pub snapshot_sync_id: SyncId,
    /// How the rows look.
    pub schema: Arc<Schema>,
    /// The groups the answer is filtered by.
    pub groups: Vec<SyncGroup>,
    /// For each model of the schema, whether it was asked for; only these are counted.
    pub wanted: Vec<bool>,
}

impl Facts {
    /// The last line of the answer, given how many rows of each model (by index) it held.
    pub fn trailer(&self, rows: &[u64]) -> Vec<u8> {
        let counts: BTreeMap<&str, u64> = (self.schema.names().zip(&self.wanted).zip(rows))
            .filter(|((_, wanted), _)| **wanted)
            .map(|((name, _), rows)| (name, *rows))
            .collect();
        Metadata {
            method: self.method,
            epoch: &self.epoch,
            last_sync_id: self.last_sync_id,
            snapshot_sync_id: self.snapshot_sync_id,
            schema_hash: &self.schema.hash,
            subscribed_sync_groups: &self.groups,
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

/// What a live answer gives. The last item is `End` or an error; a stream that stops without either is broken.
#[derive(Debug)]
pub enum Part {
    /// One or more whole frames.
    Frames(Bytes),
    /// All rows were given: how many of each model, by index.
    End(Vec<u64>),
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
    /// The dump that was followed failed.
    #[error(transparent)]
    Dump(#[from] DumpError),
}

impl From<SourceError> for ServeError {
    fn from(error: SourceError) -> Self {
        Self::Source(Arc::new(error))
    }
}

/// Whether a caller may be answered with these groups only: all of them must be held.
pub(crate) fn check_held(caller: &Caller, groups: &[SyncGroup]) -> Result<(), ServeError> {
    match groups.iter().find(|group| !caller.grants.holds(group)) {
        Some(group) => Err(ServeError::GroupNotHeld(group.clone())),
        None => Ok(()),
    }
}

/// How one part the service leans on is doing.
#[derive(Clone, Debug, Serialize)]
pub struct PartHealth {
    /// Its name: `database`, `store`, `catalog`, …
    pub part: &'static str,
    /// What it can do now.
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

/// The handle the HTTP floor calls.
#[derive(Clone)]
pub struct Service {
    schema: Arc<Schema>,
}

impl Service {
    /// One that knows its schema and is stopping.
    pub fn new(schema: Arc<Schema>) -> Self {
        Self { schema }
    }

    /// Whom verified claims stand for.
    pub async fn caller(&self, claims: &Claims) -> Result<Caller, ServeError> {
        use crate::model::{Grants, Org, User};
        let own = || vec![SyncGroup::of(SyncGroup::ORG, &claims.org), SyncGroup::of(SyncGroup::USER, &claims.user)];
        Ok(Caller {
            org: Org::new(claims.org.as_str()),
            user: User::new(claims.user.as_str()),
            grants: Grants::new(claims.groups.clone().unwrap_or_else(own)),
        })
    }

    /// The current answer.
    pub async fn bootstrap(&self, _: &Caller, _: &BootstrapQuery) -> Result<Answer, ServeError> {
        Err(DumpError::Stopping.into())
    }

    /// The same from a given snapshot, if it is still kept.
    pub async fn stored(&self, _: &Caller, _: &BootstrapQuery, _: SnapshotId) -> Result<Option<Answer>, ServeError> {
        Ok(None)
    }

    /// How rows look now.
    pub async fn schema(&self) -> Result<Arc<Schema>, ServeError> {
        Ok(self.schema.clone())
    }

    /// How the parts are doing.
    pub async fn readiness(&self) -> Vec<PartHealth> {
        Vec::new()
    }
}
