//! Heartbeats: until when the kernel programs may take a worker of the agent for alive.

use bytemuck::{Pod, Zeroable};

/// Value of [`Heartbeats`](crate::map::Heartbeats): one worker.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Pod, Zeroable)]
pub struct Heartbeat {
    /// Nanoseconds of `CLOCK_MONOTONIC`: from then on the worker is taken for silent, unless it wrote anew before. A row of
    /// zeroes is that of a worker that never spoke.
    pub until_ns: u64,
}

impl Heartbeat {
    /// Rows: as many as the configuration allows workers.
    pub const ROWS: u32 = 1_024;

    /// Whether the worker is alive at an instant of `CLOCK_MONOTONIC`.
    #[inline(always)]
    pub const fn is_fresh(self, now_ns: u64) -> bool {
        now_ns < self.until_ns
    }
}

const _: () = assert!(size_of::<Heartbeat>() == 8);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_that_never_spoke_is_silent() {
        assert!(!Heartbeat::default().is_fresh(0));
        assert!(Heartbeat { until_ns: 8 }.is_fresh(7) && !Heartbeat { until_ns: 8 }.is_fresh(8));
    }
}
