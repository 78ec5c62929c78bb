//! What a catalog asks of the tables that they don't have. Every fault is found, not only the first, and each says
//! where it is and how to mend it.
//!
//! What only `headstart check` looks at (triggers, policies, sequences, unique ids) is not here: these are the faults
//! without which rows can't be read at all, or would be read wrong.

use std::collections::BTreeMap;
use std::fmt;

use tokio_postgres::types::Oid;

use crate::model::catalog::{Catalog, Membership, Model, TableName, camel_case};
use crate::source::postgres::columns::visible;
use crate::source::postgres::tables::{Column, Live, Table, TableKind};
use crate::source::postgres::types::Codec;

/// One thing that does not fit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Where in the catalog: `models.Issue.org`, say.
    pub place: String,
    /// What is wrong.
    pub fault: String,
    /// How to mend it.
    pub mend: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}: {}", self.place, self.fault, self.mend)
    }
}

/// Holds a catalog against the tables.
pub fn faults(catalog: &Catalog, live: &Live) -> Vec<Fault> {
    let mut inspection = Inspection { catalog, live, org: None, faults: Vec::new() };
    for model in catalog.models() {
        inspection.model(model);
    }
    for (index, membership) in catalog.access().memberships.iter().enumerate() {
        inspection.membership(index, membership);
    }
    inspection.faults
}

struct Inspection<'a> {
    catalog: &'a Catalog,
    live: &'a Live,
    /// The first org column: its place, type and family. The others must be of the same family.
    org: Option<(String, &'a str, Family)>,
    faults: Vec<Fault>,
}

/// Types whose values have the same text exactly when they are equal, whatever the width of the column.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Family {
    Integer,
    Text,
    Other(Oid),
}

impl<'a> Inspection<'a> {
    fn model(&mut self, model: &Model) {
        let at = |part: &str| format!("models.{}.{part}", model.name);
        let Some(table) = self.table(at("table"), &model.table) else { return };
        if let Some(id) = self.column(at("id"), table, &model.table, &model.id) {
            self.comparable(at("id"), id, id.oid);
        }
        if let Some(org) = &model.org {
            self.org(at("org"), table, &model.table, org);
        }
        for (kind, name) in &model.groups {
            let place = at(&format!("groups.{kind}"));
            if let Some(column) = self.column(place.clone(), table, &model.table, name) {
                self.group(place, column);
            }
        }
        for name in &model.exclude {
            self.column(at("exclude"), table, &model.table, name);
        }
        for name in model.rename.keys() {
            self.column(at("rename"), table, &model.table, name);
        }
        self.parent(model, table);
        self.wire_names(model, table);
        for key in &model.keys {
            self.key(model, table, key);
        }
    }

    fn membership(&mut self, index: usize, membership: &Membership) {
        let at = |part: &str| format!("access.memberships[{index}].{part}");
        let Some(table) = self.table(at("table"), &membership.table) else { return };
        self.org(at("org"), table, &membership.table, &membership.org);
        self.column(at("user"), table, &membership.table, &membership.user);
        self.column(at("group"), table, &membership.table, &membership.group);
    }

