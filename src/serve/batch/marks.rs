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

/// A watermark that is true of everything that is read from now on, and when it was last heard of.
#[derive(Clone, Debug)]
pub struct Mark {
    /// Up to here everything is seen.
    pub watermark: Watermark,
    /// When it was taken.
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
        Ok(self.remember(self.source.watermark().await?))
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
    fn remember(&self, watermark: Watermark) -> Watermark {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let later = |known: &Watermark| known.epoch == watermark.epoch && known.sync_id > watermark.sync_id;
        let highest = known.take().map(|known| known.watermark).filter(later).unwrap_or(watermark);
        *known = Some(Mark { watermark: highest.clone(), taken: Instant::now() });
        highest
    }
}
