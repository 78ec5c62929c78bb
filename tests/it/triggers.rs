//! What each kind of write leaves in the log.

use headstart::source::SourceError;
use headstart::source::migrate::{MigrateError, apply};
use headstart::source::postgres::log::{Unlogged, unlogged};
use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

use crate::support::cluster;
use crate::support::postgres::Database;
use crate::tracker::{self, Log};

async fn code(client: &Client, sql: &str) -> SqlState {
    client.batch_execute(sql).await.expect_err("refused").code().expect("PostgreSQL's word").clone()
}

#[tokio::test]
async fn rows_are_logged_with_old_and_new_groups() {
    let (database, client) = tracker::database().await;
    let mut log = Log::follow(&database).await;
    let insert = "INSERT INTO issue VALUES ('i1', 'o1', 'a', '{u1,NULL,u2}')";
    assert_eq!(log.after(&client, insert).await, ["o1 I Issue i1 team:a,user:u1,user:u2"]);
    let update = "UPDATE issue SET title = 'x' WHERE id = 'i1'";
    assert_eq!(log.after(&client, update).await, ["o1 U Issue i1 team:a,user:u1,user:u2"]);
    assert!(log.after(&client, update).await.is_empty(), "an update that changes nothing is no action");
    let regroup = "UPDATE issue SET team_id = 'b', watchers = NULL WHERE id = 'i1'";
    assert_eq!(log.after(&client, regroup).await, ["o1 U Issue i1 team:a,team:b,user:u1,user:u2"]);
    let ungroup = "UPDATE issue SET team_id = NULL WHERE id = 'i1'";
    assert_eq!(log.after(&client, ungroup).await, ["o1 U Issue i1 team:b"]);
    let hidden = "UPDATE issue SET title = 'nobody sees this' WHERE id = 'i1'";
    assert_eq!(log.after(&client, hidden).await, ["o1 U Issue i1 "]);
    let org = "UPDATE issue SET organization_id = 'o2', team_id = 'c' WHERE id = 'i1'";
    assert_eq!(log.after(&client, org).await, ["o1 D Issue i1 ", "o2 I Issue i1 team:c"]);
    let id = "UPDATE issue SET id = 'i2' WHERE id = 'i1'";
    assert_eq!(log.after(&client, id).await, ["o2 D Issue i1 team:c", "o2 I Issue i2 team:c"]);
    assert_eq!(log.after(&client, "DELETE FROM issue").await, ["o2 D Issue i2 team:c"]);
}

#[tokio::test]
async fn a_filter_lets_rows_come_and_go() {
    let (database, client) = tracker::database().await;
    let mut log = Log::follow(&database).await;
    assert!(log.after(&client, "INSERT INTO issue VALUES ('i1', 'o1', 'a', NULL, 't', true)").await.is_empty());
    assert!(log.after(&client, "UPDATE issue SET title = 'x'").await.is_empty());
    assert_eq!(log.after(&client, "UPDATE issue SET archived = false").await, ["o1 I Issue i1 team:a"]);
    assert_eq!(log.after(&client, "UPDATE issue SET archived = true").await, ["o1 D Issue i1 team:a"]);
    assert!(log.after(&client, "DELETE FROM issue").await.is_empty());
}

#[tokio::test]
async fn children_carry_what_their_parents_give() {
    let (database, client) = tracker::database().await;
    let mut log = Log::follow(&database).await;
    client
        .batch_execute("INSERT INTO issue VALUES ('i1', 'o1', 'a'), ('i2', 'o1', 'b'), ('i3', 'o2', 'c')")
        .await
        .unwrap();
    log.new_lines().await;
    let insert = "INSERT INTO comment VALUES ('c1', 'i1'); INSERT INTO reaction VALUES ('r1', 'c1')";
    assert_eq!(log.after(&client, insert).await, ["o1 I Comment c1 team:a", "o1 I Reaction r1 team:a"]);
    let edit = "UPDATE reaction SET emoji = '!'; UPDATE comment SET body = 'x'";
    assert_eq!(log.after(&client, edit).await, ["o1 U Reaction r1 team:a", "o1 U Comment c1 team:a"]);
    let other_issue = "UPDATE comment SET issue_id = 'i2'";
    assert_eq!(
        log.after(&client, other_issue).await,
        ["o1 U Comment c1 team:a,team:b", "o1 U Reaction r1 team:a,team:b"]
    );
    let other_team = "UPDATE issue SET team_id = 'd' WHERE id = 'i2'";
    assert_eq!(
        log.after(&client, other_team).await,
        ["o1 U Issue i2 team:b,team:d", "o1 U Comment c1 team:b,team:d", "o1 U Reaction r1 team:b,team:d"]
    );
    assert_eq!(log.after(&client, "UPDATE issue SET title = 'x' WHERE id = 'i2'").await, ["o1 U Issue i2 team:d"]);
    let other_org = "UPDATE comment SET issue_id = 'i3'";
    assert_eq!(
        log.after(&client, other_org).await,
        ["o1 D Comment c1 team:d", "o2 I Comment c1 team:c", "o1 U Reaction r1 team:d", "o2 U Reaction r1 team:c"]
    );
    let orphan = "UPDATE comment SET issue_id = NULL";
    assert_eq!(log.after(&client, orphan).await, ["o2 D Comment c1 team:c", "o2 U Reaction r1 team:c"]);
    let back = "UPDATE comment SET issue_id = 'i1'";
    assert_eq!(log.after(&client, back).await, ["o1 I Comment c1 team:a", "o1 U Reaction r1 team:a"]);
    assert_eq!(log.after(&client, "DELETE FROM reaction").await, ["o1 D Reaction r1 team:a"]);
}

