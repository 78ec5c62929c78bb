//! The bounded shelf behind the cache: what lies on it, who holds it, who waits for room. Knows no store.
//!
//! Every byte on the shelf counts, held or not, from before it is loaded until it is gone; together they never exceed
//! the limit. An entry that nobody holds is idle, and idle ones make room, least recently used first. An entry that
//! somebody holds stays, so it also serves others. When even that leaves no room, whoever wants to load waits, first
//! come, first served: a large pack is not overtaken for ever by small ones.
//!
//! One plain mutex, held for a few map operations and never across an await. What it decides to free or to tell is
//! freed and told after it is released.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{oneshot, watch};
use tokio::time::timeout;

use crate::metrics::{CacheMetrics, level};
use crate::model::{Org, SnapshotId};
use crate::snapshot::{PackId, Selectable};
use crate::store::StoreError;
use crate::store::cache::CacheStats;

/// What lies on the shelf. Ids are random, the org is there so that a mistake elsewhere never crosses orgs.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Key {
    /// A pack.
    Pack(Org, PackId),
    /// A manifest.
    Manifest(Org, SnapshotId),
}

/// Its content.
#[derive(Clone, Debug)]
pub enum Value {
    /// A verified pack.
    Pack(Bytes),
    /// A decoded manifest.
    Manifest(Arc<Selectable>),
}

/// What a load ends with: the content and the room it was given, or the reason for all who wait.
pub type Loaded = Result<(Value, Room), StoreError>;
/// What those who wait for a load get.
pub type Answer = Result<(Value, Pin), StoreError>;

/// The shelf.
pub struct Shelf {
    limit: usize,
    state: Mutex<State>,
    /// Whether somebody waits for room.
    crowded: watch::Sender<bool>,
    metrics: CacheMetrics,
}

#[derive(Default)]
struct State {
    entries: HashMap<Key, Entry>,
    /// The entries nobody holds, by when the last holder let go.
    idle: BTreeMap<u64, Key>,
    idle_bytes: usize,
    /// Counts letting go, to order `idle`.
    turn: u64,
    /// Bytes of all entries and of all room given to loads.
    used: usize,
    queue: VecDeque<Waiting>,
}

enum Entry {
    Loading(Vec<oneshot::Sender<Answer>>),
    /// Idle since that turn when there are no pins.
    Ready {
        value: Value,
        weight: usize,
        pins: usize,
        idle_since: u64,
        /// It was loaded ahead, and nobody has asked for it yet.
        unasked: bool,
    },
}

struct Waiting {
    weight: usize,
    room: oneshot::Sender<Room>,
}

/// What is done after the mutex is released.
#[derive(Default)]
struct Aftermath {
    evicted: Vec<Value>,
    granted: Vec<(oneshot::Sender<Room>, usize)>,
}

/// What is on the shelf for a key.
pub enum Lookup {
    /// It is there.
    Ready(Value, Pin),
    /// Somebody is loading it.
    Joined(oneshot::Receiver<Answer>),
    /// The caller is to see to it that it is loaded.
    Load(oneshot::Receiver<Answer>, Ticket),
}

impl Shelf {
    /// An empty shelf for this many bytes.
    pub fn new(limit: usize, metrics: CacheMetrics) -> Arc<Self> {
        metrics.limit_bytes.set(level(limit));
        Arc::new(Self { limit, state: Mutex::default(), crowded: watch::Sender::new(false), metrics })
    }

    /// Looks for an entry and joins its load or begins one if it is not there.
    pub fn look_up(self: &Arc<Self>, key: &Key) -> Lookup {
        self.change(|state, _| match state.entries.get_mut(key) {
            Some(Entry::Ready { value, .. }) => {
                let value = value.clone();
                Lookup::Ready(value, self.hit(state, key))
            }
            Some(Entry::Loading(waiting)) => {
                let (sender, answer) = oneshot::channel();
                waiting.push(sender);
                self.metrics.joins.inc();
                Lookup::Joined(answer)
            }
            None => {
                let (sender, answer) = oneshot::channel();
                state.entries.insert(key.clone(), Entry::Loading(vec![sender]));
                self.metrics.loads.inc();
                Lookup::Load(answer, Ticket { shelf: self.clone(), key: key.clone(), open: true })
            }
        })
    }

