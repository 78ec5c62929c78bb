//! The change log: what it holds after a sync id.

use tokio_postgres::Client;
use tokio_postgres::types::{ToSql, Type};

use crate::model::catalog::LogTable;
use crate::model::{Org, SyncId};
use crate::source::postgres::error::classify;
use crate::source::{SourceError, sql};

/// For each org, how many actions the log holds after a sync id, counted up to `cap`: one index range an org, no longer
/// than the cap.
///
/// # Errors
/// What keeps the database from answering.
pub async fn pending(
    client: &Client,
    log: &LogTable,
    orgs: &[(Org, SyncId)],
    cap: u64,
) -> Result<Vec<u64>, SourceError> {
    let names: Vec<&str> = orgs.iter().map(|(org, _)| org.as_str()).collect();
    let after: Vec<i64> = orgs.iter().map(|(_, after)| after.0.cast_signed()).collect();
    let cap = i64::try_from(cap).unwrap_or(i64::MAX);
    let statement = format!(
        "SELECT (SELECT count(*) FROM (SELECT 1 FROM {table} AS log WHERE log.{org} = asked.org AND log.{id} > asked.after \
         LIMIT $3) AS counted) FROM ROWS FROM (pg_catalog.unnest($1::pg_catalog.text[]), \
         pg_catalog.unnest($2::pg_catalog.int8[])) WITH ORDINALITY AS asked(org, after, place) ORDER BY asked.place",
        table = sql::table(&log.table),
        org = sql::ident(&log.org),
        id = sql::ident(&log.id),
    );
    let parameters: [(&(dyn ToSql + Sync), Type); 3] =
        [(&names, Type::TEXT_ARRAY), (&after, Type::INT8_ARRAY), (&cap, Type::INT8)];
    let rows = client.query_typed(&statement, &parameters).await;
    let rows = rows.map_err(|error| classify("counting pending actions", error))?;
    Ok(rows.iter().map(|row| row.get::<_, i64>(0).unsigned_abs()).collect())
}
