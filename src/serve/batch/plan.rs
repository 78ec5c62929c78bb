//! Which keys go into the next statement. Pure.
//!
//! Keys wait by org, and within an org by what one statement can ask for: a model and a column. Orgs take turns, one
//! statement each. The last free place is kept for an org that has no statement under way, so that one whose statements
//! are slow never has all places. And the room to wait in is shared so that there is always some left for an org that
//! comes new.

use std::collections::{BTreeMap, HashMap, VecDeque};

use crate::model::Org;
use crate::source::By;

/// Keys that wait.
#[derive(Debug)]
pub struct Queue<T> {
    orgs: HashMap<Org, Waiting<T>>,
    /// Orgs with keys that wait, the one whose turn is next first.
    turns: VecDeque<Org>,
    /// Statements under way of each org that has any.
    running: HashMap<Org, usize>,
    waiting: usize,
}

/// What one statement can ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Column {
    /// The model, by index.
    pub model: usize,
    /// The column.
    pub by: By,
}

#[derive(Debug)]
struct Waiting<T> {
    /// Each column with its keys by their numbers; the column whose turn is next first.
    columns: VecDeque<(Column, BTreeMap<u64, T>)>,
    count: usize,
}

/// What the next statement asks for.
#[derive(Debug, PartialEq, Eq)]
pub struct Next<T> {
    /// Of which org.
    pub org: Org,
    /// By which column.
    pub column: Column,
    /// The keys, in the order they came.
    pub keys: Vec<T>,
}

impl<T> Default for Queue<T> {
    fn default() -> Self {
        Self { orgs: HashMap::new(), turns: VecDeque::new(), running: HashMap::new(), waiting: 0 }
    }
}

impl<T> Queue<T> {
    /// How many keys wait.
    pub fn waiting(&self) -> usize {
        self.waiting
    }

    /// How many statements are under way.
    pub fn running(&self) -> usize {
        self.running.values().sum()
    }

    /// Whether an org may put so many more keys into a room for `room`. It may have as many as there are places left
    /// free, no more (dynamic thresholds: Choudhury and Hahne, IEEE/ACM Transactions on Networking 6(2), 1998): alone it
    /// fills half of the room, two fill a third each, and a new one always finds some. When nobody waits, anyone may,
    /// with however many.
    pub fn admits(&self, org: &Org, keys: usize, room: usize) -> bool {
        let own = self.orgs.get(org).map_or(0, |waiting| waiting.count);
        self.waiting == 0 || own + keys <= room.saturating_sub(self.waiting)
    }

    /// Puts a key at the end. Numbers are drawn once and grow.
    pub fn push(&mut self, org: &Org, column: Column, number: u64, key: T) {
        let waiting = self.orgs.entry(org.clone()).or_insert_with(|| {
            self.turns.push_back(org.clone());
            Waiting { columns: VecDeque::new(), count: 0 }
        });
        waiting.count += 1;
        self.waiting += 1;
        match waiting.columns.iter_mut().find(|(known, _)| *known == column) {
            Some((_, keys)) => drop(keys.insert(number, key)),
            None => waiting.columns.push_back((column, BTreeMap::from([(number, key)]))),
        }
    }

    /// Takes a key out that nobody wants any more.
    pub fn remove(&mut self, org: &Org, column: Column, number: u64) -> Option<T> {
        let waiting = self.orgs.get_mut(org)?;
        let place = waiting.columns.iter().position(|(known, _)| *known == column)?;
        let keys = &mut waiting.columns[place].1;
        let removed = keys.remove(&number)?;
        if keys.is_empty() {
            waiting.columns.remove(place);
        }
        self.left(org, 1);
        Some(removed)
    }

    /// At most so many more keys for a statement that was taken and is not sent yet. It is no turn of the org.
    pub fn more(&mut self, org: &Org, column: Column, most: usize) -> Vec<T> {
        let Some(waiting) = self.orgs.get_mut(org) else { return Vec::new() };
        let Some(place) = waiting.columns.iter().position(|(known, _)| *known == column) else { return Vec::new() };
        let keys = &mut waiting.columns[place].1;
        let rest = keys.keys().nth(most).copied().map(|first| keys.split_off(&first)).unwrap_or_default();
        let more = std::mem::replace(keys, rest);
        if keys.is_empty() {
            waiting.columns.remove(place);
        }
        self.left(org, more.len());
        more.into_values().collect()
    }

    /// So many keys of an org wait no longer, though it was not its turn.
    fn left(&mut self, org: &Org, count: usize) {
        self.waiting -= count;
        let Some(waiting) = self.orgs.get_mut(org) else { return };
        waiting.count -= count;
        if waiting.count == 0 {
            self.orgs.remove(org);
            self.turns.retain(|turn| turn != org);
        }
    }