    /// Begins the load of an entry before anyone asks for it; `None` when it is there or on its way, and when there is no
    /// room to spare: others wait for some, or hold so much that with this more than half of it would be taken.
    pub fn look_ahead(self: &Arc<Self>, key: &Key, weight: usize) -> Option<Ticket> {
        self.change(|state, _| {
            let held = state.used - state.idle_bytes;
            if state.entries.contains_key(key) || !state.queue.is_empty() || held + weight > self.limit / 2 {
                return None;
            }
            state.entries.insert(key.clone(), Entry::Loading(Vec::new()));
            self.metrics.loads.inc();
            Some(Ticket { shelf: self.clone(), key: key.clone(), open: true })
        })
    }

    /// Whether an entry is there now.
    pub fn has(&self, key: &Key) -> bool {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        matches!(state.entries.get(key), Some(Entry::Ready { .. }))
    }

    /// An entry that is there; nothing is loaded.
    pub fn peek(self: &Arc<Self>, key: &Key) -> Option<(Value, Pin)> {
        self.change(|state, _| match state.entries.get(key) {
            Some(Entry::Ready { value, .. }) => Some((value.clone(), self.hit(state, key))),
            Some(Entry::Loading(_)) | None => None,
        })
    }

    /// Pins an entry that is there.
    fn hit(self: &Arc<Self>, state: &mut State, key: &Key) -> Pin {
        state.pin(key);
        // Whoever asks first for what was loaded ahead has joined that load, though late.
        let first = match state.entries.get_mut(key) {
            Some(Entry::Ready { unasked, .. }) => std::mem::take(unasked),
            Some(Entry::Loading(_)) | None => false,
        };
        if first {
            self.metrics.joins.inc()
        } else {
            self.metrics.hits.inc()
        };
        Pin { shelf: self.clone(), key: key.clone() }
    }

    /// Room for a load, once there is some; `None` when there was none in time, or the shelf is smaller than that.
    /// Dropping the future leaves the queue.
    pub async fn room(self: &Arc<Self>, weight: usize, within: Duration) -> Option<Room> {
        if weight > self.limit {
            return None;
        }
        let (sender, room) = oneshot::channel();
        self.change(|state, aftermath| {
            let waiting = state.queue.len();
            state.queue.push_back(Waiting { weight, room: sender });
            state.settle(self.limit, aftermath);
            self.metrics.waits.inc_by(u64::from(state.queue.len() > waiting));
        });
        let granted = timeout(within, room).await;
        if granted.is_err() {
            // Those behind this one may fit.
            self.change(|state, aftermath| state.settle(self.limit, aftermath));
        }
        granted.ok()?.ok()
    }

    /// Whether somebody waits for room, as it changes.
    pub fn crowded(&self) -> watch::Receiver<bool> {
        self.crowded.subscribe()
    }

    /// The figures now.
    pub fn stats(self: &Arc<Self>) -> CacheStats {
        self.change(|state, _| CacheStats {
            limit: self.limit as u64,
            bytes: state.used as u64,
            idle_bytes: state.idle_bytes as u64,
            hits: self.metrics.hits.get(),
            joins: self.metrics.joins.get(),
            loads: self.metrics.loads.get(),
            waits: self.metrics.waits.get(),
            evictions: self.metrics.evictions.get(),
        })
    }

    fn change<T>(self: &Arc<Self>, change: impl FnOnce(&mut State, &mut Aftermath) -> T) -> T {
        let mut aftermath = Aftermath::default();
        // A panic between two of the few plain assignments below is not possible, so a poisoned state is whole.
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let result = change(&mut state, &mut aftermath);
        self.metrics.bytes.set(i64::try_from(state.used).unwrap_or(i64::MAX));
        self.metrics.evictions.inc_by(aftermath.evicted.len() as u64);
        // Under the lock, so that the last word is of the last change.
        let crowded = !state.queue.is_empty();
        self.crowded.send_if_modified(|told| std::mem::replace(told, crowded) != crowded);
        drop(state);
        for (sender, weight) in aftermath.granted {
            // Whoever left the queue meanwhile lets the room drop, which gives it on.
            let _ = sender.send(Room { shelf: self.clone(), weight });
        }
        result
    }
}

impl State {
    /// Gives room to those who wait, in their order, as far as it goes.
    fn settle(&mut self, limit: usize, aftermath: &mut Aftermath) {
        while let Some(first) = self.queue.front() {
            let weight = first.weight;
            let gone = first.room.is_closed();
            // Nothing is evicted unless that makes enough room.
            if !gone && self.used - self.idle_bytes + weight > limit {
                break;
            }
            let Some(Waiting { room, .. }) = self.queue.pop_front() else { break };
            if gone {
                continue;
            }
            while self.used + weight > limit
                && let Some((_, key)) = self.idle.pop_first()
            {
                if let Some(Entry::Ready { value, weight, .. }) = self.entries.remove(&key) {
                    self.used -= weight;
                    self.idle_bytes -= weight;
                    aftermath.evicted.push(value);
                }
            }
            self.used += weight;
            aftermath.granted.push((room, weight));
        }
    }

