//! The watermark: the highest sync id below which no transaction is still open.
//!
//! Ids are drawn from a sequence before commit, so a higher id can become visible first, and a reader that trusts
//! `max(id)` loses the late one for good. The rule here needs nothing of the writers but PostgreSQL's own locks:
//!
//! 1. Read the sequence: every id drawn so far is at most L.
//! 2. In a later statement, list who holds `RowExclusiveLock` on the log or one of its partitions. An INSERT takes that
//!    lock before it draws an id and keeps it to the end of its transaction, so whoever drew an id up to L is listed or
//!    has ended. Transactions are told apart by `virtualtransaction`, never by process: prepared ones have none.
//! 3. Wait until every listed transaction has ended.
//! 4. Wait until the WAL written so far is flushed: after a crash the ids of unflushed transactions, and those alone,
//!    are drawn again.
//!
//! Then L is the watermark, for as long as the epoch lasts. (PostgreSQL docs: "Sequence Manipulation Functions" for
//! what a sequence promises, "Explicit Locking" for the lock modes, `pg_locks` for the view.)
//!
//! # Who waits for whom
//! One task probes, on one connection. Callers queue; when a probe begins it takes everyone who waits by then, and
//! whoever comes later waits for the next one, so that no answer is older than its question. A caller that goes away
//! stops nothing. A writer that stays open past the limit fails the probe with its name.

use std::collections::BTreeSet;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep};
use tokio_postgres::types::{Oid, ToSql, Type};
use tokio_postgres::{Client, Row};

use crate::model::catalog::LogTable;
use crate::model::{Epoch, SyncId, Watermark};
use crate::source::postgres::error::classify;
use crate::source::postgres::pool::Pool;
use crate::source::{SourceError, sql};
use crate::task::Tasks;

/// Callers that may wait to be taken by a probe; further ones wait to wait.
const QUEUE: usize = 1024;

/// The first and the longest pause between two looks at what is waited for. PostgreSQL has no call that waits for
/// another session's transaction, or for a flush.
const POLL: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(25));

/// Settings `[watermark]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WatermarkSettings {
    /// Milliseconds a probe waits for open writers before it fails.
    pub held_ms: u64,
}

impl Default for WatermarkSettings {
    /// What `config/headstart.toml` says; a test holds the two together.
    fn default() -> Self {
        Self { held_ms: 10_000 }
    }
}

/// Where the log and its sequence are, looked up once for each connection's use.
#[derive(Clone, Debug)]
struct LogIdentity {
    /// The log and all its partitions.
    relations: Vec<Oid>,
    /// The sequence of its ids, as SQL.
    sequence: String,
}

/// Answers for the watermark. Clones ask the same task.
#[derive(Clone, Debug)]
pub struct Watermarks {
    questions: mpsc::Sender<oneshot::Sender<Result<Watermark, SourceError>>>,
}

impl Watermarks {
    /// Starts the task that probes. It ends with the service.
    pub fn start(pool: Pool, log: LogTable, settings: WatermarkSettings, tasks: &Tasks) -> Self {
        let (questions, mut waiting) = mpsc::channel::<oneshot::Sender<_>>(QUEUE);
        let token = tasks.token().clone();
        tasks.spawn("watermark", async move {
            let mut callers = Vec::new();
            loop {
                let count = tokio::select! {
                    () = token.cancelled() => return,
                    count = waiting.recv_many(&mut callers, QUEUE) => count,
                };
                if count == 0 {
                    return;
                }
                let answer = tokio::select! {
                    () = token.cancelled() => return,
                    answer = probe_pooled(&pool, &log, &settings) => answer,
                };
                for caller in callers.drain(..) {
                    // A caller that went away needs no answer.
                    let _ = caller.send(answer.clone());
                }
            }
        });
        Self { questions }
    }

    /// The watermark, by a probe that begins after this call. Cancel safe.
    ///
    /// # Errors
    /// [`SourceError::Held`] when a writer stayed open past the limit; what keeps the database from answering.
    pub async fn get(&self) -> Result<Watermark, SourceError> {
        let stopping = || SourceError::unavailable("the service is ending");
        let (caller, answer) = oneshot::channel();
        self.questions.send(caller).await.map_err(|_| stopping())?;
        answer.await.map_err(|_| stopping())?
    }
}

async fn probe_pooled(pool: &Pool, log: &LogTable, settings: &WatermarkSettings) -> Result<Watermark, SourceError> {
    let client = pool.get().await?;
    let watermark = probe(&client, log, settings).await?;
    client.release();
    Ok(watermark)
}

