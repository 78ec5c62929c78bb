//! Spans to a collector, as OTLP over HTTP with JSON (OpenTelemetry protocol 1.x, `POST /v1/traces`,
//! <https://opentelemetry.io/docs/specs/otlp/#otlphttp>).
//!
//! Written here because little of the protocol is needed: one kind of message, one request. The crates that speak all of it
//! would add ten to the tree and a thread of their own beside [`Tasks`](crate::task::Tasks).
//!
//! Nothing waits for the collector. Spans queue up to a bound and are lost past it; a batch that the collector does not take
//! is lost and not sent again. Both are counted, and told in the log at most once a minute.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use hyper::Request;
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue};
use hyper::{Method, StatusCode};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::auth::Secret;
use crate::chain::Chain;
use crate::metrics::Metrics;
use crate::outbound::{Endpoint, ExchangeError, UrlFault};
use crate::telemetry::spans::{Fact, Span, Spans};
use crate::trace::TraceId;

/// Spans that wait to be sent; more are lost. About a MiB.
const QUEUE: usize = 2048;

/// Spans of one message.
const BATCH: usize = 512;

/// How long the first span of a message waits for others.
const GATHER: Duration = Duration::from_secs(1);

/// How long the collector may take for a message.
const WITHIN: Duration = Duration::from_secs(3);

/// How long everything may take that is still to be sent when the service ends.
const FLUSH_WITHIN: Duration = Duration::from_secs(3);

/// What is read of an answer: it says how many spans were refused, if any.
const MAX_ANSWER: usize = 64 << 10;

/// How often the log tells that spans were lost.
const TELL: Duration = Duration::from_secs(60);

/// Settings `[otlp]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OtlpSettings {
    /// Where traces are sent, as `http://collector:4318/v1/traces`; empty: nowhere.
    #[serde(default)]
    pub url: String,
    /// The header `authorization` of what is sent.
    #[serde(default)]
    pub authorization: Option<Secret>,
    /// How many of a hundred traces that begin here are kept. Of those that a caller began, the caller decides.
    pub sample_percent: u8,
}

/// Why traces can't be sent.
#[derive(Debug, thiserror::Error)]
pub enum OtlpError {
    /// The URL can't be asked.
    #[error("`otlp.url` can't be used")]
    Url(#[from] UrlFault),
    /// No header can carry it.
    #[error("`otlp.authorization` holds something else than visible ASCII, which no header carries")]
    Authorization,
    /// Anyone on the way could read it.
    #[error("`otlp.authorization` would go over plain http, for all to read: use https")]
    Plain,
}

/// Why a message was not taken.
#[derive(Debug, thiserror::Error)]
enum SendError {
    #[error(transparent)]
    Exchange(#[from] ExchangeError),
    #[error("it answered {0}")]
    Status(StatusCode),
    #[error("it refused {0} spans")]
    Refused(u64),
    #[error("there was no answer within {WITHIN:?}")]
    Late,
}

/// Sends spans to a collector.
pub struct Exporter {
    endpoint: Endpoint,
    authorization: Option<HeaderValue>,
    queue: mpsc::Receiver<Span>,
    /// Spans that found the queue full.
    lost: Arc<AtomicU64>,
    resource: Value,
}

/// The beginning of the way and its end, if traces are to be sent.
///
/// # Errors
/// A setting that can't be used.
pub fn open(settings: &OtlpSettings) -> Result<Option<(Spans, Exporter)>, OtlpError> {
    if settings.url.is_empty() {
        return Ok(None);
    }
    let endpoint = Endpoint::new(&settings.url, None)?;
    let header = |secret: &Secret| HeaderValue::from_bytes(secret.expose()).map_err(|_| OtlpError::Authorization);
    let authorization = settings.authorization.as_ref().map(header).transpose()?;
    if authorization.is_some() && !endpoint.is_private() {
        return Err(OtlpError::Plain);
    }
    let (sender, queue) = mpsc::channel(QUEUE);
    let lost = Arc::new(AtomicU64::new(0));
    let spans = Spans::new(sender, lost.clone(), settings.sample_percent);
    let instance = TraceId::random().to_string();
    let resource = json!({ "attributes": [
        text("service.name", "headstart"),
        text("service.version", env!("CARGO_PKG_VERSION")),
        text("service.instance.id", &instance),
    ] });
    Ok(Some((spans, Exporter { endpoint, authorization, queue, lost, resource })))
}

impl Exporter {
    /// Sends spans until the service ends, and then those that are left.
    pub async fn run(mut self, metrics: Metrics, stop: CancellationToken) {
        let mut told: Option<Instant> = None;
        while let Some(Some(first)) = stop.run_until_cancelled(self.queue.recv()).await {
            // Not cancelled: what was gathered is sent.
            let spans = self.gather(first, &stop).await;
            self.pass_on(&spans, &metrics, &mut told).await;
        }
        let rest = async {
            let mut spans = Vec::new();
            while let Ok(span) = self.queue.try_recv() {
                spans.push(span);
                if spans.len() == BATCH {
                    self.pass_on(&std::mem::take(&mut spans), &metrics, &mut told).await;
                }
            }
            self.pass_on(&spans, &metrics, &mut told).await;
        };
        if timeout(FLUSH_WITHIN, rest).await.is_err() {
            tracing::warn!("the last spans of traces were not sent in time");
        }
    }

