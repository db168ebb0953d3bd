//! What packets tell of the health of the endpoints that they go to and come from.

use bytemuck::{Pod, Zeroable};

use crate::word::one_word;

/// Value of [`EndpointHealths`](crate::map::EndpointHealths): signals of TCP connections to an endpoint.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Pod, Zeroable)]
pub struct EndpointHealth {
    /// SYNs that clients sent once more, because nothing had come back.
    pub syn_retransmits: u64,
    /// Connections that the endpoint reset before they were open.
    pub refused: u64,
    /// Open connections that the endpoint reset.
    pub resets: u64,
    /// Connections whose handshake was timed.
    pub handshakes: u64,
    /// Time from the SYN to the endpoint's answer, of all of them together, in microseconds.
    pub handshake_us: u64,
}

impl EndpointHealth {
    /// Each count by its name.
    #[must_use]
    pub const fn named(&self) -> [(&'static str, u64); 5] {
        [
            ("syn_retransmits", self.syn_retransmits),
            ("refused", self.refused),
            ("resets", self.resets),
            ("handshakes", self.handshakes),
            ("handshake_us", self.handshake_us),
        ]
    }

    /// What two processors counted.
    #[must_use]
    pub const fn and(&self, other: &Self) -> Self {
        Self {
            syn_retransmits: self.syn_retransmits.wrapping_add(other.syn_retransmits),
            refused: self.refused.wrapping_add(other.refused),
            resets: self.resets.wrapping_add(other.resets),
            handshakes: self.handshakes.wrapping_add(other.handshakes),
            handshake_us: self.handshake_us.wrapping_add(other.handshake_us),
        }
    }
}

/// Value of [`Handshakes`](crate::map::Handshakes): a connection that waits for its endpoint's answer.
// Aligned, because it is read and written as one word.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Pod, Zeroable)]
pub struct Handshake {
    /// When its SYN came, in microseconds of the monotonic clock, around the end of their range.
    pub sent_us: u32,
    /// Index of its entry in the flow table, and above it the lowest bits of the version; see
    /// [`Reply`](crate::flow::Reply).
    pub flow: u32,
}

impl Handshake {
    /// A connection of which this stands.
    #[inline(always)]
    pub const fn new(flow: u32, sent_us: u32) -> Self {
        Self { sent_us, flow }
    }
}

one_word!(Handshake);

const _: () = assert!(size_of::<EndpointHealth>() == 40);
const _: () = assert!(size_of::<Handshake>() == 8);
