//! What objects are called.
//!
//! ```text
//! format                                   which layout this is
//! clock/<random>                           read back to learn the store's time
//! orgs/<org>/heads/<schema>/<generation>   one for each time the slot was moved
//! orgs/<org>/manifests/<snapshot>
//! orgs/<org>/packs/<snapshot>-<number>
//! orgs/<org>/leases/<number>               one for each time the lease was taken, renewed or given back
//! ```
//! Orgs and schema hashes are any text; [`segment`] makes a name of them that is safe on every file system, also one
//! that ignores case. The texts themselves stand inside the head objects.

use std::fmt::Write as _;

use object_store::path::Path;
use sha2::{Digest, Sha256};

use crate::model::{Generation, Org, SnapshotId};
use crate::snapshot::PackId;
use crate::store::Slot;
use crate::store::record::parse_pack;

/// Longer names are replaced by their digest; file systems allow 255 bytes, less what a staged file adds.
const MAX_SEGMENT: usize = 128;

/// Where all orgs are.
pub fn orgs() -> Path {
    Path::from("orgs")
}

/// Where everything of an org is.
pub fn org(org: &Org) -> Path {
    orgs().join(segment(org.as_str()))
}

/// The heads of all slots of an org.
pub fn heads(org_root: &Path) -> Path {
    org_root.clone().join("heads")
}

/// The heads of a slot.
pub fn slot(slot: &Slot) -> Path {
    heads(&org(&slot.org)).join(segment(slot.schema.as_str()))
}

/// One generation of the slot whose heads are here.
pub fn head(slot_root: &Path, generation: Generation) -> Path {
    // Twenty digits hold any u64, so that names sort as their numbers do.
    slot_root.clone().join(format!("{:020}", generation.0))
}

/// A manifest.
pub fn manifest(org_root: &Path, snapshot: SnapshotId) -> Path {
    org_root.clone().join("manifests").join(snapshot.to_string())
}

/// The packs of an org.
pub fn packs(org_root: &Path) -> Path {
    org_root.clone().join("packs")
}

/// A pack.
pub fn pack(org_root: &Path, pack: PackId) -> Path {
    packs(org_root).join(format!("{}-{}", pack.snapshot, pack.number))
}

/// The leases of an org.
pub fn leases(org_root: &Path) -> Path {
    org_root.clone().join("leases")
}

/// One entry of an org's leases.
pub fn lease(org_root: &Path, number: u64) -> Path {
    leases(org_root).join(format!("{number:020}"))
}

/// What an object of an org is, by its name.
#[derive(Debug, PartialEq, Eq)]
pub enum Name {
    /// The head of the slot with this schema segment at this generation.
    Head(String, Generation),
    /// A manifest.
    Manifest(SnapshotId),
    /// A pack.
    Pack(PackId),
    /// An entry of the leases.
    Lease(u64),
}

/// Reads the name of an object of this org; `None` for what this service did not put there.
pub fn parse(org_root: &Path, location: &Path) -> Option<Name> {
    let parts: Vec<String> = location.prefix_match(org_root)?.map(|part| part.as_ref().to_owned()).collect();
    match parts.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["heads", schema, generation] => Some(Name::Head(schema.to_owned(), Generation(generation.parse().ok()?))),
        ["manifests", snapshot] => Some(Name::Manifest(snapshot.parse().ok()?)),
        ["packs", pack] => Some(Name::Pack(parse_pack(pack, '-')?)),
        ["leases", number] => Some(Name::Lease(number.parse().ok()?)),
        _ => None,
    }
}

/// A name for any text: different texts have different names, of lower-case letters, digits, `-`, `_` and `=` only.
fn segment(text: &str) -> String {
    let mut name = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' => name.push(char::from(byte)),
            _ => push_hex(&mut name, "=", byte),
        }
    }
    if name.is_empty() || name.len() > MAX_SEGMENT {
        // No escaped text begins like this: x is no hexadecimal digit.
        name = String::from("=x");
        Sha256::digest(text.as_bytes()).iter().for_each(|byte| push_hex(&mut name, "", *byte));
    }
    name
}

fn push_hex(name: &mut String, before: &str, byte: u8) {
    write!(name, "{before}{byte:02x}").expect("writing to a String never fails");
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn names_survive_and_strangers_are_ignored() {
        let root = org(&Org::new("A/../b"));
        assert_eq!(root.as_ref(), "orgs/=41=2f=2e=2e=2fb");
        let snapshot = SnapshotId::random();
        let pack_id = PackId { snapshot, number: 7 };
        let slot_root = heads(&root).join("h");
        for (path, name) in [
            (head(&slot_root, Generation(u64::MAX)), Name::Head("h".into(), Generation(u64::MAX))),
            (manifest(&root, snapshot), Name::Manifest(snapshot)),
            (pack(&root, pack_id), Name::Pack(pack_id)),
            (lease(&root, 3), Name::Lease(3)),
        ] {
            assert_eq!(parse(&root, &path), Some(name), "{path}");
        }
        for stranger in ["packs/x", "heads/h/new", "README", "packs/a/b"] {
            assert_eq!(parse(&root, &Path::from(format!("{root}/{stranger}"))), None, "{stranger}");
        }
    }

    #[test]
    fn different_texts_have_different_names_whatever_the_case() {
        let long = "ö".repeat(200);
        let texts = ["", "a", "A", "=61", "=x", ".", "..", "a/b", "a b", "é", "É", "con", "\0", &long, &long[2..]];
        let names: HashSet<String> = texts.iter().map(|text| segment(text).to_lowercase()).collect();
        assert_eq!(names.len(), texts.len());
        for name in names {
            assert!(name.len() <= MAX_SEGMENT && !name.is_empty());
            assert_eq!(Path::from(name.as_str()).as_ref(), name, "no further encoding");
        }
    }
}
