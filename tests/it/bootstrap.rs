//! The main job through the doors a user uses: the real binary, a database that is not the demonstration's, HTTP.
//! PostgreSQL's own `row_to_json` says what the answers must be.

use std::os::unix::fs::MetadataExt as _;

use futures_util::future::join_all;
use reqwest::header::{ACCEPT_ENCODING, CONTENT_LENGTH, ETAG, HeaderMap, IF_NONE_MATCH, IF_RANGE, RANGE};
use serde_json::Value;
use tokio_postgres::Client;

use crate::support::postgres::Database;
use crate::support::proxy::{Mode, Proxy};
use crate::support::required;
use crate::support::server::{Server, Setup, decode};
use crate::support::studio::{self, Lines, parse, visible};

/// Models a full bootstrap brings.
const FULL: &[&str] = &["Workspace", "Project", "Task", "Star"];
const ALL: &[&str] = &["Workspace", "Project", "Task", "Star", "Note"];

async fn studio(scale: i32) -> (Database, Client, Setup) {
    studio::with_log(scale, studio::CATALOG).await
}

/// A whole answer in one encoding: its lines, metadata and headers.
async fn fetch(server: &Server, path: &str, token: &str, encoding: &str) -> (Lines, Value, HeaderMap) {
    let answer = server.get(path, token).header(ACCEPT_ENCODING, encoding).send().await.unwrap();
    let (status, headers) = (answer.status(), answer.headers().clone());
    let body = answer.bytes().await.unwrap();
    assert_eq!(status, 200, "{path}: {}", String::from_utf8_lossy(&body));
    let sent = headers.get("content-encoding").map_or("identity", |value| value.to_str().unwrap());
    assert_eq!(sent, encoding);
    let (lines, metadata) = parse(&decode(encoding, &body));
    (lines, metadata, headers)
}

/// Every user, every kind of request, every encoding, against SQL.
async fn compare(server: &Server, setup: &Setup, client: &Client, method: Option<&str>) {
    for (org, person, groups) in studio::CALLERS {
        let token = setup.token(&org.to_string(), person, groups);
        let list: Option<Vec<&str>> = groups.map(|groups| groups.split(',').collect());
        let expect = async |models| visible(client, org, person, list.as_deref(), models).await;
        for encoding in ["zstd", "gzip", "identity"] {
            let who = format!("{person} of {org} in {encoding}");
            let (lines, metadata, _) = fetch(server, "/sync/bootstrap?noSyncPackets=true", &token, encoding).await;
            assert_eq!(lines, expect(FULL).await, "{who}");
            if let Some(method) = method {
                assert_eq!(metadata["method"], method, "{who}");
            }
            let path = "/sync/bootstrap?type=partial&onlyModels=Note,Project";
            assert_eq!(fetch(server, path, &token, encoding).await.0, expect(&["Note", "Project"]).await, "{who}");
        }
        for group in metadata_groups(server, &token).await {
            let path = format!("/sync/bootstrap?type=partial&syncGroups={group}");
            let lines = fetch(server, &path, &token, "zstd").await.0;
            assert_eq!(lines, visible(client, org, person, Some(&[&group]), ALL).await, "{group} of {person}");
        }
    }
}

async fn metadata_groups(server: &Server, token: &str) -> Vec<String> {
    let answer: Value =
        serde_json::from_slice(&server.get("/sync/groups", token).send().await.unwrap().bytes().await.unwrap())
            .unwrap();
    serde_json::from_value(answer["syncGroups"].clone()).unwrap()
}

#[tokio::test]
async fn every_user_gets_exactly_their_rows_from_the_folder() {
    let (_database, client, mut setup) = studio(40).await;
    let store = setup.store_folder();
    every_user_gets_exactly_their_rows(&client, &mut setup).await;
    assert_eq!(std::fs::metadata(&store).unwrap().mode() & 0o077, 0, "only its owner reads the store");
}

