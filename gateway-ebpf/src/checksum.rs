//! The Internet checksum, updated by what changed (RFC 1624, equation 3).

/// The change of a ones' complement sum: new words added, complements of old words added.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Diff {
    sum: u64,
}

impl Diff {
    /// No change.
    pub const ZERO: Self = Self { sum: 0 };

    /// One 32-bit word in the packet's byte order became another. At most 2^30 words fit.
    #[inline(always)]
    #[must_use]
    #[expect(clippy::as_conversions, reason = "widening in a const function")]
    pub const fn replace(self, old: u32, new: u32) -> Self {
        Self { sum: self.sum + (!old) as u64 + new as u64 }
    }

    /// Two changes as one.
    #[inline(always)]
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self { sum: self.sum + other.sum }
    }

    /// The change as a 32-bit sum in the packet's byte order, as the kernel's checksum helpers take it.
    #[inline(always)]
    #[expect(clippy::as_conversions, clippy::cast_possible_truncation, reason = "folded below 2^32 first")]
    pub const fn fold32(self) -> u32 {
        let once = (self.sum & 0xffff_ffff) + (self.sum >> 32);
        ((once & 0xffff_ffff) + (once >> 32)) as u32
    }

    /// The change as a 16-bit sum in the packet's byte order.
    #[inline(always)]
    const fn fold16(self) -> u32 {
        fold(self.fold32())
    }
}

/// A ones' complement sum of what a checksum covers, in the packet's byte order.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Sum {
    sum: u64,
}

impl Sum {
    /// Of nothing.
    pub const ZERO: Self = Self { sum: 0 };

    /// With another word. At most 2^30 fit.
    #[inline(always)]
    #[must_use]
    #[expect(clippy::as_conversions, reason = "widening in a const function")]
    pub const fn and(self, word: u32) -> Self {
        Self { sum: self.sum + word as u64 }
    }

    /// Two sums as one.
    #[inline(always)]
    #[must_use]
    pub const fn plus(self, other: Self) -> Self {
        Self { sum: self.sum + other.sum }
    }

    /// The checksum (RFC 1071).
    #[inline(always)]
    #[expect(clippy::as_conversions, clippy::cast_possible_truncation, reason = "folded below 2^16 first")]
    pub const fn checksum(self) -> [u8; 2] {
        (!(Diff { sum: self.sum }.fold16() as u16)).to_ne_bytes()
    }
}

/// Folds the carries of a 32-bit sum into its lower half.
#[inline(always)]
const fn fold(sum: u32) -> u32 {
    let once = (sum & 0xffff) + (sum >> 16);
    (once & 0xffff) + (once >> 16)
}

/// The checksum field after a change: `HC' = ~(~HC + ~m + m')`.
#[inline(always)]
#[expect(clippy::as_conversions, clippy::cast_possible_truncation, reason = "folded below 2^16 first")]
pub const fn update(old: [u8; 2], diff: Diff) -> [u8; 2] {
    let complement = (!u16::from_ne_bytes(old)) as u32;
    let sum = fold(complement + diff.fold16());
    (!(sum as u16)).to_ne_bytes()
}

/// The word of an IPv4 header with time to live, protocol and checksum, in the packet's byte order, when the time to live was
/// at least one and is one less now (RFC 1141, with the carry that RFC 1624 asks for): [`update`], for the change that every
/// forwarded packet has.
#[inline(always)]
#[expect(clippy::as_conversions, reason = "widening in a const function")]
pub const fn one_hop_less(word: u32) -> u32 {
    // Time to live in the lowest byte. A sum of words is the same in either byte order, so what is 0x100 on the wire is 1.
    let word = u32::from_le(word);
    let sum = (word >> 16) + 1;
    let sum = sum + (sum >= 0xffff) as u32;
    (word.wrapping_sub(1) & 0xffff | sum << 16).to_le()
}

