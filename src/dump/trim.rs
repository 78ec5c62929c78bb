//! Keeps the change log from growing without end.
//!
//! The log is kept for a configured time: clients that stay away for longer have to bootstrap. It is never trimmed below
//! what a kept snapshot needs, because the actions after a snapshot are part of its answers; so the background job makes
//! anew what would hold the trimming up. Only snapshots of the present schema count: one of another version's is made
//! anew by that version, should it still be asked for.

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::time::{MissedTickBehavior, interval};

use crate::chain::Chain;
use crate::dump::runner::RoundError;
use crate::metrics::Metrics;
use crate::model::SyncId;
use crate::source::Source;
use crate::store::SnapshotStore;
use crate::task::Tasks;

/// Settings `[trim]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrimSettings {
    /// Seconds for which actions are kept; 0: for ever.
    pub keep_s: u64,
    /// Seconds between two rounds.
    pub interval_s: u64,
    /// Actions that one statement removes at most.
    pub batch: u64,
}

impl Default for TrimSettings {
    /// What `config/headstart.toml` says; a test holds the two together.
    fn default() -> Self {
        Self { keep_s: 14 * 24 * 3600, interval_s: 60, batch: 5000 }
    }
}

impl TrimSettings {
    /// The age from which a snapshot without later actions is made anew, so that it does not hold the trimming up.
    pub fn renew_after(&self) -> Option<Duration> {
        (self.keep_s > 0).then(|| Duration::from_secs(self.keep_s / 2))
    }
}

/// Trims the log.
pub struct Trimmer {
    source: Arc<dyn Source>,
    store: Arc<dyn SnapshotStore>,
    settings: TrimSettings,
    metrics: Metrics,
}

impl Trimmer {
    /// Over the log of a source and the snapshots of a store.
    pub fn new(
        source: Arc<dyn Source>,
        store: Arc<dyn SnapshotStore>,
        settings: TrimSettings,
        metrics: Metrics,
    ) -> Self {
        Self { source, store, settings, metrics }
    }

    /// Starts trimming as a task that ends with the service. Several instances may do it at once.
    pub fn start(self, tasks: &Tasks) {
        let token = tasks.token().clone();
        tasks.spawn("trim", async move {
            token.run_until_cancelled(self.run()).await;
        });
    }

    async fn run(&self) {
        let mut rounds = interval(Duration::from_secs(self.settings.interval_s.max(1)));
        rounds.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            rounds.tick().await;
            let round = self.round().await;
            self.metrics.round("trim", round.is_ok());
            if let Err(error) = round {
                tracing::warn!(error = %Chain(&error), "the change log could not be trimmed");
            }
        }
    }

    /// Removes all that may go, a batch a statement, and looks how long the log is then. Gives how many actions went.
    ///
    /// # Errors
    /// When the database or the store did not answer, or the role may not trim; what went is gone all the same.
    pub async fn round(&self) -> Result<u64, RoundError> {
        let trimmed = self.trim().await;
        // Also when it could not be trimmed: it grows then.
        let size = self.source.log_size().await?;
        self.metrics.log_actions.set(signed(size.actions));
        self.metrics.log_bytes.set(signed(size.bytes));
        trimmed
    }

    async fn trim(&self) -> Result<u64, RoundError> {
        if self.settings.keep_s == 0 {
            return Ok(self.source.trim(SyncId::ZERO, Duration::ZERO, 0).await?);
        }
        let schema = self.source.schema().await?;
        let watermark = self.source.watermark().await?;
        let kept = self.store.heads().await?.into_iter().filter(|(slot, _)| slot.schema == schema.hash);
        let oldest = kept.filter_map(|(_, head)| head.current).map(|current| current.facts);
        let oldest = oldest.filter(|facts| facts.epoch == watermark.epoch).map(|facts| facts.sync_id).min();
        let up_to = oldest.map_or(watermark.sync_id, |oldest| oldest.min(watermark.sync_id));
        let age = Duration::from_secs(self.settings.keep_s);
        let mut all = 0;
        loop {
            let trimmed = self.source.trim(up_to, age, self.settings.batch).await?;
            all += trimmed;
            self.metrics.trimmed_actions.inc_by(trimmed);
            if trimmed < self.settings.batch {
                break;
            }
        }
        if all > 0 {
            tracing::info!(actions = all, "the change log was trimmed");
        }
        Ok(all)
    }
}

/// As gauges count.
fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}
