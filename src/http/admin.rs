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
use prometheus_client::registry::Registry;
use serde::{Deserialize, Serialize};

use crate::serve::{Health, Service};

/// Where operators reach the service.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AdminSettings {
    /// The address and port of the operators' listener. Default: 127.0.0.1:8081, this machine only. It asks for no
    /// token: never make it public.
    pub listen: SocketAddr,
}

impl Default for AdminSettings {
    /// What `config/headstart.toml` says; a test holds the two together.
    fn default() -> Self {
        Self { listen: SocketAddr::from(([127, 0, 0, 1], 8081)) }
    }
}

/// What `/readyz` says.
#[derive(Serialize)]
struct Readiness {
    /// The worst of the parts.
    status: &'static str,
    parts: Vec<Part>,
}

/// One part the service leans on.
#[derive(Serialize)]
struct Part {
    name: &'static str,
    status: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
}

struct Admin {
    service: Service,
    metrics: Arc<Registry>,
}

/// `/livez`, `/readyz` and `/metrics`.
pub fn router(service: Service, metrics: Arc<Registry>) -> Router {
    Router::new()
        .route("/livez", get(async || "ok\n"))
        .route("/readyz", get(readyz))
        .route("/metrics", get(render))
        .with_state(Arc::new(Admin { service, metrics }))
}

/// 200 while clients can be served, if only some of them; 503 otherwise.
async fn readyz(State(admin): State<Arc<Admin>>) -> Response {
    let parts = admin.service.readiness().await;
    let any = |health| parts.iter().any(|(_, state, _)| *state == health);
    let (code, status) = if any(Health::Down) {
        (StatusCode::SERVICE_UNAVAILABLE, word(Health::Down))
    } else {
        (StatusCode::OK, word(if any(Health::Degraded) { Health::Degraded } else { Health::Ok }))
    };
    let parts = parts.into_iter().map(|(name, health, reason)| Part { name, status: word(health), reason }).collect();
    (code, Json(Readiness { status, parts })).into_response()
}

fn word(health: Health) -> &'static str {
    match health {
        Health::Ok => "ok",
        Health::Degraded => "degraded",
        Health::Down => "down",
    }
}

/// All metrics, in the OpenMetrics text format.
async fn render(State(admin): State<Arc<Admin>>) -> Response {
    let mut text = String::new();
    match prometheus_client::encoding::text::encode(&mut text, &admin.metrics) {
        Ok(()) => {
            let format = HeaderValue::from_static("application/openmetrics-text; version=1.0.0; charset=utf-8");
            ([(CONTENT_TYPE, format)], text).into_response()
        }
        Err(error) => {
            tracing::error!(%error, "a metric can't be written as text");
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
    }
}
