//! Bootstraps: from the published snapshot, or from a dump in progress.
//!
//! The policy decides (`dump::policy`, pure); this room carries the decision out. Whatever is unusable leads to the same
//! door, [`Dumps::join`](crate::dump::Dumps::join), so that any number of callers shares one scan.

use std::sync::Arc;
use std::time::Duration;

use futures_util::{StreamExt, TryStreamExt};
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep};
use tracing::Instrument;

use crate::chain::Chain;
use crate::dump::policy::{Demand, Reason, Verdict, judge_for};
use crate::dump::{DumpError, Joined, LiveDump, Wish};
use crate::model::{BootstrapQuery, Caller, Epoch, Grants, Schema, SnapshotId, SyncId, Watermark};
use crate::serve::delta::{CatchUp, Resync};
use crate::serve::freshness::{Kept, Look};
use crate::serve::stored::StoredSnapshot;
use crate::serve::{Answer, Content, Facts, ServeError, Service, SnapshotRef};
use crate::source::{Action, ActionRange, SourceError};
use crate::store::{PinnedManifest, Slot, StoreError};
use crate::trace::span;
use crate::wire::trailer::Method;

/// How often a request that found the ground shifting under it looks again.
const TRIES: usize = 4;

/// How often the watermark is looked at while a request waits for it.
const WATERMARK_POLL: Duration = Duration::from_millis(50);

/// Settings `[bootstrap]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BootstrapSettings {
    /// Whether `noCache=true` is allowed.
    pub no_cache: bool,
    /// Milliseconds for which a look at an org's snapshot is shared.
    pub freshness_ms: u64,
    /// Milliseconds a request that could be served from a snapshot waits for the database to say what came after it.
    pub database_wait_ms: u64,
    /// Milliseconds a request waits for the watermark to reach its `firstSyncId`.
    pub watermark_wait_ms: u64,
}

impl BootstrapSettings {
    /// For how long the database may keep a request waiting that could be served without it.
    pub(super) fn database_wait(&self) -> Duration {
        Duration::from_millis(self.database_wait_ms)
    }

    /// For how long a look is shared.
    pub(super) fn freshness(&self) -> Duration {
        Duration::from_millis(self.freshness_ms)
    }
}

impl Default for BootstrapSettings {
    /// What `config/headstart.toml` says; a test holds the two together.
    fn default() -> Self {
        Self { no_cache: true, freshness_ms: 250, database_wait_ms: 3000, watermark_wait_ms: 2000 }
    }
}

/// A request, checked against the schema and the caller's groups.
struct Asked {
    slot: Slot,
    schema: Arc<Schema>,
    /// What rows are filtered by: the caller's groups, or those of them that were asked for.
    grants: Grants,
    caller: Caller,
    wanted: Vec<bool>,
    demand: Demand,
    /// When the request came, and when it was last decided anew.
    came: Instant,
    at: Instant,
}

impl Asked {
    /// What is known of an answer that is not caught up yet.
    fn facts(&self, method: Method, why: &'static str, snapshot: SnapshotRef, epoch: Epoch) -> Facts {
        Facts {
            method,
            why,
            epoch,
            last_sync_id: snapshot.sync_id,
            snapshot: Some(snapshot),
            schema: self.schema.clone(),
            groups: self.caller.grants.clone(),
            wanted: self.wanted.clone(),
        }
    }
}

/// What to do when more happened after a snapshot than an answer may tell.
#[derive(Clone, Copy, PartialEq, Eq)]
enum TooMany {
    /// The snapshot is not to be served any more: decide anew.
    LookAgain,
    /// The answer stops at an earlier sync id.
    StopEarlier,
}

/// Why a decision has to be taken again.
enum Again {
    /// Something was published, deleted or replaced meanwhile.
    Moved,
    /// This is the answer.
    No(ServeError),
}

impl<E: Into<ServeError>> From<E> for Again {
    fn from(error: E) -> Self {
        match error.into() {
            ServeError::Dump(DumpError::SchemaChanged | DumpError::Elsewhere) => Self::Moved,
            error => Self::No(error),
        }
    }
}

