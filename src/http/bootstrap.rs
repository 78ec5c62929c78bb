//! `GET /sync/bootstrap`: from a request to the head and the body of its answer.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use axum::Extension;
use axum::body::Body;
use axum::extract::State;
use axum::http::header::{ACCEPT_RANGES, CONTENT_LENGTH, CONTENT_RANGE, ETAG};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri};
use axum::response::Response;
use percent_encoding::percent_decode_str;
use tokio::time::Instant;

use crate::http::Http;
use crate::http::admission::Kind;
use crate::http::body::{ByteStream, Exact, Measured, Tail, follow, gzip, unmeasured, until};
use crate::http::encoding::Encoding;
use crate::http::error::HttpError;
use crate::http::lines::{self, Head, text};
use crate::http::pace::Pieces;
use crate::http::range::{Conditions, Etag, Portion};
use crate::http::request::{RequestContext, held};
use crate::http::rests::Rests;
use crate::model::{BootstrapQuery, Caller, QueryError};
use crate::serve::{Answer, Content, Facts};

const SNAPSHOT_ID: HeaderName = HeaderName::from_static("x-snapshot-id");

/// Answers with the caller's whole state, or the part of it that was asked for.
pub async fn bootstrap(
    State(http): State<Arc<Http>>,
    Extension(request): Extension<Arc<RequestContext>>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
) -> Result<Response, HttpError> {
    let (claims, place) = http.admit(Kind::Stream, &headers).await?;
    http.service.expect_room(&claims).await?;
    let caller = http.caller(&claims, &request).await?;
    let query = BootstrapQuery::parse(pairs(&uri)?.iter().map(|(name, value)| (&**name, &**value)))?;
    let encoding = http.encoding(&headers)?;
    // With sync actions in them answers would differ each time; gzip's bytes are not the same from one version of the
    // library to the next.
    let tag = (query.no_sync_packets && encoding != Encoding::Gzip).then(|| query.clone());
    let conditions = Conditions::read(&headers, method == Method::GET);
    let delivery = Delivery {
        encoding,
        conditions,
        tag,
        rests: http.rests.clone(),
        started: request.started(),
        limit: http.answer_limit(),
    };
    let answer = match resumed(&http, &caller, &query, &delivery).await {
        Some(answer) => answer,
        None => http.service.bootstrap(&caller, &query).await?,
    };
    request.answered_from(answer.facts.method, answer.facts.why);
    Ok(held(delivery.respond(answer).await?, place))
}

/// The answer that a broken download goes on with, from a snapshot that may have been replaced meanwhile. `None` when
/// that isn't what is asked, or it can't be had: then the current answer is sent from its beginning.
async fn resumed(http: &Http, caller: &Caller, query: &BootstrapQuery, delivery: &Delivery) -> Option<Answer> {
    let etag = delivery.conditions.resumes().filter(|_| delivery.tag.is_some() && !query.no_cache)?;
    // An error here is found again, and told, when the current answer is asked for.
    let answer = http.service.stored(caller, query, etag.snapshot()).await.ok().flatten()?;
    let new_enough = query.first_sync_id.is_none_or(|first| first <= answer.facts.last_sync_id);
    let same = new_enough && delivery.etag(&answer) == Some(etag);
    same.then_some(answer)
}

/// How an answer is to be sent.
pub(super) struct Delivery {
    /// What the client takes.
    pub encoding: Encoding,
    /// What it has already, or wants a part of.
    pub conditions: Conditions,
    /// What it asked for, if the answer can have an etag.
    pub tag: Option<BootstrapQuery>,
    /// Where decoded lines wait for a slow client.
    pub rests: Rests,
    /// When the request came.
    pub started: Instant,
    /// How long after that the answer breaks off.
    pub limit: Duration,
}

impl Delivery {
    /// When the answer breaks off.
    pub fn deadline(&self) -> Instant {
        self.started + self.limit
    }

    /// The etag of an answer, if it has one.
    fn etag(&self, answer: &Answer) -> Option<Etag> {
        let Content::Stored(stored) = &answer.content else { return None };
        let tail = answer.facts.trailer(stored.rows(), None);
        let measured = Measured::new(stored.clone(), tail, self.encoding).ok()?;
        self.tag(&answer.facts, &measured)
    }

    fn tag(&self, facts: &Facts, measured: &Measured) -> Option<Etag> {
        let (query, snapshot) = (self.tag.as_ref()?, facts.snapshot?);
        Some(Etag::new(snapshot.id, query, self.encoding, measured.trailer()))
    }

