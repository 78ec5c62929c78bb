//! The change log as readers use it: where it is, whether it is whole, and how much of it an org has pending.
//!
//! Every function takes a connection to the primary and runs plain statements on it; a call that is dropped leaves the
//! connection usable.

use std::time::Duration;

use tokio_postgres::Client;
use tokio_postgres::types::ToSql;

use crate::model::catalog::{Catalog, LogTable};
use crate::model::{Org, SyncId};
use crate::source::migrate::names::{marks_table, qualified, quote_ident, quote_table};
use crate::source::migrate::triggers;
use crate::source::postgres::error::classify;
use crate::source::{LogSize, SourceError};

/// The log and its sequence, by quoted name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Log {
    /// The table.
    pub table: String,
    /// The sequence that its ids are drawn from.
    pub sequence: String,
    /// The floor's table; `None` where the application writes the log and has none: nothing trims that log.
    floor: Option<String>,
    id: String,
    org: String,
}

impl Log {
    /// Finds the log that the catalog names. It may be replaced by one of the same names later: the epoch tells.
    ///
    /// # Errors
    /// [`SourceError::Schema`] when there is none, when it may not be read, when its ids do not come from exactly one
    /// sequence, or when it lacks a floor; else what PostgreSQL says.
    pub async fn find(client: &Client, log: &LogTable) -> Result<Self, SourceError> {
        let table = quote_table(&log.table);
        let doing = "looking for the change log";
        let sql =
            "SELECT has_table_privilege(c.oid, 'SELECT') FROM pg_catalog.pg_class c WHERE c.oid = to_regclass($1)";
        let row = client.query_opt(sql, &[&table]).await.map_err(|error| classify(doing, error))?;
        let Some(row) = row else {
            let fault = format!("log.table: there is no table `{}`: run `headstart migrate --apply`", log.table);
            return Err(SourceError::Schema(fault));
        };
        if !row.get::<_, bool>(0) {
            let fault = format!("log.table: `{}` may not be read: GRANT SELECT ON {table} to this role", log.table);
            return Err(SourceError::Schema(fault));
        }
        let sequences = sequences(client, log).await.map_err(|error| classify(doing, error))?;
        let [sequence] = sequences.as_slice() else {
            let fault = format!(
                "log.id: the ids of `{}` come from {} sequences, it must be one: make `{}` an identity column",
                log.table,
                sequences.len(),
                log.id
            );
            return Err(SourceError::Schema(fault));
        };
        let floor = quote_table(&log.floor);
        let there = client
            .query_one("SELECT to_regclass($1) IS NOT NULL", &[&floor])
            .await
            .map_err(|error| classify(doing, error))?
            .get::<_, bool>(0);
        if log.managed && !there {
            let fault = format!("log.floor: there is no table `{}`: run `headstart migrate --apply`", log.floor);
            return Err(SourceError::Schema(fault));
        }
        Ok(Self {
            table,
            sequence: sequence.clone(),
            floor: there.then_some(floor),
            id: quote_ident(&log.id),
            org: quote_ident(&log.org),
        })
    }

    /// The floor as an expression.
    fn floor_sql(&self) -> String {
        self.floor.as_ref().map_or_else(|| "0::bigint".into(), |table| format!("(SELECT floor FROM {table})"))
    }

    /// The highest sync id up to which actions may be missing.
    ///
    /// # Errors
    /// What PostgreSQL says.
    pub async fn floor(&self, client: &Client) -> Result<SyncId, SourceError> {
        let sql = format!("SELECT {}", self.floor_sql());
        // Without preparing it, which would be two more round trips.
        let rows = client.query_typed(&sql, &[]).await.map_err(|error| classify("reading the log's floor", error))?;
        Ok(rows.first().map_or(SyncId::ZERO, |row| SyncId(row.get::<_, i64>(0).unsigned_abs())))
    }

    /// For each org, how many actions the log holds after a sync id, counted up to `cap`; `cap` where the log does not
    /// reach back to that id. Reads no more than that of each org, from the index.
    ///
    /// # Errors
    /// What PostgreSQL says.
    pub async fn pending(&self, client: &Client, orgs: &[(Org, SyncId)], cap: u64) -> Result<Vec<u64>, SourceError> {
        let sql = format!(
            "SELECT CASE WHEN a.after < {} THEN $3 ELSE
                 (SELECT count(*) FROM (SELECT FROM {} l WHERE l.{} = a.org AND l.{} > a.after LIMIT $3) counted) END
             FROM unnest($1::text[], $2::bigint[]) WITH ORDINALITY AS a(org, after, place) ORDER BY place",
            self.floor_sql(),
            self.table,
            self.org,
            self.id
        );
        let names: Vec<&str> = orgs.iter().map(|(org, _)| org.as_str()).collect();
        let after: Vec<i64> = orgs.iter().map(|(_, id)| signed(id.0)).collect();
        let rows = client
            .query(&sql, &[&names, &after, &signed(cap)])
            .await
            .map_err(|error| classify("counting pending actions", error))?;
        Ok(rows.iter().map(|row| row.get::<_, i64>(0).unsigned_abs()).collect())
    }

