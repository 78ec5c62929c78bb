//! A first catalog for a database that nobody has described yet: `headstart init`.
//!
//! [`read`](fn@read::read) surveys the schema, [`propose`] turns the survey into a proposal, and `cli::init` writes that
//! as a commented catalog. Only the first touches a server.
//!
//! # The rules
//! 1. The tenant is the table that most others lead to and that is called like one ([`tenant`]).
//! 2. Users are the table of people who log in; a table that leads to them and to something else, and says that it holds
//!    members, makes sync groups of that something ([`people`]).
//! 3. Rows reach their org by a column that leads to the tenant, else by way of the parent they belong to; who sees them
//!    goes the same way ([`lineage`]).
//! 4. What has no single column that names a row, what triggers can't log, what this role may not read and what is secret
//!    by its name is left out, each with what would mend it ([`eligible`]).
//! 5. The size of the largest org's share decides when clients get the rows ([`load`]).
//!
//! Every guess is said where it was made, and every doubt that only a person can settle. Where the tables hint at a
//! narrower audience, that is taken; what nothing hints at, the whole org sees.

pub mod eligible;
pub mod fields;
pub mod graph;
pub mod lineage;
pub mod load;
pub mod people;
pub mod read;
pub mod survey;
pub mod tenant;
#[cfg(test)]
mod tests;
pub mod words;

use std::collections::{BTreeMap, BTreeSet};

use crate::model::catalog::{Load, LogTable, Membership, Model, Parent, TableName, Ungrouped};
use crate::source::migrate::ddl;
use crate::source::migrate::names::{quote_ident, quote_table};
use graph::Graph;
use lineage::Standing;
use load::Share;
use people::People;
use survey::Survey;
pub use tenant::NoTenant;
use tenant::{Choice, Tenant};

/// A catalog to begin with.
#[derive(Clone, Debug)]
pub struct Proposal {
    /// What the tenant is.
    pub tenant: String,
    /// Why, and what else concerns the whole catalog.
    pub why: Vec<String>,
    /// What only a person can know, of the whole catalog.
    pub decide: Vec<String>,
    /// The models, parents before children.
    pub models: Vec<ProposedModel>,
    /// Where users' groups come from.
    pub memberships: Vec<ProposedMembership>,
    /// What is no model, and why.
    pub left_out: Vec<LeftOut>,
    /// The log, where its usual name is taken.
    pub log: Option<LogTable>,
}

/// One model.
#[derive(Clone, Debug)]
pub struct ProposedModel {
    /// As the catalog takes it.
    pub model: Model,
    /// What was guessed, and why.
    pub why: Vec<String>,
    /// What only a person can know.
    pub decide: Vec<String>,
}

/// One source of users' groups.
#[derive(Clone, Debug)]
pub struct ProposedMembership {
    /// As the catalog would take it.
    pub membership: Membership,
    /// What has to be done before it can stand there; `None` when it can.
    pub obstacle: Option<String>,
}

/// A table or view that is no model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeftOut {
    /// Which.
    pub table: TableName,
    /// Why.
    pub why: String,
    /// What would mend it; empty where nothing is to be done.
    pub mend: String,
}

