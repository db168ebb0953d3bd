//! What a worker has to do, and when it is too much: requests are answered with 503 before anything is done for them, so
//! that those which are under way come to their end and memory stays bounded.
//!
//! Three things count: requests under way, from their head to the last byte of their response; how late the worker comes to
//! what is due, which is the time that everything in its queue waits, new connections too; and the memory of the process,
//! which somebody else looks at.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::time::Instant;

use crate::{
    config::OverloadSettings,
    memory::{Level, Memory},
    metrics::names::Limit,
};

/// How often a worker looks how late it is.
const LOOK: Duration = Duration::from_millis(100);

/// The load of one worker.
#[derive(Debug)]
pub struct Load {
    n_requests: AtomicUsize,
    most_requests: usize,
    delay: Duration,
    is_late: AtomicBool,
    memory: Arc<Memory>,
}

/// A request that is under way.
#[derive(Debug)]
pub struct UnderWay(Arc<Load>);

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.n_requests.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Load {
    /// That of one of `n_workers`.
    pub fn new(settings: &OverloadSettings, n_workers: usize, memory: Arc<Memory>) -> Self {
        Self {
            n_requests: AtomicUsize::new(0),
            most_requests: settings.requests.div_ceil(n_workers.max(1)),
            delay: settings.delay,
            is_late: AtomicBool::new(false),
            memory,
        }
    }

    /// Begins a request, unless there is too much to do.
    pub fn begin(self: &Arc<Self>) -> Result<UnderWay, Limit> {
        if self.is_memory_scarce() {
            return Err(Limit::Memory);
        }
        if self.is_late.load(Ordering::Relaxed) {
            return Err(Limit::Delay);
        }
        // Only this worker begins requests here, so that nobody comes in between.
        if self.n_requests.load(Ordering::Relaxed) >= self.most_requests {
            return Err(Limit::Requests);
        }
        self.n_requests.fetch_add(1, Ordering::Relaxed);
        Ok(UnderWay(Arc::clone(self)))
    }

    /// Whether connections should end with the request that they carry, because memory is scarce.
    pub fn is_memory_scarce(&self) -> bool {
        self.memory.level() != Level::Enough
    }

    /// Whether a connection should not even be accepted. Whoever `can_be_told` why is let in as long as there is room.
    pub fn refuses_connections(&self, can_be_told: impl FnOnce() -> bool) -> bool {
        match self.memory.level() {
            Level::Enough => false,
            Level::Scarce => !can_be_told(),
            Level::Gone => true,
        }
    }

    /// Looks after time, for ever; on the worker itself. A bound that was passed holds until the value is below nine tenths
    /// of it, so that it does not flicker.
    pub async fn watch(&self) {
        let mut late = Duration::ZERO;
        loop {
            let due = Instant::now() + LOOK;
            tokio::time::sleep_until(due).await;
            // One long step is no overload, many are.
            late = (late * 3 + due.elapsed()) / 4;
            if late > self.delay {
                self.is_late.store(true, Ordering::Relaxed);
            } else if late <= self.delay / 10 * 9 {
                self.is_late.store(false, Ordering::Relaxed);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::names::Families;

    fn load(n_workers: usize, memory_bytes: Option<u64>) -> (Arc<Load>, Arc<Memory>) {
        let settings = OverloadSettings { requests: 5, delay: Duration::from_millis(50), memory_bytes };
        let memory = Arc::new(Memory::new(memory_bytes, Families::default()));
        (Arc::new(Load::new(&settings, n_workers, Arc::clone(&memory))), memory)
    }

    #[test]
    fn as_many_requests_as_its_share() {
        let (load, _) = load(2, None);
        let begun: Vec<_> = (0..3).map(|_| load.begin().unwrap()).collect();
        assert_eq!(load.begin().unwrap_err(), Limit::Requests);
        drop(begun);
        assert!(load.begin().is_ok());
    }

    #[tokio::test]
    async fn a_worker_that_is_late_takes_nothing_more_until_it_is_in_time_again() {
        let (load, _) = load(1, None);
        let busy = async {
            let started = Instant::now();
            while load.begin().is_ok() {
                assert!(started.elapsed().as_secs() < 10, "it never is too late");
                let step = Instant::now();
                while step.elapsed() < Duration::from_millis(400) {}
                tokio::task::yield_now().await;
            }
            while load.begin().is_err() {
                assert!(started.elapsed().as_secs() < 20, "it never is in time again");
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::select! {
            () = busy => {}
            () = load.watch() => {}
        }
    }

    #[tokio::test]
    async fn a_process_that_is_too_large_takes_nothing_more() {
        let (load, memory) = load(1, Some(1_024));
        assert!(load.begin().is_ok() && !load.refuses_connections(|| false));
        drop(tokio::time::timeout(LOOK, memory.watch()).await);
        assert_eq!(load.begin().unwrap_err(), Limit::Memory);
        assert!(load.is_memory_scarce() && load.refuses_connections(|| true));
    }
}
