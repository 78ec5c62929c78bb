//! No metric is dead: each moves when the thing it names happens, by exactly as much.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures_util::future::join_all;
use serde_json::{Value, json};
use tokio::time::Instant;
use tokio_postgres::Client;

use crate::support::postgres::Database;
use crate::support::proxy::{Mode, Proxy};
use crate::support::server::{Server, Setup};
use crate::support::studio;

/// What does not move here, and what shows that it does elsewhere.
const ELSEWHERE: &[(&str, &str)] = &[
    ("headstart_replica_reads", "needs a standby: replica.rs"),
    ("headstart_replica_fallbacks", "needs a standby: replica.rs"),
    ("headstart_key_set_fetches", "needs an issuer: issuer.rs"),
    ("headstart_key_set_failures", "the same"),
    ("headstart_pack_cache_waits", "needs more packs than the smallest cache takes: store/cache.rs"),
    ("headstart_pack_cache_evictions", "the same"),
    ("headstart_store_down", "needs a store that goes away: outage.rs"),
    ("headstart_dumps_followed", "needs another instance: together.rs"),
    ("headstart_unstored_dumps", "the same"),
    ("headstart_snapshots_put_aside", "needs a damaged pack: deaths.rs"),
    ("headstart_keys_joined", "needs a statement that is held back: serve/batch/tests.rs"),
    ("headstart_keys_waiting", "the same"),
    ("headstart_in_flight_bytes", "the same: fire/slow.rs"),
    ("headstart_waiting_dumps", "needs more orgs than dumps at once: fire/stampede.rs"),
    ("headstart_spans_sent", "needs a collector: traces.rs"),
    ("headstart_spans_lost", "the same"),
    ("headstart_slow_clients", "needs clients that stop reading: fire/slow.rs"),
    ("headstart_verify_differences", "needs rows changed behind the log's back: verify.rs"),
];

/// Every family that was declared, and whether it was ever seen at another value than 0.
#[derive(Default)]
struct Families(BTreeMap<String, bool>);

impl Families {
    async fn look(&mut self, server: &Server) {
        let text = server.metrics().await;
        assert!(text.ends_with("# EOF\n"));
        let mut family = String::new();
        for line in text.lines() {
            if let Some(declared) = line.strip_prefix("# TYPE ") {
                family = declared.split(' ').next().unwrap().to_owned();
                self.0.entry(family.clone()).or_default();
            } else if !line.starts_with('#') {
                let (series, value) = line.rsplit_once(' ').unwrap();
                assert!(series.starts_with(&family), "{series} stands under {family}");
                *self.0.get_mut(&family).unwrap() |= value.parse::<f64>().unwrap() != 0.0;
            }
        }
    }

    /// Looks until these have moved.
    async fn look_for(&mut self, server: &Server, names: &[&str]) {
        let deadline = Instant::now() + Duration::from_secs(60);
        while !names.iter().all(|name| self.0.get(&format!("headstart_{name}")) == Some(&true)) {
            assert!(Instant::now() < deadline, "not all of {names:?} moved:\n{}", server.metrics().await);
            tokio::time::sleep(Duration::from_millis(20)).await;
            self.look(server).await;
        }
    }
}

/// Asserts that a scrape has no series that begin so.
async fn expect_none(server: &Server, series: &[&str]) {
    let text = server.metrics().await;
    for begin in series.iter().map(|series| format!("headstart_{series}")) {
        assert!(!text.lines().any(|line| line.starts_with(&begin)), "{begin} is in\n{text}");
    }
}

/// Asserts values of series, all of one scrape.
async fn expect(server: &Server, series: &[(&str, u64)]) {
    let text = server.metrics().await;
    for (series, value) in series {
        let line = format!("headstart_{series} {value}");
        assert!(text.lines().any(|printed| printed == line), "{line} is not in\n{text}");
    }
}

async fn until(server: &Server, series: &str, value: f64) {
    server.until(series, async || server.metric(&format!("headstart_{series}")).await == value).await;
}

