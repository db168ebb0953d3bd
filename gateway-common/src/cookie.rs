//! SYN cookies: when a service answers connections that begin without remembering them (RFC 4987, section 3.6), and what
//! the numbers of the programs' own look like.

use core::fmt;

use bytemuck::{Pod, Zeroable};

use crate::{
    flow::{FlowKey, Tick},
    hash,
};

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

    /// Whether it says that a cookie of the programs' own may still come back.
    #[inline(always)]
    #[expect(clippy::as_conversions, clippy::cast_possible_truncation, reason = "the lower half of a word")]
    pub const fn is_owed(armed: u64, now: Tick) -> bool {
        let last = Tick::new(armed as u32).after(OwnCookie::STEPS << STEP_SHIFT);
        armed >> 32 != 0 && !last.is_before(now)
    }
}

/// Bits by which moments are shifted: a step of the cookies is a little more than a minute.
pub const STEP_SHIFT: u32 = 6;

/// Bits by which steps are shifted: so long a key is used, a little more than an hour.
pub const KEY_SHIFT: u32 = 6;

/// Value of [`CookieKeysMap`](crate::map::CookieKeysMap): keys that cookies of the programs' own are made with, each in turn
/// with the other. The agent replaces the one that is not in use.
#[repr(C)]
#[derive(Clone, Copy, Default, Eq, PartialEq, Pod, Zeroable)]
pub struct CookieKeys {
    /// For even turns, and for odd ones.
    pub keys: [[u64; 2]; 2],
}

impl fmt::Debug for CookieKeys {
    /// Nothing of them: whoever knows one can claim any source.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CookieKeys(..)")
    }
}

impl CookieKeys {
    /// The turn of keys at a moment.
    #[inline(always)]
    pub const fn turn(moment: Tick) -> u32 {
        moment.count() >> (STEP_SHIFT + KEY_SHIFT)
    }

    /// Moments of the present turn that are over.
    pub const fn since_turn(moment: Tick) -> u32 {
        moment.count() & ((1 << (STEP_SHIFT + KEY_SHIFT)) - 1)
    }

    /// The same with another key for a turn.
    #[must_use]
    pub const fn with(self, turn: u32, key: [u64; 2]) -> Self {
        let [even, odd] = self.keys;
        Self { keys: if turn & 1 == 0 { [key, odd] } else { [even, key] } }
    }

    /// The key of a step.
    #[inline(always)]
    const fn of(&self, step: u32) -> [u64; 2] {
        let [even, odd] = self.keys;
        if step >> KEY_SHIFT & 1 == 0 { even } else { odd }
    }
}

/// A cookie of the programs' own, which stands for a connection that nothing remembers: a sequence number of 27 bits that
/// only the keys' owner can make, three bits for the client's segment size, and two for the step in which it was made.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct OwnCookie {
    word: u32,
}

impl OwnCookie {
    /// Steps in which a cookie is taken back: the one in which it was made, and the next.
    pub const STEPS: u32 = 2;

    /// Segment sizes that a cookie can stand for, in bytes: those of usual links, and of usual tunnels over them.
    pub const SEGMENTS: [u16; 8] = [536, 1_200, 1_300, 1_360, 1_400, 1_440, 1_460, 8_940];

    const STEP_BITS: u32 = 3;
    const REST_BITS: u32 = 0x1f;

    /// The largest size that is not larger than a client's; the smallest where its is smaller still, or it named none.
    #[inline(always)]
    pub const fn size_of(segment_bytes: u16) -> u32 {
        let [_, a, b, c, d, e, f, g] = Self::SEGMENTS;
        if segment_bytes >= g {
            7
        } else if segment_bytes >= f {
            6
        } else if segment_bytes >= e {
            5
        } else if segment_bytes >= d {
            4
        } else if segment_bytes >= c {
            3
        } else if segment_bytes >= b {
            2
        } else if segment_bytes >= a {
            1
        } else {
            0
        }
    }

    /// From a sequence number.
    #[inline(always)]
    pub const fn new(word: u32) -> Self {
        Self { word }
    }

    /// The sequence number.
    #[inline(always)]
    pub const fn sequence(self) -> u32 {
        self.word
    }

    /// The segment size that it stands for, in bytes.
    #[inline(always)]
    pub const fn segment_bytes(self) -> u16 {
        let [zero, a, b, c, d, e, f, g] = Self::SEGMENTS;
        match self.word >> 2 & 7 {
            0 => zero,
            1 => a,
            2 => b,
            3 => c,
            4 => d,
            5 => e,
            6 => f,
            _ => g,
        }
    }

    /// The one for a client's packet, whose connection begins with this sequence number, at a moment. `size` is that of
    /// [`OwnCookie::size_of`].
    #[inline(always)]
    pub const fn make(keys: &CookieKeys, key: &FlowKey, begins: u32, size: u32, moment: Tick) -> Self {
        let step = moment.count() >> STEP_SHIFT;
        Self::at(keys, key, begins, (size & 7) << 2, step)
    }

