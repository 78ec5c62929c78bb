//! Everybody comes at once: one scan an org, a bounded number at a time, a bounded queue.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio_postgres::Client;

use super::{proxied, retry_after};
use crate::support::postgres::wait_for;
use crate::support::proxy::Mode;
use crate::support::server::{Server, decode};
use crate::support::studio;

const FULL: [&str; 4] = ["Workspace", "Project", "Task", "Star"];

/// Whoever wants to scan waits for this to end.
const HOLD: &str = "BEGIN; LOCK TABLE studio.star IN ACCESS EXCLUSIVE MODE";

/// How often each COPY of this database ran.
async fn copies(client: &Client) -> BTreeMap<String, i64> {
    let sql = "SELECT s.query, sum(s.calls)::bigint FROM pg_stat_statements AS s JOIN pg_database AS d ON d.oid = s.dbid \
               WHERE d.datname = current_database() AND s.query ILIKE 'copy%' GROUP BY 1";
    let rows = client.query(sql, &[]).await.expect("the statements");
    rows.iter().map(|row| (row.get(0), row.get(1))).collect()
}

async fn until_metric(server: &Server, series: &str, value: f64) {
    server.until(series, async || server.metric(&format!("headstart_{series}")).await == value).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_clients_of_one_org_cost_one_scan() {
    let (_database, client, mut setup) = studio::with_log(40, studio::CATALOG).await;
    client.batch_execute("CREATE EXTENSION pg_stat_statements").await.unwrap();
    let callers = studio::CALLERS.iter().filter(|(org, _, _)| *org == 7);
    let callers: Vec<_> = callers.map(|(_, who, groups)| (*who, *groups, setup.token("7", who, *groups))).collect();
    setup.set("HEADSTART_SCAN_LOCK_TIMEOUT_MS", "0");
    let server = setup.serve().await;

    client.batch_execute(HOLD).await.unwrap();
    let mut crowd: FuturesUnordered<_> = (0..1000)
        .map(|n| {
            let who = n % callers.len();
            let request = server.get("/sync/bootstrap", &callers[who].2).header("accept-encoding", "zstd");
            async move {
                let answer = request.send().await.expect("an answer");
                assert_eq!(answer.status(), 200);
                (who, answer.bytes().await.expect("a whole body"))
            }
        })
        .collect();
    let all_came = async {
        until_metric(&server, "in_progress{kind=\"stream\"}", 1000.0).await;
        client.batch_execute("COMMIT").await.unwrap();
    };
    let answers = async {
        let mut answers: BTreeMap<(usize, Vec<u8>), usize> = BTreeMap::new();
        while let Some((who, body)) = crowd.next().await {
            *answers.entry((who, body.to_vec())).or_default() += 1;
        }
        answers
    };
    let (answers, ()) = tokio::join!(answers, all_came);
    assert_eq!(answers.values().sum::<usize>(), 1000);
    for (who, body) in answers.keys() {
        let (name, groups, _) = &callers[*who];
        let groups: Option<Vec<&str>> = groups.map(|groups| groups.split(',').collect());
        let (lines, _) = studio::parse(&decode("zstd", body));
        assert_eq!(lines, studio::visible(&client, 7, name, groups.as_deref(), &FULL).await, "{name}");
    }
    until_metric(&server, "dumps_finished_total", 1.0).await;
    assert_eq!(server.metric("headstart_dumps_started_total").await, 1.0);
    let copies = copies(&client).await;
    assert!(
        copies.len() >= FULL.len() && copies.values().all(|calls| *calls == 1),
        "each table was read once: {copies:?}"
    );
}

const ORGS: std::ops::Range<i64> = 100..150;
const EACH: usize = 4;
const AT_ONCE: usize = 3;
const WAITING: usize = 10;

#[tokio::test(flavor = "multi_thread")]
async fn fifty_stale_orgs_are_scanned_a_few_at_a_time_and_once_each() {
    let (database, client, mut setup) = studio::with_log(1, studio::CATALOG).await;
    let sql = format!(
        "CREATE EXTENSION pg_stat_statements;
         INSERT INTO studio.workspace SELECT n, 'W' || n FROM generate_series({}, {}) AS n;
         INSERT INTO studio.\"Project\" (workspace_id, \"displayName\") SELECT id, 'P' FROM studio.workspace WHERE id >= 100;
         INSERT INTO studio.task (id, \"projectId\", title)
         SELECT p.workspace_id * 1000 + n, p.id, 'T' || n FROM studio.\"Project\" AS p, generate_series(1, 20) AS n
          WHERE p.workspace_id >= 100",
        ORGS.start,
        ORGS.end - 1
    );
    client.batch_execute(&sql).await.unwrap();
    setup.set("HEADSTART_FRESHNESS_SOFT_PENDING", "1").set("HEADSTART_FRESHNESS_HARD_PENDING", "10");
    setup.must(&["dump", "--all"]);
    // Past the hard limit: what is published is not served any more.
    client.batch_execute("UPDATE studio.task SET points = 1 WHERE id >= 100000").await.unwrap();
    let reset = "SELECT pg_stat_statements_reset(0, oid, 0) FROM pg_database WHERE datname = current_database()";
    client.batch_execute(reset).await.unwrap();
    let tokens: BTreeMap<i64, String> =
        ORGS.map(|org| (org, setup.token(&org.to_string(), "u", Some(&format!("org:{org}"))))).collect();
    setup.set("HEADSTART_SCAN_LOCK_TIMEOUT_MS", "0").set("HEADSTART_SCAN_CONNECTIONS", "1");
    setup.set("HEADSTART_DUMP_CONCURRENT", AT_ONCE.to_string()).set("HEADSTART_DUMP_WAITING", WAITING.to_string());
    let proxy = proxied(&database, &mut setup).await;
    let server = setup.serve().await;

    client.batch_execute(HOLD).await.unwrap();
    let ask = |org: i64| {
        let request = server.get("/sync/bootstrap", &tokens[&org]);
        async move {
            let answer = request.send().await.expect("an answer");
            if answer.status() == 503 {
                assert!((2..=6).contains(&retry_after(&answer)));
                assert!(answer.text().await.expect("a body").contains("\"OVERLOADED\""));
                return (org, None);
            }
            assert_eq!(answer.status(), 200);
            (org, Some(answer.bytes().await.expect("a whole body")))
        }
    };
    let mut crowd: FuturesUnordered<_> = ORGS.flat_map(|org| [org; EACH]).map(ask).collect();
    // As many as are let in wait for the scans, everybody else is told to come again.
    let most = EACH * (AT_ONCE + WAITING);
    let mut refused = Vec::new();
    while crowd.len() > most {
        let (org, answer) = crowd.next().await.expect("more are refused");
        assert!(answer.is_none(), "nobody is served while nothing can be read");
        refused.push(org);
    }
    until_metric(&server, "live_dumps", AT_ONCE as f64).await;
    until_metric(&server, "waiting_dumps", WAITING as f64).await;
    let scanning = "SELECT count(*) FROM pg_locks AS l JOIN pg_database AS d ON d.oid = l.database \
                    WHERE d.datname = current_database() AND NOT l.granted AND l.relation = 'studio.star'::regclass";
    wait_for(&client, scanning, AT_ONCE as i64).await;

    // Whoever was refused is refused again without a word to the database.
    let again = *refused.last().expect("some were refused");
    assert_eq!(ask(again).await.1, None);
    proxy.set(Mode::StallAfter(0));
    let asked = Instant::now();
    assert_eq!(ask(again).await.1, None);
    assert!(asked.elapsed() < Duration::from_secs(1), "{:?}", asked.elapsed());
    proxy.set(Mode::Pass);

    client.batch_execute("COMMIT").await.unwrap();
    crowd.extend(refused.into_iter().map(ask));
    let mut served = Vec::new();
    while let Some((org, answer)) = crowd.next().await {
        match answer {
            Some(body) => served.push((org, body)),
            None => {
                tokio::time::sleep(Duration::from_millis(20)).await;
                crowd.push(ask(org));
            }
        }
        assert!(server.metric("headstart_live_dumps").await <= AT_ONCE as f64);
    }
    assert_eq!(served.len(), ORGS.count() * EACH);
    for (org, body) in served.iter().map(|(org, body)| (*org, body)).collect::<BTreeSet<_>>() {
        let (lines, _) = studio::parse(body);
        let lines: BTreeSet<_> = lines.iter().filter(|line| !line.contains("\"SyncAction\"")).cloned().collect();
        let expected = studio::visible(&client, org, "u", Some(&[&*format!("org:{org}")]), &FULL).await;
        assert_eq!(lines, expected.into_iter().collect(), "{org}");
    }
    until_metric(&server, "dumps_finished_total", ORGS.count() as f64).await;
    assert_eq!(server.metric("headstart_dumps_started_total").await, ORGS.count() as f64);
    assert_eq!(server.metric("headstart_live_dumps").await, 0.0);
    assert_eq!(server.metric("headstart_waiting_dumps").await, 0.0);
    // The statements are the same for every org.
    let copies = copies(&client).await;
    let once_each = |calls: &i64| *calls == ORGS.end - ORGS.start;
    assert!(copies.len() >= FULL.len() && copies.values().all(once_each), "nobody is scanned twice: {copies:?}");
}
