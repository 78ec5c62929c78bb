//! Dates, times and intervals. Days count from 2000-01-01 and microseconds from its midnight, in the proleptic
//! Gregorian calendar; the extreme values are infinities.
//!
//! `to_json` writes timestamps as XML Schema does (`2000-01-01T00:00:00+00:00`), all else by `DateStyle` ISO. A year
//! before 1 AD carries ` BC`, one after 9999 has more digits (`EncodeDateTime` and its kin in `datetime.c`).

use super::{Malformed, integer, pair};

const SECOND: i64 = 1_000_000;
const MINUTE: i64 = 60 * SECOND;
const HOUR: i64 = 60 * MINUTE;
const DAY: i64 = 24 * HOUR;

/// Days from 0000-03-01, where the arithmetic begins, to 2000-01-01.
const DAYS_TO_2000: i64 = 730_425;
/// Days in 400 years.
const ERA: i64 = 146_097;

pub(super) fn date(days: i32, out: &mut Vec<u8>) -> Result<(), Malformed> {
    if infinity(i64::from(days), i64::from(i32::MIN), i64::from(i32::MAX), out) {
        return Ok(());
    }
    out.push(b'"');
    let before_christ = calendar(i64::from(days), out);
    out.extend_from_slice(if before_christ { b" BC\"" } else { b"\"" });
    Ok(())
}

pub(super) fn timestamp(microseconds: i64, zoned: bool, out: &mut Vec<u8>) {
    if infinity(microseconds, i64::MIN, i64::MAX, out) {
        return;
    }
    out.push(b'"');
    let before_christ = calendar(microseconds.div_euclid(DAY), out);
    out.push(b'T');
    clock(microseconds.rem_euclid(DAY), out);
    if zoned {
        // Sessions run in UTC.
        out.extend_from_slice(b"+00:00");
    }
    out.extend_from_slice(if before_christ { b" BC\"" } else { b"\"" });
}

pub(super) fn time(microseconds: i64, out: &mut Vec<u8>) -> Result<(), Malformed> {
    out.push(b'"');
    time_of_day(microseconds, out)?;
    out.push(b'"');
    Ok(())
}

/// The time and the zone's seconds west of Greenwich.
pub(super) fn timetz(raw: &[u8; 12], out: &mut Vec<u8>) -> Result<(), Malformed> {
    let [a, b, c, d, e, f, g, h, zone @ ..] = *raw;
    let west = i32::from_be_bytes(zone);
    let seconds = west.unsigned_abs();
    if seconds >= 16 * 3600 {
        return Err(Malformed("a time zone beyond 15:59:59"));
    }
    out.push(b'"');
    time_of_day(i64::from_be_bytes([a, b, c, d, e, f, g, h]), out)?;
    out.push(if west <= 0 { b'+' } else { b'-' });
    out.extend_from_slice(&pair(seconds / 3600));
    if seconds % 3600 != 0 {
        out.push(b':');
        out.extend_from_slice(&pair(seconds / 60 % 60));
    }
    if seconds % 60 != 0 {
        out.push(b':');
        out.extend_from_slice(&pair(seconds % 60));
    }
    out.push(b'"');
    Ok(())
}

