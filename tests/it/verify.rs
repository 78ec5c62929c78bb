//! `verify`: changes that the log tells of are no difference; changes behind its back are found and named.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio_postgres::Client;

use crate::support::dice::Dice;
use crate::support::postgres::Database;
use crate::support::server::Setup;
use crate::tracker;

const ROWS: &str = "
    INSERT INTO issue (id, organization_id, team_id, title)
    VALUES ('1', 'o', 'a', 'one'), ('2', 'o', 'b', 'two'), ('3', 'o', 'a', 'three'), ('9', 'p', 'z', 'nine');
    INSERT INTO comment (id, issue_id, body) VALUES ('c1', '1', 'first'), ('c3', '3', 'third');";

/// A sound database with a snapshot of each org.
async fn dumped() -> (Database, Client, Setup) {
    let (database, client) = tracker::database().await;
    client.batch_execute(ROWS).await.unwrap();
    let setup = Setup::new(&database.url(), tracker::CATALOG);
    setup.must(&["dump", "--all"]);
    (database, client, setup)
}

/// Statements that no trigger hears of, though all triggers stand before and after.
async fn behind_the_log(client: &Client, sql: &str) {
    let all = format!(
        "BEGIN; ALTER TABLE issue DISABLE TRIGGER USER; ALTER TABLE comment DISABLE TRIGGER USER; {sql};
         DO $$ DECLARE t record; BEGIN
             FOR t IN SELECT tgrelid::regclass AS on_table, tgname FROM pg_trigger
                      WHERE tgrelid IN ('issue'::regclass, 'comment'::regclass) AND NOT tgisinternal LOOP
                 EXECUTE format('ALTER TABLE %s ENABLE ALWAYS TRIGGER %I', t.on_table, t.tgname);
             END LOOP;
         END $$; COMMIT"
    );
    client.batch_execute(&all).await.unwrap_or_else(|error| panic!("{error:?}"));
}

/// What `verify` prints of one org, which must differ.
#[track_caller]
fn differences(setup: &Setup, arguments: &[&str]) -> Vec<String> {
    let output = setup.run(&[&["verify", "--org", "o"], arguments].concat());
    let (out, error) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
    assert_eq!(output.status.code(), Some(1), "{out}{error}");
    assert!(error.starts_with("error: "), "{error}");
    out.lines().map(str::to_owned).collect()
}

#[tokio::test]
async fn what_the_log_tells_is_no_difference() {
    let (_database, client, setup) = dumped().await;
    assert_eq!(setup.must(&["verify", "--all"]), "o\tagrees\t5\t0\np\tagrees\t1\t0\n");
    client
        .batch_execute(
            "UPDATE issue SET title = 'other' WHERE id = '1'; UPDATE issue SET team_id = 'b' WHERE id = '3';
             DELETE FROM issue WHERE id = '2'; INSERT INTO issue (id, organization_id, team_id) VALUES ('4', 'o', 'a');
             UPDATE issue SET organization_id = 'p' WHERE id = '1'",
        )
        .await
        .unwrap();
    // 1 with c1 left, 2 went, 3 with c3 moved, 4 came.
    assert_eq!(setup.must(&["verify", "--all"]), "o\tagrees\t3\t6\np\tagrees\t3\t2\n");
    assert_eq!(setup.run(&["verify", "--org", "nobody"]).status.code(), Some(1));
    assert_eq!(setup.run(&["verify"]).status.code(), Some(2));
    setup.must(&["snapshots", "delete", "--org", "o"]);
    assert!(setup.must(&["verify", "--org", "o"]).starts_with("o\tnothing\tno snapshot"));
}

#[tokio::test]
async fn rows_changed_behind_the_log_are_named() {
    let (_database, client, setup) = dumped().await;
    behind_the_log(
        &client,
        "UPDATE issue SET title = 'x' WHERE id = '1'; DELETE FROM issue WHERE id = '2';
         INSERT INTO issue (id, organization_id, team_id) VALUES ('4', 'o', 'a')",
    )
    .await;
    let expected = [
        "o\tdiffers\t5\t3",
        "o\tdifference\tIssue 1: is not as in the snapshot, and the log does not tell team:a",
        "o\tdifference\tIssue 2: is in the snapshot, no longer in the database, and the log does not tell team:b",
        "o\tdifference\tIssue 4: is in the database, not in the snapshot, and the log does not tell team:a",
    ];
    assert_eq!(differences(&setup, &[]), expected);
    assert_eq!(differences(&setup, &["--first", "1"]), expected[..2]);
    assert_eq!(setup.must(&["verify", "--org", "p"]), "p\tagrees\t1\t0\n");
    setup.must(&["dump", "--org", "o", "--full"]);
    assert_eq!(setup.must(&["verify", "--all"]), "o\tagrees\t5\t0\np\tagrees\t1\t0\n");
}

