//! The index of a snapshot: for each frame, which rows can't be in it.
//!
//! A refresh asks it which frames a changed row may stand in, so that it decodes those and no other. It is kept beside the
//! packs, in *shards* that are stored as packs are and that the manifest names; who serves clients never loads it.
//!
//! # What it holds
//! For each frame a *filter*: the ids of its n rows, hashed to 64 bits and brought down to n · 8192 values, in
//! ascending order, each as its distance from the one before. The mean distance is 8192, so most take two bytes:
//! 2.1 bytes a row are measured, with one of 8192 rows that are not in a frame taken for being in it. Rows that are
//! there are always found. A false hit costs the rewriting of one frame and nothing else.
//!
//! ```text
//! shard: (pack | frames (n) | (offset | filter length | filter) × n)… | version (u32) | xxh3-64 of all before (u64) | "HSIX"
//! ```
//!
//! The id of a row is the text that the change log has for it, read out of the row's own line. Where the two may be written
//! differently (ids of other types than uuid, integers and text) frames have no filter: then nothing can be said of them.

use std::borrow::Cow;

use bytes::Bytes;
use xxhash_rust::xxh3::xxh3_64;

use crate::model::Schema;
use crate::model::ids::SnapshotId;
use crate::snapshot::bytes::{Malformed, Reader, put_number};
use crate::snapshot::frame;
use crate::snapshot::pack::PackId;

/// Types of ids that log and lines write alike, besides `character varying`. Others may differ: points in time are ISO 8601 in
/// lines, `char(n)` loses its blanks in the log.
const ALIKE: [&str; 5] = ["uuid", "smallint", "integer", "bigint", "text"];

/// How many bytes a shard is meant to hold.
pub const TARGET_LEN: usize = 4 << 20;

/// Values a filter tells apart, for each of its rows.
const SPREAD: u64 = 1 << 13;

const MAGIC: &[u8; 4] = b"HSIX";
const VERSION: u32 = 1;
const TRAILER_LEN: usize = 4 + 8 + 4;

/// Reads the ids of lines, whatever stands before them.
#[derive(Clone, Debug)]
pub struct RowIds {
    /// For each model the key of its id on the wire, as JSON; `None` where log and line write it differently.
    keys: Vec<Option<Vec<u8>>>,
}

impl RowIds {
    /// For the models of a schema.
    pub fn new(schema: &Schema) -> Self {
        let keys = schema.catalog.models().iter().zip(&schema.models).map(|(model, columns)| {
            let id = columns.fields.iter().find(|field| field.column == model.id)?;
            let alike = ALIKE.contains(&id.sql_type.as_str()) || id.sql_type.starts_with("character varying");
            alike.then(|| serde_json::Value::from(id.name.as_str()).to_string().into_bytes())
        });
        Self { keys: keys.collect() }
    }

    /// Whether ids of a model's lines can be held against those of the log.
    pub fn are_known(&self, model: usize) -> bool {
        self.keys.get(model).is_some_and(Option::is_some)
    }

    /// The id in a line of a model; `None` when it has none that can be compared.
    pub fn id<'a>(&self, model: usize, line: &'a [u8]) -> Option<Cow<'a, str>> {
        let key = self.keys.get(model)?.as_ref()?;
        text(value_of(line, key)?)
    }

    /// The filter of a frame with these lines; empty when there can be none.
    pub fn filter(&self, model: usize, lines: &[u8]) -> Vec<u8> {
        let ids = frame::lines(lines).map(|line| self.id(model, line));
        let hashes: Option<Vec<u64>> = ids.map(|id| id.map(|id| hash(&id))).collect();
        hashes.map(filter).unwrap_or_default()
    }
}

/// What filters know of an id.
pub fn hash(id: &str) -> u64 {
    xxh3_64(id.as_bytes())
}

