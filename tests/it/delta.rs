//! Deltas and the actions after a snapshot, through HTTP: the real binary, PostgreSQL's own words as the oracle.

use serde_json::{Value, json};
use tokio_postgres::Client;

use crate::support::postgres::Database;
use crate::support::server::{Server, Setup};
use crate::support::studio::{self, visible};

async fn studio() -> (Database, Client, Setup) {
    studio::with_log(5, studio::CATALOG).await
}

/// An answer's lines in their order, and its metadata.
async fn fetch(server: &Server, path: &str, token: &str) -> (Vec<Value>, Value) {
    let answer = server.get(path, token).send().await.unwrap();
    let status = answer.status();
    let body = answer.text().await.unwrap();
    assert_eq!(status, 200, "{path}: {body}");
    let mut lines: Vec<Value> = body.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let metadata = lines.pop().unwrap();
    assert_eq!(metadata["__class"], "_metadata_");
    (lines, metadata)
}

async fn refused(server: &Server, path: &str, token: &str) -> (u16, Value) {
    let answer = server.get(path, token).send().await.unwrap();
    let status = answer.status().as_u16();
    (status, serde_json::from_str(&answer.text().await.unwrap()).unwrap())
}

fn cursor(metadata: &Value) -> String {
    let epoch = metadata["epoch"].as_str().unwrap();
    format!("/sync/delta?lastSyncId={}&epoch={epoch}", metadata["lastSyncId"])
}

/// `letter model id` of each action.
fn told(lines: &[Value]) -> Vec<String> {
    let text = |value: &Value| value.as_str().unwrap_or("-").to_owned();
    let tell = |line: &Value| {
        assert_eq!(line["__class"], "SyncAction", "{line}");
        format!("{} {} {}", text(&line["action"]), text(&line["modelName"]), text(&line["modelId"]))
    };
    lines.iter().map(tell).collect()
}

#[tokio::test]
async fn a_delta_tells_the_last_action_of_each_object_with_its_row() {
    let (_database, client, setup) = studio().await;
    let server = setup.serve().await;
    let ann = setup.token("7", "ann", None);
    let (_, start) = fetch(&server, "/sync/bootstrap", &ann).await;
    assert_eq!(start["returnedModelsCount"]["SyncAction"], 0);
    let (nothing, same) = fetch(&server, &cursor(&start), &ann).await;
    assert_eq!((nothing, &same["lastSyncId"]), (vec![], &start["lastSyncId"]));
    let changes = "
        UPDATE studio.workspace SET name = 'A' WHERE id = 7;
        INSERT INTO studio.star VALUES (100, 7, 'ann', 1), (101, 7, 'bob', 1), (102, 8, 'ann', 1);
        UPDATE studio.workspace SET name = 'B' WHERE id = 7;
        DELETE FROM studio.star WHERE id = 100;
        INSERT INTO studio.star VALUES (103, 7, 'ann', 1)";
    client.batch_execute(changes).await.unwrap();
    let (lines, metadata) = fetch(&server, &cursor(&start), &ann).await;
    assert_eq!(told(&lines), ["U Workspace 7", "D Star 100", "I Star 103"], "{lines:?}");
    let ids: Vec<u64> = lines.iter().map(|line| line["id"].as_u64().unwrap()).collect();
    assert!(ids.is_sorted() && *ids.last().unwrap() <= metadata["lastSyncId"].as_u64().unwrap());
    assert_eq!(lines[0]["data"], json!({"__class": "Workspace", "id": 7, "name": "B"}));
    assert!(lines[1].get("data").is_none());
    assert_eq!(lines[2]["data"]["taskId"], 1);
    assert_eq!(metadata["returnedModelsCount"], json!({"SyncAction": 3}));
    assert_eq!(metadata["schemaHash"], start["schemaHash"]);
    assert!(metadata.get("snapshotSyncId").is_none());
    // Up to a point before the end: what is told is true there, the rest follows.
    let path = format!("{}&toSyncId={}", cursor(&start), ids[0]);
    let (first, part) = fetch(&server, &path, &ann).await;
    assert_eq!(
        (told(&first), part["lastSyncId"].as_u64()),
        (vec!["D Star 100".into(), "U Workspace 7".into()], Some(ids[0]))
    );
    let (rest, whole) = fetch(&server, &cursor(&part), &ann).await;
    assert_eq!(
        (told(&rest), &whole["lastSyncId"]),
        (vec!["D Star 100".into(), "I Star 103".into()], &metadata["lastSyncId"])
    );
}

