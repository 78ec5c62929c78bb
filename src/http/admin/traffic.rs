//! The last minutes of what the service counts, for the dashboard's charts.
//!
//! A point is taken every two seconds from a dozen counters, also while nobody watches: whoever opens the page because of
//! something sees how it began. Memory: about 30 KiB.

use std::collections::VecDeque;
use std::time::Duration;

use serde::Serialize;

use crate::metrics::Metrics;

/// The time between two points.
pub const EVERY: Duration = Duration::from_secs(2);

/// How many points are kept: ten minutes.
const KEPT: usize = 300;

/// What happened between two points, and how things stood at the second. Field names are short: there are many.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Point {
    /// Requests answered, or begun to be.
    served: u64,
    /// Requests refused for a fault of the client's.
    refused: u64,
    /// Requests refused for a fault of the service's, or for want of room.
    failed: u64,
    /// Bytes sent.
    sent: u64,
    /// Bytes of lines that dumps made.
    scanned: u64,
    /// Packs and manifests that were in memory, or on their way, when asked for.
    hits: u64,
    /// Those loaded from the store.
    loads: u64,
    /// Keys asked of the loader.
    asked: u64,
    /// Keys it read.
    read: u64,
    /// Answers that follow a dump now.
    followers: i64,
    /// Clients that are slow now.
    slow: i64,
    /// Bytes in spool files now.
    spool: i64,
}

/// Everything counted so far, in the order of the fields of [`Point`] above.
type Counted = [u64; 9];

/// The points of the last minutes.
pub struct Traffic {
    metrics: Metrics,
    before: Counted,
    points: VecDeque<Point>,
    /// How many points were taken.
    taken: u64,
}

/// What a page is told first.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub struct History<'a> {
    every_ms: u64,
    points: &'a VecDeque<Point>,
}

impl Traffic {
    /// From now on.
    pub fn new(metrics: Metrics) -> Self {
        Self { before: counted(&metrics), metrics, points: VecDeque::new(), taken: 0 }
    }

    /// Takes a point.
    pub fn take(&mut self) -> Point {
        let now = counted(&self.metrics);
        let [served, refused, failed, sent, scanned, hits, loads, asked, read] =
            std::array::from_fn(|index| now[index].saturating_sub(self.before[index]));
        self.before = now;
        let metrics = &self.metrics;
        let (followers, slow, spool) = (metrics.followers.get(), metrics.slow_clients.get(), metrics.spool_bytes.get());
        let point = Point { served, refused, failed, sent, scanned, hits, loads, asked, read, followers, slow, spool };
        if self.points.len() == KEPT {
            self.points.pop_front();
        }
        self.points.push_back(point);
        self.taken += 1;
        point
    }

    /// How many points were taken so far.
    pub fn taken(&self) -> u64 {
        self.taken
    }

    /// All that are kept, oldest first.
    pub fn history(&self) -> History<'_> {
        History { every_ms: EVERY.as_millis() as u64, points: &self.points }
    }
}

fn counted(metrics: &Metrics) -> Counted {
    let [informed, done, moved, refused, failed] = metrics.requests_by_class();
    let cache = &metrics.pack_cache;
    [
        informed + done + moved,
        refused,
        failed,
        metrics.sent_bytes.get(),
        metrics.scanned_bytes.get(),
        cache.hits.get() + cache.joins.get(),
        cache.loads.get(),
        metrics.keys_asked.get(),
        metrics.keys_read.get(),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn points_hold_what_happened_since_the_last_and_old_ones_go() {
        let metrics = Metrics::new();
        metrics.request("/", 500);
        let mut traffic = Traffic::new(metrics.clone());
        metrics.request("/", 200);
        metrics.request("/", 304);
        metrics.request("/", 401);
        metrics.sent_bytes.inc_by(70);
        let _follower = metrics.followers.hold();
        let point = traffic.take();
        assert_eq!((point.served, point.refused, point.failed, point.sent, point.followers), (2, 1, 0, 70, 1));
        assert_eq!(traffic.take(), Point { followers: 1, ..Point::default() });
        for _ in 0..KEPT {
            traffic.take();
        }
        assert_eq!((traffic.points.len(), traffic.taken()), (KEPT, KEPT as u64 + 2));
        assert!(traffic.points.iter().all(|point| point.served == 0), "the first ones have gone");
    }
}
