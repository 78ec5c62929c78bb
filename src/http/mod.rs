//! The door: HTTP in, a stream of lines out.
//!
//! Floor 6. Everything that is HTTP and nothing that is not: who asks (`identity`), in which encoding and from which
//! byte on (`encoding`, `range`), how an answer becomes a body (`body`), what a caller learns when there is none
//! (`error`, the only place with status codes). What the answer *is* comes from the floor below, as an
//! [`Answer`](crate::serve::Answer).
//!
//! Rules of the room:
//! - Before the first byte an error is a problem document. After it, an error breaks the connection: a body that ends
//!   cleanly is whole.
//! - Nothing is buffered beyond one piece for a connection, or a MiB of slices of packs, which all share; whoever reads slowly slows down only itself, and whoever does
//!   not read is cut off.
//! - Nothing that a caller sent is trusted to be short, and nothing internal is told.
//! - Every request leaves exactly one line in the log.

pub mod admin;
pub mod admission;
pub mod batch;
pub mod body;
pub mod bootstrap;
pub mod cors;
pub mod delta;
pub mod encoding;
pub mod error;
#[cfg(test)]
mod fake;
pub mod guard;
pub mod identity;
pub mod lines;
pub mod openapi;
pub mod pace;
pub mod range;
pub mod request;
pub mod rests;
pub mod schema;
pub mod server;
#[cfg(test)]
mod tests;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::http::HeaderMap;
use axum::routing::{get, post};
use axum::{Router, middleware};
use serde::{Deserialize, Serialize};

use crate::auth::{Claims, Keys};
use crate::http::admission::{Admission, AdmissionSettings, Kind, Place};
use crate::http::cors::{Cors, OriginError};
use crate::http::encoding::Encoding;
use crate::http::error::HttpError;
use crate::http::pace::Pacing;
use crate::http::request::{RequestContext, Rules, accompany};
use crate::http::rests::Rests;
use crate::metrics::Metrics;
use crate::model::Caller;
use crate::serve::Service;

/// How clients are served.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HttpSettings {
    /// The address and port clients reach. Default: 127.0.0.1:8080, this machine only.
    pub listen: SocketAddr,
    /// Origins whose pages may call, as `scheme://host[:port]`, or `*` for any. Default: none, and then no page of
    /// another origin can.
    pub cors_origins: Vec<String>,
    /// Whether stored zstd frames are sent as they are to clients that take zstd. Default: true. Turn it off when a
    /// client stops after the first frame; every answer is then decoded, and gzipped, anew.
    pub zstd: bool,
    /// The longest path and query, in bytes; beyond it 414. Default: 16384. At most 60000.
    pub max_uri_bytes: usize,
    /// The most that the names and values of a request's headers may take, in bytes; beyond it 431. Default: 32768. At
    /// most 60000.
    pub max_header_bytes: usize,
    /// Bytes of decoded lines that answers in gzip and identity keep together until they are sent. Default: 64 MiB. Past it
    /// the oldest are decoded again when their turn comes.
    pub decoded_bytes: usize,
    /// How many connections are open at once. Default: 10000; more wait to be accepted. Each takes about 20 KiB, and
    /// while it is answered up to 256 KiB besides packs in the cache and pages of spools.
    pub max_connections: usize,
    /// How long a connection may take to send a request's head, or stay idle between two, in seconds. Default: 75,
    /// longer than load balancers keep theirs.
    pub idle_timeout_s: u64,
    /// How long a request may wait for its answer to begin, in seconds; then 503. Default: 120. What it waited for, a dump
    /// above all, goes on.
    pub begin_deadline_s: u64,
    /// How long a client may take for one piece of its answer, 64 KiB, in seconds; then it is cut off. Default: 60, which
    /// takes a client of 1.1 KiB a second.
    pub progress_deadline_s: u64,
    /// How long an answer may take from the request to its last byte, in seconds; then its connection breaks. Default:
    /// 3600. A replaced snapshot must be kept for longer, or slow clients would be cut off by it.
    pub answer_deadline_s: u64,
    /// How long answers may go on after the service was told to stop, in seconds; then their connections break.
    /// Default: 30.
    pub shutdown_grace_s: u64,
}

impl Default for HttpSettings {
    /// What `config/headstart.toml` says; a test holds the two together.
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 8080)),
            cors_origins: Vec::new(),
            zstd: true,
            max_uri_bytes: 16 << 10,
            max_header_bytes: 32 << 10,
            decoded_bytes: 64 << 20,
            max_connections: 10_000,
            idle_timeout_s: 75,
            begin_deadline_s: 120,
            progress_deadline_s: 60,
            answer_deadline_s: 3600,
            shutdown_grace_s: 30,
        }
    }
}

