//! Catalogs that the tables don't fit.

use crate::support::postgres::Database;
use crate::support::reader::{layout, pool};

#[tokio::test]
async fn every_fault_of_a_catalog_is_named_at_once() {
    let database = Database::create().await;
    database
        .execute(
            "CREATE EXTENSION citext;
             CREATE COLLATION loose (provider = icu, locale = 'und-u-ks-level2', deterministic = false);
             CREATE TABLE a (id uuid PRIMARY KEY, org_id uuid, team jsonb, a_b int, \"aB\" int, __class int, email citext,
                             code char(3), name text COLLATE loose, spans interval[], squad int, other_team int);
             CREATE TABLE b (id bigint PRIMARY KEY, org_id bigint, parent text);
             CREATE MATERIALIZED VIEW m AS SELECT 1 AS id, 'o' AS org;
             CREATE TABLE member (org text);",
        )
        .await;
    let catalog = r#"
        [[models]]
        name = "A"
        table = "a"
        id = "id"
        org = "org_id"
        groups = { team = "team", user = "userId" }
        load = "lazy"
        keys = ["email", "code", "name", "spans", "a_b", "squad", "nothing", "orgId"]
        exclude = ["gone"]
        rename = { "missing" = "x", other_team = "squad", squad = "team2" }

        [[models]]
        name = "B"
        table = "b"
        id = "ID"
        org = "org_id"
        from = { model = "A", by = "parent" }
        load = "lazy"

        [[models]]
        name = "C"
        table = "app.c"
        id = "id"
        org = "org"
        load = "lazy"

        [[models]]
        name = "M"
        table = "m"
        id = "id"
        org = "org"
        load = "lazy"

        [[access.memberships]]
        kind = "team"
        table = "member"
        org = "org"
        user = "user_id"
        group = "team_id"
    "#;
    let (pool, _tasks) = pool(&database, 1);
    let faults = layout(&pool, catalog).await.unwrap_err();
    let expected = [
        "models.A.groups.team: a jsonb can't name sync groups",
        "models.A.groups.user: `a` has no column `userId`: name one of its columns: id, org_id, team, a_b",
        "models.A.exclude: `a` has no column `gone`",
        "models.A.rename: `a` has no column `missing`",
        "models.A.rename: `a_b` and `aB` would both be called `aB`",
        "models.A.rename: `__class` would be called `__class`",
        "models.A.keys: `email` is citext",
        "models.A.keys: `code` is a character(3)",
        "models.A.keys: `name` has a nondeterministic collation",
        "models.A.keys: `spans` is a interval[]",
        "models.A.keys: `a_b` is a column; keys are wire names: write `aB`",
        "models.A.keys: `squad` is ambiguous",
        "models.A.keys: no column of `a` is called `nothing` on the wire",
        "models.B.id: `b` has no column `ID`: write `id`, as the table has it",
        "models.B.org: `org_id` is a bigint, but at models.A.org the org is a uuid",
        "models.B.from.by: `parent` is a text, but the id of A is a uuid",
        "models.C.table: there is no table or view `c` in schema `app`",
        "models.M.table: `m` is a materialized view",
        "models.M.org: `org` is a text, but at models.A.org the org is a uuid",
        "access.memberships[0].org: `org` is a text, but at models.A.org the org is a uuid",
        "access.memberships[0].user: `member` has no column `user_id`",
        "access.memberships[0].group: `member` has no column `team_id`",
    ];
    for (fault, expected) in faults.iter().zip(expected) {
        assert!(fault.starts_with(expected), "{fault}\ninstead of\n{expected}");
    }
    assert_eq!(faults.len(), expected.len(), "{faults:#?}");
}
