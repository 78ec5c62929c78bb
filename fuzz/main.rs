//! What parses bytes from outside or from the store must take any of them: no panic, no endless loop, no allocation that
//! the bytes don't pay for, and what it accepts is sound.
//!
//! Built and run by `deploy/dev/fuzz.sh`, with libFuzzer. `HEADSTART_FUZZ_TARGET` names one of [`TARGETS`]. Formats with a
//! checksum are fuzzed behind it too: with a first byte that is odd, the rest is sealed as the writer would seal it.
#![no_main]

use std::collections::BTreeSet;
use std::sync::LazyLock;
use std::time::{Duration, UNIX_EPOCH};

use axum::http::Uri;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use futures_util::FutureExt;
use headstart::auth::{AuthSettings, Keys, Secret};
use headstart::http::bootstrap::pairs;
use headstart::model::{BatchQuery, BootstrapQuery, DeltaQuery, Grants};
use headstart::snapshot::frame::{self, Compressor};
use headstart::snapshot::select::{Selectable, select};
use headstart::snapshot::{Manifest, index, pack};
use jsonwebtoken::{Algorithm, EncodingKey};
use libfuzzer_sys::fuzz_target;
use xxhash_rust::xxh3::xxh3_64;

type Target = fn(&[u8]);

const TARGETS: [(&str, Target); 7] = [
    ("frame", fuzz_frame),
    ("pack", fuzz_pack),
    ("manifest", fuzz_manifest),
    ("index", fuzz_index),
    ("query", fuzz_query),
    ("batch", fuzz_batch),
    ("token", fuzz_token),
];

static TARGET: LazyLock<Target> = LazyLock::new(|| {
    let named = std::env::var("HEADSTART_FUZZ_TARGET").unwrap_or_default();
    let known = TARGETS.map(|(name, _)| name);
    let target = TARGETS.iter().find(|(name, _)| *name == named);
    target.unwrap_or_else(|| panic!("HEADSTART_FUZZ_TARGET is one of {known:?}, not `{named}`")).1
});

/// What packs and manifests carry beside their content, as it stands in stored bytes.
const PACK_VERSION: u32 = 1;
const PACK_END: &[u8] = b"HSPK";
const INDEX_END: &[u8] = b"HSIX";
const INDEX_VERSION: u32 = 1;
/// Both versions that are read.
const MANIFEST_BEGINNINGS: [&[u8]; 2] = [b"HSMF\x01\0\0\0", b"HSMF\x02\0\0\0"];

fuzz_target!(|data: &[u8]| TARGET(data));

/// Whether to seal, and what.
fn sealed(data: &[u8]) -> Option<(bool, &[u8])> {
    data.split_first().map(|(first, rest)| (first % 2 == 1, rest))
}

/// Sealed: a frame of the rest with one byte changed, or none. It is the rest that comes out, or nothing.
fn fuzz_frame(data: &[u8]) {
    let Some((seal, rest)) = sealed(data) else { return };
    let mut slice = rest.to_vec();
    let mut written = None;
    if seal && let Some(([low, high, change], lines)) = rest.split_first_chunk::<3>() {
        slice = Compressor::new(1).and_then(|mut compressor| compressor.compress(lines)).expect("zstd takes anything");
        let place = u16::from_le_bytes([*low, *high]) as usize % slice.len();
        slice[place] ^= change;
        written = Some(lines);
    }
    for frame in frame::frames(&slice) {
        let Ok((bytes, raw_len)) = frame else { return };
        assert!(!bytes.is_empty());
        // A manifest never names a frame of more than a few MiB.
        if raw_len <= 16 << 20
            && let Ok(lines) = frame::decompress(bytes, raw_len)
        {
            assert_eq!(lines.len(), raw_len);
            assert!(written.is_none_or(|written| written == lines), "a damaged frame was taken");
        }
    }
}

fn fuzz_pack(data: &[u8]) {
    let Some((seal, rest)) = sealed(data) else { return };
    let mut bytes = rest.to_vec();
    if seal && let Some((table_len, body)) = rest.split_first_chunk::<2>() {
        bytes = body.to_vec();
        bytes.extend_from_slice(&u32::from(u16::from_le_bytes(*table_len)).to_le_bytes());
        bytes.extend_from_slice(&PACK_VERSION.to_le_bytes());
        let checksum = xxh3_64(&bytes);
        bytes.extend_from_slice(&checksum.to_le_bytes());
        bytes.extend_from_slice(PACK_END);
    }
    let Ok(table) = pack::table(&bytes) else { return };
    let frames_len = pack::verify(&bytes).expect("a pack with a table is whole");
    assert_eq!(table.frames.iter().map(|frame| frame.len as usize).sum::<usize>(), frames_len);
    assert!(table.frames.iter().all(|frame| (frame.set as usize) < table.sets.len()));
}

