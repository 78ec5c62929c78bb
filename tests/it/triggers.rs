//! What each kind of write leaves in the log.

use crate::tracker::{self, Log};

#[tokio::test]
async fn rows_are_logged_with_old_and_new_groups() {
    let (database, client) = tracker::database().await;
    let mut log = Log::follow(&database).await;
    let insert = "INSERT INTO issue VALUES ('i1', 'o1', 'a', '{u1,NULL,u2}')";
    assert_eq!(log.after(&client, insert).await, ["o1 I Issue i1 team:a,user:u1,user:u2"]);
    let update = "UPDATE issue SET title = 'x' WHERE id = 'i1'";
    assert_eq!(log.after(&client, update).await, ["o1 U Issue i1 team:a,user:u1,user:u2"]);
    assert!(log.after(&client, update).await.is_empty(), "an update that changes nothing is no action");
    let regroup = "UPDATE issue SET team_id = 'b', watchers = NULL WHERE id = 'i1'";
    assert_eq!(log.after(&client, regroup).await, ["o1 U Issue i1 team:a,team:b,user:u1,user:u2"]);
    let ungroup = "UPDATE issue SET team_id = NULL WHERE id = 'i1'";
    assert_eq!(log.after(&client, ungroup).await, ["o1 U Issue i1 team:b"]);
    let hidden = "UPDATE issue SET title = 'nobody sees this' WHERE id = 'i1'";
    assert_eq!(log.after(&client, hidden).await, ["o1 U Issue i1 "]);
    let org = "UPDATE issue SET organization_id = 'o2', team_id = 'c' WHERE id = 'i1'";
    assert_eq!(log.after(&client, org).await, ["o1 D Issue i1 ", "o2 I Issue i1 team:c"]);
    let id = "UPDATE issue SET id = 'i2' WHERE id = 'i1'";
    assert_eq!(log.after(&client, id).await, ["o2 D Issue i1 team:c", "o2 I Issue i2 team:c"]);
    assert_eq!(log.after(&client, "DELETE FROM issue").await, ["o2 D Issue i2 team:c"]);
}

#[tokio::test]
async fn a_filter_lets_rows_come_and_go() {
    let (database, client) = tracker::database().await;
    let mut log = Log::follow(&database).await;
    assert!(log.after(&client, "INSERT INTO issue VALUES ('i1', 'o1', 'a', NULL, 't', true)").await.is_empty());
    assert!(log.after(&client, "UPDATE issue SET title = 'x'").await.is_empty());
    assert_eq!(log.after(&client, "UPDATE issue SET archived = false").await, ["o1 I Issue i1 team:a"]);
    assert_eq!(log.after(&client, "UPDATE issue SET archived = true").await, ["o1 D Issue i1 team:a"]);
    assert!(log.after(&client, "DELETE FROM issue").await.is_empty());
}

#[tokio::test]
async fn children_carry_what_their_parents_give() {
    let (database, client) = tracker::database().await;
    let mut log = Log::follow(&database).await;
    client
        .batch_execute("INSERT INTO issue VALUES ('i1', 'o1', 'a'), ('i2', 'o1', 'b'), ('i3', 'o2', 'c')")
        .await
        .unwrap();
    log.new_lines().await;
    let insert = "INSERT INTO comment VALUES ('c1', 'i1'); INSERT INTO reaction VALUES ('r1', 'c1')";
    assert_eq!(log.after(&client, insert).await, ["o1 I Comment c1 team:a", "o1 I Reaction r1 team:a"]);
    let edit = "UPDATE reaction SET emoji = '!'; UPDATE comment SET body = 'x'";
    assert_eq!(log.after(&client, edit).await, ["o1 U Reaction r1 team:a", "o1 U Comment c1 team:a"]);
    let other_issue = "UPDATE comment SET issue_id = 'i2'";
    assert_eq!(
        log.after(&client, other_issue).await,
        ["o1 U Comment c1 team:a,team:b", "o1 U Reaction r1 team:a,team:b"]
    );
    let other_team = "UPDATE issue SET team_id = 'd' WHERE id = 'i2'";
    assert_eq!(
        log.after(&client, other_team).await,
        ["o1 U Issue i2 team:b,team:d", "o1 U Comment c1 team:b,team:d", "o1 U Reaction r1 team:b,team:d"]
    );
    assert_eq!(log.after(&client, "UPDATE issue SET title = 'x' WHERE id = 'i2'").await, ["o1 U Issue i2 team:d"]);
    let other_org = "UPDATE comment SET issue_id = 'i3'";
    assert_eq!(
        log.after(&client, other_org).await,
        ["o1 D Comment c1 team:d", "o2 I Comment c1 team:c", "o1 U Reaction r1 team:d", "o2 U Reaction r1 team:c"]
    );
    let orphan = "UPDATE comment SET issue_id = NULL";
    assert_eq!(log.after(&client, orphan).await, ["o2 D Comment c1 team:c", "o2 U Reaction r1 team:c"]);
    let back = "UPDATE comment SET issue_id = 'i1'";
    assert_eq!(log.after(&client, back).await, ["o1 I Comment c1 team:a", "o1 U Reaction r1 team:a"]);
    assert_eq!(log.after(&client, "DELETE FROM reaction").await, ["o1 D Reaction r1 team:a"]);
}
