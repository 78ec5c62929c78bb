//! Which dumps run, which wait, and who joins which.
//!
//! Per slot one dump runs and at most one waits; everyone else joins one of the two. Over all slots a fixed number
//! runs at a time and a bounded number waits for a place; past that a request is refused at once.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout};
use tracing::Instrument;

use crate::chain::Chain;
use crate::dump::DumpError;
use crate::dump::build::{Builder, StoreFailure};
use crate::dump::driving::Driving;
use crate::dump::ended::LastEnded;
use crate::dump::follow::Followed;
use crate::dump::live::LiveDump;
use crate::dump::settings::DumpSettings;
use crate::dump::spool::SpoolBudget;
use crate::dump::unstored::Unstored;
use crate::metrics::Metrics;
use crate::model::{SnapshotId, SyncId};
use crate::source::Source;
use crate::store::{Head, Lease, Slot, SnapshotStore, StoreError};
use crate::task::Tasks;
use crate::trace::{TraceId, root_span, span};

/// How long giving a lease back may take: well within the time in which the service has to end.
const RELEASE_WITHIN: Duration = Duration::from_secs(3);

/// What a reader needs of the dump it joins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wish {
    /// Any that is in the queue. Asked for by the background job: not made while another instance makes one.
    Background,
    /// Any that is in the queue, once it is published: nobody reads its rows meanwhile.
    Published,
    /// Any that is in the queue.
    Any,
    /// One that is true at this sync id.
    AtLeast(SyncId),
    /// One whose read begins after now.
    New,
}

/// What a wish came to.
pub enum Joined {
    /// Read from this one.
    Live(Arc<LiveDump>),
    /// A snapshot was published since the caller looked: look again.
    Published,
}

/// The dumps of this process. Clones share them.
#[derive(Clone)]
pub struct Dumps {
    pub(super) shared: Arc<Shared>,
}

pub(super) struct Shared {
    pub(super) store: Arc<dyn SnapshotStore>,
    pub(super) builder: Arc<Builder>,
    pub(super) tasks: Tasks,
    settings: DumpSettings,
    pub(super) metrics: Metrics,
    pub(super) budget: Arc<SpoolBudget>,
    places: Arc<Semaphore>,
    /// Whose turn it is to be stored again.
    pub(super) storing_again: Semaphore,
    /// Names this process in leases.
    owner: SnapshotId,
    slots: Mutex<Slots>,
    pub(super) ended: LastEnded,
}

#[derive(Default)]
pub(super) struct Slots {
    pub(super) queues: HashMap<Slot, Queue>,
    /// Snapshots that are being put aside.
    pub(super) aside: HashSet<SnapshotId>,
    /// Dumps that have no place yet.
    pub(super) waiting: usize,
}

#[derive(Default)]
pub(super) struct Queue {
    /// The dump that has a place or waits for one, with a task that drives it.
    current: Option<Arc<LiveDump>>,
    /// The one after it.
    next: Option<Arc<LiveDump>>,
    /// The last complete dump that could not be stored.
    pub(super) unstored: Option<Unstored>,
    /// When a snapshot was last published from here. Kept when nothing else is: some 100 bytes an org.
    pub(super) published: Option<Instant>,
}

impl Dumps {
    /// None yet.
    pub fn new(
        source: Arc<dyn Source>,
        store: Arc<dyn SnapshotStore>,
        tasks: Tasks,
        settings: DumpSettings,
        metrics: Metrics,
    ) -> Self {
        let shared = Shared {
            builder: Arc::new(Builder::new(source, store.clone(), settings.clone(), metrics.clone())),
            store,
            tasks,
            budget: Arc::new(SpoolBudget::new(settings.spool_max_bytes, metrics.clone())),
            places: Arc::new(Semaphore::new(settings.concurrent)),
            storing_again: Semaphore::new(1),
            owner: SnapshotId::random(),
            slots: Mutex::default(),
            ended: LastEnded::default(),
            settings,
            metrics,
        };
        Self { shared: Arc::new(shared) }
    }

    /// The settings they are made with.
    pub fn settings(&self) -> &DumpSettings {
        &self.shared.settings
    }

