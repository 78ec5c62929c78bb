//! Makes and keeps the change log: its tables, its indexes and the triggers that fill it.
//!
//! [`Found::read`] tells what there is, [`plan`] (pure) what is missing, [`Plan::script`] prints that as a script and
//! [`apply`](fn@apply) does it. All of it is idempotent: what stands as it should is left alone, triggers of models that left the
//! catalog are dropped.
//!
//! # What is logged
//! One line for each row that was written: its org, model and id, and every sync group it had or has. For whom a row
//! appears, changes or vanishes is decided when the line is read, from the row as it is then; so a line too many is
//! harmless, and a group missing from a line is a client that never learns. A row that changes its id or its org is two
//! lines, one for what it was and one for what it is. A row that fails its model's `filter` before and after is no
//! line. A parent's `filter` does not hide its children.
//!
//! So what was logged for another catalog may not do for this one, nor what was logged before a trigger stood. Wherever
//! a trigger or what it runs is changed, the log's floor rises above all that was written through what was there before:
//! no snapshot or cursor from before is gone on from.
//!
//! A model with `from` inherits org or groups from its parent's row. So its trigger reads that row, and when the row
//! changes what it gives, is removed, appears or changes its id, a trigger there logs everything below it.
//!
//! # Why no child is missed
//! Let C write a child row and M move its parent, in two transactions at once. If C reads the parent before M's change
//! and M reads the children before C's, users of the parent's new groups never hear of the child. What has to hold is:
//! one of the two has ended, and is seen, before the other reads.
//!
//! *They meet at something that both hold to their end, and each reads only after it holds it:*
//! - C makes a row a child of the parent (an INSERT, or an UPDATE of the column that names the parent): it locks the
//!   parent's row, and every row above that, FOR KEY SHARE, and leaves a mark (its transaction, the parent) in the marks
//!   table. That is what a foreign key locks, so children of one parent don't wait for each other, nor for updates that
//!   move nothing. M, in its trigger, locks the row it moved FOR UPDATE, or has done so by deleting it or by changing
//!   its id; then it leaves a mark too, and waits for every open transaction that left C's mark there.
//! - The lock alone is not enough, because PostgreSQL (15.20 at least) loses some FOR KEY SHARE locks: one taken while an
//!   update writes the row's new version to another page, and one that waited for a mover who then rolled back: it is on
//!   the row's old version and on the one that was taken back, not on what the next mover makes of the row
//!   (`heap_lock_tuple` does not follow the new chain, and finds the lock held when it is asked for again).
//! - C's mark alone is not enough either: C may leave it just after M looked. So C, having left its mark, looks for M's,
//!   and waits for open transactions that left it, unless it sees that nobody updates the parent now. Each leaves its
//!   mark before it looks for the other's, so at least one of them sees the other. Both look only when a lock was lost;
//!   if both see each other, PostgreSQL ends one of them as a deadlock.
//! - The locks of ancestors are taken from the top down, as a cascade takes them, and before the check of a foreign key
//!   locks the nearest one: else two writers of single rows could wait for each other.
//! - C changes or removes a row that was a child already: that row is locked by the write itself. M locks all it finds
//!   below the parent FOR SHARE, and only then reads it. So C does not touch the parent at all, and a parent whose
//!   removal cascades can't deadlock with it.
//! - The parent's row does not stand yet, and M inserts it: C, which finds none, takes one of a few advisory locks, M
//!   takes it shared. Where a foreign key is checked at once this can't be (but for replication, which bypasses it),
//!   and M needs no trigger.
//!
//! *What is read under the lock is the newest.* At READ COMMITTED each statement of a volatile function takes a new
//! snapshot (PostgreSQL, "Function Volatility Categories"), and the reads are statements of their own after the locks:
//! a FOR KEY SHARE lock may return the version before a move. At REPEATABLE READ and SERIALIZABLE the snapshot is as
//! old as the transaction. Then the trigger asks whether a transaction that the snapshot can't see has left a mark that
//! matters: a unique index is checked against the newest rows whatever the snapshot, so trying to insert the mark of every transaction that
//! committed since the snapshot fails with `serialization_failure` exactly when one of them left it. The writer retries,
//! as it must be ready to at those levels. Rows that were changed or removed below the parent fail in the same way when
//! M locks them, by PostgreSQL's own rule. No transaction that the asker depends on can still be open: it would hold
//! the lock, or was waited for at its mark.
//!
//! *Within one transaction* both see everything, except what one statement did to both (a data-modifying WITH, a
//! cascade): the child's trigger may run when the parent is gone or moved already. So a BEFORE trigger on the parent
//! keeps what it gave, as another mark, and the child is logged for that too.
//!
//! What is left is ordinary: a transaction that inserts a child and then updates its parent (a counter, say) deadlocks
//! with one that moves that parent between the two statements. PostgreSQL ends one of them.

