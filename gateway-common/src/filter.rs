//! The filter in front of everything: is the destination of a packet possibly one of ours?

use bytemuck::{Pod, Zeroable};

use crate::addr::Addr;

/// Value of [`Filter`](crate::map::Filter): 64 bits of the bitmap.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Pod, Zeroable)]
pub struct FilterWord {
    /// Bit `n` of word `w` stands for every address whose [`bit`] is `64 * w + n`.
    pub bits: u64,
}

/// Words of the bitmap: 65,536 bits, 8 KiB, which stay in the first-level cache.
pub const WORDS: u32 = 1_024;

/// The bit that stands for an address. Collisions cost one lookup, and change no answer for a packet that can be read.
#[inline(always)]
pub const fn bit(addr: Addr) -> u32 {
    let [a, b, c, d] = addr.words();
    let mixed = (a ^ b.rotate_left(11) ^ c.rotate_left(21) ^ d).wrapping_mul(0x9e37_79b1);
    mixed >> 16
}

const _: () = assert!(size_of::<FilterWord>() == 8);
