//! Heartbeats: each worker tells the kernel programs, again and again, until when it is to be taken for alive.
//!
//! It is the worker itself that tells: one that hangs is silent, whatever the others and the control loop do.

use std::{sync::atomic::Ordering, time::Duration};

use aya::Ebpf;
use gateway_common::{heartbeat::Heartbeat, map};

use crate::{
    clock,
    kernel::{Error, map::mapped, sys::MappedRows},
};

/// Times that a worker tells before it is taken for silent: a beat or two may come late.
const BEATS: u32 = 4;

/// The heartbeats of all workers.
#[derive(Debug)]
pub struct Heart {
    rows: MappedRows<Heartbeat>,
    holds: Duration,
}

impl Heart {
    /// Over the map of a loaded object; a worker is taken for silent when it has told nothing for so long.
    pub(super) fn take(object: &Ebpf, holds: Duration) -> Result<Self, Error> {
        Ok(Self { rows: mapped::<map::Heartbeats>(object)?, holds })
    }

    /// Tells that a worker is alive, for ever; to be awaited on that worker.
    pub async fn beat(&self, worker: usize) {
        loop {
            self.tell(worker);
            tokio::time::sleep(self.holds / BEATS).await;
        }
    }

    /// Tells that a worker is alive.
    pub fn tell(&self, worker: usize) {
        let row = u32::try_from(worker).ok().and_then(|row| self.rows.word(row, 0));
        if let Some(row) = row {
            let holds_ns = u64::try_from(self.holds.as_nanos()).unwrap_or(u64::MAX);
            row.store(clock::monotonic_ns().saturating_add(holds_ns), Ordering::Release);
        }
    }

    /// How many of the first so many workers are silent.
    pub fn n_silent(&self, n_workers: u32) -> usize {
        let now_ns = clock::monotonic_ns();
        let is_silent = |worker: &u32| self.rows.get(*worker).is_none_or(|beat| !beat.is_fresh(now_ns));
        (0..n_workers).filter(is_silent).count()
    }
}
