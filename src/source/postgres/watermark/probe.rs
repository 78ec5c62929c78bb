//! One probe of the watermark, on one connection.

use std::collections::BTreeSet;
use std::time::Duration;

use tokio::time::Instant;
use tokio_postgres::{Client, Row, Statement};

use super::{Answer, POLL, Report};
use crate::model::{Epoch, SyncId, Watermark};
use crate::source::SourceError;
use crate::source::postgres::error::classify;
use crate::source::postgres::log::Log;
use crate::source::postgres::pool::Lease;

/// How long the WAL is given to be flushed by the writers' own commits before the probe asks for it.
const FLUSH_PATIENCE: Duration = Duration::from_millis(2);

/// After this long a waiting probe says in the log whom it waits for.
const SILENCE: Duration = Duration::from_secs(1);

/// The log and what inherits from it, from the quoted name `$1`.
const LOG_TABLES: &str = "WITH RECURSIVE log(oid) AS (
    SELECT to_regclass($1)::oid
    UNION SELECT i.inhrelid FROM pg_catalog.pg_inherits i JOIN log ON i.inhparent = log.oid)";

/// Locks of writers on the log, as `l`; after [`LOG_TABLES`]. Those are as the statement's snapshot has them. What was made a
/// partition since is known by its ancestors: functions of the catalog look at it as it is when they are called.
const WRITERS: &str = "FROM pg_catalog.pg_locks l
    WHERE l.locktype = 'relation' AND l.mode = 'RowExclusiveLock' AND l.granted
      AND l.database = (SELECT oid FROM pg_catalog.pg_database WHERE datname = current_database())
      AND (l.relation IN (SELECT oid FROM log)
           OR (SELECT relkind = 'p' FROM pg_catalog.pg_class WHERE oid = to_regclass($1))
              AND EXISTS (SELECT FROM pg_partition_ancestors(l.relation) AS above(id) WHERE above.id = to_regclass($1)))";

/// The epoch, from the quoted names `$1` of the log and `$2` of its sequence. `pg_control_checkpoint` learns of a promotion
/// only at the next checkpoint; names of WAL files tell at once.
const EPOCH: &str = "concat_ws('-', (SELECT system_identifier FROM pg_control_system()),
    substr(pg_walfile_name(pg_current_wal_insert_lsn()), 1, 8),
    (SELECT oid FROM pg_catalog.pg_database WHERE datname = current_database()),
    to_regclass($1)::oid, pg_relation_filenode(to_regclass($2)))";

/// The connection leads to a server that replays another's log.
#[derive(Debug, thiserror::Error)]
#[error("the server is in recovery: the URL leads to a standby, it must lead to the primary")]
pub struct Standby;

/// The statements of a probe. One that nobody holds back is a single round trip.
#[derive(Debug)]
struct Statements {
    /// The epoch and the highest id that was drawn; then who writes to the log; then what [`Self::written`] tells.
    probe: Statement,
    /// Up to where WAL is written, whether that is flushed, and the epoch.
    written: Statement,
}

impl Statements {
    /// Prepares them on a connection that is not kept.
    ///
    /// # Errors
    /// What PostgreSQL says.
    async fn prepare(client: &Client, log: &Log) -> Result<Self, SourceError> {
        let [probe, written] = Self::texts(log);
        let (probe, written) =
            tokio::try_join!(client.prepare(&probe), client.prepare(&written)).map_err(unprepared)?;
        Ok(Self { probe, written })
    }

    /// Finds them prepared on a pool's connection, or prepares them.
    ///
    /// # Errors
    /// What PostgreSQL says.
    async fn of(lease: &Lease, log: &Log) -> Result<Self, SourceError> {
        let [probe, written] = Self::texts(log);
        let (probe, written) =
            tokio::try_join!(lease.prepared("", &probe), lease.prepared("", &written)).map_err(unprepared)?;
        Ok(Self { probe, written })
    }

    fn texts(log: &Log) -> [String; 2] {
        let (sequence, recovering) = (&log.sequence, "pg_is_in_recovery()");
        [
            // What is read when: each step hangs on a value of the one before, and so can't be evaluated ahead of it.
            // A join whose inner side refers to the outer is a nested loop, and a select with OFFSET is not merged into
            // the one around it. Neither the sequence's row nor the locks are those of the statement's snapshot, they are
            // looked at when they are read. On a standby nothing but the first step is evaluated.
            format!(
                "{LOG_TABLES}
                 SELECT drawn.epoch, drawn.id, open.writers, written.lsn::text,
                        CASE WHEN written.lsn IS NOT NULL THEN pg_current_wal_flush_lsn() >= written.lsn END,
                        CASE WHEN written.lsn IS NOT NULL THEN {EPOCH} END
                 FROM (SELECT CASE WHEN NOT {recovering} THEN {EPOCH} END AS epoch,
                              CASE WHEN is_called THEN last_value ELSE last_value - 1 END AS id
                       FROM {sequence} OFFSET 0) drawn
                 CROSS JOIN LATERAL (SELECT coalesce(array_agg(DISTINCT l.virtualtransaction), '{{}}') AS writers
                       {WRITERS} AND drawn.epoch <> '') open
                 CROSS JOIN LATERAL (
                       SELECT CASE WHEN drawn.epoch <> '' AND open.writers IS NOT NULL
                                   THEN pg_current_wal_insert_lsn() END AS lsn OFFSET 0) written"
            ),
            // The inner select is evaluated once. On a standby it fails: the first statement has told so by then.
            format!(
                "SELECT w.lsn::text, pg_current_wal_flush_lsn() >= w.lsn, {EPOCH}
                 FROM (SELECT pg_current_wal_insert_lsn() AS lsn OFFSET 0) w"
            ),
        ]
    }
}

