//! Flows: what is remembered about a connection, in both directions.

use bytemuck::{Pod, Zeroable};

use crate::{
    addr::{Addr, Port, Protocol},
    endpoint::NextHop,
    word::one_word,
};

/// The 5-tuple of a packet as it carries it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq, Pod, Zeroable)]
pub struct FlowKey {
    /// Source address of the packet.
    pub source: Addr,
    /// Destination address of the packet.
    pub destination: Addr,
    /// Source port of the packet.
    pub source_port: Port,
    /// Destination port of the packet.
    pub destination_port: Port,
    /// TCP or UDP.
    pub protocol: Protocol,
    pad: [u8; 3],
}

impl FlowKey {
    /// From its parts.
    #[inline(always)]
    pub const fn new(
        source: Addr,
        source_port: Port,
        destination: Addr,
        destination_port: Port,
        protocol: Protocol,
    ) -> Self {
        let [sp0, sp1] = source_port.number().to_ne_bytes();
        let [dp0, dp1] = destination_port.number().to_ne_bytes();
        let rest = u64::from_ne_bytes([sp0, sp1, dp0, dp1, protocol.number(), 0, 0, 0]);
        let [s0, s1]: [u64; 2] = bytemuck::must_cast(source);
        let [d0, d1]: [u64; 2] = bytemuck::must_cast(destination);
        // Five whole words: written field by field, the compiler splits the key and pads it with calls.
        bytemuck::must_cast([s0, s1, d0, d1, rest])
    }

    /// From what stands in a packet: both ports as one word of the header of TCP or UDP.
    #[inline(always)]
    #[expect(clippy::as_conversions, clippy::cast_possible_truncation, reason = "halves of a word")]
    pub const fn of_packet(source: Addr, destination: Addr, ports: u32, protocol: Protocol) -> Self {
        let ports = u32::from_be(ports);
        let ports: u32 = bytemuck::must_cast([(ports >> 16) as u16, ports as u16]);
        let protocol = u32::from_ne_bytes([protocol.number(), 0, 0, 0]);
        let [s0, s1]: [u64; 2] = bytemuck::must_cast(source);
        let [d0, d1]: [u64; 2] = bytemuck::must_cast(destination);
        bytemuck::must_cast([s0, s1, d0, d1, bytemuck::must_cast([ports, protocol])])
    }
}

/// Entries in a bucket of [`Flows`](crate::map::Flows).
pub const WAYS: usize = 4;

/// Value of [`Flows`](crate::map::Flows): four entries, one cache line each. A flow stands in one of two buckets; its home
/// is the entry of its first that the lowest bits of [`Head::tag`] name.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Pod, Zeroable)]
pub struct FlowBucket {
    /// The entries.
    pub flows: [Flow; WAYS],
}

/// One flow, in both directions.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Pod, Zeroable)]
pub struct Flow {
    /// Whose entry this is. Written first and last, so that nobody reads half an entry.
    pub head: Head,
    /// The client.
    pub client: Addr,
    /// The client's port; zero for what is remembered about a client of a service with affinity.
    pub client_port: Port,
    /// The virtual port.
    pub port: Port,
    /// Row of the service.
    pub service: u32,
    /// Row of the endpoint.
    pub endpoint: u32,
    /// [`Endpoint::generation`](crate::endpoint::Endpoint::generation) when the flow was recorded.
    pub generation: u32,
    /// When the entry is over unless another packet comes.
    pub expires: Tick,
    /// Port that translated packets carry as their source; zero without translation.
    pub source_port: Port,
    /// How far the connection has come.
    pub phase: Phase,
    /// Whether it began with a cookie, so that [`Sequences`](crate::map::Sequences) has something about it: 0 or 1.
    pub proxied: u8,
    /// The way back to the client, learned from the client's own packets; unknown without translation.
    pub next_hop: NextHop,
}

/// Head of an entry: what is compared and exchanged as one word.
// Aligned, because the compiler copies it in pieces otherwise, and the verifier refuses pieces at odd places.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Pod, Zeroable)]
pub struct Head {
    /// Bits of the flow's hash.
    pub tag: u16,
    /// Counts the flows that the entry has held.
    pub version: u16,
    /// Zero.
    pub spare: u16,
    /// TCP or UDP.
    pub protocol: Protocol,
    /// Whether there is a flow.
    pub state: HeadState,
}

/// Whether an entry holds a flow: a closed set, as one byte.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Pod, Zeroable)]
pub struct HeadState {
    number: u8,
}

impl HeadState {
    /// Nothing, or nothing any more.
    pub const FREE: Self = Self { number: 0 };
    /// A processor is writing the entry.
    pub const BUSY: Self = Self { number: 1 };
    /// A flow.
    pub const LIVE: Self = Self { number: 2 };
    /// The bit beside the state of an entry in the second of its flow's buckets.
    pub const DISPLACED: u8 = 0x80;