/// One probe, on a connection to the primary.
///
/// # Errors
/// As [`Watermarks::get`]; [`SourceError::Schema`] when there is no such log, or the connection reaches a standby.
pub async fn probe(client: &Client, log: &LogTable, settings: &WatermarkSettings) -> Result<Watermark, SourceError> {
    let deadline = Instant::now() + Duration::from_millis(settings.held_ms);
    let identity = identify(client, log).await?;
    let epoch = epoch(client, log).await?;
    let sync_id = last_drawn(client, &identity).await?;
    wait_for_writers(client, writers(client, &identity).await?, &identity, deadline).await?;
    wait_for_flush(client, deadline).await?;
    Ok(Watermark { epoch, sync_id })
}

/// Which history the database is in: system identifier, timeline, database and log table.
///
/// The timeline is read off the name of the WAL file being written, since the control file learns of a promotion only
/// at the next checkpoint.
///
/// # Errors
/// [`SourceError::Schema`] when there is no such log, or the connection reaches a standby.
pub async fn epoch(client: &Client, log: &LogTable) -> Result<Epoch, SourceError> {
    let row = one(client, EPOCH, &[&sql::table(&log.table)], "reading the epoch").await?;
    if row.get("in_recovery") {
        return Err(SourceError::Schema(
            "postgres.url: the server is a standby, where sync ids can't be told from those still open: \
             connect to the primary"
                .into(),
        ));
    }
    let Some(table) = row.get::<_, Option<Oid>>("log") else { return Err(no_log(log)) };
    let (system, timeline, database): (i64, String, Oid) =
        (row.get("system"), row.get("timeline"), row.get("database"));
    Ok(Epoch::new(format!("{:x}-{}-{database:x}-{table:x}", system.cast_unsigned(), timeline.trim_start_matches('0'))))
}

const EPOCH: &str = "
SELECT pg_catalog.pg_is_in_recovery() AS in_recovery,
       (SELECT system_identifier FROM pg_catalog.pg_control_system()) AS system,
       CASE WHEN pg_catalog.pg_is_in_recovery() THEN ''
            ELSE pg_catalog.substr(pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_insert_lsn()), 1, 8)
       END AS timeline,
       (SELECT oid FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database()) AS database,
       pg_catalog.to_regclass($1)::pg_catalog.oid AS log";

/// The sequence belongs to the column (serial, identity) or stands in its default.
const IDENTITY: &str = "
SELECT ARRAY(SELECT relid::pg_catalog.oid FROM pg_catalog.pg_partition_tree(log.oid)
                        UNION SELECT log.oid) AS relations,
       (SELECT pg_catalog.format('%I.%I', n.nspname, s.relname)
          FROM pg_catalog.pg_depend AS d
          JOIN pg_catalog.pg_class AS s ON s.relkind = 'S' AND s.oid IN (d.objid, d.refobjid)
          JOIN pg_catalog.pg_namespace AS n ON n.oid = s.relnamespace
          LEFT JOIN pg_catalog.pg_attrdef AS a ON a.oid = d.objid AND d.classid = 'pg_attrdef'::pg_catalog.regclass
         WHERE (d.refobjid = log.oid AND d.refobjsubid = c.attnum AND d.objid = s.oid AND d.deptype IN ('a', 'i'))
            OR (a.adrelid = log.oid AND a.adnum = c.attnum AND d.refobjid = s.oid)
         LIMIT 1) AS sequence
  FROM (SELECT pg_catalog.to_regclass($1)::pg_catalog.oid AS oid) AS log
  JOIN pg_catalog.pg_attribute AS c ON c.attrelid = log.oid AND c.attname = $2 AND NOT c.attisdropped";

async fn identify(client: &Client, log: &LogTable) -> Result<LogIdentity, SourceError> {
    let parameters = [(sql::table(&log.table), Type::TEXT), (log.id.clone(), Type::TEXT)];
    let parameters: Vec<(&(dyn ToSql + Sync), Type)> =
        parameters.iter().map(|(value, kind)| (value as _, kind.clone())).collect();
    let doing = "looking up the log";
    let rows = client.query_typed(IDENTITY, &parameters).await.map_err(|error| classify(doing, error))?;
    let row = rows.first().ok_or_else(|| no_log(log))?;
    let sequence: Option<String> = row.get("sequence");
    let sequence = sequence.ok_or_else(|| {
        SourceError::Schema(format!(
            "log.id: {}.{} draws its ids from no sequence: make it an identity column",
            log.table, log.id
        ))
    })?;
    Ok(LogIdentity { relations: row.get("relations"), sequence })
}

