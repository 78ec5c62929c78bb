//! `headstart migrate`: the change log, printed as a script or made.

use std::io::Write;
use std::time::Duration;

use clap::Args;

use crate::app;
use crate::cli::CliError;
use crate::config::Config;
use crate::dump::trim::Trimmer;
use crate::metrics::Metrics;
use crate::model::Catalog;
use crate::source::SourceError;
use crate::source::migrate::{self, Found, MigrateError};
use crate::source::postgres::pool::Lease;
use crate::task::Tasks;

/// Arguments of `headstart migrate`.
#[derive(Args)]
pub struct MigrateArgs {
    /// Do it; otherwise it is printed, as a script for psql
    #[arg(long)]
    apply: bool,
    /// Instead remove from the log what `trim.keep_s` says and no kept snapshot needs, as the service does by itself when
    /// its role may
    #[arg(long, conflicts_with = "apply")]
    trim: bool,
    /// How long each step waits for a table that is in use, in milliseconds; other writers queue behind it meanwhile
    #[arg(long, value_name = "MS", default_value_t = 3000, value_parser = clap::value_parser!(u64).range(1..=600_000))]
    lock_timeout_ms: u64,
}

/// Prints what is to be done, or does it and says what it did.
pub async fn run(args: &MigrateArgs, config: &Config, tasks: &Tasks) -> Result<(), CliError> {
    if args.trim {
        return trim(config, tasks).await;
    }
    let catalog = app::read_catalog(&config.catalog.path)?;
    // An index over a long log takes its time, and the server's word for that is the only one needed.
    let mut config = config.clone();
    config.postgres.pool.statement_timeout_ms = 0;
    let client = app::open_pool(&config, tasks, &Metrics::new())?.get().await?;
    let lock_timeout = Duration::from_millis(args.lock_timeout_ms);
    if args.apply { apply(client, &catalog, lock_timeout).await } else { print(client, &catalog, lock_timeout).await }
}

async fn trim(config: &Config, tasks: &Tasks) -> Result<(), CliError> {
    let metrics = Metrics::new();
    let (source, store) = (app::open_source(config, tasks, &metrics)?, app::open_store(config, tasks).await?);
    let trimmed = Trimmer::new(source, store, config.trim.clone(), metrics).round().await?;
    writeln!(std::io::stdout().lock(), "done: {trimmed} actions are gone from the log")?;
    Ok(())
}

async fn print(client: Lease, catalog: &Catalog, lock_timeout: Duration) -> Result<(), CliError> {
    let found =
        Found::read(&client, catalog).await.map_err(|cause| SourceError::failed("reading what there is", cause))?;
    client.release();
    let plan = migrate::plan(catalog, &found).map_err(MigrateError::Refused)?;
    write!(std::io::stdout().lock(), "{}", plan.script(lock_timeout))?;
    Ok(())
}

async fn apply(client: Lease, catalog: &Catalog, lock_timeout: Duration) -> Result<(), CliError> {
    let plan = migrate::apply(&client, catalog, lock_timeout).await?;
    client.release();
    let mut out = std::io::stdout().lock();
    for step in &plan.steps {
        writeln!(out, "done: {}", step.description)?;
    }
    for note in &plan.notes {
        writeln!(out, "left out: {note}")?;
    }
    if plan.steps.is_empty() {
        writeln!(out, "nothing to do: the log is as the catalog wants it")?;
    }
    Ok(())
}
