//! Reads PostgreSQL's catalogs into a [`Survey`]: four statements for any number of tables. No row of any table is read;
//! sizes and shares are the planner's statistics.

use std::collections::HashMap;

use tokio_postgres::types::{Oid, ToSql, Type};
use tokio_postgres::{GenericClient, Row};

use super::survey::{Column, ForeignKey, Survey, Table, TableKind, Value};
use crate::model::catalog::TableName;
use crate::source::SourceError;
use crate::source::postgres::error::classify;
use crate::source::postgres::faults::has_plain_text;
use crate::source::postgres::types::{Codec, Types};

/// Reads what there is in these schemas; without any, in all that are not PostgreSQL's own.
///
/// # Errors
/// What keeps the database from answering.
pub async fn read(client: &impl GenericClient, schemas: &[String]) -> Result<Survey, SourceError> {
    let wanted: [(&(dyn ToSql + Sync), Type); 1] = [(&schemas, Type::TEXT_ARRAY)];
    let rows = client.query_typed(TABLES, &wanted).await.map_err(|error| classify("reading the tables", error))?;
    let mut places = HashMap::new();
    let mut survey = Survey::default();
    for row in &rows {
        places.insert(row.get::<_, Oid>("oid"), survey.tables.len());
        survey.public = row.get("public");
        survey.tables.push(table(row));
    }
    let oids: Vec<Oid> = places.keys().copied().collect();
    let asked: [(&(dyn ToSql + Sync), Type); 1] = [(&oids, Type::OID_ARRAY)];

    let rows = client.query_typed(COLUMNS, &asked).await.map_err(|error| classify("reading the columns", error))?;
    let types: Vec<Oid> = rows.iter().map(|row| row.get("type")).collect();
    let types = Types::read(client, &types).await?;
    for row in &rows {
        survey.tables[places[&row.get::<_, Oid>("table")]].columns.push(column(row, &types));
    }

    let rows = client.query_typed(INDEXES, &asked).await.map_err(|error| classify("reading the indexes", error))?;
    for row in &rows {
        let table = &mut survey.tables[places[&row.get::<_, Oid>("table")]];
        let columns: Vec<String> = row.get("columns");
        let Some(column) = columns.first().and_then(|first| table.column(first)) else { continue };
        let finding: &[&str] = if column.array { &["gin"] } else { &["btree", "hash"] };
        if finding.contains(&row.get("method")) {
            table.indexed.push(column.name.clone());
        }
        if row.get("unique") {
            table.unique.push(columns);
        }
    }

    let rows = client.query_typed(KEYS, &asked).await.map_err(|error| classify("reading the foreign keys", error))?;
    for row in &rows {
        let key = ForeignKey {
            columns: row.get("columns"),
            to: TableName { schema: row.get("to_schema"), name: row.get("to_name") },
            to_columns: row.get("to_columns"),
            cascades: row.get("cascades"),
        };
        survey.tables[places[&row.get::<_, Oid>("table")]].foreign_keys.push(key);
    }
    Ok(survey)
}

fn table(row: &Row) -> Table {
    let rows: f64 = row.get("rows");
    Table {
        name: TableName { schema: row.get("schema"), name: row.get("name") },
        kind: match row.get("kind") {
            "v" => TableKind::View,
            "m" => TableKind::MaterializedView,
            "f" => TableKind::Foreign,
            "p" => TableKind::Partitioned,
            _ if row.get("inherits") => TableKind::Inherited,
            _ => TableKind::Plain,
        },
        comment: row.get("comment"),
        readable: row.get("readable"),
        hidden: row.get("hidden"),
        columns: Vec::new(),
        unique: Vec::new(),
        indexed: Vec::new(),
        foreign_keys: Vec::new(),
        rows: (rows >= 0.0).then_some(rows),
        bytes: row.get::<_, i64>("bytes").unsigned_abs(),
    }
}

fn column(row: &Row, types: &Types) -> Column {
    let oid: Oid = row.get("type");
    let element = types.element(oid);
    let scalar = element.unwrap_or(oid);
    let codec = types.codec(scalar);
    let exact = row.get::<_, bool>("deterministic") && !types.is_citext(scalar) && !types.is_padded(scalar);
    let is_text = [Type::TEXT, Type::VARCHAR].iter().any(|text| text.oid() == types.base(scalar));
    Column {
        name: row.get("name"),
        sql_type: row.get("sql_type"),
        value: match codec {
            Codec::Int2 | Codec::Int4 | Codec::Int8 => Value::Integer,
            Codec::Uuid => Value::Uuid,
            Codec::Text if exact && is_text => Value::Text,
            other if exact && has_plain_text(&other) => Value::Plain,
            _ => Value::Odd,
        },
        array: element.is_some(),
        nullable: row.get("nullable"),
        nulls: row.get("nulls"),
        commonest: row.get("commonest"),
        width: row.get::<_, Option<i32>>("width").map(i32::unsigned_abs),
    }
}

