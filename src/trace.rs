//! Traces: which one a request is part of, and the spans of what is done for it.
//!
//! Floor 1: any room may begin a span. Spans are `tracing`'s, with a target of their own, so that they cost next to nothing
//! while nobody wants them and never show up in the log. What becomes of them is the telemetry's matter. A span says what was
//! done, for which org and with what outcome; never a token, nor anything of a row.
//!
//! A trace crosses services by the header `traceparent` (W3C Trace Context, <https://www.w3.org/TR/trace-context/>).

use std::fmt;

/// The target of all spans.
pub const TARGET: &str = "headstart::trace";

/// The field of a span that begins a part of a trace here: which trace.
pub const TRACE_ID: &str = "trace_id";
/// And whose work it is part of.
pub const PARENT_ID: &str = "parent_id";
/// And whether that side keeps the trace.
pub const SAMPLED: &str = "sampled";

/// A span, by its name and fields, as `tracing::info_span!` takes them.
macro_rules! span {
    ($name:literal $(, $($field:tt)*)?) => {
        tracing::info_span!(target: $crate::trace::TARGET, $name $(, $($field)*)?)
    };
}

/// The same, at the beginning of a trace or of the part of one that is here: with the fields [`TRACE_ID`], of a [`TraceId`],
/// and, where the trace began elsewhere, [`PARENT_ID`] and [`SAMPLED`]. Whatever span it begins in does not wait for its end.
macro_rules! root_span {
    ($name:literal, $($field:tt)*) => {
        tracing::info_span!(target: $crate::trace::TARGET, parent: None, $name, $($field)*)
    };
}

pub(crate) use {root_span, span};

/// Names a trace; never 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceId(pub u128);

/// Names a span; never 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SpanId(pub u64);

impl TraceId {
    /// A new one.
    pub fn random() -> Self {
        let mut bytes = [0; 16];
        getrandom::fill(&mut bytes).expect("the operating system gives random bytes");
        Self(u128::from_ne_bytes(bytes).max(1))
    }
}

impl SpanId {
    /// A new one.
    pub fn random() -> Self {
        Self(getrandom::u64().expect("the operating system gives random bytes").max(1))
    }
}

impl fmt::Display for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Display for SpanId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// What a caller says of the trace that its request is part of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceParent {
    /// The trace.
    pub trace: TraceId,
    /// The caller's span.
    pub span: SpanId,
    /// Whether the caller keeps the trace.
    pub sampled: bool,
}

impl TraceParent {
    /// Reads the header; `None` when it is not in order, which counts as not sent.
    pub fn parse(header: &str) -> Option<Self> {
        let mut parts = header.split('-');
        let (version, trace, span, flags) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
        // Later versions may have more parts, this one has not.
        let version = u8::try_from(hex(version, 2)?).ok().filter(|version| *version != 0xff)?;
        if version == 0 && parts.next().is_some() {
            return None;
        }
        let (trace, span) = (hex(trace, 32)?, u64::try_from(hex(span, 16)?).ok()?);
        let sampled = hex(flags, 2)? & 1 == 1;
        (trace != 0 && span != 0).then_some(Self { trace: TraceId(trace), span: SpanId(span), sampled })
    }
}

/// A number of so many digits, in lower case as the header has to be.
fn hex(text: &str, digits: usize) -> Option<u128> {
    let is_digit = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    (text.len() == digits && text.bytes().all(is_digit)).then(|| u128::from_str_radix(text, 16).ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_headers_in_order_are_taken() {
        let good = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        let parent = TraceParent::parse(good).unwrap();
        assert_eq!(parent.trace.to_string(), "4bf92f3577b34da6a3ce929d0e0e4736");
        assert_eq!(parent.span.to_string(), "00f067aa0ba902b7");
        assert!(parent.sampled);
        assert!(!TraceParent::parse(&good.replace("-01", "-00")).unwrap().sampled);
        assert!(TraceParent::parse(&good.replace("-01", "-03")).unwrap().sampled);
        assert_eq!(TraceParent::parse(&format!("cc{}-what-ever", &good[2..])), Some(parent));
        for bad in [
            "",
            "00",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "00-4bf92f3577b34da6a3ce929d0e0e473-00f067aa0ba902b7-01",
            "00-+bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-1",
        ] {
            assert_eq!(TraceParent::parse(bad), None, "{bad}");
        }
    }
}