/// Proposes a catalog. `tenant` names the tenant's table or column where the rules would choose another.
///
/// # Errors
/// When nothing is clearly the tenant, or nothing is called as asked.
pub fn propose(survey: &Survey, tenant: Option<&str>) -> Result<Proposal, NoTenant> {
    let graph = Graph::new(survey);
    let Choice { tenant, why, rivals } = tenant::choose(&graph, tenant)?;
    let people = People::find(&graph, &tenant);
    let mut left_out: Vec<LeftOut> = Vec::new();
    let mut eligible = Vec::new();
    for place in 0..survey.tables.len() {
        let obstacle = eligible::obstacle(&graph, place);
        eligible.push(obstacle.is_none());
        left_out.extend(obstacle);
    }
    let (standings, order) = lineage::resolve(&graph, &tenant, &people, &eligible);
    for place in (0..eligible.len()).filter(|place| eligible[*place] && standings[*place].is_none()) {
        left_out.push(without_way(&graph, &people, &eligible, place));
    }
    left_out.sort_by(|a, b| a.table.cmp(&b.table));
    let rank = |place: &usize| match (&tenant, people.groups_of(*place)) {
        (Tenant::Table { table, .. }, _) if table == place => 0,
        _ if people.users == Some(*place) => 1,
        (_, Some(_)) => 2,
        _ => 3,
    };
    let mut order: Vec<usize> = order;
    order.sort_by_key(rank);
    let names = names(&graph, &order);
    let mut draft = Draft { graph: &graph, tenant: &tenant, people: &people, standings: &standings, names: &names };
    let models: Vec<ProposedModel> = order.iter().map(|place| draft.model(*place)).collect();
    let memberships = people.members.iter().map(|members| draft.membership(members)).collect();
    let (tenant, column) = match &tenant {
        Tenant::Table { table, column } => (survey.tables[*table].name.to_string(), column.clone()),
        Tenant::Column { name, .. } => (format!("the column {name}"), name.clone()),
    };
    let mut proposal =
        Proposal { tenant, why: vec![why], decide: Vec::new(), models, memberships, left_out, log: log(survey) };
    proposal.decide.push(format!("Does the token's `org` claim hold what stands in `{column}` of the tenant?"));
    let sizeless = order.iter().filter(|place| graph.table(**place).rows.is_none_or(|rows| rows < 1.0)).count();
    if sizeless > 0 {
        proposal.decide.push(format!(
            "{sizeless} of the {} tables are empty or were never analyzed, so their `load` goes by their place alone: run \
             ANALYZE once they hold data, and `headstart init` again.",
            order.len()
        ));
    }
    if !rivals.is_empty() {
        proposal.decide.push(format!(
            "The tenant could also be {}: if so, run `headstart init --tenant NAME` with it.",
            rivals.join(" or ")
        ));
    }
    match people.users {
        Some(users) => {
            let users = &graph.table(users).name;
            proposal.decide.push(format!("Does the token's `sub` claim hold the id of a row of `{users}`?"));
        }
        None => proposal.decide.push("No table of users was found, so every row is for its whole org.".into()),
    }
    if people.members.is_empty() && people.users.is_some() {
        let none =
            "No table puts users into groups within an org, so but for personal rows the whole org sees everything.";
        proposal.decide.push(none.into());
    }
    proposal.decide.extend(polymorphic(survey));
    Ok(proposal)
}

/// Columns of which another one says what they lead to: nothing can follow them.
fn polymorphic(survey: &Survey) -> Vec<String> {
    let pairs = survey.tables.iter().filter(|table| table.takes_triggers()).flat_map(|table| {
        let ids = table.columns.iter().filter_map(move |column| {
            let stem = words::led_to(&column.name)?;
            let kind = [stem.as_slice(), &["type".to_owned()]].concat();
            table.columns.iter().any(|other| words::words(&other.name) == kind).then(|| {
                format!(
                    "`{}` of `{}` leads to different tables, as another column says: access can't be inherited that way.",
                    column.name, table.name
                )
            })
        });
        ids.collect::<Vec<_>>()
    });
    pairs.collect()
}

/// A table that could be a model, but for the tenant.
fn without_way(graph: &Graph<'_>, people: &People, eligible: &[bool], place: usize) -> LeftOut {
    let table = graph.table(place).name.clone();
    if people.users == Some(place) {
        let mend = "give each org a row of its own for each of its users (a table with both, and a single id), and let \
                    clients read that";
        let why = "its rows belong to no org: a user may be in several".into();
        return LeftOut { table, why, mend: mend.into() };
    }
    let barred = graph.edges(place).iter().find(|edge| edge.to != place && !edge.array && !eligible[edge.to]);
    if let Some(edge) = barred {
        let why = format!("its way to the tenant goes by `{}`, which is left out itself", graph.table(edge.to).name);
        return LeftOut { table, why, mend: "mend that one, or add a column with the org to this one".into() };
    }
    let by_user = people.users.is_some_and(|users| !graph.between(place, users).is_empty());
    let why = if by_user {
        "only its user leads anywhere, and users belong to no one org"
    } else {
        "no column leads from it to the tenant, directly or by way of a parent: the same rows serve all orgs, or it is \
         for the server alone"
    };
    LeftOut { table, why: why.into(), mend: "to send it, add a column with the org to it".into() }
}

/// The class of each model, each once.
fn names(graph: &Graph<'_>, order: &[usize]) -> BTreeMap<usize, String> {
    let class = |noun: &[String]| words::class(noun).filter(|class| class != "SyncAction");
    let mut names = BTreeMap::new();
    let mut taken = BTreeSet::new();
    for place in order {
        let schema = words::words(&graph.table(*place).name.schema);
        let plain = class(&graph.nouns[*place]);
        let long = class(&[schema, graph.nouns[*place].clone()].concat());
        let numbered = (1..).map(|number| format!("{}{number}", plain.as_deref().unwrap_or("Table")));
        let mut wanted = plain.clone().into_iter().chain(long).chain(numbered);
        let name = wanted.find(|name| !taken.contains(name)).expect("numbers don't end");
        taken.insert(name.clone());
        names.insert(*place, name);
    }
    names
}

