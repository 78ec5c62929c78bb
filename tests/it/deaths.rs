//! What becomes of snapshots when the service is killed at any moment, and when what the store holds is damaged: the
//! real binary, over a folder and over MongoDB.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use headstart::metrics::CacheMetrics;
use headstart::model::{Generation, Org};
use headstart::snapshot::{PackId, frame};
use headstart::store::{PackCache, SnapshotStore, StoreSettings, open};
use headstart::task::Tasks;
use mongodb::bson::{Document, doc};
use tokio::time::{Instant, sleep};
use tokio_postgres::Client;

use crate::support::dice::Dice;
use crate::support::mongo_url;
use crate::support::postgres::Database;
use crate::support::proxy::{Mode, Proxy};
use crate::support::server::{Server, Setup};
use crate::support::studio::{self, parse, visible};

const FULL: &[&str] = &["Workspace", "Project", "Task", "Star"];
const SNAPSHOT: &str = "/sync/bootstrap?noSyncPackets=true";
const NEW: &str = "/sync/bootstrap?noSyncPackets=true&noCache=true";

async fn studio(scale: i32, store: Option<&str>) -> (Database, Client, Setup) {
    let (database, client, mut setup) = studio::with_log(scale, studio::CATALOG).await;
    if let Some(url) = store {
        setup.set("HEADSTART_STORE_URL", url);
    }
    (database, client, setup)
}

/// Opens the store as the service does, in this process.
async fn opened(setup: &Setup, settings: &StoreSettings) -> Arc<dyn SnapshotStore> {
    open(&setup.env["HEADSTART_STORE_URL"], settings, &Tasks::new()).await.expect("open the store")
}

/// Reads all that is published, to the last byte of the last frame: which packs are named, and the newest generation.
async fn read_whole(setup: &Setup) -> (HashSet<PackId>, Generation) {
    let store = opened(setup, &StoreSettings::default()).await;
    // A cache of its own: nothing is remembered.
    let cache = PackCache::new(store.clone(), &Default::default(), Tasks::new(), CacheMetrics::default());
    let (mut packs, mut newest) = (HashSet::new(), Generation::NONE);
    for (slot, head) in store.heads().await.expect("the heads") {
        let facts = head.current.expect("published").facts;
        let manifest = cache.manifest(&slot, facts.id).await.expect("a whole manifest");
        let (mut rows, mut raw_len) = (0, 0);
        for entry in &manifest.frames {
            let pack = cache.pack(&slot.org, manifest.packs[entry.pack as usize]).await.expect("a whole pack");
            let start = entry.offset as usize;
            let bytes = &pack.as_ref()[start..start + entry.len as usize];
            let lines = frame::decompress(bytes, entry.raw_len as usize).expect("a whole frame");
            assert_eq!(lines.iter().filter(|byte| **byte == b'\n').count() as u32, entry.rows);
            rows += u64::from(entry.rows);
            raw_len += lines.len() as u64;
        }
        assert_eq!((rows, raw_len), (facts.rows, facts.raw_len), "its counts hold");
        packs.extend(facts.packs);
        newest = newest.max(head.generation);
    }
    (packs, newest)
}

