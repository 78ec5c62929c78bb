//! How each table's rows reach their org and their groups: by columns of their own, or by way of a parent.
//!
//! Where the tables hint at a narrower audience, that is taken: what is missing is noticed, what leaks is not. What nothing
//! hints at, the whole org sees. Every such guess is said.

use std::collections::BTreeMap;

use super::graph::{Edge, Graph};
use super::people::People;
use super::tenant::Tenant;
use super::words;

/// How one table's rows are reached.
#[derive(Clone, Debug, Default)]
pub struct Standing {
    /// The column with the org.
    pub org: Option<String>,
    /// The columns with groups, by kind.
    pub groups: BTreeMap<String, String>,
    /// The parent, and the column that leads to it.
    pub from: Option<(usize, String)>,
    /// Whether only some of the org see its rows.
    pub restricted: bool,
    /// Steps to the table that has the org.
    pub depth: usize,
    /// What was guessed, and why.
    pub why: Vec<String>,
    /// What only a person can know.
    pub decide: Vec<String>,
}

/// The standing of each table, by place, and the order in which parents come before children. `None`: nothing leads to
/// the tenant.
pub fn resolve(
    graph: &Graph<'_>,
    tenant: &Tenant,
    people: &People,
    eligible: &[bool],
) -> (Vec<Option<Standing>>, Vec<usize>) {
    let mut lineage = Lineage { graph, tenant, people, eligible, standings: vec![None; eligible.len()] };
    let mut order = Vec::new();
    loop {
        let open = |lineage: &Lineage<'_>| -> Vec<usize> {
            (0..eligible.len()).filter(|place| eligible[*place] && lineage.standings[*place].is_none()).collect()
        };
        let before = order.len();
        for place in open(&lineage) {
            if let Some(standing) = lineage.stand(place, false) {
                lineage.standings[place] = Some(standing);
                order.push(place);
            }
        }
        if order.len() > before {
            continue;
        }
        // They wait for each other, or for what never comes: the first that can stand, stands with what there is.
        let forced = open(&lineage).into_iter().find_map(|place| Some((place, lineage.stand(place, true)?)));
        let Some((place, standing)) = forced else { return (lineage.standings, order) };
        lineage.standings[place] = Some(standing);
        order.push(place);
    }
}

/// The column that holds a table's org, if it has one, and what else could be meant.
pub fn own_org(graph: &Graph<'_>, tenant: &Tenant, place: usize) -> (Option<String>, Vec<String>) {
    match tenant {
        Tenant::Table { table, column } if *table == place => (Some(column.clone()), Vec::new()),
        Tenant::Table { table, column } => {
            let value = graph.table(*table).column(column).map(|column| column.value);
            let fits = |edge: &&Edge| {
                !edge.array
                    && edge.to_column == *column
                    && graph.table(place).column(&edge.column).map(|column| column.value) == value
            };
            let edges: Vec<&Edge> = graph.between(place, *table).into_iter().filter(fits).collect();
            let others: Vec<&str> = edges.iter().skip(1).map(|edge| edge.column.as_str()).collect();
            let doubt = (!others.is_empty())
                .then(|| format!("Another column leads to the tenant, too: {}. Whose row is it?", others.join(", ")));
            (edges.first().map(|edge| edge.column.clone()), doubt.into_iter().collect())
        }
        Tenant::Column { name, value } => {
            let wanted = words::words(name);
            let found = graph
                .table(place)
                .columns
                .iter()
                .find(|column| words::words(&column.name) == wanted && column.value == *value && !column.array);
            (found.map(|column| column.name.clone()), Vec::new())
        }
    }
}

struct Lineage<'a> {
    graph: &'a Graph<'a>,
    tenant: &'a Tenant,
    people: &'a People,
    eligible: &'a [bool],
    standings: Vec<Option<Standing>>,
}

