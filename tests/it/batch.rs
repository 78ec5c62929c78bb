//! Batches through the doors a user uses: the real binary and HTTP, against what SQL says, while PostgreSQL itself counts
//! the statements.

use futures_util::future::join_all;
use reqwest::header::ACCEPT_ENCODING;
use reqwest::{Response, StatusCode};
use serde_json::{Value, json};
use tokio_postgres::Client;

use crate::support::dice::Dice;
use crate::support::postgres::{Database, wait_for};
use crate::support::proxy::{Mode, Proxy};
use crate::support::server::{Server, Setup, decode};
use crate::support::studio::{self, Lines, parse, visible};

/// The studio's catalog with more keys, one of them of an array, and one model that only batches give.
fn catalog() -> String {
    let catalog = studio::CATALOG
        .replace("rename = { due = \"period\" }", "rename = { due = \"period\" }\nkeys = [\"circleIds\", \"mood\"]")
        .replace("groups = { user = \"owner\" }", "groups = { user = \"owner\" }\nkeys = [\"owner\", \"taskId\"]");
    let star = catalog.find("name = \"Star\"").unwrap();
    format!("{}{}", &catalog[..star], catalog[star..].replacen("load = \"instant\"", "load = \"explicit\"", 1))
}

async fn studio(scale: i32) -> (Database, Client, Setup) {
    let (database, client, setup) = studio::with_log(scale, &catalog()).await;
    client.batch_execute("CREATE EXTENSION pg_stat_statements").await.unwrap();
    (database, client, setup)
}

fn by_id(model: &str, id: impl ToString) -> Value {
    json!({"modelName": model, "id": id.to_string()})
}

fn by_key(model: &str, key: &str, value: impl ToString) -> Value {
    json!({"modelName": model, "indexedKey": key, "keyValue": value.to_string()})
}

async fn post(server: &Server, token: &str, body: String, encoding: &str) -> Response {
    let request = server.client.post(format!("{}/sync/batch", server.base)).bearer_auth(token);
    let request = request.header("content-type", "application/json").header(ACCEPT_ENCODING, encoding);
    request.body(body).send().await.unwrap()
}

/// A whole answer: its lines and its metadata.
async fn ask(server: &Server, token: &str, requests: &[Value], encoding: &str) -> (Lines, Value) {
    let answer = post(server, token, json!({ "requests": requests }).to_string(), encoding).await;
    let status = answer.status();
    let sent =
        answer.headers().get("content-encoding").map_or("identity".into(), |name| name.to_str().unwrap().to_owned());
    let body = answer.bytes().await.unwrap();
    assert_eq!(status, 200, "{}", String::from_utf8_lossy(&body));
    assert_eq!(sent, encoding);
    parse(&decode(encoding, &body))
}

async fn problem(server: &Server, token: &str, body: impl ToString) -> (StatusCode, Value) {
    let answer = post(server, token, body.to_string(), "identity").await;
    let status = answer.status();
    (status, serde_json::from_slice(&answer.bytes().await.unwrap()).unwrap())
}

/// Those of a user's lines that a request asks for.
fn matching(lines: &[Value], request: &Value) -> Lines {
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let field = request["indexedKey"].as_str().unwrap_or("id");
    let wanted = request.get("keyValue").unwrap_or(&request["id"]).as_str().unwrap();
    let holds = |value: &Value| match value {
        Value::Array(elements) => elements.iter().any(|element| text(element) == wanted),
        one => text(one) == wanted,
    };
    let of = |line: &&Value| line["__class"] == request["modelName"] && holds(&line[field]);
    lines.iter().filter(of).map(Value::to_string).collect()
}

/// How many look-ups PostgreSQL ran in this database.
async fn lookups(client: &Client) -> i64 {
    let sql = "SELECT coalesce(sum(calls), 0)::bigint FROM pg_stat_statements \
               WHERE dbid = (SELECT oid FROM pg_database WHERE datname = current_database()) \
                 AND query LIKE '%FROM % AS t0%' AND query LIKE '%OPERATOR(pg\\_catalog.%'";
    client.query_one(sql, &[]).await.unwrap().get(0)
}

/// How many statements wait for a lock.
const WAITING: &str =
    "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'";

const MODELS: &[&str] = &["Workspace", "Project", "Task", "Note", "Star"];

