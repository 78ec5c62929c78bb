//! The world that is written: two orgs of issues, comments and reactions, and who belongs to which team.

use std::collections::BTreeMap;

use headstart::model::catalog::camel_case;
use serde_json::{Map, Value};
use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

use crate::support::dice::Dice;

pub const ORGS: [&str; 2] = ["x", "y"];
pub const USERS: [&str; 4] = ["k", "l", "m", "n"];

pub const TABLES: &str = "
    CREATE TABLE issue (id text PRIMARY KEY, org text NOT NULL, team text, watchers text[], title text);
    CREATE TABLE comment (id text PRIMARY KEY, body text,
                          issue_id text REFERENCES issue ON DELETE CASCADE ON UPDATE CASCADE);
    CREATE INDEX ON comment (issue_id);
    CREATE TABLE reaction (id text PRIMARY KEY, emoji text, hidden boolean NOT NULL DEFAULT false,
                           comment_id text REFERENCES comment ON DELETE CASCADE ON UPDATE CASCADE);
    CREATE INDEX ON reaction (comment_id);
    CREATE TABLE member (org text, team text, person text, PRIMARY KEY (org, team, person));
    INSERT INTO member VALUES ('x', 'a', 'k'), ('x', 'b', 'k'), ('x', 'a', 'l'), ('y', 'a', 'm');
";

pub const CATALOG: &str = r#"
    [[models]]
    name = "Issue"
    table = "issue"
    id = "id"
    org = "org"
    groups = { team = "team", user = "watchers" }
    load = "instant"

    [[models]]
    name = "Comment"
    table = "comment"
    id = "id"
    from = { model = "Issue", by = "issue_id" }
    load = "partial"
    keys = ["issueId"]

    [[models]]
    name = "Reaction"
    table = "reaction"
    id = "id"
    from = { model = "Comment", by = "comment_id" }
    load = "lazy"
    keys = ["commentId"]
    filter = "not hidden"

    [[access.memberships]]
    kind = "team"
    table = "member"
    org = "org"
    user = "person"
    group = "team"
"#;

/// One transaction of a writer: a few changes, held open for a while, then committed or not.
pub async fn write(client: &Client, dice: &mut Dice) {
    let levels = ["READ COMMITTED", "READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"];
    let level = levels[dice.below(levels.len())];
    let statements: Vec<String> = (0..[1, 1, 2, 4][dice.below(4)]).map(|_| statement(dice)).collect();
    let (holds, ends_well) = (dice.below(12), dice.below(7) > 0);
    let run = async {
        client.batch_execute(&format!("BEGIN ISOLATION LEVEL {level}")).await?;
        for statement in &statements {
            client.batch_execute(statement).await?;
            for _ in 0..holds {
                client.batch_execute("SELECT pg_sleep(0.001)").await?;
            }
        }
        client.batch_execute(if ends_well { "COMMIT" } else { "ROLLBACK" }).await
    };
    let Err(error) = run.await else { return };
    client.batch_execute("ROLLBACK").await.unwrap();
    let expected = [
        SqlState::T_R_SERIALIZATION_FAILURE,
        SqlState::T_R_DEADLOCK_DETECTED,
        SqlState::FOREIGN_KEY_VIOLATION,
        SqlState::UNIQUE_VIOLATION,
    ];
    assert!(error.code().is_some_and(|code| expected.contains(code)), "{statements:?} at {level}: {error:?}");
}

