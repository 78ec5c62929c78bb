//! Is a snapshot fresh enough? Pure: everything it needs is an argument.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::model::{Epoch, SyncId};

/// When a snapshot is refreshed, and when it is no longer served. Settings `[freshness]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    /// Actions after a snapshot from which it is refreshed behind the answer.
    pub soft_pending: u64,
    /// Actions after a snapshot from which it is not served any more.
    pub hard_pending: u64,
    /// Seconds after which a snapshot with any action after it is refreshed.
    pub soft_age_s: u64,
    /// Seconds after which a snapshot with any action after it is not served any more.
    pub hard_age_s: u64,
}

impl Limits {
    /// How far pending actions need to be counted.
    pub fn count_cap(&self) -> u64 {
        self.hard_pending.saturating_add(1)
    }
}

/// What is known of a snapshot, published or a finished spool.
#[derive(Clone, Debug)]
pub struct Candidate<'a> {
    /// The history it belongs to.
    pub epoch: &'a Epoch,
    /// Its watermark.
    pub sync_id: SyncId,
    /// How long ago it was made.
    pub age: Duration,
    /// Actions after it, counted up to [`Limits::count_cap`].
    pub pending: u64,
}

/// What a request demands beyond freshness.
#[derive(Clone, Copy, Debug, Default)]
pub struct Demand {
    /// The answer must be true at this sync id or later.
    pub first_sync_id: SyncId,
    /// Only a dump started after the request will do.
    pub no_cache: bool,
    /// Whether the actions after the snapshot are part of the answer, so that it may be older than that.
    pub catches_up: bool,
}

/// What to do with a candidate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Serve it.
    Fresh,
    /// Serve it, and make a new one behind.
    Stale(Reason),
    /// Make a new one and serve from that.
    Unusable(Reason),
}

/// Why a snapshot is not fresh.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reason {
    /// There is none.
    Missing,
    /// It belongs to another history.
    OtherEpoch,
    /// Too many actions came after it.
    Pending(u64),
    /// It is too old, and something changed since.
    Age(Duration),
    /// It lacks what the request must see.
    BehindRequest,
    /// The store does not give it.
    Unreadable,
    /// The request wants a new one.
    NoCache,
    /// It keeps the log from being trimmed.
    HoldsLog,
}

impl Reason {
    /// It in one fixed word, for metrics.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Missing => "missing",
            Self::OtherEpoch => "epoch",
            Self::Pending(_) => "pending",
            Self::Age(_) => "age",
            Self::BehindRequest => "behind",
            Self::Unreadable => "unreadable",
            Self::NoCache => "no_cache",
            Self::HoldsLog => "holds_log",
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing => f.write_str("there is no snapshot"),
            Self::OtherEpoch => f.write_str("the snapshot is of another epoch"),
            Self::Pending(count) => write!(f, "{count} actions came after the snapshot"),
            Self::Age(age) => write!(f, "the snapshot is {} s old", age.as_secs()),
            Self::BehindRequest => f.write_str("the snapshot lacks what the request must see"),
            Self::Unreadable => f.write_str("the snapshot can't be read"),
            Self::NoCache => f.write_str("the request wants a new dump"),
            Self::HoldsLog => f.write_str("the snapshot keeps the log from being trimmed"),
        }
    }
}

/// Judges a snapshot against the limits alone, as the background job does.
pub fn judge(candidate: Option<&Candidate<'_>>, epoch: &Epoch, limits: &Limits) -> Verdict {
    let Some(candidate) = candidate else { return Verdict::Unusable(Reason::Missing) };
    if candidate.epoch != epoch {
        return Verdict::Unusable(Reason::OtherEpoch);
    }
    // A snapshot without a later action is the present state, however old it is.
    if candidate.pending == 0 {
        return Verdict::Fresh;
    }
    if candidate.pending > limits.hard_pending {
        return Verdict::Unusable(Reason::Pending(candidate.pending));
    }
    if candidate.age.as_secs() >= limits.hard_age_s {
        return Verdict::Unusable(Reason::Age(candidate.age));
    }
    if candidate.pending > limits.soft_pending {
        return Verdict::Stale(Reason::Pending(candidate.pending));
    }
    if candidate.age.as_secs() >= limits.soft_age_s {
        return Verdict::Stale(Reason::Age(candidate.age));
    }
    Verdict::Fresh
}

/// Judges a snapshot for one request.
pub fn judge_for(demand: Demand, candidate: Option<&Candidate<'_>>, epoch: &Epoch, limits: &Limits) -> Verdict {
    if demand.no_cache {
        return Verdict::Unusable(Reason::NoCache);
    }
    match judge(candidate, epoch, limits) {
        Verdict::Fresh | Verdict::Stale(_)
            if !demand.catches_up && candidate.is_some_and(|it| it.sync_id < demand.first_sync_id) =>
        {
            Verdict::Unusable(Reason::BehindRequest)
        }
        verdict => verdict,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits { soft_pending: 10, hard_pending: 100, soft_age_s: 60, hard_age_s: 600 };

    fn verdict(pending: u64, age_s: u64) -> Verdict {
        let epoch = Epoch::new("e");
        let age = Duration::from_secs(age_s);
        judge(Some(&Candidate { epoch: &epoch, sync_id: SyncId(5), age, pending }), &epoch, &LIMITS)
    }

    #[test]
    fn limits_by_pending_and_by_age() {
        assert_eq!(verdict(0, 1_000_000), Verdict::Fresh);
        assert_eq!(verdict(10, 59), Verdict::Fresh);
        assert_eq!(verdict(11, 0), Verdict::Stale(Reason::Pending(11)));
        assert_eq!(verdict(1, 60), Verdict::Stale(Reason::Age(Duration::from_secs(60))));
        assert_eq!(verdict(101, 0), Verdict::Unusable(Reason::Pending(101)));
        assert_eq!(verdict(1, 600), Verdict::Unusable(Reason::Age(Duration::from_secs(600))));
    }

    #[test]
    fn demands_and_epochs() {
        let (epoch, other) = (Epoch::new("e"), Epoch::new("f"));
        let candidate = Candidate { epoch: &epoch, sync_id: SyncId(5), age: Duration::ZERO, pending: 0 };
        let judge_for = |demand, epoch| judge_for(demand, Some(&candidate), epoch, &LIMITS);
        let at = |sync_id| Demand { first_sync_id: SyncId(sync_id), ..Demand::default() };
        assert_eq!(judge_for(at(5), &epoch), Verdict::Fresh);
        assert_eq!(judge_for(at(6), &epoch), Verdict::Unusable(Reason::BehindRequest));
        assert_eq!(judge_for(Demand { catches_up: true, ..at(6) }, &epoch), Verdict::Fresh);
        assert_eq!(judge_for(at(6), &other), Verdict::Unusable(Reason::OtherEpoch));
        let no_cache = Demand { no_cache: true, ..Demand::default() };
        assert_eq!(judge_for(no_cache, &epoch), Verdict::Unusable(Reason::NoCache));
        assert_eq!(judge(None, &epoch, &LIMITS), Verdict::Unusable(Reason::Missing));
    }
}