/// The bytes of a top-level value in a line, found by its key as JSON. Lines are made by the service: well-formed objects.
fn value_of<'a>(line: &'a [u8], key: &[u8]) -> Option<&'a [u8]> {
    let mut at = after(line, 0, b'{')?;
    loop {
        let end = string_end(line, at)?;
        let found = line.get(at..end)? == key;
        let start = blank(line, after(line, end, b':')?);
        let stop = value_end(line, start)?;
        if found {
            return line.get(start..stop);
        }
        at = blank(line, after(line, stop, b',')?);
    }
}

/// Past blanks.
fn blank(line: &[u8], at: usize) -> usize {
    at + line.get(at..).unwrap_or_default().iter().take_while(|byte| byte.is_ascii_whitespace()).count()
}

/// Past blanks and this byte.
fn after(line: &[u8], at: usize, byte: u8) -> Option<usize> {
    let at = blank(line, at);
    (*line.get(at)? == byte).then(|| blank(line, at + 1))
}

/// Where the string that begins here ends.
fn string_end(line: &[u8], start: usize) -> Option<usize> {
    if *line.get(start)? != b'"' {
        return None;
    }
    let mut at = start + 1;
    loop {
        at += line.get(at..)?.iter().position(|byte| matches!(byte, b'"' | b'\\'))?;
        if line[at] == b'"' {
            return Some(at + 1);
        }
        at += 2;
    }
}

/// Where the value that begins here ends.
fn value_end(line: &[u8], start: usize) -> Option<usize> {
    match *line.get(start)? {
        b'"' => string_end(line, start),
        b'{' | b'[' => {
            let (mut at, mut depth) = (start, 0_usize);
            loop {
                at += line.get(at..)?.iter().position(|byte| matches!(byte, b'"' | b'{' | b'[' | b'}' | b']'))?;
                match line[at] {
                    b'"' => at = string_end(line, at)?,
                    b'{' | b'[' => (at, depth) = (at + 1, depth + 1),
                    _ => (at, depth) = (at + 1, depth - 1),
                }
                if depth == 0 {
                    return Some(at);
                }
            }
        }
        _ => {
            let plain = |byte: &u8| matches!(byte, b',' | b'}') || byte.is_ascii_whitespace();
            Some(start + line.get(start..)?.iter().position(plain)?)
        }
    }
}

/// A string's content, a number's digits.
fn text(value: &[u8]) -> Option<Cow<'_, str>> {
    match value {
        [b'"', inner @ .., b'"'] if !inner.contains(&b'\\') => std::str::from_utf8(inner).ok().map(Cow::Borrowed),
        [b'"', ..] => serde_json::from_slice::<String>(value).ok().map(Cow::Owned),
        b"null" | [b'{' | b'[', ..] => None,
        _ => std::str::from_utf8(value).ok().map(Cow::Borrowed),
    }
}

fn filter(mut hashes: Vec<u64>) -> Vec<u8> {
    hashes.sort_unstable();
    let mut out = Vec::with_capacity(hashes.len() * 9 / 4 + 8);
    put_number(&mut out, hashes.len() as u64);
    let mut before = 0;
    for hash in &hashes {
        let value = spread(*hash, hashes.len() as u64);
        put_number(&mut out, value - before);
        before = value;
    }
    out
}

/// Brings a hash into a filter of so many rows. It keeps the order of hashes.
fn spread(hash: u64, rows: u64) -> u64 {
    let values = u128::from(rows) * u128::from(SPREAD);
    ((u128::from(hash) * values) >> 64) as u64
}

