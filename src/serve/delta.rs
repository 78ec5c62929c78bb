//! Catching up: the sync actions between two points of the log, as one caller sees them.
//!
//! The log holds no payload. The caller's org and groups filter it first, then the last action of each object is taken,
//! and letter and data come from the row as it is now: whoever lost a row, or may no longer see it, gets a `D`. So an
//! action may show a newer row than its sync id tells; the action that says so follows in a later answer, and applying
//! a newer row early is harmless.
//!
//! What is held: the list of actions, about 100 bytes each and at most [`DeltaSettings::max_actions`] (in a bootstrap:
//! the hard limit of pending actions), and two pieces of lines. Rows are read as the answer is sent, two pieces at a time,
//! through the loader: callers who catch up on the same objects share the reading.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::{self, BoxStream};
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;
use tokio::time::Instant;
use tracing::Instrument;

use crate::metrics::Counter;
use crate::model::{Caller, DeltaQuery, Grants, Letter, Org, Schema, SyncId, Watermark};
use crate::serve::batch::inflight::Need;
use crate::serve::batch::{Ask, LoadError, Loaded, Loader};
use crate::serve::{Answer, Content, Facts, ServeError, Service};
use crate::snapshot::select;
use crate::source::{Action, ActionRange, By, Object, SourceError};
use crate::store::Slot;
use crate::wire::action;
use crate::wire::trailer::Method;

/// How many actions make a piece of an answer.
const PIECE_ACTIONS: usize = 512;

/// Pieces that are read at once: one is made while the one before is sent.
const PIECES: usize = 2;

/// How long the rows of one piece may take to be read.
const PIECE_WITHIN: Duration = Duration::from_secs(30);

/// Up to so many actions nobody is sent away to bootstrap, however small the org.
const ALWAYS: usize = 1000;

/// Settings `[delta]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeltaSettings {
    /// Actions in one answer at most; past it 410 `RESYNC_REQUIRED`.
    pub max_actions: usize,
    /// How many rows of a published snapshot cost as much as one action.
    pub action_cost: u64,
}

impl Default for DeltaSettings {
    /// What `config/headstart.toml` says; a test holds the two together.
    fn default() -> Self {
        Self { max_actions: 50_000, action_cost: 20 }
    }
}

/// Why a client has to bootstrap instead.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Resync {
    /// The cursor belongs to another history of the database.
    #[error("the cursor is of another epoch")]
    OtherEpoch,
    /// The log no longer reaches back to the cursor.
    #[error("the log no longer reaches back to the cursor: it holds nothing up to {floor}")]
    Trimmed {
        /// The highest sync id up to which actions may be missing.
        floor: SyncId,
    },
    /// A bootstrap is cheaper.
    #[error("catching up is dearer than a bootstrap")]
    Dearer,
}

/// Where the log is read up to, and how rows look there.
pub struct Reached {
    schema: Arc<Schema>,
    watermark: Watermark,
}

/// Sync actions that are still to be brought to a caller: part of an answer, read as it is sent.
pub struct CatchUp {
    loader: Loader,
    org: Org,
    /// Rows are read at this sync id or later.
    to: SyncId,
    schema: Arc<Schema>,
    /// Who sees what, and the whole list that a change of memberships tells.
    grants: Grants,
    actions: Vec<Action>,
    /// Counts what was told, and its lines.
    told: Counter,
    raw: Counter,
}

impl CatchUp {
    /// How many lines it will be: one for each action.
    pub fn len(&self) -> usize {
        self.actions.len()
    }

    /// Whether there is nothing to tell.
    pub fn is_empty(&self) -> bool {
        self.actions.is_empty()
    }

    /// The first piece of the lines, and what is to come after it; `None` when there is nothing to tell.
    ///
    /// # Errors
    /// When the rows can't be read.
    pub async fn first(mut self) -> Result<Option<(Bytes, Self)>, ServeError> {
        if self.is_empty() {
            return Ok(None);
        }
        let len = self.len().min(PIECE_ACTIONS);
        let piece = self.piece(&self.actions[..len]).await?;
        self.actions.drain(..len);
        Ok(Some((piece, self)))
    }

