//! The watermark: how far the log may be believed.
//!
//! Ids are drawn before commit, so a higher one can become visible first, and a reader that trusts `max(id)` loses the
//! late one for good. [`probe`] finds an id L such that no id up to L ever becomes visible later:
//!
//! 1. It reads the log's sequence: every id up to L has been drawn, or will never be.
//! 2. After that it lists the transactions that hold a `RowExclusiveLock` on the log or one of its
//!    partitions. A writer takes that lock before it draws an id and keeps it to its end, so whoever drew an id up to L
//!    is in the list or has ended. Transactions are named by `virtualtransaction`: prepared ones have no pid, and since
//!    PostgreSQL 14.1 keep the name they were listed under when they are prepared meanwhile.
//! 3. It waits until all of them have ended. Locks are released after the commit has become visible.
//! 4. It waits until the WAL that was written by then is flushed. What is not flushed is lost in a crash, and the ids
//!    of it, rolled-back ones too, are drawn again.
//!
//! L is true for as long as the epoch lasts: the system identifier and the timeline (restore, point-in-time recovery,
//! failover), the database and the log table (made again), and the storage of the sequence (restarted).
//!
//! [`Watermarks`] lets one probe serve everyone who asked before it began. A writer that stays open holds a probe back; then
//! those who ask get the last watermark that was found, which stays true: answers are older, not wrong.

mod probe;

use std::pin::pin;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, timeout};

use crate::metrics::WatermarkMetrics;
use crate::model::{Epoch, Watermark};
use crate::source::SourceError;
use crate::source::postgres::log::signed;

pub use probe::{Standby, epoch, probe, probe_patiently};

/// How often the database is asked whether something has ended, at first and at most.
const POLL: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(50));

/// How long a probe waits for as many callers as the last one served.
const GATHER: Duration = Duration::from_millis(4);

/// Settings `[watermark]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WatermarkSettings {
    /// Milliseconds that whoever asks waits for open writers before the last watermark found is good enough.
    pub patience_ms: u64,
    /// Milliseconds that whoever asks waits for open writers when none was found yet; then it is an error.
    pub held_ms: u64,
}

impl Default for WatermarkSettings {
    /// What `config/headstart.toml` says; a test holds the two together.
    fn default() -> Self {
        Self { patience_ms: 100, held_ms: 10_000 }
    }
}

type Answer = Result<Watermark, SourceError>;

/// How far the probe is, for those who wait.
#[derive(Debug, Default)]
struct Progress {
    /// The last watermark that was found.
    known: Option<Watermark>,
    /// The epoch that the probe under way has found itself in.
    probing: Option<Epoch>,
    /// Whether it waits for writers.
    held: bool,
    /// The oldest of them, once it has waited for a while.
    holder: Option<String>,
}

/// Where a probe tells what it finds.
#[derive(Clone, Debug, Default)]
pub struct Report {
    progress: watch::Sender<Progress>,
    metrics: WatermarkMetrics,
}

/// Asks for watermarks. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Watermarks {
    asks: mpsc::Sender<oneshot::Sender<Answer>>,
    progress: watch::Receiver<Progress>,
    settings: WatermarkSettings,
}

/// The other end: makes the probes. Runs in a task of its own, so that no caller's going away stops the others'.
#[derive(Debug)]
pub struct Prober {
    asks: mpsc::Receiver<oneshot::Sender<Answer>>,
    report: Report,
}

impl Watermarks {
    /// Both ends. `waiting` bounds how many callers are queued for the next probe; more wait before they are queued.
    pub fn new(waiting: usize, settings: WatermarkSettings, metrics: WatermarkMetrics) -> (Self, Prober) {
        let (sender, receiver) = mpsc::channel(waiting);
        let report = Report { metrics, ..Report::default() };
        let progress = report.progress.subscribe();
        (Self { asks: sender, progress, settings }, Prober { asks: receiver, report })
    }

