//! `GET /sync/delta`: what happened after a client's cursor.

use std::sync::Arc;

use axum::Extension;
use axum::extract::State;
use axum::http::{HeaderMap, Uri};
use axum::response::Response;
use tokio::time::timeout_at;

use crate::http::Http;
use crate::http::bootstrap::{Delivery, pairs};
use crate::http::error::HttpError;
use crate::http::range::Conditions;
use crate::http::request::RequestContext;
use crate::model::DeltaQuery;

/// Answers with the sync actions after the cursor.
pub async fn delta(
    State(http): State<Arc<Http>>,
    Extension(request): Extension<Arc<RequestContext>>,
    uri: Uri,
    headers: HeaderMap,
) -> Result<Response, HttpError> {
    let caller = http.caller(&headers, &request).await?;
    let query = DeltaQuery::parse(pairs(&uri)?.iter().map(|(name, value)| (&**name, &**value)))?;
    let delivery = Delivery {
        encoding: http.encoding(&headers)?,
        conditions: Conditions::default(),
        tag: None,
        started: request.started(),
        limit: http.answer_limit(),
    };
    let begin = async {
        let answer = http.service.delta(&caller, &query).await?;
        request.answered_from(answer.facts.method, answer.facts.why);
        delivery.respond(answer).await
    };
    timeout_at(delivery.deadline(), begin).await.map_err(|_| HttpError::Deadline(delivery.limit))?
}
