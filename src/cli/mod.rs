//! The command line: one file per subcommand.
//!
//! Floor 7. What is asked for goes to standard output, aligned for people on a terminal and plain in a pipe; everything
//! else (progress, warnings, the log, errors) goes to standard error.

pub mod config;
pub mod dump;
pub mod seed;
pub mod snapshots;
mod table;
pub mod token;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use tokio_util::sync::CancellationToken;

use crate::app::AppError;
use crate::auth::KeyError;
use crate::chain::Chain;
use crate::config::{Config, ConfigErrors, Layers};
use crate::dump::DumpError;
use crate::snapshot::ManifestError;
use crate::source::SourceError;
use crate::store::StoreError;

const EXAMPLES: &str = "\
Examples:
  headstart config postgres               what is set of PostgreSQL, and where
  headstart token --org 7 --user 42       a token to try it with

Exit codes:
  0  done
  1  it failed, or a check found an error
  2  the command line makes no sense
  3  the settings or the catalog do";

/// The exit code of a command that was told to stop before it was done: the shell's word for SIGINT.
pub const INTERRUPTED: u8 = 130;

/// The whole command line.
#[derive(Parser)]
#[command(name = "headstart", version, about = "Bootstraps for local-first applications", after_help = EXAMPLES)]
pub struct Cli {
    /// The file with the settings [env: HEADSTART_CONFIG] [default: config/headstart.toml, if it exists]
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Print a token for development, signed with auth.hs256_secret
    Token(token::TokenArgs),
    /// Print every setting in force, its source and its name in the environment
    Config(config::ConfigArgs),
}

impl Cli {
    /// Carries the command out and says what went wrong on standard error. `stop` ends what runs until it is told to.
    pub async fn run(self, stop: CancellationToken) -> ExitCode {
        match self.carry_out(stop).await {
            Ok(()) => ExitCode::SUCCESS,
            // Whoever read the output has seen enough of it.
            Err(CliError::Output(error)) if error.kind() == std::io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
            Err(error) => {
                error.print();
                error.exit_code()
            }
        }
    }

    async fn carry_out(self, _stop: CancellationToken) -> Result<(), CliError> {
        let file = self.config.or_else(|| variable("HEADSTART_CONFIG").map(PathBuf::from));
        let layers = Layers::read(file.as_deref(), std::env::vars_os())?;
        layers.warnings().iter().for_each(|warning| eprintln!("warning: {warning}"));
        match self.command {
            Command::Token(args) => token::run(args, &Config::new(&layers)?),
            Command::Config(args) => config::run(&args, &layers),
        }
    }
}

fn variable(name: &str) -> Option<OsString> {
    std::env::var_os(name).filter(|value| !value.is_empty())
}

/// Why a command did not do as asked.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    /// The settings.
    #[error(transparent)]
    Config(#[from] ConfigErrors),
    /// The settings of the keys.
    #[error(transparent)]
    Keys(#[from] KeyError),
    /// What was asked for does not exist.
    #[error("{0}")]
    Nothing(String),
    /// A dump was read to its end, and could not be stored.
    #[error("the dump was read and not stored; the log says why")]
    Unpublished,
    /// Some orgs have no new snapshot. Each was told.
    #[error("{0} dumps failed")]
    Dumps(usize),
    /// The rooms could not be put together.
    #[error(transparent)]
    App(#[from] AppError),
    /// The database.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A dump.
    #[error(transparent)]
    Dump(#[from] DumpError),
    /// A stored manifest is damaged.
    #[error("a manifest in the store is damaged")]
    Manifest(#[from] ManifestError),
    /// Standard output can't be written.
    #[error("the output can't be written")]
    Output(#[from] std::io::Error),
}

impl CliError {
    fn exit_code(&self) -> ExitCode {
        ExitCode::from(match self {
            Self::Config(_) | Self::Keys(_) => 3,
            Self::App(AppError::Catalog { .. } | AppError::CatalogFile { .. }) => 3,
            _ => 1,
        })
    }

    /// Each error on a line, with what caused it.
    fn print(&self) {
        match self {
            Self::Config(errors) => errors.0.iter().for_each(|error| eprintln!("error: {}", Chain(error))),
            other => eprintln!("error: {}", Chain(other)),
        }
    }
}
