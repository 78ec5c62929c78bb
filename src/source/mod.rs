//! The application's database, as the rest of the service sees it: the first of the two seams.
//!
//! [`Source`] is the contract; `postgres` is what serves, `memory` what tests and simulations use. All SQL lives below
//! this room.

pub mod memory;
pub mod migrate;
pub mod postgres;
pub mod proposal;
pub mod sql;

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::stream::BoxStream;

use crate::model::{Epoch, Grants, GroupSet, Letter, Org, Schema, SyncGroup, SyncId, User, Watermark};

/// Reads the application's rows and its change log. Never writes business data.
///
/// Every method may be called from many tasks at once; the implementation bounds how many connections that takes and
/// lets the rest wait. A call whose future is dropped stops its work and gives its connection back or closes it.
#[async_trait]
pub trait Source: Send + Sync + 'static {
    /// The catalog as the tables are now. Cheap: looked up at start and again when a scan finds other columns.
    ///
    /// # Errors
    /// [`SourceError::Schema`] when the tables don't fit the catalog, or what keeps the database from answering.
    async fn schema(&self) -> Result<Arc<Schema>, SourceError>;

    /// The same, read from the tables after the call, and in force from then on.
    ///
    /// # Errors
    /// As [`Self::schema`].
    async fn schema_now(&self) -> Result<Arc<Schema>, SourceError>;

    /// The highest sync id below which no transaction is open. One probe serves all who ask while it waits to begin. An
    /// answer is from a probe that began after the call, unless a writer stays open: then it is the last one found.
    ///
    /// # Errors
    /// [`SourceError::Held`] when a writer stayed open past the limit and none was found before.
    async fn watermark(&self) -> Result<Watermark, SourceError>;

    /// Which history the database is in now. Never waits for writers.
    ///
    /// # Errors
    /// What keeps the database from answering.
    async fn epoch(&self) -> Result<Epoch, SourceError>;

    /// Opens one consistent read of an org, tagged with a watermark taken before the read began. Rows of explicit
    /// models are not in it. Nothing is read until the batches are polled; dropping them ends the transaction.
    ///
    /// # Errors
    /// Those of [`Self::watermark`] and [`Self::schema`], and [`SourceError::Busy`] when the tables could not be
    /// locked in time.
    async fn scan(&self, org: &Org) -> Result<Scan, SourceError>;

    /// Reads the rows of one model and org whose id, or whose key, is one of the given values, as they are now:
    /// everything that committed before the call is in the answer. Rows that the model's filter leaves out are not
    /// there. A value that the column can't hold finds nothing; it never fails the statement. Explicit models can be
    /// asked for.
    ///
    /// # Errors
    /// [`SourceError::TooLarge`] when the lines take more than `max_bytes`; those of [`Self::schema`]; what keeps the
    /// database from answering.
    ///
    /// # Panics
    /// When `model` or the key's index is not one of the catalog's.
    async fn lookup(&self, lookup: &Lookup) -> Result<Found, SourceError>;

    /// Reads the part of an org's log that a caller with some groups must hear of: the last action of each object, oldest
    /// first.
    ///
    /// # Errors
    /// [`SourceError::Trimmed`] when the log no longer reaches back to the beginning of the range; what keeps the
    /// database from answering.
    async fn actions(&self, range: &ActionRange) -> Result<Vec<Action>, SourceError>;

    /// Names the objects of an org that the log tells anything of in a range, whoever may see them: each once, in no order.
    /// Those of explicit models and of models that the catalog does not have are left out. The groups of the range don't
    /// matter; its limit is of objects.
    ///
    /// # Errors
    /// As [`Self::actions`].
    async fn changed(&self, range: &ActionRange) -> Result<Vec<Object>, SourceError>;

    /// The groups that the membership tables give each of these users, in their order; without the org's and the user's
    /// own. Read on the primary, after the call.
    ///
    /// # Errors
    /// What keeps the database from answering. A user that can't be one has no groups.
    async fn memberships(&self, members: &[(Org, User)]) -> Result<Vec<Vec<SyncGroup>>, SourceError>;

    /// For each org, how many actions its log holds after a sync id, counted up to `cap`; `cap` where the log does not
    /// reach back to that id.
    ///
    /// # Errors
    /// What keeps the database from answering.
    async fn pending(&self, orgs: &[(Org, SyncId)], cap: u64) -> Result<Vec<u64>, SourceError>;

    /// Removes actions from the log, the oldest first: those up to a sync id that were logged longer ago than `age`, at
    /// most so many, and raises the log's floor with them. Also removes what triggers left for each other and nobody needs
    /// any more. Gives how many actions there were. Does nothing to a log that the application writes.
    ///
    /// # Errors
    /// [`SourceError::Failed`] when the role may not; what keeps the database from answering.
    async fn trim(&self, up_to: SyncId, age: Duration, most: u64) -> Result<u64, SourceError>;

    /// How long the log is now. Cheap: the actions are estimated by the server's own statistics.
    ///
    /// # Errors
    /// What keeps the database from answering.
    async fn log_size(&self) -> Result<LogSize, SourceError>;

    /// The models, by index, whose changes are not all logged, each with the fault and the mend: nothing of them may be
    /// served. A fault is noticed within seconds.
    ///
    /// # Errors
    /// What keeps the database from answering.
    async fn unlogged(&self) -> Result<Arc<BTreeMap<usize, SourceError>>, SourceError>;

    /// Every org that exists now, in no order.
    ///
    /// # Errors
    /// What keeps the database from answering.
    async fn orgs(&self) -> Result<Vec<Org>, SourceError>;
}