    /// A watermark from a probe that begins after this call, or, when open writers hold that back for longer than the
    /// caller's patience, the last one that was found in the same epoch. Cancel safe.
    ///
    /// # Errors
    /// [`SourceError::Held`] when none was found yet; those of [`probe`], shared by all who waited for it;
    /// [`SourceError::Unavailable`] when the prober has ended.
    pub async fn get(&self) -> Answer {
        let (sender, receiver) = oneshot::channel();
        let gone = || SourceError::unavailable("the watermark's task has ended");
        let (patience, limit) =
            (Duration::from_millis(self.settings.patience_ms), Duration::from_millis(self.settings.held_ms));
        let mut asked = pin!(async {
            self.asks.send(sender).await.map_err(|_| gone())?;
            receiver.await.map_err(|_| gone())?
        });
        let began = Instant::now();
        loop {
            if let Ok(answer) = timeout(patience.max(POLL.0), &mut asked).await {
                return answer;
            }
            // A probe that is merely slow is waited for.
            let progress = self.progress.borrow();
            if let Some(known) = progress.known.as_ref().filter(|known| progress.goes_on_from(known)) {
                return Ok(known.clone());
            }
            if began.elapsed() >= limit {
                let holder = progress.holder.clone().unwrap_or_else(|| "an open transaction".into());
                return Err(SourceError::Held { holder });
            }
        }
    }
}

impl Progress {
    /// Whether a watermark that was found before is good enough: writers hold the next one back, and the probe has seen
    /// that the epoch is still the same.
    fn goes_on_from(&self, known: &Watermark) -> bool {
        self.held && self.probing.as_ref() == Some(&known.epoch)
    }
}

