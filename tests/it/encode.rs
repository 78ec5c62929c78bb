//! The encoder against its oracle: every row equals PostgreSQL's own `row_to_json` as a JSON value.

use std::fmt::Write as _;

use headstart::model::SnapshotId;
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

use crate::support::oracle::compare;
use crate::support::postgres::Database;

/// Every type the encoder knows, then some for the fallback, with the values that are easily got wrong.
const HARD: &[(&str, &[&str])] = &[
    ("bool", &["true", "false"]),
    ("int2", &["-32768", "32767", "0", "-1"]),
    ("int4", &["-2147483648", "2147483647", "0", "-1"]),
    ("int8", &["-9223372036854775808", "9223372036854775807", "0", "9007199254740993"]),
    ("oid", &["0", "4294967295"]),
    (
        "float4",
        &[
            "NaN",
            "Infinity",
            "-Infinity",
            "0",
            "-0",
            "3.4028235e38",
            "1e-45",
            "1.17549435e-38",
            "33554432",
            "0.1",
            "1e6",
            "100000",
            "16777216",
            "8589934592",
        ],
    ),
    (
        "float8",
        &[
            "NaN",
            "Infinity",
            "-Infinity",
            "0",
            "-0",
            "1.7976931348623157e308",
            "5e-324",
            "2.2250738585072014e-308",
            "1e23",
            "0.1",
            "1e15",
            "123456789012345678",
            "1e-5",
            "0.0001",
            "9007199254740993",
            "-1e-300",
        ],
    ),
    (
        "numeric",
        &[
            "NaN",
            "Infinity",
            "-Infinity",
            "0",
            "0.00",
            "-0.0",
            "1234567890123456789012345678901234567890",
            "0.0000000000000000000000000000000000000001",
            "-9999.9999",
            "10000",
            "100000000",
            "1.10",
            "0.00010000",
            "99990000.00009999",
            "1e100",
            "1e-100",
        ],
    ),
    ("numeric(50,40)", &["1234567890.0123456789012345678901234567890123456789", "-0.5"]),
    (
        "text",
        &[
            "",
            " ",
            "plain",
            "quote \" and \\ backslash / slash",
            "\\u0041",
            "tab\tnewline\nreturn\rbell\x07 escape\x1b delete\x7f",
            "back\x08 form\x0c one\x01 unit\x1f",
            "🦀👩‍👩‍👧‍👦",
            "e\u{301} \u{202e}rtl\u{202c} \u{feff}\u{2028}\u{2029}",
            "0123456789abcdef\"0123456789abcdef",
            "0123456789abcde\\",
            "</script>",
            "漢字かな交じり文、長めの例文です",
            "null",
        ],
    ),
    ("varchar(20)", &["", "abc", "ü\"ü"]),
    ("char(5)", &["", "ab", "abcde"]),
    ("name", &["", "a name"]),
    ("citext", &["MiXeD", "\"quoted\""]),
    (
        "uuid",
        &[
            "00000000-0000-0000-0000-000000000000",
            "ffffffff-ffff-ffff-ffff-ffffffffffff",
            "01234567-89ab-cdef-0123-456789abcdef",
        ],
    ),
    (
        "date",
        &[
            "infinity",
            "-infinity",
            "4713-01-01 BC",
            "0044-03-15 BC",
            "0001-12-31 BC",
            "0001-01-01",
            "1600-02-29",
            "1900-03-01",
            "2000-02-29",
            "9999-12-31",
            "10000-01-01",
            "5874897-12-31",
            "1970-01-01",
        ],
    ),
    ("time", &["00:00", "24:00", "23:59:59.999999", "12:34:56.7", "00:00:00.000001", "10:00:00.100"]),
    (
        "timetz",
        &["00:00+00", "24:00-15:59", "12:34:56.789+05:30", "01:02:03+15:59:59", "23:59:59.999999-00:00:01", "04:05-08"],
    ),
    (
        "timestamp",
        &[
            "infinity",
            "-infinity",
            "4713-01-01 00:00:00 BC",
            "0044-03-15 12:00:00.5 BC",
            "0001-01-01 00:00",
            "1999-12-31 23:59:59.999999",
            "2000-01-01",
            "10000-01-01",
            "294276-12-31 23:59:59.999999",
            "2024-02-29 24:00",
        ],
    ),
    (
        "timestamptz",
        &[
            "infinity",
            "-infinity",
            "4713-01-01 00:00:00+00 BC",
            "0001-01-01 00:00+15:59",
            "2000-01-01 00:00-08",
            "294276-12-31 23:59:59.999999+00",
            "2024-06-30 12:00:00.120+02",
        ],
    ),
    (
        "interval",
        &[
            "0",
            "1 year",
            "-1 year",
            "1 mon",
            "13 mons",
            "-13 mons",
            "1 day",
            "2 days",
            "-1 day +02:03:04",
            "-1 day -02:03:04",
            "1 mon -1 day",
            "-1 mon +1 day",
            "-1 mon +1 day -00:00:01",
            "1 year -2 mons +3 days -04:05:06.07",
            "-00:00:00.000001",
            "100:00:00",
            "9 years 1 mon -12 days +13:14:00",
            "178000000 years",
            "-178000000 years",
            "2147483647 days",
            "-2147483648 days 2147483647 hours",
            "23:59:59.999999",
        ],
    ),
    (
        "json",
        &[
            "null",
            " null ",
            "{\"b\" : 1,\n\t\"a\":\r\n [null, 1.0, 1e400, \"\\u0000\\n\"], \"a\": 2}",
            "\"\"",
            "[]",
            "123456789012345678901234567890.10",
            "true",
            "\"null\"",
        ],
    ),
    (
        "jsonb",
        &[
            "null",
            "{\"b\": null, \"a\": {\"n\": null}}",
            "[1, 2.50, 123456789012345678901234567890, 1e-20, -0]",
            "\"\\\\ \\\" \\u00e9 \\t\"",
            "{}",
            "[[], [[]]]",
            "\"🦀\"",
            "false",
            "1e300",
        ],
    ),
    ("bytea", &["", "\\x00", "\\xdeadbeef00ff", "\\x5c22"]),
    (
        "inet",
        &[
            "0.0.0.0",
            "255.255.255.255",
            "10.1.2.3/8",
            "10.1.2.3/32",
            "::",
            "::1",
            "::ffff:1.2.3.4",
            "::1.2.3.4",
            "::1:2:3",
            "2001:db8::1/64",
            "1:0:0:2:0:0:0:3",
            "1:0:2:0:3:0:4:0",
            "fe80::/10",
            "0:0:1::",
            "::ffff:0:0",
        ],
    ),
    ("cidr", &["10.0.0.0/8", "10.1.2.3/32", "::/0", "2001:db8::/32", "::1/128", "0.0.0.0/0"]),
    ("macaddr", &["00:00:00:00:00:00", "08:00:2b:01:02:ff"]),
    ("mood", &["sad", "ok", "Über \"glücklich\""]),
    ("email", &["a@b", "quote\"@b"]),
    ("tags", &["{}", "{a,NULL,\"b c\"}", "{{1,2},{3,4}}"]),
    ("amount", &["1.50", "NaN"]),
    // The fallback.
    ("pair", &["(1,\"a \"\"b\"\"\")", "(,)"]),
    ("int4range", &["empty", "[1,5)", "(,)"]),
    ("tstzrange", &["[2024-01-01 00:00+00,2024-01-02 00:00+00)"]),
    ("int4multirange", &["{}", "{[1,2),[5,7)}"]),
    ("tsvector", &["", "'a':1 'fat':2,4C 'quo''te':3"]),
    ("tsquery", &["'a' & !'b'"]),
    ("money", &["-12.34"]),
    ("bit(4)", &["0101"]),
    ("varbit", &["", "1"]),
    ("xml", &["<a b=\"c\">\n</a>"]),
    ("point", &["(1,-0)"]),
    ("box", &["(1,1),(0,0)"]),
    ("int2vector", &["1 2 3"]),
    ("macaddr8", &["08:00:2b:01:02:03:04:05"]),
    ("\"char\"", &["a", "\\"]),
    ("regclass", &["pg_class"]),
    ("pg_lsn", &["16/B374D848"]),
    ("hstore", &["a=>1, \"b c\"=>NULL"]),
    ("shade", &["dark", "light"]),
    ("pair_domain", &["(2,b)"]),
];

