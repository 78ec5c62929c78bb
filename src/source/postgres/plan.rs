//! What a scan will copy, and in which order.

use std::cmp::Reverse;
use std::collections::VecDeque;

use tokio_postgres::SimpleQueryMessage;
use tokio_postgres::types::{ToSql, Type};

use crate::model::Org;
use crate::model::catalog::Lineage;
use crate::source::postgres::columns::Layout;
use crate::source::postgres::copy::Copy;
use crate::source::postgres::error::classify;
use crate::source::postgres::groups::GroupReader;
use crate::source::postgres::pool::Lease;
use crate::source::postgres::row::RowPlan;
use crate::source::sql::ModelSelect;
use crate::source::{GroupSets, SourceError};

/// Rows of a set, on average, from which on a set fills frames by itself. With fewer, many sets would be open at once
/// and their frames be closed small.
const SMALL_SET: f64 = 2_000.0;
/// Sets up to which it does not matter in which order they come: their open frames fit in memory.
const FEW_SETS: f64 = 64.0;

/// The models to copy, the largest first, so that no connection is left with a large one at the end.
pub struct Planned {
    /// One for each model that snapshots hold.
    pub copies: VecDeque<Copy>,
    /// The planner's estimate of all rows.
    pub estimated_rows: u64,
}

/// Asks the planner about each model. The transaction's org must be set.
///
/// # Errors
/// What the database says of a select: a filter that is no condition over the table's columns, say.
pub async fn plan(lease: &Lease, layout: &Layout, org: &Org, sets: &GroupSets) -> Result<Planned, SourceError> {
    let catalog = &layout.schema.catalog;
    let mut sized = Vec::new();
    for (index, model) in catalog.models().iter().enumerate().filter(|(_, model)| model.load.in_snapshot()) {
        let lineage = catalog.lineage(index);
        let owner = lineage.chain[lineage.groups];
        let groups = &layout.models[owner].groups;
        let (schema, own) = (&layout.schema.models[index], &layout.models[index]);
        let RowPlan { fields, groups: extra, encoder } = RowPlan::new(&model.name, schema, own, groups, owner != index);
        let order = Vec::new();
        let org_type = &layout.org_type;
        let mut select = ModelSelect { catalog, lineage: &lineage, fields, groups: extra, org_type, order };
        let rows = estimate(lease, &select.sql(), &model.name).await?;
        let by_set = many_small_sets(lease, layout, &lineage, rows).await?;
        if by_set {
            select.order = groups.iter().map(|group| group.column.as_str()).collect();
        }
        let reader = GroupReader::new(groups.clone(), catalog.models()[owner].ungrouped, org, sets);
        let class = model.name.clone();
        sized.push((rows, Copy { model: index, class, select: select.sql(), encoder, groups: reader, by_set }));
    }
    sized.sort_by_key(|(rows, _)| Reverse(*rows));
    let estimated_rows = sized.iter().map(|(rows, _)| rows).sum();
    Ok(Planned { copies: sized.into_iter().map(|(_, copy)| copy).collect(), estimated_rows })
}

/// The planner's estimate of a select's rows. EXPLAIN runs nothing.
async fn estimate(lease: &Lease, select: &str, class: &str) -> Result<u64, SourceError> {
    let answer = lease.simple_query(&format!("EXPLAIN (FORMAT JSON) {select}")).await;
    let answer = answer.map_err(|error| classify(format!("planning the read of {class}"), error))?;
    let text = answer.iter().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => row.get(0),
        _ => None,
    });
    let plan: Option<serde_json::Value> = text.and_then(|text| serde_json::from_str(text).ok());
    Ok(plan.and_then(|plan| plan.pointer("/0/Plan/Plan Rows")?.as_f64()).map_or(0, |rows| rows as u64))
}

/// Whether a model has so many group sets of so few rows that it should be read set by set. By the statistics of the
/// table that holds the groups; without any (a view, a table never analyzed) the answer is no.
async fn many_small_sets(
    lease: &Lease,
    layout: &Layout,
    lineage: &Lineage,
    rows_of_org: u64,
) -> Result<bool, SourceError> {
    let models = layout.schema.catalog.models();
    let owner = lineage.chain[lineage.groups];
    let columns: Vec<&str> = layout.models[owner].groups.iter().map(|group| group.column.as_str()).collect();
    // So few rows can't have many sets.
    if columns.is_empty() || rows_of_org as f64 <= FEW_SETS {
        return Ok(false);
    }
    let (owner, own) = (&models[owner].table, &models[lineage.chain[0]].table);
    let parameters: [(&(dyn ToSql + Sync), Type); 5] = [
        (&owner.schema, Type::TEXT),
        (&owner.name, Type::TEXT),
        (&columns, Type::TEXT_ARRAY),
        (&own.schema, Type::TEXT),
        (&own.name, Type::TEXT),
    ];
    let found = lease.query_typed(DISTINCT_SETS, &parameters).await;
    let found = found.map_err(|error| classify("reading the statistics", error))?;
    let Some((sets, rows)) = found.first().and_then(|row| Some((row.get::<_, Option<f64>>(0)?, row.get::<_, f64>(1))))
    else {
        return Ok(false);
    };
    let rows_of_set = (rows / sets.max(1.0)).max(1.0);
    Ok(rows_of_set < SMALL_SET && rows_of_org as f64 / rows_of_set > FEW_SETS)
}

/// How many sets the table with the groups has, and how many rows the model's own table. `n_distinct` is a number, or
/// negated a share of the rows (PostgreSQL docs, `pg_stats`); the combinations of several columns are taken to be as
/// many as the most varied of them has, which errs towards larger sets. Partitioned tables have inherited statistics
/// only, and count their rows in their parts.
const DISTINCT_SETS: &str = "
WITH size(place, rows) AS (
    SELECT wanted.place, (
        SELECT coalesce(sum(greatest(c.reltuples, 0)), 0)::float8
        FROM pg_catalog.pg_class AS c
        WHERE c.relkind IN ('r', 'm') AND (c.oid = t.oid OR c.oid IN (SELECT relid FROM pg_catalog.pg_partition_tree(t.oid)))
    )
    FROM (VALUES (1, $1::text, $2::text), (2, $4::text, $5::text)) AS wanted(place, schema_name, table_name)
    JOIN pg_catalog.pg_namespace AS n ON n.nspname = wanted.schema_name
    JOIN pg_catalog.pg_class AS t ON t.relnamespace = n.oid AND t.relname = wanted.table_name
)
SELECT max(CASE WHEN s.n_distinct >= 0 THEN s.n_distinct ELSE -s.n_distinct * owner.rows END)::float8,
       (SELECT rows FROM size WHERE place = 2)
FROM pg_catalog.pg_stats AS s, size AS owner
WHERE owner.place = 1 AND s.schemaname = $1 AND s.tablename = $2 AND s.attname = ANY ($3::text[])";
