//! Flows: what is remembered about a connection, in both directions.

use bytemuck::{Pod, Zeroable};

use crate::{
    addr::{Addr, Port, Protocol},
    endpoint::NextHop,
};

/// Key of [`Flows`](crate::map::Flows) and [`Translations`](crate::map::Translations): the 5-tuple as the packet carries it.
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
    /// The padding is zero by construction: the kernel hashes every byte of a key.
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
}

/// Value of [`Flows`](crate::map::Flows): the direction from the client to the endpoint.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Pod, Zeroable)]
pub struct Flow {
    /// Row of the endpoint.
    pub endpoint: u32,
    /// [`Endpoint::generation`](crate::endpoint::Endpoint::generation) when the flow was recorded.
    pub generation: u32,
    /// Last packet, in [`Tick`]s.
    pub seen: Tick,
    /// Port that translated packets carry as their source; the client's own for a local endpoint.
    pub source_port: Port,
    /// How far the connection has come.
    pub phase: Phase,
    pad: u8,
}

impl Flow {
    /// A flow just seen for the first time.
    #[inline(always)]
    pub const fn new(endpoint: u32, generation: u32, seen: Tick, source_port: Port, phase: Phase) -> Self {
        let [low, high] = source_port.number().to_ne_bytes();
        let rest = u32::from_ne_bytes([low, high, phase.number, 0]);
        bytemuck::must_cast([endpoint, generation, seen.count, rest])
    }
}

/// Value of [`Translations`](crate::map::Translations): the direction from the endpoint to the client.
/// The key is the 5-tuple of the endpoint's packet.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Pod, Zeroable)]
pub struct Translation {
    /// The client.
    pub client: Addr,
    /// The virtual address.
    pub addr: Addr,
    /// The way back to the client, learned from the client's own packets.
    pub next_hop: NextHop,
    /// The client's port.
    pub client_port: Port,
    /// The virtual port.
    pub port: Port,
    /// Number of the service.
    pub service: u32,
    /// Row of the endpoint.
    pub endpoint: u32,
    /// Last packet of either direction, in [`Tick`]s.
    pub seen: Tick,
    /// How far the connection has come.
    pub phase: Phase,
    pad: [u8; 7],
}

impl Translation {
    /// The padding is zero by construction.
    #[inline(always)]
    pub const fn new(
        key: &FlowKey,
        service: u32,
        endpoint: u32,
        next_hop: NextHop,
        seen: Tick,
        phase: Phase,
    ) -> Self {
        let [c0, c1]: [u64; 2] = bytemuck::must_cast(key.source);
        let [a0, a1]: [u64; 2] = bytemuck::must_cast(key.destination);
        let [h0, h1, h2, h3]: [u32; 4] = bytemuck::must_cast(next_hop);
        let [cp0, cp1] = key.source_port.number().to_ne_bytes();
        let [p0, p1] = key.destination_port.number().to_ne_bytes();
        let ports = u32::from_ne_bytes([cp0, cp1, p0, p1]);
        let phase = u32::from_ne_bytes([phase.number, 0, 0, 0]);
        bytemuck::must_cast([
            c0,
            c1,
            a0,
            a1,
            words(h0, h1),
            words(h2, h3),
            words(ports, service),
            words(endpoint, seen.count),
            words(phase, 0),
        ])
    }
}

/// Value of [`ScratchMap`](crate::map::ScratchMap): the entries of one flow while a program puts them together.
#[repr(C)]
#[derive(Clone, Copy, Debug, Eq, PartialEq, Pod, Zeroable)]
pub struct Scratch {
    /// The 5-tuple of the endpoint's packets.
    pub reply_key: FlowKey,
    /// What will stand under it.
    pub translation: Translation,
    /// What will stand under the client's 5-tuple.
    pub flow: Flow,
}

/// Two words as they lie in memory.
#[inline(always)]
const fn words(first: u32, second: u32) -> u64 {
    bytemuck::must_cast([first, second])
}

/// A coarse instant: nanoseconds since boot divided by 2^30, so one tick is 1.07 s. Wraps after 146 years.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Pod, Zeroable)]
pub struct Tick {
    count: u32,
}

impl Tick {
    /// From nanoseconds of the kernel's coarse monotonic clock.
    #[inline(always)]
    #[expect(
        clippy::as_conversions,
        clippy::cast_possible_truncation,
        reason = "bits above 2^62 ns are 146 years away"
    )]
    pub const fn from_ns(ns: u64) -> Self {
        Self { count: (ns >> 30) as u32 }
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

    /// Ticks since `earlier`.
    #[inline(always)]
    pub const fn since(self, earlier: Self) -> u32 {
        self.count.wrapping_sub(earlier.count)
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

const _: () = assert!(size_of::<FlowKey>() == 40);
const _: () = assert!(size_of::<Flow>() == 16);
const _: () = assert!(size_of::<Translation>() == 72);
const _: () = assert!(size_of::<Scratch>() == 128);
