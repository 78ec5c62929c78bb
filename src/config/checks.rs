//! Do the settings fit together? Pure; each rule says what breaks when it does not hold, and how to mend it.

use std::error::Error;

use crate::config::{Config, ConfigError};
use crate::telemetry;

/// How much longer than the longest answer a replaced snapshot is kept at least.
const MARGIN_S: u64 = 60;

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
    // A reader that began just before its snapshot was replaced may take the whole deadline, and a little to end.
    let longest_answer = config.http.answer_deadline_s + MARGIN_S;
    rule(
        config.store.grace_s >= longest_answer,
        "store.grace_s, http.answer_deadline_s",
        format!(
            "replaced snapshots would go ({} s) before the longest answer ends: keep them for {longest_answer} s or more, \
             or shorten the deadline",
            config.store.grace_s
        ),
    );
    let places = &config.admission;
    for (of_org, process, settings) in [
        (places.org_streams, places.streams, "admission.org_streams, admission.streams"),
        (places.org_deltas, places.deltas, "admission.org_deltas, admission.deltas"),
        (places.org_batches, places.batches, "admission.org_batches, admission.batches"),
    ] {
        rule(
            of_org <= process,
            settings,
            format!("one org's bound ({of_org}) would never be reached: lower it, or raise the process's ({process})"),
        );
    }
    let (client, admin) = (config.http.listen, config.admin.listen);
    // Port 0 is another port each time.
    rule(
        client.port() != admin.port() || client.port() == 0 || client.ip() != admin.ip(),
        "http.listen, admin.listen",
        format!("both are {client}: the admin listener needs an address of its own"),
    );
    let connections = config.postgres.pool.max_connections.get() as usize;
    rule(
        config.scan.connections.get() < connections,
        "scan.connections, postgres.max_connections",
        format!("a scan would take all {connections} connections and leave none for look-ups: raise the latter"),
    );
    rule(
        config.dump.concurrent < connections,
        "dump.concurrent, postgres.max_connections",
        format!("dumps would take all {connections} connections and leave none for look-ups: raise the latter"),
    );
    rule(
        config.loader.statements < connections,
        "loader.statements, postgres.max_connections",
        format!("loads would take all {connections} connections and leave none for watermarks: raise the latter"),
    );
    if let Err(error) = telemetry::check_filter(&config.log.filter) {
        let cause = error.source().map(|cause| format!(" ({cause})")).unwrap_or_default();
        rule(false, "log.filter", format!("{error}{cause}"));
    }
    faults
}