const TYPES: &str = "
    CREATE EXTENSION citext; CREATE EXTENSION hstore;
    CREATE TYPE mood AS ENUM ('sad', 'ok', 'Über \"glücklich\"');
    CREATE DOMAIN email AS varchar(40) CHECK (value LIKE '%@%');
    CREATE DOMAIN tags AS text[];
    CREATE DOMAIN amount AS numeric(10,2);
    CREATE TYPE pair AS (a int, b text);
    CREATE DOMAIN pair_domain AS pair;
    CREATE TYPE shade AS ENUM ('dark', 'light');
    CREATE FUNCTION shade_json(shade) RETURNS json LANGUAGE sql IMMUTABLE AS
        $$ SELECT json_build_object('shade', $1::text, 'nothing', NULL) $$;
    CREATE CAST (shade AS json) WITH FUNCTION shade_json(shade);";

#[tokio::test]
async fn every_type_and_its_hard_values_equal_row_to_json() {
    let database = Database::create().await;
    database.execute(TYPES).await;
    let mut columns = String::new();
    for (index, (of, _)) in HARD.iter().enumerate() {
        write!(columns, ", s_{index} {of}, a_{index} {of}[]").unwrap();
    }
    database
        .execute(&format!(
            "CREATE TABLE things (org text, id int{columns}, \"Größe in %\" int, \"select\" text, \"a\"\"b\" text)"
        ))
        .await;
    let client = database.connect().await;
    let longest = HARD.iter().map(|(_, values)| values.len()).max().unwrap();
    for id in 0..=longest {
        let mut values = String::new();
        for (of, hard) in HARD {
            let literal = |at: usize| format!("'{}'::{of}", hard[at % hard.len()].replace('\'', "''"));
            let scalar = if id < hard.len() { literal(id) } else { "NULL".into() };
            // All values and a null in one array, then two dimensions, then none, with lower bounds of their own.
            let all: Vec<_> = (0..hard.len()).map(literal).collect();
            let array = match id % 4 {
                0 => format!("ARRAY[NULL, {}]::{of}[]", all.join(", ")),
                1 => format!("ARRAY[[{}, NULL], [NULL, {}]]::{of}[]", literal(id), literal(id + 1)),
                2 => format!("'{{}}'::{of}[]"),
                _ => format!("array_fill({}, ARRAY[1, 2, 3], ARRAY[-4, 0, 7])", literal(id)),
            };
            // Domains over arrays can't stand in an array constructor with other elements of several dimensions.
            let array = if *of == "tags" && id % 4 != 2 { format!("ARRAY[{}]::{of}[]", all.join(", ")) } else { array };
            write!(values, ", {scalar}, {array}").unwrap();
        }
        let sql = format!("INSERT INTO things VALUES ('o', {id}{values}, {id}, 'selected', 'x')");
        client.batch_execute(&sql).await.unwrap_or_else(|error| panic!("{error:?} in {sql}"));
    }
    assert_eq!(compare(&database).await, longest + 1);
}