    #[inline(always)]
    #[expect(clippy::as_conversions, clippy::cast_possible_truncation, reason = "bits of a hash")]
    const fn at(keys: &CookieKeys, key: &FlowKey, begins: u32, size: u32, step: u32) -> Self {
        let [s0, s1]: [u64; 2] = bytemuck::must_cast(key.source);
        let [d0, d1]: [u64; 2] = bytemuck::must_cast(key.destination);
        let ports = (key.source_port.number() as u32) << 16 | key.destination_port.number() as u32;
        let rest = (step as u64) << 32 | size as u64;
        let words = [s0, s1, d0, d1, (ports as u64) << 32 | begins as u64, rest];
        let hash = hash::keyed(keys.of(step), words) as u32;
        Self { word: hash & !Self::REST_BITS | size | step & Self::STEP_BITS }
    }

    /// Whether it is the one for this client's packet, and of this step or the last one.
    #[inline(always)]
    pub const fn is_of(self, keys: &CookieKeys, key: &FlowKey, begins: u32, moment: Tick) -> bool {
        let step = moment.count() >> STEP_SHIFT;
        let age = step.wrapping_sub(self.word) & Self::STEP_BITS;
        // Around the end of the range.
        let made = step.wrapping_sub(age) & u32::MAX >> STEP_SHIFT;
        age < Self::STEPS && Self::at(keys, key, begins, self.word & 0x1c, made).word == self.word
    }
}

const _: () = assert!(size_of::<SynCookie>() == 24);
const _: () = assert!(size_of::<CookieKeys>() == 32);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::addr::{Addr, Port, Protocol};

    #[test]
    fn a_row_of_zeroes_is_not_armed() {
        assert!(!SynCookie::is_armed(SynCookie::default().armed, Tick::new(0)));
        let until = SynCookie::until(Tick::new(7));
        assert!(SynCookie::is_armed(until, Tick::new(7)) && SynCookie::is_armed(until, Tick::new(3)));
        assert!(!SynCookie::is_armed(until, Tick::new(8)));
        assert!(!SynCookie::is_owed(0, Tick::new(0)));
        assert!(
            SynCookie::is_owed(until, Tick::new(7 + 128)) && !SynCookie::is_owed(until, Tick::new(7 + 129))
        );
    }

    fn key(port: u16) -> FlowKey {
        let (source, destination) = (Addr::v4([192, 0, 2, 1]), Addr::v6([0x20; 16]));
        FlowKey::new(source, Port::new(port), destination, Port::new(443), Protocol::TCP)
    }

    const KEYS: CookieKeys = CookieKeys { keys: [[1, 2], [3, 4]] };

    #[test]
    fn a_cookie_is_taken_back_for_two_steps_and_from_nobody_else() {
        for made in [0, 63, 64, 4_095, 4_096, u32::MAX] {
            let cookie = OwnCookie::make(&KEYS, &key(9), 77, 5, Tick::new(made));
            assert_eq!(cookie.segment_bytes(), 1_440);
            let is_of = |moments: u32, key: &FlowKey, begins| {
                cookie.is_of(&KEYS, key, begins, Tick::new(made).after(moments))
            };
            let last = 127 - made % 64;
            assert!(is_of(0, &key(9), 77) && is_of(last, &key(9), 77), "{made}");
            assert!(!is_of(last + 1, &key(9), 77), "{made}");
            assert!(!is_of(0, &key(8), 77) && !is_of(0, &key(9), 78), "{made}");
            let other = OwnCookie::new(cookie.sequence() ^ 1 << 2);
            assert!(!other.is_of(&KEYS, &key(9), 77, Tick::new(made)), "another size");
            let forged = CookieKeys { keys: [[1, 3], [3, 5]] };
            assert!(!cookie.is_of(&forged, &key(9), 77, Tick::new(made)));
        }
    }

    #[test]
    fn a_new_key_does_not_refuse_what_the_last_one_made() {
        // The last moment of a turn, and the first ones of the next, in which the key before the last is replaced.
        let cookie = OwnCookie::make(&KEYS, &key(9), 77, 0, Tick::new(4_095));
        assert!(cookie.is_of(&KEYS, &key(9), 77, Tick::new(4_096 + 63)));
        assert_eq!((CookieKeys::turn(Tick::new(4_095)), CookieKeys::turn(Tick::new(4_096))), (0, 1));
        assert_eq!(CookieKeys::since_turn(Tick::new(4_096 + 63)), 63);
    }

    #[test]
    fn segment_sizes_are_rounded_down() {
        let sizes = [0, 535, 536, 1_199, 1_200, 1_459, 1_460, 8_939, 9_000, u16::MAX].map(OwnCookie::size_of);
        assert_eq!(sizes, [0, 0, 0, 0, 1, 5, 6, 6, 7, 7]);
        for (at, size) in (0..).zip(OwnCookie::SEGMENTS) {
            assert_eq!(OwnCookie::size_of(size), at);
            assert_eq!(OwnCookie::make(&KEYS, &key(1), 0, at, Tick::new(0)).segment_bytes(), size);
        }
    }
}