#[tokio::test]
async fn every_answer_is_what_sql_says() {
    let (_database, client, setup) = studio(40).await;
    let server = setup.serve().await;
    let mut dice = Dice::seeded();
    println!("seed {}", dice.seed());
    let texts = async |sql: &str| -> Vec<String> {
        client.query(sql, &[]).await.unwrap().iter().map(|row| row.get(0)).collect()
    };
    let projects = texts("SELECT id::text FROM studio.\"Project\"").await;
    let tasks = texts("SELECT id::text FROM studio.task").await;
    for (org, person, groups) in studio::CALLERS {
        let token = setup.token(&org.to_string(), person, groups);
        let list: Option<Vec<&str>> = groups.map(|groups| groups.split(',').collect());
        let seen = visible(&client, org, person, list.as_deref(), MODELS).await;
        let seen: Vec<Value> = seen.iter().map(|line| serde_json::from_str(line).unwrap()).collect();
        for round in 0..12 {
            let requests: Vec<Value> = (0..1 + dice.below(30))
                .map(|_| match dice.below(11) {
                    0 => by_id("Workspace", 7 + dice.below(3)),
                    1 => by_id("Project", &projects[dice.below(projects.len())]),
                    2 => by_key("Project", "circleIds", dice.below(5)),
                    3 => by_key("Project", "mood", ["calm", "so-so", "hectic", "none"][dice.below(4)]),
                    4 => by_id("Task", &tasks[dice.below(tasks.len())]),
                    5 | 6 => by_key("Task", "projectId", &projects[dice.below(projects.len())]),
                    7 => by_key("Note", "taskId", &tasks[dice.below(tasks.len())]),
                    8 => by_id("Star", dice.below(70)),
                    9 => by_key("Star", "owner", ["ann", "bob", "cy", "dee"][dice.below(4)]),
                    _ => by_key("Star", "taskId", dice.below(70)),
                })
                .collect();
            let mut expected: Lines = requests.iter().flat_map(|request| matching(&seen, request)).collect();
            expected.sort_unstable();
            expected.dedup();
            let (lines, metadata) = ask(&server, &token, &requests, ["zstd", "gzip", "identity"][round % 3]).await;
            assert_eq!(lines, expected, "{person} of {org}: {requests:?}");
            assert_eq!(metadata["method"], "postgres");
            let asked: std::collections::BTreeSet<&str> =
                requests.iter().map(|request| request["modelName"].as_str().unwrap()).collect();
            let counted = metadata["returnedModelsCount"].as_object().unwrap();
            assert!(asked.into_iter().eq(counted.keys().map(String::as_str)), "{metadata}");
        }
    }
}

#[tokio::test]
async fn keys_are_found_however_they_are_written() {
    let (_database, client, setup) = studio(5).await;
    let server = setup.serve().await;
    let token = setup.token("7", "ann", None);
    let id: String = client
        .query_one("SELECT id::text FROM studio.\"Project\" WHERE workspace_id = 7 AND circle_ids = '{1}' LIMIT 1", &[])
        .await
        .unwrap()
        .get(0);
    let requests = [
        by_id("Project", id.to_uppercase()),
        by_id("Project", format!("{{{}}}", id.replace('-', ""))),
        by_id("Workspace", "007"),
    ];
    let before = lookups(&client).await;
    let (lines, metadata) = ask(&server, &token, &requests, "identity").await;
    assert_eq!(lines.len(), 2, "{lines:?}");
    assert_eq!(metadata["returnedModelsCount"], json!({"Project": 1, "Workspace": 1}));
    assert_eq!(lookups(&client).await - before, 2, "one statement a model");
}

