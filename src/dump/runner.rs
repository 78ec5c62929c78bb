//! The background job: keeps every org's snapshot fresh, so that clients rarely wait for a dump.
//!
//! Each round asks which orgs changed since their snapshot, takes those past the soft limit, most pending actions
//! first, and dumps them a few at a time, under a lease for each org so that one instance works on it. Orgs that are
//! gone lose their snapshots, and so do schemas that no version has published in for long; the store is swept. A round does
//! not wait for the last of its dumps, however many it began: one that takes long takes a place, and the others go on.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt};
use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use crate::chain::Chain;
use crate::dump::live::Settled;
use crate::dump::policy::{Candidate, Limits, Reason, Verdict, judge};
use crate::dump::queue::{Dumps, Joined, Wish};
use crate::metrics::{Metrics, level};
use crate::model::{Epoch, Org, SchemaHash, SyncId};
use crate::source::{Source, SourceError};
use crate::store::{Head, Slot, SnapshotStore, StoreError};
use crate::task::Tasks;

/// The job.
pub struct Runner {
    source: Arc<dyn Source>,
    store: Arc<dyn SnapshotStore>,
    dumps: Dumps,
    limits: Limits,
    /// The age from which a snapshot is made anew though nothing happened since.
    renew_after: Option<Duration>,
    /// What was due and is not made: it failed, or another instance was at it and may have died since. Most of it has no
    /// head to be found by before the next look at which orgs there are.
    left: Mutex<BTreeSet<Slot>>,
    tasks: Tasks,
    metrics: Metrics,
}

/// Why a round broke off. The next one tries again.
#[derive(Debug, thiserror::Error)]
pub enum RoundError {
    /// The database did not answer.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// The store did not answer.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// An org that needs a dump.
#[derive(Debug, PartialEq, Eq)]
struct Due {
    slot: Slot,
    pending: u64,
    reason: Reason,
}

/// What the job makes now, over all rounds.
#[derive(Default)]
struct UnderWay<'a> {
    slots: BTreeSet<Slot>,
    refreshes: FuturesUnordered<BoxFuture<'a, Slot>>,
}

impl UnderWay<'_> {
    /// Waits until no more than so many are left.
    async fn leave(&mut self, most: usize) {
        loop {
            let ended = match self.refreshes.len() > most {
                true => self.refreshes.next().await,
                false => self.refreshes.next().now_or_never().flatten(),
            };
            let Some(slot) = ended else { return };
            self.slots.remove(&slot);
        }
    }
}

impl Runner {
    /// The job over a source and a store, through the dumps that requests use too.
    pub fn new(
        source: Arc<dyn Source>,
        store: Arc<dyn SnapshotStore>,
        dumps: Dumps,
        limits: Limits,
        renew_after: Option<Duration>,
        tasks: Tasks,
        metrics: Metrics,
    ) -> Self {
        Self { source, store, dumps, limits, renew_after, left: Mutex::default(), tasks, metrics }
    }

    /// Starts the job as a task that begins nothing new once `stop` is cancelled.
    pub fn start(self, stop: CancellationToken) {
        self.tasks.clone().spawn("snapshots", async move {
            stop.run_until_cancelled(self.run()).await;
        });
    }

