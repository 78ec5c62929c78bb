//! What a caller learns when there is no answer: the one place with status codes.
//!
//! Every error is `application/problem+json` (RFC 9457) with a stable `code` that programs may rely on, a `detail` for
//! people, the `field` at fault where there is one, and the `requestId` under which the log tells more. Causes stay in
//! the log: a caller never sees a database's words, a path or a name that is not in the request.

mod code;

use std::time::Duration;

use axum::http::header::{ALLOW, CACHE_CONTROL, CONTENT_RANGE, CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use crate::auth::TokenError;
use crate::chain::Chain;
use crate::http::admission::Scope;
pub use crate::http::error::code::Code;
use crate::http::error::code::serve_code;
use crate::model::QueryError;
use crate::serve::ServeError;
use crate::serve::batch::LoadError;
use crate::snapshot::FrameError;

/// The least a client is asked to wait before it tries again, in seconds; the most is three times that, drawn at
/// random, so that clients turned away together don't come back together.
const RETRY_AFTER_S: u64 = 2;

/// Why a request has no answer.
#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    /// The caller did not show who it is.
    #[error("the caller is not known")]
    Unauthenticated(#[source] Option<TokenError>),
    /// The issuer's keys can't be had, so it can't be told who the caller is.
    #[error("the issuer's key set can't be had")]
    NoKeySet,
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
    /// It was not sent from where operators are.
    #[error("a request of another site was refused")]
    CrossSite,
    /// As many pages follow the events as may.
    #[error("{0} pages follow the events already")]
    Watchers(usize),
    /// The service takes no one in any more.
    #[error("the service is stopping")]
    Stopping,
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
    /// There is no place for it.
    #[error("all places of the {0:?} are taken")]
    NoPlace(Scope),
    /// The answer could not be begun.
    #[error("the answer could not be begun")]
    Begin(#[source] FrameError),
    /// The answer had not begun when it should have been done.
    #[error("the answer had not begun after {0:?}")]
    Deadline(Duration),
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
            Self::NoKeySet => Code::IssuerUnavailable,
            Self::Query(_) => Code::InvalidQuery,
            Self::Body(_) => Code::InvalidBody,
            Self::TooLarge(_) => Code::RequestTooLarge,
            Self::MediaType => Code::UnsupportedMediaType,
            Self::Serve(error) => serve_code(error),
            Self::NotAcceptable => Code::NotAcceptable,
            Self::Range(_) => Code::RangeNotSatisfiable,
            Self::CrossSite => Code::CrossSite,
            Self::Watchers(_) => Code::Overloaded,
            Self::Stopping => Code::Stopping,
            Self::NotFound => Code::NotFound,
            Self::Method(_) => Code::MethodNotAllowed,
            Self::Uri(_) => Code::UriTooLong,
            Self::Headers(_) => Code::HeadersTooLarge,
            Self::Panic(_) | Self::Begin(_) => Code::Internal,
            Self::NoPlace(Scope::Org) => Code::TooManyRequests,
            Self::NoPlace(Scope::Process) | Self::Deadline(_) => Code::Overloaded,
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
            (StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS, _) => {
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
    use crate::dump::DumpError;
    use crate::model::{SyncGroup, SyncId};
    use crate::source::SourceError;
    use crate::store::StoreError;

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
        let (headers, told) = body(&HttpError::NoPlace(Scope::Org)).await;
        assert_eq!((told["status"].as_u64(), headers.contains_key(RETRY_AFTER)), (Some(429), true));
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
