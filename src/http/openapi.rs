//! `GET /openapi.json`: the client side as OpenAPI 3.1. It tells nothing of this deployment, so it needs no token.
//!
//! Answers that are documents are described by their types; what is streamed is described by hand, and held against the
//! code: paths against the routes, parameters against what the queries take, and every answer of the tests, by its status
//! and code, against what is told here. What the operators' document shares with it stands here too.

use axum::Json;
use axum::http::StatusCode;
use schemars::generate::{SchemaGenerator, SchemaSettings};
use serde_json::{Value, json};

use crate::http::error::Code;
use crate::http::schema::{GroupsDocument, SchemaDocument};

/// What every call with a token may be answered with.
const COMMON: [Code; 11] = [
    Code::Unauthenticated,
    Code::IssuerUnavailable,
    Code::UriTooLong,
    Code::HeadersTooLarge,
    Code::DatabaseUnavailable,
    Code::CatalogMismatch,
    Code::StoreUnavailable,
    Code::Overloaded,
    Code::TooManyRequests,
    Code::Stopping,
    Code::Internal,
];

/// What a bootstrap is never answered with.
const NOT_OF_BOOTSTRAPS: [Code; 10] = [
    Code::CrossSite,
    Code::UnknownOrg,
    Code::NoSnapshot,
    Code::NotFound,
    Code::MethodNotAllowed,
    Code::InvalidBody,
    Code::InvalidKey,
    Code::RequestTooLarge,
    Code::AnswerTooLarge,
    Code::UnsupportedMediaType,
];

/// The document.
pub async fn document() -> Json<Value> {
    Json(describe())
}

fn describe() -> Value {
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Headstart",
            "version": env!("CARGO_PKG_VERSION"),
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
            "description": "Hands each client of a local-first application the whole state of its organization, \
                            filtered by the caller's sync groups, and says up to which change it is true."
        },
        "security": [{"token": []}],
        "paths": {
            "/sync/bootstrap": {"get": bootstrap()},
            "/sync/delta": {"get": delta()},
            "/sync/batch": {"post": batch()},
            "/sync/groups": {"get": {
                "operationId": "groups",
                "summary": "The sync groups the caller holds.",
                "parameters": [request_id()],
                "responses": responses(json!({"200": json_answer("The caller's groups.", "GroupsDocument")}), &COMMON)
            }},
            "/sync/schema": {"get": {
                "operationId": "schema",
                "summary": "Models, fields, types, load strategies and batch keys.",
                "parameters": [request_id()],
                "responses": responses(json!({"200": json_answer("How rows look.", "SchemaDocument")}), &COMMON)
            }},
            "/openapi.json": {"get": {
                "operationId": "openapi",
                "summary": "This document.",
                "security": [],
                "responses": responses(json!({"200": {
                    "description": "OpenAPI 3.1.", "content": {"application/json": {"schema": {"type": "object"}}}
                }}), &[Code::UriTooLong, Code::HeadersTooLarge])
            }}
        },
        "components": {
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"}},
            "schemas": schemas()
        }
    })
}

fn bootstrap() -> Value {
    let ok = json!({
        "description": "Every row the caller may see of the models asked for, one JSON object a line with `__class` \
                        first, and last a line of class `_metadata_`. A body without that line is not complete.",
        "headers": answer_headers(),
        "content": {"application/x-ndjson": {"schema": {"type": "string"}}}
    });
    let part = json!({
        "description": "The range asked for, with `content-range`.",
        "headers": answer_headers(),
        "content": {"application/x-ndjson": {"schema": {"type": "string"}}}
    });
    let answers = json!({
        "200": ok,
        "206": part,
        "304": {"description": "The client has this very answer.", "headers": answer_headers()}
    });
    let codes: Vec<Code> = Code::ALL.into_iter().filter(|code| !NOT_OF_BOOTSTRAPS.contains(code)).collect();
    json!({
        "operationId": "bootstrap",
        "summary": "The caller's whole state, or the part of it that is asked for.",
        "description": "From a published snapshot, or from the database while one is made. To go on with a download that \
                        broke, ask with `noSyncPackets=true`, keep the `etag`, and send `Range` with `If-Range`.",
        "parameters": [
            query("type", json!({"type": "string", "enum": ["full", "partial"], "default": "full"}),
                "`full`: all instant and lazy models, or those of `onlyModels`. `partial`: needs `onlyModels` or \
                 `syncGroups`."),
            list("onlyModels", ".", "Only these models, by name."),
            list("syncGroups", "^[a-z][a-z0-9_-]*:.", "Only rows that carry one of these groups, as `kind:id`; the caller holds all of them."),
            query("firstSyncId", sync_id(),
                "The answer must be true at this sync id or later."),
            query("schemaHash", json!({"type": "string"}), "The schema the client was made for."),
            query("noCache", json!({"type": "boolean", "default": false}), "From a dump that starts after this request."),
            query("noSyncPackets", json!({"type": "boolean", "default": false}),
                "Without the sync actions after the snapshot. Such answers have an etag."),
            header("Accept-Encoding", "zstd, gzip and identity are offered, at equal weight in this order."),
            header("If-None-Match", "Etags of answers the client has."),
            header("Range", "One range of bytes. Without an etag, and in gzip, the answer is whole."),
            header("If-Range", "The etag of the answer a range is of."),
            request_id()
        ],
        "responses": responses(answers, &codes)
    })
}

