//! One consistent read of an org, over a few connections.
//!
//! Order matters twice. First the locks, then the snapshot: a rewrite (ALTER TYPE, TRUNCATE) that commits between
//! the two would show an older snapshot an empty table (PostgreSQL docs, "Caveats" of chapter 13), while LOCK itself
//! takes no snapshot (docs, LOCK: a REPEATABLE READ transaction must lock before its first SELECT;
//! `analyze_requires_snapshot` in `src/backend/parser/analyze.c`). So nothing that is planned may come before the
//! LOCK, not even `set_config`. Then the columns, read within the snapshot and held against those the caller expects.
//!
//! The first connection leads: it locks, takes the snapshot and exports it. Others join if they can be had at once
//! and get the same locks at once: a lock request that waits would stand behind a rewrite that waits for the leader,
//! and the two would wait for each other where PostgreSQL can't see it. The leader alone is enough to finish, so a
//! scan never waits for a second connection while it holds the first. An importing transaction keeps the snapshot by
//! itself, so the leader need not outlive the others. All of it works on a hot standby: ACCESS SHARE may be taken in
//! recovery, and snapshots may be exported there.

use std::collections::{BTreeSet, VecDeque};
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, PoisonError};

use async_stream::stream;
use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::Type;
use tokio_util::sync::CancellationToken;

use crate::model::catalog::{Catalog, TableName};
use crate::model::{Org, Schema};
use crate::source::postgres::columns::{self, Layout, unfit};
use crate::source::postgres::copy::Copy;
use crate::source::postgres::error::classify;
use crate::source::postgres::plan::{self, Planned};
use crate::source::postgres::pool::{Lease, Pool, server_milliseconds};
use crate::source::{GroupSets, RowBatch, SourceError, sql};
use crate::task::Tasks;

/// Batches that wait for the reader; past that the COPYs wait, and PostgreSQL with them.
const QUEUE: usize = 4;

/// How a scan reads.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ScanSettings {
    /// Connections one scan uses at most, out of its pool. Each reads whole models; more than the server has cores to
    /// spare only makes it busier.
    pub connections: NonZeroUsize,
    /// Milliseconds to wait for the locks on the tables before the answer is "busy". Whoever wants to write those
    /// tables waits behind a rewrite that waits for us, so keep it short.
    pub lock_timeout_ms: u64,
    /// Milliseconds one model may take, which also bounds how long a scan holds its snapshot. 0: no limit.
    pub statement_timeout_ms: u64,
    /// Bytes of a batch of encoded rows. A scan holds at most two for each connection, four that wait and the one that
    /// its reader works on.
    pub batch_bytes: NonZeroUsize,
}

impl Default for ScanSettings {
    fn default() -> Self {
        Self {
            connections: NonZeroUsize::new(2).expect("two is not zero"),
            lock_timeout_ms: 5_000,
            statement_timeout_ms: 1_800_000,
            batch_bytes: NonZeroUsize::new(256 * 1024).expect("a quarter MiB is not zero"),
        }
    }
}

/// A scan that is ready to read; its transactions are open.
pub struct Opened {
    /// How the rows look.
    pub schema: Arc<Schema>,
    /// The group sets the rows refer to.
    pub sets: Arc<GroupSets>,
    /// About how many rows will come, by the planner's statistics.
    pub estimated_rows: u64,
    /// The rows. Nothing is read until it is polled. Dropping it cancels what runs and ends the transactions. An error
    /// ends it; it never ends without one unless every row was in it.
    pub batches: BoxStream<'static, Result<RowBatch, SourceError>>,
}

