use std::time::Duration;

use super::{Metrics, MetricsSettings};

#[test]
fn what_is_counted_is_printed_with_its_unit() {
    let metrics = Metrics::new();
    metrics.request("/sync/bootstrap", 200);
    metrics.request("/sync/bootstrap", 206);
    metrics.request("/sync/bootstrap", 503);
    metrics.answer("snapshot", "fresh");
    metrics.first_byte("/sync/bootstrap", Duration::from_millis(3));
    metrics.sent_bytes.inc_by(1000);
    metrics.dump_failed("spool_full");
    let _in_use = metrics.pool("primary").in_use.hold();
    let text = metrics.clone().encode();
    for line in [
        "# UNIT headstart_sent_bytes bytes",
        "headstart_sent_bytes_total 1000",
        "headstart_requests_total{route=\"/sync/bootstrap\",status=\"2xx\"} 2",
        "headstart_requests_total{route=\"/sync/bootstrap\",status=\"5xx\"} 1",
        "headstart_answers_total{method=\"snapshot\",reason=\"fresh\"} 1",
        "headstart_first_byte_seconds_bucket{le=\"0.004\",route=\"/sync/bootstrap\"} 1",
        "headstart_dumps_failed_total{reason=\"spool_full\"} 1",
        "headstart_pool_in_use{pool=\"primary\"} 1",
        "headstart_live_dumps 0",
    ] {
        assert!(text.lines().any(|printed| printed == line), "{line} is not in\n{text}");
    }
    assert!(text.ends_with("# EOF\n"));
}

#[test]
fn a_level_falls_with_its_guard() {
    let metrics = Metrics::new();
    let one = metrics.followers.hold();
    let two = metrics.clone().followers.hold();
    assert_eq!(metrics.followers.get(), 2);
    drop((one, two));
    assert_eq!(metrics.followers.get(), 0);
}

#[test]
fn orgs_are_told_while_they_are_among_the_worst() {
    let metrics = Metrics::with(MetricsSettings { worst_orgs: 2 });
    let told = |name: &str| -> Vec<String> {
        let text = metrics.encode();
        let series = text.lines().filter_map(|line| line.strip_prefix("headstart_")?.strip_prefix(name));
        let mut told: Vec<String> = series.filter(|series| series.starts_with('{')).map(str::to_owned).collect();
        told.sort();
        told
    };
    let age = |seconds| Some(Duration::from_secs(seconds));
    metrics.orgs([("a", age(5), 1), ("b", age(9), 9), ("c", None, 8), ("d", age(7), 0)].into_iter());
    assert_eq!(told("pending_actions"), ["{org=\"b\"} 9", "{org=\"c\"} 8"]);
    assert_eq!(told("snapshot_age_seconds"), ["{org=\"b\"} 9", "{org=\"d\"} 7"]);
    metrics.orgs([("a", None, 3), ("b", None, 0), ("c", None, 2), ("d", None, 1)].into_iter());
    assert_eq!(told("pending_actions"), ["{org=\"a\"} 3", "{org=\"c\"} 2"]);
    assert_eq!(told("snapshot_age_seconds"), [""; 0]);
    metrics.watermark.holder.is("app", &"é".repeat(40));
    metrics.watermark.holder.is("app", "psql");
    assert_eq!(told("watermark_held_by"), ["{user=\"app\",application=\"psql\"} 1"]);
    metrics.watermark.holder.is_nobody();
    assert_eq!(told("watermark_held_by"), [""; 0]);
}
