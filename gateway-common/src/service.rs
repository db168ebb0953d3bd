//! Services: the virtual addresses that clients connect to.

use bytemuck::{Pod, Zeroable};

use crate::addr::{Addr, Port, Protocol};

/// What clients connect to: virtual address, port and protocol.
#[repr(C)]
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd, Pod, Zeroable)]
pub struct ServiceKey {
    /// The virtual address.
    pub addr: Addr,
    /// The virtual port.
    pub port: Port,
    /// TCP or UDP.
    pub protocol: Protocol,
    pad: u8,
}

impl ServiceKey {
    /// From its parts.
    #[inline(always)]
    pub const fn new(addr: Addr, port: Port, protocol: Protocol) -> Self {
        Self { addr, port, protocol, pad: 0 }
    }
}

/// Value of [`ServiceIndex`](crate::map::ServiceIndex): the places where a key may stand, one cache line.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Pod, Zeroable)]
pub struct ServiceBucket {
    /// The places.
    pub entries: [ServiceEntry; 2],
}

/// One place of the index: from a virtual address, port and protocol to the row of its service.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Pod, Zeroable)]
pub struct ServiceEntry {
    /// The virtual address.
    pub addr: Addr,
    /// The virtual port; zero for every port that has no entry of its own.
    pub port: Port,
    /// TCP or UDP.
    pub protocol: Protocol,
    pad: u8,
    /// Row in [`Services`](crate::map::Services), plus one; zero when there is none.
    pub service: u32,
    /// First row in [`PortRanges`](crate::map::PortRanges), for port zero.
    pub first_range: u32,
    /// Rows there.
    pub n_ranges: u32,
}

impl ServiceEntry {
    /// An entry for a key.
    pub const fn new(key: ServiceKey, service: Option<u32>, first_range: u32, n_ranges: u32) -> Self {
        let service = match service {
            Some(id) => id + 1,
            None => 0,
        };
        Self {
            addr: key.addr,
            port: key.port,
            protocol: key.protocol,
            pad: 0,
            service,
            first_range,
            n_ranges,
        }
    }

    /// Whether it leads anywhere.
    pub const fn is_taken(&self) -> bool {
        self.service | self.n_ranges != 0
    }

    /// What it stands for.
    pub const fn key(&self) -> ServiceKey {
        ServiceKey::new(self.addr, self.port, self.protocol)
    }

    /// Number of its service, if it has one besides those of its ranges.
    pub const fn service_id(&self) -> Option<u32> {
        self.service.checked_sub(1)
    }

    /// Whether it stands for this key. One without service and ranges stands for nothing.
    #[inline(always)]
    pub fn is_for(&self, key: &ServiceKey) -> bool {
        let [a, b]: [u64; 2] = bytemuck::must_cast(self.addr);
        let [c, d]: [u64; 2] = bytemuck::must_cast(key.addr);
        (a ^ c) | (b ^ d) == 0 && self.port == key.port && self.protocol == key.protocol
    }
}

/// Value of [`PortRanges`](crate::map::PortRanges): the service of a range of ports.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Pod, Zeroable)]
pub struct PortRange {
    /// First port.
    pub first: Port,
    /// Last port.
    pub last: Port,
    /// Row in [`Services`](crate::map::Services).
    pub service: u32,
}

/// Value of [`Services`](crate::map::Services): one row, two cache lines, of which packets read the first.
///
/// The agent writes the table that is not current, then `current`: one store, which publishes slots, rows and their
/// numbers at once.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Pod, Zeroable)]
pub struct Service {
    /// Two tables, of which one is current.
    pub tables: [Table; 2],
    /// Which one: 0 or 1.
    pub current: u32,
    /// See [`Service::AFFINITY`] and its neighbors.
    pub flags: u16,
    /// How packets reach the endpoint.
    pub mode: Mode,
    /// What is remembered about a flow.
    pub track: Track,
    /// The virtual port; the first of several, zero for every port.
    pub port: Port,
    /// TCP or UDP.
    pub protocol: Protocol,
    pad: u8,
    /// Number of this service: this row, and that of [`ServiceCounts`](crate::map::ServiceCounts).
    pub id: u32,
    /// The virtual address.
    pub addr: Addr,
    /// Entries of [`Flows`](crate::map::Flows) that this service may hold while others need room.
    pub flow_share: u32,
    /// Ticks for which a client that is silent keeps its endpoint.
    pub affinity_ticks: u32,
    /// First index in [`Sockets`](crate::map::Sockets) of the agent's listening sockets.
    pub first_socket: u32,
    /// Listening sockets, one per worker.
    pub n_sockets: u32,
    /// First chunk of each half of the slots that belong to the service, also of one that no table names at present.
    pub halves: [u32; 2],
    /// New flows of the service in a second, and at once; zero for no bound.
    pub flow_rate: Rate,
    /// New flows of one source in a second, and at once.
    pub source_rate: Rate,
    /// SYNs in a second above which they are answered with cookies; zero for never.
    pub cookie_rate: u32,
    spare: [u32; 5],
}

