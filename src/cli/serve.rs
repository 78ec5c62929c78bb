//! `headstart serve`: the service.

use tokio_util::sync::CancellationToken;

use crate::app::{self, Listeners};
use crate::cli::CliError;
use crate::config::{Config, Layers};

/// Serves until it is told to stop.
pub async fn run(layers: &Layers, stop: CancellationToken) -> Result<(), CliError> {
    let config = Config::new(layers)?;
    let changed: Vec<&str> =
        layers.in_force().iter().filter(|entry| entry.is_changed()).map(|entry| entry.setting.path.as_str()).collect();
    tracing::info!(version = env!("CARGO_PKG_VERSION"), changed = changed.join(" "), "headstart starts");
    let listeners = Listeners::bind(&config).await?;
    app::run(&config, listeners, stop).await?;
    tracing::info!("headstart has ended in order");
    Ok(())
}