    /// The dump of a slot that grants a wish: the one in progress, the one that waits behind it, or a new one. It goes
    /// on whoever of its readers leaves. `looked` is when the caller began to look for a snapshot and found none that
    /// would do: one published since is not made again. `why` goes to the log.
    ///
    /// # Errors
    /// [`DumpError::Overloaded`], [`DumpError::Stopping`].
    pub fn join(&self, slot: &Slot, wish: Wish, looked: Instant, why: &dyn fmt::Display) -> Result<Joined, DumpError> {
        let mut slots = self.shared.lock();
        let joined = self.find_or_start(&mut slots, slot, wish, looked, why)?;
        if let Joined::Live(live) = &joined
            && wish != Wish::Background
        {
            live.want(wish);
        }
        Ok(joined)
    }

    fn find_or_start(
        &self,
        slots: &mut Slots,
        slot: &Slot,
        wish: Wish,
        looked: Instant,
        why: &dyn fmt::Display,
    ) -> Result<Joined, DumpError> {
        let shared = &self.shared;
        if shared.tasks.token().is_cancelled() {
            return Err(DumpError::Stopping);
        }
        let room = slots.waiting < shared.settings.waiting;
        let queue = slots.queues.entry(slot.clone()).or_default();
        if let Some(current) = queue.current.as_ref().filter(|current| grants(current, wish)) {
            return Ok(Joined::Live(current.clone()));
        }
        if let Some(next) = &queue.next {
            return Ok(Joined::Live(next.clone()));
        }
        if wish != Wish::New && queue.published.is_some_and(|published| published >= looked) {
            return Ok(Joined::Published);
        }
        if !room {
            slots.forget_if_idle(slot);
            return Err(DumpError::Overloaded);
        }
        let live = Arc::new(LiveDump::new(slot.clone(), looked, shared.metrics.followers.clone()));
        tracing::info!(org = %slot.org, snapshot = %live.id(), reason = %why, "a dump is asked for");
        if queue.current.is_some() {
            queue.next = Some(live.clone());
        } else {
            queue.current = Some(live.clone());
            self.drive(live.clone());
        }
        slots.waiting += 1;
        shared.metrics.waiting_dumps.inc();
        Ok(Joined::Live(live))
    }

    /// Whether as many dumps wait as may, so that no other can begin.
    pub fn is_full(&self) -> bool {
        self.shared.lock().waiting >= self.shared.settings.waiting
    }

    /// The dumps that run or wait now.
    pub fn in_progress(&self) -> Vec<Arc<LiveDump>> {
        let slots = self.shared.lock();
        slots.queues.values().flat_map(|queue| [&queue.current, &queue.next]).flatten().cloned().collect()
    }

    /// Bytes all spool files take now.
    pub fn spool_bytes(&self) -> u64 {
        self.shared.budget.used()
    }

    fn drive(&self, live: Arc<LiveDump>) {
        let dumps = self.clone();
        // Many requests may wait for it: it is a trace of its own, and they name its snapshot.
        let (trace, slot) = (TraceId::random(), live.slot());
        let span = root_span!("dump", trace_id = trace.0, org = slot.org.as_str(), snapshot = %live.id());
        let driven = async move {
            let mut driving = Driving {
                dumps: dumps.clone(),
                live: live.clone(),
                waiting: true,
                place: None,
                counted: None,
                over: None,
                stored: false,
                superseded: false,
            };
            dumps.run(&mut driving).await;
        };
        self.shared.tasks.spawn("dump", driven.instrument(span));
    }

