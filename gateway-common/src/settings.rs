//! Settings: what the agent switches while the programs run.

use core::fmt;

use bytemuck::{Pod, Zeroable};

use crate::{
    addr::{Addr, Port},
    hash::{Keys, Seed},
};

/// Value of [`SettingsMap`](crate::map::SettingsMap), a single row.
#[repr(C)]
#[derive(Clone, Copy, Default, Eq, PartialEq, Pod, Zeroable)]
pub struct Settings {
    /// The cluster's seed.
    pub seed: Seed,
    /// The seed spread out, for the hash of flows.
    pub keys: Keys,
    /// Buckets of [`Flows`](crate::map::Flows) less one; their number is a power of two.
    pub flow_mask: u32,
    /// Buckets of [`Replies`](crate::map::Replies) less one.
    pub reply_mask: u32,
    /// Ticks after which a flow that never got beyond its first packet may lose its place.
    pub opening_ticks: u32,
    /// Ticks after which a silent open TCP flow may lose its place.
    pub open_ticks: u32,
    /// Ticks after which a closed TCP flow may lose its place: longer than TIME-WAIT.
    pub closing_ticks: u32,
    /// Ticks after which a silent UDP flow selects an endpoint again and may lose its place.
    pub udp_ticks: u32,
    /// First port that translated packets may carry as their source.
    pub first_port: Port,
    /// Ports from there on; zero switches translation towards remote endpoints off.
    pub n_ports: u16,
    /// See [`tick_shift`](crate::flow::tick_shift).
    pub tick_shift: u8,
    /// See [`Settings::SOURCES`] and its neighbors; zero as long as nobody is refused, so that packets look no further.
    pub guards: u8,
    /// The kernel's timer interrupts in a second.
    pub interrupts: u16,
    /// Outer source of tunnels over IPv4; the last 16 bits follow from the flow, so that the receiver's queues share the
    /// load.
    pub tunnel_v4: Addr,
    /// Outer source of tunnels over IPv6; the last 32 bits follow from the flow.
    pub tunnel_v6: Addr,
    /// Destination port of tunnels over UDP.
    pub tunnel_port: Port,
    /// Buckets of [`Fragments`](crate::map::Fragments) less one; their number is a power of two.
    pub fragment_mask: u16,
    /// Events that each processor tells of each reason in a tick; zero tells none.
    pub events: u16,
    pad_end: [u8; 2],
}

impl fmt::Debug for Settings {
    /// Without the seed, which is a secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Settings").field("first_port", &self.first_port).finish_non_exhaustive()
    }
}

impl Settings {
    /// Some sources are listed.
    pub const SOURCES: u8 = 1;
    /// Some service limits new flows.
    pub const RATES: u8 = 2;
    /// Some sources of IPv6 are listed by networks shorter than [`LONG`](crate::source::LONG).
    pub const BROAD: u8 = 4;

    /// The padding is zero by construction.
    pub const fn new(seed: Seed, ports: Ports, tables: Tables, timeouts: Timeouts, tunnel: Tunnel) -> Self {
        Self {
            seed,
            keys: seed.keys(),
            flow_mask: tables.flow_buckets.saturating_sub(1),
            reply_mask: tables.reply_buckets.saturating_sub(1),
            opening_ticks: timeouts.opening,
            open_ticks: timeouts.open,
            closing_ticks: timeouts.closing,
            udp_ticks: timeouts.udp,
            first_port: ports.first,
            n_ports: ports.count,
            tick_shift: timeouts.tick_shift,
            guards: 0,
            interrupts: timeouts.interrupts,
            tunnel_v4: tunnel.v4,
            tunnel_v6: tunnel.v6,
            tunnel_port: tunnel.port,
            fragment_mask: tables.fragment_buckets.saturating_sub(1),
            events: 0,
            pad_end: [0; 2],
        }
    }
}

impl Settings {
    /// Whether translated packets may carry this port as their source.
    #[inline(always)]
    pub const fn translates_from(&self, port: Port) -> bool {
        port.number().wrapping_sub(self.first_port.number()) < self.n_ports
    }

    /// The same with other events.
    #[must_use]
    pub const fn telling(mut self, events: u16) -> Self {
        self.events = events;
        self
    }

    /// The same with other guards.
    #[must_use]
    pub const fn guarding(mut self, guards: u8) -> Self {
        self.guards = guards;
        self
    }
}

/// The ports of translation.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Ports {
    /// See [`Settings::first_port`].
    pub first: Port,
    /// See [`Settings::n_ports`].
    pub count: u16,
}

/// Sizes of the flow tables, powers of two.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Tables {
    /// Buckets of [`Flows`](crate::map::Flows).
    pub flow_buckets: u32,
    /// Buckets of [`Replies`](crate::map::Replies).
    pub reply_buckets: u32,
    /// Buckets of [`Fragments`](crate::map::Fragments).
    pub fragment_buckets: u16,
}

/// How tunnelled packets look on the outside.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Tunnel {
    /// See [`Settings::tunnel_v4`].
    pub v4: Addr,
    /// See [`Settings::tunnel_v6`].
    pub v6: Addr,
    /// See [`Settings::tunnel_port`].
    pub port: Port,
}

impl Tunnel {
    /// Sources that belong to nobody: a private range, and the range whose packets are to be dropped (RFC 1918,
    /// RFC 6666). The port is that of GUE (IANA, 6080).
    pub const DEFAULT: Self = Self {
        v4: Addr::v4([172, 16, 0, 0]),
        v6: Addr::v6([1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
        port: Port::new(6_080),
    };
}

/// How long silent flows are remembered, in ticks.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Timeouts {
    /// See [`Settings::opening_ticks`].
    pub opening: u32,
    /// See [`Settings::open_ticks`].
    pub open: u32,
    /// See [`Settings::closing_ticks`].
    pub closing: u32,
    /// See [`Settings::udp_ticks`].
    pub udp: u32,
    /// See [`Settings::tick_shift`].
    pub tick_shift: u8,
    /// See [`Settings::interrupts`].
    pub interrupts: u16,
}

const _: () = assert!(size_of::<Settings>() == 128);
