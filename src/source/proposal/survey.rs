//! A database's schema as the rules need it: tables, columns, keys and sizes. Plain data; [`super::read`] fills it from
//! PostgreSQL's catalogs, tests write it by hand.

use crate::model::catalog::TableName;

/// What there is.
#[derive(Clone, Debug, Default)]
pub struct Survey {
    /// The application's tables and views, by name, without partitions and without what extensions made.
    pub tables: Vec<Table>,
    /// Whether there is a schema `public`, where the log stands if nobody says otherwise.
    pub public: bool,
}

/// One table or view.
#[derive(Clone, Debug)]
pub struct Table {
    /// Its name.
    pub name: TableName,
    /// What it is.
    pub kind: TableKind,
    /// Its comment; empty: none.
    pub comment: String,
    /// Whether this role may read it.
    pub readable: bool,
    /// Whether row-level security would hide rows from this role.
    pub hidden: bool,
    /// Its columns, in the order of the table.
    pub columns: Vec<Column>,
    /// The columns of each unique index that holds for all rows at once, the primary key first.
    pub unique: Vec<Vec<String>>,
    /// Columns that an index begins with: for an array one that finds elements.
    pub indexed: Vec<String>,
    /// Its foreign keys.
    pub foreign_keys: Vec<ForeignKey>,
    /// About how many rows there are; `None` when the table was never analyzed.
    pub rows: Option<f64>,
    /// What it takes on disk without its indexes, in bytes.
    pub bytes: u64,
}

/// What a name refers to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TableKind {
    /// A table.
    Plain,
    /// A table in partitions.
    Partitioned,
    /// A table that shares rows with others by `INHERITS`.
    Inherited,
    /// A view.
    View,
    /// A materialized view.
    MaterializedView,
    /// A foreign table.
    Foreign,
}

/// One column.
#[derive(Clone, Debug)]
pub struct Column {
    /// Its name.
    pub name: String,
    /// Its type, as `format_type` prints it.
    pub sql_type: String,
    /// What one value is; of an array, one element.
    pub value: Value,
    /// Whether it holds arrays.
    pub array: bool,
    /// Whether it may be null.
    pub nullable: bool,
    /// The share of nulls, from 0 to 1, by the planner's statistics.
    pub nulls: Option<f64>,
    /// The share of the commonest value, by the same.
    pub commonest: Option<f64>,
    /// Bytes of a value on average, by the same.
    pub width: Option<u32>,
}

/// What can be done with a column's values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Value {
    /// Whole numbers of any width.
    Integer,
    /// `uuid`.
    Uuid,
    /// `text` and `varchar`, compared by their bytes.
    Text,
    /// Others whose equal values have equal texts: enums, dates, numeric.
    Plain,
    /// Everything else: floats, json, citext, `char(n)`.
    Odd,
}

impl Value {
    /// Whether a row can be asked for by such a value.
    pub fn is_key(self) -> bool {
        self != Self::Odd
    }

    /// Whether it can be the id of an org or of a parent.
    pub fn is_reference(self) -> bool {
        matches!(self, Self::Integer | Self::Uuid | Self::Text)
    }
}

/// A foreign key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ForeignKey {
    /// Columns of the table that has it.
    pub columns: Vec<String>,
    /// The table it leads to.
    pub to: TableName,
    /// The columns there, in the same order.
    pub to_columns: Vec<String>,
    /// Whether rows go with the row they lead to.
    pub cascades: bool,
}

impl Table {
    /// The column of this name.
    pub fn column(&self, name: &str) -> Option<&Column> {
        self.columns.iter().find(|column| column.name == name)
    }

    /// Whether triggers can log its changes.
    pub fn takes_triggers(&self) -> bool {
        matches!(self.kind, TableKind::Plain | TableKind::Partitioned)
    }

    /// The column that can name a row: of the primary key, else of the first unique index that fits. A table in
    /// partitions can't have a unique index without the columns it is divided by; there the first column of its key is
    /// taken if it is called an id.
    pub fn id(&self) -> Option<&Column> {
        let fits = |column: &&Column| !column.nullable && !column.array && column.value.is_key();
        let single = self.unique.iter().filter(|columns| columns.len() == 1);
        if let Some(column) = single.filter_map(|columns| self.column(&columns[0])).find(fits) {
            return Some(column);
        }
        let first = self.unique.first().filter(|_| self.kind == TableKind::Partitioned)?;
        let called_id = |name: &&String| name.eq_ignore_ascii_case("id") || name.eq_ignore_ascii_case("uuid");
        first.iter().find(called_id).and_then(|name| self.column(name)).filter(fits)
    }

    /// Whether these columns, or some of them, are unique.
    pub fn is_unique(&self, columns: &[&str]) -> bool {
        self.unique.iter().any(|index| index.iter().all(|column| columns.contains(&column.as_str())))
    }
}
