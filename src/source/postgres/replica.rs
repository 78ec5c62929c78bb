//! Reading from a standby instead of the primary.
//!
//! What is read must hold everything that was committed before the read was asked for. So the primary is asked how far it
//! has written (`pg_current_wal_insert_lsn`), and the standby's connection that will read waits until that is replayed:
//! a commit becomes visible on a standby when its record is replayed. A standby that does not get there in time, does not
//! answer, cancels a read for a recovery conflict, or is no standby of this primary is left alone for a while, and the
//! primary is read.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep};
use tokio_postgres::Client;

use crate::chain::Chain;
use crate::source::SourceError;
use crate::source::postgres::error::classify;
use crate::source::postgres::pool::{Lease, Pool};

/// How often a standby is asked how far it is.
const POLL: Duration = Duration::from_millis(5);

/// Settings `[replica]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReplicaSettings {
    /// Milliseconds that a read waits for the standby before it goes to the primary.
    pub wait_ms: u64,
    /// Seconds for which a standby that was late or failed is left alone.
    pub rest_s: u64,
}

impl Default for ReplicaSettings {
    /// What `config/headstart.toml` says; a test holds the two together.
    fn default() -> Self {
        Self { wait_ms: 1_000, rest_s: 10 }
    }
}

/// A standby to read from.
pub struct Replica {
    pool: Pool,
    settings: ReplicaSettings,
    resting: Mutex<Option<Instant>>,
}

/// How far a primary has written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Position {
    system: String,
    written: String,
}

/// How far a primary has written by now. Everything that is visible there by now lies before it.
///
/// # Errors
/// What PostgreSQL says.
pub async fn position(primary: &Client) -> Result<Position, SourceError> {
    let sql = "SELECT (SELECT system_identifier::text FROM pg_control_system()), pg_current_wal_insert_lsn()::text";
    let row = primary.query_one(sql, &[]).await.map_err(|error| classify("asking how far the WAL is", error))?;
    Ok(Position { system: row.get(0), written: row.get(1) })
}

impl Replica {
    /// Connections are made when they are asked for.
    pub fn new(pool: Pool, settings: ReplicaSettings) -> Self {
        Self { pool, settings, resting: Mutex::default() }
    }

    /// Whether it is to be tried.
    pub fn is_awake(&self) -> bool {
        let resting = self.resting.lock().unwrap_or_else(PoisonError::into_inner);
        resting.is_none_or(|until| until <= Instant::now())
    }

    /// A connection that sees everything up to a position; `None` when the primary must be read.
    pub async fn at(&self, position: &Position) -> Option<Lease> {
        match self.reach(position).await {
            Ok(lease) => Some(lease),
            Err(error) => {
                self.rest(&error);
                None
            }
        }
    }

    /// Leaves it alone for a while.
    pub fn rest(&self, error: &SourceError) {
        let rest = Duration::from_secs(self.settings.rest_s);
        *self.resting.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now() + rest);
        tracing::warn!(error = %Chain(error), "the replica is left alone for {} s; the primary is read", rest.as_secs());
    }

    /// The same, saying why not.
    ///
    /// # Errors
    /// [`SourceError::Busy`] when it is late; [`SourceError::Unavailable`] when it does not answer or is no standby of
    /// that primary.
    pub async fn reach(&self, position: &Position) -> Result<Lease, SourceError> {
        let began = Instant::now();
        let lease = self.pool.get().await?;
        let sql = "SELECT pg_is_in_recovery(), (SELECT system_identifier::text FROM pg_control_system()),
                          coalesce(pg_last_wal_replay_lsn() >= $1::text::pg_lsn, false)";
        loop {
            let row = lease
                .query_one(sql, &[&position.written])
                .await
                .map_err(|error| classify("asking how far the replica is", error))?;
            if !row.get::<_, bool>(0) {
                return Err(SourceError::unavailable("it is no standby"));
            }
            if row.get::<_, &str>(1) != position.system {
                return Err(SourceError::unavailable("it is a standby of another primary"));
            }
            if row.get(2) {
                return Ok(lease);
            }
            if began.elapsed() >= Duration::from_millis(self.settings.wait_ms) {
                lease.release();
                return Err(SourceError::Busy(format!("it has not replayed the WAL up to {}", position.written)));
            }
            sleep(POLL).await;
        }
    }
}