    /// The head and the body.
    pub async fn respond(&self, answer: Answer) -> Result<Response, HttpError> {
        let Answer { facts, content, actions } = answer;
        let tail = Tail::begin(facts, actions).await?;
        let mut response = Response::new(Body::empty());
        self.describe(tail.facts(), response.headers_mut());
        let stored = match content {
            Content::Stored(stored) => {
                let pieces = if self.encoding == Encoding::Zstd { Pieces::Slices } else { Pieces::MadeOfPacks };
                response.extensions_mut().insert(pieces);
                stored
            }
            Content::Live(parts) => {
                *response.body_mut() = self.stream(follow(parts, tail, self.encoding, self.rests.clone()));
                return Ok(response);
            }
            Content::Nothing => {
                let bytes = tail.bytes(Vec::new(), self.encoding);
                let bytes = if self.encoding == Encoding::Gzip { gzip(bytes) } else { bytes };
                *response.body_mut() = lines::body(self.bounded(bytes));
                return Ok(response);
            }
        };
        match tail.whole(stored.rows()) {
            Some(lines) if self.encoding != Encoding::Gzip => {
                let measured = Measured::new(stored, lines, self.encoding).map_err(HttpError::Begin)?;
                self.measured(measured, tail.facts(), &mut response)?;
            }
            _ => *response.body_mut() = self.stream(unmeasured(stored, tail, self.encoding, self.rests.clone())),
        }
        Ok(response)
    }

    /// The headers of every answer.
    fn describe(&self, facts: &Facts, headers: &mut HeaderMap) {
        let head = Head {
            method: facts.method,
            sync_id: facts.last_sync_id,
            schema_hash: &facts.schema.hash,
            encoding: self.encoding,
            started: self.started,
        };
        head.write(headers);
        if let Some(snapshot) = facts.snapshot {
            headers.insert(SNAPSHOT_ID, text(&snapshot.id.to_string()));
        }
    }

    /// An answer whose every byte has its place: with its length and, if it is tagged, conditions and ranges.
    fn measured(&self, measured: Measured, facts: &Facts, response: &mut Response) -> Result<(), HttpError> {
        let len = measured.total();
        let mut portion = Portion::Whole;
        if let Some(etag) = self.tag(facts, &measured) {
            portion = self.conditions.judge(&etag, len);
            response.headers_mut().insert(ETAG, text(&etag.to_string()));
            response.headers_mut().insert(ACCEPT_RANGES, HeaderValue::from_static("bytes"));
        }
        let range = match portion {
            Portion::Whole => 0..len,
            Portion::Part(range) => {
                *response.status_mut() = StatusCode::PARTIAL_CONTENT;
                let value = format!("bytes {}-{}/{len}", range.start, range.end - 1);
                response.headers_mut().insert(CONTENT_RANGE, text(&value));
                range
            }
            Portion::NotModified => {
                *response.status_mut() = StatusCode::NOT_MODIFIED;
                // The length of what is not sent: without it the body's own, zero, would be told.
                response.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from(len));
                return Ok(());
            }
            Portion::Unsatisfiable => return Err(HttpError::Range(len)),
        };
        let len = range.end - range.start;
        response.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from(len));
        *response.body_mut() = Body::new(Exact::new(self.bounded(measured.read(range, self.rests.clone())), len));
        Ok(())
    }

    fn stream(&self, bytes: ByteStream) -> Body {
        let bytes = if self.encoding == Encoding::Gzip { gzip(bytes) } else { bytes };
        Body::from_stream(self.bounded(bytes))
    }

    fn bounded(&self, bytes: ByteStream) -> ByteStream {
        until(self.deadline(), self.limit, bytes)
    }
}

/// Reads a query string as forms and `URLSearchParams` write it: names and values.
pub fn pairs(uri: &Uri) -> Result<Vec<(String, String)>, QueryError> {
    let decode = |text: &str| {
        let spaced = text.replace('+', " ");
        percent_decode_str(&spaced).decode_utf8().map(Cow::into_owned).ok()
    };
    let mut pairs = Vec::new();
    for pair in uri.query().unwrap_or_default().split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let field = decode(name).unwrap_or_else(|| name.to_owned());
        match decode(value) {
            Some(value) => pairs.push((field, value)),
            None => return Err(QueryError { field, fault: "is not UTF-8".into() }),
        }
    }
    Ok(pairs)
}
