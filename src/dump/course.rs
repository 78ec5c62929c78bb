//! Refresh or read everything? Pure: everything it needs is an argument.

use std::fmt;

use crate::model::Epoch;

/// Changed rows of which a refresh keeps the ids in memory, some 250 bytes each.
const MOST_CHANGED: u64 = 500_000;

/// What is published, as far as it matters to who would refresh it.
#[derive(Clone, Debug)]
pub struct Basis<'a> {
    /// The history it belongs to.
    pub epoch: &'a Epoch,
    /// Whether it has an index, or no row.
    pub is_indexed: bool,
    /// Refreshes between it and the last full dump.
    pub refreshes: u32,
    /// Rows in it.
    pub rows: u64,
}

/// How far refreshes go; see the settings of the same names.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Percent of the rows that may have changed.
    pub max_percent: u64,
    /// Refreshes after which everything is read once.
    pub max_count: u32,
}

/// Why everything is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Full {
    /// Somebody asked for a dump that does not rest on what is stored.
    Asked,
    /// There is no snapshot of this schema.
    NoSnapshot,
    /// The store does not tell what there is, or does not take what is written.
    Store,
    /// What is stored is damaged or missing.
    Damaged,
    /// It was deleted, or another took its place, in the middle.
    Replaced,
    /// The snapshot has no index: an older version made it.
    NotIndexed,
    /// The snapshot is of another history.
    OtherEpoch,
    /// There were as many refreshes as allowed, this many.
    Due(u32),
    /// The log no longer reaches back to the snapshot.
    Trimmed,
    /// More rows changed than this.
    Large(u64),
    /// Changes of a model are not all logged.
    Unlogged,
    /// The ids of a changed model are written differently in log and lines.
    Ids,
    /// The tables changed meanwhile.
    SchemaChanged,
    /// The database or the spool failed in the middle.
    Failed,
    /// A reader waits for it, and it takes long.
    Slow,
}

impl Full {
    /// It in one fixed word, for metrics.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Asked => "asked",
            Self::NoSnapshot => "no_snapshot",
            Self::Store => "store",
            Self::Damaged => "damaged",
            Self::Replaced => "replaced",
            Self::NotIndexed => "not_indexed",
            Self::OtherEpoch => "epoch",
            Self::Due(_) => "due",
            Self::Trimmed => "trimmed",
            Self::Large(_) => "large",
            Self::Unlogged => "unlogged",
            Self::Ids => "ids",
            Self::SchemaChanged => "schema_changed",
            Self::Failed => "failed",
            Self::Slow => "slow",
        }
    }
}

impl fmt::Display for Full {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Asked => f.write_str("a dump is asked for that rests on nothing stored"),
            Self::NoSnapshot => f.write_str("there is no snapshot of this schema"),
            Self::Store => f.write_str("the store does not answer as it should"),
            Self::Damaged => f.write_str("what is stored is damaged or missing"),
            Self::Replaced => f.write_str("what was published is not there any more"),
            Self::NotIndexed => f.write_str("the snapshot has no index"),
            Self::OtherEpoch => f.write_str("the snapshot is of another epoch"),
            Self::Due(count) => write!(f, "the snapshot was refreshed {count} times"),
            Self::Trimmed => f.write_str("the log does not reach back to the snapshot"),
            Self::Large(most) => write!(f, "more than {most} rows changed"),
            Self::Unlogged => f.write_str("changes of a model are not logged"),
            Self::Ids => f.write_str("the ids of a changed model can't be compared"),
            Self::SchemaChanged => f.write_str("the tables changed meanwhile"),
            Self::Failed => f.write_str("the refresh failed"),
            Self::Slow => f.write_str("a reader waits, and the refresh takes long"),
        }
    }
}

/// How many rows may have changed for a refresh of what is published to be the better way.
///
/// # Errors
/// Why everything is to be read instead.
pub fn most_changed(basis: &Basis<'_>, epoch: &Epoch, bounds: &Bounds) -> Result<u64, Full> {
    if basis.epoch != epoch {
        return Err(Full::OtherEpoch);
    }
    if !basis.is_indexed {
        return Err(Full::NotIndexed);
    }
    if basis.refreshes >= bounds.max_count {
        return Err(Full::Due(basis.refreshes));
    }
    // Of a small org any change is a large share, and the frames to write are the same either way.
    let share = basis.rows.saturating_mul(bounds.max_percent).div_ceil(100);
    match share.min(MOST_CHANGED) {
        0 if basis.rows > 0 => Err(Full::Large(0)),
        most => Ok(most),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUNDS: Bounds = Bounds { max_percent: 10, max_count: 3 };

    #[test]
    fn what_can_be_refreshed_and_how_far() {
        let (epoch, other) = (Epoch::new("e"), Epoch::new("f"));
        let basis = Basis { epoch: &epoch, is_indexed: true, refreshes: 2, rows: 995 };
        assert_eq!(most_changed(&basis, &epoch, &BOUNDS), Ok(100));
        assert_eq!(most_changed(&basis, &other, &BOUNDS), Err(Full::OtherEpoch));
        let due = Basis { refreshes: 3, ..basis.clone() };
        assert_eq!(most_changed(&due, &epoch, &BOUNDS), Err(Full::Due(3)));
        assert_eq!(most_changed(&Basis { is_indexed: false, ..basis.clone() }, &epoch, &BOUNDS), Err(Full::NotIndexed));
        assert_eq!(most_changed(&Basis { rows: u64::MAX, ..basis.clone() }, &epoch, &BOUNDS), Ok(MOST_CHANGED));
        assert_eq!(most_changed(&basis, &epoch, &Bounds { max_percent: 0, ..BOUNDS }), Err(Full::Large(0)));
    }
}
