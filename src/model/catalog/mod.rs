//! The catalog: which tables hold the models, who sees their rows, how clients load them.
//!
//! Read from `config/catalog.toml`. [`Catalog::parse`] checks everything that can be known without a database; what
//! needs one (do the columns exist, can a key be compared) is `headstart check`'s part. Nothing here is quoted for
//! SQL: `source::sql` does that, in one place.

mod faults;

use std::collections::{BTreeMap, HashMap};
use std::fmt;

use serde::{Deserialize, Serialize};

/// The whole catalog, checked. Models keep the order of the file; everything else refers to them by index.
#[derive(Clone, Debug, Serialize)]
pub struct Catalog {
    models: Vec<Model>,
    access: Access,
    log: LogTable,
    #[serde(skip)]
    by_name: HashMap<String, usize>,
}

/// One kind of object and the table or view its rows come from.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Model {
    /// The class on the wire (`__class`).
    pub name: String,
    /// The table or view.
    pub table: TableName,
    /// The column that identifies a row. Its text is the model id.
    pub id: String,
    /// The column that holds the tenant; without it `from` leads to one.
    #[serde(default)]
    pub org: Option<String>,
    /// Sync groups of a row: kind to column, scalar or array. Empty without `from`: the whole org sees the row.
    #[serde(default)]
    pub groups: BTreeMap<String, String>,
    /// Who sees a row whose group columns are all null or empty.
    #[serde(default)]
    pub ungrouped: Ungrouped,
    /// Where org and groups come from when the table has no columns of its own for them.
    #[serde(default)]
    pub from: Option<Parent>,
    /// When clients get the rows.
    pub load: Load,
    /// Wire names of the columns a batch may ask by.
    #[serde(default)]
    pub keys: Vec<String>,
    /// Columns that never leave the database.
    #[serde(default)]
    pub exclude: Vec<String>,
    /// Wire names that are not the camelCase of their column: column to name.
    #[serde(default)]
    pub rename: BTreeMap<String, String>,
    /// A condition over this row's own columns, as SQL: rows that fail it do not exist for clients. Its columns are
    /// written bare. Comes from the catalog's author, never from a request.
    #[serde(default)]
    pub filter: Option<String>,
}

/// A model whose row is found by a column of this one.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Parent {
    /// The other model, by name.
    pub model: String,
    /// The column of this model that holds the other's id.
    pub by: String,
}

/// Who sees a row whose group columns are all null or empty.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Ungrouped {
    /// No one.
    #[default]
    Nobody,
    /// Everyone in the org.
    Org,
}

/// When clients get a model's rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Load {
    /// In every full bootstrap.
    Instant,
    /// In every full bootstrap; a client may hydrate it late.
    Lazy,
    /// In the snapshot, sent when asked for by model, by sync group or by batch.
    Partial,
    /// Only by batch; not in the snapshot.
    Explicit,
}

impl Load {
    /// Whether a full bootstrap without `onlyModels` sends it.
    pub fn in_full_bootstrap(self) -> bool {
        matches!(self, Self::Instant | Self::Lazy)
    }

    /// Whether snapshots hold it.
    pub fn in_snapshot(self) -> bool {
        self != Self::Explicit
    }
}

/// A table or view, `name` or `schema.name`; without a schema it is in `public`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TableName {
    /// The schema.
    pub schema: String,
    /// The table's own name.
    pub name: String,
}

impl TableName {
    fn parse(text: &str) -> Result<Self, String> {
        let (schema, name) = text.split_once('.').unwrap_or(("public", text));
        if schema.is_empty() || name.is_empty() || name.contains('.') {
            return Err(format!("`{text}` is not a table: write `name` or `schema.name`"));
        }
        Ok(Self { schema: schema.into(), name: name.into() })
    }
}

impl fmt::Display for TableName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.schema != "public" {
            write!(f, "{}.", self.schema)?;
        }
        f.write_str(&self.name)
    }
}

impl Serialize for TableName {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&format!("{}.{}", self.schema, self.name))
    }
}

impl<'de> Deserialize<'de> for TableName {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(&text).map_err(serde::de::Error::custom)
    }
}

/// Where a user's groups come from when the token does not list them.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Access {
    /// Tables that put users into groups.
    #[serde(default)]
    pub memberships: Vec<Membership>,
}