    /// The next statement, of at most `most` keys, when `places` may be under way at once. It counts as under way until
    /// [`Self::ended`].
    pub fn next(&mut self, places: usize, most: usize) -> Option<Next<T>> {
        let free = places.saturating_sub(self.running());
        let may = |org: &Org| free > 1 || (free == 1 && (places == 1 || !self.running.contains_key(org)));
        let turn = self.turns.iter().position(may)?;
        let org = self.turns.remove(turn)?;
        let waiting = self.orgs.get_mut(&org)?;
        let (column, mut keys) = waiting.columns.pop_front()?;
        let rest = keys.keys().nth(most).copied().map(|first| keys.split_off(&first));
        waiting.count -= keys.len();
        self.waiting -= keys.len();
        waiting.columns.extend(rest.map(|rest| (column, rest)));
        if waiting.count == 0 {
            self.orgs.remove(&org);
        } else {
            self.turns.push_back(org.clone());
        }
        *self.running.entry(org.clone()).or_default() += 1;
        Some(Next { org, column, keys: keys.into_values().collect() })
    }

    /// A statement of this org is no longer under way.
    pub fn ended(&mut self, org: &Org) {
        if let Some(running) = self.running.get_mut(org) {
            *running -= 1;
            if *running == 0 {
                self.running.remove(org);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const IDS: Column = Column { model: 0, by: By::Id };
    const KEYS: Column = Column { model: 0, by: By::Key(0) };

    fn org(name: &str) -> Org {
        Org::new(name)
    }

    /// The org and the keys of the next statement.
    fn next(queue: &mut Queue<u64>, places: usize) -> Option<(String, Vec<u64>)> {
        queue.next(places, 3).map(|next| (next.org.to_string(), next.keys))
    }

    #[test]
    fn orgs_take_turns_and_columns_within_them() {
        let mut queue = Queue::default();
        (0..7).for_each(|key| queue.push(&org("a"), IDS, key, key));
        queue.push(&org("a"), KEYS, 7, 7);
        queue.push(&org("b"), IDS, 8, 8);
        let mut order = Vec::new();
        while let Some((org, keys)) = next(&mut queue, 9) {
            order.push(format!("{org}{keys:?}"));
        }
        assert_eq!(order, ["a[0, 1, 2]", "b[8]", "a[7]", "a[3, 4, 5]", "a[6]"]);
        assert_eq!((queue.waiting(), queue.running()), (0, 5));
    }

    #[test]
    fn the_last_place_is_for_an_org_that_has_none() {
        let mut queue = Queue::default();
        (0..9).for_each(|key| queue.push(&org("a"), IDS, key, key));
        assert!(next(&mut queue, 2).is_some());
        assert_eq!(next(&mut queue, 2), None, "the second is kept free");
        queue.push(&org("b"), IDS, 9, 9);
        assert_eq!(next(&mut queue, 2), Some(("b".into(), vec![9])));
        queue.ended(&org("a"));
        assert_eq!(next(&mut queue, 2).map(|(org, _)| org), Some("a".into()));
        assert_eq!(next(&mut queue, 2), None);
        // With one place there is nothing to keep.
        let mut queue = Queue::default();
        queue.push(&org("a"), IDS, 0, 0);
        assert!(next(&mut queue, 1).is_some());
    }

    #[test]
    fn what_comes_before_a_statement_is_sent_goes_along() {
        let mut queue = Queue::default();
        queue.push(&org("a"), KEYS, 0, 0);
        assert_eq!(next(&mut queue, 2), Some(("a".into(), vec![0])));
        assert_eq!(queue.more(&org("a"), KEYS, 9), [0; 0]);
        (1..5).for_each(|key| queue.push(&org("a"), KEYS, key, key));
        queue.push(&org("a"), IDS, 5, 5);
        queue.push(&org("b"), KEYS, 6, 6);
        assert_eq!(queue.more(&org("a"), KEYS, 0), [0; 0]);
        assert_eq!(queue.more(&org("a"), KEYS, 3), [1, 2, 3]);
        assert_eq!(queue.more(&org("a"), KEYS, 3), [4]);
        assert_eq!((queue.waiting(), queue.running()), (2, 1), "another column and another org wait for their turns");
        assert_eq!(queue.more(&org("a"), IDS, 3), [5]);
        assert_eq!(next(&mut queue, 3), Some(("b".into(), vec![6])));
        assert!(queue.orgs.is_empty() && queue.turns.is_empty() && queue.waiting() == 0);
    }

    #[test]
    fn a_new_org_always_finds_room() {
        let mut queue = Queue::default();
        let mut number = 0;
        for name in ["a", "b", "c", "d"] {
            assert!(queue.admits(&org(name), 1, 100), "{name}");
            while queue.admits(&org(name), 1, 100) {
                queue.push(&org(name), IDS, number, number);
                number += 1;
            }
        }
        assert_eq!(queue.orgs[&org("a")].count, 50);
        assert!(queue.waiting() < 100 && !queue.admits(&org("a"), 1, 100));
        assert!(Queue::<u64>::default().admits(&org("a"), 1000, 100), "or it could never be loaded");
    }

    #[test]
    fn what_is_removed_leaves_nothing() {
        let mut queue = Queue::default();
        for key in 0..4 {
            queue.push(&org("a"), if key < 2 { IDS } else { KEYS }, key, key);
        }
        assert_eq!(queue.remove(&org("a"), KEYS, 0), None);
        for key in 0..4 {
            assert_eq!(queue.remove(&org("a"), if key < 2 { IDS } else { KEYS }, key), Some(key));
        }
        assert!(queue.orgs.is_empty() && queue.turns.is_empty() && queue.waiting() == 0);
        assert_eq!(next(&mut queue, 4), None);
    }
}
