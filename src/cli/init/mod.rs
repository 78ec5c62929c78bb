//! `headstart init`: a first catalog, from the tables that are there. Reads PostgreSQL's catalogs and statistics only, no
//! row, and changes nothing in the database.

mod text;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args;

use crate::app;
use crate::cli::CliError;
use crate::config::Config;
use crate::metrics::Metrics;
use crate::model::Catalog;
use crate::model::catalog::CatalogError;
use crate::source::postgres::columns;
use crate::source::postgres::faults::Fault;
use crate::source::proposal::{NoTenant, Proposal, propose, read};
use crate::task::Tasks;

/// Arguments of `headstart init`.
#[derive(Args)]
pub struct InitArgs {
    /// The table, or the column, of the tenant, where another one is guessed
    #[arg(long, value_name = "NAME")]
    tenant: Option<String>,
    /// Only this schema; may be repeated. Without it: all that are not PostgreSQL's own
    #[arg(long = "schema", value_name = "SCHEMA")]
    schemas: Vec<String>,
    /// Where to write it, if not where `catalog.path` says
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Write over a file that exists
    #[arg(long)]
    force: bool,
    /// Print it instead
    #[arg(long, conflicts_with_all = ["out", "force"])]
    print: bool,
}

/// Why there is no catalog.
#[derive(Debug, thiserror::Error)]
pub enum InitError {
    /// There is one already.
    #[error("{} is there already: `--force` writes over it, `--out` elsewhere, `--print` nowhere", .0.display())]
    Exists(PathBuf),
    /// The file can't be written.
    #[error("{} can't be written", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        cause: std::io::Error,
    },
    /// The database has no table.
    #[error("there is no table in {0}")]
    Empty(String),
    /// The rules found no tenant.
    #[error("{}", no_tenant(.0))]
    NoTenant(NoTenant),
    /// No table can be a model.
    #[error("no table can be a model:\n{0}")]
    NoModel(String),
    /// The rules made a catalog that does not hold.
    #[error("the proposal does not hold, which is a fault of `headstart init`; please report it with the schema:\n{0}")]
    Refused(String),
}

/// Reads, proposes, checks what it proposes, and writes.
pub async fn run(args: &InitArgs, config: &Config, tasks: &Tasks) -> Result<(), CliError> {
    let path = args.out.as_ref().unwrap_or(&config.catalog.path);
    if !args.print && !args.force && path.exists() {
        return Err(InitError::Exists(path.clone()).into());
    }
    let client = app::open_pool(config, tasks, &Metrics::new())?.get().await?;
    let survey = read::read(&*client, &args.schemas).await?;
    if survey.tables.is_empty() {
        let place = if args.schemas.is_empty() { "the database".into() } else { args.schemas.join(", ") };
        return Err(InitError::Empty(place).into());
    }
    let proposal = propose(&survey, args.tenant.as_deref()).map_err(InitError::NoTenant)?;
    if proposal.models.is_empty() {
        return Err(InitError::NoModel(left_out(&proposal)).into());
    }
    let text = text::catalog(&proposal);
    let catalog =
        Catalog::parse(&text).map_err(|faults| InitError::Refused(lines(&faults, CatalogError::to_string)))?;
    if let Err(faults) = columns::read(&*client, &Arc::new(catalog)).await? {
        return Err(InitError::Refused(lines(&faults, Fault::to_string)).into());
    }
    client.release();
    if args.print {
        write!(std::io::stdout().lock(), "{text}")?;
        return Ok(());
    }
    write(path, &text, args.force)?;
    tell(&proposal, path)?;
    Ok(())
}

fn write(path: &Path, text: &str, force: bool) -> Result<(), InitError> {
    let failed = |cause| InitError::Write { path: path.to_owned(), cause };
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).map_err(failed)?;
    }
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create(true).truncate(true).create_new(!force);
    let mut file = options.open(path).map_err(failed)?;
    file.write_all(text.as_bytes()).map_err(failed)
}

/// What was done, and what is next.
fn tell(proposal: &Proposal, path: &Path) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    let doubts: usize = proposal.models.iter().map(|model| model.decide.len()).sum::<usize>() + proposal.decide.len();
    writeln!(out, "tenant: {}", proposal.tenant)?;
    for model in &proposal.models {
        writeln!(out, "model: {} ({})", model.model.name, model.model.table)?;
    }
    for membership in &proposal.memberships {
        let state = if membership.obstacle.is_some() { "; not usable yet, the catalog says why" } else { "" };
        writeln!(out, "groups: {} ({}{state})", membership.membership.kind, membership.membership.table)?;
    }
    write!(out, "{}", left_out(proposal))?;
    writeln!(out, "{} is written, with {doubts} lines that begin with `Decide:`. Then:", path.display())?;
    writeln!(out, "  headstart migrate --apply\n  headstart check\n  headstart serve")
}

fn left_out(proposal: &Proposal) -> String {
    proposal.left_out.iter().map(|left| format!("left out: {}: {}\n", left.table, left.why)).collect()
}

fn lines<T>(faults: &[T], text: impl Fn(&T) -> String) -> String {
    faults.iter().map(|fault| format!("  {}", text(fault))).collect::<Vec<_>>().join("\n")
}

fn no_tenant(error: &NoTenant) -> String {
    let first = match &error.wished {
        Some(wished) => format!("nothing that other tables lead to is called `{wished}`"),
        None => "no table is clearly the tenant, whose rows each org's data belongs to".into(),
    };
    let rest = match error.candidates.as_slice() {
        [] => "no table leads to another one. A database of a single tenant needs a table, or a column, for it".into(),
        candidates => format!("name it with --tenant; others lead to: {}", candidates.join(", ")),
    };
    format!("{first}; {rest}")
}
