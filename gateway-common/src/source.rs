//! Who may send packets to services: networks that are listed, and how many new flows a source may begin.

use bytemuck::{Pod, Zeroable};

use crate::{addr::Addr, flow::Tick};

/// Key of [`SourceNetworks`](crate::map::SourceNetworks): addresses that begin alike. Packets ask with all 128 bits.
#[repr(C)]
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd, Pod, Zeroable)]
pub struct SourceNetwork {
    /// How many bits count, of the 128 of either family: 96 more than the configuration says for IPv4.
    pub prefix_bits: u32,
    /// The first of them.
    pub addr: Addr,
}

impl SourceNetwork {
    /// What a packet asks for.
    #[inline(always)]
    pub const fn of(addr: Addr) -> Self {
        Self { prefix_bits: 128, addr }
    }
}

/// Value of [`SourceNetworks`](crate::map::SourceNetworks): what becomes of packets; the longest match decides.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Pod, Zeroable)]
pub struct SourceRule {
    /// A closed set.
    pub action: u32,
}

impl SourceRule {
    /// They may come.
    pub const ALLOW: Self = Self { action: 0 };
    /// They may not.
    pub const DENY: Self = Self { action: 1 };
    /// No packet can come from there: its source is forged.
    pub const FORGED: Self = Self { action: 2 };
}

/// Words of [`SourceFilter`](crate::map::SourceFilter): two bitmaps of 65,536 bits.
pub const WORDS: u32 = 2_048;

/// Bits of one bitmap.
const BITMAP: u32 = 65_536;

/// Prefix of IPv6 networks from which on the first bitmap tells them apart.
pub const LONG: u32 = 32;

/// The bits that stand for a source: when none of them is set, no list names it. For IPv4 both are the same: its first
/// sixteen bits. For IPv6 one stands for its first 32 bits, mixed, and one for its first sixteen: a network that is
/// shorter than 32 bits would fill the first bitmap.
#[inline(always)]
pub const fn bits(addr: Addr) -> [u32; 2] {
    bits_of(addr, !addr.is_v4())
}

/// The same of an address whose family is known.
#[inline(always)]
pub const fn bits_of(addr: Addr, v6: bool) -> [u32; 2] {
    let [first, _, _, last] = addr.words();
    if !v6 {
        let bit = u32::from_be(last) >> 16;
        return [bit, bit];
    }
    let mixed = first.wrapping_mul(0x9e37_79b1) >> 16;
    [mixed, BITMAP + (u32::from_be(first) >> 16)]
}

/// A source as far as it is told from others: an IPv4 address, or the network of 64 bits that a site has at least
/// (RFC 6177), whose addresses one machine may take at will.
#[inline(always)]
pub const fn site(addr: Addr) -> Addr {
    if addr.is_v4() {
        return addr;
    }
    let [a, b, _, _] = addr.words();
    Addr::v6(bytemuck::must_cast([a, b, 0, 0]))
}

/// Value of [`ServiceRates`](crate::map::ServiceRates).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Pod, Zeroable)]
pub struct ServiceRate {
    /// When the bucket of the service would be full again, in 2^-32 of the kernel's timer interrupts.
    pub full_at: u64,
}

/// Places in a bucket of [`SourceRates`](crate::map::SourceRates).
pub const RATE_WAYS: usize = 8;

/// Value of [`SourceRates`](crate::map::SourceRates): one cache line. A word holds when a source's bucket would be full
/// again, and in its lowest sixteen bits those of the source's hash.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Pod, Zeroable)]
pub struct SourceRateBucket {
    /// The words.
    pub words: [u64; RATE_WAYS],
}

/// Sources in a row of [`RefusedSources`](crate::map::RefusedSources).
pub const REFUSED_WAYS: usize = 4;

/// Value of [`RefusedSources`](crate::map::RefusedSources): sources whose packets were refused, those with the most of them
/// (the space-saving algorithm of Metwally et al., 2005, within each row).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Pod, Zeroable)]
pub struct RefusedRow {
    /// The sources.
    pub sources: [RefusedSource; REFUSED_WAYS],
}

/// A source whose packets were refused.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Pod, Zeroable)]
pub struct RefusedSource {
    /// See [`site`].
    pub site: Addr,
    /// Packets, at most.
    pub packets: u64,
    /// How many of them may have been those of the source that was here before.
    pub doubtful: u64,
    /// The last packet.
    pub last: Tick,
    /// The service that it was for.
    pub service: u32,
    /// Number of the reason.
    pub reason: u32,
    pad: u32,
}

impl RefusedSource {
    /// One packet, in the place of others.
    #[inline(always)]
    pub const fn new(site: Addr, others: u64, last: Tick, service: u32, reason: u32) -> Self {
        Self { site, packets: others.wrapping_add(1), doubtful: others, last, service, reason, pad: 0 }
    }
}

impl RefusedSource {
    /// What two processors counted of one source.
    #[must_use]
    pub const fn and(&self, other: &Self) -> Self {
        let mut sum = if self.last.is_before(other.last) { *other } else { *self };
        sum.packets = self.packets.wrapping_add(other.packets);
        sum.doubtful = self.doubtful.wrapping_add(other.doubtful);
        sum
    }
}

const _: () = assert!(size_of::<SourceNetwork>() == 20);
const _: () = assert!(size_of::<SourceRateBucket>() == 64);
const _: () = assert!(size_of::<RefusedRow>() == 192);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_that_begin_alike_share_bits() {
        let v4 = |last| Addr::v4([192, 0, 2, last]);
        assert_eq!(bits(v4(1)), bits(v4(77)));
        assert_ne!(bits(v4(1)), bits(Addr::v4([192, 1, 2, 1])));
        let v6 = |third: u8, last| Addr::v6([0x20, 1, 0xd, third, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, last]);
        assert_eq!(bits(v6(1, 1)), bits(v6(1, 2)));
        let ([long, short], [other, same]) = (bits(v6(1, 1)), bits(v6(2, 1)));
        assert!(long != other && short == same);
        assert!(bits(Addr::v6([0xff; 16])).iter().all(|bit| bit / 64 < WORDS));
    }

    #[test]
    fn a_site_is_an_address_or_a_network() {
        let v4 = Addr::v4([192, 0, 2, 1]);
        assert_eq!(site(v4), v4);
        let v6 = Addr::v6([1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16]);
        assert_eq!(site(v6), Addr::v6([1, 2, 3, 4, 5, 6, 7, 8, 0, 0, 0, 0, 0, 0, 0, 0]));
    }
}
