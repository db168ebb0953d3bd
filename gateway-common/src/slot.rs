//! Slots: the weighted Maglev table of a service, in chunks of one cache line.

use bytemuck::{Pod, Zeroable};

/// One slot: two endpoints, as indices local to the service.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Pod, Zeroable)]
pub struct Slot {
    /// Where new flows of this slot go.
    pub endpoint: u16,
    /// Where flows of this slot went before the change; equal to `endpoint` outside a change window, [`Slot::ELSEWHERE`]
    /// where they went to several.
    pub former: u16,
}

impl Slot {
    /// As `former`: what the table before this one says, which still stands in the service's other half. No endpoint has
    /// this number.
    pub const ELSEWHERE: u16 = u16::MAX;

    /// The same outside a change window.
    #[must_use]
    pub const fn settled(self) -> Self {
        Self { former: self.endpoint, ..self }
    }

    /// Where its flows went before the change, as this table knows it: the endpoint where it knows nothing.
    pub const fn before(self) -> u16 {
        if self.former == Self::ELSEWHERE { self.endpoint } else { self.former }
    }
}

/// Value of [`Slots`](crate::map::Slots): sixteen slots, 64 bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Pod, Zeroable)]
pub struct SlotChunk {
    /// The slots.
    pub slots: [Slot; SlotChunk::LEN],
}

impl SlotChunk {
    /// Slots in a chunk.
    pub const SLOTS: u32 = 16;

    /// The same, as the length of an array.
    pub const LEN: usize = 16;

    /// Chunks that hold `n_slots` slots.
    pub const fn chunks_for(n_slots: u32) -> u32 {
        n_slots.div_ceil(Self::SLOTS)
    }
}

/// Sizes that a service's slot table may have: primes, as Maglev's permutations ask for (Eisenbud et al.,
/// "Maglev: A Fast and Reliable Software Network Load Balancer", NSDI 2016).
pub const SIZE_CLASSES: [u32; 9] = [251, 509, 1_021, 2_503, 5_003, 8_191, 16_381, 32_749, 65_521];

/// Slots per endpoint of a table that is not large: when an endpoint is taken out, at most one slot in a hundred of the
/// others' moves, and every share is within one percentage point of its weight.
pub const SLOTS_PER_ENDPOINT: u32 = 250;

/// Slots per endpoint of a large table: the more endpoints, the fewer each needs for the same.
pub const SLOTS_PER_ENDPOINT_OF_MANY: u32 = 100;

/// The smallest size class with at least [`SLOTS_PER_ENDPOINT`] slots for each endpoint, from 16,381 slots on
/// [`SLOTS_PER_ENDPOINT_OF_MANY`], or the largest there is.
pub const fn size_class(n_endpoints: u32) -> u32 {
    let [a, b, c, d, e, f, g, h, i] = SIZE_CLASSES;
    let for_few = n_endpoints.saturating_mul(SLOTS_PER_ENDPOINT);
    let for_many = n_endpoints.saturating_mul(SLOTS_PER_ENDPOINT_OF_MANY);
    let wanted = match (for_few, for_many) {
        (few, _) if few <= g => few,
        (_, many) if many <= g => g,
        (_, many) => many,
    };
    match wanted {
        _ if wanted <= a => a,
        _ if wanted <= b => b,
        _ if wanted <= c => c,
        _ if wanted <= d => d,
        _ if wanted <= e => e,
        _ if wanted <= f => f,
        _ if wanted <= g => g,
        _ if wanted <= h => h,
        _ => i,
    }
}

const _: () = assert!(size_of::<SlotChunk>() == 64);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_are_prime_and_large_enough() {
        for class in SIZE_CLASSES {
            assert!(
                (2..class).take_while(|n| n * n <= class).all(|n| class % n != 0),
                "{class} is not prime"
            );
        }
        assert_eq!(size_class(1), 251);
        assert_eq!(size_class(3), 1_021);
        assert_eq!(size_class(10), 2_503);
        assert_eq!(size_class(65), 16_381);
        assert_eq!(size_class(163), 16_381);
        assert_eq!(size_class(164), 32_749);
        assert_eq!(size_class(655), 65_521);
        assert_eq!(size_class(5_000), 65_521);
    }
}