/// What one statement, or a cascade, does to parent and child at once.
#[tokio::test]
async fn a_child_that_goes_with_its_parent_is_logged() {
    for tables in [tracker::TABLES.to_owned(), tracker::loose_tables()] {
        let (database, client) = tracker::with(&tables, tracker::CATALOG).await;
        let mut log = Log::follow(&database).await;
        let rows = "INSERT INTO issue VALUES ('i1', 'o1', 'a'); INSERT INTO comment VALUES ('c1', 'i1');
                    INSERT INTO reaction VALUES ('r1', 'c1')";
        let told = |lines: Vec<String>| {
            for row in ["Comment c1", "Reaction r1"] {
                let named = lines.iter().any(|line| line.starts_with("o1 ") && line.contains(&format!("{row} team:a")));
                assert!(named, "{row} is not in {lines:?}");
            }
        };
        for (statement, rest) in [
            ("DELETE FROM issue", "DELETE FROM reaction; DELETE FROM comment"),
            ("WITH c AS (DELETE FROM comment), r AS (DELETE FROM reaction) DELETE FROM issue", ""),
            ("WITH i AS (DELETE FROM issue RETURNING 1), r AS (DELETE FROM reaction) DELETE FROM comment", ""),
            ("WITH i AS (DELETE FROM issue RETURNING 1), c AS (DELETE FROM comment) DELETE FROM reaction", ""),
            (
                "WITH i AS (UPDATE issue SET team_id = 'b' RETURNING 1), c AS (DELETE FROM comment) \
                 DELETE FROM reaction",
                "DELETE FROM issue",
            ),
            (
                "WITH i AS (UPDATE issue SET organization_id = 'o2', team_id = 'b'), c AS (DELETE FROM comment) \
                 DELETE FROM reaction",
                "DELETE FROM issue",
            ),
            ("BEGIN; DELETE FROM issue; DELETE FROM comment; DELETE FROM reaction; COMMIT", ""),
        ] {
            client.batch_execute(rows).await.unwrap();
            log.new_lines().await;
            told(log.after(&client, statement).await);
            client.batch_execute(rest).await.unwrap();
        }
    }
}

#[tokio::test]
async fn changed_ids_take_their_children_along() {
    let (database, client) = tracker::database().await;
    let mut log = Log::follow(&database).await;
    client
        .batch_execute("INSERT INTO issue VALUES ('i1', 'o1', 'a'); INSERT INTO comment VALUES ('c1', 'i1')")
        .await
        .unwrap();
    log.new_lines().await;
    let lines = log.after(&client, "UPDATE issue SET id = 'i9' WHERE id = 'i1'").await;
    assert!(lines.contains(&"o1 D Issue i1 team:a".to_owned()) && lines.contains(&"o1 I Issue i9 team:a".to_owned()));
    assert!(lines.contains(&"o1 U Comment c1 team:a".to_owned()), "{lines:?}");
}

#[tokio::test]
async fn a_parent_that_arrives_late_brings_its_children() {
    let (database, client) = tracker::with(&tracker::loose_tables(), tracker::CATALOG).await;
    let mut log = Log::follow(&database).await;
    let early = "INSERT INTO reaction VALUES ('r1', 'c1'); INSERT INTO comment VALUES ('c1', 'i1')";
    assert!(log.after(&client, early).await.is_empty(), "nobody sees a row without a tenant");
    assert_eq!(
        log.after(&client, "INSERT INTO issue VALUES ('i1', 'o1', 'a')").await,
        ["o1 I Issue i1 team:a", "o1 U Comment c1 team:a", "o1 U Reaction r1 team:a"]
    );
}

