//! The loads in flight: who waits for which key, and whom a statement answers.
//!
//! One lock over the map, the queue and the counts, held for a few look-ups and never across an await. A load is in the
//! map for as long as others may join it. Each way it can end takes it out: its statement failed or panicked ([`Run`]'s
//! end), or everyone who waited went away ([`Tickets`]' end). One that was answered stays for as long as callers are at
//! work who overlap ([`Visit`]), and no longer than [`Bounds::share`] after its statement was sent: whoever comes then
//! reads what it would have read by coming a little earlier. So the map is empty when nobody is at work, and a caller that
//! is alone always reads anew.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use tokio::sync::SetOnce;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::metrics::Metrics;
use crate::model::{Org, SyncId, Watermark};
use crate::serve::batch::marks::Mark;
use crate::serve::batch::plan::{Column, Next, Queue};
use crate::serve::batch::{Ask, LoadError, Loaded};

/// What everyone who waits for a load gets.
pub type Outcome = Result<Arc<Loaded>, LoadError>;

/// The loads of one process.
pub struct InFlight {
    state: Mutex<State>,
    /// Callers at work. Those of one chain overlap; it ends when this is 0.
    visits: AtomicUsize,
    bounds: Bounds,
    metrics: Metrics,
}

#[derive(Default)]
struct State {
    /// The newest load of each key.
    loads: HashMap<Key, Arc<Load>>,
    queue: Queue<Arc<Load>>,
    drawn: u64,
    /// What was answered and may still be joined, with when it was sent: an entry a statement. Counted among the bytes that are
    /// held; no more than statements bring in [`Bounds::share`].
    settled: Vec<(Instant, Vec<Arc<Load>>)>,
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
    /// Whether one of them tells what it was read at. Changed under the lock only.
    told: AtomicBool,
    /// The statement it is in; none while it is queued. Set under the lock only.
    run: OnceLock<Arc<Fate>>,
    /// None before the statement is sent. Set under the lock only.
    sent: OnceLock<Sent>,
    /// Whether it has its outcome, or is about to. Changed under the lock only.
    finished: AtomicBool,
    outcome: SetOnce<Outcome>,
}

/// How a load was sent.
struct Sent {
    /// What it is read at.
    watermark: Watermark,
    /// Whether that is new enough to be told.
    tellable: bool,
    /// When.
    at: Instant,
}

/// What a caller needs of its loads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Need {
    /// They are read at this sync id or later.
    pub at_least: SyncId,
    /// Whether the answer tells what they were read at. Else any watermark does that is late enough, however long ago it
    /// was taken.
    pub told: bool,
}

/// What a statement and its loads share.
struct Fate {
    /// Loads without an outcome that somebody waits for. Changed under the lock only.
    wanted: AtomicUsize,
    /// Told when nobody waits for any of them.
    stop: CancellationToken,
}

/// How much may wait and run, and for how long it may be shared.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Statements that may be under way.
    pub statements: usize,
    /// Keys of one statement.
    pub keys: usize,
    /// Keys that may wait, of all orgs.
    pub waiting: usize,
    /// How long after a statement was sent its loads may be joined, once they are answered.
    pub share: Duration,
}

/// A caller at work. Callers that overlap may share what was read for one of them.
pub struct Visit(Arc<InFlight>);

impl Drop for Visit {
    fn drop(&mut self) {
        if self.0.visits.fetch_sub(1, Ordering::AcqRel) == 1 {
            let mut state = self.0.lock();
            // One that has come meanwhile and shares something of the last is forgotten that a moment too early, no more.
            state.forget_settled(|_| true);
        }
    }
}

impl InFlight {
    /// None yet.
    pub fn new(bounds: Bounds, metrics: Metrics) -> Self {
        Self { state: Mutex::default(), visits: AtomicUsize::new(0), bounds, metrics }
    }

