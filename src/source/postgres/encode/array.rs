//! Arrays: `array_send` gives the number of dimensions, a flag, the element type, each dimension's length and lower
//! bound, then the elements in row-major order, each with its length, -1 for null. JSON has no lower bounds.

use super::{Malformed, take_i32, value};
use crate::source::postgres::types::Codec;

/// PostgreSQL's own limit (`MAXDIM`).
const MAX_DIMENSIONS: usize = 6;

pub(super) fn array(element: &Codec, raw: &[u8], out: &mut Vec<u8>) -> Result<(), Malformed> {
    let mut elements = Elements::new(raw)?;
    let lengths = elements.lengths;
    let lengths = &lengths[..elements.dimensions];
    if lengths.is_empty() {
        out.extend_from_slice(b"[]");
    } else {
        dimension(element, lengths, &mut elements, out)?;
    }
    if elements.left.is_empty() { Ok(()) } else { Err(Malformed("more bytes than elements")) }
}

fn dimension(
    element: &Codec,
    lengths: &[u32],
    elements: &mut Elements<'_>,
    out: &mut Vec<u8>,
) -> Result<(), Malformed> {
    let [length, inner @ ..] = lengths else { return Err(Malformed("no dimension")) };
    out.push(b'[');
    for index in 0..*length {
        if index > 0 {
            out.push(b',');
        }
        if !inner.is_empty() {
            dimension(element, inner, elements, out)?;
        } else if let Some(raw) = elements.take()? {
            value(element, raw, out)?;
        } else {
            out.extend_from_slice(b"null");
        }
    }
    out.push(b']');
    Ok(())
}

/// The elements of an array one after the other, whatever its dimensions; null as `None`. Stop at the first error.
pub struct Elements<'a> {
    dimensions: usize,
    lengths: [u32; MAX_DIMENSIONS],
    left: &'a [u8],
}

impl<'a> Elements<'a> {
    /// Reads the head.
    ///
    /// # Errors
    /// [`Malformed`] when it is not that of an array.
    pub fn new(mut raw: &'a [u8]) -> Result<Self, Malformed> {
        let dimensions = usize::try_from(take_i32(&mut raw)?).unwrap_or(usize::MAX);
        if dimensions > MAX_DIMENSIONS {
            return Err(Malformed("more dimensions than an array has"));
        }
        let (_has_nulls, _element_type) = (take_i32(&mut raw)?, take_i32(&mut raw)?);
        let mut lengths = [0; MAX_DIMENSIONS];
        let mut total = u64::from(dimensions > 0);
        for length in &mut lengths[..dimensions] {
            let count = take_i32(&mut raw)?;
            // PostgreSQL writes an array without elements as one without dimensions.
            *length = u32::try_from(count).ok().filter(|count| *count > 0).ok_or(Malformed("an empty dimension"))?;
            let _lower_bound = take_i32(&mut raw)?;
            total = total.saturating_mul(u64::from(*length));
        }
        // An element takes at least its length word, so a lying head can't make us write more than was sent.
        if total > raw.len() as u64 / 4 {
            return Err(Malformed("fewer elements than the head says"));
        }
        Ok(Self { dimensions, lengths, left: raw })
    }

    /// The next element, null as `None`. Past the last one it is an error.
    fn take(&mut self) -> Result<Option<&'a [u8]>, Malformed> {
        let length = take_i32(&mut self.left)?;
        if length == -1 {
            return Ok(None);
        }
        let length = usize::try_from(length).map_err(|_| Malformed("a negative length"))?;
        let (raw, rest) = self.left.split_at_checked(length).ok_or(Malformed("cut short"))?;
        self.left = rest;
        Ok(Some(raw))
    }
}

impl<'a> Iterator for Elements<'a> {
    type Item = Result<Option<&'a [u8]>, Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        (!self.left.is_empty()).then(|| self.take())
    }
}
