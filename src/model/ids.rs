//! Identifiers, one type for each, so that an org is never taken for a user nor a sync id for a generation.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Serialize, Serializer};

/// Declares a cheaply cloned text identifier. Its text is what stands on the wire.
macro_rules! text_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
        pub struct $name(Arc<str>);

        impl $name {
            /// Wraps the text as it is.
            pub fn new(text: impl Into<Arc<str>>) -> Self {
                Self(text.into())
            }

            /// The text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:?}", &*self.0)
            }
        }
    };
}

text_id! {
    /// A tenant, by the canonical text of its id (what PostgreSQL prints for the org column's type).
    Org
}

text_id! {
    /// A user, by the canonical text of the id.
    User
}

text_id! {
    /// Which history the sync ids belong to: system identifier, timeline and identity of the log table.
    Epoch
}

text_id! {
    /// The digest of everything that decides how rows look and who sees them; hex.
    SchemaHash
}

text_id! {
    /// The unit of access, written `kind:id`. Kinds never hold a colon, so ids of different kinds never meet.
    SyncGroup
}

impl SyncGroup {
    /// The kind of the group every member of an org holds.
    pub const ORG: &'static str = "org";
    /// The kind of the group only one user holds.
    pub const USER: &'static str = "user";

    /// `kind:id`.
    pub fn of(kind: &str, id: &str) -> Self {
        Self(format!("{kind}:{id}").into())
    }

    /// Reads `kind:id`; `None` unless the kind is one the catalog could name and the id is not empty.
    pub fn parse(text: &str) -> Option<Self> {
        let (kind, id) = text.split_once(':')?;
        (is_group_kind(kind) && !id.is_empty()).then(|| Self(text.into()))
    }

    /// The part before the colon.
    pub fn kind(&self) -> &str {
        self.0.split_once(':').map_or("", |(kind, _)| kind)
    }
}

/// Whether a name can be the kind of a group: a lower-case letter, then lower-case letters, digits, `_` or `-`.
pub fn is_group_kind(name: &str) -> bool {
    let mut bytes = name.bytes();
    bytes.next().is_some_and(|b| b.is_ascii_lowercase())
        && bytes.all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_' || b == b'-')
}

/// A position in the change log: one increasing counter per database, drawn from a PostgreSQL `bigint` sequence.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct SyncId(pub u64);

impl SyncId {
    /// Before the first action.
    pub const ZERO: Self = Self(0);
    /// The largest id a `bigint` sequence draws.
    pub const MAX: Self = Self(i64::MAX as u64);
}

impl fmt::Display for SyncId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A text that is no sync id: it must be decimal digits only, at most 2^63 - 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a sync id is a whole number from 0 to 9223372036854775807")]
pub struct InvalidSyncId;

impl FromStr for SyncId {
    type Err = InvalidSyncId;

    fn from_str(text: &str) -> Result<Self, InvalidSyncId> {
        // `parse` alone would take a leading plus.
        if !text.bytes().all(|b| b.is_ascii_digit()) {
            return Err(InvalidSyncId);
        }
        let id = Self(text.parse().map_err(|_| InvalidSyncId)?);
        if id > Self::MAX { Err(InvalidSyncId) } else { Ok(id) }
    }
}

/// The highest sync id of an epoch below which no transaction is still open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Watermark {
    /// The history `sync_id` belongs to.
    pub epoch: Epoch,
    /// Everything up to here is visible to a read that begins now.
    pub sync_id: SyncId,
}

/// The random name of one snapshot. Packs, caches and etags are keyed by it, never by an org or a number.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SnapshotId([u8; 16]);

impl SnapshotId {
    /// Draws a new one from the operating system.
    ///
    /// # Panics
    /// When the operating system has no randomness to give, as the standard library's hash maps do.
    pub fn random() -> Self {
        let mut bytes = [0; 16];
        getrandom::fill(&mut bytes).expect("the operating system gives random bytes");
        Self(bytes)
    }

    /// The id with these bytes.
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// Its bytes.
    pub const fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }
}

impl fmt::Display for SnapshotId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for SnapshotId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for SnapshotId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl FromStr for SnapshotId {
    type Err = InvalidSnapshotId;

    fn from_str(text: &str) -> Result<Self, InvalidSnapshotId> {
        let digits = text.as_bytes();
        if digits.len() != 32 {
            return Err(InvalidSnapshotId);
        }
        let nibble = |digit: u8| match digit {
            b'0'..=b'9' => Ok(digit - b'0'),
            b'a'..=b'f' => Ok(digit - b'a' + 10),
            _ => Err(InvalidSnapshotId),
        };
        let mut bytes = [0; 16];
        for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
            *byte = nibble(pair[0])? << 4 | nibble(pair[1])?;
        }
        Ok(Self(bytes))
    }
}

/// A text that is no snapshot id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a snapshot id is 32 lower-case hexadecimal digits")]
pub struct InvalidSnapshotId;

/// How many times the snapshot of one org and schema hash has been replaced. 0: never published.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Generation(pub u64);

impl Generation {
    /// Nothing was published yet.
    pub const NONE: Self = Self(0);

    /// The one that replaces this one.
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sync_ids_are_plain_digits_within_bigint() {
        assert_eq!("7".parse(), Ok(SyncId(7)));
        assert_eq!("9223372036854775807".parse(), Ok(SyncId::MAX));
        for bad in ["", "-1", "+1", "1.0", " 1", "9223372036854775808", "99999999999999999999", "x"] {
            assert_eq!(bad.parse::<SyncId>(), Err(InvalidSyncId), "{bad:?}");
        }
    }

    #[test]
    fn snapshot_ids_survive_their_text() {
        let id = SnapshotId::random();
        assert_eq!(id.to_string().parse(), Ok(id));
        assert!("zz".parse::<SnapshotId>().is_err());
    }

    #[test]
    fn groups_need_a_kind_and_an_id() {
        assert_eq!(SyncGroup::parse("team:1:2").map(|group| group.kind().to_owned()), Some("team".into()));
        for bad in ["team", "team:", ":1", "Team:1", ""] {
            assert_eq!(SyncGroup::parse(bad), None, "{bad:?}");
        }
    }
}
