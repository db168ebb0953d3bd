//! Services: the virtual addresses that clients connect to.

use bytemuck::{Pod, Zeroable};

use crate::addr::{Addr, Port, Protocol};

/// Key of [`Services`](crate::map::Services): the virtual address, port and protocol of a listener.
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
    /// The padding is zero by construction: the kernel hashes every byte of a key.
    #[inline(always)]
    pub const fn new(addr: Addr, port: Port, protocol: Protocol) -> Self {
        Self { addr, port, protocol, pad: 0 }
    }
}

/// Value of [`Services`](crate::map::Services).
///
/// Publishing a new slot table, a new set of endpoints or a new mode is one replacement of this value.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Pod, Zeroable)]
pub struct Service {
    /// Number of this service: index into [`ServiceCounts`](crate::map::ServiceCounts), stable across restarts.
    pub id: u32,
    /// First row of this service in [`Endpoints`](crate::map::Endpoints).
    pub first_endpoint: u32,
    /// Rows of this service, in use or not. A slot that names a row beyond them is a fault.
    pub n_endpoints: u32,
    /// First chunk of each half in [`Slots`](crate::map::Slots).
    pub first_chunk: [u32; 2],
    /// Slots of one half, a prime; zero means "known, and nothing to send to".
    pub n_slots: u32,
    /// First index in [`Sockets`](crate::map::Sockets) of the agent's listening sockets.
    pub first_socket: u32,
    /// Listening sockets, one per worker.
    pub n_sockets: u32,
    /// Which half of the slots is current: 0 or 1.
    pub current: u8,
    /// How packets reach the endpoint.
    pub mode: Mode,
    /// What is remembered about a flow.
    pub track: Track,
    pad: [u8; 5],
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
const _: () = assert!(size_of::<Service>() == 40);
