//! The words of the service as types: ids, the catalog, the schema it resolves to, access, queries.
//!
//! Floor 1: pure, no I/O, no async. Every other floor may use it.

pub mod access;
pub mod action;
pub mod batch;
pub mod catalog;
pub mod ids;
pub mod key;
pub mod query;
pub mod schema;

pub use access::{Caller, Grants, GroupSet};
pub use action::Letter;
pub use batch::{BatchQuery, BatchRequest, Named};
pub use catalog::{Catalog, Load, Model};
pub use ids::{Epoch, Generation, Org, SchemaHash, SnapshotId, SyncGroup, SyncId, User, Watermark};
pub use query::{BootstrapQuery, DeltaQuery, QueryError};
pub use schema::{Field, ModelSchema, Schema};
