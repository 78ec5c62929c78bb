//! Reads the command line, and passes the wish to stop on to whatever runs.

use std::process::ExitCode;

use clap::Parser;
use headstart::cli::{self, Cli};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

#[tokio::main]
async fn main() -> ExitCode {
    let cli = Cli::parse();
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
