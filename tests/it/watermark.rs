//! The watermark: no id up to one that was given out ever becomes visible later, whatever writers and servers do.

use std::error::Error;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use headstart::model::{SyncId, Watermark};
use headstart::source::SourceError;
use headstart::source::postgres::log::{Log, trim_marks};
use headstart::source::postgres::watermark::{Standby, probe};
use tokio_postgres::Client;

use crate::support::cluster::{self, Cluster};
use crate::support::dice::Dice;
use crate::tracker;

/// Enough for every wait that has an end.
const PATIENCE: Duration = Duration::from_secs(30);
/// For waits that must not end.
const IMPATIENCE: Duration = Duration::from_millis(60);

async fn find(client: &Client) -> Log {
    Log::find(client, tracker::catalog(tracker::CATALOG).log()).await.unwrap()
}

async fn watermark(client: &Client) -> Watermark {
    probe(client, &find(client).await, PATIENCE).await.unwrap()
}

async fn held(client: &Client, log: &Log) -> String {
    match probe(client, log, IMPATIENCE).await {
        Err(SourceError::Held { holder }) => holder,
        other => panic!("not held back: {other:?}"),
    }
}

fn issue(id: &str) -> String {
    format!("INSERT INTO issue VALUES ('{id}', 'o', 'a')")
}

#[tokio::test]
async fn an_unused_sequence_is_before_the_first_id() {
    let (_database, client) = tracker::database().await;
    client.batch_execute("TRUNCATE sync_actions RESTART IDENTITY").await.unwrap();
    assert_eq!(watermark(&client).await.sync_id, SyncId::ZERO);
    client.batch_execute(&issue("i1")).await.unwrap();
    assert_eq!(watermark(&client).await.sync_id, SyncId(1));
    client.batch_execute(&format!("BEGIN; {}; ROLLBACK", issue("i2"))).await.unwrap();
    assert_eq!(watermark(&client).await.sync_id, SyncId(2), "ids of a rollback are passed");
}

#[tokio::test]
async fn an_open_writer_holds_it_back_and_is_named() {
    let (database, client) = tracker::database().await;
    let writer = database.connect().await;
    let log = find(&client).await;
    let before = watermark(&client).await.sync_id.0;
    let pid: i32 = writer.query_one("SELECT pg_backend_pid()", &[]).await.unwrap().get(0);
    writer.batch_execute(&format!("SET application_name = 'importer'; BEGIN; {}", issue("i1"))).await.unwrap();
    let holder = held(&client, &log).await;
    assert!(holder.contains(&format!("pid {pid},")) && holder.contains("'importer'"), "{holder}");
    let (found, ()) = tokio::join!(probe(&client, &log, PATIENCE), async {
        writer.batch_execute("COMMIT").await.unwrap();
    });
    assert_eq!(found.unwrap().sync_id, SyncId(before + 1));
    writer.batch_execute("BEGIN; SELECT * FROM sync_actions").await.unwrap();
    assert_eq!(watermark(&client).await.sync_id, SyncId(before + 1), "readers hold nothing back");
}

#[tokio::test]
async fn a_prepared_transaction_holds_it_back_and_is_named() {
    let (database, client) = tracker::database().await;
    let (writer, log) = (database.connect().await, find(&client).await);
    let before = watermark(&client).await.sync_id.0;
    let gid = format!("gid {}", database.config().get_dbname().unwrap());
    writer.batch_execute(&format!("BEGIN; {}; PREPARE TRANSACTION '{gid}'", issue("i1"))).await.unwrap();
    let holder = held(&client, &log).await;
    assert!(holder.contains(&format!("prepared transaction '{gid}' of user")), "{holder}");
    client.batch_execute(&format!("COMMIT PREPARED '{gid}'")).await.unwrap();
    assert_eq!(watermark(&client).await.sync_id, SyncId(before + 1));
}

