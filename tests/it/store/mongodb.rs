//! What is particular to MongoDB: expiry marks, servers that are away, answers that get lost.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use ::mongodb::bson::{Document, doc};
use ::mongodb::{Client, Database};
use futures_util::TryStreamExt;
use headstart::model::{Generation, Org, SchemaHash, SnapshotId};
use headstart::snapshot::PackId;
use headstart::store::{MongoSettings, MongoStore, OpenError, Slot, SnapshotStore, StoreError, StoreSettings, open};
use headstart::task::Tasks;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::{LONG, mongo, mongo_url, publish, read_whole};
use crate::support::{self, required};

fn slot() -> Slot {
    Slot { org: Org::new("acme"), schema: SchemaHash::new("s") }
}

async fn database(url: &str) -> Database {
    Client::with_uri_str(url).await.expect("a client").default_database().expect("a database")
}

/// The keys of blobs with a mark.
async fn marked(database: &Database, collection: &str) -> BTreeSet<String> {
    let found = database.collection::<Document>(collection).find(doc! { "expireAt": { "$type": "date" } }).await;
    let keys = found.expect("find").map_ok(|blob| blob.get_str("key").expect("a key").to_owned());
    keys.try_collect().await.expect("read")
}

fn keys(id: SnapshotId, numbers: impl IntoIterator<Item = u32>) -> BTreeSet<String> {
    numbers.into_iter().map(|number| format!("{id}/{number}")).collect()
}

#[tokio::test]
async fn marks_are_where_they_belong_without_any_sweep() {
    let url = mongo_url();
    let (store, database) = (mongo(&url, LONG).await, database(&url).await);
    let pack = |id, number| PackId { snapshot: id, number };

    let first = publish(&*store, &slot(), Generation::NONE, 3, &[]).await.expect("publish");
    assert_eq!(marked(&database, "packs").await, keys(first, []), "nothing that a head names");
    assert_eq!(marked(&database, "manifests").await, BTreeSet::new());

    let second = publish(&*store, &slot(), Generation(1), 1, &[pack(first, 1)]).await.expect("publish");
    let mut expected = keys(first, [0, 2]);
    assert_eq!(marked(&database, "packs").await, expected, "what was replaced and not taken over");
    assert_eq!(marked(&database, "manifests").await, BTreeSet::from([first.to_string()]));

    let stray = PackId { snapshot: SnapshotId::random(), number: 0 };
    store.put_pack(&slot().org, stray, super::pack_bytes(stray)).await.expect("put");
    expected.extend(keys(stray.snapshot, [0]));
    assert_eq!(marked(&database, "packs").await, expected, "what is not published yet");

    let lost = publish(&*store, &slot(), Generation(1), 2, &[]).await;
    assert!(matches!(lost, Err(StoreError::Conflict)), "{lost:?}");
    assert_eq!(marked(&database, "packs").await.difference(&expected).count(), 2, "what lost");

    store.delete(&slot().org).await.expect("delete");
    assert!(marked(&database, "packs").await.is_superset(&keys(second, [0])), "what was deleted");
    assert!(marked(&database, "packs").await.is_superset(&keys(first, [0, 1, 2])));
    let kept = database.collection::<Document>("packs").count_documents(doc! { "expireAt": null }).await;
    assert_eq!(kept.expect("count"), 0);

    for collection in ["packs", "manifests"] {
        let indexes: Vec<_> = database
            .collection::<Document>(collection)
            .list_indexes()
            .await
            .expect("indexes")
            .try_collect()
            .await
            .expect("read");
        let expires = indexes.iter().find(|index| index.keys == doc! { "expireAt": 1 }).expect("the index");
        let after = expires.options.as_ref().and_then(|options| options.expire_after);
        assert_eq!(after, Some(Duration::ZERO), "the server itself removes what has expired");
    }
}

