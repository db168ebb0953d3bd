//! The hashes that every node of a cluster and both sides of the kernel line must agree on. Fixed for ever.

use core::fmt;

use bytemuck::{Pod, Zeroable};

use crate::{
    addr::{Addr, Port},
    flow::FlowKey,
    map::INDEX_BUCKETS,
    service::ServiceKey,
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

/// The seed, spread out for [`flow`]: one secret word for each word that is hashed.
#[repr(C)]
#[derive(Clone, Copy, Default, Eq, PartialEq, Pod, Zeroable)]
pub struct Keys {
    words: [u32; 10],
}

impl fmt::Debug for Keys {
    /// Nothing of it: it is as secret as the seed.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Keys(..)")
    }
}

impl Seed {
    /// The words that [`flow`] takes.
    pub const fn keys(&self) -> Keys {
        let [a, b] = self.words;
        let first = spread(a, b, 1);
        let second = spread(a, b, 2);
        let third = spread(a, b, 3);
        let fourth = spread(a, b, 4);
        let fifth = spread(a, b, 5);
        bytemuck::must_cast([first, second, third, fourth, fifth])
    }
}

/// The `n`th of a sequence of words that looks random without the seed.
const fn spread(a: u64, b: u64, n: u64) -> u64 {
    finish(absorb(absorb(b, a), n), !b).to_le()
}

/// Odd constants with well-spread bits: the fractional parts of the golden ratio and of the square root of two.
const K1: u64 = 0x9e37_79b9_7f4a_7c15;
const K2: u64 = 0x6a09_e667_f3bc_c909;
/// The same of the square root of three.
const K3: u64 = 0xbb67_ae85_84ca_a73b;

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
///
/// Products of pairs of words, each with a secret word added, summed up (the NH hash of Black et al., "UMAC: Fast and
/// Secure Message Authentication", CRYPTO 1999), then mixed. Two tuples collide in the sum with a probability of 2^-32
/// for whoever does not know the seed, and the products do not wait for each other. IPv4 takes two of them.
#[inline(always)]
#[expect(clippy::as_conversions, reason = "widening, in a function the kernel runs per packet")]
pub const fn flow(keys: &Keys, key: &FlowKey, v6: bool) -> u64 {
    let ports = (key.source_port.number() as u32) << 16 | key.destination_port.number() as u32;
    tuple(keys, key.source, key.destination, ports, key.protocol.number() as u32, v6)
}

/// Hash of a client's address alone, for services that keep a client on its endpoint.
#[inline(always)]
pub const fn client(keys: &Keys, client: Addr, virtual_addr: Addr, v6: bool) -> u64 {
    tuple(keys, client, virtual_addr, 0, 0, v6)
}

/// Hash of a source as [`site`](crate::source::site) has it, for a service; the number of none for all of them.
#[inline(always)]
pub const fn source(keys: &Keys, site: Addr, service: u32, v6: bool) -> u64 {
    tuple(keys, site, Addr::UNSPECIFIED, service, SOURCE, v6)
}

/// Keeps hashes of sources apart from those of clients: no protocol has this number.
const SOURCE: u32 = 0x100;

#[inline(always)]
const fn tuple(keys: &Keys, source: Addr, destination: Addr, ports: u32, protocol: u32, v6: bool) -> u64 {
    let [k0, k1, k2, k3, k4, k5, k6, k7, k8, k9] = keys.words;
    let [s0, s1, s2, s3] = source.words();
    let [d0, d1, d2, d3] = destination.words();
    let mut sum = product(s3, k0, d3, k1).wrapping_add(product(ports, k2, protocol, k3));
    if v6 {
        sum = sum.wrapping_add(product(s0, k4, d0, k5));
        sum = sum.wrapping_add(product(s1, k6, d1, k7));
        sum = sum.wrapping_add(product(s2, k8, d2, k9));
    }
    mix(sum)
}

