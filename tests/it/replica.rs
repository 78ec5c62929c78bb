//! Reading from a real streaming standby, while its replay goes on, is paused and resumed.

use serde_json::Value;
use tokio_postgres::Client;

use crate::support::cluster::Cluster;
use crate::support::server::{Server, Setup};
use crate::support::studio::{self, parse, visible};

const FULL: &[&str] = &["Workspace", "Project", "Task", "Star"];

/// Statements that a server has seen from the service's role on the studio's tables: COPY and look-ups.
async fn reads(standby: &Client) -> i64 {
    let sql = "SELECT coalesce(sum(seq_tup_read + idx_tup_fetch), 0)::bigint FROM pg_stat_user_tables WHERE schemaname = 'studio'";
    standby.query_one(sql, &[]).await.unwrap().get(0)
}

async fn fetch(server: &Server, path: &str, token: &str) -> (Vec<String>, Value) {
    let answer = server.get(path, token).send().await.unwrap();
    assert_eq!(answer.status(), 200, "{path}");
    parse(&answer.bytes().await.unwrap())
}

async fn batch(server: &Server, token: &str, first: i64) -> (Vec<String>, Value) {
    let body = format!(r#"{{"firstSyncId":{first},"requests":[{{"modelName":"Workspace","id":"7"}}]}}"#);
    let request = server.client.post(format!("{}/sync/batch", server.base)).bearer_auth(token);
    let answer = request.header("content-type", "application/json").body(body).send().await.unwrap();
    assert_eq!(answer.status(), 200);
    parse(&answer.bytes().await.unwrap())
}

#[tokio::test]
async fn a_standby_is_read_once_it_is_where_it_must_be() {
    let primary = Cluster::start("max_wal_senders = 4\n");
    let client = primary.connect().await;
    client.batch_execute(studio::TABLES).await.unwrap();
    studio::fill(&client, 20).await;
    let standby = primary.standby();
    let follower = standby.connect().await;
    let url = |cluster: &Cluster| {
        format!("postgres://postgres@127.0.0.1:{}/postgres?sslmode=disable", cluster.config().get_ports()[0])
    };
    let mut setup = Setup::new(&url(&primary), studio::CATALOG);
    setup.must(&["migrate", "--apply"]);
    setup.set("HEADSTART_POSTGRES_REPLICA_URL", url(&standby)).set("HEADSTART_REPLICA_WAIT_MS", "300");
    setup.set("HEADSTART_REPLICA_REST_S", "1");
    assert!(setup.must(&["check"]).contains("everything is in order"));
    let server = setup.serve().await;
    let token = setup.token("7", "ann", None);
    let last = async || -> i64 { client.query_one("SELECT max(id) FROM sync_actions", &[]).await.unwrap().get(0) };

    // Right after a write, again and again: the standby has to catch up first.
    for turn in 0..10 {
        client.batch_execute(&format!("UPDATE studio.workspace SET name = 'Turn {turn}' WHERE id = 7")).await.unwrap();
        let (lines, metadata) = fetch(&server, "/sync/bootstrap?noCache=true&noSyncPackets=true", &token).await;
        assert_eq!(
            (lines, &metadata["lastSyncId"]),
            (visible(&client, 7, "ann", None, FULL).await, &last().await.into())
        );
        let (lines, _) = batch(&server, &token, last().await).await;
        assert!(lines[0].contains(&format!("Turn {turn}")), "{lines:?}");
    }
    assert!(!server.log().contains("the replica is left alone"), "{}", server.log());
    let counted = async |what: &str| server.metric(&format!("headstart_replica_{what}_total")).await;
    assert_eq!((counted("reads").await, counted("fallbacks").await), (20.0, 0.0), "each turn a scan and a look-up");
    follower.batch_execute("SELECT pg_stat_clear_snapshot()").await.unwrap();
    server.until("the standby was read", async || reads(&follower).await > 0).await;

    // Paused: the primary is read, nothing is older than what was committed.
    follower.batch_execute("SELECT pg_wal_replay_pause()").await.unwrap();
    client.batch_execute("UPDATE studio.workspace SET name = 'Paused' WHERE id = 7").await.unwrap();
    let (lines, metadata) = fetch(&server, "/sync/bootstrap?noCache=true", &token).await;
    assert_eq!((lines, &metadata["lastSyncId"]), (visible(&client, 7, "ann", None, FULL).await, &last().await.into()));
    assert!(batch(&server, &token, last().await).await.0[0].contains("Paused"));
    server.until("the log says so", async || server.log().contains("has not replayed the WAL up to")).await;
    assert!(counted("fallbacks").await >= 2.0, "a scan and a look-up");

    // Resumed: it is read again.
    follower.batch_execute("SELECT pg_wal_replay_resume()").await.unwrap();
    let before = reads(&follower).await;
    server
        .until("the standby is read again", async || {
            fetch(&server, "/sync/bootstrap?noCache=true", &token).await;
            reads(&follower).await > before
        })
        .await;

    // Gone: the primary is read.
    drop(standby);
    client.batch_execute("UPDATE studio.workspace SET name = 'Alone' WHERE id = 7").await.unwrap();
    assert!(batch(&server, &token, last().await).await.0[0].contains("Alone"));
    let (lines, _) = fetch(&server, "/sync/bootstrap?noCache=true", &token).await;
    assert_eq!(lines, visible(&client, 7, "ann", None, FULL).await);
}
