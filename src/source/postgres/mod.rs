//! PostgreSQL: reads rows in binary and writes them as JSON, equal to what `to_json` gives.
//!
//! [`PostgresSource`] puts the parts together; each part is a function over one connection.

pub mod access;
pub mod columns;
pub mod copy;
pub mod encode;
pub mod error;
pub mod faults;
pub mod groups;
pub mod log;
pub mod plan;
pub mod pool;
pub mod row;
pub mod scan;
pub mod tables;
pub mod tls;
pub mod types;
pub mod watermark;

use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;

use crate::model::{Catalog, Epoch, Org, Schema, SyncGroup, SyncId, User, Watermark};
use crate::source::postgres::columns::{Layout, unfit};
use crate::source::postgres::pool::Pool;
use crate::source::postgres::scan::{ScanError, ScanSettings};
use crate::source::postgres::watermark::{WatermarkSettings, Watermarks};
use crate::source::{Scan, Source, SourceError};
use crate::task::Tasks;

/// The application's database.
pub struct PostgresSource {
    catalog: Arc<Catalog>,
    primary: Pool,
    scans: ScanSettings,
    watermarks: Watermarks,
    tasks: Tasks,
    /// How the tables were when they were last looked at.
    layout: Mutex<Option<Arc<Layout>>>,
}

impl PostgresSource {
    /// A source over connections to the primary. Nothing is read before it is asked for.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn new(
        catalog: Arc<Catalog>,
        primary: Pool,
        scans: ScanSettings,
        watermark: WatermarkSettings,
        tasks: Tasks,
    ) -> Self {
        let watermarks = Watermarks::start(primary.clone(), catalog.log().clone(), watermark, &tasks);
        Self { catalog, primary, scans, watermarks, tasks, layout: Mutex::default() }
    }

    /// The layout in force, read if there is none.
    async fn layout(&self) -> Result<Arc<Layout>, SourceError> {
        let known = self.layout.lock().unwrap_or_else(PoisonError::into_inner).clone();
        match known {
            Some(layout) => Ok(layout),
            None => self.read_layout().await,
        }
    }

    async fn read_layout(&self) -> Result<Arc<Layout>, SourceError> {
        let client = self.primary.get().await?;
        let layout = columns::read(&*client, &self.catalog).await?.map_err(|faults| unfit(&faults))?;
        client.release();
        let layout = Arc::new(layout);
        *self.layout.lock().unwrap_or_else(PoisonError::into_inner) = Some(layout.clone());
        Ok(layout)
    }
}

#[async_trait]
impl Source for PostgresSource {
    async fn schema(&self) -> Result<Arc<Schema>, SourceError> {
        Ok(self.layout().await?.schema.clone())
    }

    async fn watermark(&self) -> Result<Watermark, SourceError> {
        self.watermarks.get().await
    }

    async fn epoch(&self) -> Result<Epoch, SourceError> {
        let client = self.primary.get().await?;
        let epoch = watermark::epoch(&client, self.catalog.log()).await?;
        client.release();
        Ok(epoch)
    }

    async fn scan(&self, org: &Org) -> Result<Scan, SourceError> {
        let mut layout = self.layout().await?;
        loop {
            // Before the snapshot is taken, so that everything up to it is in the snapshot.
            let watermark = self.watermarks.get().await?;
            match scan::open(&self.primary, &self.tasks, &layout, org, &self.scans).await {
                Ok(opened) => {
                    return Ok(Scan {
                        watermark,
                        schema: opened.schema,
                        sets: opened.sets,
                        estimated_rows: opened.estimated_rows,
                        batches: opened.batches,
                    });
                }
                // Whoever asked for the old schema sees by its hash that this is another one. Each turn of the loop
                // needs another change of the tables.
                Err(ScanError::Changed) => layout = self.read_layout().await?,
                Err(ScanError::Source(error)) => return Err(error),
            }
        }
    }

    async fn memberships(&self, org: &Org, user: &User) -> Result<Vec<SyncGroup>, SourceError> {
        let layout = self.layout().await?;
        let client = self.primary.get().await?;
        let groups = access::memberships(&client, &layout, org, user).await?;
        client.release();
        Ok(groups)
    }

    async fn pending(&self, orgs: &[(Org, SyncId)], cap: u64) -> Result<Vec<u64>, SourceError> {
        let client = self.primary.get().await?;
        let counts = log::pending(&client, self.catalog.log(), orgs, cap).await?;
        client.release();
        Ok(counts)
    }

    async fn orgs(&self) -> Result<Vec<Org>, SourceError> {
        let layout = self.layout().await?;
        let client = self.primary.get().await?;
        let orgs = access::orgs(&client, &layout).await?;
        client.release();
        Ok(orgs)
    }
}
