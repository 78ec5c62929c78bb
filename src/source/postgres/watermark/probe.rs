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
const FLUSH_PATIENCE: Duration = Duration::from_millis(10);

/// After this long a waiting probe says in the log whom it waits for.
const SILENCE: Duration = Duration::from_secs(1);

/// The log and its partitions, from the quoted name `$1`.
const LOG_TABLES: &str = "WITH RECURSIVE log(oid) AS (
    SELECT to_regclass($1)::oid
    UNION SELECT i.inhrelid FROM pg_catalog.pg_inherits i JOIN log ON i.inhparent = log.oid)";

/// Locks of writers on [`LOG_TABLES`], as `l`.
const WRITERS: &str = "FROM pg_catalog.pg_locks l
    WHERE l.locktype = 'relation' AND l.mode = 'RowExclusiveLock' AND l.granted
      AND l.database = (SELECT oid FROM pg_catalog.pg_database WHERE datname = current_database())
      AND l.relation IN (SELECT oid FROM log)";

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

/// The statements of a probe. They are sent together, so that a probe that nobody holds back is one round trip.
#[derive(Debug)]
struct Statements {
    /// The epoch and the highest id that was drawn.
    drawn: Statement,
    /// Who writes to the log, and after that what [`Self::written`] tells.
    writers: Statement,
    /// Up to where WAL is written, whether that is flushed, and the epoch again.
    written: Statement,
}

impl Statements {
    /// Prepares them on a connection that is not kept.
    ///
    /// # Errors
    /// What PostgreSQL says.
    async fn prepare(client: &Client, log: &Log) -> Result<Self, SourceError> {
        let [drawn, writers, written] = Self::texts(log);
        let (drawn, writers, written) =
            tokio::try_join!(client.prepare(&drawn), client.prepare(&writers), client.prepare(&written))
                .map_err(unprepared)?;
        Ok(Self { drawn, writers, written })
    }

    /// Finds them prepared on a pool's connection, or prepares them.
    ///
    /// # Errors
    /// What PostgreSQL says.
    async fn of(lease: &Lease, log: &Log) -> Result<Self, SourceError> {
        let [drawn, writers, written] = Self::texts(log);
        let (drawn, writers, written) =
            tokio::try_join!(lease.prepared("", &drawn), lease.prepared("", &writers), lease.prepared("", &written))
                .map_err(unprepared)?;
        Ok(Self { drawn, writers, written })
    }

    fn texts(log: &Log) -> [String; 3] {
        let (sequence, recovering) = (&log.sequence, "pg_is_in_recovery()");
        [
            format!(
                "SELECT {recovering}, CASE WHEN NOT {recovering} THEN {EPOCH} END,
                        CASE WHEN is_called THEN last_value ELSE last_value - 1 END FROM {sequence}"
            ),
            // The position is read once the list is complete, because it is asked for with every row of that: of one.
            format!(
                "{LOG_TABLES}, writers AS MATERIALIZED (
                     SELECT coalesce(array_agg(DISTINCT l.virtualtransaction), '{{}}') AS open {WRITERS})
                 SELECT w.open, w.lsn::text, pg_current_wal_flush_lsn() >= w.lsn, {EPOCH}
                 FROM (SELECT open, CASE WHEN open IS NOT NULL THEN pg_current_wal_insert_lsn() END AS lsn
                       FROM writers OFFSET 0) w"
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
    async fn drawn(&self) -> Result<(Epoch, SyncId), SourceError> {
        let row = self
            .client
            .query_one(&self.statements.drawn, &[&self.log.table, &self.log.sequence])
            .await
            .map_err(|error| classify("reading the log's sequence", error))?;
        if row.get(0) {
            return Err(SourceError::unavailable(Standby));
        }
        let epoch: &str = row.get(1);
        Ok((Epoch::new(epoch), SyncId(u64::try_from(row.get::<_, i64>(2)).unwrap_or_default())))
    }

    async fn writers(&self) -> Result<(BTreeSet<String>, Written), SourceError> {
        let row = self.client.query_one(&self.statements.writers, &[&self.log.table, &self.log.sequence]).await;
        let row = row.map_err(|error| classify("listing the log's writers", error))?;
        Ok((row.get::<_, Vec<String>>(0).into_iter().collect(), Written::of(&row, 1)))
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
    Ok(Asker { client: lease, statements: &statements, log }.drawn().await?.0)
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
        // Sent together, executed one after the other, each with a snapshot of its own.
        let (drawn, writers) = tokio::join!(asker.drawn(), asker.writers());
        let (epoch, sync_id) = drawn?;
        let (writers, written) = writers?;
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
        let (open, _) = asker.writers().await?;
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
