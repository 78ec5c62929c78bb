//! `headstart serve`: the service.

use tokio_util::sync::CancellationToken;

use crate::app::{self, Listeners};
use crate::cli::CliError;
use crate::config::{Config, Layers};
use crate::http::server;
use crate::telemetry::otlp::Exporter;

/// Serves until it is told to stop. Its traces go to `traces`.
pub async fn run(layers: &Layers, traces: Option<Exporter>, stop: CancellationToken) -> Result<(), CliError> {
    let config = Config::new(layers)?;
    let changed: Vec<&str> =
        layers.in_force().iter().filter(|entry| entry.is_changed()).map(|entry| entry.setting.path.as_str()).collect();
    tracing::info!(version = env!("CARGO_PKG_VERSION"), changed = changed.join(" "), "headstart starts");
    if let Err(error) = server::allow_many_connections() {
        tracing::warn!(%error, "the limit of open files stays as it is: connections share it");
    }
    let listeners = Listeners::bind(&config).await?;
    app::run(&config, listeners, traces, stop).await?;
    tracing::info!("headstart has ended in order");
    Ok(())
}
