//! What was true when: every change of the simulated database, so that an answer can be held against the moment it names.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use headstart::model::{Grants, GroupSet, Org, SyncGroup, SyncId};
use headstart::source::memory::MemorySource;

use crate::support::dice::Dice;

/// Names an object: model, by index, and id.
pub type Key = (usize, String);

/// What an object was at some time: who saw it, and its line.
pub type Version = Option<(GroupSet, String)>;

pub const ORGS: [&str; 3] = ["a", "b", "c"];
pub const TEAMS: [&str; 3] = ["1", "2", "3"];
pub const CLASSES: [&str; 3] = ["Issue", "Comment", "Attachment"];

/// The database, and all it ever was. Clones share it.
#[derive(Clone)]
pub struct History {
    pub database: Arc<MemorySource>,
    changes: Arc<Mutex<Vec<Change>>>,
}

struct Change {
    id: SyncId,
    org: Org,
    key: Key,
    version: Version,
}

impl History {
    pub fn new(database: Arc<MemorySource>) -> Self {
        Self { database, changes: Arc::default() }
    }

    /// The sync id of the last change.
    pub fn now(&self) -> SyncId {
        self.changes.lock().unwrap().last().map_or(SyncId::ZERO, |change| change.id)
    }

    /// Puts, moves or removes a row.
    pub fn change(&self, dice: &mut Dice) {
        let org = Org::new(ORGS[dice.below(ORGS.len())]);
        let (model, id) = (dice.below(3), dice.below(40).to_string());
        let mut changes = self.changes.lock().unwrap();
        let (sync_id, version) = if dice.below(5) == 0 {
            (self.database.remove(&org, model, &id), None)
        } else {
            let groups = match dice.below(8) {
                0 => Vec::new(),
                1 => vec![SyncGroup::of("org", org.as_str())],
                2 => vec![team(dice), team(dice)],
                _ => vec![team(dice)],
            };
            let groups = GroupSet::new(groups);
            let line = format!(
                "{{\"__class\":\"{}\",\"id\":\"{id}\",\"version\":{},\"text\":\"{}\"}}",
                CLASSES[model],
                changes.len(),
                "x".repeat(dice.below(400))
            );
            (self.database.put(&org, model, &id, groups.clone(), format!("{line}\n")), Some((groups, line)))
        };
        changes.push(Change { id: sync_id, org, key: (model, id), version });
    }

    /// What a caller saw of some models at a sync id: the lines by object.
    pub fn at(&self, org: &Org, grants: &Grants, models: &[usize], at: SyncId) -> BTreeMap<Key, String> {
        let mut seen = BTreeMap::new();
        for change in self.changes.lock().unwrap().iter().filter(|change| change.id <= at && change.org == *org) {
            match &change.version {
                Some((groups, line)) if models.contains(&change.key.0) && grants.sees(groups) => {
                    seen.insert(change.key.clone(), line.clone());
                }
                _ => drop(seen.remove(&change.key)),
            }
        }
        seen
    }

    /// Everything a caller saw of each object from one sync id on: an answer that is true at `from` and was read while
    /// the database moved on may hold any of it.
    pub fn since(&self, org: &Org, grants: &Grants, models: &[usize], from: SyncId) -> Seen {
        let mut seen: Seen = BTreeMap::new();
        for (key, line) in self.at(org, grants, models, from) {
            seen.entry(key).or_default().insert(Some(line));
        }
        for change in self.changes.lock().unwrap().iter() {
            if change.id <= from || change.org != *org || !models.contains(&change.key.0) {
                continue;
            }
            let visible = change.version.as_ref().filter(|(groups, _)| grants.sees(groups));
            // An object that was not there at `from` was nothing then.
            let lines = seen.entry(change.key.clone()).or_insert_with(|| BTreeSet::from([None]));
            lines.insert(visible.map(|(_, line)| line.clone()));
        }
        seen
    }

    /// For each object of an org what a snapshot of a sync id may hold of it: what it was then, and what it was at any time
    /// since, because a refresh reads rows as they are.
    pub fn snapshot(&self, org: &Org, at: SyncId) -> BTreeMap<Key, BTreeSet<Version>> {
        let mut rows: BTreeMap<Key, BTreeSet<Version>> = BTreeMap::new();
        for change in self.changes.lock().unwrap().iter().filter(|change| change.org == *org) {
            // Nobody sees a row without groups; attachments are explicit.
            let seen = |version: &&(GroupSet, String)| !version.0.as_slice().is_empty() && change.key.0 != 2;
            let version = change.version.as_ref().filter(seen).cloned();
            let versions = rows.entry(change.key.clone()).or_insert_with(|| BTreeSet::from([None]));
            if change.id <= at {
                versions.clear();
            }
            versions.insert(version);
        }
        rows
    }
}

/// For each object the lines it may show; `None`: it need not be there.
pub type Seen = BTreeMap<Key, BTreeSet<Option<String>>>;

fn team(dice: &mut Dice) -> SyncGroup {
    SyncGroup::of("team", TEAMS[dice.below(TEAMS.len())])
}
