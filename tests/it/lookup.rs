//! Look-ups by columns of every type that can be a key, against what SQL says; and that their indexes serve.

use std::collections::BTreeSet;
use std::sync::Arc;

use headstart::metrics::Metrics;
use headstart::model::{Catalog, Org};
use headstart::source::postgres::PostgresSource;
use headstart::source::postgres::scan::ScanSettings;
use headstart::source::postgres::watermark::WatermarkSettings;
use headstart::source::{By, Found, Lookup, Source, SourceError};

use crate::support::postgres::{Database, wait_for};
use crate::support::reader::{Reader, pool};

/// Each column is a key, named as its type; every table has them.
const COLUMNS: &str = "
    CREATE TYPE colour AS ENUM ('red', 'green', 'a b');
    CREATE DOMAIN token AS uuid;
    CREATE DOMAIN word AS varchar(9);
    CREATE TABLE thing (
        id int4 PRIMARY KEY, org text NOT NULL, team text,
        small int2, mid int4, big int8, ident uuid, words text, short varchar(9), nm name, col colour, tok token,
        wrd word, day date, flag bool, num numeric, ip inet,
        smalls int2[], mids int4[], bigs int8[], idents uuid[], texts text[], shorts varchar(9)[], nms name[],
        cols colour[], toks token[], days date[]);
    INSERT INTO thing
    SELECT n, 'o' || n % 2, CASE WHEN n % 3 > 0 THEN 't' || n % 3 END,
           n % 7, n % 7, n % 7, ident, word, word, word, colour, ident, word, day, n % 2 = 0, n % 7, inet '10.0.0.0' + n % 7,
           ARRAY[n % 7, NULL, n % 7], ARRAY[n % 7, n % 5], ARRAY[n % 7], ARRAY[ident], ARRAY[word, NULL, ''], ARRAY[word],
           ARRAY[word]::name[], ARRAY[colour], ARRAY[ident]::token[], ARRAY[day]
      FROM generate_series(1, 200) AS n,
           LATERAL (SELECT md5((n % 7)::text)::uuid AS ident, CASE WHEN n % 11 > 0 THEN 'w\"' || n % 7 END AS word,
                           (ARRAY['red', 'green', 'a b']::colour[])[n % 4] AS colour, '2024-02-27'::date + n % 7 AS day) AS v;
    CREATE INDEX ON thing (mid);
    CREATE INDEX ON thing (short);
    CREATE INDEX ON thing (tok);
    CREATE INDEX ON thing USING gin (mids);
    CREATE INDEX ON thing USING gin (shorts);
";

const KEYS: &[&str] = &[
    "small", "mid", "big", "ident", "words", "short", "nm", "col", "tok", "wrd", "day", "flag", "num", "ip", "smalls",
    "mids", "bigs", "idents", "texts", "shorts", "nms", "cols", "toks", "days",
];

fn catalog() -> String {
    format!(
        "[[models]]\nname = \"Thing\"\ntable = \"thing\"\nid = \"id\"\norg = \"org\"\ngroups = {{ team = \"team\" }}\n\
         load = \"partial\"\nkeys = {KEYS:?}\n"
    )
}

fn source(database: &Database) -> PostgresSource {
    let (pool, tasks) = pool(database, 4);
    let catalog = Arc::new(Catalog::parse(&catalog()).unwrap());
    PostgresSource::new(
        catalog,
        pool,
        None,
        ScanSettings::default(),
        WatermarkSettings::default(),
        tasks,
        Metrics::new(),
    )
}

async fn look_up(source: &PostgresSource, by: By, values: &[&str]) -> Result<Found, SourceError> {
    let values = values.iter().map(|value| Arc::from(*value)).collect();
    source.lookup(&Lookup { org: Org::new("o1"), model: 0, by, values, max_bytes: 1 << 20 }).await
}