#[tokio::test]
async fn a_cursor_that_leads_nowhere_is_told_so() {
    let (_database, client, mut setup) = studio().await;
    setup.set("HEADSTART_DELTA_MAX_ACTIONS", "10");
    let server = setup.serve().await;
    let ann = setup.token("7", "ann", None);
    let (_, start) = fetch(&server, "/sync/bootstrap", &ann).await;
    let at = start["lastSyncId"].as_u64().unwrap();
    let epoch = start["epoch"].as_str().unwrap();
    for (query, status, code, field) in [
        ("".into(), 400, "INVALID_QUERY", "lastSyncId"),
        (format!("lastSyncId={at}"), 400, "INVALID_QUERY", "epoch"),
        (format!("lastSyncId=-1&epoch={epoch}"), 400, "INVALID_QUERY", "lastSyncId"),
        (format!("lastSyncId={at}&epoch={epoch}&toSyncId={}", at.saturating_sub(1)), 400, "INVALID_QUERY", "toSyncId"),
        (format!("lastSyncId={at}&epoch=another"), 410, "RESYNC_REQUIRED", "lastSyncId"),
        (format!("lastSyncId={at}&epoch={epoch}&schemaHash=0"), 409, "SCHEMA_MISMATCH", "schemaHash"),
        (format!("lastSyncId={}&epoch={epoch}", at + 1000), 503, "WATERMARK_HELD", ""),
    ] {
        if query.contains("toSyncId") && at == 0 {
            continue;
        }
        let (got, problem) = refused(&server, &format!("/sync/delta?{query}"), &ann).await;
        assert_eq!((got, &problem["code"]), (status, &code.into()), "{query}: {problem}");
        assert_eq!(problem["field"].as_str().unwrap_or_default(), field, "{query}: {problem}");
    }
    assert_eq!(refused(&server, &cursor(&start), "").await.0, 401);
    // More than an answer may hold.
    client
        .batch_execute("INSERT INTO studio.star SELECT n, 7, 'ann', 1 FROM generate_series(200, 209) AS n")
        .await
        .unwrap();
    assert_eq!(fetch(&server, &cursor(&start), &ann).await.0.len(), 10);
    client.batch_execute("INSERT INTO studio.star VALUES (210, 7, 'ann', 1)").await.unwrap();
    let (status, problem) = refused(&server, &cursor(&start), &ann).await;
    assert_eq!((status, &problem["code"]), (410, &"RESYNC_REQUIRED".into()));
    // Trimmed away.
    let (_, now) = fetch(&server, "/sync/bootstrap", &ann).await;
    let trim = format!(
        "BEGIN; UPDATE sync_actions_floor SET floor = {0}; DELETE FROM sync_actions WHERE id <= {0}; COMMIT",
        now["lastSyncId"]
    );
    client.batch_execute(&trim).await.unwrap();
    assert_eq!(refused(&server, &cursor(&start), &ann).await.1["code"], "RESYNC_REQUIRED");
    assert_eq!(fetch(&server, &cursor(&now), &ann).await.0, Vec::<Value>::new());
}

/// Everything a client has, as lines that the oracle gives.
fn applied(rows: &[Value]) -> Vec<String> {
    let mut held = std::collections::BTreeMap::new();
    for row in rows {
        let id = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        if row["__class"] == "SyncAction" {
            let key = (row["modelName"].to_string(), id(&row["modelId"]));
            match row.get("data") {
                Some(data) => held.insert(key, data.to_string()),
                None => held.remove(&key),
            };
        } else {
            held.insert((row["__class"].to_string(), id(&row["id"])), row.to_string());
        }
    }
    let mut lines: Vec<String> = held.into_values().collect();
    lines.sort_unstable();
    lines
}

