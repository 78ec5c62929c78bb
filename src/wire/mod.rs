//! The lines clients read: NDJSON, one object a line, `__class` first.
//!
//! Floor 2: pure functions over bytes.

pub mod action;
pub mod trailer;

pub use trailer::Metadata;
