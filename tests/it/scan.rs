//! Scans against what SQL says, against rewrites that come in between, and against readers that go away.

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroUsize;
use std::time::Duration;

use futures_util::StreamExt;
use headstart::source::SourceError;
use headstart::source::postgres::scan::ScanError;

use crate::support::postgres::{Database, wait_for};
use crate::support::reader::{Line, Reader, layout, lines};

const TRACKER: &str = r#"
    [[models]]
    name = "Issue"
    table = "Tracker.Issue"
    id = "id"
    org = "organization_id"
    groups = { team = "team_id", user = "watchers" }
    load = "instant"
    filter = "archived_at is null and \"select\" <> 'hidden' -- by hand"
    exclude = ["secret"]
    rename = { "Größe" = "size" }

    [[models]]
    name = "Comment"
    table = "comment"
    id = "id"
    from = { model = "Issue", by = "issue_id" }
    load = "partial"

    [[models]]
    name = "Reaction"
    table = "reaction_view"
    id = "id"
    org = "org"
    from = { model = "Comment", by = "comment_id" }
    load = "lazy"

    [[models]]
    name = "Note"
    table = "note"
    id = "id"
    org = "organization_id"
    groups = { day = "day" }
    ungrouped = "org"
    load = "lazy"

    [[models]]
    name = "Attachment"
    table = "attachment"
    id = "id"
    org = "org"
    from = { model = "Note", by = "note_id" }
    load = "lazy"

    [[models]]
    name = "Label"
    table = "label"
    id = "id"
    org = "organization_id"
    load = "instant"

    [[models]]
    name = "History"
    table = "history"
    id = "id"
    org = "organization_id"
    load = "explicit"
"#;

const TABLES: &str = r#"
    CREATE SCHEMA "Tracker";
    CREATE DOMAIN "Tracker".watchers AS int[];
    CREATE TABLE "Tracker"."Issue" (
        id uuid PRIMARY KEY, organization_id bigint, team_id uuid, watchers "Tracker".watchers, title text,
        "Größe" int, "select" text NOT NULL, archived_at timestamptz, secret text DEFAULT 'secret'
    );
    CREATE TABLE comment (id int PRIMARY KEY, issue_id uuid, archived_at date, body text);
    CREATE TABLE reaction (id int PRIMARY KEY, org int, comment_id int, emoji text);
    CREATE VIEW reaction_view AS SELECT * FROM reaction WHERE emoji <> '';
    CREATE TABLE note (id int PRIMARY KEY, organization_id int, day date) PARTITION BY RANGE (id);
    CREATE TABLE note_low PARTITION OF note FOR VALUES FROM (MINVALUE) TO (100);
    CREATE TABLE note_high PARTITION OF note FOR VALUES FROM (100) TO (MAXVALUE);
    CREATE TABLE attachment (id int PRIMARY KEY, org int, note_id int);
    INSERT INTO attachment SELECT n, n % 3 + 1, n FROM generate_series(1, 600) AS n;
    CREATE TABLE label (id int PRIMARY KEY, organization_id smallint, name text);
    CREATE TABLE history (id int PRIMARY KEY, organization_id int);
    INSERT INTO "Tracker"."Issue"
    SELECT md5(n::text)::uuid, n % 3 + 1, CASE WHEN n % 5 > 0 THEN md5((n % 4)::text)::uuid END,
           CASE n % 4 WHEN 0 THEN '{}'::int[] WHEN 1 THEN ARRAY[n % 7, NULL, 7] WHEN 2 THEN ARRAY[[1, 2], [n % 3, 1]] END,
           'issue ' || n, n, CASE WHEN n % 11 = 0 THEN 'hidden' ELSE 'shown' END, CASE WHEN n % 13 = 0 THEN now() END
    FROM generate_series(1, 600) AS n;
    INSERT INTO comment
    SELECT n, CASE WHEN n % 10 > 0 THEN md5((n % 650)::text)::uuid END, NULL, 'comment ' || n
    FROM generate_series(1, 2000) AS n;
    INSERT INTO reaction SELECT n, n % 3 + 1, n % 2100, left('👍❤', n % 3) FROM generate_series(1, 3000) AS n;
    INSERT INTO note SELECT n, n % 3 + 1, CASE WHEN n % 4 > 0 THEN date '2024-01-01' + n % 9 END FROM generate_series(1, 300) AS n;
    INSERT INTO label SELECT n, n % 3 + 1, 'label' FROM generate_series(1, 10) AS n;
    INSERT INTO history SELECT n, 1 FROM generate_series(1, 10) AS n;