impl Service {
    /// A client keeps its endpoint for a while.
    pub const AFFINITY: u16 = 1;
    /// New flows are limited.
    pub const LIMITED: u16 = 1 << 8;
    /// An open connection whose endpoint is down is reset.
    pub const RESETS: u16 = 2;
    /// SYNs are answered with cookies while there are too many.
    pub const COOKIES: u16 = 1 << 9;
    /// While the agent is silent, new connections to a service of its own go to endpoints, translated.
    pub const FAILS_OPEN: u16 = 4;

    /// Nothing yet, for an address, port and protocol.
    pub const fn new(key: ServiceKey, id: u32) -> Self {
        let nothing = Table { first_chunk: 0, n_slots: 0, first_endpoint: 0, n_endpoints: 0 };
        Self {
            tables: [nothing; 2],
            current: 0,
            flags: 0,
            mode: Mode::AGENT,
            track: Track::ALWAYS,
            port: key.port,
            protocol: key.protocol,
            pad: 0,
            id,
            addr: key.addr,
            flow_share: 0,
            affinity_ticks: 0,
            first_socket: 0,
            n_sockets: 0,
            halves: [0; 2],
            flow_rate: Rate::NONE,
            source_rate: Rate::NONE,
            cookie_rate: 0,
            spare: [0; 5],
        }
    }

    /// Whether the programs answer SYNs with cookies of their own, where packets are translated.
    #[inline(always)]
    pub const fn has_own_cookies(&self) -> bool {
        self.flags & (Self::COOKIES | Self::FAILS_OPEN) == Self::COOKIES
    }

    /// The table that is current.
    pub const fn table(&self) -> Table {
        let [even, odd] = self.tables;
        if self.current & 1 == 0 { even } else { odd }
    }

    /// The table that is not current: the one before, as long as slots say so.
    pub const fn idle_table(&self) -> Table {
        let [even, odd] = self.tables;
        if self.current & 1 == 0 { odd } else { even }
    }

    /// The virtual address, port and protocol.
    pub const fn key(&self) -> ServiceKey {
        ServiceKey::new(self.addr, self.port, self.protocol)
    }
}

/// How many of something may come.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Pod, Zeroable)]
pub struct Rate {
    /// In a second; zero for no bound.
    pub per_second: u32,
    /// At once.
    pub burst: u32,
}

impl Rate {
    /// No bound.
    pub const NONE: Self = Self { per_second: 0, burst: 0 };
}

/// The slots and the rows of a service.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Pod, Zeroable)]
pub struct Table {
    /// First chunk in [`Slots`](crate::map::Slots).
    pub first_chunk: u32,
    /// Slots, a prime; zero means "known, and nothing to send to".
    pub n_slots: u32,
    /// First row in [`Endpoints`](crate::map::Endpoints).
    pub first_endpoint: u32,
    /// Rows, in use or not. A slot that names a row beyond them is a fault.
    pub n_endpoints: u32,
}

/// How packets reach an endpoint: a closed set, as one byte.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Pod, Zeroable)]
pub struct Mode {
    number: u8,
}

impl Mode {
    /// Not forwarded: the connection is steered to a listening socket of the agent.
    pub const AGENT: Self = Self { number: 0 };
    /// Translation: source and destination for remote endpoints, destination only for local ones.
    pub const NAT: Self = Self { number: 1 };
    /// Direct return over the link: only the frame is addressed to the endpoint, which owns the virtual address.
    pub const DSR_L2: Self = Self { number: 2 };
    /// Direct return through a tunnel, IP in IP (RFC 2003, RFC 2473).
    pub const DSR_IPIP: Self = Self { number: 3 };
    /// Direct return through a tunnel over UDP, without a header of its own (GUE variant 1).
    pub const DSR_GUE: Self = Self { number: 4 };
    /// The last one.
    pub const LAST: Self = Self::DSR_GUE;

    /// The byte in the map.
    pub const fn number(self) -> u8 {
        self.number
    }
}

/// What is remembered about a flow: a closed set, as one byte.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Pod, Zeroable)]
pub struct Track {
    number: u8,
}

impl Track {
    /// Every flow is recorded. Translation needs this.
    pub const ALWAYS: Self = Self { number: 0 };
    /// Only flows whose slot changed during a change window.
    pub const CHANGE: Self = Self { number: 1 };
    /// Nothing.
    pub const NEVER: Self = Self { number: 2 };
}

const _: () = assert!(size_of::<ServiceKey>() == 20);
const _: () = assert!(size_of::<ServiceBucket>() == 64);
const _: () = assert!(size_of::<PortRange>() == 8);
const _: () = assert!(size_of::<Service>() == 128);
