//! Making snapshots: one scan an org, followed by any number of readers, stored and published at the same time.
//!
//! Floor 4.

pub mod policy;
pub mod settings;

use std::sync::Arc;

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
