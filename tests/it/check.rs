//! `check` against a live database: each fault is one message, with the place and the mend.

use headstart::source::postgres::check::{Finding, Severity, check};
use tokio_postgres::Client;

use crate::support::cluster;
use crate::support::pooler::{Choice, Pooler};
use crate::support::postgres::Database;
use crate::tracker;

async fn findings(database: &Database, client: &Client, text: &str) -> Vec<Finding> {
    let other = cluster::connect(database.config()).await;
    check(client, &other, &tracker::catalog(text)).await.unwrap_or_else(|error| panic!("{error:?}"))
}

/// What a change of a sound database makes `check` say.
async fn after(sql: &str) -> Vec<Finding> {
    let (database, client) = tracker::database().await;
    client.batch_execute(sql).await.unwrap_or_else(|error| panic!("{error:?} in {sql}"));
    findings(&database, &client, tracker::CATALOG).await
}

#[track_caller]
fn is(finding: &Finding, severity: Severity, place: &str, fault: &str, mend: &str) {
    assert_eq!((finding.severity, finding.place.as_str()), (severity, place), "{finding}");
    assert!(finding.fault.contains(fault), "{finding}");
    assert!(finding.mend.contains(mend), "{finding}");
}

#[tokio::test]
async fn a_sound_database_has_no_finding() {
    assert_eq!(after("").await, []);
}

#[tokio::test]
async fn a_sequence_that_draws_ahead_is_an_error() {
    let found = after("ALTER SEQUENCE sync_actions_id_seq CACHE 20 INCREMENT 2 CYCLE").await;
    assert_eq!(found.len(), 3);
    is(&found[0], Severity::Error, "log.id", "has a cache of 20", "CACHE 1");
    is(&found[1], Severity::Error, "log.id", "counts by 2", "INCREMENT 1");
    is(&found[2], Severity::Error, "log.id", "begins anew", "NO CYCLE");
}

#[tokio::test]
async fn a_missing_log_is_an_error() {
    let database = Database::create().await;
    let client = database.connect().await;
    client.batch_execute(tracker::TABLES).await.unwrap();
    let found = findings(&database, &client, tracker::CATALOG).await;
    is(&found[0], Severity::Error, "log.table", "there is no table `sync_actions`", "headstart migrate --apply");
    assert!(found[1..].iter().all(|finding| finding.fault.contains("is missing")), "{found:?}");
}

#[tokio::test]
async fn an_unlogged_log_without_its_index_is_found() {
    let found = after("ALTER TABLE sync_actions SET UNLOGGED; DROP INDEX sync_actions_org_id").await;
    is(&found[0], Severity::Error, "log.table", "unlogged", "SET LOGGED");
    let index = found.iter().find(|finding| finding.severity == Severity::Warning).unwrap();
    is(index, Severity::Warning, "log.table", "no valid index by org and id", "migrate --apply");
}

