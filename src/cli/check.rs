//! `headstart check`: everything the service needs, looked at before it is needed. Each finding says where it is, what
//! is wrong and how to mend it. Nothing is changed, in the database or in the store.

use std::io::{IsTerminal, Write};
use std::sync::Arc;
use std::time::Duration;

use crate::app;
use crate::chain::Chain;
use crate::cli::CliError;
use crate::config::Config;
use crate::model::Catalog;
use crate::source::postgres::log::Log;
use crate::source::postgres::pool::Lease;
use crate::source::postgres::{check, columns, watermark};
use crate::source::{SourceError, postgres};
use crate::task::Tasks;

/// How much a finding matters.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Severity {
    /// The service does not start, or a part of it refuses to serve.
    Error,
    /// It runs, and something is not as it should be.
    Warning,
}

/// One thing that is wrong.
struct Finding {
    severity: Severity,
    /// What was looked at.
    part: &'static str,
    place: String,
    fault: String,
    /// Empty when the fault says it already.
    mend: String,
}

/// The findings, in the order of the parts.
#[derive(Default)]
struct Findings(Vec<Finding>);

impl Findings {
    fn error(&mut self, part: &'static str, place: impl Into<String>, fault: String, mend: impl Into<String>) {
        let (place, mend) = (place.into(), mend.into());
        self.0.push(Finding { severity: Severity::Error, part, place, fault, mend });
    }

    fn warning(&mut self, part: &'static str, place: impl Into<String>, fault: String, mend: impl Into<String>) {
        let (place, mend) = (place.into(), mend.into());
        self.0.push(Finding { severity: Severity::Warning, part, place, fault, mend });
    }

    fn count(&self, severity: Severity) -> usize {
        self.0.iter().filter(|finding| finding.severity == severity).count()
    }
}

/// Looks at all parts and prints what it found. Any error fails the command.
pub async fn run(config: &Config, tasks: &Tasks) -> Result<(), CliError> {
    let mut findings = Findings::default();
    check_keys(config, &mut findings);
    let catalog = check_catalog(config, &mut findings);
    if let Some((client, other)) = connect(config, tasks, &mut findings).await {
        if let Some(catalog) = catalog {
            let checked = check_database(&client, &other, &Arc::new(catalog), config, &mut findings).await;
            if let Err(error) = checked {
                let fault = Chain(&error).to_string();
                findings.error("database", "postgres.url", fault, "the checks of the database ended here");
            }
        }
    }
    check_store(config, tasks, &mut findings).await;
    print(&findings)?;
    match findings.count(Severity::Error) {
        0 => Ok(()),
        errors => Err(CliError::Findings { errors, warnings: findings.count(Severity::Warning) }),
    }
}

fn check_keys(config: &Config, findings: &mut Findings) {
    if let Err(error) = config.auth.keys() {
        findings.error("settings", "auth", Chain(&error).to_string(), "");
    }
}

fn check_catalog(config: &Config, findings: &mut Findings) -> Option<Catalog> {
    match app::read_catalog(&config.catalog.path) {
        Ok(catalog) => return Some(catalog),
        Err(app::AppError::Catalog { faults, .. }) => {
            faults.into_iter().for_each(|error| findings.error("catalog", error.place, error.fault, ""));
        }
        Err(error) => findings.error("catalog", "catalog.path", Chain(&error).to_string(), ""),
    }
    None
}

/// Two connections, so that a pooler in between shows itself.
async fn connect(config: &Config, tasks: &Tasks, findings: &mut Findings) -> Option<(Lease, Lease)> {
    let pool = match app::open_pool(config, tasks) {
        Ok(pool) => pool,
        Err(error) => {
            findings.error("database", "postgres.url", Chain(&error).to_string(), "");
            return None;
        }
    };
    match tokio::try_join!(pool.get(), pool.get()) {
        Ok(clients) => Some(clients),
        Err(error) => {
            let mend = "see that it runs, and that its address and the login are right";
            findings.error("database", "postgres.url", Chain(&error).to_string(), mend);
            None
        }
    }
}

async fn check_database(
    client: &Lease,
    other: &Lease,
    catalog: &Arc<Catalog>,
    config: &Config,
    findings: &mut Findings,
) -> Result<(), SourceError> {
    if let Err(faults) = columns::read(&**client, catalog).await? {
        faults.into_iter().for_each(|postgres::faults::Fault { place, fault, mend }| {
            findings.error("tables", place, fault, mend);
        });
    }
    for found in check::check(client, other, catalog).await? {
        let severity = if found.severity == check::Severity::Error { Severity::Error } else { Severity::Warning };
        let check::Finding { place, fault, mend, .. } = found;
        findings.0.push(Finding { severity, part: "database", place, fault, mend });
    }
    match probe(client, catalog, config).await {
        Ok(()) => {}
        Err(error @ SourceError::Held { .. }) => {
            let mend = "end that session, or find out why its transaction stays open";
            findings.warning("log", "watermark", Chain(&error).to_string(), mend);
        }
        Err(error) => findings.error("log", "watermark", Chain(&error).to_string(), ""),
    }
    Ok(())
}

async fn probe(client: &Lease, catalog: &Catalog, config: &Config) -> Result<(), SourceError> {
    let log = Log::find(client, catalog.log()).await?;
    watermark::probe(client, &log, Duration::from_millis(config.watermark.held_ms)).await?;
    Ok(())
}

async fn check_store(config: &Config, tasks: &Tasks, findings: &mut Findings) {
    let store = match app::open_store(config, tasks).await {
        Ok(store) => store,
        Err(error) => return findings.error("store", "store.url", Chain(&error).to_string(), ""),
    };
    if let Err(error) = store.ping().await {
        findings.error("store", "store.url", Chain(&error).to_string(), "see that it runs, and that its URL is right");
    }
}

/// For people: grouped by part. For pipes: a line each, with tabs.
fn print(findings: &Findings) -> Result<(), CliError> {
    let mut out = std::io::stdout().lock();
    let terminal = out.is_terminal();
    let mut last_part = "";
    for Finding { severity, part, place, fault, mend } in &findings.0 {
        let severity = if *severity == Severity::Error { "error" } else { "warning" };
        if !terminal {
            let one_line = |text: &str| text.replace(['\n', '\t'], " ");
            writeln!(out, "{severity}\t{part}\t{place}\t{}\t{}", one_line(fault), one_line(mend))?;
            continue;
        }
        if *part != last_part {
            writeln!(out, "{part}")?;
            last_part = part;
        }
        writeln!(out, "  {severity}: {place}\n    {}", fault.replace('\n', "\n    "))?;
        if !mend.is_empty() {
            writeln!(out, "    mend: {mend}")?;
        }
    }
    if findings.0.is_empty() {
        writeln!(out, "everything is in order")?;
    }
    Ok(())
}
