//! The command line: one file per subcommand.
//!
//! Floor 7. What is asked for goes to standard output, aligned for people on a terminal and plain in a pipe; everything
//! else (progress, warnings, the log, errors) goes to standard error.

pub mod check;
pub mod config;
pub mod dump;
mod error;
pub mod init;
pub mod migrate;
mod orgs;
pub mod probe;
pub mod seed;
pub mod serve;
pub mod snapshots;
mod table;
pub mod token;
pub mod verify;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use tokio_util::sync::CancellationToken;

use crate::app::{self, AppError, Rooms};
pub use crate::cli::error::CliError;
use crate::config::{Config, Layers, Origin};
use crate::task::Tasks;
use crate::telemetry;

const EXAMPLES: &str = "\
Examples:
  headstart seed --scale small            a workspace to try it with
  headstart init                          or a first catalog for tables of your own
  headstart migrate --apply               the change log in the database
  headstart check                         whether all is in order
  headstart serve                         the service
  headstart token --org 7 --user 42       a token for it
  headstart dump --all                    snapshots for every org whose own is not fresh
  headstart verify --all                  whether they, and the changes after them, are what the tables hold
  headstart config postgres --explain     what is set of PostgreSQL, and what it means

Exit codes:
  0    done
  1    it failed, a check found an error, or verify a difference
  2    the command line makes no sense
  3    the settings or the catalog make none, or don't fit the tables
  130  it was told to stop before it was done";

/// What commands other than `serve` log when nobody says otherwise.
const QUIET: &str = "warn";

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
    /// Run the service until it is told to stop
    Serve,
    #[command(flatten)]
    Job(Job),
    /// Print every setting in force, its source and its name in the environment
    Config(config::ConfigArgs),
}

/// The commands that do one thing and end.
#[derive(Subcommand)]
enum Job {
    /// Propose a catalog for the tables that are there
    Init(init::InitArgs),
    /// Look at the settings, the catalog, the database and the store, and say what is wrong and how to mend it
    Check,
    /// Print what the change log needs in the database, or make it
    Migrate(migrate::MigrateArgs),
    /// Make snapshots now, of one org or of all
    Dump(dump::DumpArgs),
    /// Hold snapshots and the changes after them against the live rows, and name what differs
    Verify(verify::VerifyArgs),
    /// List, show or delete the snapshots in the store
    Snapshots(snapshots::SnapshotsArgs),
    /// Print a token for development, signed with auth.hs256_secret
    Token(token::TokenArgs),
    /// Ask the running service of these settings whether it is well; for health checks
    Probe(probe::ProbeArgs),
    /// Fill the database with a demonstration workspace
    Seed(seed::SeedArgs),
}

impl Cli {
    /// Carries the command out and says what went wrong on standard error. `stop` ends the service in order and any
    /// other command at once.
    pub async fn run(self, stop: CancellationToken) -> ExitCode {
        // The commands' futures are large, and are made once.
        match Box::pin(self.carry_out(stop)).await {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                error.print();
                error.exit_code()
            }
        }
    }

    async fn carry_out(self, stop: CancellationToken) -> Result<(), CliError> {
        let variable = std::env::var_os("HEADSTART_CONFIG").filter(|path| !path.is_empty());
        let file = self.config.or(variable.map(PathBuf::from));
        let layers = Layers::read(file.as_deref(), std::env::vars_os())?;
        layers.warnings().iter().for_each(|warning| eprintln!("warning: {warning}"));
        match self.command {
            Command::Config(args) => config::run(&args, &layers),
            Command::Serve => {
                let config = Config::new(&layers)?;
                let traces = telemetry::init(&config.log, Some(&config.otlp))?;
                serve::run(&layers, traces, stop).await
            }
            Command::Job(job) => {
                let config = Config::new(&layers)?;
                log_quietly(&layers, &config)?;
                let ended = Box::pin(stop.run_until_cancelled(job.carry_out(&config))).await;
                ended.unwrap_or(Err(CliError::Interrupted))
            }
        }
    }
}

impl Job {
    async fn carry_out(self, config: &Config) -> Result<(), CliError> {
        match self {
            Self::Init(args) => with_tasks(async |tasks| init::run(&args, config, tasks).await).await,
            Self::Check => with_tasks(async |tasks| check::run(config, tasks).await).await,
            Self::Migrate(args) => with_tasks(async |tasks| migrate::run(&args, config, tasks).await).await,
            Self::Dump(args) => {
                let rooms = Rooms::open(config).await?;
                let done = dump::run(args, &rooms, &config.freshness).await;
                let closed = rooms.close().await;
                done.and(closed.map_err(CliError::from))
            }
            Self::Verify(args) => {
                let rooms = Rooms::open(config).await?;
                let done = verify::run(&args, &rooms).await;
                let closed = rooms.close().await;
                done.and(closed.map_err(CliError::from))
            }
            Self::Snapshots(args) => with_tasks(async |tasks| snapshots::run(args, config, tasks).await).await,
            Self::Token(args) => token::run(args, config),
            Self::Probe(args) => probe::run(&args, config).await,
            Self::Seed(args) => {
                if config.postgres.url.is_empty() {
                    return Err(AppError::NoDatabase.into());
                }
                let made = seed::seed(&config.postgres.url, args.scale, args.reset, &seed::progress_bar()).await?;
                print!("{made}");
                Ok(())
            }
        }
    }
}

/// Gives the work tasks of its own, and ends them with it.
async fn with_tasks(work: impl AsyncFnOnce(&Tasks) -> Result<(), CliError>) -> Result<(), CliError> {
    let tasks = Tasks::new();
    let done = work(&tasks).await;
    let ended = tasks.shutdown(app::END_WITHIN).await;
    done.and(ended.map_err(|error| AppError::from(error).into()))
}

/// Progress and results are what a command says. The log only tells what is wrong, unless the environment wants more.
fn log_quietly(layers: &Layers, config: &Config) -> Result<(), CliError> {
    let mut log = config.log.clone();
    let filter = layers.in_force().iter().find(|entry| entry.setting.path == "log.filter");
    if !filter.is_some_and(|entry| matches!(entry.origin, Origin::Environment(_))) {
        log.filter = QUIET.to_owned();
    }
    telemetry::init(&log, None)?;
    Ok(())
}