/// Why a scan could not begin.
#[derive(Debug, thiserror::Error)]
pub enum ScanError {
    /// The tables no longer are what the caller expects: read the layout again and try once more.
    #[error("the tables have changed since their columns were read")]
    Changed,
    /// Anything else.
    #[error(transparent)]
    Source(#[from] SourceError),
}

/// Locks the tables, takes a snapshot and prepares to read an org, on a connection that is in no transaction and further
/// ones of its pool.
///
/// Cancel safe: dropping the future closes its connections.
///
/// # Errors
/// [`ScanError::Changed`] when the tables are not as in `expected`; [`SourceError::Org`] when the id is not the
/// canonical text of one; [`SourceError::Busy`] when locks or connections were not to be had in time.
pub async fn open(
    leader: Lease,
    tasks: &Tasks,
    expected: &Layout,
    org: &Org,
    settings: &ScanSettings,
) -> Result<Opened, ScanError> {
    let catalog = &expected.schema.catalog;
    let tables = tables(catalog);
    let begin = format!("{}; {}", begin(settings), sql::lock(tables.iter().copied(), true));
    leader.batch_execute(&begin).await.map_err(lock_error)?;
    let layout = columns::read(&*leader, catalog).await?.map_err(|faults| unfit(&faults))?;
    if layout.schema.hash != expected.schema.hash {
        return Err(ScanError::Changed);
    }
    set_org(&leader, org, &layout.org_type).await?;
    make_room(&leader).await?;
    let sets = Arc::new(GroupSets::default());
    let Planned { copies, estimated_rows } = plan::plan(&leader, &layout, org, &sets).await?;
    let connections = settings.connections.get().min(copies.len());
    let readers = gather(leader, connections, &tables, org, settings).await?;
    let work = Arc::new(Work { copies: Mutex::new(copies), sets: sets.clone(), batch_bytes: settings.batch_bytes });
    Ok(Opened { schema: layout.schema, sets, estimated_rows, batches: read(tasks.clone(), readers, work) })
}

/// Every table a scan reads, in the one order in which all scans lock them.
fn tables(catalog: &Catalog) -> BTreeSet<&TableName> {
    let scanned = (0..catalog.models().len()).filter(|model| catalog.models()[*model].load.in_snapshot());
    scanned.flat_map(|model| catalog.lineage(model).chain).map(|model| &catalog.models()[model].table).collect()
}

fn begin(settings: &ScanSettings) -> String {
    format!(
        "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SET LOCAL lock_timeout = {}; SET LOCAL statement_timeout = {}",
        server_milliseconds(settings.lock_timeout_ms),
        server_milliseconds(settings.statement_timeout_ms),
    )
}

/// A table that is gone, or is none any more, was there when the caller looked.
fn lock_error(error: tokio_postgres::Error) -> ScanError {
    let changed = [SqlState::UNDEFINED_TABLE, SqlState::INVALID_SCHEMA_NAME, SqlState::WRONG_OBJECT_TYPE];
    match error.code() {
        Some(code) if changed.contains(code) => ScanError::Changed,
        _ => classify("locking the tables", error).into(),
    }
}

/// Names the org for the rest of the transaction and checks that it can be one. Only the canonical text is taken:
/// another spelling of the same id would give its rows other sync groups.
async fn set_org(lease: &Lease, org: &Org, org_type: &str) -> Result<(), SourceError> {
    let failed = |error| classify("naming the org", error);
    lease.query_typed(sql::SET_ORG, &[(&org.as_str(), Type::TEXT)]).await.map_err(failed)?;
    let canonical = format!("SELECT ({})::pg_catalog.text", sql::current_org(org_type));
    match lease.query_typed(&canonical, &[]).await {
        Ok(rows) if rows.iter().all(|row| row.get::<_, &str>(0) == org.as_str()) => Ok(()),
        Ok(_) => Err(SourceError::Org(org.to_string())),
        // Class 22, data exceptions; a domain may refuse it too.
        Err(error) => match error.code() {
            Some(code) if code.code().starts_with("22") || *code == SqlState::CHECK_VIOLATION => {
                Err(SourceError::Org(org.to_string()))
            }
            _ => Err(failed(error)),
        },
    }
}

async fn make_room(lease: &Lease) -> Result<(), SourceError> {
    let made = lease.query_typed(sql::ROOM_FOR_JOINS, &[]).await;
    made.map(|_| ()).map_err(|error| classify("making room for joins", error))
}

/// The leader and those that can join it at once.
async fn gather(
    leader: Lease,
    connections: usize,
    tables: &BTreeSet<&TableName>,
    org: &Org,
    settings: &ScanSettings,
) -> Result<Vec<Lease>, SourceError> {
    if connections < 2 {
        return Ok(vec![leader]);
    }
    let exported = leader.query_typed("SELECT pg_catalog.pg_export_snapshot()", &[]).await;
    let exported = exported.map_err(|error| classify("exporting the snapshot", error))?;
    let snapshot: &str = exported.first().map_or("", |row| row.get(0));
    let pool = leader.pool().clone();
    let mut readers = vec![leader];
    while readers.len() < connections {
        match join(&pool, snapshot, tables, org, settings).await {
            Ok(Some(reader)) => readers.push(reader),
            Ok(None) => break,
            Err(error) => {
                tracing::debug!(error = &error as &dyn std::error::Error, "a scan goes on with fewer connections");
                break;
            }
        }
    }
    Ok(readers)
}

async fn join(
    pool: &Pool,
    snapshot: &str,
    tables: &BTreeSet<&TableName>,
    org: &Org,
    settings: &ScanSettings,
) -> Result<Option<Lease>, SourceError> {
    let Some(lease) = pool.try_get().await? else { return Ok(None) };
    let import = format!("SET TRANSACTION SNAPSHOT '{}'", snapshot.replace('\'', "''"));
    let begin = format!("{}; {import}; {}", begin(settings), sql::lock(tables.iter().copied(), false));
    lease.batch_execute(&begin).await.map_err(|error| classify("joining the snapshot", error))?;
    let named = lease.query_typed(sql::SET_ORG, &[(&org.as_str(), Type::TEXT)]).await;
    named.map_err(|error| classify("naming the org", error))?;
    make_room(&lease).await?;
    Ok(Some(lease))
}

/// What the readers of one scan share.
struct Work {
    /// What is left to read, the largest first.
    copies: Mutex<VecDeque<Copy>>,
    sets: Arc<GroupSets>,
    batch_bytes: NonZeroUsize,
}

type Batches = mpsc::Sender<Result<RowBatch, SourceError>>;

fn read(tasks: Tasks, readers: Vec<Lease>, work: Arc<Work>) -> BoxStream<'static, Result<RowBatch, SourceError>> {
    stream! {
        let (sender, mut batches) = mpsc::channel(QUEUE);
        let stop = tasks.token().child_token();
        // However the stream ends, the readers end with it.
        let _stop = stop.clone().drop_guard();
        let finished = Arc::new(Mutex::new(readers.len()));
        for lease in readers {
            let reader = reader(lease, work.clone(), sender.clone(), stop.clone(), finished.clone());
            tasks.spawn("scan", reader);
        }
        drop(sender);
        while let Some(batch) = batches.recv().await {
            let failed = batch.is_err();
            yield batch;
            if failed {
                return;
            }
        }
        // A reader that was stopped or that panicked says nothing; silence must not pass for the end.
        if *finished.lock().unwrap_or_else(PoisonError::into_inner) > 0 {
            yield Err(SourceError::unavailable("the scan was stopped before its end"));
        }
    }
    .boxed()
}

/// Copies one model after the other until none is left. A lease that is not released is cancelled and closed.
async fn reader(
    lease: Lease,
    work: Arc<Work>,
    batches: Batches,
    stop: CancellationToken,
    unfinished: Arc<Mutex<usize>>,
) {
    let reading = async {
        while let Some(copy) = work.next() {
            copy.run(&lease, &work.sets, work.batch_bytes.get(), &batches).await?;
        }
        lease.batch_execute("COMMIT").await.map_err(|error| classify("ending the scan", error))
    };
    match stop.run_until_cancelled(reading).await {
        None => {}
        Some(Ok(())) => {
            lease.release();
            *unfinished.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
        }
        Some(Err(error)) => {
            drop(lease);
            // A receiver that is gone needs no error.
            let _ = stop.run_until_cancelled(batches.send(Err(error))).await;
        }
    }
}

impl Work {
    fn next(&self) -> Option<Copy> {
        self.copies.lock().unwrap_or_else(PoisonError::into_inner).pop_front()
    }
}
