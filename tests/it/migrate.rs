//! `migrate`: prints or applies the log, again and again.

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use headstart::source::SourceError;
use headstart::source::migrate::{Found, MigrateError, Plan, apply, plan};
use headstart::source::postgres::log::{Unlogged, unlogged};
use tokio_postgres::Client;

use crate::support::postgres::Database;
use crate::support::required;
use crate::tracker::{self, Log};

async fn planned(client: &Client, text: &str) -> Result<Plan, Vec<String>> {
    let catalog = tracker::catalog(text);
    plan(&catalog, &Found::read(client, &catalog).await.unwrap())
}

async fn refused(client: &Client, text: &str) -> Vec<String> {
    planned(client, text).await.expect_err("refused")
}

fn descriptions(plan: &Plan) -> Vec<&str> {
    plan.steps.iter().map(|step| step.description.as_str()).collect()
}

#[tokio::test]
async fn the_printed_script_does_what_apply_does() {
    let database = Database::create().await;
    let client = database.connect().await;
    client.batch_execute(tracker::TABLES).await.unwrap();
    let script = planned(&client, tracker::CATALOG).await.unwrap().script(tracker::LOCK_TIMEOUT);
    let psql = PathBuf::from(required("HEADSTART_TEST_POSTGRES_BIN")).join("psql");
    let mut psql = Command::new(psql).args(["-X", "-q", &database.url()]).stdin(Stdio::piped()).spawn().unwrap();
    std::io::Write::write_all(&mut psql.stdin.take().unwrap(), script.as_bytes()).unwrap();
    assert!(psql.wait().unwrap().success(), "{script}");
    assert_eq!(tracker::migrate(&client, tracker::CATALOG).await.steps, [], "nothing is left to do");
    let nothing = planned(&client, tracker::CATALOG).await.unwrap().script(tracker::LOCK_TIMEOUT);
    assert!(nothing.contains("Nothing to do"), "{nothing}");
}

#[tokio::test]
async fn a_changed_catalog_changes_what_differs() {
    let (database, client) = tracker::database().await;
    let mut log = Log::follow(&database).await;
    // The reactions leave, the comments get groups of their own.
    let reaction = tracker::CATALOG.find("[[models]]\n    name = \"Reaction\"").unwrap();
    let access = tracker::CATALOG.find("[[access").unwrap();
    let smaller = tracker::CATALOG[..reaction].to_owned() + &tracker::CATALOG[access..];
    let smaller = smaller.replace("from = { model", "groups = { user = \"body\" }\n from = { model");
    let done = tracker::migrate(&client, &smaller).await;
    let done = descriptions(&done);
    assert!(
        done[0].starts_with("Make or replace functions: ") && done[0].contains("headstart_log_Comment"),
        "{done:?}"
    );
    assert!(!done[0].contains("headstart_log_Issue"), "{done:?}");
    let dropped = |table: &str, trigger: &str| {
        let mut steps = done.iter().filter(|step| step.starts_with(&format!("Triggers on `{table}`")));
        steps.any(|step| step.split_once("; drop ").is_some_and(|(_, dropped)| dropped.contains(trigger)))
    };
    assert!(dropped("reaction", "headstart_log_Reaction") && dropped("comment", "headstart_moved_Comment_update"));
    assert!(done.last().unwrap().starts_with("Drop functions that nothing calls any more: headstart_above_Reaction"));
    let rows = "INSERT INTO issue VALUES ('i1', 'o1', 'a'); INSERT INTO comment VALUES ('c1', 'i1', 'u1');
                INSERT INTO reaction VALUES ('r1', 'c1'); TRUNCATE reaction";
    assert_eq!(log.after(&client, rows).await, ["o1 I Issue i1 team:a", "o1 I Comment c1 user:u1"]);
    assert!(!tracker::migrate(&client, tracker::CATALOG).await.steps.is_empty());
    assert_eq!(tracker::migrate(&client, tracker::CATALOG).await.steps, []);
    assert_eq!(log.after(&client, "INSERT INTO reaction VALUES ('r1', 'c1')").await, ["o1 I Reaction r1 team:a"]);
}