fn delta() -> Value {
    let ok = json!({
        "description": "The last action of each object after the cursor, oldest first, with the row as it is now, one JSON \
                        object a line of class `SyncAction`, and last a line of class `_metadata_`. A body without that \
                        line is not complete.",
        "headers": streamed_headers(),
        "content": {"application/x-ndjson": {"schema": {"type": "string"}}}
    });
    let own = [
        Code::InvalidQuery,
        Code::SchemaMismatch,
        Code::ResyncRequired,
        Code::NotAcceptable,
        Code::WatermarkHeld,
        Code::AnswerTooLarge,
    ];
    let mut parameters = json!([
        query("lastSyncId", sync_id(), "The client's cursor: it has everything up to here."),
        query("epoch", json!({"type": "string", "minLength": 1}), "The history the cursor belongs to."),
        query("toSyncId", sync_id(), "Nothing beyond this is wanted. Not before the cursor."),
        query("schemaHash", json!({"type": "string"}), "The schema the client was made for."),
        header("Accept-Encoding", "zstd, gzip and identity are offered, at equal weight in this order."),
        request_id()
    ]);
    for needed in 0..2 {
        parameters[needed]["required"] = true.into();
    }
    json!({
        "operationId": "delta",
        "summary": "What happened after a cursor.",
        "description": "410 `RESYNC_REQUIRED` when only a bootstrap helps.",
        "parameters": parameters,
        "responses": responses(json!({"200": ok}), &[&COMMON[..], &own].concat())
    })
}

fn batch() -> Value {
    let ok = json!({
        "description": "Every row asked for that the caller may see, each once, one JSON object a line with `__class` \
                        first, and last a line of class `_metadata_`. A body without that line is not complete. What \
                        is not found, or not seen, is left out.",
        "headers": streamed_headers(),
        "content": {"application/x-ndjson": {"schema": {"type": "string"}}}
    });
    let own = [
        Code::UnknownModel,
        Code::InvalidBody,
        Code::InvalidKey,
        Code::RequestTooLarge,
        Code::AnswerTooLarge,
        Code::UnsupportedMediaType,
        Code::NotAcceptable,
        Code::WatermarkHeld,
    ];
    json!({
        "operationId": "batch",
        "summary": "Rows by id or by key.",
        "description": "For models that are not in the client's bootstrap. Callers that ask for the same keys at the same \
                        moment share one read of the database; each gets only what it may see. One request that makes no \
                        sense refuses the whole batch.",
        "parameters": [
            header("Accept-Encoding", "zstd, gzip and identity are offered, at equal weight in this order."),
            request_id()
        ],
        "requestBody": {
            "required": true,
            "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Batch"}}}
        },
        "responses": responses(json!({"200": ok}), &[&COMMON[..], &own].concat())
    })
}

fn sync_id() -> Value {
    json!({"type": "integer", "format": "int64", "minimum": 0, "maximum": i64::MAX})
}

fn query(name: &str, schema: Value, description: &str) -> Value {
    json!({"name": name, "in": "query", "schema": schema, "description": description})
}