/// A table with one row for each user of a group.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Membership {
    /// The kind of the groups.
    pub kind: String,
    /// The table or view.
    pub table: TableName,
    /// The column that holds the tenant.
    pub org: String,
    /// The column that holds the user.
    pub user: String,
    /// The column that holds the group's id.
    pub group: String,
}

/// The change log. The defaults name the table that `headstart migrate` makes; an application with a log of its own
/// maps it here.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LogTable {
    /// The log.
    pub table: TableName,
    /// The one-row table with the log's floor: the highest sync id that was trimmed away.
    pub floor: TableName,
    /// Whether `headstart migrate` makes the log and the triggers that fill it. `false`: the application does.
    pub managed: bool,
    /// Column: the sync id, drawn from a sequence by the INSERT itself.
    pub id: String,
    /// Column: the org, as text.
    pub org: String,
    /// Column: the model's name; null for a change of memberships.
    pub model: String,
    /// Column: the model id, as text.
    pub model_id: String,
    /// Column: the letter (`I`, `U`, `D`, `G`).
    pub action: String,
    /// Column: the groups before and after, as `text[]` of `kind:id`.
    pub groups: String,
    /// Column: when the action was written.
    pub created_at: String,
}

impl Default for LogTable {
    fn default() -> Self {
        let public = |name: &str| TableName { schema: "public".into(), name: name.into() };
        Self {
            table: public("sync_actions"),
            floor: public("sync_actions_floor"),
            managed: true,
            id: "id".into(),
            org: "org".into(),
            model: "model".into(),
            model_id: "model_id".into(),
            action: "action".into(),
            groups: "groups".into(),
            created_at: "created_at".into(),
        }
    }
}

/// How to reach a model's org and groups: the tables to join, nearest parent first, and which of them hold what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lineage {
    /// Model indexes: the model itself, its parent, and so on, no further than needed.
    pub chain: Vec<usize>,
    /// Place in `chain` of the model whose `org` column counts.
    pub org: usize,
    /// Place in `chain` of the model whose `groups` and `ungrouped` count.
    pub groups: usize,
}

/// What is wrong with a catalog: the place, the fault and the mend, for people.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{place}: {fault}")]
pub struct CatalogError {
    /// Where: `models.Issue.from`, say.
    pub place: String,
    /// What, and how to mend it.
    pub fault: String,
}

/// The file as it is written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    models: Vec<Model>,
    #[serde(default)]
    access: Access,
    #[serde(default)]
    log: LogTable,
}

impl Catalog {
    /// Reads and checks a catalog.
    ///
    /// # Errors
    /// Every fault that needs no database to be seen, all at once.
    pub fn parse(text: &str) -> Result<Self, Vec<CatalogError>> {
        let file: File = toml::from_str(text)
            .map_err(|error| vec![CatalogError { place: "catalog".into(), fault: error.to_string() }])?;
        let by_name = file.models.iter().enumerate().map(|(index, model)| (model.name.clone(), index)).collect();
        let catalog = Self { models: file.models, access: file.access, log: file.log, by_name };
        let faults = catalog.faults();
        if faults.is_empty() { Ok(catalog) } else { Err(faults) }
    }

    /// The models, in the order of the file.
    pub fn models(&self) -> &[Model] {
        &self.models
    }

    /// The model of this name, with its index.
    pub fn model(&self, name: &str) -> Option<(usize, &Model)> {
        let index = *self.by_name.get(name)?;
        Some((index, &self.models[index]))
    }

    /// Where users' groups come from.
    pub fn access(&self) -> &Access {
        &self.access
    }

    /// The change log.
    pub fn log(&self) -> &LogTable {
        &self.log
    }

    /// How to reach the org and the groups of a model's rows.
    ///
    /// # Panics
    /// When `model` is not the index of a model of this catalog.
    pub fn lineage(&self, model: usize) -> Lineage {
        let mut chain = vec![model];
        let (mut org, mut groups) = (None, None);
        loop {
            let place = chain.len() - 1;
            let here = &self.models[chain[place]];
            if org.is_none() && here.org.is_some() {
                org = Some(place);
            }
            if groups.is_none() && (!here.groups.is_empty() || here.from.is_none()) {
                groups = Some(place);
            }
            if let (Some(org), Some(groups)) = (org, groups) {
                return Lineage { chain, org, groups };
            }
            let parent = here.from.as_ref().expect("a checked catalog leads to an org and to groups");
            chain.push(self.by_name[&parent.model]);
        }
    }

