//! Answers made by hand, for the tests of this room.

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::{self, BoxStream};

use crate::dump::DumpError;
use crate::model::schema::ModelSchema;
use crate::model::{Catalog, Epoch, Grants, Schema, SnapshotId, SyncGroup, SyncId};
use crate::serve::{Answer, Content, Facts, Part, ServeError, SliceLen, SnapshotRef, Stored};
use crate::snapshot::Compressor;
use crate::wire::trailer::Method;

/// One slice: the lines of each of its frames.
pub type Frames = Vec<Vec<u8>>;

/// A published snapshot in memory.
pub struct Fake {
    lens: Vec<SliceLen>,
    slices: Vec<Bytes>,
    rows: Vec<u64>,
    /// After how many slices a read fails.
    fails_after: Option<usize>,
    /// How many slices were read.
    pub taken: AtomicUsize,
}

impl Fake {
    /// One that holds these slices.
    pub fn new(slices: &[Frames]) -> Self {
        let slices_and_lens = slices.iter().map(|frames| {
            let slice: Bytes = frames.iter().flat_map(|lines| compress(lines)).collect();
            let raw_len = frames.iter().map(|lines| lines.len() as u64).sum();
            (SliceLen { len: slice.len() as u64, raw_len }, slice)
        });
        let (lens, slices): (Vec<_>, Vec<_>) = slices_and_lens.unzip();
        Self { lens, rows: vec![slices.len() as u64], slices, fails_after: None, taken: AtomicUsize::new(0) }
    }

    /// The same, but reading ends with an error after some slices.
    pub fn failing_after(self, slices: usize) -> Self {
        Self { fails_after: Some(slices), ..self }
    }

    /// The same, but a slice is not what it was announced to be.
    pub fn with_slice(mut self, index: usize, slice: Bytes) -> Self {
        self.slices[index] = slice;
        self
    }

    /// The same, but a slice is announced with another length.
    pub fn with_len(mut self, index: usize, len: SliceLen) -> Self {
        self.lens[index] = len;
        self
    }
}

impl Stored for Fake {
    fn slices(&self) -> &[SliceLen] {
        &self.lens
    }

    fn rows(&self) -> &[u64] {
        &self.rows
    }

    fn read(self: Arc<Self>, from: usize) -> BoxStream<'static, Result<Bytes, ServeError>> {
        let indexes = from..self.slices.len();
        stream::iter(indexes)
            .map(move |index| {
                self.taken.fetch_add(1, Ordering::SeqCst);
                if self.fails_after.is_some_and(|after| index >= after) {
                    Err(broken())
                } else {
                    Ok(self.slices[index].clone())
                }
            })
            .boxed()
    }
}

/// One frame.
pub fn compress(lines: &[u8]) -> Vec<u8> {
    Compressor::new(1).unwrap().compress(lines).unwrap()
}

/// What a dump that broke gives its followers.
pub fn broken() -> ServeError {
    DumpError::Broken.into()
}

/// `count` lines.
pub fn lines(seed: usize, count: usize) -> Vec<u8> {
    let mut lines = Vec::with_capacity(count * 40);
    for row in 0..count {
        let id = row * 7919 % 10_007;
        writeln!(lines, "{{\"__class\":\"Issue\",\"id\":\"{seed}-{id}\"}}").expect("memory takes it");
    }
    lines
}

/// Bytes that can't be compressed, where nobody looks for lines.
pub fn noise(len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    getrandom::fill(&mut bytes).unwrap();
    bytes
}

/// A schema of one model.
pub fn schema() -> Arc<Schema> {
    let catalog = "[[models]]\nname=\"Issue\"\ntable=\"issue\"\nid=\"id\"\norg=\"org\"\nload=\"instant\"\n";
    Arc::new(Schema::new(Arc::new(Catalog::parse(catalog).unwrap()), vec![ModelSchema { fields: vec![] }]))
}

/// What is known of every answer made here.
pub fn facts() -> Facts {
    Facts {
        method: Method::Snapshot,
        why: "fresh",
        snapshot: Some(SnapshotRef { id: SnapshotId::from_bytes([7; 16]), sync_id: SyncId(41) }),
        epoch: Epoch::new("e"),
        last_sync_id: SyncId(41),
        schema: schema(),
        groups: Grants::new(vec![SyncGroup::of("org", "o")]),
        wanted: vec![true],
    }
}

/// An answer of a published snapshot.
pub fn stored(fake: &Arc<Fake>) -> Answer {
    Answer { facts: facts(), content: Content::Stored(fake.clone()), actions: None }
}

/// An answer of a dump in progress.
pub fn live(parts: Vec<Result<Part, ServeError>>) -> Answer {
    Answer { facts: facts(), content: Content::Live(stream::iter(parts).boxed()), actions: None }
}

/// Frames of a live answer.
pub fn frames(lines: &[u8]) -> Result<Part, ServeError> {
    Ok(Part::Frames(compress(lines).into()))
}
