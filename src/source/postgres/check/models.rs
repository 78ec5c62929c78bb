//! The tables of the models and memberships: ids, keys, rights, policies, rows that nobody sees.

use std::collections::BTreeMap;

use tokio_postgres::Client;

use super::{Finding, Severity};
use crate::model::catalog::{Catalog, Model, TableName, Ungrouped, camel_case};
use crate::source::SourceError;
use crate::source::migrate::Found;
use crate::source::migrate::found::FoundTable;
use crate::source::migrate::names::{quote_ident, quote_table};
use crate::source::postgres::error::classify;

/// Everything about the tables that were found.
pub async fn models(client: &Client, catalog: &Catalog, found: &Found) -> Result<Vec<Finding>, SourceError> {
    let mut findings = Vec::new();
    for (index, model) in catalog.models().iter().enumerate() {
        let Some(table) = found.tables.get(&model.table) else { continue };
        let place = format!("models.{}", model.name);
        let mut columns: Vec<&str> = table.columns.keys().map(String::as_str).collect();
        columns.retain(|column| !model.exclude.iter().any(|excluded| excluded == column));
        let barred = barred(client, &place, &model.table, &columns).await?;
        let readable = barred.is_empty();
        findings.extend(barred);
        if let Some(Ok(filter)) = found.filters.get(&index)
            && !filter.immutable
        {
            findings.push(Finding::warning(
                format!("{place}.filter"),
                "its result can change without a write (it depends on the time or on settings)",
                "rows that leave it that way stay with clients until they are written: compare columns only",
            ));
        }
        if table.takes_triggers() {
            let indexes = indexes(client, &model.table).await?;
            findings.extend(id(&place, model, table, &indexes));
            findings.extend(keys(&place, model, table, &indexes));
        }
        if readable && let Some(count) = ungrouped(client, &place, index, model, found).await? {
            findings.push(count);
        }
    }
    for (index, entry) in catalog.access().memberships.iter().enumerate() {
        let columns = [&entry.org, &entry.user, &entry.group].map(String::as_str);
        let place = format!("access.memberships[{index}]");
        let Some(table) = found.tables.get(&entry.table) else { continue };
        if columns.iter().all(|column| table.columns.contains_key(*column)) {
            findings.extend(barred(client, &place, &entry.table, &columns).await?);
        }
    }
    Ok(findings)
}

/// What keeps this role from reading the rows, all of them.
async fn barred(
    client: &Client,
    place: &str,
    table: &TableName,
    columns: &[&str],
) -> Result<Vec<Finding>, SourceError> {
    let sql = "SELECT row_security_active(c.oid), has_schema_privilege(c.relnamespace, 'USAGE'),
                      ARRAY(SELECT name FROM unnest($2::text[]) AS name
                            WHERE NOT has_column_privilege(c.oid, name, 'SELECT'))
               FROM pg_catalog.pg_class c WHERE c.oid = to_regclass($1)";
    let name = quote_table(table);
    let row = client
        .query_one(sql, &[&name, &columns])
        .await
        .map_err(|error| classify("looking at this role's rights", error))?;
    let mut findings = Vec::new();
    if row.get(0) {
        findings.push(Finding::error(
            place,
            format!("row-level security would hide rows of `{table}` from this role"),
            "give the role BYPASSRLS, or let it own the table (without FORCE ROW LEVEL SECURITY)",
        ));
    }
    if !row.get::<_, bool>(1) {
        let mend = format!("GRANT USAGE ON SCHEMA {} to this role", quote_ident(&table.schema));
        findings.push(Finding::error(place, format!("the schema of `{table}` may not be used"), mend));
    }
    let missing: Vec<String> = row.get(2);
    if missing.len() == columns.len() {
        let mend = format!("GRANT SELECT ON {name} to this role");
        findings.push(Finding::error(place, format!("`{table}` may not be read"), mend));
    } else if !missing.is_empty() {
        let list = missing.iter().map(|column| quote_ident(column)).collect::<Vec<_>>().join(", ");
        findings.push(Finding::error(
            place,
            format!("columns of `{table}` may not be read: {}", missing.join(", ")),
            format!("GRANT SELECT ({list}) ON {name} to this role, or list them under `exclude`"),
        ));
    }
    Ok(findings)
}

/// One valid index without a condition.
struct Index {
    columns: Vec<String>,
    unique: bool,
    method: String,
}

