//! The comparison on a schedule: a few orgs each round, chosen by chance, so that every org is looked at in time without
//! a scan of all of them at once.

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::time::{MissedTickBehavior, interval};

use super::{Outcome, Verifier, VerifyError};
use crate::chain::Chain;
use crate::metrics::Metrics;
use crate::model::Org;
use crate::source::{Source, SourceError};
use crate::store::SnapshotStore;
use crate::task::Tasks;

/// Differences that the log names for an org.
const NAMED: usize = 5;

/// Settings `[verify]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VerifySettings {
    /// Seconds between two rounds; 0: none.
    pub every_s: u64,
    /// Orgs that a round compares.
    pub sample: u64,
}

impl Default for VerifySettings {
    /// What `config/headstart.toml` says; a test holds the two together.
    fn default() -> Self {
        Self { every_s: 0, sample: 1 }
    }
}

/// Compares on a schedule.
pub struct Rounds {
    source: Arc<dyn Source>,
    verifier: Verifier,
    settings: VerifySettings,
    metrics: Metrics,
}

impl Rounds {
    /// Over a source and the snapshots made from it.
    pub fn new(
        source: Arc<dyn Source>,
        store: Arc<dyn SnapshotStore>,
        settings: VerifySettings,
        metrics: Metrics,
    ) -> Self {
        let verifier = Verifier::new(source.clone(), store, metrics.clone());
        Self { source, verifier, settings, metrics }
    }

    /// Starts the rounds as a task that ends with the service, if the settings want any. The first one begins after one
    /// pause: a start has enough to do.
    pub fn start(self, tasks: &Tasks) {
        if self.settings.every_s == 0 {
            return;
        }
        let token = tasks.token().clone();
        tasks.spawn("verify", async move {
            token.run_until_cancelled(self.run()).await;
        });
    }

    async fn run(&self) {
        let mut rounds = interval(Duration::from_secs(self.settings.every_s));
        rounds.set_missed_tick_behavior(MissedTickBehavior::Delay);
        rounds.tick().await;
        loop {
            rounds.tick().await;
            let round = self.round().await;
            self.metrics.round("verify", round.is_ok());
            if let Err(error) = round {
                tracing::warn!(error = %Chain(&error), "no org could be compared with its snapshot");
            }
        }
    }

    /// One round. What is found is logged and counted.
    ///
    /// # Errors
    /// When the orgs can't be listed.
    pub async fn round(&self) -> Result<(), SourceError> {
        let orgs = sample(self.source.orgs().await?, self.settings.sample, |below| {
            let random = getrandom::u64().expect("the operating system gives random bytes");
            usize::try_from(random % below as u64).expect("below a length")
        });
        for org in orgs {
            tell(&org, &self.verifier.verify(&org, NAMED, &|_, _| {}).await);
        }
        Ok(())
    }
}

/// So many of them, each as likely as any other. `draw` gives a number below the one it is given.
pub fn sample(mut orgs: Vec<Org>, count: u64, mut draw: impl FnMut(usize) -> usize) -> Vec<Org> {
    let count = usize::try_from(count).unwrap_or(usize::MAX).min(orgs.len());
    for place in 0..count {
        let other = place + draw(orgs.len() - place);
        orgs.swap(place, other);
    }
    orgs.truncate(count);
    orgs
}

fn tell(org: &Org, outcome: &Result<Outcome, VerifyError>) {
    match outcome {
        Ok(Outcome::Agrees { rows, changed }) => {
            tracing::info!(%org, rows, changed, "the snapshot and the log give the live rows");
        }
        Ok(Outcome::Differs { count, first, .. }) => {
            let first: Vec<String> = first.iter().map(ToString::to_string).collect();
            let first = first.join("; ");
            tracing::error!(%org, count, first, "rows changed behind the change log's back; `headstart dump --full` mends the snapshot, not its cause");
        }
        Ok(Outcome::Nothing(why)) => tracing::info!(%org, why, "nothing to compare"),
        Err(error) => tracing::warn!(%org, error = %Chain(error), "an org could not be compared with its snapshot"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_is_of_different_orgs_and_reaches_all() {
        let orgs: Vec<Org> = (0..10).map(|number| Org::new(number.to_string())).collect();
        let mut seed = 7_usize;
        let mut seen = std::collections::BTreeSet::new();
        for _ in 0..100 {
            let chosen = sample(orgs.clone(), 3, |below| {
                seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                (seed >> 33) % below
            });
            assert_eq!(chosen.iter().collect::<std::collections::BTreeSet<_>>().len(), 3);
            seen.extend(chosen);
        }
        assert_eq!(seen.len(), 10);
        assert_eq!(sample(orgs.clone(), 99, |_| 0).len(), 10);
        assert!(sample(orgs, 0, |_| 0).is_empty());
    }
}
