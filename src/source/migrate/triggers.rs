//! Which triggers stand on which table.
//!
//! Row triggers, not statement triggers with transition tables, though the latter cost less in bulk: the apply worker
//! of logical replication fires row triggers only, and a write that names a partition passes by the statement triggers
//! of its parent (PostgreSQL, "Overview of Trigger Behavior"). They fire after those of foreign keys, which PostgreSQL
//! names `RI_…`: triggers fire in the order of their names, bytewise.

use std::collections::BTreeMap;

use crate::model::catalog::{Catalog, Model, TableName};
use crate::source::migrate::found::Found;
use crate::source::migrate::functions::{Function, Writer, descendants, stands_deep};
use crate::source::migrate::names::{self, qualified, quote_ident, quote_literal, quote_table};

/// What the comment on a trigger begins with; the digest of its definition follows.
const COMMENT: &str = "Made by headstart migrate; ";

/// One trigger.
#[derive(Clone, Debug)]
pub struct Trigger {
    /// On which table.
    pub table: TableName,
    /// Its name.
    pub name: String,
    /// `AFTER INSERT OR …`.
    timing: &'static str,
    /// `FOR EACH ROW`, and its condition.
    each: String,
    /// The function it calls, without its schema.
    function: String,
}

impl Trigger {
    /// The comment it carries when it is as it should be. It tells what the trigger runs, too: a trigger whose functions
    /// became others is made again, with its table locked, and a migration that broke off between the two finds that it
    /// has to go on.
    pub fn comment(&self, schema: &str, functions: &[Function]) -> String {
        let runs = self.runs(schema, functions).into_iter().map(|function| function.definition(schema));
        format!("{COMMENT}{}", names::short_digest(&(self.statement(schema) + &runs.collect::<String>())))
    }

    /// Those of all functions that it runs: its own, and what that and the others call.
    pub fn runs<'a>(&self, schema: &str, functions: &'a [Function]) -> Vec<&'a Function> {
        let mut runs: Vec<&Function> = functions.iter().filter(|function| function.name == self.function).collect();
        let mut followed = 0;
        while let Some(caller) = runs.get(followed) {
            let body = &caller.body;
            let called = functions.iter().filter(|function| {
                body.contains(&format!("{}(", qualified(schema, &function.name)))
                    && runs.iter().all(|known| !std::ptr::eq(*known, *function))
            });
            let called: Vec<&Function> = called.collect();
            runs.extend(called);
            followed += 1;
        }
        runs
    }

    fn statement(&self, schema: &str) -> String {
        format!(
            "CREATE OR REPLACE TRIGGER {} {} ON {} {} EXECUTE FUNCTION {}();\n",
            quote_ident(&self.name),
            self.timing,
            quote_table(&self.table),
            self.each,
            qualified(schema, &self.function)
        )
    }

    /// The statements that make it, or replace what it was, and let it fire whatever `session_replication_role` says.
    pub fn definition(&self, schema: &str, functions: &[Function]) -> String {
        let (name, table) = (quote_ident(&self.name), quote_table(&self.table));
        let comment = quote_literal(&self.comment(schema, functions));
        format!(
            "{}ALTER TABLE {table} ENABLE ALWAYS TRIGGER {name};\nCOMMENT ON TRIGGER {name} ON {table} IS {comment};\n",
            self.statement(schema)
        )
    }
}

/// Everything that should stand, and what can't.
#[derive(Debug, Default)]
pub struct Wanted {
    /// The functions.
    pub functions: Vec<Function>,
    /// The triggers.
    pub triggers: Vec<Trigger>,
    /// What keeps the log from being made: one message each, with the place and the mend.
    pub faults: Vec<String>,
    /// What is left out, and why.
    pub notes: Vec<String>,
}

