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
    /// Time that its bytes have paid for, each at the rate of its moment.
    earned: Duration,
    waited: Duration,
}

impl Pace {
    /// How long it may take until something moves: `stall`, or what is left of it and of the time that was earned.
    pub fn bound(&self, stall: Duration) -> Duration {
        (stall.saturating_add(self.earned)).saturating_sub(self.waited).min(stall)
    }

    /// So many bytes have moved, after this wait, in which this rate was asked for; where it is zero, the wait costs nothing.
    pub fn moved(&mut self, n_bytes: usize, waited: Duration, bytes_per_second: u32) {
        const NANOS: u64 = 1_000_000_000;
        let n_bytes = u64::try_from(n_bytes).unwrap_or(u64::MAX);
        if let Some(nanos) = n_bytes.saturating_mul(NANOS).checked_div(u64::from(bytes_per_second)) {
            self.earned = self.earned.saturating_add(Duration::from_nanos(nanos));
            self.waited = self.waited.saturating_add(waited);
        }
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
            assert_eq!(pace.bound(STALL).as_secs(), left);
            pace.moved(1, Duration::from_secs(20), RATE);
        }
        assert!(pace.bound(STALL) < Duration::from_millis(5), "three bytes in a minute");
        pace.moved(100 * 1_024, Duration::ZERO, RATE);
        assert_eq!(pace.bound(STALL), STALL, "it was fast otherwise");
        assert_eq!(Pace::default().bound(Duration::MAX), Duration::MAX);
    }

    #[test]
    fn what_was_asked_for_earlier_is_not_asked_for_again_at_another_rate() {
        let mut pace = Pace::default();
        // A tenth of what one alone has to take, among ten.
        for _ in 0..100 {
            pace.moved(1_024, Duration::from_secs(10), RATE / 10);
        }
        assert!(pace.bound(STALL).as_secs() >= 59, "{:?}", pace.bound(STALL));
        // It is alone now, and as slow as before.
        for _ in 0..6 {
            pace.moved(1_024, Duration::from_secs(10), RATE);
        }
        assert_eq!(pace.bound(STALL).as_secs(), 9, "from now on it costs");
        for _ in 0..100 {
            pace.moved(1, Duration::from_secs(10), 0);
        }
        assert_eq!(pace.bound(STALL).as_secs(), 9, "where nothing is asked, it does not");
    }

    #[test]
    fn whoever_is_as_fast_as_it_must_goes_on_for_ever() {
        let mut pace = Pace::default();
        for _ in 0..10_000 {
            assert!(pace.bound(STALL) > Duration::from_secs(10));
            pace.moved(10 * 1_024, Duration::from_secs(10), RATE);
        }
        for _ in 0..7 {
            pace.moved(9 * 1_024, Duration::from_secs(10), RATE);
        }
        assert_eq!(pace.bound(STALL).as_secs(), 53, "each second that is not earned is lost");
    }
}
