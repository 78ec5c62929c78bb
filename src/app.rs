//! Assembly: the rooms put together, for the service and for the commands that use a part of it.
//!
//! Floor 7. The only place that knows which source and which store there are. [`run`] is the whole service: the binary
//! gives it the signals, tests give it listeners on port 0.
//!
//! # Start and end
//! The admin listener answers from the first moment on, so that whoever watches sees why the service is not ready yet.
//! Clients are let in, and the background job begins, once the database has answered; the store may come later. When
//! told to stop, it is not ready any more, the client listener closes, the background job begins nothing new, and answers
//! in progress have `http.shutdown_grace_s`; then the admin listener closes; then all other work is told to end and leases
//! are given back.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::auth::KeyError;
use crate::chain::Chain;
use crate::config::Config;
use crate::dump::Dumps;
use crate::dump::runner::Runner;
use crate::dump::trim::Trimmer;
use crate::http::admin::AdminError;
use crate::http::{self, HttpSettingsError, admin, server};
use crate::metrics::Metrics;
use crate::model::Catalog;
use crate::model::catalog::CatalogError;
use crate::serve::batch::Loader;
use crate::serve::{ServeSettings, Service};
use crate::source::postgres::PostgresSource;
use crate::source::postgres::pool::Pool;
use crate::source::postgres::replica::Replica;
use crate::source::postgres::tls::{Target, UrlError};
use crate::source::{Source, SourceError};
use crate::store::{self, GuardedStore, OpenError, PackCache, SnapshotStore};
use crate::task::{StillRunning, Tasks};
use crate::telemetry::otlp::Exporter;
use crate::verify::rounds::Rounds;

/// How long work may take to end once it was told to. It only has to notice: nothing waits for others any more.
pub const END_WITHIN: Duration = Duration::from_secs(10);

/// The pause between two tries to reach the database at the start: short, so that clients are served as soon as it answers.
const RETRY: Duration = Duration::from_millis(250);

/// How long one try may take: a database that takes connections and then says nothing must not be waited for without end.
const ANSWER: Duration = Duration::from_secs(10);

/// How often the log tells that it still does not.
const TELL: Duration = Duration::from_secs(5);

/// The rooms below the service: what reads, what keeps, and what makes one out of the other.
pub struct Rooms {
    /// What all work is spawned on.
    pub tasks: Tasks,
    /// The application's database.
    pub source: Arc<dyn Source>,
    /// Where snapshots are kept.
    pub store: Arc<dyn SnapshotStore>,
    /// The dumps of this process.
    pub dumps: Dumps,
    /// What all of them count.
    pub metrics: Metrics,
}

impl Rooms {
    /// Puts them together. The database and a MongoDB need not be reachable yet.
    ///
    /// # Errors
    /// The first setting or file that can't be used.
    pub async fn open(config: &Config) -> Result<Self, AppError> {
        let (tasks, metrics) = (Tasks::new(), Metrics::with(config.metrics.clone()));
        let source = open_source(config, &tasks, &metrics)?;
        let store = open_store(config, &tasks).await?;
        let patience = config.store.patience();
        let store: Arc<dyn SnapshotStore> =
            Arc::new(GuardedStore::new(store, patience, tasks.clone(), metrics.clone()));
        let dumps = Dumps::new(source.clone(), store.clone(), tasks.clone(), config.dump.clone(), metrics.clone());
        Ok(Self { tasks, source, store, dumps, metrics })
    }

    /// Tells all work to end and waits for it.
    ///
    /// # Errors
    /// What did not end in time.
    pub async fn close(self) -> Result<(), AppError> {
        Ok(self.tasks.shutdown(END_WITHIN).await?)
    }
}

/// Where the service listens.
pub struct Listeners {
    /// For clients.
    pub client: TcpListener,
    /// For operators.
    pub admin: TcpListener,
}

impl Listeners {
    /// Binds the configured addresses.
    ///
    /// # Errors
    /// The address that can't be had, or must not be.
    pub async fn bind(config: &Config) -> Result<Self, AppError> {
        config.admin.check()?;
        Ok(Self {
            client: bind("http.listen", config.http.listen).await?,
            admin: bind("admin.listen", config.admin.listen).await?,
        })
    }
}

async fn bind(setting: &'static str, address: SocketAddr) -> Result<TcpListener, AppError> {
    TcpListener::bind(address).await.map_err(|cause| AppError::Listen { setting, address, cause })
}

