//! What connections go through, and who gets them next.

use headstart::source::SourceError;

use crate::support::postgres::{Database, wait_for};
use crate::support::reader::pool;

#[tokio::test]
async fn connections_are_bounded_reused_and_never_handed_on_in_mid_statement() {
    let database = Database::create().await;
    let watcher = database.connect().await;
    let (pool, _tasks) = pool(&database, 1);
    let pid = async |pool: &headstart::source::postgres::pool::Pool| {
        let lease = pool.get().await.unwrap();
        let pid: i32 = lease.query_one("SELECT pg_backend_pid()", &[]).await.unwrap().get(0);
        (lease, pid)
    };
    let (lease, first) = pid(&pool).await;
    assert!(pool.try_get().await.unwrap().is_none());
    assert!(matches!(pool.get().await, Err(SourceError::Busy(_))));
    lease.release();
    let (lease, second) = pid(&pool).await;
    assert_eq!(first, second, "a connection that was given back is used again");

    // Dropped in mid-statement: cancelled, closed, replaced.
    let sleep =
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND query = 'SELECT pg_sleep(600)'";
    tokio::select! {
        _ = lease.batch_execute("SELECT pg_sleep(600)") => panic!("ten minutes are over"),
        () = wait_for(&watcher, sleep, 1) => {}
    }
    drop(lease);
    wait_for(&watcher, sleep, 0).await;
    let (lease, third) = pid(&pool).await;
    assert_ne!(third, second);

    // Ended by the server while idle: noticed and replaced.
    lease.release();
    watcher.query("SELECT pg_terminate_backend($1)", &[&third]).await.unwrap();
    wait_for(&watcher, OURS, 0).await;
    let fourth = loop {
        // The socket may take a moment to say so.
        let lease = pool.get().await.unwrap();
        if let Ok(row) = lease.query_one("SELECT pg_backend_pid()", &[]).await {
            lease.release();
            break row.get::<_, i32>(0);
        }
    };
    assert_ne!(fourth, third);
}

const OURS: &str =
    "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'headstart'";
