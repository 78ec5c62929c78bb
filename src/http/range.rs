//! Etags, and which bytes of an answer a request is for (RFC 9110, sections 8.8.3, 13 and 14). Pure.
//!
//! An etag holds the snapshot's id, so that a download that broke can go on from a snapshot that was replaced
//! meanwhile, for as long as that one is kept. To resume, a client sends `Range` with `If-Range`: without it the server
//! can't tell which bytes the client has, and gives a range of what is current.

use std::fmt;
use std::ops::Range;

use axum::http::header::{IF_NONE_MATCH, IF_RANGE, RANGE};
use axum::http::{HeaderMap, HeaderName, HeaderValue};
use sha2::{Digest, Sha256};

use crate::http::encoding::Encoding;
use crate::model::{BootstrapQuery, SnapshotId};

/// The strong validator of one answer: equal etags, equal bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Etag {
    snapshot: SnapshotId,
    digest: [u8; 8],
}

impl Etag {
    /// The etag of what a query selects from a snapshot, in an encoding. `trailer` is the metadata line as it is sent:
    /// it names all that is counted and all groups of the caller, and being encoded, it also differs between two servers
    /// whose zstd would encode it differently.
    pub fn new(snapshot: SnapshotId, query: &BootstrapQuery, encoding: Encoding, trailer: &[u8]) -> Self {
        // A canonical text: quoted names can't run into each other.
        let selection = (query.partial, &query.only_models, &query.sync_groups, encoding.name());
        let mut hash = Sha256::new();
        hash.update(format!("{selection:?}"));
        hash.update(trailer);
        let mut digest = [0; 8];
        digest.copy_from_slice(&hash.finalize()[..8]);
        Self { snapshot, digest }
    }

    /// The snapshot it is of.
    pub fn snapshot(&self) -> SnapshotId {
        self.snapshot
    }

    /// Reads a strong etag of this service; `None` for anything else.
    pub fn parse(text: &str) -> Option<Self> {
        let (snapshot, digits) = text.strip_prefix('"')?.strip_suffix('"')?.split_once('-')?;
        if digits.len() != 16 || !digits.bytes().all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f')) {
            return None;
        }
        let digest = u64::from_str_radix(digits, 16).ok()?.to_be_bytes();
        Some(Self { snapshot: snapshot.parse().ok()?, digest })
    }
}

impl fmt::Display for Etag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}-{:016x}\"", self.snapshot, u64::from_be_bytes(self.digest))
    }
}

/// What a request's headers ask about an answer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Conditions {
    /// Tags of `If-None-Match`, without their quotes' weakness; `*` is one of them.
    none_match: Vec<String>,
    if_range: IfRange,
    /// `Range`, if it is one range of bytes.
    range: Option<ByteRange>,
}

/// `If-Range`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum IfRange {
    /// It was not sent.
    #[default]
    Absent,
    /// It holds no tag of ours.
    Foreign,
    /// It holds this one.
    Tag(Etag),
}

/// One range of bytes, as it was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ByteRange {
    /// `a-b`, both included; `a-` goes to the end.
    From(u64, Option<u64>),
    /// `-n`: the last n bytes.
    Last(u64),
}

/// What to send.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Portion {
    /// 200 with everything.
    Whole,
    /// 206 with these bytes.
    Part(Range<u64>),
    /// 304: the client has it.
    NotModified,
    /// 416: it has not that many bytes.
    Unsatisfiable,
}

impl Conditions {
    /// Reads the headers. What is malformed, several ranges and other units are passed over, as the RFC demands: the
    /// answer is whole then. `get` is false for HEAD, which knows no ranges.
    pub fn read(headers: &HeaderMap, get: bool) -> Self {
        let text = |name: HeaderName| headers.get(name).and_then(|value| value.to_str().ok());
        let tags = headers.get_all(IF_NONE_MATCH).iter().filter_map(|line| line.to_str().ok());
        Self {
            // No tag of this service holds a comma, so one that does is none of ours however it is cut.
            none_match: tags
                .flat_map(|line| line.split(','))
                .map(|tag| tag.trim().trim_start_matches("W/").to_owned())
                .collect(),
            if_range: headers.get(IF_RANGE).map_or(IfRange::Absent, IfRange::read),
            range: text(RANGE).filter(|_| get).and_then(ByteRange::parse),
        }
    }