#[tokio::test]
async fn callers_who_come_together_share_statements_but_not_rows() {
    let (_database, client, mut setup) = studio(40).await;
    setup.set("HEADSTART_LOADER_STATEMENTS", "2");
    let server = setup.serve().await;
    let people = [("7", "ann"), ("7", "bob"), ("7", "x")].map(|(org, person)| (person, setup.token(org, person, None)));
    let projects = client.query("SELECT id::text FROM studio.\"Project\" WHERE workspace_id = 7", &[]).await.unwrap();
    let projects: Vec<String> = projects.iter().map(|row| row.get(0)).collect();
    let requests: Vec<Value> = projects.iter().map(|project| by_key("Task", "projectId", project)).collect();
    let mut expected = Vec::new();
    for (person, token) in &people {
        expected.push(visible(&client, 7, person, None, &["Task"]).await);
        ask(&server, token, &requests, "zstd").await;
    }
    assert!(expected[0] != expected[1] && expected[1] != expected[2]);
    let before = lookups(&client).await;
    // A lock that look-ups wait for gathers everyone who comes meanwhile.
    let mut locker = _database.connect().await;
    let lock = locker.transaction().await.unwrap();
    lock.batch_execute("LOCK TABLE studio.task IN ACCESS EXCLUSIVE MODE").await.unwrap();
    let all = join_all((0..60).map(|client| ask(&server, &people[client % 3].1, &requests, "zstd")));
    let release = async {
        wait_for(&client, WAITING, 1).await;
        tokio::time::sleep(std::time::Duration::from_millis(300)).await;
        lock.rollback().await.unwrap();
    };
    let (answers, ()) = tokio::join!(all, release);
    for (client, (lines, _)) in answers.iter().enumerate() {
        assert_eq!(*lines, expected[client % 3], "client {client}");
    }
    let statements = lookups(&client).await - before;
    assert!((1..=3).contains(&statements), "{statements} statements for 60 callers of 20 keys");
    let sql = "SELECT coalesce(sum(calls), 0)::bigint FROM pg_stat_statements \
               WHERE dbid = (SELECT oid FROM pg_database WHERE datname = current_database()) \
                 AND query LIKE '%circle\\_member%' AND query LIKE '%asked.member%'";
    let reads: i64 = client.query_one(sql, &[]).await.unwrap().get(0);
    assert!((4..30).contains(&reads), "{reads} reads of memberships for 63 answers");
}

#[tokio::test]
async fn what_makes_no_sense_is_named_and_nothing_is_read() {
    let (_database, client, mut setup) = studio(5).await;
    setup.set("HEADSTART_BATCH_MAX_REQUESTS", "3").set("HEADSTART_BATCH_MAX_BODY_BYTES", "2000");
    setup.set("HEADSTART_BATCH_MAX_KEY_BYTES", "100").set("HEADSTART_BATCH_MAX_ROWS", "4");
    let server = setup.serve().await;
    let token = setup.token("7", "ann", None);
    let good = by_id("Workspace", 7);
    let before = lookups(&client).await;
    let requests = |requests: Value| json!({ "requests": requests }).to_string();
    for (body, status, code, field) in [
        ("".to_owned(), 422, "INVALID_BODY", "body"),
        ("[]".into(), 422, "INVALID_BODY", "body"),
        (requests(json!([])), 422, "INVALID_BODY", "requests"),
        (json!({"requests": [good], "onlyModels": "Task"}).to_string(), 422, "INVALID_BODY", "onlyModels"),
        (json!({"requests": [good], "firstSyncId": -1}).to_string(), 422, "INVALID_BODY", "firstSyncId"),
        (requests(json!([good, {"modelName": "Task"}])), 422, "INVALID_BODY", "requests[1].id"),
        (requests(json!([good, by_id("Nope", 1)])), 422, "UNKNOWN_MODEL", "requests[1].modelName"),
        (requests(json!([good, by_key("Task", "title", "x")])), 422, "INVALID_KEY", "requests[1].indexedKey"),
        (requests(json!([good, by_key("Task", "secret", "x")])), 422, "INVALID_KEY", "requests[1].indexedKey"),
        (
            requests(json!([good, by_key("Task", "projectId", "not-a-uuid")])),
            422,
            "INVALID_KEY",
            "requests[1].keyValue",
        ),
        (
            requests(json!([good, by_key("Note", "taskId", "9223372036854775808")])),
            422,
            "INVALID_KEY",
            "requests[1].keyValue",
        ),
        (
            requests(json!([good, by_key("Project", "circleIds", "2147483648")])),
            422,
            "INVALID_KEY",
            "requests[1].keyValue",
        ),
        (requests(json!([good, by_key("Star", "owner", "a\0b")])), 422, "INVALID_KEY", "requests[1].keyValue"),
        (requests(json!([good, by_id("Task", "' OR true --")])), 422, "INVALID_KEY", "requests[1].id"),
        (requests(json!([good, good, good, good])), 413, "REQUEST_TOO_LARGE", "requests"),
        (
            requests(json!([good, by_key("Star", "owner", "x".repeat(101))])),
            413,
            "REQUEST_TOO_LARGE",
            "requests[1].keyValue",
        ),
        (" ".repeat(2001), 413, "REQUEST_TOO_LARGE", "body"),
    ] {
        let (got, problem) = problem(&server, &token, &body).await;
        assert_eq!(
            (got.as_u16(), &problem["code"], &problem["field"]),
            (status, &code.into(), &field.into()),
            "{body}: {problem}"
        );
    }
    assert_eq!(lookups(&client).await, before, "nothing was read");
    let (status, problem) = problem(&server, &token, requests(json!([by_key("Star", "owner", "ann")]))).await;
    assert_eq!(
        (status.as_u16(), &problem["code"], &problem["field"]),
        (413, &"ANSWER_TOO_LARGE".into(), &"requests".into())
    );
    let url = format!("{}/sync/batch", server.base);
    let form = server.client.post(&url).bearer_auth(&token).body("a=b").send().await.unwrap();
    assert_eq!(form.status(), 415);
    assert_eq!(server.client.post(&url).header("content-type", "application/json").send().await.unwrap().status(), 401);
    let get = server.get("/sync/batch", &token).send().await.unwrap();
    assert_eq!((get.status().as_u16(), get.headers()["allow"].to_str().unwrap()), (405, "POST"));
}

