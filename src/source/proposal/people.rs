//! Who the users are, which tables put them into groups, and which rows are one user's own.

use std::collections::BTreeMap;

use super::graph::{Edge, Graph};
use super::tenant::Tenant;
use super::words;
use crate::model::SyncGroup;
use crate::model::ids::is_group_kind;

/// A table that puts users into groups of one kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Members {
    /// The table with a row for each user of a group.
    pub table: usize,
    /// The table of the groups.
    pub group: usize,
    /// Their kind.
    pub kind: String,
    /// Its column with the user.
    pub user_column: String,
    /// Its column with the group.
    pub group_column: String,
}

/// What was found out about users.
#[derive(Clone, Debug, Default)]
pub struct People {
    /// The table of users, if there is one.
    pub users: Option<usize>,
    /// Who is in which group.
    pub members: Vec<Members>,
}

impl People {
    /// Finds the users, then their groups.
    pub fn find(graph: &Graph<'_>, tenant: &Tenant) -> Self {
        let users = users(graph, tenant);
        let mut people = Self { users, members: Vec::new() };
        for table in 0..graph.survey.tables.len() {
            people.members.extend(users.and_then(|users| members(graph, tenant, users, table)));
        }
        // One table for each kind: of two, the one whose name says more.
        let mut kinds: BTreeMap<String, usize> = BTreeMap::new();
        for other in &mut people.members {
            let same = kinds.entry(other.kind.clone()).or_default();
            *same += 1;
            if *same > 1 {
                other.kind = format!("{}-{same}", other.kind);
            }
        }
        people
    }

    /// The kind of group whose members a table's rows are for, if a row of it is such a group.
    pub fn groups_of(&self, table: usize) -> Option<&Members> {
        self.members.iter().find(|members| members.group == table)
    }

    /// The column that says whose a row is, if each row concerns one user alone.
    pub fn personal<'g>(&self, graph: &'g Graph<'_>, table: usize) -> Option<&'g Edge> {
        let users = self.users.filter(|users| *users != table)?;
        let mine = words::personal(&graph.nouns[table]) && !self.members.iter().any(|members| members.table == table);
        let edges = graph.between(table, users);
        let owner = edges.into_iter().find(|edge| !edge.array && !words::role(&edge.column));
        // `user_settings` says it too.
        let settings = graph.nouns[table].len() == 2
            && graph.nouns[users].ends_with(&graph.nouns[table][..1])
            && ["setting", "option", "config", "configuration"].contains(&graph.nouns[table][1].as_str());
        owner.filter(|_| mine || settings)
    }

    /// The columns that say which groups a table's rows belong to, by kind, and the columns that were passed over.
    pub fn groups<'g>(&self, graph: &'g Graph<'_>, table: usize) -> (BTreeMap<String, &'g Edge>, Vec<&'g Edge>) {
        let (mut groups, mut passed) = (BTreeMap::new(), Vec::new());
        for members in self.members.iter().filter(|members| members.group != table) {
            let fits = |edge: &Edge| edge.array || edge.namesake || (!edge.nullable && !words::role(&edge.column));
            let edges = graph.between(table, members.group);
            let id = graph.table(members.group).id().map(|id| id.name.as_str());
            for edge in edges.into_iter().filter(|edge| Some(edge.to_column.as_str()) == id) {
                let free = !groups.contains_key(&members.kind);
                if free && fits(edge) {
                    groups.insert(members.kind.clone(), edge);
                } else {
                    passed.push(edge);
                }
            }
        }
        (groups, passed)
    }
}

fn users(graph: &Graph<'_>, tenant: &Tenant) -> Option<usize> {
    let others = graph.survey.tables.len();
    let score = |place: usize| {
        let table = graph.table(place);
        let is_tenant = matches!(tenant, Tenant::Table { table, .. } if *table == place);
        if is_tenant
            || !table.takes_triggers()
            || !table.id()?.value.is_reference()
            || !words::people(&graph.nouns[place])
        {
            return None;
        }
        let led = (0..others).filter(|from| graph.edges(*from).iter().any(|edge| edge.to == place)).count();
        let logs_in = table.columns.iter().any(|column| words::login(&column.name));
        let called = graph.nouns[place] == ["user"];
        (led > 0).then_some(led + if called { others } else { 0 } + if logs_in { others } else { 0 })
    };
    (0..others)
        .filter_map(|place| Some((score(place)?, place)))
        .max_by_key(|(score, place)| (*score, usize::MAX - place))
        .map(|(_, place)| place)
}

fn members(graph: &Graph<'_>, tenant: &Tenant, users: usize, place: usize) -> Option<Members> {
    let is_tenant = |other: usize| matches!(tenant, Tenant::Table { table, .. } if *table == other);
    if place == users || is_tenant(place) || !graph.table(place).takes_triggers() {
        return None;
    }
    let scalar = |edge: &&Edge| !edge.array && !edge.nullable;
    let user = *graph.between(place, users).iter().find(|edge| scalar(edge))?;
    let called = words::membership(&graph.nouns[place]);
    let org: Vec<&str> =
        graph.edges(place).iter().filter(|edge| is_tenant(edge.to)).map(|edge| edge.column.as_str()).collect();
    let candidates = graph.edges(place).iter().filter(|edge| {
        edge.to != users
            && edge.to != place
            && !is_tenant(edge.to)
            && scalar(edge)
            && graph.table(edge.to).id().is_some()
    });
    candidates
        .filter_map(|edge| {
            let group = &graph.nouns[edge.to];
            // `team_user` and `users_teams` say it by both their names.
            let both =
                [[group.as_slice(), &graph.nouns[users]].concat(), [&graph.nouns[users], group.as_slice()].concat()];
            let columns: Vec<&str> =
                [user.column.as_str(), &edge.column].into_iter().chain(org.iter().copied()).collect();
            let pair = graph.table(place).is_unique(&columns);
            let named = both.contains(&graph.nouns[place]);
            // Whoever may be a member twice is none: a comment has a user and an issue, too.
            let member = named || called && (pair || edge.namesake && graph.edges(place).len() <= 4);
            let kind = kind(group)?;
            let prefix = graph.nouns[place].starts_with(group);
            member.then(|| {
                let members = Members {
                    table: place,
                    group: edge.to,
                    kind,
                    user_column: user.column.clone(),
                    group_column: edge.column.clone(),
                };
                ((named, prefix, pair), members)
            })
        })
        .max_by_key(|(rank, _)| *rank)
        .map(|(_, members)| members)
}

/// The kind of the groups that a table's rows are.
fn kind(noun: &[String]) -> Option<String> {
    let name = noun.join("_");
    (is_group_kind(&name) && name != SyncGroup::ORG && name != SyncGroup::USER).then_some(name)
}