pub mod apply;
pub mod ddl;
pub mod found;
pub mod functions;
pub mod names;
pub mod triggers;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::time::Duration;

pub use apply::{MigrateError, apply};
pub use found::Found;

use crate::model::catalog::{Catalog, LogTable, TableName};
use names::{qualified, quote_ident, quote_table};

/// One thing to do, in one transaction if it can be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// What it does, for people.
    pub description: String,
    /// The statements.
    pub sql: String,
    /// Whether it runs in a transaction. What builds an index concurrently can't.
    pub transactional: bool,
    /// The application's table that it locks, if any.
    pub table: Option<TableName>,
}

/// What is to be done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// The steps, in order.
    pub steps: Vec<Step>,
    /// What is left out, and why.
    pub notes: Vec<String>,
}

impl Plan {
    /// The plan as a script for psql. `lock_timeout` bounds how long each step waits for a table that is in use.
    pub fn script(&self, lock_timeout: Duration) -> String {
        let mut script = String::from("-- Made by `headstart migrate`.\n\\set ON_ERROR_STOP on\n");
        for note in &self.notes {
            let _ = writeln!(script, "-- Left out: {note}");
        }
        if self.steps.is_empty() {
            script.push_str("-- Nothing to do: the log is as the catalog wants it.\n");
        }
        for step in &self.steps {
            let _ = writeln!(script, "\n-- {}", step.description.replace('\n', " "));
            if step.transactional {
                let timeout = lock_timeout.as_millis();
                let _ = writeln!(script, "BEGIN;\nSET LOCAL lock_timeout = '{timeout}ms';\n{}COMMIT;", step.sql);
            } else {
                script.push_str(&step.sql);
            }
        }
        script
    }
}

/// Compares what the catalog wants with what there is.
///
/// # Errors
/// Everything that must change first, one message each: a missing table or column, a filter that PostgreSQL does not
/// take, missing rights, a log made by a newer version.
pub fn plan(catalog: &Catalog, found: &Found) -> Result<Plan, Vec<String>> {
    if !catalog.log().managed {
        let note = "the catalog says that the application writes the log (`managed = false`)".into();
        return Ok(Plan { steps: Vec::new(), notes: vec![note] });
    }
    let mut wanted = triggers::wanted(catalog, found);
    let mut plan =
        Plan { steps: log_steps(catalog, found).unwrap_or_default(), notes: std::mem::take(&mut wanted.notes) };
    wanted.faults.extend(log_steps(catalog, found).err());
    if !wanted.faults.is_empty() {
        return Err(wanted.faults);
    }
    let schema = &catalog.log().table.schema;
    let changed = changed_functions(found, &wanted.functions);
    plan.steps.extend(function_step(schema, &changed));
    plan.steps.extend(trigger_steps(catalog.log(), found, &wanted, &changed));
    plan.steps.extend(obsolete_functions(schema, found, &wanted.functions));
    Ok(plan)
}

fn log_steps(catalog: &Catalog, found: &Found) -> Result<Vec<Step>, String> {
    let log = catalog.log();
    let step = |description: String, sql, transactional| Step { description, sql, transactional, table: None };
    let mut steps = Vec::new();
    match &found.log {
        None => {
            let indexes: String = ddl::indexes(log).iter().map(|index| index.make(log, "")).collect();
            steps.push(step(format!("Make the log `{}` with its indexes", log.table), ddl::log(log) + &indexes, true));
        }
        Some(comment) => match ddl::version(comment) {
            Some(version) if version > ddl::VERSION => {
                return Err(format!(
                    "log: `{}` is of version {version}; this program knows {}",
                    log.table,
                    ddl::VERSION
                ));
            }
            Some(_) => {}
            None => {
                return Err(format!(
                    "log.table: `{}` stands already and was not made by `headstart migrate`: name another, or say \
                     `managed = false` if the application writes it",
                    log.table
                ));
            }
        },
    }
    for index in ddl::indexes(log).iter().filter(|_| found.log.is_some()) {
        let valid = found.indexes.get(&index.name);
        if valid == Some(&false) {
            let description = format!("Drop the index {} that a broken build left invalid", index.purpose);
            steps.push(step(description, index.drop(log), false));
        }
        if valid != Some(&true) {
            let description = format!("Build the index {}, without blocking writers", index.purpose);
            steps.push(step(description, index.make(log, "CONCURRENTLY "), false));
        }
    }
    if !found.floor {
        // Of a log that stands nobody knows how far it was trimmed.
        let raised = if found.log.is_some() { ddl::raise_floor(log) } else { String::new() };
        steps.push(step(format!("Make the log's floor `{}`", log.floor), ddl::floor(log) + &raised, true));
    }
    if !found.marks {
        let description = format!("Make the marks of children and parents `{}`", names::marks_table(log));
        steps.push(step(description, ddl::marks(log), true));
    }
    Ok(steps)
}

