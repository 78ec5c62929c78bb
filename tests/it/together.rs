//! Several instances on one MongoDB: who dumps, who follows, whose snapshot counts, when one stops, dies, lives by
//! another clock or serves another schema. Real binaries.

use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;

use headstart::model::Org;
use headstart::store::{Head, Slot, SnapshotStore, StoreSettings, open};
use headstart::task::Tasks;
use mongodb::bson::{Document, doc};
use serde_json::Value;
use tokio_postgres::Client;

use crate::support::mongo_url;
use crate::support::postgres::Database;
use crate::support::proxy::{Mode, Proxy};
use crate::support::server::{Server, Setup};
use crate::support::studio::{self, Lines, parse, visible};

const FULL: &[&str] = &["Workspace", "Project", "Task", "Star"];
const SNAPSHOT: &str = "/sync/bootstrap?noSyncPackets=true";

/// A studio whose snapshots are kept in a MongoDB database of its own.
struct Stage {
    database: Database,
    client: Client,
    setup: Setup,
    url: String,
    store: Arc<dyn SnapshotStore>,
}

async fn stage(fill: &str, scale: i32) -> Stage {
    let database = Database::create().await;
    let client = database.connect().await;
    client.batch_execute(studio::TABLES).await.unwrap();
    studio::fill(&client, scale).await;
    client.batch_execute(fill).await.unwrap();
    let mut setup = Setup::new(&database.url(), studio::CATALOG);
    setup.must(&["migrate", "--apply"]);
    let url = mongo_url();
    setup.set("HEADSTART_STORE_URL", &url).set("HEADSTART_DUMP_LEASE_S", "5");
    setup.set("HEADSTART_DUMP_INTERVAL_S", "1").set("HEADSTART_FRESHNESS_SOFT_PENDING", "0");
    let store = open(&url, &StoreSettings::default(), &Tasks::new()).await.unwrap();
    Stage { database, client, setup, url, store }
}

impl Stage {
    fn background(&mut self, on: bool) -> &mut Setup {
        self.setup.set("HEADSTART_DUMP_BACKGROUND", on.to_string())
    }

    /// Instances to come read PostgreSQL through a proxy that a test can stall.
    async fn proxied(&mut self) -> Proxy {
        let port = self.database.config().get_ports()[0];
        let proxy = Proxy::start(format!("127.0.0.1:{port}")).await;
        let through = self.database.url().replace(&format!(":{port}/"), &format!(":{}/", proxy.port));
        self.setup.set("HEADSTART_POSTGRES_URL", through);
        proxy
    }

    fn direct(&mut self) {
        let url = self.database.url();
        self.setup.set("HEADSTART_POSTGRES_URL", url);
    }

    async fn heads(&self) -> Vec<(Slot, Head)> {
        self.store.heads().await.unwrap()
    }

    async fn head_of(&self, org: &str) -> Option<Head> {
        self.heads().await.into_iter().find(|(slot, _)| slot.org == Org::new(org)).map(|(_, head)| head)
    }

    /// How many pieces of dumps were announced.
    async fn announced(&self) -> u64 {
        let client = mongodb::Client::with_uri_str(&self.url).await.unwrap();
        let pieces = client.default_database().unwrap().collection::<Document>("announcements");
        pieces.count_documents(doc! {}).await.unwrap()
    }

    async fn visible(&self, person: &str) -> Lines {
        visible(&self.client, 7, person, None, FULL).await
    }
}

async fn dumps(server: &Server) -> f64 {
    server.metric("headstart_dumps_started_total").await
}

async fn fetch(server: &Server, path: &str, token: &str) -> (Lines, Value) {
    let answer = server.get(path, token).send().await.unwrap();
    assert_eq!(answer.status(), 200);
    parse(&answer.bytes().await.unwrap())
}

/// Lets instances to come live by a clock that is off.
fn skewed(setup: &mut Setup, seconds: i64) {
    let library: PathBuf = setup.folder.path().join("skew.so");
    if !library.exists() {
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/support/skew.c");
        let made = Command::new("cc").args(["-shared", "-fPIC", "-o"]).arg(&library).arg(source).arg("-ldl").status();
        assert!(made.expect("a C compiler, as Rust needs one").success());
    }
    setup.set("LD_PRELOAD", library.display().to_string()).set("TEST_CLOCK_SKEW_S", seconds.to_string());
}

