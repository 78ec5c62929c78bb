//! The PostgreSQL reader against a test's own database.

use std::num::NonZeroU32;
use std::sync::Arc;

use futures_util::StreamExt;
use headstart::metrics::PoolMetrics;
use headstart::model::{Catalog, Org, SyncGroup};
use headstart::source::SourceError;
use headstart::source::postgres::columns::{self, Layout};
use headstart::source::postgres::pool::{Pool, PoolSettings};
use headstart::source::postgres::scan::{self, Opened, ScanError, ScanSettings};
use headstart::source::postgres::tls::Target;
use headstart::task::Tasks;

use super::postgres::Database;

/// A pool and the layout it found.
pub struct Reader {
    pub pool: Pool,
    pub tasks: Tasks,
    pub settings: ScanSettings,
    pub layout: Layout,
}

/// One row as a scan gives it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Line {
    pub class: String,
    pub text: String,
    pub groups: Vec<String>,
}

impl Reader {
    /// Reads the layout of a catalog that fits.
    pub async fn new(database: &Database, catalog: &str) -> Self {
        let (pool, tasks) = pool(database, 4);
        let layout = layout(&pool, catalog).await.unwrap_or_else(|faults| panic!("{}", faults.join("\n")));
        Self { pool, tasks, settings: ScanSettings::default(), layout }
    }

    /// Opens a scan.
    pub async fn open(&self, org: &str) -> Result<Opened, ScanError> {
        scan::open(self.pool.get().await?, &self.tasks, &self.layout, &Org::new(org), &self.settings).await
    }

    /// All rows of an org, sorted.
    pub async fn rows(&self, org: &str) -> Result<Vec<Line>, SourceError> {
        let opened = self.open(org).await.map_err(|error| match error {
            ScanError::Source(source) => source,
            ScanError::Changed => panic!("{error}"),
        })?;
        lines(opened).await
    }
}

/// A pool of so many connections at most.
pub fn pool(database: &Database, connections: u32) -> (Pool, Tasks) {
    let tasks = Tasks::new();
    let max_connections = NonZeroU32::new(connections).unwrap();
    let settings = PoolSettings { max_connections, acquire_timeout_ms: 2_000, ..PoolSettings::default() };
    (Pool::new(Target::parse(&database.url()).unwrap(), settings, tasks.clone(), PoolMetrics::default()), tasks)
}

/// The layout, or every fault.
pub async fn layout(pool: &Pool, catalog: &str) -> Result<Layout, Vec<String>> {
    let catalog = Arc::new(Catalog::parse(catalog).unwrap());
    let lease = pool.get().await.unwrap();
    let layout = columns::read(&*lease, &catalog).await.unwrap();
    lease.release();
    layout.map_err(|faults| faults.iter().map(ToString::to_string).collect())
}

/// Reads a scan to its end.
pub async fn lines(mut opened: Opened) -> Result<Vec<Line>, SourceError> {
    let mut lines = Vec::new();
    while let Some(batch) = opened.batches.next().await {
        let batch = batch?;
        let class = opened.schema.names().nth(batch.model).unwrap().to_owned();
        let mut start = 0;
        for row in &batch.rows {
            let text = std::str::from_utf8(&batch.lines[start..row.end as usize]).unwrap();
            start = row.end as usize;
            let groups = opened.sets.get(row.set);
            let groups = groups.as_slice().iter().map(SyncGroup::to_string).collect();
            let text = text.strip_suffix('\n').expect("a line ends in its line break").to_owned();
            assert!(!text.contains('\n'), "a line is one line: {text}");
            lines.push(Line { class: class.clone(), text, groups });
        }
        assert_eq!(start, batch.lines.len(), "rows fill the arena");
    }
    lines.sort();
    Ok(lines)
}