#[tokio::test]
async fn a_transaction_that_is_prepared_during_the_probe_holds_it_back() {
    let (database, client) = tracker::database().await;
    let (writer, prober) = (database.connect().await, database.connect().await);
    let log = find(&client).await;
    let before = watermark(&client).await.sync_id.0;
    let gid = format!("late {}", database.config().get_dbname().unwrap());
    writer.batch_execute(&format!("BEGIN; {}", issue("i1"))).await.unwrap();
    let probing = tokio::spawn(async move { probe(&prober, &log, PATIENCE).await });
    let polls = "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()
                 AND query LIKE '%virtualtransaction%'";
    while client.query(polls, &[]).await.unwrap().is_empty() {}
    writer.batch_execute(&format!("PREPARE TRANSACTION '{gid}'")).await.unwrap();
    for _ in 0..200 {
        assert!(!probing.is_finished(), "the probe passed a prepared transaction");
        client.query(polls, &[]).await.unwrap();
    }
    client.batch_execute(&format!("COMMIT PREPARED '{gid}'")).await.unwrap();
    assert_eq!(probing.await.unwrap().unwrap().sync_id, SyncId(before + 1));
}

#[tokio::test]
async fn writers_of_partitions_hold_it_back() {
    let database = crate::support::postgres::Database::create().await;
    let (client, writer) = (database.connect().await, database.connect().await);
    let tables = "CREATE SEQUENCE ids;
        CREATE TABLE sync_actions (id bigint NOT NULL DEFAULT nextval('ids'), org text, model text, model_id text,
            action text, groups text[], created_at timestamptz) PARTITION BY RANGE (id);
        CREATE TABLE part PARTITION OF sync_actions FOR VALUES FROM (0) TO (1000) PARTITION BY RANGE (id);
        CREATE TABLE leaf PARTITION OF part FOR VALUES FROM (0) TO (1000);
        CREATE TABLE sync_actions_floor (floor bigint NOT NULL); INSERT INTO sync_actions_floor VALUES (0)";
    client.batch_execute(tables).await.unwrap();
    let log = find(&client).await;
    assert_eq!(log.sequence, r#""public"."ids""#);
    writer.batch_execute("BEGIN; INSERT INTO leaf (org) VALUES ('o')").await.unwrap();
    held(&client, &log).await;
    writer.batch_execute("COMMIT").await.unwrap();
    assert_eq!(watermark(&client).await.sync_id, SyncId(1));

    // One that was made after the snapshot of the statement that lists writers.
    client.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1").await.unwrap();
    let made = "CREATE TABLE late PARTITION OF sync_actions FOR VALUES FROM (1000) TO (2000)";
    writer.batch_execute(made).await.unwrap();
    writer.batch_execute("SELECT setval('ids', 1000); BEGIN; INSERT INTO late (org) VALUES ('o')").await.unwrap();
    held(&client, &log).await;
    client.batch_execute("COMMIT").await.unwrap();
    writer.batch_execute("COMMIT").await.unwrap();
    assert_eq!(watermark(&client).await.sync_id, SyncId(1001));
}

#[tokio::test]
async fn the_epoch_is_that_of_one_log() {
    let (_database, client) = tracker::database().await;
    client.batch_execute(&issue("i1")).await.unwrap();
    let first = watermark(&client).await;
    client.batch_execute("ALTER TABLE sync_actions ADD COLUMN note text; VACUUM FULL sync_actions").await.unwrap_or(());
    client.batch_execute("VACUUM FULL sync_actions").await.unwrap();
    assert_eq!(watermark(&client).await, first, "maintenance is no new history");
    client.batch_execute("TRUNCATE sync_actions RESTART IDENTITY").await.unwrap();
    let restarted = watermark(&client).await;
    assert_eq!(restarted.sync_id, SyncId::ZERO);
    assert_ne!(restarted.epoch, first.epoch);
    client.batch_execute("DROP TABLE sync_actions").await.unwrap();
    tracker::migrate(&client, tracker::CATALOG).await;
    let remade = watermark(&client).await;
    assert!(remade.epoch != first.epoch && remade.epoch != restarted.epoch);
}

#[tokio::test]
async fn a_role_that_may_only_read_the_log_can_probe() {
    let (database, client) = tracker::database().await;
    let role = format!("reader_{}", database.config().get_dbname().unwrap());
    client.batch_execute(&format!("CREATE ROLE {role} LOGIN; GRANT SELECT ON sync_actions TO {role}")).await.unwrap();
    client.batch_execute(&issue("i1")).await.unwrap();
    let mut config = database.config().clone();
    let reader = cluster::connect(config.user(&role)).await;
    let denied = probe(&reader, &find(&reader).await, PATIENCE).await;
    assert!(matches!(&denied, Err(SourceError::Schema(_) | SourceError::Failed { .. })), "{denied:?}");
    client.batch_execute(&format!("GRANT SELECT ON sync_actions_id_seq TO {role}")).await.unwrap();
    assert_eq!(watermark(&reader).await, watermark(&client).await);
    client.batch_execute(&format!("DROP OWNED BY {role}; DROP ROLE {role}")).await.unwrap();
}

/// With the WAL writer stopped, only commits flush.
async fn stop_wal_writer(cluster: &Cluster, client: &Client) {
    let sql = "SELECT pid FROM pg_stat_activity WHERE backend_type IN ('walwriter', 'background writer')";
    for row in client.query(sql, &[]).await.unwrap() {
        cluster.signal("-STOP", row.get(0));
    }
}

const BURST: &str = "BEGIN;
    INSERT INTO issue SELECT 'burst' || n, 'o', 'a' FROM generate_series(1, 200) n;
    ROLLBACK";

#[tokio::test]
async fn ids_that_a_crash_gives_out_again_are_above_it() {
    let cluster = Cluster::start("");
    let client = cluster.connect().await;
    client.batch_execute(tracker::TABLES).await.unwrap();
    tracker::migrate(&client, tracker::CATALOG).await;
    let last = "SELECT last_value FROM sync_actions_id_seq";

    // What would be without the fourth step: the sequence falls back behind what a reader has seen of it.
    stop_wal_writer(&cluster, &client).await;
    client.batch_execute(BURST).await.unwrap();
    let seen: i64 = client.query_one(last, &[]).await.unwrap().get(0);
    cluster.crash();
    cluster.start_again();
    let client = cluster.connect().await;
    let recovered: i64 = client.query_one(last, &[]).await.unwrap().get(0);
    assert!(recovered < seen, "the burst was flushed ({recovered} of {seen}): this test shows nothing");

    let before = watermark(&client).await;
    stop_wal_writer(&cluster, &client).await;
    client.batch_execute(BURST).await.unwrap();
    let found = watermark(&client).await;
    assert!(found.sync_id.0 >= before.sync_id.0 + 200);
    cluster.crash();
    cluster.start_again();
    let client = cluster.connect().await;
    client.batch_execute(&issue("after")).await.unwrap();
    let next: i64 = client.query_one("SELECT min(id) FROM sync_actions", &[]).await.unwrap().get(0);
    assert!(next.unsigned_abs() > found.sync_id.0, "{next} was drawn again below {found:?}");
    assert_eq!(watermark(&client).await.epoch, found.epoch, "a crash is no new history");
}

#[tokio::test]
async fn a_standby_is_refused_and_its_promotion_is_another_epoch() {
    let primary = Cluster::start("");
    let client = primary.connect().await;
    client.batch_execute(tracker::TABLES).await.unwrap();
    tracker::migrate(&client, tracker::CATALOG).await;
    client.batch_execute(&issue("i1")).await.unwrap();
    let before = watermark(&client).await;
    let standby = primary.standby();
    let reader = standby.connect().await;
    let log = find(&reader).await;
    let refused = probe(&reader, &log, PATIENCE).await.unwrap_err();
    assert!(refused.source().is_some_and(|cause| cause.to_string() == Standby.to_string()), "{refused:?}");
    standby.promote();
    let after = probe(&reader, &log, PATIENCE).await.unwrap();
    assert_ne!(after.epoch, before.epoch);
    assert_eq!(watermark(&client).await, before, "the old primary goes on as before");
}

/// Writers that hold, roll back, prepare and write in savepoints, while readers take watermarks: what is visible up to a
/// watermark when it is given out is all that ever will be.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_up_to_a_watermark_becomes_visible_later() {
    let dice = Dice::seeded();
    println!("seed {}", dice.seed());
    let (database, client) = tracker::database().await;
    let database = Arc::new(database);
    let stop = Arc::new(AtomicBool::new(false));
    let writers: Vec<_> = (0..8)
        .map(|name| {
            let (database, stop) = (Arc::clone(&database), Arc::clone(&stop));
            let mut dice = dice.fork(name);
            tokio::spawn(async move {
                let client = database.connect().await;
                let mut count = 0;
                while !stop.load(Ordering::Relaxed) {
                    count += 1;
                    write_once(&client, &mut dice, &format!("w{name}n{count}")).await;
                }
            })
        })
        .collect();
    let log = find(&client).await;
    let visible = "SELECT count(*) FROM sync_actions WHERE id <= $1";
    let mut given = Vec::new();
    let began = tokio::time::Instant::now();
    while given.len() < 100 || began.elapsed() < Duration::from_secs(3) {
        let found = probe(&client, &log, PATIENCE).await.unwrap().sync_id;
        let id = i64::try_from(found.0).unwrap();
        given.push((id, client.query_one(visible, &[&id]).await.unwrap().get::<_, i64>(0)));
    }
    stop.store(true, Ordering::Relaxed);
    for writer in writers {
        writer.await.unwrap();
    }
    for (id, count) in &given {
        let now: i64 = client.query_one(visible, &[id]).await.unwrap().get(0);
        assert_eq!(now, *count, "of the actions up to {id}, {} were not visible yet", now - count);
    }
    let last = given.last().unwrap();
    assert!(last.1 > 100, "the writers wrote only {} actions", last.1);
    println!("{} watermarks, {} actions up to {}", given.len(), last.1, last.0);
}

