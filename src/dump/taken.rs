//! Taking a pack of the old snapshot apart: what is copied goes to the spool, what is rewritten is decoded, the rows that changed
//! are exchanged, and what stays large is compressed again at once, while it is in this core's cache.

use std::sync::Arc;

use bytes::Bytes;

use crate::dump::build::Builder;
use crate::dump::frames::FullFrame;
use crate::dump::live::{LiveDump, LiveFrame};
use crate::dump::news::Gone;
use crate::dump::refresh::RefreshError;
use crate::dump::reuse::Fate;
use crate::snapshot::frame::TARGET_RAW;
use crate::snapshot::index::{PackFilters, RowIds};
use crate::snapshot::{FrameEntry, frame};
use crate::source::{RowBatch, RowRef, SetId};

/// A frame that is left with at least so much stays by itself; what is left of others fills new ones.
const FULL_FRAME: usize = TARGET_RAW / 4 * 3;

/// What a pack came to.
#[derive(Default)]
pub(super) struct Taken {
    /// Frames that are in the new snapshot's spool now.
    pub spooled: Vec<LiveFrame>,
    /// Rows of frames that are full no more.
    pub batches: Vec<RowBatch>,
}

/// What is known of the snapshot and its successor.
pub(super) struct Apart {
    pub builder: Arc<Builder>,
    pub ids: Arc<RowIds>,
    /// The set of each of the manifest's sets.
    pub set_ids: Arc<Vec<SetId>>,
    pub gone: Gone,
    pub fresh: Arc<LiveDump>,
}

impl Apart {
    /// Takes some frames of a pack, each given with its bytes. `filters` are needed where any is copied. Blocks: decodes,
    /// compresses, and writes the spool.
    ///
    /// # Errors
    /// When a frame is not what the manifest says of it, and those of the spool.
    pub fn take(
        &self,
        frames: &[(FrameEntry, Fate)],
        stored: &[Bytes],
        filters: Option<&PackFilters>,
    ) -> Result<Taken, RefreshError> {
        let mut taken = Taken::default();
        for ((place, fate), stored) in frames.iter().zip(stored) {
            if *fate == Fate::Copied {
                let filter = filters.and_then(|filters| filters.at(place.offset)).ok_or(RefreshError::Line)?;
                taken.spooled.push(LiveFrame {
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
                let batch = self.rows_now(place, frame::decompress(stored, place.raw_len as usize)?)?;
                if batch.lines.len() >= FULL_FRAME {
                    let set = self.set_ids[place.set as usize];
                    // Not more than there were.
                    let rows = batch.rows.len() as u32;
                    let frame = FullFrame { model: place.model, set, lines: batch.lines, rows };
                    taken.spooled.push(self.builder.write(&self.fresh, &self.ids, &frame)?);
                } else if !batch.rows.is_empty() {
                    taken.batches.push(batch);
                }
            }
        }
        Ok(taken)
    }

    /// The rows of a frame as they are now, in the memory of its lines: those that are gone are taken out, and put in again
    /// where they still have the frame's groups and it has room.
    fn rows_now(&self, place: &FrameEntry, mut lines: Vec<u8>) -> Result<RowBatch, RefreshError> {
        let model = place.model as usize;
        let set = self.set_ids[place.set as usize];
        let gone = self.gone.get(&model);
        let (mut rows, mut renewed, mut count) =
            (Vec::with_capacity(lines.len().min(place.rows as usize)), Vec::new(), 0);
        let (mut start, mut kept) = (0, 0);
        loop {
            let Some(line) = frame::lines(&lines[start..]).next() else { break };
            count += 1;
            let end = start + line.len();
            let now = {
                let id = self.ids.id(model, line).ok_or(RefreshError::Line)?;
                gone.and_then(|gone| gone.get(&*id))
            };
            match now {
                Some(now) => renewed.extend(now.as_ref().filter(|now| now.set == set)),
                None => {
                    if kept != start {
                        lines.copy_within(start..end, kept);
                    }
                    kept += end - start;
                    // A frame is shorter than 4 GiB.
                    rows.push(RowRef { end: kept as u32, set });
                }
            }
            start = end;
        }
        if count != place.rows {
            return Err(RefreshError::Line);
        }
        lines.truncate(kept);
        for now in renewed {
            if lines.len() + now.line.len() <= TARGET_RAW && now.claim() {
                lines.extend_from_slice(&now.line);
                rows.push(RowRef { end: lines.len() as u32, set });
            }
        }
        Ok(RowBatch { model, lines, rows, by_set: false })
    }
}
