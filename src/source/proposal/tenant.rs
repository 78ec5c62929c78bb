//! Which table is the tenant, and by which column its rows are meant.

use super::graph::Graph;
use super::survey::{TableKind, Value};
use super::words;

/// How far another candidate must lag behind for the choice to be clear.
const CLEAR: f64 = 0.25;

/// What the tenant is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Tenant {
    /// A table, and its column that others hold.
    Table {
        /// The table.
        table: usize,
        /// The column; mostly its id.
        column: String,
    },
    /// No table, only a column of this name and kind in the others.
    Column {
        /// The name.
        name: String,
        /// What it holds.
        value: Value,
    },
}

/// The choice, and what spoke for it.
#[derive(Clone, Debug)]
pub struct Choice {
    /// The tenant.
    pub tenant: Tenant,
    /// Why, for people.
    pub why: String,
    /// What else it could be; empty when the choice is clear.
    pub rivals: Vec<String>,
}

/// Why no tenant was chosen: the tables that others lead to, the most likely first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NoTenant {
    /// What was asked for and is not there; `None` when nothing was asked for.
    pub wished: Option<String>,
    /// Candidates.
    pub candidates: Vec<String>,
}

struct Candidate {
    tenant: Tenant,
    name: String,
    score: f64,
    /// Its name's part of it.
    tenancy: f64,
    direct: usize,
    reached: usize,
}

/// Chooses. `wish` names a table, `schema.table` or a column, and decides.
pub fn choose(graph: &Graph<'_>, wish: Option<&str>) -> Result<Choice, NoTenant> {
    let mut candidates = candidates(graph);
    candidates.sort_by(|a, b| b.score.total_cmp(&a.score).then_with(|| a.name.cmp(&b.name)));
    let names = |of: &[Candidate]| of.iter().take(5).map(|candidate| candidate.name.clone()).collect::<Vec<_>>();
    if let Some(wish) = wish {
        let wished = candidates.iter().position(|candidate| candidate.is(wish, graph));
        let Some(place) = wished else {
            return Err(NoTenant { wished: Some(wish.to_owned()), candidates: names(&candidates) });
        };
        let candidate = candidates.swap_remove(place);
        return Ok(Choice { tenant: candidate.tenant, why: "you named it".into(), rivals: Vec::new() });
    }
    let tables = graph.survey.tables.iter().filter(|table| table.takes_triggers()).count().max(2) - 1;
    let share = |count: usize| count as f64 / tables as f64;
    let believed = |candidate: &Candidate| {
        candidate.tenancy > 0.0 && share(candidate.reached) >= 0.2
            || candidate.tenancy == 0.0 && share(candidate.reached) >= 0.7 && share(candidate.direct) >= 0.4
    };
    let Some(best) = candidates.iter().position(believed) else {
        return Err(NoTenant { wished: None, candidates: names(&candidates) });
    };
    let rivals = |other: &&Candidate| other.score + CLEAR > candidates[best].score && believed(other);
    let rivals: Vec<String> = candidates[best + 1..].iter().filter(rivals).map(|other| other.name.clone()).collect();
    let Candidate { tenant, direct, reached, .. } = candidates.swap_remove(best);
    let why = match &tenant {
        Tenant::Table { .. } => {
            format!(
                "{direct} of the other {tables} tables have a column that leads to it, {reached} lead to it in some steps"
            )
        }
        Tenant::Column { .. } => format!("{direct} tables have this column, and none of them is what it leads to"),
    };
    Ok(Choice { tenant, why, rivals })
}

fn candidates(graph: &Graph<'_>) -> Vec<Candidate> {
    let tables = &graph.survey.tables;
    let count = tables.iter().filter(|table| table.takes_triggers()).count().max(1) as f64;
    let mut candidates = Vec::new();
    for (place, table) in tables.iter().enumerate() {
        if table.kind != TableKind::Plain || !table.id().is_some_and(|id| id.value.is_reference()) {
            continue;
        }
        let direct: Vec<usize> = (0..tables.len())
            .filter(|from| *from != place && graph.edges(*from).iter().any(|edge| edge.to == place && !edge.array))
            .collect();
        let reached = graph.reached_by(place).len().max(direct.len());
        if direct.is_empty() {
            continue;
        }
        // Whoever logs in is a user, whatever the table is called.
        let logs_in =
            table.columns.iter().any(|column| words::words(&column.name).iter().any(|word| word == "password"));
        let tenancy = if logs_in { -1.0 } else { words::tenancy(&graph.nouns[place]) };
        candidates.push(Candidate {
            tenant: Tenant::Table { table: place, column: held(graph, place) },
            name: table.name.to_string(),
            score: tenancy + reached as f64 / count + 0.5 * direct.len() as f64 / count,
            tenancy,
            direct: direct.len(),
            reached,
        });
    }
    candidates.extend(columns(graph, count));
    candidates
}

/// The column that most others hold: an id, or a slug that foreign keys refer to.
fn held(graph: &Graph<'_>, place: usize) -> String {
    let table = graph.table(place);
    let edges = || (0..graph.survey.tables.len()).flat_map(|from| graph.edges(from)).filter(|edge| edge.to == place);
    let held_by = |column: &str| edges().filter(|edge| edge.to_column == column).count();
    let keys = table.columns.iter().filter(|column| column.value.is_reference() && !column.nullable);
    let best = keys.rev().max_by_key(|column| held_by(&column.name));
    best.map(|column| column.name.clone()).unwrap_or_default()
}

/// Columns that are named like a tenant's and lead to no table.
fn columns(graph: &Graph<'_>, count: f64) -> Vec<Candidate> {
    let mut found: Vec<(String, Value, usize)> = Vec::new();
    for (place, table) in graph.survey.tables.iter().enumerate().filter(|(_, table)| table.takes_triggers()) {
        let free = |name: &str| !graph.edges(place).iter().any(|edge| edge.column == name);
        for column in table.columns.iter().filter(|column| !column.array && column.value.is_reference()) {
            if words::led_to(&column.name).is_none() || !free(&column.name) {
                continue;
            }
            match found.iter_mut().find(|(name, value, _)| *name == column.name && *value == column.value) {
                Some((_, _, tables)) => *tables += 1,
                None => found.push((column.name.clone(), column.value, 1)),
            }
        }
    }
    let candidate = |(name, value, tables): (String, Value, usize)| Candidate {
        score: 1.0 + 1.5 * tables as f64 / count,
        // Without a table behind it only a name that says so is believed.
        tenancy: if words::names_tenant(&name) { 1.0 } else { -1.0 },
        tenant: Tenant::Column { name: name.clone(), value },
        name,
        direct: tables,
        reached: tables,
    };
    let mut candidates: Vec<Candidate> = found.into_iter().map(candidate).collect();
    candidates.iter_mut().filter(|candidate| candidate.tenancy < 0.0).for_each(|candidate| candidate.score -= 2.0);
    candidates
}

impl Candidate {
    fn is(&self, wish: &str, graph: &Graph<'_>) -> bool {
        match &self.tenant {
            Tenant::Table { table, .. } => {
                let name = &graph.table(*table).name;
                name.to_string() == wish || format!("{}.{}", name.schema, name.name) == wish
            }
            Tenant::Column { name, .. } => name == wish,
        }
    }
}
