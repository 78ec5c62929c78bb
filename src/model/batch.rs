//! What a batch asks for, parsed from its body. Pure, so that it can be fuzzed.
//!
//! Every field is looked at by hand: a fault names its place (`requests[3].keyValue`), and a field that is not known is
//! one, because a misspelt one must not pass for none.

use std::borrow::Cow;
use std::fmt;

use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, Visitor};
use serde_json::{Map, Value};

use crate::model::ids::SyncId;
use crate::model::query::QueryError;

/// A parsed `POST /sync/batch`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BatchQuery {
    /// The answer must be true at this sync id or later.
    pub first_sync_id: Option<SyncId>,
    /// What is asked for; never empty.
    pub requests: Vec<BatchRequest>,
}

/// One request of a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BatchRequest {
    /// The model, by name.
    pub model: String,
    /// Which of its rows.
    pub named: Named,
}

/// How a request names rows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Named {
    /// The row with this model id.
    Id(String),
    /// The rows whose field has, or holds, this value.
    Key {
        /// The field, by its wire name.
        key: String,
        /// The value.
        value: String,
    },
}

impl BatchQuery {
    /// Reads a body.
    ///
    /// # Errors
    /// The first field that makes no sense.
    pub fn parse(body: &[u8]) -> Result<Self, QueryError> {
        // A derived type would take an array in place of the object, too.
        let is_object = body.trim_ascii_start().starts_with(b"{");
        let plain = is_object.then(|| serde_json::from_slice::<Plain<'_>>(body).ok());
        match plain.flatten().and_then(Plain::query) {
            Some(query) => Ok(query),
            None => Self::parse_closely(body),
        }
    }

    /// Reads a body field by field, at five times the cost: what is wrong is found here, and what is written in an unusual
    /// way is understood.
    fn parse_closely(body: &[u8]) -> Result<Self, QueryError> {
        let body: Value = serde_json::from_slice(body).map_err(|fault| QueryError::new("body", fault.to_string()))?;
        let Value::Object(mut body) = body else { return Err(QueryError::new("body", "is a JSON object")) };
        let first_sync_id = match body.remove("firstSyncId") {
            None | Some(Value::Null) => None,
            Some(Value::Number(number)) => {
                let id = number.to_string().parse();
                Some(id.map_err(|error| QueryError::new("firstSyncId", format!("{error}")))?)
            }
            Some(_) => return Err(QueryError::new("firstSyncId", "is a number")),
        };
        let requests = match body.remove("requests") {
            Some(Value::Array(requests)) if !requests.is_empty() => requests,
            _ => return Err(QueryError::new("requests", "is an array of at least one request")),
        };
        nothing_else(&body, "")?;
        let requests = requests.into_iter().enumerate().map(|(index, request)| request_of(index, request));
        Ok(Self { first_sync_id, requests: requests.collect::<Result<_, _>>()? })
    }
}

/// A body as nearly all are. Whatever does not fit is left to [`BatchQuery::parse_closely`].
#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Plain<'a> {
    first_sync_id: Option<u64>,
    #[serde(borrow)]
    requests: Vec<PlainRequest<'a>>,
}

/// A request of one.
struct PlainRequest<'a> {
    model: Cow<'a, str>,
    id: Option<Cow<'a, str>>,
    key: Option<Cow<'a, str>>,
    value: Option<Cow<'a, str>>,
}

/// A string, not copied where it holds no escapes.
#[derive(serde::Deserialize)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

impl<'de: 'a, 'a> Deserialize<'de> for PlainRequest<'a> {
    /// By hand, because a derived one would take an array, too.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Fields;
        impl<'de> Visitor<'de> for Fields {
            type Value = PlainRequest<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a request")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<PlainRequest<'de>, A::Error> {
                let (mut model, mut id, mut key, mut value) = (None, None, None, None);
                while let Some(Text(name)) = map.next_key()? {
                    let field = match &*name {
                        "modelName" => &mut model,
                        "id" => &mut id,
                        "indexedKey" => &mut key,
                        "keyValue" => &mut value,
                        _ => return Err(A::Error::custom("no such field")),
                    };
                    let Text(text) = map.next_value()?;
                    if field.replace(text).is_some() {
                        return Err(A::Error::custom("a field stands twice"));
                    }
                }
                let model = model.ok_or_else(|| A::Error::missing_field("modelName"))?;
                Ok(PlainRequest { model, id, key, value })
            }
        }
        deserializer.deserialize_map(Fields)
    }
}

impl Plain<'_> {
    fn query(self) -> Option<BatchQuery> {
        // Sync ids end where PostgreSQL's do, which the other way knows.
        let first_sync_id = match self.first_sync_id {
            Some(id) => Some(id.to_string().parse().ok()?),
            None => None,
        };
        let requests = self.requests.into_iter().map(|request| {
            let named = match (request.id, request.key, request.value) {
                (Some(id), None, None) => Named::Id(id.into_owned()),
                (None, Some(key), Some(value)) => Named::Key { key: key.into_owned(), value: value.into_owned() },
                _ => return None,
            };
            Some(BatchRequest { model: request.model.into_owned(), named })
        });
        let requests = requests.collect::<Option<Vec<_>>>()?;
        (!requests.is_empty()).then_some(BatchQuery { first_sync_id, requests })
    }
}