/// The interval's extremes are plain values up to PostgreSQL 16 and infinities from 17 on; the oracle knows.
#[tokio::test]
async fn the_ends_of_an_interval_are_what_the_server_makes_of_them() {
    let database = Database::create().await;
    database.execute("CREATE TABLE things (org text, id int, i interval)").await;
    database
        .execute(
            "INSERT INTO things VALUES
                 ('o', 1, '178956970 years 7 mons 2147483647 days 2562047788:00:54.775807'),
                 ('o', 2, interval '-178956970 years -7 mons -2147483648 days -2562047788:00:54.775807'
                          - interval '1 mon 0.000001 seconds')",
        )
        .await;
    assert_eq!(compare(&database).await, 2);
}

/// Seeded from the operating system; the seed is printed, and `HEADSTART_TEST_SEED` runs it again.
fn runner() -> TestRunner {
    let seed = std::env::var("HEADSTART_TEST_SEED").unwrap_or_else(|_| SnapshotId::random().to_string());
    println!("HEADSTART_TEST_SEED={seed}");
    let half = *seed.parse::<SnapshotId>().expect("a seed is 32 hexadecimal digits").as_bytes();
    let mut bytes = [0; 32];
    bytes[..16].copy_from_slice(&half);
    TestRunner::new_with_rng(Config::default(), TestRng::from_seed(RngAlgorithm::ChaCha, &bytes))
}

fn draw<T>(runner: &mut TestRunner, strategy: &(impl Strategy<Value = T> + ?Sized)) -> T {
    strategy.new_tree(runner).expect("the strategy rejects nothing").current()
}