#[tokio::test]
async fn servers_that_are_away_and_urls_that_are_wrong_are_errors_in_time() {
    let settings = MongoSettings { server_selection_timeout_ms: 200, ..MongoSettings::default() };
    let tls = mongo_url() + "&tls=true";
    for url in ["mongodb://127.0.0.1:1/?replicaSet=rs0", &tls] {
        let store = MongoStore::open(url, &settings, LONG, Tasks::new()).await.expect("the server is not needed yet");
        let answer = tokio::time::timeout(Duration::from_secs(5), store.ping()).await.expect("an answer in time");
        assert!(matches!(answer, Err(StoreError::Unavailable(_))), "{answer:?}");
    }
    for url in ["mongodb://", "mongodb://u:secret@h:x/", "mongodb://h/?replicaSet"] {
        let refused = open(url, &StoreSettings::default(), &Tasks::new()).await.map(|_| ()).expect_err("malformed");
        assert!(matches!(refused, OpenError::Mongo(_)), "{refused:?}");
        assert!(!refused.to_string().contains("secret") && !format!("{refused:?}").contains("secret"), "{refused:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn statements_to_a_server_that_vanished_give_their_places_back() {
    let url = mongo_url();
    let required = required("HEADSTART_TEST_MONGODB_URL");
    let server = required.trim_start_matches("mongodb://").split('/').next().expect("a host").to_owned();
    let proxy = support::proxy::Proxy::start(server).await;
    let through = format!("mongodb://127.0.0.1:{}/{}?directConnection=true", proxy.port, database(&url).await.name());
    let settings = MongoSettings {
        timeout_ms: 500,
        connect_timeout_ms: 500,
        server_selection_timeout_ms: 500,
        max_connections: 2,
    };
    let store = MongoStore::open(&through, &settings, LONG, Tasks::new()).await.expect("open");
    store.ping().await.expect("an answer");
    proxy.set(support::proxy::Mode::StallAfter(0));
    // What the proxy was waiting for already still passes.
    let mut unanswered = 0;
    while unanswered < 4 {
        unanswered += u32::from(store.ping().await.is_err());
    }
    proxy.set(support::proxy::Mode::Forget);
    let begun = tokio::time::Instant::now();
    while store.ping().await.is_err() {
        assert!(begun.elapsed() < Duration::from_secs(30), "both places are still taken");
    }
}

/// Passes bytes between the store and the server; connections take turns in being cut after so many bytes of answers.
struct Proxy {
    address: String,
    cuts: Arc<AtomicU32>,
}

impl Proxy {
    async fn start(server: String, lengths: &'static [usize]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address").to_string();
        let cuts = Arc::new(AtomicU32::new(0));
        let counted = cuts.clone();
        tokio::spawn(async move {
            let mut lengths = lengths.iter().cycle();
            while let Ok((client, _)) = listener.accept().await {
                let server = TcpStream::connect(&server).await.expect("the server");
                tokio::spawn(pass(client, server, *lengths.next().expect("endless"), counted.clone()));
            }
        });
        Self { address, cuts }
    }
}

async fn pass(client: TcpStream, server: TcpStream, mut answers: usize, cuts: Arc<AtomicU32>) {
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    let asks = tokio::spawn(async move { tokio::io::copy(&mut from_client, &mut to_server).await });
    let mut buffer = [0; 4096];
    while let Ok(count @ 1..) = from_server.read(&mut buffer).await {
        if count > answers {
            // The server has done what it was asked to; the answer is lost.
            cuts.fetch_add(1, Ordering::Relaxed);
            break;
        }
        answers -= count;
        if to_client.write_all(&buffer[..count]).await.is_err() {
            break;
        }
    }
    asks.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_publisher_whose_answers_get_lost_never_mistakes_its_own_success_for_a_conflict() {
    let url = mongo_url();
    let direct = mongo(&url, LONG).await;
    let required = required("HEADSTART_TEST_MONGODB_URL");
    let server = required.trim_start_matches("mongodb://").split('/').next().expect("a host").to_owned();
    // The first answers of a connection are about 1,000 bytes of greeting; most others are below 300.
    let proxy = Proxy::start(server, &[4000, 2500, 3000, 5500, 2000, 7000, 1800]).await;
    let name = database(&url).await.name().to_owned();
    let through = format!("mongodb://{}/{name}?directConnection=true", proxy.address);
    let store = mongo(&through, LONG).await;
    let (mut published, mut unknown) = (0, 0);
    for _ in 0..15 {
        let before = direct.head(&slot()).await.expect("head");
        let result = publish(&*store, &slot(), before.generation, 1, &[]).await;
        let after = direct.head(&slot()).await.expect("head");
        match result {
            Ok(id) => {
                assert_eq!(after.generation, before.generation.next());
                assert_eq!(after.current.as_ref().expect("published").facts.id, id);
                published += 1;
            }
            Err(StoreError::Unavailable(_)) => unknown += 1,
            Err(error) => panic!("{error:?}"),
        }
        if let Some(current) = &after.current {
            read_whole(&*direct, &slot(), current).await;
        }
    }
    let cuts = proxy.cuts.load(Ordering::Relaxed);
    println!("{published} published, {unknown} unknown, {cuts} answers lost");
    assert!(published > 3 && cuts > 3, "{published} published, {unknown} unknown, {cuts} answers lost");
}
