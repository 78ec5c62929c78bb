//! When clients get a model's rows, by how much there is of them in the largest org.

use super::graph::Graph;
use super::lineage::Standing;
use super::words;
use crate::model::catalog::Load;

const MIB: f64 = 1024.0 * 1024.0;

/// Up to here rows are in every full bootstrap without a second thought.
const INSTANT: f64 = 4.0 * MIB;
/// Up to here they still are, and clients may hydrate them late.
const LAZY: f64 = 48.0 * MIB;
/// Up to here they are kept in snapshots, and sent when asked for. Beyond only batches get them.
const PARTIAL: f64 = 512.0 * MIB;

/// What is known of the largest org's share.
#[derive(Clone, Copy, Debug)]
pub struct Share {
    /// From 0 to 1.
    share: f64,
    /// Whether it comes from statistics.
    known: bool,
}

impl Share {
    /// Of the table that holds the org column: the share of its commonest value, by the planner's statistics; else an
    /// even share of each of so many orgs, times ten, because orgs are never even.
    pub fn of(graph: &Graph<'_>, place: usize, org: &str, orgs: Option<f64>) -> Self {
        let table = graph.table(place);
        let even = orgs.filter(|orgs| *orgs >= 1.0).map_or(1.0, |orgs| (10.0 / orgs).min(1.0));
        match table.column(org).and_then(|column| column.commonest) {
            Some(share) => Self { share, known: true },
            None => Self { share: even, known: false },
        }
    }
}

/// The strategy, and why; no reason where no size is known, because the table is empty or was never analyzed.
pub fn strategy(
    graph: &Graph<'_>,
    place: usize,
    standing: &Standing,
    share: Share,
    core: bool,
) -> (Load, Option<String>) {
    let table = graph.table(place);
    let history = words::history(&graph.nouns[place]);
    let blobs = table.columns.iter().any(|column| column.sql_type == "bytea");
    let sizeless = table.rows.is_none_or(|rows| rows < 1.0);
    if sizeless {
        let load = match (history || blobs, core || standing.depth == 0) {
            (true, _) => Load::Partial,
            (false, true) => Load::Instant,
            (false, false) => Load::Lazy,
        };
        return (load, None);
    }
    let bytes = table.bytes as f64 * share.share;
    let load = match bytes {
        _ if core && bytes <= LAZY => Load::Instant,
        bytes if bytes <= INSTANT && standing.depth == 0 && !history => Load::Instant,
        bytes if bytes <= INSTANT && history && !blobs => Load::Partial,
        bytes if bytes <= LAZY && !history && !blobs => Load::Lazy,
        bytes if bytes <= PARTIAL && !blobs => Load::Partial,
        _ => Load::Explicit,
    };
    let rows = table.rows.unwrap_or_default() * share.share;
    let guess = if share.known { "" } else { ", if it is ten times the average" };
    let kind = match (history, blobs) {
        (true, _) => "; by its name it only grows",
        (_, true) => "; it holds files",
        _ => "",
    };
    (load, Some(format!("About {} rows, {} on disk in the largest org{guess}{kind}.", count(rows), size(bytes))))
}

fn count(number: f64) -> String {
    let digits = format!("{:.0}", number.max(1.0));
    let mut grouped = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

fn size(bytes: f64) -> String {
    if bytes < 0.1 * MIB { format!("{:.0} KiB", (bytes / 1024.0).max(1.0)) } else { format!("{:.1} MiB", bytes / MIB) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_for_people() {
        assert_eq!(count(1_234_567.4), "1,234,567");
        assert_eq!(count(0.2), "1");
        assert_eq!(count(999.0), "999");
        assert_eq!(size(2.5 * MIB), "2.5 MiB");
        assert_eq!(size(10.0), "1 KiB");
    }
}
