//! Which bytes of a snapshot a caller gets.

use std::collections::HashSet;
use std::ops::Range;

use crate::model::{Grants, GroupSet, SyncGroup};
use crate::snapshot::manifest::Manifest;

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
pub fn select(manifest: &Manifest, grants: &Grants, wanted: impl Fn(usize) -> bool) -> Selection {
    let wanted: Vec<bool> = (0..manifest.models as usize).map(wanted).collect();
    // An org has a set for each of its users, so looking groups up by their hash is what counts.
    let held: HashSet<&SyncGroup> = grants.as_slice().iter().collect();
    let sees = |set: &GroupSet| set.as_slice().iter().any(|group| held.contains(group));
    let seen: Vec<bool> = manifest.sets.iter().map(sees).collect();
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
        let manifest = sample(200);
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
    fn models_that_were_not_asked_for_stay_away() {
        let all = Grants::new((0..4).map(|team| SyncGroup::of("team", &team.to_string())).collect());
        let selection = select(&sample(30), &all, |model| model == 2);
        assert_eq!(selection.rows, [0, 0, 100]);
        assert_eq!(select(&sample(30), &Grants::default(), |_| true).slices, []);
    }
}