fn fuzz_manifest(data: &[u8]) {
    let Some((seal, rest)) = sealed(data) else { return };
    let bytes = if seal {
        let body =
            Compressor::new(1).and_then(|mut compressor| compressor.compress(rest)).expect("zstd takes anything");
        [MANIFEST_BEGINNINGS[usize::from(data[0] >> 1 & 1)], &(rest.len() as u64).to_le_bytes(), &body].concat()
    } else {
        rest.to_vec()
    };
    let Ok(manifest) = Manifest::decode(&bytes) else { return };
    for frame in &manifest.frames {
        let pack = &manifest.packs[frame.pack as usize];
        assert!(u64::from(frame.offset) + u64::from(frame.len) <= u64::from(pack.len), "a frame lies outside its pack");
        assert!(frame.model < manifest.models && (frame.set as usize) < manifest.sets.len());
    }
    let manifest = Selectable::new(manifest);
    let grants = manifest.sets.iter().step_by(2).flat_map(|set| set.as_slice().to_vec());
    let grants = Grants::new(grants.collect());
    let selection = select(&manifest, &grants, |_| true);
    let sent: u64 = selection.slices.iter().map(|slice| u64::from(slice.bytes.end - slice.bytes.start)).sum();
    // The same frames as when each set is looked at.
    let seen: Vec<bool> = manifest.sets.iter().map(|set| grants.sees(set)).collect();
    let frames = manifest.frames.iter().filter(|frame| seen[frame.set as usize]);
    assert_eq!(sent, frames.map(|frame| u64::from(frame.len)).sum::<u64>());
    let again = Manifest::decode(&manifest.encode().expect("what was decoded can be encoded"));
    assert_eq!(again.expect("what was encoded can be decoded"), *manifest);
}

fn fuzz_index(data: &[u8]) {
    let Some((seal, rest)) = sealed(data) else { return };
    let mut bytes = rest.to_vec();
    if seal {
        bytes.extend_from_slice(&INDEX_VERSION.to_le_bytes());
        let checksum = xxh3_64(&bytes);
        bytes.extend_from_slice(&checksum.to_le_bytes());
        bytes.extend_from_slice(INDEX_END);
    }
    let Ok(packs) = index::read(&bytes.into()) else { return };
    let sorted = [0, 1 << 20, 1 << 40, u64::MAX];
    for (_, filter) in packs.iter().flat_map(|pack| &pack.frames) {
        // Whatever holds one of a few rows holds one of more.
        if index::may_hold(filter, &sorted[1..2]).is_ok_and(|held| held) {
            assert!(index::may_hold(filter, &sorted).expect("the same filter"));
        }
    }
}

fn fuzz_query(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let Ok(uri) = format!("/sync/bootstrap?{text}").parse::<Uri>() else { return };
    let Ok(pairs) = pairs(&uri) else { return };
    let pairs = || pairs.iter().map(|(name, value)| (&**name, &**value));
    if let Ok(query) = BootstrapQuery::parse(pairs()) {
        assert!(!query.partial || query.only_models.is_some() || query.sync_groups.is_some());
        assert!(query.only_models.is_none_or(|models| !models.is_empty()));
    }
    if let Ok(query) = DeltaQuery::parse(pairs()) {
        assert!(query.to_sync_id.is_none_or(|to| to >= query.last_sync_id));
    }
    let names: BTreeSet<&str> = pairs().map(|(name, _)| name).collect();
    assert!(names.len() == pairs().count() || BootstrapQuery::parse(pairs()).is_err(), "a name that stands twice");
}

fn fuzz_batch(data: &[u8]) {
    if let Ok(query) = BatchQuery::parse(data) {
        assert!(!query.requests.is_empty());
    }
}

static KEYS: LazyLock<(Keys, EncodingKey)> = LazyLock::new(|| {
    let secret = "k".repeat(32);
    let settings = AuthSettings { hs256_secret: Some(Secret::new(secret.clone())), ..AuthSettings::default() };
    (settings.keys().expect("the secret is long enough"), EncodingKey::from_secret(secret.as_bytes()))
});

/// Sealed: any header and payload, in their own encoding, with a signature that holds for HS256.
fn fuzz_token(data: &[u8]) {
    let Some((seal, rest)) = sealed(data) else { return };
    let (keys, key) = &*KEYS;
    let now = UNIX_EPOCH + Duration::from_secs(1_700_000_000);
    let verify = |token: &str| keys.verify(token, now).now_or_never().expect("keys of its own wait for nothing");
    let Ok(text) = std::str::from_utf8(rest) else { return };
    if !seal {
        assert!(verify(text).is_err(), "nobody guesses a signature");
        return;
    }
    let (header, payload) = text.split_once('\n').unwrap_or((r#"{"alg":"HS256","typ":"JWT"}"#, text));
    let message = format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(payload));
    let signature = jsonwebtoken::crypto::sign(message.as_bytes(), key, Algorithm::HS256).expect("HMAC takes anything");
    if let Ok(claims) = verify(&format!("{message}.{signature}")) {
        let header: serde_json::Value = serde_json::from_str(header).expect("a taken header is JSON");
        assert_eq!(header["alg"], "HS256");
        assert!(!claims.org.is_empty() && !claims.user.is_empty());
    }
}
