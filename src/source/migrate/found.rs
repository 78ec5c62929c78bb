//! What the database holds already: the tables that the catalog names, and what an earlier `migrate` made.
//!
//! Read in one transaction that is rolled back, so reading leaves nothing behind. Types and filters are read with a
//! search path of `pg_catalog` alone: PostgreSQL then prints every other name with its schema, and the text means the
//! same wherever it is put, trigger functions with their fixed search path included.

use std::collections::{BTreeMap, BTreeSet};

use tokio_postgres::{Client, Error};

use crate::model::catalog::{Catalog, LogTable, Model, TableName};
use crate::source::migrate::names::{self, quote_table};

/// What the database holds, as far as the log is concerned.
#[derive(Debug, Default)]
pub struct Found {
    /// `server_version_num`.
    pub server_version: u32,
    /// The comment on the log table; `None` when there is no such table.
    pub log: Option<String>,
    /// Whether the floor's table stands.
    pub floor: bool,
    /// Whether the marks' table stands.
    pub marks: bool,
    /// The log's indexes by name, and whether each is valid.
    pub indexes: BTreeMap<String, bool>,
    /// The cataloged tables that exist.
    pub tables: BTreeMap<TableName, FoundTable>,
    /// Models, by index, whose `from` is a foreign key that PostgreSQL enforces at once.
    pub enforced: BTreeSet<usize>,
    /// The filters of models, by index, or why PostgreSQL does not take one.
    pub filters: BTreeMap<usize, Result<Filter, String>>,
    /// The functions of the log: name and argument types to what they are.
    pub functions: BTreeMap<(String, String), FoundFunction>,
    /// The triggers of the log on tables, without the copies that partitions have.
    pub triggers: Vec<FoundTrigger>,
}

/// A table or view that the catalog names.
#[derive(Debug)]
pub struct FoundTable {
    /// `pg_class.relkind`.
    pub kind: char,
    /// Columns by name.
    pub columns: BTreeMap<String, FoundColumn>,
    /// Its partitions, at every level.
    pub partitions: Vec<TableName>,
    /// Whether row-level security would hide rows from the role that migrates.
    pub hidden: bool,
    /// Whether that role may read its rows, lock them and put triggers on it.
    pub permitted: bool,
}

impl FoundTable {
    /// Whether row triggers can log its changes: a table or a partitioned table, no view and no foreign table.
    pub fn takes_triggers(&self) -> bool {
        matches!(self.kind, 'r' | 'p')
    }
}

/// One column.
#[derive(Debug)]
pub struct FoundColumn {
    /// `format_type`, with its schema unless it is PostgreSQL's own.
    pub sql_type: String,
    /// The same of the type below all domains.
    pub base_type: String,
    /// Whether values are arrays.
    pub array: bool,
    /// Whether PostgreSQL computes it.
    pub generated: bool,
    /// Whether it may be null.
    pub nullable: bool,
}

/// A catalog's filter as PostgreSQL reads it.
#[derive(Debug)]
pub struct Filter {
    /// The condition, with every name in full.
    pub text: String,
    /// Whether only a write can change its result. Otherwise (`now()`, say) rows leave without the log's notice.
    pub immutable: bool,
}

/// A function that an earlier `migrate` made.
#[derive(Debug)]
pub struct FoundFunction {
    /// Its source text.
    pub body: String,
    /// SECURITY DEFINER.
    pub definer: bool,
    /// Its `SET` clauses, `name=value`.
    pub settings: Vec<String>,
}

/// A trigger that an earlier `migrate` made.
#[derive(Debug)]
pub struct FoundTrigger {
    /// On what.
    pub table: TableName,
    /// Its name.
    pub name: String,
    /// Fires whatever `session_replication_role` says.
    pub always: bool,
    /// Its comment, which holds the digest of its definition.
    pub comment: String,
}

impl Found {
    /// Reads all of it. Leaves the connection in no transaction. Not cancel safe: a connection whose call was dropped
    /// may be in an open transaction and must be closed.
    ///
    /// # Errors
    /// What PostgreSQL says. A filter that it does not take is no error but part of the result.
    pub async fn read(client: &Client, catalog: &Catalog) -> Result<Self, Error> {
        client.batch_execute("BEGIN").await?;
        let found = Self::read_within(client, catalog).await;
        client.batch_execute("ROLLBACK").await?;
        found
    }