"#;

/// What the catalog means, in SQL written by hand: class, id, groups.
const MEANING: &str = r#"
    WITH issue AS (
        SELECT *, ARRAY(
            SELECT g FROM (
                SELECT 'team:' || team_id WHERE team_id IS NOT NULL
                UNION ALL SELECT 'user:' || w FROM unnest(watchers) AS w WHERE w IS NOT NULL
            ) AS found(g) GROUP BY g ORDER BY g COLLATE "C"
        ) AS groups
        FROM "Tracker"."Issue"
    )
    SELECT 'Issue', id::text, groups FROM issue
    WHERE organization_id = $1 AND archived_at IS NULL AND "select" <> 'hidden' AND groups <> '{}'
    UNION ALL
    SELECT 'Comment', c.id::text, groups FROM comment AS c JOIN issue AS i ON i.id = c.issue_id
    WHERE i.organization_id = $1 AND groups <> '{}'
    UNION ALL
    SELECT 'Reaction', r.id::text, groups
    FROM reaction AS r JOIN comment AS c ON c.id = r.comment_id JOIN issue AS i ON i.id = c.issue_id
    WHERE r.org = $1 AND groups <> '{}' AND emoji <> ''
    UNION ALL
    SELECT 'Note', id::text, ARRAY[coalesce('day:' || day, 'org:' || $1)] FROM note WHERE organization_id = $1
    UNION ALL
    SELECT 'Attachment', a.id::text, ARRAY[coalesce('day:' || n.day, 'org:' || $1)]
    FROM attachment AS a LEFT JOIN note AS n ON n.id = a.note_id WHERE a.org = $1
    UNION ALL
    SELECT 'Label', id::text, ARRAY['org:' || $1] FROM label WHERE organization_id = $1
"#;

async fn tracker() -> (Database, Reader) {
    let database = Database::create().await;
    database.execute(TABLES).await;
    let reader = Reader::new(&database, TRACKER).await;
    (database, reader)
}

fn id(line: &Line) -> String {
    let value: serde_json::Value = serde_json::from_str(&line.text).unwrap();
    value["id"].as_str().map_or_else(|| value["id"].to_string(), str::to_owned)
}

