//! The operators' side: a router for a listener of its own, never the clients'.
//!
//! It tells hosts and sessions. Who reaches its port may see all of it, unless it has a token; then whether the service
//! lives and is ready is all that is told without one, so that probes need no secret. Without a token it is only ever
//! reached from its own machine: see [`AdminSettings::check`].
//!
//! `operations` is the API (declared by `api`), `page` the dashboard over it, `feed` the events it follows. All of these
//! are asked from here only: see `origin`.

mod api;
mod feed;
mod operations;
mod origin;
mod page;
mod request;
mod traffic;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router, middleware};
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use crate::auth::Secret;
use crate::http::admin::feed::Feed;
use crate::http::admin::origin::from_here;
use crate::http::admin::request::attend;
use crate::http::guard::{Guard, guarded};
use crate::metrics::{self, Metrics};
use crate::serve::{Health, PartHealth, Service};
use crate::task::Tasks;

/// Where operators reach the service.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AdminSettings {
    /// The address and port of the operators' listener. Default: 127.0.0.1:8081, this machine only. Any other address
    /// needs a token.
    pub listen: SocketAddr,
    /// What operators have to show. Default: none, and then nothing.
    pub token: Option<Secret>,
}

/// The shortest token, in bytes: 128 bits as hex.
const MIN_TOKEN: usize = 32;

/// Why operators are not served like that.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum AdminError {
    /// Others could see everything.
    #[error(
        "admin.listen = {0} is reached from other machines, and anyone there would be an operator: set admin.token, or listen on 127.0.0.1"
    )]
    Open(SocketAddr),
    /// It could be guessed.
    #[error("admin.token has {0} bytes: at least {MIN_TOKEN} are needed, `openssl rand -hex 32` makes them")]
    ShortToken(usize),
    /// It could not be sent.
    #[error("admin.token holds something else than visible ASCII, which no header carries")]
    Token,
}

impl AdminSettings {
    /// Whether operators can be served like that without letting others in.
    ///
    /// # Errors
    /// [`AdminError`]
    pub fn check(&self) -> Result<(), AdminError> {
        match self.token.as_ref().map(Secret::expose) {
            None if !self.listen.ip().is_loopback() => Err(AdminError::Open(self.listen)),
            Some(token) if token.len() < MIN_TOKEN => Err(AdminError::ShortToken(token.len())),
            Some(token) if !token.iter().all(u8::is_ascii_graphic) => Err(AdminError::Token),
            _ => Ok(()),
        }
    }
}

impl Default for AdminSettings {
    fn default() -> Self {
        Self { listen: SocketAddr::from(([127, 0, 0, 1], 8081)), token: None }
    }
}

/// What `/readyz` says.
#[derive(Serialize)]
struct Readiness {
    /// The worst of the parts.
    status: Health,
    /// Operators only.
    #[serde(skip_serializing_if = "Option::is_none")]
    parts: Option<Vec<PartHealth>>,
}

struct Admin {
    service: Service,
    metrics: Metrics,
    opened: Arc<AtomicBool>,
    stop: CancellationToken,
    guard: Guard,
    feed: Feed,
}

/// `/livez` and `/readyz` for everyone; for operators `/metrics`, the operations API and the dashboard. Until `opened` says
/// that clients are let in the service is not ready, and once `stop` is cancelled not any more; then pages are not
/// followed by events either. What they are told is made by a task of `tasks`.
pub fn router(
    service: Service,
    metrics: Metrics,
    opened: Arc<AtomicBool>,
    stop: CancellationToken,
    settings: &AdminSettings,
    tasks: &Tasks,
) -> Router {
    let guard = Guard::new(settings.token.as_ref());
    let feed = Feed::start(service.clone(), &metrics, stop.clone(), tasks);
    let (operations, document) = operations::routes();
    let document = async move || ([(CONTENT_TYPE, HeaderValue::from_static("application/json"))], document);
    let for_operators = operations
        .route("/openapi.json", get(document))
        .merge(page::routes())
        .route_layer(middleware::from_fn_with_state(guard.clone(), from_here))
        .route_layer(middleware::from_fn_with_state(guard.clone(), guarded))
        .route_layer(middleware::from_fn(attend));
    Router::new()
        .route("/livez", get(async || "ok\n"))
        .route("/readyz", get(readyz))
        .merge(for_operators)
        .with_state(Arc::new(Admin { service, metrics, opened, stop, guard, feed }))
}

/// 200 while clients can be served, if only some of them; 503 otherwise.
async fn readyz(State(admin): State<Arc<Admin>>, headers: HeaderMap) -> Response {
    let down = |reason: &str| PartHealth { part: "service", state: Health::Down, reason: Some(reason.into()) };
    let worst = |parts: &[PartHealth]| parts.iter().map(|part| part.state).max().unwrap_or(Health::Ok);
    let opened = admin.opened.load(Ordering::Acquire);
    let parts = if admin.stop.is_cancelled() {
        vec![down("it was told to stop and takes no new clients")]
    } else {
        let mut parts = admin.service.readiness().await;
        // While another part is down, that is why.
        if !opened && worst(&parts) != Health::Down {
            parts.push(down("it begins, and lets no clients in yet"));
        }
        parts
    };
    let status = worst(&parts);
    let code = if status == Health::Down { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::OK };
    let parts = admin.guard.admits(&headers).then_some(parts);
    (code, Json(Readiness { status, parts })).into_response()
}

/// All metrics, in the OpenMetrics text format.
async fn render(State(admin): State<Arc<Admin>>) -> Response {
    ([(CONTENT_TYPE, HeaderValue::from_static(metrics::CONTENT_TYPE))], admin.metrics.encode()).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_good_token_opens_it_to_other_machines() {
        let verdict = |listen: &str, token: Option<&str>| {
            AdminSettings { listen: listen.parse().unwrap(), token: token.map(Secret::new) }.check()
        };
        let good = "0123456789abcdef0123456789abcdef";
        for own in ["127.0.0.1:8081", "127.7.7.7:0", "[::1]:8081"] {
            assert_eq!(verdict(own, None), Ok(()));
            assert_eq!(verdict(own, Some(good)), Ok(()));
        }
        for other in ["0.0.0.0:8081", "[::]:8081", "10.0.0.7:8081", "192.0.2.7:8081", "[2001:db8::7]:8081"] {
            assert_eq!(verdict(other, None), Err(AdminError::Open(other.parse().unwrap())));
            assert_eq!(verdict(other, Some(good)), Ok(()));
        }
        assert_eq!(verdict("127.0.0.1:1", Some(&good[1..])), Err(AdminError::ShortToken(31)));
        assert_eq!(verdict("127.0.0.1:1", Some(&good.replace('0', " "))), Err(AdminError::Token));
    }
}