/// One consistent read of an org.
pub struct Scan {
    /// True of every row: what committed up to here is in, at least.
    pub watermark: Watermark,
    /// How the rows look.
    pub schema: Arc<Schema>,
    /// The group sets that rows refer to. Grows while batches come.
    pub sets: Arc<GroupSets>,
    /// About how many rows will come, from the planner's statistics; for progress only.
    pub estimated_rows: u64,
    /// The rows. Models may come interleaved; the order of rows within a model is free.
    pub batches: BoxStream<'static, Result<RowBatch, SourceError>>,
}

/// Some rows of one model: an arena of encoded lines. At most about 256 KiB, unless one row is longer.
#[derive(Debug)]
pub struct RowBatch {
    /// Index of the model in the schema.
    pub model: usize,
    /// The lines one after the other, each with its line break.
    pub lines: Vec<u8>,
    /// The rows, in the order of the lines.
    pub rows: Vec<RowRef>,
    /// Whether rows of one group set come one after the other, so that a frame is whole once another set begins.
    pub by_set: bool,
}

/// One row of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RowRef {
    /// Where its line ends in the arena; it begins where the one before ended.
    pub end: u32,
    /// The groups it carries.
    pub set: SetId,
}

/// Names a group set within one [`GroupSets`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SetId(pub u32);

/// The group sets of one scan, each once. Memory: one entry a distinct set, so no more than the rows have.
#[derive(Debug, Default)]
pub struct GroupSets {
    table: Mutex<SetTable>,
}

#[derive(Debug, Default)]
struct SetTable {
    ids: HashMap<GroupSet, SetId>,
    sets: Vec<GroupSet>,
}

impl GroupSets {
    /// The id of a set, a new one if it was not seen before.
    pub fn intern(&self, set: GroupSet) -> SetId {
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(id) = table.ids.get(&set) {
            return *id;
        }
        let id = SetId(u32::try_from(table.sets.len()).expect("fewer than 2^32 group sets"));
        table.sets.push(set.clone());
        table.ids.insert(set, id);
        id
    }

    /// The set with this id.
    ///
    /// # Panics
    /// When the id is from another table.
    pub fn get(&self, id: SetId) -> GroupSet {
        self.table.lock().unwrap_or_else(PoisonError::into_inner).sets[id.0 as usize].clone()
    }
}

/// Which part of the log to read.
#[derive(Clone, Debug)]
pub struct ActionRange {
    /// The org.
    pub org: Org,
    /// Actions after this one,
    pub after: SyncId,
    /// up to this one, which no open transaction may be below.
    pub to: SyncId,
    /// Only actions that concern one of these groups.
    pub groups: Grants,
    /// How many at most, from the oldest on.
    pub limit: usize,
}

