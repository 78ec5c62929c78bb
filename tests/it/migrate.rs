//! `migrate`: prints or applies the log, again and again.

use headstart::source::migrate::{Found, plan};

use crate::tracker;

#[tokio::test]
async fn a_second_run_has_nothing_to_do() {
    let (_database, client) = tracker::database().await;
    let catalog = tracker::catalog(tracker::CATALOG);
    let found = Found::read(&client, &catalog).await.unwrap();
    let plan = plan(&catalog, &found).unwrap();
    assert_eq!(plan.steps, []);
    assert!(plan.script(tracker::LOCK_TIMEOUT).contains("Nothing to do"));
}
