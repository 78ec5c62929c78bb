//! Making snapshots: one scan an org, followed by any number of readers, stored and published at the same time.
//!
//! Floor 4. The walk: [`Dumps::join`] finds or starts the dump of a slot; `build` scans, compresses and announces;
//! `upload` follows like any reader and puts packs; `publish` moves the head. The background job (`runner`) asks which
//! orgs need a dump and starts them through the same door.
//!
//! Where a snapshot is there already, `refresh` reads only what changed since and takes the rest over; `course` says when.
//!
//! # Who waits for whom
//! The scan waits for compression (a fixed number of frames at a time) and compression for the spool, nothing else:
//! neither a slow reader nor a slow store holds the PostgreSQL snapshot open. Readers and the upload wait for frames.
//! When the scan fails, everyone who follows gets the error and nothing is published. When the store fails, readers go
//! on; the finished spool is served until it is stale, and stored as soon as the store takes it.

mod aside;
pub mod build;
pub mod course;
mod driving;
pub mod ended;
mod follow;
pub mod frames;
pub mod live;
pub mod mapping;
mod news;
pub mod packs;
pub mod part;
pub mod policy;
pub mod queue;
mod refresh;
mod renewal;
pub mod reuse;
pub mod runner;
pub mod settings;
mod shards;
pub mod spool;
mod stored;
mod taken;
pub mod trim;
mod unstored;

pub use live::{LiveDump, Refreshed, Settled};
pub use part::{Frames, Part};
pub use queue::{Dumps, Joined, Wish};
pub use settings::DumpSettings;

use std::sync::Arc;

use crate::snapshot::FrameError;
use crate::source::SourceError;

/// Why a dump failed. Cheap to clone: every follower gets it.
#[derive(Debug, Clone, thiserror::Error)]
pub enum DumpError {
    /// The scan did.
    #[error("the database could not be read")]
    Source(#[source] Arc<SourceError>),
    /// The spool file could not be written or read: no space, usually.
    #[error("the spool file failed")]
    Spool(#[source] Arc<std::io::Error>),
    /// All spool files together would exceed their limit.
    #[error("the spool is full: dumps in progress already take {limit} bytes")]
    SpoolFull {
        /// The limit, in bytes.
        limit: u64,
    },
    /// zstd did not compress a frame.
    #[error("a frame could not be compressed")]
    Frame(#[source] Arc<FrameError>),
    /// The tables have changed since the dump was asked for; asking again gives the new schema.
    #[error("the schema changed")]
    SchemaChanged,
    /// Another instance dumps this org, and only the background job asked here; or it has published by now what was asked
    /// for.
    #[error("another instance dumps this org")]
    Elsewhere,
    /// The other instance whose dump was followed has gone in the middle.
    #[error("the instance that made the dump has gone")]
    Orphaned,
    /// As many dumps as allowed wait already.
    #[error("too many dumps wait already")]
    Overloaded,
    /// The service is stopping.
    #[error("the service is stopping")]
    Stopping,
    /// It ended without a word, by a bug; the log has the panic.
    #[error("the dump broke off")]
    Broken,
}

impl DumpError {
    /// It in one fixed word, for metrics.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Source(_) => "source",
            Self::Spool(_) => "spool",
            Self::SpoolFull { .. } => "spool_full",
            Self::Frame(_) => "frame",
            Self::SchemaChanged => "schema_changed",
            Self::Elsewhere => "elsewhere",
            Self::Orphaned => "orphaned",
            Self::Overloaded => "overloaded",
            Self::Stopping => "stopping",
            Self::Broken => "broken",
        }
    }
}

impl From<SourceError> for DumpError {
    fn from(error: SourceError) -> Self {
        Self::Source(Arc::new(error))
    }
}
