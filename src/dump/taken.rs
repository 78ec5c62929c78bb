//! Taking a pack of the old snapshot apart: what is copied goes to the spool, what is rewritten becomes rows again.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use bytes::Bytes;

use crate::dump::live::{LiveDump, LiveFrame};
use crate::dump::refresh::RefreshError;
use crate::dump::reuse::Fate;
use crate::snapshot::index::{PackFilters, RowIds};
use crate::snapshot::{FrameEntry, frame};
use crate::source::{RowBatch, RowRef, SetId};

/// The ids of rows that may not stay, by model.
pub(super) type Gone = HashMap<usize, HashSet<Arc<str>>>;

/// What a pack came to.
pub(super) struct Taken {
    /// Frames that are in the new snapshot's spool now.
    pub copied: Vec<LiveFrame>,
    /// Rows that are to be put into new frames.
    pub batches: Vec<RowBatch>,
}

/// What is known of the snapshot and its successor.
pub(super) struct Apart {
    pub ids: Arc<RowIds>,
    /// The set of each of the manifest's sets.
    pub set_ids: Arc<Vec<SetId>>,
    pub gone: Arc<Gone>,
    pub fresh: Arc<LiveDump>,
}

impl Apart {
    /// Takes frames of a pack, each given with its bytes. `filters` are needed where any is copied. Blocks: decodes, and
    /// writes the spool.
    ///
    /// # Errors
    /// When a frame is not what the manifest says of it.
    pub fn take(
        &self,
        frames: &[(FrameEntry, Fate)],
        stored: &[Bytes],
        filters: Option<&PackFilters>,
    ) -> Result<Taken, RefreshError> {
        let mut taken = Taken { copied: Vec::new(), batches: Vec::new() };
        for ((place, fate), stored) in frames.iter().zip(stored) {
            if *fate == Fate::Copied {
                let filter = filters.and_then(|filters| filters.at(place.offset)).ok_or(RefreshError::Line)?;
                taken.copied.push(LiveFrame {
                    model: place.model,
                    set: self.set_ids[place.set as usize],
                    offset: self.fresh.spool().append(stored)?,
                    len: place.len,
                    raw_len: place.raw_len,
                    rows: place.rows,
                    filter: self.fresh.spool().append_filter(filter)?,
                    filter_len: u32::try_from(filter.len()).map_err(|_| RefreshError::Line)?,
                });
            } else {
                let lines = frame::decompress(stored, place.raw_len as usize)?;
                taken.batches.extend(self.rows_left(place, lines)?);
            }
        }
        Ok(taken)
    }

    /// The rows of a frame that are not gone, in the memory of its lines.
    fn rows_left(&self, place: &FrameEntry, mut lines: Vec<u8>) -> Result<Option<RowBatch>, RefreshError> {
        let model = place.model as usize;
        let set = self.set_ids[place.set as usize];
        let none = HashSet::new();
        let gone = self.gone.get(&model).unwrap_or(&none);
        let (mut rows, mut count) = (Vec::new(), 0);
        let (mut start, mut kept) = (0, 0);
        loop {
            let Some(line) = frame::lines(&lines[start..]).next() else { break };
            count += 1;
            let end = start + line.len();
            if !gone.contains(&*self.ids.id(model, line).ok_or(RefreshError::Line)?) {
                lines.copy_within(start..end, kept);
                kept += end - start;
                // A frame is shorter than 4 GiB.
                rows.push(RowRef { end: kept as u32, set });
            }
            start = end;
        }
        if count != place.rows {
            return Err(RefreshError::Line);
        }
        lines.truncate(kept);
        Ok((!rows.is_empty()).then_some(RowBatch { model, lines, rows, by_set: false }))
    }
}
