//! The only place that spawns, so that every task has a name, is waited for at the end, and can be told to stop.
//!
//! A task that panics is a fault of ours: it is logged with its name, and whoever waited for it sees its channel close.

use std::any::Any;
use std::collections::BTreeMap;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::FutureExt;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Spawns tasks and ends them together. Clones share the same tasks. Memory: one counter for each name in use.
#[derive(Clone, Debug, Default)]
pub struct Tasks {
    tracker: TaskTracker,
    token: CancellationToken,
    running: Arc<Mutex<BTreeMap<&'static str, usize>>>,
}

/// Runs work that blocks or computes for long on a thread of its own kind, and waits for it. Dropping the future lets
/// the work run to its end unobserved. Tokio bounds how many such threads there are; the rest of the work waits.
///
/// # Panics
/// With the work's own panic.
pub async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(value) => value,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // The runtime is going down and will not poll this future again.
            Err(_) => std::future::pending().await,
        },
    }
}

/// Tasks that did not end within the time they were given: name and how many.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("still running: {}", .0.iter().map(|(name, count)| format!("{name} ({count})")).collect::<Vec<_>>().join(", "))]
pub struct StillRunning(pub Vec<(&'static str, usize)>);

impl Tasks {
    /// No tasks yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Runs a future to its end on the runtime. It should end soon after [`Self::token`] is cancelled.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn spawn(&self, name: &'static str, future: impl Future<Output = ()> + Send + 'static) {
        let counted = Counted::new(name, self.running.clone());
        self.tracker.spawn(async move {
            let _counted = counted;
            if let Err(panic) = AssertUnwindSafe(future).catch_unwind().await {
                tracing::error!(task = name, panic = panic_text(&*panic), "a task panicked");
            }
        });
    }

    /// Cancelled when the service is to end.
    pub fn token(&self) -> &CancellationToken {
        &self.token
    }

    /// Tells all tasks to end and waits for them. A task spawned meanwhile is waited for too.
    ///
    /// # Errors
    /// The names of those that did not end within `timeout`; they go on until the runtime is dropped.
    pub async fn shutdown(&self, timeout: Duration) -> Result<(), StillRunning> {
        self.token.cancel();
        self.tracker.close();
        tokio::time::timeout(timeout, self.tracker.wait()).await.map_err(|_| {
            let running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
            StillRunning(running.iter().map(|(name, count)| (*name, *count)).collect())
        })
    }
}

/// Counts a task for as long as it lives, also when the runtime drops it midway.
struct Counted {
    name: &'static str,
    running: Arc<Mutex<BTreeMap<&'static str, usize>>>,
}

impl Counted {
    fn new(name: &'static str, running: Arc<Mutex<BTreeMap<&'static str, usize>>>) -> Self {
        *running.lock().unwrap_or_else(PoisonError::into_inner).entry(name).or_default() += 1;
        Self { name, running }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = running.get_mut(self.name) {
            *count -= 1;
            if *count == 0 {
                running.remove(self.name);
            }
        }
    }
}

/// What a panic says.
pub fn panic_text(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn shutdown_waits_and_names_who_stays() {
        let tasks = Tasks::new();
        let token = tasks.token().clone();
        tasks.spawn("obedient", async move { token.cancelled().await });
        tasks.spawn("broken", async { panic!("on purpose") });
        assert_eq!(tasks.shutdown(Duration::from_secs(1)).await, Ok(()));
        tasks.spawn("stubborn", std::future::pending());
        tasks.spawn("stubborn", std::future::pending());
        let left = tasks.shutdown(Duration::from_secs(1)).await.unwrap_err();
        assert_eq!(left.to_string(), "still running: stubborn (2)");
    }
}