    async fn read_within(client: &Client, catalog: &Catalog) -> Result<Self, Error> {
        let mut found = Self::default();
        for (index, model) in catalog.models().iter().enumerate() {
            if model.filter.is_some() {
                let read = filter(client, model).await?;
                found.filters.insert(index, read);
            }
        }
        client.batch_execute("SET LOCAL search_path = pg_catalog").await?;
        found.read_log(client, catalog.log()).await?;
        let models = catalog.models().iter().map(|model| &model.table);
        let memberships = catalog.access().memberships.iter().map(|entry| &entry.table);
        for table in models.chain(memberships).collect::<BTreeSet<_>>() {
            if let Some(read) = read_table(client, table).await? {
                found.tables.insert(table.clone(), read);
            }
        }
        for (index, model) in catalog.models().iter().enumerate() {
            if enforced(client, catalog, model).await? {
                found.enforced.insert(index);
            }
        }
        found.read_functions(client, catalog.log()).await?;
        found.read_triggers(client, catalog.log()).await?;
        Ok(found)
    }

    async fn read_log(&mut self, client: &Client, log: &LogTable) -> Result<(), Error> {
        let (table, floor, marks) =
            (quote_table(&log.table), quote_table(&log.floor), quote_table(&names::marks_table(log)));
        let sql = "SELECT current_setting('server_version_num')::int4,
                          CASE WHEN to_regclass($1) IS NOT NULL
                               THEN coalesce(obj_description(to_regclass($1), 'pg_class'), '') END,
                          to_regclass($2) IS NOT NULL, to_regclass($3) IS NOT NULL";
        let row = client.query_one(sql, &[&table, &floor, &marks]).await?;
        self.server_version = row.get::<_, i32>(0).unsigned_abs();
        self.log = row.get(1);
        self.floor = row.get(2);
        self.marks = row.get(3);
        let sql = "SELECT c.relname::text, i.indisvalid FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid
                   WHERE i.indrelid = to_regclass($1)";
        let rows = client.query(sql, &[&table]).await?;
        self.indexes = rows.iter().map(|row| (row.get(0), row.get(1))).collect();
        Ok(())
    }

    async fn read_functions(&mut self, client: &Client, log: &LogTable) -> Result<(), Error> {
        let sql = "SELECT p.proname::text, oidvectortypes(p.proargtypes), p.prosrc, p.prosecdef,
                          coalesce(p.proconfig, '{}')
                   FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace
                   WHERE n.nspname = $1 AND starts_with(p.proname::text, $2)";
        for row in client.query(sql, &[&log.table.schema, &names::PREFIX]).await? {
            let function = FoundFunction { body: row.get(2), definer: row.get(3), settings: row.get(4) };
            self.functions.insert((row.get(0), row.get(1)), function);
        }
        Ok(())
    }

    async fn read_triggers(&mut self, client: &Client, log: &LogTable) -> Result<(), Error> {
        let sql = "SELECT tn.nspname::text, c.relname::text, t.tgname::text, t.tgenabled = 'A',
                          coalesce(obj_description(t.oid, 'pg_trigger'), '')
                   FROM pg_trigger t
                   JOIN pg_class c ON c.oid = t.tgrelid JOIN pg_namespace tn ON tn.oid = c.relnamespace
                   JOIN pg_proc p ON p.oid = t.tgfoid JOIN pg_namespace pn ON pn.oid = p.pronamespace
                   WHERE t.tgparentid = 0 AND pn.nspname = $1 AND starts_with(p.proname::text, $2)
                   ORDER BY 1, 2, 3";
        for row in client.query(sql, &[&log.table.schema, &names::PREFIX]).await? {
            let table = TableName { schema: row.get(0), name: row.get(1) };
            self.triggers.push(FoundTrigger { table, name: row.get(2), always: row.get(3), comment: row.get(4) });
        }
        Ok(())
    }
}

async fn read_table(client: &Client, table: &TableName) -> Result<Option<FoundTable>, Error> {
    let name = quote_table(table);
    let sql = "SELECT c.relkind::text, row_security_active(c.oid),
                      CASE WHEN c.relkind IN ('r', 'p')
                           THEN has_table_privilege(c.oid, 'SELECT') AND has_table_privilege(c.oid, 'UPDATE')
                                AND has_table_privilege(c.oid, 'TRIGGER')
                           ELSE true END
               FROM pg_class c WHERE c.oid = to_regclass($1)";
    let Some(row) = client.query_opt(sql, &[&name]).await? else { return Ok(None) };
    let kind = row.get::<_, String>(0).chars().next().unwrap_or('r');
    let mut found = FoundTable {
        kind,
        columns: BTreeMap::new(),
        partitions: Vec::new(),
        hidden: row.get(1),
        permitted: row.get(2),
    };
    let sql = "SELECT a.attname::text, format_type(t.oid, NULL), format_type(coalesce(b.oid, t.oid), NULL),
                      coalesce(b.typcategory, t.typcategory) = 'A', a.attgenerated <> '',
                      NOT a.attnotnull
               FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid
               LEFT JOIN LATERAL (
                   WITH RECURSIVE below(oid) AS (
                       SELECT t.typbasetype WHERE t.typtype = 'd'
                       UNION ALL SELECT d.typbasetype FROM below JOIN pg_type d USING (oid) WHERE d.typtype = 'd')
                   SELECT p.oid, p.typcategory FROM below JOIN pg_type p USING (oid) WHERE p.typtype <> 'd') b ON true
               WHERE a.attrelid = to_regclass($1) AND a.attnum > 0 AND NOT a.attisdropped";
    for row in client.query(sql, &[&name]).await? {
        let column = FoundColumn {
            sql_type: row.get(1),
            base_type: row.get(2),
            array: row.get(3),
            generated: row.get(4),
            nullable: row.get(5),
        };
        found.columns.insert(row.get(0), column);
    }
    let sql = "SELECT n.nspname::text, c.relname::text
               FROM pg_partition_tree(to_regclass($1)) p
               JOIN pg_class c ON c.oid = p.relid JOIN pg_namespace n ON n.oid = c.relnamespace
               WHERE p.level > 0 ORDER BY 1, 2";
    for row in client.query(sql, &[&name]).await? {
        found.partitions.push(TableName { schema: row.get(0), name: row.get(1) });
    }
    Ok(Some(found))
}

