//! How names and texts of the catalog are written into statements, and what the things that `migrate` makes are called.
//!
//! Names are made from the catalog alone, so that every version of a model finds its own triggers again.

use sha2::{Digest, Sha256};

use crate::model::catalog::{LogTable, Membership, TableName};

/// PostgreSQL cuts longer names silently (`NAMEDATALEN` - 1).
const LONGEST_NAME: usize = 63;

/// What every function and trigger of the log begins with.
pub const PREFIX: &str = "headstart_";

/// A quoted name, whatever letters it holds.
pub fn quote_ident(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// A text constant. Written with `E''` when it holds a backslash, so that `standard_conforming_strings` does not matter.
pub fn quote_literal(text: &str) -> String {
    let quoted = text.replace('\'', "''");
    if quoted.contains('\\') { format!("E'{}'", quoted.replace('\\', "\\\\")) } else { format!("'{quoted}'") }
}

/// `"schema"."name"`.
pub fn quote_table(table: &TableName) -> String {
    qualified(&table.schema, &table.name)
}

/// `"schema"."name"`, of anything that lives in a schema.
pub fn qualified(schema: &str, name: &str) -> String {
    format!("{}.{}", quote_ident(schema), quote_ident(name))
}

/// Who wrote below which parent: stands beside the log, in its schema.
pub fn marks_table(log: &LogTable) -> TableName {
    TableName { schema: log.table.schema.clone(), name: fit(&format!("{}_marks", log.table.name)) }
}

/// The index that reads one org's actions in order.
pub fn org_index(log: &LogTable) -> String {
    fit(&format!("{}_org_id", log.table.name))
}

/// The index that finds the actions of some groups.
pub fn groups_index(log: &LogTable) -> String {
    fit(&format!("{}_groups", log.table.name))
}

/// `headstart_<what>_<of>`, cut to what PostgreSQL keeps, without two names becoming one.
pub fn object(what: &str, of: &str) -> String {
    fit(&format!("{PREFIX}{what}_{of}"))
}

/// The name of a trigger that must fire before those of foreign keys, `RI_…`: triggers fire in the bytewise order of
/// their names.
pub fn early(of: &str) -> String {
    fit(&format!("Headstart_early_{of}"))
}

/// What a membership entry's function and trigger are called: the parts that people look for, then a digest, because
/// underscores in them could make two entries meet.
pub fn membership(entry: &Membership) -> String {
    let parts = [&entry.kind, &entry.table.schema, &entry.table.name, &entry.org, &entry.user, &entry.group];
    let exact = parts.map(|part| quote_ident(part)).join(".");
    let table = &entry.table.name;
    fit(&format!("{PREFIX}member_{}_{table}_{}", entry.kind, short_digest(&exact)))
}

/// Eight hex digits that name a text.
pub fn short_digest(text: &str) -> String {
    Sha256::digest(text.as_bytes())[..4].iter().map(|byte| format!("{byte:02x}")).collect()
}

fn fit(name: &str) -> String {
    if name.len() <= LONGEST_NAME {
        return name.to_owned();
    }
    let digest = short_digest(name);
    let mut end = LONGEST_NAME - 1 - digest.len();
    while !name.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}_{digest}", &name[..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotes_are_doubled_and_backslashes_kept() {
        assert_eq!(quote_ident(r#"we"ird"#), r#""we""ird""#);
        assert_eq!(quote_literal("it's"), "'it''s'");
        assert_eq!(quote_literal(r"a\b"), r"E'a\\b'");
    }

    #[test]
    fn long_names_are_cut_between_letters_and_stay_apart() {
        let long = "ü".repeat(40);
        let (a, b) = (object("log", &long), object("log", &format!("{long}x")));
        assert!(a.len() <= LONGEST_NAME && b.len() <= LONGEST_NAME);
        assert_ne!(a, b);
        assert_eq!(object("log", "Issue"), "headstart_log_Issue");
    }
}
