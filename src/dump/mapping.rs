//! A spool's file as memory, so that every reader of a dump is given the same bytes, and none keeps any of its own.
//!
//! Memory: a mapping costs address space. Its pages are those of the file, which the system can take back at any time; but
//! those that were looked at count as the process's. So what nobody is being sent any more is given back, a part at a time
//! (1 MiB): a dump of gigabytes that one client follows keeps a few parts, whatever came before.
//!
//! # Why the `unsafe` below is sound
//! A mapping of a file is as sound as the promise that nobody changes what is read through it, or cuts the file off. The
//! file has no name, its owner only appends to it, and slices are made of what was written before. Pages that are given back
//! are read from the file again when they are looked at again: the mapping is private and nothing is written through it
//! (`madvise(2)`, `MADV_DONTNEED`).

use std::fs::File;
use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use bytes::Bytes;
use memmap2::{Mmap, MmapOptions, UncheckedAdvice};

/// What is given back at once, in bytes.
const PART: usize = 1 << 20;

/// A file in memory. Unmapped when the last slice of it is dropped.
#[derive(Debug)]
pub struct Mapping {
    map: Mmap,
    /// How many slices reach into each part.
    used: Box<[AtomicU32]>,
}

impl Mapping {
    /// The first `len` bytes of a file, those that it does not have yet included. Nothing is read.
    ///
    /// The file must have no name and its owner must only ever append to it: that is what makes the slices sound.
    ///
    /// # Errors
    /// What the system says, also when there is not so much address space.
    pub fn of(file: &File, len: usize) -> io::Result<Arc<Self>> {
        let mut options = MmapOptions::new();
        options.len(len);
        #[expect(unsafe_code, reason = "the module's documentation says why it is sound, and what it saves")]
        // SAFETY: nobody writes to what is read through it, and the file does not become shorter; see above.
        let map = unsafe { options.map_copy_read_only(file) }?;
        let used = (0..len.div_ceil(PART)).map(|_| AtomicU32::new(0)).collect();
        Ok(Arc::new(Self { map, used }))
    }

    /// A part of it, which must have been written. It keeps the mapping.
    ///
    /// # Panics
    /// When the range reaches outside the mapping.
    pub fn slice(self: &Arc<Self>, range: Range<usize>) -> Bytes {
        assert!(range.start < range.end && range.end <= self.map.len(), "a slice within the mapping");
        for part in parts(&range) {
            self.used[part].fetch_add(1, Ordering::Relaxed);
        }
        Bytes::from_owner(Slice { mapping: self.clone(), range })
    }

    /// How many bytes are mapped.
    #[expect(clippy::len_without_is_empty, reason = "it is never empty")]
    pub fn len(&self) -> usize {
        self.map.len()
    }

    /// Gives back the pages of a part.
    fn give_back(&self, part: usize) {
        let start = part * PART;
        let len = PART.min(self.map.len() - start);
        #[expect(unsafe_code, reason = "the module's documentation says why it is sound, and what it saves")]
        // SAFETY: nothing was ever written through the mapping, so its pages are the file's before and after.
        let given = unsafe { self.map.unchecked_advise_range(UncheckedAdvice::DontNeed, start, len) };
        if let Err(error) = given {
            tracing::debug!(%error, "pages of a spool stay in memory");
        }
    }
}

/// The parts that a range, which is not empty, reaches into.
fn parts(range: &Range<usize>) -> Range<usize> {
    range.start / PART..(range.end - 1) / PART + 1
}

struct Slice {
    mapping: Arc<Mapping>,
    range: Range<usize>,
}

impl AsRef<[u8]> for Slice {
    fn as_ref(&self) -> &[u8] {
        &self.mapping.map[self.range.clone()]
    }
}

impl Drop for Slice {
    fn drop(&mut self) {
        for part in parts(&self.range) {
            // Whoever begins to use it meanwhile finds its pages in the file.
            if self.mapping.used[part].fetch_sub(1, Ordering::Relaxed) == 1 {
                self.mapping.give_back(part);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;

    #[test]
    fn a_file_is_mapped_before_it_has_grown_and_read_again_after_its_pages_went() {
        let file = tempfile::tempfile().unwrap();
        let mapping = Mapping::of(&file, 1 << 30).unwrap();
        let bytes: Vec<u8> = (0..2 * PART + 100).map(|at| (at * 31 % 251) as u8).collect();
        file.write_all_at(&bytes, 0).unwrap();
        let used = || mapping.used[..4].iter().map(|used| used.load(Ordering::Relaxed)).collect::<Vec<_>>();
        let (all, middle) = (mapping.slice(7..bytes.len()), mapping.slice(PART..2 * PART));
        assert_eq!((&all[..], &middle[..]), (&bytes[7..], &bytes[PART..2 * PART]));
        assert_eq!(used(), [1, 2, 1, 0]);
        drop(all);
        assert_eq!(used(), [0, 1, 0, 0]);
        assert_eq!(middle, bytes[PART..2 * PART]);
        drop(middle);
        assert_eq!(used(), [0; 4]);
        assert_eq!(mapping.slice(0..bytes.len()), bytes);
    }

    /// Linux counts what a process has looked at of a file (proc_pid_smaps(5), `Rss`).
    #[cfg(target_os = "linux")]
    #[test]
    fn what_nobody_uses_is_no_memory() {
        let file = tempfile::tempfile().unwrap();
        let mapping = Mapping::of(&file, 64 * PART).unwrap();
        file.write_all_at(&vec![7; 32 * PART], 0).unwrap();
        let begin = format!("{:x}-", mapping.map.as_ptr() as usize);
        let resident = || {
            let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
            let of_this = maps.lines().skip_while(|line| !line.starts_with(&begin));
            let mut figures = of_this.filter_map(|line| line.strip_prefix("Rss:"));
            figures.next().unwrap().trim().trim_end_matches(" kB").parse::<usize>().unwrap() << 10
        };
        let slice = mapping.slice(0..32 * PART);
        assert!(slice.iter().all(|byte| *byte == 7) && resident() >= 32 * PART);
        drop(slice);
        assert!(resident() < PART, "{} bytes", resident());
    }
}
