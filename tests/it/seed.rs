//! The demonstration workspace: whole, the same every time, and never over somebody's tables.

use headstart::cli::seed::{Scale, SeedError, Workspace, seed};
use indicatif::ProgressBar;

use crate::support::postgres::Database;

async fn small(database: &Database, reset: bool) -> Result<Workspace, SeedError> {
    seed(&database.url(), Scale::Small, reset, &ProgressBar::hidden()).await
}

async fn count(database: &Database, sql: &str) -> i64 {
    database.connect().await.query_one(sql, &[]).await.expect("a count").get(0)
}

/// The content of every table that rows are made for, as one digest.
async fn digest(database: &Database) -> String {
    let sql = "SELECT md5(string_agg(query_to_xml(format('SELECT * FROM %I ORDER BY id', relname), true, false, '')::text, '' ORDER BY relname))
               FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind = 'r'";
    database.connect().await.query_one(sql, &[]).await.expect("a digest").get(0)
}

#[tokio::test]
async fn every_run_makes_the_same_workspace() {
    let (one, other) = (Database::create().await, Database::create().await);
    let made = small(&one, false).await.expect("an empty database takes it");
    small(&other, false).await.expect("an empty database takes it");
    assert_eq!(digest(&one).await, digest(&other).await);

    one.execute("DELETE FROM notification").await;
    let found = small(&one, false).await.expect("its own workspace is found");
    assert_eq!(format!("{found}"), format!("{made}"));
    assert_eq!(count(&one, "SELECT count(*) FROM notification").await, 0, "what is there is left as it is");

    small(&one, true).await.expect("its own workspace is replaced");
    assert_eq!(digest(&one).await, digest(&other).await);
}

#[tokio::test]
async fn no_table_of_someone_else_is_touched() {
    let database = Database::create().await;
    database.execute("CREATE TABLE issue (id int); INSERT INTO issue VALUES (1)").await;
    for reset in [false, true] {
        let refused = small(&database, reset).await.expect_err("that table is someone's");
        assert!(matches!(&refused, SeedError::Foreign(tables) if tables == &["issue"]), "{refused:?}");
    }
    assert_eq!(count(&database, "SELECT count(*) FROM issue").await, 1);
    assert_eq!(count(&database, "SELECT count(*) FROM pg_class WHERE relname = 'comment'").await, 0);
}

#[tokio::test]
async fn another_scale_needs_a_reset() {
    let database = Database::create().await;
    small(&database, false).await.expect("an empty database takes it");
    let refused = seed(&database.url(), Scale::Medium, false, &ProgressBar::hidden()).await.expect_err("it is small");
    assert!(matches!(&refused, SeedError::Occupied { found } if found == "small"), "{refused:?}");
}

#[tokio::test]
async fn a_medium_workspace_has_what_the_rooms_are_tried_on() {
    let database = Database::create().await;
    let made = seed(&database.url(), Scale::Medium, false, &ProgressBar::hidden()).await.expect("an empty database");
    let big = &made.orgs[0];
    assert_eq!((big.teams, big.somewhere.1), (60, 3));

    let rows = "SELECT sum((xpath('/row/n/text()', query_to_xml(format('SELECT count(*) AS n FROM %I', relname),
                    false, true, '')))[1]::text::bigint)::bigint
                FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind = 'r'";
    let rows = count(&database, rows).await;
    assert!((18_000..22_000).contains(&rows), "{rows} rows are not about 20,000");

    for (what, sql) in [
        ("a project of several teams", "SELECT count(*) FROM project WHERE cardinality(team_ids) > 1"),
        ("a project of no team", "SELECT count(*) FROM project WHERE team_ids = '{}'"),
        ("a label of no team", "SELECT count(*) FROM label WHERE team_id IS NULL"),
        ("an issue with two labels", "SELECT count(*) FROM issue WHERE cardinality(label_ids) = 2"),
        ("an archived issue", "SELECT count(*) FROM issue WHERE archived_at IS NOT NULL"),
        (
            "a comment of an archived issue",
            "SELECT count(*) FROM comment JOIN issue ON issue.id = issue_id WHERE archived_at IS NOT NULL",
        ),
        (
            "a reaction to a deleted comment",
            "SELECT count(*) FROM reaction JOIN comment ON comment.id = comment_id WHERE deleted_at IS NOT NULL",
        ),
    ] {
        assert!(count(&database, sql).await > 0, "there is not {what}");
    }
    let strangers = "SELECT count(*) FROM issue i WHERE NOT EXISTS (
                         SELECT FROM team_membership m WHERE m.team_id = i.team_id AND m.user_id = i.creator_id)";
    assert_eq!(count(&database, strangers).await, 0, "an issue is made by someone of its team");
}

#[tokio::test]
async fn the_demonstration_names_users_that_exist() {
    let database = Database::create().await;
    let made = small(&database, false).await.expect("an empty database takes it");
    let big = &made.orgs[0];
    let script = include_str!("../../deploy/dev/demo.sh");
    for (name, id) in
        [("org", big.org.as_str()), ("everywhere", big.everywhere.as_str()), ("somewhere", big.somewhere.0.as_str())]
    {
        assert!(script.contains(&format!("\n{name}={id}\n")), "demo.sh should say {name}={id}");
    }
}
