//! Fragments: what the first piece of a packet tells about the others, which have no transport header.

use bytemuck::{Pod, Zeroable};

use crate::{
    addr::{Port, Protocol},
    flow::Tick,
    word::one_word,
};

/// Entries in a bucket of [`Fragments`](crate::map::Fragments).
pub const WAYS: usize = 4;

/// Value of [`Fragments`](crate::map::Fragments): four packets that came in pieces, one cache line.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Pod, Zeroable)]
pub struct FragmentBucket {
    /// The packets.
    pub packets: [Fragmented; WAYS],
}

/// One packet that came in pieces.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Pod, Zeroable)]
pub struct Fragmented {
    /// Hash of addresses, identification and protocol under the cluster's seed; zero when the place is free.
    pub tag: u64,
    /// Ports, protocol and time.
    pub lesson: Lesson,
}

/// What the first piece told.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Pod, Zeroable)]
pub struct Lesson {
    /// Source port.
    pub source_port: Port,
    /// Destination port.
    pub destination_port: Port,
    /// Lower half of the tick in which it came.
    pub seen: u16,
    /// TCP or UDP.
    pub protocol: Protocol,
    pad: u8,
}

impl Lesson {
    /// Ticks for which a first piece is remembered: the others follow at once, or in another order by little.
    pub const TICKS: u16 = 3;

    /// From the first piece.
    #[inline(always)]
    #[expect(clippy::as_conversions, clippy::cast_possible_truncation, reason = "the lower half")]
    pub const fn new(source_port: Port, destination_port: Port, protocol: Protocol, now: Tick) -> Self {
        Self { source_port, destination_port, seen: now.count() as u16, protocol, pad: 0 }
    }

    /// Ticks since it came.
    #[inline(always)]
    #[expect(clippy::as_conversions, clippy::cast_possible_truncation, reason = "the lower half")]
    pub const fn age(self, now: Tick) -> u16 {
        (now.count() as u16).wrapping_sub(self.seen)
    }

    /// Whether it is too old to be believed.
    #[inline(always)]
    pub const fn is_over(self, now: Tick) -> bool {
        self.age(now) > Self::TICKS
    }
}

one_word!(Lesson);

const _: () = assert!(size_of::<FragmentBucket>() == 64);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lesson_is_over_after_a_while_and_across_the_wrap() {
        for start in [7, 0xffff, 0x1_fffe] {
            let lesson = Lesson::new(Port::new(1), Port::new(2), Protocol::UDP, Tick::new(start));
            assert_eq!(Lesson::from_word(lesson.word()), lesson);
            assert!(!lesson.is_over(Tick::new(start)));
            assert!(!lesson.is_over(Tick::new(start + 3)));
            assert!(lesson.is_over(Tick::new(start + 4)));
        }
    }
}