    /// The lines, oldest first, in pieces. Nothing is right after an error.
    pub fn lines(self) -> BoxStream<'static, Result<Bytes, ServeError>> {
        let len = self.len();
        let all = Arc::new(self);
        let parts = (0..len).step_by(PIECE_ACTIONS).map(move |from| from..len.min(from + PIECE_ACTIONS));
        stream::iter(parts).map(move |part| all.clone().begin(part)).buffered(PIECES).boxed()
    }

    /// Makes a piece in a task of its own: what is kept of the loader for it does not wait for the client.
    fn begin(self: Arc<Self>, part: Range<usize>) -> impl Future<Output = Result<Bytes, ServeError>> {
        let (mut sender, receiver) = oneshot::channel();
        let tasks = self.loader.tasks().clone();
        let made = async move {
            tokio::select! {
                piece = self.piece(&self.actions[part]) => {
                    // The client may have gone this very moment.
                    let _ = sender.send(piece);
                }
                () = sender.closed() => {}
            }
        };
        tasks.spawn("catch up", made.in_current_span());
        async move {
            let ended = |_| if tasks.token().is_cancelled() { LoadError::Stopping } else { LoadError::Broken };
            receiver.await.map_err(ended)?
        }
    }

    async fn piece(&self, actions: &[Action]) -> Result<Bytes, ServeError> {
        let (mut lines, mut waiting) = (Vec::new(), vec![actions]);
        while let Some(part) = waiting.pop() {
            match self.rows(part).await {
                Ok(rows) => self.tell(part, &rows, &mut lines),
                // Perhaps its own rows are more than answers may hold: some at a time, then, each told before the next.
                Err(ServeError::Load(LoadError::Overloaded)) if part.len() > 1 => {
                    let (head, tail) = part.split_at(part.len() / 2);
                    waiting.extend([tail, head]);
                }
                Err(error) => return Err(error),
            }
        }
        self.told.inc_by(actions.len() as u64);
        self.raw.inc_by(lines.len() as u64);
        Ok(lines.into())
    }

    /// Adds the lines of some actions, given their rows.
    fn tell(&self, actions: &[Action], rows: &HashMap<&Object, Arc<Loaded>>, lines: &mut Vec<u8>) {
        let models = self.schema.catalog.models();
        for Action { id, letter, object } in actions {
            let Some(object) = object else {
                action::groups(lines, *id, self.grants.as_slice());
                continue;
            };
            let row =
                rows.get(object).and_then(|loaded| loaded.rows.first()).filter(|row| self.grants.sees(&row.groups));
            let letter = match (row, letter) {
                (None, _) => Letter::Delete,
                (Some(_), Letter::Insert) => Letter::Insert,
                (Some(_), _) => Letter::Update,
            };
            let row = row.map(|row| &*row.line);
            action::object(lines, *id, letter, &models[object.model].name, &object.id, row);
        }
    }

    /// The rows as they are now. Objects that the log says are gone are looked for too: one statement may log what a row
    /// was after what it has become.
    async fn rows<'a>(&self, actions: &'a [Action]) -> Result<HashMap<&'a Object, Arc<Loaded>>, ServeError> {
        let objects: Vec<&Object> = actions.iter().filter_map(|action| action.object.as_ref()).collect();
        let ask = |object: &&Object| Ask { model: object.model, by: By::Id, value: object.id.clone() };
        let asks: Vec<Ask> = objects.iter().map(ask).collect();
        let need = Need { at_least: self.to, told: false };
        let loaded = self.loader.load(&self.org, &asks, need, Instant::now() + PIECE_WITHIN).await?;
        if let Some(changed) = loaded.iter().find(|loaded| loaded.schema.hash != self.schema.hash) {
            return Err(ServeError::SchemaMismatch { server: changed.schema.hash.to_string() });
        }
        Ok(objects.into_iter().zip(loaded).collect())
    }
}

impl Resync {
    /// It in one fixed word, for metrics.
    pub fn word(&self) -> &'static str {
        match self {
            Self::OtherEpoch => "epoch",
            Self::Trimmed { .. } => "trimmed",
            Self::Dearer => "dearer",
        }
    }
}

impl Service {
    /// What happened after the caller's cursor, given how far the log can be read.
    ///
    /// # Errors
    /// Those of [`Self::reach`]; [`ServeError::Resync`] when only a bootstrap helps; the source's.
    pub async fn delta(
        &self,
        caller: &Caller,
        query: &DeltaQuery,
        reached: Result<Reached, ServeError>,
    ) -> Result<Answer, ServeError> {
        let answer = async { self.actions_after_cursor(caller, query, reached?).await }.await;
        if let Err(ServeError::Resync(reason)) = &answer {
            self.metrics().resync(reason.word());
        }
        answer
    }