fn statement(dice: &mut Dice) -> String {
    let mut id = |kind: &str, of: usize| format!("{kind}{}", dice.below(of));
    let (issue, other, comment, reaction) = (id("i", 8), id("i", 8), id("c", 16), id("r", 24));
    let text = id("t", 1000);
    let mut pick = |of: &[&'static str]| of[dice.below(of.len())];
    let (org, team) = (pick(&["x", "x", "x", "y"]), pick(&["'a'", "'b'", "'c'", "NULL"]));
    let times = pick(&["1", "1", "1", "70000"]);
    let (person, watchers) = (pick(&USERS), pick(&["NULL", "'{}'", "'{k}'", "'{l,m}'", "'{n,k}'"]));
    match dice.below(24) {
        0..=2 => format!(
            "INSERT INTO issue VALUES ('{issue}', '{org}', {team}, {watchers}, '{text}') ON CONFLICT DO NOTHING"
        ),
        3 | 4 => format!("UPDATE issue SET title = '{text}' WHERE id = '{issue}'"),
        5 | 6 => format!("UPDATE issue SET team = {team} WHERE id = '{issue}'"),
        7 => format!("UPDATE issue SET watchers = {watchers} WHERE id = '{issue}'"),
        8 => format!("UPDATE issue SET org = '{org}' WHERE id = '{issue}'"),
        9 => format!("DELETE FROM issue WHERE id = '{issue}'"),
        10 => format!("UPDATE issue SET id = '{other}' WHERE id = '{issue}'"),
        11 | 12 => format!("INSERT INTO comment VALUES ('{comment}', '{text}', '{issue}') ON CONFLICT DO NOTHING"),
        // At times as long as most of a frame.
        13 => format!("UPDATE comment SET body = repeat('{text}', {times}) WHERE id = '{comment}'"),
        14 => format!("UPDATE comment SET issue_id = '{issue}' WHERE id = '{comment}'"),
        15 => format!("DELETE FROM comment WHERE id = '{comment}'"),
        16 | 17 => {
            format!("INSERT INTO reaction VALUES ('{reaction}', '{text}', false, '{comment}') ON CONFLICT DO NOTHING")
        }
        18 => format!("UPDATE reaction SET hidden = NOT hidden WHERE id = '{reaction}'"),
        19 => format!("UPDATE reaction SET comment_id = '{comment}' WHERE id = '{reaction}'"),
        20 => format!(
            "DELETE FROM comment WHERE id = '{comment}'; INSERT INTO comment VALUES ('{comment}', '{text}', '{issue}')"
        ),
        // Many rows at once.
        21 => format!("UPDATE reaction SET emoji = '{text}'"),
        22 => format!("INSERT INTO member VALUES ('{org}', {team}, '{person}') ON CONFLICT DO NOTHING")
            .replace("NULL", "'c'"),
        _ => format!("DELETE FROM member WHERE org = '{org}' AND team = {team} AND person = '{person}'"),
    }
}

/// Rows by class and id.
pub type Rows = BTreeMap<(String, String), Value>;

/// What SQL says a user may see: written without any of the service's code.
pub async fn visible(client: &Client, org: &str, user: &str) -> Rows {
    let sql = "
        WITH mine AS (SELECT array_agg(g) AS groups FROM (
                 SELECT 'team:' || team AS g FROM member WHERE org = $1 AND person = $2
                 UNION SELECT 'user:' || $2 UNION SELECT 'org:' || $1) AS all_groups),
             issues AS (SELECT i.* FROM issue i, mine WHERE i.org = $1 AND mine.groups &&
                 (array_remove(ARRAY['team:' || i.team], NULL) || ARRAY(SELECT 'user:' || w FROM unnest(i.watchers) w)))
        SELECT 'Issue', id, row_to_json(i)::text FROM issues i
        UNION ALL SELECT 'Comment', c.id, row_to_json(c)::text FROM comment c JOIN issues i ON i.id = c.issue_id
        UNION ALL SELECT 'Reaction', r.id, row_to_json(r)::text
          FROM reaction r JOIN comment c ON c.id = r.comment_id JOIN issues i ON i.id = c.issue_id WHERE NOT r.hidden";
    let rows = client.query(sql, &[&org, &user]).await.expect("the oracle");
    rows.iter()
        .map(|row| {
            let (class, id): (String, String) = (row.get(0), row.get(1));
            let columns: Map<String, Value> = serde_json::from_str(row.get(2)).expect("row_to_json gives JSON");
            let fields = columns.into_iter().filter(|(_, value)| !value.is_null());
            let mut line: Map<String, Value> = fields.map(|(name, value)| (camel_case(&name), value)).collect();
            line.insert("__class".into(), class.clone().into());
            ((class, id), line.into())
        })
        .collect()
}