#[tokio::test]
async fn no_answer_is_older_than_its_first_sync_id() {
    let (_database, client, setup) = studio(5).await;
    let server = setup.serve().await;
    let token = setup.token("7", "ann", None);
    let ask_at = async |first: i64| {
        let body = json!({"firstSyncId": first, "requests": [by_id("Workspace", 7)]});
        let answer = post(&server, &token, body.to_string(), "identity").await;
        (answer.status().as_u16(), answer.bytes().await.unwrap())
    };
    for round in 0..20 {
        let name = format!("round {round}");
        client.execute("UPDATE studio.workspace SET name = $1 WHERE id = 7", &[&name]).await.unwrap();
        let id: i64 = client.query_one("SELECT max(id) FROM public.sync_actions", &[]).await.unwrap().get(0);
        let (status, body) = ask_at(id).await;
        assert_eq!(status, 200);
        let (lines, metadata) = parse(&body);
        assert!(lines[0].contains(&name), "{lines:?}");
        assert!(metadata["lastSyncId"].as_i64().unwrap() >= id);
    }
    let (status, body) = ask_at(1_000_000).await;
    assert_eq!((status, String::from_utf8_lossy(&body).contains("WATERMARK_HELD")), (503, true));
    // A writer that stays open holds nobody up who does not need it.
    let mut writer = _database.connect().await;
    let open = writer.transaction().await.unwrap();
    open.execute("UPDATE studio.workspace SET name = 'open' WHERE id = 8", &[]).await.unwrap();
    let began = std::time::Instant::now();
    let (status, body) = ask_at(0).await;
    assert_eq!(status, 200);
    assert!(began.elapsed().as_secs() < 2, "{:?}", began.elapsed());
    assert!(parse(&body).0[0].contains("round 19"));
}

#[tokio::test]
async fn tables_that_change_are_read_as_they_are() {
    let (_database, client, setup) = studio(5).await;
    let server = setup.serve().await;
    let token = setup.token("7", "ann", Some("org:7,user:ann,circle:1,circle:2"));
    let requests = [by_key("Star", "owner", "ann")];
    let before = join_all((0..8).map(|_| ask(&server, &token, &requests, "identity"))).await.remove(0);
    client.batch_execute("ALTER TABLE studio.star ALTER COLUMN task_id TYPE int").await.unwrap();
    for _ in 0..8 {
        let (lines, metadata) = ask(&server, &token, &requests, "identity").await;
        assert_eq!(lines.len(), before.0.len());
        assert_ne!(metadata["schemaHash"], before.1["schemaHash"]);
    }
}

