//! What a worker has to do, and when it is too much: requests are answered with 503 before anything is done for them, so
//! that those which are under way come to their end and memory stays bounded.
//!
//! Three things count: requests under way, from their head to the last byte of their response; how late the worker comes to
//! what is due, which is the time that everything in its queue waits, new connections too; and the memory of the process.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU8, AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::time::Instant;

use crate::{config::OverloadSettings, metrics::names::Limit};

/// How often a worker looks how late it is.
const LOOK: Duration = Duration::from_millis(100);

/// Looks between two at the memory of the process.
const MEMORY_LOOKS: u32 = 5;

/// The load of one worker.
#[derive(Debug)]
pub struct Load {
    n_requests: AtomicUsize,
    most_requests: usize,
    delay: Duration,
    memory_bytes: Option<u64>,
    state: AtomicU8,
}

/// Values of the state: bits, because both may hold.
const LATE: u8 = 1;
const LARGE: u8 = 2;

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
    pub fn new(settings: &OverloadSettings, n_workers: usize) -> Self {
        Self {
            n_requests: AtomicUsize::new(0),
            most_requests: settings.requests.div_ceil(n_workers.max(1)),
            delay: settings.delay,
            memory_bytes: settings.memory_bytes.or_else(memory::usable),
            state: AtomicU8::new(0),
        }
    }

    /// Begins a request, unless there is too much to do.
    pub fn begin(self: &Arc<Self>) -> Result<UnderWay, Limit> {
        match self.state.load(Ordering::Relaxed) {
            0 => {}
            state if state & LARGE != 0 => return Err(Limit::Memory),
            _ => return Err(Limit::Delay),
        }
        // Only this worker begins requests here, so that nobody comes in between.
        if self.n_requests.load(Ordering::Relaxed) >= self.most_requests {
            return Err(Limit::Requests);
        }
        self.n_requests.fetch_add(1, Ordering::Relaxed);
        Ok(UnderWay(Arc::clone(self)))
    }

    /// Looks after time and memory, for ever; on the worker itself.
    pub async fn watch(&self) {
        let mut late = Duration::ZERO;
        let mut n_looks = 0_u32;
        loop {
            let due = Instant::now() + LOOK;
            tokio::time::sleep_until(due).await;
            // One long step is no overload, many are.
            late = (late * 3 + due.elapsed()) / 4;
            self.set(LATE, late, self.delay);
            if n_looks.is_multiple_of(MEMORY_LOOKS)
                && let Some(most) = self.memory_bytes
            {
                self.set(LARGE, memory::resident().unwrap_or_default(), most);
            }
            n_looks = n_looks.wrapping_add(1);
        }
    }

    /// Sets a bit above a bound, and takes it away again below nine tenths of it, so that it does not flicker.
    fn set<T: Bounded>(&self, bit: u8, value: T, bound: T) {
        if value > bound {
            self.state.fetch_or(bit, Ordering::Relaxed);
        } else if value <= bound.nearly() {
            self.state.fetch_and(!bit, Ordering::Relaxed);
        }
    }
}

/// What has a bound.
trait Bounded: Copy + PartialOrd {
    fn nearly(self) -> Self;
}

impl Bounded for Duration {
    fn nearly(self) -> Self {
        self / 10 * 9
    }
}

impl Bounded for u64 {
    fn nearly(self) -> Self {
        self / 10 * 9
    }
}

/// Memory, as the kernel says it.
mod memory {
    use std::fs;

    /// Bytes of this process that are in memory.
    pub(super) fn resident() -> Option<u64> {
        kibibytes(&fs::read_to_string("/proc/self/status").ok()?, "VmRSS:")
    }

    /// Nine tenths of what the process may use: of its control group, where that has a bound, else of the machine.
    pub(super) fn usable() -> Option<u64> {
        let machine = kibibytes(&fs::read_to_string("/proc/meminfo").ok()?, "MemTotal:")?;
        let group = fs::read_to_string("/sys/fs/cgroup/memory.max").ok();
        let group = group.and_then(|text| text.trim().parse::<u64>().ok());
        Some(group.map_or(machine, |group| group.min(machine)) / 10 * 9)
    }

    pub(super) fn kibibytes(text: &str, name: &str) -> Option<u64> {
        let line = text.lines().find_map(|line| line.strip_prefix(name))?;
        line.split_whitespace().next()?.parse::<u64>().ok()?.checked_mul(1_024)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(requests: usize, memory_bytes: Option<u64>) -> OverloadSettings {
        OverloadSettings { requests, delay: Duration::from_millis(50), memory_bytes }
    }

    #[test]
    fn as_many_requests_as_its_share() {
        let load = Arc::new(Load::new(&settings(5, None), 2));
        let begun: Vec<_> = (0..3).map(|_| load.begin().unwrap()).collect();
        assert_eq!(load.begin().unwrap_err(), Limit::Requests);
        drop(begun);
        assert!(load.begin().is_ok());
    }

    #[tokio::test]
    async fn a_worker_that_is_late_takes_nothing_more_until_it_is_in_time_again() {
        let load = Arc::new(Load::new(&settings(5, None), 1));
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
        let load = Arc::new(Load::new(&settings(5, Some(1_024)), 1));
        drop(tokio::time::timeout(LOOK * 3, load.watch()).await);
        assert_eq!(load.begin().unwrap_err(), Limit::Memory);
        assert!(memory::resident().unwrap() > 1_024 * 1_024 && memory::usable() > memory::resident());
        assert_eq!(memory::kibibytes("VmPeak:\t 9 kB\nVmRSS:\t  12 kB\n", "VmRSS:"), Some(12_288));
    }
}
