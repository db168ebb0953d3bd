//! Shutdown: one signal that everything hears, and named tasks that end before a deadline.

use std::{
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::sync::{Notify, watch};

/// The owner's side: tells everyone to drain.
#[derive(Debug)]
pub struct Trigger(watch::Sender<bool>);

/// The listener's side: cheap to clone, one for everything that must hear of the drain.
#[derive(Clone, Debug)]
pub struct Drain(watch::Receiver<bool>);

/// A trigger and its first listener.
pub fn channel() -> (Trigger, Drain) {
    let (sender, receiver) = watch::channel(false);
    (Trigger(sender), Drain(receiver))
}

impl Trigger {
    /// Starts the drain; idempotent.
    pub fn start(&self) {
        self.0.send_replace(true);
    }

    /// Another listener.
    pub fn drain(&self) -> Drain {
        Drain(self.0.subscribe())
    }
}

impl Drain {
    /// Whether the drain has begun.
    pub fn has_begun(&self) -> bool {
        *self.0.borrow()
    }

    /// Resolves when the drain begins, or when its trigger is gone.
    pub async fn begun(&mut self) {
        // An error means that the trigger is gone, which ends everything just as well.
        drop(self.0.wait_for(|begun| *begun).await);
    }
}

/// Spawns named tasks and waits for their end. Tasks run on the runtime of whoever spawns.
#[derive(Clone, Debug, Default)]
pub struct Tasks(Arc<Counter>);

#[derive(Debug, Default)]
struct Counter {
    running: AtomicUsize,
    idle: Notify,
}

struct Running(Arc<Counter>);

impl Drop for Running {
    fn drop(&mut self) {
        if self.0.running.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.0.idle.notify_waiters();
        }
    }
}

impl Tasks {
    /// Runs `future` on the current runtime. `name` says what it is for whoever reads a task dump.
    #[expect(clippy::disallowed_methods, reason = "this module is where tasks are spawned")]
    pub fn spawn<F>(&self, name: &'static str, future: F) -> tokio::task::JoinHandle<()>
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let running = self.running();
        // The runtime moves what it is given three times, and an async block that awaits what it has captured is twice as
        // large as that; a stream of HTTP/2 is a task of some kilobytes for each request.
        let future = Box::pin(future);
        tokio::spawn(async move {
            let _running = running;
            tracing::trace!(task = name, "started");
            future.await;
        })
    }

    /// Like [`Tasks::spawn`], for a future that stays on this thread; needs a `LocalSet` or a local runtime.
    #[expect(clippy::disallowed_methods, reason = "this module is where tasks are spawned")]
    pub fn spawn_local<F>(&self, name: &'static str, future: F) -> tokio::task::JoinHandle<()>
    where
        F: Future<Output = ()> + 'static,
    {
        let running = self.running();
        tokio::task::spawn_local(async move {
            let _running = running;
            tracing::trace!(task = name, "started");
            future.await;
        })
    }

    /// Tasks that have not ended.
    pub fn running_count(&self) -> usize {
        self.0.running.load(Ordering::Acquire)
    }

    /// Waits until no task runs, at most for `deadline`; says how many were left.
    pub async fn ended(&self, deadline: Duration) -> usize {
        let wait = async {
            loop {
                let idle = self.0.idle.notified();
                if self.running_count() == 0 {
                    return;
                }
                idle.await;
            }
        };
        drop(tokio::time::timeout(deadline, wait).await);
        self.running_count()
    }

    fn running(&self) -> Running {
        self.0.running.fetch_add(1, Ordering::AcqRel);
        Running(Arc::clone(&self.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn tasks_end_after_the_drain_begins() {
        let (trigger, mut drain) = channel();
        let tasks = Tasks::default();
        tasks.spawn("waiter", async move { drain.begun().await });
        assert_eq!(tasks.ended(Duration::from_millis(10)).await, 1);
        trigger.start();
        assert_eq!(tasks.ended(Duration::from_secs(5)).await, 0);
    }
}