#[tokio::test]
async fn each_org_gets_exactly_its_rows_and_their_groups() {
    let (database, reader) = tracker().await;
    let client = database.connect().await;
    for org in [1_i64, 2, 3, 4] {
        let expected: BTreeSet<(String, String, Vec<String>)> = client
            .query_typed(MEANING, &[(&org, tokio_postgres::types::Type::INT8)])
            .await
            .unwrap()
            .iter()
            .map(|row| (row.get(0), row.get(1), row.get(2)))
            .collect();
        let lines = reader.rows(&org.to_string()).await.unwrap();
        let found: BTreeSet<_> = lines.iter().map(|line| (line.class.clone(), id(line), line.groups.clone())).collect();
        assert_eq!(lines.len(), found.len(), "no row comes twice");
        assert_eq!(found, expected);
        assert_eq!(found.len() > 500, org < 4, "the data is not empty");
    }
    let lines = reader.rows("2").await.unwrap();
    let issue = &lines.iter().find(|line| line.class == "Issue").unwrap().text;
    assert!(issue.contains(r#","size":"#) && issue.contains(r#","select":"shown""#), "{issue}");
    assert!(!issue.contains("secret") && !issue.contains("archivedAt"), "{issue}");
}

#[tokio::test]
async fn one_connection_is_enough_and_more_give_the_same() {
    let (database, mut reader) = tracker().await;
    let lines = reader.rows("1").await.unwrap();
    reader.settings.connections = NonZeroUsize::new(4).unwrap();
    reader.settings.batch_bytes = NonZeroUsize::new(1).unwrap();
    assert_eq!(reader.rows("1").await.unwrap(), lines);
    // The other three are in use, and a scan does not wait for them.
    let mut busy = Vec::new();
    for _ in 0..3 {
        busy.push(reader.pool.get().await.unwrap());
    }
    assert_eq!(reader.rows("1").await.unwrap(), lines);
    drop(database);
}

#[tokio::test]
async fn ids_that_are_no_orgs_are_refused() {
    let (_database, reader) = tracker().await;
    for bad in ["x", "", "01", " 1", "99999999999999999999", "1; DROP TABLE comment", "1.0"] {
        assert!(matches!(reader.rows(bad).await, Err(SourceError::Org(_))), "{bad:?}");
    }
    // Of the type, but wider than some columns.
    assert_eq!(reader.rows("9999999999").await.unwrap(), []);
}

#[tokio::test]
async fn the_planner_says_about_how_many_rows_will_come() {
    let (database, reader) = tracker().await;
    database.execute("ANALYZE").await;
    let opened = reader.open("1").await.unwrap();
    let estimated = opened.estimated_rows;
    // Rows that nobody sees are read, and counted in the estimate, so it is no more than near.
    let rows = lines(opened).await.unwrap().len() as u64;
    assert!((rows / 3..rows * 3).contains(&estimated), "{estimated} for {rows}");
}

/// A table that anyone may rewrite, with rows enough to fill sockets and channels.
const LOOSE: &str = "[[models]]\nname = \"Row\"\ntable = \"loose\"\nid = \"id\"\norg = \"org\"\nload = \"instant\"\n";

async fn loose(rows: u32) -> (Database, Reader) {
    let database = Database::create().await;
    database
        .execute(&format!(
            "CREATE TABLE loose (id int PRIMARY KEY, org text NOT NULL, n int, filler text);
             INSERT INTO loose SELECT n, 'o', n, repeat('x', 2000) FROM generate_series(1, {rows}) AS n;"
        ))
        .await;
    let reader = Reader::new(&database, LOOSE).await;
    (database, reader)
}

const WAITING: &str =
    "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'";
const OURS_OPEN: &str = "SELECT count(*) FROM pg_stat_activity
    WHERE datname = current_database() AND application_name = 'headstart' AND xact_start IS NOT NULL";

#[tokio::test]
async fn a_rewrite_waits_for_the_scan() {
    for rewrite in ["TRUNCATE loose", "ALTER TABLE loose ALTER n TYPE bigint", "DROP TABLE loose"] {
        let (database, reader) = loose(2_000).await;
        let (client, watcher) = (database.connect().await, database.connect().await);
        let opened = reader.open("o").await.unwrap();
        let writer = tokio::spawn(async move { client.batch_execute(rewrite).await });
        wait_for(&watcher, WAITING, 1).await;
        // Whoever joins now must not wait behind the rewrite; the scan goes on with what it has.
        assert_eq!(lines(opened).await.unwrap().len(), 2_000, "{rewrite}");
        writer.await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn a_scan_waits_for_the_rewrite_or_says_that_the_tables_changed() {
    let (database, mut reader) = loose(500).await;
    let (writer, watcher) = (database.connect().await, database.connect().await);
    // The snapshot is taken after the lock: all rows, not the empty table an older snapshot would see.
    writer
        .batch_execute("BEGIN; CREATE TABLE kept AS TABLE loose; TRUNCATE loose; INSERT INTO loose TABLE kept")
        .await
        .unwrap();
    let (rows, ()) = tokio::join!(reader.rows("o"), async {
        wait_for(&watcher, WAITING, 1).await;
        writer.batch_execute("COMMIT").await.unwrap();
    });
    assert_eq!(rows.unwrap().len(), 500);

    writer.batch_execute("BEGIN; ALTER TABLE loose ALTER n TYPE bigint").await.unwrap();
    let (opened, ()) = tokio::join!(reader.open("o"), async {
        wait_for(&watcher, WAITING, 1).await;
        writer.batch_execute("COMMIT").await.unwrap();
    });
    assert!(matches!(opened, Err(ScanError::Changed)));
    reader.layout = layout(&reader.pool, LOOSE).await.unwrap();
    assert_eq!(reader.rows("o").await.unwrap().len(), 500);

    reader.settings.lock_timeout_ms = 50;
    writer.batch_execute("BEGIN; ALTER TABLE loose ALTER n TYPE int").await.unwrap();
    assert!(matches!(reader.open("o").await, Err(ScanError::Source(SourceError::Busy(_)))));
    writer.batch_execute("DROP TABLE loose; COMMIT").await.unwrap();
    assert!(matches!(reader.open("o").await, Err(ScanError::Changed)));
    wait_for(&watcher, OURS_OPEN, 0).await;
}

#[tokio::test]
async fn rewrites_at_any_moment_never_show_an_empty_table() {
    let (database, mut reader) = loose(300).await;
    // Two models, so that a second connection joins, sometimes just after a rewrite began to wait for the first.
    let twice = format!("{LOOSE}{}", LOOSE.replace("\"Row\"", "\"Twin\""));
    reader.layout = layout(&reader.pool, &twice).await.unwrap();
    let rewriter = database.connect().await;
    let rewriting = tokio::spawn(async move {
        for _ in 0..20 {
            rewriter.batch_execute("ALTER TABLE loose ALTER n TYPE bigint").await.unwrap();
            rewriter.batch_execute("VACUUM FULL loose").await.unwrap();
            rewriter.batch_execute("ALTER TABLE loose ALTER n TYPE int").await.unwrap();
        }
    });
    let (mut read, mut changed) = (0, 0);
    while !rewriting.is_finished() {
        match reader.open("o").await {
            Ok(opened) => {
                assert_eq!(lines(opened).await.unwrap().len(), 600);
                read += 1;
            }
            Err(ScanError::Changed) => {
                reader.layout = layout(&reader.pool, &twice).await.unwrap();
                changed += 1;
            }
            Err(error) => panic!("{error:?}"),
        }
    }
    rewriting.await.unwrap();
    assert!(read > 0 && changed > 0, "{read} read, {changed} changed");
}

#[tokio::test]
async fn a_scan_dropped_midway_leaves_nothing_open() {
    let (database, reader) = loose(20_000).await;
    let watcher = database.connect().await;
    for midway in [0, 1, 3] {
        let mut opened = reader.open("o").await.unwrap();
        wait_for(&watcher, OURS_OPEN, 1).await;
        for _ in 0..midway {
            opened.batches.next().await.unwrap().unwrap();
        }
        drop(opened);
        wait_for(&watcher, OURS_OPEN, 0).await;
    }
    // Opening is given up midway as well.
    let writer = database.connect().await;
    writer.batch_execute("BEGIN; LOCK TABLE loose").await.unwrap();
    let opening = reader.open("o");
    tokio::select! {
        _ = opening => panic!("the table is locked"),
        () = wait_for(&watcher, WAITING, 1) => {}
    }
    wait_for(&watcher, OURS_OPEN, 0).await;
    // The places in the pool are free again.
    writer.batch_execute("COMMIT").await.unwrap();
    assert_eq!(reader.rows("o").await.unwrap().len(), 20_000);
}

#[tokio::test]
async fn an_error_midway_ends_the_stream_with_an_error() {
    let (database, mut reader) = loose(20_000).await;
    database.execute("CREATE TABLE other AS TABLE loose LIMIT 0; CREATE VIEW late AS SELECT id, org, 1 / (id - 15000) AS n, filler FROM loose").await;
    let late = LOOSE.replace("\"Row\"", "\"Late\"").replace("loose", "late");
    let other = LOOSE.replace("\"Row\"", "\"Other\"").replace("loose", "other");
    reader.layout = layout(&reader.pool, &format!("{LOOSE}{late}{other}")).await.unwrap();
    let opened = reader.open("o").await.unwrap();
    assert!(matches!(lines(opened).await, Err(SourceError::Failed { .. })));

    // The server process goes away.
    reader.layout = layout(&reader.pool, LOOSE).await.unwrap();
    let watcher = database.connect().await;
    let mut opened = reader.open("o").await.unwrap();
    opened.batches.next().await.unwrap().unwrap();
    let end = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
               WHERE datname = current_database() AND application_name = 'headstart'";
    watcher.query(end, &[]).await.unwrap();
    let last = loop {
        match opened.batches.next().await.expect("an error before the end") {
            Ok(_) => {}
            Err(error) => break error,
        }
    };
    assert!(matches!(last, SourceError::Unavailable(_)), "{last:?}");
    assert!(opened.batches.next().await.is_none());
    // Dead connections are replaced.
    assert_eq!(reader.rows("o").await.unwrap().len(), 20_000);

    // The service ends.
    let mut opened = reader.open("o").await.unwrap();
    opened.batches.next().await.unwrap().unwrap();
    let shutdown = reader.tasks.shutdown(Duration::from_secs(10));
    let (ended, rest) = tokio::join!(shutdown, opened.batches.collect::<Vec<_>>());
    ended.unwrap();
    assert!(matches!(rest.last(), Some(Err(SourceError::Unavailable(_)))));
    wait_for(&watcher, OURS_OPEN, 0).await;
}

#[tokio::test]
async fn many_small_sets_come_one_after_the_other() {
    let database = Database::create().await;
    database
        .execute(
            "CREATE TABLE favourite (id int PRIMARY KEY, org text, user_id int);
             INSERT INTO favourite SELECT n, 'o', n * 7919 % 500 FROM generate_series(1, 20000) AS n;
             CREATE TABLE issue (id int PRIMARY KEY, org text, team_id int);
             INSERT INTO issue SELECT n, 'o', n % 5 FROM generate_series(1, 20000) AS n;
             ANALYZE;",
        )
        .await;
    let model = |name: &str, groups: &str| {
        let table = name.to_lowercase();
        format!(
            "[[models]]\nname = \"{name}\"\ntable = \"{table}\"\nid = \"id\"\norg = \"org\"\nload = \"lazy\"\ngroups = {groups}\n"
        )
    };
    let catalog = model("Favourite", "{ user = \"user_id\" }") + &model("Issue", "{ team = \"team_id\" }");
    let mut reader = Reader::new(&database, &catalog).await;
    reader.settings.batch_bytes = NonZeroUsize::new(4096).unwrap();
    let mut opened = reader.open("o").await.unwrap();
    let mut begun = BTreeMap::new();
    let mut last = None;
    while let Some(batch) = opened.batches.next().await {
        let batch = batch.unwrap();
        assert_eq!(batch.by_set, batch.model == 0);
        for row in batch.rows.iter().filter(|_| batch.model == 0) {
            if last.replace(row.set) != Some(row.set) {
                *begun.entry(row.set).or_insert(0) += 1;
            }
        }
    }
    assert_eq!(begun.len(), 500);
    assert!(begun.values().all(|times| *times == 1), "each set comes once");
}