#[tokio::test]
async fn every_user_gets_exactly_their_rows_from_mongodb() {
    let (_database, client, mut setup) = studio(40).await;
    let url = required("HEADSTART_TEST_MONGODB_URL");
    let (base, options) =
        url.split_once('?').map_or((url.as_str(), String::new()), |(base, options)| (base, format!("?{options}")));
    let database = format!("t{}", &headstart::model::SnapshotId::random().to_string()[..16]);
    setup.set("HEADSTART_STORE_URL", format!("{base}{database}{options}"));
    every_user_gets_exactly_their_rows(&client, &mut setup).await;
}

async fn every_user_gets_exactly_their_rows(client: &Client, setup: &mut Setup) {
    let server = setup.serve().await;
    let token = setup.token("7", "ann", None);
    let (lines, metadata, headers) = fetch(&server, "/sync/bootstrap", &token, "zstd").await;
    assert_eq!(lines, visible(client, 7, "ann", None, FULL).await);
    assert_eq!(metadata["method"], "postgres", "the first answer is made from the database");
    assert_eq!(headers["x-sync-method"], "postgres");
    assert_eq!(headers["x-sync-id"], metadata["lastSyncId"].to_string().as_str());
    server.until_published(1).await;
    for org in ["8", "9"] {
        fetch(&server, "/sync/bootstrap", &setup.token(org, "ann", None), "zstd").await;
    }
    server.until_published(3).await;
    compare(&server, setup, client, Some("snapshot")).await;
    assert_eq!(server.stop().await.code(), Some(0));
    // After a restart too, with nothing in memory.
    let server = setup.serve().await;
    compare(&server, setup, client, Some("snapshot")).await;
    // And from live dumps alone.
    drop(server);
    setup.set("HEADSTART_STORE_URL", "memory:");
    setup.set("HEADSTART_FRESHNESS_SOFT_PENDING", "0").set("HEADSTART_FRESHNESS_HARD_PENDING", "0");
    client.batch_execute("UPDATE studio.workspace SET name = name || '!'").await.unwrap();
    let server = setup.serve().await;
    compare(&server, setup, client, None).await;
}

#[tokio::test]
async fn changes_show_up_and_no_answer_is_older_than_its_first_sync_id() {
    let (_database, client, setup) = studio(5).await;
    let server = setup.serve().await;
    let token = setup.token("7", "ann", None);
    let before = fetch(&server, "/sync/bootstrap", &token, "zstd").await.1;
    server.until_published(1).await;
    client.batch_execute("UPDATE studio.workspace SET name = 'New' WHERE id = 7").await.unwrap();
    let id: i64 = client.query_one("SELECT max(id) FROM public.sync_actions", &[]).await.unwrap().get(0);
    let stale = fetch(&server, "/sync/bootstrap?noSyncPackets=true", &token, "zstd").await.1;
    assert_eq!((&stale["method"], &stale["lastSyncId"]), (&"snapshot".into(), &before["lastSyncId"]));
    let path = format!("/sync/bootstrap?noSyncPackets=true&firstSyncId={id}");
    let (lines, metadata, _) = fetch(&server, &path, &token, "zstd").await;
    assert_eq!(metadata["lastSyncId"], id);
    assert_eq!(lines, visible(&client, 7, "ann", None, FULL).await);
    let (lines, metadata, _) = fetch(&server, "/sync/bootstrap?noCache=true", &token, "zstd").await;
    assert_eq!((&metadata["method"], lines), (&"postgres".into(), visible(&client, 7, "ann", None, FULL).await));
    let ahead = server.get(&format!("/sync/bootstrap?firstSyncId={}", id + 1000), &token).send().await.unwrap();
    assert_eq!(ahead.status(), 503);
    assert!(ahead.headers().contains_key("retry-after"));
    assert!(ahead.text().await.unwrap().contains("WATERMARK_HELD"));
}

#[tokio::test]
async fn what_a_missing_trigger_did_not_log_is_not_missing_from_answers() {
    let (_database, client, setup) = studio(5).await;
    let token = setup.token("7", "ann", None);
    let server = setup.serve().await;
    fetch(&server, "/sync/bootstrap", &token, "zstd").await;
    server.until_published(1).await;
    let lost = r#"DROP TRIGGER "headstart_log_Workspace" ON studio.workspace;
                  UPDATE studio.workspace SET name = 'Unlogged' WHERE id = 7"#;
    client.batch_execute(lost).await.unwrap();
    setup.must(&["migrate", "--apply"]);
    let (lines, metadata, _) = fetch(&server, "/sync/bootstrap", &token, "zstd").await;
    assert_eq!(lines, visible(&client, 7, "ann", None, FULL).await);
    assert_eq!(metadata["method"], "postgres", "the snapshot from before is not used");
}

