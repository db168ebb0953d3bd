//! The way of a packet out of this node, in whole words.
//!
//! The same bytes as a [`NextHop`]. The pipeline carries words because the compiler copies six-byte addresses in
//! pieces, and the verifier refuses pieces at unaligned places on the stack.

use bytemuck::{Pod, Zeroable};
use gateway_common::endpoint::NextHop;

/// An interface and both link-layer addresses.
// Aligned so that two words read as one are aligned too.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, Eq, PartialEq, Pod, Zeroable)]
pub struct Way {
    words: [u32; 4],
}

impl Way {
    /// Nothing known.
    pub const UNKNOWN: Self = Self { words: [0; 4] };

    /// From the sixteen bytes of a [`NextHop`], in words of native order.
    #[inline(always)]
    pub const fn from_words(words: [u32; 4]) -> Self {
        Self { words }
    }

    /// The way on which a frame came, back: its source becomes the destination. `frame` is the first twelve bytes.
    #[inline(always)]
    pub const fn back(interface: u32, frame: [u32; 3]) -> Self {
        let [f0, f1, f2] = frame;
        let (f0, f1, f2) = (u32::from_le(f0), u32::from_le(f1), u32::from_le(f2));
        Self {
            words: [
                interface,
                (f1 >> 16 | f2 << 16).to_le(),
                (f2 >> 16 | f0 << 16).to_le(),
                (f0 >> 16 | f1 << 16).to_le(),
            ],
        }
    }

    /// The way that a frame is on already. `frame` is the first twelve bytes.
    #[inline(always)]
    pub const fn again(interface: u32, frame: [u32; 3]) -> Self {
        let [f0, f1, f2] = frame;
        Self { words: [interface, f0, f1, f2] }
    }

    /// Index of the interface; zero means that nothing is known.
    #[inline(always)]
    pub const fn interface(self) -> u32 {
        let [interface, ..] = self.words;
        interface
    }

    /// Whether anything is known.
    #[inline(always)]
    pub const fn is_known(self) -> bool {
        self.interface() != 0
    }

    /// The first twelve bytes of a frame that goes this way: eight and four.
    #[inline(always)]
    #[expect(clippy::as_conversions, reason = "widening in a const function")]
    pub const fn link(self) -> (u64, u32) {
        let [_, a, b, c] = self.words;
        ((a.to_le() as u64 | (b.to_le() as u64) << 32).to_le(), c)
    }

    /// As two words.
    #[inline(always)]
    pub const fn halves(self) -> [u64; 2] {
        bytemuck::must_cast(self)
    }

    /// As the maps keep it.
    #[inline(always)]
    pub const fn next_hop(self) -> NextHop {
        bytemuck::must_cast(self.words)
    }
}

impl From<&NextHop> for Way {
    #[inline(always)]
    fn from(next_hop: &NextHop) -> Self {
        Self { words: *bytemuck::must_cast_ref(next_hop) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_way_back_swaps_the_addresses() {
        let frame: [u32; 3] = bytemuck::must_cast([1_u8, 2, 3, 4, 5, 6, 11, 12, 13, 14, 15, 16]);
        let back = Way::back(7, frame);
        let hop = NextHop { interface: 7, mac: [11, 12, 13, 14, 15, 16], own_mac: [1, 2, 3, 4, 5, 6] };
        assert_eq!(back.next_hop(), hop);
        assert_eq!(back, Way::from(&hop));
        let (first, last) = back.link();
        assert_eq!(first.to_ne_bytes(), [11, 12, 13, 14, 15, 16, 1, 2]);
        assert_eq!(last.to_ne_bytes(), [3, 4, 5, 6]);
    }
}
