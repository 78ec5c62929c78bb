//! What becomes of clients while MongoDB is failing over, down, slow or full, and while PostgreSQL is down or hangs: the
//! real binary over a replica set of three real nodes, and over a PostgreSQL that crashes.

use std::collections::BTreeSet;
use std::time::Duration;

use mongodb::bson::doc;
use serde_json::Value;
use tokio::time::{Instant, sleep};
use tokio_postgres::Client;

use crate::support::cluster::Cluster;
use crate::support::postgres::Database;
use crate::support::proxy::{Mode, Proxy};
use crate::support::replica_set::ReplicaSet;
use crate::support::server::{Server, Setup};
use crate::support::studio::{self, parse, visible};

const FULL: &[&str] = &["Workspace", "Project", "Task", "Star"];
const SNAPSHOT: &str = "/sync/bootstrap?noSyncPackets=true";
const NEW: &str = "/sync/bootstrap?noSyncPackets=true&noCache=true";

/// Longer than a look at a store that is down takes, shorter than its driver's own limits.
const SOON: Duration = Duration::from_secs(4);

struct Stage {
    _database: Database,
    client: Client,
    setup: Setup,
    set: ReplicaSet,
    server: Server,
    token: String,
}

async fn stage(scale: i32) -> Stage {
    let (set, (database, client, mut setup)) =
        tokio::join!(ReplicaSet::start(), studio::with_log(scale, studio::CATALOG));
    setup.set("HEADSTART_STORE_URL", set.url()).set("HEADSTART_STORE_PATIENCE_MS", "1000");
    let server = setup.serve().await;
    let token = setup.token("7", "ann", None);
    Stage { _database: database, client, setup, set, server, token }
}

impl Stage {
    /// A whole answer, soon.
    async fn fetch(&self, path: &str, token: &str) -> (studio::Lines, Value) {
        let begun = Instant::now();
        let answer = self.server.get(path, token).send().await.unwrap();
        let status = answer.status();
        let body = answer.bytes().await.unwrap();
        assert_eq!(status, 200, "{}", String::from_utf8_lossy(&body));
        assert!(begun.elapsed() < SOON, "{:?}", begun.elapsed());
        parse(&body)
    }

    /// What the service says of its store: always soon, and that it can serve.
    async fn store_health(&self) -> String {
        let begun = Instant::now();
        let url = format!("{}/readyz", self.server.admin);
        let answer = self.server.client.get(url).send().await.unwrap();
        assert!(begun.elapsed() < SOON, "{:?}", begun.elapsed());
        assert_eq!(answer.status(), 200, "degraded, not dead");
        let ready: Value = serde_json::from_slice(&answer.bytes().await.unwrap()).unwrap();
        ready["parts"][1]["status"].as_str().unwrap().to_owned()
    }

    async fn until_store_is(&self, health: &str) {
        self.server.until(health, async || self.store_health().await == health).await;
    }

    async fn dumps(&self) -> f64 {
        self.server.metric("headstart_dumps_started_total").await
    }

