//! What happens to every request of operators: it gets an id and a deadline, and its errors get a body.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::Request;
use axum::http::header::CACHE_CONTROL;
use axum::http::{HeaderValue, Method};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use futures_util::FutureExt;
use tokio::time::timeout;

use crate::http::error::HttpError;
use crate::http::request::REQUEST_ID;
use crate::model::SnapshotId;
use crate::task::panic_text;

/// How long an answer may take to begin.
const BEGIN_WITHIN: Duration = Duration::from_secs(30);

/// Goes with a request to the head of its answer. What changes something is logged.
pub async fn attend(request: Request, next: Next) -> Response {
    let id = SnapshotId::random().to_string();
    let changes = ![Method::GET, Method::HEAD].contains(request.method());
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let mut response = match timeout(BEGIN_WITHIN, AssertUnwindSafe(next.run(request)).catch_unwind()).await {
        Ok(Ok(response)) => response,
        Ok(Err(panic)) => HttpError::Panic(panic_text(&*panic).to_owned()).into_response(),
        Err(_) => HttpError::Deadline(BEGIN_WITHIN).into_response(),
    };
    if let Some(error) = response.extensions_mut().remove::<Arc<HttpError>>() {
        response = error.respond(&id);
    }
    if changes {
        tracing::info!(request_id = id, %method, path, status = response.status().as_u16(), "an operator's request");
    }
    let headers = response.headers_mut();
    headers.insert(REQUEST_ID, HeaderValue::try_from(id).expect("hex can stand in a header"));
    headers.entry(CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    response
}
