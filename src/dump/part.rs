//! What a reader of a dump gets.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;

use crate::dump::DumpError;
use crate::dump::live::{LiveDump, LiveFrame};
use crate::snapshot::{FrameError, frame};
use crate::task;

/// What a reader gets. The last item is `End` or an error; a stream that stops without either is broken.
#[derive(Debug)]
pub enum Part {
    /// One or more whole frames.
    Frames(Frames),
    /// All rows were given: how many of each model, by index.
    End(Vec<u64>),
}

impl Part {
    /// How many bytes of lines it holds.
    pub fn raw_len(&self) -> u64 {
        let Self::Frames(Frames::Spooled(spooled)) = self else { return 0 };
        spooled.frames.iter().map(|frame| u64::from(frame.raw_len)).sum()
    }
}

/// Whole frames, one after the other. They are read when they are needed, and as often, so that whoever reads them slowly
/// need not keep them in memory.
#[derive(Clone, Debug)]
pub enum Frames {
    /// Of a published snapshot: in memory, which the cache counts.
    Held(Bytes),
    /// Of a dump: in its spool file.
    Spooled(Spooled),
}

/// Frames in a spool file, which lives for as long as this.
#[derive(Clone)]
pub struct Spooled {
    pub(super) live: Arc<LiveDump>,
    pub(super) frames: Arc<[LiveFrame]>,
}

/// The length of a frame: as it is stored, and decoded.
pub type FrameLen = (u64, usize);

impl Frames {
    /// The lengths of each.
    ///
    /// # Errors
    /// When what is held are no whole frames.
    pub fn lens(&self) -> Result<Vec<FrameLen>, FrameError> {
        match self {
            Self::Held(bytes) => {
                frame::frames(bytes).map(|frame| frame.map(|(frame, raw_len)| (frame.len() as u64, raw_len))).collect()
            }
            Self::Spooled(spooled) => {
                let lens = spooled.frames.iter().map(|frame| (u64::from(frame.len), frame.raw_len as usize));
                Ok(lens.collect())
            }
        }
    }

    /// Bytes of all of them.
    pub fn len(&self) -> u64 {
        match self {
            Self::Held(bytes) => bytes.len() as u64,
            Self::Spooled(spooled) => spooled.frames.iter().map(|frame| u64::from(frame.len)).sum(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// All of them without reading: what is held, or where they lie in the spool file, frames that lie side by side as one.
    /// `None` where files can't be mapped.
    pub fn mapped(&self) -> Option<Vec<Bytes>> {
        match self {
            Self::Held(bytes) => Some(vec![bytes.clone()]),
            Self::Spooled(spooled) => spooled.mapped(),
        }
    }

    /// The bytes in a range of them all; what reaches behind the end is left out.
    ///
    /// # Errors
    /// [`DumpError::Spool`].
    pub async fn read(&self, range: Range<u64>) -> Result<Bytes, DumpError> {
        match self {
            Self::Held(bytes) => {
                let place = |at: u64| usize::try_from(at).map_or(bytes.len(), |at| at.min(bytes.len()));
                Ok(bytes.slice(place(range.start)..place(range.end)))
            }
            Self::Spooled(spooled) => {
                let spooled = spooled.clone();
                task::blocking(move || spooled.read(range)).await
            }
        }
    }
}

impl From<Vec<u8>> for Frames {
    fn from(bytes: Vec<u8>) -> Self {
        Self::Held(bytes.into())
    }
}

impl Spooled {
    fn mapped(&self) -> Option<Vec<Bytes>> {
        let mut runs: Vec<Range<u64>> = Vec::new();
        for frame in &*self.frames {
            let end = frame.offset + u64::from(frame.len);
            match runs.last_mut().filter(|run| run.end == frame.offset) {
                Some(run) => run.end = end,
                None => runs.push(frame.offset..end),
            }
        }
        runs.into_iter().map(|run| self.live.spool().mapped(run.start, run.end - run.start)).collect()
    }

    fn read(&self, range: Range<u64>) -> Result<Bytes, DumpError> {
        let mut bytes = Vec::with_capacity(usize::try_from(range.end - range.start).unwrap_or_default());
        let mut start = 0;
        for frame in &*self.frames {
            let end = start + u64::from(frame.len);
            let (from, to) = (range.start.max(start), range.end.min(end));
            if from < to {
                // Within a frame, whose length has 32 bits.
                self.live.spool().read_into(&mut bytes, frame.offset + from - start, (to - from) as usize)?;
            }
            start = end;
        }
        Ok(bytes.into())
    }
}

impl fmt::Debug for Spooled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Spooled").field(&self.frames).finish()
    }
}