async fn write_once(client: &Client, dice: &mut Dice, name: &str) {
    let hold = "SELECT 1;".repeat(dice.below(4));
    let mut sql = String::from("BEGIN;");
    for part in 0..=dice.below(3) {
        sql.push_str(&format!("INSERT INTO issue VALUES ('{name}p{part}', 'o', 'a'); {hold}"));
        if dice.below(4) == 0 {
            sql.push_str(&format!("SAVEPOINT s; INSERT INTO issue VALUES ('{name}s{part}', 'o'); ROLLBACK TO s;"));
        }
    }
    client.batch_execute(&sql).await.unwrap();
    for _ in 0..dice.below(20) {
        client.batch_execute("SELECT 1").await.unwrap();
    }
    let end = match dice.below(6) {
        0 => "ROLLBACK".to_owned(),
        1 => format!("PREPARE TRANSACTION '{name}'; COMMIT PREPARED '{name}'"),
        _ => "COMMIT".to_owned(),
    };
    if let Some((prepare, commit)) = end.split_once("; ") {
        // The shared server may have no room for another prepared transaction; then it is rolled back.
        if client.batch_execute(prepare).await.is_ok() {
            client.batch_execute(commit).await.unwrap();
        }
    } else {
        client.batch_execute(&end).await.unwrap();
    }
}

#[tokio::test]
async fn marks_are_kept_while_a_snapshot_may_need_them() {
    let (database, client) = tracker::database().await;
    let catalog = tracker::catalog(tracker::CATALOG);
    let old = database.connect().await;
    old.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1 FROM issue").await.unwrap();
    client.batch_execute(&format!("{}; INSERT INTO comment VALUES ('c1', 'i1')", issue("i1"))).await.unwrap();
    let marks = "SELECT count(*) FROM sync_actions_marks";
    trim_marks(&client, catalog.log()).await.unwrap();
    assert_eq!(client.query_one(marks, &[]).await.unwrap().get::<_, i64>(0), 1);
    old.batch_execute("COMMIT").await.unwrap();
    // Other tests' transactions on the same server may be older still; they end.
    while client.query_one(marks, &[]).await.unwrap().get::<_, i64>(0) > 0 {
        trim_marks(&client, catalog.log()).await.unwrap();
    }
}
