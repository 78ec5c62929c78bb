//! A small workspace that the tests of the log share: issues in teams, comments on issues, reactions on comments.

use std::time::Duration;

use headstart::model::Catalog;
use headstart::source::migrate::{Plan, apply};
use tokio_postgres::Client;

use crate::support::postgres::Database;

/// Ids are short texts, so that a failing test can be read.
pub const TABLES: &str = "
    CREATE TABLE issue (id text PRIMARY KEY, organization_id text NOT NULL, team_id text, watchers text[], title text,
                        archived boolean NOT NULL DEFAULT false);
    CREATE TABLE comment (id text PRIMARY KEY, issue_id text REFERENCES issue ON DELETE CASCADE ON UPDATE CASCADE, body text);
    CREATE INDEX ON comment (issue_id);
    CREATE TABLE reaction (id text PRIMARY KEY, comment_id text REFERENCES comment ON DELETE CASCADE ON UPDATE CASCADE, emoji text);
    CREATE INDEX ON reaction (comment_id);
    CREATE TABLE team_membership (organization_id text, team_id text, user_id text, role text,
                                  PRIMARY KEY (team_id, user_id));
";

/// The same without foreign keys.
pub fn loose_tables() -> String {
    TABLES
        .replace("REFERENCES issue ON DELETE CASCADE ON UPDATE CASCADE", "")
        .replace("REFERENCES comment ON DELETE CASCADE ON UPDATE CASCADE", "")
}

/// The catalog of [`TABLES`].
pub const CATALOG: &str = r#"
    [[models]]
    name = "Issue"
    table = "issue"
    id = "id"
    org = "organization_id"
    groups = { team = "team_id", user = "watchers" }
    load = "instant"
    filter = "not archived"

    [[models]]
    name = "Comment"
    table = "comment"
    id = "id"
    from = { model = "Issue", by = "issue_id" }
    load = "partial"

    [[models]]
    name = "Reaction"
    table = "reaction"
    id = "id"
    from = { model = "Comment", by = "comment_id" }
    load = "lazy"

    [[access.memberships]]
    kind = "team"
    table = "team_membership"
    org = "organization_id"
    user = "user_id"
    group = "team_id"
"#;

/// Waits no longer than this for a lock.
pub const LOCK_TIMEOUT: Duration = Duration::from_secs(5);

/// A catalog from its text.
pub fn catalog(text: &str) -> Catalog {
    Catalog::parse(text).unwrap_or_else(|faults| panic!("{faults:?}"))
}

/// Brings the log to what a catalog wants.
pub async fn migrate(client: &Client, text: &str) -> Plan {
    apply(client, &catalog(text), LOCK_TIMEOUT).await.unwrap_or_else(|error| panic!("{error:?}"))
}

/// A database with [`TABLES`] and their log.
pub async fn database() -> (Database, Client) {
    with(TABLES, CATALOG).await
}

/// A database with these tables and the log of this catalog.
pub async fn with(tables: &str, text: &str) -> (Database, Client) {
    let database = Database::create().await;
    let client = database.connect().await;
    client.batch_execute(tables).await.expect("make the tables");
    migrate(&client, text).await;
    (database, client)
}

/// One line of the log, without its id and time: `org I Issue i1 team:a,team:b`. `G` lines have no model and no id.
pub fn line(row: &tokio_postgres::Row) -> String {
    let mut groups: Vec<String> = row.get("groups");
    groups.sort();
    let name = |column: &str| row.get::<_, Option<String>>(column).unwrap_or_else(|| "-".into());
    let (org, action): (String, String) = (row.get("org"), row.get("action"));
    format!("{org} {action} {} {} {}", name("model"), name("model_id"), groups.join(","))
}

/// The lines that were written since the last call, in the order of their ids.
pub struct Log {
    client: Client,
    seen: i64,
}

impl Log {
    /// Begins after what is there.
    pub async fn follow(database: &Database) -> Self {
        let client = database.connect().await;
        let seen = client.query_one("SELECT coalesce(max(id), 0) FROM sync_actions", &[]).await.unwrap().get(0);
        Self { client, seen }
    }

    /// What is new.
    pub async fn new_lines(&mut self) -> Vec<String> {
        let rows =
            self.client.query("SELECT * FROM sync_actions WHERE id > $1 ORDER BY id", &[&self.seen]).await.unwrap();
        if let Some(last) = rows.last() {
            self.seen = last.get("id");
        }
        rows.iter().map(line).collect()
    }

    /// Runs statements and gives the lines they wrote.
    pub async fn after(&mut self, client: &Client, sql: &str) -> Vec<String> {
        client.batch_execute(sql).await.unwrap_or_else(|error| panic!("{error:?} in {sql}"));
        self.new_lines().await
    }
}
