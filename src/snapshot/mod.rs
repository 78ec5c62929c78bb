//! The snapshot format: frames in packs, named by a manifest.
//!
//! A *frame* is one independent zstd frame of whole lines of one model and one group set. A *pack* holds up to a few
//! MiB of frames and a table of them. The *manifest* says which frames of which packs an org's state consists of.
//! Frames are what clients get, byte for byte; packs are what the store holds and the cache weighs. The *index*, beside
//! the packs, says which frames a row can't be in.
//!
//! Floor 2: pure functions over bytes, no I/O, no async. Whatever comes from a store is parsed here and nowhere else:
//! every length is checked before it is used, and damage is an error that names what is damaged.

mod bytes;
pub mod frame;
pub mod index;
pub mod manifest;
pub mod pack;
pub mod select;

pub use frame::{Compressor, FrameError};
pub use index::IndexError;
pub use manifest::{FrameEntry, Manifest, ManifestError, PackEntry};
pub use pack::{PackBuilder, PackError, PackId};
pub use select::{Selectable, Selection, Slice, select};