/// Runs the service until it is told to stop, and ends it in order. Spans of this process are sent by `traces`.
///
/// # Errors
/// What keeps it from starting; work that did not end in time.
pub async fn run(
    config: &Config,
    listeners: Listeners,
    traces: Option<Exporter>,
    stop: CancellationToken,
) -> Result<(), AppError> {
    let keys = config.auth.keys()?;
    let rooms = Rooms::open(config).await?;
    let Rooms { tasks, source, store, dumps, metrics } = &rooms;
    keys.start(tasks, metrics);
    if let Some(traces) = traces {
        tasks.spawn("traces", traces.run(metrics.clone(), tasks.token().clone()));
    }
    let cache = PackCache::new(store.clone(), &config.store.cache, tasks.clone(), metrics.pack_cache.clone());
    let loader = Loader::new(source.clone(), tasks.clone(), config.loader.clone(), metrics.clone());
    let settings = ServeSettings {
        freshness: config.freshness,
        bootstrap: config.bootstrap.clone(),
        delta: config.delta.clone(),
        batch: config.batch.clone(),
    };
    let service = Service::new(source.clone(), store.clone(), cache, dumps.clone(), loader, settings, metrics.clone());
    let pacing = config.http.pacing(metrics.clone());
    let (room, token) = (pacing.clone().make_room(service.crowded()), tasks.token().clone());
    tasks.spawn("make room", async move {
        token.run_until_cancelled(room).await;
    });
    let client_routes = http::router(service.clone(), keys, metrics.clone(), &config.http, &config.admission)?;
    let opened = Arc::new(AtomicBool::new(false));
    let admin_routes = admin::router(service, metrics.clone(), opened.clone(), stop.clone(), &config.admin, tasks);

    let stop_admin = CancellationToken::new();
    let operators = server::serve(
        server::without_delay(listeners.admin),
        admin_routes,
        &config.http,
        &pacing,
        tasks,
        stop_admin.clone(),
    );
    let clients = async {
        let _answers_end_first = stop_admin.drop_guard_ref();
        let Some(ready) = stop.run_until_cancelled(wait_for(&**source, config.postgres.startup_wait())).await else {
            return Ok(());
        };
        ready?;
        if let Err(error) = store.ping().await {
            tracing::warn!(error = %Chain(&error), "the store does not answer yet; clients are served without it");
        }
        if config.dump.background {
            let (limits, renew_after) = (config.freshness, config.trim.renew_after());
            let (dumps, tasks, metrics) = (dumps.clone(), tasks.clone(), metrics.clone());
            Runner::new(source.clone(), store.clone(), dumps, limits, renew_after, tasks, metrics).start(stop.clone());
        }
        Trimmer::new(source.clone(), store.clone(), config.trim.clone(), metrics.clone()).start(tasks);
        Rounds::new(source.clone(), store.clone(), config.verify.clone(), metrics.clone()).start(tasks);
        tracing::info!(listen = ?listeners.client.local_addr(), "clients are served");
        opened.store(true, Ordering::Release);
        server::serve(
            server::without_delay(listeners.client),
            client_routes,
            &config.http,
            &pacing,
            tasks,
            stop.clone(),
        )
        .await;
        tracing::info!("the last answer has ended");
        Ok(())
    };
    let (served, ()) = tokio::join!(clients, operators);
    let closed = rooms.close().await;
    served.and(closed)
}

/// Waits until the database answers and its tables fit the catalog.
async fn wait_for(source: &dyn Source, within: Duration) -> Result<(), AppError> {
    let deadline = Instant::now() + within;
    let mut told: Option<Instant> = None;
    loop {
        let late = |_| Err(SourceError::unavailable(format!("no answer within {} s", ANSWER.as_secs())));
        match timeout(ANSWER, source.schema()).await.unwrap_or_else(late) {
            Ok(schema) => {
                tracing::info!(schema = %schema.hash, models = schema.models.len(), "the database answers");
                return Ok(());
            }
            // Waiting mends the absence of a database, not tables that don't fit.
            Err(error @ (SourceError::Unavailable(_) | SourceError::Busy(_))) if Instant::now() + RETRY < deadline => {
                if told.is_none_or(|at| at.elapsed() >= TELL) {
                    let left = (deadline - Instant::now()).as_secs();
                    tracing::warn!(error = %Chain(&error), "the database does not answer; waiting up to {left} s more");
                    told = Some(Instant::now());
                }
                sleep(RETRY).await;
            }
            Err(error) => return Err(error.into()),
        }
    }
}

