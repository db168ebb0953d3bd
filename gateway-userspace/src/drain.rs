//! Shutdown: one signal that everything hears, and named tasks that end before a deadline.

use std::{
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
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

/// One drain after the other, each of those who are there when it begins.
#[derive(Clone, Debug)]
pub struct Rounds(Arc<Mutex<Trigger>>);

impl Default for Rounds {
    fn default() -> Self {
        Self(Arc::new(Mutex::new(channel().0)))
    }
}

impl Rounds {
    /// Another listener, of the drain that comes next.
    pub fn drain(&self) -> Drain {
        self.0.lock().drain()
    }

    /// Starts a drain; whoever listens from now on waits for the one after it.
    pub fn next(&self) {
        let former = std::mem::replace(&mut *self.0.lock(), channel().0);
        former.start();
    }

    /// Starts the last one; whoever listens later hears of it, too.
    pub fn end(&self) {
        self.0.lock().start();
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
    async fn a_round_ends_whoever_is_there_and_nobody_who_comes_later() {
        let rounds = Rounds::default();
        let first = rounds.drain();
        assert!(!first.has_begun());
        rounds.next();
        let second = rounds.drain();
        assert!(first.has_begun() && !second.has_begun());
        rounds.end();
        assert!(second.has_begun() && rounds.drain().has_begun());
    }

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