#[tokio::test]
async fn missing_rights_are_named_with_their_grants() {
    let (database, client) = tracker::database().await;
    let role = format!("service_{}", database.config().get_dbname().unwrap());
    client
        .batch_execute(&format!("CREATE ROLE {role} LOGIN; GRANT SELECT (id, team_id) ON issue TO {role}"))
        .await
        .unwrap();
    let service = cluster::connect(database.config().clone().user(&role)).await;
    let other = cluster::connect(database.config().clone().user(&role)).await;
    let catalog = tracker::catalog(tracker::CATALOG);
    let found = check(&service, &other, &catalog).await.unwrap();
    is(
        &found[0],
        Severity::Error,
        "models.Issue",
        "columns of `issue` may not be read: archived, organization_id",
        "GRANT SELECT (\"archived\", \"organization_id\"",
    );
    is(&found[1], Severity::Error, "models.Comment", "`comment` may not be read", "GRANT SELECT ON");
    is(&found[3], Severity::Error, "access.memberships[0]", "`team_membership` may not be read", "GRANT SELECT ON");
    is(&found[4], Severity::Error, "log.table", "`sync_actions` may not be read", "GRANT SELECT ON");
    client.batch_execute(&format!("GRANT SELECT ON ALL TABLES IN SCHEMA public TO {role}")).await.unwrap();
    let found = check(&service, &other, &catalog).await.unwrap();
    assert_eq!(found.len(), 2);
    is(&found[0], Severity::Error, "log.id", "may not be read, so there is no watermark", "GRANT SELECT ON");
    is(&found[1], Severity::Warning, "trim.keep_s", "may not trim the change log", "GRANT SELECT, DELETE ON");
    client.batch_execute(&format!("GRANT SELECT ON ALL SEQUENCES IN SCHEMA public TO {role}")).await.unwrap();
    let trim = format!(
        "GRANT DELETE ON sync_actions, sync_actions_marks TO {role}; GRANT UPDATE ON sync_actions_floor TO {role}"
    );
    client.batch_execute(&trim).await.unwrap();
    assert_eq!(check(&service, &other, &catalog).await.unwrap(), []);
    client.batch_execute("ALTER TABLE comment ENABLE ROW LEVEL SECURITY").await.unwrap();
    let found = check(&service, &other, &catalog).await.unwrap();
    assert_eq!(found.len(), 1);
    is(&found[0], Severity::Error, "models.Comment", "row-level security would hide rows", "BYPASSRLS");
    client.batch_execute(&format!("DROP OWNED BY {role}; DROP ROLE {role}")).await.unwrap();
}

#[tokio::test]
async fn an_id_that_names_no_row_is_an_error() {
    let found = after("ALTER TABLE reaction DROP CONSTRAINT reaction_pkey").await;
    is(&found[0], Severity::Error, "models.Reaction.id", "`id` is not unique", "CREATE UNIQUE INDEX");
    let nullable = "ALTER TABLE reaction DROP CONSTRAINT reaction_pkey; CREATE UNIQUE INDEX ON reaction (id);
                    ALTER TABLE reaction ALTER id DROP NOT NULL";
    is(&after(nullable).await[0], Severity::Error, "models.Reaction.id", "may be null", "SET NOT NULL");
    let partial =
        "ALTER TABLE reaction DROP CONSTRAINT reaction_pkey; CREATE UNIQUE INDEX ON reaction (id) WHERE id > ''";
    is(&after(partial).await[0], Severity::Error, "models.Reaction.id", "is not unique", "CREATE UNIQUE INDEX");
}

#[tokio::test]
async fn keys_without_an_index_are_slow() {
    let text = tracker::CATALOG.replace("load = \"instant\"", "load = \"instant\"\n keys = [\"teamId\", \"watchers\"]");
    let (database, client) = tracker::database().await;
    client.batch_execute("DROP INDEX comment_issue_id_idx").await.unwrap();
    let found = findings(&database, &client, &text).await;
    assert_eq!(found.len(), 3);
    is(
        &found[0],
        Severity::Warning,
        "models.Issue.keys",
        "no index begins with `team_id`",
        "ON \"public\".\"issue\" (\"team_id\")",
    );
    is(&found[1], Severity::Warning, "models.Issue.keys", "no index begins with `watchers`", "USING gin");
    is(&found[2], Severity::Warning, "models.Comment.from", "no index begins with `issue_id`", "CREATE INDEX");
}

#[tokio::test]
async fn rows_without_a_group_are_counted() {
    let rows = "INSERT INTO issue (id, organization_id, team_id, watchers, archived)
                VALUES ('1', 'o', NULL, NULL, false), ('2', 'o', NULL, '{}', false), ('3', 'o', 'a', NULL, false),
                       ('4', 'o', NULL, '{u}', false), ('5', 'o', NULL, NULL, true)";
    let found = after(rows).await;
    assert_eq!(found.len(), 1);
    is(
        &found[0],
        Severity::Warning,
        "models.Issue.groups",
        "2 of 4 rows carry no group, so nobody sees them",
        "ungrouped",
    );
}