/// The checksum of an IPv4 header without options whose checksum field is zero (RFC 791).
#[inline(always)]
#[expect(clippy::as_conversions, reason = "upper halves of sums")]
pub const fn of_header(words: [u32; 5]) -> [u8; 2] {
    let [a, b, c, d, e] = words;
    let sum = a as u64 + b as u64 + c as u64 + d as u64 + e as u64;
    // Halves are added with the carry of the lower sum where both are added crosswise: the upper half is the sum then.
    let sum = (sum.wrapping_add(sum.rotate_left(32)) >> 32) as u32;
    let sum = (sum.wrapping_add(sum.rotate_left(16)) >> 16) as u16;
    (!sum).to_ne_bytes()
}

/// [`update`] for UDP: zero means "no checksum" and stays (RFC 768), and a sum of zero is sent as all ones.
#[inline(always)]
pub const fn update_udp(old: [u8; 2], diff: Diff) -> [u8; 2] {
    if u16::from_ne_bytes(old) == 0 {
        return old;
    }
    let new = update(old, diff);
    if u16::from_ne_bytes(new) == 0 { [0xff, 0xff] } else { new }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Ones' complement sum of RFC 1071, written differently from the code under test.
    fn full(words: &[u16]) -> u16 {
        let mut sum = words.iter().map(|word| u64::from(*word)).sum::<u64>();
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        !u16::try_from(sum).unwrap()
    }

    fn split(word: u32) -> [u16; 2] {
        let [a, b, c, d] = word.to_ne_bytes();
        [u16::from_ne_bytes([a, b]), u16::from_ne_bytes([c, d])]
    }

    #[test]
    fn an_update_equals_a_full_sum() {
        let mut state = 0x1234_5678_u32;
        for _ in 0..100_000 {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let old = state;
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let new = state;
            let rest = [0x4500, 0x0001, 0xbeef];
            let [a, b] = split(old);
            let [c, d] = split(new);
            let before = full(&[a, b, rest[0], rest[1], rest[2]]);
            let after = full(&[c, d, rest[0], rest[1], rest[2]]);
            let updated = update(before.to_ne_bytes(), Diff::ZERO.replace(old, new));
            assert_eq!(u16::from_ne_bytes(updated), after);
        }
    }

    #[test]
    fn one_hop_less_is_an_update_like_others() {
        for old in 0..=u16::MAX {
            for [ttl, protocol] in [[1, 0], [64, 6], [255, 17]] {
                let diff = Diff::ZERO.replace(
                    u32::from_ne_bytes([ttl, protocol, 0, 0]),
                    u32::from_ne_bytes([ttl - 1, protocol, 0, 0]),
                );
                let [a, b] = old.to_ne_bytes();
                let [c, d] = update([a, b], diff);
                let new = one_hop_less(u32::from_ne_bytes([ttl, protocol, a, b]));
                assert_eq!(new.to_ne_bytes(), [ttl - 1, protocol, c, d], "{old:#x} {ttl}");
            }
        }
    }

    #[test]
    fn a_header_sums_up() {
        // The header of the example in Wikipedia's article on the IPv4 header checksum has 0xb861.
        let words = [0x4500_0073_u32, 0x0000_4000, 0x4011_0000, 0xc0a8_0001, 0xc0a8_00c7].map(u32::to_be);
        assert_eq!(of_header(words), [0xb8, 0x61]);
    }

    #[test]
    fn carries_go_around() {
        // The example of RFC 1624, section 4: a header checksum of 0xDD2F, and 0x5555 becomes 0x3285.
        let diff = Diff::ZERO.replace(
            u32::from(u16::from_ne_bytes([0x55, 0x55])),
            u32::from(u16::from_ne_bytes([0x32, 0x85])),
        );
        assert_eq!(update([0xdd, 0x2f], diff), [0x00, 0x00]);
    }

    #[test]
    fn udp_keeps_no_checksum_and_never_makes_one() {
        let diff = Diff::ZERO.replace(
            u32::from(u16::from_ne_bytes([0x55, 0x55])),
            u32::from(u16::from_ne_bytes([0x32, 0x85])),
        );
        assert_eq!(update_udp([0, 0], diff), [0, 0]);
        assert_eq!(update_udp([0xdd, 0x2f], diff), [0xff, 0xff]);
    }
}
