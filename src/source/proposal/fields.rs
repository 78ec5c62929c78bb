//! What of a table's columns leaves the database, under which names, and what a batch may ask by.

use std::collections::{BTreeMap, BTreeSet};

use super::graph::{Edge, Graph};
use super::survey::{Column, Table};
use super::words;
use crate::model::catalog::{Model, camel_case};
use crate::source::migrate::names::quote_ident;

/// Bytes of a value on average from which it is worth a word that it is sent.
const WIDE: u32 = 4096;

/// Columns that stay in the database: secrets, and what only the database can use.
pub fn exclude(table: &Table, model: &mut Model, why: &mut Vec<String>, decide: &mut Vec<String>) {
    let used: BTreeSet<&String> = [&model.id].into_iter().chain(&model.org).chain(model.groups.values()).collect();
    let (mut secret, mut machine) = (Vec::new(), Vec::new());
    for column in table.columns.iter().filter(|column| !used.contains(&column.name)) {
        let kind = column.sql_type.split(['(', '[']).next().unwrap_or_default();
        let kind = kind.rsplit('.').next().unwrap_or_default();
        if words::secret_column(&column.name) {
            secret.push(column.name.clone());
        } else if ["tsvector", "vector", "halfvec", "sparsevec"].contains(&kind) {
            machine.push(column.name.clone());
        } else if kind == "bytea" || column.width.is_some_and(|width| width >= WIDE) {
            let width = column.width.map_or_else(String::new, |width| format!(", {width} bytes on average"));
            decide.push(format!(
                "Do clients need `{}` ({}{width})? Else list it under `exclude`.",
                column.name, column.sql_type
            ));
        }
    }
    if !secret.is_empty() {
        why.push(format!("Left out as secret by name: {}.", list(&secret)));
    }
    if !machine.is_empty() {
        why.push(format!("Left out as of use in the database only: {}.", list(&machine)));
    }
    model.exclude = secret.into_iter().chain(machine).collect();
}

/// Names for columns that would meet on the wire.
pub fn rename(table: &Table, model: &mut Model, why: &mut Vec<String>) {
    let mut taken: BTreeSet<String> = BTreeSet::new();
    for column in table.columns.iter().filter(|column| !model.exclude.contains(&column.name)) {
        let plain = camel_case(&column.name);
        let free = |name: &str| name != "__class" && !name.is_empty() && !taken.contains(name);
        let name = if free(&plain) {
            plain
        } else {
            let base = plain.trim_start_matches('_').to_owned();
            let next = (2..).map(|number| format!("{base}{number}")).find(|name| free(name)).unwrap_or_default();
            why.push(format!("`{}` would be called `{plain}`, which is taken.", column.name));
            model.rename.insert(column.name.clone(), next.clone());
            next
        };
        taken.insert(name);
    }
}

/// Rows that only seem to stand.
pub fn filter(table: &Table, model: &mut Model, why: &mut Vec<String>, decide: &mut Vec<String>) {
    let Some(column) = table.columns.iter().find(|column| words::deleted(&column.name) && !column.array) else {
        return;
    };
    let simple = column.name.chars().all(|letter| letter.is_ascii_lowercase() || letter == '_');
    let name = if simple { column.name.clone() } else { quote_ident(&column.name) };
    model.filter = match column.sql_type.as_str() {
        "boolean" if column.nullable => Some(format!("{name} is not true")),
        "boolean" => Some(format!("not {name}")),
        _ if column.nullable => Some(format!("{name} is null")),
        _ => {
            decide.push(format!("`{}` seems to mark deleted rows; say how under `filter`.", column.name));
            None
        }
    };
    if model.filter.is_some() {
        why.push(format!("Rows that are deleted by `{}` do not exist for clients.", column.name));
    }
}

/// The fields a batch may ask by: columns that lead to other models and have an index, and in a model that full
/// bootstraps lack also the column that leads to its parent.
pub fn keys(
    graph: &Graph<'_>,
    place: usize,
    modelled: impl Fn(usize) -> bool,
    model: &mut Model,
    decide: &mut Vec<String>,
) {
    let table = graph.table(place);
    let wire: BTreeMap<&str, String> = (table.columns.iter())
        .filter(|column| !model.exclude.contains(&column.name))
        .map(|column| {
            let renamed = model.rename.get(&column.name).cloned();
            (column.name.as_str(), renamed.unwrap_or_else(|| camel_case(&column.name)))
        })
        .collect();
    let parent = model.from.as_ref().map(|from| from.by.as_str());
    let needs_parent = !model.load.in_full_bootstrap();
    for edge in graph.edges(place).iter().filter(|edge| modelled(edge.to) && model.org.as_ref() != Some(&edge.column)) {
        let Some(column) = table.column(&edge.column).filter(|column| column.value.is_key()) else { continue };
        let Some(name) = wire.get(edge.column.as_str()) else { continue };
        let ambiguous = table.columns.iter().any(|other| other.name == *name && other.name != column.name);
        let indexed = table.indexed.contains(&column.name);
        let by_parent = parent == Some(column.name.as_str());
        if by_parent && !indexed {
            decide.push(index(table, edge, column));
        }
        if !ambiguous && !model.keys.contains(name) && (indexed || by_parent && needs_parent) {
            model.keys.push(name.clone());
        }
    }
}

fn index(table: &Table, edge: &Edge, column: &Column) -> String {
    format!(
        "No index begins with `{}`, so a parent that moves, and a batch, read the whole table: CREATE INDEX CONCURRENTLY \
         ON {} ({}).",
        edge.column,
        crate::source::migrate::names::quote_table(&table.name),
        quote_ident(&column.name)
    )
}

fn list(names: &[String]) -> String {
    names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
}