    /// Takes a dump from its place in the queue to its end, or to the end of the service.
    async fn run(&self, driving: &mut Driving) {
        let shared = &self.shared;
        let live = driving.live.clone();
        let mut lease = None;
        if shared.tasks.token().run_until_cancelled(self.take_turn(driving, &mut lease)).await.is_none() {
            live.finish(Err(DumpError::Stopping));
        }
        // Also when the service stops, so that another instance need not wait for the lease to expire.
        let Some(lease) = lease else { return };
        let org = &live.slot().org;
        match timeout(RELEASE_WITHIN, shared.store.release(&lease)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%org, error = %Chain(&error), "a lease could not be given back"),
            Err(_) => tracing::warn!(%org, "a lease could not be given back in time; it will expire"),
        }
    }

    /// Makes a dump once it has a place, or follows the one that another instance makes. `held`: where the lease goes as
    /// soon as there is one.
    async fn take_turn(&self, driving: &mut Driving, held: &mut Option<Lease>) {
        let shared = &self.shared;
        let live = driving.live.clone();
        let Ok(place) = shared.places.clone().acquire_owned().await else { return };
        driving.got_place(place);
        {
            // What is wished of it from now on does not hold it up.
            let _slots = shared.lock();
            live.begin();
        }
        let org = &live.slot().org;
        let mut lease = shared.store.acquire(org, shared.owner, shared.settings.lease()).await;
        if matches!(lease, Ok(None)) {
            if self.abandon(&live) {
                return;
            }
            // Following takes no connection to the database.
            driving.place = None;
            if self.follow(driving).await {
                return;
            }
            let Ok(place) = shared.places.clone().acquire_owned().await else { return };
            driving.place = Some(place);
            lease = shared.store.acquire(org, shared.owner, shared.settings.lease()).await;
        }
        // Readers wait for this dump: it is made whoever else dumps the org, and the generation decides which of them is
        // published. The same when the store is down.
        *held = lease.unwrap_or_default();
        // Read before the scan begins: a snapshot replaces only what it is newer than.
        let head = shared.store.head(live.slot()).await;
        let began = Instant::now();
        if head.as_ref().is_ok_and(|head| live.is_granted_by(head)) {
            // Another instance was faster.
            self.leave_for_published(&live);
        } else {
            driving.count();
            tokio::select! {
                () = self.refresh_or_make(driving, held.as_ref(), head) => {}
                () = self.keep_lease(held.as_ref()) => {}
            }
        }
        if live.is_left() {
            tracing::debug!(%org, snapshot = %live.id(), "a dump was not made");
        } else {
            tracing::info!(%org, snapshot = %live.id(), rows = live.rows(), bytes = live.spooled(),
                ms = began.elapsed().as_millis() as u64, stored = driving.stored, "a dump has ended");
        }
    }

    /// Lets a dump follow the one that another instance makes; `false` when it has to be made here.
    async fn follow(&self, driving: &mut Driving) -> bool {
        match self.follow_other(&driving.live).await {
            Followed::Not => return false,
            Followed::Lost(error) => driving.live.finish(Err(error)),
            Followed::Whole { published } => {
                // Whoever makes it stores it.
                driving.superseded = true;
                driving.stored = published;
            }
        }
        true
    }

    /// Ends a dump that only the background job asked for; `false` if anyone else did meanwhile.
    fn abandon(&self, live: &Arc<LiveDump>) -> bool {
        let mut slots = self.shared.lock();
        if live.is_wanted() {
            return false;
        }
        live.finish(Err(DumpError::Elsewhere));
        self.leave(&mut slots, live);
        true
    }

    /// Ends a dump that need not be made, because what it was asked for is published now.
    pub(super) fn leave_for_published(&self, live: &Arc<LiveDump>) {
        let mut slots = self.shared.lock();
        live.finish(Err(DumpError::Elsewhere));
        self.leave(&mut slots, live);
        if let Some(queue) = slots.queues.get_mut(live.slot()) {
            queue.published = Some(Instant::now());
        }
    }

    /// Takes a dump off the front of its queue, if it is still there, and lets the next one begin.
    pub(super) fn leave(&self, slots: &mut Slots, live: &Arc<LiveDump>) {
        let Some(queue) = slots.queues.get_mut(live.slot()) else { return };
        if queue.current.as_ref().is_some_and(|current| Arc::ptr_eq(current, live)) {
            queue.current = queue.next.take();
            if let Some(next) = queue.current.clone() {
                self.drive(next);
            }
        }
    }

    /// Makes the spool of a dump. Not when it is asked for: files are made in the driving task, so that no reader waits for a disk.
    pub(super) async fn prepare(&self, live: &LiveDump) -> Result<(), DumpError> {
        live.prepare(self.shared.settings.spool_dir(), self.shared.budget.clone()).await
    }

    /// Scans and stores, side by side.
    pub(super) async fn make(&self, driving: &mut Driving, lease: Option<&Lease>, head: Result<Head, StoreError>) {
        let shared = &self.shared;
        let live = driving.live.clone();
        let org = &live.slot().org;
        driving.over = head.as_ref().ok().map(|head| head.generation);
        if let Err(error) = self.prepare(&live).await {
            tracing::error!(%org, error = %Chain(&error), "a dump failed");
            return live.finish(Err(error));
        }
        let scan = async {
            let end = shared.builder.scan(&live).await;
            if let Err(error) = &end {
                tracing::error!(%org, error = %Chain(error), "a dump failed");
            }
            live.finish(end);
        };
        let store = async {
            let over = head?.generation;
            let declared = match lease {
                Some(lease) => shared.store.declare(lease, live.slot(), live.id()).await.is_ok(),
                None => false,
            };
            shared.builder.store(&live, over, declared).await
        };
        let ((), stored) = tokio::join!(scan.instrument(span!("scan")), store.instrument(span!("store")));
        match stored {
            Ok(facts) => {
                driving.stored = true;
                facts.log(live.slot());
            }
            Err(StoreFailure::Dump(_)) => {}
            Err(StoreFailure::Store(StoreError::Conflict)) => {
                driving.superseded = true;
                tracing::info!(%org, snapshot = %live.id(), "another snapshot was published meanwhile");
            }
            Err(error) => {
                tracing::error!(%org, error = %Chain(&error), "a dump could not be stored; its spool is served until it is stale");
            }
        }
    }

    /// A dump that waited for the store is stored.
    pub(super) fn published_late(&self, live: &Arc<LiveDump>) {
        if let Some(queue) = self.shared.lock().queues.get_mut(live.slot()) {
            queue.published = Some(Instant::now());
        }
        self.forget_unstored(live);
    }

    /// Renews the lease for as long as it is polled; never returns.
    async fn keep_lease(&self, lease: Option<&Lease>) {
        let Some(lease) = lease else { return std::future::pending().await };
        let ttl = self.shared.settings.lease();
        loop {
            tokio::time::sleep(ttl / 3).await;
            match self.shared.store.renew(lease, ttl).await {
                Ok(true) => {}
                // The dump goes on: its readers need it, and the generation keeps it from replacing a newer one.
                Ok(false) => {
                    tracing::warn!(org = %lease.org, "a lease was lost");
                    return std::future::pending().await;
                }
                Err(error) => {
                    tracing::warn!(org = %lease.org, error = %Chain(&error), "a lease could not be renewed");
                }
            }
        }
    }
}