#[tokio::test]
async fn a_published_snapshot_can_be_resumed_and_revalidated() {
    let (_database, client, setup) = studio(50).await;
    let server = setup.serve().await;
    let token = setup.token("7", "ann", None);
    let path = "/sync/bootstrap?noSyncPackets=true";
    fetch(&server, path, &token, "zstd").await;
    server.until_published(1).await;
    for encoding in ["zstd", "identity"] {
        let get = || server.get(path, &token).header(ACCEPT_ENCODING, encoding);
        let whole = get().send().await.unwrap();
        let etag = whole.headers()[ETAG].clone();
        let length: usize = whole.headers()[CONTENT_LENGTH].to_str().unwrap().parse().unwrap();
        let body = whole.bytes().await.unwrap();
        assert_eq!(body.len(), length);
        assert_eq!(get().header(IF_NONE_MATCH, &etag).send().await.unwrap().status(), 304);
        // Another snapshot replaces it: whoever had begun can still finish.
        client.batch_execute("UPDATE studio.workspace SET name = name || '.' WHERE id = 7").await.unwrap();
        fetch(&server, "/sync/bootstrap?noCache=true", &token, "zstd").await;
        server
            .until("another snapshot is served", || async {
                get().send().await.unwrap().headers().get(ETAG) != Some(&etag)
            })
            .await;
        for cut in [1, length / 3, length - 1] {
            let rest = get().header(RANGE, format!("bytes={cut}-")).header(IF_RANGE, &etag).send().await.unwrap();
            assert_eq!(rest.status(), 206, "{encoding} from {cut}");
            assert_eq!([&body[..cut], &rest.bytes().await.unwrap()].concat(), body, "{encoding} from {cut}");
        }
        let beyond = get().header(RANGE, format!("bytes={}-", length * 2)).send().await.unwrap();
        assert_eq!(beyond.status(), 416);
    }
}

#[tokio::test]
async fn bad_input_gets_a_code_that_names_the_field() {
    let (_database, _client, setup) = studio(1).await;
    let server = setup.serve().await;
    let token = setup.token("7", "ann", None);
    for (query, status, code, field) in [
        ("onlyModels=Nope", 422, "UNKNOWN_MODEL", "Nope"),
        ("type=partial&syncGroups=circle:9", 403, "GROUP_NOT_HELD", "circle:9"),
        ("type=partial", 400, "INVALID_QUERY", "type"),
        ("firstSyncId=-1", 400, "INVALID_QUERY", "firstSyncId"),
        ("firstSyncId=abc", 400, "INVALID_QUERY", "firstSyncId"),
        ("schemaHash=0123", 409, "SCHEMA_MISMATCH", "schema"),
        ("onlyModel=Task", 400, "INVALID_QUERY", "onlyModel"),
    ] {
        let answer = server.get(&format!("/sync/bootstrap?{query}"), &token).send().await.unwrap();
        let got = answer.status().as_u16();
        assert_eq!(answer.headers()["content-type"], "application/problem+json");
        let problem: Value = serde_json::from_slice(&answer.bytes().await.unwrap()).unwrap();
        assert_eq!((got, &problem["code"]), (status, &code.into()), "{query}: {problem}");
        assert!(problem.to_string().contains(field), "{query}: {problem}");
        assert!(problem["requestId"].is_string());
    }
    let long = format!("/sync/bootstrap?onlyModels={}", "x".repeat(20_000));
    assert_eq!(server.get(&long, &token).send().await.unwrap().status(), 414);
    let header = server.get("/sync/bootstrap", &token).header("x-long", "x".repeat(40_000)).send().await.unwrap();
    assert_eq!(header.status(), 431);
    for bad in ["", "not.a.token", "eyJhbGciOiJub25lIn0.eyJvcmciOiI3Iiwic3ViIjoiYW5uIiwiZXhwIjo5OTk5OTk5OTk5fQ."] {
        assert_eq!(server.get("/sync/bootstrap", bad).send().await.unwrap().status(), 401, "{bad:?}");
    }
    let foreign = setup.token("not-a-number", "ann", None);
    assert_eq!(server.get("/sync/bootstrap", &foreign).send().await.unwrap().status(), 401);
    assert_eq!(server.client.get(format!("{}/sync/bootstrap", server.base)).send().await.unwrap().status(), 401);
}

