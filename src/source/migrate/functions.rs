//! The bodies of the trigger functions. What they must do, and why it suffices, stands in the room's own page.
//!
//! Groups travel between the functions as `text[]` in which the element `org:` stands for "everyone in the row's org":
//! a child may have an org column of its own, so only the last function, the one that writes, can name it.

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

    /// Finds what a row inherits from the parent it names.
    fn above(&self, index: usize) -> Function {
        let (model, parent, by_type) = self.edge(index);
        let (table, id) = (quote_table(&parent.table), quote_ident(&parent.id));
        let read = match &parent.from {
            None => format!(
                "SELECT {}, {} INTO org, groups FROM {table} AS t WHERE t.{id} = $1;",
                self.own_org(parent, "t").unwrap_or_default(),
                self.own_groups(parent, "t").unwrap_or_default(),
            ),
            Some(from) => format!(
                "SELECT {}, {} INTO org, groups FROM {table} AS t, LATERAL {}(t.{}) AS a WHERE t.{id} = $1;",
                self.own_org(parent, "t").unwrap_or_else(|| "a.org".into()),
                self.own_groups(parent, "t").unwrap_or_else(|| "a.groups".into()),
                self.call("above", parent),
                quote_ident(&from.by),
            ),
        };
        let body = format!(
            "
#variable_conflict use_column
BEGIN
  IF $1 IS NULL THEN RETURN; END IF;
  IF current_setting('transaction_isolation') <> 'read committed' THEN
    PERFORM {meet}('p', {prefix} || $1::text);
  END IF;
  {read}
END
",
            meet = qualified(self.schema, "headstart_meet"),
            prefix = quote_literal(&format!("{}:", parent.name)),
        );
        Function {
            name: names::object("above", &model.name),
            arguments: vec![("parent_id", by_type)],
            returns: "OUT org text, OUT groups text[]",
            settings: &[("row_security", "off")],
            body,
        }
    }

    /// Meets whoever moves a parent that a row begins to stand below: locks it and all above it, from the top down, as
    /// a cascade goes. What the row stood below before is left out; there the row itself is the meeting place.
    fn join(&self, index: usize) -> Function {
        let (model, parent, by_type) = self.edge(index);
        let (table, id) = (quote_table(&parent.table), quote_ident(&parent.id));
        let lock = format!("PERFORM 1 FROM {table} AS t WHERE t.{id} = $1 FOR KEY SHARE;");
        let gone = if self.found.enforced.contains(&index) {
            "
  -- The foreign key was checked against the newest rows, so the parent stands: this snapshot is too old to see it.
  IF NOT FOUND AND $3 AND current_setting('transaction_isolation') IN ('repeatable read', 'serializable')
     AND current_setting('session_replication_role') <> 'replica' THEN
    RAISE EXCEPTION 'could not serialize access: the parent is newer than this transaction''s snapshot'
      USING ERRCODE = 'serialization_failure';
  END IF;"
        } else {
            ""
        };
        // Whoever moves the parent now is waited for without a mark, or the two would wait for each other. The check of
        // a foreign key has waited already.
        let early = if self.found.enforced.contains(&index) {
            format!("\n  IF NOT $3 THEN {lock} END IF;")
        } else {
            format!("\n  {lock}")
        };
        let (mut variables, mut first, mut last) = (String::new(), String::new(), String::new());
        if let Some(from) = &parent.from {
            let by = quote_ident(&from.by);
            let next_type = &self.table(parent).columns[&from.by].sql_type;
            let next = self.call("join", parent);
            variables = format!("\n  next {next_type}; was {next_type}; now {next_type};");
            first = format!(
                "
  SELECT t.{by} INTO my.was FROM {table} AS t WHERE t.{id} = $2;
  SELECT t.{by} INTO my.next FROM {table} AS t WHERE t.{id} = $1;
  PERFORM {next}(my.next, my.was, $3);"
            );
            last = format!(
                "
  -- It may have been moved before it was locked.
  SELECT t.{by} INTO my.now FROM {table} AS t WHERE t.{id} = $1;
  IF my.now IS DISTINCT FROM my.next THEN PERFORM {next}(my.now, my.was, $3); END IF;"
            );
        }
        let body = format!(
            "
#variable_conflict use_column
<<my>>
DECLARE
  parent text := {prefix} || $1::text;{variables}
BEGIN
  IF $1 IS NULL OR $1 = $2 THEN RETURN; END IF;{first}{early}
  INSERT INTO {marks} (xid, side, parent) VALUES (pg_current_xact_id(), 'c', my.parent) ON CONFLICT DO NOTHING;
  {lock}
  IF NOT FOUND THEN
    PERFORM pg_advisory_xact_lock({ORPHAN_LOCKS}, hashtext(my.parent) & {mask});
    {lock}
  END IF;{gone}{last}
END
",
            prefix = quote_literal(&format!("{}:", parent.name)),
            mask = ORPHAN_BUCKETS - 1,
            marks = self.marks,
        );
        Function {
            name: names::object("join", &model.name),
            arguments: vec![("parent_id", by_type.clone()), ("was", by_type), ("checked", "boolean".into())],
            returns: "RETURNS void",
            settings: &[("row_security", "off")],
            body,
        }
    }

    /// The same before foreign keys are checked: that locks the nearest parent, and the locks would not be taken from
    /// the top down. It is done again after, for a parent that was committed in between.
    fn join_early(&self, index: usize) -> Function {
        let model = &self.catalog.models()[index];
        let body = format!(
            "
BEGIN
  {}
  RETURN NULL;
END
",
            self.meet(model, false)
        );
        trigger(names::object("early", &model.name), &[], body)
    }

    /// What the parents gave a row before this very transaction changed them.
    fn left(&self, index: usize) -> Function {
        let (model, parent, by_type) = self.edge(index);
        let further = parent.from.as_ref().map_or_else(String::new, |from| {
            format!(
                "
  RETURN QUERY SELECT {}, {} FROM {} AS t, LATERAL {}(t.{}) AS l WHERE t.{} = $1;",
                self.own_org(parent, "t").unwrap_or_else(|| "l.org".into()),
                self.own_groups(parent, "t").unwrap_or_else(|| "l.groups".into()),
                quote_table(&parent.table),
                self.call("left", parent),
                quote_ident(&from.by),
                quote_ident(&parent.id),
            )
        });
        let body = format!(
            "
#variable_conflict use_column
BEGIN
  RETURN QUERY SELECT m.org, m.groups FROM {} AS m
    WHERE m.xid = pg_current_xact_id() AND m.side = 'b' AND m.parent = {} || $1::text;{further}
END
",
            self.marks,
            quote_literal(&format!("{}:", parent.name)),
        );
        Function {
            name: names::object("left", &model.name),
            arguments: vec![("parent_id", by_type)],
            returns: "RETURNS TABLE (org text, groups text[])",
            settings: &[("row_security", "off")],
            body,
        }
    }

    /// Keeps what a parent gives its children, before it is moved or removed, for children that the same statement
    /// changes.
    fn before(&self, index: usize) -> Function {
        let model = &self.catalog.models()[index];
        let key = self.mark_key(model, "OLD");
        let keep = |org: &str, groups: &str| {
            format!(
                "INSERT INTO {} AS m (xid, side, parent, org, groups)
      SELECT pg_current_xact_id(), 'b', {key}, {org}, {groups} WHERE {org} IS NOT NULL
      ON CONFLICT (xid, side, parent, org) DO UPDATE
        SET groups = ARRAY(SELECT DISTINCT unnest(m.groups || EXCLUDED.groups));",
                self.marks
            )
        };
        let body = format!(
            "
#variable_conflict use_column
<<my>>
DECLARE
  was_org text; was_groups text[];
  it record;
BEGIN
  {was}
  {kept}{left}
  IF TG_OP = 'DELETE' THEN RETURN OLD; END IF;
  RETURN NEW;
END
",
            was = self.state(model, "OLD", "was"),
            kept = keep("my.was_org", "my.was_groups"),
            left = self.for_each_left(model, "OLD", &keep("my.it.org", "my.it.groups")),
        );
        trigger(names::object("before", &model.name), &[], body)
    }

    /// Logs the children of a row that came, went, or gives them other orgs or groups than before.
    fn moved(&self, index: usize) -> Function {
        let model = &self.catalog.models()[index];
        let (table, id) = (quote_table(&model.table), quote_ident(&model.id));
        let below = self.call("below", model);
        let meet = qualified(self.schema, "headstart_meet");
        let mark = |row: &str| {
            let key = self.mark_key(model, row);
            format!(
                "INSERT INTO {} (xid, side, parent) VALUES (pg_current_xact_id(), 'p', {key}) ON CONFLICT DO NOTHING;
    PERFORM {meet}('c', {key});",
                self.marks
            )
        };
        let body = format!(
            "
#variable_conflict use_column
<<my>>
DECLARE
  was_org text; was_groups text[];
  now_org text; now_groups text[];
  it record;
BEGIN
  IF TG_OP = 'UPDATE' THEN PERFORM 1 FROM {table} AS t WHERE t.{id} = NEW.{id} FOR UPDATE; END IF;
  IF TG_OP = 'INSERT' OR OLD.{id} IS DISTINCT FROM NEW.{id} AND TG_OP <> 'DELETE' THEN
    PERFORM pg_advisory_xact_lock_shared({ORPHAN_LOCKS}, hashtext({now_key}) & {mask});
  END IF;
  IF TG_OP <> 'INSERT' THEN
    {mark_old}
    {was}
  END IF;
  IF TG_OP <> 'DELETE' THEN
    {mark_new}
    {now}
  END IF;
  IF TG_OP = 'UPDATE' AND OLD.{id} = NEW.{id} AND my.was_org IS NOT DISTINCT FROM my.now_org THEN
    PERFORM {below}(NEW.{id}, my.now_org, ARRAY(SELECT DISTINCT unnest(my.was_groups || my.now_groups)));
  ELSE
    IF TG_OP <> 'INSERT' THEN PERFORM {below}(OLD.{id}, my.was_org, my.was_groups); END IF;
    IF TG_OP <> 'DELETE' THEN PERFORM {below}(NEW.{id}, my.now_org, my.now_groups); END IF;
  END IF;{left}
  RETURN NULL;
END
",
            now_key = self.mark_key(model, "NEW"),
            mask = ORPHAN_BUCKETS - 1,
            mark_old = mark("OLD"),
            mark_new = mark("NEW"),
            was = self.state(model, "OLD", "was"),
            now = self.state(model, "NEW", "now"),
            left = self.for_each_left(model, "OLD", &format!("PERFORM {below}(OLD.{id}, my.it.org, my.it.groups);")),
        );
        trigger(names::object("moved", &model.name), &[("row_security", "off")], body)
    }

    /// Logs everything that stands below a row, as having this org and these groups where it inherits them.
    ///
    /// A level at a time: its rows are locked by the ids of the level above, which is locked already, so none can come
    /// or go. (A join would lose a row that moved between two parents while it was waited for.)
    fn below(&self, index: usize) -> Function {
        let parent = &self.catalog.models()[index];
        let (mut variables, mut locks, mut inserts) = (String::new(), String::new(), String::new());
        for (child, depth) in descendants(self.catalog, index) {
            let lineage = self.catalog.lineage(child);
            let model_at = |place: usize| &self.catalog.models()[lineage.chain[place]];
            let by =
                |place: usize| model_at(place).from.as_ref().map_or_else(String::new, |from| quote_ident(&from.by));
            let model = model_at(0);
            let (table, id) = (quote_table(&model.table), quote_ident(&model.id));
            let condition = match depth {
                1 => format!("t0.{} = $1", by(0)),
                _ => format!("t0.{} = ANY (my.level_{})", by(0), lineage.chain[1]),
            };
            let _ = write!(locks, "\n  PERFORM 1 FROM {table} AS t0 WHERE {condition} FOR SHARE;");
            if self.catalog.children(child).next().is_some() {
                let _ = write!(variables, "\n  level_{child} {}[];", self.table(model).columns[&model.id].sql_type);
                let _ =
                    write!(locks, "\n  level_{child} := ARRAY(SELECT t0.{id} FROM {table} AS t0 WHERE {condition});");
            }
            let mut from = format!("{table} AS t0");
            for place in 1..=lineage.org.max(lineage.groups).min(depth - 1) {
                let here = model_at(place);
                let (table, id) = (quote_table(&here.table), quote_ident(&here.id));
                let _ = write!(from, " JOIN {table} AS t{place} ON t{place}.{id} = t{}.{}", place - 1, by(place - 1));
            }
            let own_org = |place: usize| self.own_org(model_at(place), &format!("t{place}")).unwrap_or_default();
            let own_groups = |place: usize| self.own_groups(model_at(place), &format!("t{place}")).unwrap_or_default();
            let org = if lineage.org < depth { own_org(lineage.org) } else { "$2".into() };
            let groups = if lineage.groups < depth { own_groups(lineage.groups) } else { "coalesce($3, '{}')".into() };
            let passes = self.passes(child, "t0");
            let _ = write!(
                inserts,
                "
  INSERT INTO {log} ({columns})
    SELECT {org}, {name}, t0.{id}::text, 'U', array_replace({groups}, 'org:', 'org:' || {org})
    FROM {from} WHERE {condition} AND {org} IS NOT NULL{passes};",
                log = self.log,
                columns = self.log_columns,
                name = quote_literal(&model.name),
            );
        }
        let body = format!(
            "
#variable_conflict use_column
<<my>>
DECLARE{variables}
BEGIN
  -- All is locked first and read by later statements, so that what is read is the newest of what was locked.{locks}{inserts}
END
"
        );
        let id_type = self.table(parent).columns[&parent.id].sql_type.clone();
        Function {
            name: names::object("below", &parent.name),
            arguments: vec![("id", id_type), ("org", "text".into()), ("groups", "text[]".into())],
            returns: "RETURNS void",
            settings: &[("row_security", "off")],
            body,
        }
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

    /// Meets the transactions that left a mark and that this one's snapshot can't see: waits for those that are open,
    /// if they made children (`c`), and fails with `serialization_failure` when one has committed and this transaction
    /// can't take a newer snapshot.
    ///
    /// A unique index is checked against the newest rows, whatever the snapshot: an INSERT of the mark that a
    /// transaction may have left waits for it if it did and is open, and then conflicts if it committed.
    fn meet_marks(&self) -> Function {
        let body = format!(
            "
#variable_conflict use_column
<<my>>
DECLARE
  sight pg_snapshot := pg_current_snapshot();
  fixed boolean := current_setting('transaction_isolation') IN ('repeatable read', 'serializable');
  unseen xid8[];
  next bigint;
  status text;
BEGIN
  IF NOT my.fixed AND $1 <> 'c' THEN RETURN; END IF;
  unseen := ARRAY(SELECT x FROM pg_snapshot_xip(my.sight) AS x
                  WHERE pg_xact_status(x) = 'committed' OR $1 = 'c' AND pg_xact_status(x) = 'in progress');
  -- `xmax` is one past the newest that has ended: others beyond may be open.
  next := pg_snapshot_xmax(my.sight)::text::bigint;
  BEGIN
    LOOP
      status := pg_xact_status(my.next::text::xid8);
      IF my.status = 'committed' OR $1 = 'c' AND my.status = 'in progress' THEN
        unseen := my.unseen || my.next::text::xid8;
      END IF;
      next := my.next + 1;
      IF cardinality(my.unseen) > 100000 THEN
        RAISE EXCEPTION 'could not serialize access: this transaction''s snapshot is too old for the change log'
          USING ERRCODE = 'serialization_failure';
      END IF;
    END LOOP;
  EXCEPTION WHEN invalid_parameter_value THEN
    NULL; -- That one is still to be given out: the end of the list.
  END;
  IF cardinality(my.unseen) = 0 THEN RETURN; END IF;
  -- The rows that this makes are taken back at once.
  BEGIN
    INSERT INTO {marks} (xid, side, parent) SELECT x, $1, $2 FROM unnest(my.unseen) AS x
      WHERE x <> pg_current_xact_id() ON CONFLICT DO NOTHING;
    RAISE EXCEPTION USING ERRCODE = 'HS000';
  EXCEPTION WHEN SQLSTATE 'HS000' THEN
    NULL;
  END;
END
",
            marks = self.marks
        );
        Function {
            name: "headstart_meet".into(),
            arguments: vec![("side", "\"char\"".into()), ("parent", "text".into())],
            returns: "RETURNS void",
            settings: &[],
            body,
        }
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
