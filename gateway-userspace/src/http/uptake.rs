//! Whether a client takes what is written to it, while its socket is not ready for more. The kernel says that it is when a
//! third of the buffer is free, which of megabytes may take a slow client minutes; what it has delivered meanwhile is asked
//! for now and then, so that a client that is fast enough pays nothing for it.

use std::{
    task::{Context, Poll, ready},
    time::Duration,
};

use crate::{
    config::ClientTimeouts,
    pool::pace::Pace,
    timer::{Timer, Wait},
};

/// Looks in the time in which a client has to take something: one that takes nothing is given up that much later at most.
const LOOKS: u32 = 4;

/// What a client has taken since a write had to wait.
#[derive(Debug, Default)]
pub(super) struct Uptake {
    /// For the next look.
    wait: Wait,
    /// At the last look.
    n_taken: Option<u64>,
    /// Looks since something was taken.
    n_still: u32,
    pace: Pace,
}

impl Uptake {
    /// Ready when the client has taken nothing for `stall`, or for longer than that less than it has to; `n_taken` tells how
    /// much in all, unless nobody can.
    pub(super) fn poll(
        &mut self,
        timer: &mut Timer,
        terms: Terms,
        n_taken: impl Fn() -> Option<u64>,
        cx: &mut Context<'_>,
    ) -> Poll<()> {
        loop {
            ready!(timer.poll(&mut self.wait, terms.stall / LOOKS, cx));
            let waited = std::mem::take(&mut self.wait).lasted();
            if self.is_over(terms, waited, n_taken()) {
                return Poll::Ready(());
            }
        }
    }

    /// Whether what was taken by now is too little, so long after the last look.
    fn is_over(&mut self, terms: Terms, waited: Duration, n_taken: Option<u64>) -> bool {
        let n_bytes = match (std::mem::replace(&mut self.n_taken, n_taken), n_taken) {
            // How much it was until the first look is not known, and may have been enough.
            (None, Some(_)) => return false,
            (Some(before), Some(now)) => now.saturating_sub(before),
            (_, None) => 0,
        };
        self.n_still = if n_bytes > 0 { 0 } else { self.n_still + 1 };
        let n_bytes = usize::try_from(n_bytes).unwrap_or(usize::MAX);
        self.pace.moved(n_bytes, waited, terms.bytes_per_second);
        self.n_still >= LOOKS || self.pace.bound(terms.stall).is_zero()
    }
}

/// What a client is allowed.
#[derive(Clone, Copy, Debug)]
pub struct Terms {
    /// Time without a byte, and what it may be waited for in all before bytes are counted.
    pub stall: Duration,
    /// Bytes that each second of waiting beyond that takes.
    pub bytes_per_second: u32,
}

impl From<&ClientTimeouts> for Terms {
    fn from(timeouts: &ClientTimeouts) -> Self {
        Self { stall: timeouts.stall, bytes_per_second: timeouts.bytes_per_second }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TERMS: Terms = Terms { stall: Duration::from_mins(1), bytes_per_second: 1_024 };
    /// Between two looks.
    const PAUSE: Duration = Duration::from_secs(15);

    /// When a client is given up that takes so many bytes before each look, as far as anybody knows; none within some hours.
    fn given_up(n_bytes: impl Fn(u64) -> Option<u64>) -> Option<u64> {
        let (mut uptake, mut n_taken) = (Uptake::default(), 0);
        (1..1_000).find_map(|look| {
            let n_bytes = n_bytes(look);
            n_taken += n_bytes.unwrap_or_default();
            uptake.is_over(TERMS, PAUSE, n_bytes.map(|_| n_taken)).then_some(look * PAUSE.as_secs())
        })
    }

    #[test]
    fn a_client_is_given_up_when_it_takes_nothing_or_too_little() {
        assert_eq!(given_up(|_| None), Some(60), "nobody knows more than the socket says");
        assert_eq!(given_up(|_| Some(0)), Some(75));
        assert_eq!(given_up(|_| Some(1)), Some(90), "it trickles");
        assert_eq!(given_up(|look| Some(if look < 4 { 1 << 20 } else { 0 })), Some(105));
        assert_eq!(given_up(|_| Some(14 * 1_024)), Some(915), "each second that is not earned is lost");
    }

    #[test]
    fn a_client_that_is_as_fast_as_it_must_is_not() {
        assert_eq!(given_up(|_| Some(15 * 1_024)), None);
        assert_eq!(given_up(|look| Some(if look % 4 == 1 { 60 * 1_024 } else { 0 })), None);
    }
}