/// Whether a frame with this filter may hold one of some rows, given by the hashes of their ids in ascending order.
/// Without a filter it may hold any.
///
/// # Errors
/// When the bytes are no filter.
pub fn may_hold(filter: &[u8], sorted: &[u64]) -> Result<bool, Malformed> {
    if filter.is_empty() {
        return Ok(!sorted.is_empty());
    }
    let mut reader = Reader(filter);
    let rows = reader.number::<u32>()?;
    let (mut value, mut rest, mut wanted) = (0_u64, sorted, 0);
    for _ in 0..rows {
        value = value.checked_add(reader.number()?).ok_or(Malformed::Number)?;
        // Mostly a frame has far more rows than were changed, and most are below the next that is wanted.
        if value < wanted {
            continue;
        }
        rest = &rest[rest.partition_point(|hash| spread(*hash, rows.into()) < value)..];
        let Some(next) = rest.first() else { return Ok(false) };
        wanted = spread(*next, rows.into());
        if wanted == value {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Collects the filters of packs into one shard. Memory: the shard.
#[derive(Debug, Default)]
pub struct ShardBuilder {
    bytes: Vec<u8>,
}

impl ShardBuilder {
    /// Appends the filters of a pack's frames, each with the frame's offset.
    pub fn push<'a>(&mut self, pack: PackId, frames: impl ExactSizeIterator<Item = (u32, &'a [u8])>) {
        self.bytes.extend_from_slice(pack.snapshot.as_bytes());
        put_number(&mut self.bytes, pack.number.into());
        put_number(&mut self.bytes, frames.len() as u64);
        for (offset, filter) in frames {
            put_number(&mut self.bytes, offset.into());
            put_number(&mut self.bytes, filter.len() as u64);
            self.bytes.extend_from_slice(filter);
        }
    }

    /// Bytes so far.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Whether there is no pack in it yet.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// The shard, as it is stored.
    pub fn finish(self) -> Bytes {
        let mut bytes = self.bytes;
        bytes.extend_from_slice(&VERSION.to_le_bytes());
        let checksum = xxh3_64(&bytes);
        bytes.extend_from_slice(&checksum.to_le_bytes());
        bytes.extend_from_slice(MAGIC);
        bytes.into()
    }
}

/// The filters of one pack.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PackFilters {
    /// The pack.
    pub pack: PackId,
    /// The offset of each of its frames, ascending, and the frame's filter.
    pub frames: Vec<(u32, Bytes)>,
}

impl PackFilters {
    /// The filter of the frame at an offset.
    pub fn at(&self, offset: u32) -> Option<&Bytes> {
        let place = self.frames.binary_search_by_key(&offset, |(offset, _)| *offset).ok()?;
        self.frames.get(place).map(|(_, filter)| filter)
    }

    /// Bytes it takes in a shard, about.
    pub fn len(&self) -> usize {
        self.frames.iter().map(|(_, filter)| filter.len() + 6).sum::<usize>() + 20
    }

    /// Whether the pack has no frames.
    pub fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }
}

/// Verifies a shard and cuts it into the filters of its packs, without copying them.
///
/// # Errors
/// What is wrong with it.
pub fn read(shard: &Bytes) -> Result<Vec<PackFilters>, IndexError> {
    let split = shard.len().checked_sub(TRAILER_LEN).ok_or(IndexError::Truncated)?;
    let mut trailer = Reader(&shard[split..]);
    let version = u32::from_le_bytes(trailer.array()?);
    let checksum = u64::from_le_bytes(trailer.array()?);
    if trailer.0 != MAGIC {
        return Err(IndexError::Truncated);
    }
    if xxh3_64(&shard[..split + 4]) != checksum {
        return Err(IndexError::Checksum);
    }
    if version != VERSION {
        return Err(IndexError::Version(version));
    }
    let mut reader = Reader(&shard[..split]);
    let mut packs = Vec::new();
    while !reader.0.is_empty() {
        let snapshot = SnapshotId::from_bytes(reader.array()?);
        let pack = PackId { snapshot, number: reader.number()? };
        let count = reader.count()?;
        let frames: Result<Vec<_>, Malformed> = (0..count)
            .map(|_| {
                let (offset, len) = (reader.number()?, reader.number()?);
                Ok((offset, shard.slice_ref(reader.take(len)?)))
            })
            .collect();
        packs.push(PackFilters { pack, frames: frames? });
    }
    Ok(packs)
}

