//! The operators' side: a router for a listener of its own, never the clients'.
//!
//! It asks for no token: who reaches its port may read it. It tells hosts and sessions.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use crate::metrics::{self, Metrics};
use crate::serve::{Health, PartHealth, Service};

/// Where operators reach the service.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AdminSettings {
    /// The address and port of the operators' listener. Default: 127.0.0.1:8081, this machine only. It asks for no
    /// token: never make it public.
    pub listen: SocketAddr,
}

impl Default for AdminSettings {
    fn default() -> Self {
        Self { listen: SocketAddr::from(([127, 0, 0, 1], 8081)) }
    }
}

/// What `/readyz` says.
#[derive(Serialize)]
struct Readiness {
    /// The worst of the parts.
    status: Health,
    parts: Vec<PartHealth>,
}

struct Admin {
    service: Service,
    metrics: Metrics,
    stop: CancellationToken,
}

/// `/livez`, `/readyz` and `/metrics`. Once `stop` is cancelled the service is not ready any more.
pub fn router(service: Service, metrics: Metrics, stop: CancellationToken) -> Router {
    Router::new()
        .route("/livez", get(async || "ok\n"))
        .route("/readyz", get(readyz))
        .route("/metrics", get(render))
        .with_state(Arc::new(Admin { service, metrics, stop }))
}

/// 200 while clients can be served, if only some of them; 503 otherwise.
async fn readyz(State(admin): State<Arc<Admin>>) -> Response {
    let parts = if admin.stop.is_cancelled() {
        let reason = Some("it was told to stop and takes no new clients".into());
        vec![PartHealth { part: "service", state: Health::Down, reason }]
    } else {
        admin.service.readiness().await
    };
    let status = parts.iter().map(|part| part.state).max().unwrap_or(Health::Ok);
    let code = if status == Health::Down { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::OK };
    (code, Json(Readiness { status, parts })).into_response()
}

/// All metrics, in the OpenMetrics text format.
async fn render(State(admin): State<Arc<Admin>>) -> Response {
    ([(CONTENT_TYPE, HeaderValue::from_static(metrics::CONTENT_TYPE))], admin.metrics.encode()).into_response()
}
