//! Do the settings fit together? Pure; each rule says what breaks when it does not hold, and how to mend it.

use std::error::Error;

use crate::config::{Config, ConfigError};
use crate::telemetry;

/// Everything that does not fit.
pub fn faults(config: &Config) -> Vec<ConfigError> {
    let mut faults = Vec::new();
    let mut rule = |holds: bool, settings, fault: String| {
        if !holds {
            faults.push(ConfigError::Check { settings, fault });
        }
    };
    let limits = &config.freshness;
    rule(
        limits.soft_pending <= limits.hard_pending,
        "freshness.soft_pending, freshness.hard_pending",
        format!(
            "a snapshot would be refused ({} changes) before it is refreshed ({}): lower the soft limit",
            limits.hard_pending, limits.soft_pending
        ),
    );
    rule(
        limits.soft_age_s <= limits.hard_age_s,
        "freshness.soft_age_s, freshness.hard_age_s",
        format!(
            "a snapshot would be refused ({} s) before it is refreshed ({} s): lower the soft limit",
            limits.hard_age_s, limits.soft_age_s
        ),
    );
    if let Err(error) = telemetry::check_filter(&config.log.filter) {
        let cause = error.source().map(|cause| format!(" ({cause})")).unwrap_or_default();
        rule(false, "log.filter", format!("{error}{cause}"));
    }
    faults
}
