//! Counts of flows that do not stand at their home, by their first bucket: a byte for each bucket.

use crate::env::Maps;

/// Tries to change a word that other processors change, too.
const TRIES: u32 = 4;

/// Where flows stand that are not at home.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum To {
    /// At another entry of their first bucket.
    Entry,
    /// In their second bucket.
    Bucket,
}

impl To {
    /// One more, in the byte of a bucket.
    #[inline(always)]
    const fn one(self) -> u64 {
        match self {
            Self::Entry => 1,
            Self::Bucket => 8,
        }
    }

    /// The bits of the count in the byte. When all are set, nobody counts beyond, and nobody counts down from there.
    #[inline(always)]
    const fn most(self) -> u64 {
        match self {
            Self::Entry => 0x07,
            Self::Bucket => 0xf8,
        }
    }
}

/// Bits to the right of a bucket's counts.
#[inline(always)]
const fn shift(bucket: u32) -> u32 {
    (bucket & 7) * 8
}

/// Both counts of a bucket.
#[derive(Clone, Copy, Debug)]
pub(super) struct Counts {
    byte: u64,
}

impl Counts {
    /// Whether any flow of the bucket may stand there.
    #[inline(always)]
    pub(super) const fn is_to(self, to: To) -> bool {
        self.byte & to.most() != 0
    }
}

/// The counts of this bucket; as if there were any where they cannot be read.
#[inline(always)]
pub(super) fn of<M: Maps>(maps: &M, bucket: u32) -> Counts {
    let byte = maps.displaced(bucket >> 3).map_or(u64::MAX, |word| M::load(&word) >> shift(bucket));
    Counts { byte }
}

/// Counts one more; says whether it is counted.
#[inline(always)]
pub(super) fn add<M: Maps>(maps: &M, bucket: u32, to: To) -> bool {
    let Some(word) = maps.displaced(bucket >> 3) else { return false };
    for _ in 0..TRIES {
        let old = M::load(&word);
        if old >> shift(bucket) & to.most() == to.most()
            || M::exchange(&word, old, old.wrapping_add(to.one() << shift(bucket)))
        {
            return true;
        }
    }
    false
}

/// Counts one less. A count that is too high after many tries costs a look at other entries, and nothing else.
#[inline(always)]
pub(super) fn remove<M: Maps>(maps: &M, bucket: u32, to: To) {
    let Some(word) = maps.displaced(bucket >> 3) else { return };
    for _ in 0..TRIES {
        let old = M::load(&word);
        let count = old >> shift(bucket) & to.most();
        if count == 0
            || count == to.most()
            || M::exchange(&word, old, old.wrapping_sub(to.one() << shift(bucket)))
        {
            return;
        }
    }
}
