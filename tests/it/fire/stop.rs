//! SIGTERM: no new work, answers get the grace period and break after it, leases are given back, the exit code is 0.

use std::time::{Duration, Instant};

use headstart::model::{Org, SnapshotId};
use headstart::store::{self, StoreSettings};
use headstart::task::Tasks;
use tokio::net::TcpStream;

use crate::support::socket::Socket;
use crate::support::{required, studio};

const GRACE: Duration = Duration::from_secs(4);

/// What all work gets to end after the grace period (`END_WITHIN`).
const END: Duration = Duration::from_secs(10);

#[tokio::test(flavor = "multi_thread")]
async fn told_to_stop_it_ends_in_order_and_in_time() {
    let (_database, client, mut setup) = studio::with_log(3000, studio::CATALOG).await;
    let mongo = required("HEADSTART_TEST_MONGODB_URL").replacen("/?", &format!("/stop_{}?", SnapshotId::random()), 1);
    setup.set("HEADSTART_STORE_URL", &mongo).set("HEADSTART_DUMP_LEASE_S", "3600");
    setup.set("HEADSTART_HTTP_SHUTDOWN_GRACE_S", GRACE.as_secs().to_string());
    setup.set("HEADSTART_SCAN_LOCK_TIMEOUT_MS", "0");
    setup.must(&["dump", "--org", "7"]);
    let token = setup.token("7", "x", Some("org:7,circle:1,circle:2,circle:3"));
    let server = setup.serve().await;

    let stored = "/sync/bootstrap?noSyncPackets=true";
    let mut reads_on = Socket::get(&server, stored, &token, "identity").await;
    let mut stalls = Socket::get(&server, stored, &token, "identity").await;
    for client in [&mut reads_on, &mut stalls] {
        assert!(client.read_to(1000).await);
        assert!(client.status() == 200 && client.announced() > 3_000_000, "more than the kernel takes at once");
    }
    // A dump that can't go on: it holds its lease when the signal comes.
    client.batch_execute("BEGIN; LOCK TABLE studio.star IN ACCESS EXCLUSIVE MODE").await.unwrap();
    let waits = tokio::spawn(server.get("/sync/bootstrap", &setup.token("8", "ann", None)).send());
    server.until("a dump runs", async || server.metric("headstart_live_dumps").await == 1.0).await;
    let tasks = Tasks::new();
    let store = store::open(&mongo, &StoreSettings::default(), &tasks).await.unwrap();
    let (org, other) = (Org::new("8"), SnapshotId::random());
    assert_eq!(store.acquire(&org, other, Duration::from_secs(1)).await.unwrap(), None, "the service has the lease");

    let told = Instant::now();
    server.signal("TERM");
    let not_ready = async || {
        let answer =
            server.client.get(format!("{}/readyz", server.admin)).send().await.expect("operators are answered");
        answer.status() == 503 && answer.text().await.expect("a body").contains("told to stop")
    };
    server.until("it is not ready", not_ready).await;
    assert_eq!(server.client.get(format!("{}/livez", server.admin)).send().await.unwrap().status(), 200);
    let address = server.base.trim_start_matches("http://").to_owned();
    assert!(TcpStream::connect(&address).await.is_err(), "no new clients");
    // Within the grace period an answer may come to its end.
    let whole = reads_on.announced();
    assert!(reads_on.read_to(whole).await, "{} of {whole}", reads_on.read.len());
    assert!(reads_on.read.ends_with(b"}\n") && told.elapsed() < GRACE);

    let status = server.ended().await;
    let took = told.elapsed();
    assert_eq!(status.code(), Some(0));
    assert!((GRACE..GRACE + END).contains(&took), "{took:?}");
    let whole = stalls.announced();
    assert!(!stalls.read_to(whole).await, "what is not finished then is broken");
    let unanswered = waits.await.unwrap();
    assert!(unanswered.is_err() || !unanswered.unwrap().status().is_success());
    let lease = store.acquire(&org, other, Duration::from_secs(1)).await.unwrap();
    assert!(lease.is_some(), "the lease was given back, an hour before it would have expired");
    tasks.shutdown(END).await.unwrap();
}