    /// How long it is, with its partitions. PostgreSQL's cumulative statistics tell how many rows are alive, some
    /// milliseconds to a second late; after a crash of the server they begin at 0 and are right after the next ANALYZE.
    ///
    /// # Errors
    /// What PostgreSQL says.
    pub async fn size(&self, client: &Client) -> Result<LogSize, SourceError> {
        let sql = "WITH RECURSIVE log(oid) AS (
                       SELECT to_regclass($1)::oid
                       UNION SELECT i.inhrelid FROM pg_catalog.pg_inherits i JOIN log ON i.inhparent = log.oid)
                   SELECT coalesce(sum(pg_stat_get_live_tuples(oid)), 0)::bigint,
                          coalesce(sum(pg_total_relation_size(oid)), 0)::bigint FROM log";
        let row = client.query_one(sql, &[&self.table]).await;
        let row = row.map_err(|error| classify("asking how long the log is", error))?;
        let [actions, bytes] = [0, 1].map(|column| row.get::<_, i64>(column).unsigned_abs());
        Ok(LogSize { actions, bytes })
    }

    /// Every org that the log holds an action of. Costs one index probe an org, however long the log is.
    ///
    /// # Errors
    /// What PostgreSQL says.
    pub async fn orgs(&self, client: &Client) -> Result<Vec<Org>, SourceError> {
        let (table, org) = (&self.table, &self.org);
        let sql = format!(
            "WITH RECURSIVE o(org) AS (
                 (SELECT {org} FROM {table} ORDER BY {org} LIMIT 1)
                 UNION ALL
                 SELECT (SELECT l.{org} FROM {table} l WHERE l.{org} > o.org ORDER BY l.{org} LIMIT 1)
                 FROM o WHERE o.org IS NOT NULL)
             SELECT org FROM o WHERE org IS NOT NULL"
        );
        let rows = client.query(&sql, &[]).await.map_err(|error| classify("listing the log's orgs", error))?;
        Ok(rows.iter().map(|row| Org::new(row.get::<_, &str>(0))).collect())
    }
}

/// What can't be served because its changes are not all logged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unlogged {
    /// A model, by index.
    Model(usize),
    /// A membership entry, by index.
    Membership(usize),
}

/// The models and memberships whose triggers are missing or disabled, each with the fault and the mend. Empty when the
/// application writes the log. Whether a trigger does what the catalog wants now is `headstart check`'s part.
///
/// # Errors
/// What PostgreSQL says.
pub async fn unlogged(client: &Client, catalog: &Catalog) -> Result<Vec<(Unlogged, SourceError)>, SourceError> {
    if !catalog.log().managed {
        return Ok(Vec::new());
    }
    let models = (0..catalog.models().len()).flat_map(|index| {
        triggers::needed(catalog, index).into_iter().map(move |(table, name)| (Unlogged::Model(index), table, name))
    });
    let memberships = catalog.access().memberships.iter().enumerate().map(|(index, entry)| {
        (Unlogged::Membership(index), &entry.table, crate::source::migrate::names::membership(entry))
    });
    let needed: Vec<_> = models.chain(memberships).collect();
    let tables: Vec<String> = needed.iter().map(|(_, table, _)| quote_table(table)).collect();
    let names: Vec<&str> = needed.iter().map(|(_, _, name)| name.as_str()).collect();
    // Partitions have triggers of their own, copied from their parent's.
    let sql = "SELECT n.place, coalesce(r.oid::regclass::text, n.tbl), t.tgname IS NULL
               FROM unnest($1::text[], $2::text[]) WITH ORDINALITY AS n(tbl, name, place)
               CROSS JOIN LATERAL (SELECT to_regclass(n.tbl)::oid AS oid
                                   UNION SELECT relid FROM pg_partition_tree(to_regclass(n.tbl))) r
               LEFT JOIN pg_catalog.pg_trigger t ON t.tgrelid = r.oid AND t.tgname = n.name
               WHERE t.tgenabled IS DISTINCT FROM 'A' ORDER BY n.place";
    let rows = client.query(sql, &[&tables, &names]).await.map_err(|error| classify("looking for triggers", error))?;
    let mut faults: Vec<(Unlogged, SourceError)> = Vec::new();
    for row in rows {
        let place = usize::try_from(row.get::<_, i64>(0) - 1).unwrap_or_default();
        let (table, missing): (String, bool) = (row.get(1), row.get(2));
        let Some((what, _, name)) = needed.get(place) else { continue };
        if faults.iter().any(|(there, _)| there == what) {
            continue;
        }
        let at = match what {
            Unlogged::Model(index) => format!("models.{}", catalog.models()[*index].name),
            Unlogged::Membership(index) => format!("access.memberships[{index}]"),
        };
        let state = if missing { "is missing" } else { "does not fire always" };
        let fault = format!(
            "{at}: the trigger `{name}` on {table} {state}, so changes are not logged: run `headstart migrate --apply`"
        );
        faults.push((what.clone(), SourceError::Schema(fault)));
    }
    Ok(faults)
}