    async fn run(&self) {
        let settings = self.dumps.settings();
        let every = |seconds: u64| Duration::from_secs(seconds.max(1));
        let mut rounds = interval(every(settings.interval_s));
        rounds.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut looked, mut swept): (Option<Instant>, Option<Instant>) = (None, None);
        let mut under_way = UnderWay::default();
        loop {
            rounds.tick().await;
            let due = |last: Option<Instant>, seconds| last.is_none_or(|at| at.elapsed() >= every(seconds));
            let look = due(looked, settings.orgs_interval_s);
            let sweep = due(swept, settings.sweep_interval_s);
            let round = self.next_round(look, sweep, &mut under_way).await;
            self.metrics.round("snapshots", round.is_ok());
            match round {
                Ok(()) => {
                    looked = if look { Some(Instant::now()) } else { looked };
                    swept = if sweep { Some(Instant::now()) } else { swept };
                }
                Err(error) => {
                    tracing::warn!(error = %Chain(&error), "a round of the background job broke off");
                }
            }
        }
    }

    /// One round: dumps what is due and waits for it. `look`: also find orgs that are new or gone. `sweep`: also sweep
    /// the store.
    ///
    /// # Errors
    /// When the database or the store did not answer; what was begun is finished all the same.
    pub async fn round(&self, look: bool, sweep: bool) -> Result<(), RoundError> {
        let mut under_way = UnderWay::default();
        self.begin(look, &mut under_way).await?;
        under_way.leave(0).await;
        self.sweep(sweep).await
    }

    /// The same, but leaves what is still made when there is a place for the next round.
    async fn next_round<'a>(&'a self, look: bool, sweep: bool, under_way: &mut UnderWay<'a>) -> Result<(), RoundError> {
        self.begin(look, under_way).await?;
        under_way.leave(self.dumps.settings().concurrent.saturating_sub(1)).await;
        self.sweep(sweep).await
    }

    /// Begins what is due, as places become free.
    async fn begin<'a>(&'a self, look: bool, under_way: &mut UnderWay<'a>) -> Result<(), RoundError> {
        // Those that have ended since the last round may be due again.
        under_way.leave(usize::MAX).await;
        self.forget_stale().await?;
        let looked = Instant::now();
        for due in self.due(look).await? {
            if under_way.slots.contains(&due.slot) {
                continue;
            }
            under_way.leave(self.dumps.settings().concurrent.saturating_sub(1)).await;
            under_way.slots.insert(due.slot.clone());
            under_way.refreshes.push(self.refresh(due, looked).boxed());
        }
        Ok(())
    }

    async fn sweep(&self, sweep: bool) -> Result<(), RoundError> {
        if sweep {
            let packs = self.store.sweep().await?;
            if packs > 0 {
                tracing::info!(packs, "packs were swept");
            }
        }
        Ok(())
    }

    /// What needs a dump, most pending first.
    async fn due(&self, look: bool) -> Result<Vec<Due>, RoundError> {
        let schema = self.source.schema().await?;
        let epoch = self.source.epoch().await?;
        let all = self.store.heads().await?;
        let present = all.iter().filter(|(slot, _)| slot.schema == schema.hash).count();
        self.metrics.published(present, all.len() - present);
        // Asked after the heads, so that an org created in between is not taken for gone.
        let orgs: Option<BTreeSet<Org>> =
            if look { Some(self.source.orgs().await?.into_iter().collect()) } else { None };
        if let Some(orgs) = &orgs {
            self.delete_gone(&all, orgs).await?;
            self.left().retain(|slot| orgs.contains(&slot.org));
            self.retire_old(&all, &schema.hash).await?;
        }
        let mut heads: HashMap<Slot, Head> = all.into_iter().filter(|(slot, _)| slot.schema == schema.hash).collect();
        for org in orgs.iter().flatten() {
            heads.entry(Slot { org: org.clone(), schema: schema.hash.clone() }).or_default();
        }
        {
            let mut left = self.left();
            left.retain(|slot| slot.schema == schema.hash && !heads.contains_key(slot));
            heads.extend(left.iter().map(|slot| (slot.clone(), Head::default())));
        }
        let heads: Vec<(Slot, Head)> =
            heads.into_iter().filter(|(slot, _)| orgs.as_ref().is_none_or(|orgs| orgs.contains(&slot.org))).collect();
        // A finished dump that waits for the store is as good as published, and need not be made again.
        let newest = |slot: &Slot, head: &Head| {
            let published = head.current.as_ref();
            let published = published.map(|current| (current.facts.epoch.clone(), current.facts.sync_id, current.age));
            let unstored = self.dumps.unstored(slot).and_then(|(live, age)| {
                let watermark = live.opened()?.watermark.clone();
                Some((watermark.epoch, watermark.sync_id, age))
            });
            let newer = |kept: &(Epoch, SyncId, Duration)| (kept.0 == epoch, kept.1);
            published.into_iter().chain(unstored).max_by_key(newer)
        };
        let kept: Vec<_> = heads.iter().map(|(slot, head)| newest(slot, head)).collect();
        let since: Vec<(Org, SyncId)> = (heads.iter().zip(&kept))
            .map(|((slot, _), kept)| {
                let present = kept.as_ref().filter(|(of, ..)| *of == epoch);
                (slot.org.clone(), present.map_or(SyncId::ZERO, |(_, sync_id, _)| *sync_id))
            })
            .collect();
        let pending = self.source.pending(&since, self.limits.count_cap()).await?;
        let told = heads.iter().zip(&kept).zip(&pending).map(|(((slot, _), kept), pending)| {
            // Without later actions a snapshot is the present state, however old it is.
            let age = kept.as_ref().filter(|_| *pending > 0).map(|(_, _, age)| *age);
            (slot.org.as_str(), age, *pending)
        });
        self.metrics.orgs(told);
        // Where nothing happened anywhere there is nothing to trim either.
        let newest = since.iter().map(|(_, sync_id)| *sync_id).max().unwrap_or_default();
        let holds_log = |candidate: &Candidate<'_>| {
            candidate.sync_id < newest && self.renew_after.is_some_and(|after| candidate.age > after)
        };
        let mut due: Vec<Due> = (heads.into_iter().zip(&kept).zip(pending))
            .filter_map(|(((slot, _), kept), pending)| {
                let candidate = kept.as_ref().map(|(epoch, sync_id, age)| Candidate {
                    epoch,
                    sync_id: *sync_id,
                    age: *age,
                    pending,
                });
                match judge(candidate.as_ref(), &epoch, &self.limits) {
                    Verdict::Fresh if candidate.is_some_and(|candidate| holds_log(&candidate)) => {
                        Some(Due { slot, pending, reason: Reason::HoldsLog })
                    }
                    Verdict::Fresh => None,
                    Verdict::Stale(reason) | Verdict::Unusable(reason) => Some(Due { slot, pending, reason }),
                }
            })
            .collect();
        self.metrics.due_orgs.set(level(due.len()));
        due.sort_by(|a, b| b.pending.cmp(&a.pending).then_with(|| a.slot.cmp(&b.slot)));
        Ok(due)
    }

    async fn refresh(&self, due: Due, looked: Instant) -> Slot {
        let Due { slot, pending, reason } = due;
        let made = match self.dumps.join(&slot, Wish::Background, looked, &reason) {
            // How it went is in the log already.
            Ok(Joined::Live(live)) => live.wait_settled().await == Settled::Published,
            Ok(Joined::Published) => true,
            Err(error) => {
                tracing::warn!(org = %slot.org, pending, error = %Chain(&error), "a refresh could not begin");
                false
            }
        };
        if made {
            self.left().remove(&slot);
        } else {
            self.left().insert(slot.clone());
        }
        slot
    }

    fn left(&self) -> MutexGuard<'_, BTreeSet<Slot>> {
        self.left.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn delete_gone(&self, heads: &[(Slot, Head)], orgs: &BTreeSet<Org>) -> Result<(), RoundError> {
        let kept: BTreeSet<&Org> = heads.iter().map(|(slot, _)| &slot.org).collect();
        for org in kept.into_iter().filter(|org| !orgs.contains(org)) {
            let snapshots = self.store.delete(org).await?;
            tracing::info!(%org, snapshots, "the org is gone; its snapshots are deleted");
        }
        Ok(())
    }

    /// Deletes snapshots of other schemas that no version has published for long. One that still serves its schema makes
    /// what it misses anew.
    async fn retire_old(&self, heads: &[(Slot, Head)], present: &SchemaHash) -> Result<(), RoundError> {
        let limit = Duration::from_secs(self.dumps.settings().old_schemas_s);
        for (slot, head) in heads.iter().filter(|(slot, _)| slot.schema != *present) {
            if head.current.as_ref().is_none_or(|current| current.age <= limit) {
                continue;
            }
            match self.store.retire(slot, head.generation).await {
                Ok(()) => {
                    tracing::info!(org = %slot.org, schema = %slot.schema, "a snapshot of an old schema is deleted");
                }
                // It was published or deleted meanwhile.
                Err(StoreError::Conflict) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Lets go of finished spools that nobody should be served from any more.
    async fn forget_stale(&self) -> Result<(), RoundError> {
        for slot in self.dumps.unstored_slots() {
            let Some((live, age)) = self.dumps.unstored(&slot) else { continue };
            let Some(opened) = live.opened() else { continue };
            let pending =
                self.source.pending(&[(slot.org.clone(), opened.watermark.sync_id)], self.limits.count_cap()).await?;
            let candidate = Candidate {
                epoch: &opened.watermark.epoch,
                sync_id: opened.watermark.sync_id,
                age,
                pending: pending.first().copied().unwrap_or_default(),
            };
            if let Verdict::Unusable(_) = judge(Some(&candidate), &self.source.epoch().await?, &self.limits) {
                self.dumps.forget_unstored(&live);
            }
        }
        Ok(())
    }
}
