//! The kinds of metrics that the service has besides counters, gauges and histograms.

use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use prometheus_client::encoding::{EncodeLabelSet, EncodeMetric, MetricEncoder};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::{MetricType, TypedMetric};

/// How much of a session's user and application name is told, in characters: PostgreSQL's own limit of a name.
const MAX_SESSION_NAME: usize = 63;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Org {
    org: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Session {
    user: String,
    application: String,
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

/// A number of each of the worst orgs. The others are not told.
#[derive(Clone, Debug, Default)]
pub(super) struct Worst {
    told: Family<Org, Gauge>,
    /// Only one round at a time changes them.
    orgs: Arc<Mutex<BTreeMap<String, u64>>>,
}

impl Worst {
    /// Tells of the `most` orgs with the highest numbers, those without any left out.
    pub fn tell<'a>(&self, orgs: impl Iterator<Item = (&'a str, u64)>, most: usize) {
        let mut worst: Vec<_> = orgs.filter(|(_, number)| *number > 0).collect();
        worst.sort_unstable_by(|a, b| b.1.cmp(&a.1).then(a.0.cmp(b.0)));
        let now: BTreeMap<String, u64> =
            worst.into_iter().take(most).map(|(org, number)| (org.to_owned(), number)).collect();
        let mut told = self.orgs.lock().unwrap_or_else(PoisonError::into_inner);
        for better in told.keys().filter(|org| !now.contains_key(*org)) {
            self.told.remove(&Org { org: better.clone() });
        }
        for (org, number) in &now {
            self.told.get_or_create(&Org { org: org.clone() }).set(i64::try_from(*number).unwrap_or(i64::MAX));
        }
        *told = now;
    }
}

/// The session that holds the watermark back, if one does.
#[derive(Clone, Debug, Default)]
pub struct Holder(Family<Session, Gauge>);

impl Holder {
    /// It is this one now.
    pub fn is(&self, user: &str, application: &str) {
        self.0.clear();
        let [user, application] = [user, application].map(|name| name.chars().take(MAX_SESSION_NAME).collect());
        self.0.get_or_create(&Session { user, application }).set(1);
    }

    /// Nobody does any more.
    pub fn is_nobody(&self) {
        self.0.clear();
    }
}

/// What encodes as the metric that it holds.
macro_rules! encodes_as {
    ($($name:ty: $field:tt),+) => {
        $(impl EncodeMetric for $name {
            fn encode(&self, encoder: MetricEncoder<'_>) -> fmt::Result {
                self.$field.encode(encoder)
            }

            fn metric_type(&self) -> MetricType {
                MetricType::Gauge
            }
        }

        impl TypedMetric for $name {
            const TYPE: MetricType = MetricType::Gauge;
        })+
    };
}

encodes_as!(Level: 0, Worst: told, Holder: 0);

/// From 1 ms, a cached frame, to 65 s, a dump that waited for its turn.
pub fn first_bytes() -> Histogram {
    Histogram::new(exponential_buckets(0.001, 2.0, 17))
}

/// From 2 ms to 2 h: an answer that its client took slowly.
pub fn last_bytes() -> Histogram {
    Histogram::new(exponential_buckets(0.002, 3.0, 15))
}

/// From a tiny org, where beginning and ending take the time, to 20,000 times as much.
pub fn speeds(least: f64) -> Histogram {
    Histogram::new(exponential_buckets(least, 3.0, 10))
}
