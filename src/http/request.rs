//! What happens to every request of clients, whatever it asks: it gets an id and limits, its errors get a body, and it
//! leaves one line in the log once its last byte is handed over, or its connection broke.

use std::any::Any;
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

use crate::chain::Chain;
use crate::http::ROUTES;
use crate::http::admission::Place;
use crate::http::cors::Cors;
use crate::http::error::HttpError;
use crate::http::pace::{Pace, PacedBody};
use crate::metrics::Metrics;
use crate::model::{Caller, SnapshotId};
use crate::wire::trailer;

/// Names a request in answers and logs.
pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// The longest request id that is taken from a caller.
const MAX_REQUEST_ID: usize = 64;
/// How much of a path is logged, in characters; those that lead somewhere are shorter.
const MAX_LOGGED_PATH: usize = 200;

/// How a body ended that was given whole.
const COMPLETE: &str = "complete";

/// What is known of a request while it is worked on. Handlers fill in what the log line should tell.
#[derive(Debug)]
pub struct RequestContext {
    id: HeaderValue,
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
            started: Instant::now(),
            caller: OnceLock::new(),
            source: OnceLock::new(),
        }
    }

    /// The request's id.
    pub fn id(&self) -> &str {
        self.id.to_str().unwrap_or_default()
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

/// Marks a response whose body keeps packs in memory while its client takes it.
#[derive(Clone, Copy, Debug)]
pub struct PinsPacks;

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
    let path: String = request.uri().path().chars().take(MAX_LOGGED_PATH).collect();
    let origin = request.headers().get(ORIGIN).cloned();
    // There is none where a test calls the router without a connection.
    let pace = request.extensions().get::<Arc<Pace>>().cloned();

    let preflight = rules.cors.as_ref().and_then(|cors| cors.preflight(&method, request.headers()));
    let mut response = match (preflight, rules.check(&request)) {
        (Some(response), _) => response,
        (None, Err(error)) => error.into_response(),
        (None, Ok(())) => {
            request.extensions_mut().insert(context.clone());
            let handled = timeout(rules.begin_deadline, AssertUnwindSafe(next.run(request)).catch_unwind()).await;
            match handled {
                Ok(Ok(response)) => response,
                Ok(Err(panic)) => HttpError::Panic(panic_text(&*panic)).into_response(),
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
    let (status, route) = (response.status(), route(&path));
    rules.metrics.request(route, status.as_u16());
    if let Some((source, why)) = context.source.get().filter(|_| !is_error(status)) {
        rules.metrics.answer(source.as_str(), why);
    }
    if method == Method::HEAD {
        response = without_body(response);
    }
    let pins = response.extensions_mut().remove::<PinsPacks>().is_some();
    let place = response.extensions_mut().remove::<Arc<Place>>();
    let line = LogLine { context, method, path, status, bytes: 0, end: None, pace: pace.clone() };
    response.map(|body| {
        let body = match pace {
            Some(pace) => {
                pace.begin_answer(pins);
                Body::new(PacedBody::new(body, pace))
            }
            None => body,
        };
        Body::new(Observed { body, line, route, metrics: rules.metrics.clone(), _place: place })
    })
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

fn panic_text(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message").to_owned()
}

/// A body that is counted, and logged when it ends or is dropped.
struct Observed {
    body: Body,
    line: LogLine,
    route: &'static str,
    metrics: Metrics,
    _place: Option<Arc<Place>>,
}

impl Observed {
    fn count(&mut self, len: u64) {
        if self.line.bytes == 0 && len > 0 {
            self.metrics.first_byte(self.route, self.line.context.started.elapsed());
        }
        self.line.bytes += len;
        self.metrics.sent_bytes.inc_by(len);
    }
}

impl HttpBody for Observed {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let item = ready!(Pin::new(&mut self.body).poll_frame(cx));
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
        self.metrics.ended(self.route, outcome);
        if outcome == COMPLETE && !is_error(self.line.status) {
            self.metrics.last_byte(self.route, self.line.context.started.elapsed());
        }
    }
}

/// The one line a request leaves. The query stays out of it: it names groups.
struct LogLine {
    context: Arc<RequestContext>,
    method: Method,
    path: String,
    status: StatusCode,
    bytes: u64,
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
        tracing::info!(
            request_id = self.context.id(),
            method = %self.method,
            path = %self.path,
            status = self.status.as_u16(),
            org = caller.map(|caller| caller.org.as_str()),
            user = caller.map(|caller| caller.user.as_str()),
            source = source.map(|(source, _)| source.as_str()),
            why = source.map(|(_, why)| *why),
            bytes = self.bytes,
            outcome,
            error,
            duration_ms = u64::try_from(self.context.started.elapsed().as_millis()).unwrap_or(u64::MAX),
            "request"
        );
        outcome
    }
}