/// A whole answer's length, as it was sent.
async fn length(request: reqwest::RequestBuilder) -> u64 {
    let answer = request.send().await.unwrap();
    assert_eq!(answer.status(), 200);
    answer.bytes().await.unwrap().len() as u64
}

/// The metadata of an answer, how long it was, and how long its lines before the metadata.
async fn metadata(server: &Server, path: &str, token: &str) -> (Value, u64, u64) {
    let body = server.get(path, token).send().await.unwrap().bytes().await.unwrap();
    let last = body[..body.len() - 1].iter().rposition(|byte| *byte == b'\n').unwrap() + 1;
    (studio::parse(&body).1, body.len() as u64, last as u64)
}

/// A fact that `snapshots show` tells of org 7.
fn fact(setup: &Setup, name: &str) -> u64 {
    let shown = setup.must(&["snapshots", "show", "--org", "7"]);
    let value = shown.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('\t'));
    value.unwrap_or_else(|| panic!("no {name} in\n{shown}")).parse().unwrap()
}

#[tokio::test]
async fn no_metric_is_dead() {
    let database = Database::create().await;
    let client = database.connect().await;
    client.batch_execute(studio::TABLES).await.unwrap();
    studio::fill(&client, 2000).await;
    let config = database.config();
    let tokio_postgres::config::Host::Tcp(host) = &config.get_hosts()[0] else { panic!("tests use TCP") };
    let port = config.get_ports()[0];
    let proxy = Proxy::start(format!("{host}:{port}")).await;
    let mut setup = Setup::new(&database.url(), studio::CATALOG);
    setup.must(&["migrate", "--apply"]);
    setup.set("HEADSTART_POSTGRES_URL", database.url().replace(&format!(":{port}/"), &format!(":{}/", proxy.port)));
    // So few that callers wait for one while a scan goes on: it has one, and memberships and the watermark want one each.
    setup.set("HEADSTART_POSTGRES_MAX_CONNECTIONS", "2").set("HEADSTART_LOADER_STATEMENTS", "1");
    setup.set("HEADSTART_DUMP_CONCURRENT", "1").set("HEADSTART_SCAN_CONNECTIONS", "1");
    setup.set("HEADSTART_BOOTSTRAP_DATABASE_WAIT_MS", "60000");
    let server = setup.serve().await;
    let mut families = Families::default();

    answers_are_counted(&server, &setup, &client).await;
    families.look(&server).await;
    a_held_watermark_is_told(&server, &setup, &client, &mut families).await;
    drop(server);
    let server = setup.serve().await;
    a_dump_that_fails_is_seen_before_and_after(&server, &setup, &proxy, &mut families).await;
    drop(server);

    proxy.set(Mode::Pass);
    setup.set("HEADSTART_DUMP_BACKGROUND", "true").set("HEADSTART_DUMP_INTERVAL_S", "1");
    setup.set("HEADSTART_FRESHNESS_SOFT_PENDING", "0");
    setup.set("HEADSTART_TRIM_KEEP_S", "1").set("HEADSTART_TRIM_INTERVAL_S", "1");
    let logged = async || client.query_one("SELECT count(*) FROM sync_actions", &[]).await.unwrap().get::<_, i64>(0);
    let before = logged().await;
    let server = setup.serve().await;
    // Until the first round's dumps have ended, the next one tells what it found.
    families.look_for(&server, &["due_orgs", "pending_actions", "snapshot_age_seconds"]).await;
    until(&server, "due_orgs", 0.0).await;
    expect_none(&server, &["pending_actions{", "snapshot_age_seconds{"]).await;
    until(&server, "published_snapshots{schema=\"present\"}", 2.0).await;
    until(&server, "trimmed_actions_total", before as f64).await;
    assert_eq!(logged().await, 0);
    families.look(&server).await;

    // The client that stalls may count as slow before it is gone, or not, and its piece as in flight.
    for now_and_then in ["headstart_slow_clients", "headstart_in_flight_bytes"] {
        families.0.insert(now_and_then.into(), false);
    }
    let dead: BTreeSet<&str> = families.0.iter().filter(|(_, moved)| !**moved).map(|(name, _)| &**name).collect();
    let known: BTreeSet<&str> = ELSEWHERE.iter().map(|(name, _)| *name).collect();
    assert_eq!(dead, known, "what did not move, and what is known not to move here");
}