/// Settings that clients can't be served with.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum HttpSettingsError {
    /// An origin is none.
    #[error(transparent)]
    Origin(#[from] OriginError),
    /// A number is out of its range.
    #[error("http.{setting} = {value}: it must be from {min} to {max}")]
    OutOfRange {
        /// Which one.
        setting: &'static str,
        /// What it is.
        value: u64,
        /// The least.
        min: u64,
        /// The most.
        max: u64,
    },
}

impl HttpSettings {
    /// The pace of the connections of a service.
    pub fn pacing(&self, metrics: Metrics) -> Pacing {
        Pacing::new(Duration::from_secs(self.progress_deadline_s), metrics)
    }

    /// What holds for all requests, if the settings make sense.
    fn rules(&self, metrics: Metrics) -> Result<Rules, HttpSettingsError> {
        let bounded = [
            // hyper itself takes no URI beyond 65,534 bytes and answers without a body then.
            ("max_uri_bytes", self.max_uri_bytes as u64, 1024, 60_000),
            ("max_header_bytes", self.max_header_bytes as u64, 1024, 60_000),
            ("decoded_bytes", self.decoded_bytes as u64, 0, 1 << 36),
            ("max_connections", self.max_connections as u64, 1, 1_000_000),
            ("idle_timeout_s", self.idle_timeout_s, 1, 86_400),
            ("begin_deadline_s", self.begin_deadline_s, 1, 86_400),
            ("progress_deadline_s", self.progress_deadline_s, 1, 86_400),
            ("answer_deadline_s", self.answer_deadline_s, 1, 604_800),
            ("shutdown_grace_s", self.shutdown_grace_s, 0, 86_400),
        ];
        for (setting, value, min, max) in bounded {
            if !(min..=max).contains(&value) {
                return Err(HttpSettingsError::OutOfRange { setting, value, min, max });
            }
        }
        Ok(Rules {
            max_uri_bytes: self.max_uri_bytes,
            max_header_bytes: self.max_header_bytes,
            begin_deadline: Duration::from_secs(self.begin_deadline_s),
            cors: Cors::new(&self.cors_origins)?,
            metrics,
        })
    }
}

/// What the handlers share.
pub struct Http {
    service: Service,
    keys: Keys,
    settings: HttpSettings,
    rests: Rests,
    admission: Admission,
}

impl Http {
    /// Who asks, if there is a place for it. The first thing done for every request that is worked on; the place goes into
    /// the response.
    async fn admit(&self, kind: Kind, headers: &HeaderMap) -> Result<(Claims, Arc<Place>), HttpError> {
        let claims = identity::identify(headers, &self.keys).await?;
        let place = self.admission.admit(kind, &claims.org).map_err(HttpError::NoPlace)?;
        Ok((claims, Arc::new(place)))
    }

    /// Whom the claims speak for.
    async fn caller(&self, claims: &Claims, request: &RequestContext) -> Result<Caller, HttpError> {
        let caller = self.service.caller(claims).await?;
        request.identified(&caller);
        Ok(caller)
    }

    /// The best encoding the client takes.
    fn encoding(&self, headers: &HeaderMap) -> Result<Encoding, HttpError> {
        Encoding::negotiate(headers, self.settings.zstd).ok_or(HttpError::NotAcceptable)
    }

    /// How long an answer may take.
    fn answer_limit(&self) -> Duration {
        Duration::from_secs(self.settings.answer_deadline_s)
    }
}

/// The paths clients ask.
const ROUTES: [&str; 6] =
    ["/sync/bootstrap", "/sync/delta", "/sync/batch", "/sync/groups", "/sync/schema", "/openapi.json"];

/// Everything clients can ask.
///
/// # Errors
/// When a setting makes no sense.
pub fn router(
    service: Service,
    keys: Keys,
    metrics: Metrics,
    settings: &HttpSettings,
    admission: &AdmissionSettings,
) -> Result<Router, HttpSettingsError> {
    let rules = Arc::new(settings.rules(metrics.clone())?);
    let admission = Admission::new(admission.clone(), metrics);
    let [bootstrap, delta, batch, groups, schema, openapi] = ROUTES;
    let routes = Router::new()
        .route(bootstrap, get(bootstrap::bootstrap))
        .route(delta, get(delta::delta))
        .route(batch, post(batch::batch).fallback(async || HttpError::Method("POST")))
        .route(groups, get(schema::groups))
        .route(schema, get(schema::schema))
        .route(openapi, get(openapi::document))
        .with_state(Arc::new(Http {
            service,
            keys,
            settings: settings.clone(),
            rests: Rests::new(settings.decoded_bytes),
            admission,
        }));
    Ok(framed(routes, rules))
}

/// Routes with what every request gets, those that lead nowhere included.
fn framed(routes: Router, rules: Arc<Rules>) -> Router {
    routes
        .fallback(async || HttpError::NotFound)
        .method_not_allowed_fallback(async || HttpError::Method("GET, HEAD"))
        .layer(middleware::from_fn_with_state(rules, accompany))
}
