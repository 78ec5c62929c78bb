//! Frames into packs: which frames are stored together. Pure.
//!
//! A reader loads whole packs, so the frames of one group set stay together: a set that fills a pack gets packs of its
//! own, and what is left of each set at the end shares packs only while these are small. A reader of k of n groups so
//! loads about k/n of the packs, and at most `SHARED_MAX` bytes more for each set that shares.

use std::collections::HashMap;

use crate::dump::live::LiveFrame;
use crate::source::SetId;

/// A pack is cut at a change of sets once it holds this many bytes.
const SHARED_MAX: u64 = 128 << 10;

/// Collects frames until they fill packs. Memory: about 40 bytes a frame that waits.
#[derive(Debug)]
pub struct PackPlan {
    target: u64,
    waiting: HashMap<SetId, Pile>,
}

#[derive(Debug, Default)]
struct Pile {
    frames: Vec<LiveFrame>,
    len: u64,
}

impl PackPlan {
    /// Packs of about `target` bytes.
    pub fn new(target: usize) -> Self {
        Self { target: target as u64, waiting: HashMap::new() }
    }

    /// Takes a frame; gives the frames of a pack that is full by it.
    pub fn push(&mut self, frame: LiveFrame) -> Option<Vec<LiveFrame>> {
        let pile = self.waiting.entry(frame.set).or_default();
        pile.frames.push(frame);
        pile.len += u64::from(frame.len);
        if pile.len < self.target {
            return None;
        }
        self.waiting.remove(&frame.set).map(Pile::in_order)
    }

    /// What is left, as packs. `rank` orders the sets that may share one: neighbours should have readers in common.
    pub fn finish<K: Ord>(self, rank: impl Fn(SetId) -> K) -> Vec<Vec<LiveFrame>> {
        let mut piles: Vec<_> = self.waiting.into_iter().collect();
        piles.sort_by_cached_key(|(set, _)| rank(*set));
        let mut packs = Vec::new();
        let (mut pack, mut len) = (Vec::new(), 0);
        for (_, pile) in piles {
            let shares = len + pile.len <= SHARED_MAX;
            if !shares && !pack.is_empty() {
                packs.push(std::mem::take(&mut pack));
                len = 0;
            }
            len += pile.len;
            pack.extend(pile.in_order());
        }
        packs.extend((!pack.is_empty()).then_some(pack));
        packs
    }
}

impl Pile {
    /// Models together, so that a reader of some models gets long slices.
    fn in_order(mut self) -> Vec<LiveFrame> {
        self.frames.sort_by_key(|frame| (frame.model, frame.offset));
        self.frames
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(model: u32, set: u32, offset: u64, len: u32) -> LiveFrame {
        LiveFrame { model, set: SetId(set), offset, len, raw_len: len * 8, rows: 1, filter: 0, filter_len: 0 }
    }

    #[test]
    fn a_large_set_gets_packs_of_its_own_and_small_ones_share() {
        let mut plan = PackPlan::new(1 << 20);
        let large = (0..30).filter_map(|n| plan.push(frame(n % 2, 0, n.into(), 100 << 10))).collect::<Vec<_>>();
        assert_eq!(large.iter().map(Vec::len).collect::<Vec<_>>(), [11, 11]);
        assert!(large[0].is_sorted_by_key(|frame| (frame.model, frame.offset)));
        for set in 1..=4 {
            assert_eq!(plan.push(frame(0, set, 1000, 60 << 10)), None);
        }
        let rest = plan.finish(|set| set);
        let sets: Vec<Vec<u32>> = rest.iter().map(|pack| pack.iter().map(|frame| frame.set.0).collect()).collect();
        assert_eq!(sets, [vec![0; 8], vec![1, 2], vec![3, 4]]);
    }
}
