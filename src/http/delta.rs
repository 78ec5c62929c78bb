//! `GET /sync/delta`: what happened after a client's cursor.

use std::sync::Arc;

use axum::Extension;
use axum::extract::State;
use axum::http::{HeaderMap, Uri};
use axum::response::Response;

use crate::http::Http;
use crate::http::admission::Kind;
use crate::http::bootstrap::{Delivery, pairs};
use crate::http::error::HttpError;
use crate::http::range::Conditions;
use crate::http::request::{RequestContext, held};
use crate::model::DeltaQuery;

/// Answers with the sync actions after the cursor.
pub async fn delta(
    State(http): State<Arc<Http>>,
    Extension(request): Extension<Arc<RequestContext>>,
    uri: Uri,
    headers: HeaderMap,
) -> Result<Response, HttpError> {
    let (claims, place) = http.admit(Kind::Delta, &headers).await?;
    let query = DeltaQuery::parse(pairs(&uri)?.iter().map(|(name, value)| (&**name, &**value)))?;
    let delivery = Delivery {
        encoding: http.encoding(&headers)?,
        conditions: Conditions::default(),
        tag: None,
        rests: http.rests.clone(),
        started: request.started(),
        limit: http.answer_limit(),
    };
    let (caller, reached) = tokio::join!(http.caller(&claims, &request), http.service.reach(&query));
    let answer = http.service.delta(&caller?, &query, reached).await?;
    request.answered_from(answer.facts.method, answer.facts.why);
    Ok(held(delivery.respond(answer).await?, place))
}
