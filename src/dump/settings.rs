//! Settings `[dump]`.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// How dumps are made. The units stand in the names; `config/headstart.toml` says what each costs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DumpSettings {
    /// Folder of the spool files; empty: the system's temporary directory.
    pub spool_dir: PathBuf,
    /// What all spool files may take together.
    pub spool_max_bytes: u64,
    /// Dumps at a time.
    pub concurrent: usize,
    /// Dumps that may wait for one of those places; past it requests are refused.
    pub waiting: usize,
    /// Raw bytes of frames being filled, for each dump.
    pub open_bytes: usize,
    /// zstd level, 1 to 19.
    pub compression_level: i32,
    /// Frames compressed at a time by one dump, and up to twice as many by a refresh; 0: as many as there are cores.
    pub compressors: usize,
    /// Percent of an org's rows that may have changed for a refresh; past it the org is read as a whole. 0: always.
    pub refresh_max_percent: u64,
    /// Refreshes after which the org is read as a whole once. 0: never refresh.
    pub refresh_max_count: u32,
    /// Whether the background job runs.
    pub background: bool,
    /// Seconds between two rounds of the background job.
    pub interval_s: u64,
    /// Seconds a lease lasts without being renewed.
    pub lease_s: u64,
    /// Seconds between two looks at which orgs exist.
    pub orgs_interval_s: u64,
    /// Seconds between two sweeps of the store.
    pub sweep_interval_s: u64,
    /// Seconds since it was published after which a snapshot of another schema is deleted.
    pub old_schemas_s: u64,
}

impl DumpSettings {
    /// Where spool files go.
    pub fn spool_dir(&self) -> PathBuf {
        if self.spool_dir.as_os_str().is_empty() { std::env::temp_dir() } else { self.spool_dir.clone() }
    }

    /// How many frames one dump compresses at a time. A refresh takes as many packs apart besides.
    pub fn compressors(&self) -> usize {
        match self.compressors {
            0 => std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
            some => some,
        }
    }

    /// How long a lease lasts.
    pub fn lease(&self) -> Duration {
        Duration::from_secs(self.lease_s)
    }
}

impl Default for DumpSettings {
    /// What `config/headstart.toml` says; a test holds the two together.
    fn default() -> Self {
        Self {
            spool_dir: PathBuf::new(),
            spool_max_bytes: 8 << 30,
            concurrent: 2,
            waiting: 64,
            open_bytes: 24 << 20,
            compression_level: 3,
            compressors: 0,
            refresh_max_percent: 10,
            refresh_max_count: 1000,
            background: true,
            interval_s: 10,
            lease_s: 30,
            orgs_interval_s: 300,
            sweep_interval_s: 600,
            old_schemas_s: 7 * 24 * 3600,
        }
    }
}
