//! Connections to one PostgreSQL server: bounded, alike, and never handed on in an unknown state.
//!
//! Every session is pinned when it is made, because what `to_json` prints depends on session settings, and
//! clients are promised one set of them. A connection goes back to the pool only by [`Lease::release`]. A lease that is
//! merely dropped (an error, a caller that went away in mid-statement or in a transaction) is not trusted: its
//! statement is cancelled on the server and the connection closed. So no one inherits another's transaction.

use std::collections::{HashMap, VecDeque};
use std::fmt::Write as _;
use std::num::NonZeroU32;
use std::ops::Deref;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::time::{Instant, timeout};
use tokio_postgres::{Client, Statement};

use crate::metrics::{Held, PoolMetrics};
use crate::source::SourceError;
use crate::source::postgres::error::classify;
use crate::source::postgres::tls::Target;
use crate::task::Tasks;

/// How long a cancel request may take before the connection is closed without it.
const CANCEL_WITHIN: Duration = Duration::from_secs(5);

/// Statements a connection keeps prepared: one for each model and key that batches ask by.
const MAX_PREPARED: usize = 1000;

/// The size and the limits of a pool.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PoolSettings {
    /// Connections at most. Each costs the server a process and some MiB; a scan uses a few at once.
    pub max_connections: NonZeroU32,
    /// Milliseconds a caller waits for a free connection before the answer is "busy".
    pub acquire_timeout_ms: u64,
    /// Milliseconds to reach the server, TLS and login included.
    pub connect_timeout_ms: u64,
    /// Milliseconds a statement may run on the server; scans have a limit of their own. 0: no limit.
    pub statement_timeout_ms: u64,
    /// Milliseconds a statement may wait for a lock; scans have a limit of their own. 0: no limit.
    pub lock_timeout_ms: u64,
    /// Milliseconds a transaction may stay open without a statement before the server ends it. 0: no limit.
    pub idle_transaction_timeout_ms: u64,
    /// Milliseconds after which an unused connection is closed instead of used again.
    pub idle_timeout_ms: u64,
}

impl Default for PoolSettings {
    fn default() -> Self {
        Self {
            max_connections: NonZeroU32::new(8).expect("eight is not zero"),
            acquire_timeout_ms: 10_000,
            connect_timeout_ms: 5_000,
            statement_timeout_ms: 60_000,
            lock_timeout_ms: 5_000,
            idle_transaction_timeout_ms: 60_000,
            idle_timeout_ms: 300_000,
        }
    }
}

/// A pool. Clones share the connections.
#[derive(Clone, Debug)]
pub struct Pool(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    target: Target,
    settings: PoolSettings,
    tasks: Tasks,
    metrics: PoolMetrics,
    permits: Arc<Semaphore>,
    idle: Mutex<VecDeque<Idle>>,
}

#[derive(Debug)]
struct Idle {
    connection: Connection,
    since: Instant,
}

/// A session and the way to tell its task to close it.
#[derive(Debug)]
struct Connection {
    client: Client,
    /// Takes the place along, so that it is free only once the connection is closed.
    close: oneshot::Sender<Place>,
    /// By version and text. At most `MAX_PREPARED`; past that all are closed and prepared again.
    prepared: Mutex<HashMap<Box<str>, Statement>>,
}

/// The right to one of the connections.
#[derive(Debug)]
struct Place {
    _permit: OwnedSemaphorePermit,
    _in_use: Held,
}

impl Pool {
    /// A pool without connections; they are made when asked for. Once `tasks` are told to stop it gives out no more
    /// and closes those that no one uses.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn new(target: Target, settings: PoolSettings, tasks: Tasks, metrics: PoolMetrics) -> Self {
        let permits = Arc::new(Semaphore::new(settings.max_connections.get() as usize));
        metrics.limit.set(settings.max_connections.get().into());
        let inner = Arc::new(Inner { target, settings, tasks, metrics, permits, idle: Mutex::default() });
        let (pool, stop) = (Arc::downgrade(&inner), inner.tasks.token().clone());
        inner.tasks.spawn("postgres pool", async move {
            stop.cancelled().await;
            if let Some(inner) = pool.upgrade() {
                inner.permits.close();
                inner.idle.lock().unwrap_or_else(PoisonError::into_inner).clear();
            }
        });
        Self(inner)
    }

    /// A connection, waiting for one when all are in use. Dropping the future gives up the place in the queue.
    ///
    /// # Errors
    /// [`SourceError::Busy`] past the limit, [`SourceError::Unavailable`] when the server can't be reached.
    pub async fn get(&self) -> Result<Lease, SourceError> {
        let limit = Duration::from_millis(self.0.settings.acquire_timeout_ms);
        let waiting = self.0.metrics.waiting.hold();
        let permit = timeout(limit, self.0.permits.clone().acquire_owned()).await;
        drop(waiting);
        let permit = permit.map_err(|_| SourceError::Busy("every connection to PostgreSQL is in use".into()))?;
        self.lease(permit.map_err(|_| SourceError::unavailable("the service is ending"))?).await
    }

    /// A connection if one may be had without waiting for others to give one back.
    ///
    /// # Errors
    /// [`SourceError::Unavailable`] when the server can't be reached.
    pub async fn try_get(&self) -> Result<Option<Lease>, SourceError> {
        match self.0.permits.clone().try_acquire_owned() {
            Ok(permit) => self.lease(permit).await.map(Some),
            Err(_) => Ok(None),
        }
    }

    async fn lease(&self, permit: OwnedSemaphorePermit) -> Result<Lease, SourceError> {
        let place = Place { _permit: permit, _in_use: self.0.metrics.in_use.hold() };
        let connection = match self.idle() {
            Some(connection) => connection,
            None => {
                let limit = Duration::from_millis(self.0.settings.connect_timeout_ms);
                let late = || SourceError::unavailable("no answer within the connect timeout");
                timeout(limit, self.connect()).await.map_err(|_| late())??
            }
        };
        Ok(Lease { pool: self.clone(), held: Some((connection, place)) })
    }

    /// The connection that was used last, if it is alive; those unused for too long are closed.
    fn idle(&self) -> Option<Connection> {
        let limit = Duration::from_millis(self.0.settings.idle_timeout_ms);
        let mut idle = self.0.idle.lock().unwrap_or_else(PoisonError::into_inner);
        idle.retain(|entry| !entry.connection.client.is_closed() && entry.since.elapsed() < limit);
        idle.pop_back().map(|entry| entry.connection)
    }

    async fn connect(&self) -> Result<Connection, SourceError> {
        let Target { config, tls } = self.0.target.clone();
        let doing = "connecting to PostgreSQL";
        let (client, driver) = config.connect(tls.clone()).await.map_err(|error| classify(doing, error))?;
        let (close, closed) = oneshot::channel::<Place>();
        let cancel = client.cancel_token();
        self.0.tasks.spawn("postgres connection", async move {
            let place = tokio::select! {
                ended = driver => {
                    if let Err(error) = ended {
                        tracing::debug!(error = &error as &dyn std::error::Error, "a connection to PostgreSQL ended");
                    }
                    return;
                }
                place = closed => place,
            };
            // An idle connection that was let go has no place and no statement. The socket is closed when the driver
            // is dropped, at the end of this scope; a busy server process only notices the cancel request.
            if place.is_ok() && timeout(CANCEL_WITHIN, cancel.cancel_query(tls)).await.is_err() {
                tracing::debug!("a cancel request to PostgreSQL took too long");
            }
        });
        client.batch_execute(&self.0.settings.pins()).await.map_err(|error| classify("pinning the session", error))?;
        Ok(Connection { client, close, prepared: Mutex::default() })
    }
}

