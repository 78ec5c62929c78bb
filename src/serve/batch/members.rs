//! Memberships: read anew for every answer, and for all who ask at the same moment by one statement.
//!
//! Nobody joins a read that has begun: a right that was taken away before the question must not be in the answer. Who asks
//! while one is under way waits for the next, which asks for all of them. It begins when as many have come as the last one
//! served, or after a moment: callers that wait for the same things come again together, and one that is alone waits once, as
//! the first after a crowd.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, oneshot};
use tokio::time::timeout;

use crate::model::{Grants, Org, SyncGroup, User};
use crate::serve::batch::LoadError;
use crate::source::Source;
use crate::task::Tasks;

/// Callers that may wait; past it they are turned away. About 200 bytes each.
const WAITING: usize = 10_000;

/// Callers that one statement serves.
const TOGETHER: usize = 1_000;

/// How long a read waits for as many callers as the last one served.
const GATHER: Duration = Duration::from_millis(4);

/// Reads memberships. Clones share everything.
#[derive(Clone)]
pub struct Members {
    source: Arc<dyn Source>,
    tasks: Tasks,
    state: Arc<Mutex<State>>,
    /// Told when as many wait as the last read served.
    enough: Arc<Notify>,
}

#[derive(Default)]
struct State {
    waiting: Vec<Waiting>,
    /// Whether a read is under way, or waits for company.
    reading: bool,
    /// Callers that the last read served.
    served: usize,
}

struct Waiting {
    member: (Org, User),
    answer: oneshot::Sender<Result<Grants, LoadError>>,
}

impl Members {
    /// Nobody asks yet.
    pub fn new(source: Arc<dyn Source>, tasks: Tasks) -> Self {
        Self { source, tasks, state: Arc::default(), enough: Arc::default() }
    }

    /// What a user holds, read after the call: the org's group, the user's own, and those of the membership tables. Cancel safe.
    ///
    /// # Errors
    /// [`LoadError::Overloaded`] when too many wait; the source's.
    pub async fn grants(&self, org: &Org, user: &User) -> Result<Grants, LoadError> {
        let (answer, answered) = oneshot::channel();
        {
            let mut state = self.lock();
            if state.waiting.len() >= WAITING {
                state.waiting.retain(|waiting| !waiting.answer.is_closed());
            }
            if state.waiting.len() >= WAITING {
                return Err(LoadError::Overloaded);
            }
            state.waiting.push(Waiting { member: (org.clone(), user.clone()), answer });
            if state.waiting.len() >= state.served {
                self.enough.notify_one();
            }
        }
        self.begin();
        answered.await.unwrap_or(Err(LoadError::Broken))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins a read, unless one is under way or nobody waits.
    fn begin(&self) {
        let mut state = self.lock();
        if state.reading {
            return;
        }
        state.waiting.retain(|waiting| !waiting.answer.is_closed());
        if state.waiting.is_empty() {
            return;
        }
        state.reading = true;
        drop(state);
        let ended = Ended(self.clone());
        self.tasks.spawn("memberships", async move {
            let members = &ended.0;
            members.tasks.token().run_until_cancelled(members.gather_and_read()).await;
        });
    }

    async fn gather_and_read(&self) {
        // Whoever notifies when nobody waits leaves that to the next, which looks for itself.
        let gather = async {
            while self.lock().lacks_company() {
                self.enough.notified().await;
            }
        };
        // What has come by then is enough.
        let _ = timeout(GATHER, gather).await;
        let waiting = {
            let mut state = self.lock();
            state.waiting.retain(|waiting| !waiting.answer.is_closed());
            let served = state.waiting.len().min(TOGETHER);
            state.served = served;
            state.waiting.drain(..served).collect::<Vec<_>>()
        };
        if !waiting.is_empty() {
            self.read(waiting).await;
        }
    }

    async fn read(&self, waiting: Vec<Waiting>) {
        let mut places: HashMap<&(Org, User), usize> = HashMap::new();
        let mut distinct = Vec::new();
        for Waiting { member, .. } in &waiting {
            places.entry(member).or_insert_with(|| {
                distinct.push(member.clone());
                distinct.len() - 1
            });
        }
        let grants = self.source.memberships(&distinct).await.map_err(LoadError::from).map(|groups| {
            let whole = |((org, user), mut groups): (&(Org, User), Vec<SyncGroup>)| {
                groups.push(SyncGroup::of(SyncGroup::ORG, org.as_str()));
                groups.push(SyncGroup::of(SyncGroup::USER, user.as_str()));
                Grants::new(groups)
            };
            distinct.iter().zip(groups).map(whole).collect::<Vec<_>>()
        });
        let answer = |waiting: &Waiting| match &grants {
            Ok(grants) => Ok(grants[places[&waiting.member]].clone()),
            Err(error) => Err(error.clone()),
        };
        let answers: Vec<_> = waiting.iter().map(answer).collect();
        for (waiting, answer) in waiting.into_iter().zip(answers) {
            // Whoever has gone away needs none.
            let _ = waiting.answer.send(answer);
        }
    }
}

impl State {
    fn lacks_company(&self) -> bool {
        self.waiting.len() < self.served
    }
}

/// When a read has ended, in whatever way, the next may begin.
struct Ended(Members);

impl Drop for Ended {
    fn drop(&mut self) {
        self.0.lock().reading = false;
        self.0.begin();
    }
}
