//! Ethernet (IEEE 802.3).

use bytemuck::{Pod, Zeroable};

/// Bytes of the header.
pub const LEN: u32 = 14;

/// Offset of the `EtherType`.
pub const TYPE: u32 = 12;

/// `EtherType` of IPv4, as the frame carries it.
pub const IPV4: [u8; 2] = [0x08, 0x00];
/// `EtherType` of IPv6.
pub const IPV6: [u8; 2] = [0x86, 0xdd];
/// `EtherType` of a VLAN tag (IEEE 802.1Q).
pub const VLAN: [u8; 2] = [0x81, 0x00];
/// `EtherType` of a service VLAN tag (IEEE 802.1ad).
pub const SERVICE_VLAN: [u8; 2] = [0x88, 0xa8];

/// The header.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct Header {
    /// Link-layer destination.
    pub destination: [u8; 6],
    /// Link-layer source.
    pub source: [u8; 6],
    /// What follows.
    pub ethertype: [u8; 2],
}

#[expect(clippy::as_conversions, reason = "both are 14")]
const _: () = assert!(size_of::<Header>() == LEN as usize);
