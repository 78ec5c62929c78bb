//! Which column leads to which table: by foreign keys and, where there are none, by names.

use std::collections::BTreeSet;

use super::survey::{Survey, Table};
use super::words;

/// The tables as a graph. Tables are named by their place in the survey.
#[derive(Debug)]
pub struct Graph<'a> {
    /// What there is.
    pub survey: &'a Survey,
    /// The noun of each table.
    pub nouns: Vec<Vec<String>>,
    edges: Vec<Vec<Edge>>,
}

/// A column that leads to rows of a table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Edge {
    /// The column.
    pub column: String,
    /// The table it leads to.
    pub to: usize,
    /// The column there.
    pub to_column: String,
    /// Whether the column may be null.
    pub nullable: bool,
    /// Whether it holds arrays of ids.
    pub array: bool,
    /// Whether rows go with the row they lead to.
    pub cascades: bool,
    /// Whether a foreign key says so, or only the name.
    pub declared: bool,
    /// Whether the column is named after the table it leads to.
    pub namesake: bool,
}

impl<'a> Graph<'a> {
    /// Reads the keys and names.
    pub fn new(survey: &'a Survey) -> Self {
        let nouns: Vec<Vec<String>> = survey.tables.iter().map(|table| words::noun(&table.name.name)).collect();
        let mut graph = Self { survey, nouns, edges: Vec::new() };
        graph.edges = (0..survey.tables.len()).map(|from| graph.edges_of(from)).collect();
        graph
    }

    /// The table at a place.
    pub fn table(&self, place: usize) -> &'a Table {
        &self.survey.tables[place]
    }

    /// What leads away from a table.
    pub fn edges(&self, from: usize) -> &[Edge] {
        &self.edges[from]
    }

    /// What leads from one table to another, the best first: named after it, then never null, then declared.
    pub fn between(&self, from: usize, to: usize) -> Vec<&Edge> {
        let mut edges: Vec<&Edge> = self.edges[from].iter().filter(|edge| edge.to == to).collect();
        edges
            .sort_by_key(|edge| (edge.array, !edge.namesake, words::role(&edge.column), edge.nullable, !edge.declared));
        edges
    }

    /// The tables from which columns that are never null lead here, in one step or more.
    pub fn reached_by(&self, to: usize) -> BTreeSet<usize> {
        let mut reached = BTreeSet::from([to]);
        let mut grown = true;
        while grown {
            grown = false;
            for (from, edges) in self.edges.iter().enumerate() {
                let leads = |edge: &Edge| !edge.nullable && !edge.array && reached.contains(&edge.to);
                if !reached.contains(&from) && edges.iter().any(leads) {
                    grown = reached.insert(from);
                }
            }
        }
        reached.remove(&to);
        reached
    }

    fn edges_of(&self, from: usize) -> Vec<Edge> {
        let table = self.table(from);
        let mut edges: Vec<Edge> = Vec::new();
        for key in &table.foreign_keys {
            let Some(to) = self.survey.tables.iter().position(|other| other.name == key.to) else { continue };
            let id = self.table(to).id().map(|id| &id.name);
            // Of a key of several columns the one that leads to the id says which row it is; the others repeat the
            // tenant, say.
            let mut pairs = key.columns.iter().zip(&key.to_columns);
            let pair = if key.columns.len() == 1 { pairs.next() } else { pairs.find(|(_, there)| Some(*there) == id) };
            let Some((column, to_column)) = pair else { continue };
            match edges.iter_mut().find(|edge| edge.column == *column && edge.to == to) {
                Some(known) => known.cascades |= key.cascades,
                None => edges.extend(self.edge(from, column, to, to_column, key.cascades, true)),
            }
        }
        if !table.takes_triggers() {
            return edges;
        }
        for column in &table.columns {
            if edges.iter().any(|edge| edge.column == column.name) {
                continue;
            }
            let Some(to) = self.named(from, &column.name) else { continue };
            let Some(id) = self.table(to).id() else { continue };
            if id.value == column.value && id.value.is_reference() && id.name != column.name {
                edges.extend(self.edge(from, &column.name, to, &id.name, false, false));
            }
        }
        edges
    }

    fn edge(
        &self,
        from: usize,
        column: &str,
        to: usize,
        to_column: &str,
        cascades: bool,
        declared: bool,
    ) -> Option<Edge> {
        let found = self.table(from).column(column)?;
        Some(Edge {
            column: column.to_owned(),
            to,
            to_column: to_column.to_owned(),
            nullable: found.nullable,
            array: found.array,
            cascades,
            declared,
            namesake: words::stem(column) == self.nouns[to] || self.nouns[to].ends_with(&words::stem(column)),
        })
    }

    /// The one table that a column is named after; where several schemas have it, the one beside it.
    fn named(&self, from: usize, column: &str) -> Option<usize> {
        let noun = words::led_to(column)?;
        let namesakes = |other: &usize| self.nouns[*other] == noun && self.table(*other).takes_triggers();
        let all: Vec<usize> = (0..self.survey.tables.len()).filter(namesakes).collect();
        let beside: Vec<usize> = all
            .iter()
            .copied()
            .filter(|other| self.table(*other).name.schema == self.table(from).name.schema)
            .collect();
        match (all.as_slice(), beside.as_slice()) {
            (_, [one]) | ([one], _) => Some(*one),
            _ => None,
        }
    }
}
