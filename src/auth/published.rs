//! The keys an issuer publishes, kept at hand.
//!
//! One task fetches the set; whoever verifies reads what it holds and never fetches. The set is fetched anew after
//! `jwks_refresh_s`, and earlier when a token names a key that is not in it, as the first tokens after a rotation do:
//! that token waits for one fetch, everyone who comes meanwhile waits for the same, and if the name is still unknown
//! the token is refused. Names cost nothing to invent, so two fetches are never less than `jwks_pause_s` apart: until
//! then unknown names are refused at once.
//!
//! While the issuer does not answer, the set serves on for `jwks_keep_s`. Past that, and before the first answer, nobody
//! knows whether a token is good; that is [`TokenError::NoKeySet`], not a refusal, so that clients try again instead of
//! logging their users out.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use jsonwebtoken::Header;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};

use crate::auth::fetch::FetchError;
use crate::auth::key::Key;
use crate::auth::token::TokenError;
use crate::chain::Chain;
use crate::metrics::Metrics;

/// How often and how long.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rhythm {
    /// How old the set gets before it is fetched anew. Not less than the pause.
    pub(super) refresh: Duration,
    /// The least time between two fetches.
    pub(super) pause: Duration,
    /// How long a set serves when no newer one can be had.
    pub(super) keep: Duration,
    /// How long one fetch takes at most.
    pub(super) timeout: Duration,
}

/// Fetches the set once: its keys, and how many others it holds.
pub(super) type Fetch = dyn Fn() -> BoxFuture<'static, Result<(Vec<Key>, usize), FetchError>> + Send + Sync;

/// The set as it was last seen. Memory: some KiB, and as much again while it is fetched.
pub(super) struct Published {
    rhythm: Rhythm,
    fetch: Box<Fetch>,
    state: watch::Sender<State>,
}

/// What the one who fetches and those who verify tell each other.
#[derive(Default)]
struct State {
    set: Option<Set>,
    /// Fetches that have ended.
    ended: u64,
    /// The number of the fetch that someone waits for. Asking twice for the same one is asking once.
    wanted: u64,
    /// When the last one ended.
    last: Option<Instant>,
}

#[derive(Clone)]
struct Set {
    keys: Arc<[Key]>,
    fetched: Instant,
}

impl Published {
    /// Nothing yet. [`Self::keep_fresh`] gets it.
    pub(super) fn new(rhythm: Rhythm, fetch: Box<Fetch>) -> Self {
        Self { rhythm, fetch, state: watch::Sender::new(State::default()) }
    }

    /// The keys of the set. If none of them may have signed a token with this header, it is fetched anew first, once,
    /// unless that was done a moment ago.
    ///
    /// # Errors
    /// [`TokenError::NoKeySet`]
    pub(super) async fn keys(&self, header: &Header) -> Result<Arc<[Key]>, TokenError> {
        let held = self.held();
        if let Some(keys) = held.filter(|keys| keys.iter().any(|key| key.may_have_signed(header))) {
            return Ok(keys);
        }
        self.ask().await;
        self.held().ok_or(TokenError::NoKeySet)
    }

    fn held(&self) -> Option<Arc<[Key]>> {
        let state = self.state.borrow();
        let set = state.set.as_ref().filter(|set| set.fetched.elapsed() < self.rhythm.keep)?;
        Some(set.keys.clone())
    }

    /// Waits for one more fetch to end; not at all within the pause after the last one.
    async fn ask(&self) {
        let mut ended = self.state.subscribe();
        let mut awaited = None;
        self.state.send_if_modified(|state| {
            if state.last.is_none_or(|last| last.elapsed() >= self.rhythm.pause) {
                let next = state.ended + 1;
                awaited = Some(next);
                return std::mem::replace(&mut state.wanted, next) != next;
            }
            false
        });
        if let Some(awaited) = awaited {
            // This limit is for a service whose task has ended; fetches end by themselves.
            let _ = timeout(2 * self.rhythm.timeout, ended.wait_for(|state| state.ended >= awaited)).await;
        }
    }