impl BatchRequest {
    /// The value that is asked for, and the field that holds it.
    pub fn value(&self) -> (&'static str, &str) {
        match &self.named {
            Named::Id(id) => ("id", id),
            Named::Key { value, .. } => ("keyValue", value),
        }
    }
}

/// The place of a request's field in the body.
pub fn place(index: usize, field: &str) -> String {
    format!("requests[{index}].{field}")
}

fn request_of(index: usize, request: Value) -> Result<BatchRequest, QueryError> {
    let Value::Object(mut request) = request else {
        return Err(QueryError::new(&format!("requests[{index}]"), "is an object"));
    };
    let mut text = |field: &str| match request.remove(field) {
        None => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(_) => Err(QueryError::new(&place(index, field), "is a string")),
    };
    let (model, id) = (text("modelName")?, text("id")?);
    let (key, value) = (text("indexedKey")?, text("keyValue")?);
    nothing_else(&request, &format!("requests[{index}]."))?;
    let missing = |field| QueryError::new(&place(index, field), "is missing");
    let model = model.ok_or_else(|| missing("modelName"))?;
    let named = match (id, key, value) {
        (Some(id), None, None) => Named::Id(id),
        (None, Some(key), Some(value)) => Named::Key { key, value },
        (Some(_), _, _) => return Err(QueryError::new(&place(index, "id"), "does not go with `indexedKey`")),
        (None, Some(_), None) => return Err(missing("keyValue")),
        (None, None, Some(_)) => return Err(missing("indexedKey")),
        (None, None, None) => return Err(missing("id")),
    };
    Ok(BatchRequest { model, named })
}

fn nothing_else(left: &Map<String, Value>, place: &str) -> Result<(), QueryError> {
    match left.keys().next() {
        Some(name) => Err(QueryError::new(&format!("{place}{name}"), "is no field of this call")),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_kinds_of_requests_are_read() {
        let body =
            br#"{"firstSyncId": 7, "requests": [{"modelName": "Comment", "indexedKey": "issueId", "keyValue": "1"},
                                                       {"id": "x", "modelName": "Issue"}]}"#;
        let query = BatchQuery::parse(body).unwrap();
        assert_eq!(query.first_sync_id, Some(SyncId(7)));
        assert_eq!(query.requests[0].value(), ("keyValue", "1"));
        assert_eq!(query.requests[1], BatchRequest { model: "Issue".into(), named: Named::Id("x".into()) });
    }

    #[test]
    fn whatever_is_read_the_short_way_is_read_the_same_closely() {
        for body in [
            r#"{"requests":[{"modelName":"A","id":"1"},{"keyValue":"\u00e9\n","modelName":"B","indexedKey":"k"}]}"#,
            r#"{"firstSyncId":null,"requests":[{"modelName":"A","id":"1"}]}"#,
            r#"{"firstSyncId":9223372036854775807,"requests":[{"modelName":"A","id":""}]}"#,
            r#"{"firstSyncId":18446744073709551615,"requests":[{"modelName":"A","id":"1"}]}"#,
            r#"{"firstSyncId":7.0,"requests":[{"modelName":"A","id":"1"}]}"#,
            r#"{"requests":[{"modelName":"A","id":"1","id":"2"}]}"#,
            r#"{"requests":[{"modelName":"A","id":null}]}"#,
            r#"{"requests":[{"modelName":"A","id":"1","keyValue":null}]}"#,
            r#"{"requests":[{"modelName":"A","id":"1"}]} x"#,
            r#"{"requests":[["A","1"]]}"#,
            r#"[7,[]]"#,
        ] {
            let closely = BatchQuery::parse_closely(body.as_bytes());
            assert_eq!(BatchQuery::parse(body.as_bytes()), closely, "{body}");
        }
    }

    #[test]
    fn a_fault_names_its_place() {
        let request = |fields: &str| format!(r#"{{"requests": [{{"modelName": "A", "id": "1"}}, {{{fields}}}]}}"#);
        for (body, place) in [
            (String::new(), "body"),
            ("[]".into(), "body"),
            ("{}".into(), "requests"),
            (r#"{"requests": []}"#.into(), "requests"),
            (r#"{"requests": {}}"#.into(), "requests"),
            (r#"{"requests": [1]}"#.into(), "requests[0]"),
            (r#"{"firstSyncId": "1", "requests": [1]}"#.into(), "firstSyncId"),
            (r#"{"firstSyncId": -1, "requests": [1]}"#.into(), "firstSyncId"),
            (r#"{"firstSyncId": 1.5, "requests": [1]}"#.into(), "firstSyncId"),
            (r#"{"request": [], "requests": [1]}"#.into(), "request"),
            (request(r#""id": "1""#), "requests[1].modelName"),
            (request(r#""modelName": "A""#), "requests[1].id"),
            (request(r#""modelName": "A", "id": 1"#), "requests[1].id"),
            (request(r#""modelName": "A", "id": "1", "keyValue": "1""#), "requests[1].id"),
            (request(r#""modelName": "A", "indexedKey": "a""#), "requests[1].keyValue"),
            (request(r#""modelName": "A", "keyValue": "a""#), "requests[1].indexedKey"),
            (request(r#""modelName": "A", "indexKey": "a", "keyValue": "1""#), "requests[1].indexKey"),
        ] {
            assert_eq!(BatchQuery::parse(body.as_bytes()).map_err(|error| error.field), Err(place.into()), "{body}");
        }
    }
}