/// Works out what the catalog needs on the tables that were found.
pub fn wanted(catalog: &Catalog, found: &Found) -> Wanted {
    let mut wanted = Wanted::default();
    let writer = Writer::new(catalog, found);
    wanted.functions = writer.common();
    let mut truncatable = BTreeMap::new();
    for (index, model) in catalog.models().iter().enumerate() {
        match obstacle(catalog, found, index) {
            Obstacle::None => {
                wanted.functions.extend(writer.model(index));
                wanted.triggers.extend(row_triggers(catalog, found, index));
                truncatable.insert(&model.table, ());
            }
            Obstacle::Fault(fault) => wanted.faults.push(fault),
            Obstacle::LeftOut(note) => wanted.notes.push(note),
        }
    }
    for (index, entry) in catalog.access().memberships.iter().enumerate() {
        let place = format!("access.memberships[{index}]");
        let columns = [&entry.org, &entry.user, &entry.group].map(String::as_str);
        match table_obstacle(found, &place, &entry.table, &columns) {
            Obstacle::None => {
                let function = writer.membership(entry);
                wanted.triggers.push(Trigger {
                    table: entry.table.clone(),
                    name: function.name.clone(),
                    timing: "AFTER INSERT OR UPDATE OR DELETE",
                    each: "FOR EACH ROW".into(),
                    function: function.name.clone(),
                });
                wanted.functions.push(function);
                truncatable.insert(&entry.table, ());
            }
            Obstacle::Fault(fault) => wanted.faults.push(fault),
            Obstacle::LeftOut(note) => wanted.notes.push(note),
        }
    }
    for table in truncatable.into_keys() {
        // Statement triggers are not copied to partitions, which can be truncated by themselves.
        for part in std::iter::once(table).chain(&found.tables[table].partitions) {
            wanted.triggers.push(Trigger {
                table: part.clone(),
                name: "headstart_truncate".into(),
                timing: "BEFORE TRUNCATE",
                each: "FOR EACH STATEMENT".into(),
                function: "headstart_refuse_truncate".into(),
            });
        }
    }
    wanted
}

/// The names of the row triggers without which a model's changes would be missing from the log: by table. Known from
/// the catalog alone.
pub fn needed(catalog: &Catalog, index: usize) -> Vec<(&TableName, String)> {
    let model = &catalog.models()[index];
    let mut needed = vec![(&model.table, names::object("log", &model.name))];
    for above in catalog.lineage(index).chain.into_iter().skip(1) {
        let parent = &catalog.models()[above];
        let moved = ["insert", "update", "delete"].map(|event| names::object("moved", &event_name(parent, event)));
        let before = ["update", "delete"].map(|event| names::object("before", &event_name(parent, event)));
        needed.extend(moved.into_iter().chain(before).map(|name| (&parent.table, name)));
    }
    needed
}

fn event_name(model: &Model, event: &str) -> String {
    format!("{}_{event}", model.name)
}

fn row_triggers(catalog: &Catalog, found: &Found, index: usize) -> Vec<Trigger> {
    let model = &catalog.models()[index];
    let row = |timing, name: String, condition: Option<String>, function: &str| Trigger {
        table: model.table.clone(),
        name,
        timing,
        each: match condition {
            Some(condition) => format!("FOR EACH ROW WHEN ({condition})"),
            None => "FOR EACH ROW".into(),
        },
        function: names::object(function, &model.name),
    };
    let log = names::object("log", &model.name);
    let mut triggers = vec![row("AFTER INSERT OR UPDATE OR DELETE", log, None, "log")];
    if let Some(from) = model.from.as_ref().filter(|_| stands_deep(catalog, index)) {
        let by = quote_ident(&from.by);
        let name = |event: &str| names::early(&event_name(model, event));
        let changed = format!("OLD.{by} IS DISTINCT FROM NEW.{by}");
        triggers.push(row("AFTER INSERT", name("insert"), None, "early"));
        triggers.push(row("AFTER UPDATE", name("update"), Some(changed), "early"));
    }
    let children: Vec<usize> = descendants(catalog, index).map(|(child, _)| child).collect();
    if children.is_empty() {
        return triggers;
    }
    let named = |what, event| names::object(what, &event_name(model, event));
    // Where a foreign key keeps children from standing before their parent, a parent that comes has none, unless
    // replication bypasses the key.
    let direct = catalog.children(index).filter(|child| children.contains(child));
    let enforced = direct.into_iter().all(|child| found.enforced.contains(&child));
    let came = enforced.then(|| "current_setting('session_replication_role') = 'replica'".to_owned());
    let changed = changed(model);
    // A BEFORE trigger can't see what generated columns will be; unconditional, it only keeps more than is needed.
    let columns = &found.tables[&model.table].columns;
    let generated = inherited(model).any(|column| columns.get(column).is_some_and(|column| column.generated));
    let before = (!generated).then(|| changed.clone());
    triggers.extend([
        row("AFTER INSERT", named("moved", "insert"), came, "moved"),
        row("AFTER UPDATE", named("moved", "update"), Some(changed), "moved"),
        row("AFTER DELETE", named("moved", "delete"), None, "moved"),
        row("BEFORE UPDATE", named("before", "update"), before, "before"),
        row("BEFORE DELETE", named("before", "delete"), None, "before"),
    ]);
    triggers
}