impl PoolSettings {
    /// The statements that make every session alike.
    fn pins(&self) -> String {
        let mut sql = String::new();
        for (name, value) in [
            // What to_json and format_type print.
            ("timezone", "'UTC'"),
            ("datestyle", "'ISO, YMD'"),
            ("intervalstyle", "'postgres'"),
            ("bytea_output", "'hex'"),
            ("extra_float_digits", "1"),
            ("xmlbinary", "'base64'"),
            ("client_encoding", "'UTF8'"),
            // Filters of the catalog may call functions of the application's; pg_temp last, so that no one can slip
            // a table in front of ours.
            ("search_path", "pg_catalog, public, pg_temp"),
            ("standard_conforming_strings", "on"),
            // A policy that would hide rows is an error, not a silent gap.
            ("row_security", "off"),
            ("application_name", "'headstart'"),
        ] {
            let _ = write!(sql, "SET {name} = {value};");
        }
        for (name, milliseconds) in [
            ("statement_timeout", self.statement_timeout_ms),
            ("lock_timeout", self.lock_timeout_ms),
            ("idle_in_transaction_session_timeout", self.idle_transaction_timeout_ms),
        ] {
            let _ = write!(sql, "SET {name} = {};", server_milliseconds(milliseconds));
        }
        sql
    }
}

/// The nearest value a timeout setting of the server takes: they are 32-bit integers of milliseconds.
pub fn server_milliseconds(milliseconds: u64) -> u64 {
    milliseconds.min(i32::MAX as u64)
}

/// A connection on loan. Used as the driver's client.
///
/// Call [`Self::release`] when every statement has been answered and no transaction is open; a lease that is dropped
/// without it is cancelled and closed.
#[derive(Debug)]
pub struct Lease {
    pool: Pool,
    held: Option<(Connection, Place)>,
}

impl Lease {
    /// Where it comes from.
    pub fn pool(&self) -> &Pool {
        &self.pool
    }

    /// Gives the connection back for others to use.
    pub fn release(mut self) {
        let Some((connection, place)) = self.held.take() else { return };
        let mut idle = self.pool.0.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if !connection.client.is_closed() && !self.pool.0.permits.is_closed() {
            idle.push_back(Idle { connection, since: Instant::now() });
        }
        drop(idle);
        // After the connection is back, so that whoever gets the place finds it.
        drop(place);
    }
}

impl Lease {
    /// A statement of this text, prepared once a connection and version of the tables: one that was prepared before
    /// they changed may be refused.
    ///
    /// # Errors
    /// What the database says of it.
    pub async fn prepared(&self, version: &str, sql: &str) -> Result<Statement, tokio_postgres::Error> {
        let key = format!("{version} {sql}").into_boxed_str();
        if let Some(statement) = self.statements().get(&key) {
            return Ok(statement.clone());
        }
        let statement = self.prepare(sql).await?;
        let mut statements = self.statements();
        if statements.len() >= MAX_PREPARED {
            statements.clear();
        }
        statements.insert(key, statement.clone());
        Ok(statement)
    }

    fn statements(&self) -> MutexGuard<'_, HashMap<Box<str>, Statement>> {
        let (connection, _) = self.held.as_ref().expect("only release and drop take it, and both end the lease");
        connection.prepared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Deref for Lease {
    type Target = Client;

    fn deref(&self) -> &Client {
        let (connection, _) = self.held.as_ref().expect("only release and drop take it, and both end the lease");
        &connection.client
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Some((connection, place)) = self.held.take() {
            // If the connection is dead already, its task is gone and the place comes back to be dropped.
            let _ = connection.close.send(place);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts_fit_the_server() {
        let settings = PoolSettings { statement_timeout_ms: u64::MAX, ..PoolSettings::default() };
        assert!(settings.pins().contains("SET statement_timeout = 2147483647;"));
    }
}
