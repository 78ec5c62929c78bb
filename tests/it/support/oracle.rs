//! PostgreSQL's own `row_to_json`, which every encoded row must equal as a JSON value.

use std::collections::BTreeMap;

use serde_json::value::RawValue;

use super::postgres::Database;
use super::reader::Reader;

/// A JSON value that keeps every digit of its numbers.
#[derive(Debug, PartialEq)]
enum Json {
    Null,
    Bool(bool),
    /// Sign, digits without zeros at either end, power of ten.
    Number(bool, String, i64),
    String(String),
    Array(Vec<Json>),
    Object(BTreeMap<String, Json>),
}

impl Json {
    fn parse(text: &str) -> Self {
        let text = text.trim();
        let inner = |raw: Box<RawValue>| Self::parse(raw.get());
        match text.as_bytes()[0] {
            b'n' => Self::Null,
            b't' | b'f' => Self::Bool(text == "true"),
            b'"' => Self::String(serde_json::from_str(text).unwrap()),
            b'[' => {
                Self::Array(serde_json::from_str::<Vec<Box<RawValue>>>(text).unwrap().into_iter().map(inner).collect())
            }
            b'{' => {
                let fields: BTreeMap<String, Box<RawValue>> = serde_json::from_str(text).unwrap();
                Self::Object(fields.into_iter().map(|(key, raw)| (key, inner(raw))).collect())
            }
            _ => Self::number(text),
        }
    }

    fn number(text: &str) -> Self {
        let (mantissa, exponent) = text.split_once(['e', 'E']).unwrap_or((text, "0"));
        let (negative, mantissa) = mantissa.strip_prefix('-').map_or((false, mantissa), |rest| (true, rest));
        let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
        let digits = format!("{whole}{fraction}");
        let short = digits.trim_end_matches('0');
        let zeros = digits.len() - short.len();
        let power = exponent.parse::<i64>().unwrap() - fraction.len() as i64 + zeros as i64;
        let short = short.trim_start_matches('0').to_owned();
        Self::Number(negative, short.clone(), if short.is_empty() { 0 } else { power })
    }
}

#[test]
fn numbers_are_compared_to_the_last_digit() {
    for (a, b) in [("1.50e2", "150"), ("0.10", "1e-1"), ("-0.0", "-0")] {
        assert_eq!(Json::parse(a), Json::parse(b));
    }
    for (a, b) in [("0", "-0"), ("9007199254740993", "9007199254740992"), ("1e23", "9.999999999999999e22"), ("1", "10")]
    {
        assert_ne!(Json::parse(a), Json::parse(b));
    }
}

/// Compares every row of `public.things` (`org`, `id` and the rest) with `row_to_json`, and returns how many there are.
pub async fn compare(database: &Database) -> usize {
    let catalog = "[[models]]\nname = \"Thing\"\ntable = \"things\"\nid = \"id\"\norg = \"org\"\nload = \"instant\"\n";
    let reader = Reader::new(database, catalog).await;
    // The oracle runs in a session with the same settings.
    let lease = reader.pool.get().await.unwrap();
    let oracle =
        lease.query("SELECT t.id, row_to_json(t)::text FROM public.things AS t ORDER BY id", &[]).await.unwrap();
    lease.release();
    let names: BTreeMap<String, String> =
        reader.layout.schema.models[0].fields.iter().map(|field| (field.column.clone(), field.name.clone())).collect();
    let mut expected = BTreeMap::new();
    for row in &oracle {
        let Json::Object(fields) = Json::parse(row.get(1)) else { panic!("a row is an object") };
        let fields = fields.into_iter().filter(|(_, value)| *value != Json::Null);
        let mut fields: BTreeMap<_, _> = fields.map(|(key, value)| (names[&key].clone(), value)).collect();
        fields.insert("__class".into(), Json::String("Thing".into()));
        expected.insert(row.get::<_, i32>(0), fields);
    }
    let lines = reader.rows("o").await.unwrap();
    assert_eq!(lines.len(), expected.len());
    for line in &lines {
        assert!(line.text.starts_with("{\"__class\":\"Thing\","), "{}", line.text);
        let Json::Object(fields) = Json::parse(&line.text) else { panic!("a line is an object") };
        let Json::Number(_, digits, power) = &fields["id"] else { panic!("an id") };
        let id = digits.parse::<i32>().unwrap_or(0) * 10_i32.pow(u32::try_from(*power).unwrap());
        let expected = &expected[&id];
        for (key, value) in expected {
            assert_eq!(fields.get(key), Some(value), "row {id}, {key}, in {}", line.text);
        }
        assert_eq!(fields.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>(), "row {id}");
    }
    lines.len()
}
