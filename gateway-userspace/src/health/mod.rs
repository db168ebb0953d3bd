//! Health of one endpoint as a pure state machine: outcomes of checks in, transitions out.

pub mod passive;

use std::time::Duration;

use crate::endpoint::Health;

/// When an endpoint changes its state.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Thresholds {
    /// Checks in a row that failed otherwise than by being refused, and take it down; at least one.
    pub unhealthy: u32,
    /// Passed checks in a row that bring it back; at least one.
    pub healthy: u32,
}

/// What is done to find out, and how often.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Check {
    /// What is done.
    pub kind: Kind,
    /// From the start of one check to the start of the next.
    pub interval: Duration,
    /// Bound on one check.
    pub timeout: Duration,
    /// When the endpoint changes its state.
    pub thresholds: Thresholds,
}

/// What a check does.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Kind {
    /// A TCP connection is opened and closed.
    Tcp,
    /// A GET request is answered with one of the statuses.
    Http {
        /// Origin-form path.
        path: String,
        /// Value of `host`.
        host: String,
        /// Accepted statuses, inclusive.
        statuses: std::ops::RangeInclusive<u16>,
        /// Over HTTP/2, as the service is spoken to; else over HTTP/1.1.
        is_http2: bool,
    },
}

/// How one check ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Outcome {
    /// As it should.
    Passed,
    /// Nobody listens, or the connection was reset: hard evidence.
    Refused,
    /// Nothing came in time.
    Silent,
    /// The endpoint did not prove who it is, or we not to it.
    Untrusted,
    /// Something came, and it was not what was asked for.
    Wrong,
    /// This node could not ask, for lack of ports, descriptors or memory: that says nothing about the endpoint.
    Unasked,
}

impl Outcome {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::Passed, Self::Refused, Self::Silent, Self::Untrusted, Self::Wrong, Self::Unasked];

    /// The value of the metric's label.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Passed => "passed",
            Self::Refused => "refused",
            Self::Silent => "silent",
            Self::Untrusted => "untrusted",
            Self::Wrong => "wrong",
            Self::Unasked => "unasked",
        }
    }
}

/// What is remembered between checks.
#[derive(Clone, Copy, Debug)]
pub struct Tracker {
    health: Health,
    passed_in_a_row: u32,
    failed_in_a_row: u32,
}

impl Tracker {
    /// Goes on from what is known.
    pub const fn new(health: Health) -> Self {
        Self { health, passed_in_a_row: 0, failed_in_a_row: 0 }
    }

    /// Takes the outcome of one check; the new health, when it changed.
    pub fn observe(&mut self, outcome: Outcome, thresholds: Thresholds) -> Option<Health> {
        let enough = match outcome {
            Outcome::Unasked => return None,
            Outcome::Passed => {
                self.failed_in_a_row = 0;
                self.passed_in_a_row = self.passed_in_a_row.saturating_add(1);
                self.passed_in_a_row >= thresholds.healthy
            }
            Outcome::Refused | Outcome::Silent | Outcome::Untrusted | Outcome::Wrong => {
                self.passed_in_a_row = 0;
                self.failed_in_a_row = self.failed_in_a_row.saturating_add(1);
                outcome == Outcome::Refused || self.failed_in_a_row >= thresholds.unhealthy
            }
        };
        let next = if outcome == Outcome::Passed { Health::Up } else { Health::Down };
        if !enough || next == self.health {
            return None;
        }
        self.health = next;
        Some(next)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Outcome::{Passed, Refused, Silent, Untrusted, Wrong};

    #[track_caller]
    fn check(from: Health, outcomes: &[Outcome], expected: &[Option<Health>]) {
        let thresholds = Thresholds { unhealthy: 2, healthy: 2 };
        let mut tracker = Tracker::new(from);
        let seen: Vec<_> = outcomes.iter().map(|outcome| tracker.observe(*outcome, thresholds)).collect();
        assert_eq!(seen, expected);
    }

    #[test]
    fn a_refused_check_is_enough_and_a_silent_one_is_not() {
        check(Health::Up, &[Refused], &[Some(Health::Down)]);
        check(Health::Up, &[Silent, Wrong], &[None, Some(Health::Down)]);
        check(Health::Up, &[Untrusted, Untrusted], &[None, Some(Health::Down)]);
        check(Health::Up, &[Silent, Passed, Silent, Silent], &[None, None, None, Some(Health::Down)]);
        check(Health::Unknown, &[Silent, Silent], &[None, Some(Health::Down)]);
    }

    #[test]
    fn it_comes_back_after_enough_passed_checks_in_a_row() {
        check(Health::Down, &[Passed, Refused, Passed, Passed], &[None, None, None, Some(Health::Up)]);
        check(Health::Unknown, &[Passed, Passed], &[None, Some(Health::Up)]);
    }
}
