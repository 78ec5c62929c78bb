//! Reads the command line, and passes the wish to stop on to whatever runs.

use std::process::ExitCode;

use clap::Parser;
use headstart::cli::{self, Cli};
use tikv_jemallocator::Jemalloc;
use tokio::runtime::Builder;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// After how many steps of tasks a thread looks for what has come in meanwhile. Tokio's own 61 are for short steps; those of
/// answers take a quarter of a millisecond, and a new request would wait for all of them.
const STEPS_BETWEEN_LOOKS: u32 = 7;

/// Answers wander between threads, and what one has allocated another frees: batches spent a seventh of the service's processor time
/// waiting for the locks of glibc's arenas, and take a fifth less with this one. `.cargo/config.toml` says how it is built.
#[global_allocator]
static ALLOCATOR: Jemalloc = Jemalloc;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let runtime = Builder::new_multi_thread().enable_all().event_interval(STEPS_BETWEEN_LOOKS).build();
    match runtime {
        Ok(runtime) => runtime.block_on(run(cli)),
        Err(error) => {
            eprintln!("error: the threads that serve can't be started: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn run(cli: Cli) -> ExitCode {
    let (mut terminate, mut interrupt) = match (signal(SignalKind::terminate()), signal(SignalKind::interrupt())) {
        (Ok(terminate), Ok(interrupt)) => (terminate, interrupt),
        (Err(error), _) | (_, Err(error)) => {
            eprintln!("error: signals can't be listened for: {error}");
            return ExitCode::FAILURE;
        }
    };
    let stop = CancellationToken::new();
    let mut command = std::pin::pin!(cli.run(stop.clone()));
    loop {
        tokio::select! {
            code = &mut command => return code,
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        // The first asks the command to end in order; the second does not wait for that.
        if stop.is_cancelled() {
            return ExitCode::from(cli::INTERRUPTED);
        }
        stop.cancel();
    }
}
