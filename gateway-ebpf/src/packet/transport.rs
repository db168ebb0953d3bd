//! TCP and UDP.

use bytemuck::{Pod, Zeroable};
use gateway_common::{
    addr::{Port, Protocol},
    counter::Reason,
};

use super::ip::{Ip, Piece};
use crate::{env::Env, verdict::Verdict};

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

/// Parses the transport header.
#[inline(always)]
pub(crate) fn parse<E: Env>(env: &E, ip: &Ip) -> Result<(Ports, Flags), Verdict> {
    if ip.protocol == Protocol::TCP {
        tcp(env, u32::from(ip.transport), ip.payload)
    } else if ip.protocol == Protocol::UDP {
        Ok((udp(env, ip)?, Flags::default()))
    } else if ip.is_icmp() {
        Err(Verdict::Icmp(Reason::OtherProtocol))
    } else {
        Err(Verdict::Pass(Reason::OtherProtocol))
    }
}

#[inline(always)]
fn tcp<E: Env>(env: &E, offset: u32, payload: u32) -> Result<(Ports, Flags), Verdict> {
    if payload < TCP_LEN {
        return Err(Verdict::Drop(Reason::Truncated));
    }
    let header: Tcp = env.load(offset).ok_or(Verdict::Drop(Reason::Truncated))?;
    let header_bytes = u32::from(header.words >> 4) * 4;
    if header_bytes < TCP_LEN || header_bytes > payload {
        return Err(Verdict::Drop(Reason::BadTransportHeader));
    }
    Ok((header.ports, Flags::new(header.flags)))
}

#[inline(always)]
fn udp<E: Env>(env: &E, ip: &Ip) -> Result<Ports, Verdict> {
    let payload = ip.payload;
    if payload < UDP_LEN {
        return Err(Verdict::Drop(Reason::Truncated));
    }
    let header: Udp = env.load(u32::from(ip.transport)).ok_or(Verdict::Drop(Reason::Truncated))?;
    let bytes = u32::from(u16::from_be_bytes(header.bytes));
    // More than 64 KiB at once, as the stack's own segmentation hands them over, do not fit the field.
    let fits = payload > 0xffff || bytes <= payload || ip.piece != Piece::Whole;
    if bytes < UDP_LEN || !fits {
        return Err(Verdict::Drop(Reason::BadTransportHeader));
    }
    Ok(header.ports)
}
