//! The server and the way to it.

use tokio_postgres::{Client, SimpleQueryMessage};

use super::Finding;
use crate::source::SourceError;
use crate::source::postgres::error::classify;

/// The first release in which a transaction keeps its `virtualtransaction` when it is prepared, which the watermark
/// relies on.
const OLDEST: (i32, &str) = (140_001, "14.1");

/// Asks which session answers.
const WHICH: &str = "SELECT pg_catalog.pg_backend_pid()";

/// Whether a pooler in transaction mode stands between: it gives one session to several connections in turn. Sent as
/// simple queries, because prepared statements get lost between its sessions.
pub async fn pooler(client: &Client, other: &Client) -> Result<Option<Finding>, SourceError> {
    // Poolers that hand out the session that was longest idle show themselves here, the others below.
    let own = pid(client, WHICH).await?;
    let again = pid(client, WHICH).await?;
    // While one connection holds a session in a transaction, the other must still be in its own.
    let begun = pid(other, "BEGIN; SELECT pg_catalog.pg_backend_pid()").await?;
    let beside = pid(client, WHICH).await;
    pid(other, "COMMIT").await?;
    if own == again && begun != own && beside? == own {
        return Ok(None);
    }
    Ok(Some(Finding::error(
        "postgres.url",
        "a pooler in transaction mode stands between: statements of one connection reach several sessions",
        "connect to PostgreSQL itself, or through a pooler in session mode",
    )))
}

async fn pid(client: &Client, sql: &str) -> Result<Option<String>, SourceError> {
    let answer = client.simple_query(sql).await.map_err(|error| classify("looking for a pooler", error))?;
    Ok(answer.iter().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
        _ => None,
    }))
}

/// What the server must be.
pub async fn server(client: &Client) -> Result<Vec<Finding>, SourceError> {
    let sql = "SELECT current_setting('server_version_num')::int4, current_setting('server_version'),
                      pg_is_in_recovery(), current_setting('server_encoding')";
    let row = client.query_one(sql, &[]).await.map_err(|error| classify("asking the server what it is", error))?;
    let (number, version): (i32, String) = (row.get(0), row.get(1));
    let mut findings = Vec::new();
    if number < OLDEST.0 {
        findings.push(Finding::error(
            "postgres.url",
            format!("the server is PostgreSQL {version}"),
            format!("{} is the oldest that is supported", OLDEST.1),
        ));
    }
    if row.get(2) {
        findings.push(Finding::error(
            "postgres.url",
            "the server is in recovery: it is a standby",
            "let this URL lead to the primary; dumps read a standby through HEADSTART_POSTGRES_REPLICA_URL",
        ));
    }
    if row.get::<_, &str>(3) == "SQL_ASCII" {
        findings.push(Finding::error(
            "postgres.url",
            "the database's encoding is SQL_ASCII, so its text has no certain meaning",
            "move it to a database with the encoding UTF8",
        ));
    }
    Ok(findings)
}