/// Step 1. A sequence's row is read as it is, not as of a snapshot.
async fn last_drawn(client: &Client, log: &LogIdentity) -> Result<SyncId, SourceError> {
    let statement = format!("SELECT last_value, is_called FROM {}", log.sequence);
    let row = one(client, &statement, &[], "reading the sequence of sync ids").await?;
    let (last, called): (i64, bool) = (row.get(0), row.get(1));
    // Until `is_called` the next id to be drawn is `last_value` itself.
    let last = if called { last } else { last - 1 };
    Ok(SyncId(u64::try_from(last).unwrap_or_default()))
}

/// Step 2.
async fn writers(client: &Client, log: &LogIdentity) -> Result<BTreeSet<String>, SourceError> {
    let parameters: [(&(dyn ToSql + Sync), Type); 1] = [(&log.relations, Type::OID_ARRAY)];
    let rows = client.query_typed(WRITERS, &parameters).await;
    let rows = rows.map_err(|error| classify("listing the writers", error))?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

const WRITERS: &str = "
SELECT DISTINCT virtualtransaction
  FROM pg_catalog.pg_locks
 WHERE locktype = 'relation' AND mode = 'RowExclusiveLock' AND granted AND relation = ANY ($1)
   AND database = (SELECT oid FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database())";

/// Step 3. A transaction that no longer holds the lock has ended, or rolled back to before it took it.
async fn wait_for_writers(
    client: &Client,
    mut open: BTreeSet<String>,
    log: &LogIdentity,
    deadline: Instant,
) -> Result<(), SourceError> {
    let mut pause = POLL.0;
    while let Some(oldest) = open.first() {
        if Instant::now() >= deadline {
            return Err(SourceError::Held { holder: holder(client, oldest).await? });
        }
        sleep(pause).await;
        pause = (pause * 2).min(POLL.1);
        let now = writers(client, log).await?;
        open.retain(|transaction| now.contains(transaction));
    }
    Ok(())
}

/// Step 4.
async fn wait_for_flush(client: &Client, deadline: Instant) -> Result<(), SourceError> {
    let doing = "waiting for the WAL to be flushed";
    let row = one(client, "SELECT pg_catalog.pg_current_wal_insert_lsn()::pg_catalog.text", &[], doing).await?;
    let written: String = row.get(0);
    let mut pause = POLL.0;
    loop {
        let flushed = "SELECT pg_catalog.pg_current_wal_flush_lsn() >= $1::pg_catalog.text::pg_catalog.pg_lsn";
        if one(client, flushed, &[&written], doing).await?.get(0) {
            return Ok(());
        }
        if Instant::now() >= deadline {
            return Err(SourceError::Held { holder: "the WAL, which is not being flushed".into() });
        }
        sleep(pause).await;
        pause = (pause * 2).min(POLL.1);
    }
}

/// Names who holds the watermark back, for the operator.
async fn holder(client: &Client, transaction: &str) -> Result<String, SourceError> {
    let rows = client.query_typed(HOLDER, &[(&transaction, Type::TEXT)]).await;
    let rows = rows.map_err(|error| classify("looking up who holds the watermark", error))?;
    let named = rows.first().and_then(|row| row.get::<_, Option<String>>(0));
    Ok(named.unwrap_or_else(|| format!("transaction {transaction}")))
}

/// A prepared transaction has no process; it is found by its own lock on its transaction id.
const HOLDER: &str = "
SELECT coalesce(
  (SELECT pg_catalog.format('process %s (user %s, application %s, open for %s s)', a.pid, a.usename,
                            pg_catalog.quote_literal(a.application_name),
                            pg_catalog.round(extract(epoch FROM pg_catalog.clock_timestamp() - a.xact_start)))
     FROM pg_catalog.pg_locks AS l JOIN pg_catalog.pg_stat_activity AS a USING (pid)
    WHERE l.virtualtransaction = $1 LIMIT 1),
  (SELECT pg_catalog.format('the prepared transaction %s of %s', pg_catalog.quote_literal(p.gid), p.owner)
     FROM pg_catalog.pg_locks AS l JOIN pg_catalog.pg_prepared_xacts AS p ON p.transaction = l.transactionid
    WHERE l.virtualtransaction = $1 LIMIT 1))";

async fn one(client: &Client, statement: &str, texts: &[&str], doing: &str) -> Result<Row, SourceError> {
    let parameters: Vec<(&(dyn ToSql + Sync), Type)> = texts.iter().map(|text| (text as _, Type::TEXT)).collect();
    let rows = client.query_typed(statement, &parameters).await.map_err(|error| classify(doing, error))?;
    let missing = || SourceError::unavailable(format!("{doing}: the server gave no row"));
    rows.into_iter().next().ok_or_else(missing)
}

fn no_log(log: &LogTable) -> SourceError {
    SourceError::Schema(format!(
        "log.table: there is no table {} with a column {}: run `headstart migrate --apply`",
        log.table, log.id
    ))
}
