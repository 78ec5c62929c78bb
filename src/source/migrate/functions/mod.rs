//! The bodies of the trigger functions. What they must do, and why it suffices, stands in the room's own page.
//!
//! Groups travel between the functions as `text[]` in which the element `org:` stands for "everyone in the row's org":
//! a child may have an org column of its own, so only the last function, the one that writes, can name it.

mod meeting;
mod parents;

use std::fmt::Write as _;

use crate::model::catalog::{Catalog, Membership, Model, Ungrouped};
use crate::source::migrate::found::{Found, FoundTable};
use crate::source::migrate::names::{self, qualified, quote_ident, quote_literal, quote_table};

/// The first half of the advisory locks where an orphan meets the parent that is just being inserted.
const ORPHAN_LOCKS: i32 = 0x4845_4144;

/// How many such locks there are. A transaction may hold them all, so they must be few; whoever shares one by chance
/// only waits.
const ORPHAN_BUCKETS: i32 = 64;

/// One function of the log.
#[derive(Clone, Debug)]
pub struct Function {
    /// Its name, in the log's schema.
    pub name: String,
    /// Names and types of its arguments.
    pub arguments: Vec<(&'static str, String)>,
    /// The `RETURNS` clause, if any; `OUT` arguments stand here.
    returns: &'static str,
    /// Settings beside the search path.
    settings: &'static [(&'static str, &'static str)],
    /// The source text.
    pub body: String,
}

impl Function {
    /// The types of its arguments, as `oidvectortypes` prints them.
    pub fn types(&self) -> String {
        self.arguments.iter().map(|(_, sql_type)| sql_type.as_str()).collect::<Vec<_>>().join(", ")
    }

    /// Its `SET` clauses as `pg_proc.proconfig` holds them.
    pub fn settings(&self) -> Vec<String> {
        let path = ("search_path", "pg_catalog, pg_temp");
        std::iter::once(&path).chain(self.settings).map(|(name, value)| format!("{name}={value}")).collect()
    }

    /// The statements that make it, or replace what it was. The search path ends in `pg_temp`, which else would be
    /// searched first (PostgreSQL, CREATE FUNCTION, "Writing SECURITY DEFINER Functions Safely").
    pub fn definition(&self, schema: &str) -> String {
        let name = qualified(schema, &self.name);
        let arguments =
            self.arguments.iter().map(|(name, sql_type)| format!("{name} {sql_type}")).collect::<Vec<_>>().join(", ");
        let arguments = match self.returns.strip_prefix("OUT") {
            Some(_) => format!("{arguments}, {}", self.returns),
            None => arguments,
        };
        let returns = if self.returns.starts_with("OUT") { "" } else { self.returns };
        let settings: String = self.settings.iter().map(|(name, value)| format!(" SET {name} = {value}")).collect();
        let mut tag = "$headstart$".to_owned();
        while self.body.contains(&tag) {
            tag.insert(tag.len() - 1, '_');
        }
        format!(
            "CREATE OR REPLACE FUNCTION {name}({arguments}) {returns} LANGUAGE plpgsql SECURITY DEFINER\n\
             SET search_path = pg_catalog, pg_temp{settings} AS {tag}{}{tag};\n\
             REVOKE ALL ON FUNCTION {name}({}) FROM PUBLIC;\n",
            self.body,
            self.types()
        )
    }
}

/// Writes the functions of one catalog for the tables that were found.
pub struct Writer<'a> {
    catalog: &'a Catalog,
    found: &'a Found,
    schema: &'a str,
    log: String,
    log_columns: String,
    marks: String,
}

impl<'a> Writer<'a> {
    /// Ready to write.
    pub fn new(catalog: &'a Catalog, found: &'a Found) -> Self {
        let log = catalog.log();
        let columns = [&log.org, &log.model, &log.model_id, &log.action, &log.groups];
        Self {
            catalog,
            found,
            schema: &log.table.schema,
            log: quote_table(&log.table),
            log_columns: columns.map(|column| quote_ident(column)).join(", "),
            marks: quote_table(&names::marks_table(log)),
        }
    }