    /// The byte in the map.
    pub const fn number(self) -> u8 {
        self.number
    }

    /// The same in the second of a flow's buckets.
    #[must_use]
    pub const fn displaced(self) -> Self {
        Self { number: self.number | Self::DISPLACED }
    }

    /// Whether there is a flow.
    pub const fn is_live(self) -> bool {
        self.number & !Self::DISPLACED == Self::LIVE.number
    }
}

/// Value of [`Displaced`](crate::map::Displaced): for each of eight buckets, how many flows whose first bucket it is do not
/// stand at their home, because that was taken: in the lower three bits those at another entry of it, in the upper five
/// those in their second bucket. Only then is a flow looked for there. 7 and 31 stay: nobody counts beyond.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Pod, Zeroable)]
pub struct DisplacedFlows {
    /// By the lowest bits of the bucket's number.
    pub counts: [u8; 8],
}

/// Value of [`Sequences`](crate::map::Sequences): what is known of the sequence numbers of connections that began with a
/// cookie, by the entries of a bucket of [`Flows`](crate::map::Flows).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Pod, Zeroable)]
pub struct SequenceBucket {
    /// One for each entry.
    pub entries: [Sequence; WAYS],
}

/// Sequence numbers of one connection that began with a cookie.
// Aligned, because it is read and written as one word.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Pod, Zeroable)]
pub struct Sequence {
    /// Until the endpoint answers, the cookie; then how far the number that the client knows is ahead of the endpoint's.
    pub number: u32,
    /// [`Head::version`] of the entry that it is about.
    pub version: u16,
    /// Which of both it is.
    pub stage: SequenceStage,
    pad: u8,
}

impl Sequence {
    /// From its parts.
    #[inline(always)]
    pub const fn new(number: u32, version: u16, stage: SequenceStage) -> Self {
        let [a, b, c, d] = number.to_ne_bytes();
        let [e, f] = version.to_ne_bytes();
        // A whole word, for the same reason as the alignment.
        Self::from_word(u64::from_ne_bytes([a, b, c, d, e, f, stage.number, 0]))
    }
}

/// How far the handshake with the endpoint has come: a closed set, as one byte.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Pod, Zeroable)]
pub struct SequenceStage {
    number: u8,
}

impl SequenceStage {
    /// Nothing is known.
    pub const NONE: Self = Self { number: 0 };
    /// The endpoint has got a SYN and has not answered.
    pub const WAITING: Self = Self { number: 1 };
    /// It has answered.
    pub const JOINED: Self = Self { number: 2 };
}

/// Places in a bucket of [`Replies`](crate::map::Replies).
pub const REPLY_WAYS: usize = 8;

/// Value of [`Replies`](crate::map::Replies): from the 5-tuple of an endpoint's packets to entries of
/// [`Flows`](crate::map::Flows), one cache line.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Pod, Zeroable)]
pub struct ReplyBucket {
    /// The places.
    pub replies: [Reply; REPLY_WAYS],
}

/// One place of [`ReplyBucket`]; all zero when it is free.
// Aligned, because it is read and written as one word.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Pod, Zeroable)]
pub struct Reply {
    /// Bits of the hash of the endpoint's 5-tuple, never zero.
    pub tag: u32,
    /// Index of the entry: bucket times four plus place, in the lower 24 bits; above them the lowest bits of the version
    /// that it had.
    pub flow: u32,
}

impl Reply {
    /// Bits of [`Reply::flow`] that hold the index.
    pub const INDEX_BITS: u32 = 24;

    /// A place for a version of an entry.
    #[inline(always)]
    #[expect(clippy::as_conversions, reason = "widening in a const function")]
    pub const fn new(tag: u32, index: u32, version: u16) -> Self {
        Self { tag, flow: (version as u32) << Self::INDEX_BITS | index & Self::INDEX_MASK }
    }

    const INDEX_MASK: u32 = (1 << Self::INDEX_BITS) - 1;

    /// Index of the entry.
    #[inline(always)]
    pub const fn index(self) -> u32 {
        self.flow & Self::INDEX_MASK
    }

    /// Whether it was made for this version of the entry.
    #[inline(always)]
    #[expect(clippy::as_conversions, reason = "widening in a const function")]
    pub const fn is_of(self, version: u16) -> bool {
        self.flow >> Self::INDEX_BITS == version as u32 & 0xff
    }
}

