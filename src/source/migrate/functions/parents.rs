//! The functions of models that others inherit from: when a parent changes what it gives, everything below it is logged.

use std::fmt::Write as _;

use super::{Function, ORPHAN_BUCKETS, ORPHAN_LOCKS, Writer, descendants, trigger};
use crate::source::migrate::names::{self, qualified, quote_ident, quote_literal, quote_table};

impl Writer<'_> {
    /// What the parents gave a row before this very transaction changed them.
    pub(super) fn left(&self, index: usize) -> Function {
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
    pub(super) fn before(&self, index: usize) -> Function {
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
    pub(super) fn moved(&self, index: usize) -> Function {
        let model = &self.catalog.models()[index];
        let (table, id) = (quote_table(&model.table), quote_ident(&model.id));
        let below = self.call("below", model);
        let meet = qualified(self.schema, "headstart_meet");
        let mark = |row: &str| {
            let key = self.mark_key(model, row);
            format!(
                "INSERT INTO {} (xid, side, parent) VALUES (pg_current_xact_id(), 'p', {key}) ON CONFLICT DO NOTHING;
    PERFORM {meet}('c', {key}, true);",
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
    pub(super) fn below(&self, index: usize) -> Function {
        let parent = &self.catalog.models()[index];
        let (mut variables, mut locks, mut inserts) = (String::new(), String::new(), String::new());
        // Called by their places below this row, so that a model that stands elsewhere changes no name.
        let below: Vec<(usize, usize)> = descendants(self.catalog, index).collect();
        let level = |model: usize| {
            below.iter().position(|(child, _)| *child == model).expect("what stands between is below this row too")
        };
        for (child, depth) in below.iter().copied() {
            let lineage = self.catalog.lineage(child);
            let model_at = |place: usize| &self.catalog.models()[lineage.chain[place]];
            let by =
                |place: usize| model_at(place).from.as_ref().map_or_else(String::new, |from| quote_ident(&from.by));
            let model = model_at(0);
            let (table, id) = (quote_table(&model.table), quote_ident(&model.id));
            let condition = match depth {
                1 => format!("t0.{} = $1", by(0)),
                _ => format!("t0.{} = ANY (my.level_{})", by(0), level(lineage.chain[1])),
            };
            let _ = write!(locks, "\n  PERFORM 1 FROM {table} AS t0 WHERE {condition} FOR SHARE;");
            if self.catalog.children(child).next().is_some() {
                let level = level(child);
                let _ = write!(variables, "\n  level_{level} {}[];", self.table(model).columns[&model.id].sql_type);
                let _ =
                    write!(locks, "\n  level_{level} := ARRAY(SELECT t0.{id} FROM {table} AS t0 WHERE {condition});");
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
}
