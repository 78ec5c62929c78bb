//! A range of the change log, as deltas read it.

use std::sync::Arc;

use tokio_postgres::types::Type;
use tokio_postgres::{Client, Row};

use crate::model::catalog::{Catalog, LogTable};
use crate::model::{Letter, SyncGroup, SyncId};
use crate::source::postgres::error::classify;
use crate::source::postgres::log::{Log, signed};
use crate::source::sql::{ident, table};
use crate::source::{Action, ActionRange, Object, SourceError};

/// Reads the actions of a range: the caller's org and groups filter first, then the last of each object is taken, so that
/// a row's way out of the caller's groups is not hidden by what happened to it elsewhere.
///
/// The statement is planned anew each time, for its very range: which index is the right one depends on how much of the
/// log lies in it. Entries of models that the catalog does not have (any more) are passed over.
///
/// Cancel safe: the connection must be closed then, or the statement goes on for nothing.
///
/// # Errors
/// [`SourceError::Trimmed`]; what PostgreSQL says.
pub async fn read(
    client: &Client,
    log: &Log,
    catalog: &Catalog,
    range: &ActionRange,
) -> Result<Vec<Action>, SourceError> {
    let doing = "reading the change log";
    let failed = |error| classify(doing, error);
    let groups: Vec<&str> = range.groups.as_slice().iter().map(SyncGroup::as_str).collect();
    let rows = rows(client, log, &sql(catalog.log()), range, &groups, doing).await?;
    let mut actions = Vec::with_capacity(rows.len());
    for row in rows {
        let (id, letter): (i64, &str) = (row.try_get(0).map_err(failed)?, row.try_get(1).map_err(failed)?);
        let (model, model_id): (Option<&str>, Option<&str>) =
            (row.try_get(2).map_err(failed)?, row.try_get(3).map_err(failed)?);
        let Some(letter) = Letter::parse(letter) else {
            return Err(SourceError::failed(doing, format!("action {id} has the letter {letter:?}")));
        };
        let object = match (letter, model, model_id) {
            (Letter::Groups, ..) => None,
            (_, Some(model), Some(id)) => match catalog.model(model) {
                Some((model, _)) => Some(Object { model, id: Arc::from(id) }),
                None => continue,
            },
            _ => return Err(SourceError::failed(doing, format!("action {id} names no object"))),
        };
        actions.push(Action { id: SyncId(id.unsigned_abs()), letter, object });
    }
    Ok(actions)
}

/// Names the objects of an org that a range of the log tells of, each once, whatever their groups; at most as many as
/// the range's limit. Explicit models, and those that the catalog does not have (any more), are left out.
///
/// Cancel safe: as [`read`].
///
/// # Errors
/// [`SourceError::Trimmed`]; what PostgreSQL says.
pub async fn changed(
    client: &Client,
    log: &Log,
    catalog: &Catalog,
    range: &ActionRange,
) -> Result<Vec<Object>, SourceError> {
    let doing = "looking for changed rows in the log";
    let failed = |error| classify(doing, error);
    let kept = catalog.models().iter().filter(|model| model.load.in_snapshot());
    let names: Vec<&str> = kept.map(|model| model.name.as_str()).collect();
    let rows = rows(client, log, &changed_sql(catalog.log()), range, &names, doing).await?;
    let mut objects = Vec::with_capacity(rows.len());
    for row in rows {
        let (model, id): (&str, Option<&str>) = (row.try_get(0).map_err(failed)?, row.try_get(1).map_err(failed)?);
        let id = id.ok_or_else(|| SourceError::failed(doing, format!("an action of {model} names no object")))?;
        objects.extend(catalog.model(model).map(|(model, _)| Object { model, id: Arc::from(id) }));
    }
    Ok(objects)
}

/// What a statement finds in a range; its fourth parameter are the groups or models it looks for.
async fn rows(
    client: &Client,
    log: &Log,
    sql: &str,
    range: &ActionRange,
    names: &[&str],
    doing: &str,
) -> Result<Vec<Row>, SourceError> {
    let (org, after, to) = (range.org.as_str(), signed(range.after.0), signed(range.to.0));
    let limit = i64::try_from(range.limit).unwrap_or(i64::MAX);
    let rows = client
        .query_typed(
            sql,
            &[
                (&org, Type::TEXT),
                (&after, Type::INT8),
                (&to, Type::INT8),
                (&names, Type::TEXT_ARRAY),
                (&limit, Type::INT8),
            ],
        )
        .await
        .map_err(|error| classify(doing, error))?;
    // Read after the rows: what is whole now was whole then, because the floor only rises.
    let floor = log.floor(client).await?;
    if floor > range.after { Err(SourceError::Trimmed { floor }) } else { Ok(rows) }
}

fn changed_sql(log: &LogTable) -> String {
    let [id, org, model, model_id] = [&log.id, &log.org, &log.model, &log.model_id].map(|column| ident(column));
    format!(
        "SELECT DISTINCT {model}::text, {model_id}::text FROM {}
         WHERE {org} = $1 AND {id} > $2 AND {id} <= $3 AND {model}::text = ANY ($4) LIMIT $5",
        table(&log.table)
    )
}

fn sql(log: &LogTable) -> String {
    let [id, org, model, model_id, action, groups] =
        [&log.id, &log.org, &log.model, &log.model_id, &log.action, &log.groups].map(|column| ident(column));
    format!(
        "SELECT id, action, model, model_id FROM (
             SELECT DISTINCT ON ({model}, {model_id})
                 {id} AS id, {action}::text AS action, {model}::text AS model, {model_id}::text AS model_id
             FROM {} WHERE {org} = $1 AND {id} > $2 AND {id} <= $3 AND {groups} && $4
             ORDER BY {model}, {model_id}, {id} DESC) AS last
         ORDER BY id LIMIT $5",
        table(&log.table)
    )
}
