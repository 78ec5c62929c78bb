//! The SQL of reads, as text: pure, so that it is tested without a server.
//!
//! Names come from the catalog and are always quoted. A model's `filter` is SQL of the catalog's author; it stands in
//! a subselect on its own table, where a bare column name can't mean another table's. Nothing of a request is ever
//! part of a statement: the org is a setting of the transaction, `headstart.org`, put there as a typed parameter. It
//! has to be one because COPY takes no parameters (PostgreSQL docs, COPY: only a plain query in the parentheses).

use std::fmt::Write as _;

use crate::model::catalog::{Catalog, Lineage, TableName};

/// Puts the org where the selects look for it, for the rest of the transaction. `$1` is the org's text.
pub const SET_ORG: &str = "SELECT pg_catalog.set_config('headstart.org', $1, true)";

/// Gives the joins of a scan room enough for the parents of a large org, for the rest of the transaction, where the server's
/// own setting gives less. A join that does not fit gives its rows in the order of their hashes instead of the table's: rows
/// that were written at the same time, and will change at the same time, then stand in many frames instead of few.
pub const ROOM_FOR_JOINS: &str = "SELECT pg_catalog.set_config('work_mem', '64MB', true) \
    WHERE pg_catalog.pg_size_bytes(pg_catalog.current_setting('work_mem')) < 67108864";

/// A column to select and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Output<'a> {
    /// The column's name.
    pub column: &'a str,
    /// In which form.
    pub form: Form,
}

/// How a column is selected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// As it is.
    Plain,
    /// As the text of PostgreSQL's own JSON.
    Json,
    /// As text.
    Text,
    /// As an array of texts.
    TextArray,
}

/// How the rows of an org are found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// By whatever the planner finds best. The org's value is known to it, and so its share of the table; but where it
    /// reads a whole table, it computes that value again for every row.
    Planned,
    /// By reading the whole table. No index serves this comparison; the org's value is computed once.
    Whole,
}

/// The rows of one model and one org.
#[derive(Clone, Debug)]
pub struct ModelSelect<'a> {
    /// The catalog.
    pub catalog: &'a Catalog,
    /// How the model reaches its org and groups.
    pub lineage: &'a Lineage,
    /// Columns of the model's own table.
    pub fields: &'a [Output<'a>],
    /// Columns of the table that holds the groups; they follow the fields.
    pub groups: &'a [Output<'a>],
    /// The type of the org column, as SQL.
    pub org_type: &'a str,
    /// How the org's rows are found.
    pub access: Access,
    /// Columns of the table that holds the groups to order by; empty: any order.
    pub order: Vec<&'a str>,
}

/// Which rows a look-up finds.
#[derive(Clone, Copy, Debug)]
pub struct KeyTest<'a> {
    /// The column of the model's own table.
    pub column: &'a str,
    /// Whether the column holds arrays: a row is found by any of its elements.
    pub is_array: bool,
    /// Whether the text of the column's values is compared; no index serves that.
    pub as_text: bool,
    /// The type of the parameter, as SQL.
    pub array_type: &'a str,
}

