//! The answer to a batch: what was loaded for all, filtered for one.
//!
//! Everything is checked before anything is read. The rows are loaded first and the caller's memberships after them, so
//! that a right that was taken away before the answer begins is not used.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::stream::{self, BoxStream, StreamExt};
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, timeout_at};

use crate::auth::Claims;
use crate::metrics::Counter;
use crate::model::batch::place;
use crate::model::{BatchQuery, BatchRequest, Caller, Epoch, Named, QueryError, Schema, SyncId};
use crate::serve::batch::inflight::Need;
use crate::serve::batch::{Ask, By, LoadError, Loaded};
use crate::serve::{ServeError, Service};
use crate::wire::Metadata;
use crate::wire::trailer::Method;

/// About how many bytes of lines are handed on at once.
const PIECE: usize = 256 << 10;

/// Settings `[batch]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BatchSettings {
    /// Requests of one batch.
    pub max_requests: usize,
    /// Bytes of a value that is asked for.
    pub max_key_bytes: usize,
    /// Bytes of the body.
    pub max_body_bytes: usize,
    /// Rows of one answer.
    pub max_rows: usize,
    /// Milliseconds a batch may wait for its rows.
    pub deadline_ms: u64,
}

impl Default for BatchSettings {
    /// What `config/headstart.toml` says; a test holds the two together.
    fn default() -> Self {
        Self {
            max_requests: 1000,
            max_key_bytes: 1000,
            max_body_bytes: 1 << 20,
            max_rows: 100_000,
            deadline_ms: 10_000,
        }
    }
}

/// The answer to one caller's batch. Holds the rows until it is dropped; their memory is counted.
pub struct BatchAnswer {
    /// Whose it is.
    pub caller: Caller,
    /// The history the sync id belongs to.
    pub epoch: Epoch,
    /// The answer holds everything up to here.
    pub last_sync_id: SyncId,
    /// How the rows look.
    pub schema: Arc<Schema>,
    /// For each model that was asked for, by index, how many rows there are.
    counts: BTreeMap<usize, u64>,
    rows: Rows,
    /// Counts the lines that were given.
    raw: Counter,
}

/// Rows of some loads, by their places.
struct Rows {
    loaded: Vec<Arc<Loaded>>,
    places: Vec<(usize, usize)>,
}

impl Service {
    /// Loads what a batch asks for. Cancel safe.
    ///
    /// # Errors
    /// [`ServeError`], before the first byte.
    pub async fn batch(&self, claims: &Claims, query: &BatchQuery) -> Result<BatchAnswer, ServeError> {
        let deadline = Instant::now() + Duration::from_millis(self.batches().deadline_ms);
        timeout_at(deadline, self.batch_until(claims, query, deadline)).await.map_err(|_| LoadError::Deadline)?
    }

    async fn batch_until(
        &self,
        claims: &Claims,
        query: &BatchQuery,
        deadline: Instant,
    ) -> Result<BatchAnswer, ServeError> {
        let schema = self.schema().await?;
        let org = schema.org(&claims.org).ok_or(ServeError::ForeignClaim { claim: "org" })?;
        let asks = query.requests.iter().enumerate().map(|(index, request)| ask(&schema, index, request));
        let asks = asks.collect::<Result<Vec<_>, _>>()?;
        let need = Need { at_least: query.first_sync_id.unwrap_or_default(), told: true };
        // It lasts while memberships are read, too.
        let visit = self.loader().visit();
        let loaded = self.loader().load_within(&visit, &org, &asks, need, deadline).await;
        let loaded = loaded.map_err(|error| too_much(query, &asks, error))?;
        let caller = self.caller(claims).await?;
        BatchAnswer::new(caller, &asks, loaded, self.batches().max_rows, self.metrics().raw_bytes.clone())
    }
}

/// A key whose rows are too many is named as the request that asked for it.
fn too_much(query: &BatchQuery, asks: &[Ask], error: LoadError) -> ServeError {
    match &error {
        LoadError::TooLarge { ask, bytes } => {
            let index = asks.iter().position(|asked| asked == ask).unwrap_or_default();
            let field = place(index, query.requests[index].value().0);
            let fault = format!("the rows take more than {bytes} bytes");
            ServeError::TooMuch(QueryError::new(&field, fault))
        }
        _ => error.into(),
    }
}