    fn take_waiting(&mut self, key: &Key) -> Vec<oneshot::Sender<Answer>> {
        match self.entries.remove(key) {
            Some(Entry::Loading(waiting)) => waiting,
            // Only the load's own ticket ends it, once.
            Some(Entry::Ready { .. }) | None => Vec::new(),
        }
    }

    fn pin(&mut self, key: &Key) {
        let Some(Entry::Ready { weight, pins, idle_since, .. }) = self.entries.get_mut(key) else { return };
        if *pins == 0 {
            self.idle.remove(idle_since);
            self.idle_bytes -= *weight;
        }
        *pins += 1;
    }

    fn unpin(&mut self, key: &Key) {
        let Some(Entry::Ready { weight, pins, idle_since, .. }) = self.entries.get_mut(key) else { return };
        *pins -= 1;
        if *pins == 0 {
            self.turn += 1;
            *idle_since = self.turn;
            self.idle_bytes += *weight;
            self.idle.insert(self.turn, key.clone());
        }
    }
}

/// Holds an entry on the shelf.
pub struct Pin {
    shelf: Arc<Shelf>,
    key: Key,
}

impl Drop for Pin {
    fn drop(&mut self) {
        let limit = self.shelf.limit;
        self.shelf.change(|state, aftermath| {
            state.unpin(&self.key);
            state.settle(limit, aftermath);
        });
    }
}

impl fmt::Debug for Pin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Pin").field(&self.key).finish()
    }
}

/// Bytes of the shelf that are given to a load. Dropped unused, they are given on.
pub struct Room {
    shelf: Arc<Shelf>,
    weight: usize,
}

impl Drop for Room {
    fn drop(&mut self) {
        if self.weight > 0 {
            let limit = self.shelf.limit;
            self.shelf.change(|state, aftermath| {
                state.used -= self.weight;
                state.settle(limit, aftermath);
            });
        }
    }
}

/// The duty to end a load. Dropped without that, as in a panic, everybody who waits learns that there is no answer.
pub struct Ticket {
    shelf: Arc<Shelf>,
    key: Key,
    open: bool,
}

impl Ticket {
    /// Puts the entry on the shelf, or says why not, and tells all who wait.
    pub fn finish(mut self, loaded: Loaded) {
        self.open = false;
        match loaded {
            Err(error) => {
                for waiting in self.take_waiting() {
                    // Whoever went away needs no reason.
                    let _ = waiting.send(Err(error.clone()));
                }
            }
            Ok((value, mut room)) => {
                let weight = std::mem::take(&mut room.weight);
                let waiting = self.shelf.change(|state, _| {
                    let waiting = state.take_waiting(&self.key);
                    // One pin more than asked for, so that the entry is not idle before it is handed out.
                    let pins = waiting.len() + 1;
                    let unasked = waiting.is_empty();
                    let entry = Entry::Ready { value: value.clone(), weight, pins, idle_since: 0, unasked };
                    state.entries.insert(self.key.clone(), entry);
                    waiting
                });
                let _held = self.pin();
                for waiting in waiting {
                    // The pin of whoever went away drops here.
                    let _ = waiting.send(Ok((value.clone(), self.pin())));
                }
            }
        }
    }

    fn pin(&self) -> Pin {
        Pin { shelf: self.shelf.clone(), key: self.key.clone() }
    }

