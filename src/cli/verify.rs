//! `headstart verify`: whether what clients get is what the database holds.

use std::io::IsTerminal;

use clap::Args;
use futures_util::{StreamExt, stream};
use indicatif::{HumanCount, MultiProgress};

use crate::app::Rooms;
use crate::chain::Chain;
use crate::cli::CliError;
use crate::cli::orgs::{bar, chosen};
use crate::model::Org;
use crate::verify::{Outcome, Verifier, VerifyError};

/// Orgs that are compared at the same time: each takes a scan, and memory for all its rows.
const AT_ONCE: usize = 2;

/// Arguments of `headstart verify`.
#[derive(Args)]
#[group(required = true, multiple = true, args = ["org", "all"])]
pub struct VerifyArgs {
    /// This org
    #[arg(long, conflicts_with = "all")]
    org: Option<String>,
    /// Every org
    #[arg(long)]
    all: bool,
    /// How many differences of an org are named
    #[arg(long, value_name = "COUNT", default_value_t = 10)]
    first: usize,
}

/// Compares the orgs, a few at a time, and tells of each when it is done. Any difference fails the command.
pub async fn run(args: &VerifyArgs, rooms: &Rooms) -> Result<(), CliError> {
    let orgs = chosen(rooms, args.org.as_deref()).await?;
    let verifier = Verifier::new(rooms.source.clone(), rooms.store.clone(), rooms.metrics.clone());
    let bars = MultiProgress::new();
    let outcomes = orgs.into_iter().map(|org| {
        let (bar, verifier) = (bars.add(bar(&org)), verifier.clone());
        async move {
            let draw = |rows: u64, all: u64| {
                // The estimate is the planner's, and may be short of the truth.
                bar.set_length(all.max(rows));
                bar.set_position(rows);
            };
            let outcome = verifier.verify(&org, args.first, &draw).await;
            bar.finish_and_clear();
            (org, outcome)
        }
    });
    let terminal = std::io::stdout().is_terminal();
    let mut outcomes = stream::iter(outcomes).buffered(AT_ONCE);
    let (mut differ, mut failed) = (0, 0);
    while let Some((org, outcome)) = outcomes.next().await {
        differ += usize::from(matches!(outcome, Ok(Outcome::Differs { .. })));
        failed += usize::from(outcome.is_err());
        bars.suspend(|| tell(&org, &outcome, terminal));
    }
    if differ + failed == 0 { Ok(()) } else { Err(CliError::Verify { differ, failed }) }
}

/// Words for people, tabs for pipes: the org, the outcome, how many rows, and how many changed or differ; then a line for
/// each difference that is named.
fn tell(org: &Org, outcome: &Result<Outcome, VerifyError>, terminal: bool) {
    match outcome {
        Ok(Outcome::Agrees { rows, changed }) if terminal => {
            let (rows, changed) = (HumanCount(*rows), HumanCount(*changed));
            println!("org {org}: {rows} rows agree; {changed} changed since the snapshot, and the log tells of each");
        }
        Ok(Outcome::Agrees { rows, changed }) => println!("{org}\tagrees\t{rows}\t{changed}"),
        Ok(Outcome::Differs { rows, count, first }) => {
            if terminal {
                println!("org {org}: of {} rows {} differ:", HumanCount(*rows), HumanCount(*count));
            } else {
                println!("{org}\tdiffers\t{rows}\t{count}");
            }
            let lead = if terminal { "  ".to_owned() } else { format!("{org}\tdifference\t") };
            first.iter().for_each(|difference| println!("{lead}{difference}"));
            if terminal && (first.len() as u64) < *count {
                println!("  and {} more", HumanCount(*count - first.len() as u64));
            }
        }
        Ok(Outcome::Nothing(why)) if terminal => println!("org {org}: nothing to compare: {why}"),
        Ok(Outcome::Nothing(why)) => println!("{org}\tnothing\t{why}"),
        Err(error) => eprintln!("error: org {org}: {}", Chain(error)),
    }
}