    /// How far the log can be read for this cursor. It depends on no caller: who that is can be found out meanwhile.
    ///
    /// # Errors
    /// [`ServeError::SchemaMismatch`]; [`ServeError::Resync`] when the cursor is of another history; [`ServeError::Ahead`]
    /// when the watermark does not get to it in time; the source's.
    pub async fn reach(&self, query: &DeltaQuery) -> Result<Reached, ServeError> {
        let schema = self.schema().await?;
        if query.schema_hash.as_ref().is_some_and(|hash| *hash != schema.hash) {
            return Err(ServeError::SchemaMismatch { server: schema.hash.to_string() });
        }
        if let Some(fault) = self.source().unlogged().await?.values().next() {
            return Err(fault.clone().into());
        }
        let watermark = self.wait_for_watermark(query.last_sync_id, Some(&query.epoch)).await?;
        Ok(Reached { schema, watermark })
    }

    async fn actions_after_cursor(
        &self,
        caller: &Caller,
        query: &DeltaQuery,
        Reached { schema, watermark }: Reached,
    ) -> Result<Answer, ServeError> {
        let to = query.to_sync_id.map_or(watermark.sync_id, |to| to.min(watermark.sync_id));
        let range = ActionRange {
            org: caller.org.clone(),
            after: query.last_sync_id,
            to,
            groups: caller.grants.clone(),
            limit: self.shared.settings.delta.max_actions.saturating_add(1),
        };
        let actions = if to == query.last_sync_id {
            // Nothing lies in between, and most who ask are where they should be.
            Vec::new()
        } else {
            match self.source().actions(&range).await {
                Ok(actions) => actions,
                Err(SourceError::Trimmed { floor }) => return Err(Resync::Trimmed { floor }.into()),
                Err(error) => return Err(error.into()),
            }
        };
        if actions.len() >= range.limit || self.is_dearer(caller, &schema, actions.len()).await {
            return Err(Resync::Dearer.into());
        }
        let facts = Facts {
            method: Method::Postgres,
            why: "delta",
            snapshot: None,
            epoch: watermark.epoch,
            last_sync_id: to,
            wanted: vec![false; schema.models.len()],
            schema,
            groups: caller.grants.clone(),
        };
        let actions = self.catch_up(caller, &facts, actions);
        Ok(Answer { facts, content: Content::Nothing, actions: Some(actions) })
    }

    /// Whether so many actions cost more than the caller's bootstrap would, if there is a published snapshot to tell
    /// how much that is.
    ///
    /// The rule: an action costs as much as `delta.action_cost` rows of a snapshot, because its row is looked up and
    /// encoded for this answer alone, while a snapshot's rows leave as they are stored. Measured by `make bench` (large
    /// workspace, processor time of the service and PostgreSQL): 34 µs an action against 1.5 µs a row that is decoded,
    /// 23 to 1, and 0.06 µs a row in zstd, where decoding is left to the client. The default takes the former: whoever
    /// bootstraps decodes and applies every row. Without a snapshot the bootstrap would read all rows from the database,
    /// and catching up is never dearer.
    async fn is_dearer(&self, caller: &Caller, schema: &Arc<Schema>, actions: usize) -> bool {
        if actions <= ALWAYS {
            return false;
        }
        let slot = Slot { org: caller.org.clone(), schema: schema.hash.clone() };
        let Ok(look) = self.freshness().recent(&slot, self.settings().freshness()).await else { return false };
        let Some(snapshot) = look.published() else { return false };
        let Ok(manifest) = self.cache().manifest(&slot, snapshot).await else { return false };
        let rows: u64 = select(&manifest, &caller.grants, |_| true).rows.iter().sum();
        actions as u64 * self.shared.settings.delta.action_cost > rows
    }

    /// The actions as this caller gets them: rows are shown by all groups that the caller holds.
    pub(super) fn catch_up(&self, caller: &Caller, facts: &Facts, actions: Vec<Action>) -> CatchUp {
        CatchUp {
            loader: self.loader().clone(),
            org: caller.org.clone(),
            to: facts.last_sync_id,
            schema: facts.schema.clone(),
            grants: caller.grants.clone(),
            actions,
            raw: self.metrics().raw_bytes.clone(),
            told: self.metrics().told_actions(if facts.snapshot.is_some() { "bootstrap" } else { "delta" }),
        }
    }
}
