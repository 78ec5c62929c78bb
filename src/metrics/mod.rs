//! Every metric of the service, each with its unit and its help, in this one file.
//!
//! Floor 1: any room may count. Rooms get a clone of [`Metrics`], never a global, so that two services in one test
//! process don't mix. Labels hold words from fixed sets (routes, reasons, classes), so the number of series is bounded.
//! Two kinds of label are of another sort: orgs, of which the worst few are told ([`MetricsSettings::worst_orgs`]) and
//! forgotten when they get better; and the one session that holds the watermark back, for as long as it does. Never
//! users, nor anything a request brings.

mod kinds;
mod labels;
#[cfg(test)]
mod tests;

use std::fmt::{self, Debug};
use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Metric, Registry, Unit};
use serde::{Deserialize, Serialize};

use crate::metrics::kinds::{Worst, first_bytes, last_bytes, speeds};
use crate::metrics::labels::{
    Answer, Build, Connections, End, Kind, Outcome, Reason, Refusal, Request, Round, Route, Schema, Told,
};

pub use kinds::{Held, Holder, Level};
pub use prometheus_client::metrics::counter::Counter;
pub use prometheus_client::metrics::gauge::Gauge;

/// The media type of [`Metrics::encode`].
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Settings `[metrics]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MetricsSettings {
    /// How many orgs are told by name, the worst first, in each metric that names orgs.
    pub worst_orgs: usize,
}

impl Default for MetricsSettings {
    /// What `config/headstart.toml` says; a test holds the two together.
    fn default() -> Self {
        Self { worst_orgs: 10 }
    }
}

/// A time that rises and falls, in seconds.
pub type Seconds = Gauge<f64, AtomicU64>;

/// Histograms by route.
type ByRoute = Family<Route, Histogram, fn() -> Histogram>;

/// A group of metrics, each with its help, its field, its type (and how it is made, if not by default), its name, its unit.
macro_rules! metrics {
    ($(#[$doc:meta])* $group:ident {
        $($(#[doc = $help:literal])+ $vis:vis $field:ident: $kind:ty $({ $new:expr })? = $name:literal, $unit:expr;)*
    }) => {
        $(#[$doc])*
        #[derive(Clone, Debug)]
        pub struct $group {
            $($(#[doc = $help])+ $vis $field: $kind,)*
        }

        impl Default for $group {
            fn default() -> Self {
                Self { $($field: metrics!(@new $($new)?),)* }
            }
        }

        impl $group {
            fn register(&self, all: &mut Registry) {
                $(register(all, $name, $unit, concat!($($help),+), self.$field.clone());)*
            }
        }
    };
    (@new) => { Default::default() };
    (@new $new:expr) => { $new };
}

/// The help of a metric is the documentation of its field; its printing ends it with a stop of its own.
fn register(all: &mut Registry, name: &str, unit: Option<Unit>, help: &str, metric: impl Metric) {
    let help = help.trim().trim_end_matches('.');
    match unit {
        Some(unit) => all.register_with_unit(name, help, unit, metric),
        None => all.register(name, help, metric),
    }
}

const SECONDS: Option<Unit> = Some(Unit::Seconds);
const BYTES: Option<Unit> = Some(Unit::Bytes);
/// What is counted one by one.
const COUNT: Option<Unit> = None;

metrics! {
    /// All of them but two groups.
    Measures {
        /// 1, with the version that runs.
        build: Family<Build, Gauge> = "build", COUNT;
        /// Requests, by route and class of status.
        requests: Family<Request, Counter> = "requests", COUNT;
        /// Requests that have ended, by route and how: complete, broken, cut or abandoned.
        ended: Family<End, Counter> = "ended", COUNT;
        /// Answers begun, by method and why that one.
        answers: Family<Answer, Counter> = "answers", COUNT;
        /// Requests that were let in and have not ended, to the last byte of their answers, by kind.
        in_progress: Family<Kind, Level> = "in_progress", COUNT;
        /// How many requests of a kind may be in progress.
        places: Family<Kind, Gauge> = "places", COUNT;
        /// Requests refused before any work, by kind and whose bound was reached.
        refused: Family<Refusal, Counter> = "refused", COUNT;
        /// From the end of a request's head to the first byte of its answer.
        first_byte: ByRoute { Family::new_with_constructor(first_bytes) } = "first_byte", SECONDS;
        /// From the end of a request's head to the last byte of a complete answer that is no error.
        last_byte: ByRoute { Family::new_with_constructor(last_bytes) } = "last_byte", SECONDS;
        /// Rows and sync actions of answers as lines, before they are encoded.
        pub raw_bytes: Counter = "raw", BYTES;
        /// Answers, as they were encoded.
        pub sent_bytes: Counter = "sent", BYTES;
        /// Pieces of answers given to connections whose sockets have not taken them whole, slices of cached packs among them.
        pub in_flight_bytes: Gauge = "in_flight", BYTES;
        /// Connections open now, of clients and operators.
        pub connections: Level = "connections", COUNT;
        /// Sync actions told to clients, by answer.
        told_actions: Family<Told, Counter> = "told_actions", COUNT;
        /// Deltas that only a bootstrap could answer, by reason.
        resyncs: Family<Reason, Counter> = "resyncs", COUNT;
        /// Actions in the change log, as the server's statistics estimate them.
        pub log_actions: Gauge = "log_actions", COUNT;
        /// The change log on disk, with its indexes.
        pub log_bytes: Gauge = "log", BYTES;
        /// Actions removed from the change log.
        pub trimmed_actions: Counter = "trimmed_actions", COUNT;
        /// Rounds of the background jobs, by task and whether they were done or broke off.
        rounds: Family<Round, Counter> = "rounds", COUNT;
        /// Comparisons of an org's snapshot and actions with the live rows, by outcome.
        verified_orgs: Family<Outcome, Counter> = "verified_orgs", COUNT;
        /// Rows found by such comparisons that changed behind the change log's back.
        verify_differences: Counter = "verify_differences", COUNT;
        /// Dumps that wait for their turn.
        pub waiting_dumps: Gauge = "waiting_dumps", COUNT;
        /// Dumps whose turn came. Each of them is in progress, was published, or failed.
        pub dumps_started: Counter = "dumps_started", COUNT;
        /// Dumps that were published.
        pub dumps_finished: Counter = "dumps_finished", COUNT;
        /// Dumps that were not published, by reason.
        dumps_failed: Family<Reason, Counter> = "dumps_failed", COUNT;
        /// Dumps of other instances that were followed to their end instead of scanning too.
        pub dumps_followed: Counter = "dumps_followed", COUNT;
        /// Dumps that read only what had changed since the snapshot before; they count among those that were published.
        pub refreshes: Counter = "refreshes", COUNT;
        /// Dumps that read the org as a whole, by why they were no refresh.
        full_dumps: Family<Reason, Counter> = "full_dumps", COUNT;
        /// Rows read by refreshes.
        pub refreshed_rows: Counter = "refreshed_rows", COUNT;
        /// Packs, indexes and manifests put in the store, by dumps and refreshes.
        pub stored_bytes: Counter = "stored", BYTES;
        /// Rows read by dumps that read the org as a whole.
        pub scanned_rows: Counter = "scanned_rows", COUNT;
        /// Lines made by dumps from those rows.
        pub scanned_bytes: Counter = "scanned", BYTES;
        /// Scans that came to their end, by their speed in rows.
        scan_rows: Histogram { speeds(100.0) } = "scan", Some(Unit::Other("rows_per_second".into()));
        /// Scans that came to their end, by their speed in bytes of lines.
        scan_bytes: Histogram { speeds(65_536.0) } = "scan", Some(Unit::Other("bytes_per_second".into()));
        /// Dumps in progress, until they are published or have failed.
        pub live_dumps: Level = "live_dumps", COUNT;
        /// Answers that follow a dump in progress.
        pub followers: Level = "followers", COUNT;
        /// Clients that have not taken a piece of their answer for a second or longer.
        pub slow_clients: Level = "slow_clients", COUNT;
        /// Clients that were cut off for being slow, by reason.
        cut_clients: Family<Reason, Counter> = "cut_clients", COUNT;
        /// Spool files of all dumps.
        pub spool_bytes: Gauge = "spool", BYTES;
        /// What the spool files may take together.
        pub spool_limit_bytes: Gauge = "spool_limit", BYTES;
        /// Current snapshots in the store at the last round of this instance's background job, by schema.
        published_snapshots: Family<Schema, Gauge> = "published_snapshots", COUNT;
        /// Orgs that needed a dump at that round.
        pub due_orgs: Gauge = "due_orgs", COUNT;
        /// How old the snapshot was at that round, of the orgs with the oldest ones among those with later actions.
        snapshot_age: Worst = "snapshot_age", SECONDS;
        /// Actions after the snapshot at that round, counted up to the hard limit, of the orgs with the most of them.
        pending_actions: Worst = "pending_actions", COUNT;
        /// 1 while the snapshot store does not answer.
        pub store_down: Level = "store_down", COUNT;
        /// Finished dumps that the store has not taken yet: served from their spools, and stored again.
        pub unstored_dumps: Level = "unstored_dumps", COUNT;
        /// Published snapshots that could not be read and were put aside.
        pub snapshots_put_aside: Counter = "snapshots_put_aside", COUNT;
        /// Fetches of the issuer's key set, those that failed included.
        pub key_set_fetches: Counter = "key_set_fetches", COUNT;
        /// Fetches of the issuer's key set that brought none.
        pub key_set_failures: Counter = "key_set_failures", COUNT;
        /// PostgreSQL connections in use.
        pool_in_use: Family<Connections, Level> = "pool_in_use", COUNT;
        /// PostgreSQL connections that may be in use.
        pool_limit: Family<Connections, Gauge> = "pool_limit", COUNT;
        /// Callers waiting for a PostgreSQL connection.
        pool_waiting: Family<Connections, Level> = "pool_waiting", COUNT;
        /// Reads on the standby.
        pub replica_reads: Counter = "replica_reads", COUNT;
        /// Reads on the primary that the standby was late, failing or resting for.
        pub replica_fallbacks: Counter = "replica_fallbacks", COUNT;
        /// Keys asked of the loader.
        pub keys_asked: Counter = "keys_asked", COUNT;
        /// Keys that were being loaded for someone else when they were asked for.
        pub keys_joined: Counter = "keys_joined", COUNT;
        /// Keys read by statements of the loader.
        pub keys_read: Counter = "keys_read", COUNT;
        /// Keys that wait for a statement of the loader.
        pub keys_waiting: Gauge = "keys_waiting", COUNT;
        /// Statements of the loader, by their number of keys.
        lookup_keys: Histogram { Histogram::new(exponential_buckets(1.0, 2.0, 14)) } = "lookup_keys", COUNT;
        /// From a call of the loader to its answer.
        load_wait: Histogram { Histogram::new(exponential_buckets(0.0005, 2.0, 16)) } = "load_wait", SECONDS;
        /// Rows read by the loader.
        pub looked_up_rows: Counter = "looked_up_rows", COUNT;
        /// Lines made by the loader from those rows.
        pub looked_up_bytes: Counter = "looked_up", BYTES;
        /// Spans of traces that the collector took.
        pub spans_sent: Counter = "spans_sent", COUNT;
        /// Spans of traces that came too fast, or that the collector did not take.
        pub spans_lost: Counter = "spans_lost", COUNT;
    }
}

metrics! {
    /// What the cache of packs and manifests does.
    CacheMetrics {
        /// Packs and manifests in memory, those that slow readers hold and those set aside for loads included.
        pub bytes: Gauge = "pack_cache", BYTES;
        /// What packs and manifests may take in memory.
        pub limit_bytes: Gauge = "pack_cache_limit", BYTES;
        /// Packs and manifests asked for while in memory.
        pub hits: Counter = "pack_cache_hits", COUNT;
        /// Packs and manifests asked for while being loaded for someone else, or for the first time since they were loaded ahead.
        pub joins: Counter = "pack_cache_joins", COUNT;
        /// Packs and manifests loaded from the store.
        pub loads: Counter = "pack_cache_loads", COUNT;
        /// Loads that had to wait for room.
        pub waits: Counter = "pack_cache_waits", COUNT;
        /// Packs and manifests taken out of memory to make room.
        pub evictions: Counter = "pack_cache_evictions", COUNT;
    }
}

metrics! {
    /// What is known of the watermark.
    WatermarkMetrics {
        /// The watermark that was found last, a sync id.
        pub sync_id: Gauge = "watermark", COUNT;
        /// For how long open writers have been holding back the watermark that is being looked for; 0: none does, or
        /// nobody has asked.
        pub held_seconds: Seconds = "watermark_held", SECONDS;
        /// 1, with the oldest session that has been holding the watermark back for a second or longer, while it does.
        pub holder: Holder = "watermark_held_by", COUNT;
    }
}

/// What a pool of connections does.
#[derive(Clone, Debug, Default)]
pub struct PoolMetrics {
    /// Connections on loan, or being closed.
    pub in_use: Level,
    /// Connections that may be.
    pub limit: Gauge,
    /// Callers that wait for one.
    pub waiting: Level,
}

/// The metrics of one service. Clones share them.
#[derive(Clone)]
pub struct Metrics(Arc<Shared>);

/// All of them, and their registry.
pub struct Shared {
    /// What the cache of packs does.
    pub pack_cache: CacheMetrics,
    /// What is known of the watermark.
    pub watermark: WatermarkMetrics,
    measures: Measures,
    /// Requests by class of status alone, 1xx first; not registered, because they are told by route too.
    by_class: [Counter; 5],
    registry: Registry,
    settings: MetricsSettings,
}

impl Deref for Metrics {
    type Target = Shared;

    fn deref(&self) -> &Shared {
        &self.0
    }
}

impl Deref for Shared {
    type Target = Measures;

    fn deref(&self) -> &Measures {
        &self.measures
    }
}

impl Metrics {
    /// New metrics, all at zero, with the settings' defaults.
    pub fn new() -> Self {
        Self::with(MetricsSettings::default())
    }

    /// New metrics, all at zero.
    pub fn with(settings: MetricsSettings) -> Self {
        let mut registry = Registry::with_prefix("headstart");
        let (measures, pack_cache) = (Measures::default(), CacheMetrics::default());
        let watermark = WatermarkMetrics::default();
        measures.register(&mut registry);
        pack_cache.register(&mut registry);
        watermark.register(&mut registry);
        measures.build.get_or_create(&Build { version: env!("CARGO_PKG_VERSION") }).set(1);
        Self(Arc::new(Shared { pack_cache, watermark, measures, by_class: Default::default(), registry, settings }))
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
        self.requests.get_or_create(&Request { route, status }).inc();
    }

    /// Requests so far by class of status, 1xx first.
    pub fn requests_by_class(&self) -> [u64; 5] {
        self.by_class.each_ref().map(Counter::get)
    }

    /// Counts a request of a route that has ended, by the word for how.
    pub fn ended(&self, route: &'static str, outcome: &'static str) {
        self.ended.get_or_create(&End { route, outcome }).inc();
    }

    /// Counts an answer by where its rows come from and by the word for why.
    pub fn answer(&self, method: &'static str, reason: &'static str) {
        self.answers.get_or_create(&Answer { method, reason }).inc();
    }

    /// The requests in progress of a kind.
    pub fn in_progress(&self, kind: &'static str) -> Level {
        self.in_progress.get_or_create(&Kind { kind }).clone()
    }

    /// Notes how many requests of a kind may be in progress.
    pub fn places(&self, kind: &'static str, places: usize) {
        self.places.get_or_create(&Kind { kind }).set(level(places));
    }

    /// Counts a request that was refused before any work, by its kind and whose bound was reached.
    pub fn refused(&self, kind: &'static str, scope: &'static str) {
        self.refused.get_or_create(&Refusal { kind, scope }).inc();
    }

    /// Counts a client that was cut off for being slow, by the word for why.
    pub fn cut(&self, reason: &'static str) {
        self.cut_clients.get_or_create(&Reason { reason }).inc();
    }

    /// Notes how long a route took to its first byte.
    pub fn first_byte(&self, route: &'static str, elapsed: Duration) {
        self.first_byte.get_or_create(&Route { route }).observe(elapsed.as_secs_f64());
    }

    /// Notes how long a route took to the last byte of a complete answer that is no error.
    pub fn last_byte(&self, route: &'static str, elapsed: Duration) {
        self.last_byte.get_or_create(&Route { route }).observe(elapsed.as_secs_f64());
    }

    /// Notes what a scan brought, and how long it took.
    pub fn scanned(&self, rows: u64, bytes: u64, elapsed: Duration) {
        // No scan is so short that its speed says nothing of it, but some tests are.
        let seconds = elapsed.as_secs_f64().max(0.001);
        self.scan_rows.observe(rows as f64 / seconds);
        self.scan_bytes.observe(bytes as f64 / seconds);
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
        self.told_actions.get_or_create(&Told { answer }).clone()
    }

    /// Counts a delta that only a bootstrap could answer, by the word for why.
    pub fn resync(&self, reason: &'static str) {
        self.resyncs.get_or_create(&Reason { reason }).inc();
    }

    /// Notes how many snapshots the store holds as current: in the present schema, and in others.
    pub fn published(&self, present: usize, other: usize) {
        for (schema, count) in [("present", present), ("other", other)] {
            self.published_snapshots.get_or_create(&Schema { schema }).set(level(count));
        }
    }

    /// Notes of every org how old its snapshot is, if it has one with later actions, and how many actions came after it.
    /// The worst are told, the others forgotten.
    pub fn orgs<'a>(&self, orgs: impl Iterator<Item = (&'a str, Option<Duration>, u64)> + Clone) {
        let most = self.settings.worst_orgs;
        let ages = orgs.clone().filter_map(|(org, age, _)| Some((org, age?.as_secs())));
        self.snapshot_age.tell(ages, most);
        self.pending_actions.tell(orgs.map(|(org, _, pending)| (org, pending)), most);
    }

    /// Counts a round of a background job, and whether it was done.
    pub fn round(&self, task: &'static str, done: bool) {
        let outcome = if done { "done" } else { "broke_off" };
        self.rounds.get_or_create(&Round { task, outcome }).inc();
    }

    /// Counts a comparison with the live rows by its outcome, and the differences it found.
    pub fn verified(&self, outcome: &'static str, differences: u64) {
        self.verified_orgs.get_or_create(&Outcome { outcome }).inc();
        self.verify_differences.inc_by(differences);
    }

    /// Counts a dump that was not published, by the word for why.
    pub fn dump_failed(&self, reason: &'static str) {
        self.dumps_failed.get_or_create(&Reason { reason }).inc();
    }

    /// Counts a dump that read the org as a whole, by the word for why.
    pub fn full_dump(&self, reason: &'static str) {
        self.full_dumps.get_or_create(&Reason { reason }).inc();
    }

    /// Where a pool of connections, by its name, notes what it does.
    pub fn pool(&self, pool: &'static str) -> PoolMetrics {
        PoolMetrics {
            in_use: self.pool_in_use.get_or_create(&Connections { pool }).clone(),
            limit: self.pool_limit.get_or_create(&Connections { pool }).clone(),
            waiting: self.pool_waiting.get_or_create(&Connections { pool }).clone(),
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

impl Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}

/// As gauges count.
pub fn level(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}