fn unprepared(error: tokio_postgres::Error) -> SourceError {
    classify("preparing to read the watermark", error)
}

/// One probe's connection and what it asks there.
struct Asker<'a> {
    client: &'a Client,
    statements: &'a Statements,
    log: &'a Log,
}

/// What [`Statements::probe`] tells.
struct Probed {
    epoch: Epoch,
    /// Every id up to this one was drawn by then.
    sync_id: SyncId,
    /// The transactions that wrote to the log after that.
    writers: BTreeSet<String>,
    /// Read after those.
    written: Written,
}

/// What [`Statements::written`] tells.
struct Written {
    /// WAL was written up to here.
    up_to: String,
    /// Whether that is on disk.
    flushed: bool,
    /// The epoch, then.
    epoch: Epoch,
}

impl Asker<'_> {
    async fn probe(&self) -> Result<Probed, SourceError> {
        let row = self.client.query_one(&self.statements.probe, &[&self.log.table, &self.log.sequence]).await;
        let row = row.map_err(|error| classify("reading the log's sequence and its writers", error))?;
        let Some(epoch) = row.get::<_, Option<&str>>(0) else { return Err(SourceError::unavailable(Standby)) };
        Ok(Probed {
            epoch: Epoch::new(epoch),
            sync_id: SyncId(u64::try_from(row.get::<_, i64>(1)).unwrap_or_default()),
            writers: row.get::<_, Vec<String>>(2).into_iter().collect(),
            written: Written::of(&row, 3),
        })
    }

    async fn written(&self) -> Result<Written, SourceError> {
        let row = self.client.query_one(&self.statements.written, &[&self.log.table, &self.log.sequence]).await;
        let row = row.map_err(unflushed)?;
        Ok(Written::of(&row, 0))
    }
}

impl Written {
    /// From the columns of a row, from `first` on.
    fn of(row: &Row, first: usize) -> Self {
        let epoch: &str = row.get(first + 2);
        Self { up_to: row.get(first), flushed: row.get(first + 1), epoch: Epoch::new(epoch) }
    }
}

fn unflushed(error: tokio_postgres::Error) -> SourceError {
    classify("waiting for the WAL to be flushed", error)
}

/// Which history the database is in now. Waits for nobody.
///
/// # Errors
/// As [`probe`].
pub async fn epoch(lease: &Lease, log: &Log) -> Result<Epoch, SourceError> {
    let statements = Statements::of(lease, log).await?;
    Ok(Asker { client: lease, statements: &statements, log }.probe().await?.epoch)
}

/// Finds the watermark now, on a connection that is in no transaction. Waits for writers at most `limit`, and as long
/// again for the WAL. Cancel safe.
///
/// # Errors
/// [`SourceError::Held`] when a writer stayed open for longer, with its session's name; [`SourceError::Unavailable`] with
/// [`Standby`] as its cause when the server is no primary; else what PostgreSQL says.
pub async fn probe(client: &Client, log: &Log, limit: Duration) -> Result<Watermark, SourceError> {
    let statements = Statements::prepare(client, log).await?;
    probe_aloud(&Asker { client, statements: &statements, log }, limit, &Report::default()).await
}

/// The same, telling meanwhile what it finds.
async fn probe_aloud(asker: &Asker<'_>, limit: Duration, report: &Report) -> Result<Watermark, SourceError> {
    loop {
        let Probed { epoch, sync_id, writers, written } = asker.probe().await?;
        report.progress.send_modify(|progress| {
            (progress.probing, progress.held) = (Some(epoch.clone()), !writers.is_empty());
        });
        let written = if writers.is_empty() {
            written
        } else {
            wait_for_writers(asker, writers, limit, report).await?;
            asker.written().await?
        };
        // A log that was made anew or restarted meanwhile has drawn other ids than those that were read.
        if wait_for_wal(asker, written, limit).await? == epoch {
            return Ok(Watermark { epoch, sync_id });
        }
    }
}

