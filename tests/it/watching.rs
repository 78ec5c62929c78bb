//! What watches the service, held against what it tells: metrics that the alerts and the dashboard name, and the runbook
//! that the alerts lead to.

use std::collections::BTreeSet;
use std::path::Path;

use serde_json::Value;

fn read(path: &str) -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).expect(path)
}

/// Every series that the service can have, by name: what stands in the one file that declares them. Those without a series
/// yet are not printed, so a running service would not tell them all.
fn declared() -> BTreeSet<String> {
    let source = read("src/metrics/mod.rs");
    let mut names = BTreeSet::new();
    for line in source.lines().map(str::trim) {
        let Some((field, (name, unit))) = line
            .split_once(" = \"")
            .and_then(|(field, rest)| Some((field, rest.strip_suffix(';')?.split_once("\", ")?)))
        else {
            continue;
        };
        let unit = match unit {
            "COUNT" => String::new(),
            "SECONDS" => "_seconds".into(),
            "BYTES" => "_bytes".into(),
            other => format!("_{}", other.split('"').nth(1).expect("a unit of another sort")),
        };
        let ends: &[&str] = if field.contains("Counter") {
            &["_total"]
        } else if field.contains("Histogram") || field.contains("ByRoute") {
            &["_bucket", "_sum", "_count"]
        } else {
            &[""]
        };
        names.extend(ends.iter().map(|end| format!("headstart_{name}{unit}{end}")));
    }
    assert!(names.len() > 60, "{names:?}");
    names
}

/// The names of series in a text.
fn named(text: &str) -> BTreeSet<&str> {
    let words = text.split(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_');
    words.filter(|word| word.starts_with("headstart_") && !word.ends_with('_')).collect()
}

/// What a running service prints is what is declared; so is what it is read for.
#[test]
fn every_series_that_is_watched_is_one_that_is_told() {
    let declared = declared();
    let printed = headstart::metrics::Metrics::new().encode();
    for line in printed.lines().filter(|line| !line.starts_with('#')) {
        let series = line.split(['{', ' ']).next().expect("a name");
        assert!(declared.contains(series), "{series} is told and was not found");
    }
    let files = [
        "deploy/prometheus/alerts.yml",
        "deploy/prometheus/alerts.test.yml",
        "deploy/grafana/dashboards/headstart.json",
    ];
    for path in files {
        let text = read(path);
        for series in named(&text) {
            assert!(declared.contains(series), "{path}: there is no {series}");
        }
    }
    // The dashboard leaves nothing out that the service tells, but sums and counts of histograms.
    let dashboard = read("deploy/grafana/dashboards/headstart.json");
    let shown = named(&dashboard);
    let unseen: Vec<&String> = declared
        .iter()
        .filter(|series| !series.ends_with("_sum") && !series.ends_with("_count") && !shown.contains(series.as_str()))
        .collect();
    assert!(unseen.is_empty(), "{unseen:?}");
    // The runbook names families by their bare names too.
    let runbook = read("deploy/RUNBOOK.md");
    for series in named(&runbook) {
        let family = |whole: &String| whole == series || whole.strip_suffix("_bucket") == Some(series);
        assert!(declared.iter().any(family), "the runbook: there is no {series}");
    }
}

#[test]
fn the_dashboard_asks_the_source_that_is_provisioned() {
    let dashboard: Value = serde_json::from_str(&read("deploy/grafana/dashboards/headstart.json")).expect("JSON");
    let provisioned = read("deploy/grafana/provisioning/datasources/prometheus.yml");
    let panels = dashboard["panels"].as_array().expect("panels");
    let mut ids = BTreeSet::new();
    for panel in panels {
        assert!(ids.insert(panel["id"].as_u64().expect("an id")), "{panel}");
        for target in panel["targets"].as_array().into_iter().flatten() {
            let uid = target["datasource"]["uid"].as_str().expect("a source");
            assert!(provisioned.contains(&format!("uid: {uid}\n")));
            assert!(!target["expr"].as_str().expect("an expression").is_empty());
        }
    }
    assert!(ids.len() > 30);
}

/// A heading as its anchor is made from it.
fn anchor(heading: &str) -> String {
    let kept = heading.chars().filter(|letter| letter.is_alphanumeric() || matches!(letter, ' ' | '-' | '_'));
    kept.collect::<String>().to_lowercase().replace(' ', "-")
}

#[test]
fn every_alert_has_its_section_and_its_test() {
    let (rules, tests, runbook) =
        (read("deploy/prometheus/alerts.yml"), read("deploy/prometheus/alerts.test.yml"), read("deploy/RUNBOOK.md"));
    let mut alerts = BTreeSet::new();
    for rule in rules.split("- alert: ").skip(1) {
        let name = rule.lines().next().expect("a name");
        assert!(alerts.insert(name), "{name} stands twice");
        let led_to = rule.split_once("runbook: RUNBOOK.md#").expect("a way to the runbook").1;
        let led_to = led_to.lines().next().expect("an anchor");
        let section = runbook
            .split("\n## ")
            .find(|section| anchor(section.lines().next().unwrap_or_default()) == led_to)
            .unwrap_or_else(|| panic!("{name}: the runbook has no section {led_to}"));
        assert!(section.contains(&format!("`{name}`")), "{led_to} does not name {name}");
        for part in ["**What is seen.**", "**What it means.**", "**What to do.**"] {
            assert!(section.contains(part), "{led_to} has no {part}");
        }
        let fires = tests.split("alertname: ").any(|test| test.starts_with(&format!("{name}\n        exp_alerts:")));
        assert!(fires, "no test sees {name} fire");
    }
    for named in runbook.split("`Headstart").skip(1) {
        let name = format!("Headstart{}", named.split('`').next().unwrap_or_default());
        assert!(alerts.contains(&*name), "the runbook: there is no alert {name}");
    }
    for link in runbook.split("](#").skip(1) {
        let link = link.split(')').next().unwrap_or_default();
        assert!(
            runbook.lines().any(|line| line.strip_prefix("## ").is_some_and(|line| anchor(line) == link)),
            "{link}"
        );
    }
}