/// Starts the service and kills it again and again while clients, the background job and the sweep are at work.
async fn killed_at_any_moment(client: &Client, setup: &mut Setup) -> HashSet<PackId> {
    let kills: u32 = std::env::var("HEADSTART_TEST_KILLS").map_or(6, |kills| kills.parse().expect("a number"));
    let mut dice = Dice::seeded();
    println!("seed {}", dice.seed());
    setup.set("HEADSTART_DUMP_BACKGROUND", "true").set("HEADSTART_DUMP_INTERVAL_S", "1");
    setup.set("HEADSTART_FRESHNESS_SOFT_PENDING", "0");
    let token = setup.token("7", "ann", None);
    let mut newest = Generation::NONE;
    for _ in 0..kills {
        client.batch_execute("UPDATE studio.workspace SET name = name || '.'").await.expect("a change");
        let server = setup.serve().await;
        let ask = async {
            loop {
                if let Ok(answer) = server.get(NEW, &token).send().await {
                    drop(answer.bytes().await);
                }
            }
        };
        let life = Duration::from_millis(dice.below(1200) as u64);
        tokio::select! {
            () = ask => {}
            () = sleep(life) => {}
        }
        drop(server);
        let (_, generation) = read_whole(setup).await;
        assert!(generation >= newest, "{generation} after {newest}");
        newest = generation;
    }
    // The next one serves and publishes as if nothing had been.
    let server = setup.serve().await;
    let body = server.get(NEW, &token).send().await.expect("an answer").bytes().await.expect("a whole body");
    assert_eq!(parse(&body).0, visible(client, 7, "ann", None, FULL).await);
    server.until_published(1).await;
    drop(server);
    let (packs, generation) = read_whole(setup).await;
    println!("generation {generation} after {kills} kills");
    assert!(generation > newest);
    packs
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_at_any_moment_the_folder_holds_whole_snapshots_and_leftovers_are_swept() {
    let (_database, client, mut setup) = studio(60, None).await;
    let named = killed_at_any_moment(&client, &mut setup).await;
    let impatient = StoreSettings { grace_s: 0, unpublished_s: 0, ..StoreSettings::default() };
    sleep(Duration::from_millis(1100)).await;
    opened(&setup, &impatient).await.sweep().await.expect("sweep");
    let left = files(&setup.store_folder(), "packs").len();
    assert_eq!(left, named.len(), "only what is named is left");
    read_whole(&setup).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_at_any_moment_mongodb_holds_whole_snapshots_and_leftovers_expire() {
    let url = mongo_url();
    let (_database, client, mut setup) = studio(60, Some(&url)).await;
    let named = killed_at_any_moment(&client, &mut setup).await;
    // What was held for a head that did not come to be counts as left behind when it was not touched for that long.
    let impatient = StoreSettings { grace_s: 0, unpublished_s: 2, ..StoreSettings::default() };
    sleep(Duration::from_secs(2)).await;
    opened(&setup, &impatient).await.sweep().await.expect("sweep");
    let client = mongodb::Client::with_uri_str(&url).await.expect("a client");
    let packs = client.default_database().expect("a database").collection::<Document>("packs");
    let kept = packs.count_documents(doc! { "part": 0, "expireAt": null }).await.expect("count");
    assert_eq!(kept, named.len() as u64, "whatever no head names expires");
    read_whole(&setup).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_lease_of_a_killed_instance_ends_and_the_next_one_makes_the_snapshot() {
    let url = mongo_url();
    let (database, _client, mut setup) = studio(2000, Some(&url)).await;
    let port = database.config().get_ports()[0];
    let proxy = Proxy::start(format!("127.0.0.1:{port}")).await;
    let direct = setup.env["HEADSTART_POSTGRES_URL"].clone();
    setup.set("HEADSTART_POSTGRES_URL", direct.replace(&format!(":{port}/"), &format!(":{}/", proxy.port)));
    setup.set("HEADSTART_DUMP_LEASE_S", "5");
    let server = setup.serve().await;
    proxy.set(Mode::StallAfter(1 << 20));
    let token = setup.token("7", "ann", None);
    let answer = server.get(NEW, &token).send().await.expect("the head of an answer");
    assert_eq!(answer.status(), 200, "it dumps");
    drop(server);
    let killed = Instant::now();
    assert!(answer.bytes().await.is_err(), "the transfer is broken, not ended");
    setup.set("HEADSTART_POSTGRES_URL", direct);
    setup.set("HEADSTART_DUMP_BACKGROUND", "true").set("HEADSTART_DUMP_INTERVAL_S", "1");
    let server = setup.serve().await;
    let store = opened(&setup, &StoreSettings::default()).await;
    let of_seven = async || store.heads().await.expect("heads").iter().any(|(slot, _)| slot.org == Org::new("7"));
    server.until("the background job has made it", of_seven).await;
    let after = killed.elapsed();
    assert!(after > Duration::from_secs(2) && after < Duration::from_secs(20), "after {after:?}: when the lease ended");
}

/// A snapshot of which a pack is damaged, or gone, is found out by the first client that needs it.
async fn found_and_made_anew(client: &Client, setup: &Setup, harm: impl AsyncFn()) {
    let token = setup.token("7", "ann", None);
    let server = setup.serve().await;
    drop(server.get(NEW, &token).send().await.expect("an answer").bytes().await.expect("a whole body"));
    server.until_published(1).await;
    let expected = visible(client, 7, "ann", None, FULL).await;
    let snapshot = async |server: &Server| {
        let answer = server.get(SNAPSHOT, &token).send().await.expect("an answer");
        assert_eq!(answer.status(), 200);
        let (lines, metadata) = parse(&answer.bytes().await.expect("a whole body"));
        assert_eq!(lines, expected);
        metadata["method"].as_str().expect("a method").to_owned()
    };
    // What is in memory does not tell.
    drop(server);
    harm().await;
    let server = setup.serve().await;
    let broken = match server.get(SNAPSHOT, &token).send().await {
        Ok(answer) => answer.bytes().await.is_err(),
        Err(_) => true,
    };
    assert!(broken, "the transfer is broken, not ended");
    let aside = async || server.metric("headstart_snapshots_put_aside_total").await == 1.0;
    server.until("it is put aside", aside).await;
    server.until_published(1).await;
    assert_eq!(snapshot(&server).await, "snapshot");
    assert_eq!(server.metric("headstart_dumps_started_total").await, 1.0);
    assert!(server.log().contains("put aside and made anew"));
    read_whole(setup).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_pack_breaks_the_answer_and_the_snapshot_is_made_anew() {
    let (_database, client, setup) = studio(100, None).await;
    let folder = setup.store_folder();
    let harm = async || {
        for path in files(&folder, "packs") {
            let mut bytes = std::fs::read(&path).expect("read a pack");
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
            std::fs::write(&path, bytes).expect("damage it");
        }
    };
    found_and_made_anew(&client, &setup, harm).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_pack_breaks_the_answer_and_the_snapshot_is_made_anew() {
    let url = mongo_url();
    let (_database, client, setup) = studio(100, Some(&url)).await;
    let harm = async || {
        let client = mongodb::Client::with_uri_str(&url).await.expect("a client");
        let packs = client.default_database().expect("a database").collection::<Document>("packs");
        packs.delete_many(doc! {}).await.expect("delete");
    };
    found_and_made_anew(&client, &setup, harm).await;
}

/// The files in folders of this name.
fn files(root: &Path, folder: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![root.to_owned()];
    while let Some(next) = folders.pop() {
        for entry in std::fs::read_dir(&next).expect("a folder") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                folders.push(path);
            } else if next.file_name().is_some_and(|name| name == folder) {
                found.push(path);
            }
        }
    }
    found
}
