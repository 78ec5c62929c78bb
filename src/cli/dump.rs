//! `headstart dump`: snapshots made now, by hand.

use std::io::IsTerminal;
use std::time::Duration;

use clap::Args;
use futures_util::{StreamExt, stream};
use indicatif::{HumanCount, MultiProgress, ProgressBar};
use tokio::time::{Instant, interval};

use crate::app::Rooms;
use crate::chain::Chain;
use crate::cli::CliError;
use crate::cli::orgs::{bar, chosen};
use crate::dump::live::LiveDump;
use crate::dump::policy::{Candidate, Limits, Verdict, judge};
use crate::dump::{DumpError, Joined, Refreshed, Settled, Wish};
use crate::model::Org;
use crate::store::Slot;

/// How often a bar is drawn anew.
const REDRAW: Duration = Duration::from_millis(100);

/// Arguments of `headstart dump`.
#[derive(Args)]
#[group(required = true, multiple = true, args = ["org", "all"])]
pub struct DumpArgs {
    /// This org
    #[arg(long, conflicts_with = "all")]
    org: Option<String>,
    /// Every org
    #[arg(long)]
    all: bool,
    /// Also where the stored snapshot is fresh, and without resting on it: everything is read
    #[arg(long)]
    full: bool,
}

/// What became of an org.
enum Outcome {
    /// A snapshot was made and published.
    Made { rows: u64, elapsed: Duration },
    /// The stored one was refreshed: so many rows of it were read.
    Refreshed { rows: u64, read: u64, elapsed: Duration },
    /// The stored one is fresh, or another instance was faster.
    Fresh,
}

/// Makes the snapshots, a few at a time, and tells of each when it is done.
pub async fn run(args: DumpArgs, rooms: &Rooms, limits: &Limits) -> Result<(), CliError> {
    let schema = rooms.source.schema().await?;
    let orgs = chosen(rooms, args.org.as_deref()).await?;
    let terminal = std::io::stdout().is_terminal();
    let bars = MultiProgress::new();
    let slots = orgs.into_iter().map(|org| Slot { org, schema: schema.hash.clone() });
    let outcomes = slots.map(|slot| {
        let bar = bars.add(bar(&slot.org));
        async move {
            let outcome = dump(rooms, &slot, args.full, limits, &bar).await;
            bar.finish_and_clear();
            (slot.org, outcome)
        }
    });
    // As many as run at a time: none of them is refused for want of a place to wait.
    let mut outcomes = stream::iter(outcomes).buffer_unordered(rooms.dumps.settings().concurrent.max(1));
    let mut failed = 0;
    while let Some((org, outcome)) = outcomes.next().await {
        failed += usize::from(outcome.is_err());
        bars.suspend(|| tell(&org, outcome, terminal));
    }
    if failed == 0 { Ok(()) } else { Err(CliError::Dumps(failed)) }
}

async fn dump(rooms: &Rooms, slot: &Slot, full: bool, limits: &Limits, bar: &ProgressBar) -> Result<Outcome, CliError> {
    let looked = Instant::now();
    if !full && is_fresh(rooms, slot, limits).await? {
        return Ok(Outcome::Fresh);
    }
    let wish = if full { Wish::New } else { Wish::Published };
    match rooms.dumps.join(slot, wish, looked, &"the command line asks for it")? {
        Joined::Live(live) => {
            let settled = follow(&live, bar).await;
            if let Some(Refreshed { rows, read, took, .. }) = live.refreshed() {
                return Ok(Outcome::Refreshed { rows, read, elapsed: took });
            }
            match (live.end(), settled) {
                // Another instance was faster.
                (Some(Err(DumpError::Elsewhere)), _) => Ok(Outcome::Fresh),
                (Some(Err(error)), _) => Err(error.into()),
                (_, Settled::Published) => Ok(Outcome::Made { rows: live.rows(), elapsed: looked.elapsed() }),
                (_, Settled::Unpublished) => Err(CliError::Unpublished),
            }
        }
        Joined::Published => Ok(Outcome::Fresh),
    }
}

async fn is_fresh(rooms: &Rooms, slot: &Slot, limits: &Limits) -> Result<bool, CliError> {
    let head = rooms.store.head(slot).await?;
    let Some(current) = head.current else { return Ok(false) };
    let since = [(slot.org.clone(), current.facts.sync_id)];
    let pending = rooms.source.pending(&since, limits.count_cap()).await?;
    let candidate = Candidate {
        epoch: &current.facts.epoch,
        sync_id: current.facts.sync_id,
        age: current.age,
        pending: pending.first().copied().unwrap_or_default(),
    };
    Ok(judge(Some(&candidate), &rooms.source.epoch().await?, limits) == Verdict::Fresh)
}

/// Draws the progress until the dump is stored, or is not.
async fn follow(live: &LiveDump, bar: &ProgressBar) -> Settled {
    let draw = async {
        let mut redraw = interval(REDRAW);
        loop {
            redraw.tick().await;
            if let Some(opened) = live.opened() {
                // The estimate is the planner's, and may be short of the truth.
                bar.set_length(opened.estimated_rows.max(live.rows()));
                bar.set_position(live.rows());
            }
        }
    };
    tokio::select! {
        settled = live.wait_settled() => settled,
        () = draw => Settled::Unpublished,
    }
}

/// A line of its own for each org: words for people, tabs for pipes. What failed goes to standard error.
fn tell(org: &Org, outcome: Result<Outcome, CliError>, terminal: bool) {
    match outcome {
        Ok(Outcome::Made { rows, elapsed }) if terminal => {
            println!("org {org}: {} rows in {:.1} s", HumanCount(rows), elapsed.as_secs_f64());
        }
        Ok(Outcome::Made { rows, elapsed }) => println!("{org}\tmade\t{rows}\t{:.3}", elapsed.as_secs_f64()),
        Ok(Outcome::Refreshed { rows, read, elapsed }) if terminal => {
            let (rows, read, seconds) = (HumanCount(rows), HumanCount(read), elapsed.as_secs_f64());
            println!("org {org}: {rows} rows, of which {read} were read, in {seconds:.1} s (--full reads all)");
        }
        Ok(Outcome::Refreshed { rows, read, elapsed }) => {
            println!("{org}\trefreshed\t{rows}\t{:.3}\t{read}", elapsed.as_secs_f64());
        }
        Ok(Outcome::Fresh) if terminal => println!("org {org}: fresh, left as it is (--full makes a new one)"),
        Ok(Outcome::Fresh) => println!("{org}\tfresh\t\t"),
        Err(error) => eprintln!("error: org {org}: {}", Chain(&error)),
    }
}
