//! Numbers and texts of the binary formats: LEB128 for integers, a length before every text.

use crate::model::GroupSet;
use crate::model::ids::SyncGroup;

/// What a reader ran into. The caller knows which document it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// The bytes end too soon.
    #[error("it ends too soon")]
    Truncated,
    /// A number is larger than its field.
    #[error("a number is out of range")]
    Number,
    /// A text is not UTF-8 or not what it should be.
    #[error("a text is malformed")]
    Text,
}

/// Appends an integer, 7 bits a byte, lowest first.
pub fn put_number(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

/// Appends a text behind its length.
pub fn put_text(out: &mut Vec<u8>, text: &str) {
    put_number(out, text.len() as u64);
    out.extend_from_slice(text.as_bytes());
}

/// Appends group sets, each as its length and its groups.
pub fn put_sets<'a>(out: &mut Vec<u8>, sets: impl ExactSizeIterator<Item = &'a GroupSet>) {
    put_number(out, sets.len() as u64);
    for set in sets {
        put_number(out, set.as_slice().len() as u64);
        for group in set.as_slice() {
            put_text(out, group.as_str());
        }
    }
}

/// Reads from the front of a slice; never past its end.
pub struct Reader<'a>(pub &'a [u8]);

impl<'a> Reader<'a> {
    /// The next `len` bytes.
    pub fn take(&mut self, len: usize) -> Result<&'a [u8], Malformed> {
        let (head, rest) = self.0.split_at_checked(len).ok_or(Malformed::Truncated)?;
        self.0 = rest;
        Ok(head)
    }

    /// The next bytes as an array.
    pub fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let (head, rest) = self.0.split_first_chunk().ok_or(Malformed::Truncated)?;
        self.0 = rest;
        Ok(*head)
    }

    /// An integer that fits its type.
    pub fn number<T: TryFrom<u64>>(&mut self) -> Result<T, Malformed> {
        let mut number = 0u64;
        for shift in (0..64).step_by(7) {
            let [byte] = self.array()?;
            let bits = u64::from(byte & 0x7f);
            // The tenth byte holds the last single bit.
            if shift == 63 && byte > 1 {
                return Err(Malformed::Number);
            }
            number |= bits << shift;
            if byte < 0x80 {
                return T::try_from(number).map_err(|_| Malformed::Number);
            }
        }
        Err(Malformed::Number)
    }

    /// How many entries follow; each takes at least one byte, so a count beyond the rest is a lie.
    pub fn count(&mut self) -> Result<usize, Malformed> {
        let count: usize = self.number()?;
        if count > self.0.len() { Err(Malformed::Truncated) } else { Ok(count) }
    }

    /// A text.
    pub fn text(&mut self) -> Result<&'a str, Malformed> {
        let len = self.number()?;
        std::str::from_utf8(self.take(len)?).map_err(|_| Malformed::Text)
    }

    /// What [`put_sets`] wrote.
    pub fn sets(&mut self) -> Result<Vec<GroupSet>, Malformed> {
        let count = self.count()?;
        (0..count)
            .map(|_| {
                let groups = self.count()?;
                let groups: Result<Vec<_>, _> =
                    (0..groups).map(|_| SyncGroup::parse(self.text()?).ok_or(Malformed::Text)).collect();
                Ok(GroupSet::new(groups?))
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_survive_and_overlong_ones_are_refused() {
        for number in [0, 1, 127, 128, 300, u64::from(u32::MAX), u64::MAX] {
            let mut out = Vec::new();
            put_number(&mut out, number);
            assert_eq!(Reader(&out).number(), Ok(number));
            assert_eq!(Reader(&out[..out.len() - 1]).number::<u64>(), Err(Malformed::Truncated));
        }
        assert_eq!(Reader(&[0xff; 10]).number::<u64>(), Err(Malformed::Number));
        assert_eq!(Reader(&[0x80, 0x02]).number::<u8>(), Err(Malformed::Number));
    }
}