#[tokio::test]
async fn a_database_that_dies_breaks_every_follower_and_leaves_nothing() {
    let (database, client, mut setup) = studio(2000).await;
    let config = database.config();
    let tokio_postgres::config::Host::Tcp(host) = &config.get_hosts()[0] else { panic!("tests use TCP") };
    let proxy = Proxy::start(format!("{host}:{}", config.get_ports()[0])).await;
    let through = database.url().replace(&format!(":{}/", config.get_ports()[0]), &format!(":{}/", proxy.port));
    setup.set("HEADSTART_POSTGRES_URL", through);
    let server = setup.serve().await;
    let token = setup.token("7", "ann", None);
    let path = "/sync/bootstrap?type=partial&onlyModels=Task,Note";
    // Enough passes for the first frames, not enough for all.
    proxy.set(Mode::StallAfter(3 << 20));
    let answers = join_all((0..5).map(|_| server.get(path, &token).send())).await;
    let mut bodies: Vec<reqwest::Response> = answers.into_iter().map(|answer| answer.unwrap()).collect();
    for body in &mut bodies {
        assert_eq!(body.status(), 200);
        assert!(!body.chunk().await.unwrap().unwrap().is_empty(), "rows come before the end is known");
    }
    proxy.set(Mode::Cut);
    for body in bodies {
        assert!(body.bytes().await.is_err(), "the transfer is broken, not ended");
    }
    let down = server.get(path, &setup.token("7", "ann", Some("circle:1"))).send().await.unwrap();
    assert_eq!(down.status(), 503, "without the database there is nothing to serve");
    proxy.set(Mode::Pass);
    let (lines, metadata, _) = fetch(&server, path, &token, "zstd").await;
    assert_eq!(metadata["method"], "postgres", "nothing was published");
    assert_eq!(lines, visible(&client, 7, "ann", None, &["Task", "Note"]).await);
}

#[tokio::test]
async fn a_full_disk_breaks_the_answer_and_the_log_says_why() {
    let (_database, client, setup) = studio(2000).await;
    // No file may grow past 64 KiB (ulimit counts 512-byte blocks in sh); the service is told by an error.
    let server = setup.serve_with("trap '' XFSZ; ulimit -f 128; exec \"$0\" serve").await;
    let token = setup.token("7", "ann", None);
    let path = "/sync/bootstrap?type=partial&onlyModels=Task,Note";
    let broken = match server.get(path, &token).send().await.unwrap() {
        answer if answer.status().is_success() => answer.bytes().await.is_err(),
        answer => answer.status() == 503,
    };
    assert!(broken, "no clean end");
    server.until("the reason is in the log", || async { server.log().contains("File too large") }).await;
    drop(server);
    // A store that can't be written: answers go on, from the spool.
    std::fs::remove_dir_all(setup.store_folder()).unwrap();
    let server = setup.serve().await;
    // The service may be writing to the folder, which makes it anew.
    for round in 0.. {
        std::fs::rename(setup.store_folder(), setup.store_folder().with_extension(round.to_string())).unwrap();
        if std::fs::write(setup.store_folder(), b"in the way").is_ok() {
            break;
        }
    }
    for _ in 0..2 {
        let (lines, metadata, _) = fetch(&server, path, &token, "zstd").await;
        assert_eq!(metadata["method"], "postgres");
        assert_eq!(lines, visible(&client, 7, "ann", None, &["Task", "Note"]).await);
    }
    server.until("the reason is in the log", || async { server.log().contains("could not be stored") }).await;
}