impl ModelSelect<'_> {
    /// The statement. The tables are `t0`, the model's own, `t1`, its parent's, and so on.
    ///
    /// Where the org is a parent's, a row without that parent belongs to no org and is left out. Where only groups are
    /// a parent's, such a row stays, without groups. Filters of parents don't count: they say which parents clients
    /// see, not which children.
    pub fn sql(&self) -> String {
        let mut sql = self.rows();
        let (column, value) = (self.org(), current_org(self.org_type));
        let _ = match self.access {
            Access::Planned => write!(sql, "\nWHERE {column} = {value}"),
            Access::Whole => write!(sql, "\nWHERE {column} IS NOT DISTINCT FROM (SELECT {value})"),
        };
        if !self.order.is_empty() {
            let order = self.order.iter().map(|column| format!("t{}.{}", self.lineage.groups, ident(column)));
            let _ = write!(sql, "\nORDER BY {}", order.collect::<Vec<_>>().join(", "));
        }
        sql
    }

    /// The statement that finds some of the rows by a column of the model's own table, whatever `access` and `order`
    /// say. `$1` is the org's text, `$2` the array of values. The operators are named in full: an extension's of the same
    /// name would be taken before them for some types, and mean something else.
    pub fn lookup(&self, test: KeyTest<'_>) -> String {
        let column = format!("t0.{}", ident(test.column));
        let array = test.array_type;
        let test = match (test.is_array, test.as_text) {
            (false, false) => format!("{column} OPERATOR(pg_catalog.=) ANY ($2::{array})"),
            (false, true) => format!("{column}::pg_catalog.text OPERATOR(pg_catalog.=) ANY ($2::{array})"),
            (true, false) => format!("{column} OPERATOR(pg_catalog.&&) $2::{array}"),
            (true, true) => format!("{column}::pg_catalog.text[] OPERATOR(pg_catalog.&&) $2::{array}"),
        };
        format!("{}\nWHERE {} = $1::pg_catalog.text::{} AND {test}", self.rows(), self.org(), self.org_type)
    }

    /// The column that holds the org.
    fn org(&self) -> String {
        let holder = &self.catalog.models()[self.lineage.chain[self.lineage.org]];
        let org = holder.org.as_ref().expect("a lineage ends where there is an org column");
        format!("t{}.{}", self.lineage.org, ident(org))
    }

    /// The rows of all orgs.
    fn rows(&self) -> String {
        let models = self.catalog.models();
        let own = &models[self.lineage.chain[0]];
        let fields = self.fields.iter().map(|output| output.sql(0));
        let groups = self.groups.iter().map(|output| output.sql(self.lineage.groups));
        let mut sql = format!("SELECT {}", fields.chain(groups).collect::<Vec<_>>().join(", "));
        match &own.filter {
            // The line breaks keep a comment in the filter from swallowing the parenthesis.
            Some(filter) => {
                let _ = write!(sql, "\nFROM (SELECT * FROM {} WHERE (\n{filter}\n)) AS t0", table(&own.table));
            }
            None => {
                let _ = write!(sql, "\nFROM {} AS t0", table(&own.table));
            }
        }
        for (place, pair) in self.lineage.chain.windows(2).enumerate() {
            let (child, parent) = (&models[pair[0]], &models[pair[1]]);
            let by = &child.from.as_ref().expect("a lineage goes on only where there is a parent").by;
            let join = if place < self.lineage.org { "JOIN" } else { "LEFT JOIN" };
            let (above, id) = (place + 1, ident(&parent.id));
            let _ =
                write!(sql, "\n{join} {} AS t{above} ON t{above}.{id} = t{place}.{}", table(&parent.table), ident(by));
        }
        sql
    }
}

impl Output<'_> {
    fn sql(&self, place: usize) -> String {
        let column = format!("t{place}.{}", ident(self.column));
        match self.form {
            Form::Plain => column,
            Form::Json => format!("pg_catalog.to_json({column})::pg_catalog.text"),
            Form::Text => format!("{column}::pg_catalog.text"),
            Form::TextArray => format!("{column}::pg_catalog.text[]"),
        }
    }
}

/// The org of the transaction as a value of this type. Stable, so that the planner sees it and its statistics, and
/// an index takes it.
pub fn current_org(org_type: &str) -> String {
    format!("pg_catalog.current_setting('headstart.org')::{org_type}")
}

/// Locks tables against rewrites for the rest of the transaction. In the order given: the same in every transaction,
/// so that two of them can't wait for each other. `wait`: else a lock that is not free is an error at once.
pub fn lock<'a>(tables: impl IntoIterator<Item = &'a TableName>, wait: bool) -> String {
    let names: Vec<_> = tables.into_iter().map(table).collect();
    format!("LOCK TABLE {} IN ACCESS SHARE MODE{}", names.join(", "), if wait { "" } else { " NOWAIT" })
}

/// A table's name, schema-qualified and quoted.
pub fn table(name: &TableName) -> String {
    format!("{}.{}", ident(&name.schema), ident(&name.name))
}

