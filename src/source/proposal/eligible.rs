//! Which tables can be models at all, and what keeps the others from it.

use super::LeftOut;
use super::graph::Graph;
use super::survey::{Survey, Table, TableKind};
use super::words;
use crate::model::catalog::TableName;
use crate::source::migrate::ddl;
use crate::source::migrate::names::{quote_ident, quote_table};

/// What keeps a table from being a model; `None` for one that can be.
pub fn obstacle(graph: &Graph<'_>, place: usize) -> Option<LeftOut> {
    let table = graph.table(place);
    let (why, mend) = of_kind(table)
        .or_else(|| of_name(table))
        .or_else(|| of_purpose(graph, place))
        .or_else(|| unreadable(table))
        .or_else(|| without_id(table))?;
    Some(LeftOut { table: table.name.clone(), why, mend })
}

/// Whether the table is Headstart's own, or of a tool: nothing to tell anybody.
pub fn is_foreign_matter(survey: &Survey, table: &Table) -> bool {
    let logs = survey.tables.iter().filter(|log| ddl::version(&log.comment).is_some());
    let ours = logs.flat_map(|log| {
        let beside = |name: String| TableName { schema: log.name.schema.clone(), name };
        [log.name.clone(), beside(format!("{}_floor", log.name.name)), beside(format!("{}_marks", log.name.name))]
    });
    words::tool(&table.name.name) || ours.into_iter().any(|name| name == table.name)
}

fn of_kind(table: &Table) -> Option<(String, String)> {
    let below = "name the tables below it as models; or let the application write the log (`managed = false` under \
                 [log]) and name the view";
    let (why, mend) = match table.kind {
        TableKind::Plain | TableKind::Partitioned => return None,
        TableKind::View => ("a view: triggers can't log its changes", below),
        TableKind::MaterializedView => ("a materialized view: it changes without a log, and can't be locked", below),
        TableKind::Foreign => ("a foreign table: its changes are made elsewhere, and it can't be locked", below),
        TableKind::Inherited => (
            "it shares rows with other tables by INHERITS: their changes would pass its triggers by",
            "make it a partitioned table, or give each table rows of its own",
        ),
    };
    Some((why.into(), mend.into()))
}

fn of_name(table: &Table) -> Option<(String, String)> {
    [&table.name.schema, &table.name.name]
        .iter()
        .any(|name| name.contains('.'))
        .then(|| ("a dot in its name: the catalog writes `schema.table`".into(), "rename it".into()))
}

fn of_purpose(graph: &Graph<'_>, place: usize) -> Option<(String, String)> {
    if is_foreign_matter(graph.survey, graph.table(place)) {
        return Some(("it belongs to a tool, not to what users see".into(), String::new()));
    }
    words::secret_table(&graph.nouns[place]).then(|| {
        let mend = "if clients need it, add a model by hand, and list what stays secret under `exclude`";
        ("by its name it holds what lets people in".into(), mend.into())
    })
}

fn unreadable(table: &Table) -> Option<(String, String)> {
    (!table.readable).then(|| {
        let grant = format!(
            "GRANT USAGE ON SCHEMA {} TO this role; GRANT SELECT ON {} TO this role",
            quote_ident(&table.name.schema),
            quote_table(&table.name)
        );
        ("this role may not read it".into(), grant)
    })
}

fn without_id(table: &Table) -> Option<(String, String)> {
    if table.id().is_some() {
        return None;
    }
    let name = quote_table(&table.name);
    let add = format!(
        "ALTER TABLE {name} ADD COLUMN {} uuid NOT NULL DEFAULT gen_random_uuid() UNIQUE -- rewrites the table",
        quote_ident(if table.column("id").is_some() { "row_id" } else { "id" })
    );
    let Some(key) = table.unique.first() else {
        return Some(("it has no primary key, so no column names a row".into(), add));
    };
    if let [only] = key.as_slice() {
        let column = table.column(only)?;
        let why = if column.nullable {
            format!("`{only}` is unique, but may be null, so it does not name every row")
        } else {
            format!("`{only}` is a {}, whose equal values can have different texts", column.sql_type)
        };
        let mend =
            if column.nullable { format!("ALTER TABLE {name} ALTER {} SET NOT NULL", quote_ident(only)) } else { add };
        return Some((why, mend));
    }
    let why = format!("its key is composite ({}), and a model needs one column that names a row", key.join(", "));
    let called_id = |column: &&String| column.eq_ignore_ascii_case("id") || column.eq_ignore_ascii_case("uuid");
    let mend = match key.iter().find(called_id) {
        Some(id) => format!(
            "CREATE UNIQUE INDEX CONCURRENTLY ON {name} ({}) -- if its values never repeat across the key",
            quote_ident(id)
        ),
        None => add,
    };
    Some((why, mend))
}
