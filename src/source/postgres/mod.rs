//! PostgreSQL: reads rows in binary and writes them as JSON, equal to what `to_json` gives.
//!
//! [`PostgresSource`] puts the parts together; each part is a function over one connection.

pub mod access;
pub mod actions;
pub mod check;
pub mod columns;
pub mod copy;
pub mod encode;
pub mod error;
pub mod faults;
pub mod groups;
pub mod keys;
pub mod log;
pub mod lookup;
pub mod plan;
pub mod pool;
pub mod replica;
pub mod row;
pub mod scan;
pub mod tables;
pub mod tls;
pub mod types;
pub mod watermark;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::stream::BoxStream;
use futures_util::{StreamExt, TryStreamExt};
use tokio::time::Instant;
use tokio_postgres::Client;
use tracing::Instrument;

use crate::metrics::Metrics;
use crate::model::catalog::LogTable;
use crate::model::{Catalog, Epoch, Org, Schema, SyncGroup, SyncId, User, Watermark};
use crate::source::postgres::columns::{Layout, unfit};
use crate::source::postgres::log::{Log, Unlogged};
use crate::source::postgres::lookup::LookupError;
use crate::source::postgres::pool::{Lease, Pool};
use crate::source::postgres::replica::Replica;
use crate::source::postgres::scan::{ScanError, ScanSettings};
use crate::source::postgres::watermark::{WatermarkSettings, Watermarks};
use crate::source::{Action, ActionRange, Found, LogSize, Lookup, Object, RowBatch, Scan, Source, SourceError};
use crate::task::Tasks;
use crate::trace::span;

/// Callers that may be queued for the next probe of the watermark.
const ASKING: usize = 1024;

/// How long it may take until a trigger that was dropped or disabled is noticed; twice as long where asking takes long.
const TRIGGERS_KNOWN: Duration = Duration::from_secs(5);

/// The application's database.
pub struct PostgresSource {
    catalog: Arc<Catalog>,
    primary: Pool,
    replica: Option<Arc<Replica>>,
    scans: ScanSettings,
    watermarks: Watermarks,
    tasks: Tasks,
    log: Arc<KnownLog>,
    /// How the tables were when they were last looked at.
    layout: Mutex<Option<Arc<Layout>>>,
    /// Which models were not logged when the triggers were last looked at.
    unlogged: Mutex<Option<(Instant, Faults)>>,
    /// Held by the first who asks for it anew.
    asks_triggers: tokio::sync::Mutex<()>,
    metrics: Metrics,
}

/// What is wrong with models, by their index.
type Faults = Arc<BTreeMap<usize, SourceError>>;

/// Where the log is, found once.
struct KnownLog {
    table: LogTable,
    found: Mutex<Option<Log>>,
}

impl KnownLog {
    async fn get(&self, client: &Client) -> Result<Log, SourceError> {
        let known = self.found.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(log) = known {
            return Ok(log);
        }
        let log = Log::find(client, &self.table).await?;
        *self.found.lock().unwrap_or_else(PoisonError::into_inner) = Some(log.clone());
        Ok(log)
    }
}

