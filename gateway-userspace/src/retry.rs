//! Sending a request again: when, how often, how soon, and how much of that a service has to bear.

use std::{
    ops::RangeInclusive,
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use parking_lot::Mutex;

use crate::limits;

/// What a rule says about trying again.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Policy {
    /// Retries of one request at most, on top of the first try.
    pub attempts: usize,
    /// Statuses of endpoints that call for another try.
    pub statuses: Vec<RangeInclusive<u16>>,
    /// Statuses of calls of gRPC that call for another try, whatever the method.
    pub calls: Calls,
    /// Wait before the first retry; it doubles with each, up to tenfold.
    pub backoff: Duration,
    /// Whether somebody asked for retries: then also a try that took too long is repeated, and endpoints that were tried
    /// are tried again when there is no other.
    pub is_written: bool,
}

impl Policy {
    /// Where nothing is written: other endpoints, at once, when an endpoint could not do what it was asked for.
    pub const DEFAULT: Self = Self {
        attempts: limits::RETRIES,
        statuses: Vec::new(),
        calls: Calls::NONE,
        backoff: limits::RETRY_BACKOFF,
        is_written: false,
    };

    /// Once, whatever comes of it.
    pub const NEVER: Self = Self {
        attempts: 0,
        statuses: Vec::new(),
        calls: Calls::NONE,
        backoff: limits::RETRY_BACKOFF,
        is_written: false,
    };

    /// Whether this status calls for another try.
    pub fn includes(&self, status: u16) -> bool {
        self.statuses.iter().any(|range| range.contains(&status))
    }

    /// How long to wait before the retry that follows `n_retries` others. The written time is the least; without one, any
    /// time below it, so that clients that failed together do not come back together.
    pub fn wait(&self, n_retries: usize) -> Duration {
        let factor = u32::try_from(n_retries).map_or(10, |n| 2_u32.saturating_pow(n)).min(10);
        let least = self.backoff.saturating_mul(factor);
        if self.is_written {
            least + least.mul_f64(fastrand::f64() / 2.0)
        } else {
            least.mul_f64(fastrand::f64())
        }
    }
}

/// Statuses of gRPC, as a set of their numbers.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Calls(u32);

impl Calls {
    /// None of them.
    pub const NONE: Self = Self(0);

    /// Words for those that a call may be repeated after, and their numbers (gRPC's document `statuscodes.md`).
    pub const WORDS: [(&str, u8); 5] = [
        ("cancelled", 1),
        ("deadline-exceeded", 4),
        ("internal", 13),
        ("resource-exhausted", 8),
        ("unavailable", 14),
    ];

    /// With one more.
    #[must_use]
    pub const fn with(self, number: u8) -> Self {
        Self(self.0 | (1 << (number % 32)))
    }

    /// Whether there is none.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Whether a value of `grpc-status` is one of them.
    pub fn includes(self, value: &[u8]) -> bool {
        let number = std::str::from_utf8(value).ok().and_then(|text| text.parse::<u8>().ok());
        number.is_some_and(|number| number < 32 && self.0 & (1 << number) != 0)
    }
}

/// How many retries a service bears.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Limits {
    /// Retries in percent of requests.
    pub percent: u32,
    /// Retries per second that are always allowed, for each worker.
    pub per_second: u32,
}

impl Limits {
    /// Where nothing is written. As much as Envoy and Finagle allow.
    pub const DEFAULT: Self = Self { percent: 20, per_second: 10 };
}

/// What is left of it, for each worker. Each request pays in, each retry that an endpoint has to bear takes out; what is
/// saved is bounded, so that a quiet hour does not pay for a storm.
#[derive(Debug)]
pub struct Budget {
    limits: Limits,
    shards: Box<[Shard]>,
}

/// Two cache lines apart, because processors fetch lines in pairs.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Shard {
    /// Hundredths of a retry. Written by one worker.
    saved: AtomicU64,
    /// Hundredths of a retry out of those that are always allowed, and when they were filled up last.
    reserve: Mutex<(u64, Option<Instant>)>,
}

/// A retry, in the unit of what is saved.
const WHOLE: u64 = 100;

/// Retries that a worker can save up. Chosen: a burst that an endpoint notices, but survives.
const MOST: u64 = 100 * WHOLE;

impl Budget {
    /// A budget for so many workers.
    pub fn new(limits: Limits, n_workers: usize) -> Self {
        Self { limits, shards: (0..n_workers.max(1)).map(|_| Shard::default()).collect() }
    }

