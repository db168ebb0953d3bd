//! Time: the only module that reads a clock, so that a test can own it.

use std::{
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use parking_lot::Mutex;

/// The time of this process: real, or driven by a test.
#[derive(Clone, Debug)]
pub struct Clock(Source);

#[derive(Clone, Debug)]
enum Source {
    Real,
    Driven(Arc<Mutex<Instant>>),
}

impl Clock {
    /// The machine's monotonic clock.
    pub const fn real() -> Self {
        Self(Source::Real)
    }

    /// A clock that stands still until [`Clock::advance`].
    pub fn driven() -> Self {
        Self(Source::Driven(Arc::new(Mutex::new(monotonic()))))
    }

    /// The present instant.
    pub fn now(&self) -> Instant {
        match &self.0 {
            Source::Real => monotonic(),
            Source::Driven(now) => *now.lock(),
        }
    }

    /// Moves a driven clock; a real one goes on by itself.
    pub fn advance(&self, by: Duration) {
        match &self.0 {
            Source::Real => {}
            Source::Driven(now) => *now.lock() += by,
        }
    }
}

/// Timer interrupts of the kernel in a second, which is how often its coarse clock moves on.
pub fn interrupts_per_second() -> u32 {
    /// What most distributions build, should the kernel not tell.
    const USUAL: u32 = 250;
    let resolution = nix::time::clock_getres(nix::time::ClockId::CLOCK_MONOTONIC_COARSE);
    let ns = resolution.map_or(0, |resolution| resolution.tv_nsec());
    u32::try_from(ns).ok().and_then(|ns| 1_000_000_000_u32.checked_div(ns)).unwrap_or(USUAL)
}

/// Nanoseconds of the clock that the kernel programs read.
pub fn monotonic_ns() -> u64 {
    let now =
        nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC).map_or(Duration::ZERO, Duration::from);
    u64::try_from(now.as_nanos()).unwrap_or(u64::MAX)
}

#[expect(clippy::disallowed_methods, reason = "this module is the clock")]
fn monotonic() -> Instant {
    Instant::now()
}

/// The wall clock's time of an instant of the kernel's monotonic clock, in nanoseconds.
pub fn wall_at(then_ns: u64) -> SystemTime {
    let ago = Duration::from_nanos(monotonic_ns().saturating_sub(then_ns));
    wall().checked_sub(ago).unwrap_or(SystemTime::UNIX_EPOCH)
}

/// Seconds since 1970.
pub fn wall_s() -> i64 {
    let since = wall().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

/// The wall clock, for timestamps that people and other machines read.
#[expect(clippy::disallowed_methods, reason = "this module is the clock")]
pub fn wall() -> SystemTime {
    SystemTime::now()
}
