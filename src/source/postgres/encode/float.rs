//! Floats, with PostgreSQL's very digits and its choice between plain and exponent form.
//!
//! With `extra_float_digits` 1 PostgreSQL prints the shortest digits that read back as the same float, by Ryu with
//! one change: digits that lie exactly half-way between two floats are not used, because some readers round them
//! the other way (`STRICTLY_SHORTEST` in `src/common/d2s.c`). The ryu crate uses them: it prints 1e23 where
//! PostgreSQL prints 9.999999999999999e+22. The difference shows in `real` columns read as doubles, so it counts.

use super::integer;

pub(super) fn float8(number: f64, out: &mut Vec<u8>) {
    if !number.is_finite() {
        return not_finite(number, out);
    }
    let mut shortest = Decimal::parse(ryu::Buffer::new().format_finite(number));
    let bits = number.to_bits();
    let binary = Binary::new(bits & ((1 << 52) - 1), (bits >> 52 & 0x7ff) as i32, 52, 1023);
    if binary.half_way(&shortest) {
        let rounded = |digits: usize| format!("{:.*e}", digits - 1, number);
        shortest = within(&shortest, &binary, rounded, |text| text.parse() == Ok(number));
    }
    shortest.write(number.is_sign_negative(), 15, out);
}

pub(super) fn float4(number: f32, out: &mut Vec<u8>) {
    if !number.is_finite() {
        return not_finite(f64::from(number), out);
    }
    let mut shortest = Decimal::parse(ryu::Buffer::new().format_finite(number));
    let bits = number.to_bits();
    let binary = Binary::new(u64::from(bits & ((1 << 23) - 1)), (bits >> 23 & 0xff) as i32, 23, 127);
    if binary.half_way(&shortest) {
        let rounded = |digits: usize| format!("{:.*e}", digits - 1, number);
        shortest = within(&shortest, &binary, rounded, |text| text.parse() == Ok(number));
    }
    shortest.write(number.is_sign_negative(), 6, out);
}

fn not_finite(number: f64, out: &mut Vec<u8>) {
    out.extend_from_slice(match number {
        f64::INFINITY => b"\"Infinity\"",
        f64::NEG_INFINITY => b"\"-Infinity\"",
        _ => b"\"NaN\"",
    });
}

/// The shortest digits that lie strictly within the float's interval, when ryu's lie on its edge. Rare, so it may
/// allocate: each length is tried, correctly rounded, from ryu's own on.
fn within(
    edge: &Decimal,
    binary: &Binary,
    rounded: impl Fn(usize) -> String,
    reads_back: impl Fn(&str) -> bool,
) -> Decimal {
    for digits in edge.len..MAX_DIGITS {
        let text = rounded(digits);
        let decimal = Decimal::parse(&text);
        if reads_back(&text) && !binary.half_way(&decimal) {
            return decimal;
        }
    }
    Decimal::parse(&rounded(MAX_DIGITS))
}

/// Digits that always tell a double from its neighbours.
const MAX_DIGITS: usize = 17;

/// `d.ddd * 10^exponent`, without trailing zeros.
struct Decimal {
    digits: [u8; MAX_DIGITS],
    len: usize,
    exponent: i32,
}

impl Decimal {
    /// Reads what ryu and the standard library print for a finite float; the sign is left out.
    fn parse(text: &str) -> Self {
        let mut decimal = Self { digits: [b'0'; MAX_DIGITS], len: 0, exponent: 0 };
        let (mut point, mut exponent, mut places, mut leading) = (None, 0, 0, 0);
        let bytes = text.as_bytes();
        for (at, byte) in bytes.iter().enumerate() {
            match byte {
                b'.' => point = Some(places),
                b'e' => {
                    exponent = text[at + 1..].parse().expect("an exponent is a small integer");
                    break;
                }
                b'0'..=b'9' => {
                    places += 1;
                    if decimal.len == 0 && *byte == b'0' {
                        leading += 1;
                    } else if decimal.len < MAX_DIGITS {
                        decimal.digits[decimal.len] = *byte;
                        decimal.len += 1;
                    }
                }
                _ => {}
            }
        }
        if decimal.len == 0 {
            decimal.len = 1;
            return decimal;
        }
        decimal.exponent = exponent + point.unwrap_or(places) - leading - 1;
        while decimal.len > 1 && decimal.digits[decimal.len - 1] == b'0' {
            decimal.len -= 1;
        }
        decimal
    }