    /// What every catalog needs.
    pub fn common(&self) -> Vec<Function> {
        vec![self.write(), self.meet_marks(), self.refuse_truncate()]
    }

    /// What a membership entry needs: its trigger function.
    pub fn membership(&self, entry: &Membership) -> Function {
        let (org, user) = (quote_ident(&entry.org), quote_ident(&entry.user));
        let group = quote_ident(&entry.group);
        let row = |side: &str| format!("ROW({side}.{org}, {side}.{user}, {side}.{group})::record");
        let insert = |side: &str| {
            format!(
                "INSERT INTO {} ({}) VALUES ({side}.{org}::text, NULL, NULL, 'G', ARRAY['user:' || {side}.{user}::text]);",
                self.log, self.log_columns
            )
        };
        let same_user = format!("ROW(OLD.{org}, OLD.{user})::record *= ROW(NEW.{org}, NEW.{user})::record");
        let body = format!(
            "
BEGIN
  IF TG_OP = 'UPDATE' AND {before} *= {after} THEN RETURN NULL; END IF;
  IF TG_OP <> 'INSERT' AND OLD.{org} IS NOT NULL AND OLD.{user} IS NOT NULL THEN
    {left}
  END IF;
  IF TG_OP <> 'DELETE' AND NEW.{org} IS NOT NULL AND NEW.{user} IS NOT NULL
     AND NOT (TG_OP = 'UPDATE' AND {same_user}) THEN
    {joined}
  END IF;
  RETURN NULL;
END
",
            before = row("OLD"),
            after = row("NEW"),
            left = insert("OLD"),
            joined = insert("NEW"),
        );
        trigger(names::membership(entry), &[], body)
    }

    /// What a model needs: the function that logs its own rows, and those that tie it to parents and children.
    pub fn model(&self, index: usize) -> Vec<Function> {
        let mut functions = vec![self.log_rows(index)];
        if self.catalog.models()[index].from.is_some() {
            functions.push(self.above(index));
            functions.push(self.left(index));
            functions.push(self.join(index));
            if stands_deep(self.catalog, index) {
                functions.push(self.join_early(index));
            }
        }
        if descendants(self.catalog, index).next().is_some() {
            functions.push(self.before(index));
            functions.push(self.moved(index));
            functions.push(self.below(index));
        }
        functions
    }

    fn call(&self, what: &str, model: &Model) -> String {
        qualified(self.schema, &names::object(what, &model.name))
    }

    fn table(&self, model: &Model) -> &FoundTable {
        &self.found.tables[&model.table]
    }

    /// The org of a row, if the model has a column for it.
    fn own_org(&self, model: &Model, row: &str) -> Option<String> {
        model.org.as_ref().map(|org| format!("{row}.{}::text", quote_ident(org)))
    }

    /// The groups of a row, if the model does not inherit them.
    fn own_groups(&self, model: &Model, row: &str) -> Option<String> {
        if model.groups.is_empty() {
            return model.from.is_none().then(|| "ARRAY['org:']".to_owned());
        }
        let table = self.table(model);
        let mut scalars = Vec::new();
        let mut arrays = String::new();
        for (kind, column) in &model.groups {
            let (prefix, name) = (quote_literal(&format!("{kind}:")), quote_ident(column));
            if table.columns.get(column).is_some_and(|column| column.array) {
                let _ = write!(
                    arrays,
                    " || ARRAY(SELECT {prefix} || element::text FROM unnest({row}.{name}) AS element \
                     WHERE element IS NOT NULL)"
                );
            } else {
                scalars.push(format!("{prefix} || {row}.{name}::text"));
            }
        }
        let all = format!("array_remove(ARRAY[{}]::text[], NULL){arrays}", scalars.join(", "));
        Some(match model.ungrouped {
            Ungrouped::Nobody => all,
            Ungrouped::Org => format!("coalesce(nullif({all}, '{{}}'), ARRAY['org:'])"),
        })
    }