/// What a request asks the loader for.
fn ask(schema: &Schema, index: usize, request: &BatchRequest) -> Result<Ask, ServeError> {
    let fault = |field: &str, fault: String| QueryError::new(&place(index, field), fault);
    let Some((model, entry)) = schema.model(&request.model) else {
        let unknown = format!("there is no model `{}`", request.model);
        return Err(ServeError::NoSuchModel(fault("modelName", unknown)));
    };
    let by = match &request.named {
        Named::Id(_) => By::Id,
        Named::Key { key, .. } => match entry.keys.iter().position(|known| known == key) {
            Some(key) => By::Key(key),
            None => {
                let unknown = format!("`{key}` is no key of {}", entry.name);
                return Err(ServeError::NoSuchKey(fault("indexedKey", unknown)));
            }
        },
    };
    let (field, value) = request.value();
    Ask::new(schema, model, by, value).ok_or_else(|| {
        let name = if let Named::Key { key, .. } = &request.named { key } else { "id" };
        ServeError::NoSuchKey(fault(field, format!("can't be a value of {}'s `{name}`", entry.name)))
    })
}

impl BatchAnswer {
    /// The rows that the caller sees, each once: of two readings of a row the later.
    fn new(
        caller: Caller,
        asks: &[Ask],
        loaded: Vec<Arc<Loaded>>,
        max_rows: usize,
        raw: Counter,
    ) -> Result<Self, ServeError> {
        let last_sync_id = loaded.iter().map(|load| load.sync_id).min().unwrap_or_default();
        let first = loaded.first().ok_or(LoadError::Broken)?;
        let (epoch, schema) = (first.epoch.clone(), first.schema.clone());
        let mut counts: BTreeMap<usize, u64> = asks.iter().map(|ask| (ask.model, 0)).collect();
        let most = loaded.iter().map(|load| load.rows.len()).sum::<usize>().min(max_rows);
        let mut places: Vec<(usize, usize)> = Vec::new();
        let mut known: HashMap<(usize, &str), usize> = HashMap::with_capacity(most);
        for (load, ask) in asks.iter().enumerate() {
            for (row, found) in loaded[load].rows.iter().enumerate().filter(|(_, row)| caller.grants.sees(&row.groups))
            {
                let place = *known.entry((ask.model, &found.id)).or_insert_with(|| {
                    *counts.entry(ask.model).or_default() += 1;
                    places.push((load, row));
                    places.len() - 1
                });
                if loaded[places[place].0].read_at() < loaded[load].read_at() {
                    places[place] = (load, row);
                }
            }
            if places.len() > max_rows {
                let fault = format!("the answer would have more than {max_rows} rows: ask for less at once");
                return Err(ServeError::TooMuch(QueryError::new("requests", fault)));
            }
        }
        drop(known);
        Ok(Self { caller, epoch, last_sync_id, schema, counts, rows: Rows { loaded, places }, raw })
    }

    /// The lines in pieces, the metadata in the last. Each piece is made when it is asked for.
    pub fn pieces(self) -> BoxStream<'static, Result<Bytes, ServeError>> {
        let trailer = self.trailer();
        let (rows, raw) = (self.rows, self.raw);
        let mut next = 0;
        let mut trailer = Some(trailer);
        let pieces = std::iter::from_fn(move || {
            // The row that fills a piece is still in it.
            let mut wanted = 0;
            for (load, row) in &rows.places[next..] {
                if wanted >= PIECE {
                    break;
                }
                wanted += rows.loaded[*load].rows[*row].line.len();
            }
            wanted += trailer.as_ref().map_or(0, Vec::len);
            let mut piece = BytesMut::with_capacity(wanted);
            while piece.len() < PIECE
                && let Some((load, row)) = rows.places.get(next)
            {
                piece.extend_from_slice(&rows.loaded[*load].rows[*row].line);
                next += 1;
            }
            raw.inc_by(piece.len() as u64);
            if next == rows.places.len() && piece.len() < PIECE {
                piece.extend_from_slice(&trailer.take().unwrap_or_default());
            }
            (!piece.is_empty()).then(|| Ok(piece.freeze()))
        });
        stream::iter(pieces).boxed()
    }

    fn trailer(&self) -> Vec<u8> {
        let models = self.schema.catalog.models();
        Metadata {
            method: Method::Postgres,
            epoch: &self.epoch,
            last_sync_id: self.last_sync_id,
            snapshot_sync_id: None,
            schema_hash: &self.schema.hash,
            subscribed_sync_groups: self.caller.grants.as_slice(),
            returned_models_count: (self.counts.iter())
                .map(|(model, count)| (models[*model].name.as_str(), *count))
                .collect(),
        }
        .line()
    }
}
