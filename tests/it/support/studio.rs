//! A database that is not the demonstration's: another schema than `public`, mixed-case names, integer orgs, arrays of
//! groups, chains of parents, a view of nothing we know. With the SQL that says what a user may see.

use std::collections::BTreeMap;

use headstart::model::catalog::camel_case;
use serde_json::{Map, Value};
use tokio_postgres::Client;

use super::postgres::Database;
use super::server::Setup;

/// The tables.
pub const TABLES: &str = r#"
    CREATE SCHEMA studio;
    CREATE TABLE studio.workspace (id bigint PRIMARY KEY, name text NOT NULL);
    CREATE TYPE studio.mood AS ENUM ('calm', 'so-so', 'hectic');
    CREATE TABLE studio."Project" (
        id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
        workspace_id bigint NOT NULL REFERENCES studio.workspace ON DELETE CASCADE,
        circle_ids int[],
        "displayName" text NOT NULL,
        meta jsonb,
        budget numeric(20, 4),
        mood studio.mood,
        archived_at timestamptz,
        due daterange);
    CREATE INDEX ON studio."Project" (workspace_id);
    CREATE TABLE studio.task (
        id bigint PRIMARY KEY,
        "projectId" uuid REFERENCES studio."Project" ON DELETE CASCADE,
        title text NOT NULL,
        points real,
        done boolean NOT NULL DEFAULT false,
        day date,
        secret text NOT NULL DEFAULT 'never leaves');
    CREATE INDEX ON studio.task ("projectId");
    CREATE TABLE studio.note (
        id bigint PRIMARY KEY,
        task_id bigint NOT NULL REFERENCES studio.task ON DELETE CASCADE,
        body text NOT NULL,
        raw json);
    CREATE INDEX ON studio.note (task_id);
    CREATE TABLE studio.star (
        id bigint PRIMARY KEY, workspace_id bigint NOT NULL, owner text NOT NULL, task_id bigint NOT NULL);
    CREATE INDEX ON studio.star (workspace_id);
    CREATE TABLE studio.circle_member (
        workspace_id bigint NOT NULL, person text NOT NULL, circle int NOT NULL,
        PRIMARY KEY (workspace_id, person, circle));
"#;

/// Their catalog.
pub const CATALOG: &str = r#"
    [[models]]
    name = "Workspace"
    table = "studio.workspace"
    id = "id"
    org = "id"
    load = "instant"

    [[models]]
    name = "Project"
    table = "studio.Project"
    id = "id"
    org = "workspace_id"
    groups = { circle = "circle_ids" }
    ungrouped = "org"
    load = "instant"
    rename = { due = "period" }

    [[models]]
    name = "Task"
    table = "studio.task"
    id = "id"
    from = { model = "Project", by = "projectId" }
    load = "lazy"
    keys = ["projectId"]
    exclude = ["secret"]
    filter = "not done"

    [[models]]
    name = "Note"
    table = "studio.note"
    id = "id"
    from = { model = "Task", by = "task_id" }
    load = "partial"
    keys = ["taskId"]

    [[models]]
    name = "Star"
    table = "studio.star"
    id = "id"
    org = "workspace_id"
    groups = { user = "owner" }
    load = "instant"

    [[access.memberships]]
    kind = "circle"
    table = "studio.circle_member"
    org = "workspace_id"
    user = "person"
    group = "circle"
"#;

/// Those whose answers are compared with SQL: org, person, and the groups of their token, if it has any.
pub const CALLERS: [(i64, &str, Option<&str>); 7] = [
    (7, "ann", None),
    (7, "bob", None),
    (8, "ann", None),
    (7, "nobody-knows", None),
    (7, "x", Some("circle:3")),
    (8, "ann", Some("circle:1,circle:2,user:bob")),
    (9, "ann", None),
];

/// A filled studio with its log and triggers, and a setup that serves it from a folder.
pub async fn with_log(scale: i32, catalog: &str) -> (Database, Client, Setup) {
    let database = Database::create().await;
    let client = database.connect().await;
    client.batch_execute(TABLES).await.expect("make the tables");
    fill(&client, scale).await;
    let setup = Setup::new(&database.url(), catalog);
    setup.must(&["migrate", "--apply"]);
    (database, client, setup)
}