/// Whether a dump that has not left the queue grants a wish. One that has not begun its read grants them all.
fn grants(live: &LiveDump, wish: Wish) -> bool {
    if !live.has_begun() {
        return true;
    }
    // One that failed stays until its lease is given back.
    if matches!(live.end(), Some(Err(_))) {
        return false;
    }
    match wish {
        Wish::Background | Wish::Published | Wish::Any => true,
        // Until the scan is open the watermark is unknown: the reader waits for it and asks again if it is too low.
        Wish::AtLeast(sync_id) => live.opened().is_none_or(|opened| opened.watermark.sync_id >= sync_id),
        Wish::New => false,
    }
}

impl Shared {
    pub(super) fn lock(&self) -> MutexGuard<'_, Slots> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Queue {
    /// Whether this is the dump that waits for the store.
    pub(super) fn holds_unstored(&self, live: &Arc<LiveDump>) -> bool {
        self.unstored.as_ref().is_some_and(|unstored| Arc::ptr_eq(&unstored.live, live))
    }
}

impl Slots {
    pub(super) fn forget_if_idle(&mut self, slot: &Slot) {
        let idle = |queue: &Queue| {
            queue.current.is_none() && queue.next.is_none() && queue.unstored.is_none() && queue.published.is_none()
        };
        if self.queues.get(slot).is_some_and(idle) {
            self.queues.remove(slot);
        }
    }
}
