//! Does what a plan says, a step at a time.

use std::time::Duration;

use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, Error};

use crate::model::catalog::Catalog;
use crate::source::migrate::found::{Found, holders};
use crate::source::migrate::{Plan, Step, plan};

/// The advisory lock that keeps two runs apart: the first letters of the service's name.
const RUN_LOCK: i64 = 0x6865_6164_7374;

/// Why the log was not brought to what the catalog wants. Steps that were done stay done.
#[derive(Debug, thiserror::Error)]
pub enum MigrateError {
    /// The database or the catalog must change first; one message each, with the place and the mend.
    #[error("the log can't be made: {}", .0.join("; "))]
    Refused(Vec<String>),
    /// Another run holds the lock.
    #[error("another `headstart migrate` is at work on this database: wait for it to end")]
    Running,
    /// A table was in use for longer than the limit.
    #[error(
        "`{step}`: the table was not to be locked within {waited:?}, it is in use by {}: run this again when they have \
         ended, or with a longer lock timeout", .holders.join(", ")
    )]
    Locked {
        /// The step that was given up.
        step: String,
        /// How long it waited.
        waited: Duration,
        /// The sessions that hold the table.
        holders: Vec<String>,
        /// PostgreSQL's word.
        #[source]
        cause: Error,
    },
    /// PostgreSQL refused something.
    #[error("{doing} failed")]
    Failed {
        /// What was being done.
        doing: String,
        /// PostgreSQL's word.
        #[source]
        cause: Error,
    },
}

impl MigrateError {
    fn at(doing: &str) -> impl FnOnce(Error) -> Self {
        move |cause| Self::Failed { doing: doing.into(), cause }
    }
}

/// Plans and does it. The result is the plan that was carried out: without steps when there was nothing to do.
///
/// Each step that locks a table of the application is a transaction of its own and waits at most `lock_timeout` for it;
/// meanwhile other writers queue behind it, so keep that short. Not cancel safe: close the connection of a call that
/// was dropped.
///
/// # Errors
/// See [`MigrateError`]. Running it again goes on where it stopped.
pub async fn apply(client: &Client, catalog: &Catalog, lock_timeout: Duration) -> Result<Plan, MigrateError> {
    let locked = client.query_one("SELECT pg_try_advisory_lock($1)", &[&RUN_LOCK]).await;
    if !locked.map_err(MigrateError::at("taking the migration's lock"))?.get::<_, bool>(0) {
        return Err(MigrateError::Running);
    }
    let done = apply_locked(client, catalog, lock_timeout).await;
    let unlocked = client.execute("SELECT pg_advisory_unlock($1)", &[&RUN_LOCK]).await;
    let plan = done?;
    unlocked.map_err(MigrateError::at("releasing the migration's lock"))?;
    Ok(plan)
}

async fn apply_locked(client: &Client, catalog: &Catalog, lock_timeout: Duration) -> Result<Plan, MigrateError> {
    let found = Found::read(client, catalog).await.map_err(MigrateError::at("reading what there is"))?;
    let plan = plan(catalog, &found).map_err(MigrateError::Refused)?;
    for step in &plan.steps {
        run(client, step, lock_timeout).await?;
    }
    Ok(plan)
}

async fn run(client: &Client, step: &Step, lock_timeout: Duration) -> Result<(), MigrateError> {
    let failed = MigrateError::at(&step.description);
    if !step.transactional {
        // No lock timeout: a concurrent build waits for every older transaction, by design and without blocking.
        return client.batch_execute(&step.sql).await.map_err(failed);
    }
    let timeout = lock_timeout.as_millis();
    let sql = format!("BEGIN; SET LOCAL lock_timeout = '{timeout}ms';\n{}COMMIT;", step.sql);
    let Err(cause) = client.batch_execute(&sql).await else { return Ok(()) };
    if cause.code() == Some(&SqlState::LOCK_NOT_AVAILABLE)
        && let Some(table) = &step.table
    {
        // Asked before the rollback would let go of nothing but our own locks; the answer is for people.
        client.batch_execute("ROLLBACK").await.map_err(MigrateError::at("rolling back"))?;
        let holders = holders(client, table).await.map_err(MigrateError::at("asking who holds the table"))?;
        return Err(MigrateError::Locked { step: step.description.clone(), waited: lock_timeout, holders, cause });
    }
    if !cause.is_closed() {
        client.batch_execute("ROLLBACK").await.map_err(MigrateError::at("rolling back"))?;
    }
    Err(failed(cause))
}
