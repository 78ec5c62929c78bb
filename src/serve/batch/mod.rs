//! One loader for all requests of the process: whoever asks for the same key at the same moment shares one read.
//!
//! Lazy models are loaded by many small requests that want the same things: a board opens, and forty clients ask for the
//! comments of the same issues. A key that is being loaded is joined, if what is read satisfies the caller; the others
//! are grouped by what one statement can ask for (`plan`), and a statement is sent as soon as it may be: at once for a
//! caller that is alone, else after a moment in which others may come along; while one is under way, when it ends, after
//! a short window, or when half of what it may ask for has come. So an idle service adds no delay, and a busy one makes its
//! batches by itself.
//!
//! Callers that overlap share a little more: what was read for one of them may be joined for some milliseconds after it was
//! sent (`loader.share_ms`), answered or not, and is told with the watermark it was read at; and a watermark that was taken for
//! one of them is told of what is read for others, for as long. Who must see what it has written itself says so by
//! `firstSyncId`.
//!
//! Rules of the room:
//! - What is shared does not depend on any caller: rows with their groups. Each caller filters them by its own.
//! - The watermark is taken before the statement is sent, so an answer may say it. A load that was not sent yet satisfies
//!   everyone who has seen the watermark it needs (`inflight`). Where nobody tells it (the rows of a delta are shown as
//!   they are now), one that was seen before does.
//! - A caller that goes away cancels nobody; when all have gone the statement is stopped. A failure reaches exactly
//!   those who waited for it.
//! - Everything is bounded: keys that wait (with room left for every org), statements at once, keys and bytes of one, bytes
//!   that answers hold. Past a bound the caller is turned away before anything is read.

pub mod answer;
pub mod inflight;
pub mod marks;
mod members;
pub mod plan;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep, timeout_at};
use tracing::Instrument;

use crate::chain::Chain;
use crate::metrics::Metrics;
use crate::model::{Epoch, Field, Grants, Org, Schema, SyncId, User, Watermark, key};
use crate::serve::batch::inflight::{Bounds, InFlight, Load, Need, Outcome, Run, Visit};
use crate::serve::batch::marks::Marks;
use crate::serve::batch::members::Members;
use crate::serve::batch::plan::Column;
pub use crate::source::{By, FoundRow};
use crate::source::{Found, Lookup, Source, SourceError};
use crate::task::Tasks;
use crate::trace::span;

/// How long a statement waits for company, when other callers are at work.
const GATHER: Duration = Duration::from_millis(1);

/// How often a load is made again because what came does not fit together: the history or the tables changed midway.
const TRIES: usize = 4;

/// Settings `[loader]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LoaderSettings {
    /// Statements at once. Each takes a connection of the pool.
    pub statements: usize,
    /// Keys of one statement.
    pub statement_keys: usize,
    /// Bytes of the rows of one statement. A key whose rows take more can't be loaded.
    pub statement_bytes: usize,
    /// Milliseconds that keys wait for company while statements are under way and another may begin.
    pub window_ms: u64,
    /// Milliseconds after a statement was sent in which callers that overlap may join what it reads.
    pub share_ms: u64,
    /// Keys that may wait, of all orgs.
    pub waiting_keys: usize,
    /// Bytes of rows that answers in progress may hold.
    pub held_bytes: usize,
    /// Milliseconds a load waits for the watermark to be where its caller needs it.
    pub watermark_wait_ms: u64,
}

impl Default for LoaderSettings {
    /// What `config/headstart.toml` says; a test holds the two together.
    fn default() -> Self {
        Self {
            statements: 3,
            statement_keys: 1000,
            statement_bytes: 16 << 20,
            window_ms: 10,
            share_ms: 50,
            waiting_keys: 100_000,
            held_bytes: 256 << 20,
            watermark_wait_ms: 2000,
        }
    }
}

/// One key: rows of a model by a column.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Ask {
    /// The model, by index.
    pub model: usize,
    /// The column.
    pub by: By,
    /// The value, as its canonical text ([`Ask::new`]).
    pub value: Arc<str>,
}

impl Ask {
    /// Brings a value to its canonical form; `None` when the column can't hold it.
    ///
    /// # Panics
    /// When `model` or the key's index is not one of the schema's.
    pub fn new(schema: &Schema, model: usize, by: By, text: &str) -> Option<Self> {
        let entry = &schema.catalog.models()[model];
        let named = |field: &&Field| match by {
            By::Id => field.column == entry.id,
            By::Key(index) => field.name == entry.keys[index],
        };
        let field = schema.models[model].fields.iter().find(named)?;
        Some(Self { model, by, value: key::asked(&field.sql_type, text)?.into() })
    }

