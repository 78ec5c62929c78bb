//! The whole service in this process, on ports of its own, over a seeded database and a store in a folder.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use headstart::app::{self, AppError, Listeners};
use headstart::auth::Claims;
use headstart::cli::seed::{self, Scale, Workspace};
use headstart::config::{Config, Layers};
use headstart::source::SourceError;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::support::postgres::Database;

const SECRET: &str = "a secret of more than thirty-two bytes";

/// Settings over a database and a folder for the store.
fn config(database: &str, folder: &Path, more: &[(&str, &str)]) -> Config {
    let catalog = concat!(env!("CARGO_MANIFEST_DIR"), "/config/catalog.toml");
    let store = format!("file://{}", folder.join("store").display());
    let settings = folder.join("headstart.toml");
    std::fs::write(&settings, "").expect("write");
    let fixed = [
        ("HEADSTART_POSTGRES_URL", database),
        ("HEADSTART_STORE_URL", &store),
        ("HEADSTART_CATALOG_PATH", catalog),
        ("HEADSTART_AUTH_HS256_SECRET", SECRET),
        ("HEADSTART_HTTP_LISTEN", "127.0.0.1:0"),
        ("HEADSTART_ADMIN_LISTEN", "127.0.0.1:0"),
    ];
    let environment = fixed.iter().chain(more).map(|(name, value)| (name.into(), value.into()));
    let layers = Layers::read(Some(&settings), environment).expect("settings");
    Config::new(&layers).expect("settings that fit together")
}

/// A service in progress.
struct Running {
    config: Config,
    client: SocketAddr,
    admin: SocketAddr,
    stop: CancellationToken,
    ended: JoinHandle<Result<(), AppError>>,
}

impl Running {
    async fn start(config: Config) -> Self {
        let listeners = Listeners::bind(&config).await.expect("two free ports");
        let (client, admin) = (listeners.client.local_addr().unwrap(), listeners.admin.local_addr().unwrap());
        let stop = CancellationToken::new();
        let (told, settings) = (stop.clone(), config.clone());
        let ended = tokio::spawn(async move { app::run(&settings, listeners, None, told).await });
        Self { config, client, admin, stop, ended }
    }

    fn token(&self, org: &str, user: &str) -> String {
        let claims = Claims { org: org.into(), user: user.into(), groups: None };
        self.config.auth.mint(&claims, std::time::SystemTime::now(), Duration::from_secs(60)).expect("a token")
    }

    async fn bootstrap(&self, token: &str) -> (u16, Vec<serde_json::Value>) {
        let request = reqwest::Client::new().get(format!("http://{}/sync/bootstrap", self.client));
        let answer = request.header("authorization", format!("Bearer {token}")).send().await.expect("an answer");
        let status = answer.status().as_u16();
        let body = answer.text().await.expect("a whole body");
        (status, body.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect())
    }

    async fn admin(&self, path: &str) -> (u16, String) {
        let answer = reqwest::get(format!("http://{}{path}", self.admin)).await.expect("an answer");
        (answer.status().as_u16(), answer.text().await.expect("a whole body"))
    }

    async fn stop(self) -> Result<(), AppError> {
        self.stop.cancel();
        self.ended.await.expect("no panic")
    }
}

/// A database with the small workspace and its change log.
async fn seeded() -> (Database, Workspace) {
    let database = Database::create().await;
    let workspace =
        seed::seed(&database.url(), Scale::Small, false, &indicatif::ProgressBar::hidden()).await.expect("a workspace");
    let catalog = app::read_catalog(Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/config/catalog.toml"))).unwrap();
    let client = database.connect().await;
    headstart::source::migrate::apply(&client, &catalog, Duration::from_secs(10)).await.expect("the log");
    (database, workspace)
}

#[tokio::test]
async fn clients_are_served_and_a_restart_finds_the_snapshot() {
    let (database, workspace) = seeded().await;
    let folder = tempfile::tempdir().unwrap();
    let more = [("HEADSTART_DUMP_BACKGROUND", "false")];
    let tenant = &workspace.orgs[0];

    let service = Running::start(config(&database.url(), folder.path(), &more)).await;
    let token = service.token(tenant.org.as_str(), tenant.everywhere.as_str());
    let (status, first) = service.bootstrap(&token).await;
    assert_eq!(status, 200);
    assert_eq!(first.last().unwrap()["method"], "postgres", "there was no snapshot");
    assert_eq!(service.bootstrap("nonsense").await.0, 401);
    assert_eq!(service.admin("/livez").await.0, 200);
    let (ready, parts) = service.admin("/readyz").await;
    assert_eq!(ready, 200, "{parts}");
    assert!(service.admin("/metrics").await.1.ends_with("# EOF\n"));
    // The dump is stored behind the answer; ending in order does not wait for that, so ask until it is.
    let mut next = service.bootstrap(&token).await.1;
    while next.last().unwrap()["method"] != "snapshot" {
        next = service.bootstrap(&token).await.1;
    }
    service.stop().await.expect("an end in order");

    let service = Running::start(config(&database.url(), folder.path(), &more)).await;
    let (_, second) = service.bootstrap(&token).await;
    assert_eq!(second.last().unwrap()["method"], "snapshot", "the store outlives the service");
    assert_eq!(second.len(), first.len());
    service.stop().await.expect("an end in order");
}

#[tokio::test]
async fn the_background_job_makes_snapshots_unasked() {
    let (database, workspace) = seeded().await;
    let folder = tempfile::tempdir().unwrap();
    let service = Running::start(config(&database.url(), folder.path(), &[("HEADSTART_DUMP_INTERVAL_S", "1")])).await;
    let tasks = headstart::task::Tasks::new();
    let store = app::open_store(&service.config, &tasks).await.unwrap();
    while store.heads().await.unwrap().len() < workspace.orgs.len() {
        tokio::task::yield_now().await;
    }
    service.stop().await.expect("an end in order");
}

#[tokio::test]
async fn without_a_database_operators_are_answered_and_the_start_ends_in_time() {
    let folder = tempfile::tempdir().unwrap();
    let nobody = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let url = format!("postgres://u@{nobody}/d?sslmode=disable");

    let service = Running::start(config(&url, folder.path(), &[("HEADSTART_POSTGRES_STARTUP_WAIT_S", "3600")])).await;
    let (status, parts) = service.admin("/readyz").await;
    assert_eq!(status, 503, "{parts}");
    assert_eq!(service.admin("/livez").await.0, 200);
    service.stop().await.expect("told to stop while it waits, it ends in order");

    let service = Running::start(config(&url, folder.path(), &[("HEADSTART_POSTGRES_STARTUP_WAIT_S", "0")])).await;
    let error = service.ended.await.unwrap().unwrap_err();
    assert!(matches!(error, AppError::Database(SourceError::Unavailable(_))), "{error:?}");
}

#[tokio::test]
async fn tables_that_do_not_fit_the_catalog_are_no_reason_to_wait() {
    let database = Database::create().await;
    let folder = tempfile::tempdir().unwrap();
    let service =
        Running::start(config(&database.url(), folder.path(), &[("HEADSTART_POSTGRES_STARTUP_WAIT_S", "3600")])).await;
    let error = service.ended.await.unwrap().unwrap_err();
    assert!(matches!(error, AppError::Database(SourceError::Schema(_))), "{error:?}");
}