/// Fills two workspaces, 7 and 8, with `scale` tasks a project and 20 projects each.
pub async fn fill(client: &Client, scale: i32) {
    let sql = format!(
        r#"
        INSERT INTO studio.workspace VALUES (7, 'Seven'), (8, 'Eight');
        INSERT INTO studio."Project" (workspace_id, circle_ids, "displayName", meta, budget, mood, archived_at, due)
        SELECT w, CASE n % 5 WHEN 0 THEN NULL WHEN 1 THEN '{{}}' WHEN 2 THEN ARRAY[1]
                             WHEN 3 THEN ARRAY[2, 3] ELSE ARRAY[n % 4, NULL, 1] END,
               'Project "' || n || E'"\n\u00fc', CASE WHEN n % 3 = 0 THEN NULL
                    ELSE jsonb_build_object('a', jsonb_build_array(1, NULL, 'x'), 'n', NULL) END,
               n * 1234567890.1234, (ARRAY['calm', 'so-so', 'hectic', NULL])[n % 4 + 1]::studio.mood,
               CASE WHEN n % 6 = 0 THEN now() END, daterange('2020-01-01', '2020-01-01'::date + n)
          FROM generate_series(1, 20) AS n, (VALUES (7), (8)) AS w(w);
        INSERT INTO studio.task (id, "projectId", title, points, done, day)
        SELECT row_number() OVER (), p.id, repeat(md5(n || p."displayName"), 1 + n % 5), n / 3.0, n % 7 = 0,
               '2024-02-29'::date + n
          FROM studio."Project" AS p, generate_series(1, {scale}) AS n;
        INSERT INTO studio.note SELECT id, id, 'About ' || title, ('{{"k": [1, 2,' || E'\n' || ' 3]}}')::json FROM studio.task
         WHERE id % 2 = 0;
        INSERT INTO studio.star SELECT n, 7 + n % 2, (ARRAY['ann', 'bob', 'cy'])[n % 3 + 1], n FROM generate_series(1, 60) AS n;
        INSERT INTO studio.circle_member VALUES
            (7, 'ann', 1), (7, 'ann', 2), (7, 'bob', 3), (8, 'ann', 3), (8, 'bob', 1);
        ANALYZE;
        "#
    );
    client.batch_execute(&sql).await.expect("fill the studio");
}

/// What SQL says a user with these groups sees, as lines; `None`: the groups that the tables give.
pub async fn visible(client: &Client, org: i64, person: &str, groups: Option<&[&str]>, models: &[&str]) -> Lines {
    let circles: Vec<String> = match groups {
        None => client
            .query(
                "SELECT 'circle:' || circle FROM studio.circle_member WHERE workspace_id = $1 AND person = $2",
                &[&org, &person],
            )
            .await
            .expect("the memberships")
            .iter()
            .map(|row| row.get(0))
            .chain([format!("org:{org}"), format!("user:{person}")])
            .collect(),
        Some(groups) => groups.iter().map(|group| (*group).to_owned()).collect(),
    };
    // The groups of a project, as the catalog says; everything below a project has the same.
    let project = "CASE WHEN coalesce(array_length(array_remove(p.circle_ids, NULL), 1), 0) = 0 \
                   THEN ARRAY['org:' || p.workspace_id] \
                   ELSE (SELECT array_agg('circle:' || c) FROM unnest(p.circle_ids) AS c WHERE c IS NOT NULL) END";
    let below = "JOIN studio.task AS t ON t.id = x.task_id JOIN studio.\"Project\" AS p ON p.id = t.\"projectId\"";
    let mut lines = Vec::new();
    for model in models {
        let (from, org_column, row_groups) = match *model {
            "Workspace" => ("studio.workspace AS x", "x.id", "ARRAY['org:' || x.id]".to_owned()),
            "Project" => ("studio.\"Project\" AS x", "x.workspace_id", project.replace("p.", "x.")),
            "Task" => (
                "(SELECT id, \"projectId\", title, points, done, day FROM studio.task WHERE NOT done) AS x \
                 JOIN studio.\"Project\" AS p ON p.id = x.\"projectId\"",
                "p.workspace_id",
                project.to_owned(),
            ),
            "Note" => (&*format!("studio.note AS x {below}").leak(), "p.workspace_id", project.to_owned()),
            "Star" => ("studio.star AS x", "x.workspace_id", "ARRAY['user:' || x.owner]".to_owned()),
            other => panic!("no model {other}"),
        };
        let sql =
            format!("SELECT row_to_json(x)::text FROM {from} WHERE {org_column} = $1 AND {row_groups} && $2::text[]");
        for row in client.query(&sql, &[&org, &circles]).await.expect("the oracle") {
            let columns: Map<String, Value> = serde_json::from_str(row.get(0)).expect("row_to_json gives JSON");
            let mut line = Map::from_iter([("__class".to_owned(), Value::from(*model))]);
            for (column, value) in columns {
                let name = if column == "due" { "period".to_owned() } else { camel_case(&column) };
                if !value.is_null() {
                    line.insert(name, value);
                }
            }
            lines.push(Value::from(line).to_string());
        }
    }
    lines.sort_unstable();
    lines
}

/// Lines as canonical JSON, sorted.
pub type Lines = Vec<String>;

/// A body of a bootstrap: its lines as canonical JSON, sorted, and the metadata.
pub fn parse(body: &[u8]) -> (Lines, Value) {
    let text = std::str::from_utf8(body).expect("NDJSON is UTF-8");
    let mut lines: Vec<Value> =
        text.lines().map(|line| serde_json::from_str(line).expect("each line is JSON")).collect();
    let metadata = lines.pop().expect("there is a last line");
    assert_eq!(metadata["__class"], "_metadata_", "an answer ends with its metadata");
    let mut counts: BTreeMap<String, u64> = BTreeMap::new();
    for line in &lines {
        *counts.entry(line["__class"].as_str().expect("a class").to_owned()).or_default() += 1;
    }
    let said: BTreeMap<String, u64> = serde_json::from_value(metadata["returnedModelsCount"].clone()).expect("counts");
    assert_eq!(said.into_iter().filter(|(_, count)| *count > 0).collect::<BTreeMap<_, _>>(), counts);
    let mut lines: Lines = lines.iter().map(Value::to_string).collect();
    lines.sort_unstable();
    (lines, metadata)
}