    /// Writes it as PostgreSQL does: plain from 10^-4 to below 10^`plain`.
    fn write(&self, negative: bool, plain: i32, out: &mut Vec<u8>) {
        let digits = &self.digits[..self.len];
        if negative {
            out.push(b'-');
        }
        if self.exponent < -4 || self.exponent >= plain {
            out.push(digits[0]);
            if digits.len() > 1 {
                out.push(b'.');
                out.extend_from_slice(&digits[1..]);
            }
            out.extend_from_slice(if self.exponent < 0 { b"e-" } else { b"e+" });
            if self.exponent.abs() < 10 {
                out.push(b'0');
            }
            integer(self.exponent.abs(), out);
        } else if self.exponent < 0 {
            out.extend_from_slice(&b"0.000"[..(1 - self.exponent) as usize]);
            out.extend_from_slice(digits);
        } else {
            let whole = self.exponent as usize + 1;
            if whole < digits.len() {
                out.extend_from_slice(&digits[..whole]);
                out.push(b'.');
                out.extend_from_slice(&digits[whole..]);
            } else {
                out.extend_from_slice(digits);
                out.resize(out.len() + whole - digits.len(), b'0');
            }
        }
    }
}

/// `mantissa * 2^exponent`.
struct Binary {
    mantissa: u64,
    exponent: i32,
    /// Whether the next smaller float is only half as far as the next larger one.
    narrow_below: bool,
}

impl Binary {
    fn new(fraction: u64, biased: i32, fraction_bits: i32, bias: i32) -> Self {
        let subnormal = biased == 0;
        let mantissa = if subnormal { fraction } else { fraction | 1 << fraction_bits };
        let exponent = biased.max(1) - bias - fraction_bits;
        Self { mantissa, exponent, narrow_below: fraction == 0 && biased > 1 }
    }

    /// Whether a decimal is exactly half-way between this float and a neighbour. Half-way points have one bit more
    /// than a float, so only integers come into question: below the point, a fraction of so few bits has more
    /// decimal digits than are ever needed.
    fn half_way(&self, decimal: &Decimal) -> bool {
        let tens = decimal.exponent - (decimal.len as i32 - 1);
        if !(0..=27).contains(&tens) || self.exponent < 0 {
            return false;
        }
        let number = decimal.digits[..decimal.len].iter().fold(0, |sum: u64, digit| sum * 10 + u64::from(digit - b'0'));
        if number == 0 {
            return false;
        }
        // number * 10^tens = odd * 2^twos
        let twos = number.trailing_zeros() as i32 + tens;
        let Some(odd) = (number >> number.trailing_zeros()).checked_mul(5_u64.pow(tens as u32)) else { return false };
        let beside = (odd == 2 * self.mantissa + 1 || odd == 2 * self.mantissa - 1) && twos == self.exponent - 1;
        beside || (self.narrow_below && odd == 4 * self.mantissa - 1 && twos == self.exponent - 2)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digits_and_form_are_those_of_postgresql() {
        for (number, text) in [
            (0.0, "0"),
            (-0.0, "-0"),
            (0.1, "0.1"),
            (1e23, "9.999999999999999e+22"),
            (9_007_199_254_740_993.0, "9.007199254740992e+15"),
            (1e14, "100000000000000"),
            (1e15, "1e+15"),
            (123_456_789_012_345.0, "123456789012345"),
            (0.0001, "0.0001"),
            (0.00012345, "0.00012345"),
            (0.00001, "1e-05"),
            (-1.5e-7, "-1.5e-07"),
            (5e-324, "5e-324"),
            (f64::MAX, "1.7976931348623157e+308"),
            (f64::MIN_POSITIVE, "2.2250738585072014e-308"),
            (f64::NAN, "\"NaN\""),
            (f64::NEG_INFINITY, "\"-Infinity\""),
        ] {
            let mut out = Vec::new();
            float8(number, &mut out);
            assert_eq!(String::from_utf8(out).unwrap(), text);
        }
        for (number, text) in [(100_000.0_f32, "100000"), (1e6, "1e+06"), (0.1, "0.1"), (33_554_430.0, "3.355443e+07")]
        {
            let mut out = Vec::new();
            float4(number, &mut out);
            assert_eq!(String::from_utf8(out).unwrap(), text);
        }
    }
}