#[tokio::test]
async fn replication_that_bypasses_keys_and_triggers_is_logged() {
    let (database, client) = tracker::database().await;
    let mut log = Log::follow(&database).await;
    let replayed = "SET session_replication_role = replica; INSERT INTO comment VALUES ('c1', 'i1');
                    INSERT INTO issue VALUES ('i1', 'o1', 'a')";
    assert_eq!(log.after(&client, replayed).await, ["o1 I Issue i1 team:a", "o1 U Comment c1 team:a"]);
}

#[tokio::test]
async fn memberships_tell_the_users_they_change() {
    let (database, client) = tracker::database().await;
    let mut log = Log::follow(&database).await;
    assert_eq!(log.after(&client, "INSERT INTO team_membership VALUES ('o1', 'a', 'u1')").await, ["o1 G - - user:u1"]);
    assert_eq!(log.after(&client, "UPDATE team_membership SET team_id = 'b'").await, ["o1 G - - user:u1"]);
    assert!(log.after(&client, "UPDATE team_membership SET role = 'admin'").await.is_empty());
    let other = "UPDATE team_membership SET user_id = 'u2', organization_id = 'o2'";
    assert_eq!(log.after(&client, other).await, ["o1 G - - user:u1", "o2 G - - user:u2"]);
    assert_eq!(log.after(&client, "DELETE FROM team_membership").await, ["o2 G - - user:u2"]);
}

#[tokio::test]
async fn ungrouped_rows_are_the_orgs_if_the_catalog_says_so() {
    let text = tracker::CATALOG.replace("load = \"instant\"", "load = \"instant\"\nungrouped = \"org\"");
    let (database, client) = tracker::with(tracker::TABLES, &text).await;
    let mut log = Log::follow(&database).await;
    let rows = "INSERT INTO issue VALUES ('i1', 'o1'); INSERT INTO comment VALUES ('c1', 'i1')";
    assert_eq!(log.after(&client, rows).await, ["o1 I Issue i1 org:o1", "o1 I Comment c1 org:o1"]);
    assert_eq!(
        log.after(&client, "UPDATE issue SET watchers = '{u1}'").await,
        ["o1 U Issue i1 org:o1,user:u1", "o1 U Comment c1 org:o1,user:u1"]
    );
}

#[tokio::test]
async fn children_may_have_an_org_or_groups_of_their_own() {
    let tables = "
        CREATE TABLE project (id int PRIMARY KEY, org int NOT NULL, team int);
        CREATE TABLE task (id bigint PRIMARY KEY, org int, project int REFERENCES project);
        CREATE TABLE note (id uuid PRIMARY KEY, owner int, project bigint);";
    let text = r#"
        [[models]]
        name = "Project"
        table = "project"
        id = "id"
        org = "org"
        groups = { team = "team" }
        load = "instant"
        [[models]]
        name = "Task"
        table = "task"
        id = "id"
        org = "org"
        from = { model = "Project", by = "project" }
        load = "instant"
        [[models]]
        name = "Note"
        table = "note"
        id = "id"
        groups = { user = "owner" }
        from = { model = "Project", by = "project" }
        ungrouped = "org"
        load = "instant"
    "#;
    let (database, client) = tracker::with(tables, text).await;
    let mut log = Log::follow(&database).await;
    let note = "00000000-0000-0000-0000-000000000001";
    let rows = format!(
        "INSERT INTO project VALUES (1, 1, 7); INSERT INTO task VALUES (1, 2, 1), (2, 2, NULL);
         INSERT INTO note VALUES ('{note}', 9, 1)"
    );
    assert_eq!(
        log.after(&client, &rows).await,
        ["1 I Project 1 team:7", "2 I Task 1 team:7", "2 I Task 2 ", &format!("1 I Note {note} user:9")]
    );
    assert_eq!(
        log.after(&client, "UPDATE project SET org = 3, team = 8").await,
        [
            "1 D Project 1 team:7".to_owned(),
            "3 I Project 1 team:8".to_owned(),
            "2 U Task 1 team:7".to_owned(),
            format!("1 U Note {note} user:9"),
            "2 U Task 1 team:8".to_owned(),
            format!("3 U Note {note} user:9"),
        ]
    );
    assert_eq!(log.after(&client, "UPDATE note SET owner = NULL").await, [format!("3 U Note {note} org:3,user:9")]);
}

