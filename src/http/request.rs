//! What happens to every request of clients, whatever it asks: it gets an id and limits, its errors get a body, and it
//! leaves one line in the log once its last byte is handed over, or its connection broke.

use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::{Body, Bytes, HttpBody};
use axum::extract::{Request, State};
use axum::http::header::{CONTENT_LENGTH, ORIGIN, VARY};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use futures_util::FutureExt;
use http_body::{Frame, SizeHint};
use tokio::time::{Instant, timeout};
use tracing::field::Empty;
use tracing::{Instrument, Span};

use crate::chain::Chain;
use crate::http::ROUTES;
use crate::http::admission::Place;
use crate::http::cors::Cors;
use crate::http::error::HttpError;
use crate::http::pace::{Pace, PacedBody, Pieces};
use crate::metrics::Metrics;
use crate::model::{Caller, SnapshotId};
use crate::task::panic_text;
use crate::trace::{TraceId, TraceParent, root_span};
use crate::wire::trailer;

/// Names a request in answers and logs.
pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// The longest request id that is taken from a caller.
const MAX_REQUEST_ID: usize = 64;
/// Carries a trace on from one service to the next.
const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

/// How a body ended that was given whole.
const COMPLETE: &str = "complete";

/// What is known of a request while it is worked on. Handlers fill in what the log line should tell.
#[derive(Debug)]
pub struct RequestContext {
    id: HeaderValue,
    parent: Option<TraceParent>,
    started: Instant,
    caller: OnceLock<Caller>,
    source: OnceLock<(trailer::Method, &'static str)>,
}

impl RequestContext {
    /// With the caller's own id, if it is one that can't confuse a log, or a new one.
    fn new(headers: &HeaderMap) -> Self {
        let sent = headers.get(REQUEST_ID).filter(|id| {
            let plain = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
            (1..=MAX_REQUEST_ID).contains(&id.len()) && id.as_bytes().iter().all(plain)
        });
        let drawn = || HeaderValue::try_from(SnapshotId::random().to_string()).expect("hex can stand in a header");
        Self {
            id: sent.cloned().unwrap_or_else(drawn),
            parent: headers.get(TRACEPARENT).and_then(|parent| TraceParent::parse(parent.to_str().ok()?)),
            started: Instant::now(),
            caller: OnceLock::new(),
            source: OnceLock::new(),
        }
    }

    /// The request's id.
    pub fn id(&self) -> &str {
        self.id.to_str().unwrap_or_default()
    }

    /// The span of the request, to its last byte, and the trace it is part of, if there is one: the caller's, or one that
    /// begins here.
    fn span(&self, method: &Method, route: &'static str) -> (Span, Option<TraceId>) {
        // Drawn only where somebody wants the span.
        let mut trace = self.parent.map(|parent| parent.trace);
        let span = root_span!(
            "request",
            trace_id = trace.get_or_insert_with(TraceId::random).0,
            parent_id = self.parent.map(|parent| parent.span.0),
            sampled = self.parent.map(|parent| parent.sampled),
            http.request.method = standard(method),
            http.route = route,
            request_id = self.id(),
            http.response.status_code = Empty,
            org = Empty,
            method = Empty,
            why = Empty,
            bytes = Empty,
            outcome = Empty,
        );
        (span, trace)
    }

    /// When the head of the request had been read.
    pub fn started(&self) -> Instant {
        self.started
    }

    /// Notes who asks.
    pub fn identified(&self, caller: &Caller) {
        let _ = self.caller.set(caller.clone());
    }

