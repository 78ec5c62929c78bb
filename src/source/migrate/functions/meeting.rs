//! How a row and whoever moves its parents meet, so that neither misses what the other did.

use super::{Function, ORPHAN_BUCKETS, ORPHAN_LOCKS, Writer, trigger};
use crate::source::migrate::names::{self, qualified, quote_ident, quote_literal, quote_table};

impl Writer<'_> {
    /// Finds what a row inherits from the parent it names.
    pub(super) fn above(&self, index: usize) -> Function {
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
    PERFORM {meet}('p', {prefix} || $1::text, false);
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
    pub(super) fn join(&self, index: usize) -> Function {
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
  parent text := {prefix} || $1::text;
  alone boolean;{variables}
BEGIN
  IF $1 IS NULL OR $1 = $2 THEN RETURN; END IF;{first}{early}
  INSERT INTO {marks} (xid, side, parent) VALUES (pg_current_xact_id(), 'c', my.parent) ON CONFLICT DO NOTHING;
  {lock}
  IF NOT FOUND THEN
    PERFORM pg_advisory_xact_lock({ORPHAN_LOCKS}, hashtext(my.parent) & {mask});
    {lock}
  END IF;{gone}
  -- Nobody updates the parent now if only this transaction locks it. (A set of lockers has an id of another kind, which
  -- may be the same number.) Else the lock may have been lost to a mover, who may have looked before the mark was left.
  SELECT t.xmax = pg_current_xact_id()::xid AND mxid_age(t.xmax) <= 0 INTO my.alone FROM {table} AS t WHERE t.{id} = $1;
  IF NOT my.alone THEN PERFORM {meet}('p', my.parent, true); END IF;{last}
END
",
            prefix = quote_literal(&format!("{}:", parent.name)),
            mask = ORPHAN_BUCKETS - 1,
            marks = self.marks,
            meet = qualified(self.schema, "headstart_meet"),
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
    pub(super) fn join_early(&self, index: usize) -> Function {
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

    /// Meets the transactions that left a mark and that this one's snapshot can't see: waits for those that are open, if
    /// asked to, and fails with `serialization_failure` when one has committed and this transaction can't take a newer
    /// snapshot.
    ///
    /// A unique index is checked against the newest rows, whatever the snapshot: an INSERT of the mark that a
    /// transaction may have left waits for it if it did and is open, and then conflicts if it committed.
    pub(super) fn meet_marks(&self) -> Function {
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
  IF NOT my.fixed AND NOT $3 THEN RETURN; END IF;
  unseen := ARRAY(SELECT x FROM pg_snapshot_xip(my.sight) AS x
                  WHERE pg_xact_status(x) = 'committed' OR $3 AND pg_xact_status(x) = 'in progress');
  -- `xmax` is one past the newest that has ended: others beyond may be open.
  next := pg_snapshot_xmax(my.sight)::text::bigint;
  BEGIN
    LOOP
      status := pg_xact_status(my.next::text::xid8);
      IF my.status = 'committed' OR $3 AND my.status = 'in progress' THEN
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
            arguments: vec![("side", "\"char\"".into()), ("parent", "text".into()), ("open", "boolean".into())],
            returns: "RETURNS void",
            settings: &[],
            body,
        }
    }
}