impl Lineage<'_> {
    /// `None`: its parents are not known yet; when forced, that nothing leads to the tenant.
    fn stand(&self, place: usize, forced: bool) -> Option<Standing> {
        let (org, decide) = own_org(self.graph, self.tenant, place);
        let mut standing = Standing { org, decide, ..Standing::default() };
        self.name_org(place, &mut standing);
        if matches!(self.tenant, Tenant::Table { table, .. } if *table == place) {
            return Some(standing);
        }
        self.name_groups(place, &mut standing);
        standing.restricted = !standing.groups.is_empty();
        let needs_groups = standing.groups.is_empty() && self.people.users != Some(place);
        self.name_user(place, &mut standing);
        if standing.org.is_some() && !needs_groups {
            return Some(standing);
        }
        let wanted = if standing.org.is_some() { self.owners(place) } else { self.parents(place) };
        if !forced && wanted.iter().any(|edge| self.standings[edge.to].is_none()) {
            return None;
        }
        self.inherit(place, &wanted, standing)
    }

    fn name_org(&self, place: usize, standing: &mut Standing) {
        let Some(column) = standing.org.as_deref().and_then(|org| self.graph.table(place).column(org)) else { return };
        if column.nullable {
            let share = column.nulls.filter(|nulls| *nulls > 0.0);
            let share = share.map_or_else(String::new, |nulls| format!(" ({} of them now)", percent(nulls)));
            standing
                .decide
                .push(format!("`{}` may be null: such rows{share} belong to no org, nobody gets them.", column.name));
        }
        let edge = self.graph.edges(place).iter().find(|edge| edge.column == column.name);
        if edge.is_some_and(|edge| !edge.declared) {
            standing
                .why
                .push(format!("`{}` is taken for the tenant by its name: no foreign key says so.", column.name));
        }
    }

    fn name_groups(&self, place: usize, standing: &mut Standing) {
        let table = self.graph.table(place);
        if self.people.users == Some(place) {
            standing.why.push("The users. The whole org sees them.".into());
            return;
        }
        if let Some(members) = self.people.members.iter().find(|members| members.table == place) {
            let pairs = [(members.kind.as_str(), &members.group_column), ("user", &members.user_column)];
            standing.groups = pairs.map(|(kind, column)| (kind.to_owned(), column.clone())).into();
            standing
                .why
                .push(format!("Puts users into groups of the kind `{}`; see [[access.memberships]].", members.kind));
            return;
        }
        if let Some(edge) = self.people.personal(self.graph, place) {
            standing.groups.insert("user".into(), edge.column.clone());
            standing.why.push(format!("By its name each row is one user's own: only `{}` sees it.", edge.column));
            return;
        }
        let (groups, passed) = self.people.groups(self.graph, place);
        if let Some(members) = self.people.groups_of(place) {
            if let Some(id) = table.id() {
                standing.groups.insert(members.kind.clone(), id.name.clone());
            }
            let by = &self.graph.table(members.table).name;
            standing.why.push(format!("Seen by its members only, as `{by}` names them."));
            for edge in groups.values() {
                standing
                    .decide
                    .push(format!("Should all who belong to `{}` see it, too? Then add that group.", edge.column));
            }
            self.name_openness(place, standing);
            return;
        }
        for (kind, edge) in groups {
            standing.groups.insert(kind.clone(), edge.column.clone());
            standing.why.push(format!("Seen by the members of the {kind} in `{}`.", edge.column));
            if edge.nullable || edge.array {
                standing.decide.push(format!(
                    "Nobody sees a row without a `{}`{}. If the whole org should: ungrouped = \"org\".",
                    edge.column,
                    table
                        .column(&edge.column)
                        .and_then(|column| column.nulls)
                        .filter(|nulls| *nulls > 0.0)
                        .map_or_else(String::new, |nulls| format!(" ({} of them now)", percent(nulls)))
                ));
            }
        }
        for edge in passed {
            standing.why.push(format!("`{}` leads to a group, too; not taken for one that sees the row.", edge.column));
        }
    }

    /// Whose a row is, where nothing says that only they see it.
    fn name_user(&self, place: usize, standing: &mut Standing) {
        let Some(users) = self.people.users.filter(|users| *users != place) else { return };
        let mut edges = self.graph.between(place, users).into_iter();
        let owner = edges.find(|edge| edge.namesake && !edge.array && !words::role(&edge.column));
        if let Some(edge) = owner.filter(|_| !standing.groups.contains_key("user")) {
            standing.decide.push(format!(
                "Each row names a user in `{0}`. If it is for that user only: groups = {{ user = \"{0}\" }}.",
                edge.column
            ));
        }
    }

    /// A group with a column that says it is open to all can't be told from the others by the catalog alone.
    fn name_openness(&self, place: usize, standing: &mut Standing) {
        let table = self.graph.table(place);
        let open = table.columns.iter().find(|column| {
            words::words(&column.name)
                .iter()
                .any(|word| ["private", "public", "visibility", "secret"].contains(&word.as_str()))
        });
        if let Some(column) = open {
            standing.decide.push(format!(
                "`{}` seems to say whether all may see it. The catalog can't ask that: to open some to the whole org, add a \
                 generated column that holds the id of closed ones and null else, name it under `groups`, and say \
                 ungrouped = \"org\". Without it, only members see any.",
                column.name
            ));
        }
    }

    /// What could be a parent: a column with the id of a table that may be a model.
    fn parents(&self, place: usize) -> Vec<&Edge> {
        let tenant = |to: usize| matches!(self.tenant, Tenant::Table { table, .. } if *table == to);
        let fits = |edge: &&Edge| {
            let id = self.graph.table(edge.to).id();
            let by = self.graph.table(place).column(&edge.column);
            edge.to != place
                && !edge.array
                && self.eligible[edge.to]
                && !tenant(edge.to)
                && id.is_some_and(|id| {
                    id.name == edge.to_column && id.value.is_reference() && by.is_some_and(|by| by.value == id.value)
                })
        };
        self.graph.edges(place).iter().filter(fits).collect()
    }

    /// Of the parents those that a row belongs to, not only points at.
    fn owners(&self, place: usize) -> Vec<&Edge> {
        let owns = |edge: &&Edge| {
            self.people.users != Some(edge.to)
                && !words::role(&edge.column)
                && (edge.cascades || edge.namesake || !edge.nullable && edge.declared)
        };
        self.parents(place).into_iter().filter(owns).collect()
    }

    /// Takes the parent that a row belongs to most, if there is one.
    fn inherit(&self, place: usize, wanted: &[&Edge], mut standing: Standing) -> Option<Standing> {
        let has_org = standing.org.is_some();
        let known = wanted.iter().filter_map(|edge| Some((*edge, self.standings[edge.to].as_ref()?)));
        let mut known: Vec<(&Edge, &Standing)> = known.filter(|(_, above)| !has_org || above.restricted).collect();
        known.sort_by_key(|(edge, above)| std::cmp::Reverse(self.belonging(place, edge, above)));
        let Some((edge, above)) = known.first() else { return has_org.then_some(standing) };
        let parent = &self.graph.table(edge.to).name;
        standing.from = Some((edge.to, edge.column.clone()));
        standing.depth = if has_org { 0 } else { above.depth + 1 };
        standing.restricted |= above.restricted;
        let what = match (has_org, standing.groups.is_empty()) {
            (true, _) => "Who sees it",
            (false, true) => "Org, and who sees it,",
            (false, false) => "The org",
        };
        let key = if edge.declared { "" } else { ", which is guessed by its name: no foreign key says so" };
        standing.why.push(format!("{what} is that of the row of `{parent}` in `{}`{key}.", edge.column));
        if edge.nullable {
            standing.decide.push(format!("`{}` may be null: nobody sees rows without one.", edge.column));
        }
        let rivals: Vec<String> = known[1..]
            .iter()
            .filter(|(other, _)| self.people.users != Some(other.to) && !words::role(&other.column))
            .map(|(other, _)| format!("`{}`", other.column))
            .collect();
        if !rivals.is_empty() {
            let (rivals, column) = (rivals.join(", "), &edge.column);
            standing.decide.push(format!("It could belong to {rivals} as well; `{column}` was taken."));
        }
        Some(standing)
    }

    /// How much speaks for a row's belonging to this parent.
    fn belonging(&self, place: usize, edge: &Edge, above: &Standing) -> i32 {
        let prefix = self.graph.nouns[place].starts_with(&self.graph.nouns[edge.to]);
        let points = [
            (edge.cascades, 4),
            (!edge.nullable, 3),
            (edge.namesake, 2),
            (prefix && self.graph.nouns[place].len() > self.graph.nouns[edge.to].len(), 3),
            (above.restricted, 1),
            (edge.declared, 1),
            (words::role(&edge.column), -4),
            (self.people.users == Some(edge.to), -8),
        ];
        points.into_iter().filter(|(holds, _)| *holds).map(|(_, points)| points).sum()
    }
}

/// A share for people.
pub fn percent(share: f64) -> String {
    if share < 0.01 { "under 1 %".into() } else { format!("about {:.0} %", share * 100.0) }
}
