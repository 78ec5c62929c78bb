//! What the look-ups of a refresh brought. Pure.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;

use crate::source::{FoundRow, GroupSets, RowBatch, RowRef, SetId};

/// How many bytes of lines wait for the frames in which their rows stood, which keep as much again of what was found with
/// them. What comes after goes into new frames at once.
const MOST_WAITING: usize = 16 << 20;

/// The objects whose old rows may not stay, by model and id, each with its row as it is now where that waits for a place.
pub(super) type Gone = HashMap<usize, HashMap<Arc<str>, Option<Renewed>>>;

/// A row as it is now.
#[derive(Debug)]
pub(super) struct Renewed {
    /// The groups it carries.
    pub set: SetId,
    /// Its line, with the break.
    pub line: Bytes,
    is_placed: AtomicBool,
}

impl Renewed {
    fn new(row: &FoundRow, set: SetId) -> Self {
        Self { set, line: row.line.clone(), is_placed: AtomicBool::new(false) }
    }

    /// Whether the caller is the one who puts it into a frame.
    pub fn claim(&self) -> bool {
        !self.is_placed.swap(true, Ordering::Relaxed)
    }
}

/// What the look-ups brought.
#[derive(Default)]
pub(super) struct News {
    /// Rows read.
    pub read: u64,
    /// The objects found, as the database names them.
    found: Gone,
    /// Models and sets of rows that are put in.
    keys: HashSet<(u32, SetId)>,
    /// Bytes of lines that wait.
    waiting: usize,
}

impl News {
    /// Takes the rows of a look-up that somebody sees, each object once. Most wait for the frames in which they stood; the
    /// others are given back.
    pub fn take(&mut self, model: usize, found: Vec<FoundRow>, sets: &GroupSets) -> Option<RowBatch> {
        let mut batch = RowBatch { model, lines: Vec::new(), rows: Vec::new(), by_set: false };
        let objects = self.found.entry(model).or_default();
        for row in found {
            self.read += 1;
            let Entry::Vacant(entry) = objects.entry(row.id.clone()) else { continue };
            if row.groups.as_slice().is_empty() {
                entry.insert(None);
                continue;
            }
            let set = sets.intern(row.groups.clone());
            self.keys.insert((u32::try_from(model).ok()?, set));
            let waits = self.waiting + row.line.len() <= MOST_WAITING;
            entry.insert(waits.then(|| Renewed::new(&row, set)));
            if waits {
                self.waiting += row.line.len();
            } else {
                push(&mut batch, &row.line, set);
            }
        }
        (!batch.rows.is_empty()).then_some(batch)
    }

    /// The models and sets that are written, where the manifest has them, by its index.
    pub fn written(&self, set_ids: &[SetId]) -> HashSet<(u32, u32)> {
        let places: HashMap<SetId, u32> = set_ids.iter().zip(0..).map(|(set, place)| (*set, place)).collect();
        self.keys.iter().filter_map(|(model, set)| Some((*model, *places.get(set)?))).collect()
    }

    /// What has to be taken out of the old frames.
    pub fn gone(self, changed: &[(usize, Vec<Arc<str>>)]) -> Gone {
        let mut gone = self.found;
        for (model, ids) in changed {
            let objects = gone.entry(*model).or_default();
            for id in ids {
                objects.entry(id.clone()).or_default();
            }
        }
        gone
    }
}

/// The rows that no frame had room for: new ones, those that moved, and those that have grown.
pub(super) fn left_over(gone: &Gone) -> Vec<RowBatch> {
    let batch = |(model, objects): (&usize, &HashMap<_, Option<Renewed>>)| {
        let mut batch = RowBatch { model: *model, lines: Vec::new(), rows: Vec::new(), by_set: false };
        for row in objects.values().flatten().filter(|row| row.claim()) {
            push(&mut batch, &row.line, row.set);
        }
        batch
    };
    gone.iter().map(batch).filter(|batch| !batch.rows.is_empty()).collect()
}

fn push(batch: &mut RowBatch, line: &[u8], set: SetId) {
    batch.lines.extend_from_slice(line);
    // As much as waits, or as one look-up brings.
    let end = u32::try_from(batch.lines.len()).expect("fewer than 4 GiB");
    batch.rows.push(RowRef { end, set });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{GroupSet, SyncGroup};

    /// A row of some teams with a line of that length.
    fn row(id: &str, teams: &[&str], len: usize) -> FoundRow {
        let groups = teams.iter().map(|team| SyncGroup::of("team", team)).collect();
        FoundRow { id: Arc::from(id), line: Bytes::from(vec![b'x'; len]), groups: GroupSet::new(groups) }
    }

    #[test]
    fn rows_wait_for_a_place_once_and_what_is_left_comes_together() {
        let (mut news, sets) = (News::default(), GroupSets::default());
        let rows = vec![row("1", &["a"], 10), row("2", &["b"], 20), row("3", &[], 30), row("1", &["b"], 40)];
        assert!(news.take(0, rows, &sets).is_none());
        assert_eq!(news.read, 4);
        let gone = news.gone(&[(0, vec![Arc::from("1"), Arc::from("4")]), (1, vec![Arc::from("1")])]);
        let mut of_0: Vec<_> =
            gone[&0].iter().map(|(id, row)| (&**id, row.as_ref().map(|row| row.line.len()))).collect();
        of_0.sort_unstable();
        assert_eq!(of_0, [("1", Some(10)), ("2", Some(20)), ("3", None), ("4", None)]);
        assert!(gone[&1]["1"].is_none());
        let first = gone[&0]["1"].as_ref().unwrap();
        assert_eq!((first.claim(), first.claim()), (true, false));
        let left = left_over(&gone);
        assert_eq!((left.len(), left[0].model, left[0].lines.len(), left[0].rows.len()), (1, 0, 20, 1));
        assert!(left_over(&gone).is_empty());
    }

    #[test]
    fn what_waits_is_bounded() {
        let (mut news, sets) = (News::default(), GroupSets::default());
        let large = (0..5).map(|id| row(&id.to_string(), &["a"], MOST_WAITING / 4)).collect();
        let batch = news.take(0, large, &sets).unwrap();
        assert_eq!((batch.rows.len(), batch.lines.len()), (1, MOST_WAITING / 4));
        let gone = news.gone(&[]);
        assert_eq!(gone[&0].values().flatten().count(), 4);
        assert_eq!(gone[&0].len(), 5, "its old row may not stay either");
    }
}