    /// Counts a caller as at work until the visit is dropped.
    pub fn visit(self: &Arc<Self>) -> Visit {
        self.visits.fetch_add(1, Ordering::AcqRel);
        Visit(self.clone())
    }

    /// How many callers are at work.
    pub fn visits(&self) -> usize {
        self.visits.load(Ordering::Acquire)
    }

    /// Lets nobody join what was answered.
    pub fn forget_settled(&self) {
        self.lock().forget_settled(|_| true);
    }

    fn note(&self, state: &State) {
        self.metrics.keys_waiting.set(i64::try_from(state.queue.waiting()).unwrap_or(i64::MAX));
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Joins the loads in flight, and those just answered, that are read as the caller needs it, and queues the other keys.
    ///
    /// The caller has seen a watermark of `need.at_least`: so whatever is not sent yet will be read at one that satisfies it.
    ///
    /// # Errors
    /// [`LoadError::Overloaded`] when the keys that are not in flight find no room; nothing was queued or joined then.
    pub fn claim(self: &Arc<Self>, org: &Org, asks: &[Ask], need: Need) -> Result<Tickets, LoadError> {
        let mut state = self.lock();
        let now = Instant::now();
        state.expire(now, self.bounds.share);
        let mut places: HashMap<&Ask, usize> = HashMap::with_capacity(asks.len());
        let mut distinct: Vec<(&Ask, Option<Arc<Load>>)> = Vec::with_capacity(asks.len());
        let order = asks.iter().map(|ask| match places.entry(ask) {
            Entry::Occupied(place) => *place.get(),
            Entry::Vacant(place) => {
                let serves = |sent: &Sent| sent.watermark.sync_id >= need.at_least && (sent.tellable || !need.told);
                let joinable = |load: &&Arc<Load>| load.sent.get().is_none_or(serves);
                let load = state.loads.get(&Key { org: org.clone(), ask: ask.clone() }).filter(joinable);
                distinct.push((ask, load.cloned()));
                *place.insert(distinct.len() - 1)
            }
        });
        let order: Vec<usize> = order.collect();
        let fresh = distinct.iter().filter(|(_, load)| load.is_none()).count();
        if fresh > 0 && !state.queue.admits(org, fresh, self.bounds.waiting) {
            return Err(LoadError::Overloaded);
        }
        self.metrics.keys_asked.inc_by(asks.len() as u64);
        self.metrics.keys_joined.inc_by((distinct.len() - fresh) as u64);
        let loads = distinct.into_iter().map(|(ask, load)| {
            let load = load.unwrap_or_else(|| state.queue_load(org, ask));
            load.join(need);
            load
        });
        let loads = loads.collect();
        self.note(&state);
        drop(state);
        Ok(Tickets { flight: self.clone(), loads, order })
    }

    /// How many statements are under way, and how many keys wait for one.
    pub fn busy(&self) -> (usize, usize) {
        let state = self.lock();
        (state.queue.running(), state.queue.waiting())
    }

    /// Takes what the next statement reads, if one may begin.
    pub fn next(self: &Arc<Self>) -> Option<Run> {
        let mut state = self.lock();
        let Next { org, column, keys } = state.queue.next(self.bounds.statements, self.bounds.keys)?;
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
            told: AtomicBool::new(false),
            run: OnceLock::new(),
            sent: OnceLock::new(),
            finished: AtomicBool::new(false),
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

    /// Forgets what was answered and sent at such a time.
    fn forget_settled(&mut self, too_old: impl Fn(Instant) -> bool) {
        let (old, young): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.settled).into_iter().partition(|(at, _)| too_old(*at));
        self.settled = young;
        old.iter().flat_map(|(_, loads)| loads).for_each(|load| self.forget(load));
    }

    fn expire(&mut self, now: Instant, share: Duration) {
        self.forget_settled(|at| now.duration_since(at) >= share);
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
            if load.waiters.fetch_sub(1, Ordering::Relaxed) > 1 || load.finished.load(Ordering::Relaxed) {
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
    /// Takes along what has come since, up to as many keys as a statement may have. To be called before it is sent.
    pub fn fill(&mut self) {
        let mut state = self.flight.lock();
        // A statement that is being stopped would take them along.
        if self.fate.wanted.load(Ordering::Relaxed) == 0 {
            return;
        }
        let room = self.flight.bounds.keys.saturating_sub(self.loads.len());
        let more = state.queue.more(&self.org, self.column, room);
        for load in &more {
            // Nobody else sets it: the load has just left the queue.
            let _ = load.run.set(self.fate.clone());
        }
        self.fate.wanted.fetch_add(more.len(), Ordering::Relaxed);
        self.flight.note(&state);
        drop(state);
        self.loads.extend(more);
    }

    /// Sends the loads at the watermark that is known, if nobody who waits tells it, or it was taken less than `young` ago.
    /// Else nothing has changed, and one has to be taken.
    pub fn send_known(&self, known: impl FnOnce() -> Option<Mark>, young: Duration) -> Option<Watermark> {
        let state = self.flight.lock();
        // Whoever joined until now has seen what is known now, or less.
        let Mark { watermark, taken } = known()?;
        let tellable = taken.elapsed() < young;
        if !tellable && self.loads.iter().any(|load| load.told.load(Ordering::Relaxed)) {
            return None;
        }
        self.sent(&watermark, tellable);
        drop(state);
        Some(watermark)
    }

    /// From now on nobody may join who needs more than what is read at `taken`, or at `known` if that is later. Gives
    /// the later one. To be called before the statement is sent.
    pub fn send(&self, taken: Watermark, known: impl FnOnce() -> Option<Mark>) -> Watermark {
        let state = self.flight.lock();
        // Whoever joined until now has seen what is known now, or less.
        let known = known().map(|mark| mark.watermark);
        let later = known.filter(|known| known.epoch == taken.epoch && known.sync_id > taken.sync_id);
        let watermark = later.unwrap_or(taken);
        self.sent(&watermark, true);
        drop(state);
        watermark
    }

    /// To be called under the lock.
    fn sent(&self, watermark: &Watermark, tellable: bool) {
        let at = Instant::now();
        for load in &self.loads {
            // Nobody else sets it.
            let _ = load.sent.set(Sent { watermark: watermark.clone(), tellable, at });
        }
    }

    /// Gives loads their outcome.
    pub fn finish(&mut self, outcomes: impl IntoIterator<Item = (Arc<Load>, Outcome)>) {
        let outcomes: Vec<_> = outcomes.into_iter().collect();
        let share = self.flight.bounds.share;
        let mut state = self.flight.lock();
        let mut settled = Vec::new();
        for (load, outcome) in &outcomes {
            load.finished.store(true, Ordering::Relaxed);
            if load.waiters.load(Ordering::Relaxed) > 0 && self.fate.wanted.fetch_sub(1, Ordering::Relaxed) == 1 {
                self.stop.cancel();
            }
            if outcome.is_ok() && !share.is_zero() {
                settled.push(load.clone());
            } else {
                state.forget(load);
            }
        }
        let at = outcomes.iter().find_map(|(load, _)| Some(load.sent.get()?.at));
        state.settled.extend(at.filter(|_| !settled.is_empty()).map(|at| (at, settled)));
        // Of a caller that has gone nothing is left behind.
        if self.flight.visits() == 0 {
            state.forget_settled(|_| true);
        }
        state.expire(Instant::now(), share);
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
    /// One more caller waits for it. To be called under the lock.
    fn join(&self, need: Need) {
        self.waiters.fetch_add(1, Ordering::Relaxed);
        self.told.fetch_or(need.told, Ordering::Relaxed);
    }

    /// The value that is asked for.
    pub fn value(&self) -> &Arc<str> {
        &self.key.ask.value
    }

    /// What is asked for.
    pub fn ask(&self) -> &Ask {
        &self.key.ask
    }
}