/// One answer of each kind, counted exactly.
async fn answers_are_counted(server: &Server, setup: &Setup, client: &Client) {
    let token = setup.token("7", "ann", None);
    let (first, mut sent, first_raw) = metadata(server, "/sync/bootstrap", &token).await;
    until(server, "dumps_finished_total", 1.0).await;
    let (rows, lines, packs) = (fact(setup, "rows"), fact(setup, "lines"), fact(setup, "packs"));
    expect(
        server,
        &[
            ("requests_total{route=\"/sync/bootstrap\",status=\"2xx\"}", 1),
            ("answers_total{method=\"postgres\",reason=\"missing\"}", 1),
            ("first_byte_seconds_count{route=\"/sync/bootstrap\"}", 1),
            ("last_byte_seconds_count{route=\"/sync/bootstrap\"}", 1),
            ("ended_total{route=\"/sync/bootstrap\",outcome=\"complete\"}", 1),
            ("sent_bytes_total", sent),
            ("raw_bytes_total", first_raw),
            ("places{kind=\"stream\"}", 4000),
            ("pool_limit{pool=\"primary\"}", 2),
            ("scan_rows_per_second_count", 1),
            ("scan_bytes_per_second_count", 1),
            ("watermark", first["lastSyncId"].as_u64().unwrap()),
            ("dumps_started_total", 1),
            ("dumps_finished_total", 1),
            ("live_dumps", 0),
            ("followers", 0),
            ("spool_bytes", 0),
            ("scanned_rows_total", rows),
            ("scanned_bytes_total", lines),
            ("pack_cache_loads_total", 0),
        ],
    )
    .await;

    let stored = "/sync/bootstrap?noSyncPackets=true";
    for _ in 0..2 {
        sent += length(server.get(stored, &token)).await;
    }
    let text = server.metrics().await;
    let loads = server.metric("headstart_pack_cache_loads_total").await;
    assert!((2.0..=(packs + 1) as f64).contains(&loads), "the manifest and the packs of ann's groups: {text}");
    // The second found all that the first had loaded.
    assert_eq!(server.metric("headstart_pack_cache_hits_total").await, loads, "{text}");

    // Changes of a row that ann sees, of one object twice: one action in a delta, one after a snapshot.
    let change = "UPDATE studio.workspace SET name = name || '.' WHERE id = 7";
    client.batch_execute(change).await.unwrap();
    client.batch_execute(change).await.unwrap();
    let (epoch, cursor) = (first["epoch"].as_str().unwrap(), &first["lastSyncId"]);
    sent += length(server.get(&format!("/sync/delta?lastSyncId={cursor}&epoch={epoch}"), &token)).await;
    sent += length(server.get("/sync/bootstrap", &token)).await;
    let body = json!({"requests": [{"modelName": "Workspace", "id": "7"}, {"modelName": "Workspace", "id": "8"}]});
    let batch = server.client.post(format!("{}/sync/batch", server.base)).bearer_auth(&token);
    let batch = batch.header("content-type", "application/json").body(body.to_string());
    sent += length(batch).await;
    expect(
        server,
        &[
            ("answers_total{method=\"postgres\",reason=\"missing\"}", 1),
            ("answers_total{method=\"snapshot\",reason=\"fresh\"}", 3),
            ("answers_total{method=\"postgres\",reason=\"delta\"}", 1),
            ("answers_total{method=\"postgres\",reason=\"batch\"}", 1),
            ("told_actions_total{answer=\"delta\"}", 1),
            ("told_actions_total{answer=\"bootstrap\"}", 1),
            ("requests_total{route=\"/sync/bootstrap\",status=\"2xx\"}", 4),
            ("requests_total{route=\"/sync/delta\",status=\"2xx\"}", 1),
            ("requests_total{route=\"/sync/batch\",status=\"2xx\"}", 1),
            ("sent_bytes_total", sent),
            ("keys_asked_total", 4),
            ("keys_read_total", 4),
            ("lookup_keys_count", 3),
            ("load_wait_seconds_count", 3),
            // Each answer the workspace; the other one is another org's.
            ("looked_up_rows_total", 3),
            ("dumps_started_total", 1),
        ],
    )
    .await;

    let elsewhere = server.get(&format!("/sync/delta?lastSyncId={cursor}&epoch=elsewhere"), &token).send().await;
    assert_eq!(elsewhere.unwrap().status(), 410);
    expect(
        server,
        &[
            ("resyncs_total{reason=\"epoch\"}", 1),
            ("requests_total{route=\"/sync/delta\",status=\"4xx\"}", 1),
            ("answers_total{method=\"postgres\",reason=\"delta\"}", 1),
        ],
    )
    .await;
}

