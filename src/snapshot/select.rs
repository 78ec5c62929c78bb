//! Which bytes of a snapshot a caller gets.

use std::ops::{Deref, Range};

use crate::model::{Grants, GroupSet, SyncGroup};
use crate::snapshot::manifest::Manifest;

/// A manifest whose group sets are found by the groups in them: an org has a set for each of its users, and a caller few groups.
#[derive(Debug)]
pub struct Selectable {
    manifest: Manifest,
    /// Every group of every set, ordered by the group.
    carried: Box<[Carried]>,
}

/// A group of a set.
#[derive(Clone, Copy, Debug)]
struct Carried {
    set: u32,
    place: u32,
}

impl Selectable {
    /// Orders the groups.
    pub fn new(manifest: Manifest) -> Self {
        let of = |(set, groups): (usize, &[SyncGroup])| {
            (0..groups.len()).map(move |place| Carried { set: set as u32, place: place as u32 })
        };
        let mut carried: Box<[Carried]> =
            manifest.sets.iter().map(GroupSet::as_slice).enumerate().flat_map(of).collect();
        carried.sort_unstable_by(|one, other| group(&manifest, *one).cmp(group(&manifest, *other)));
        Self { manifest, carried }
    }

    /// Bytes it takes in memory, about; what caches weigh it by.
    pub fn weight(&self) -> usize {
        self.manifest.weight() + size_of_val(&*self.carried)
    }

    /// Which sets hold any of the groups.
    fn seen(&self, grants: &Grants) -> Vec<bool> {
        let mut seen = vec![false; self.sets.len()];
        for held in grants.as_slice() {
            let first = self.carried.partition_point(|carried| group(self, *carried) < held);
            for carried in self.carried[first..].iter().take_while(|carried| group(self, **carried) == held) {
                seen[carried.set as usize] = true;
            }
        }
        seen
    }
}

impl Deref for Selectable {
    type Target = Manifest;

    fn deref(&self) -> &Manifest {
        &self.manifest
    }
}

fn group(manifest: &Manifest, Carried { set, place }: Carried) -> &SyncGroup {
    &manifest.sets[set as usize].as_slice()[place as usize]
}

/// The frames an answer consists of, as slices of packs, with what they add up to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selection {
    /// The slices, ordered by pack and offset.
    pub slices: Vec<Slice>,
    /// Rows of each model, by index.
    pub rows: Vec<u64>,
    /// Bytes of all frames.
    pub len: u64,
    /// Bytes of all lines.
    pub raw_len: u64,
}

/// Adjacent frames of one pack.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slice {
    /// Index into the manifest's packs.
    pub pack: u32,
    /// Where it begins and ends in the pack.
    pub bytes: Range<u32>,
    /// The frames, as a range of the manifest's.
    pub frames: Range<usize>,
}

/// Picks the frames of the wanted models whose group set meets the grants. `wanted` says for each model, by index,
/// whether it is asked for. A row stands in one frame only, so one that carries several of the caller's groups comes
/// once.
pub fn select(manifest: &Selectable, grants: &Grants, wanted: impl Fn(usize) -> bool) -> Selection {
    let wanted: Vec<bool> = (0..manifest.models as usize).map(wanted).collect();
    let seen = manifest.seen(grants);
    let mut selection = Selection { rows: vec![0; wanted.len()], ..Selection::default() };
    for (index, frame) in manifest.frames.iter().enumerate() {
        let (model, set) = (frame.model as usize, frame.set as usize);
        if !wanted[model] || !seen[set] {
            continue;
        }
        selection.rows[model] += u64::from(frame.rows);
        selection.len += u64::from(frame.len);
        selection.raw_len += u64::from(frame.raw_len);
        let end = frame.offset + frame.len;
        match selection.slices.last_mut() {
            Some(last) if last.pack == frame.pack && last.bytes.end == frame.offset && last.frames.end == index => {
                last.bytes.end = end;
                last.frames.end = index + 1;
            }
            _ => selection.slices.push(Slice { pack: frame.pack, bytes: frame.offset..end, frames: index..index + 1 }),
        }
    }
    selection
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::manifest::tests::sample;

    #[test]
    fn adjacent_frames_leave_as_one_slice() {
        let manifest = Selectable::new(sample(200));
        let grants = Grants::new(vec![SyncGroup::of("team", "1"), SyncGroup::of("team", "9")]);
        let selection = select(&manifest, &grants, |_| true);
        let expected: Vec<_> = manifest.frames.iter().filter(|frame| frame.set == 1).collect();
        assert_eq!(selection.len, expected.iter().map(|frame| u64::from(frame.len)).sum::<u64>());
        assert_eq!(selection.rows.iter().sum::<u64>(), 10 * expected.len() as u64);
        let covered: usize = selection.slices.iter().map(|slice| slice.frames.len()).sum();
        assert_eq!(covered, expected.len());
        for slice in &selection.slices {
            let frames = &manifest.frames[slice.frames.clone()];
            assert_eq!(slice.bytes.start, frames[0].offset);
            assert_eq!(slice.bytes.end - slice.bytes.start, frames.iter().map(|frame| frame.len).sum::<u32>());
        }
    }

    #[test]
    fn a_set_is_seen_by_whoever_holds_any_of_its_groups() {
        let groups = |names: &[&str]| names.iter().map(|name| SyncGroup::new(*name)).collect::<Vec<_>>();
        let sets = [&["b", "d"][..], &[], &["a"], &["c", "d", "e"], &["d"], &["aa", "b"]];
        let manifest = Manifest { sets: sets.map(|set| GroupSet::new(groups(set))).into(), ..sample(0) };
        let manifest = Selectable::new(manifest);
        for held in [&[][..], &["a"], &["aa"], &["b"], &["d"], &["0", "z"], &["a", "c"], &["a", "b", "c", "d", "e"]] {
            let grants = Grants::new(groups(held));
            let expected: Vec<bool> = manifest.sets.iter().map(|set| grants.sees(set)).collect();
            assert_eq!(manifest.seen(&grants), expected, "{held:?}");
        }
    }

    #[test]
    fn models_that_were_not_asked_for_stay_away() {
        let all = Grants::new((0..4).map(|team| SyncGroup::of("team", &team.to_string())).collect());
        let selection = select(&Selectable::new(sample(30)), &all, |model| model == 2);
        assert_eq!(selection.rows, [0, 0, 100]);
        assert_eq!(select(&Selectable::new(sample(30)), &Grants::default(), |_| true).slices, []);
    }
}
