//! TCP and UDP.

use bytemuck::{Pod, Zeroable};
use gateway_common::{
    addr::{Port, Protocol},
    counter::Reason,
};

use super::ip::{Ip, Piece};
use crate::{
    env::{Env, Hidden as _},
    verdict::Verdict,
};

/// The fixed part of the TCP header (RFC 9293, section 3.1).
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct Tcp {
    ports: Ports,
    sequence: [u8; 4],
    acknowledgment: [u8; 4],
    words: u8,
    flags: u8,
    window: [u8; 2],
    checksum: [u8; 2],
    urgent: [u8; 2],
}

/// The UDP header (RFC 768).
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct Udp {
    ports: Ports,
    bytes: [u8; 2],
    checksum: [u8; 2],
}

impl Udp {
    /// Destination port.
    #[inline(always)]
    pub const fn destination(&self) -> Port {
        Port::from_wire(self.ports.destination)
    }
}

/// Both ports, at the same place in either header.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct Ports {
    /// Source port in wire order.
    pub source: [u8; 2],
    /// Destination port in wire order.
    pub destination: [u8; 2],
}

/// Bytes of the fixed part of the TCP header.
pub const TCP_LEN: u32 = 20;
/// Bytes of the UDP header.
pub const UDP_LEN: u32 = 8;
/// Offset of TCP's sequence number from its header.
pub const SEQUENCE: u32 = 4;
/// Offset of the byte with the length of TCP's header, in its upper half in words.
pub const OFFSET: u32 = 12;
/// Offset of TCP's checksum from its header.
pub const TCP_CHECKSUM: u32 = 16;
/// Offset of UDP's checksum from its header.
pub const UDP_CHECKSUM: u32 = 6;

/// The flags of a TCP packet; none for UDP.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Pod, Zeroable)]
pub struct Flags {
    bits: u8,
}

impl Flags {
    const FIN: u8 = 0x01;
    const SYN: u8 = 0x02;
    const RST: u8 = 0x04;
    const ACK: u8 = 0x10;

    /// From the byte of the header.
    #[inline(always)]
    pub const fn new(bits: u8) -> Self {
        Self { bits }
    }

    /// Whether a client opens a connection with this packet.
    #[inline(always)]
    pub const fn opens(self) -> bool {
        self.bits & (Self::SYN | Self::ACK) == Self::SYN
    }

    /// Whether an endpoint answers with it to a packet that opened a connection.
    #[inline(always)]
    pub const fn agrees(self) -> bool {
        self.bits & (Self::SYN | Self::ACK | Self::RST) == Self::SYN | Self::ACK
    }

    /// Whether it may be a packet of a connection that was agreed on.
    #[inline(always)]
    pub const fn goes_on(self) -> bool {
        self.bits & (Self::SYN | Self::ACK | Self::RST) == Self::ACK
    }

    /// Whether it acknowledges anything.
    #[inline(always)]
    pub const fn acknowledges(self) -> bool {
        self.bits & Self::ACK != 0
    }

    /// Whether it is a reset.
    #[inline(always)]
    pub const fn resets(self) -> bool {
        self.bits & Self::RST != 0
    }

    /// Sequence numbers that the flags take.
    #[inline(always)]
    pub const fn sequence_numbers(self) -> u32 {
        (if self.bits & Self::SYN == 0 { 0 } else { 1 }) + (if self.bits & Self::FIN == 0 { 0 } else { 1 })
    }

    /// Whether this packet ends a connection, or half of it.
    #[inline(always)]
    pub const fn closes(self) -> bool {
        self.bits & (Self::FIN | Self::RST) != 0
    }
}

/// What the transport header told about a packet.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Transport {
    /// Both ports, as one word of the header.
    pub(crate) ports: u32,
    pub(crate) flags: Flags,
}

impl Transport {
    /// Of a packet that was not looked at yet; see [`Ip::UNKNOWN`].
    pub(crate) const UNKNOWN: Self = Self { ports: 0, flags: Flags::new(0) };
}

/// Parses the transport header.
#[inline(always)]
pub(crate) fn parse<E: Env>(env: &E, ip: &Ip, transport: &mut Transport) -> Result<(), Verdict> {
    if ip.protocol == Protocol::TCP {
        tcp(env, u32::from(ip.transport), ip.payload, transport)
    } else if ip.protocol == Protocol::UDP {
        udp(env, ip, transport)
    } else if ip.is_icmp() {
        Err(E::Maps::ends(Verdict::Icmp(Reason::OtherProtocol)))
    } else {
        Err(E::Maps::ends(Verdict::Pass(Reason::OtherProtocol)))
    }
}

#[inline(always)]
#[expect(clippy::as_conversions, clippy::cast_possible_truncation, reason = "a field of a word")]
fn tcp<E: Env>(env: &E, offset: u32, payload: u32, transport: &mut Transport) -> Result<(), Verdict> {
    let Some([ports, _, _, fourth, _]) = env.load::<[u32; 5]>(offset) else {
        return Err(E::Maps::ends(Verdict::Drop(Reason::Truncated)));
    };
    let fourth = u32::from_le(fourth);
    let header_bytes = (fourth & 0xf0) >> 2;
    if header_bytes < TCP_LEN || header_bytes > payload {
        // Every packet whose header is not all there comes here, too.
        let is_short = payload < TCP_LEN;
        return Err(E::Maps::ends(Verdict::Drop(if is_short {
            Reason::Truncated
        } else {
            Reason::BadTransportHeader
        })));
    }
    *transport = Transport { ports, flags: Flags::new((fourth >> 8) as u8) };
    Ok(())
}

#[inline(always)]
fn udp<E: Env>(env: &E, ip: &Ip, transport: &mut Transport) -> Result<(), Verdict> {
    let payload = ip.payload;
    if payload < UDP_LEN {
        return Err(E::Maps::ends(Verdict::Drop(Reason::Truncated)));
    }
    let Some([ports, second]) = env.load::<[u32; 2]>(u32::from(ip.transport)) else {
        return Err(E::Maps::ends(Verdict::Drop(Reason::Truncated)));
    };
    let bytes = u32::from_be(second) >> 16;
    // More than 64 KiB at once, as the stack's own segmentation hands them over, do not fit the field.
    let fits = payload > 0xffff || bytes <= payload || ip.piece != Piece::Whole;
    if bytes < UDP_LEN || !fits {
        return Err(E::Maps::ends(Verdict::Drop(Reason::BadTransportHeader)));
    }
    *transport = Transport { ports, flags: Flags::default() };
    Ok(())
}