async fn a_held_watermark_is_told(server: &Server, setup: &Setup, client: &Client, families: &mut Families) {
    let held = "headstart_watermark_held_seconds";
    assert_eq!(server.metric(held).await, 0.0);
    client
        .batch_execute(
            "SET application_name = 'the tester'; BEGIN; UPDATE studio.workspace SET name = 'Held' WHERE id = 7",
        )
        .await
        .unwrap();
    length(server.get("/sync/bootstrap", &setup.token("7", "ann", None))).await;
    server.until("the watermark is held", async || server.metric(held).await > 0.2).await;
    families.look_for(server, &["watermark_held_by"]).await;
    let user = client.query_one("SELECT current_user::text", &[]).await.unwrap().get::<_, String>(0);
    let by = format!("watermark_held_by{{user=\"{user}\",application=\"the tester\"}}");
    expect(server, &[(&by, 1)]).await;
    client.batch_execute("COMMIT").await.unwrap();
    server.until("the watermark is free", async || server.metric(held).await == 0.0).await;
    expect_none(server, &["watermark_held_by{"]).await;
}

async fn a_dump_that_fails_is_seen_before_and_after(
    server: &Server,
    setup: &Setup,
    proxy: &Proxy,
    families: &mut Families,
) {
    let token = setup.token("7", "ann", None);
    // Enough passes for the first frames, not enough for all.
    proxy.set(Mode::StallAfter(3 << 20));
    let stalled = server.get("/sync/bootstrap?noCache=true", &token).send().await.unwrap();
    assert_eq!(stalled.status(), 200);
    server.until("frames are in the spool", async || server.metric("headstart_spool_bytes").await > 0.0).await;
    // Whatever else asks the database waits.
    proxy.set(Mode::StallAfter(0));
    let crowd = (0..4).map(|_| server.get("/sync/bootstrap?noSyncPackets=true", &token).send());
    // Bootstraps ask for memberships, by one statement for all of them, a batch for the watermark.
    let body = json!({"requests": [{"modelName": "Workspace", "id": "7"}]}).to_string();
    let batch = server.client.post(format!("{}/sync/batch", server.base)).bearer_auth(&token);
    let batch = batch.header("content-type", "application/json").body(body).send();
    let watched = async {
        until(server, "pool_in_use{pool=\"primary\"}", 2.0).await;
        server
            .until("callers wait", async || server.metric("headstart_pool_waiting{pool=\"primary\"}").await > 0.0)
            .await;
        expect(server, &[("live_dumps", 1), ("followers", 1), ("dumps_started_total", 1)]).await;
        families.look(server).await;
        proxy.set(Mode::Cut);
    };
    let _refused = tokio::join!(join_all(crowd), batch, watched);
    assert!(stalled.bytes().await.is_err(), "the transfer is broken, not ended");
    until(server, "dumps_failed_total{reason=\"source\"}", 1.0).await;
    until(server, "followers", 0.0).await;
    // The answer that broke gives its file up a moment after it no longer follows.
    until(server, "spool_bytes", 0.0).await;
    until(server, "pool_in_use{pool=\"primary\"}", 0.0).await;
    expect(
        server,
        &[
            ("answers_total{method=\"postgres\",reason=\"no_cache\"}", 1),
            ("dumps_started_total", 1),
            ("dumps_finished_total", 0),
            ("live_dumps", 0),
            ("spool_bytes", 0),
        ],
    )
    .await;
}
