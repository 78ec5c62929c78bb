//! The log: structured events to standard error, for people or for machines; and traces, to a collector. Floor 7; everyone
//! else only emits events and [spans](crate::trace).

pub mod otlp;
pub mod spans;

use std::io::IsTerminal;

use serde::{Deserialize, Serialize};
use tracing_subscriber::filter::{FilterExt, LevelFilter, ParseError, filter_fn};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::{SubscriberInitExt, TryInitError};
use tracing_subscriber::{EnvFilter, Layer};

use crate::telemetry::otlp::{Exporter, OtlpError, OtlpSettings};

/// `[log]`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LogSettings {
    /// How an event is written.
    pub format: Format,
    /// Which events are, in the notation of `EnvFilter`.
    pub filter: String,
}

/// How an event is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// A line for people; with colours on a terminal.
    Human,
    /// A JSON object a line.
    Json,
}

/// Why there is no log.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// The filter is not in the right notation.
    #[error("`log.filter` takes levels like info or info,headstart::dump=debug")]
    Filter(#[from] ParseError),
    /// A bare word that is no level. `EnvFilter` would take it for a module's name and log nothing else.
    #[error("`log.filter`: `{0}` is no level (error, warn, info, debug, trace, off); for a module write {0}=debug")]
    Level(String),
    /// Traces can't be sent.
    #[error(transparent)]
    Otlp(#[from] OtlpError),
    /// This process has a subscriber already.
    #[error("the log is set up already")]
    Twice(#[from] TryInitError),
}

/// Whether a filter can be used.
///
/// # Errors
/// What is wrong with it.
pub fn check_filter(filter: &str) -> Result<(), TelemetryError> {
    parse(filter).map(drop)
}

fn parse(filter: &str) -> Result<EnvFilter, TelemetryError> {
    let is_bare = |word: &&str| !word.contains(['=', '[', ':']);
    match filter.split(',').map(str::trim).filter(is_bare).find(|word| word.parse::<LevelFilter>().is_err()) {
        Some(word) => Err(TelemetryError::Level(word.to_owned())),
        None => Ok(EnvFilter::builder().parse(filter)?),
    }
}

/// Sends the events of this process to standard error, and its spans to whoever exports them, if that is wanted. Once a
/// process.
///
/// # Errors
/// Settings that can't be used, or a second call.
pub fn init(log: &LogSettings, traces: Option<&OtlpSettings>) -> Result<Option<Exporter>, TelemetryError> {
    // Spans of traces are no part of the log, whatever its filter.
    let logged = parse(&log.filter)?.and(filter_fn(|metadata| !spans::is_span(metadata)));
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    let lines = match log.format {
        Format::Human => lines.with_ansi(std::io::stderr().is_terminal()).boxed(),
        Format::Json => lines.json().flatten_event(true).boxed(),
    };
    let subscriber = tracing_subscriber::registry().with(lines.with_filter(logged));
    // An empty layer would want every span.
    let Some((spans, exporter)) = traces.map(otlp::open).transpose()?.flatten() else {
        subscriber.try_init()?;
        return Ok(None);
    };
    subscriber.with(spans.with_filter(filter_fn(spans::is_span))).try_init()?;
    Ok(Some(exporter))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_are_checked() {
        for good in ["info", "warn,headstart::dump=debug", "headstart[span{field=1}]=trace", "off"] {
            assert!(check_filter(good).is_ok(), "{good}");
        }
        for bad in ["headstart=loud", "inof", "info,headstart", "[["] {
            assert!(check_filter(bad).is_err(), "{bad}");
        }
    }
}
