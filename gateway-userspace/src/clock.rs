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

#[expect(clippy::disallowed_methods, reason = "this module is the clock")]
fn monotonic() -> Instant {
    Instant::now()
}

/// The wall clock, for timestamps that people and other machines read.
#[expect(clippy::disallowed_methods, reason = "this module is the clock")]
pub fn wall() -> SystemTime {
    SystemTime::now()
}
