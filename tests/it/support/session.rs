//! A connection whose statements may block on another's locks: the test sees that they do, and goes on.

use std::sync::Arc;

use tokio::task::JoinHandle;
use tokio_postgres::{Client, Error};

use super::postgres::Database;

/// A session that takes one batch of statements at a time.
pub struct Session {
    client: Arc<Client>,
    pid: i32,
    running: Option<JoinHandle<Result<(), Error>>>,
}

/// How a statement stands.
#[derive(Debug)]
pub enum Progress {
    /// It waits for a lock that another session holds.
    Blocked,
    /// It has ended.
    Done(Result<(), Error>),
}

impl Session {
    /// A new connection.
    pub async fn open(database: &Database) -> Self {
        let client = database.connect().await;
        let pid = client.query_one("SELECT pg_backend_pid()", &[]).await.expect("ask for the pid").get(0);
        Self { client: Arc::new(client), pid, running: None }
    }

    /// Sends statements and follows them until they end or block; `observer` asks PostgreSQL whether they do.
    pub async fn start(&mut self, sql: &str, observer: &Client) -> Progress {
        assert!(self.running.is_none(), "the statement before is still running");
        let (client, sql) = (Arc::clone(&self.client), sql.to_owned());
        self.running = Some(tokio::spawn(async move { client.batch_execute(&sql).await }));
        self.follow(observer).await
    }

    /// Follows a statement that had blocked.
    pub async fn follow(&mut self, observer: &Client) -> Progress {
        let running = self.running.as_mut().expect("a statement is running");
        loop {
            let blockers = async {
                let sql = "SELECT pg_blocking_pids($1)";
                observer.query_one(sql, &[&self.pid]).await.expect("ask who blocks").get::<_, Vec<i32>>(0)
            };
            tokio::select! {
                biased;
                ended = &mut *running => {
                    self.running = None;
                    return Progress::Done(ended.expect("the statement's task"));
                }
                blockers = blockers => if !blockers.is_empty() && !running.is_finished() {
                    return Progress::Blocked;
                }
            }
        }
    }

    /// Whether a statement is under way.
    pub fn is_running(&self) -> bool {
        self.running.is_some()
    }

    /// Waits for the statement that is under way, however long it blocks.
    pub async fn end(&mut self) -> Result<(), Error> {
        self.running.take().expect("a statement is running").await.expect("the statement's task")
    }

    /// Its connection, for plain statements.
    pub fn client(&self) -> &Client {
        &self.client
    }
}