    /// Pays in for one request.
    pub fn deposit(&self, worker: usize) {
        let Some(shard) = self.shard(worker) else { return };
        let saved = shard.saved.load(Ordering::Relaxed);
        if saved < MOST {
            shard.saved.store(saved + u64::from(self.limits.percent), Ordering::Relaxed);
        }
    }

    /// Takes one retry out, if there is one.
    pub fn withdraw(&self, worker: usize, now: Instant) -> bool {
        let Some(shard) = self.shard(worker) else { return false };
        let saved = shard.saved.load(Ordering::Relaxed);
        if let Some(rest) = saved.checked_sub(WHOLE) {
            shard.saved.store(rest, Ordering::Relaxed);
            return true;
        }
        let full = u64::from(self.limits.per_second) * WHOLE;
        let mut reserve = shard.reserve.lock();
        let (left, filled) = *reserve;
        let elapsed = filled.map_or(Duration::from_secs(1), |filled| now.saturating_duration_since(filled));
        let earned = u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX).saturating_mul(full) / 1_000;
        // What is less than a hundredth stays with the time that earns it.
        let (left, filled) =
            if earned == 0 { (left, filled) } else { (left.saturating_add(earned).min(full), Some(now)) };
        let (rest, is_granted) = left.checked_sub(WHOLE).map_or((left, false), |rest| (rest, true));
        *reserve = (rest, filled);
        is_granted
    }

    fn shard(&self, worker: usize) -> Option<&Shard> {
        self.shards.get(worker % self.shards.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_of_calls_are_numbers() {
        let calls = Calls::NONE.with(14).with(1);
        for (value, expected) in
            [("14", true), ("1", true), ("0", false), ("4", false), ("33", false), ("46", false), ("", false)]
        {
            assert_eq!(calls.includes(value.as_bytes()), expected, "{value}");
        }
        assert!(Calls::NONE.is_empty() && !calls.is_empty() && !Calls::NONE.includes(b"0"));
    }
    use crate::clock::Clock;

    fn granted(budget: &Budget, worker: usize, now: Instant) -> usize {
        (0..1_000).take_while(|_| budget.withdraw(worker, now)).count()
    }

    #[test]
    fn retries_are_a_share_of_requests_and_a_few_more() {
        let clock = Clock::driven();
        let budget = Budget::new(Limits { percent: 20, per_second: 10 }, 2);
        assert_eq!(granted(&budget, 0, clock.now()), 10, "the reserve of one second");
        clock.advance(Duration::from_millis(500));
        assert_eq!(granted(&budget, 0, clock.now()), 5);
        (0..50).for_each(|_| budget.deposit(0));
        assert_eq!(granted(&budget, 0, clock.now()), 10, "a fifth of the requests");
        (0..100_000).for_each(|_| budget.deposit(0));
        assert_eq!(granted(&budget, 0, clock.now()), 100, "what can be saved is bounded");
        clock.advance(Duration::from_hours(1));
        assert_eq!(granted(&budget, 0, clock.now()), 10);
        assert_eq!(granted(&budget, 1, clock.now()), 10, "each worker has its own");
        let none = Budget::new(Limits { percent: 0, per_second: 0 }, 1);
        (0..1_000).for_each(|_| none.deposit(0));
        assert_eq!(granted(&none, 0, clock.now()), 0);
    }

    #[test]
    fn asking_often_does_not_starve_the_reserve() {
        let clock = Clock::driven();
        let budget = Budget::new(Limits { percent: 0, per_second: 1 }, 1);
        assert_eq!(granted(&budget, 0, clock.now()), 1);
        let mut n_granted = 0;
        for _ in 0..10_000 {
            clock.advance(Duration::from_millis(1));
            n_granted += usize::from(budget.withdraw(0, clock.now()));
        }
        assert!((9..=10).contains(&n_granted), "{n_granted} in ten seconds");
    }

    #[test]
    fn waits_grow_up_to_tenfold_and_differ() {
        let policy = Policy { backoff: Duration::from_millis(100), is_written: true, ..Policy::DEFAULT };
        for (n, least, most) in
            [(0, 100, 150), (1, 200, 300), (2, 400, 600), (3, 800, 1_200), (9, 1_000, 1_500)]
        {
            for _ in 0..100 {
                let wait = policy.wait(n).as_millis();
                assert!((least..=most).contains(&wait), "{n}: {wait}");
            }
        }
        let default = Policy { backoff: Duration::from_millis(100), ..Policy::DEFAULT };
        assert!((0..100).map(|_| default.wait(0)).max() <= Some(Duration::from_millis(100)));
        assert!((0..100).any(|_| default.wait(0) != default.wait(0)));
    }
}