    /// Fetches the set once and keeps nothing of it: its keys, and how many others it holds.
    ///
    /// # Errors
    /// Why there is none.
    pub(super) async fn fetch(&self) -> Result<(Vec<Key>, usize), FetchError> {
        (self.fetch)().await
    }

    /// Fetches the set now and from then on, for as long as it is polled.
    pub(super) async fn keep_fresh(&self, metrics: &Metrics) {
        let mut wanted = self.state.subscribe();
        loop {
            let fetched = self.fetch().await;
            metrics.key_set_fetches.inc();
            metrics.key_set_failures.inc_by(u64::from(fetched.is_err()));
            let due = if fetched.is_ok() { self.rhythm.refresh } else { self.rhythm.pause };
            self.note(fetched);
            sleep(self.rhythm.pause).await;
            // It is old, or someone asks: both mean the same.
            let _ = timeout(due - self.rhythm.pause, wanted.wait_for(|state| state.wanted > state.ended)).await;
        }
    }

    fn note(&self, fetched: Result<(Vec<Key>, usize), FetchError>) {
        let now = Instant::now();
        let set = match fetched {
            Ok((keys, others)) => {
                let kids: Vec<&str> = keys.iter().map(|key| key.kid().unwrap_or("(no name)")).collect();
                if keys.is_empty() {
                    tracing::warn!(others, "the key set at auth.jwks_url holds no key of RS256, ES256 or EdDSA");
                } else {
                    tracing::debug!(kids = kids.join(" "), others, "the key set was fetched");
                }
                Some(Set { keys: keys.into(), fetched: now })
            }
            Err(error) => {
                tracing::warn!(error = %Chain(&error), "the key set at auth.jwks_url could not be fetched");
                None
            }
        };
        self.state.send_modify(|state| {
            state.set = set.or_else(|| state.set.take());
            state.ended += 1;
            state.last = Some(now);
        });
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use futures_util::FutureExt;
    use futures_util::future::join_all;
    use jsonwebtoken::Algorithm;

    use super::*;

    const RHYTHM: Rhythm = Rhythm {
        refresh: Duration::from_secs(300),
        pause: Duration::from_secs(10),
        keep: Duration::from_secs(3600),
        timeout: Duration::from_secs(5),
    };

    /// An issuer that answers after a second, and counts.
    #[derive(Clone, Default)]
    struct Issuer(Arc<Mutex<Desk>>);

    #[derive(Default)]
    struct Desk {
        asked: usize,
        /// `None`: nobody is there.
        kids: Option<Vec<&'static str>>,
    }

    impl Issuer {
        fn publish(&self, kids: &[&'static str]) {
            self.0.lock().unwrap().kids = Some(kids.to_vec());
        }

        fn go_away(&self) {
            self.0.lock().unwrap().kids = None;
        }

        fn asked(&self) -> usize {
            self.0.lock().unwrap().asked
        }

        fn fetch(&self) -> Box<Fetch> {
            let issuer = self.clone();
            Box::new(move || {
                let issuer = issuer.clone();
                async move {
                    issuer.0.lock().unwrap().asked += 1;
                    sleep(Duration::from_secs(1)).await;
                    let kids = issuer.0.lock().unwrap().kids.clone().ok_or(FetchError::Late(Duration::ZERO))?;
                    let key = |kid: &str| Key::ed25519(&[7; 32]).unwrap().named(Some(kid.to_owned()));
                    Ok((kids.into_iter().map(key).collect(), 0))
                }
                .boxed()
            })
        }
    }

    fn followed(issuer: &Issuer) -> Arc<Published> {
        let published = Arc::new(Published::new(RHYTHM, issuer.fetch()));
        let task = published.clone();
        tokio::spawn(async move { task.keep_fresh(&Metrics::new()).await });
        published
    }

    fn header(kid: &str) -> Header {
        Header { kid: Some(kid.to_owned()), ..Header::new(Algorithm::EdDSA) }
    }

    async fn knows(published: &Published, kid: &str) -> bool {
        let keys = published.keys(&header(kid)).await.expect("a set");
        keys.iter().any(|key| key.kid() == Some(kid))
    }

    #[tokio::test(start_paused = true)]
    async fn the_first_token_waits_for_the_first_answer_and_later_ones_for_none() {
        let issuer = Issuer::default();
        issuer.publish(&["a"]);
        let published = followed(&issuer);
        assert!(knows(&published, "a").await);
        let then = Instant::now();
        assert!(knows(&published, "a").await);
        assert_eq!((issuer.asked(), then.elapsed()), (1, Duration::ZERO));
        sleep(Duration::from_secs(302)).await;
        assert_eq!(issuer.asked(), 2, "it is asked again when the set gets old");
    }

    #[tokio::test(start_paused = true)]
    async fn an_unknown_name_asks_once_for_everyone() {
        let issuer = Issuer::default();
        issuer.publish(&["a"]);
        let published = followed(&issuer);
        assert!(knows(&published, "a").await);
        sleep(RHYTHM.pause).await;
        issuer.publish(&["a", "b"]);
        assert!(join_all((0..100).map(|_| knows(&published, "b"))).await.into_iter().all(|known| known));
        assert_eq!(issuer.asked(), 2);
        let then = Instant::now();
        for round in 0..100 {
            assert!(!knows(&published, &format!("invented-{round}")).await);
        }
        assert_eq!((issuer.asked(), then.elapsed()), (2, Duration::ZERO), "within the pause nobody waits");
        sleep(Duration::from_secs(100)).await;
        assert_eq!(issuer.asked(), 2, "what nobody waits for is not fetched");
        for round in 0..100 {
            assert!(!knows(&published, &format!("invented-{round}")).await);
            sleep(Duration::from_secs(1)).await;
        }
        let most = 2 + 100 / 10 + 1;
        assert!((4..=most).contains(&issuer.asked()), "{} fetches in 100 s", issuer.asked());
        assert!(knows(&published, "a").await, "and the known ones are taken all the time");
    }

    #[tokio::test(start_paused = true)]
    async fn an_issuer_that_is_away_is_outlived_for_a_while() {
        let issuer = Issuer::default();
        let published = followed(&issuer);
        let then = Instant::now();
        assert!(matches!(published.keys(&header("a")).await, Err(TokenError::NoKeySet)), "nobody knows");
        assert_eq!(then.elapsed(), Duration::from_secs(1));
        assert!(matches!(published.keys(&header("a")).await, Err(TokenError::NoKeySet)));
        assert_eq!(then.elapsed(), Duration::from_secs(1), "and nobody waits to hear it again");
        issuer.publish(&["a"]);
        sleep(RHYTHM.pause).await;
        assert!(knows(&published, "a").await, "it is tried again without being asked");
        issuer.go_away();
        sleep(Duration::from_secs(3000)).await;
        assert!(knows(&published, "a").await);
        sleep(Duration::from_secs(700)).await;
        assert!(matches!(published.keys(&header("a")).await, Err(TokenError::NoKeySet)), "for an hour, not longer");
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_taken_back_is_gone_at_the_next_refresh() {
        let issuer = Issuer::default();
        issuer.publish(&["a"]);
        let published = followed(&issuer);
        assert!(knows(&published, "a").await);
        issuer.publish(&[]);
        sleep(Duration::from_secs(302)).await;
        assert!(!knows(&published, "a").await);
    }

    #[tokio::test(start_paused = true)]
    async fn a_caller_that_goes_away_and_a_task_that_ended_hold_nobody_up() {
        let issuer = Issuer::default();
        issuer.publish(&["a"]);
        let published = followed(&issuer);
        assert!(timeout(Duration::from_millis(10), knows(&published, "a")).await.is_err());
        assert!(knows(&published, "a").await, "the fetch went on");
        let alone = Published::new(RHYTHM, issuer.fetch());
        let then = Instant::now();
        assert!(matches!(alone.keys(&header("a")).await, Err(TokenError::NoKeySet)));
        assert_eq!(then.elapsed(), 2 * RHYTHM.timeout);
    }
}
