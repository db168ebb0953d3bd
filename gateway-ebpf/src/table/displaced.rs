//! Counts of flows that stand in the second of their buckets, by the first: a byte for each bucket.

use crate::env::Maps;

/// Tries to change a word that other processors change, too.
const TRIES: u32 = 4;

/// Nobody counts beyond, and nobody counts down from there.
const MOST: u64 = 0xff;

/// Bits to the right of a bucket's count.
#[inline(always)]
const fn shift(bucket: u32) -> u32 {
    (bucket & 7) * 8
}

/// Whether any flow of this bucket may stand in another.
#[inline(always)]
pub(super) fn any<M: Maps>(maps: &M, bucket: u32) -> bool {
    maps.displaced(bucket >> 3).is_none_or(|word| M::load(&word) >> shift(bucket) & MOST != 0)
}

/// Counts one more; says whether it is counted.
#[inline(always)]
pub(super) fn add<M: Maps>(maps: &M, bucket: u32) -> bool {
    let Some(word) = maps.displaced(bucket >> 3) else { return false };
    for _ in 0..TRIES {
        let old = M::load(&word);
        if old >> shift(bucket) & MOST == MOST
            || M::exchange(&word, old, old.wrapping_add(1 << shift(bucket)))
        {
            return true;
        }
    }
    false
}

/// Counts one less. A count that is too high after many tries costs a look at a second bucket, and nothing else.
#[inline(always)]
pub(super) fn remove<M: Maps>(maps: &M, bucket: u32) {
    let Some(word) = maps.displaced(bucket >> 3) else { return };
    for _ in 0..TRIES {
        let old = M::load(&word);
        let count = old >> shift(bucket) & MOST;
        if count == 0 || count == MOST || M::exchange(&word, old, old.wrapping_sub(1 << shift(bucket))) {
            return;
        }
    }
}