#[tokio::test]
async fn what_was_tampered_with_is_mended() {
    let (_database, client) = tracker::database().await;
    let tampered = r#"
        ALTER TABLE issue DISABLE TRIGGER "headstart_log_Issue";
        DROP TRIGGER "headstart_log_Reaction" ON reaction;
        CREATE OR REPLACE FUNCTION "headstart_log_Comment"() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';
        DROP TABLE sync_actions_floor;"#;
    client.batch_execute(tampered).await.unwrap();
    let faults = unlogged(&client, &tracker::catalog(tracker::CATALOG)).await.unwrap();
    let models: Vec<_> = faults.iter().map(|(what, _)| what.clone()).collect();
    assert_eq!(models, [Unlogged::Model(0), Unlogged::Model(2)]);
    assert!(faults.iter().all(|(_, error)| matches!(error, SourceError::Schema(_))));
    assert!(
        faults[1]
            .1
            .to_string()
            .starts_with("models.Reaction: the trigger `headstart_log_Reaction` on reaction is missing")
    );
    let done = tracker::migrate(&client, tracker::CATALOG).await;
    assert_eq!(
        descriptions(&done),
        [
            "Make the log's floor `sync_actions_floor`",
            "Make or replace functions: headstart_log_Comment",
            "Triggers on `comment`; make headstart_log_Comment; raise the log's floor above what they missed",
            "Triggers on `issue`; make headstart_log_Issue; raise the log's floor above what they missed",
            "Triggers on `reaction`; make headstart_log_Reaction; raise the log's floor above what they missed",
        ]
    );
    let floor = "SELECT floor = (SELECT last_value FROM sync_actions_id_seq) FROM sync_actions_floor";
    assert!(client.query_one(floor, &[]).await.unwrap().get::<_, bool>(0));
    assert!(unlogged(&client, &tracker::catalog(tracker::CATALOG)).await.unwrap().is_empty());
}

#[tokio::test]
async fn a_floor_that_was_lost_is_above_all_that_may_be_missing() {
    let (_database, client) = tracker::database().await;
    let lost = "INSERT INTO issue VALUES ('i1', 'o1', 'a'); DELETE FROM sync_actions; DROP TABLE sync_actions_floor";
    client.batch_execute(lost).await.unwrap();
    let trimmed: i64 = client.query_one("SELECT last_value FROM sync_actions_id_seq", &[]).await.unwrap().get(0);
    let done = tracker::migrate(&client, tracker::CATALOG).await;
    assert_eq!(descriptions(&done), ["Make the log's floor `sync_actions_floor`"]);
    let floor: i64 = client.query_one("SELECT floor FROM sync_actions_floor", &[]).await.unwrap().get(0);
    assert!(floor > trimmed, "{floor} is not above {trimmed}");
}

#[tokio::test]
async fn an_index_that_a_broken_build_left_is_rebuilt() {
    let (_database, client) = tracker::database().await;
    let valid = "SELECT indisvalid FROM pg_index WHERE indexrelid = 'sync_actions_org_id'::regclass";
    let broken = "UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'sync_actions_org_id'::regclass";
    client.batch_execute(broken).await.unwrap();
    let done = tracker::migrate(&client, tracker::CATALOG).await;
    assert_eq!(
        descriptions(&done),
        ["Drop the index by org that a broken build left invalid", "Build the index by org, without blocking writers"]
    );
    assert!(done.steps.iter().all(|step| !step.transactional && step.sql.contains("CONCURRENTLY")));
    assert!(client.query_one(valid, &[]).await.unwrap().get::<_, bool>(0));
    client.batch_execute("DROP INDEX sync_actions_org_id").await.unwrap();
    assert_eq!(tracker::migrate(&client, tracker::CATALOG).await.steps.len(), 1);
    assert!(client.query_one(valid, &[]).await.unwrap().get::<_, bool>(0));
}

#[tokio::test]
async fn a_table_in_use_is_named_with_who_uses_it() {
    let database = Database::create().await;
    let (client, user) = (database.connect().await, database.connect().await);
    client.batch_execute(tracker::TABLES).await.unwrap();
    user.batch_execute("SET application_name = 'report'; BEGIN; DELETE FROM issue").await.unwrap();
    let catalog = tracker::catalog(tracker::CATALOG);
    let stopped = apply(&client, &catalog, Duration::from_millis(50)).await.unwrap_err();
    let MigrateError::Locked { holders, .. } = &stopped else { panic!("{stopped:?}") };
    assert!(holders.len() == 1 && holders[0].ends_with(", report)"), "{holders:?}");
    assert!(stopped.to_string().contains("`Triggers on `issue`"), "{stopped}");
    user.batch_execute("COMMIT").await.unwrap();
    let done = tracker::migrate(&client, tracker::CATALOG).await;
    assert!(descriptions(&done).iter().all(|step| step.starts_with("Triggers on")), "the rest: {done:?}");
}

/// Another filter logs other rows: what the old functions left out, and what those who still run them leave out, is below
/// the floor. A run that breaks off in between is gone on with.
#[tokio::test]
async fn whoever_writes_through_a_replaced_function_is_waited_for() {
    let (database, client) = tracker::database().await;
    let writer = database.connect().await;
    writer.batch_execute("BEGIN; INSERT INTO issue VALUES ('i1', 'o1', 'a')").await.unwrap();
    let archived = tracker::CATALOG.replace("not archived", "archived");
    let stopped = apply(&client, &tracker::catalog(&archived), Duration::from_millis(50)).await.unwrap_err();
    assert!(matches!(stopped, MigrateError::Locked { .. }), "{stopped:?}");
    let replaced: bool = client
        .query_one("SELECT prosrc NOT LIKE '%NOT archived%' FROM pg_proc WHERE proname = 'headstart_log_Issue'", &[])
        .await
        .unwrap()
        .get(0);
    assert!(replaced, "the first step is done");
    writer.batch_execute("COMMIT").await.unwrap();
    let done = tracker::migrate(&client, &archived).await;
    // Of what stands below an issue no row is logged otherwise.
    assert_eq!(
        descriptions(&done),
        ["Triggers on `issue`; make headstart_log_Issue; raise the log's floor above what they missed"]
    );
    let floor = "SELECT floor > (SELECT max(id) FROM sync_actions) FROM sync_actions_floor";
    assert!(client.query_one(floor, &[]).await.unwrap().get::<_, bool>(0));
    assert_eq!(tracker::migrate(&client, &archived).await.steps, []);
}

