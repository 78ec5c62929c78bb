//! The catalog's tables as the database has them now: which exist, with which columns, of which types.
//!
//! Two statements for any number of tables, so that a scan can afford to look again within its own snapshot.

use std::collections::{BTreeMap, BTreeSet};

use tokio_postgres::types::{Oid, ToSql, Type};
use tokio_postgres::{GenericClient, Row};

use crate::model::catalog::{Catalog, TableName};
use crate::source::SourceError;
use crate::source::postgres::error::classify;
use crate::source::postgres::types::Types;

/// What the database has of the tables that were asked for.
#[derive(Debug, Default)]
pub struct Live {
    tables: BTreeMap<TableName, Table>,
    /// The types of all columns.
    pub types: Types,
}

/// One table or view.
#[derive(Debug)]
pub struct Table {
    /// What it is.
    pub kind: TableKind,
    /// Whether this role may read it.
    pub readable: bool,
    /// Its columns, in the order of the table.
    pub columns: Vec<Column>,
}

/// What a name refers to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TableKind {
    /// A table, a partitioned table or a view: what `LOCK TABLE` takes.
    Lockable,
    /// A materialized view.
    MaterializedView,
    /// A foreign table.
    Foreign,
}

/// One column.
#[derive(Debug)]
pub struct Column {
    /// Its name.
    pub name: String,
    /// Its type.
    pub oid: Oid,
    /// The type with its modifier, as `format_type` prints it.
    pub sql_type: String,
    /// The type without its modifier, as a cast takes it.
    pub cast_type: String,
    /// Whether it may hold nulls. Always true for a view's.
    pub nullable: bool,
    /// Whether values are equal only when their bytes are.
    pub deterministic: bool,
}

impl Live {
    /// Looks up every table a catalog names.
    ///
    /// # Errors
    /// What keeps the database from answering. A table that is missing is no error here.
    pub async fn read(client: &impl GenericClient, catalog: &Catalog) -> Result<Self, SourceError> {
        let models = catalog.models().iter().map(|model| &model.table);
        let memberships = catalog.access().memberships.iter().map(|membership| &membership.table);
        let names: Vec<&TableName> = models.chain(memberships).collect::<BTreeSet<_>>().into_iter().collect();
        let schemas: Vec<&str> = names.iter().map(|table| table.schema.as_str()).collect();
        let tables: Vec<&str> = names.iter().map(|table| table.name.as_str()).collect();
        let parameters: [(&(dyn ToSql + Sync), Type); 2] = [(&schemas, Type::TEXT_ARRAY), (&tables, Type::TEXT_ARRAY)];
        let rows = client.query_typed(COLUMNS, &parameters).await;
        let rows = rows.map_err(|error| classify("reading the columns", error))?;
        let mut live = Self::default();
        for row in &rows {
            let place: i64 = row.get("place");
            let name = names[usize::try_from(place - 1).expect("places count from one")];
            let table = live.tables.entry(name.clone()).or_insert_with(|| Table::of(row));
            table.columns.extend(Column::of(row));
        }
        let oids: BTreeSet<Oid> =
            live.tables.values().flat_map(|table| &table.columns).map(|column| column.oid).collect();
        live.types = Types::read(client, &oids.into_iter().collect::<Vec<_>>()).await?;
        Ok(live)
    }

    /// The table of this name, if it exists.
    pub fn table(&self, name: &TableName) -> Option<&Table> {
        self.tables.get(name)
    }
}

impl Table {
    /// The column of this name, if it exists.
    pub fn column(&self, name: &str) -> Option<&Column> {
        self.columns.iter().find(|column| column.name == name)
    }

    fn of(row: &Row) -> Self {
        let kind = match row.get("kind") {
            "m" => TableKind::MaterializedView,
            "f" => TableKind::Foreign,
            _ => TableKind::Lockable,
        };
        Self { kind, readable: row.get("readable"), columns: Vec::new() }
    }
}

impl Column {
    /// `None` for a table without columns.
    fn of(row: &Row) -> Option<Self> {
        Some(Self {
            name: row.get::<_, Option<String>>("name")?,
            oid: row.get("atttypid"),
            sql_type: row.get("sql_type"),
            cast_type: row.get("cast_type"),
            nullable: row.get("nullable"),
            deterministic: row.get("deterministic"),
        })
    }
}

/// `format_type` with modifier -1 gives names that a cast takes without cutting values short (`bpchar`, where
/// `character` would mean `character(1)`).
const COLUMNS: &str = "
SELECT wanted.place, c.relkind::text AS kind,
       pg_catalog.has_schema_privilege(n.oid, 'USAGE') AND pg_catalog.has_table_privilege(c.oid, 'SELECT') AS readable,
       a.attname::text AS name, a.atttypid,
       pg_catalog.format_type(a.atttypid, a.atttypmod) AS sql_type,
       pg_catalog.format_type(a.atttypid, -1) AS cast_type,
       NOT a.attnotnull AS nullable,
       coalesce(l.collisdeterministic, true) AS deterministic
FROM ROWS FROM (pg_catalog.unnest($1::pg_catalog.text[]), pg_catalog.unnest($2::pg_catalog.text[]))
     WITH ORDINALITY AS wanted(schema_name, table_name, place)
JOIN pg_catalog.pg_namespace AS n ON n.nspname = wanted.schema_name
JOIN pg_catalog.pg_class AS c
     ON c.relnamespace = n.oid AND c.relname = wanted.table_name AND c.relkind IN ('r', 'p', 'v', 'm', 'f')
LEFT JOIN pg_catalog.pg_attribute AS a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
LEFT JOIN pg_catalog.pg_collation AS l ON l.oid = a.attcollation
ORDER BY wanted.place, a.attnum";