    /// Notes where the rows come from and, in one fixed word, why from there.
    pub fn answered_from(&self, source: trailer::Method, why: &'static str) {
        let _ = self.source.set((source, why));
    }
}

/// A response that keeps its request's place until its last byte.
pub fn held(mut response: Response, place: Arc<Place>) -> Response {
    response.extensions_mut().insert(place);
    response
}

/// The rules that hold for all requests.
#[derive(Debug)]
pub struct Rules {
    /// The longest path and query, in bytes.
    pub max_uri_bytes: usize,
    /// The most that names and values of all headers may take, in bytes.
    pub max_header_bytes: usize,
    /// How long an answer may take to begin.
    pub begin_deadline: Duration,
    /// Who may ask from another origin.
    pub cors: Option<Cors>,
    /// Where requests are counted.
    pub metrics: Metrics,
}

impl Rules {
    fn check(&self, request: &Request) -> Result<(), HttpError> {
        let uri = request.uri().path_and_query().map_or(0, |uri| uri.as_str().len());
        if uri > self.max_uri_bytes {
            return Err(HttpError::Uri(self.max_uri_bytes));
        }
        let headers: usize = request.headers().iter().map(|(name, value)| name.as_str().len() + value.len()).sum();
        if headers > self.max_header_bytes {
            return Err(HttpError::Headers(self.max_header_bytes));
        }
        Ok(())
    }
}

/// Goes with a request from its head to its last byte.
pub async fn accompany(State(rules): State<Arc<Rules>>, mut request: Request, next: Next) -> Response {
    let context = Arc::new(RequestContext::new(request.headers()));
    let method = request.method().clone();
    let route = route(request.uri().path());
    let (span, trace) = context.span(&method, route);
    let origin = request.headers().get(ORIGIN).cloned();
    // There is none where a test calls the router without a connection.
    let pace = request.extensions().get::<Arc<Pace>>().cloned();

    let preflight = rules.cors.as_ref().and_then(|cors| cors.preflight(&method, request.headers()));
    let mut response = match (preflight, rules.check(&request)) {
        (Some(response), _) => response,
        (None, Err(error)) => error.into_response(),
        (None, Ok(())) => {
            request.extensions_mut().insert(context.clone());
            let handled = timeout(rules.begin_deadline, AssertUnwindSafe(next.run(request)).catch_unwind());
            let handled = handled.instrument(span.clone()).await;
            match handled {
                Ok(Ok(response)) => response,
                Ok(Err(panic)) => HttpError::Panic(panic_text(&*panic).to_owned()).into_response(),
                Err(_) => HttpError::Deadline(rules.begin_deadline).into_response(),
            }
        }
    };
    if let Some(error) = response.extensions_mut().remove::<Arc<HttpError>>() {
        response = error.respond(context.id());
    }

    let headers = response.headers_mut();
    headers.insert(REQUEST_ID, context.id.clone());
    headers.append(VARY, HeaderValue::from_static("Authorization, Accept-Encoding"));
    if let Some(cors) = &rules.cors {
        cors.expose(origin.as_ref(), headers);
    }
    let status = response.status();
    rules.metrics.request(route, status.as_u16());
    if let Some((source, why)) = context.source.get().filter(|_| !is_error(status)) {
        rules.metrics.answer(source.as_str(), why);
    }
    if method == Method::HEAD {
        response = without_body(response);
    }
    let pieces = response.extensions_mut().remove::<Pieces>().unwrap_or_default();
    let place = response.extensions_mut().remove::<Arc<Place>>();
    let (bytes, first_byte, end) = (0, None, None);
    let line = LogLine { context, span, trace, method, route, status, bytes, first_byte, end, pace: pace.clone() };
    response.map(|body| {
        let body = match pace {
            Some(pace) => Body::new(PacedBody::new(body, pieces, pace)),
            None => body,
        };
        Body::new(Observed { body, line, metrics: rules.metrics.clone(), _place: place })
    })
}

/// A verb as logs and spans name it: never a caller's own word.
fn standard(method: &Method) -> &'static str {
    let known = [Method::GET, Method::HEAD, Method::POST, Method::PUT, Method::DELETE, Method::OPTIONS, Method::PATCH];
    let words = ["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH"];
    known.iter().zip(words).find(|(known, _)| *known == method).map_or("_OTHER", |(_, word)| word)
}

fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

fn is_error(status: StatusCode) -> bool {
    status.is_client_error() || status.is_server_error()
}

