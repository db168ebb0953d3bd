//! Endpoints: where the packets of a service go.

use bytemuck::{Pod, Zeroable};

use crate::addr::{Addr, Port};

/// Value of [`Endpoints`](crate::map::Endpoints): one row, one cache line.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Pod, Zeroable)]
pub struct Endpoint {
    /// Address of the endpoint.
    pub addr: Addr,
    /// Address of this node that translated packets carry as their source; unspecified for a local endpoint.
    pub source: Addr,
    /// How a packet leaves this node towards the endpoint.
    pub next_hop: NextHop,
    /// Port that packets go to; zero when they keep theirs.
    pub port: Port,
    /// May it receive packets.
    pub state: EndpointState,
    /// [`Endpoint::LOCAL`] or zero.
    pub flags: u8,
    /// Number of the service that owns the row.
    pub service: u32,
    /// Counts the endpoints that this row has held, in its lower half ([`Endpoint::OWNER`]), and in its upper half the ways
    /// on which translated packets went to the present one. A flow that remembers another endpoint is stale; one that
    /// remembers another way is recorded anew.
    pub generation: u32,
    /// Bytes of an IP packet that the way takes; zero when it is not known.
    pub mtu: u16,
    /// Where packets keep their port, the one that the endpoint is known by; zero otherwise. Packets do not ask for it.
    pub known_by: Port,
}

impl Endpoint {
    /// The endpoint is a socket of this node: only the destination is translated, and the stack delivers.
    pub const LOCAL: u8 = 1;

    /// The port that a packet to this virtual port goes to.
    #[inline(always)]
    pub fn port_for(&self, port: Port) -> Port {
        if self.port == Port::NONE { port } else { self.port }
    }

    /// The part of a generation that counts endpoints.
    pub const OWNER: u32 = 0xffff;

    /// Which of the endpoints that the row has held it holds now.
    #[inline(always)]
    pub const fn owner(&self) -> u32 {
        self.generation & Self::OWNER
    }

    /// Whether the row holds the endpoint that it held in this generation.
    #[inline(always)]
    pub const fn still_holds(&self, generation: u32) -> bool {
        (self.generation ^ generation) & Self::OWNER == 0
    }

    /// The port that tells the endpoint from others of its address, wherever packets go.
    pub fn own_port(&self) -> Port {
        if self.port == Port::NONE { self.known_by } else { self.port }
    }

    /// Whether packets for it are delivered by this node's own stack.
    #[inline(always)]
    pub const fn is_local(&self) -> bool {
        self.flags & Self::LOCAL != 0
    }
}

/// State of an endpoint row: a closed set, as one byte. A zeroed row is down.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Pod, Zeroable)]
pub struct EndpointState {
    number: u8,
}

impl EndpointState {
    /// No packet goes there, not even of an existing flow.
    pub const DOWN: Self = Self { number: 0 };
    /// New and existing flows.
    pub const ACTIVE: Self = Self { number: 1 };
    /// Existing TCP flows only; UDP selects again, and a SYN never starts there.
    pub const DRAINING: Self = Self { number: 2 };

    /// The byte in the map.
    pub const fn number(self) -> u8 {
        self.number
    }
}

/// How a packet leaves this node: the interface and both link-layer addresses.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq, Pod, Zeroable)]
pub struct NextHop {
    /// Index of the interface; zero means unknown, and the pipeline asks the kernel's routing table.
    pub interface: u32,
    /// Link-layer destination.
    pub mac: [u8; 6],
    /// Link-layer source: this node's address on the interface.
    pub own_mac: [u8; 6],
}

impl NextHop {
    /// Nothing known.
    pub const UNKNOWN: Self = Self { interface: 0, mac: [0; 6], own_mac: [0; 6] };

    /// Whether the other fields mean anything.
    #[inline(always)]
    pub const fn is_known(&self) -> bool {
        self.interface != 0
    }
}

const _: () = assert!(size_of::<NextHop>() == 16);
const _: () = assert!(size_of::<Endpoint>() == 64);
