//! What the dashboard shows, as server-sent events (HTML Standard, section 9.2): made once for all pages that watch.
//!
//! Pages follow a place that holds the newest of each event, never a queue: one that reads slowly, or not at all, finds the
//! newest when it comes back, and costs what its connection buffers. Orgs and dumps are looked at only while somebody
//! watches. Of many orgs the event tells those that need an eye most; the page asks for others by the API.

use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_stream::stream;
use axum::body::Body;
use axum::extract::State;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::http::{HeaderName, HeaderValue};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use serde::Serialize;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::chain::Chain;
use crate::http::admin::Admin;
use crate::http::admin::operations::LOOK_AGE;
use crate::http::admin::traffic::{self, Traffic};
use crate::http::error::HttpError;
use crate::metrics::Metrics;
use crate::model::SnapshotId;
use crate::serve::operate::DumpState;
use crate::serve::survey::{OrgPage, OrgSelection};
use crate::serve::{PartHealth, Service};
use crate::task::Tasks;

/// How many pages may follow at once; more are refused.
const WATCHERS: usize = 64;

/// How many orgs an event tells of, from the worst on.
const TOLD_ORGS: usize = 50;

/// The time between two looks at the dumps.
const DUMPS_EVERY: Duration = Duration::from_secs(1);

/// After this the dumps are told again though nothing changed: pages count from when they are told.
const TOLD_AGAIN: Duration = Duration::from_secs(10);

/// How long a look at the orgs may take before pages are told that there is none.
const LOOK_WITHIN: Duration = Duration::from_secs(20);

/// The events. Clones share them.
#[derive(Clone)]
pub struct Feed {
    shared: Arc<Shared>,
}

struct Shared {
    service: Service,
    traffic: Mutex<Traffic>,
    newest: watch::Sender<Newest>,
    /// Somebody has begun to watch.
    came: Notify,
    places: Arc<Semaphore>,
    stop: CancellationToken,
}

/// The newest event of each kind.
#[derive(Clone, Default)]
struct Newest {
    point: Numbered,
    dumps: Numbered,
    orgs: Numbered,
}

/// An event, and how many there were of its kind.
#[derive(Clone, Default)]
struct Numbered {
    number: u64,
    event: Bytes,
}

impl Numbered {
    fn replace(&mut self, event: Bytes) {
        *self = Self { number: self.number + 1, event };
    }

    /// The event, if it is not the one that was seen last; it is seen then.
    fn unseen(&self, seen: &mut u64) -> Option<Bytes> {
        let is_new = *seen != self.number;
        *seen = self.number;
        is_new.then(|| self.event.clone())
    }
}

/// What is told of the orgs.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct OrgsEvent {
    /// How the parts that the service leans on are doing.
    health: Vec<PartHealth>,
    /// Those that need an eye most; none when they could not be looked at.
    page: Option<OrgPage>,
    /// Why not.
    fault: Option<String>,
}

impl Feed {
    /// Starts to follow the service, until its tasks are told to end. Pages are followed until `stop`.
    pub fn start(service: Service, metrics: &Metrics, stop: CancellationToken, tasks: &Tasks) -> Self {
        let shared = Arc::new(Shared {
            service,
            traffic: Mutex::new(Traffic::new(metrics.clone())),
            newest: watch::Sender::default(),
            came: Notify::new(),
            places: Arc::new(Semaphore::new(WATCHERS)),
            stop,
        });
        let (following, token) = (shared.clone(), tasks.token().clone());
        tasks.spawn("events", async move {
            let all = async { tokio::join!(following.take_points(), following.tell_dumps(), following.tell_orgs()) };
            token.run_until_cancelled(all).await;
        });
        Self { shared }
    }

    fn watch(&self) -> Result<impl futures_util::Stream<Item = Result<Bytes, Infallible>> + use<>, HttpError> {
        if self.shared.stop.is_cancelled() {
            return Err(HttpError::Stopping);
        }
        let place = self.shared.places.clone().try_acquire_owned().map_err(|_| HttpError::Watchers(WATCHERS))?;
        let newest = self.shared.newest.subscribe();
        self.shared.came.notify_waiters();
        Ok(follow(self.shared.clone(), newest, place))
    }
}

