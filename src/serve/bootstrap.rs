//! Bootstraps: from the published snapshot, or from a dump in progress.
//!
//! The policy decides (`dump::policy`, pure); this room carries the decision out. Whatever is unusable leads to the same
//! door, [`Dumps::join`](crate::dump::Dumps::join), so that any number of callers shares one scan.

use std::sync::Arc;
use std::time::Duration;

use futures_util::{StreamExt, TryStreamExt};
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep};

use crate::chain::Chain;
use crate::dump::policy::{Candidate, Demand, Reason, Verdict, judge_for};
use crate::dump::{DumpError, Joined, LiveDump, Wish};
use crate::model::{BootstrapQuery, Caller, Grants, Schema, SnapshotId, SyncGroup, SyncId};
use crate::serve::freshness::Look;
use crate::serve::stored::StoredSnapshot;
use crate::serve::{Answer, Content, Facts, ServeError, Service};
use crate::store::{PinnedManifest, Slot, StoreError};
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
    /// Milliseconds a request waits for the watermark to reach its `firstSyncId`.
    pub watermark_wait_ms: u64,
}

impl Default for BootstrapSettings {
    /// What `config/headstart.toml` says; a test holds the two together.
    fn default() -> Self {
        Self { no_cache: true, freshness_ms: 250, watermark_wait_ms: 2000 }
    }
}

/// A request, checked against the schema and the caller's groups.
struct Asked {
    slot: Slot,
    schema: Arc<Schema>,
    /// What rows are filtered by: the caller's groups, or those of them that were asked for.
    grants: Grants,
    /// All of the caller's groups.
    groups: Vec<SyncGroup>,
    wanted: Vec<bool>,
    demand: Demand,
    at: Instant,
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
        let at = Instant::now();
        for _ in 0..TRIES {
            let asked = self.asked(caller, query, at).await?;
            match self.answer(&asked).await {
                Ok(answer) => return Ok(answer),
                Err(Again::Moved) => {}
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
            Ok(manifest) if manifest.org == asked.slot.org => Ok(Some(self.snapshot_answer(&asked, manifest))),
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
            groups: caller.grants.as_slice().to_vec(),
            wanted,
            demand: Demand { first_sync_id: query.first_sync_id.unwrap_or_default(), no_cache: query.no_cache },
            at,
        })
    }

    async fn answer(&self, asked: &Asked) -> Result<Answer, Again> {
        let shared = Duration::from_millis(self.settings().freshness_ms);
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
            Verdict::Fresh => self.published(asked, &look).await,
            Verdict::Stale(reason) => {
                self.refresh_behind(asked, &look, reason);
                self.published(asked, &look).await
            }
            Verdict::Unusable(reason) => self.live(asked, &look, reason).await,
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

    /// Serves what the look found published.
    async fn published(&self, asked: &Asked, look: &Look) -> Result<Answer, Again> {
        let Some(current) = &look.head.current else { return Err(Again::Moved) };
        match self.cache().manifest(&asked.slot, current.facts.id).await {
            Ok(manifest) => Ok(self.snapshot_answer(asked, manifest)),
            Err(error) => {
                tracing::warn!(org = %asked.slot.org, snapshot = %current.facts.id, error = %Chain(&error), "a manifest can't be read");
                self.live(asked, look, Reason::Unreadable).await
            }
        }
    }

    fn snapshot_answer(&self, asked: &Asked, manifest: PinnedManifest) -> Answer {
        let facts = Facts {
            method: Method::Snapshot,
            snapshot: manifest.id,
            epoch: manifest.epoch.clone(),
            last_sync_id: manifest.sync_id,
            snapshot_sync_id: manifest.sync_id,
            schema: asked.schema.clone(),
            groups: asked.groups.clone(),
            wanted: asked.wanted.clone(),
        };
        let (org, grants) = (asked.slot.org.clone(), &asked.grants);
        let stored = StoredSnapshot::new(self.cache().clone(), org, manifest, grants, &asked.wanted);
        Answer { facts, content: Content::Stored(Arc::new(stored)) }
    }

    /// Starts a dump that nobody waits for here.
    fn refresh_behind(&self, asked: &Asked, look: &Look, reason: Reason) {
        if let Err(error) = self.dumps().join(&asked.slot, Wish::Background, look.began, &reason) {
            tracing::warn!(org = %asked.slot.org, error = %Chain(&error), "a refresh could not begin");
        }
    }

    /// Serves from a finished dump that could not be stored, or from one in progress.
    async fn live(&self, asked: &Asked, look: &Look, reason: Reason) -> Result<Answer, Again> {
        if let Some(live) = self.unstored(asked, look).await? {
            return self.follow(asked, live).await;
        }
        self.wait_for_watermark(asked.demand.first_sync_id).await?;
        let mut wish = match asked.demand {
            Demand { no_cache: true, .. } => Wish::New,
            Demand { first_sync_id: SyncId::ZERO, .. } => Wish::Any,
            Demand { first_sync_id, .. } => Wish::AtLeast(first_sync_id),
        };
        for _ in 0..TRIES {
            let Joined::Live(live) = self.dumps().join(&asked.slot, wish, look.began, &reason)? else {
                return Err(Again::Moved);
            };
            let opened = live.wait_opened().await?;
            if opened.watermark.sync_id >= asked.demand.first_sync_id {
                return self.follow(asked, live).await;
            }
            wish = Wish::AtLeast(asked.demand.first_sync_id);
        }
        Err(Again::Moved)
    }

    async fn follow(&self, asked: &Asked, live: Arc<LiveDump>) -> Result<Answer, Again> {
        let opened = live.wait_opened().await?;
        let facts = Facts {
            method: Method::Postgres,
            snapshot: live.id(),
            epoch: opened.watermark.epoch,
            last_sync_id: opened.watermark.sync_id,
            snapshot_sync_id: opened.watermark.sync_id,
            schema: asked.schema.clone(),
            groups: asked.groups.clone(),
            wanted: asked.wanted.clone(),
        };
        let parts = live.follow(asked.grants.clone(), asked.wanted.clone()).map_err(ServeError::from).boxed();
        Ok(Answer { facts, content: Content::Live(parts) })
    }

    /// The finished dump that could not be stored, while it is fresh enough.
    async fn unstored(&self, asked: &Asked, look: &Look) -> Result<Option<Arc<LiveDump>>, ServeError> {
        let Some((live, age)) = self.dumps().unstored(&asked.slot) else { return Ok(None) };
        let (Some(opened), Some(epoch)) = (live.opened(), &look.epoch) else { return Ok(None) };
        let sync_id = opened.watermark.sync_id;
        let pending = self.freshness().pending(&asked.slot, sync_id).await?;
        let candidate = Candidate { epoch: &opened.watermark.epoch, sync_id, age, pending };
        match judge_for(asked.demand, Some(&candidate), epoch, self.limits()) {
            Verdict::Fresh => {}
            Verdict::Stale(reason) => self.refresh_behind(asked, look, reason),
            Verdict::Unusable(_) => return Ok(None),
        }
        Ok(Some(live))
    }

    /// Waits until the watermark is at `needed`, so that no dump is made in vain for an id that is not there yet.
    async fn wait_for_watermark(&self, needed: SyncId) -> Result<(), ServeError> {
        if needed == SyncId::ZERO {
            return Ok(());
        }
        let deadline = Instant::now() + Duration::from_millis(self.settings().watermark_wait_ms);
        loop {
            let watermark = self.source().watermark().await?.sync_id;
            if watermark >= needed {
                return Ok(());
            }
            if Instant::now() >= deadline {
                return Err(ServeError::Ahead { watermark });
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