/// A path as metrics name it: never a caller's own word.
fn route(path: &str) -> &'static str {
    ROUTES.into_iter().find(|route| *route == path).unwrap_or("other")
}

/// The same head, the length included, and no body.
fn without_body(response: Response) -> Response {
    let (mut head, body) = response.into_parts();
    if let Some(len) = body.size_hint().exact() {
        head.headers.entry(CONTENT_LENGTH).or_insert_with(|| HeaderValue::from(len));
    }
    Response::from_parts(head, Body::empty())
}

/// A body that is counted, and logged when it ends or is dropped.
struct Observed {
    body: Body,
    line: LogLine,
    metrics: Metrics,
    _place: Option<Arc<Place>>,
}

impl Observed {
    fn count(&mut self, len: u64) {
        if self.line.bytes == 0 && len > 0 {
            let elapsed = self.line.context.started.elapsed();
            self.line.first_byte = Some(elapsed);
            self.metrics.first_byte(self.line.route, elapsed);
        }
        self.line.bytes += len;
        self.metrics.sent_bytes.inc_by(len);
    }
}

impl HttpBody for Observed {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let observed = &mut *self;
        let item = observed.line.span.in_scope(|| Pin::new(&mut observed.body).poll_frame(cx));
        let item = ready!(item);
        match &item {
            None => self.line.end = Some(Ok(())),
            Some(Ok(frame)) => self.count(frame.data_ref().map_or(0, |data| data.len() as u64)),
            Some(Err(error)) => self.line.end = Some(Err(Chain(error).to_string())),
        }
        Poll::Ready(item)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for Observed {
    fn drop(&mut self) {
        // A body of known length is not asked again once all of it was given.
        if self.line.end.is_none() && self.body.is_end_stream() {
            self.line.end = Some(Ok(()));
        }
        let outcome = self.line.write();
        self.metrics.ended(self.line.route, outcome);
        if outcome == COMPLETE && !is_error(self.line.status) {
            self.metrics.last_byte(self.line.route, self.line.context.started.elapsed());
        }
    }
}

/// The one line a request leaves, and what its span is told at its end. Of what was sent, only what was verified stands in
/// it, and what has few forms: a query names groups, and a path that leads nowhere may hold anything.
struct LogLine {
    context: Arc<RequestContext>,
    span: Span,
    trace: Option<TraceId>,
    method: Method,
    route: &'static str,
    status: StatusCode,
    bytes: u64,
    first_byte: Option<Duration>,
    /// How the body ended; `None` when its connection went away first.
    end: Option<Result<(), String>>,
    pace: Option<Arc<Pace>>,
}

impl LogLine {
    /// Gives the word for how it ended.
    fn write(&self) -> &'static str {
        let (caller, source) = (self.context.caller.get(), self.context.source.get());
        let cut = self.pace.as_ref().and_then(|pace| pace.verdict()).map(|cut| cut.to_string());
        let (outcome, error) = match &self.end {
            Some(Ok(())) => (COMPLETE, None),
            Some(Err(error)) => ("broken", Some(error.as_str())),
            None => match &cut {
                Some(cut) => ("cut", Some(cut.as_str())),
                None => ("abandoned", None),
            },
        };
        let (org, status) = (caller.map(|caller| caller.org.as_str()), self.status.as_u16());
        let (method, why) = source.map(|(method, why)| (method.as_str(), *why)).unzip();
        tracing::info!(
            request_id = self.context.id(),
            trace_id = self.trace.map(tracing::field::display),
            verb = standard(&self.method),
            route = self.route,
            status,
            org,
            user = caller.map(|caller| caller.user.as_str()),
            method,
            why,
            bytes = self.bytes,
            outcome,
            error,
            first_byte_ms = self.first_byte.map(milliseconds),
            duration_ms = milliseconds(self.context.started.elapsed()),
            "request"
        );
        let span = &self.span;
        span.record("http.response.status_code", status).record("bytes", self.bytes).record("outcome", outcome);
        span.record("org", org).record("method", method).record("why", why);
        outcome
    }
}
