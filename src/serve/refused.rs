//! Orgs that can't be served while too many dumps wait, so that they are refused again without another look.
//!
//! Whether an org needs a dump takes a look at the store and the database. While the queue of dumps is full the answer of a
//! moment ago will do: an org that had nothing to serve has nothing now.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::dump::DumpError;
use crate::dump::policy::Reason;
use crate::model::Org;

/// How long a refusal stands for others: another instance may have published meanwhile.
const STANDS: Duration = Duration::from_secs(5);

/// More orgs than this are not remembered; those beyond it are looked at again.
const REMEMBERED: usize = 10_000;

/// The orgs that were refused lately. Memory: about 100 bytes each.
#[derive(Default)]
pub struct Refused {
    orgs: Mutex<HashMap<Org, Instant>>,
}

impl Refused {
    /// Notes that no dump could begin for an org that needs one, whatever the request.
    pub fn note(&self, org: &Org, reason: Reason, error: &DumpError) {
        let whoever_asks = !matches!(reason, Reason::NoCache | Reason::BehindRequest | Reason::HoldsLog);
        let mut orgs = self.lock();
        if whoever_asks && matches!(error, DumpError::Overloaded) && orgs.len() < REMEMBERED {
            orgs.insert(org.clone(), Instant::now());
        }
    }

    /// Whether an org is refused again.
    pub fn stands(&self, org: &Org, queue_is_full: bool) -> bool {
        let mut orgs = self.lock();
        if !queue_is_full {
            orgs.clear();
        }
        orgs.retain(|_, at| at.elapsed() < STANDS);
        orgs.contains_key(org)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Org, Instant>> {
        self.orgs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_refusal_stands_while_the_queue_is_full_and_not_for_long() {
        let (refused, acme) = (Refused::default(), Org::new("acme"));
        refused.note(&acme, Reason::NoCache, &DumpError::Overloaded);
        refused.note(&acme, Reason::Missing, &DumpError::Stopping);
        assert!(!refused.stands(&acme, true), "others may be served");
        refused.note(&acme, Reason::Missing, &DumpError::Overloaded);
        assert!(refused.stands(&acme, true) && !refused.stands(&Org::new("bolt"), true));
        assert!(!refused.stands(&acme, false) && !refused.stands(&acme, true), "there was room");
        refused.note(&acme, Reason::Missing, &DumpError::Overloaded);
        tokio::time::advance(STANDS).await;
        assert!(!refused.stands(&acme, true));
    }
}