#[tokio::test]
async fn every_type_of_key_finds_what_sql_finds() {
    let database = Database::create().await;
    database.execute(COLUMNS).await;
    let client = database.connect().await;
    let source = source(&database);
    // A scan gives the same lines.
    let reader = Reader::new(&database, &catalog()).await;
    let scanned: BTreeSet<String> = reader.rows("o1").await.unwrap().into_iter().map(|line| line.text).collect();
    for (index, key) in KEYS.iter().enumerate() {
        let elements = format!("unnest(ARRAY[{key}]::text[])");
        let elements = if key.ends_with('s') && *key != "words" { format!("unnest({key}::text[])") } else { elements };
        let sql = format!("SELECT DISTINCT v FROM thing, {elements} AS v WHERE v IS NOT NULL ORDER BY v");
        let mut values: Vec<String> = client.query(&sql, &[]).await.unwrap().iter().map(|row| row.get(0)).collect();
        assert!(values.len() >= 2, "{key}");
        // What the column can't hold finds nothing, and takes nothing from the others.
        values.extend(["nonsense", "99999999999999999999", "", "a\0b"].map(str::to_owned));
        let asked: Vec<&str> = values.iter().map(String::as_str).collect();
        let found = look_up(&source, By::Key(index), &asked).await.unwrap();
        for (value, rows) in asked.iter().zip(&found.matches) {
            let got: BTreeSet<i32> = rows.iter().map(|row| found.rows[*row].id.parse().unwrap()).collect();
            assert_eq!(got.len(), rows.len(), "{key} = {value}: each row once");
            let expected = if value.contains('\0') {
                BTreeSet::new()
            } else {
                let sql = format!("SELECT DISTINCT id FROM thing, {elements} AS v WHERE v = $1 AND org = 'o1'");
                client.query(&sql, &[value]).await.unwrap().iter().map(|row| row.get(0)).collect()
            };
            assert_eq!(got, expected, "{key} = {value}");
        }
        for row in &found.rows {
            let line = std::str::from_utf8(&row.line).unwrap().strip_suffix('\n').unwrap();
            assert_eq!(scanned.contains(line), !row.groups.as_slice().is_empty(), "{line}");
        }
    }
    let found = look_up(&source, By::Id, &["007", "7", "8", "-1", "x"]).await.unwrap();
    assert_eq!(found.matches, [vec![0], vec![0], vec![], vec![], vec![]], "two texts of one value; another org's row");
    let values = vec!["1".into()];
    let small = Lookup { org: Org::new("o1"), model: 0, by: By::Key(0), values, max_bytes: 300 };
    assert!(matches!(source.lookup(&small).await, Err(SourceError::TooLarge(300))));
}

#[tokio::test]
async fn indexes_serve_look_ups() {
    let database = Database::create().await;
    database.execute(COLUMNS).await;
    let client = database.connect().await;
    // So few rows are read whole unless that is forbidden; the role's settings hold for the service's sessions.
    let setting = "SELECT format('ALTER DATABASE %I SET enable_seqscan = off', current_database())";
    let alter: String = client.query_one(setting, &[]).await.unwrap().get(0);
    client.batch_execute(&alter).await.unwrap();
    let source = source(&database);
    for (key, value) in [
        ("mid", "3"),
        ("short", "w\"3"),
        ("tok", "eccbc87e-4b5c-e2fe-2830-8fd9f2a7baf3"),
        ("mids", "3"),
        ("shorts", "w\"3"),
    ] {
        let index = KEYS.iter().position(|name| *name == key).unwrap();
        assert!(!look_up(&source, By::Key(index), &[value]).await.unwrap().rows.is_empty(), "{key}");
    }
    drop(source);
    // Statistics are reported when sessions end, or after a second.
    let sql = "SELECT count(*) FROM pg_stat_user_indexes WHERE relname = 'thing' AND indexrelname <> 'thing_pkey' AND idx_scan > 0";
    wait_for(&client, sql, 5).await;
}