fn list(name: &str, pattern: &str, description: &str) -> Value {
    let items = json!({"type": "string", "pattern": pattern});
    let schema = json!({"type": "array", "items": items, "minItems": 1, "maxItems": 1000});
    json!({"name": name, "in": "query", "style": "form", "explode": false, "schema": schema, "description": description})
}

fn header(name: &str, description: &str) -> Value {
    json!({"name": name, "in": "header", "schema": {"type": "string"}, "description": description})
}

fn request_id() -> Value {
    header(
        "X-Request-Id",
        "Names the request in the answer and the log: up to 64 letters, digits, `-`, `_` or `.`. \
                            Without one, or with another, a new one is drawn.",
    )
}

fn json_answer(description: &str, schema: &str) -> Value {
    let schema = json!({"$ref": format!("#/components/schemas/{schema}")});
    json!({"description": description, "content": {"application/json": {"schema": schema}}})
}

/// The given answers and the errors, grouped by status with their codes.
pub(super) fn responses(mut answers: Value, codes: &[Code]) -> Value {
    for code in codes {
        let status = code.status();
        let same: Vec<&Code> = codes.iter().filter(|other| other.status() == status).collect();
        let problem = json!({
            "allOf": [
                {"$ref": "#/components/schemas/Problem"},
                {"properties": {"status": {"const": status.as_u16()}, "code": {"enum": same}}}
            ]
        });
        let mut answer = json!({
            "description": status.canonical_reason().unwrap_or("Error"),
            "content": {"application/problem+json": {"schema": problem}}
        });
        if [StatusCode::URI_TOO_LONG, StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE].contains(&status) {
            // What the HTTP parser itself won't take (hyper: 64 KiB of URI, server::MAX_HEAD in all) it refuses by
            // itself, so a body can't be promised.
            answer = json!({"description": format!("A problem of code {}; far past the limit, no body.", json!(code))});
        }
        if [StatusCode::SERVICE_UNAVAILABLE, StatusCode::TOO_MANY_REQUESTS].contains(&status) {
            answer["headers"] = json!({"Retry-After": {"schema": {"type": "integer"}, "description": "In seconds."}});
        }
        answers[status.as_str()] = answer;
    }
    answers
}

fn answer_headers() -> Value {
    let text = |description: &str| json!({"schema": {"type": "string"}, "description": description});
    json!({
        "x-sync-method": text("`snapshot` or `postgres`: where the rows come from."),
        "x-sync-id": text("The answer holds everything up to this sync id."),
        "x-schema-hash": text("How the rows look."),
        "x-snapshot-id": text("The snapshot the rows are of."),
        "x-request-id": text("Names the request in the log."),
        "server-timing": text("`answer`: milliseconds from the request to this head."),
        "etag": text("With `noSyncPackets=true`, of a published snapshot in zstd or identity."),
        "accept-ranges": text("`bytes` where there is an etag.")
    })
}

/// Those of an answer that is made of no snapshot.
fn streamed_headers() -> Value {
    let only_stored = ["x-snapshot-id", "etag", "accept-ranges"];
    let mut headers = answer_headers();
    if let Some(headers) = headers.as_object_mut() {
        headers.retain(|name, _| !only_stored.contains(&name.as_str()));
    }
    headers
}

/// The body of every error.
pub(super) fn problem() -> Value {
    let text = || json!({"type": "string"});
    json!({
        "type": "object",
        "required": ["title", "status", "code", "detail", "requestId"],
        "properties": {
            "title": text(),
            "status": {"type": "integer"},
            "code": {"enum": Code::ALL, "description": "For programs; never changes its meaning."},
            "detail": {"type": "string", "description": "For people."},
            "field": {"type": "string", "description": "The parameter or header at fault."},
            "schemaHash": {"type": "string", "description": "With SCHEMA_MISMATCH: the server's."},
            "requestId": text()
        }
    })
}

/// The schemas of what operators and clients are told as documents.
pub(super) fn generator() -> SchemaGenerator {
    let settings = SchemaSettings::draft2020_12().for_serialize();
    settings.with(|settings| settings.definitions_path = "/components/schemas".into()).into_generator()
}

