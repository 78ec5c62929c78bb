//! Assembly: the rooms put together, for the service and for the commands that use a part of it.
//!
//! Floor 7. The only place that knows which source and which store there are. [`run`] is the whole service: the binary
//! gives it the signals, tests give it listeners on port 0.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::dump::Dumps;
use crate::metrics::Metrics;
use crate::model::Catalog;
use crate::model::catalog::CatalogError;
use crate::source::Source;
use crate::store::SnapshotStore;
use crate::task::Tasks;

/// The rooms below the service: what reads, what keeps, and what makes one out of the other.
pub struct Rooms {
    /// What all work is spawned on.
    pub tasks: Tasks,
    /// What all rooms count.
    pub metrics: Metrics,
    /// The application's database.
    pub source: Arc<dyn Source>,
    /// Where snapshots are kept.
    pub store: Arc<dyn SnapshotStore>,
    /// The dumps of this process.
    pub dumps: Dumps,
}

/// Reads the catalog file.
///
/// # Errors
/// When it can't be read, and everything that is wrong in it.
pub fn read_catalog(path: &Path) -> Result<Catalog, AppError> {
    let text = std::fs::read_to_string(path).map_err(|cause| AppError::CatalogFile { path: path.into(), cause })?;
    Catalog::parse(&text).map_err(|faults| AppError::Catalog { path: path.into(), faults })
}

/// Why the service does not run, or ended in disorder.
#[derive(Debug, thiserror::Error)]
pub enum AppError {
    /// The catalog file can't be read.
    #[error("the catalog {} can't be read; `catalog.path` names it", path.display())]
    CatalogFile {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        cause: std::io::Error,
    },
    /// The catalog makes no sense.
    #[error("the catalog {} is not in order:\n{}", path.display(), lines(faults))]
    Catalog {
        /// The file.
        path: PathBuf,
        /// Everything that is wrong in it; never empty.
        faults: Vec<CatalogError>,
    },
}

fn lines(faults: &[CatalogError]) -> String {
    faults.iter().map(|fault| format!("  {fault}")).collect::<Vec<_>>().join("\n")
}
