//! The settings: what they are, where they come from, and whether they fit together.
//!
//! Floor 7. Each room has its own settings struct beside the code it sets; this room only gathers them. The embedded
//! default file *defines* the set (see [`setting`]): a room that adds a field adds a line there, and a test fails
//! until it does. Reading takes three steps, each of which reports all its faults at once:
//!
//! 1. [`Layers::read`]: embedded file, then a file, then the environment, each value checked by name, type and range;
//! 2. [`Config::new`]: the values become the rooms' structs;
//! 3. [`checks`]: do they fit together?
//!
//! Nothing here connects to anything; `headstart check` does.

pub mod checks;
pub mod layers;
mod leaf;
pub mod secret;
pub mod setting;

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::auth::AuthSettings;
pub use crate::config::layers::{InForce, Layers, Origin};
use crate::dump::DumpSettings;
use crate::dump::policy::Limits;
use crate::dump::trim::TrimSettings;
use crate::http::HttpSettings;
use crate::http::admin::AdminSettings;
use crate::http::admission::AdmissionSettings;
use crate::metrics::MetricsSettings;
use crate::serve::batch::LoaderSettings;
use crate::serve::batch::answer::BatchSettings;
use crate::serve::bootstrap::BootstrapSettings;
use crate::serve::delta::DeltaSettings;
use crate::source::postgres::pool::PoolSettings;
use crate::source::postgres::replica::ReplicaSettings;
use crate::source::postgres::scan::ScanSettings;
use crate::source::postgres::watermark::WatermarkSettings;
use crate::store::StoreSettings;
use crate::telemetry::LogSettings;
use crate::telemetry::otlp::OtlpSettings;
use crate::verify::rounds::VerifySettings;

/// Every setting of the service, by section.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The models.
    pub catalog: CatalogSection,
    /// The application's database.
    pub postgres: PostgresSection,
    /// When its standby is read instead.
    pub replica: ReplicaSettings,
    /// How dumps read it.
    pub scan: ScanSettings,
    /// Where snapshots are kept.
    pub store: StoreSettings,
    /// How they are made.
    pub dump: DumpSettings,
    /// When they are made anew.
    pub freshness: Limits,
    /// How long the change log is kept.
    pub trim: TrimSettings,
    /// Whether snapshots are held against the live rows on a schedule.
    pub verify: VerifySettings,
    /// What a bootstrap allows.
    pub bootstrap: BootstrapSettings,
    /// What a delta allows.
    pub delta: DeltaSettings,
    /// What a batch may ask for.
    pub batch: BatchSettings,
    /// How rows are loaded by key.
    pub loader: LoaderSettings,
    /// How far open writers may hold the watermark back.
    pub watermark: WatermarkSettings,
    /// How clients are served.
    pub http: HttpSettings,
    /// How many requests are worked on at once.
    pub admission: AdmissionSettings,
    /// The admin listener.
    pub admin: AdminSettings,
    /// Who is let in.
    pub auth: AuthSettings,
    /// What metrics tell.
    pub metrics: MetricsSettings,
    /// The log.
    pub log: LogSettings,
    /// Where traces go.
    pub otlp: OtlpSettings,
}

/// `[catalog]`
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CatalogSection {
    /// The catalog file.
    pub path: PathBuf,
}

/// `[postgres]`
#[derive(Clone, Serialize, Deserialize)]
pub struct PostgresSection {
    /// The primary; empty: not set.
    #[serde(default)]
    pub url: String,
    /// A standby of it; empty: not set.
    #[serde(default)]
    pub replica_url: String,
    /// Seconds to wait at the start for it to answer.
    pub startup_wait_s: u64,
    /// The connections to each server.
    #[serde(flatten)]
    pub pool: PoolSettings,
}

impl PostgresSection {
    /// How long to wait at the start for the database to answer.
    pub fn startup_wait(&self) -> Duration {
        Duration::from_secs(self.startup_wait_s)
    }
}

impl Config {
    /// The layers' values as the rooms take them, checked against each other.
    ///
    /// # Errors
    /// Every value that its room refuses; else everything that does not fit together.
    pub fn new(layers: &Layers) -> Result<Self, ConfigErrors> {
        let config = match Self::deserialize(layers.table(|entry| &entry.value)) {
            Ok(config) => config,
            Err(cause) => return Err(refused(layers, cause)),
        };
        let faults = checks::faults(&config);
        if faults.is_empty() { Ok(config) } else { Err(ConfigErrors(faults)) }
    }
}

/// Finds out who is to blame: the values that do not pass even when all others are the defaults.
fn refused(layers: &Layers, cause: toml::de::Error) -> ConfigErrors {
    let alone = |blamed: &InForce| {
        let is_it = |entry: &InForce| entry.setting.path == blamed.setting.path;
        let pick = |entry| if is_it(entry) { &entry.value } else { &entry.setting.default };
        Config::deserialize(layers.table(pick)).err()
    };
    let faults: Vec<_> = (layers.in_force().iter())
        .filter_map(|entry| {
            let error = alone(entry)?;
            // The message may quote the value.
            let fault = if entry.setting.is_secret() { "it can't be read" } else { error.message() };
            let (key, origin) = (entry.setting.path.clone(), entry.origin.clone());
            Some(ConfigError::Value { key, origin, fault: fault.to_owned() })
        })
        .collect();
    if faults.is_empty() { ConfigErrors(vec![ConfigError::Refused(Box::new(cause))]) } else { ConfigErrors(faults) }
}

/// What is wrong with the settings.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file can't be read.
    #[error("the settings in {} can't be read", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        cause: std::io::Error,
    },
    /// The file is not TOML.
    #[error("{} is not TOML", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Where and why.
        #[source]
        cause: Box<toml::de::Error>,
    },
    /// A key that is no setting.
    #[error("there is no setting `{key}` ({origin}){}", near.as_ref().map(|near| format!("; `{near}` is one")).unwrap_or_default())]
    Unknown {
        /// As it is written.
        key: String,
        /// Where it stands.
        origin: Origin,
        /// What was most likely meant.
        near: Option<String>,
    },
    /// A secret and the file with it are both given.
    #[error("`{one}` and `{other}` are both given ({origin}): leave one out")]
    Twice {
        /// The one.
        one: String,
        /// The other.
        other: String,
        /// Where they stand.
        origin: Origin,
    },
    /// A value of the wrong type, out of range, or malformed.
    #[error("`{key}` ({origin}): {fault}")]
    Value {
        /// The setting.
        key: String,
        /// Where the value stands.
        origin: Origin,
        /// What is expected.
        fault: String,
    },
    /// The file with a secret can't be read.
    #[error("`{key}` can't be read from {} ({named_by})", path.display())]
    SecretFile {
        /// The setting.
        key: String,
        /// The file.
        path: PathBuf,
        /// Who named it.
        named_by: Origin,
        /// Why.
        #[source]
        cause: std::io::Error,
    },
    /// Settings that do not fit together.
    #[error("{settings}: {fault}")]
    Check {
        /// Which.
        settings: &'static str,
        /// What is wrong, and how to mend it.
        fault: String,
    },
    /// The values were refused together, and none of them alone.
    #[error("the settings can't be read")]
    Refused(#[source] Box<toml::de::Error>),
}

/// All faults found in one step; never empty.
#[derive(Debug, thiserror::Error)]
#[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
pub struct ConfigErrors(pub Vec<ConfigError>);
