//! Frames into packs: which frames are stored together. Pure.
//!
//! A reader loads whole packs, so the frames of one group set stay together: a set that fills a pack gets packs of its
//! own, and of what is left of each set in the end only what is small shares packs, with what is small of others. A reader of k of
//! n groups so loads about k/n of the packs, and for each of these that a set shares at most 128 KiB more, or 256 KiB where that is
//! at most a quarter of the set.

use std::collections::{BTreeMap, HashMap};

use crate::dump::live::LiveFrame;
use crate::source::SetId;

/// Collects frames until they fill packs. Memory: about 40 bytes a frame that waits, and 40 a set.
#[derive(Debug)]
pub struct PackPlan {
    target: u64,
    waiting: HashMap<SetId, Pile>,
    /// Bytes of each set, those that lie in packs already among them.
    held: HashMap<SetId, u64>,
}

#[derive(Debug, Default)]
struct Pile {
    frames: Vec<LiveFrame>,
    len: u64,
}

/// How long a pack may be that a set of so many bytes shares with others. Short enough to count as small when
/// [`super::reuse`] looks for what belongs together again.
fn most_shared(held: u64) -> u64 {
    if held < 1 << 20 { 128 << 10 } else { 256 << 10 }
}

impl PackPlan {
    /// Packs of about `target` bytes.
    pub fn new(target: usize) -> Self {
        Self { target: target as u64, waiting: HashMap::new(), held: HashMap::new() }
    }

    /// Takes note of bytes of a set that lie in a pack which is there already.
    pub fn hold(&mut self, set: SetId, len: u64) {
        *self.held.entry(set).or_default() += len;
    }

    /// Takes a frame; gives the frames of a pack that is full by it.
    pub fn push(&mut self, frame: LiveFrame) -> Option<Vec<LiveFrame>> {
        self.hold(frame.set, frame.len.into());
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
        // By how long they may be, so that large sets and small ones, which take turns in the order, don't cut each other off.
        let mut shared: BTreeMap<u64, Pile> = BTreeMap::new();
        for (set, pile) in piles {
            let most = most_shared(self.held[&set]);
            if pile.len > most / 2 {
                packs.push(pile.in_order());
                continue;
            }
            let open = shared.entry(most).or_default();
            if open.len + pile.len > most {
                packs.push(std::mem::take(open).frames);
            }
            open.len += pile.len;
            open.frames.extend(pile.in_order());
        }
        packs.extend(shared.into_values().map(|pile| pile.frames));
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
        assert_eq!(sets(plan), [vec![0; 8], vec![1, 2], vec![3, 4]]);
    }

    /// The sets of what is left, pack by pack.
    fn sets(plan: PackPlan) -> Vec<Vec<u32>> {
        let mut packs: Vec<Vec<u32>> =
            plan.finish(|set| set).iter().map(|pack| pack.iter().map(|frame| frame.set.0).collect()).collect();
        packs.sort_unstable();
        packs
    }

    #[test]
    fn small_piles_share_whatever_lies_between_them() {
        let mut plan = PackPlan::new(1 << 20);
        for (set, kib) in [(1, 30), (2, 500), (3, 30), (4, 500), (5, 30), (6, 65)] {
            assert_eq!(plan.push(frame(0, set, 0, kib << 10)), None);
        }
        assert_eq!(sets(plan), [vec![1, 3, 5], vec![2], vec![4], vec![6]]);
    }

    #[test]
    fn large_sets_share_larger_packs() {
        let mut plan = PackPlan::new(1 << 20);
        for set in 1..=5 {
            assert_eq!(plan.push(frame(0, set, 0, 100 << 10)), None);
        }
        assert_eq!(plan.push(frame(0, 6, 0, 20 << 10)), None);
        // Of all but the third, more lies in other packs.
        for set in [1, 2, 4, 5] {
            plan.hold(SetId(set), 1 << 20);
        }
        assert_eq!(sets(plan), [vec![1, 2], vec![3], vec![4, 5], vec![6]]);
    }
}