    /// The tag under which a download is to go on. With `If-None-Match` the question is another one.
    pub fn resumes(&self) -> Option<Etag> {
        match self.if_range {
            IfRange::Tag(etag) if self.range.is_some() && self.none_match.is_empty() => Some(etag),
            _ => None,
        }
    }

    /// What to send of an answer with this tag and length.
    pub fn judge(&self, etag: &Etag, len: u64) -> Portion {
        let current = etag.to_string();
        if self.none_match.iter().any(|tag| tag == "*" || *tag == current) {
            return Portion::NotModified;
        }
        match (self.range, self.if_range) {
            (None, _) => Portion::Whole,
            (Some(_), IfRange::Foreign) => Portion::Whole,
            (Some(_), IfRange::Tag(tag)) if tag != *etag => Portion::Whole,
            (Some(range), _) => range.within(len).map_or(Portion::Unsatisfiable, Portion::Part),
        }
    }
}

impl IfRange {
    fn read(header: &HeaderValue) -> Self {
        header.to_str().ok().and_then(Etag::parse).map_or(Self::Foreign, Self::Tag)
    }
}

impl ByteRange {
    fn parse(text: &str) -> Option<Self> {
        let (unit, range) = text.split_once('=')?;
        if !unit.trim().eq_ignore_ascii_case("bytes") {
            return None;
        }
        // A second range would bring a comma, which is no digit.
        let (first, last) = range.trim().split_once('-')?;
        match (first, last) {
            ("", last) => Some(Self::Last(number(last)?)),
            (first, "") => Some(Self::From(number(first)?, None)),
            (first, last) => {
                let (first, last) = (number(first)?, number(last)?);
                (first <= last).then_some(Self::From(first, Some(last)))
            }
        }
    }

    /// The bytes of an answer this long; `None` when there are none.
    fn within(self, len: u64) -> Option<Range<u64>> {
        let range = match self {
            Self::From(first, last) => first..last.map_or(len, |last| len.min(last.saturating_add(1))),
            Self::Last(count) => len.saturating_sub(count)..len,
        };
        (range.start < range.end).then_some(range)
    }
}