    async fn until_nothing_waits(&self) {
        let waiting = async || self.server.metric("headstart_unstored_dumps").await == 0.0;
        self.server.until("everything is stored", waiting).await;
        self.until_store_is("ok").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_mongodb_clients_are_served_and_afterwards_it_has_what_was_made() {
    let mut stage = stage(40).await;
    let (ann, bob) = (stage.token.clone(), stage.setup.token("8", "bob", None));
    let anns = visible(&stage.client, 7, "ann", None, FULL).await;
    let bobs = visible(&stage.client, 8, "bob", None, FULL).await;
    stage.fetch(SNAPSHOT, &ann).await;
    stage.server.until_published(1).await;
    assert_eq!(stage.fetch(SNAPSHOT, &ann).await.1["method"], "snapshot");

    // Two of three are gone, so there is no primary.
    let primary = stage.set.primary().await;
    stage.set.kill(primary);
    stage.set.kill((primary + 1) % 3);
    let before = stage.dumps().await;
    for _ in 0..3 {
        let (lines, metadata) = stage.fetch(SNAPSHOT, &ann).await;
        assert_eq!((&metadata["method"], &lines), (&"snapshot".into(), &anns), "what is cached is served");
    }
    assert_eq!(stage.dumps().await, before);
    for _ in 0..4 {
        let (lines, metadata) = stage.fetch(SNAPSHOT, &bob).await;
        assert_eq!((&metadata["method"], &lines), (&"postgres".into(), &bobs));
    }
    stage
        .server
        .until("it waits for the store", async || stage.server.metric("headstart_unstored_dumps").await == 1.0)
        .await;
    assert_eq!(stage.dumps().await, before + 1.0, "one scan serves all who come");
    assert_eq!(stage.store_health().await, "degraded");
    assert_eq!(stage.server.metric("headstart_store_down").await, 1.0);
    // A change after the snapshot is told, and the snapshot still served.
    stage.client.batch_execute("UPDATE studio.workspace SET name = 'Changed' WHERE id = 7").await.unwrap();
    let (lines, metadata) = stage.fetch("/sync/bootstrap", &ann).await;
    assert_eq!((&metadata["method"], lines.len()), (&"snapshot".into(), anns.len() + 1));
    assert_eq!(stage.dumps().await, before + 1.0);

    stage.set.start_node(primary);
    stage.set.start_node((primary + 1) % 3);
    stage.until_nothing_waits().await;
    assert_eq!(stage.fetch(SNAPSHOT, &bob).await.1["method"], "snapshot", "it was stored afterwards");
    assert_eq!(stage.dumps().await, before + 1.0, "without another scan");
    assert_eq!(stage.server.metric("headstart_store_down").await, 0.0);

    slow(&stage, &ann).await;
    full(&stage, &ann, &bob).await;
}

/// Every statement takes longer than clients are to wait.
async fn slow(stage: &Stage, ann: &str) {
    let every = ["aggregate", "find", "findAndModify", "update", "insert", "ping", "createIndexes"];
    stage.set.fail(doc! { "blockConnection": true, "blockTimeMS": 2500 }, &every).await;
    for _ in 0..3 {
        assert_eq!(stage.fetch(SNAPSHOT, ann).await.1["method"], "snapshot", "from the cache");
    }
    assert_eq!(stage.store_health().await, "degraded");
    stage.set.mend().await;
    stage.until_store_is("ok").await;
}

/// Nothing can be written, everything read.
async fn full(stage: &Stage, ann: &str, bob: &str) {
    stage.set.fail(doc! { "errorCode": 14031 }, &["update", "insert"]).await;
    let before = stage.dumps().await;
    assert_eq!(stage.fetch(NEW, ann).await.1["method"], "postgres");
    stage.server.until("it is not stored", async || stage.store_health().await == "degraded").await;
    for _ in 0..3 {
        let (lines, metadata) = stage.fetch(SNAPSHOT, ann).await;
        assert_eq!(metadata["method"], "postgres", "the spool is newer than what the store has");
        assert_eq!(lines, visible(&stage.client, 7, "ann", None, FULL).await);
    }
    assert_eq!(stage.fetch(SNAPSHOT, bob).await.1["method"], "snapshot", "what was stored can be read");
    assert_eq!(stage.server.metric("headstart_store_down").await, 0.0, "full is not down");
    stage.set.mend().await;
    stage.until_nothing_waits().await;
    let (lines, metadata) = stage.fetch(SNAPSHOT, ann).await;
    assert_eq!((&metadata["method"], lines), (&"snapshot".into(), visible(&stage.client, 7, "ann", None, FULL).await));
    assert_eq!(stage.dumps().await, before + 1.0, "one scan in all");
}

/// Readers, dumps and writers go on while the primary steps down and dies.
#[tokio::test(flavor = "multi_thread")]
async fn while_mongodb_fails_over_bootstraps_go_on_and_no_answer_mixes_two_snapshots() {
    let mut stage = stage(100).await;
    stage.client.batch_execute(&version(0)).await.unwrap();
    let turns: u32 = std::env::var("HEADSTART_TEST_FAILOVERS").map_or(2, |turns| turns.parse().unwrap());
    let Stage { client, setup, set, server, .. } = &mut stage;
    let (ann, x) = (setup.token("7", "ann", None), setup.token("7", "x", Some("circle:1,circle:2,circle:3,org:7")));
    let over = std::sync::atomic::AtomicBool::new(false);
    let going = || !over.load(std::sync::atomic::Ordering::Relaxed);
    let read = async |token: &str, path: &str| {
        let (mut whole, mut broken, mut seen) = (0, 0, BTreeSet::new());
        while going() {
            let answer = server.get(path, token).send().await.unwrap();
            let status = answer.status();
            let Ok(body) = answer.bytes().await else {
                broken += 1;
                continue;
            };
            assert_eq!(status, 200, "bootstraps go on: {}", String::from_utf8_lossy(&body));
            let (lines, metadata) = parse(&body);
            let versions: BTreeSet<String> = (lines.iter())
                .filter_map(|line| {
                    let line: Value = serde_json::from_str(line).unwrap();
                    let name = if line["__class"] == "Project" { &line["displayName"] } else { &line["name"] };
                    name.as_str().map(str::to_owned)
                })
                .collect();
            assert_eq!(versions.len(), 1, "of one moment: {versions:?} at {metadata}");
            seen.extend(versions);
            whole += 1;
        }
        (whole, broken, seen.len())
    };
    let write = async {
        let mut number = 1;
        while going() {
            client.batch_execute(&version(number)).await.unwrap();
            number += 1;
            sleep(Duration::from_millis(100)).await;
        }
    };
    let trouble = async {
        for _ in 0..turns {
            set.step_down().await;
            sleep(Duration::from_secs(2)).await;
            let primary = set.primary().await;
            set.kill(primary);
            sleep(Duration::from_secs(2)).await;
            set.primary().await;
            set.start_node(primary);
            sleep(Duration::from_secs(1)).await;
        }
        over.store(true, std::sync::atomic::Ordering::Relaxed);
    };
    let (one, two, new, (), ()) =
        tokio::join!(read(&ann, SNAPSHOT), read(&x, SNAPSHOT), read(&ann, NEW), write, trouble);
    println!("whole, broken, versions: {one:?}, {two:?}, new {new:?}");
    for (whole, broken, versions) in [one, two, new] {
        assert!(whole > turns && broken <= 5 * turns && versions > 1, "{whole} whole, {broken} broken");
    }
    assert!(stage.server.log().contains("the snapshot store is down"), "the store was away");
    stage.until_nothing_waits().await;
    let published = stage.fetch(NEW, &ann).await.1["lastSyncId"].clone();
    stage
        .server
        .until("it is published", async || {
            let metadata = stage.fetch(SNAPSHOT, &ann).await.1;
            metadata["method"] == "snapshot" && metadata["snapshotSyncId"] == published
        })
        .await;
}

/// A change of rows in every group set at once.
fn version(number: u32) -> String {
    format!(
        r#"BEGIN; UPDATE studio.workspace SET name = 'v{number}' WHERE id = 7;
           UPDATE studio."Project" SET "displayName" = 'v{number}' WHERE workspace_id = 7; COMMIT"#
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn without_postgresql_published_snapshots_are_served_and_all_else_is_a_clear_503() {
    let cluster = Cluster::start("");
    let client = cluster.connect().await;
    client.batch_execute(studio::TABLES).await.unwrap();
    studio::fill(&client, 20).await;
    let port = cluster.config().get_ports()[0];
    let url = |port: u16| format!("postgres://postgres@127.0.0.1:{port}/postgres?sslmode=disable");
    let proxy = Proxy::start(format!("127.0.0.1:{port}")).await;
    let mut setup = Setup::new(&url(port), studio::CATALOG);
    setup.must(&["migrate", "--apply"]);
    setup.set("HEADSTART_POSTGRES_URL", url(proxy.port)).set("HEADSTART_BOOTSTRAP_DATABASE_WAIT_MS", "500");
    let server = setup.serve().await;
    let in_token = Some("circle:1,circle:2,org:7,user:ann");
    let (ann, groups) = (setup.token("7", "ann", None), setup.token("7", "ann", in_token));
    let other = setup.token("8", "ann", Some("org:8"));
    let get = async |path: &str, token: &str| {
        let begun = Instant::now();
        let answer = server.get(path, token).send().await.unwrap();
        let (status, waits) = (answer.status().as_u16(), answer.headers().contains_key("retry-after"));
        let body = answer.bytes().await.unwrap();
        assert!(begun.elapsed() < SOON, "{path}: {:?}", begun.elapsed());
        (status, waits, body)
    };
    let (_, _, first) = get("/sync/bootstrap", &ann).await;
    server.until_published(1).await;
    let (lines, metadata) = parse(&first);
    let cursor = format!("lastSyncId={}&epoch={}", metadata["lastSyncId"], metadata["epoch"].as_str().unwrap());
    client.batch_execute("UPDATE studio.workspace SET name = 'Later' WHERE id = 7").await.unwrap();
    drop(client);
    let as_published = async |path: &str| {
        let (status, _, body) = get(path, &groups).await;
        assert_eq!(status, 200, "{}", String::from_utf8_lossy(&body));
        let (served, told) = parse(&body);
        assert_eq!((&told["method"], &told["lastSyncId"]), (&"snapshot".into(), &metadata["lastSyncId"]));
        assert_eq!(served, lines);
    };
    let ready = async || {
        let answer = server.client.get(format!("{}/readyz", server.admin)).send().await.unwrap();
        let status = answer.status().as_u16();
        let told: Value = serde_json::from_slice(&answer.bytes().await.unwrap()).unwrap();
        (status, told["parts"][0]["status"].as_str().unwrap().to_owned())
    };
    assert_eq!(ready().await, (200, "ok".to_owned()));

    for _ in 0..2 {
        cluster.crash();
        for path in [SNAPSHOT, "/sync/bootstrap"] {
            as_published(path).await;
        }
        assert_eq!(ready().await, (200, "degraded".to_owned()));
        let beyond = format!("/sync/bootstrap?firstSyncId={}", u32::MAX);
        let delta = format!("/sync/delta?{cursor}");
        for (path, token) in [
            ("/sync/bootstrap", &ann),
            (SNAPSHOT, &other),
            (NEW, &groups),
            (&*beyond, &groups),
            (&*delta, &groups),
            ("/sync/groups", &ann),
        ] {
            let (status, waits, body) = get(path, token).await;
            let problem: Value = serde_json::from_slice(&body).unwrap();
            assert_eq!((status, &problem["code"], waits), (503, &"DATABASE_UNAVAILABLE".into(), true), "{path}");
        }
        // The pool finds its way back by itself.
        tokio::task::block_in_place(|| cluster.start_again());
        let (status, _, body) = get("/sync/bootstrap", &ann).await;
        assert_eq!((status, parse(&body).0.len()), (200, lines.len() + 1));
        assert_eq!(get(&delta, &ann).await.0, 200);
        assert_eq!(ready().await, (200, "ok".to_owned()));
    }

    // It takes questions and does not answer.
    proxy.set(Mode::StallAfter(0));
    for _ in 0..3 {
        as_published(SNAPSHOT).await;
    }
    assert_eq!(ready().await, (200, "degraded".to_owned()));
    proxy.set(Mode::Cut);
    as_published(SNAPSHOT).await;
    proxy.set(Mode::Pass);
    server.until("it answers again", async || get("/sync/bootstrap", &ann).await.0 == 200).await;
    assert_eq!(ready().await, (200, "ok".to_owned()));
}