/// How long the log is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogSize {
    /// About how many actions it holds.
    pub actions: u64,
    /// Bytes on the disk, its indexes included.
    pub bytes: u64,
}

/// One entry of the log. Memory: about 100 bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Action {
    /// Its sync id.
    pub id: SyncId,
    /// What it says happened.
    pub letter: Letter,
    /// The object; `None` for a change of memberships.
    pub object: Option<Object>,
}

/// Names a row.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Object {
    /// The model, by index.
    pub model: usize,
    /// The model id, as its canonical text.
    pub id: Arc<str>,
}

/// What to look up: rows of one model of one org by one column.
#[derive(Clone, Debug)]
pub struct Lookup {
    /// The org.
    pub org: Org,
    /// The model, by index.
    pub model: usize,
    /// The column.
    pub by: By,
    /// Its values, as their canonical texts, each once.
    pub values: Vec<Arc<str>>,
    /// How long all lines together may be.
    pub max_bytes: usize,
}

/// A column that rows are looked up by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum By {
    /// The model id.
    Id,
    /// One of the model's `keys` in the catalog, by index. A column of arrays is asked by one of its elements.
    Key(usize),
}

/// What was found.
#[derive(Debug)]
pub struct Found {
    /// How the rows look.
    pub schema: Arc<Schema>,
    /// The rows, each once, in no order.
    pub rows: Vec<FoundRow>,
    /// For each of the values asked for, in their order, the rows it found, by index. A row of an array column may stand
    /// at several.
    pub matches: Vec<Vec<usize>>,
}

/// A row as it was when it was read. Cheap to clone; a clone keeps the memory of all rows found with it.
#[derive(Clone, Debug)]
pub struct FoundRow {
    /// The model id, as its canonical text.
    pub id: Arc<str>,
    /// Its line, with the break.
    pub line: Bytes,
    /// The groups it carries; empty: nobody sees it.
    pub groups: GroupSet,
}

/// Why the source did not answer. Cheap to clone: everyone who waited gets it.
#[derive(Debug, Clone, thiserror::Error)]
pub enum SourceError {
    /// The database can't be reached, or the connection died.
    #[error("the database does not answer")]
    Unavailable(#[source] Cause),
    /// Locks or connections were not to be had within the limit.
    #[error("the database is busy: {0}")]
    Busy(String),
    /// A writer has kept the watermark back for longer than the limit.
    #[error("the watermark is held back by {holder}")]
    Held {
        /// The session, as `pg_stat_activity` knows it.
        holder: String,
    },
    /// The tables don't fit the catalog: the place, the fault and the mend.
    #[error("{0}")]
    Schema(String),
    /// The log was trimmed, or was not whole, beyond what was asked for.
    #[error("the log holds nothing up to {floor}")]
    Trimmed {
        /// The highest sync id up to which actions may be missing.
        floor: SyncId,
    },
    /// There is more than was asked for at most, in bytes.
    #[error("the rows take more than {0} bytes")]
    TooLarge(usize),
    /// The org's id can't be one: it is not of the type of the org column.
    #[error("`{0}` can't be the id of an org")]
    Org(String),
    /// The database refused a statement, or gave a value that can't be encoded.
    #[error("{doing} failed")]
    Failed {
        /// What was being done.
        doing: String,
        /// The database's word.
        #[source]
        cause: Cause,
    },
}

/// Any cause, kept for the log.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// A cause that several callers get.
pub type Cause = Arc<dyn std::error::Error + Send + Sync>;

impl SourceError {
    /// The database can't be reached, because of this.
    pub fn unavailable(cause: impl Into<BoxError>) -> Self {
        Self::Unavailable(Arc::from(cause.into()))
    }

    /// A statement failed, because of this.
    pub fn failed(doing: impl Into<String>, cause: impl Into<BoxError>) -> Self {
        Self::Failed { doing: doing.into(), cause: Arc::from(cause.into()) }
    }
}
