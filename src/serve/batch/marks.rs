//! The watermark a load is read at: taken before its statement is sent, so that the answer may say it.
//!
//! How long open writers may hold it back is the source's matter. Here the highest one is remembered, so that a caller
//! whose sync id was reached before need not ask.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::model::{SyncId, Watermark};
use crate::serve::batch::LoadError;
use crate::source::{Source, SourceError};

/// How often the watermark is looked at while a load waits for it.
const POLL: Duration = Duration::from_millis(20);

/// Takes watermarks, and remembers the last.
pub struct Marks {
    source: Arc<dyn Source>,
    known: Mutex<Option<Mark>>,
}

/// A watermark that is true of everything that is read from now on, and since when.
#[derive(Clone, Debug)]
pub struct Mark {
    /// Up to here everything is seen.
    pub watermark: Watermark,
    /// When it was asked for.
    pub taken: Instant,
}

impl Marks {
    /// None is known.
    pub fn new(source: Arc<dyn Source>) -> Self {
        Self { source, known: Mutex::default() }
    }

    /// A watermark that is true of everything that is read from now on.
    ///
    /// # Errors
    /// The source's.
    pub async fn take(&self) -> Result<Watermark, SourceError> {
        // It may have been true for as long as the answer took.
        let asked = Instant::now();
        Ok(self.remember(self.source.watermark().await?, asked))
    }

    /// Waits until the watermark is at `needed`, for at most `wait`.
    ///
    /// # Errors
    /// [`LoadError::Ahead`] when it did not get there; the source's.
    pub async fn reach(&self, needed: SyncId, wait: Duration) -> Result<(), LoadError> {
        let limit = Instant::now() + wait;
        loop {
            let known = match self.known() {
                Some(known) if known.watermark.sync_id >= needed => return Ok(()),
                _ if needed == SyncId::ZERO => return Ok(()),
                _ => self.take().await.map_err(LoadError::from)?,
            };
            if known.sync_id >= needed {
                return Ok(());
            }
            if Instant::now() >= limit {
                return Err(LoadError::Ahead { watermark: known.sync_id });
            }
            sleep(POLL).await;
        }
    }

    /// The last one that was taken.
    pub fn known(&self) -> Option<Mark> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Remembers it, and gives the highest known of its epoch.
    pub(super) fn remember(&self, watermark: Watermark, asked: Instant) -> Watermark {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let later =
            |known: &&Mark| known.watermark.epoch == watermark.epoch && known.watermark.sync_id > watermark.sync_id;
        if let Some(later) = known.as_ref().filter(later) {
            return later.watermark.clone();
        }
        *known = Some(Mark { watermark: watermark.clone(), taken: asked });
        watermark
    }
}
