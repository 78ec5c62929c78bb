//! The server and the way to it.

use tokio_postgres::{Client, SimpleQueryMessage};

use super::Finding;
use crate::source::SourceError;
use crate::source::postgres::log::failure;

/// The first release in which a transaction keeps its `virtualtransaction` when it is prepared, which the watermark
/// relies on.
const OLDEST: (i32, &str) = (140_001, "14.1");

/// How often two connections are compared before they are believed to be sessions of their own.
const ROUNDS: usize = 4;

/// Whether a pooler in transaction mode stands between: it gives one session to several connections in turn. Sent as
/// simple queries, because prepared statements get lost between its sessions.
pub async fn pooler(client: &Client, other: &Client) -> Result<Option<Finding>, SourceError> {
    let begin = "BEGIN; SELECT pg_catalog.pg_backend_pid()";
    let mut held = pid(client, "SELECT pg_catalog.pg_backend_pid()").await?;
    for round in 0..ROUNDS {
        let (holder, asker) = if round % 2 == 0 { (other, client) } else { (client, other) };
        // While one holds a session in a transaction, the other must still be in its own, and never in the same.
        let begun = pid(holder, begin).await?;
        let asked = pid(asker, "SELECT pg_catalog.pg_backend_pid()").await;
        pid(holder, "COMMIT").await?;
        let asked = asked?;
        let moved = if round % 2 == 0 { asked != held } else { begun != held };
        if moved || asked == begun {
            return Ok(Some(Finding::error(
                "postgres.url",
                "a pooler in transaction mode stands between: statements of one connection reach several sessions",
                "connect to PostgreSQL itself, or through a pooler in session mode",
            )));
        }
        held = if round % 2 == 0 { asked } else { begun };
    }
    Ok(None)
}

async fn pid(client: &Client, sql: &str) -> Result<Option<String>, SourceError> {
    let answer = client.simple_query(sql).await.map_err(|error| failure("looking for a pooler", error))?;
    Ok(answer.iter().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
        _ => None,
    }))
}

/// What the server must be.
pub async fn server(client: &Client) -> Result<Vec<Finding>, SourceError> {
    let sql = "SELECT current_setting('server_version_num')::int4, current_setting('server_version'),
                      pg_is_in_recovery(), current_setting('server_encoding')";
    let row = client.query_one(sql, &[]).await.map_err(|error| failure("asking the server what it is", error))?;
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
