//! `headstart snapshots`: what the store holds.

use std::collections::BTreeMap;
use std::io::{IsTerminal, Write};
use std::sync::Arc;
use std::time::Duration;

use clap::{Args, Subcommand};
use indicatif::{HumanBytes, HumanDuration};

use crate::app::{self, AppError};
use crate::chain::Chain;
use crate::cli::CliError;
use crate::cli::table::Table;
use crate::config::Config;
use crate::metrics::Metrics;
use crate::model::{Org, Schema};
use crate::snapshot::Manifest;
use crate::store::{Head, Published, Slot, SnapshotStore};
use crate::task::Tasks;

/// Arguments of `headstart snapshots`.
#[derive(Args)]
pub struct SnapshotsArgs {
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    /// Every org's current snapshot, oldest first
    List,
    /// What one org's current snapshots consist of
    Show(OrgArgs),
    /// Take an org's snapshots away; the next request, or the background job, makes a new one
    Delete(OrgArgs),
}

#[derive(Args)]
struct OrgArgs {
    /// The org
    #[arg(long)]
    org: String,
}

/// Carries one of them out.
pub async fn run(args: SnapshotsArgs, config: &Config, tasks: &Tasks) -> Result<(), CliError> {
    let store = &*app::open_store(config, tasks).await?;
    match args.action {
        Action::List => list(current(store, |_| true).await?),
        Action::Show(OrgArgs { org }) => show(store, &Org::new(org), config, tasks).await,
        Action::Delete(OrgArgs { org }) => {
            let count = store.delete(&Org::new(org)).await?;
            writeln!(std::io::stdout().lock(), "{count} snapshots deleted")?;
            Ok(())
        }
    }
}

/// The snapshots of the orgs that are wanted, oldest first.
async fn current(
    store: &dyn SnapshotStore,
    wanted: impl Fn(&Org) -> bool,
) -> Result<Vec<(Slot, Head, Published)>, CliError> {
    let heads = store.heads().await?.into_iter().filter(|(slot, _)| wanted(&slot.org));
    let mut found: Vec<_> =
        heads.filter_map(|(slot, mut head)| head.current.take().map(|current| (slot, head, current))).collect();
    found.sort_by_key(|(_, _, published)| std::cmp::Reverse(published.age));
    Ok(found)
}

fn list(found: Vec<(Slot, Head, Published)>) -> Result<(), CliError> {
    let mut out = std::io::stdout().lock();
    let terminal = out.is_terminal();
    let mut table =
        Table::new(["ORG", "SNAPSHOT", "GENERATION", "SYNC ID", "AGE", "ROWS", "STORED", "LINES", "SCHEMA"]);
    for (slot, head, Published { facts, age }) in found {
        table.row([
            slot.org.to_string(),
            facts.id.to_string(),
            head.generation.0.to_string(),
            facts.sync_id.to_string(),
            duration(age, terminal),
            facts.rows.to_string(),
            bytes(facts.len, terminal),
            bytes(facts.raw_len, terminal),
            slot.schema.to_string(),
        ]);
    }
    table.write(&mut out, terminal)?;
    Ok(())
}

async fn show(store: &dyn SnapshotStore, org: &Org, config: &Config, tasks: &Tasks) -> Result<(), CliError> {
    let found = current(store, |other| other == org).await?;
    if found.is_empty() {
        return Err(CliError::Nothing(format!("the store holds no snapshot of org {org}")));
    }
    let schema = present_schema(config, tasks).await;
    for (slot, head, Published { facts, age }) in found {
        let encoded = store.manifest(&slot, facts.id).await?;
        let manifest = Manifest::decode(&encoded)?;
        let mut out = std::io::stdout().lock();
        let terminal = out.is_terminal();
        let mut table = Table::new(["FACT", "VALUE"]);
        for (fact, value) in [
            ("org", org.to_string()),
            ("snapshot", facts.id.to_string()),
            ("generation", head.generation.0.to_string()),
            ("schema", slot.schema.to_string()),
            ("epoch", facts.epoch.to_string()),
            ("sync id", facts.sync_id.to_string()),
            ("age", duration(age, terminal)),
            ("rows", facts.rows.to_string()),
            ("stored", bytes(facts.len, terminal)),
            // With what is out of use in packs that an earlier snapshot has left.
            ("in packs", bytes(manifest.packs.iter().map(|pack| u64::from(pack.len)).sum(), terminal)),
            ("lines", bytes(facts.raw_len, terminal)),
            ("manifest", bytes(encoded.len() as u64, terminal)),
            ("packs", manifest.packs.len().to_string()),
            ("frames", manifest.frames.len().to_string()),
            ("group sets", manifest.sets.len().to_string()),
        ] {
            table.row([fact.to_owned(), value]);
        }
        table.write(&mut out, terminal)?;
        writeln!(out)?;
        let schema = schema.as_deref().filter(|schema| schema.hash == manifest.schema_hash);
        by_model(&manifest, schema, terminal).write(&mut out, terminal)?;
    }
    Ok(())
}

/// The schema in force; `None` while the database does not tell it.
async fn present_schema(config: &Config, tasks: &Tasks) -> Option<Arc<Schema>> {
    let schema = match app::open_source(config, tasks, &Metrics::new()) {
        Ok(source) => source.schema().await.map_err(AppError::from),
        Err(error) => Err(error),
    };
    schema.inspect_err(|error| eprintln!("warning: models are shown by their place: {}", Chain(error))).ok()
}

/// What each model takes. The manifest knows models by their place in the catalog of its schema; without that schema the
/// place is what is printed.
fn by_model(manifest: &Manifest, schema: Option<&Schema>, terminal: bool) -> Table {
    let mut models: BTreeMap<u32, (u64, u64, u64, u64)> = BTreeMap::new();
    for frame in &manifest.frames {
        let (frames, rows, len, raw_len) = models.entry(frame.model).or_default();
        *frames += 1;
        *rows += u64::from(frame.rows);
        *len += u64::from(frame.len);
        *raw_len += u64::from(frame.raw_len);
    }
    let mut table = Table::new(["MODEL", "FRAMES", "ROWS", "STORED", "LINES"]);
    for (model, (frames, rows, len, raw_len)) in models {
        let sizes = [bytes(len, terminal), bytes(raw_len, terminal)];
        let [len, raw_len] = sizes;
        let name = schema.and_then(|schema| schema.names().nth(model as usize));
        table.row([
            name.map_or_else(|| model.to_string(), str::to_owned),
            frames.to_string(),
            rows.to_string(),
            len,
            raw_len,
        ]);
    }
    table
}

/// For people in a unit they grasp, for pipes in bytes.
fn bytes(count: u64, terminal: bool) -> String {
    if terminal { HumanBytes(count).to_string() } else { count.to_string() }
}

/// For people in a unit they grasp, for pipes in seconds.
fn duration(time: Duration, terminal: bool) -> String {
    if terminal { HumanDuration(time).to_string() } else { time.as_secs().to_string() }
}
