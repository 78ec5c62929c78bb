//! Calls that are served and described by one declaration, so that the document is what the code does.
//!
//! A call is declared with its path, its codes and a handler that takes a query type and gives an answer type. The
//! parameters in the document are the fields of the one, the answer's schema is made of the other, and a handler that
//! fails with a code that was not declared is a fault of ours: in builds with debug assertions it panics.

use std::sync::Arc;

use axum::extract::State;
use axum::http::{Method, StatusCode, Uri};
use axum::response::IntoResponse;
use axum::routing::{MethodFilter, MethodRouter, on};
use axum::{Json, Router};
use bytes::Bytes;
use schemars::generate::{SchemaGenerator, SchemaSettings};
use schemars::{JsonSchema, Schema};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};

use crate::http::admin::Admin;
use crate::http::error::{Code, HttpError};
use crate::http::openapi;
use crate::model::QueryError;

/// What every call may be answered with.
const ALWAYS: [Code; 3] = [Code::CrossSite, Code::Overloaded, Code::Internal];

/// What the document says of a call besides its parameters and its answer.
#[derive(Clone, Copy)]
pub struct Call {
    /// `GET`, `POST` or `DELETE`.
    pub method: &'static str,
    /// The path.
    pub path: &'static str,
    /// Its name for programs.
    pub id: &'static str,
    /// What it is for.
    pub summary: &'static str,
    /// What the answer is.
    pub answer: &'static str,
    /// The status of the answer.
    pub status: StatusCode,
    /// What it may be answered with instead, besides what every call may be.
    pub codes: &'static [Code],
}

/// Declared calls.
pub struct Api {
    router: Router<Arc<Admin>>,
    paths: Map<String, Value>,
    schemas: SchemaGenerator,
}

impl Api {
    /// None yet.
    pub fn new() -> Self {
        Self { router: Router::new(), paths: Map::new(), schemas: openapi::generator() }
    }

    /// Adds a call that answers with JSON.
    pub fn call<Q, A, F>(
        mut self,
        call: Call,
        handler: impl Fn(Arc<Admin>, Q) -> F + Copy + Send + Sync + 'static,
    ) -> Self
    where
        Q: DeserializeOwned + JsonSchema + Send,
        A: Serialize + JsonSchema,
        F: Future<Output = Result<A, HttpError>> + Send,
    {
        let schema = self.schemas.subschema_for::<A>();
        let content = json!({"description": call.answer, "content": {"application/json": {"schema": schema}}});
        let served = async move |State(admin): State<Arc<Admin>>, uri: Uri| {
            let answer = match read::<Q>(&uri) {
                Ok(query) => handler(admin, query).await,
                Err(error) => Err(error),
            };
            match answer {
                Ok(answer) => (call.status, Json(answer)).into_response(),
                Err(error) => {
                    let code = error.code();
                    debug_assert!(call.declares(code), "{} is answered with {code:?}: declare it", call.path);
                    error.into_response()
                }
            }
        };
        self.add(call, parameters::<Q>(), content, on(filter(call.method), served))
    }

    /// Adds a GET that answers in a form of its own, without parameters.
    pub fn other(self, call: Call, content: Value, handler: MethodRouter<Arc<Admin>>) -> Self {
        self.add(call, Vec::new(), content, handler)
    }

    fn add(mut self, call: Call, parameters: Vec<Value>, content: Value, served: MethodRouter<Arc<Admin>>) -> Self {
        let codes: Vec<Code> = call.codes.iter().chain(&ALWAYS).copied().collect();
        let mut answers = Map::new();
        answers.insert(call.status.as_str().to_owned(), content);
        answers.insert(
            StatusCode::UNAUTHORIZED.as_str().to_owned(),
            json!({
                "description": "The token is missing or another one.",
                "content": {"text/plain": {"schema": {"type": "string"}}}
            }),
        );
        let operation = json!({
            "operationId": call.id,
            "summary": call.summary,
            "parameters": parameters,
            "responses": openapi::responses(Value::Object(answers), &codes)
        });
        self.paths.insert(call.path.to_owned(), json!({call.method.to_ascii_lowercase(): operation}));
        let allowed = if call.method == "GET" { "GET, HEAD" } else { call.method };
        self.router = self.router.route(call.path, served.fallback(async move || HttpError::Method(allowed)));
        self
    }