    /// The spans of one message: those that come within a while after the first.
    async fn gather(&mut self, first: Span, stop: &CancellationToken) -> Vec<Span> {
        let mut spans = vec![first];
        let gathered = async {
            while spans.len() < BATCH
                && let Some(span) = self.queue.recv().await
            {
                spans.push(span);
            }
        };
        tokio::select! {
            () = gathered => {}
            () = sleep(GATHER) => {}
            () = stop.cancelled() => {}
        }
        spans
    }

    /// Sends a message, and counts what became of its spans.
    async fn pass_on(&self, spans: &[Span], metrics: &Metrics, told: &mut Option<Instant>) {
        let overflown = self.lost.swap(0, Ordering::Relaxed);
        let sent = if spans.is_empty() { Ok(()) } else { self.send(spans).await };
        let refused = match &sent {
            Ok(()) => 0,
            Err(SendError::Refused(refused)) => *refused,
            Err(_) => spans.len() as u64,
        };
        metrics.spans_sent.inc_by((spans.len() as u64).saturating_sub(refused));
        let lost = overflown + refused;
        metrics.spans_lost.inc_by(lost);
        if lost > 0 && told.is_none_or(|at| at.elapsed() >= TELL) {
            *told = Some(Instant::now());
            let error = sent.as_ref().err().map(|error| Chain(error).to_string());
            let error = error.unwrap_or_else(|| "they came faster than they could be sent".into());
            tracing::warn!(lost, error, "spans of traces were lost");
        }
    }

    async fn send(&self, spans: &[Span]) -> Result<(), SendError> {
        let mut request = Request::new(message(&self.resource, spans).to_string());
        *request.method_mut() = Method::POST;
        request.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if let Some(authorization) = &self.authorization {
            request.headers_mut().insert(AUTHORIZATION, authorization.clone());
        }
        let exchanged = timeout(WITHIN, self.endpoint.exchange(request, MAX_ANSWER)).await;
        let (status, answer) = exchanged.map_err(|_| SendError::Late)??;
        if !status.is_success() {
            return Err(SendError::Status(status));
        }
        match refused(&answer) {
            0 => Ok(()),
            refused => Err(SendError::Refused(refused)),
        }
    }
}

/// How many spans an answer says were refused. Numbers of 64 bits may be written as strings.
fn refused(answer: &[u8]) -> u64 {
    let answer: Value = serde_json::from_slice(answer).unwrap_or_default();
    let refused = &answer["partialSuccess"]["rejectedSpans"];
    refused.as_u64().or_else(|| refused.as_str()?.parse().ok()).unwrap_or_default()
}

/// `ExportTraceServiceRequest`.
fn message(resource: &Value, spans: &[Span]) -> Value {
    let spans: Vec<Value> = spans.iter().map(span).collect();
    let scope = json!({ "name": "headstart", "version": env!("CARGO_PKG_VERSION") });
    json!({ "resourceSpans": [{ "resource": resource, "scopeSpans": [{ "scope": scope, "spans": spans }] }] })
}

fn span(span: &Span) -> Value {
    let attributes: Vec<Value> = span.facts.iter().map(|(name, fact)| attribute(name, fact)).collect();
    // SPAN_KIND_SERVER and SPAN_KIND_INTERNAL; STATUS_CODE_ERROR where the service is at fault.
    let failed = span.facts.iter().any(|(name, fact)| match (*name, fact) {
        ("http.response.status_code", Fact::Number(status)) => *status >= 500,
        ("outcome", Fact::Text(outcome)) => outcome == "broken",
        _ => false,
    });
    let mut value = json!({
        "traceId": span.trace.to_string(),
        "spanId": span.id.to_string(),
        "name": span.name,
        "kind": if span.serves { 2 } else { 1 },
        "startTimeUnixNano": nanos(span.began),
        "endTimeUnixNano": nanos(span.ended),
        "attributes": attributes,
        "status": if failed { json!({ "code": 2 }) } else { json!({}) },
    });
    if let Some(parent) = span.parent {
        value["parentSpanId"] = parent.to_string().into();
    }
    value
}

/// Numbers of 64 bits are strings in this JSON.
fn nanos(time: SystemTime) -> String {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos().to_string()
}

fn attribute(name: &str, fact: &Fact) -> Value {
    match fact {
        Fact::Text(value) => text(name, value),
        Fact::Number(value) => json!({ "key": name, "value": { "intValue": value.to_string() } }),
        Fact::Truth(value) => json!({ "key": name, "value": { "boolValue": value } }),
    }
}

fn text(name: &str, value: &str) -> Value {
    json!({ "key": name, "value": { "stringValue": value } })
}
