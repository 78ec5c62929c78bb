//! A PostgreSQL database for each test.

use std::time::{Duration, Instant};

use headstart::model::SnapshotId;
use tokio_postgres::{Client, Config, NoTls};

use super::required;

/// An empty database of its own. It goes away with the server.
pub struct Database {
    config: Config,
}

impl Database {
    /// Creates one on the server of `HEADSTART_TEST_POSTGRES_URL`, as its superuser.
    pub async fn create() -> Self {
        let mut config: Config = required("HEADSTART_TEST_POSTGRES_URL").parse().expect("a PostgreSQL URL");
        let name = format!("t_{}", SnapshotId::random());
        connect(&config).await.batch_execute(&format!("CREATE DATABASE {name}")).await.expect("create database");
        config.dbname(&name);
        Self { config }
    }

    /// How to connect.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// A URL the service takes.
    pub fn url(&self) -> String {
        let host = match &self.config.get_hosts()[0] {
            tokio_postgres::config::Host::Tcp(host) => host.clone(),
            tokio_postgres::config::Host::Unix(path) => path.display().to_string().replace('/', "%2F"),
        };
        let user = self.config.get_user().unwrap_or("postgres");
        let dbname = self.config.get_dbname().unwrap_or_default();
        format!("postgres://{user}@{host}:{}/{dbname}?sslmode=disable", self.config.get_ports()[0])
    }

    /// A new connection, driven by a task of its own.
    pub async fn connect(&self) -> Client {
        connect(&self.config).await
    }

    /// Runs statements on a connection of their own.
    pub async fn execute(&self, sql: &str) {
        self.connect().await.batch_execute(sql).await.unwrap_or_else(|error| panic!("{error:?} in {sql}"));
    }
}

async fn connect(config: &Config) -> Client {
    let (client, connection) = config.connect(NoTls).await.expect("connect to PostgreSQL");
    tokio::spawn(connection);
    client
}

/// Polls a count until it is as wanted. The view has no notification to wait on.
pub async fn wait_for(client: &Client, count: &str, wanted: i64) {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let found: i64 = client.query_one(count, &[]).await.unwrap().get(0);
        if found == wanted {
            return;
        }
        assert!(Instant::now() < deadline, "{found} instead of {wanted}: {count}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
