//! Which content coding an answer gets (RFC 9110, section 12.5.3). Pure.
//!
//! A client that says nothing gets identity: it may be one that decodes nothing. At equal weight zstd goes before
//! gzip, because stored frames are sent as they are, and gzip before identity.

use axum::http::HeaderMap;
use axum::http::header::ACCEPT_ENCODING;

/// A content coding this service can give.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encoding {
    /// Stored frames, as they are (RFC 8878).
    Zstd,
    /// Made while streaming.
    Gzip,
    /// Plain lines.
    Identity,
}

impl Encoding {
    /// The value of `content-encoding`; identity has none.
    pub fn name(self) -> Option<&'static str> {
        match self {
            Self::Zstd => Some("zstd"),
            Self::Gzip => Some("gzip"),
            Self::Identity => None,
        }
    }

    /// The best coding the headers accept, or `None` when they refuse all of them. `zstd` says whether that one is
    /// offered at all.
    pub fn negotiate(headers: &HeaderMap, zstd: bool) -> Option<Self> {
        let mut wishes = Wishes::default();
        for line in headers.get_all(ACCEPT_ENCODING) {
            // What is not text names no coding.
            line.to_str().unwrap_or_default().split(',').for_each(|element| wishes.read(element));
        }
        let offers = [(Self::Zstd, zstd), (Self::Gzip, true), (Self::Identity, true)];
        let best = offers
            .into_iter()
            .filter(|(_, offered)| *offered)
            .map(|(encoding, _)| (encoding, wishes.weight(encoding)))
            .filter(|(_, weight)| *weight > 0)
            // Of equal ones `max_by_key` would take the last; the order above is the service's own preference.
            .rev()
            .max_by_key(|(_, weight)| *weight);
        best.map(|(encoding, _)| encoding)
    }
}

/// Weights as they were listed, in thousandths; `None` was not listed.
#[derive(Default)]
struct Wishes {
    zstd: Option<u16>,
    gzip: Option<u16>,
    identity: Option<u16>,
    any: Option<u16>,
}

impl Wishes {
    /// One element of the list: `gzip;q=0.5`. One that makes no sense is passed over, as if it was not there.
    fn read(&mut self, element: &str) {
        let (name, parameter) = element.split_once(';').unwrap_or((element, "q=1"));
        let name = name.trim().to_ascii_lowercase();
        let slot = match name.as_str() {
            "zstd" => &mut self.zstd,
            "gzip" | "x-gzip" => &mut self.gzip,
            "identity" => &mut self.identity,
            "*" => &mut self.any,
            _ => return,
        };
        let value = parameter.trim().strip_prefix(['q', 'Q']).and_then(|rest| rest.trim_start().strip_prefix('='));
        if let Some(weight) = value.and_then(|value| thousandths(value.trim())) {
            // Listed twice: whoever refuses a coding once means it.
            *slot = Some(slot.map_or(weight, |before| before.min(weight)));
        }
    }

    fn weight(&self, encoding: Encoding) -> u16 {
        match encoding {
            Encoding::Zstd => self.zstd.or(self.any).unwrap_or(0),
            Encoding::Gzip => self.gzip.or(self.any).unwrap_or(0),
            // Always acceptable unless refused, but never before a coding that was asked for by name.
            Encoding::Identity => self.identity.or(self.any).unwrap_or(1),
        }
    }
}

/// A weight of RFC 9110, section 12.4.2: 0 to 1 with up to three decimals.
fn thousandths(text: &str) -> Option<u16> {
    let (whole, decimals) = text.split_once('.').unwrap_or((text, ""));
    if decimals.len() > 3 || !decimals.bytes().all(|digit| digit.is_ascii_digit()) {
        return None;
    }
    let part: u16 = format!("{decimals:0<3}").parse().ok()?;
    match whole {
        "0" => Some(part),
        "1" if part == 0 => Some(1000),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::HeaderValue;

    fn negotiate(lines: &[&'static str], zstd: bool) -> Option<Encoding> {
        let lines = lines.iter().map(|line| (ACCEPT_ENCODING, HeaderValue::from_static(line)));
        Encoding::negotiate(&lines.collect(), zstd)
    }

    #[test]
    fn the_matrix() {
        use Encoding::*;
        for (line, with_zstd, without) in [
            ("", Some(Identity), Some(Identity)),
            ("gzip, deflate, br, zstd", Some(Zstd), Some(Gzip)),
            ("gzip, deflate, br", Some(Gzip), Some(Gzip)),
            ("br", Some(Identity), Some(Identity)),
            ("zstd", Some(Zstd), Some(Identity)),
            ("ZSTD ; Q=0.9 , gzip;q=1", Some(Gzip), Some(Gzip)),
            ("x-gzip", Some(Gzip), Some(Gzip)),
            ("zstd;q=0, gzip", Some(Gzip), Some(Gzip)),
            ("zstd;q=0", Some(Identity), Some(Identity)),
            ("gzip;q=0.001", Some(Gzip), Some(Gzip)),
            ("gzip;q=0.5, identity", Some(Identity), Some(Identity)),
            ("gzip;q=0.5, identity;q=0.5", Some(Gzip), Some(Gzip)),
            ("*", Some(Zstd), Some(Gzip)),
            ("*;q=0.5, gzip;q=0.4", Some(Zstd), Some(Identity)),
            ("*;q=0", None, None),
            ("*;q=0, gzip", Some(Gzip), Some(Gzip)),
            ("*;q=0, zstd", Some(Zstd), None),
            ("identity;q=0", None, None),
            ("identity;q=0, zstd", Some(Zstd), None),
            ("identity;q=0, *;q=0.1", Some(Zstd), Some(Gzip)),
            ("gzip;q=nonsense, zstd;q=2", Some(Identity), Some(Identity)),
            ("zstd;q=0.0001, gzip;level=3", Some(Identity), Some(Identity)),
            ("gzip, gzip;q=0", Some(Identity), Some(Identity)),
        ] {
            assert_eq!(negotiate(&[line], true), with_zstd, "{line:?}");
            assert_eq!(negotiate(&[line], false), without, "{line:?} without zstd");
        }
        assert_eq!(negotiate(&[], true), Some(Identity));
        assert_eq!(negotiate(&["gzip;q=0.2", "zstd;q=0.1"], true), Some(Gzip));
    }
}