    fn column(&self) -> Column {
        Column { model: self.model, by: self.by }
    }
}

/// The rows of one key, shared by all who asked for it.
#[derive(Debug)]
pub struct Loaded {
    /// How they look.
    pub schema: Arc<Schema>,
    /// The history the sync id belongs to.
    pub epoch: Epoch,
    /// They hold everything up to here.
    pub sync_id: SyncId,
    /// When their statement was sent.
    sent: Instant,
    /// The rows, with the groups that say who sees them. Empty groups: nobody.
    pub rows: Vec<FoundRow>,
    /// Counts the memory of the rows of one statement for as long as any of its loads is held.
    _held: Arc<HeldBytes>,
}

impl Loaded {
    /// What orders two readings of a row: callers that overlap share a sync id, so when it was read counts, too.
    fn read_at(&self) -> (SyncId, Instant) {
        (self.sync_id, self.sent)
    }
}

/// Memory that answers hold.
#[derive(Debug)]
struct HeldBytes {
    bytes: usize,
    all: Arc<AtomicUsize>,
}

impl HeldBytes {
    fn new(bytes: usize, all: Arc<AtomicUsize>) -> Arc<Self> {
        all.fetch_add(bytes, Ordering::Relaxed);
        Arc::new(Self { bytes, all })
    }
}