    /// Models whose `from` names this one, by index.
    pub fn children(&self, model: usize) -> impl Iterator<Item = usize> + '_ {
        let name = &self.models[model].name;
        self.models
            .iter()
            .enumerate()
            .filter(move |(_, child)| child.from.as_ref().is_some_and(|from| from.model == *name))
            .map(|(index, _)| index)
    }
}

/// The wire name of a column without a rename: `organization_id` becomes `organizationId`. Underscores that lead or
/// trail stay, and so does a name in mixed case.
pub fn camel_case(column: &str) -> String {
    let body = column.trim_start_matches('_');
    let mut name = column[..column.len() - body.len()].to_owned();
    let mut pending = 0;
    for (index, letter) in body.char_indices() {
        if letter == '_' {
            pending += 1;
        } else if pending > 0 && index > 0 {
            name.extend(letter.to_uppercase());
            pending = 0;
        } else {
            name.push(letter);
        }
    }
    name.extend(std::iter::repeat_n('_', pending));
    name
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRACKER: &str = r#"
        [[models]]
        name = "Issue"
        table = "issue"
        id = "id"
        org = "organization_id"
        groups = { team = "team_id" }
        load = "instant"
        keys = ["teamId"]

        [[models]]
        name = "Comment"
        table = "app.comment"
        id = "id"
        from = { model = "Issue", by = "issue_id" }
        load = "partial"

        [[models]]
        name = "Reaction"
        table = "reaction"
        id = "id"
        org = "organization_id"
        from = { model = "Comment", by = "comment_id" }
        load = "lazy"

        [[access.memberships]]
        kind = "team"
        table = "team_membership"
        org = "organization_id"
        user = "user_id"
        group = "team_id"
    "#;

    fn faults(text: &str) -> Vec<String> {
        Catalog::parse(text).unwrap_err().iter().map(ToString::to_string).collect()
    }

    #[test]
    fn lineage_stops_where_org_and_groups_are_known() {
        let catalog = Catalog::parse(TRACKER).unwrap();
        assert_eq!(catalog.lineage(0), Lineage { chain: vec![0], org: 0, groups: 0 });
        assert_eq!(catalog.lineage(1), Lineage { chain: vec![1, 0], org: 1, groups: 1 });
        assert_eq!(catalog.lineage(2), Lineage { chain: vec![2, 1, 0], org: 0, groups: 2 });
        assert_eq!(catalog.children(0).collect::<Vec<_>>(), [1]);
        assert_eq!(catalog.models()[1].table, TableName { schema: "app".into(), name: "comment".into() });
    }

    #[test]
    fn unknown_keys_are_refused() {
        assert!(faults(&TRACKER.replace("keys =", "kees ="))[0].contains("unknown field `kees`"));
        assert!(faults(&TRACKER.replace("[[access.", "[[acces."))[0].contains("unknown field `acces`"));
    }

    #[test]
    fn a_from_that_leads_nowhere_is_named() {
        let missing = faults(&TRACKER.replace(r#"model = "Issue""#, r#"model = "Isue""#));
        assert_eq!(missing[0], "models.Comment.from: there is no model `Isue`");
        let cycle = r#"
            [[models]]
            name = "A"
            table = "a"
            id = "id"
            from = { model = "B", by = "b_id" }
            load = "lazy"
            [[models]]
            name = "B"
            table = "b"
            id = "id"
            from = { model = "A", by = "a_id" }
            load = "lazy"
        "#;
        assert!(faults(cycle)[0].starts_with("models.A.from: A -> B -> A is a cycle"));
        let orphan = TRACKER.replace(r#"from = { model = "Issue", by = "issue_id" }"#, "");
        assert!(
            faults(&orphan)
                .contains(&"models.Comment.org: no way to the tenant: name the `org` column, or `from`".to_owned())
        );
    }

    #[test]
    fn columns_become_camel_case() {
        for (column, name) in [
            ("id", "id"),
            ("organization_id", "organizationId"),
            ("a__b", "aB"),
            ("_private", "_private"),
            ("trailing_", "trailing_"),
            ("alreadyCamel", "alreadyCamel"),
            ("größe_ab", "größeAb"),
            ("x_1", "x1"),
        ] {
            assert_eq!(camel_case(column), name);
        }
    }
}
