//! Who is let in: how many requests of each kind are worked on at once, in the process and for each org.
//!
//! Asked once the token is verified and before anything else is done: no body is read, no database is asked. Whoever is
//! over the process's bound is told 503, whoever is over the org's 429, both at once and with a `Retry-After` that is drawn
//! at random. An org's bound lies below the process's, so one org with all its clients leaves room for the others.
//!
//! A place is held until all but the last piece of the answer is with the socket, or its connection is gone.
//!
//! Dumps have bounds of their own (`dump.concurrent`, `dump.waiting`, one that runs and one that waits for each org). An org
//! that was refused because too many dumps wait is refused here, without another look, for as long as that is so.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use crate::metrics::{Held, Metrics};

/// What a request is, for its bounds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// A bootstrap: a stream that may last long.
    Stream,
    /// A delta, or the list of the caller's groups: a few statements.
    Delta,
    /// A batch.
    Batch,
}

/// Settings `[admission]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AdmissionSettings {
    /// Bootstraps in progress.
    pub streams: usize,
    /// For one org.
    pub org_streams: usize,
    /// Deltas and lists of groups in progress.
    pub deltas: usize,
    /// For one org.
    pub org_deltas: usize,
    /// Batches in progress.
    pub batches: usize,
    /// For one org.
    pub org_batches: usize,
}

impl Default for AdmissionSettings {
    /// What `config/headstart.toml` says; a test holds the two together.
    fn default() -> Self {
        Self { streams: 4000, org_streams: 2000, deltas: 1000, org_deltas: 250, batches: 500, org_batches: 125 }
    }
}

/// Whose bound was reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// The process's.
    Process,
    /// The org's.
    Org,
}

/// The places of a process. Clones share them.
#[derive(Clone)]
pub struct Admission {
    shared: Arc<Shared>,
}

struct Shared {
    settings: AdmissionSettings,
    metrics: Metrics,
    taken: Mutex<Taken>,
}

/// How many places are taken; no entry is 0.
#[derive(Default)]
struct Taken {
    process: HashMap<Kind, usize>,
    orgs: HashMap<(Kind, String), usize>,
}

/// A place; free again when it is dropped.
pub struct Place {
    shared: Arc<Shared>,
    kind: Kind,
    org: String,
    _counted: Held,
}

impl Kind {
    /// It in one fixed word, for metrics.
    fn word(self) -> &'static str {
        match self {
            Self::Stream => "stream",
            Self::Delta => "delta",
            Self::Batch => "batch",
        }
    }
}

impl Scope {
    /// It in one fixed word, for metrics.
    fn word(self) -> &'static str {
        match self {
            Self::Process => "process",
            Self::Org => "org",
        }
    }
}

impl Admission {
    /// All places are free.
    pub fn new(settings: AdmissionSettings, metrics: Metrics) -> Self {
        for kind in [Kind::Stream, Kind::Delta, Kind::Batch] {
            metrics.places(kind.word(), settings.bounds(kind).0);
        }
        Self { shared: Arc::new(Shared { settings, metrics, taken: Mutex::default() }) }
    }

    /// A place for a request of an org, as its token names it.
    ///
    /// # Errors
    /// Whose bound is reached: the org's is told first, it is the one the org can mend.
    pub fn admit(&self, kind: Kind, org: &str) -> Result<Place, Scope> {
        let shared = &self.shared;
        let key = (kind, org.to_owned());
        let mut taken = shared.lock();
        let (process, of_org) = shared.settings.bounds(kind);
        let full = if taken.orgs.get(&key).is_some_and(|taken| *taken >= of_org) {
            Some(Scope::Org)
        } else {
            (taken.process.get(&kind).is_some_and(|taken| *taken >= process)).then_some(Scope::Process)
        };
        if let Some(scope) = full {
            shared.metrics.refused(kind.word(), scope.word());
            return Err(scope);
        }
        *taken.process.entry(kind).or_default() += 1;
        *taken.orgs.entry(key).or_default() += 1;
        let counted = shared.metrics.in_progress(kind.word()).hold();
        Ok(Place { shared: shared.clone(), kind, org: org.to_owned(), _counted: counted })
    }
}

impl AdmissionSettings {
    /// Of the process and of an org.
    fn bounds(&self, kind: Kind) -> (usize, usize) {
        match kind {
            Kind::Stream => (self.streams, self.org_streams),
            Kind::Delta => (self.deltas, self.org_deltas),
            Kind::Batch => (self.batches, self.org_batches),
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.shared.lock();
        if let Some(process) = taken.process.get_mut(&self.kind) {
            *process -= 1;
        }
        let key = (self.kind, std::mem::take(&mut self.org));
        if let Some(org) = taken.orgs.get_mut(&key) {
            *org -= 1;
            if *org == 0 {
                taken.orgs.remove(&key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_org_that_is_full_leaves_room_and_every_place_comes_back() {
        let settings = AdmissionSettings { streams: 3, org_streams: 2, ..AdmissionSettings::default() };
        let admission = Admission::new(settings, Metrics::new());
        let admit = |kind, org: &str| admission.admit(kind, org);
        let a = [admit(Kind::Stream, "a"), admit(Kind::Stream, "a")].map(Result::ok);
        assert_eq!(admit(Kind::Stream, "a").err(), Some(Scope::Org));
        let b = admit(Kind::Stream, "b").ok();
        assert!(b.is_some());
        assert_eq!(admit(Kind::Stream, "b").err(), Some(Scope::Process));
        assert_eq!(admit(Kind::Stream, "a").err(), Some(Scope::Org), "what the org can mend");
        assert!(admit(Kind::Batch, "a").is_ok(), "kinds do not count against each other");
        drop(a);
        assert!(admit(Kind::Stream, "b").is_ok());
        drop(b);
        assert!(admission.shared.lock().orgs.is_empty());
    }
}
