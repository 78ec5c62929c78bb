//! Every metric of the service, each with its unit and its help, in one place.
//!
//! Floor 1: any room may count. Rooms get a clone of [`Metrics`], never a global, so that two services in one test
//! process don't mix. Labels hold only words from fixed sets (routes, reasons, classes), never orgs, users or anything
//! a request brings, so the number of series is bounded.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

pub use prometheus_client::metrics::counter::Counter;

/// The media type of [`Metrics::encode`].
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The metrics of one service. Clones share them; a clone is a few dozen reference counts.
#[derive(Clone, Debug)]
pub struct Metrics {
    registry: Arc<Registry>,
    requests: Family<RequestLabels, Counter>,
    /// The same by class of status alone, 1xx first; not registered, because it is their sum.
    by_class: [Counter; 5],
    answers: Family<AnswerLabels, Counter>,
    in_progress: Family<KindLabel, Gauge>,
    refused: Family<RefusedLabels, Counter>,
    first_byte: Family<RouteLabel, Histogram, fn() -> Histogram>,
    /// Bytes of answers given to sockets, as they were encoded.
    pub sent_bytes: Counter,
    told_actions: Family<AnswerLabel, Counter>,
    resyncs: Family<ReasonLabel, Counter>,
    /// Actions removed from the change log.
    pub trimmed_actions: Counter,
    verified_orgs: Family<OutcomeLabel, Counter>,
    verify_differences: Counter,
    /// Dumps whose turn came. Each of them is in progress, was published, or failed.
    pub dumps_started: Counter,
    /// Dumps that were published.
    pub dumps_finished: Counter,
    dumps_failed: Family<ReasonLabel, Counter>,
    /// Dumps of other instances that were followed to their end instead of scanning too.
    pub dumps_followed: Counter,
    /// Rows read by dumps.
    pub scanned_rows: Counter,
    /// Bytes of the lines made from those rows.
    pub scanned_bytes: Counter,
    /// Dumps in progress, until they are published or have failed.
    pub live_dumps: Level,
    /// Answers that follow a dump.
    pub followers: Level,
    /// Clients that have not taken a piece of their answer for a second or longer.
    pub slow_clients: Level,
    cut_clients: Family<ReasonLabel, Counter>,
    /// Bytes in spool files.
    pub spool_bytes: Gauge,
    published_snapshots: Family<SchemaLabel, Gauge>,
    /// 1 while the store does not answer.
    pub store_down: Level,
    /// Finished dumps that the store has not taken yet.
    pub unstored_dumps: Level,
    /// Published snapshots that could not be read and were put aside.
    pub snapshots_put_aside: Counter,
    /// Seconds for which an open writer has been holding back the watermark that is being looked for; 0: none does, or
    /// nobody has asked.
    pub watermark_held_seconds: Seconds,
    /// Fetches of the issuer's key set, those that failed included.
    pub key_set_fetches: Counter,
    /// Fetches that brought no key set.
    pub key_set_failures: Counter,
    pool_in_use: Family<PoolLabel, Gauge>,
    pool_waiting: Family<PoolLabel, Gauge>,
    /// Reads on the standby.
    pub replica_reads: Counter,
    /// Reads on the primary that the standby was late, failing or resting for.
    pub replica_fallbacks: Counter,
    /// The cache of packs.
    pub pack_cache: CacheMetrics,
    /// Keys that callers of the loader asked for.
    pub keys_asked: Counter,
    /// Keys that were being loaded for someone else when they were asked for.
    pub keys_joined: Counter,
    /// Keys that statements of the loader read.
    pub keys_read: Counter,
    /// Keys that wait for a statement.
    pub keys_waiting: Gauge,
    lookup_keys: Histogram,
    load_wait: Histogram,
    /// Rows that the loader read.
    pub looked_up_rows: Counter,
    /// Bytes of the lines made from those rows.
    pub looked_up_bytes: Counter,
}

/// A time that rises and falls, in seconds.
pub type Seconds = Gauge<f64, AtomicU64>;

/// What the cache of packs and manifests does.
#[derive(Clone, Debug, Default)]
pub struct CacheMetrics {
    /// Bytes in it, those that slow readers pin and those set aside for loads included.
    pub bytes: Gauge,
    /// What was in it when asked for.
    pub hits: Counter,
    /// What was being loaded for someone else when asked for.
    pub joins: Counter,
    /// What was loaded from the store.
    pub loads: Counter,
    /// Loads that had to wait for room.
    pub waits: Counter,
    /// What made room for others.
    pub evictions: Counter,
}

