//! The loads in flight: who waits for which key, and whom a statement answers.
//!
//! One lock over the map, the queue and the counts, held for a few look-ups and never across an await. A load is in the
//! map for as long as others may join it. Each way it can end takes it out: its statement answered it, failed or
//! panicked ([`Run`]'s end), or everyone who waited went away ([`Tickets`]' end). So the map is empty when nobody waits.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use tokio::sync::SetOnce;
use tokio_util::sync::CancellationToken;

use crate::metrics::Metrics;
use crate::model::{Org, SyncId, Watermark};
use crate::serve::batch::plan::{Column, Next, Queue};
use crate::serve::batch::{Ask, LoadError, Loaded};

/// What everyone who waits for a load gets.
pub type Outcome = Result<Arc<Loaded>, LoadError>;

/// The loads of one process.
pub struct InFlight {
    state: Mutex<State>,
    metrics: Metrics,
}

#[derive(Default)]
struct State {
    /// The newest load of each key.
    loads: HashMap<Key, Arc<Load>>,
    queue: Queue<Arc<Load>>,
    drawn: u64,
}

#[derive(Clone, PartialEq, Eq, Hash)]
struct Key {
    org: Org,
    ask: Ask,
}

/// One key being loaded.
pub struct Load {
    key: Key,
    /// Its place in the queue.
    number: u64,
    /// Callers that wait. Changed under the lock only.
    waiters: AtomicUsize,
    /// The statement it is in; none while it is queued. Set under the lock only.
    run: OnceLock<Arc<Fate>>,
    /// What it is read at; none before the statement is sent. Set under the lock only.
    sent: OnceLock<Watermark>,
    outcome: SetOnce<Outcome>,
}

/// What a statement and its loads share.
struct Fate {
    /// Loads that somebody waits for. Changed under the lock only.
    wanted: AtomicUsize,
    /// Told when nobody waits for any of them.
    stop: CancellationToken,
}

/// How much may wait and run.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Statements that may be under way.
    pub statements: usize,
    /// Keys of one statement.
    pub keys: usize,
}

impl InFlight {
    /// None yet.
    pub fn new(metrics: Metrics) -> Self {
        Self { state: Mutex::default(), metrics }
    }

    fn note(&self, state: &State) {
        self.metrics.keys_waiting.set(i64::try_from(state.queue.waiting()).unwrap_or(i64::MAX));
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Joins the loads in flight that are read at `at_least` or later, and queues the other keys.
    ///
    /// The caller has seen a watermark of `at_least`: so whatever is not sent yet will be read at one that satisfies it.
    ///
    /// # Errors
    /// [`LoadError::Overloaded`] when the keys that are not in flight find no room; nothing was queued or joined then.
    pub fn claim(
        self: &Arc<Self>,
        org: &Org,
        asks: &[Ask],
        at_least: SyncId,
        room: usize,
    ) -> Result<Tickets, LoadError> {
        let mut state = self.lock();
        let mut places: HashMap<&Ask, usize> = HashMap::with_capacity(asks.len());
        let mut distinct: Vec<(&Ask, Option<Arc<Load>>)> = Vec::with_capacity(asks.len());
        let order = asks.iter().map(|ask| match places.entry(ask) {
            Entry::Occupied(place) => *place.get(),
            Entry::Vacant(place) => {
                let joinable = |load: &&Arc<Load>| load.sent.get().is_none_or(|sent| sent.sync_id >= at_least);
                let load = state.loads.get(&Key { org: org.clone(), ask: ask.clone() }).filter(joinable);
                distinct.push((ask, load.cloned()));
                *place.insert(distinct.len() - 1)
            }
        });
        let order: Vec<usize> = order.collect();
        let fresh = distinct.iter().filter(|(_, load)| load.is_none()).count();
        if fresh > 0 && !state.queue.admits(org, fresh, room) {
            return Err(LoadError::Overloaded);
        }
        self.metrics.keys_asked.inc_by(asks.len() as u64);
        self.metrics.keys_joined.inc_by((distinct.len() - fresh) as u64);
        let loads = distinct.into_iter().map(|(ask, load)| {
            let load = load.unwrap_or_else(|| state.queue_load(org, ask));
            load.waiters.fetch_add(1, Ordering::Relaxed);
            load
        });
        let loads = loads.collect();
        self.note(&state);
        drop(state);
        Ok(Tickets { flight: self.clone(), loads, order })
    }

    /// How many statements are under way.
    pub fn running(&self) -> usize {
        self.lock().queue.running()
    }

    /// Takes what the next statement reads, if one may begin.
    pub fn next(self: &Arc<Self>, bounds: &Bounds) -> Option<Run> {
        let mut state = self.lock();
        let Next { org, column, keys } = state.queue.next(bounds.statements, bounds.keys)?;
        let fate = Arc::new(Fate { wanted: AtomicUsize::new(keys.len()), stop: CancellationToken::new() });
        for load in &keys {
            // Nobody else sets it: the load has just left the queue.
            let _ = load.run.set(fate.clone());
        }
        self.note(&state);
        drop(state);
        Some(Run { flight: self.clone(), org, column, loads: keys, stop: fate.stop.clone(), fate })
    }

    /// Keys in flight, those that wait and those that are being read.
    pub fn count(&self) -> usize {
        self.lock().loads.len()
    }
}

impl State {
    fn queue_load(&mut self, org: &Org, ask: &Ask) -> Arc<Load> {
        self.drawn += 1;
        let key = Key { org: org.clone(), ask: ask.clone() };
        let load = Arc::new(Load {
            key: key.clone(),
            number: self.drawn,
            waiters: AtomicUsize::new(0),
            run: OnceLock::new(),
            sent: OnceLock::new(),
            outcome: SetOnce::new(),
        });
        self.queue.push(org, ask.column(), self.drawn, load.clone());
        self.loads.insert(key, load.clone());
        load
    }

