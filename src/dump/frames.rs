//! Rows into frames: each row goes to the open frame of its model and group set. Pure.

use std::collections::HashMap;

use crate::snapshot::frame::TARGET_RAW;
use crate::source::{RowBatch, SetId};

/// Lines of one model and one group set, ready to be compressed.
#[derive(Debug, PartialEq, Eq)]
pub struct FullFrame {
    /// Index of the model in the schema.
    pub model: u32,
    /// The groups its rows carry.
    pub set: SetId,
    /// The lines.
    pub lines: Vec<u8>,
    /// How many lines.
    pub rows: u32,
}

/// The frames being filled. Memory: at most `limit` bytes, what one batch brings more, and about 100 bytes a frame.
#[derive(Debug)]
pub struct OpenFrames {
    open: HashMap<(u32, SetId), Open>,
    /// Allocated for lines.
    bytes: usize,
    limit: usize,
    /// For models read set by set: the set whose rows are coming.
    coming: HashMap<u32, SetId>,
}

#[derive(Debug, Default)]
struct Open {
    lines: Vec<u8>,
    rows: u32,
}

impl Open {
    /// Makes room for a line: as a vector does, but never for more than a frame takes.
    fn make_room(&mut self, line: usize) {
        let needed = self.lines.len() + line;
        if needed > self.lines.capacity() {
            let room = needed.max(TARGET_RAW.min(2 * self.lines.capacity()));
            self.lines.reserve_exact(room - self.lines.len());
        }
    }
}

impl OpenFrames {
    /// None are open yet; together they will hold about `limit` bytes at most.
    pub fn new(limit: usize) -> Self {
        Self { open: HashMap::new(), bytes: 0, limit, coming: HashMap::new() }
    }

    /// Takes the rows of a batch and gives the frames that are full by it: those that reached their size, the fullest
    /// ones when all together are past the limit, and, for models read set by set, those whose set has passed.
    pub fn push(&mut self, batch: &RowBatch) -> Vec<FullFrame> {
        let model = u32::try_from(batch.model).expect("a catalog has fewer than 2^32 models");
        let mut full = Vec::new();
        let mut start = 0;
        for run in batch.rows.chunk_by(|a, b| a.set == b.set) {
            let set = run[0].set;
            if batch.by_set
                && let Some(passed) = self.coming.insert(model, set).filter(|passed| *passed != set)
            {
                full.extend(self.close((model, passed)));
            }
            for row in run {
                let end = row.end as usize;
                self.append((model, set), &batch.lines[start..end], &mut full);
                start = end;
            }
        }
        while self.bytes > self.limit {
            let fullest = self.open.iter().max_by_key(|(_, open)| open.lines.len()).map(|(key, _)| *key);
            full.extend(fullest.and_then(|key| self.close(key)));
        }
        full
    }

    /// The frames that are left.
    pub fn finish(mut self) -> Vec<FullFrame> {
        let mut keys: Vec<_> = self.open.keys().copied().collect();
        // In the order of the catalog, so that clients get a model's rest together.
        keys.sort_unstable();
        keys.into_iter().filter_map(|key| self.close(key)).collect()
    }

    fn append(&mut self, key: (u32, SetId), line: &[u8], full: &mut Vec<FullFrame>) {
        let open = self.open.entry(key).or_default();
        if !open.lines.is_empty() && open.lines.len() + line.len() > TARGET_RAW {
            let Open { lines, rows } = std::mem::take(open);
            self.bytes -= lines.capacity();
            full.push(FullFrame { model: key.0, set: key.1, lines, rows });
        }
        let before = open.lines.capacity();
        open.make_room(line.len());
        open.lines.extend_from_slice(line);
        open.rows += 1;
        self.bytes += open.lines.capacity() - before;
    }

    fn close(&mut self, key: (u32, SetId)) -> Option<FullFrame> {
        let Open { lines, rows } = self.open.remove(&key)?;
        self.bytes -= lines.capacity();
        Some(FullFrame { model: key.0, set: key.1, lines, rows })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::RowRef;

    /// A batch of rows given as (set, length).
    fn batch(model: usize, rows: &[(u32, usize)], by_set: bool) -> RowBatch {
        let mut batch = RowBatch { model, lines: Vec::new(), rows: Vec::new(), by_set };
        for (set, len) in rows {
            batch.lines.extend(std::iter::repeat_n(b'a' + *set as u8, len - 1));
            batch.lines.push(b'\n');
            batch.rows.push(RowRef { end: batch.lines.len() as u32, set: SetId(*set) });
        }
        batch
    }

    #[test]
    fn rows_stay_with_their_set_and_frames_with_their_size() {
        let mut frames = OpenFrames::new(64 << 20);
        let half = TARGET_RAW / 2;
        assert_eq!(frames.push(&batch(0, &[(0, half), (1, 10), (0, half), (1, 20)], false)), []);
        let full = frames.push(&batch(0, &[(0, 1), (2, 3 * TARGET_RAW)], false));
        assert_eq!(full.len(), 1);
        assert_eq!((full[0].set, full[0].rows, full[0].lines.len()), (SetId(0), 2, TARGET_RAW));
        let rest = frames.finish();
        let sizes: Vec<_> = rest.iter().map(|frame| (frame.set.0, frame.rows, frame.lines.len())).collect();
        assert_eq!(sizes, [(0, 1, 1), (1, 2, 30), (2, 1, 3 * TARGET_RAW)]);
        assert!(rest[1].lines.iter().all(|byte| [b'b', b'\n'].contains(byte)));
    }

    #[test]
    fn past_the_limit_the_fullest_is_closed() {
        let mut frames = OpenFrames::new(100);
        assert_eq!(frames.push(&batch(0, &[(0, 30), (1, 60)], false)), []);
        let full = frames.push(&batch(1, &[(0, 20)], false));
        assert_eq!(full.iter().map(|frame| frame.lines.len()).collect::<Vec<_>>(), [60]);
    }

    #[test]
    fn a_model_read_by_set_closes_what_has_passed() {
        let mut frames = OpenFrames::new(1000);
        assert_eq!(frames.push(&batch(0, &[(0, 5), (0, 5)], true)), []);
        let full = frames.push(&batch(0, &[(0, 5), (1, 5), (2, 5)], true));
        assert_eq!(full.iter().map(|frame| (frame.set.0, frame.rows)).collect::<Vec<_>>(), [(0, 3), (1, 1)]);
        assert_eq!(frames.finish().len(), 1);
    }
}