#[tokio::test]
async fn two_runs_do_not_meet() {
    let (database, client) = tracker::database().await;
    let other = database.connect().await;
    other.batch_execute("SELECT pg_advisory_lock(x'686561647374'::bigint)").await.unwrap();
    let catalog = tracker::catalog(tracker::CATALOG);
    let running = apply(&client, &catalog, tracker::LOCK_TIMEOUT).await;
    assert!(matches!(running, Err(MigrateError::Running)), "{running:?}");
}

#[tokio::test]
async fn what_is_not_ours_is_left_alone() {
    let (_database, client) = tracker::database().await;
    client.batch_execute("COMMENT ON TABLE sync_actions IS 'The change log of Headstart, version 99'").await.unwrap();
    assert_eq!(
        refused(&client, tracker::CATALOG).await,
        ["log: `sync_actions` is of version 99; this program knows 1"]
    );
    client.batch_execute("COMMENT ON TABLE sync_actions IS 'mine'").await.unwrap();
    assert!(refused(&client, tracker::CATALOG).await[0].starts_with("log.table: `sync_actions` stands already"));
    let unmanaged = format!("{}\n[log]\nmanaged = false", tracker::CATALOG);
    let plan = planned(&client, &unmanaged).await.unwrap();
    assert!(plan.steps.is_empty() && plan.notes.len() == 1);
}

#[tokio::test]
async fn every_fault_of_the_catalog_is_named_at_once() {
    let database = Database::create().await;
    let client = database.connect().await;
    client.batch_execute(&tracker::TABLES.replace("team_id text, watchers", "watchers")).await.unwrap();
    client.batch_execute("DROP TABLE team_membership").await.unwrap();
    let text = tracker::CATALOG
        .replace("load = \"lazy\"", "load = \"lazy\"\n filter = \"(SELECT true)\"")
        .replace("load = \"partial\"", "load = \"partial\"\n filter = \"nonsense\"");
    assert_eq!(
        refused(&client, &text).await,
        [
            "models.Issue: `issue` has no column `team_id`",
            "models.Comment.filter: PostgreSQL does not take it: column \"nonsense\" does not exist",
            "models.Reaction.filter: PostgreSQL does not take it: cannot use subquery in check constraint",
            "access.memberships[0].table: there is no table or view `team_membership`",
        ]
    );
}

#[tokio::test]
async fn a_view_is_left_to_the_application() {
    let database = Database::create().await;
    let client = database.connect().await;
    let view = tracker::TABLES.to_owned() + "CREATE VIEW shown AS SELECT * FROM issue";
    client.batch_execute(&view).await.unwrap();
    let plan = tracker::migrate(&client, &tracker::CATALOG.replace("table = \"issue\"", "table = \"shown\"")).await;
    assert_eq!(plan.notes.len(), 3, "the children of a view can't be logged either: {:?}", plan.notes);
    assert!(plan.notes[0].starts_with("models.Issue: `shown` is no table, so triggers can't log its changes"));
}

#[tokio::test]
async fn a_role_that_does_not_own_the_tables_is_told_so() {
    let (database, client) = {
        let database = Database::create().await;
        let client = database.connect().await;
        client.batch_execute(tracker::TABLES).await.unwrap();
        (database, client)
    };
    let role = format!("deploy_{}", database.config().get_dbname().unwrap());
    let grants = format!(
        "CREATE ROLE {role} LOGIN; GRANT CREATE ON SCHEMA public TO {role};
         GRANT SELECT, UPDATE, TRIGGER ON comment, reaction, team_membership, issue TO {role};
         ALTER TABLE issue ENABLE ROW LEVEL SECURITY; REVOKE TRIGGER ON team_membership FROM {role}"
    );
    client.batch_execute(&grants).await.unwrap();
    let deploy = crate::support::cluster::connect(database.config().clone().user(&role)).await;
    let faults = refused(&deploy, tracker::CATALOG).await;
    assert!(faults[0].starts_with("models.Issue: row-level security hides rows of `issue`"), "{faults:?}");
    assert!(faults[3].starts_with("access.memberships[0]: this role needs SELECT, UPDATE"), "{faults:?}");
    client.batch_execute(&format!("DROP OWNED BY {role}; DROP ROLE {role}")).await.unwrap();
}
