//! What the look-ups of a refresh brought. Pure.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;

use crate::source::{FoundRow, GroupSets, RowBatch, RowRef, SetId};

/// How many bytes of lines wait for the frames in which their rows stood. What comes after goes into new frames at once.
const MOST_WAITING: usize = 16 << 20;

/// About how many bytes the batches hold that [`left_over`] gives.
const BATCH_BYTES: usize = 1 << 20;

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
    /// Whether no more may wait.
    is_full: bool,
}

impl News {
    /// Takes the rows of a look-up that somebody sees, each object once. Lines that wait are copied: what else was found with
    /// them is not kept. Rows that may not wait are given back.
    pub fn take(&mut self, model: usize, found: Vec<FoundRow>, sets: &GroupSets) -> Option<RowBatch> {
        let key = u32::try_from(model).expect("a catalog has fewer than 2^32 models");
        let (mut batch, mut lines, mut waiting) = (batch_of(model), Vec::new(), Vec::new());
        let objects = self.found.entry(model).or_default();
        for FoundRow { id, line, groups } in found {
            self.read += 1;
            let Entry::Vacant(entry) = objects.entry(id.clone()) else { continue };
            entry.insert(None);
            if groups.as_slice().is_empty() {
                continue;
            }
            let set = sets.intern(groups);
            self.keys.insert((key, set));
            self.is_full |= self.waiting + line.len() > MOST_WAITING;
            if self.is_full {
                push(&mut batch, &line, set);
            } else {
                self.waiting += line.len();
                let start = lines.len();
                lines.extend_from_slice(&line);
                waiting.push((id, set, start..lines.len()));
            }
        }
        // Without what the vector has to spare.
        let lines = Bytes::from(lines.into_boxed_slice());
        for (id, set, range) in waiting {
            let row = Renewed { set, line: lines.slice(range), is_placed: AtomicBool::new(false) };
            objects.insert(id, Some(row));
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

/// The rows that no frame took: new ones, those that moved, and those that have grown. In the order of their ids. Blocks:
/// looks at all that changed, and copies what is left.
pub(super) fn left_over(gone: &Gone) -> Vec<RowBatch> {
    let mut batches = Vec::new();
    for (model, objects) in gone {
        let mut rows: Vec<_> = objects.iter().filter_map(|(id, row)| Some((id, row.as_ref()?))).collect();
        rows.retain(|(_, row)| row.claim());
        rows.sort_unstable_by_key(|(id, _)| *id);
        let mut batch = batch_of(*model);
        for (_, row) in rows {
            push(&mut batch, &row.line, row.set);
            if batch.lines.len() >= BATCH_BYTES {
                batches.push(std::mem::replace(&mut batch, batch_of(*model)));
            }
        }
        batches.extend((!batch.rows.is_empty()).then_some(batch));
    }
    batches
}

fn batch_of(model: usize) -> RowBatch {
    RowBatch { model, lines: Vec::new(), rows: Vec::new(), by_set: false }
}

fn push(batch: &mut RowBatch, line: &[u8], set: SetId) {
    batch.lines.extend_from_slice(line);
    // One look-up brings less: a row, whose line has at most 1 GiB, or [`super::renewal`]'s bound.
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
    fn lines_that_wait_keep_nothing_else() {
        let (mut news, sets) = (News::default(), GroupSets::default());
        let arena = Bytes::from(vec![b'x'; 1000]);
        let part = |id: &str, teams: &[&str], range| FoundRow { line: arena.slice(range), ..row(id, teams, 0) };
        assert!(news.take(0, vec![part("1", &["a"], 0..10), part("2", &[], 10..1000)], &sets).is_none());
        assert!(arena.is_unique(), "the rows nobody sees are dropped with what they came in");
    }

    #[test]
    fn what_waits_is_bounded() {
        let (mut news, sets) = (News::default(), GroupSets::default());
        let mut rows: Vec<_> = (0..4).map(|id| row(&id.to_string(), &["a"], MOST_WAITING / 4 - 1)).collect();
        rows.extend([row("4", &["a"], 5), row("5", &["a"], 1)]);
        let batch = news.take(0, rows, &sets).unwrap();
        assert_eq!((batch.rows.len(), batch.lines.len()), (2, 6), "once one may not wait, none may");
        let gone = news.gone(&[]);
        assert_eq!(gone[&0].values().flatten().count(), 4);
        assert_eq!(gone[&0].len(), 6, "their old rows may not stay either");
    }
}