/// Reads the catalog file.
///
/// # Errors
/// When it can't be read, and everything that is wrong in it.
pub fn read_catalog(path: &Path) -> Result<Catalog, AppError> {
    let text = std::fs::read_to_string(path).map_err(|cause| AppError::CatalogFile { path: path.into(), cause })?;
    Catalog::parse(&text).map_err(|faults| AppError::Catalog { path: path.into(), faults })
}

/// Connections to the primary; none is made yet.
///
/// # Errors
/// A URL that is missing or can't be used.
pub fn open_pool(config: &Config, tasks: &Tasks, metrics: &Metrics) -> Result<Pool, AppError> {
    if config.postgres.url.is_empty() {
        return Err(AppError::NoDatabase);
    }
    let target = Target::parse(&config.postgres.url)?;
    Ok(Pool::new(target, config.postgres.pool.clone(), tasks.clone(), metrics.pool("primary")))
}

/// The standby to read from, if one is named.
///
/// # Errors
/// A URL that can't be used.
pub fn open_replica(config: &Config, tasks: &Tasks, metrics: &Metrics) -> Result<Option<Replica>, AppError> {
    if config.postgres.replica_url.is_empty() {
        return Ok(None);
    }
    let target = Target::parse(&config.postgres.replica_url).map_err(AppError::ReplicaUrl)?;
    let pool = Pool::new(target, config.postgres.pool.clone(), tasks.clone(), metrics.pool("replica"));
    Ok(Some(Replica::new(pool, config.replica.clone())))
}

/// The application's database; nothing is read yet.
///
/// # Errors
/// A catalog or a URL that can't be used.
pub fn open_source(config: &Config, tasks: &Tasks, metrics: &Metrics) -> Result<Arc<dyn Source>, AppError> {
    let catalog = Arc::new(read_catalog(&config.catalog.path)?);
    let pool = open_pool(config, tasks, metrics)?;
    let replica = open_replica(config, tasks, metrics)?;
    let (scan, watermark) = (config.scan.clone(), config.watermark.clone());
    Ok(Arc::new(PostgresSource::new(catalog, pool, replica, scan, watermark, tasks.clone(), metrics.clone())))
}

/// The snapshot store that `store.url` names.
///
/// # Errors
/// A URL or a folder that can't be used.
pub async fn open_store(config: &Config, tasks: &Tasks) -> Result<Arc<dyn SnapshotStore>, AppError> {
    Ok(store::open(&config.store.url, &config.store, tasks).await?)
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
    /// No database is named.
    #[error("`postgres.url` is not set: give it in the settings, as HEADSTART_POSTGRES_URL, or in a file")]
    NoDatabase,
    /// The database's URL can't be used.
    #[error("`postgres.url` can't be used")]
    DatabaseUrl(#[from] UrlError),
    /// The replica's URL can't be used.
    #[error("`postgres.replica_url` can't be used")]
    ReplicaUrl(#[source] UrlError),
    /// The store's URL can't be used.
    #[error("`store.url` can't be used")]
    Store(#[from] OpenError),
    /// No token could be verified.
    #[error(transparent)]
    Keys(#[from] KeyError),
    /// Clients can't be served with these settings.
    #[error(transparent)]
    Http(#[from] HttpSettingsError),
    /// Operators can't be served with these settings.
    #[error(transparent)]
    Admin(#[from] AdminError),
    /// An address can't be had.
    #[error("`{setting}`: {address} can't be listened on")]
    Listen {
        /// The setting that names it.
        setting: &'static str,
        /// The address.
        address: SocketAddr,
        /// Why.
        #[source]
        cause: std::io::Error,
    },
    /// The database did not answer in time, or its tables don't fit the catalog.
    #[error("the service can't start")]
    Database(#[from] SourceError),
    /// Work did not end in time.
    #[error("the service did not end in order")]
    Close(#[from] StillRunning),
}

impl AppError {
    /// Whether other settings or another catalog would mend it, and starting again would not.
    pub fn is_configuration(&self) -> bool {
        match self {
            Self::Listen { .. } | Self::Close(_) | Self::Store(OpenError::Store(_)) => false,
            Self::Database(error) => matches!(error, SourceError::Schema(_)),
            _ => true,
        }
    }
}

fn lines(faults: &[CatalogError]) -> String {
    faults.iter().map(|fault| format!("  {fault}")).collect::<Vec<_>>().join("\n")
}