    /// Statements that fill `<into>_org` and `<into>_groups` with the state of the row `row`.
    fn state(&self, model: &Model, row: &str, into: &str) -> String {
        let (org, groups) = (self.own_org(model, row), self.own_groups(model, row));
        let Some(from) = &model.from else {
            let (org, groups) = (org.unwrap_or_default(), groups.unwrap_or_default());
            return format!("my.{into}_org := {org}; my.{into}_groups := {groups};");
        };
        format!(
            "SELECT {}, {} INTO my.{into}_org, my.{into}_groups FROM {}({row}.{}) AS a;",
            org.unwrap_or_else(|| "a.org".into()),
            groups.unwrap_or_else(|| "coalesce(a.groups, '{}')".into()),
            self.call("above", model),
            quote_ident(&from.by),
        )
    }

    /// The condition under which a row exists for clients, as an addition to an `IF`.
    fn passes(&self, index: usize, row: &str) -> String {
        match self.found.filters.get(&index) {
            Some(Ok(filter)) => format!(" AND (SELECT {} FROM (SELECT {row}.*) AS it)", filter.text),
            _ => String::new(),
        }
    }

    /// A statement that lets the row meet whoever moves a parent it did not stand below before. `checked`: the foreign
    /// key, if there is one, was checked already.
    fn meet(&self, model: &Model, checked: bool) -> String {
        model.from.as_ref().map_or_else(String::new, |from| {
            let by = quote_ident(&from.by);
            format!("PERFORM {}(NEW.{by}, OLD.{by}, {checked});", self.call("join", model))
        })
    }

    /// Whether this very transaction moved or removed any parent.
    fn moved_here(&self) -> String {
        format!("EXISTS (SELECT FROM {} AS m WHERE m.xid = pg_current_xact_id() AND m.side = 'b')", self.marks)
    }

    /// A loop over what the parents gave the row before this very transaction changed them.
    fn for_each_left(&self, model: &Model, row: &str, act: &str) -> String {
        let Some(from) = &model.from else { return String::new() };
        format!(
            "
  IF TG_OP <> 'INSERT' AND {moved_here} THEN
    FOR my.it IN SELECT {org} AS org, {groups} AS groups FROM {left}({row}.{by}) AS l LOOP
      {act}
    END LOOP;
  END IF;",
            moved_here = self.moved_here(),
            org = self.own_org(model, row).unwrap_or_else(|| "l.org".into()),
            groups = self.own_groups(model, row).unwrap_or_else(|| "l.groups".into()),
            left = self.call("left", model),
            by = quote_ident(&from.by),
        )
    }

    /// Logs a model's own rows.
    fn log_rows(&self, index: usize) -> Function {
        let model = &self.catalog.models()[index];
        let (id, name) = (quote_ident(&model.id), quote_literal(&model.name));
        let write = qualified(self.schema, "headstart_write");
        let left = self.for_each_left(
            model,
            "OLD",
            &format!(
                "PERFORM {write}({name}, OLD.{id}::text, my.it.org, my.it.groups, NULL::text, NULL::text, NULL::text[]);"
            ),
        );
        let body = format!(
            "
#variable_conflict use_column
<<my>>
DECLARE
  was_id text; was_org text; was_groups text[];
  now_id text; now_org text; now_groups text[];
  it record;
BEGIN
  IF TG_OP = 'UPDATE' AND OLD *= NEW THEN RETURN NULL; END IF;
  IF TG_OP <> 'DELETE' THEN
    {meet}
  END IF;
  IF TG_OP <> 'INSERT'{was_passes} THEN
    my.was_id := OLD.{id}::text;
    {was}
  END IF;
  IF TG_OP <> 'DELETE'{now_passes} THEN
    my.now_id := NEW.{id}::text;
    {now}
  END IF;
  PERFORM {write}({name}, my.was_id, my.was_org, my.was_groups, my.now_id, my.now_org, my.now_groups);{left}
  RETURN NULL;
END
",
            meet = self.meet(model, true),
            was_passes = self.passes(index, "OLD"),
            now_passes = self.passes(index, "NEW"),
            was = self.state(model, "OLD", "was"),
            now = self.state(model, "NEW", "now"),
        );
        trigger(names::object("log", &model.name), &[], body)
    }