async fn wait_for_writers(
    asker: &Asker<'_>,
    mut waited_for: BTreeSet<String>,
    limit: Duration,
    report: &Report,
) -> Result<(), SourceError> {
    let began = Instant::now();
    let mut pause = POLL.0;
    let mut silent = true;
    while !waited_for.is_empty() {
        if began.elapsed() >= limit || silent && began.elapsed() >= SILENCE {
            let holder = holder(asker.client, asker.log, &waited_for).await?;
            let Some(Holder { session, user, application }) = holder else { return Ok(()) };
            if began.elapsed() >= limit {
                return Err(SourceError::Held { holder: session });
            }
            silent = false;
            tracing::warn!(holder = session, "the watermark is held back by an open transaction");
            report.metrics.holder.is(&user, &application);
            report.progress.send_modify(|progress| progress.holder = Some(session));
        }
        report.metrics.held_seconds.set(began.elapsed().as_secs_f64());
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(POLL.1);
        let open = asker.probe().await?.writers;
        waited_for.retain(|writer| open.contains(writer));
    }
    Ok(())
}

/// A writer that is waited for.
struct Holder {
    /// Everything that helps to find it.
    session: String,
    /// Whose it is.
    user: String,
    /// What it says of itself; nothing, for a prepared transaction.
    application: String,
}

/// The oldest of some writers; `None` when they have all ended meanwhile.
async fn holder(client: &Client, log: &Log, writers: &BTreeSet<String>) -> Result<Option<Holder>, SourceError> {
    let sql = format!(
        "{LOG_TABLES}
         SELECT CASE WHEN l.pid IS NULL
                     THEN coalesce(format('the prepared transaction %L of user %s, prepared %s s ago', p.gid, p.owner,
                                          floor(extract(epoch FROM clock_timestamp() - p.prepared))),
                                   'a prepared transaction')
                     ELSE format('pid %s, user %s, application %L, %s', l.pid, a.usename, a.application_name,
                                 coalesce(format('open for %s s', floor(extract(epoch FROM
                                     clock_timestamp() - a.xact_start))), 'of unknown age')) END,
                coalesce(a.usename, p.owner, '')::text, coalesce(a.application_name, '')
         FROM (SELECT DISTINCT l.pid, l.virtualtransaction {WRITERS} AND l.virtualtransaction = ANY($2)) l
         LEFT JOIN pg_catalog.pg_stat_activity a ON a.pid = l.pid
         LEFT JOIN pg_catalog.pg_locks x ON x.virtualtransaction = l.virtualtransaction
              AND x.locktype = 'transactionid' AND x.granted AND l.pid IS NULL
         LEFT JOIN pg_catalog.pg_prepared_xacts p ON p.transaction = x.transactionid
         ORDER BY coalesce(a.xact_start, p.prepared) NULLS LAST LIMIT 1"
    );
    let writers: Vec<&str> = writers.iter().map(String::as_str).collect();
    let row = client
        .query_opt(&sql, &[&log.table, &writers])
        .await
        .map_err(|error| classify("asking who holds the watermark back", error))?;
    Ok(row.map(|row| Holder { session: row.get(0), user: row.get(1), application: row.get(2) }))
}

/// Waits until the WAL that was written is on disk; gives the epoch that was found with it.
async fn wait_for_wal(asker: &Asker<'_>, written: Written, limit: Duration) -> Result<Epoch, SourceError> {
    let Written { up_to, mut flushed, epoch } = written;
    let client = asker.client;
    let began = Instant::now();
    let mut pause = POLL.0;
    let mut asked = false;
    while !flushed {
        if began.elapsed() >= limit {
            return Err(SourceError::Busy(format!("the WAL was not flushed up to {up_to} within {limit:?}")));
        }
        if !asked && began.elapsed() >= FLUSH_PATIENCE {
            // Without a commit the last page may stay unflushed for as long as some transaction is open. A commit of
            // our own, of a message that nobody reads, flushes it. The role may lack the right, which only means that
            // we wait for the server's own pace.
            asked = true;
            let commit = "BEGIN; SET LOCAL synchronous_commit = local;
                          SELECT pg_logical_emit_message(true, 'headstart', ''); COMMIT";
            if let Err(error) = client.batch_execute(commit).await {
                if error.is_closed() {
                    return Err(unflushed(error));
                }
                tracing::debug!(%error, "the WAL could not be asked to be flushed");
                client.batch_execute("ROLLBACK").await.map_err(unflushed)?;
            }
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(POLL.1);
        let sql = "SELECT pg_current_wal_flush_lsn() >= $1::text::pg_lsn";
        flushed = client.query_one(sql, &[&up_to]).await.map_err(unflushed)?.get(0);
    }
    Ok(epoch)
}

/// Probes for the prober: however long writers stay open.
///
/// # Errors
/// As [`probe`].
pub async fn probe_patiently(lease: &Lease, log: &Log, report: &Report) -> Answer {
    let statements = Statements::of(lease, log).await?;
    probe_aloud(&Asker { client: lease, statements: &statements, log }, Duration::MAX, report).await
}