fn changed_functions<'a>(found: &Found, wanted: &'a [functions::Function]) -> Vec<&'a functions::Function> {
    let differs = |function: &&functions::Function| {
        let key = (function.name.clone(), function.types());
        found
            .functions
            .get(&key)
            .is_none_or(|there| there.body != function.body || !there.definer || there.settings != function.settings())
    };
    wanted.iter().filter(differs).collect()
}

/// All functions at once: they call each other.
fn function_step(schema: &str, changed: &[&functions::Function]) -> Option<Step> {
    let names: Vec<&str> = changed.iter().map(|function| function.name.as_str()).collect();
    (!changed.is_empty()).then(|| Step {
        description: format!("Make or replace functions: {}", names.join(", ")),
        sql: changed.iter().map(|function| function.definition(schema)).collect(),
        transactional: true,
        table: None,
    })
}

/// One step a table: what is new or changed is made, what the catalog no longer wants is dropped. A trigger that was
/// missing has left changes unlogged, so the floor rises with it: no snapshot or cursor from before is used again.
///
/// The same holds for a trigger whose functions were others: another `filter`, say, left changes unlogged that this one
/// wants, and a catalog that comes back would find its old snapshots. Making the trigger locks its table, so whoever
/// wrote through the old functions has ended when the floor rises.
fn trigger_steps(
    log: &LogTable,
    found: &Found,
    wanted: &triggers::Wanted,
    changed: &[&functions::Function],
) -> Vec<Step> {
    let schema = &log.table.schema;
    #[derive(Default)]
    struct Change {
        made: Vec<String>,
        dropped: Vec<String>,
        sql: String,
    }
    let mut changes: BTreeMap<&TableName, Change> = BTreeMap::new();
    let kept: BTreeSet<(&TableName, &str)> =
        wanted.triggers.iter().map(|trigger| (&trigger.table, trigger.name.as_str())).collect();
    for there in found.triggers.iter().filter(|there| !kept.contains(&(&there.table, there.name.as_str()))) {
        let change = changes.entry(&there.table).or_default();
        let _ = writeln!(change.sql, "DROP TRIGGER {} ON {};", quote_ident(&there.name), quote_table(&there.table));
        change.dropped.push(there.name.clone());
    }
    for trigger in &wanted.triggers {
        let comment = trigger.comment(schema, &wanted.functions);
        let stands = found.triggers.iter().any(|there| {
            there.table == trigger.table && there.name == trigger.name && there.always && there.comment == comment
        });
        let runs = trigger.runs(schema, &wanted.functions);
        let runs_as_before = runs.iter().all(|run| changed.iter().all(|function| function.name != run.name));
        if !(stands && runs_as_before) {
            let change = changes.entry(&trigger.table).or_default();
            change.sql.push_str(&trigger.definition(schema, &wanted.functions));
            change.made.push(trigger.name.clone());
        }
    }
    let describe = |table: &TableName, change: &Change| {
        let part = |verb: &str, names: &[String]| {
            if names.is_empty() { String::new() } else { format!("; {verb} {}", names.join(", ")) }
        };
        let raised = if change.made.is_empty() { "" } else { "; raise the log's floor above what they missed" };
        format!("Triggers on `{table}`{}{}{raised}", part("make", &change.made), part("drop", &change.dropped))
    };
    changes
        .into_iter()
        .map(|(table, change)| Step {
            description: describe(table, &change),
            sql: if change.made.is_empty() { change.sql } else { change.sql + &ddl::raise_floor(log) },
            transactional: true,
            table: Some(table.clone()),
        })
        .collect()
}

fn obsolete_functions(schema: &str, found: &Found, wanted: &[functions::Function]) -> Option<Step> {
    let kept: BTreeSet<(String, String)> =
        wanted.iter().map(|function| (function.name.clone(), function.types())).collect();
    let dropped: Vec<&(String, String)> = found.functions.keys().filter(|there| !kept.contains(*there)).collect();
    let names: Vec<&str> = dropped.iter().map(|(name, _)| name.as_str()).collect();
    (!dropped.is_empty()).then(|| Step {
        description: format!("Drop functions that nothing calls any more: {}", names.join(", ")),
        sql: dropped
            .iter()
            .map(|(name, types)| format!("DROP FUNCTION {}({types});\n", qualified(schema, name)))
            .collect(),
        transactional: true,
        table: None,
    })
}