/// A partitioned table has no rows of its own: those of its leaves are added up.
const TABLES: &str = "
SELECT c.oid, n.nspname::text AS schema, c.relname::text AS name, c.relkind::text AS kind,
       coalesce(pg_catalog.obj_description(c.oid, 'pg_class'), '') AS comment,
       pg_catalog.to_regnamespace('public') IS NOT NULL AS public,
       pg_catalog.has_schema_privilege(n.oid, 'USAGE') AND pg_catalog.has_table_privilege(c.oid, 'SELECT') AS readable,
       pg_catalog.row_security_active(c.oid) AS hidden,
       EXISTS (SELECT FROM pg_catalog.pg_inherits AS i WHERE c.oid IN (i.inhparent, i.inhrelid)) AS inherits,
       coalesce((SELECT CASE WHEN max(l.reltuples) < 0 THEN -1 ELSE sum(greatest(l.reltuples, 0)) END
                 FROM pg_catalog.pg_partition_tree(c.oid) AS p JOIN pg_catalog.pg_class AS l ON l.oid = p.relid
                 WHERE p.isleaf), c.reltuples)::float8 AS rows,
       CASE WHEN c.relkind IN ('r', 'p', 'm') THEN
           coalesce((SELECT sum(pg_catalog.pg_table_size(p.relid)) FROM pg_catalog.pg_partition_tree(c.oid) AS p),
                    pg_catalog.pg_table_size(c.oid)) ELSE 0 END::int8 AS bytes
FROM pg_catalog.pg_class AS c
JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f') AND NOT c.relispartition AND c.relpersistence <> 't'
  AND NOT pg_catalog.starts_with(n.nspname::text, 'pg_') AND n.nspname <> 'information_schema'
  AND (pg_catalog.cardinality($1::text[]) = 0 OR n.nspname = ANY ($1))
  AND NOT EXISTS (SELECT FROM pg_catalog.pg_depend AS d
                  WHERE d.classid = 'pg_catalog.pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e')
ORDER BY n.nspname <> 'public', n.nspname, c.relname";

const COLUMNS: &str = "
SELECT a.attrelid AS table, a.attname::text AS name, a.atttypid AS type,
       pg_catalog.format_type(a.atttypid, a.atttypmod) AS sql_type, NOT a.attnotnull AS nullable,
       coalesce(l.collisdeterministic, true) AS deterministic,
       s.null_frac::float8 AS nulls, s.most_common_freqs[1]::float8 AS commonest, s.avg_width AS width
FROM pg_catalog.pg_attribute AS a
JOIN pg_catalog.pg_class AS c ON c.oid = a.attrelid
JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
LEFT JOIN pg_catalog.pg_collation AS l ON l.oid = a.attcollation
LEFT JOIN LATERAL (SELECT null_frac, most_common_freqs, avg_width FROM pg_catalog.pg_stats
                   WHERE schemaname = n.nspname AND tablename = c.relname AND attname = a.attname
                   ORDER BY inherited DESC LIMIT 1) AS s ON true
WHERE a.attrelid = ANY ($1) AND a.attnum > 0 AND NOT a.attisdropped
ORDER BY a.attrelid, a.attnum";

const INDEXES: &str = "
SELECT i.indrelid AS table, m.amname::text AS method,
       i.indisunique AND i.indimmediate AND NOT 0 = ANY (i.indkey::int2[]) AS unique,
       ARRAY(SELECT coalesce(a.attname::text, '') FROM pg_catalog.unnest(i.indkey::int2[]) WITH ORDINALITY AS k(num, at)
             LEFT JOIN pg_catalog.pg_attribute AS a ON a.attrelid = i.indrelid AND a.attnum = k.num
             WHERE k.at <= i.indnkeyatts ORDER BY k.at) AS columns
FROM pg_catalog.pg_index AS i
JOIN pg_catalog.pg_class AS c ON c.oid = i.indexrelid
JOIN pg_catalog.pg_am AS m ON m.oid = c.relam
WHERE i.indrelid = ANY ($1) AND i.indisvalid AND i.indpred IS NULL
ORDER BY i.indrelid, NOT i.indisprimary, i.indnkeyatts, c.relname";

const KEYS: &str = "
SELECT f.conrelid AS table, n.nspname::text AS to_schema, c.relname::text AS to_name, f.confdeltype = 'c' AS cascades,
       ARRAY(SELECT a.attname::text FROM pg_catalog.unnest(f.conkey) WITH ORDINALITY AS k(num, at)
             JOIN pg_catalog.pg_attribute AS a ON a.attrelid = f.conrelid AND a.attnum = k.num ORDER BY k.at) AS columns,
       ARRAY(SELECT a.attname::text FROM pg_catalog.unnest(f.confkey) WITH ORDINALITY AS k(num, at)
             JOIN pg_catalog.pg_attribute AS a ON a.attrelid = f.confrelid AND a.attnum = k.num ORDER BY k.at)
           AS to_columns
FROM pg_catalog.pg_constraint AS f
JOIN pg_catalog.pg_class AS c ON c.oid = f.confrelid
JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
WHERE f.contype = 'f' AND f.conparentid = 0 AND f.conrelid = ANY ($1)
ORDER BY f.conrelid, f.conname";
