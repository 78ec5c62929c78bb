//! `headstart check`: everything the service needs, looked at before it is needed. Each finding says where it is, what
//! is wrong and how to mend it. Nothing is changed, in the database or in the store.

use std::io::{IsTerminal, Write};
use std::sync::Arc;
use std::time::Duration;

use crate::app::{self, AppError};
use crate::chain::Chain;
use crate::cli::CliError;
use crate::config::Config;
use crate::metrics::Metrics;
use crate::model::Catalog;
use crate::source::SourceError;
use crate::source::postgres::check::{self, Finding, Severity};
use crate::source::postgres::faults::Fault;
use crate::source::postgres::log::Log;
use crate::source::postgres::pool::{Lease, Pool};
use crate::source::postgres::{columns, replica, watermark};
use crate::task::Tasks;

/// What was found, with the part it was found in, in the order in which the parts are looked at.
#[derive(Default)]
struct Findings(Vec<(&'static str, Finding)>);

impl Findings {
    fn error(
        &mut self,
        part: &'static str,
        place: impl Into<String>,
        fault: impl Into<String>,
        mend: impl Into<String>,
    ) {
        let (place, fault, mend) = (place.into(), fault.into(), mend.into());
        self.0.push((part, Finding { severity: Severity::Error, place, fault, mend }));
    }

    fn count(&self, severity: Severity) -> usize {
        self.0.iter().filter(|(_, finding)| finding.severity == severity).count()
    }
}

/// Looks at all parts and prints what it found. Any error fails the command.
pub async fn run(config: &Config, tasks: &Tasks) -> Result<(), CliError> {
    let mut findings = Findings::default();
    check_keys(config, &mut findings).await;
    if let Err(error) = config.admin.check() {
        findings.error("settings", "admin", error.to_string(), "");
    }
    let catalog = check_catalog(config, &mut findings);
    check_database(config, catalog, tasks, &mut findings).await;
    check_store(config, tasks, &mut findings).await;
    print(&findings)?;
    match findings.count(Severity::Error) {
        0 => Ok(()),
        errors => Err(CliError::Findings { errors, warnings: findings.count(Severity::Warning) }),
    }
}

/// Whether tokens can be verified. An issuer that does not answer is an error: without its keys nobody is let in.
async fn check_keys(config: &Config, findings: &mut Findings) {
    let keys = match config.auth.keys() {
        Ok(keys) => keys,
        Err(error) => return findings.error("settings", "auth", Chain(&error).to_string(), ""),
    };
    match keys.look().await {
        Ok(None) => return,
        Ok(Some(0)) => {
            let fault =
                "the key set holds no key of RS256, ES256 or EdDSA, so no token of that issuer could be verified";
            findings.error("issuer", "auth.jwks_url", fault, "name the set that holds the keys it signs with");
        }
        Ok(Some(_)) => {}
        Err(error) => {
            let mend =
                "see that the URL is right, that its host can be reached from here, and whom auth.jwks_ca_path trusts";
            findings.error("issuer", "auth.jwks_url", Chain(&error).to_string(), mend);
        }
    }
    if config.auth.audience.is_none() {
        let finding = Finding {
            severity: Severity::Warning,
            place: "auth.audience".into(),
            fault: "it is not set, so every token of that issuer is taken, whatever service it was made for".into(),
            mend: "have the issuer name this service in `aud`, and set it".into(),
        };
        findings.0.push(("issuer", finding));
    }
}

fn check_catalog(config: &Config, findings: &mut Findings) -> Option<Arc<Catalog>> {
    match app::read_catalog(&config.catalog.path) {
        Ok(catalog) => return Some(Arc::new(catalog)),
        Err(AppError::Catalog { faults, .. }) => {
            faults.into_iter().for_each(|error| findings.error("catalog", error.place, error.fault, ""));
        }
        Err(error) => findings.error("catalog", "catalog.path", Chain(&error).to_string(), ""),
    }
    None
}

/// Without a catalog only whether the database answers.
async fn check_database(config: &Config, catalog: Option<Arc<Catalog>>, tasks: &Tasks, findings: &mut Findings) {
    // Rows that nobody sees are counted, which takes as long as the tables are large.
    let mut config = config.clone();
    config.postgres.pool.statement_timeout_ms = 0;
    let pool = match app::open_pool(&config, tasks, &Metrics::new()) {
        Ok(pool) => pool,
        Err(error) => return findings.error("database", "postgres.url", Chain(&error).to_string(), ""),
    };
    check_replica(&config, &pool, tasks, findings).await;
    let held = Duration::from_millis(config.watermark.held_ms);
    if let Err(error) = ask(&pool, catalog.as_ref(), held, findings).await {
        let mend = "see that it runs, and that its address and the login are right";
        let mend = if matches!(error, SourceError::Unavailable(_)) { mend } else { "" };
        findings.error("database", "postgres.url", Chain(&error).to_string(), mend);
    }
}

/// Whether the standby follows the primary. Without it the primary is read, so it is a warning.
async fn check_replica(config: &Config, primary: &Pool, tasks: &Tasks, findings: &mut Findings) {
    let replica = match app::open_replica(config, tasks, &Metrics::new()) {
        Ok(Some(replica)) => replica,
        Ok(None) => return,
        Err(error) => return findings.error("database", "postgres.replica_url", Chain(&error).to_string(), ""),
    };
    // What is wrong with the primary is told elsewhere.
    let Ok(client) = primary.get().await else { return };
    let reached = async {
        replica.reach(&replica::position(&client).await?).await?.release();
        Ok::<(), SourceError>(())
    };
    if let Err(error) = reached.await {
        let finding = Finding {
            severity: Severity::Warning,
            place: "postgres.replica_url".into(),
            fault: Chain(&error).to_string(),
            mend: "see that it is a running standby of the primary; until then the primary is read".into(),
        };
        findings.0.push(("database", finding));
    }
    client.release();
}

async fn ask(
    pool: &Pool,
    catalog: Option<&Arc<Catalog>>,
    held: Duration,
    findings: &mut Findings,
) -> Result<(), SourceError> {
    // Two at once, so that a pooler in between shows itself.
    let (client, other) = (pool.get().await?, pool.get().await?);
    if let Some(catalog) = catalog {
        if let Err(faults) = columns::read(&*client, catalog).await? {
            for Fault { place, fault, mend } in faults {
                findings.error("tables", place, fault, mend);
            }
        }
        let found = check::check(&client, &other, catalog).await?;
        findings.0.extend(found.into_iter().map(|finding| ("database", finding)));
        // Whatever keeps the log from being read is among the findings already.
        if findings.count(Severity::Error) == 0 {
            check_watermark(&client, catalog, held, findings).await?;
        }
    }
    client.release();
    other.release();
    Ok(())
}

/// Whether a writer that stays open holds the watermark back right now.
async fn check_watermark(
    client: &Lease,
    catalog: &Catalog,
    held: Duration,
    findings: &mut Findings,
) -> Result<(), SourceError> {
    let log = Log::find(client, catalog.log()).await?;
    match watermark::probe(client, &log, held).await {
        Ok(_) => Ok(()),
        Err(error @ SourceError::Held { .. }) => {
            let finding = Finding {
                severity: Severity::Warning,
                place: "watermark".into(),
                fault: error.to_string(),
                mend: "end that session, or find out why its transaction stays open".into(),
            };
            findings.0.push(("database", finding));
            Ok(())
        }
        Err(error) => Err(error),
    }
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
    for (part, Finding { severity, place, fault, mend }) in &findings.0 {
        let severity = match severity {
            Severity::Error => "error",
            Severity::Warning => "warning",
            Severity::Note => "note",
        };
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
            writeln!(out, "    mend: {}", mend.replace('\n', "\n    "))?;
        }
    }
    if findings.count(Severity::Error) + findings.count(Severity::Warning) == 0 {
        writeln!(out, "everything is in order")?;
    }
    Ok(())
}