/// Another name for the log where the usual one is taken, or has no schema to stand in.
fn log(survey: &Survey) -> Option<LogTable> {
    let usual = LogTable::default();
    let taken = |name: &TableName| {
        survey.tables.iter().any(|table| table.name == *name && ddl::version(&table.comment).is_none())
    };
    let schema = match survey.tables.first() {
        Some(first) if !survey.public => first.name.schema.clone(),
        _ => usual.table.schema.clone(),
    };
    let within = |name: &str| TableName { schema: schema.clone(), name: name.to_owned() };
    if survey.public && !taken(&usual.table) {
        return None;
    }
    let name = if taken(&within("sync_actions")) { "headstart_sync_actions" } else { "sync_actions" };
    Some(LogTable { table: within(name), floor: within(&format!("{name}_floor")), ..usual })
}

/// What the parts of the proposal are made from.
struct Draft<'a> {
    graph: &'a Graph<'a>,
    tenant: &'a Tenant,
    people: &'a People,
    standings: &'a [Option<Standing>],
    names: &'a BTreeMap<usize, String>,
}

impl Draft<'_> {
    fn model(&mut self, place: usize) -> ProposedModel {
        let table = self.graph.table(place);
        let standing = self.standings[place].clone().unwrap_or_default();
        let (mut why, mut decide) = (standing.why.clone(), standing.decide.clone());
        let id = table.id().map(|id| id.name.clone()).unwrap_or_default();
        if !table.is_unique(&[&id]) {
            decide.push(format!("`{id}` is unique within a partition only: do two partitions ever hold the same one?"));
        }
        if table.hidden {
            decide.push(
                "Row-level security would hide rows from this role: give it BYPASSRLS, or let it own the table.".into(),
            );
        }
        let (load, size) = load::strategy(self.graph, place, &standing, self.share(place), self.is_core(place));
        why.extend(size);
        let mut model = Model {
            name: self.names[&place].clone(),
            table: table.name.clone(),
            id,
            org: standing.org.clone(),
            groups: standing.groups.clone(),
            ungrouped: Ungrouped::default(),
            from: standing
                .from
                .as_ref()
                .map(|(parent, by)| Parent { model: self.names[parent].clone(), by: by.clone() }),
            load,
            keys: Vec::new(),
            exclude: Vec::new(),
            rename: BTreeMap::new(),
            filter: None,
        };
        fields::exclude(table, &mut model, &mut why, &mut decide);
        fields::rename(table, &mut model, &mut why);
        fields::filter(table, &mut model, &mut why, &mut decide);
        fields::keys(self.graph, place, |to| self.names.contains_key(&to), &mut model, &mut decide);
        if load == Load::Explicit && model.keys.is_empty() {
            decide.push("Clients get it by id only: no indexed column leads to another model.".into());
        }
        ProposedModel { model, why, decide }
    }

    fn membership(&self, members: &people::Members) -> ProposedMembership {
        let table = &self.graph.table(members.table).name;
        let (org, _) = lineage::own_org(self.graph, self.tenant, members.table);
        let obstacle = org.is_none().then(|| {
            format!(
                "`{table}` has no column with the org, which this entry needs. Until it has one (ALTER TABLE {} ADD COLUMN {} \
                 …, filled and NOT NULL), tokens must list the groups in their `groups` claim; without either, nobody \
                 sees what is for members of a {}.",
                quote_table(table),
                quote_ident(self.org_column()),
                members.kind
            )
        });
        ProposedMembership {
            membership: Membership {
                kind: members.kind.clone(),
                table: table.clone(),
                org: org.unwrap_or_else(|| self.org_column().to_owned()),
                user: members.user_column.clone(),
                group: members.group_column.clone(),
            },
            obstacle,
        }
    }

    /// What other tables call the column with the org.
    fn org_column(&self) -> &str {
        let tenant = |place: usize| matches!(self.tenant, Tenant::Table { table, .. } if *table == place);
        let mut others = self.standings.iter().enumerate().filter(|(place, _)| !tenant(*place));
        others.find_map(|(_, standing)| standing.as_ref()?.org.as_deref()).unwrap_or("org_id")
    }

    /// The largest org's share of a table: by its own org column, else by that of the table it inherits from.
    fn share(&self, place: usize) -> Share {
        let orgs = match self.tenant {
            Tenant::Table { table, .. } => self.graph.table(*table).rows,
            Tenant::Column { .. } => None,
        };
        let mut at = place;
        loop {
            let Some(standing) = &self.standings[at] else { return Share::of(self.graph, at, "", orgs) };
            match (&standing.org, &standing.from) {
                (Some(org), _) => return Share::of(self.graph, at, org, orgs),
                (None, Some((parent, _))) => at = *parent,
                (None, None) => return Share::of(self.graph, at, "", orgs),
            }
        }
    }

    /// Whether clients can do nothing without it.
    fn is_core(&self, place: usize) -> bool {
        matches!(self.tenant, Tenant::Table { table, .. } if *table == place)
            || self.people.users == Some(place)
            || self.people.members.iter().any(|members| members.table == place || members.group == place)
    }
}