/// Value of [`ServiceFlows`](crate::map::ServiceFlows): what a service holds in [`Flows`](crate::map::Flows), and lost there.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Pod, Zeroable)]
pub struct ServiceFlowCount {
    /// Entries, of open flows and of those that are over but whose place nobody has taken yet.
    pub entries: u64,
    /// Flows that had to give their place to others before they were over.
    pub evicted: u64,
}

/// Value of [`EndpointFlows`](crate::map::EndpointFlows): what an endpoint has in [`Flows`](crate::map::Flows).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Pod, Zeroable)]
pub struct FlowCount {
    /// Entries, of open flows and of those that are over but whose place nobody has taken yet.
    pub entries: u64,
}

/// Value of [`ScratchMap`](crate::map::ScratchMap): what a program notes while it looks at a packet.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Pod, Zeroable)]
pub struct Scratch {
    /// Its notes, in a form of its own.
    pub words: [u64; 32],
}

/// A coarse instant: the kernel's timer interrupts since boot, shifted so that one tick is about a second. Wraps after a
/// century.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Pod, Zeroable)]
pub struct Tick {
    count: u32,
}

impl Tick {
    /// From a number of timer interrupts; see [`tick_shift`].
    #[inline(always)]
    #[expect(
        clippy::as_conversions,
        clippy::cast_possible_truncation,
        reason = "the upper bits are a century away"
    )]
    pub const fn from_jiffies(jiffies: u64, shift: u8) -> Self {
        Self { count: (jiffies >> (shift & 63)) as u32 }
    }

    /// From a number of ticks.
    #[inline(always)]
    pub const fn new(count: u32) -> Self {
        Self { count }
    }

    /// The number of ticks.
    #[inline(always)]
    pub const fn count(self) -> u32 {
        self.count
    }

    /// The instant so many ticks later.
    #[inline(always)]
    #[must_use]
    pub const fn after(self, ticks: u32) -> Self {
        Self { count: self.count.wrapping_add(ticks) }
    }

    /// Whether this instant is before another. Instants more than half the range apart mean nothing.
    #[inline(always)]
    pub const fn is_before(self, other: Self) -> bool {
        self.count.wrapping_sub(other.count) > u32::MAX / 2
    }
}

/// Bits by which timer interrupts are shifted, from their number in a second: a tick is then between two thirds of a
/// second and four thirds.
pub const fn tick_shift(interrupts_per_second: u32) -> u8 {
    let wide = interrupts_per_second.saturating_mul(4) / 3;
    match wide.checked_ilog2() {
        Some(0..=15) | None if wide < 2 => 0,
        Some(shift @ 0..=15) => shift.to_le_bytes()[0],
        Some(_) | None => 15,
    }
}

/// How far a connection has come: a closed set, as one byte, in the order of progress.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, Ord, PartialEq, PartialOrd, Pod, Zeroable)]
pub struct Phase {
    number: u8,
}

impl Phase {
    /// A SYN was seen, nothing else; or one packet of UDP without an answer.
    pub const OPENING: Self = Self { number: 0 };
    /// Packets go both ways.
    pub const OPEN: Self = Self { number: 1 };
    /// A FIN or a RST was seen.
    pub const CLOSING: Self = Self { number: 2 };
}

one_word!(Head);
one_word!(Sequence);
one_word!(Reply);

const _: () = assert!(size_of::<FlowKey>() == 40);
const _: () = assert!(size_of::<Flow>() == 64);
const _: () = assert!(size_of::<FlowBucket>() == 256);
const _: () = assert!(size_of::<ReplyBucket>() == 64);
const _: () = assert!(size_of::<SequenceBucket>() == 32);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tick_is_about_a_second() {
        for per_second in [24, 100, 250, 300, 1_000, 1_024, 1_200] {
            let tick = f64::from(1_u32 << tick_shift(per_second)) / f64::from(per_second);
            assert!((0.66..=1.34).contains(&tick), "{per_second} in a second: {tick} s");
        }
        assert_eq!([tick_shift(0), tick_shift(1)], [0, 0]);
    }

    #[test]
    fn an_instant_is_before_another_across_the_wrap() {
        assert!(Tick::new(3).is_before(Tick::new(5)));
        assert!(!Tick::new(5).is_before(Tick::new(5)));
        assert!(!Tick::new(6).is_before(Tick::new(5)));
        assert!(Tick::new(u32::MAX).is_before(Tick::new(u32::MAX).after(3)));
    }

    #[test]
    fn a_reply_knows_its_entry_and_version() {
        let reply = Reply::new(7, 0x00ab_cdef, 0x1234);
        assert_eq!(reply.index(), 0x00ab_cdef);
        assert!(reply.is_of(0x1234) && reply.is_of(0x0034) && !reply.is_of(0x1235));
        assert_eq!(Reply::from_word(reply.word()), reply);
    }
}
