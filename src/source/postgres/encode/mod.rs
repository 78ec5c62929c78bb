//! PostgreSQL's binary values as JSON, appended to a buffer.
//!
//! The hot path of a dump: every value of every row passes here, so nothing is allocated per value and the only
//! dispatch is one `match`. What is written equals, as a JSON value, what `to_json` gives under the pool's session
//! settings; for numbers the text is the same too. `tests/it/encode.rs` holds it against the database.
//!
//! The binary formats are those of the `*_send` functions in PostgreSQL's `src/backend/utils/adt`. A value that does
//! not keep to its format is an error, never a panic and never a guess: it would mean that the type was taken wrong.

pub mod array;
mod float;
mod net;
mod numeric;
mod text;
mod time;

use crate::source::postgres::types::Codec;

/// A value that is not what its type's binary format allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a binary value of this type: {0}")]
pub struct Malformed(pub &'static str);

/// Appends one value that is not null. On an error the buffer may end in half a value.
///
/// # Errors
/// [`Malformed`] when the bytes are no value of the type.
pub fn value(codec: &Codec, raw: &[u8], out: &mut Vec<u8>) -> Result<(), Malformed> {
    match codec {
        Codec::Bool => match raw {
            [0] => out.extend_from_slice(b"false"),
            [1] => out.extend_from_slice(b"true"),
            _ => return Err(Malformed("a boolean is one byte, 0 or 1")),
        },
        Codec::Int2 => integer(i16::from_be_bytes(fixed(raw)?), out),
        Codec::Int4 => integer(i32::from_be_bytes(fixed(raw)?), out),
        Codec::Int8 => integer(i64::from_be_bytes(fixed(raw)?), out),
        Codec::Oid => {
            out.push(b'"');
            integer(u32::from_be_bytes(fixed(raw)?), out);
            out.push(b'"');
        }
        Codec::Float4 => float::float4(f32::from_be_bytes(fixed(raw)?), out),
        Codec::Float8 => float::float8(f64::from_be_bytes(fixed(raw)?), out),
        Codec::Numeric => numeric::numeric(raw, out)?,
        Codec::Text => text::string(raw, out)?,
        Codec::Uuid => text::uuid(&fixed(raw)?, out),
        Codec::Date => time::date(i32::from_be_bytes(fixed(raw)?), out)?,
        Codec::Time => time::time(i64::from_be_bytes(fixed(raw)?), out)?,
        Codec::TimeTz => time::timetz(&fixed(raw)?, out)?,
        Codec::Timestamp => time::timestamp(i64::from_be_bytes(fixed(raw)?), false, out),
        Codec::TimestampTz => time::timestamp(i64::from_be_bytes(fixed(raw)?), true, out),
        Codec::Interval { infinite } => time::interval(&fixed(raw)?, *infinite, out),
        Codec::Json | Codec::Fallback => text::json(raw, out)?,
        Codec::Jsonb => match raw {
            [1, json @ ..] => text::json(json, out)?,
            _ => return Err(Malformed("an unknown version of jsonb")),
        },
        Codec::Bytea => text::bytea(raw, out),
        Codec::Inet => net::inet(raw, out)?,
        Codec::MacAddr => net::macaddr(&fixed(raw)?, out),
        Codec::Array(element) => array::array(element, raw, out)?,
    }
    Ok(())
}

fn integer(value: impl itoa::Integer, out: &mut Vec<u8>) {
    out.extend_from_slice(itoa::Buffer::new().format(value).as_bytes());
}

fn fixed<const N: usize>(raw: &[u8]) -> Result<[u8; N], Malformed> {
    raw.try_into().map_err(|_| Malformed("another length than the type's"))
}

/// Takes a big-endian integer off the front.
fn take_i32(raw: &mut &[u8]) -> Result<i32, Malformed> {
    let (head, rest) = raw.split_first_chunk().ok_or(Malformed("cut short"))?;
    *raw = rest;
    Ok(i32::from_be_bytes(*head))
}

/// Two decimal digits of a number below 100.
fn pair(number: u32) -> [u8; 2] {
    debug_assert!(number < 100);
    [b'0' + (number / 10) as u8, b'0' + (number % 10) as u8]
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn codecs() -> Vec<Codec> {
        use Codec::*;
        let scalars = [
            Bool,
            Int2,
            Int4,
            Int8,
            Oid,
            Float4,
            Float8,
            Numeric,
            Text,
            Uuid,
            Date,
            Time,
            TimeTz,
            Timestamp,
            TimestampTz,
            Interval { infinite: true },
            Interval { infinite: false },
            Json,
            Jsonb,
            Bytea,
            Inet,
            MacAddr,
            Fallback,
        ];
        let arrays = scalars.iter().cloned().map(|codec| Array(Box::new(codec)));
        let nested = Array(Box::new(Array(Box::new(Text))));
        scalars.iter().cloned().chain(arrays).chain([nested]).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2_000))]

        /// Whatever comes over the wire, the answer is JSON on one line or an error. The text of `json` is PostgreSQL's
        /// own and passed on unread, so only the others are parsed.
        #[test]
        fn any_bytes_give_json_or_an_error(raw in proptest::collection::vec(any::<u8>(), 0..48)) {
            for codec in codecs() {
                let mut out = Vec::new();
                if value(&codec, &raw, &mut out).is_ok() {
                    prop_assert!(!out.contains(&b'\n'));
                    let element = if let Codec::Array(element) = &codec { element } else { &codec };
                    if !element.may_hold_null() {
                        let parsed = serde_json::from_slice::<&serde_json::value::RawValue>(&out);
                        prop_assert!(parsed.is_ok(), "{codec:?}: {}", String::from_utf8_lossy(&out));
                    }
                }
            }
        }

        /// Arrays that are nearly right get further in than random bytes do.
        #[test]
        fn broken_arrays_are_refused(
            dimensions in 0_i32..8,
            sizes in proptest::collection::vec(-1_i32..4, 0..8),
            tail in proptest::collection::vec(0_u8..6, 0..64),
        ) {
            let mut raw = [dimensions.to_be_bytes(), 0_i32.to_be_bytes(), 25_i32.to_be_bytes()].concat();
            for size in sizes {
                raw.extend(size.to_be_bytes());
                raw.extend(1_i32.to_be_bytes());
            }
            raw.extend(tail);
            let mut out = Vec::new();
            if value(&Codec::Array(Box::new(Codec::Text)), &raw, &mut out).is_ok() {
                prop_assert!(serde_json::from_slice::<serde_json::Value>(&out).is_ok());
            }
        }
    }

    #[test]
    fn huge_arrays_are_refused_without_being_made() {
        let mut raw = [6_i32.to_be_bytes(), 0_i32.to_be_bytes(), 25_i32.to_be_bytes()].concat();
        for _ in 0..6 {
            raw.extend([i32::MAX.to_be_bytes(), 1_i32.to_be_bytes()].concat());
        }
        assert!(value(&Codec::Array(Box::new(Codec::Text)), &raw, &mut Vec::new()).is_err());
    }
}