    /// Lets nobody join any more. A newer load of the same key stays.
    fn forget(&mut self, load: &Arc<Load>) {
        if self.loads.get(&load.key).is_some_and(|newest| Arc::ptr_eq(newest, load)) {
            self.loads.remove(&load.key);
        }
    }
}

/// The right to some loads. When nobody holds a ticket of a load any more it is not made, or its statement is stopped
/// once that is true of all its loads.
pub struct Tickets {
    flight: Arc<InFlight>,
    loads: Vec<Arc<Load>>,
    /// For each ask, its load.
    order: Vec<usize>,
}

impl Tickets {
    /// Waits for all loads and gives them in the order of the asks. Cancel safe.
    ///
    /// # Errors
    /// The first error of any.
    pub async fn wait(&self) -> Result<Vec<Arc<Loaded>>, LoadError> {
        let mut loaded = Vec::with_capacity(self.loads.len());
        for load in &self.loads {
            loaded.push(load.outcome.wait().await.clone()?);
        }
        Ok(self.order.iter().map(|place| loaded[*place].clone()).collect())
    }
}

impl Drop for Tickets {
    fn drop(&mut self) {
        let mut state = self.flight.lock();
        for load in &self.loads {
            if load.waiters.fetch_sub(1, Ordering::Relaxed) > 1 {
                continue;
            }
            state.forget(load);
            match load.run.get() {
                None => drop(state.queue.remove(&load.key.org, load.key.ask.column(), load.number)),
                Some(fate) => {
                    if fate.wanted.fetch_sub(1, Ordering::Relaxed) == 1 {
                        fate.stop.cancel();
                    }
                }
            }
        }
        self.flight.note(&state);
    }
}

/// The loads of one statement. However it ends, what was not answered by then is told so, and its place is free.
pub struct Run {
    flight: Arc<InFlight>,
    /// Of which org.
    pub org: Org,
    /// By which column.
    pub column: Column,
    /// The loads that have no outcome yet.
    pub loads: Vec<Arc<Load>>,
    /// Cancelled when nobody waits any more.
    pub stop: CancellationToken,
    fate: Arc<Fate>,
}

impl Run {
    /// Takes along what has come since, up to `most` keys in all. To be called before [`Self::send`].
    pub fn fill(&mut self, most: usize) {
        let mut state = self.flight.lock();
        // A statement that is being stopped would take them along.
        if self.fate.wanted.load(Ordering::Relaxed) == 0 {
            return;
        }
        let more = state.queue.more(&self.org, self.column, most.saturating_sub(self.loads.len()));
        for load in &more {
            // Nobody else sets it: the load has just left the queue.
            let _ = load.run.set(self.fate.clone());
        }
        self.fate.wanted.fetch_add(more.len(), Ordering::Relaxed);
        self.flight.note(&state);
        drop(state);
        self.loads.extend(more);
    }

    /// From now on nobody may join who needs more than what is read at `taken`, or at `known` if that is later. Gives
    /// the later one. To be called before the statement is sent.
    pub fn send(&self, taken: Watermark, known: impl FnOnce() -> Option<Watermark>) -> Watermark {
        let state = self.flight.lock();
        // Whoever joined until now has seen what is known now, or less.
        let later = known().filter(|known| known.epoch == taken.epoch && known.sync_id > taken.sync_id);
        let watermark = later.unwrap_or(taken);
        for load in &self.loads {
            // Nobody else sets it.
            let _ = load.sent.set(watermark.clone());
        }
        drop(state);
        watermark
    }

    /// Gives loads their outcome.
    pub fn finish(&mut self, outcomes: impl IntoIterator<Item = (Arc<Load>, Outcome)>) {
        let outcomes: Vec<_> = outcomes.into_iter().collect();
        let mut state = self.flight.lock();
        outcomes.iter().for_each(|(load, _)| state.forget(load));
        drop(state);
        for (load, outcome) in outcomes {
            // Each load is finished once.
            let _ = load.outcome.set(outcome);
        }
        self.loads.retain(|load| !load.outcome.initialized());
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        let left: Vec<_> = self.loads.drain(..).map(|load| (load, Err(LoadError::Broken))).collect();
        self.finish(left);
        self.flight.lock().queue.ended(&self.org);
    }
}

impl Load {
    /// The value that is asked for.
    pub fn value(&self) -> &Arc<str> {
        &self.key.ask.value
    }

    /// What is asked for.
    pub fn ask(&self) -> &Ask {
        &self.key.ask
    }
}