    /// Writes the lines of one row: from what it was for clients to what it is. Nulls: not there.
    fn write(&self) -> Function {
        let insert = |org: &str, id: &str, letter: &str, groups: &str| {
            format!(
                "INSERT INTO {} ({})\n      VALUES ({org}, $1, {id}, '{letter}', array_replace({groups}, 'org:', 'org:' || {org}));",
                self.log, self.log_columns
            )
        };
        let body = format!(
            "
#variable_conflict use_column
BEGIN
  IF $2 = $5 AND $3 = $6 THEN
    IF $4 = $7 THEN
      {unmoved}
    ELSE
      {updated}
    END IF;
    RETURN;
  END IF;
  IF $2 IS NOT NULL AND $3 IS NOT NULL THEN
    {deleted}
  END IF;
  IF $5 IS NOT NULL AND $6 IS NOT NULL THEN
    {inserted}
  END IF;
END
",
            unmoved = insert("$6", "$5", "U", "$7"),
            updated = insert("$6", "$5", "U", "ARRAY(SELECT DISTINCT unnest($4 || $7))"),
            deleted = insert("$3", "$2", "D", "$4"),
            inserted = insert("$6", "$5", "I", "$7"),
        );
        let names = ["model", "was_id", "was_org", "was_groups", "now_id", "now_org", "now_groups"];
        let arguments = names
            .map(|name| (name, if name.ends_with("groups") { "text[]".to_owned() } else { "text".to_owned() }))
            .to_vec();
        Function { name: "headstart_write".into(), arguments, returns: "RETURNS void", settings: &[], body }
    }

    fn refuse_truncate(&self) -> Function {
        let body = "
BEGIN
  RAISE EXCEPTION 'TRUNCATE of %.% is refused: clients would keep its rows', TG_TABLE_SCHEMA, TG_TABLE_NAME
    USING ERRCODE = 'feature_not_supported',
          HINT = 'The table is in Headstart''s catalog, and its change log holds rows one by one. Use DELETE.';
END
";
        trigger("headstart_refuse_truncate".into(), &[], body.into())
    }

    /// The text that marks name a row by.
    fn mark_key(&self, model: &Model, row: &str) -> String {
        format!("{} || {row}.{}::text", quote_literal(&format!("{}:", model.name)), quote_ident(&model.id))
    }

    /// A model with its parent, and the type of the column that names it.
    fn edge(&self, index: usize) -> (&Model, &Model, String) {
        let model = &self.catalog.models()[index];
        let from = model.from.as_ref().expect("only models with `from` have an edge");
        let (_, parent) = self.catalog.model(&from.model).expect("a checked catalog has every parent");
        (model, parent, self.table(model).columns[&from.by].sql_type.clone())
    }
}

/// The models whose rows inherit through this one, with how many steps they stand below it; nearest first.
pub fn descendants(catalog: &Catalog, index: usize) -> impl Iterator<Item = (usize, usize)> {
    let mut found: Vec<(usize, usize)> = (0..catalog.models().len())
        .filter_map(|child| {
            let depth = catalog.lineage(child).chain.iter().position(|model| *model == index)?;
            (depth > 0).then_some((child, depth))
        })
        .collect();
    found.sort_by_key(|(_, depth)| *depth);
    found.into_iter()
}

/// Whether a model's parent has a parent too.
pub fn stands_deep(catalog: &Catalog, index: usize) -> bool {
    let parent = catalog.models()[index].from.as_ref().and_then(|from| catalog.model(&from.model));
    parent.is_some_and(|(_, parent)| parent.from.is_some())
}

fn trigger(name: String, settings: &'static [(&'static str, &'static str)], body: String) -> Function {
    Function { name, arguments: Vec::new(), returns: "RETURNS trigger", settings, body }
}