    fn take_waiting(&self) -> Vec<oneshot::Sender<Answer>> {
        self.shelf.change(|state, _| state.take_waiting(&self.key))
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if self.open {
            drop(self.take_waiting());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(number: u32) -> Key {
        Key::Pack(Org::new("o"), PackId { snapshot: SnapshotId::from_bytes([1; 16]), number })
    }

    /// Puts an entry of this weight on the shelf, which must have room for it now.
    async fn put(shelf: &Arc<Shelf>, number: u32, weight: usize) -> Pin {
        let Lookup::Load(answer, ticket) = shelf.look_up(&key(number)) else { panic!("{number} is there already") };
        let room = shelf.room(weight, Duration::ZERO).await.expect("room");
        ticket.finish(Ok((Value::Pack(Bytes::from(vec![0; weight])), room)));
        answer.await.expect("an answer").expect("a value").1
    }

    fn has(shelf: &Arc<Shelf>, number: u32) -> bool {
        let found = shelf.has(&key(number));
        assert_eq!(matches!(shelf.look_up(&key(number)), Lookup::Ready(..)), found);
        found
    }

    #[tokio::test]
    async fn the_least_recently_used_makes_room() {
        let shelf = Shelf::new(100, CacheMetrics::default());
        for number in 0..4 {
            drop(put(&shelf, number, 25).await);
        }
        assert!(has(&shelf, 0));
        drop(put(&shelf, 4, 26).await);
        assert_eq!([0, 1, 2, 3, 4].map(|number| has(&shelf, number)), [true, false, false, true, true]);
        assert_eq!(shelf.stats().bytes, 76);
    }

    #[tokio::test]
    async fn what_is_loaded_ahead_takes_nobodys_room() {
        let shelf = Shelf::new(100, CacheMetrics::default());
        let held = put(&shelf, 0, 30).await;
        assert!(shelf.look_ahead(&key(0), 1).is_none(), "it is there");
        assert!(shelf.look_ahead(&key(1), 21).is_none(), "more than half would be taken");
        let ticket = shelf.look_ahead(&key(1), 20).expect("room to spare");
        assert!(shelf.look_ahead(&key(1), 20).is_none(), "it is on its way");
        let Lookup::Joined(answer) = shelf.look_up(&key(1)) else { panic!("a load to join") };
        let room = shelf.room(20, Duration::ZERO).await.expect("room");
        ticket.finish(Ok((Value::Pack(Bytes::from(vec![0; 20])), room)));
        drop(answer.await.expect("an answer").expect("a value"));
        let unasked = shelf.look_ahead(&key(2), 20).expect("room to spare");
        unasked
            .finish(Ok((Value::Pack(Bytes::from(vec![0; 20])), shelf.room(20, Duration::ZERO).await.expect("room"))));
        assert_eq!((shelf.stats().idle_bytes, shelf.stats().bytes), (40, 70), "nobody holds what nobody asked for");
        assert_eq!((shelf.stats().joins, shelf.stats().hits), (1, 0));
        assert!(has(&shelf, 2) && has(&shelf, 2));
        assert_eq!((shelf.stats().joins, shelf.stats().hits), (2, 1), "the first to ask has joined the load");
        drop(held);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_held_stays_and_counts() {
        let shelf = Shelf::new(100, CacheMetrics::default());
        let held = put(&shelf, 0, 60).await;
        drop(put(&shelf, 1, 30).await);
        assert!(shelf.room(101, Duration::from_secs(1)).await.is_none(), "never fits");
        assert!(shelf.room(50, Duration::from_secs(1)).await.is_none(), "held bytes are in the way");
        assert!(has(&shelf, 1), "nothing is evicted in vain");
        let waiting = shelf.room(50, Duration::from_secs(1));
        let letting_go = async { drop(held) };
        let (room, ()) = tokio::join!(waiting, letting_go);
        let room = room.expect("room once it was let go");
        assert_eq!(shelf.stats().bytes, 50, "both made room, the one used longer ago first and that was not enough");
        drop(room);
        assert_eq!(shelf.stats().bytes, 0);
    }

    #[tokio::test(start_paused = true)]
    async fn first_come_first_served_and_leaving_the_queue_lets_others_pass() {
        let shelf = Shelf::new(100, CacheMetrics::default());
        let held = put(&shelf, 0, 60).await;
        let second = Duration::from_secs(1);
        let (large, small) = tokio::join!(shelf.room(80, second), async {
            let small = shelf.room(20, second * 5).await;
            (small, tokio::time::Instant::now())
        });
        assert!(large.is_none());
        assert!(small.0.is_some(), "the small one got its room when the large one gave up");
        assert_eq!(shelf.stats().waits, 2);
        drop((held, small));
        assert_eq!(shelf.stats().bytes, 60);
    }

    #[tokio::test]
    async fn all_who_wait_learn_that_a_load_was_abandoned_and_the_next_begins_anew() {
        let shelf = Shelf::new(100, CacheMetrics::default());
        let Lookup::Load(first, ticket) = shelf.look_up(&key(0)) else { panic!() };
        let Lookup::Joined(second) = shelf.look_up(&key(0)) else { panic!() };
        drop(ticket);
        assert!(first.await.is_err() && second.await.is_err());
        let Lookup::Load(third, ticket) = shelf.look_up(&key(0)) else { panic!() };
        ticket.finish(Err(StoreError::NoRoom));
        assert!(matches!(third.await, Ok(Err(StoreError::NoRoom))));
        assert!(matches!(shelf.look_up(&key(0)), Lookup::Load(..)));
    }
}
