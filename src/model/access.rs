//! Who sees what: a row carries a set of sync groups, a user holds some, and sees the row when the two meet.

use std::sync::Arc;

use crate::model::ids::{Org, SyncGroup, User};

/// The groups a row carries: sorted, without repeats. An empty set is seen by nobody.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GroupSet(Arc<[SyncGroup]>);

impl GroupSet {
    /// Sorts the groups and drops repeats.
    pub fn new(mut groups: Vec<SyncGroup>) -> Self {
        groups.sort_unstable();
        groups.dedup();
        Self(groups.into())
    }

    /// The groups, sorted.
    pub fn as_slice(&self) -> &[SyncGroup] {
        &self.0
    }
}

/// The groups a caller holds: sorted, without repeats.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Grants(Arc<[SyncGroup]>);

impl Grants {
    /// Sorts the groups and drops repeats.
    pub fn new(mut groups: Vec<SyncGroup>) -> Self {
        groups.sort_unstable();
        groups.dedup();
        Self(groups.into())
    }

    /// Whether this very group is held.
    pub fn holds(&self, group: &SyncGroup) -> bool {
        self.0.binary_search(group).is_ok()
    }

    /// Whether a row with these groups is seen.
    pub fn sees(&self, row: &GroupSet) -> bool {
        row.as_slice().iter().any(|group| self.holds(group))
    }

    /// The groups, sorted.
    pub fn as_slice(&self) -> &[SyncGroup] {
        &self.0
    }
}

/// Who asks: one user of one org, with the groups this answer is filtered by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    /// The only org this caller's answers may read.
    pub org: Org,
    /// The user within it.
    pub user: User,
    /// What the user holds.
    pub grants: Grants,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn groups(names: &[&str]) -> Vec<SyncGroup> {
        names.iter().map(|name| SyncGroup::new(*name)).collect()
    }

    #[test]
    fn a_row_is_seen_when_any_group_meets() {
        let grants = Grants::new(groups(&["user:1", "team:2", "team:2"]));
        assert!(grants.sees(&GroupSet::new(groups(&["team:9", "team:2"]))));
        assert!(!grants.sees(&GroupSet::new(groups(&["team:1", "user:2"]))));
        assert!(!grants.sees(&GroupSet::default()), "an empty set is seen by nobody");
        assert_eq!(grants.as_slice().len(), 2);
    }
}