#[tokio::test]
async fn truncate_is_refused() {
    let (_database, client) = tracker::database().await;
    for table in ["issue CASCADE", "team_membership"] {
        assert_eq!(code(&client, &format!("TRUNCATE {table}")).await, SqlState::FEATURE_NOT_SUPPORTED);
    }
}

#[tokio::test]
async fn a_role_without_rights_on_the_log_writes_rows() {
    let (database, client) = tracker::database().await;
    let mut log = Log::follow(&database).await;
    let role = format!("app_{}", database.config().get_dbname().unwrap());
    let grants =
        format!("CREATE ROLE {role} LOGIN; GRANT SELECT, INSERT, UPDATE, DELETE ON issue, comment, reaction TO {role}");
    client.batch_execute(&grants).await.unwrap();
    let app = cluster::connect(database.config().clone().user(&role)).await;
    let writes = "INSERT INTO issue VALUES ('i1', 'o1', 'a'); INSERT INTO comment VALUES ('c1', 'i1');
                  UPDATE issue SET team_id = 'b'; DELETE FROM issue";
    let isolated = "BEGIN ISOLATION LEVEL REPEATABLE READ; INSERT INTO issue VALUES ('i2', 'o1', 'a');
                    INSERT INTO comment VALUES ('c2', 'i2'); UPDATE issue SET team_id = 'b'; COMMIT";
    assert_eq!(log.after(&app, writes).await.len(), 6);
    assert_eq!(log.after(&app, isolated).await.len(), 4);
    for denied in [
        "SELECT * FROM sync_actions",
        "INSERT INTO sync_actions_marks VALUES ('1', 'c', 'x')",
        "SELECT headstart_meet('c', 'x', true)",
        "SELECT headstart_write('Issue', 'i', 'o', '{}', 'i', 'o', '{}')",
    ] {
        assert_eq!(code(&app, denied).await, SqlState::INSUFFICIENT_PRIVILEGE, "{denied}");
    }
    client.batch_execute(&format!("DROP OWNED BY {role}; DROP ROLE {role}")).await.unwrap();
}