#[tokio::test]
async fn a_bootstrap_is_caught_up_to_the_watermark() {
    let (_database, client, mut setup) = studio().await;
    setup.set("HEADSTART_FRESHNESS_SOFT_PENDING", "3000").set("HEADSTART_FRESHNESS_HARD_PENDING", "4000");
    let server = setup.serve().await;
    let ann = setup.token("7", "ann", None);
    let (_, start) = fetch(&server, "/sync/bootstrap", &ann).await;
    server.until_published(1).await;
    // A project with all that stands below it leaves, another comes, stars of others change.
    let changes = r#"
        UPDATE studio."Project" SET circle_ids = ARRAY[3] WHERE "displayName" LIKE 'Project "2"%' AND workspace_id = 7;
        UPDATE studio."Project" SET circle_ids = ARRAY[1, 2] WHERE "displayName" LIKE 'Project "9"%' AND workspace_id = 7;
        UPDATE studio.star SET owner = 'ann' WHERE owner = 'bob'"#;
    client.batch_execute(changes).await.unwrap();
    let last: i64 = client.query_one("SELECT max(id) FROM sync_actions", &[]).await.unwrap().get(0);
    let full = ["Workspace", "Project", "Task", "Star"];
    for path in ["/sync/bootstrap".to_owned(), format!("/sync/bootstrap?firstSyncId={last}")] {
        let answer = server.get(&path, &ann).send().await.unwrap();
        assert!(answer.headers().contains_key("content-length"), "few actions: the length is known");
        assert!(!answer.headers().contains_key("etag"));
        assert_eq!(answer.headers()["x-sync-id"], last.to_string().as_str());
        let (lines, metadata) = fetch(&server, &path, &ann).await;
        assert_eq!((&metadata["method"], &metadata["lastSyncId"]), (&"snapshot".into(), &last.into()));
        assert_eq!(metadata["snapshotSyncId"], start["lastSyncId"]);
        let actions = lines.iter().filter(|line| line["__class"] == "SyncAction").count();
        assert_eq!(metadata["returnedModelsCount"]["SyncAction"], actions);
        assert!(actions > 3);
        assert_eq!(applied(&lines), visible(&client, 7, "ann", None, &full).await, "{path}");
    }
    let (lines, metadata) = fetch(&server, "/sync/bootstrap?noSyncPackets=true", &ann).await;
    assert_eq!(metadata["lastSyncId"], start["lastSyncId"]);
    assert!(lines.iter().all(|line| line["__class"] != "SyncAction"));
    assert!(metadata["returnedModelsCount"].get("SyncAction").is_none());
    // Many actions: the length is not known, the answer is the same.
    let changes = r#"UPDATE studio.task SET title = repeat(md5(title), 300);
        INSERT INTO studio.task (id, "projectId", title)
            SELECT id + n * 1000000, "projectId", title FROM studio.task, generate_series(1, 9) n"#;
    client.batch_execute(changes).await.unwrap();
    let answer = server.get("/sync/bootstrap", &ann).send().await.unwrap();
    assert!(!answer.headers().contains_key("content-length"));
    let (lines, metadata) = fetch(&server, "/sync/bootstrap", &ann).await;
    assert_eq!(metadata["method"], "snapshot");
    assert_eq!(applied(&lines), visible(&client, 7, "ann", None, &full).await);
}

#[tokio::test]
async fn who_joins_or_leaves_is_told_and_gets_what_is_theirs() {
    let (_database, client, setup) = studio().await;
    let server = setup.serve().await;
    let bob = setup.token("7", "bob", None);
    let (_, start) = fetch(&server, "/sync/bootstrap", &bob).await;
    server.until_published(1).await;
    client.batch_execute("INSERT INTO studio.circle_member VALUES (7, 'bob', 1)").await.unwrap();
    let (lines, metadata) = fetch(&server, &cursor(&start), &bob).await;
    assert_eq!(told(&lines), ["G - -"]);
    let list = json!(["circle:1", "circle:3", "org:7", "user:bob"]);
    assert_eq!((&lines[0]["data"]["syncGroups"], &metadata["subscribedSyncGroups"]), (&list, &list));
    // The group's rows, from the snapshot that was made before the join and from the actions after it.
    client.batch_execute("UPDATE studio.task SET title = 'New'").await.unwrap();
    let path = format!("/sync/bootstrap?type=partial&syncGroups=circle:1&firstSyncId={}", metadata["lastSyncId"]);
    let (lines, partial) = fetch(&server, &path, &bob).await;
    assert_eq!((&partial["method"], &partial["subscribedSyncGroups"]), (&"snapshot".into(), &list));
    let all = ["Workspace", "Project", "Task", "Star", "Note"];
    let held = applied(&lines);
    for line in visible(&client, 7, "bob", Some(&["circle:1"]), &all).await {
        assert!(held.contains(&line), "{line}");
    }
    // No answer that begins after the leave was committed holds a row of the group.
    client.batch_execute("DELETE FROM studio.circle_member WHERE person = 'bob' AND circle = 1").await.unwrap();
    client.batch_execute("UPDATE studio.task SET title = 'Newer'").await.unwrap();
    let (lines, left) = fetch(&server, &cursor(&partial), &bob).await;
    assert_eq!(left["subscribedSyncGroups"], json!(["circle:3", "org:7", "user:bob"]));
    assert_eq!(lines[0]["action"], "G");
    let mine = visible(&client, 7, "bob", None, &all).await;
    for line in lines.iter().filter_map(|line| line.get("data").filter(|data| data["__class"].is_string())) {
        assert!(mine.contains(&line.to_string()), "{line}");
    }
    assert_eq!(refused(&server, &path, &bob).await.1["code"], "GROUP_NOT_HELD");
    // Whose token lists the groups is told those.
    let fixed = setup.token("7", "bob", Some("user:bob"));
    let (lines, _) = fetch(&server, &cursor(&start), &fixed).await;
    assert_eq!(lines[0]["data"]["syncGroups"], json!(["user:bob"]));
}