/// The hour and minute that an instance's log begins with, in minutes.
fn minute_of(log: &str) -> i64 {
    let time = log.split('T').nth(1).expect("a time");
    time[..2].parse::<i64>().unwrap() * 60 + time[3..5].parse::<i64>().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn instances_share_the_dumping_though_their_clocks_disagree_by_minutes() {
    let more = r#"INSERT INTO studio.workspace SELECT n, 'More' FROM generate_series(100, 119) AS n;
                  INSERT INTO studio.star SELECT 1000 + n, 100 + n % 20, 'ann', n FROM generate_series(1, 4000) AS n"#;
    let mut stage = stage(more, 20).await;
    let token = stage.setup.token("7", "ann", None);
    let orgs = 22;
    stage.background(true);
    skewed(&mut stage.setup, 600);
    let early = stage.setup.serve().await;
    skewed(&mut stage.setup, -600);
    let late = stage.setup.serve().await;
    let apart = (minute_of(&early.log()) - minute_of(&late.log())).rem_euclid(24 * 60);
    assert!((19..=21).contains(&apart), "{apart} minutes");
    for generation in 1..=2 {
        let all_made = async || {
            let heads = stage.heads().await;
            heads.len() == orgs && heads.iter().all(|(_, head)| head.generation.0 == generation)
        };
        early.until("every org has its snapshot", all_made).await;
        let (by_early, by_late) = (dumps(&early).await, dumps(&late).await);
        println!("{by_early} and {by_late} dumps");
        assert_eq!(by_early + by_late, (orgs as u64 * generation) as f64, "each org is dumped by one of them");
        for server in [&early, &late] {
            let (lines, metadata) = fetch(server, SNAPSHOT, &token).await;
            assert_eq!((&metadata["method"], lines), (&"snapshot".into(), stage.visible("ann").await));
        }
        if generation == 1 {
            assert!(by_early > 0.0 && by_late > 0.0, "both work");
            stage.client.batch_execute("UPDATE studio.workspace SET name = name || '!'").await.unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_lost_its_lease_does_not_publish_over_what_came_after() {
    let mut stage = stage("", 400).await;
    let token = stage.setup.token("7", "ann", None);
    stage.background(false);
    let proxy = stage.proxied().await;
    let slow = stage.setup.serve().await;
    proxy.set(Mode::StallAfter(256 << 10));
    let stalled = slow.get(SNAPSHOT, &token).send().await.unwrap();
    assert_eq!(stalled.status(), 200);
    // It stands still in the middle of its dump, and does not renew its lease.
    slow.signal("STOP");
    proxy.set(Mode::Pass);
    stage.client.batch_execute("UPDATE studio.workspace SET name = 'Newer' WHERE id = 7").await.unwrap();
    stage.direct();
    stage.background(true);
    let other = stage.setup.serve().await;
    other.until("the other takes over", async || stage.head_of("7").await.is_some()).await;
    let published = stage.head_of("7").await.unwrap();
    slow.signal("CONT");
    let old = parse(&stalled.bytes().await.unwrap()).0;
    assert_ne!(old, stage.visible("ann").await, "its own client gets what it read");
    let given_up = "headstart_dumps_failed_total{reason=\"superseded\"}";
    slow.until("it gives up", async || slow.metric(given_up).await == 1.0).await;
    let still = stage.head_of("7").await.unwrap();
    assert_eq!((still.generation, still.current.unwrap().facts.id), {
        (published.generation, published.current.unwrap().facts.id)
    });
    assert_eq!(fetch(&slow, SNAPSHOT, &token).await.0, stage.visible("ann").await, "and then what is published");
}

/// Rows of org 7 that hardly compress, all in one group set, so that packs fill up while the dump goes on: about 24 MB.
const BULKY: &str = r#"
    UPDATE studio."Project" SET circle_ids = NULL WHERE workspace_id = 7;
    UPDATE studio.task AS t
       SET title = (SELECT string_agg(md5(random()::text || t.id || n), '') FROM generate_series(1, 128) AS n)
      FROM studio."Project" AS p WHERE p.id = t."projectId" AND p.workspace_id = 7"#;

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_follows_the_dump_of_another_one_and_outlives_it() {
    let mut stage = stage(BULKY, 300).await;
    stage.setup.set("HEADSTART_FRESHNESS_HARD_PENDING", "0");
    // Each time everything is read: a refresh has nothing that could be followed.
    stage.setup.set("HEADSTART_DUMP_REFRESH_MAX_COUNT", "0");
    stage.background(false);
    let (ann, bob) = (stage.setup.token("7", "ann", None), stage.setup.token("7", "bob", None));
    let follower = stage.setup.serve().await;
    let proxy = stage.proxied().await;
    let change = async |stage: &Stage| {
        stage.client.batch_execute("UPDATE studio.workspace SET name = name || '.' WHERE id = 7").await.unwrap();
    };

    // In the middle of a dump, with a first pack announced, the other instance follows it to its end.
    let dumper = stage.setup.serve().await;
    proxy.set(Mode::StallAfter(14 << 20));
    let first = dumper.get(SNAPSHOT, &ann).send().await.unwrap();
    dumper.until("a pack is announced", async || stage.announced().await > 0).await;
    let mut caught_up = follower.get("/sync/bootstrap", &ann).send().await.unwrap();
    let other = follower.get(SNAPSHOT, &bob).send().await.unwrap();
    assert_eq!((caught_up.status(), other.status()), (200.try_into().unwrap(), 200.try_into().unwrap()));
    let mut body = caught_up.chunk().await.unwrap().unwrap().to_vec();
    proxy.set(Mode::Pass);
    while let Some(chunk) = caught_up.chunk().await.unwrap() {
        body.extend_from_slice(&chunk);
    }
    assert_eq!(parse(&body).0, stage.visible("ann").await);
    assert_eq!(parse(&other.bytes().await.unwrap()).0, stage.visible("bob").await, "each by their own groups");
    assert_eq!(parse(&first.bytes().await.unwrap()).0, stage.visible("ann").await);
    let followed = "headstart_dumps_followed_total";
    assert_eq!((dumps(&dumper).await, dumps(&follower).await), (1.0, 0.0), "one scan for both");
    assert_eq!(follower.metric(followed).await, 1.0);
    dumper.until_published(1).await;
    assert_eq!(fetch(&follower, SNAPSHOT, &ann).await.1["method"], "snapshot");
    drop(dumper);

    // The dumper dies after a first pack: what was begun breaks, what comes next is made here.
    change(&stage).await;
    let before = stage.announced().await;
    let dumper = stage.setup.serve().await;
    proxy.set(Mode::StallAfter(14 << 20));
    let _first = dumper.get(SNAPSHOT, &ann).send().await.unwrap();
    dumper.until("a pack is announced", async || stage.announced().await > before).await;
    let mut orphan = follower.get(SNAPSHOT, &ann).send().await.unwrap();
    assert!(!orphan.chunk().await.unwrap().unwrap().is_empty());
    drop(dumper);
    let broken = async {
        loop {
            match orphan.chunk().await {
                Err(_) => return true,
                Ok(None) => return false,
                Ok(Some(_)) => {}
            }
        }
    };
    assert!(broken.await, "the transfer is broken, not ended");
    let (lines, metadata) = fetch(&follower, SNAPSHOT, &ann).await;
    assert_eq!((&metadata["method"], lines), (&"postgres".into(), stage.visible("ann").await));
    assert_eq!((dumps(&follower).await, follower.metric(followed).await), (1.0, 1.0));
    follower.until_published(1).await;

    // It dies before: nobody got a byte, so the answer comes from a dump of one's own.
    change(&stage).await;
    proxy.set(Mode::Pass);
    let dumper = stage.setup.serve().await;
    proxy.set(Mode::StallAfter(1 << 20));
    let _first = dumper.get(SNAPSHOT, &ann).send().await.unwrap();
    let waiting = fetch(&follower, SNAPSHOT, &ann);
    let dies = async {
        let follows = || follower.log().matches("it is followed").count() == 3;
        follower.until("it waits for the other's first pack", async || follows()).await;
        drop(dumper);
    };
    let ((lines, metadata), ()) = tokio::join!(waiting, dies);
    assert_eq!((&metadata["method"], lines), (&"postgres".into(), stage.visible("ann").await));
    assert_eq!((dumps(&follower).await, follower.metric(followed).await), (2.0, 1.0));
    assert_eq!(follower.metric("headstart_followers").await, 0.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn versions_of_a_rolling_deploy_leave_each_others_snapshots_alone() {
    let mut stage = stage("", 20).await;
    stage.background(true);
    let token = stage.setup.token("7", "ann", None);
    let present = stage.setup.serve().await;
    let next = studio::CATALOG.replace("exclude = [\"secret\"]", "exclude = [\"secret\", \"points\"]");
    let path = stage.setup.folder.path().join("next.toml");
    std::fs::write(&path, next).unwrap();
    let old_path = stage.setup.env["HEADSTART_CATALOG_PATH"].clone();
    stage.setup.set("HEADSTART_CATALOG_PATH", path.display().to_string());
    let new = stage.setup.serve().await;
    let made = async |generation: u64| {
        let heads = stage.heads().await;
        heads.len() == 4 && heads.iter().all(|(_, head)| head.generation.0 == generation)
    };
    new.until("both versions have made theirs", async || made(1).await).await;
    stage.client.batch_execute("UPDATE studio.workspace SET name = name || '!'").await.unwrap();
    new.until("both versions have made theirs anew", async || made(2).await).await;
    let mut hashes = Vec::new();
    for server in [&present, &new] {
        let (lines, metadata) = fetch(server, SNAPSHOT, &token).await;
        assert_eq!((&metadata["method"], lines.len()), (&"snapshot".into(), stage.visible("ann").await.len()));
        assert_eq!(lines.iter().any(|line| line.contains("\"points\"")), hashes.is_empty());
        hashes.push(metadata["schemaHash"].clone());
    }
    assert_ne!(hashes[0], hashes[1]);
    // The way back: the old version finds its own as they were.
    drop((present, new));
    stage.background(false);
    stage.setup.set("HEADSTART_CATALOG_PATH", old_path);
    let back = stage.setup.serve().await;
    let (_, metadata) = fetch(&back, SNAPSHOT, &token).await;
    assert_eq!((&metadata["method"], &metadata["schemaHash"]), (&"snapshot".into(), &hashes[0]));
    assert_eq!(dumps(&back).await, 0.0);
}