/// Removes the oldest actions: those up to `up_to` that were logged longer ago than `age`, at most `most`, and raises the
/// floor in the same statement. Gives how many there were. One statement, so that nobody sees one without the other.
///
/// # Errors
/// What PostgreSQL says; the role must be allowed to delete from the log and to update its floor.
pub async fn trim(
    client: &Client,
    log: &LogTable,
    up_to: SyncId,
    age: Duration,
    most: u64,
) -> Result<u64, SourceError> {
    let (table, floor) = (quote_table(&log.table), quote_table(&log.floor));
    let (id, created_at) = (quote_ident(&log.id), quote_ident(&log.created_at));
    // Only from the beginning of the log on, and only as far as all is old: the floor says that nothing below it is whole.
    let sql = format!(
        "WITH oldest AS (SELECT {id} AS id, {created_at} AS at FROM {table} WHERE {id} <= $1 ORDER BY {id} LIMIT $3),
              young AS (SELECT min(id) AS id FROM oldest WHERE at >= now() - make_interval(secs => $2)),
              gone AS (DELETE FROM {table} WHERE {id} IN (
                           SELECT o.id FROM oldest o, young y WHERE y.id IS NULL OR o.id < y.id) RETURNING {id} AS id),
              raised AS (UPDATE {floor} SET floor = greatest(floor, (SELECT max(id) FROM gone))
                         WHERE EXISTS (SELECT FROM gone))
         SELECT count(*) FROM gone"
    );
    let parameters: [&(dyn ToSql + Sync); 3] = [&signed(up_to.0), &age.as_secs_f64(), &signed(most)];
    let row = client.query_one(&sql, &parameters).await.map_err(|error| classify("trimming the log", error))?;
    Ok(row.get::<_, i64>(0).unsigned_abs())
}

/// Removes the marks that no transaction can need any more: those of transactions that ended before the oldest snapshot
/// in use was taken. Returns how many. Run it from time to time: children's writes leave one mark each.
///
/// A snapshot that is taken later can't need them either: it sees every transaction below today's oldest as ended.
///
/// # Errors
/// What PostgreSQL says; the role must be allowed to delete from the marks.
pub async fn trim_marks(client: &Client, log: &LogTable) -> Result<u64, SourceError> {
    // `backend_xmin` has 32 bits: how far it lies behind the oldest running transaction gives the rest. A snapshot that
    // was taken after ours may lie ahead of it.
    let sql = format!(
        "DELETE FROM {} WHERE xid < (
             SELECT greatest(oldest - coalesce(max(behind) FILTER (WHERE behind < 2147483648), 0), 0)::text::xid8
             FROM (SELECT pg_snapshot_xmin(pg_current_snapshot())::text::bigint AS oldest) o
             LEFT JOIN LATERAL (SELECT (oldest - backend_xmin::text::bigint) & 4294967295 AS behind
                                FROM pg_stat_activity WHERE backend_xmin IS NOT NULL) b ON true
             GROUP BY oldest)",
        quote_table(&marks_table(log))
    );
    client.execute(&sql, &[]).await.map_err(|error| classify("trimming the log's marks", error))
}

/// The sequences that the log's id column draws from, quoted: its identity, or what its default names.
async fn sequences(client: &Client, log: &LogTable) -> Result<Vec<String>, tokio_postgres::Error> {
    let sql = "WITH id AS (SELECT attrelid, attnum FROM pg_catalog.pg_attribute
                           WHERE attrelid = to_regclass($1) AND attname = $2 AND NOT attisdropped),
                    drawn AS (
                        SELECT d.objid AS oid FROM pg_catalog.pg_depend d JOIN id
                            ON d.refobjid = id.attrelid AND d.refobjsubid = id.attnum
                        WHERE d.classid = 'pg_catalog.pg_class'::regclass
                          AND d.refclassid = 'pg_catalog.pg_class'::regclass AND d.deptype = 'i'
                        UNION
                        SELECT d.refobjid FROM pg_catalog.pg_attrdef f JOIN id
                            ON f.adrelid = id.attrelid AND f.adnum = id.attnum
                        JOIN pg_catalog.pg_depend d ON d.objid = f.oid
                            AND d.classid = 'pg_catalog.pg_attrdef'::regclass
                            AND d.refclassid = 'pg_catalog.pg_class'::regclass)
               SELECT n.nspname::text, c.relname::text FROM drawn JOIN pg_catalog.pg_class c USING (oid)
               JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace WHERE c.relkind = 'S'";
    let rows = client.query(sql, &[&quote_table(&log.table), &log.id]).await?;
    Ok(rows.iter().map(|row| qualified(row.get(0), row.get(1))).collect())
}

/// A sync id or a count as PostgreSQL's `bigint`.
pub fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}