#[tokio::test]
async fn the_log_is_kept_for_its_time_and_for_the_snapshots_that_need_it() {
    let (_database, client, mut setup) = studio().await;
    setup.set("HEADSTART_TRIM_INTERVAL_S", "1").set("HEADSTART_TRIM_KEEP_S", "3600").set("HEADSTART_TRIM_BATCH", "7");
    client
        .batch_execute("INSERT INTO studio.star SELECT n, 7, 'ann', 1 FROM generate_series(200, 219) AS n")
        .await
        .unwrap();
    let server = setup.serve().await;
    let (ann, of_eight) = (setup.token("7", "ann", None), setup.token("8", "ann", None));
    let (_, start) = fetch(&server, "/sync/bootstrap", &ann).await;
    server.until_published(1).await;
    client
        .batch_execute("INSERT INTO studio.star SELECT n, 7, 'ann', 1 FROM generate_series(300, 319) AS n")
        .await
        .unwrap();
    fetch(&server, "/sync/bootstrap", &of_eight).await;
    server.until_published(2).await;
    let count = async |what: &str| -> i64 {
        client.query_one(&format!("SELECT count(*) FROM sync_actions WHERE {what}"), &[]).await.unwrap().get(0)
    };
    let all = count("true").await;
    // Two hours go by for all of the log but its last action.
    client.batch_execute("UPDATE sync_actions SET created_at = now() - interval '2 hours'").await.unwrap();
    client.batch_execute("INSERT INTO studio.star VALUES (400, 7, 'ann', 1)").await.unwrap();
    let needed = format!("id > {}", start["lastSyncId"]);
    server.until("the log is trimmed", async || count("true").await < all).await;
    server.until("it is trimmed as far as it may be", async || count(&format!("NOT {needed}")).await == 0).await;
    assert_eq!(count(&needed).await, 21, "the actions after the older snapshot stay");
    let floor: i64 = client.query_one("SELECT floor FROM sync_actions_floor", &[]).await.unwrap().get(0);
    assert_eq!(Some(floor), start["lastSyncId"].as_i64());
    let (lines, metadata) = fetch(&server, "/sync/bootstrap", &ann).await;
    assert_eq!(metadata["method"], "snapshot");
    assert_eq!(applied(&lines), visible(&client, 7, "ann", None, &["Workspace", "Project", "Task", "Star"]).await);
    // What nobody needs goes, but for what is too young.
    fetch(&server, "/sync/bootstrap?noCache=true", &ann).await;
    fetch(&server, "/sync/bootstrap?noCache=true", &of_eight).await;
    server.until_published(4).await;
    server.until("the young stay", async || count("true").await == 1).await;
    client.batch_execute("UPDATE sync_actions SET created_at = now() - interval '2 hours'").await.unwrap();
    drop(server);
    assert_eq!(setup.must(&["migrate", "--trim"]), "done: 1 actions are gone from the log\n");
    let server = setup.serve().await;
    assert_eq!(refused(&server, &cursor(&start), &ann).await.1["code"], "RESYNC_REQUIRED");
}

/// What a filter leaves out is not logged. When the one before it comes back, so does its schema, with the cursors and
/// the snapshot of before: neither may be gone on from.
#[tokio::test]
async fn a_filter_that_is_changed_and_changed_back_leaves_no_gap() {
    let (_database, client, setup) = studio().await;
    let server = setup.serve().await;
    let ann = setup.token("7", "ann", None);
    let (_, start) = fetch(&server, "/sync/bootstrap", &ann).await;
    server.until_published(1).await;
    let other = Setup::new(&setup.env["HEADSTART_POSTGRES_URL"], &studio::CATALOG.replace("not done", "done"));
    assert!(other.must(&["migrate", "--apply"]).contains("raise the log's floor"));
    let moves = r#"UPDATE studio.task SET "projectId" = (SELECT id FROM studio."Project" WHERE workspace_id = 8 LIMIT 1)
        WHERE NOT done"#;
    assert!(client.execute(moves, &[]).await.unwrap() > 0);
    let unlogged = format!("SELECT count(*) FROM sync_actions WHERE id > {} AND model = 'Task'", start["lastSyncId"]);
    assert_eq!(client.query_one(&unlogged, &[]).await.unwrap().get::<_, i64>(0), 0, "the case is there");
    setup.must(&["migrate", "--apply"]);
    let (status, problem) = refused(&server, &cursor(&start), &ann).await;
    assert_eq!((status, &problem["code"]), (410, &"RESYNC_REQUIRED".into()));
    let (lines, metadata) = fetch(&server, "/sync/bootstrap", &ann).await;
    assert_eq!(metadata["method"], "postgres", "the old snapshot is none to begin with");
    let full = ["Workspace", "Project", "Task", "Star"];
    assert_eq!(applied(&lines), visible(&client, 7, "ann", None, &full).await);
    server.until_published(2).await;
    assert!(setup.must(&["verify", "--org", "7"]).starts_with("7\tagrees\t"));
}
