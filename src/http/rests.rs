//! Decoded lines that answers have not sent yet, in bounded memory.
//!
//! A frame is decoded as a whole, some 320 KiB of lines, and sent in small pieces. What is left of it lies here meanwhile.
//! Past the bound the oldest is dropped, which is that of a client who has not come back for it for longest: it is decoded
//! again when the client does. So slow clients cost a little time instead of memory.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What is left of decoded frames. Clones share it.
#[derive(Clone, Default)]
pub struct Rests {
    shelf: Arc<Mutex<Shelf>>,
    limit: usize,
}

#[derive(Default)]
struct Shelf {
    /// By when they were put here.
    rests: BTreeMap<u64, Vec<u8>>,
    bytes: usize,
    next: u64,
}

/// Lines that are kept, unless others needed the room; dropped with this.
pub struct Rest {
    shelf: Arc<Mutex<Shelf>>,
    number: u64,
}

impl Rests {
    /// So many bytes at most.
    pub fn new(limit: usize) -> Self {
        Self { shelf: Arc::default(), limit }
    }

    /// Keeps lines for as long as there is room.
    pub fn keep(&self, lines: Vec<u8>) -> Rest {
        let mut shelf = lock(&self.shelf);
        let number = shelf.next;
        shelf.next += 1;
        shelf.bytes += lines.len();
        shelf.rests.insert(number, lines);
        let mut dropped = Vec::new();
        while shelf.bytes > self.limit
            && let Some((_, oldest)) = shelf.rests.pop_first()
        {
            shelf.bytes -= oldest.len();
            dropped.push(oldest);
        }
        // Freed after the lock is released.
        drop(shelf);
        Rest { shelf: self.shelf.clone(), number }
    }
}

impl Rest {
    /// The lines, if they are still there.
    pub fn take(self) -> Option<Vec<u8>> {
        lock(&self.shelf).remove(self.number)
    }
}

impl Drop for Rest {
    fn drop(&mut self) {
        // Freed after the lock is released.
        let _lines = lock(&self.shelf).remove(self.number);
    }
}

impl Shelf {
    fn remove(&mut self, number: u64) -> Option<Vec<u8>> {
        let lines = self.rests.remove(&number);
        self.bytes -= lines.as_ref().map_or(0, Vec::len);
        lines
    }
}

fn lock(shelf: &Mutex<Shelf>) -> MutexGuard<'_, Shelf> {
    shelf.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_gives_way_and_nothing_stays_behind() {
        let rests = Rests::new(10);
        let (old, new) = (rests.keep(vec![1; 6]), rests.keep(vec![2; 4]));
        assert_eq!(lock(&rests.shelf).bytes, 10);
        let newest = rests.keep(vec![3; 1]);
        assert_eq!((old.take(), new.take()), (None, Some(vec![2; 4])));
        drop(newest);
        assert_eq!(rests.keep(vec![4; 11]).take(), None, "more than may be kept at all");
        let shelf = lock(&rests.shelf);
        assert_eq!((shelf.bytes, shelf.rests.len()), (0, 0));
    }
}