/// What a pool of connections does.
#[derive(Clone, Debug, Default)]
pub struct PoolMetrics {
    /// Connections on loan, or being closed.
    pub in_use: Level,
    /// Callers that wait for one.
    pub waiting: Level,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    route: &'static str,
    status: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct AnswerLabels {
    method: &'static str,
    reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct KindLabel {
    kind: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RefusedLabels {
    kind: &'static str,
    scope: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct AnswerLabel {
    answer: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct SchemaLabel {
    schema: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RouteLabel {
    route: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabel {
    reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OutcomeLabel {
    outcome: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PoolLabel {
    pool: &'static str,
}

impl Metrics {
    /// New metrics, all at zero.
    pub fn new() -> Self {
        let metrics = Self::unregistered();
        let mut all = Registry::with_prefix("headstart");
        all.register("requests", "Requests, by route and class of status", metrics.requests.clone());
        all.register("answers", "Answers begun, by method and why that one", metrics.answers.clone());
        let help = "Requests that were let in and have not ended, to the last byte of their answers, by kind";
        all.register("in_progress", help, metrics.in_progress.clone());
        let help = "Requests refused before any work, by kind and whose bound was reached";
        all.register("refused", help, metrics.refused.clone());
        let help = "From the end of a request's head to the first byte of its answer";
        all.register_with_unit("first_byte", help, Unit::Seconds, metrics.first_byte.clone());
        all.register_with_unit("sent", "Answers, as they were encoded", Unit::Bytes, metrics.sent_bytes.clone());
        all.register("told_actions", "Sync actions told to clients, by answer", metrics.told_actions.clone());
        all.register("resyncs", "Deltas that only a bootstrap could answer, by reason", metrics.resyncs.clone());
        all.register("trimmed_actions", "Actions removed from the change log", metrics.trimmed_actions.clone());
        let help = "Comparisons of an org's snapshot and actions with the live rows, by outcome";
        all.register("verified_orgs", help, metrics.verified_orgs.clone());
        let help = "Rows found by such comparisons that changed behind the change log's back";
        all.register("verify_differences", help, metrics.verify_differences.clone());
        all.register("dumps_started", "Dumps whose turn came", metrics.dumps_started.clone());
        all.register("dumps_finished", "Dumps that were published", metrics.dumps_finished.clone());
        all.register("dumps_failed", "Dumps that were not published, by reason", metrics.dumps_failed.clone());
        let help = "Dumps of other instances that were followed to their end";
        all.register("dumps_followed", help, metrics.dumps_followed.clone());
        all.register("scanned_rows", "Rows read by dumps", metrics.scanned_rows.clone());
        all.register_with_unit("scanned", "Lines made by dumps", Unit::Bytes, metrics.scanned_bytes.clone());
        all.register("live_dumps", "Dumps in progress", metrics.live_dumps.0.clone());
        all.register("followers", "Answers that follow a dump in progress", metrics.followers.0.clone());
        let help = "Clients that have not taken a piece of their answer for a second or longer";
        all.register("slow_clients", help, metrics.slow_clients.0.clone());
        all.register("cut_clients", "Clients that were cut off for being slow, by reason", metrics.cut_clients.clone());
        all.register_with_unit("spool", "Spool files of all dumps", Unit::Bytes, metrics.spool_bytes.clone());
        let help = "Current snapshots in the store at the last round of this instance's background job, by schema";
        all.register("published_snapshots", help, metrics.published_snapshots.clone());
        all.register("store_down", "1 while the snapshot store does not answer", metrics.store_down.0.clone());
        let help = "Finished dumps that the store has not taken yet: served from their spools, and stored again";
        all.register("unstored_dumps", help, metrics.unstored_dumps.0.clone());
        let help = "Published snapshots that could not be read and were put aside";
        all.register("snapshots_put_aside", help, metrics.snapshots_put_aside.clone());
        let help = "For how long an open writer has been holding back the watermark that is being looked for";
        all.register_with_unit("watermark_held", help, Unit::Seconds, metrics.watermark_held_seconds.clone());
        all.register("key_set_fetches", "Fetches of the issuer's key set", metrics.key_set_fetches.clone());
        let help = "Fetches of the issuer's key set that brought none";
        all.register("key_set_failures", help, metrics.key_set_failures.clone());
        all.register("pool_in_use", "PostgreSQL connections in use", metrics.pool_in_use.clone());
        all.register("pool_waiting", "Callers waiting for a PostgreSQL connection", metrics.pool_waiting.clone());
        all.register("replica_reads", "Reads on the standby", metrics.replica_reads.clone());
        let help = "Reads on the primary that the standby was late, failing or resting for";
        all.register("replica_fallbacks", help, metrics.replica_fallbacks.clone());
        let (cache, help) = (&metrics.pack_cache, "Packs and manifests in memory");
        all.register_with_unit("pack_cache", help, Unit::Bytes, cache.bytes.clone());
        all.register("pack_cache_hits", "Asked for while in memory", cache.hits.clone());
        all.register("pack_cache_joins", "Asked for while being loaded for someone else", cache.joins.clone());
        all.register("pack_cache_loads", "Loaded from the store", cache.loads.clone());
        all.register("pack_cache_waits", "Loads that had to wait for room", cache.waits.clone());
        all.register("pack_cache_evictions", "Taken out of memory to make room", cache.evictions.clone());
        all.register("keys_asked", "Keys asked of the loader", metrics.keys_asked.clone());
        all.register("keys_joined", "Keys that were in flight already when asked for", metrics.keys_joined.clone());
        all.register("keys_read", "Keys read by statements of the loader", metrics.keys_read.clone());
        all.register("keys_waiting", "Keys that wait for a statement of the loader", metrics.keys_waiting.clone());
        all.register("lookup_keys", "Statements of the loader, by their number of keys", metrics.lookup_keys.clone());
        let help = "From a call of the loader to its answer";
        all.register_with_unit("load_wait", help, Unit::Seconds, metrics.load_wait.clone());
        all.register("looked_up_rows", "Rows read by the loader", metrics.looked_up_rows.clone());
        let help = "Lines made by the loader";
        all.register_with_unit("looked_up", help, Unit::Bytes, metrics.looked_up_bytes.clone());
        Self { registry: Arc::new(all), ..metrics }
    }

    fn unregistered() -> Self {
        Self {
            registry: Arc::default(),
            requests: Family::default(),
            by_class: Default::default(),
            answers: Family::default(),
            in_progress: Family::default(),
            refused: Family::default(),
            // 1 ms to 65 s: from a cached frame to a dump that waited for its turn.
            first_byte: Family::new_with_constructor(|| Histogram::new(exponential_buckets(0.001, 2.0, 17))),
            sent_bytes: Counter::default(),
            told_actions: Family::default(),
            resyncs: Family::default(),
            trimmed_actions: Counter::default(),
            verified_orgs: Family::default(),
            verify_differences: Counter::default(),
            dumps_started: Counter::default(),
            dumps_finished: Counter::default(),
            dumps_failed: Family::default(),
            dumps_followed: Counter::default(),
            scanned_rows: Counter::default(),
            scanned_bytes: Counter::default(),
            live_dumps: Level::default(),
            followers: Level::default(),
            slow_clients: Level::default(),
            cut_clients: Family::default(),
            spool_bytes: Gauge::default(),
            published_snapshots: Family::default(),
            store_down: Level::default(),
            unstored_dumps: Level::default(),
            snapshots_put_aside: Counter::default(),
            watermark_held_seconds: Seconds::default(),
            key_set_fetches: Counter::default(),
            key_set_failures: Counter::default(),
            pool_in_use: Family::default(),
            pool_waiting: Family::default(),
            replica_reads: Counter::default(),
            replica_fallbacks: Counter::default(),
            pack_cache: CacheMetrics::default(),
            keys_asked: Counter::default(),
            keys_joined: Counter::default(),
            keys_read: Counter::default(),
            keys_waiting: Gauge::default(),
            lookup_keys: Histogram::new(exponential_buckets(1.0, 2.0, 14)),
            // 0.5 ms to 16 s: from a join just before its end to a deadline.
            load_wait: Histogram::new(exponential_buckets(0.0005, 2.0, 16)),
            looked_up_rows: Counter::default(),
            looked_up_bytes: Counter::default(),
        }
    }

    /// Counts a request of a route that got this status.
    pub fn request(&self, route: &'static str, status: u16) {
        self.by_class[usize::from(status / 100).clamp(1, 5) - 1].inc();
        let status = match status / 100 {
            1 => "1xx",
            2 => "2xx",
            3 => "3xx",
            4 => "4xx",
            _ => "5xx",
        };
        self.requests.get_or_create(&RequestLabels { route, status }).inc();
    }

    /// Requests so far by class of status, 1xx first.
    pub fn requests_by_class(&self) -> [u64; 5] {
        self.by_class.each_ref().map(Counter::get)
    }

    /// Counts an answer by where its rows come from and by the word for why.
    pub fn answer(&self, method: &'static str, reason: &'static str) {
        self.answers.get_or_create(&AnswerLabels { method, reason }).inc();
    }

    /// The requests in progress of a kind.
    pub fn in_progress(&self, kind: &'static str) -> Level {
        Level(self.in_progress.get_or_create(&KindLabel { kind }).clone())
    }

    /// Counts a request that was refused before any work, by its kind and whose bound was reached.
    pub fn refused(&self, kind: &'static str, scope: &'static str) {
        self.refused.get_or_create(&RefusedLabels { kind, scope }).inc();
    }

    /// Counts a client that was cut off for being slow, by the word for why.
    pub fn cut(&self, reason: &'static str) {
        self.cut_clients.get_or_create(&ReasonLabel { reason }).inc();
    }

    /// Notes how long a route took to its first byte.
    pub fn first_byte(&self, route: &'static str, elapsed: Duration) {
        self.first_byte.get_or_create(&RouteLabel { route }).observe(elapsed.as_secs_f64());
    }

    /// Counts a statement of the loader that reads so many keys.
    pub fn lookup(&self, keys: usize) {
        self.keys_read.inc_by(keys as u64);
        self.lookup_keys.observe(keys as f64);
    }

    /// Counts what such a statement brought.
    pub fn looked_up(&self, rows: usize, bytes: usize) {
        self.looked_up_rows.inc_by(rows as u64);
        self.looked_up_bytes.inc_by(bytes as u64);
    }

    /// Notes how long a call of the loader took.
    pub fn load_wait(&self, elapsed: Duration) {
        self.load_wait.observe(elapsed.as_secs_f64());
    }

    /// Where the sync actions are counted that a kind of answer tells.
    pub fn told_actions(&self, answer: &'static str) -> Counter {
        self.told_actions.get_or_create(&AnswerLabel { answer }).clone()
    }

    /// Counts a delta that only a bootstrap could answer, by the word for why.
    pub fn resync(&self, reason: &'static str) {
        self.resyncs.get_or_create(&ReasonLabel { reason }).inc();
    }

    /// Notes how many snapshots the store holds as current: in the present schema, and in others.
    pub fn published(&self, present: usize, other: usize) {
        for (schema, count) in [("present", present), ("other", other)] {
            let count = i64::try_from(count).unwrap_or(i64::MAX);
            self.published_snapshots.get_or_create(&SchemaLabel { schema }).set(count);
        }
    }

    /// Counts a comparison with the live rows by its outcome, and the differences it found.
    pub fn verified(&self, outcome: &'static str, differences: u64) {
        self.verified_orgs.get_or_create(&OutcomeLabel { outcome }).inc();
        self.verify_differences.inc_by(differences);
    }

    /// Counts a dump that was not published, by the word for why.
    pub fn dump_failed(&self, reason: &'static str) {
        self.dumps_failed.get_or_create(&ReasonLabel { reason }).inc();
    }

    /// Where a pool of connections, by its name, notes what it does.
    pub fn pool(&self, pool: &'static str) -> PoolMetrics {
        PoolMetrics {
            in_use: Level(self.pool_in_use.get_or_create(&PoolLabel { pool }).clone()),
            waiting: Level(self.pool_waiting.get_or_create(&PoolLabel { pool }).clone()),
        }
    }

    /// All metrics as OpenMetrics text ([`CONTENT_TYPE`]).
    pub fn encode(&self) -> String {
        let mut text = String::new();
        encode(&mut text, &self.registry).expect("writing to a String never fails");
        text
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

/// A number of things that exist now. Who makes one holds [`Level::hold`]'s guard for as long as it exists, so that
/// the number is right however it ends.
#[derive(Clone, Debug, Default)]
pub struct Level(Gauge);

/// One thing that exists; dropped when it no longer does.
#[derive(Debug)]
#[must_use = "the thing is counted for as long as this is held"]
pub struct Held(Gauge);

impl Level {
    /// Counts one more until the guard is dropped.
    pub fn hold(&self) -> Held {
        self.0.inc();
        Held(self.0.clone())
    }

    /// How many there are.
    pub fn get(&self) -> i64 {
        self.0.get()
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.0.dec();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
}
