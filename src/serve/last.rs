//! How orgs were answered last by this process, for operators.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use tokio::time::Instant;

use crate::model::Org;
use crate::wire::trailer::Method;

/// Twice as many orgs are remembered at most; then half of them go, those whose last answer is the oldest.
const HALF: usize = 5_000;

/// The last answer that was begun for an org.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LastAnswer {
    /// Where its rows came from.
    pub method: Method,
    /// Why from there, in one fixed word.
    pub why: &'static str,
    /// When it began.
    pub at: Instant,
}

/// The last answers by org. Memory: about 100 bytes each.
#[derive(Default)]
pub struct LastAnswers(Mutex<Halves>);

#[derive(Default)]
struct Halves {
    young: HashMap<Org, LastAnswer>,
    old: HashMap<Org, LastAnswer>,
}

impl LastAnswers {
    /// Notes an answer that begins now.
    pub fn note(&self, org: &Org, method: Method, why: &'static str) {
        let mut halves = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if halves.young.len() >= HALF && !halves.young.contains_key(org) {
            halves.old = std::mem::take(&mut halves.young);
        }
        halves.young.insert(org.clone(), LastAnswer { method, why, at: Instant::now() });
    }

    /// The last one of an org, if it is remembered.
    pub fn of(&self, org: &Org) -> Option<LastAnswer> {
        let halves = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        halves.young.get(org).or_else(|| halves.old.get(org)).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_newest_half_at_least_is_remembered() {
        let last = LastAnswers::default();
        let org = |n: usize| Org::new(n.to_string());
        for n in 0..3 * HALF {
            last.note(&org(n), Method::Snapshot, "fresh");
        }
        assert_eq!(last.of(&org(0)), None);
        assert!((2 * HALF..3 * HALF).all(|n| last.of(&org(n)).is_some()));
        last.note(&org(2 * HALF), Method::Postgres, "missing");
        assert_eq!(last.of(&org(2 * HALF)).unwrap().method, Method::Postgres);
    }
}