/// What is wrong with a shard of an index.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum IndexError {
    /// It is no shard, or a part of one.
    #[error("the index is cut off or not an index")]
    Truncated,
    /// A byte is not what was written.
    #[error("the index's checksum does not hold")]
    Checksum,
    /// Written by another version of the service.
    #[error("the index is of format {0}, which this version does not read")]
    Version(u32),
    /// It makes no sense, though the checksum holds.
    #[error("the index is malformed: {0}")]
    Malformed(#[from] Malformed),
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(line: &str, key: &str) -> Option<String> {
        let key = serde_json::Value::from(key).to_string();
        value_of(line.as_bytes(), key.as_bytes()).and_then(text).map(Cow::into_owned)
    }

    #[test]
    fn ids_are_found_wherever_they_stand() {
        let line = r#"{"__class":"A","a":{"id":"x","b":[1,"}\"",{}]},"n":-1.5e3, "i\"d" : "q\"\u00e4ö" ,"id":42}"#;
        assert_eq!(found(line, "id"), Some("42".into()));
        assert_eq!(found(line, "i\"d"), Some("q\"äö".into()));
        assert_eq!(found(line, "n"), Some("-1.5e3".into()));
        assert_eq!(found(line, "a"), None, "no id is an object");
        assert_eq!(found(line, "b"), None, "only the top level counts");
        assert_eq!(found(r#"{"id":null}"#, "id"), None);
        for at in 0..line.len() {
            if line.is_char_boundary(at) {
                let _ = found(&line[..at], "id");
            }
        }
    }

    /// Few false hits, no miss, and what it costs.
    #[test]
    fn a_filter_misses_nothing_and_is_small() {
        let ids: Vec<u64> = (0..1800).map(|n| hash(&format!("row-{n}"))).collect();
        let bytes = filter(ids.clone());
        let each = bytes.len() as f64 / ids.len() as f64;
        println!("{each:.3} bytes a row");
        assert!(each < 2.3, "{each} bytes a row");
        assert!(ids.iter().all(|id| may_hold(&bytes, &[*id]).unwrap()));
        let strangers = (0..10_000).filter(|n| may_hold(&bytes, &[hash(&format!("other-{n}"))]).unwrap()).count();
        assert!(strangers < 10, "{strangers} of 10,000, where 1 is to be expected");
        let mut many: Vec<u64> = (0..1000).map(|n| hash(&format!("third-{n}"))).collect();
        many.push(ids[77]);
        many.sort_unstable();
        assert!(may_hold(&bytes, &many).unwrap());
        assert!(!may_hold(&bytes, &[]).unwrap());
        assert!(may_hold(&[], &[1]).unwrap(), "without a filter nothing is known");
        assert!(may_hold(&bytes[..bytes.len() / 2], &[u64::MAX]).is_err());
    }

    #[test]
    fn a_shard_survives_and_damage_is_found() {
        let pack = |number| PackId { snapshot: SnapshotId::from_bytes([3; 16]), number };
        let mut builder = ShardBuilder::default();
        builder.push(pack(0), [(0, &b"abc"[..]), (700, &b""[..])].into_iter());
        builder.push(pack(5), [].into_iter());
        let shard = builder.finish();
        let packs = read(&shard).unwrap();
        assert_eq!(packs.iter().map(|filters| filters.pack).collect::<Vec<_>>(), [pack(0), pack(5)]);
        assert_eq!(packs[0].at(700), Some(&Bytes::new()));
        assert_eq!(packs[0].at(0), Some(&Bytes::from_static(b"abc")));
        assert_eq!(packs[0].at(1), None);
        for at in 0..shard.len() {
            assert!(read(&shard.slice(..at)).is_err(), "cut at {at}");
            let mut bad = shard.to_vec();
            bad[at] ^= 1;
            assert!(read(&bad.into()).is_err(), "flip at {at}");
        }
    }
}