/// The events for one page.
fn follow(
    shared: Arc<Shared>,
    mut newest: watch::Receiver<Newest>,
    place: OwnedSemaphorePermit,
) -> impl futures_util::Stream<Item = Result<Bytes, Infallible>> {
    stream! {
        let _place = place;
        let (mut points, mut dumps, mut orgs) = (u64::MAX, 0, 0);
        loop {
            let now = newest.borrow_and_update().clone();
            let is_next = points.checked_add(1) == Some(now.point.number);
            if let Some(point) = now.point.unseen(&mut points) {
                yield Ok(if is_next { point } else { shared.history(&mut points) });
            }
            for event in [now.dumps.unseen(&mut dumps), now.orgs.unseen(&mut orgs)].into_iter().flatten() {
                yield Ok(event);
            }
            // The sender lives as long as `shared`.
            if !matches!(shared.stop.run_until_cancelled(newest.changed()).await, Some(Ok(()))) {
                break;
            }
        }
    }
}

impl Shared {
    /// All points so far, the last of which is then seen.
    fn history(&self, seen: &mut u64) -> Bytes {
        let traffic = self.traffic.lock().unwrap_or_else(PoisonError::into_inner);
        *seen = traffic.taken();
        event("history", &traffic.history())
    }

    async fn take_points(&self) {
        let mut ticks = interval(traffic::EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // The first tick is at once, and what happened until then is nothing.
        ticks.tick().await;
        loop {
            ticks.tick().await;
            let (point, number) = {
                let mut traffic = self.traffic.lock().unwrap_or_else(PoisonError::into_inner);
                (traffic.take(), traffic.taken())
            };
            self.newest.send_modify(|newest| newest.point = Numbered { number, event: event("point", &point) });
        }
    }

    async fn watched(&self) {
        loop {
            let came = self.came.notified();
            if self.newest.receiver_count() > 0 {
                return;
            }
            came.await;
        }
    }

    /// Tells of the dumps whenever something about them has changed.
    async fn tell_dumps(&self) {
        let mut told: Option<(Vec<DumpState>, Option<SnapshotId>)> = None;
        let mut at = Instant::now();
        loop {
            self.watched().await;
            let list = self.service.dump_list();
            let now = (list.in_progress.clone(), list.ended.first().map(|ended| ended.id));
            if told.as_ref() != Some(&now) || at.elapsed() >= TOLD_AGAIN {
                self.newest.send_modify(|newest| newest.dumps.replace(event("dumps", &list)));
                told = Some(now);
                at = Instant::now();
            }
            sleep(DUMPS_EVERY).await;
        }
    }

    async fn tell_orgs(&self) {
        loop {
            self.watched().await;
            let selection = OrgSelection { limit: TOLD_ORGS, ..OrgSelection::default() };
            let look = timeout(LOOK_WITHIN, self.service.orgs(selection, LOOK_AGE));
            let (look, health) = tokio::join!(look, self.service.readiness());
            let (page, fault) = match look {
                Ok(Ok(page)) => (Some(page), None),
                Ok(Err(error)) => (None, Some(Chain(&error).to_string())),
                Err(_) => (None, Some(format!("no answer within {} s", LOOK_WITHIN.as_secs()))),
            };
            let told = OrgsEvent { health, page, fault };
            self.newest.send_modify(|newest| newest.orgs.replace(event("orgs", &told)));
            sleep(LOOK_AGE).await;
        }
    }
}

/// An event as it stands on the wire. JSON holds no line break.
fn event(name: &str, data: &impl Serialize) -> Bytes {
    let mut event = format!("event: {name}\ndata: ").into_bytes();
    serde_json::to_writer(&mut event, data).expect("plain data always serializes, and memory takes it");
    event.extend_from_slice(b"\n\n");
    event.into()
}

/// Follows the events for as long as the client stays, or until the service is told to stop.
pub async fn events(State(admin): State<Arc<Admin>>) -> Result<Response, HttpError> {
    let headers = [
        (CONTENT_TYPE, HeaderValue::from_static("text/event-stream")),
        (CACHE_CONTROL, HeaderValue::from_static("no-store")),
        // Asks nginx not to hold events back.
        (HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no")),
    ];
    Ok((headers, Body::from_stream(admin.feed.watch()?)).into_response())
}