    /// The routes, and the document of all of them and of what stands in `more`.
    pub fn finish(mut self, more: &Value) -> (Router<Arc<Admin>>, Bytes) {
        self.paths.extend(more.as_object().cloned().unwrap_or_default());
        let mut schemas = self.schemas.take_definitions(true);
        schemas.insert("Problem".to_owned(), openapi::problem());
        let document = json!({
            "openapi": "3.1.0",
            "info": {
                "title": "Headstart, for operators",
                "version": env!("CARGO_PKG_VERSION"),
                "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
                "description": "What the dashboard is made of. Orgs are named in the query, because an id may be any text, \
                                `..` included. Requests of other sites are refused."
            },
            "security": [{}, {"token": []}, {"password": []}],
            "paths": self.paths,
            "components": {
                "securitySchemes": {
                    "token": {"type": "http", "scheme": "bearer", "description": "admin.token"},
                    "password": {"type": "http", "scheme": "basic", "description": "Any user, admin.token as the password."}
                },
                "schemas": schemas
            }
        });
        (self.router, serde_json::to_vec(&document).expect("plain data always serializes").into())
    }
}

impl Call {
    fn declares(&self, code: Code) -> bool {
        self.codes.contains(&code) || ALWAYS.contains(&code)
    }
}

fn filter(method: &str) -> MethodFilter {
    let method = method.parse::<Method>().expect("a method of HTTP");
    MethodFilter::try_from(method).expect("a method that routes know")
}

fn read<Q: DeserializeOwned>(uri: &Uri) -> Result<Q, HttpError> {
    axum::extract::Query::try_from_uri(uri).map(|query| query.0).map_err(|rejection| {
        let text = rejection.body_text();
        let fault = text.split_once(": ").map_or(text.as_str(), |(_, fault)| fault);
        HttpError::Query(QueryError::new("query", fault))
    })
}

/// The fields of a query type.
fn parameters<Q: JsonSchema>() -> Vec<Value> {
    let settings = SchemaSettings::draft2020_12().with(|settings| settings.inline_subschemas = true);
    let schema: Schema = settings.into_generator().into_root_schema_for::<Q>();
    let required: Vec<&Value> = schema.get("required").and_then(Value::as_array).into_iter().flatten().collect();
    let fields = schema.get("properties").and_then(Value::as_object).into_iter().flatten();
    fields
        .map(|(name, field)| {
            let mut field = field.clone();
            let description = field.as_object_mut().and_then(|field| field.remove("description"));
            present(&mut field);
            json!({
                "name": name,
                "in": "query",
                "required": required.iter().any(|required| *required == name),
                "description": description,
                "schema": field
            })
        })
        .collect()
}

/// A parameter that is there is never null.
fn present(schema: &mut Value) {
    if let Some(kinds) = schema.get_mut("type")
        && let Some([kind, _null]) = kinds.as_array().map(Vec::as_slice)
    {
        *kinds = kind.clone();
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::http::admin::operations;
    use crate::http::openapi::tests::references;

    #[test]
    fn the_document_is_whole() {
        let (_, document) = operations::routes();
        let document: Value = serde_json::from_slice(&document).unwrap();
        let mut found = BTreeSet::new();
        references(&document, &mut found);
        assert!(found.len() >= 8, "{found:?}");
        for reference in found {
            let pointer = reference.strip_prefix('#').expect("within the document");
            assert!(document.pointer(pointer).is_some(), "{reference}");
        }
        let orgs = &document["paths"]["/operations/orgs"]["get"]["parameters"];
        let limit = orgs.as_array().unwrap().iter().find(|parameter| parameter["name"] == "limit").unwrap();
        assert_eq!((&limit["schema"]["minimum"], &limit["schema"]["maximum"]), (&1.into(), &500.into()), "{limit:#}");
        assert_eq!(limit["required"], false);
        let named = &document["paths"]["/operations/frames"]["get"]["parameters"];
        let org = named.as_array().unwrap().iter().find(|parameter| parameter["name"] == "org").unwrap();
        assert_eq!((&org["required"], &org["schema"]["minLength"]), (&true.into(), &1.into()));
        for (path, operations) in document["paths"].as_object().unwrap() {
            for (method, operation) in operations.as_object().unwrap() {
                assert!(operation["summary"].is_string(), "{method} {path}");
            }
        }
    }
}
