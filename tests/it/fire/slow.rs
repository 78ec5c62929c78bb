//! Two hundred clients that stop reading: no transaction, bounded memory, an end for each.

use std::time::Duration;

use futures_util::future::join_all;
use headstart::http::pace::WHOLE;
use tokio_postgres::Client;

use crate::support::postgres::Database;
use crate::support::server::{Server, Setup};
use crate::support::socket::Socket;
use crate::support::studio;

const CLIENTS: usize = 200;
const MIB: u64 = 1 << 20;

/// What a stalled client may cost, besides what all of them share.
const EACH: u64 = 256 << 10;
/// The least that the cache of packs can be set to.
const CACHE: u64 = 16 * MIB;
/// What all decoded lines together may take here.
const DECODED: u64 = 4 * MIB;
/// Connections and requests themselves, and what an allocator keeps.
const SLACK: u64 = 24 * MIB;
/// A dump of this size, of which an allocator keeps a part.
const DUMP: u64 = 128 * MIB;

const FULL: &str = "/sync/bootstrap?noSyncPackets=true";

/// An org of 150 MB, of which nothing compresses to less than half.
async fn large() -> (Database, Client, Setup) {
    let database = Database::create().await;
    let client = database.connect().await;
    client.batch_execute(studio::TABLES).await.unwrap();
    let sql = "INSERT INTO studio.workspace VALUES (7, 'Seven');
        INSERT INTO studio.\"Project\" (workspace_id, \"displayName\") VALUES (7, 'P');
        INSERT INTO studio.task (id, \"projectId\", title)
        SELECT n, p.id, (SELECT string_agg(encode(sha512((n || ':' || i)::bytea), 'hex'), '') FROM generate_series(1, 80) AS i)
          FROM studio.\"Project\" AS p, generate_series(1, 15000) AS n";
    client.batch_execute(sql).await.unwrap();
    let mut setup = Setup::new(&database.url(), studio::CATALOG);
    setup.must(&["migrate", "--apply"]);
    setup.set("HEADSTART_STORE_CACHE_LIMIT_MIB", "16").set("HEADSTART_HTTP_DECODED_BYTES", DECODED.to_string());
    setup.set("HEADSTART_HTTP_PROGRESS_DEADLINE_S", "3600");
    (database, client, setup)
}

/// Clients that begin to read and stop, every other one in identity.
async fn stall(server: &Server, token: &str) -> Vec<Socket> {
    let clients = (0..CLIENTS).map(async |n| {
        let mut client = Socket::get(server, FULL, token, ["zstd", "identity"][n % 2]).await;
        assert!(client.read_to(100_000).await);
        assert_eq!(client.status(), 200);
        client
    });
    let clients = join_all(clients).await;
    until(server, "slow_clients", CLIENTS as f64).await;
    // Each keeps its place to its last byte.
    until(server, "in_progress{kind=\"stream\"}", CLIENTS as f64).await;
    clients
}

async fn until(server: &Server, series: &str, value: f64) {
    server.until(series, async || server.metric(&format!("headstart_{series}")).await == value).await;
}

async fn settled(server: &Server) {
    for series in ["slow_clients", "followers", "spool_bytes", "in_flight_bytes", "in_progress{kind=\"stream\"}"] {
        until(server, series, 0.0).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_hundred_stalled_clients_cost_little_and_have_an_end() {
    let (_database, client, mut setup) = large().await;
    let token = setup.token("7", "x", Some("org:7"));
    let server = setup.serve().await;
    let before = server.memory();

    // In the middle of a dump: it comes to its end all the same, and leaves no transaction behind.
    let stalled = stall(&server, &token).await;
    until(&server, "followers", CLIENTS as f64).await;
    until(&server, "dumps_finished_total", 1.0).await;
    let open = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND xact_start IS NOT NULL \
                AND pid <> pg_backend_pid()";
    // Short statements of the service come and go; a transaction that a client holds would stay.
    let none_open = async || client.query_one(open, &[]).await.unwrap().get::<_, i64>(0) == 0;
    server.until("no transaction is open", none_open).await;
    until(&server, "slow_clients", CLIENTS as f64).await;
    let in_flight = server.metric("headstart_in_flight_bytes").await;
    // Half of them are sent slices of the spool, the others what is made for each.
    let most = CLIENTS / 2 * (WHOLE + 192 * 1024);
    assert!((1.0..=most as f64).contains(&in_flight), "{in_flight} bytes in flight");
    assert!(server.metric("headstart_connections").await >= CLIENTS as f64);
    let grown = server.memory().saturating_sub(before);
    eprintln!("stalled in a dump: {} MiB more than before it", grown / MIB);
    assert!(grown <= CLIENTS as u64 * EACH + DECODED + DUMP + SLACK, "{} MiB", grown / MIB);
    drop(stalled);
    settled(&server).await;
    drop(server);

    // In the middle of a published snapshot.
    let server = setup.serve().await;
    let before = server.memory();
    let stalled = stall(&server, &token).await;
    let grown = server.memory().saturating_sub(before);
    eprintln!("stalled in a snapshot: {} MiB", grown / MIB);
    assert!(grown <= CLIENTS as u64 * EACH + CACHE + DECODED + SLACK, "{} MiB", grown / MIB);

    // Others stop further on, each in another pack, until no pack fits any more: then those stalled for longest go, and
    // whoever reads gets all of it.
    let mut further = Vec::new();
    for packs in 1..=3 {
        let mut client = Socket::get(&server, FULL, &token, "zstd").await;
        assert!(client.read_to(packs * (4 << 20) + (1 << 20)).await);
        further.push(client);
    }
    let mut reads_on = Socket::get(&server, FULL, &token, "zstd").await;
    assert!(reads_on.read_to(1000).await);
    let whole = reads_on.announced();
    assert!(reads_on.read_to(whole).await, "{} of {whole} bytes\n{}", reads_on.read.len(), server.log());
    let cut = server.metric("headstart_cut_clients_total{reason=\"room\"}").await;
    // Those in the first pack, and then perhaps the two that stopped first in the packs after it.
    assert!((1.0..=CLIENTS as f64 + 2.0).contains(&cut), "{cut} were cut");
    assert!(server.metric("headstart_pack_cache_bytes").await <= CACHE as f64);
    assert!(server.log().contains("others waited for the memory its packs took"));
    let last = further.last_mut().expect("there are three");
    let whole = last.announced();
    assert!(last.read_to(whole).await, "the one stalled for the shortest time was left alone");
    drop((stalled, further));
    settled(&server).await;
    drop(server);

    each_has_an_end(&mut setup, &token).await;
}

/// Nobody stays longer than the deadline for a piece, not even by taking a few bytes now and then.
async fn each_has_an_end(setup: &mut Setup, token: &str) {
    setup.set("HEADSTART_HTTP_PROGRESS_DEADLINE_S", "3");
    let server = setup.serve().await;
    let mut steady = Socket::get(&server, FULL, token, "zstd").await;
    let mut stalled: Vec<Socket> = join_all((0..CLIENTS).map(|_| Socket::get(&server, FULL, token, "identity"))).await;
    let trickle = stalled.split_off(CLIENTS - 20).into_iter().map(async |mut client| {
        while client.sip(500).await {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        client.read.len()
    });
    let cut = "cut_clients_total{reason=\"progress\"}";
    let all_cut = until(&server, cut, CLIENTS as f64);
    let reads_on = async {
        // About 600 kB a second: slow, but a piece well within the deadline.
        while server.metric(&format!("headstart_{cut}")).await < CLIENTS as f64 {
            assert!(steady.read_to(steady.read.len() + (64 << 10)).await);
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    let (trickled, (), ()) = tokio::join!(join_all(trickle), all_cut, reads_on);
    assert!(trickled.iter().all(|read| *read < 1 << 20), "{trickled:?}");
    let whole = steady.announced();
    assert!(steady.read_to(whole).await, "who is slow but goes on is served");
    for client in &mut stalled {
        assert!(!client.read_to(usize::MAX).await, "the transfer is broken");
        assert!(client.read.len() < client.announced());
    }
    settled(&server).await;
    assert!(server.log().contains("outcome=\"cut\""), "the log says who was cut");
}
