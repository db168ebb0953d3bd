//! How slow a peer may be with a body: it may be silent for a while, and has to move some bytes for each second that it is
//! waited for beyond that. The time in which nobody waits for it does not count.

use std::time::Duration;

/// What a peer is allowed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Terms {
    /// Time without a byte, and what it may be waited for in all before bytes are counted.
    pub stall: Duration,
    /// Bytes that each second of waiting beyond that takes.
    pub bytes_per_second: u32,
    /// The body is one side of a conversation, in which one side listens while the other one speaks.
    pub is_conversation: bool,
}

/// How a peer has moved a body so far.
#[derive(Clone, Copy, Debug, Default)]
pub struct Pace {
    n_bytes: u64,
    waited: Duration,
}

impl Pace {
    /// How long it may take until something moves: `stall`, or what is left of it and of the time that was earned.
    pub fn bound(&self, stall: Duration, bytes_per_second: u32) -> Duration {
        let earned =
            Duration::from_millis(self.n_bytes.saturating_mul(1_000) / u64::from(bytes_per_second.max(1)));
        (stall.saturating_add(earned)).saturating_sub(self.waited).min(stall)
    }

    /// So many bytes have moved, after this wait.
    pub fn moved(&mut self, n_bytes: usize, waited: Duration) {
        self.n_bytes = self.n_bytes.saturating_add(u64::try_from(n_bytes).unwrap_or(u64::MAX));
        self.waited = self.waited.saturating_add(waited);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STALL: Duration = Duration::from_mins(1);
    const RATE: u32 = 1_024;

    #[test]
    fn whoever_trickles_is_given_up_and_whoever_was_fast_may_rest() {
        let mut pace = Pace::default();
        for left in [60, 40, 20] {
            assert_eq!(pace.bound(STALL, RATE).as_millis() / 1_000, left);
            pace.moved(1, Duration::from_secs(20));
        }
        assert!(pace.bound(STALL, RATE) < Duration::from_millis(5), "three bytes in a minute");
        pace.moved(100 * 1_024, Duration::ZERO);
        assert_eq!(pace.bound(STALL, RATE), STALL, "it was fast otherwise");
        assert_eq!(pace.bound(STALL, 1), STALL, "and would be for longer at another rate");
    }

    #[test]
    fn whoever_is_as_fast_as_it_must_goes_on_for_ever() {
        let mut pace = Pace::default();
        for _ in 0..10_000 {
            assert!(pace.bound(STALL, RATE) > Duration::from_secs(10));
            pace.moved(10 * 1_024, Duration::from_secs(10));
        }
        for _ in 0..7 {
            pace.moved(9 * 1_024, Duration::from_secs(10));
        }
        assert_eq!(pace.bound(STALL, RATE).as_secs(), 53, "each second that is not earned is lost");
    }
}
