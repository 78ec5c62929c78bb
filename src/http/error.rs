//! What a caller learns when there is no answer: the one place with status codes.
//!
//! Every error is `application/problem+json` (RFC 9457) with a stable `code` that programs may rely on, a `detail` for
//! people, the `field` at fault where there is one, and the `requestId` under which the log tells more. Causes stay in
//! the log: a caller never sees a database's words, a path or a name that is not in the request.

use std::time::Duration;

use axum::http::header::{ALLOW, CACHE_CONTROL, CONTENT_RANGE, CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use crate::auth::TokenError;
use crate::chain::Chain;
use crate::dump::DumpError;
use crate::model::QueryError;
use crate::serve::ServeError;
use crate::serve::batch::LoadError;
use crate::snapshot::FrameError;
use crate::source::SourceError;
use crate::store::StoreError;

/// The least a client is asked to wait before it tries again, in seconds; the most is three times that, drawn at
/// random, so that clients turned away together don't come back together.
const RETRY_AFTER_S: u64 = 2;

/// Why a request has no answer.
#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    /// The caller did not show who it is.
    #[error("the caller is not known")]
    Unauthenticated(#[source] Option<TokenError>),
    /// The query makes no sense.
    #[error(transparent)]
    Query(#[from] QueryError),
    /// The body makes no sense.
    #[error(transparent)]
    Body(QueryError),
    /// The body, or what it asks for, is too much at once.
    #[error(transparent)]
    TooLarge(QueryError),
    /// The body is of another media type, or encoded.
    #[error("the body is not plain JSON")]
    MediaType,
    /// The service has no answer.
    #[error(transparent)]
    Serve(#[from] ServeError),
    /// No content coding that is offered is accepted.
    #[error("no offered content coding is accepted")]
    NotAcceptable,
    /// The range lies behind the end of an answer of this many bytes.
    #[error("the range lies behind the end")]
    Range(u64),
    /// There is nothing at this path.
    #[error("there is nothing at this path")]
    NotFound,
    /// The path is asked with these methods only.
    #[error("the path is asked with {0}")]
    Method(&'static str),
    /// The path and query have more bytes than this limit.
    #[error("the path and query have more than {0} bytes")]
    Uri(usize),
    /// The headers have more bytes than this limit.
    #[error("the headers have more than {0} bytes")]
    Headers(usize),
    /// A handler panicked, by a bug: with these words.
    #[error("the handler panicked: {0}")]
    Panic(String),
    /// The answer could not be begun.
    #[error("the answer could not be begun")]
    Begin(#[source] FrameError),
    /// The answer had not begun when it should have been done.
    #[error("the answer had not begun after {0:?}")]
    Deadline(Duration),
}

/// The names of what can go wrong, for programs. They never change their meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Code {
    /// No token, or one that is not taken.
    Unauthenticated,
    /// A parameter makes no sense.
    InvalidQuery,
    /// There is no such model.
    UnknownModel,
    /// The model is loaded by batch only.
    ExplicitModel,
    /// A group was asked for that the caller does not hold.
    GroupNotHeld,
    /// The client was made for another schema.
    SchemaMismatch,
    /// `noCache` is turned off.
    NoCacheRefused,
    /// The client has to bootstrap: its cursor is of another epoch, too old, or catching up is dearer.
    ResyncRequired,
    /// The body is not what this call takes.
    InvalidBody,
    /// A batch asks by a field that is no key, or for a value that can't be one.
    InvalidKey,
    /// The body is too long, or asks for too much at once.
    RequestTooLarge,
    /// What is asked for is more than one answer may hold.
    AnswerTooLarge,
    /// The body is of another media type than this call takes.
    UnsupportedMediaType,
    /// No offered content coding is accepted.
    NotAcceptable,
    /// The range lies behind the end.
    RangeNotSatisfiable,
    /// Nothing is at this path.
    NotFound,
    /// The path is not asked with this method.
    MethodNotAllowed,
    /// Path and query are too long.
    UriTooLong,
    /// The headers are too long.
    HeadersTooLarge,
    /// The database is not yet where the request wants it.
    WatermarkHeld,
    /// The database does not answer, or not in time.
    DatabaseUnavailable,
    /// The database's tables don't fit the service's catalog.
    CatalogMismatch,
    /// The snapshot store does not answer.
    StoreUnavailable,
    /// More work waits than is allowed to.
    Overloaded,
    /// The service is stopping.
    Stopping,
    /// A fault of the service.
    Internal,
}

impl Code {
    /// All of them, for the API's description.
    pub const ALL: [Self; 26] = [
        Self::Unauthenticated,
        Self::InvalidQuery,
        Self::UnknownModel,
        Self::ExplicitModel,
        Self::GroupNotHeld,
        Self::SchemaMismatch,
        Self::NoCacheRefused,
        Self::ResyncRequired,
        Self::InvalidBody,
        Self::InvalidKey,
        Self::RequestTooLarge,
        Self::AnswerTooLarge,
        Self::UnsupportedMediaType,
        Self::NotAcceptable,
        Self::RangeNotSatisfiable,
        Self::NotFound,
        Self::MethodNotAllowed,
        Self::UriTooLong,
        Self::HeadersTooLarge,
        Self::WatermarkHeld,
        Self::DatabaseUnavailable,
        Self::CatalogMismatch,
        Self::StoreUnavailable,
        Self::Overloaded,
        Self::Stopping,
        Self::Internal,
    ];

    /// The status it is sent with.
    pub fn status(self) -> StatusCode {
        match self {
            Self::Unauthenticated => StatusCode::UNAUTHORIZED,
            Self::InvalidQuery => StatusCode::BAD_REQUEST,
            Self::UnknownModel | Self::ExplicitModel | Self::InvalidBody | Self::InvalidKey => {
                StatusCode::UNPROCESSABLE_ENTITY
            }
            Self::RequestTooLarge | Self::AnswerTooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::UnsupportedMediaType => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Self::GroupNotHeld | Self::NoCacheRefused => StatusCode::FORBIDDEN,
            Self::SchemaMismatch => StatusCode::CONFLICT,
            Self::ResyncRequired => StatusCode::GONE,
            Self::NotAcceptable => StatusCode::NOT_ACCEPTABLE,
            Self::RangeNotSatisfiable => StatusCode::RANGE_NOT_SATISFIABLE,
            Self::NotFound => StatusCode::NOT_FOUND,
            Self::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
            Self::UriTooLong => StatusCode::URI_TOO_LONG,
            Self::HeadersTooLarge => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            Self::WatermarkHeld
            | Self::DatabaseUnavailable
            | Self::CatalogMismatch
            | Self::StoreUnavailable
            | Self::Overloaded
            | Self::Stopping => StatusCode::SERVICE_UNAVAILABLE,
            Self::Internal => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }
}

/// The body of an error.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Problem<'a> {
    title: &'static str,
    status: u16,
    code: Code,
    detail: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    field: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    schema_hash: Option<&'a str>,
    request_id: &'a str,
}

impl HttpError {
    /// Its name for programs.
    pub fn code(&self) -> Code {
        match self {
            Self::Unauthenticated(_) => Code::Unauthenticated,
            Self::Query(_) => Code::InvalidQuery,
            Self::Body(_) => Code::InvalidBody,
            Self::TooLarge(_) => Code::RequestTooLarge,
            Self::MediaType => Code::UnsupportedMediaType,
            Self::Serve(error) => serve_code(error),
            Self::NotAcceptable => Code::NotAcceptable,
            Self::Range(_) => Code::RangeNotSatisfiable,
            Self::NotFound => Code::NotFound,
            Self::Method(_) => Code::MethodNotAllowed,
            Self::Uri(_) => Code::UriTooLong,
            Self::Headers(_) => Code::HeadersTooLarge,
            Self::Panic(_) | Self::Begin(_) => Code::Internal,
            Self::Deadline(_) => Code::Overloaded,
        }
    }

    /// The answer to a request, which is told its id; `request` is logged with the cause. Called once for each error.
    pub fn respond(&self, request_id: &str) -> Response {
        let code = self.code();
        let status = code.status();
        let detail = self.detail(code);
        if status.is_server_error() {
            tracing::warn!(request_id, ?code, error = %Chain(self), "a request has no answer");
        } else {
            tracing::debug!(request_id, ?code, error = %Chain(self), "a request was refused");
        }
        let problem = Problem {
            title: status.canonical_reason().unwrap_or("Error"),
            status: status.as_u16(),
            code,
            detail: &detail,
            field: self.field(code),
            schema_hash: match self {
                Self::Serve(ServeError::SchemaMismatch { server }) => Some(server),
                _ => None,
            },
            request_id,
        };
        let body = serde_json::to_vec(&problem).expect("texts and numbers always serialize");
        (status, self.headers(code), body).into_response()
    }

    fn headers(&self, code: Code) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        match (code.status(), self) {
            (StatusCode::SERVICE_UNAVAILABLE, _) => {
                headers.insert(RETRY_AFTER, HeaderValue::from(retry_after_s()));
            }
            (StatusCode::UNAUTHORIZED, _) => {
                headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
            }
            (_, Self::Method(allowed)) => {
                headers.insert(ALLOW, HeaderValue::from_static(allowed));
            }
            (_, Self::Range(len)) => {
                let value = HeaderValue::try_from(format!("bytes */{len}")).expect("digits can stand in a header");
                headers.insert(CONTENT_RANGE, value);
            }
            _ => {}
        }
        headers
    }

    /// What is wrong, for people. Says no more than the caller has said or may know.
    fn detail(&self, code: Code) -> String {
        match self {
            // These speak of the request only; the text of other errors may name a session, a table, a file.
            Self::Query(error) | Self::Body(error) | Self::TooLarge(error) => error.to_string(),
            Self::Serve(
                error @ (ServeError::UnknownModel(_)
                | ServeError::ExplicitModel(_)
                | ServeError::GroupNotHeld(_)
                | ServeError::SchemaMismatch { .. }
                | ServeError::NoCacheRefused
                | ServeError::Resync(_)
                | ServeError::Ahead { .. }
                | ServeError::NoSuchModel(_)
                | ServeError::NoSuchKey(_)
                | ServeError::TooMuch(_)
                | ServeError::Load(LoadError::Ahead { .. })),
            ) => error.to_string(),
            Self::Uri(_) | Self::Headers(_) | Self::Method(_) => self.to_string(),
            Self::Range(len) => format!("the answer has {len} bytes"),
            _ => code.meaning().into(),
        }
    }

    /// The parameter or header at fault.
    fn field(&self, code: Code) -> Option<&str> {
        match self {
            _ if code == Code::Unauthenticated => Some("authorization"),
            Self::Query(error)
            | Self::Body(error)
            | Self::TooLarge(error)
            | Self::Serve(ServeError::NoSuchModel(error) | ServeError::NoSuchKey(error) | ServeError::TooMuch(error)) => {
                Some(&error.field)
            }
            Self::MediaType => Some("content-type"),
            Self::Serve(ServeError::UnknownModel(_) | ServeError::ExplicitModel(_)) => Some("onlyModels"),
            Self::Serve(ServeError::GroupNotHeld(_)) => Some("syncGroups"),
            Self::Serve(ServeError::SchemaMismatch { .. }) => Some("schemaHash"),
            Self::Serve(ServeError::NoCacheRefused) => Some("noCache"),
            Self::Serve(ServeError::Resync(_)) => Some("lastSyncId"),
            Self::NotAcceptable => Some("accept-encoding"),
            Self::Range(_) => Some("range"),
            Self::Uri(_) => Some("query"),
            Self::Headers(_) => Some("headers"),
            _ => None,
        }
    }
}

impl Code {
    /// A sentence that fits every error of this code.
    fn meaning(self) -> &'static str {
        match self {
            Self::Unauthenticated => "a valid bearer token is needed",
            Self::NotAcceptable => "zstd, gzip and identity are offered; `accept-encoding` refuses them",
            Self::NotFound => "there is nothing at this path",
            Self::UnsupportedMediaType => "the body is `application/json`, without a content coding",
            Self::MethodNotAllowed => "this path is asked with another method",
            Self::WatermarkHeld => "an open transaction keeps the database from where the request wants it",
            Self::DatabaseUnavailable => "the database does not answer in time",
            Self::CatalogMismatch => "the database's tables do not fit the service's catalog",
            Self::StoreUnavailable => "the snapshot store does not answer in time",
            Self::Overloaded => "more work waits than is allowed to",
            Self::Stopping => "the service is stopping",
            _ => "the service failed; its log has the cause under this request id",
        }
    }
}

/// The fault of the service as a whole, by what failed underneath.
fn serve_code(error: &ServeError) -> Code {
    match error {
        ServeError::UnknownModel(_) => Code::UnknownModel,
        ServeError::ExplicitModel(_) => Code::ExplicitModel,
        ServeError::GroupNotHeld(_) => Code::GroupNotHeld,
        ServeError::SchemaMismatch { .. } => Code::SchemaMismatch,
        ServeError::NoCacheRefused => Code::NoCacheRefused,
        ServeError::Resync(_) => Code::ResyncRequired,
        ServeError::Ahead { .. } => Code::WatermarkHeld,
        ServeError::ForeignClaim { .. } => Code::Unauthenticated,
        ServeError::Source(error) => source_code(error),
        ServeError::Store(error) => store_code(error),
        ServeError::Dump(error) => dump_code(error),
        ServeError::NoSuchModel(_) => Code::UnknownModel,
        ServeError::NoSuchKey(_) => Code::InvalidKey,
        ServeError::TooMuch(_) => Code::AnswerTooLarge,
        ServeError::Load(error) => load_code(error),
    }
}

fn load_code(error: &LoadError) -> Code {
    match error {
        LoadError::Source(error) => source_code(error),
        LoadError::Ahead { .. } => Code::WatermarkHeld,
        LoadError::Overloaded | LoadError::Unsettled => Code::Overloaded,
        LoadError::TooLarge { .. } => Code::AnswerTooLarge,
        LoadError::Deadline => Code::DatabaseUnavailable,
        LoadError::Broken => Code::Internal,
    }
}

fn source_code(error: &SourceError) -> Code {
    match error {
        SourceError::Unavailable(_) | SourceError::Busy(_) => Code::DatabaseUnavailable,
        SourceError::Held { .. } => Code::WatermarkHeld,
        SourceError::Schema(_) => Code::CatalogMismatch,
        // The org is the token's.
        SourceError::Org(_) => Code::Unauthenticated,
        // Whoever asked for actions has made of it what it means; nobody else asks.
        SourceError::Trimmed { .. } | SourceError::Failed { .. } | SourceError::TooLarge(_) => Code::Internal,
    }
}

fn store_code(error: &StoreError) -> Code {
    match error {
        // What is missing was replaced while it was read: the next request finds what replaced it.
        StoreError::Unavailable(_) | StoreError::Full(_) | StoreError::Missing(_) => Code::StoreUnavailable,
        StoreError::NoRoom => Code::Overloaded,
        StoreError::Conflict | StoreError::Damaged { .. } => Code::Internal,
    }
}

fn dump_code(error: &DumpError) -> Code {
    match error {
        DumpError::Source(error) => source_code(error),
        DumpError::Spool(_) | DumpError::SpoolFull { .. } | DumpError::Overloaded => Code::Overloaded,
        // The tables keep changing, or the dump has gone elsewhere: the next request finds where things stand.
        DumpError::SchemaChanged | DumpError::Elsewhere => Code::Overloaded,
        DumpError::Stopping => Code::Stopping,
        DumpError::Frame(_) | DumpError::Broken => Code::Internal,
    }
}

fn retry_after_s() -> u64 {
    // Without randomness everyone waits the least.
    let random = getrandom::u64().unwrap_or_default();
    RETRY_AFTER_S + random % (2 * RETRY_AFTER_S + 1)
}

/// Travels with a response to where the request's id is known, and becomes its body there.
impl IntoResponse for HttpError {
    fn into_response(self) -> Response {
        let mut response = self.code().status().into_response();
        response.extensions_mut().insert(std::sync::Arc::new(self));
        response
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::Value;

    use super::*;
    use crate::model::{SyncGroup, SyncId};

    async fn body(error: &HttpError) -> (HeaderMap, Value) {
        let response = error.respond("r-1");
        assert_eq!(response.status(), error.code().status());
        let headers = response.headers().clone();
        let body = axum::body::to_bytes(response.into_body(), 1 << 16).await.unwrap();
        (headers, serde_json::from_slice(&body).unwrap())
    }

    #[tokio::test]
    async fn a_problem_names_code_field_and_request() {
        let held = HttpError::Serve(ServeError::GroupNotHeld(SyncGroup::of("team", "9")));
        let (headers, body) = body(&held).await;
        assert_eq!(headers[CONTENT_TYPE], "application/problem+json");
        let expected = serde_json::json!({
            "title": "Forbidden", "status": 403, "code": "GROUP_NOT_HELD", "field": "syncGroups",
            "detail": "the group `team:9` is not the caller's", "requestId": "r-1"
        });
        assert_eq!(body, expected);
    }

    #[tokio::test]
    async fn causes_stay_inside() {
        let secret = || std::io::Error::other("password=hunter2");
        let source = |error| HttpError::Serve(ServeError::from(error));
        let errors = [
            source(SourceError::unavailable(secret())),
            source(SourceError::Busy("hunter2".into())),
            source(SourceError::Held { holder: "hunter2".into() }),
            source(SourceError::Schema("hunter2".into())),
            source(SourceError::Org("hunter2".into())),
            source(SourceError::failed("hunter2", secret())),
            HttpError::Serve(StoreError::Unavailable(Arc::new(secret())).into()),
            HttpError::Serve(StoreError::Missing("hunter2".into()).into()),
            HttpError::Serve(StoreError::Damaged { what: "hunter2".into(), fault: "hunter2".into() }.into()),
            HttpError::Serve(DumpError::Spool(Arc::new(secret())).into()),
            HttpError::Panic("hunter2".into()),
            HttpError::Unauthenticated(Some(TokenError::Claim("hunter2".into()))),
        ];
        for error in &errors {
            assert!(Chain(error).to_string().contains("hunter2"), "the log has it: {error:?}");
            let (_, body) = body(error).await;
            assert!(!body.to_string().contains("hunter2"), "{body}");
        }
    }

    #[tokio::test]
    async fn each_status_brings_its_header() {
        for _ in 0..50 {
            let (headers, _) = body(&HttpError::Serve(DumpError::Overloaded.into())).await;
            let seconds: u64 = headers[RETRY_AFTER].to_str().unwrap().parse().unwrap();
            assert!((RETRY_AFTER_S..=3 * RETRY_AFTER_S).contains(&seconds));
        }
        assert_eq!(body(&HttpError::Unauthenticated(None)).await.0[WWW_AUTHENTICATE], "Bearer");
        assert_eq!(body(&HttpError::Range(42)).await.0[CONTENT_RANGE], "bytes */42");
        assert_eq!(body(&HttpError::Method("GET, HEAD")).await.0[ALLOW], "GET, HEAD");
        let mismatch = HttpError::Serve(ServeError::SchemaMismatch { server: "abc".into() });
        assert_eq!(body(&mismatch).await.1["schemaHash"], "abc");
        let ahead = HttpError::Serve(ServeError::Ahead { watermark: SyncId(4) });
        assert_eq!(body(&ahead).await.1["code"], "WATERMARK_HELD");
    }

    #[tokio::test]
    async fn every_refusal_of_a_caller_looks_the_same() {
        let errors = [
            HttpError::Unauthenticated(None),
            HttpError::Unauthenticated(Some(TokenError::Expired)),
            HttpError::Serve(ServeError::ForeignClaim { claim: "org" }),
            HttpError::Serve(SourceError::Org("x".into()).into()),
        ];
        let first = body(&errors[0]).await;
        for error in &errors {
            assert_eq!(body(error).await, first);
        }
    }
}