impl Drop for HeldBytes {
    fn drop(&mut self) {
        self.all.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// Why a load has no answer. Cheap to clone: everyone who waited gets it.
#[derive(Clone, Debug, thiserror::Error)]
pub enum LoadError {
    /// The database did not answer, or failed; or changes of the model are not logged.
    #[error(transparent)]
    Source(Arc<SourceError>),
    /// What was asked for lies beyond the watermark, and it did not get there in time.
    #[error("the watermark is at {watermark}, below the sync id asked for")]
    Ahead {
        /// Where it is.
        watermark: SyncId,
    },
    /// More keys wait, or more rows are held, than may be.
    #[error("more work waits than is allowed to")]
    Overloaded,
    /// The rows of one key take more than a statement may bring.
    #[error("the rows of one key take more than {bytes} bytes")]
    TooLarge {
        /// The key.
        ask: Ask,
        /// The bound.
        bytes: usize,
    },
    /// It was not loaded by the caller's deadline.
    #[error("the rows were not loaded in time")]
    Deadline,
    /// The history or the tables changed again and again while it was loaded.
    #[error("the database kept changing while the rows were loaded")]
    Unsettled,
    /// The service is stopping.
    #[error("the service is stopping")]
    Stopping,
    /// The task that loaded it broke, by a bug; the log has the panic.
    #[error("the load was broken off")]
    Broken,
}

impl From<SourceError> for LoadError {
    fn from(error: SourceError) -> Self {
        Self::Source(Arc::new(error))
    }
}

/// Loads rows by id or by key. Clones share everything.
#[derive(Clone)]
pub struct Loader {
    shared: Arc<Shared>,
}

struct Shared {
    source: Arc<dyn Source>,
    tasks: Tasks,
    settings: LoaderSettings,
    metrics: Metrics,
    marks: Marks,
    members: Members,
    flight: Arc<InFlight>,
    held: Arc<AtomicUsize>,
    /// Whether a task waits for the end of the window.
    window_open: AtomicBool,
}

impl Loader {
    /// Nothing is loaded yet.
    pub fn new(source: Arc<dyn Source>, tasks: Tasks, settings: LoaderSettings, metrics: Metrics) -> Self {
        let (marks, held) = (Marks::new(source.clone()), Arc::default());
        let members = Members::new(source.clone(), tasks.clone());
        let bounds = Bounds {
            statements: settings.statements,
            keys: settings.statement_keys,
            waiting: settings.waiting_keys,
            share: Duration::from_millis(settings.share_ms),
        };
        let (flight, window_open) = (Arc::new(InFlight::new(bounds, metrics.clone())), AtomicBool::new(false));
        Self {
            shared: Arc::new(Shared { source, tasks, settings, metrics, marks, members, flight, held, window_open }),
        }
    }

    /// Counts a caller as at work until the visit is dropped. What callers at the same time read they may share, so whoever
    /// asks for several things holds one around them all. One caller has one: whoever is alone waits for nobody.
    pub fn visit(&self) -> Visit {
        self.shared.flight.visit()
    }

    /// The rows of each key, in the order of the asks, all of one history and schema and each read as the caller needs
    /// it. Repeated keys are loaded once. Cancel safe: dropping the future gives up its keys, and a statement that
    /// nobody waits for any more is stopped.
    ///
    /// # Errors
    /// [`LoadError`]; at the deadline at the latest.
    pub async fn load(
        &self,
        org: &Org,
        asks: &[Ask],
        need: Need,
        deadline: Instant,
    ) -> Result<Vec<Arc<Loaded>>, LoadError> {
        self.load_within(&self.visit(), org, asks, need, deadline).await
    }

    /// The same for a caller that is counted already.
    ///
    /// # Errors
    /// Those of [`Self::load`].
    pub async fn load_within(
        &self,
        _visit: &Visit,
        org: &Org,
        asks: &[Ask],
        need: Need,
        deadline: Instant,
    ) -> Result<Vec<Arc<Loaded>>, LoadError> {
        let began = Instant::now();
        let loaded = timeout_at(deadline, self.load_settled(org, asks, need));
        let loaded = loaded.instrument(span!("load rows", keys = asks.len())).await;
        self.shared.metrics.load_wait(began.elapsed());
        loaded.map_err(|_| LoadError::Deadline)?.map_err(|error| self.broken_off(error))
    }

    async fn load_settled(&self, org: &Org, asks: &[Ask], need: Need) -> Result<Vec<Arc<Loaded>>, LoadError> {
        self.refuse_unlogged(asks).await?;
        let shared = &self.shared;
        for _ in 0..TRIES {
            shared.marks.reach(need.at_least, Duration::from_millis(shared.settings.watermark_wait_ms)).await?;
            shared.make_room()?;
            let tickets = shared.flight.claim(org, asks, need)?;
            shared.begin();
            let loaded = tickets.wait().await?;
            if fit_together(&loaded, need.at_least) {
                return Ok(loaded);
            }
            // What does not fit must not be joined again.
            shared.flight.forget_settled();
        }
        Err(LoadError::Unsettled)
    }

    /// Nothing is served of a model whose changes are not logged: clients would never learn of them.
    async fn refuse_unlogged(&self, asks: &[Ask]) -> Result<(), LoadError> {
        let unlogged = self.shared.source.unlogged().await?;
        match asks.iter().find_map(|ask| unlogged.get(&ask.model)) {
            Some(fault) => Err(fault.clone().into()),
            None => Ok(()),
        }
    }

    /// What a user holds, by the membership tables as they are after the call. One statement for all who ask meanwhile.
    ///
    /// # Errors
    /// [`LoadError::Overloaded`] when too many wait; the source's. It waits for as long as the database does.
    pub async fn grants(&self, org: &Org, user: &User) -> Result<Grants, LoadError> {
        self.shared.members.grants(org, user).await.map_err(|error| self.broken_off(error))
    }

    /// Tasks that are stopped with the service break their loads off too.
    fn broken_off(&self, error: LoadError) -> LoadError {
        match error {
            LoadError::Broken if self.shared.tasks.token().is_cancelled() => LoadError::Stopping,
            error => error,
        }
    }

    /// Where work for its callers runs.
    pub(super) fn tasks(&self) -> &Tasks {
        &self.shared.tasks
    }

    /// How many keys are in flight.
    pub fn in_flight(&self) -> usize {
        self.shared.flight.count()
    }
}

/// Whether loads make one answer that is true at `at_least`.
fn fit_together(loaded: &[Arc<Loaded>], at_least: SyncId) -> bool {
    let Some(first) = loaded.first() else { return true };
    let same = |load: &Arc<Loaded>| load.epoch == first.epoch && load.schema.hash == first.schema.hash;
    loaded.iter().all(|load| same(load) && load.sync_id >= at_least)
}

impl Shared {
    /// Whether answers hold no more than they may. What nobody waits for is let go before it comes to that.
    fn make_room(&self) -> Result<(), LoadError> {
        if self.held.load(Ordering::Relaxed) > self.settings.held_bytes / 2 {
            self.flight.forget_settled();
        }
        if self.held.load(Ordering::Relaxed) > self.settings.held_bytes { Err(LoadError::Overloaded) } else { Ok(()) }
    }

    /// Begins statements for what waits, now or at the end of the window.
    fn begin(self: &Arc<Self>) {
        let (running, waiting) = self.flight.busy();
        if running == 0 || self.settings.window_ms == 0 || self.is_enough(waiting) {
            self.dispatch();
        } else if running < self.settings.statements && !self.window_open.swap(true, Ordering::AcqRel) {
            let shared = self.clone();
            self.tasks.spawn("loader window", async move {
                sleep(Duration::from_millis(shared.settings.window_ms)).await;
                shared.window_open.store(false, Ordering::Release);
                shared.dispatch();
            });
        }
    }

    /// Whether so many keys are worth a statement by themselves: then none waits for company.
    fn is_enough(&self, keys: usize) -> bool {
        keys * 2 >= self.settings.statement_keys
    }

    /// Begins as many statements as there is work and room for.
    fn dispatch(self: &Arc<Self>) {
        while let Some(run) = self.flight.next() {
            let (stop, goes_on) = (run.stop.clone(), GoesOn(self.clone()));
            self.tasks.spawn("loader", async move {
                let Shared { tasks, .. } = &*goes_on.0;
                tasks.token().run_until_cancelled(stop.run_until_cancelled(goes_on.0.run(run))).await;
            });
        }
    }

    /// Reads the keys of one statement, in parts when they are too large together.
    async fn run(&self, mut run: Run) {
        if self.flight.visits() > 1 && !self.is_enough(run.loads.len()) {
            sleep(GATHER).await;
            run.fill();
        }
        // Callers that overlap share a watermark as they share rows: one that was taken a moment ago is true of what is read now.
        let share = Duration::from_millis(self.settings.share_ms);
        let young = if self.flight.visits() > 1 { share } else { Duration::ZERO };
        let watermark = match run.send_known(|| self.marks.known(), young) {
            Some(known) => known,
            None => {
                let taken = match self.marks.take().await {
                    Ok(taken) => taken,
                    Err(error) => return self.fail(&mut run, error.into()),
                };
                // Taking the watermark takes a round trip or more: whoever came meanwhile shares the statement.
                run.fill();
                run.send(taken, || self.marks.known())
            }
        };
        let mut parts = vec![run.loads.clone()];
        while let Some(mut part) = parts.pop() {
            // What the parts before brought may be all that answers may hold.
            if let Err(error) = self.make_room() {
                return self.fail(&mut run, error);
            }
            // One row may be as long as the database lets it be: it has to be told.
            let is_one_row = run.column.by == By::Id && part.len() == 1;
            let lookup = Lookup {
                org: run.org.clone(),
                model: run.column.model,
                by: run.column.by,
                values: part.iter().map(|load| load.value().clone()).collect(),
                max_bytes: if is_one_row { usize::MAX } else { self.settings.statement_bytes },
            };
            self.metrics.lookup(part.len());
            let sent = Instant::now();
            match (self.source.lookup(&lookup).await, part.as_slice()) {
                (Ok(found), _) => run.finish(self.outcomes(part, found, &watermark, sent)),
                (Err(SourceError::TooLarge(bytes)), [load]) => {
                    let error = LoadError::TooLarge { ask: load.ask().clone(), bytes };
                    run.finish(part.into_iter().map(|load| (load, Err(error.clone()))));
                }
                (Err(SourceError::TooLarge(_)), _) => {
                    parts.push(part.split_off(part.len() / 2));
                    parts.push(part);
                }
                (Err(error), _) => return self.fail(&mut run, error.into()),
            }
        }
    }

    fn fail(&self, run: &mut Run, error: LoadError) {
        tracing::debug!(org = %run.org, keys = run.loads.len(), error = %Chain(&error), "a load failed");
        run.finish(run.loads.clone().into_iter().map(|load| (load, Err(error.clone()))));
    }

    fn outcomes(
        &self,
        loads: Vec<Arc<Load>>,
        found: Found,
        watermark: &Watermark,
        sent: Instant,
    ) -> Vec<(Arc<Load>, Outcome)> {
        let bytes = found.rows.iter().map(|row| row.line.len()).sum();
        self.metrics.looked_up(found.rows.len(), bytes);
        let held = HeldBytes::new(bytes, self.held.clone());
        let loaded = |rows: &Vec<usize>| Loaded {
            schema: found.schema.clone(),
            epoch: watermark.epoch.clone(),
            sync_id: watermark.sync_id,
            sent,
            rows: rows.iter().map(|row| found.rows[*row].clone()).collect(),
            _held: held.clone(),
        };
        loads.into_iter().zip(&found.matches).map(|(load, rows)| (load, Ok(Arc::new(loaded(rows))))).collect()
    }
}

/// When a statement has ended, in whatever way, the next may begin.
struct GoesOn(Arc<Shared>);

impl Drop for GoesOn {
    fn drop(&mut self) {
        self.0.dispatch();
    }
}
