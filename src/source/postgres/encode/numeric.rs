//! `numeric`: `numeric_send` gives the number of base-10000 digits, the weight of the first, the sign, the number of
//! decimals to show, then the digits.

use super::{Malformed, fixed, integer, pair};

const NEGATIVE: u16 = 0x4000;
const NAN: u16 = 0xC000;
const INFINITY: u16 = 0xD000;
const NEGATIVE_INFINITY: u16 = 0xF000;
/// The largest number of decimals (`NUMERIC_DSCALE_MASK`).
const MAX_SCALE: u16 = 0x3FFF;

pub(super) fn numeric(raw: &[u8], out: &mut Vec<u8>) -> Result<(), Malformed> {
    let (head, groups) = raw.split_first_chunk::<8>().ok_or(Malformed("cut short"))?;
    let word = |at: usize| u16::from_be_bytes([head[at], head[at + 1]]);
    let (count, weight, sign, scale) = (word(0), word(2).cast_signed(), word(4), word(6));
    if groups.len() != usize::from(count) * 2 || scale > MAX_SCALE {
        return Err(Malformed("not the digits of a numeric"));
    }
    match sign {
        0 => {}
        NEGATIVE => out.push(b'-'),
        NAN => out.extend_from_slice(b"\"NaN\""),
        INFINITY => out.extend_from_slice(b"\"Infinity\""),
        NEGATIVE_INFINITY => out.extend_from_slice(b"\"-Infinity\""),
        _ => return Err(Malformed("not the sign of a numeric")),
    }
    if sign > NEGATIVE {
        return Ok(());
    }
    let group = |place: i32| -> Result<u16, Malformed> {
        // Places count down from the weight; those beyond the digits sent are zero.
        let index = usize::try_from(i32::from(weight) - place).ok();
        match index.and_then(|index| groups.get(index * 2..index * 2 + 2)) {
            None => Ok(0),
            Some(digit) => match u16::from_be_bytes(fixed(digit)?) {
                digit if digit < 10_000 => Ok(digit),
                _ => Err(Malformed("not a digit of a numeric")),
            },
        }
    };
    let mut place = i32::from(weight).max(0);
    while place > 0 && group(place)? == 0 {
        place -= 1;
    }
    integer(group(place)?, out);
    for place in (0..place).rev() {
        out.extend_from_slice(&quad(group(place)?));
    }
    if scale > 0 {
        out.push(b'.');
        let end = out.len() + usize::from(scale);
        let mut place = -1;
        while out.len() < end {
            out.extend_from_slice(&quad(group(place)?));
            place -= 1;
        }
        out.truncate(end);
    }
    Ok(())
}

fn quad(number: u16) -> [u8; 4] {
    let ([a, b], [c, d]) = (pair(u32::from(number / 100)), pair(u32::from(number % 100)));
    [a, b, c, d]
}
