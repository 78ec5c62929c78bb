//! The tables of the log.

use crate::model::catalog::LogTable;
use crate::source::migrate::names::{self, quote_ident, quote_literal, quote_table};

/// Which shape of the log this is. Raised with every change that an existing log must be brought to.
pub const VERSION: u32 = 1;

/// What the comment on the log table begins with; the version follows.
const COMMENT: &str = "The change log of Headstart, version ";

/// The comment on a log table of this version.
pub fn comment() -> String {
    format!("{COMMENT}{VERSION}")
}

/// The version that a comment tells, if it is one of ours.
pub fn version(comment: &str) -> Option<u32> {
    comment.strip_prefix(COMMENT)?.parse().ok()
}

/// The log. Ids are drawn by the INSERT itself, one by one, so that whoever holds one also holds a lock on the table.
pub fn log(log: &LogTable) -> String {
    let column = quote_ident;
    format!(
        "CREATE TABLE {table} (
  {id} bigint GENERATED ALWAYS AS IDENTITY (INCREMENT 1 CACHE 1) PRIMARY KEY,
  {org} text NOT NULL,
  {model} text,
  {model_id} text,
  {action} text NOT NULL CHECK ({action} IN ('I', 'U', 'D', 'G')),
  {groups} text[] NOT NULL,
  {created_at} timestamptz NOT NULL DEFAULT clock_timestamp()
);
COMMENT ON TABLE {table} IS {comment};
",
        table = quote_table(&log.table),
        id = column(&log.id),
        org = column(&log.org),
        model = column(&log.model),
        model_id = column(&log.model_id),
        action = column(&log.action),
        groups = column(&log.groups),
        created_at = column(&log.created_at),
        comment = quote_literal(&comment()),
    )
}

/// An index of the log.
pub struct Index {
    /// Its name, in the log's schema.
    pub name: String,
    /// What it is for, for people.
    pub purpose: &'static str,
    definition: String,
}

impl Index {
    /// The statement that makes it. `how` is `CONCURRENTLY ` on a log that is in use.
    pub fn make(&self, log: &LogTable, how: &str) -> String {
        format!("CREATE INDEX {how}{} ON {} {};\n", quote_ident(&self.name), quote_table(&log.table), self.definition)
    }

    /// Removes what a broken CONCURRENTLY left.
    pub fn drop(&self, log: &LogTable) -> String {
        format!("DROP INDEX CONCURRENTLY {}.{};\n", quote_ident(&log.table.schema), quote_ident(&self.name))
    }
}

/// The indexes of the log: one org's actions in order, and the actions of some groups. PostgreSQL takes the first alone
/// for a short range, both together for a long one, so that of a busy org only the rows of the caller's groups are read.
///
/// Without `fastupdate` each write puts its groups where they belong; with it every read would search up to
/// `gin_pending_list_limit` of unsorted entries (PostgreSQL, "GIN Fast Update Technique").
pub fn indexes(log: &LogTable) -> [Index; 2] {
    let (org, id, groups) = (quote_ident(&log.org), quote_ident(&log.id), quote_ident(&log.groups));
    [
        Index { name: names::org_index(log), purpose: "by org", definition: format!("({org}, {id})") },
        Index {
            name: names::groups_index(log),
            purpose: "by groups",
            definition: format!("USING gin ({groups}) WITH (fastupdate = off)"),
        },
    ]
}

/// One row: the highest sync id up to which actions may be missing, because they were trimmed away or were never
/// logged. Changed in the transaction that trims, or that makes a trigger.
pub fn floor(log: &LogTable) -> String {
    let table = quote_table(&log.floor);
    format!(
        "CREATE TABLE {table} (
  only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
  floor bigint NOT NULL
);
INSERT INTO {table} (floor) VALUES (0);
"
    )
}

/// Raises the floor above all that was logged: what changed before this transaction may be missing from the log. Run it
/// once the tables are locked. The lock on the log makes watermarks wait for this transaction, as for any writer.
pub fn raise_floor(log: &LogTable) -> String {
    let (table, floor) = (quote_table(&log.table), quote_table(&log.floor));
    format!(
        "LOCK TABLE {table} IN ROW EXCLUSIVE MODE;
UPDATE {floor} SET floor = nextval(pg_get_serial_sequence({}, {}));
",
        quote_literal(&table),
        quote_literal(&log.id)
    )
}

/// Who wrote below which parent, and who moved one: rows outlive the transactions that could need them only until
/// they are trimmed.
pub fn marks(log: &LogTable) -> String {
    format!(
        "CREATE TABLE {} (
  xid xid8 NOT NULL,
  side \"char\" NOT NULL,
  parent text NOT NULL,
  org text NOT NULL DEFAULT '',
  groups text[],
  PRIMARY KEY (xid, side, parent, org)
);
",
        quote_table(&names::marks_table(log))
    )
}