/// Microseconds, days, months; each with a sign of its own.
pub(super) fn interval(raw: &[u8; 16], infinite: bool, out: &mut Vec<u8>) {
    let [a, b, c, d, e, f, g, h, i, j, k, l, months @ ..] = *raw;
    let microseconds = i64::from_be_bytes([a, b, c, d, e, f, g, h]);
    let (days, months) = (i32::from_be_bytes([i, j, k, l]), i32::from_be_bytes(months));
    let extreme = |months_days: i32, end: i64| (months, days, microseconds) == (months_days, months_days, end);
    if infinite && (extreme(i32::MAX, i64::MAX) || extreme(i32::MIN, i64::MIN)) {
        out.extend_from_slice(if days > 0 { b"\"infinity\"" } else { b"\"-infinity\"" });
        return;
    }
    out.push(b'"');
    let (mut empty, mut before) = (true, false);
    for (count, unit) in [(months / 12, " year"), (months % 12, " mon"), (days, " day")] {
        if count == 0 {
            continue;
        }
        if !empty {
            out.push(b' ');
        }
        // A field after a negative one shows its sign.
        if before && count > 0 {
            out.push(b'+');
        }
        integer(count, out);
        out.extend_from_slice(unit.as_bytes());
        if count != 1 {
            out.push(b's');
        }
        (empty, before) = (false, count < 0);
    }
    if empty || microseconds != 0 {
        if !empty {
            out.push(b' ');
        }
        if microseconds < 0 {
            out.push(b'-');
        } else if before {
            out.push(b'+');
        }
        let all = microseconds.unsigned_abs();
        let hours = all / HOUR as u64;
        if hours < 10 {
            out.push(b'0');
        }
        integer(hours, out);
        let rest = (all % HOUR as u64).cast_signed();
        out.push(b':');
        out.extend_from_slice(&pair((rest / MINUTE) as u32));
        out.push(b':');
        seconds(rest % MINUTE, out);
    }
    out.push(b'"');
}

/// The extreme values stand for infinity.
fn infinity(value: i64, least: i64, most: i64, out: &mut Vec<u8>) -> bool {
    if value == most {
        out.extend_from_slice(b"\"infinity\"");
    } else if value == least {
        out.extend_from_slice(b"\"-infinity\"");
    }
    value == most || value == least
}

fn time_of_day(microseconds: i64, out: &mut Vec<u8>) -> Result<(), Malformed> {
    // 24:00 is a time to PostgreSQL.
    if !(0..=DAY).contains(&microseconds) {
        return Err(Malformed("a time beyond the day"));
    }
    clock(microseconds, out);
    Ok(())
}

/// `HH:MM:SS.ffffff` of 0 to 24 hours.
fn clock(microseconds: i64, out: &mut Vec<u8>) {
    let [a, b] = pair((microseconds / HOUR) as u32);
    let [c, d] = pair((microseconds % HOUR / MINUTE) as u32);
    out.extend_from_slice(&[a, b, b':', c, d, b':']);
    seconds(microseconds % MINUTE, out);
}

/// `SS.ffffff` of less than a minute; zeros at the end are left out.
fn seconds(microseconds: i64, out: &mut Vec<u8>) {
    out.extend_from_slice(&pair((microseconds / SECOND) as u32));
    let fraction = (microseconds % SECOND) as u32;
    if fraction != 0 {
        let ([a, b], [c, d], [e, f]) = (pair(fraction / 10_000), pair(fraction / 100 % 100), pair(fraction % 100));
        let digits = [b'.', a, b, c, d, e, f];
        let zeros = digits.iter().rev().take_while(|digit| **digit == b'0').count();
        out.extend_from_slice(&digits[..digits.len() - zeros]);
    }
}

/// `YYYY-MM-DD` of a day counted from 2000-01-01. Returns whether the year is one before Christ.
///
/// The years are taken from March on, so that the leap day is the last (Howard Hinnant, "chrono-Compatible Low-Level
/// Date Algorithms", `civil_from_days`).
fn calendar(days: i64, out: &mut Vec<u8>) -> bool {
    let days = days + DAYS_TO_2000;
    let (era, day_of_era) = (days.div_euclid(ERA), days.rem_euclid(ERA));
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / (ERA - 1)) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = era * 400 + year_of_era + i64::from(month <= 2);
    // There is no year zero: before 1 AD comes 1 BC.
    let shown = if year > 0 { year } else { 1 - year };
    if shown < 10_000 {
        out.extend_from_slice(&pair((shown / 100) as u32));
        out.extend_from_slice(&pair((shown % 100) as u32));
    } else {
        integer(shown, out);
    }
    let ([a, b], [c, d]) = (pair(month as u32), pair(day as u32));
    out.extend_from_slice(&[b'-', a, b, b'-', c, d]);
    year <= 0
}