#[tokio::test]
async fn a_right_that_is_taken_away_while_rows_are_loaded_is_not_used() {
    let (database, client, setup) = studio(20).await;
    let server = setup.serve().await;
    let token = setup.token("7", "ann", None);
    let requests =
        [by_key("Project", "mood", "calm"), by_key("Project", "mood", "so-so"), by_key("Project", "mood", "hectic")];
    assert!(!ask(&server, &token, &requests, "zstd").await.0.is_empty());
    let mut locker = database.connect().await;
    let lock = locker.transaction().await.unwrap();
    lock.batch_execute("LOCK TABLE studio.\"Project\" IN ACCESS EXCLUSIVE MODE").await.unwrap();
    let revoke = async {
        wait_for(&client, WAITING, 1).await;
        client.batch_execute("DELETE FROM studio.circle_member WHERE workspace_id = 7").await.unwrap();
        lock.rollback().await.unwrap();
    };
    let ((lines, metadata), ()) = tokio::join!(ask(&server, &token, &requests, "zstd"), revoke);
    assert_eq!(metadata["subscribedSyncGroups"], json!(["org:7", "user:ann"]));
    let seen = visible(&client, 7, "ann", None, &["Project"]).await;
    assert!(lines.iter().all(|line| seen.contains(line)), "{lines:?}");
}

/// The studio behind a proxy.
async fn behind_a_proxy(setup: &mut Setup, database: &Database) -> Proxy {
    let config = database.config();
    let tokio_postgres::config::Host::Tcp(host) = &config.get_hosts()[0] else { panic!("tests use TCP") };
    let proxy = Proxy::start(format!("{host}:{}", config.get_ports()[0])).await;
    let through = database.url().replace(&format!(":{}/", config.get_ports()[0]), &format!(":{}/", proxy.port));
    setup.set("HEADSTART_POSTGRES_URL", through);
    proxy
}

#[tokio::test]
async fn a_database_that_stalls_or_dies_costs_an_error_by_the_deadline() {
    let (database, client, mut setup) = studio(20).await;
    let proxy = behind_a_proxy(&mut setup, &database).await;
    setup.set("HEADSTART_BATCH_DEADLINE_MS", "700");
    let server = setup.serve().await;
    let token = setup.token("7", "x", Some("org:7,circle:1,circle:2"));
    let requests = [by_key("Star", "owner", "ann"), by_id("Workspace", 7)];
    let body = json!({ "requests": requests }).to_string();
    let good = ask(&server, &token, &requests, "zstd").await.0;
    assert_eq!(good.len(), 1);
    let refused = async || {
        let began = std::time::Instant::now();
        let answers = join_all((0..20).map(|_| post(&server, &token, body.clone(), "identity"))).await;
        for answer in answers {
            assert_eq!(answer.status(), 503);
            assert!(answer.headers().contains_key("retry-after"));
            assert!(answer.text().await.unwrap().contains("DATABASE_UNAVAILABLE"));
        }
        began.elapsed()
    };
    for round in 0..3 {
        proxy.set(Mode::StallAfter(0));
        let took = refused().await;
        assert!(took.as_millis() < 2500, "round {round}: {took:?}");
        proxy.set(Mode::Cut);
        refused().await;
        proxy.set(Mode::Pass);
        server
            .until("it is answered again", || async {
                post(&server, &token, body.clone(), "zstd").await.status() == 200
            })
            .await;
        assert_eq!(ask(&server, &token, &requests, "zstd").await.0, good, "round {round}");
    }
    // Connections that die in mid-statement: those who waited are told, the next is served.
    let mut locker = client;
    let watcher = database.connect().await;
    let lock = locker.transaction().await.unwrap();
    lock.batch_execute("LOCK TABLE studio.workspace IN ACCESS EXCLUSIVE MODE").await.unwrap();
    let kill = async {
        wait_for(&watcher, WAITING, 1).await;
        let sql = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
                   WHERE datname = current_database() AND wait_event_type = 'Lock'";
        watcher.query(sql, &[]).await.unwrap();
        lock.rollback().await.unwrap();
    };
    tokio::join!(refused(), kill);
    assert_eq!(ask(&server, &token, &requests, "zstd").await.0, good);
}

#[tokio::test]
async fn a_model_whose_changes_are_not_logged_is_refused() {
    let (_database, client, setup) = studio(1).await;
    client.batch_execute("ALTER TABLE studio.star DISABLE TRIGGER ALL").await.unwrap();
    let server = setup.serve().await;
    let token = setup.token("7", "ann", None);
    let refused = post(&server, &token, json!({"requests": [by_id("Star", 1)]}).to_string(), "zstd").await;
    assert_eq!((refused.status().as_u16(), refused.text().await.unwrap().contains("CATALOG_MISMATCH")), (503, true));
    assert_eq!(ask(&server, &token, &[by_id("Workspace", 7)], "zstd").await.0.len(), 1);
}