/// The columns that decide what children inherit.
fn inherited(model: &Model) -> impl Iterator<Item = &String> {
    let by = model.from.as_ref().map(|from| &from.by);
    std::iter::once(&model.id).chain(&model.org).chain(model.groups.values()).chain(by)
}

/// Whether an update changes what children inherit: compared as stored, so that every type can be.
fn changed(model: &Model) -> String {
    let row = |side: &str| {
        let columns = inherited(model).map(|column| format!("{side}.{}", quote_ident(column)));
        format!("ROW({})::record", columns.collect::<Vec<_>>().join(", "))
    };
    format!("{} OPERATOR(pg_catalog.*<>) {}", row("OLD"), row("NEW"))
}

enum Obstacle {
    None,
    /// The catalog or the database must change first.
    Fault(String),
    /// Triggers can't log it; that is the catalog author's choice.
    LeftOut(String),
}

fn obstacle(catalog: &Catalog, found: &Found, index: usize) -> Obstacle {
    let model = &catalog.models()[index];
    let place = format!("models.{}", model.name);
    if let Some(Err(word)) = found.filters.get(&index) {
        return Obstacle::Fault(format!("{place}.filter: PostgreSQL does not take it: {word}"));
    }
    for above in catalog.lineage(index).chain {
        let model = &catalog.models()[above];
        let columns: Vec<&str> = inherited(model).map(String::as_str).collect();
        match table_obstacle(found, &place, &model.table, &columns) {
            Obstacle::None => {}
            other => return other,
        }
    }
    if let Some(from) = &model.from {
        let type_of = |model: &Model, column: &str| {
            let table = found.tables.get(&model.table)?;
            table.columns.get(column).map(|column| column.base_type.as_str())
        };
        let (_, parent) = catalog.model(&from.model).expect("a checked catalog has every parent");
        let (Some(by), Some(id)) = (type_of(model, &from.by), type_of(parent, &parent.id)) else {
            return Obstacle::None;
        };
        if family(by).is_none() || family(by) != family(id) {
            return Obstacle::Fault(format!(
                "{place}.from: `{}` is {by} and the id of {} is {id}: both must be whole numbers, uuids or text",
                from.by, parent.name
            ));
        }
    }
    Obstacle::None
}

/// Types whose equal values have equal text, so that a child's column and its parent's id name the same row.
fn family(base_type: &str) -> Option<u8> {
    match base_type {
        "smallint" | "integer" | "bigint" => Some(0),
        "uuid" => Some(1),
        "text" | "character varying" => Some(2),
        _ => None,
    }
}

fn table_obstacle(found: &Found, place: &str, table: &TableName, columns: &[&str]) -> Obstacle {
    let Some(read) = found.tables.get(table) else {
        return Obstacle::Fault(format!("{place}.table: there is no table or view `{table}`"));
    };
    for column in columns {
        if !read.columns.contains_key(*column) {
            return Obstacle::Fault(format!("{place}: `{table}` has no column `{column}`"));
        }
    }
    if !read.takes_triggers() {
        return Obstacle::LeftOut(format!(
            "{place}: `{table}` is no table, so triggers can't log its changes: let the application write the log, \
             and say so with `managed = false` under [log]"
        ));
    }
    if read.hidden {
        return Obstacle::Fault(format!(
            "{place}: row-level security hides rows of `{table}` from this role: migrate as the table's owner"
        ));
    }
    if !read.permitted {
        return Obstacle::Fault(format!(
            "{place}: this role needs SELECT, UPDATE (to lock rows) and TRIGGER on `{table}`: migrate as its owner"
        ));
    }
    Obstacle::None
}