#[tokio::test]
async fn a_move_must_be_told_to_both_sides_and_below() {
    let (_database, client, setup) = dumped().await;
    behind_the_log(&client, "UPDATE issue SET team_id = 'b' WHERE id = '3'").await;
    let expected = [
        "o\tdiffers\t5\t2",
        "o\tdifference\tComment c3: is not as in the snapshot, and the log does not tell team:a, team:b",
        "o\tdifference\tIssue 3: is not as in the snapshot, and the log does not tell team:a, team:b",
    ];
    assert_eq!(differences(&setup, &[]), expected);
    // Half the truth: who got the issue hears of it, who lost it does not.
    client
        .batch_execute(
            "INSERT INTO sync_actions (org, model, model_id, action, groups) VALUES ('o', 'Issue', '3', 'U', '{team:b}')",
        )
        .await
        .unwrap();
    let told = differences(&setup, &[]);
    assert_eq!(told[2], "o\tdifference\tIssue 3: is not as in the snapshot, and the log does not tell team:a");
}

/// Writers that go on while it looks never make a difference.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writers_do_not_look_like_faults() {
    let (database, _client, setup) = dumped().await;
    let dice = Dice::seeded();
    println!("HEADSTART_TEST_SEED={}", dice.seed());
    let stop = Arc::new(AtomicBool::new(false));
    let mut writers = Vec::new();
    for writer in 0..3 {
        let (client, stop) = (database.connect().await, stop.clone());
        let mut dice = dice.fork(writer);
        writers.push(tokio::spawn(async move {
            while !stop.load(Ordering::Relaxed) {
                let (id, team) = (dice.below(8), ["a", "b"][dice.below(2)]);
                let write = match dice.below(4) {
                    0 => format!("DELETE FROM issue WHERE id = 'w{id}'"),
                    1 => format!("UPDATE issue SET team_id = '{team}', title = title || '.' WHERE id = 'w{id}'"),
                    2 => format!("INSERT INTO comment VALUES (gen_random_uuid(), 'w{id}', 'x')"),
                    _ => format!("INSERT INTO issue VALUES ('w{id}', 'o', '{team}') ON CONFLICT DO NOTHING"),
                };
                // A comment without its issue, or a deadlock, is a write that never was.
                let _ = client.batch_execute(&write).await;
            }
        }));
    }
    for _ in 0..5 {
        setup.must(&["dump", "--org", "o", "--full"]);
        for _ in 0..2 {
            let said = setup.must(&["verify", "--org", "o"]);
            assert!(said.starts_with("o\tagrees\t"), "{said}");
        }
    }
    stop.store(true, Ordering::Relaxed);
    for writer in writers {
        writer.await.unwrap();
    }
}

#[tokio::test]
async fn on_a_schedule_it_raises_a_metric_and_logs() {
    let (_database, client, mut setup) = dumped().await;
    setup.set("HEADSTART_VERIFY_EVERY_S", "1").set("HEADSTART_VERIFY_SAMPLE", "5");
    let server = setup.serve().await;
    let agrees = "headstart_verified_orgs_total{outcome=\"agrees\"}";
    server.until("both orgs are compared", async || server.metric(agrees).await >= 2.0).await;
    assert_eq!(server.metric("headstart_verify_differences_total").await, 0.0);
    behind_the_log(&client, "UPDATE issue SET title = 'x' WHERE id = '1'").await;
    server.until("it is found", async || server.metric("headstart_verify_differences_total").await >= 1.0).await;
    assert!(server.metric("headstart_verified_orgs_total{outcome=\"differs\"}").await >= 1.0);
    assert!(server.log().contains("Issue 1: is not as in the snapshot"), "{}", server.log());
    assert!(server.stop().await.success());
}