impl Prober {
    /// Makes a probe whenever someone asks, one at a time, until every [`Watermarks`] is gone. A probe goes on when
    /// nobody waits for it any more: were it dropped, writers that come one after the other could hold the watermark
    /// back for ever.
    ///
    /// One begins when as many have asked as the last one served, or after a moment: callers that wait for the same
    /// things come again together, and one that is alone waits once, as the first after a crowd.
    pub async fn run<F: Future<Output = Answer>>(mut self, mut probe: impl FnMut(Report) -> F) {
        let mut served = 0;
        while let Some(first) = self.asks.recv().await {
            let mut asks = vec![first];
            let gather = async {
                while asks.len() < served
                    && let Some(ask) = self.asks.recv().await
                {
                    asks.push(ask);
                }
            };
            // What has come by then is enough.
            let _ = timeout(GATHER, gather).await;
            while let Ok(ask) = self.asks.try_recv() {
                asks.push(ask);
            }
            served = asks.len();
            let answer = probe(self.report.clone()).await;
            let metrics = &self.report.metrics;
            metrics.holder.is_nobody();
            metrics.held_seconds.set(0.0);
            if let Ok(found) = &answer {
                metrics.sync_id.set(signed(found.sync_id.0));
            }
            self.report.progress.send_modify(|progress| {
                (progress.probing, progress.held, progress.holder) = (None, false, None);
                if let Ok(found) = &answer {
                    progress.known = Some(found.clone());
                }
            });
            for ask in asks {
                // Whoever has gone needs no answer.
                let _ = ask.send(answer.clone());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::rc::Rc;

    use super::*;
    use crate::model::SyncId;

    fn mark(sync_id: u64) -> Watermark {
        Watermark { epoch: Epoch::new("e"), sync_id: SyncId(sync_id) }
    }

    /// A prober whose n-th probe takes a second and finds n.
    fn slow_prober() -> (Watermarks, Rc<Cell<u64>>, impl Future<Output = ()>) {
        let (watermarks, prober) =
            Watermarks::new(8, WatermarkSettings { patience_ms: 5_000, held_ms: 10_000 }, WatermarkMetrics::default());
        let probes = Rc::new(Cell::new(0));
        let counted = Rc::clone(&probes);
        let run = prober.run(move |_| {
            counted.set(counted.get() + 1);
            let found = counted.get();
            async move {
                tokio::time::sleep(Duration::from_secs(1)).await;
                Ok(mark(found))
            }
        });
        (watermarks, probes, run)
    }

    /// Runs a test while the prober works.
    async fn beside(run: impl Future<Output = ()>, test: impl Future<Output = ()>) {
        tokio::select! {
            () = run => panic!("the prober ended"),
            () = test => {}
        }
    }

    #[tokio::test(start_paused = true)]
    async fn those_who_come_during_a_probe_share_the_next() {
        let (watermarks, probes, run) = slow_prober();
        beside(run, async {
            let early = [watermarks.get(), watermarks.get(), watermarks.get()];
            let late = async {
                tokio::time::sleep(Duration::from_millis(500)).await;
                futures_util::future::join_all((0..20).map(|_| watermarks.get())).await
            };
            let (early, late) = tokio::join!(futures_util::future::join_all(early), late);
            assert!(early.iter().all(|answer| *answer.as_ref().unwrap() == mark(1)), "{early:?}");
            assert!(late.iter().all(|answer| answer.as_ref().unwrap().sync_id >= SyncId(2)), "{late:?}");
            assert!(probes.get() <= 4, "20 who came at once made {} probes", probes.get());
        })
        .await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_caller_that_goes_away_takes_nobody_along() {
        let (watermarks, probes, run) = slow_prober();
        beside(run, async {
            let (impatient, patient) =
                tokio::join!(timeout(Duration::from_millis(500), watermarks.get()), watermarks.get());
            assert!(impatient.is_err());
            assert_eq!(patient.unwrap(), mark(1));
            let alone = timeout(Duration::from_millis(500), watermarks.get()).await;
            assert!(alone.is_err());
            assert_eq!(watermarks.get().await.unwrap(), mark(3), "the abandoned probe went on, the next is newer");
            assert_eq!(probes.get(), 3);
        })
        .await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_probe_that_is_held_back_leaves_the_last_watermark_in_force() {
        let (watermarks, prober) =
            Watermarks::new(8, WatermarkSettings { patience_ms: 100, held_ms: 1_000 }, WatermarkMetrics::default());
        let probes = Cell::new(0);
        // The first is held for a minute, the second finds something, the others are held, the last in another epoch.
        let run = prober.run(|report| {
            probes.set(probes.get() + 1);
            let number = probes.get();
            async move {
                let epoch = Epoch::new(if number < 4 { "e" } else { "f" });
                report.progress.send_modify(|progress| {
                    (progress.probing, progress.held, progress.holder) = (Some(epoch), true, Some("pid 1".into()));
                });
                if number != 2 {
                    tokio::time::sleep(Duration::from_secs(60)).await;
                }
                Ok(mark(number))
            }
        });
        beside(run, async {
            let began = Instant::now();
            let held = watermarks.get().await;
            assert!(matches!(&held, Err(SourceError::Held { holder }) if holder == "pid 1"), "{held:?}");
            assert_eq!(began.elapsed(), Duration::from_secs(1));
            tokio::time::sleep(Duration::from_secs(60)).await;
            assert_eq!(watermarks.get().await.unwrap(), mark(2));
            let began = Instant::now();
            assert_eq!(watermarks.get().await.unwrap(), mark(2), "older, not wrong");
            assert_eq!(began.elapsed(), Duration::from_millis(100));
            tokio::time::sleep(Duration::from_secs(60)).await;
            let other = watermarks.get().await;
            assert!(matches!(other, Err(SourceError::Held { .. })), "{other:?}");
        })
        .await;
    }

    #[tokio::test]
    async fn all_who_wait_get_the_error_with_its_causes() {
        let (watermarks, prober) = Watermarks::new(8, WatermarkSettings::default(), WatermarkMetrics::default());
        let run = prober.run(async |_| Err(SourceError::unavailable(Standby)));
        beside(run, async {
            for answer in futures_util::future::join_all([watermarks.get(), watermarks.get()]).await {
                let error = answer.unwrap_err();
                let cause = std::error::Error::source(&error).expect("a cause");
                assert_eq!(cause.to_string(), Standby.to_string());
            }
        })
        .await;
    }
}