/// Decimal digits; a number beyond 64 bits lies behind every end, as the largest one does.
fn number(text: &str) -> Option<u64> {
    if text.is_empty() || !text.bytes().all(|digit| digit.is_ascii_digit()) {
        return None;
    }
    Some(text.parse().unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn etag() -> Etag {
        Etag::new(SnapshotId::from_bytes([7; 16]), &BootstrapQuery::default(), Encoding::Zstd, b"trailer")
    }

    fn judge(headers: &[(HeaderName, &str)], len: u64) -> Portion {
        let headers = headers.iter().map(|(name, value)| (name.clone(), HeaderValue::from_str(value).unwrap()));
        Conditions::read(&headers.collect(), true).judge(&etag(), len)
    }

    #[test]
    fn etags_survive_their_text_and_tell_answers_apart() {
        let tag = etag();
        assert_eq!(Etag::parse(&tag.to_string()), Some(tag));
        let (snapshot, whole) = (tag.snapshot(), BootstrapQuery::default());
        let groups = |name: &str| BootstrapQuery {
            partial: true,
            sync_groups: Some([crate::model::SyncGroup::new(name)].into()),
            ..BootstrapQuery::default()
        };
        let models = BootstrapQuery { only_models: Some(["Issue".into()].into()), ..BootstrapQuery::default() };
        let tags = [
            tag,
            Etag::new(SnapshotId::from_bytes([8; 16]), &whole, Encoding::Zstd, b"trailer"),
            Etag::new(snapshot, &whole, Encoding::Identity, b"trailer"),
            Etag::new(snapshot, &whole, Encoding::Zstd, b"trailes"),
            Etag::new(snapshot, &models, Encoding::Zstd, b"trailer"),
            Etag::new(snapshot, &groups("team:1"), Encoding::Zstd, b"trailer"),
            Etag::new(snapshot, &groups("team:2"), Encoding::Zstd, b"trailer"),
        ];
        let distinct: std::collections::HashSet<_> = tags.iter().map(Etag::to_string).collect();
        assert_eq!(distinct.len(), tags.len());
        let text = tag.to_string();
        for bad in ["", "\"\"", "*", &text[1..], &format!("W/{text}"), &text.to_uppercase(), &text.replace('-', "+")] {
            assert_eq!(Etag::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn ranges() {
        use Portion::*;
        for (range, expected) in [
            ("bytes=0-0", Part(0..1)),
            ("bytes=0-", Part(0..100)),
            ("bytes=10-19", Part(10..20)),
            ("Bytes = 10-19", Part(10..20)),
            ("bytes=99-", Part(99..100)),
            ("bytes=10-99999999999999999999999", Part(10..100)),
            ("bytes=-1", Part(99..100)),
            ("bytes=-1000", Part(0..100)),
            ("bytes=100-", Unsatisfiable),
            ("bytes=99999999999999999999999-", Unsatisfiable),
            ("bytes=-0", Unsatisfiable),
            ("bytes=5-4", Whole),
            ("bytes=0-1,5-6", Whole),
            ("bytes=-", Whole),
            ("bytes=a-b", Whole),
            ("bytes=+1-2", Whole),
            ("bytes 0-1", Whole),
            ("lines=0-1", Whole),
        ] {
            assert_eq!(judge(&[(RANGE, range)], 100), expected, "{range}");
        }
    }

    #[test]
    fn if_range_must_be_this_very_tag() {
        let (range, tag) = ((RANGE, "bytes=1-2"), etag().to_string());
        assert_eq!(judge(&[range.clone(), (IF_RANGE, &tag)], 9), Portion::Part(1..3));
        for other in [format!("W/{tag}"), "\"x\"".into(), "Wed, 21 Oct 2015 07:28:00 GMT".into(), String::new()] {
            assert_eq!(judge(&[range.clone(), (IF_RANGE, &other)], 9), Portion::Whole, "{other}");
        }
        assert_eq!(judge(&[(IF_RANGE, &tag)], 9), Portion::Whole);
    }

    #[test]
    fn if_none_match_compares_weakly_and_comes_first() {
        let tag = etag().to_string();
        for tags in [tag.clone(), format!("W/{tag}"), format!("\"a\", {tag}"), "*".into()] {
            assert_eq!(judge(&[(IF_NONE_MATCH, &tags), (RANGE, "bytes=1-2")], 9), Portion::NotModified, "{tags}");
        }
        assert_eq!(judge(&[(IF_NONE_MATCH, "\"a\""), (RANGE, "bytes=1-2")], 9), Portion::Part(1..3));
    }

    #[test]
    fn only_a_range_under_a_tag_of_ours_resumes() {
        let resumes = |headers: &[(HeaderName, String)], get| {
            let headers = headers.iter().map(|(name, value)| (name.clone(), HeaderValue::from_str(value).unwrap()));
            Conditions::read(&headers.collect(), get).resumes()
        };
        let (range, tag) = ((RANGE, "bytes=5-".to_owned()), (IF_RANGE, etag().to_string()));
        assert_eq!(resumes(&[range.clone(), tag.clone()], true), Some(etag()));
        assert_eq!(resumes(&[range.clone(), tag.clone()], false), None, "HEAD");
        assert_eq!(resumes(std::slice::from_ref(&tag), true), None);
        assert_eq!(resumes(std::slice::from_ref(&range), true), None);
        assert_eq!(resumes(&[range, tag, (IF_NONE_MATCH, "\"x\"".into())], true), None);
    }
}