#[tokio::test]
async fn triggers_that_are_missing_disabled_or_outdated_are_errors() {
    let found = after(r#"DROP TRIGGER "headstart_log_Issue" ON issue"#).await;
    assert_eq!(found.len(), 1);
    is(
        &found[0],
        Severity::Error,
        "models.Issue",
        "trigger `headstart_log_Issue` on issue is missing",
        "migrate --apply",
    );
    let found = after(r#"ALTER TABLE comment DISABLE TRIGGER "headstart_log_Comment""#).await;
    is(&found[0], Severity::Error, "models.Comment", "does not fire always", "migrate --apply");
    let (database, client) = tracker::database().await;
    let regrouped = tracker::CATALOG.replace("team = \"team_id\", ", "");
    let found = findings(&database, &client, &regrouped).await;
    is(&found[0], Severity::Error, "log", "functions: headstart_log_Issue", "migrate --apply");
    // The key is what lets the arrival of a parent pass unlogged.
    let found = after("ALTER TABLE comment DROP CONSTRAINT comment_issue_id_fkey").await;
    is(&found[0], Severity::Error, "log", "not what the catalog wants now", "migrate --apply");
}

#[tokio::test]
async fn views_filters_and_types_that_can_not_be_logged_are_errors() {
    let (database, client) = tracker::database().await;
    client.batch_execute("CREATE VIEW shown AS SELECT * FROM reaction").await.unwrap();
    let view = tracker::CATALOG.replace("table = \"reaction\"", "table = \"shown\"");
    let found = findings(&database, &client, &view).await;
    is(&found[0], Severity::Error, "models.Reaction", "`shown` is no table", "");
    let unknown = tracker::CATALOG.replace("not archived", "no_such_column");
    let found = findings(&database, &client, &unknown).await;
    is(&found[0], Severity::Error, "models.Issue.filter", "\"no_such_column\" does not exist", "");
    let timely = tracker::CATALOG.replace("not archived", "now() > '2020-01-01'");
    let found = findings(&database, &client, &timely).await;
    is(found.last().unwrap(), Severity::Warning, "models.Issue.filter", "can change without a write", "");
}

#[tokio::test]
async fn an_encoding_without_meaning_is_an_error() {
    let (database, client) = tracker::database().await;
    let name = format!("{}_ascii", database.config().get_dbname().unwrap());
    let create = format!("CREATE DATABASE {name} ENCODING 'SQL_ASCII' LOCALE 'C' TEMPLATE template0");
    client.batch_execute(&create).await.unwrap();
    let mut config = database.config().clone();
    let (ascii, other) = (cluster::connect(config.dbname(&name)).await, cluster::connect(&config).await);
    let found = check(&ascii, &other, &tracker::catalog(tracker::CATALOG)).await.unwrap();
    is(&found[0], Severity::Error, "postgres.url", "SQL_ASCII", "UTF8");
}

#[tokio::test]
async fn a_standby_is_an_error() {
    let primary = cluster::Cluster::start("");
    let standby = primary.standby();
    let (client, other) = (standby.connect().await, standby.connect().await);
    let found = check(&client, &other, &tracker::catalog(tracker::CATALOG)).await.unwrap();
    is(&found[0], Severity::Error, "postgres.url", "it is a standby", "lead to the primary");
}

#[tokio::test]
async fn a_pooler_in_transaction_mode_is_an_error() {
    let (database, _client) = tracker::database().await;
    for (sessions, choice) in [(2, Choice::Warmest), (5, Choice::Warmest), (2, Choice::InTurn), (5, Choice::InTurn)] {
        let pooler = Pooler::start(database.config(), sessions, choice).await;
        let (client, other) = (cluster::connect(&pooler.config()).await, cluster::connect(&pooler.config()).await);
        let found = check(&client, &other, &tracker::catalog(tracker::CATALOG)).await.unwrap();
        assert_eq!(found.len(), 1);
        is(&found[0], Severity::Error, "postgres.url", "a pooler in transaction mode", "connect to PostgreSQL itself");
    }
}
