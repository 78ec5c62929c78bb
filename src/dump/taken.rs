//! Taking a pack of the old snapshot apart: what is copied goes to the spool, what is rewritten becomes rows again.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use crate::dump::live::{LiveDump, LiveFrame};
use crate::dump::refresh::RefreshError;
use crate::dump::reuse::Fate;
use crate::snapshot::index::{PackFilters, RowIds};
use crate::snapshot::{FrameEntry, PackEntry, frame, pack};
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
    /// Takes these frames out of a pack. `filters` are needed where any is copied. Blocks: decodes, and writes the spool.
    ///
    /// # Errors
    /// When the pack or a frame is not what the manifest says of it.
    pub fn take(
        &self,
        bytes: &[u8],
        entry: PackEntry,
        frames: &[(FrameEntry, Fate)],
        filters: Option<&PackFilters>,
    ) -> Result<Taken, RefreshError> {
        if bytes.len() != entry.len as usize || pack::verify(bytes).is_err() {
            pack::verify(bytes)?;
            return Err(RefreshError::Line);
        }
        let mut taken = Taken { copied: Vec::new(), batches: Vec::new() };
        for (place, fate) in frames {
            let stored = &bytes[place.offset as usize..][..place.len as usize];
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
                taken.batches.extend(self.rows_left(place, &lines)?);
            }
        }
        Ok(taken)
    }

    /// The rows of a frame that are not gone.
    fn rows_left(&self, place: &FrameEntry, lines: &[u8]) -> Result<Option<RowBatch>, RefreshError> {
        let model = place.model as usize;
        let set = self.set_ids[place.set as usize];
        let none = HashSet::new();
        let gone = self.gone.get(&model).unwrap_or(&none);
        let mut batch = RowBatch { model, lines: Vec::with_capacity(lines.len()), rows: Vec::new(), by_set: false };
        let mut rows = 0;
        for line in lines.split_inclusive(|byte| *byte == b'\n') {
            rows += 1;
            let id = self.ids.id(model, line).ok_or(RefreshError::Line)?;
            if gone.contains(&*id) {
                continue;
            }
            batch.lines.extend_from_slice(line);
            // A frame is shorter than 4 GiB.
            batch.rows.push(RowRef { end: batch.lines.len() as u32, set });
        }
        if rows != place.rows {
            return Err(RefreshError::Line);
        }
        Ok((!batch.rows.is_empty()).then_some(batch))
    }
}
