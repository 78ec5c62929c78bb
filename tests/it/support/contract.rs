//! An answer held against what an OpenAPI document says of it.

use serde_json::Value;

/// Panics unless the document tells of this status of the call, and of the code if the answer is a problem.
pub fn hold(document: &Value, method: &str, path: &str, status: u16, media_type: Option<&str>, body: &[u8]) {
    let path = path.split('?').next().unwrap_or_default();
    // GET describes HEAD; other methods and paths are not described.
    let method = if method == "HEAD" { "get" } else { &method.to_ascii_lowercase() };
    let operation = &document["paths"][path][method];
    if operation.is_null() {
        return;
    }
    let told = &operation["responses"][status.to_string()];
    assert!(
        !told.is_null(),
        "{method} {path} is answered with {status}, which is not told: {}",
        operation["responses"]
    );
    let problem = &told["content"]["application/problem+json"]["schema"];
    if media_type == Some("application/problem+json") && !body.is_empty() {
        let body: Value = serde_json::from_slice(body).expect("JSON");
        let code = &body["code"];
        let told = if told["content"].is_null() {
            told["description"].as_str().is_some_and(|text| text.contains(&code.to_string()))
        } else {
            let codes = &problem["allOf"][1]["properties"]["code"]["enum"];
            codes.as_array().is_some_and(|codes| codes.contains(code))
        };
        assert!(told, "{method} {path} is answered with {code}, which is not told: {}", operation["responses"]);
    }
}