#[inline(always)]
#[expect(clippy::as_conversions, reason = "widening, in a function the kernel runs per packet")]
const fn product(a: u32, key_a: u32, b: u32, key_b: u32) -> u64 {
    (a.wrapping_add(key_a) as u64).wrapping_mul(b.wrapping_add(key_b) as u64)
}

/// Spreads a sum over all bits: the high half of the product depends on every bit, the low half gets it by the last step.
#[inline(always)]
const fn mix(sum: u64) -> u64 {
    let mixed = (sum ^ (sum >> 32)).wrapping_mul(K1);
    mixed ^ (mixed >> 32)
}

/// The two buckets of [`ServiceIndex`](crate::map::ServiceIndex) where a virtual address, port and protocol may stand, which
/// are never the same.
/// Not secret: only the agent writes there. Part of the [layout](crate::layout): whoever changes it changes where entries
/// stand.
#[inline(always)]
#[expect(clippy::as_conversions, clippy::cast_possible_truncation, reason = "parts of a word")]
pub const fn service(key: &ServiceKey) -> [u32; 2] {
    let [a, b]: [u64; 2] = bytemuck::must_cast(key.addr);
    let rest = (key.port.number() as u64) << 8 | key.protocol.number() as u64;
    // Three products that do not wait for each other, and one that does.
    let sum = a.wrapping_mul(K2).wrapping_add(b.wrapping_mul(K1)).wrapping_add(rest.wrapping_mul(K3));
    // Only of its highest bits, on which all others had their influence: with lower ones, addresses that follow each other
    // would lead to buckets that do, and moves between them in circles.
    let mixed = (sum ^ (sum >> 32)).wrapping_mul(K1);
    let bits = INDEX_BUCKETS.trailing_zeros();
    let first = (mixed >> (64 - bits)) as u32;
    [first, first ^ ((mixed >> (64 - 2 * bits)) as u32 | 1)]
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

/// A keyed hash that nobody can foretell who does not know the key: `SipHash`-2-4 of six whole words (Aumasson and Bernstein,
/// "`SipHash`: a fast short-input PRF", INDOCRYPT 2012).
#[inline(always)]
pub const fn keyed(key: [u64; 2], words: [u64; 6]) -> u64 {
    let [k0, k1] = key;
    let [a, b, c, d, e, f] = words;
    let mut state = Sip {
        v: [
            k0 ^ 0x736f_6d65_7073_6575,
            k1 ^ 0x646f_7261_6e64_6f6d,
            k0 ^ 0x6c79_6765_6e65_7261,
            k1 ^ 0x7465_6462_7974_6573,
        ],
    };
    // The last word of all is the number of bytes, 48, in its highest byte.
    state = state.takes(a).takes(b).takes(c).takes(d).takes(e).takes(f).takes(48 << 56);
    let [v0, v1, v2, v3] = state.v;
    state = Sip { v: [v0, v1, v2 ^ 0xff, v3] };
    let [v0, v1, v2, v3] = state.round().round().round().round().v;
    v0 ^ v1 ^ v2 ^ v3
}

/// State of [`keyed`].
#[derive(Clone, Copy)]
struct Sip {
    v: [u64; 4],
}

impl Sip {
    #[inline(always)]
    const fn takes(self, word: u64) -> Self {
        let [v0, v1, v2, v3] = self.v;
        let [v0, v1, v2, v3] = Self { v: [v0, v1, v2, v3 ^ word] }.round().round().v;
        Self { v: [v0 ^ word, v1, v2, v3] }
    }

    #[inline(always)]
    const fn round(self) -> Self {
        let [v0, v1, v2, v3] = self.v;
        let v0 = v0.wrapping_add(v1);
        let v1 = v1.rotate_left(13) ^ v0;
        let v0 = v0.rotate_left(32);
        let v2 = v2.wrapping_add(v3);
        let v3 = v3.rotate_left(16) ^ v2;
        let v0 = v0.wrapping_add(v3);
        let v3 = v3.rotate_left(21) ^ v0;
        let v2 = v2.wrapping_add(v1);
        let v1 = v1.rotate_left(17) ^ v2;
        let v2 = v2.rotate_left(32);
        Self { v: [v0, v1, v2, v3] }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::addr::Protocol;

    #[test]
    #[expect(deprecated, reason = "the standard library's own, from which ours must not differ")]
    fn the_keyed_hash_is_siphash() {
        use core::hash::{Hasher, SipHasher};
        for n in 0..100_u64 {
            let word = |at: u64| n.wrapping_add(at).wrapping_mul(K1) ^ (n << at);
            let (key, words) = ([word(0), word(1)], [2, 3, 4, 5, 6, 7].map(word));
            let mut hasher = SipHasher::new_with_keys(key[0], key[1]);
            for word in words {
                hasher.write(&word.to_le_bytes());
            }
            assert_eq!(keyed(key, words), hasher.finish());
        }
    }

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
        assert_eq!(flow(&seed.keys(), &key, false), FLOW);
        assert_eq!(endpoint(&seed, Addr::v4([203, 0, 113, 1]), Port::new(80)), ENDPOINT);
    }

    /// How uneven a hash fills places: the variance over the mean, which is one for a hash without a pattern.
    fn unevenness(hashes: impl Iterator<Item = u32>) -> f64 {
        let mut counts = [0_u32; 1_024];
        let mut n = 0_u32;
        for hash in hashes {
            counts[usize::try_from(hash).unwrap() & 1_023] += 1;
            n += 1;
        }
        let mean = f64::from(n) / 1_024.0;
        counts.iter().map(|count| (f64::from(*count) - mean).powi(2)).sum::<f64>() / 1_024.0 / mean
    }

    #[test]
    fn clients_in_a_row_spread_evenly() {
        let keys = Seed::new([3, 4]).keys();
        let clients = |v6: bool| {
            (0..200_u8).flat_map(move |host| {
                (0..100_u16).map(move |port| {
                    let (source, destination) = if v6 {
                        let mut client = [0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
                        client[15] = host;
                        (Addr::v6(client), Addr::v6([0xfd; 16]))
                    } else {
                        (Addr::v4([192, 0, 2, host]), Addr::v4([198, 51, 100, 1]))
                    };
                    FlowKey::new(source, Port::new(40_000 + port), destination, Port::new(443), Protocol::TCP)
                })
            })
        };
        for v6 in [false, true] {
            let part = |shift: u32| {
                clients(v6)
                    .map(move |key| u32::try_from(flow(&keys, &key, v6) >> shift & 0xffff_ffff).unwrap())
            };
            for (what, hashes) in [("buckets", part(0)), ("ways and ports", part(32)), ("tags", part(48))] {
                let found = unevenness(hashes);
                assert!((0.7..1.3).contains(&found), "{what} of IPv{}: {found}", if v6 { 6 } else { 4 });
            }
            let slots = clients(v6).map(|key| slot(flow(&keys, &key, v6), 1_021));
            let found = unevenness(slots);
            assert!((0.7..1.4).contains(&found), "slots of IPv{}: {found}", if v6 { 6 } else { 4 });
        }
    }

    #[test]
    fn services_stand_where_this_layout_has_them() {
        let key = |addr: [u8; 4], port| ServiceKey::new(Addr::v4(addr), Port::new(port), Protocol::TCP);
        let at = |key: ServiceKey| service(&key).map(|bucket| bucket & (INDEX_BUCKETS - 1));
        // Whoever finds other numbers raises the layout's version, and writes the index down among what changed.
        assert_eq!(at(key([198, 51, 100, 1], 443)), [4_490, 6_703]);
        assert_eq!(at(key([198, 51, 100, 2], 443)), [6_051, 3_262]);
    }

    const FLOW: u64 = 11_522_090_875_357_237_077;
    const ENDPOINT: [u64; 2] = [4_856_296_318_774_559_841, 15_741_924_316_220_075_526];
}