fn schemas() -> Value {
    let text = || json!({"type": "string"});
    let object = |required: &[&str], properties: Value| json!({"type": "object", "required": required, "properties": properties});
    let strict = |required: &[&str], properties: Value| json!({"type": "object", "required": required, "properties": properties, "additionalProperties": false});
    let request = json!({"oneOf": [
        strict(&["modelName", "id"], json!({"modelName": text(), "id": text()})),
        strict(&["modelName", "indexedKey", "keyValue"], json!({
            "modelName": text(),
            "indexedKey": {"type": "string", "description": "One of the model's `batchKeys`."},
            "keyValue": {"type": "string", "description": "For a field of arrays: one of its elements."}
        }))
    ]});
    let mut schemas = generator();
    schemas.subschema_for::<GroupsDocument>();
    schemas.subschema_for::<SchemaDocument<'_>>();
    let mut schemas = schemas.take_definitions(true);
    schemas.insert("Problem".to_owned(), problem());
    let by_hand = json!({
        "Batch": strict(&["requests"], json!({
            "firstSyncId": {
                "type": ["integer", "null"], "format": "int64", "minimum": 0, "maximum": i64::MAX,
                "description": "The answer must be true at this sync id or later."
            },
            "requests": {"type": "array", "minItems": 1, "items": request}
        })),
        "Metadata": object(
            &["__class", "method", "epoch", "lastSyncId", "schemaHash", "subscribedSyncGroups", "returnedModelsCount"],
            json!({
                "__class": {"const": "_metadata_"},
                "method": {"enum": ["snapshot", "postgres"]},
                "epoch": {"type": "string", "description": "Which history the sync ids belong to."},
                "lastSyncId": {"type": "integer", "description": "The answer holds everything up to it."},
                "snapshotSyncId": {"type": "integer", "description": "The snapshot's own; bootstraps only."},
                "schemaHash": text(),
                "subscribedSyncGroups": {"type": "array", "items": text()},
                "returnedModelsCount": {"type": "object", "additionalProperties": {"type": "integer"}}
            })
        )
    });
    schemas.extend(by_hand.as_object().cloned().unwrap_or_default());
    Value::Object(schemas)
}

#[cfg(test)]
pub(super) mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::http::ROUTES;
    use crate::model::{BootstrapQuery, DeltaQuery};

    /// Every `$ref` of the document.
    pub(in crate::http) fn references(value: &Value, found: &mut BTreeSet<String>) {
        match value {
            Value::Object(members) => {
                found.extend(members.get("$ref").and_then(Value::as_str).map(str::to_owned));
                members.values().for_each(|member| references(member, found));
            }
            Value::Array(items) => items.iter().for_each(|item| references(item, found)),
            _ => {}
        }
    }

    #[test]
    fn every_reference_leads_somewhere_and_every_code_is_told() {
        let document = describe();
        let mut found = BTreeSet::new();
        references(&document, &mut found);
        assert!(found.len() >= 3);
        for reference in found {
            let pointer = reference.strip_prefix('#').expect("within the document");
            assert!(document.pointer(pointer).is_some(), "{reference}");
        }
        // Quotes within descriptions count as well.
        let responses = document["paths"].to_string().replace("\\\"", "\"");
        let others = [Code::NotFound, Code::MethodNotAllowed, Code::CrossSite, Code::UnknownOrg, Code::NoSnapshot];
        for code in Code::ALL.into_iter().filter(|code| !others.contains(code)) {
            assert!(responses.contains(&serde_json::to_string(&code).unwrap()), "{code:?}");
        }
    }

    #[test]
    fn paths_are_the_routes_and_parameters_what_queries_take() {
        let document = describe();
        let paths: BTreeSet<&str> = document["paths"].as_object().unwrap().keys().map(String::as_str).collect();
        assert_eq!(paths, BTreeSet::from(ROUTES));
        let told = |path: &str| -> BTreeSet<String> {
            let parameters = document["paths"][path]["get"]["parameters"].as_array().unwrap();
            let in_query = parameters.iter().filter(|parameter| parameter["in"] == "query");
            in_query.map(|parameter| parameter["name"].as_str().unwrap().to_owned()).collect()
        };
        assert_eq!(told("/sync/bootstrap"), BootstrapQuery::PARAMETERS.map(str::to_owned).into());
        assert_eq!(told("/sync/delta"), DeltaQuery::PARAMETERS.map(str::to_owned).into());
        for path in ["/sync/groups", "/sync/schema"] {
            assert_eq!(told(path), BTreeSet::new());
        }
    }
}