async fn indexes(client: &Client, table: &TableName) -> Result<Vec<Index>, SourceError> {
    let sql =
        "SELECT ARRAY(SELECT coalesce(a.attname::text, '') FROM unnest(i.indkey::int2[]) WITH ORDINALITY k(num, at)
                            LEFT JOIN pg_catalog.pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.num
                            WHERE k.at <= i.indnkeyatts ORDER BY k.at),
                      i.indisunique AND i.indimmediate, m.amname::text
               FROM pg_catalog.pg_index i JOIN pg_catalog.pg_class c ON c.oid = i.indexrelid
               JOIN pg_catalog.pg_am m ON m.oid = c.relam
               WHERE i.indrelid = to_regclass($1) AND i.indisvalid AND i.indpred IS NULL";
    let rows = client
        .query(sql, &[&quote_table(table)])
        .await
        .map_err(|error| classify("looking at a table's indexes", error))?;
    let index = |row: &tokio_postgres::Row| Index { columns: row.get(0), unique: row.get(1), method: row.get(2) };
    Ok(rows.iter().map(index).collect())
}

/// Whether one row is one object.
fn id(place: &str, model: &Model, table: &FoundTable, indexes: &[Index]) -> Option<Finding> {
    let column = table.columns.get(&model.id)?;
    let (name, id) = (quote_table(&model.table), quote_ident(&model.id));
    let place = format!("{place}.id");
    if indexes.iter().any(|index| index.unique && index.columns == [model.id.as_str()]) {
        return column.nullable.then(|| {
            let fault = format!("`{}` may be null, and a row without an id can't be told from others", model.id);
            Finding::error(&place, fault, format!("ALTER TABLE {name} ALTER {id} SET NOT NULL"))
        });
    }
    if table.kind == 'p' && indexes.iter().any(|index| index.unique && index.columns.contains(&model.id)) {
        let fault = format!("`{}` is unique only together with the partition key", model.id);
        return Some(Finding::warning(place, fault, "make sure that no two partitions hold the same id"));
    }
    let fault = format!("`{}` is not unique, so it can't name a row", model.id);
    Some(Finding::error(place, fault, format!("CREATE UNIQUE INDEX CONCURRENTLY ON {name} ({id})")))
}

/// Whether lookups and moves find rows by an index.
fn keys(place: &str, model: &Model, table: &FoundTable, indexes: &[Index]) -> Vec<Finding> {
    let wire_name = |column: &str| model.rename.get(column).cloned().unwrap_or_else(|| camel_case(column));
    let columns: BTreeMap<String, &String> = table.columns.keys().map(|column| (wire_name(column), column)).collect();
    let by = model.from.iter().map(|from| ("from", &from.by, "a parent that moves reads the whole table"));
    let keys = model
        .keys
        .iter()
        .filter_map(|key| columns.get(key))
        .map(|column| ("keys", *column, "a batch reads the whole table"));
    let mut findings = Vec::new();
    for (part, column, consequence) in by.chain(keys) {
        let Some(found) = table.columns.get(column) else { continue };
        let method = if found.array { "gin" } else { "btree" };
        let helps = |index: &Index| {
            index.columns.first() == Some(column) && (index.method == method || !found.array && index.method == "hash")
        };
        if !indexes.iter().any(helps) {
            let (name, quoted) = (quote_table(&model.table), quote_ident(column));
            let using = if found.array { " USING gin" } else { "" };
            findings.push(Finding::warning(
                format!("{place}.{part}"),
                format!("no index begins with `{column}`, so {consequence}"),
                format!("CREATE INDEX CONCURRENTLY ON {name}{using} ({quoted})"),
            ));
        }
    }
    findings
}

/// Counts the rows that carry no group of their own.
async fn ungrouped(
    client: &Client,
    place: &str,
    index: usize,
    model: &Model,
    found: &Found,
) -> Result<Option<Finding>, SourceError> {
    let table = &found.tables[&model.table];
    let mut empty = Vec::new();
    for column in model.groups.values() {
        let Some(there) = table.columns.get(column) else { return Ok(None) };
        let name = quote_ident(column);
        empty.push(if there.array {
            format!("coalesce(cardinality({name}), 0) = 0")
        } else {
            format!("{name} IS NULL")
        });
    }
    if empty.is_empty() {
        return Ok(None);
    }
    let passes = match found.filters.get(&index) {
        Some(Ok(filter)) => filter.text.as_str(),
        Some(Err(_)) => return Ok(None),
        None => "true",
    };
    let sql = format!(
        "SELECT count(*) FILTER (WHERE {}), count(*) FROM {} WHERE {passes}",
        empty.join(" AND "),
        quote_table(&model.table)
    );
    let row = client.query_one(&sql, &[]).await.map_err(|error| classify("counting rows without a group", error))?;
    let (count, all): (i64, i64) = (row.get(0), row.get(1));
    if count == 0 {
        return Ok(None);
    }
    let place = format!("{place}.groups");
    Ok(Some(match model.ungrouped {
        Ungrouped::Nobody => Finding::warning(
            place,
            format!("{count} of {all} rows carry no group, so nobody sees them"),
            "say `ungrouped = \"org\"` if the whole org should",
        ),
        Ungrouped::Org => Finding::new(
            Severity::Note,
            place,
            format!("{count} of {all} rows carry no group, so their whole org sees them"),
            "",
        ),
    }))
}
