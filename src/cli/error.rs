//! Why a command did not do as asked: the words on standard error and the exit code.

use std::process::ExitCode;

use crate::app::AppError;
use crate::auth::KeyError;
use crate::chain::Chain;
use crate::cli::INTERRUPTED;
use crate::cli::init::InitError;
use crate::cli::seed::SeedError;
use crate::config::ConfigErrors;
use crate::dump::DumpError;
use crate::dump::runner::RoundError;
use crate::snapshot::ManifestError;
use crate::source::SourceError;
use crate::source::migrate::MigrateError;
use crate::store::StoreError;
use crate::telemetry::TelemetryError;

/// Why a command did not do as asked.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    /// The settings.
    #[error(transparent)]
    Config(#[from] ConfigErrors),
    /// The log.
    #[error(transparent)]
    Telemetry(#[from] TelemetryError),
    /// The settings of the keys.
    #[error(transparent)]
    Keys(#[from] KeyError),
    /// The rooms could not be put together, or the service failed.
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
    /// A dump was read to its end, and could not be stored.
    #[error("the dump was read and not stored; the log says why")]
    Unpublished,
    /// Some orgs have no new snapshot. Each was told.
    #[error("{0} of the dumps failed")]
    Dumps(usize),
    /// Some orgs differ from their snapshots, or could not be compared. Each was told.
    #[error("orgs that differ: {differ}, that could not be compared: {failed}")]
    Verify {
        /// How many differ.
        differ: usize,
        /// How many could not be compared.
        failed: usize,
    },
    /// A stored manifest is damaged.
    #[error("a manifest in the store is damaged")]
    Manifest(#[from] ManifestError),
    /// The change log could not be made.
    #[error(transparent)]
    Migrate(#[from] MigrateError),
    /// The change log could not be trimmed.
    #[error(transparent)]
    Trim(#[from] RoundError),
    /// No catalog could be proposed.
    #[error(transparent)]
    Init(#[from] InitError),
    /// The demonstration workspace.
    #[error(transparent)]
    Seed(#[from] SeedError),
    /// `check` found errors; each was told.
    #[error("errors: {errors}, warnings: {warnings}")]
    Findings {
        /// How many errors; not zero.
        errors: usize,
        /// How many warnings.
        warnings: usize,
    },
    /// What was asked for does not exist.
    #[error("{0}")]
    Nothing(String),
    /// It was told to stop before it was done.
    #[error("stopped before it was done")]
    Interrupted,
    /// Standard output can't be written.
    #[error("the output can't be written")]
    Output(#[from] std::io::Error),
}

impl CliError {
    /// The code the process ends with; the help lists them.
    pub fn exit_code(&self) -> ExitCode {
        match self {
            Self::Config(_) | Self::Keys(_) | Self::Telemetry(_) => ExitCode::from(3),
            Self::App(error) if error.is_configuration() => ExitCode::from(3),
            Self::Interrupted => ExitCode::from(INTERRUPTED),
            // Whoever read the output has seen enough of it.
            Self::Output(error) if error.kind() == std::io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
            _ => ExitCode::FAILURE,
        }
    }

    /// Says it on standard error: each error on a line, with what caused it.
    pub fn print(&self) {
        match self {
            Self::Config(errors) => errors.0.iter().for_each(|error| eprintln!("error: {}", Chain(error))),
            Self::Output(error) if error.kind() == std::io::ErrorKind::BrokenPipe => {}
            other => eprintln!("error: {}", Chain(other)),
        }
    }
}