/// Random values as texts that PostgreSQL reads.
fn random() -> Vec<(&'static str, BoxedStrategy<String>)> {
    let date = || (1..9_999_i32, 1..=12_u32, 1..=28_u32, any::<bool>());
    let bc = |bc: bool, year: i32| if bc && year < 4_700 { " BC" } else { "" };
    let clock = || {
        (0..86_400_000_000_i64).prop_map(|us| {
            let (seconds, fraction) = (us / 1_000_000, us % 1_000_000);
            format!("{:02}:{:02}:{:02}.{fraction:06}", seconds / 3600, seconds / 60 % 60, seconds % 60)
        })
    };
    let text = || "(?s:.){0,24}".prop_map(|text: String| text.replace('\0', "␀"));
    let json = any::<Option<bool>>().prop_map(|leaf| leaf.map_or("null".into(), |leaf| leaf.to_string()));
    let json = prop_oneof![
        json,
        any::<f64>().prop_filter("finite", |f| f.is_finite()).prop_map(|f| format!("{f:e}")),
        text().prop_map(|text| serde_json::Value::from(text).to_string())
    ];
    let json = json.prop_recursive(3, 16, 4, move |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..4).prop_map(|items| format!("[{}]", items.join(",\n"))),
            proptest::collection::vec(("[a-c\\\\\"é]{0,3}", inner), 0..4).prop_map(|fields| {
                let fields: Vec<_> = fields
                    .into_iter()
                    .map(|(key, value)| format!("{} : {value}", serde_json::Value::from(key)))
                    .collect();
                format!("{{{}}}", fields.join(","))
            }),
        ]
    });
    vec![
        ("int2", any::<i16>().prop_map(|n| n.to_string()).boxed()),
        ("int8", any::<i64>().prop_map(|n| n.to_string()).boxed()),
        ("float4", any::<u32>().prop_map(|bits| format!("{:e}", f32::from_bits(bits))).boxed()),
        ("float8", any::<u64>().prop_map(|bits| format!("{:e}", f64::from_bits(bits))).boxed()),
        ("numeric", "-?[0-9]{1,30}(\\.[0-9]{0,30})?(e-?[0-9]{1,2})?".boxed()),
        ("numeric(20,7)", "-?[0-9]{1,13}(\\.[0-9]{0,9})?".boxed()),
        ("text", text().boxed()),
        (
            "bytea",
            proptest::collection::vec(any::<u8>(), 0..20)
                .prop_map(|raw| raw.iter().fold("\\x".to_owned(), |hex, byte| hex + &format!("{byte:02x}")))
                .boxed(),
        ),
        ("uuid", any::<u128>().prop_map(|bits| format!("{bits:032x}")).boxed()),
        ("date", date().prop_map(move |(y, m, d, before)| format!("{y:04}-{m}-{d}{}", bc(before, y))).boxed()),
        ("time", clock().boxed()),
        (
            "timetz",
            (clock(), -57_599..57_600_i32)
                .prop_map(|(clock, zone)| {
                    let (sign, zone) = (if zone < 0 { '-' } else { '+' }, zone.abs());
                    format!("{clock}{sign}{:02}:{:02}:{:02}", zone / 3600, zone / 60 % 60, zone % 60)
                })
                .boxed(),
        ),
        (
            "timestamp",
            (date(), clock())
                .prop_map(move |((y, m, d, before), clock)| format!("{y:04}-{m}-{d} {clock}{}", bc(before, y)))
                .boxed(),
        ),
        ("timestamptz", (10_000..290_000, clock()).prop_map(|(y, clock)| format!("{y}-07-04 {clock}+03:15")).boxed()),
        (
            "interval",
            (any::<i32>(), any::<i32>(), any::<i64>(), 0..5_u32, 0..8)
                .prop_map(|(months, days, us, small, mask)| {
                    // Small numbers as well, and each part absent now and then.
                    let scale = 10_i64.pow(small * 2);
                    let (months, days) = (i64::from(months) / scale, i64::from(days) / scale);
                    let part = |bit, part: String| if mask & bit == 0 { part } else { String::new() };
                    let us = us / 1_000 / scale;
                    let mut text = part(1, format!("{months} months "));
                    text += &part(2, format!("{days} days "));
                    text + &(if mask & 4 == 0 { format!("{us} microseconds") } else { "0 seconds".into() })
                })
                .boxed(),
        ),
        ("json", json.clone().boxed()),
        ("jsonb", json.boxed()),
        (
            "inet",
            prop_oneof![
                (any::<u32>(), 0..=32).prop_map(|(ip, bits)| format!("{}/{bits}", std::net::Ipv4Addr::from(ip))),
                (any::<u128>(), any::<u8>(), 0..=128).prop_map(|(ip, mask, bits)| {
                    // Many words of zeros, for the short forms.
                    let zeroed =
                        (0..8).filter(|word| mask >> word & 1 == 1).fold(ip, |ip, word| ip & !(0xffff << (word * 16)));
                    format!("{}/{bits}", std::net::Ipv6Addr::from(zeroed))
                }),
            ]
            .boxed(),
        ),
        ("macaddr", any::<u64>().prop_map(|bits| format!("{:012x}", bits >> 16)).boxed()),
    ]
}