/// Names that lie in wait, and a schema that a hostile role put first.
#[tokio::test]
async fn odd_names_are_quoted_and_a_search_path_changes_nothing() {
    let tables = r#"
        CREATE SCHEMA "My App";
        CREATE TYPE "My App"."Status" AS ENUM ('open', 'closed');
        CREATE TABLE "My App"."Is""sue" ("Id'" text PRIMARY KEY, "ORG" text, "group" text, "my.status" "My App"."Status",
                                         org text, parent text, was_id int);
        CREATE TABLE "My App"."select" ("Id'" text PRIMARY KEY, "from" text);
        SET search_path = "My App";"#;
    let text = r#"
        [[models]]
        name = "Issue"
        table = 'My App.Is"sue'
        id = "Id'"
        org = "ORG"
        groups = { team = "group" }
        filter = '''"my.status" = 'open'::"Status" AND was_id IS NULL AND org IS NULL AND parent IS NULL'''
        load = "instant"
        [[models]]
        name = "Child"
        table = "My App.select"
        id = "Id'"
        from = { model = "Issue", by = "from" }
        load = "instant"
        [log]
        table = "My App.Log"
        floor = "My App.Log floor"
    "#;
    let database = Database::create().await;
    let client = database.connect().await;
    client.batch_execute(tables).await.unwrap();
    tracker::migrate(&client, text).await;
    assert_eq!(tracker::migrate(&client, text).await.steps, []);
    let hostile = r#"
        CREATE SCHEMA trap; CREATE FUNCTION trap.hashtext(text) RETURNS int LANGUAGE sql AS 'SELECT 1/0';
        CREATE TABLE trap.pg_locks (); SET search_path = trap, pg_catalog;
        INSERT INTO "My App"."Is""sue" VALUES ('i''1', 'o', 'a', 'open');
        INSERT INTO "My App"."select" VALUES ('c', 'i''1');
        UPDATE "My App"."Is""sue" SET "group" = 'b';
        UPDATE "My App"."Is""sue" SET "my.status" = 'closed';"#;
    client.batch_execute(hostile).await.unwrap();
    let rows = client.query(r#"SELECT * FROM "My App"."Log" ORDER BY id"#, &[]).await.unwrap();
    assert_eq!(
        rows.iter().map(tracker::line).collect::<Vec<_>>(),
        [
            "o I Issue i'1 team:a",
            "o I Child c team:a",
            "o U Issue i'1 team:a,team:b",
            "o U Child c team:a,team:b",
            "o D Issue i'1 team:b"
        ]
    );
}

#[tokio::test]
async fn partitions_are_logged_whichever_way_they_are_written() {
    let tables = "
        CREATE TABLE event (id int, org text, team text, PRIMARY KEY (id)) PARTITION BY RANGE (id);
        CREATE TABLE event_1 PARTITION OF event FOR VALUES FROM (0) TO (100);
        CREATE TABLE event_2 PARTITION OF event FOR VALUES FROM (100) TO (200) PARTITION BY RANGE (id);
        CREATE TABLE event_2a PARTITION OF event_2 FOR VALUES FROM (100) TO (150);
        CREATE TABLE remark (id int PRIMARY KEY, event int REFERENCES event);";
    let text = r#"
        [[models]]
        name = "Event"
        table = "event"
        id = "id"
        org = "org"
        groups = { team = "team" }
        load = "instant"
        [[models]]
        name = "Remark"
        table = "remark"
        id = "id"
        from = { model = "Event", by = "event" }
        load = "instant"
    "#;
    let (database, client) = tracker::with(tables, text).await;
    let catalog = tracker::catalog(text);
    let mut log = Log::follow(&database).await;
    let insert = "INSERT INTO event VALUES (1, 'o', 'a'); INSERT INTO event_2a VALUES (101, 'o', 'a')";
    assert_eq!(log.after(&client, insert).await, ["o I Event 1 team:a", "o I Event 101 team:a"]);
    let moved = "INSERT INTO remark VALUES (5, 101); UPDATE event_2 SET team = 'b'";
    assert_eq!(
        log.after(&client, moved).await,
        ["o I Remark 5 team:a", "o U Event 101 team:a,team:b", "o U Remark 5 team:a,team:b"]
    );
    client.batch_execute("CREATE TABLE event_2b PARTITION OF event_2 FOR VALUES FROM (150) TO (200)").await.unwrap();
    let replica = "SET session_replication_role = replica; INSERT INTO event_2b VALUES (151, 'o', 'a'); RESET ALL";
    assert_eq!(log.after(&client, replica).await, ["o I Event 151 team:a"]);
    assert_eq!(code(&client, "TRUNCATE event_2a").await, SqlState::FEATURE_NOT_SUPPORTED);
    let plan = tracker::migrate(&client, text).await;
    assert_eq!(plan.steps.len(), 1, "the new partition's TRUNCATE is refused from now on: {plan:?}");
    assert!(unlogged(&client, &catalog).await.unwrap().is_empty());
    client.batch_execute(r#"ALTER TABLE event_2b ENABLE REPLICA TRIGGER "headstart_log_Event""#).await.unwrap();
    let faults = unlogged(&client, &catalog).await.unwrap();
    let [(Unlogged::Model(0), SourceError::Schema(fault))] = faults.as_slice() else { panic!("{faults:?}") };
    assert!(fault.contains("event_2b") && fault.contains("does not fire always"), "{fault}");
}

#[tokio::test]
async fn generated_columns_can_decide() {
    let tables = "CREATE TABLE issue (id text PRIMARY KEY, organization_id text, key text,
                      team_id text GENERATED ALWAYS AS (left(key, 1)) STORED, watchers text[], archived boolean DEFAULT false);
                  CREATE TABLE comment (id text PRIMARY KEY, issue_id text REFERENCES issue);
                  CREATE TABLE reaction (id text PRIMARY KEY, comment_id text REFERENCES comment);
                  CREATE TABLE team_membership (organization_id text, team_id text, user_id text);";
    let (database, client) = tracker::with(tables, tracker::CATALOG).await;
    let mut log = Log::follow(&database).await;
    client
        .batch_execute("INSERT INTO issue VALUES ('i1', 'o1', 'a1'); INSERT INTO comment VALUES ('c1', 'i1')")
        .await
        .unwrap();
    log.new_lines().await;
    let lines = log.after(&client, "UPDATE issue SET key = 'b2'").await;
    assert_eq!(lines, ["o1 U Issue i1 team:a,team:b", "o1 U Comment c1 team:a,team:b"]);
}

#[tokio::test]
async fn a_parent_whose_type_does_not_fit_is_refused() {
    let database = Database::create().await;
    let client = database.connect().await;
    client.batch_execute(&tracker::loose_tables().replace("issue_id text", "issue_id uuid")).await.unwrap();
    let refused = apply(&client, &tracker::catalog(tracker::CATALOG), tracker::LOCK_TIMEOUT).await;
    let Err(MigrateError::Refused(faults)) = refused else { panic!("{refused:?}") };
    assert_eq!(
        faults,
        [
            "models.Comment.from: `issue_id` is uuid and the id of Issue is text: both must be whole numbers, uuids or text"
        ]
    );
}
