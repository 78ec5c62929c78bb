//! What a batch asks for, parsed from its body. Pure, so that it can be fuzzed.
//!
//! Every field is looked at by hand: a fault names its place (`requests[3].keyValue`), and a field that is not known is
//! one, because a misspelt one must not pass for none.

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