/// A name in double quotes (PostgreSQL docs, "Identifiers and Key Words").
pub fn ident(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

#[cfg(test)]
mod tests {
    use super::*;

    const CATALOG: &str = r#"
        [[models]]
        name = "Issue"
        table = "issue"
        id = "id"
        org = "organization_id"
        groups = { team = "team_id" }
        load = "instant"
        filter = "archived_at is null -- not yet"

        [[models]]
        name = "Comment"
        table = "app.Comment"
        id = "id"
        from = { model = "Issue", by = "issue\"id" }
        load = "partial"

        [[models]]
        name = "Reaction"
        table = "reaction"
        id = "id"
        org = "org"
        from = { model = "Comment", by = "comment_id" }
        load = "lazy"
    "#;

    fn select(model: usize, access: Access, order: &[&str]) -> String {
        let catalog = Catalog::parse(CATALOG).unwrap();
        let lineage = catalog.lineage(model);
        let fields = [Output { column: "id", form: Form::Plain }, Output { column: "Größe", form: Form::Json }];
        let groups = [Output { column: "team_id", form: Form::Text }];
        let select = ModelSelect {
            catalog: &catalog,
            lineage: &lineage,
            fields: &fields,
            groups: &groups,
            org_type: "uuid",
            access,
            order: order.to_vec(),
        };
        select.sql()
    }

    #[test]
    fn a_filter_stands_alone_over_its_table() {
        assert_eq!(
            select(0, Access::Planned, &["team_id"]),
            "SELECT t0.\"id\", pg_catalog.to_json(t0.\"Größe\")::pg_catalog.text, t0.\"team_id\"::pg_catalog.text\n\
             FROM (SELECT * FROM \"public\".\"issue\" WHERE (\narchived_at is null -- not yet\n)) AS t0\n\
             WHERE t0.\"organization_id\" = pg_catalog.current_setting('headstart.org')::uuid\n\
             ORDER BY t0.\"team_id\""
        );
    }

    #[test]
    fn an_inherited_org_joins_and_inherited_groups_left_join() {
        let comment = select(1, Access::Planned, &[]);
        assert!(comment.contains("FROM \"app\".\"Comment\" AS t0\nJOIN \"public\".\"issue\" AS t1"), "{comment}");
        assert!(comment.contains("ON t1.\"id\" = t0.\"issue\"\"id\"\nWHERE t1.\"organization_id\" ="), "{comment}");
        let reaction = select(2, Access::Whole, &[]);
        assert!(
            reaction.contains("\nLEFT JOIN \"app\".\"Comment\" AS t1 ON t1.\"id\" = t0.\"comment_id\""),
            "{reaction}"
        );
        assert!(reaction.contains("\nLEFT JOIN \"public\".\"issue\" AS t2"), "{reaction}");
        assert!(
            reaction.contains("\nWHERE t0.\"org\" IS NOT DISTINCT FROM (SELECT")
                && reaction.contains(", t2.\"team_id\"::"),
            "{reaction}"
        );
    }

    #[test]
    fn a_lookup_tests_key_and_org_in_one_statement() {
        let catalog = Catalog::parse(CATALOG).unwrap();
        let lineage = catalog.lineage(1);
        let fields = [Output { column: "id", form: Form::Plain }];
        let select = ModelSelect {
            catalog: &catalog,
            lineage: &lineage,
            fields: &fields,
            groups: &[],
            org_type: "uuid",
            access: Access::Planned,
            order: vec![],
        };
        let test = |is_array, as_text| {
            let sql = select.lookup(KeyTest { column: "k\"k", is_array, as_text, array_type: "int8[]" });
            sql.lines()
                .last()
                .unwrap()
                .strip_prefix("WHERE t1.\"organization_id\" = $1::pg_catalog.text::uuid AND ")
                .unwrap()
                .to_owned()
        };
        assert_eq!(test(false, false), "t0.\"k\"\"k\" OPERATOR(pg_catalog.=) ANY ($2::int8[])");
        assert_eq!(test(true, false), "t0.\"k\"\"k\" OPERATOR(pg_catalog.&&) $2::int8[]");
        assert_eq!(test(false, true), "t0.\"k\"\"k\"::pg_catalog.text OPERATOR(pg_catalog.=) ANY ($2::int8[])");
        assert_eq!(test(true, true), "t0.\"k\"\"k\"::pg_catalog.text[] OPERATOR(pg_catalog.&&) $2::int8[]");
    }

    #[test]
    fn locks_name_every_table() {
        let tables = Catalog::parse(CATALOG).unwrap().models()[..2].iter().map(|m| m.table.clone()).collect::<Vec<_>>();
        assert_eq!(
            lock(&tables, false),
            "LOCK TABLE \"public\".\"issue\", \"app\".\"Comment\" IN ACCESS SHARE MODE NOWAIT"
        );
    }
}
