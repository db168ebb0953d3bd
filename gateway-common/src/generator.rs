//! The packet generator of the benchmarks: what it sends. No map of the product holds it.

use bytemuck::{Pod, Zeroable};

/// Room for the headers of one packet: link layer, IPv6 and TCP are 74 bytes.
pub const TEMPLATE_BYTES: usize = 96;

/// What the generator sends: one packet, of `n_flows` clients in turn.
#[repr(C)]
#[derive(Clone, Copy, Debug, Eq, PartialEq, Pod, Zeroable)]
pub struct Template {
    /// The flow of the next packet.
    pub next: u32,
    /// From one flow to the next; without a common divisor with the number of flows, so that all have their turn.
    pub stride: u32,
    /// Number of flows; the source address and port of a packet follow from the number of its flow.
    pub n_flows: u32,
    /// Services that they ask for in turn, by the last byte of the destination; 0 and 1 leave it as it is.
    pub n_services: u32,
    /// Whether the packet is IPv6: 0 or 1.
    pub v6: u32,
    /// The headers from the link layer on.
    pub bytes: [u8; TEMPLATE_BYTES],
}

const _: () = assert!(size_of::<Template>() == 116);
