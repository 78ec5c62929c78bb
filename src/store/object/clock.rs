//! The store's clock: a small object is written and its modification time read back.
//!
//! Ages are differences of two times the store gave, so the clocks of the instances don't matter. Between two
//! readings tokio's clock carries the time on. A reading that is too early makes things look younger: leases and packs
//! then stay longer, never shorter.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt, Result};
use tokio::time::Instant;

use crate::model::SnapshotId;

/// After this the clock is read anew. Clocks that run apart by a second an hour then differ by 17 ms.
const TRUSTED_FOR: Duration = Duration::from_secs(60);

/// One instance's reading of the store's clock.
#[derive(Debug)]
pub struct Clock {
    probe: Path,
    reading: Mutex<Option<(SystemTime, Instant)>>,
}

impl Clock {
    /// Where all instances write their probes.
    pub fn folder() -> Path {
        Path::from("clock")
    }

    /// Not read yet.
    pub fn new() -> Self {
        Self { probe: Self::folder().join(SnapshotId::random().to_string()), reading: Mutex::default() }
    }

    /// The store's time now.
    pub async fn now(&self, store: &dyn ObjectStore) -> Result<SystemTime> {
        let known = *self.reading.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((time, read)) = known.filter(|(_, read)| read.elapsed() < TRUSTED_FOR) {
            return Ok(time + read.elapsed());
        }
        match self.read(store).await {
            Ok(time) => {
                *self.reading.lock().unwrap_or_else(PoisonError::into_inner) = Some((time, Instant::now()));
                Ok(time)
            }
            // A full disk must not keep anyone from reading what is there, nor the sweep from making room.
            Err(error) => known.map(|(time, read)| time + read.elapsed()).ok_or(error),
        }
    }

    async fn read(&self, store: &dyn ObjectStore) -> Result<SystemTime> {
        store.put(&self.probe, Vec::new().into()).await?;
        Ok(store.head(&self.probe).await?.last_modified.into())
    }
}

/// How long ago something was written; nothing when the store's clock went back meanwhile.
pub fn age(now: SystemTime, written: SystemTime) -> Duration {
    now.duration_since(written).unwrap_or_default()
}
