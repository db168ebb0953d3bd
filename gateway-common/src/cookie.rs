//! SYN cookies: when a service answers connections that begin without remembering them (RFC 4987, section 3.6).

use bytemuck::{Pod, Zeroable};

use crate::flow::Tick;

/// Moments for which a service goes on answering with cookies after the last SYN too many: ten seconds and a half.
pub const HOLD_MOMENTS: u32 = 10;

/// Bits by which the nanoseconds of `CLOCK_MONOTONIC` are shifted: a moment is about a second. Not the ticks of flows, which
/// the agent cannot read.
pub const MOMENT_SHIFT: u32 = 30;

/// While it does, so many times fewer SYNs are too many: what ebbs and flows around the bound does not switch it to and fro.
pub const WHILE_ARMED: u32 = 2;

/// Value of [`SynCookies`](crate::map::SynCookies): one service.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Pod, Zeroable)]
pub struct SynCookie {
    /// When the bucket of SYNs would be full again, in 2^-32 of the kernel's timer interrupts.
    pub full_at: u64,
    /// Until when SYNs are answered with cookies: a moment in the lower half, and in the upper one whether there is any.
    pub armed: u64,
    /// Cookies that were sent.
    pub sent: u64,
}

impl SynCookie {
    /// The moment of an instant in nanoseconds of `CLOCK_MONOTONIC`.
    #[inline(always)]
    #[expect(
        clippy::as_conversions,
        clippy::cast_possible_truncation,
        reason = "the upper bits are a century away"
    )]
    pub const fn moment(monotonic_ns: u64) -> Tick {
        Tick::new((monotonic_ns >> MOMENT_SHIFT) as u32)
    }

    /// The value of [`SynCookie::armed`] for a moment.
    #[inline(always)]
    #[expect(clippy::as_conversions, reason = "widening in a const function")]
    pub const fn until(moment: Tick) -> u64 {
        1 << 32 | moment.count() as u64
    }

    /// Whether a value of [`SynCookie::armed`] says that SYNs are answered with cookies at this moment.
    #[inline(always)]
    #[expect(clippy::as_conversions, clippy::cast_possible_truncation, reason = "the lower half of a word")]
    pub const fn is_armed(armed: u64, now: Tick) -> bool {
        armed >> 32 != 0 && !Tick::new(armed as u32).is_before(now)
    }
}

const _: () = assert!(size_of::<SynCookie>() == 24);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_of_zeroes_is_not_armed() {
        assert!(!SynCookie::is_armed(SynCookie::default().armed, Tick::new(0)));
        let until = SynCookie::until(Tick::new(7));
        assert!(SynCookie::is_armed(until, Tick::new(7)) && SynCookie::is_armed(until, Tick::new(3)));
        assert!(!SynCookie::is_armed(until, Tick::new(8)));
    }
}
