//! Spans as they come from [`trace`]: put together while they are open, queued when they have ended.
//!
//! A span belongs to a trace when it says so itself, by the fields of [`trace`], or when its parent does. All others are
//! passed over: so what is not sampled costs nothing below its first span.

use std::fmt::Debug;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use tokio::sync::mpsc;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Metadata, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;
use tracing_subscriber::registry::LookupSpan;

use crate::trace::{self, SpanId, TraceId};

/// A span that has ended. Memory: some 500 bytes.
#[derive(Clone, Debug)]
pub struct Span {
    /// The trace it is part of.
    pub trace: TraceId,
    /// Itself.
    pub id: SpanId,
    /// Whose work it is part of.
    pub parent: Option<SpanId>,
    /// Whether it is the service's side of a request.
    pub serves: bool,
    /// What was done.
    pub name: &'static str,
    /// When it began.
    pub began: SystemTime,
    /// When it ended.
    pub ended: SystemTime,
    /// What is known of it.
    pub facts: Vec<(&'static str, Fact)>,
}

/// The value of a field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fact {
    /// Text.
    Text(String),
    /// A number.
    Number(i64),
    /// Whether.
    Truth(bool),
}

/// Puts spans together and queues them. Past the queue's bound they are counted as lost; nobody waits.
pub struct Spans {
    queue: mpsc::Sender<Span>,
    lost: Arc<AtomicU64>,
    /// How many of a thousand traces that begin here are kept.
    kept: u64,
}

impl Spans {
    /// Into this queue. `percent` of the traces that begin here are kept.
    pub fn new(queue: mpsc::Sender<Span>, lost: Arc<AtomicU64>, percent: u8) -> Self {
        Self { queue, lost, kept: u64::from(percent) * 10 }
    }

    /// Whether a trace that begins here is kept: its random id decides, so that every span of it meets the same answer.
    fn keeps(&self, trace: TraceId) -> bool {
        u64::try_from(trace.0 % 1000).is_ok_and(|drawn| drawn < self.kept)
    }
}

/// Whether something is a span of a trace.
pub fn is_span(metadata: &Metadata<'_>) -> bool {
    metadata.is_span() && metadata.target() == trace::TARGET
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Spans {
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let Some(span) = context.span(id) else { return };
        let mut fields = Fields::default();
        attributes.record(&mut fields);
        let place = match fields.trace {
            Some(trace) if fields.sampled.unwrap_or_else(|| self.keeps(trace)) => Some((trace, fields.parent)),
            Some(_) => None,
            None => span.parent().and_then(|parent| {
                let extensions = parent.extensions();
                extensions.get::<Span>().map(|parent| (parent.trace, Some(parent.id)))
            }),
        };
        let Some((trace, parent)) = place else { return };
        let now = SystemTime::now();
        let serves = fields.trace.is_some() && span.name() == "request";
        let (id, name) = (SpanId::random(), span.name());
        let open = Span { trace, id, parent, serves, name, began: now, ended: now, facts: fields.facts };
        span.extensions_mut().insert(open);
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, context: Context<'_, S>) {
        let Some(span) = context.span(id) else { return };
        let mut extensions = span.extensions_mut();
        let Some(open) = extensions.get_mut::<Span>() else { return };
        let mut fields = Fields::default();
        values.record(&mut fields);
        open.facts.append(&mut fields.facts);
    }

    fn on_close(&self, id: Id, context: Context<'_, S>) {
        let Some(mut span) = context.span(&id).and_then(|span| span.extensions_mut().remove::<Span>()) else { return };
        span.ended = SystemTime::now();
        if self.queue.try_send(span).is_err() {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// The fields of a span, those that say where it belongs apart.
#[derive(Default)]
struct Fields {
    trace: Option<TraceId>,
    parent: Option<SpanId>,
    sampled: Option<bool>,
    facts: Vec<(&'static str, Fact)>,
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.facts.push((field.name(), Fact::Text(format!("{value:?}"))));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.facts.push((field.name(), Fact::Text(value.to_owned())));
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.facts.push((field.name(), Fact::Number(value)));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        match field.name() {
            trace::PARENT_ID => self.parent = Some(SpanId(value)),
            name => self.facts.push((name, Fact::Number(i64::try_from(value).unwrap_or(i64::MAX)))),
        }
    }

    fn record_u128(&mut self, field: &Field, value: u128) {
        match field.name() {
            trace::TRACE_ID => self.trace = Some(TraceId(value)),
            name => self.facts.push((name, Fact::Text(value.to_string()))),
        }
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        match field.name() {
            trace::SAMPLED => self.sampled = Some(value),
            name => self.facts.push((name, Fact::Truth(value))),
        }
    }
}
