//! What operators do with an org by hand, and the dumps they watch.

use schemars::JsonSchema;
use serde::Serialize;
use tokio::time::Instant;

use crate::dump::{DumpError, Joined, LiveDump, Wish};
use crate::model::{Org, SnapshotId};
use crate::serve::{ServeError, Service};
use crate::store::Slot;

/// The dumps of this instance.
#[derive(Clone, Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct DumpList {
    /// Those that run, then those that wait.
    pub in_progress: Vec<DumpState>,
    /// The last ones that ended, the newest first.
    pub ended: Vec<EndedState>,
}

/// A dump in progress.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct DumpState {
    /// The id of the snapshot it will be.
    #[schemars(with = "String")]
    pub id: SnapshotId,
    /// Whose.
    #[schemars(with = "String")]
    pub org: Org,
    /// What it does now.
    pub phase: Phase,
    /// Rows read so far.
    pub rows: u64,
    /// About how many there will be: as many as the last snapshot has, or as the database's statistics say.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expected_rows: Option<u64>,
    /// Bytes of frames so far.
    pub bytes: u64,
    /// Seconds since its read began.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub running_s: Option<u64>,
}

/// How far a dump is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// All rows are read; the rest is being stored.
    Storing,
    /// Rows are being read.
    Reading,
    /// Its turn has come, and its read is about to begin.
    Starting,
    /// It waits for its turn.
    Waiting,
    /// It has failed, and is being cleared away.
    Failed,
}

/// A dump that has ended.
#[derive(Clone, Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct EndedState {
    /// The snapshot it was to be.
    #[schemars(with = "String")]
    pub id: SnapshotId,
    /// Whose.
    #[schemars(with = "String")]
    pub org: Org,
    /// `published`, or in one word why it was not: `superseded` by another, the `store` did not take it, …
    pub outcome: &'static str,
    /// Rows it had read.
    pub rows: u64,
    /// Bytes of its frames.
    pub bytes: u64,
    /// Milliseconds it took; none when it never began to read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub took_ms: Option<u64>,
    /// Seconds since it ended.
    pub ago_s: u64,
}

impl Service {
    /// The dumps of this instance. Their number is bounded: `dump.concurrent`, `dump.waiting` and one more an org.
    pub fn dump_list(&self) -> DumpList {
        let survey = self.latest_survey();
        let state = |live: &LiveDump| {
            let opened = live.opened();
            let phase = match live.end() {
                Some(Ok(())) => Phase::Storing,
                Some(Err(_)) => Phase::Failed,
                None if opened.is_some() => Phase::Reading,
                None if live.has_begun() => Phase::Starting,
                None => Phase::Waiting,
            };
            let rows = live.rows();
            let before = survey.as_ref().and_then(|survey| survey.rows_of(&live.slot().org));
            let estimated = || opened.map(|opened| opened.estimated_rows);
            let expected = match phase {
                Phase::Storing => Some(rows),
                _ => before.or_else(estimated).filter(|expected| *expected > 0),
            };
            let running = opened.and_then(|opened| opened.at).map(|at| at.elapsed().as_secs());
            DumpState {
                id: live.id(),
                org: live.slot().org.clone(),
                phase,
                rows,
                expected_rows: expected,
                bytes: live.spooled(),
                running_s: running,
            }
        };
        let mut in_progress: Vec<DumpState> = self.dumps().in_progress().iter().map(|live| state(live)).collect();
        in_progress.sort_by(|a, b| {
            a.phase.cmp(&b.phase).then_with(|| b.running_s.cmp(&a.running_s)).then_with(|| a.org.cmp(&b.org))
        });
        let ended = self.dumps().ended().into_iter().map(|ended| EndedState {
            id: ended.id,
            org: ended.org,
            outcome: ended.outcome,
            rows: ended.rows,
            bytes: ended.bytes,
            took_ms: ended.took.map(|took| u64::try_from(took.as_millis()).unwrap_or(u64::MAX)),
            ago_s: ended.at.elapsed().as_secs(),
        });
        DumpList { in_progress, ended: ended.collect() }
    }

    /// Starts a dump of an org whose read begins after this call, or joins one that waits; says which snapshot it will be.
    ///
    /// # Errors
    /// [`ServeError::UnknownOrg`]; as many dumps as allowed wait already, or the service is stopping.
    pub async fn refresh(&self, org: &str) -> Result<SnapshotId, ServeError> {
        let schema = self.schema().await?;
        let org = schema.org(org).ok_or(ServeError::UnknownOrg)?;
        if !self.knows(&org).await? {
            return Err(ServeError::UnknownOrg);
        }
        let slot = Slot { org, schema: schema.hash.clone() };
        let joined = self.dumps().join(&slot, Wish::New, Instant::now(), &"an operator asks for it")?;
        match joined {
            Joined::Live(live) => Ok(live.id()),
            // No snapshot that is published already grants the wish for a new one.
            Joined::Published => Err(DumpError::Elsewhere.into()),
        }
    }

    /// Takes an org's snapshots away, in all schemas, and the finished dumps of it that wait for the store; says how many
    /// snapshots there were. A dump in progress can't publish any more. Orgs that are gone can be named.
    ///
    /// # Errors
    /// The store's.
    pub async fn delete_snapshots(&self, org: &Org) -> Result<u64, ServeError> {
        let deleted = self.shared.store.delete(org).await?;
        for slot in self.dumps().unstored_slots().iter().filter(|slot| slot.org == *org) {
            if let Some((live, _)) = self.dumps().unstored(slot) {
                self.dumps().forget_unstored(&live);
            }
        }
        self.shared.surveyor.outdate();
        tracing::warn!(%org, snapshots = deleted, "an operator has deleted an org's snapshots");
        Ok(deleted)
    }
}
