//! From the group columns of a row to its group set.
//!
//! Few rows bring a set that no row before them had, so the sets are remembered by the raw bytes of the group columns:
//! such a row costs one look-up and nothing is decoded.

use std::borrow::Cow;
use std::collections::HashMap;
use std::ops::Range;

use crate::model::catalog::Ungrouped;
use crate::model::{GroupSet, Org, SyncGroup};
use crate::source::postgres::columns::{GroupColumn, GroupValue};
use crate::source::postgres::encode::Malformed;
use crate::source::postgres::encode::array::Elements;
use crate::source::{GroupSets, SetId};

/// Sets remembered at most; past that all are forgotten and found again.
const MAX_REMEMBERED: usize = 65_536;

/// Finds the sets of one model's rows. Memory: `MAX_REMEMBERED` sets and their columns' bytes.
pub struct GroupReader {
    columns: Vec<GroupColumn>,
    /// The set of a row without groups; `None`: nobody sees it.
    otherwise: Option<SetId>,
    remembered: HashMap<Box<[u8]>, Option<SetId>>,
    key: Vec<u8>,
}

impl GroupReader {
    /// `columns` and `ungrouped` are those of the model that owns the groups. Without columns every row is the org's.
    pub fn new(columns: Vec<GroupColumn>, ungrouped: Ungrouped, org: &Org, sets: &GroupSets) -> Self {
        let everyone = columns.is_empty() || ungrouped == Ungrouped::Org;
        let otherwise = everyone.then(|| sets.intern(GroupSet::new(vec![SyncGroup::of(SyncGroup::ORG, org.as_str())])));
        Self { columns, otherwise, remembered: HashMap::new(), key: Vec::new() }
    }

    /// The set of a row; `None` when nobody sees it. `places` says where in the tuple each of the group columns stands,
    /// its length word included.
    ///
    /// # Errors
    /// [`Malformed`] when a column is not what its type says.
    pub fn set(&mut self, tuple: &[u8], places: &[Range<usize>], sets: &GroupSets) -> Result<Option<SetId>, Malformed> {
        // The length words keep neighbours apart, so the bytes of all columns in a row tell the sets apart.
        let key = match places {
            [] => return Ok(self.otherwise),
            [only] => &tuple[only.clone()],
            many => {
                self.key.clear();
                many.iter().for_each(|place| self.key.extend_from_slice(&tuple[place.clone()]));
                &self.key
            }
        };
        if let Some(set) = self.remembered.get(key) {
            return Ok(*set);
        }
        let key = Box::from(key);
        let mut groups = Vec::new();
        for (column, place) in self.columns.iter().zip(places) {
            // Behind the length word; a null has nothing there.
            let raw = &tuple[place.start + 4..place.end];
            if tuple[place.clone()].starts_with(&(-1_i32).to_be_bytes()) {
                continue;
            }
            if column.array {
                for element in Elements::new(raw)? {
                    groups.extend(element?.map(|raw| column.group(raw)).transpose()?);
                }
            } else {
                groups.push(column.group(raw)?);
            }
        }
        let set = if groups.is_empty() { self.otherwise } else { Some(sets.intern(GroupSet::new(groups))) };
        if self.remembered.len() >= MAX_REMEMBERED {
            self.remembered.clear();
        }
        self.remembered.insert(key, set);
        Ok(set)
    }
}

impl GroupColumn {
    fn group(&self, raw: &[u8]) -> Result<SyncGroup, Malformed> {
        Ok(SyncGroup::of(&self.kind, &self.value.text(raw)?))
    }
}

impl GroupValue {
    /// The text PostgreSQL prints for a value, given in binary.
    ///
    /// # Errors
    /// [`Malformed`] when it is no value of this kind.
    pub fn text(self, raw: &[u8]) -> Result<Cow<'_, str>, Malformed> {
        let malformed = Malformed("not an id");
        Ok(match (self, raw) {
            (Self::Text, text) => std::str::from_utf8(text).map_err(|_| malformed)?.into(),
            (Self::Uuid, raw) => hyphenated(raw.try_into().map_err(|_| malformed)?).into(),
            (Self::Integer, &[a, b]) => i16::from_be_bytes([a, b]).to_string().into(),
            (Self::Integer, &[a, b, c, d]) => i32::from_be_bytes([a, b, c, d]).to_string().into(),
            (Self::Integer, raw) => i64::from_be_bytes(raw.try_into().map_err(|_| malformed)?).to_string().into(),
        })
    }
}

fn hyphenated(raw: [u8; 16]) -> String {
    let mut text = String::with_capacity(36);
    for (place, byte) in raw.into_iter().enumerate() {
        if matches!(place, 4 | 6 | 8 | 10) {
            text.push('-');
        }
        for digit in [byte >> 4, byte & 15] {
            text.push(char::from(b"0123456789abcdef"[usize::from(digit)]));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::sql::Form;

    fn column(kind: &str, value: GroupValue, array: bool) -> GroupColumn {
        GroupColumn { kind: kind.into(), column: kind.into(), form: Form::Plain, value, array }
    }

    fn field(raw: Option<&[u8]>) -> Vec<u8> {
        match raw {
            None => (-1_i32).to_be_bytes().to_vec(),
            Some(raw) => [&(raw.len() as i32).to_be_bytes(), raw].concat(),
        }
    }

    #[test]
    fn columns_of_all_kinds_make_one_set() {
        let sets = GroupSets::default();
        let columns = vec![column("team", GroupValue::Uuid, false), column("user", GroupValue::Integer, true)];
        let mut reader = GroupReader::new(columns, Ungrouped::Nobody, &Org::new("o"), &sets);
        let uuid = field(Some(&0x0123_4567_89ab_cdef_0123_4567_89ab_cdef_u128.to_be_bytes()));
        let head = [1, 0, 23, 3, 1].map(i32::to_be_bytes).concat();
        let elements = [field(Some(&7_i32.to_be_bytes())), field(None), field(Some(&7_i32.to_be_bytes()))].concat();
        let users = field(Some(&[head, elements].concat()));
        let mut set = |first: &[u8], second: &[u8]| {
            let tuple = [first, second].concat();
            reader.set(&tuple, &[0..first.len(), first.len()..tuple.len()], &sets).unwrap()
        };
        for _ in 0..2 {
            let both = sets.get(set(&uuid, &users).unwrap());
            let names: Vec<_> = both.as_slice().iter().map(SyncGroup::as_str).collect();
            assert_eq!(names, ["team:01234567-89ab-cdef-0123-456789abcdef", "user:7"]);
        }
        assert_eq!(set(&field(None), &field(Some(&[0, 0, 0].map(i32::to_be_bytes).concat()))), None);
        assert_ne!(set(&uuid, &field(None)), set(&uuid, &users));
    }

    #[test]
    fn rows_without_groups_are_the_orgs_or_nobodys() {
        let sets = GroupSets::default();
        let org = Org::new("o");
        let mut whole = GroupReader::new(vec![], Ungrouped::Nobody, &org, &sets);
        let mut open = GroupReader::new(vec![column("t", GroupValue::Text, false)], Ungrouped::Org, &org, &sets);
        let set = whole.set(&[], &[], &sets).unwrap().unwrap();
        assert_eq!(sets.get(set), GroupSet::new(vec![SyncGroup::new("org:o")]));
        let null = field(None);
        assert_eq!(open.set(&null, std::slice::from_ref(&(0..null.len())), &sets), Ok(Some(set)));
    }
}
