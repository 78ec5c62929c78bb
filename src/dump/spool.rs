//! The spool: frames of a dump on disk, from the moment they are compressed until the last reader is done.
//!
//! A spool file is readable by its owner only and has no name: it is gone when the last handle is, even after
//! `kill -9`. All spool files of a process share one budget.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;

use crate::dump::DumpError;
use crate::dump::mapping::Mapping;
use crate::metrics::Metrics;

/// How much of a spool is mapped at most, in bytes: a process has 128 TiB of addresses for all of them. What lies behind is
/// read.
const MOST_MAPPED: u64 = 16 << 30;

/// What all spool files may take together, in bytes.
#[derive(Debug)]
pub struct SpoolBudget {
    limit: u64,
    used: AtomicU64,
    metrics: Metrics,
}

impl SpoolBudget {
    /// Nothing is used yet.
    pub fn new(limit: u64, metrics: Metrics) -> Self {
        metrics.spool_limit_bytes.set(signed(limit));
        Self { limit, used: AtomicU64::new(0), metrics }
    }

    /// Bytes in use now.
    pub fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    fn take(&self, bytes: u64) -> Result<(), DumpError> {
        let fits = |used: u64| used.checked_add(bytes).filter(|sum| *sum <= self.limit);
        match self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits) {
            Ok(_) => {
                self.metrics.spool_bytes.inc_by(signed(bytes));
                Ok(())
            }
            Err(_) => Err(DumpError::SpoolFull { limit: self.limit }),
        }
    }

    fn give_back(&self, bytes: u64) {
        self.used.fetch_sub(bytes, Ordering::Relaxed);
        self.metrics.spool_bytes.dec_by(signed(bytes));
    }
}

/// As gauges count. No disk holds more than fits.
fn signed(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

/// One dump's: a file of frames, and one of their filters, which no reader is sent; so frames that are made one after the
/// other lie side by side, and are sent as one. Written and read by position, from any number of threads at once.
#[derive(Debug)]
pub struct Spool {
    frames: Tape,
    filters: Tape,
    /// What the file of frames may become, where the system has so much address space.
    mapping: Option<Arc<Mapping>>,
    budget: Arc<SpoolBudget>,
}

/// A file that only grows.
#[derive(Debug)]
struct Tape {
    file: File,
    len: AtomicU64,
}

impl Spool {
    /// Creates an empty one in a folder (mode 0600, unlinked: `tempfile` uses `O_TMPFILE` where it can).
    ///
    /// # Errors
    /// What the file system says.
    pub fn create(folder: &Path, budget: Arc<SpoolBudget>) -> io::Result<Self> {
        let tape = || Ok::<_, io::Error>(Tape { file: tempfile::tempfile_in(folder)?, len: AtomicU64::new(0) });
        let (frames, filters) = (tape()?, tape()?);
        let most = usize::try_from(budget.limit.min(MOST_MAPPED)).map_err(io::Error::other);
        let mapping = most.and_then(|most| Mapping::of(&frames.file, most));
        let mapping = mapping.inspect_err(|error| tracing::debug!(%error, "a spool is read, not mapped")).ok();
        Ok(Self { frames, filters, mapping, budget })
    }

    /// Appends a frame and says where it begins. Blocks for as long as the file system does.
    ///
    /// # Errors
    /// [`DumpError::SpoolFull`] past the budget, [`DumpError::Spool`] when the file system refuses. What was written
    /// before stays readable.
    pub fn append(&self, frame: &[u8]) -> Result<u64, DumpError> {
        self.frames.append(frame, &self.budget)
    }

    /// Appends a frame's filter and says where it begins, as [`Self::append`] does.
    ///
    /// # Errors
    /// Those of [`Self::append`].
    pub fn append_filter(&self, filter: &[u8]) -> Result<u64, DumpError> {
        self.filters.append(filter, &self.budget)
    }

    /// Appends `len` bytes of frames from `offset` to a buffer. Blocks for as long as the file system does.
    ///
    /// # Errors
    /// [`DumpError::Spool`].
    pub fn read_into(&self, out: &mut Vec<u8>, offset: u64, len: usize) -> Result<(), DumpError> {
        self.frames.read_into(out, offset, len)
    }

    /// A filter of `len` bytes that begins at `offset`. Blocks for as long as the file system does.
    ///
    /// # Errors
    /// [`DumpError::Spool`].
    pub fn filter(&self, offset: u64, len: usize) -> Result<Vec<u8>, DumpError> {
        let mut filter = Vec::new();
        self.filters.read_into(&mut filter, offset, len)?;
        Ok(filter)
    }

    /// `len` bytes of frames from `offset`, which were appended before. Nothing is read: they stay in the file, and it stays,
    /// until they are dropped. `None` where files can't be mapped, or not so far.
    pub fn mapped(&self, offset: u64, len: u64) -> Option<Bytes> {
        let (start, end) = (usize::try_from(offset).ok()?, usize::try_from(offset + len).ok()?);
        self.mapping.as_ref().filter(|mapping| end <= mapping.len()).map(|mapping| mapping.slice(start..end))
    }

    /// Bytes in it.
    pub fn len(&self) -> u64 {
        self.frames.len.load(Ordering::Relaxed) + self.filters.len.load(Ordering::Relaxed)
    }

    /// Whether nothing was appended.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Tape {
    fn append(&self, bytes: &[u8], budget: &SpoolBudget) -> Result<u64, DumpError> {
        let len = bytes.len() as u64;
        budget.take(len)?;
        // Each writer gets a range of its own, so that several can write at once. A range whose write fails stays
        // in `len`, and so in the budget until the file goes.
        let offset = self.len.fetch_add(len, Ordering::Relaxed);
        self.file.write_all_at(bytes, offset).map_err(|error| DumpError::Spool(Arc::new(error)))?;
        Ok(offset)
    }

    fn read_into(&self, out: &mut Vec<u8>, offset: u64, len: usize) -> Result<(), DumpError> {
        let start = out.len();
        out.resize(start + len, 0);
        self.file.read_exact_at(&mut out[start..], offset).map_err(|error| DumpError::Spool(Arc::new(error)))
    }
}

impl Drop for Spool {
    fn drop(&mut self) {
        self.budget.give_back(self.len());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_budget_is_shared_and_comes_back() {
        let metrics = Metrics::new();
        let budget = Arc::new(SpoolBudget::new(10, metrics.clone()));
        let folder = tempfile::tempdir().unwrap();
        let one = Spool::create(folder.path(), budget.clone()).unwrap();
        let two = Spool::create(folder.path(), budget.clone()).unwrap();
        assert_eq!(one.append(b"1234").unwrap(), 0);
        assert_eq!(two.append(b"abc").unwrap(), 0);
        assert_eq!(one.append_filter(b"f").unwrap(), 0);
        assert_eq!(one.append(b"56").unwrap(), 4);
        assert!(matches!(two.append(b"d"), Err(DumpError::SpoolFull { limit: 10 })));
        let mut out = Vec::new();
        one.read_into(&mut out, 2, 4).unwrap();
        assert_eq!(out, b"3456");
        assert_eq!(one.mapped(2, 4).expect("address space"), "3456");
        assert_eq!(one.filter(0, 1).unwrap(), b"f");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "the files have no names");
        drop(one);
        assert_eq!((budget.used(), metrics.spool_bytes.get()), (3, 3));
        assert_eq!(two.append(b"defghij").unwrap(), 3);
    }
}