impl Service {
    /// Begins a bootstrap. The answer holds no database connection and no lock; dropping it stops its work.
    ///
    /// # Errors
    /// Before the first byte all of [`ServeError`]; afterwards the content's own.
    pub async fn bootstrap(&self, caller: &Caller, query: &BootstrapQuery) -> Result<Answer, ServeError> {
        let came = Instant::now();
        let mut at = came;
        let mut shared = self.settings().freshness();
        for _ in 0..TRIES {
            let asked = Asked { came, ..self.asked(caller, query, at).await? };
            match self.answer(&asked, shared).await {
                Ok(answer) => {
                    self.shared.last.note(&caller.org, answer.facts.method, answer.facts.why);
                    return Ok(answer);
                }
                // What was found has gone since: only another look helps.
                Err(Again::Moved) => (at, shared) = (Instant::now(), Duration::ZERO),
                Err(Again::No(error)) => return Err(error),
            }
        }
        Err(DumpError::SchemaChanged.into())
    }

    /// The same selection from one given snapshot, current or replaced but still kept; `None` when it is gone.
    ///
    /// # Errors
    /// As [`Self::bootstrap`].
    pub async fn stored(
        &self,
        caller: &Caller,
        query: &BootstrapQuery,
        snapshot: SnapshotId,
    ) -> Result<Option<Answer>, ServeError> {
        let asked = self.asked(caller, query, Instant::now()).await?;
        match self.cache().manifest(&asked.slot, snapshot).await {
            Ok(manifest) if manifest.org == asked.slot.org => {
                let (facts, stored) = self.selected(&asked, manifest, "resumed");
                Ok(Some(self.snapshot_answer(&asked, facts, stored)))
            }
            Ok(_) | Err(StoreError::Missing(_)) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    async fn asked(&self, caller: &Caller, query: &BootstrapQuery, at: Instant) -> Result<Asked, ServeError> {
        let schema = self.schema().await?;
        if let Some(hash) = query.schema_hash.as_ref().filter(|hash| **hash != schema.hash) {
            tracing::debug!(client = %hash, server = %schema.hash, "the client has another schema");
            return Err(ServeError::SchemaMismatch { server: schema.hash.to_string() });
        }
        if query.no_cache && !self.settings().no_cache {
            return Err(ServeError::NoCacheRefused);
        }
        let wanted = wanted(&schema, query)?;
        let grants = match &query.sync_groups {
            None => caller.grants.clone(),
            Some(groups) => {
                if let Some(foreign) = groups.iter().find(|group| !caller.grants.holds(group)) {
                    return Err(ServeError::GroupNotHeld(foreign.clone()));
                }
                Grants::new(groups.iter().cloned().collect())
            }
        };
        Ok(Asked {
            slot: Slot { org: caller.org.clone(), schema: schema.hash.clone() },
            schema,
            grants,
            wanted,
            demand: Demand {
                first_sync_id: query.first_sync_id.unwrap_or_default(),
                no_cache: query.no_cache,
                catches_up: !query.no_sync_packets,
            },
            caller: caller.clone(),
            came: at,
            at,
        })
    }

    /// Decides by a look that is no older than `shared`.
    async fn answer(&self, asked: &Asked, shared: Duration) -> Result<Answer, Again> {
        let mut look = self.freshness().recent(&asked.slot, shared).await?;
        if let Some(fault) = (look.unlogged.iter()).find_map(|(model, fault)| asked.wanted[*model].then_some(fault)) {
            return Err(fault.clone().into());
        }
        let mut verdict = self.judge(asked, &look);
        if matches!(verdict, Verdict::Unusable(_)) && look.began < asked.at {
            look = self.freshness().look(&asked.slot, asked.at).await?;
            verdict = self.judge(asked, &look);
        }
        match verdict {
            // Without the database nobody can tell whether it is fresh.
            Verdict::Fresh if look.epoch.is_none() => self.kept(asked, &look, "unchecked", TooMany::LookAgain).await,
            Verdict::Fresh => self.kept(asked, &look, "fresh", TooMany::LookAgain).await,
            Verdict::Stale(reason) => {
                self.refresh_behind(asked, &look, reason);
                self.kept(asked, &look, "stale", TooMany::LookAgain).await
            }
            Verdict::Unusable(Reason::Pending(_) | Reason::Age(_)) if self.is_newest(asked, &look).await? => {
                self.kept(asked, &look, "newest", TooMany::StopEarlier).await
            }
            Verdict::Unusable(reason) => self.live(asked, &look, reason).await,
        }
    }

    /// Whether a dump would be no newer than what the look found: that was published while the request waited for it, or a writer
    /// that stays open holds the watermark back there.
    async fn is_newest(&self, asked: &Asked, look: &Look) -> Result<bool, Again> {
        let Some(candidate) = look.candidate() else { return Ok(false) };
        let is_of_this_request = asked.at > asked.came && candidate.age < asked.came.elapsed();
        if !is_of_this_request {
            let watermark = self.source().watermark().await?;
            if watermark.epoch != *candidate.epoch || watermark.sync_id > candidate.sync_id {
                return Ok(false);
            }
        }
        // Changes count as pending, too, where the log does not reach back to the snapshot: what it missed is in no later action.
        let (org, after, to) = (asked.slot.org.clone(), candidate.sync_id, candidate.sync_id);
        let nothing = ActionRange { org, after, to, groups: Grants::default(), limit: 1 };
        match self.source().changed(&nothing).await {
            Err(SourceError::Trimmed { .. }) => Ok(false),
            other => Ok(other.map(|_| true)?),
        }
    }

    fn judge(&self, asked: &Asked, look: &Look) -> Verdict {
        let candidate = look.candidate();
        match (&look.epoch, &candidate) {
            // The database does not answer: what is published is the best there is, unless more is demanded.
            (None, Some(candidate)) if candidate.sync_id >= asked.demand.first_sync_id && !asked.demand.no_cache => {
                Verdict::Fresh
            }
            (None, _) => Verdict::Unusable(Reason::BehindRequest),
            (Some(epoch), candidate) => judge_for(asked.demand, candidate.as_ref(), epoch, self.limits()),
        }
    }

    /// Serves what the look found, and what happened since.
    async fn kept(&self, asked: &Asked, look: &Look, why: &'static str, otherwise: TooMany) -> Result<Answer, Again> {
        let (facts, stored) = match &look.kept {
            None => return Err(Again::Moved),
            Some(Kept::Unstored { live, .. }) => {
                let Some(live) = live.upgrade() else { return Err(Again::Moved) };
                return self.unstored(asked, look, live).await;
            }
            Some(Kept::Published(current)) => match self.cache().manifest(&asked.slot, current.facts.id).await {
                Ok(manifest) => self.selected(asked, manifest, why),
                Err(error) => {
                    tracing::warn!(org = %asked.slot.org, snapshot = %current.facts.id, error = %Chain(&error), "a manifest can't be read");
                    return self.live(asked, look, Reason::Unreadable).await;
                }
            },
            Some(Kept::Remembered(current)) => {
                let held = self.cache().held_manifest(&asked.slot, current.facts.id).and_then(|manifest| {
                    let (facts, mut stored) = self.selected(asked, manifest, "remembered");
                    stored.hold().then_some((facts, stored))
                });
                match held {
                    Some(held) => held,
                    None => return self.live(asked, look, Reason::Unreadable).await,
                }
            }
        };
        let mut answer = self.snapshot_answer(asked, facts, stored);
        let nothing_new = look.pending == 0 && answer.facts.last_sync_id >= asked.demand.first_sync_id;
        if !nothing_new && look.epoch.is_some() {
            self.catch_answer_up(asked, &mut answer, otherwise).await?;
        }
        if otherwise == TooMany::StopEarlier && answer.facts.last_sync_id < asked.demand.first_sync_id {
            return self.live(asked, look, Reason::BehindRequest).await;
        }
        Ok(answer)
    }

    /// What a request gets of a snapshot, and what is known of that answer.
    fn selected(&self, asked: &Asked, manifest: PinnedManifest, why: &'static str) -> (Facts, StoredSnapshot) {
        let snapshot = SnapshotRef { id: manifest.id, sync_id: manifest.sync_id };
        let facts = asked.facts(Method::Snapshot, why, snapshot, manifest.epoch.clone());
        let (cache, dumps, slot) = (self.cache().clone(), self.dumps().clone(), asked.slot.clone());
        let read = self.metrics().raw_bytes.clone();
        (facts, StoredSnapshot::new(cache, dumps, slot, manifest, &asked.grants, &asked.wanted, read))
    }

    fn snapshot_answer(&self, asked: &Asked, facts: Facts, stored: StoredSnapshot) -> Answer {
        Answer { actions: self.no_actions(asked, &facts), facts, content: Content::Stored(Arc::new(stored)) }
    }

    /// What follows the rows when nothing happened after them; `None` when actions were not asked for.
    fn no_actions(&self, asked: &Asked, facts: &Facts) -> Option<CatchUp> {
        asked.demand.catches_up.then(|| self.catch_up(&asked.caller, facts, Vec::new()))
    }

    /// Brings an answer from its snapshot to the watermark.
    async fn catch_answer_up(&self, asked: &Asked, answer: &mut Answer, otherwise: TooMany) -> Result<(), Again> {
        if !asked.demand.catches_up {
            return Ok(());
        }
        let facts = &mut answer.facts;
        let watermark = match self.wait_for_watermark(asked.demand.first_sync_id, Some(&facts.epoch)).await {
            Err(ServeError::Resync(Resync::OtherEpoch)) => return Err(Again::Moved),
            other => other?,
        };
        let most = usize::try_from(self.limits().count_cap()).unwrap_or(usize::MAX);
        let mut range = ActionRange {
            org: asked.slot.org.clone(),
            after: facts.last_sync_id,
            to: watermark.sync_id,
            // All of the caller's, also where only some were asked for: a row that was removed from those and made anew
            // in another would be taken for gone.
            groups: asked.caller.grants.clone(),
            limit: most,
        };
        let mut actions = self.actions_after(&range).await?;
        while actions.len() >= most {
            if otherwise == TooMany::LookAgain {
                return Err(Again::Moved);
            }
            // Halved, as this list does not tell up to where there are fewer: an object that stands late in it may have
            // changed early as well, and counts there once the range ends sooner.
            range.to = SyncId(range.after.0.midpoint(range.to.0));
            actions = self.actions_after(&range).await?;
        }
        actions.retain(|action| action.object.as_ref().is_none_or(|object| asked.wanted[object.model]));
        facts.last_sync_id = range.to;
        answer.actions = Some(self.catch_up(&asked.caller, facts, actions));
        Ok(())
    }

    async fn actions_after(&self, range: &ActionRange) -> Result<Vec<Action>, Again> {
        match self.source().actions(range).await {
            // Trimmed since it was looked at, or by a trigger that was made anew.
            Err(SourceError::Trimmed { .. }) => Err(Again::Moved),
            other => Ok(other?),
        }
    }

    /// Starts a dump that nobody waits for here.
    fn refresh_behind(&self, asked: &Asked, look: &Look, reason: Reason) {
        if let Err(error) = self.dumps().join(&asked.slot, Wish::Background, look.began, &reason) {
            tracing::warn!(org = %asked.slot.org, error = %Chain(&error), "a refresh could not begin");
        }
    }

    /// Serves from a dump in progress.
    async fn live(&self, asked: &Asked, look: &Look, reason: Reason) -> Result<Answer, Again> {
        self.wait_for_watermark(asked.demand.first_sync_id, None).await?;
        let mut wish = match asked.demand {
            Demand { no_cache: true, .. } => Wish::New,
            Demand { first_sync_id: SyncId::ZERO, .. } | Demand { catches_up: true, .. } => Wish::Any,
            Demand { first_sync_id, .. } => Wish::AtLeast(first_sync_id),
        };
        for _ in 0..TRIES {
            let joined = self.dumps().join(&asked.slot, wish, look.began, &reason);
            let joined = joined.inspect_err(|error| self.refused().note(&asked.slot.org, reason, error))?;
            let Joined::Live(live) = joined else {
                return Err(Again::Moved);
            };
            let waiting = span!("wait for dump", snapshot = %live.id());
            let opened = live.wait_opened().instrument(waiting).await?;
            if asked.demand.catches_up || opened.watermark.sync_id >= asked.demand.first_sync_id {
                let mut answer = self.follow(asked, live, reason.word()).await?;
                // A dump that began after the request is as new as the request needs.
                if opened.at.is_none_or(|at| at < asked.at) {
                    self.catch_answer_up(asked, &mut answer, TooMany::StopEarlier).await?;
                }
                if answer.facts.last_sync_id >= asked.demand.first_sync_id {
                    return Ok(answer);
                }
            }
            wish = Wish::AtLeast(asked.demand.first_sync_id);
        }
        Err(Again::Moved)
    }

    /// Serves from a finished dump that the store did not take.
    async fn unstored(&self, asked: &Asked, look: &Look, live: Arc<LiveDump>) -> Result<Answer, Again> {
        let mut answer = self.follow(asked, live, "unstored").await?;
        if look.epoch.is_some() {
            self.catch_answer_up(asked, &mut answer, TooMany::StopEarlier).await?;
        }
        if answer.facts.last_sync_id < asked.demand.first_sync_id {
            return self.live(asked, look, Reason::BehindRequest).await;
        }
        Ok(answer)
    }

    async fn follow(&self, asked: &Asked, live: Arc<LiveDump>, why: &'static str) -> Result<Answer, Again> {
        let opened = live.wait_opened().await?;
        let snapshot = SnapshotRef { id: live.id(), sync_id: opened.watermark.sync_id };
        let facts = asked.facts(Method::Postgres, why, snapshot, opened.watermark.epoch);
        let read = self.metrics().raw_bytes.clone();
        let parts = live.follow(asked.grants.clone(), asked.wanted.clone()).map_err(ServeError::from);
        let parts = parts.inspect_ok(move |part| {
            read.inc_by(part.raw_len());
        });
        Ok(Answer { actions: self.no_actions(asked, &facts), facts, content: Content::Live(parts.boxed()) })
    }

    /// The watermark, once it is at `needed`, so that nothing is read in vain for an id that is not there yet.
    ///
    /// # Errors
    /// [`Resync::OtherEpoch`] when it is not of this epoch; [`ServeError::Ahead`] when it does not get there in time.
    pub(super) async fn wait_for_watermark(
        &self,
        needed: SyncId,
        epoch: Option<&Epoch>,
    ) -> Result<Watermark, ServeError> {
        let deadline = Instant::now() + Duration::from_millis(self.settings().watermark_wait_ms);
        loop {
            let watermark = self.source().watermark().await?;
            if epoch.is_some_and(|epoch| *epoch != watermark.epoch) {
                return Err(Resync::OtherEpoch.into());
            }
            if watermark.sync_id >= needed {
                return Ok(watermark);
            }
            if Instant::now() >= deadline {
                return Err(ServeError::Ahead { watermark: watermark.sync_id });
            }
            sleep(WATERMARK_POLL).await;
        }
    }
}

/// Which models an answer holds.
fn wanted(schema: &Schema, query: &BootstrapQuery) -> Result<Vec<bool>, ServeError> {
    let models = schema.catalog.models();
    let Some(only) = &query.only_models else {
        // A partial bootstrap of some groups brings all that the snapshot has of them.
        let whole =
            |load: crate::model::Load| if query.partial { load.in_snapshot() } else { load.in_full_bootstrap() };
        return Ok(models.iter().map(|model| whole(model.load)).collect());
    };
    let mut wanted = vec![false; models.len()];
    for name in only {
        let (index, model) = schema.model(name).ok_or_else(|| ServeError::UnknownModel(name.clone()))?;
        if !model.load.in_snapshot() {
            return Err(ServeError::ExplicitModel(name.clone()));
        }
        wanted[index] = true;
    }
    Ok(wanted)
}
