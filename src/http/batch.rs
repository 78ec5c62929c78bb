//! `POST /sync/batch`: rows by id or by key, from a body to the answer.

use std::sync::Arc;
use std::time::Duration;

use axum::Extension;
use axum::body::Body;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::http::header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE};
use axum::response::Response;
use futures_util::StreamExt;
use tokio::time::{Instant, timeout_at};

use crate::http::Http;
use crate::http::admission::Kind;
use crate::http::body::until;
use crate::http::error::HttpError;
use crate::http::lines::{self, Head, encode};
use crate::http::request::{RequestContext, held};
use crate::model::batch::place;
use crate::model::{BatchQuery, QueryError};
use crate::serve::batch::answer::BatchSettings;
use crate::wire::trailer::Method;

/// Answers with the rows asked for that the caller sees.
pub async fn batch(
    State(http): State<Arc<Http>>,
    Extension(request): Extension<Arc<RequestContext>>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, HttpError> {
    let (claims, place) = http.admit(Kind::Batch, &headers).await?;
    let encoding = http.encoding(&headers)?;
    let settings = http.service.batches();
    let query = read(&headers, body, settings, request.started()).await?;
    let answer = http.service.batch(&claims, &query).await?;
    request.identified(&answer.caller);
    request.answered_from(Method::Postgres, "batch");

    let mut response = Response::new(Body::empty());
    let head = Head {
        method: Method::Postgres,
        sync_id: answer.last_sync_id,
        schema_hash: &answer.schema.hash,
        encoding,
        started: request.started(),
    };
    head.write(response.headers_mut());
    let limit = http.answer_limit();
    let bytes = until(request.started() + limit, limit, encode(answer.pieces(), encoding));
    *response.body_mut() = lines::body(bytes);
    Ok(held(response, place))
}

/// Reads the body and holds it against the bounds.
async fn read(
    headers: &HeaderMap,
    body: Body,
    settings: &BatchSettings,
    started: Instant,
) -> Result<BatchQuery, HttpError> {
    if !is_plain_json(headers) {
        return Err(HttpError::MediaType);
    }
    let limit = Duration::from_millis(settings.deadline_ms);
    let received = timeout_at(started + limit, receive(headers, body, settings.max_body_bytes)).await;
    let body =
        received.map_err(|_| HttpError::Body(QueryError::new("body", format!("did not come within {limit:?}"))))??;
    let query = BatchQuery::parse(&body).map_err(HttpError::Body)?;
    let too_large = |field: &str, fault| Err(HttpError::TooLarge(QueryError::new(field, fault)));
    if query.requests.len() > settings.max_requests {
        return too_large("requests", format!("has more than {} requests", settings.max_requests));
    }
    for (index, request) in query.requests.iter().enumerate() {
        let (field, value) = request.value();
        if value.len() > settings.max_key_bytes {
            return too_large(&place(index, field), format!("has more than {} bytes", settings.max_key_bytes));
        }
    }
    Ok(query)
}

fn is_plain_json(headers: &HeaderMap) -> bool {
    let named = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let media_type = named.split(';').next().unwrap_or_default().trim();
    media_type.eq_ignore_ascii_case("application/json") && !headers.contains_key(CONTENT_ENCODING)
}

/// Takes no more of the body than may be there.
async fn receive(headers: &HeaderMap, body: Body, most: usize) -> Result<Vec<u8>, HttpError> {
    let too_large = || HttpError::TooLarge(QueryError::new("body", format!("has more than {most} bytes")));
    let announced = headers.get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    if announced.is_some_and(|len| len > most as u64) {
        return Err(too_large());
    }
    let mut received = Vec::new();
    let mut pieces = body.into_data_stream();
    while let Some(piece) = pieces.next().await {
        let piece = piece.map_err(|_| HttpError::Body(QueryError::new("body", "did not come whole")))?;
        if received.len() + piece.len() > most {
            return Err(too_large());
        }
        received.extend_from_slice(&piece);
    }
    Ok(received)
}
