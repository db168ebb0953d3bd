//! The hashes that every node of a cluster and both sides of the kernel line must agree on. Fixed for ever.

use bytemuck::{Pod, Zeroable};

use crate::{
    addr::{Addr, Port},
    flow::FlowKey,
};

/// The cluster's seed. A secret: whoever knows it can aim flows at one endpoint.
#[repr(C)]
#[derive(Clone, Copy, Default, Eq, PartialEq, Pod, Zeroable)]
pub struct Seed {
    words: [u64; 2],
}

impl Seed {
    /// From two words.
    #[inline(always)]
    pub const fn new(words: [u64; 2]) -> Self {
        Self { words }
    }

    /// From sixteen bytes, as a seed file has them.
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = bytes;
        Self {
            words: [
                u64::from_le_bytes([a, b, c, d, e, f, g, h]),
                u64::from_le_bytes([i, j, k, l, m, n, o, p]),
            ],
        }
    }
}

/// Odd constants with well-spread bits: the fractional parts of the golden ratio and of the square root of two.
const K1: u64 = 0x9e37_79b9_7f4a_7c15;
const K2: u64 = 0x6a09_e667_f3bc_c909;

#[inline(always)]
const fn absorb(state: u64, word: u64) -> u64 {
    let mixed = (state ^ word).wrapping_mul(K1);
    mixed ^ (mixed >> 29)
}

#[inline(always)]
const fn finish(state: u64, key: u64) -> u64 {
    let a = (state ^ key).wrapping_mul(K2);
    let b = (a ^ (a >> 32)).wrapping_mul(K1);
    b ^ (b >> 32)
}

#[inline(always)]
#[expect(clippy::as_conversions, reason = "widening, in a function the kernel runs per packet")]
const fn pair(high: u32, low: u32) -> u64 {
    (high as u64) << 32 | low as u64
}

/// Hash of a flow's 5-tuple as its client sends it. All 64 bits are usable; [`slot`] uses the high ones.
#[inline(always)]
#[expect(clippy::as_conversions, reason = "widening, in a function the kernel runs per packet")]
pub const fn flow(seed: &Seed, key: &FlowKey) -> u64 {
    let [s0, s1, s2, s3] = key.source.words();
    let [d0, d1, d2, d3] = key.destination.words();
    let [seed_a, seed_b] = seed.words;
    let ports = pair(
        (key.source_port.number() as u32) << 16 | key.destination_port.number() as u32,
        key.protocol.number() as u32,
    );
    let mut state = seed_a;
    state = absorb(state, pair(s0, s1));
    state = absorb(state, pair(s2, s3));
    state = absorb(state, pair(d0, d1));
    state = absorb(state, pair(d2, d3));
    state = absorb(state, ports);
    finish(state, seed_b)
}

/// Maps a hash onto `0..n_slots` without a division (Lemire, "Fast Random Integer Generation in an Interval", 2019).
#[inline(always)]
#[expect(clippy::as_conversions, reason = "the product of two 32-bit numbers, shifted, is below the second")]
pub const fn slot(hash: u64, n_slots: u32) -> u32 {
    (((hash >> 32) * n_slots as u64) >> 32) as u32
}

/// Two independent hashes of an endpoint's identity: offset and skip of its Maglev permutation.
#[expect(clippy::as_conversions, reason = "widening in a const function")]
pub const fn endpoint(seed: &Seed, addr: Addr, port: Port) -> [u64; 2] {
    let [a, b, c, d] = addr.words();
    let [seed_a, seed_b] = seed.words;
    let state = absorb(absorb(absorb(seed_b, pair(a, b)), pair(c, d)), port.number() as u64);
    [finish(state, seed_a), finish(state, !seed_a)]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::addr::Protocol;

    #[test]
    fn hashes_never_change() {
        let seed = Seed::new([1, 2]);
        let key = FlowKey::new(
            Addr::v4([192, 0, 2, 1]),
            Port::new(40_000),
            Addr::v4([198, 51, 100, 1]),
            Port::new(443),
            Protocol::TCP,
        );
        assert_eq!(flow(&seed, &key), FLOW);
        assert_eq!(endpoint(&seed, Addr::v4([203, 0, 113, 1]), Port::new(80)), ENDPOINT);
    }

    const FLOW: u64 = 4_819_717_774_861_314_676;
    const ENDPOINT: [u64; 2] = [4_856_296_318_774_559_841, 15_741_924_316_220_075_526];
}