    /// The table, unless it can't be read.
    fn table(&mut self, place: String, name: &TableName) -> Option<&'a Table> {
        let Some(table) = self.live.table(name) else {
            let fault = format!("there is no table or view `{}` in schema `{}`", name.name, name.schema);
            self.fault(place, fault, "write the name as the database has it, in the same case, as `schema.name` if the schema is not `public`");
            return None;
        };
        let other = match table.kind {
            TableKind::Lockable => None,
            TableKind::MaterializedView => Some("materialized view"),
            TableKind::Foreign => Some("foreign table"),
        };
        if let Some(kind) = other {
            let fault = format!("`{name}` is a {kind}, which can't be locked against changes");
            self.fault(place.clone(), fault, "make a view over it and name that");
        }
        if !table.readable {
            let fault = format!("this role may not read `{name}`");
            self.fault(place, fault, format!("GRANT USAGE ON SCHEMA {} and SELECT ON {name} to it", name.schema));
        }
        Some(table)
    }

    fn column(&mut self, place: String, table: &'a Table, of: &TableName, name: &str) -> Option<&'a Column> {
        let found = table.column(name);
        if found.is_none() {
            let bare = |name: &str| name.replace('_', "").to_lowercase();
            let mend = match table.columns.iter().find(|column| bare(&column.name) == bare(name)) {
                Some(near) => format!("write `{}`, as the table has it", near.name),
                None => {
                    let names: Vec<_> = table.columns.iter().map(|column| column.name.as_str()).collect();
                    format!("name one of its columns: {}", names.join(", "))
                }
            };
            self.fault(place, format!("`{of}` has no column `{name}`"), mend);
        }
        found
    }

    fn org(&mut self, place: String, table: &'a Table, of: &TableName, name: &str) {
        let Some(column) = self.column(place.clone(), table, of, name) else { return };
        let faults = self.faults.len();
        self.comparable(place.clone(), column, column.oid);
        if self.faults.len() > faults {
            return;
        }
        let types = &self.live.types;
        let canonical =
            matches!(types.codec(column.oid), Codec::Int2 | Codec::Int4 | Codec::Int8 | Codec::Text | Codec::Uuid);
        if !canonical {
            let fault = format!("an org's id can't be a {}", column.sql_type);
            return self.fault(place, fault, "use a uuid, an integer or a text, if need be by a view that casts it");
        }
        let family = self.family(column.oid);
        match &self.org {
            Some((first, first_type, first_family)) if *first_family != family => {
                let fault = format!("`{name}` is a {}, but at {first} the org is a {first_type}", column.sql_type);
                self.fault(place, fault, "one org has one id: give both the same type, or name a view that casts one");
            }
            Some(_) => {}
            None => self.org = Some((place, &column.sql_type, family)),
        }
    }

    fn group(&mut self, place: String, column: &Column) {
        let types = &self.live.types;
        let codec = types.codec(types.element(column.oid).unwrap_or(column.oid));
        if !has_plain_text(&codec) {
            let fault = format!("a {} can't name sync groups", column.sql_type);
            self.fault(place, fault, "use a column with one id, or an array of ids");
        }
    }

    fn parent(&mut self, model: &Model, table: &'a Table) {
        let Some(from) = &model.from else { return };
        let place = format!("models.{}.from.by", model.name);
        let Some(by) = self.column(place.clone(), table, &model.table, &from.by) else { return };
        let parent = self.catalog.model(&from.model).map(|(_, parent)| parent);
        let id = parent.and_then(|parent| self.live.table(&parent.table)?.column(&parent.id));
        if let Some(id) = id.filter(|id| self.family(id.oid) != self.family(by.oid)) {
            let fault =
                format!("`{}` is a {}, but the id of {} is a {}", from.by, by.sql_type, from.model, id.sql_type);
            self.fault(place, fault, "give both the same type");
        }
    }

    fn wire_names(&mut self, model: &Model, table: &Table) {
        let mut seen = BTreeMap::new();
        for (name, column) in visible(model, &table.columns) {
            let place = format!("models.{}.rename", model.name);
            if name == "__class" {
                let fault = format!("`{}` would be called `__class`, which names the model", column.name);
                self.fault(place, fault, "give it another name here, or exclude it");
            } else if let Some(first) = seen.insert(name.clone(), &column.name) {
                let fault = format!("`{first}` and `{}` would both be called `{name}`", column.name);
                self.fault(place, fault, "give one of them another name here, or exclude it");
            }
        }
    }

    fn key(&mut self, model: &Model, table: &Table, key: &str) {
        let place = format!("models.{}.keys", model.name);
        let columns: Vec<_> = visible(model, &table.columns).filter(|(name, _)| name == key).collect();
        let namesake = table.columns.iter().find(|column| column.name == key);
        match (columns.as_slice(), namesake) {
            ([], Some(column)) if model.exclude.contains(&column.name) => {
                self.fault(place, format!("`{key}` is excluded"), "leave it out of `keys`, or of `exclude`");
            }
            ([], Some(column)) => {
                let name = model.rename.get(&column.name).cloned().unwrap_or_else(|| camel_case(&column.name));
                self.fault(place, format!("`{key}` is a column; keys are wire names"), format!("write `{name}`"));
            }
            ([], None) => {
                let fault = format!("no column of `{}` is called `{key}` on the wire", model.table);
                self.fault(place, fault, "name the camelCase of a column, or what `rename` calls it");
            }
            ([(_, column)], Some(other)) if other.name != column.name => {
                let fault =
                    format!("`{key}` is ambiguous: `{}` is called that, and a column has that name", column.name);
                self.fault(place, fault, "rename so that it means only one of them");
            }
            ([(_, column)], _) => {
                // An array is asked by one of its elements.
                let scalar = self.live.types.element(column.oid).unwrap_or(column.oid);
                self.comparable(place, column, scalar);
            }
            // Two columns of one wire name are a fault already.
            _ => {}
        }
    }

    /// Whether values of a type can be asked for by their text.
    fn comparable(&mut self, place: String, column: &Column, scalar: Oid) {
        let types = &self.live.types;
        let (name, sql_type) = (&column.name, &column.sql_type);
        let fault = if types.is_citext(scalar) {
            format!("`{name}` is citext: texts that differ in case are equal to it")
        } else if types.is_padded(scalar) {
            format!("`{name}` is a {sql_type}: blanks at its end don't count when it is compared")
        } else if !column.deterministic {
            format!("`{name}` has a nondeterministic collation: texts that differ are equal to it")
        } else if !has_plain_text(&types.codec(scalar)) {
            format!("`{name}` is a {sql_type}, which can't be asked for by its text")
        } else {
            return;
        };
        self.fault(
            place,
            fault,
            "use a column of another type, such as text, uuid or bigint, or name a view that casts it",
        );
    }

    fn family(&self, oid: Oid) -> Family {
        let types = &self.live.types;
        match types.codec(oid) {
            Codec::Int2 | Codec::Int4 | Codec::Int8 => Family::Integer,
            Codec::Text if !types.is_enum(oid) => Family::Text,
            _ => Family::Other(types.base(oid)),
        }
    }

    fn fault(&mut self, place: String, fault: impl Into<String>, mend: impl Into<String>) {
        self.faults.push(Fault { place, fault: fault.into(), mend: mend.into() });
    }
}

/// Scalars that are known by their text. Floats, intervals and the like are not: equal ones can have different texts.
pub fn has_plain_text(codec: &Codec) -> bool {
    use Codec::{Bool, Date, Inet, Int2, Int4, Int8, MacAddr, Numeric, Oid, Text, Time, Timestamp, TimestampTz, Uuid};
    matches!(
        codec,
        Bool | Int2
            | Int4
            | Int8
            | Oid
            | Numeric
            | Text
            | Uuid
            | Date
            | Time
            | Timestamp
            | TimestampTz
            | Inet
            | MacAddr
    )
}