impl PostgresSource {
    /// A source over connections to the primary and, for dumps and look-ups, to a standby of it. Nothing is read before
    /// it is asked for.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn new(
        catalog: Arc<Catalog>,
        primary: Pool,
        replica: Option<Replica>,
        scans: ScanSettings,
        watermark: WatermarkSettings,
        tasks: Tasks,
        metrics: Metrics,
    ) -> Self {
        let log = Arc::new(KnownLog { table: catalog.log().clone(), found: Mutex::default() });
        let watermarks = start_prober(&primary, &log, &watermark, &tasks, &metrics);
        let (layout, unlogged, asks_triggers) = (Mutex::default(), Mutex::default(), tokio::sync::Mutex::default());
        let replica = replica.map(Arc::new);
        Self { catalog, primary, replica, scans, watermarks, tasks, log, layout, unlogged, asks_triggers, metrics }
    }

    /// A connection to read rows on, which sees everything that was committed before the call, and the replica it leads
    /// to, if it does not lead to the primary.
    async fn reading_lease(&self) -> Result<(Lease, Option<Arc<Replica>>), SourceError> {
        let Some(replica) = &self.replica else { return Ok((self.primary.get().await?, None)) };
        if !replica.is_awake() {
            return Ok((self.fall_back().await?, None));
        }
        let primary = self.primary.get().await?;
        let position = replica::position(&primary).await?;
        primary.release();
        match replica.at(&position).await {
            Some(lease) => {
                self.metrics.replica_reads.inc();
                Ok((lease, Some(replica.clone())))
            }
            None => Ok((self.fall_back().await?, None)),
        }
    }

    /// A connection to the primary for what the standby should have been read for.
    async fn fall_back(&self) -> Result<Lease, SourceError> {
        self.metrics.replica_fallbacks.inc();
        self.primary.get().await
    }

    /// The layout in force, read if there is none.
    async fn layout(&self) -> Result<Arc<Layout>, SourceError> {
        let known = self.layout.lock().unwrap_or_else(PoisonError::into_inner).clone();
        match known {
            Some(layout) => Ok(layout),
            None => self.read_layout().await,
        }
    }

    async fn look_up(&self, layout: &Layout, lookup: &Lookup) -> Result<Found, LookupError> {
        let (lease, replica) = self.reading_lease().await?;
        match (lookup::find(&lease, layout, lookup).await, replica) {
            (Ok(found), _) => {
                lease.release();
                Ok(found)
            }
            (Err(LookupError::Source(error)), Some(replica))
                if matches!(error, SourceError::Unavailable(_) | SourceError::Busy(_) | SourceError::Failed { .. }) =>
            {
                replica.rest(&error);
                let lease = self.fall_back().await?;
                let found = lookup::find(&lease, layout, lookup).await?;
                lease.release();
                Ok(found)
            }
            (Err(error), _) => Err(error),
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

/// Passes a scan's batches on, and leaves the replica alone after one that failed: the next scan reads the primary.
fn resting_after_errors(
    batches: BoxStream<'static, Result<RowBatch, SourceError>>,
    replica: Arc<Replica>,
) -> BoxStream<'static, Result<RowBatch, SourceError>> {
    batches.inspect_err(move |error| replica.rest(error)).boxed()
}

/// Starts the task that probes for watermarks; it ends with the service.
fn start_prober(
    pool: &Pool,
    log: &Arc<KnownLog>,
    settings: &WatermarkSettings,
    tasks: &Tasks,
    metrics: &Metrics,
) -> Watermarks {
    let (watermarks, prober) = Watermarks::new(ASKING, settings.clone(), metrics.watermark.clone());
    let (pool, log, token) = (pool.clone(), log.clone(), tasks.token().clone());
    tasks.spawn("watermark", async move {
        let probes = prober.run(async |report| {
            let client = pool.get().await?;
            let watermark = watermark::probe_patiently(&client, &log.get(&client).await?, &report).await?;
            client.release();
            Ok(watermark)
        });
        token.run_until_cancelled(probes).await;
    });
    watermarks
}

#[async_trait]
impl Source for PostgresSource {
    async fn schema(&self) -> Result<Arc<Schema>, SourceError> {
        Ok(self.layout().await?.schema.clone())
    }

    async fn schema_now(&self) -> Result<Arc<Schema>, SourceError> {
        Ok(self.read_layout().await?.schema.clone())
    }

    async fn watermark(&self) -> Result<Watermark, SourceError> {
        self.watermarks.get().instrument(span!("watermark")).await
    }

    async fn epoch(&self) -> Result<Epoch, SourceError> {
        let client = self.primary.get().await?;
        let epoch = watermark::epoch(&client, &self.log.get(&client).await?).await?;
        client.release();
        Ok(epoch)
    }

    async fn scan(&self, org: &Org) -> Result<Scan, SourceError> {
        let mut layout = self.layout().await?;
        loop {
            // Before the snapshot is taken, so that everything up to it is in the snapshot.
            let watermark = self.watermarks.get().await?;
            let (lease, replica) = self.reading_lease().await?;
            match scan::open(lease, &self.tasks, &layout, org, &self.scans).await {
                Ok(opened) => {
                    return Ok(Scan {
                        watermark,
                        schema: opened.schema,
                        sets: opened.sets,
                        estimated_rows: opened.estimated_rows,
                        batches: match replica {
                            Some(replica) => resting_after_errors(opened.batches, replica),
                            None => opened.batches,
                        },
                    });
                }
                // Whoever asked for the old schema sees by its hash that this is another one. Each turn of the loop
                // needs another change of the tables.
                Err(ScanError::Changed) => layout = self.read_layout().await?,
                Err(ScanError::Source(error)) => match replica.filter(|_| !matches!(error, SourceError::Org(_))) {
                    Some(replica) => replica.rest(&error),
                    None => return Err(error),
                },
            }
        }
    }

    async fn lookup(&self, lookup: &Lookup) -> Result<Found, SourceError> {
        let layout = self.layout().await?;
        match self.look_up(&layout, lookup).await {
            Err(LookupError::Changed(_)) => {}
            Err(LookupError::Source(error)) => return Err(error),
            Ok(found) => return Ok(found),
        }
        let layout = self.read_layout().await?;
        match self.look_up(&layout, lookup).await {
            Err(LookupError::Changed(error) | LookupError::Source(error)) => Err(error),
            Ok(found) => Ok(found),
        }
    }

    async fn actions(&self, range: &ActionRange) -> Result<Vec<Action>, SourceError> {
        let client = self.primary.get().await?;
        let read = async { actions::read(&client, &self.log.get(&client).await?, &self.catalog, range).await };
        let actions = read.instrument(span!("read log")).await?;
        client.release();
        Ok(actions)
    }

    async fn changed(&self, range: &ActionRange) -> Result<Vec<Object>, SourceError> {
        let client = self.primary.get().await?;
        let read = async { actions::changed(&client, &self.log.get(&client).await?, &self.catalog, range).await };
        let objects = read.instrument(span!("read log")).await?;
        client.release();
        Ok(objects)
    }

    async fn memberships(&self, members: &[(Org, User)]) -> Result<Vec<Vec<SyncGroup>>, SourceError> {
        let layout = self.layout().await?;
        let client = self.primary.get().await?;
        let groups = access::memberships(&client, &layout, members).await?;
        client.release();
        Ok(groups)
    }

    async fn pending(&self, orgs: &[(Org, SyncId)], cap: u64) -> Result<Vec<u64>, SourceError> {
        let client = self.primary.get().await?;
        let counts = self.log.get(&client).await?.pending(&client, orgs, cap).await?;
        client.release();
        Ok(counts)
    }

    async fn trim(&self, up_to: SyncId, age: Duration, most: u64) -> Result<u64, SourceError> {
        let log = self.catalog.log();
        if !log.managed {
            return Ok(0);
        }
        let client = self.primary.get().await?;
        log::trim_marks(&client, log).await?;
        let trimmed = log::trim(&client, log, up_to, age, most).await?;
        client.release();
        Ok(trimmed)
    }

    async fn log_size(&self) -> Result<LogSize, SourceError> {
        let client = self.primary.get().await?;
        let size = self.log.get(&client).await?.size(&client).await?;
        client.release();
        Ok(size)
    }

    async fn unlogged(&self) -> Result<Faults, SourceError> {
        let known = |within| {
            let known = self.unlogged.lock().unwrap_or_else(PoisonError::into_inner).clone();
            known.filter(|(at, _)| at.elapsed() < within).map(|(_, unlogged)| unlogged)
        };
        if let Some(unlogged) = known(TRIGGERS_KNOWN) {
            return Ok(unlogged);
        }
        // While somebody asks, others take what is known, unless it is too old: then they ask, too. Whoever has the turn looks
        // again, as the one before may have ended just now.
        let turn = self.asks_triggers.try_lock();
        if let Some(unlogged) = known(if turn.is_ok() { TRIGGERS_KNOWN } else { 2 * TRIGGERS_KNOWN }) {
            return Ok(unlogged);
        }
        let at = Instant::now();
        let client = self.primary.get().await?;
        let faults = log::unlogged(&client, &self.catalog).await?;
        client.release();
        let model = |(what, fault)| match what {
            Unlogged::Model(model) => Some((model, fault)),
            // Rows are served; whoever follows changes of memberships learns of them late.
            Unlogged::Membership(_) => {
                tracing::warn!(%fault, "changes of memberships are not logged");
                None
            }
        };
        let unlogged: Faults = Arc::new(faults.into_iter().filter_map(model).collect());
        *self.unlogged.lock().unwrap_or_else(PoisonError::into_inner) = Some((at, unlogged.clone()));
        Ok(unlogged)
    }

    async fn orgs(&self) -> Result<Vec<Org>, SourceError> {
        let layout = self.layout().await?;
        let client = self.primary.get().await?;
        let orgs = access::orgs(&client, &layout).await?;
        client.release();
        Ok(orgs)
    }
}