#[tokio::test]
async fn random_rows_equal_row_to_json() {
    const ROWS: usize = 1_500;
    let database = Database::create().await;
    let types = random();
    let mut runner = runner();
    let (mut columns, mut selected, mut texts) = (String::new(), String::new(), String::new());
    let mut values: Vec<Vec<Option<String>>> = Vec::new();
    for (index, (of, strategy)) in types.iter().enumerate() {
        write!(columns, ", s_{index} {of}, a_{index} {of}[]").unwrap();
        // The array holds this value, a null and a neighbour's.
        let near = format!("lag(v.s_{index}::{of}) OVER (ORDER BY v.id)");
        write!(selected, ", v.s_{index}::{of}, CASE v.id % 3 WHEN 0 THEN ARRAY[v.s_{index}::{of}, NULL, {near}] WHEN 1 THEN ARRAY[[{near}],[v.s_{index}::{of}]] END").unwrap();
        write!(texts, ", s_{index}").unwrap();
        let value = proptest::option::weighted(0.9, strategy);
        values.push((0..ROWS).map(|_| draw(&mut runner, &value)).collect());
    }
    database.execute(&format!("CREATE TABLE things (org text, id int{columns})")).await;
    let unnest: Vec<_> = (1..=types.len()).map(|index| format!("unnest(${index}::text[])")).collect();
    let insert = format!(
        "INSERT INTO things SELECT 'o', v.id{selected} FROM ROWS FROM ({}) WITH ORDINALITY AS v({}, id)",
        unnest.join(", "),
        &texts[2..]
    );
    let parameters: Vec<&(dyn tokio_postgres::types::ToSql + Sync)> = values.iter().map(|v| v as _).collect();
    database.connect().await.execute(&insert, &parameters).await.unwrap_or_else(|error| panic!("{error:?}"));
    assert_eq!(compare(&database).await, ROWS);
}

/// Floats beside powers of two and of ten, where shortest digits are easily got wrong.
#[tokio::test]
async fn floats_on_the_edge_equal_row_to_json() {
    let mut runner = runner();
    let mut doubles: Vec<f64> = (1_u64..2_047).map(|exponent| f64::from_bits(exponent << 52)).collect();
    let mut floats: Vec<f32> = (1_u32..255).map(|exponent| f32::from_bits(exponent << 23)).collect();
    for _ in 0..15_000 {
        let (digits, tens) = draw(&mut runner, &(1..100_000_000_u64, 0..35));
        let near: f64 = format!("{digits}e{tens}").parse().unwrap();
        let double = f64::from_bits(near.to_bits().wrapping_add_signed(draw(&mut runner, &(-1..=1_i64))));
        doubles.push(double);
        let float = near as f32;
        floats.push(if float.is_finite() { float } else { 0.0 });
        // Even mantissas with few bits.
        doubles.push(draw(&mut runner, &(0..1_u64 << 12)) as f64 * 2_f64.powi(draw(&mut runner, &(50..120))));
        floats.push(draw(&mut runner, &(0..1_u32 << 23)) as f32 * 2_f32.powi(draw(&mut runner, &(1..60))));
    }
    floats.resize(doubles.len(), 0.5);
    let database = Database::create().await;
    database.execute("CREATE TABLE things (org text, id int, f4 float4, f8 float8)").await;
    let insert = "INSERT INTO things SELECT 'o', v.id, v.f4, v.f8
                  FROM ROWS FROM (unnest($1::float4[]), unnest($2::float8[])) WITH ORDINALITY AS v(f4, f8, id)";
    database.connect().await.execute(insert, &[&floats, &doubles]).await.unwrap();
    assert_eq!(compare(&database).await, doubles.len());
}