/// Whether PostgreSQL itself keeps a row of this model from standing without its parent at the end of any statement.
async fn enforced(client: &Client, catalog: &Catalog, model: &Model) -> Result<bool, Error> {
    let Some(from) = &model.from else { return Ok(false) };
    let Some((_, parent)) = catalog.model(&from.model) else { return Ok(false) };
    let sql = "SELECT count(*) > 0 FROM pg_constraint f
               JOIN pg_attribute c ON c.attrelid = f.conrelid AND f.conkey = ARRAY[c.attnum]
               JOIN pg_attribute p ON p.attrelid = f.confrelid AND f.confkey = ARRAY[p.attnum]
               WHERE f.contype = 'f' AND f.convalidated AND NOT f.condeferrable
                 AND f.conrelid = to_regclass($1) AND c.attname = $2
                 AND f.confrelid = to_regclass($3) AND p.attname = $4
                 AND NOT EXISTS (SELECT FROM pg_trigger t WHERE t.tgconstraint = f.oid AND t.tgenabled IN ('D', 'R'))";
    let (child, above) = (quote_table(&model.table), quote_table(&parent.table));
    Ok(client.query_one(sql, &[&child, &from.by, &above, &parent.id]).await?.get(0))
}

/// Lets PostgreSQL read the filter as a condition of an empty copy of the table and print it with every name in full.
/// A check constraint, because that takes nothing but the row's own columns.
async fn filter(client: &Client, model: &Model) -> Result<Result<Filter, String>, Error> {
    let condition = model.filter.as_deref().unwrap_or_default();
    client.batch_execute("SAVEPOINT headstart_filter").await?;
    let copy = format!("CREATE TEMP TABLE headstart_filter (LIKE {})", quote_table(&model.table));
    let constrain = format!("ALTER TABLE pg_temp.headstart_filter ADD CONSTRAINT headstart_filter CHECK ({condition})");
    let read = async {
        client.execute(&copy, &[]).await?;
        client.execute(&constrain, &[]).await?;
        client.batch_execute("SET LOCAL search_path = pg_catalog").await?;
        let sql = "SELECT pg_get_expr(conbin, conrelid) FROM pg_constraint
                   WHERE conname = 'headstart_filter' AND conrelid = to_regclass('pg_temp.headstart_filter')";
        let text: String = client.query_one(sql, &[]).await?.get(0);
        let index = format!("CREATE INDEX ON pg_temp.headstart_filter ((1)) WHERE {text}");
        Ok(Filter { immutable: client.execute(&index, &[]).await.is_ok(), text })
    }
    .await;
    client.batch_execute("ROLLBACK TO SAVEPOINT headstart_filter; RELEASE SAVEPOINT headstart_filter").await?;
    match read {
        Ok(filter) => Ok(Ok(filter)),
        Err(error) => match Error::as_db_error(&error) {
            Some(word) => Ok(Err(word.message().to_owned())),
            None => Err(error),
        },
    }
}

/// The sessions that hold a lock on a table, for a message: `pid 7 (user app, psql)`.
pub async fn holders(client: &Client, table: &TableName) -> Result<Vec<String>, Error> {
    let sql = "SELECT DISTINCT CASE WHEN l.pid IS NULL THEN 'a prepared transaction'
                   ELSE format('pid %s (user %s, %s)', l.pid, a.usename, coalesce(nullif(a.application_name, ''), '?')) END
               FROM pg_catalog.pg_locks l LEFT JOIN pg_catalog.pg_stat_activity a ON a.pid = l.pid
               WHERE l.relation = to_regclass($1) AND l.granted AND l.pid IS DISTINCT FROM pg_backend_pid()
                 AND l.database = (SELECT oid FROM pg_catalog.pg_database WHERE datname = current_database())";
    Ok(client.query(sql, &[&quote_table(table)]).await?.iter().map(|row| row.get(0)).collect())
}
