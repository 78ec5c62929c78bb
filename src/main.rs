//! Reads the command line, and passes the wish to stop on to whatever runs.

use std::process::ExitCode;

use clap::Parser;
use headstart::cli::{self, Cli};
use tokio::runtime::Builder;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// After how many steps of tasks a thread looks for what has come in meanwhile. Tokio's own 61 are for short steps; those of
/// answers take a quarter of a millisecond, and a new request would wait for all of them.
const STEPS_BETWEEN_LOOKS: u32 = 7;

/// How many arenas glibc's allocator has for each core; its own 8 are for threads that all allocate at once. Ours take turns, and
/// every arena keeps what was freed in it: a dump of a million rows takes 84 MiB in place of 111 (two cores).
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const ARENAS_PER_CORE: usize = 2;

fn main() -> ExitCode {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    bound_arenas();
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

/// Bounds the arenas, unless the environment says how many (mallopt(3), and the tunables of glibc's manual).
#[cfg(all(target_os = "linux", target_env = "gnu"))]
fn bound_arenas() {
    let tunables = std::env::var("GLIBC_TUNABLES").unwrap_or_default();
    if std::env::var_os("MALLOC_ARENA_MAX").is_some() || tunables.contains("arena_max") {
        return;
    }
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let arenas = i32::try_from(cores * ARENAS_PER_CORE).unwrap_or(i32::MAX);
    #[expect(unsafe_code, reason = "the constant's documentation says what it saves")]
    // SAFETY: it sets a number of the allocator's, under its own lock; there is no other thread yet. A number that it does not take
    // leaves it as it was.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, arenas);
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
