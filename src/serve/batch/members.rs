//! Memberships: read anew for every answer, and for all who ask at the same moment by one statement.
//!
//! Nobody joins a read that has begun: a right that was taken away before the question must not be in the answer. Who asks
//! while one is under way waits for the next, which asks for all of them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

use crate::model::{Org, SyncGroup, User};
use crate::serve::batch::LoadError;
use crate::source::Source;
use crate::task::Tasks;

/// Callers that may wait; past it they are turned away. About 200 bytes each.
const WAITING: usize = 10_000;

/// Callers that one statement serves.
const TOGETHER: usize = 1_000;

/// Reads memberships. Clones share everything.
#[derive(Clone)]
pub struct Members {
    source: Arc<dyn Source>,
    tasks: Tasks,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    waiting: Vec<Waiting>,
    /// Whether a read is under way.
    reading: bool,
}

struct Waiting {
    member: (Org, User),
    answer: oneshot::Sender<Result<Vec<SyncGroup>, LoadError>>,
}

impl Members {
    /// Nobody asks yet.
    pub fn new(source: Arc<dyn Source>, tasks: Tasks) -> Self {
        Self { source, tasks, state: Arc::default() }
    }

    /// The groups of a user, read after the call. Cancel safe.
    ///
    /// # Errors
    /// [`LoadError::Overloaded`] when too many wait; the source's.
    pub async fn groups(&self, org: &Org, user: &User) -> Result<Vec<SyncGroup>, LoadError> {
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
        let served = state.waiting.len().min(TOGETHER);
        let waiting: Vec<Waiting> = state.waiting.drain(..served).collect();
        drop(state);
        let ended = Ended(self.clone());
        self.tasks.spawn("memberships", async move {
            let members = &ended.0;
            members.tasks.token().run_until_cancelled(members.read(waiting)).await;
        });
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
        let groups = self.source.memberships(&distinct).await.map_err(LoadError::from);
        let answer = |waiting: &Waiting| match &groups {
            Ok(groups) => Ok(groups[places[&waiting.member]].clone()),
            Err(error) => Err(error.clone()),
        };
        let answers: Vec<_> = waiting.iter().map(answer).collect();
        for (waiting, answer) in waiting.into_iter().zip(answers) {
            // Whoever has gone away needs none.
            let _ = waiting.answer.send(answer);
        }
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
