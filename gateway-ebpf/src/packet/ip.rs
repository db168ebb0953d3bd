//! IPv4 with options, IPv6, and what of them the pipeline leaves to the stack.

use bytemuck::{Pod, Zeroable};
use gateway_common::{
    addr::{Addr, Protocol},
    counter::Reason,
};

use super::{Side, eth, filtered};
use crate::{env::Env, verdict::Verdict};

/// Offset of the header in bytes from the link-layer header.
pub const OFFSET: u32 = eth::LEN;

/// The fixed part of the IPv4 header (RFC 791, section 3.1).
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct V4 {
    version_and_words: u8,
    class: u8,
    total_bytes: [u8; 2],
    id: [u8; 2],
    fragment: [u8; 2],
    /// Time to live.
    pub ttl: u8,
    protocol: u8,
    /// Header checksum.
    pub checksum: [u8; 2],
    source: [u8; 4],
    destination: [u8; 4],
}

/// The IPv6 header (RFC 8200, section 3).
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct V6 {
    version: u8,
    flow: [u8; 3],
    payload_bytes: [u8; 2],
    next_header: u8,
    hop_limit: u8,
    source: [u8; 16],
    destination: [u8; 16],
}

impl V4 {
    /// Source address.
    #[inline(always)]
    pub const fn source(&self) -> Addr {
        Addr::v4(self.source)
    }

    /// Destination address.
    #[inline(always)]
    pub const fn destination(&self) -> Addr {
        Addr::v4(self.destination)
    }

    /// What the packet carries, as a protocol number.
    #[inline(always)]
    pub const fn protocol(&self) -> u8 {
        self.protocol
    }

    /// Service class and congestion bits.
    #[inline(always)]
    pub const fn class(&self) -> u8 {
        self.class
    }

    /// Offset of what follows a header behind the link-layer header.
    #[inline(always)]
    pub const fn end(&self) -> u8 {
        header_end(self.version_and_words)
    }

    /// Whether version and length of the header are possible.
    #[inline(always)]
    pub const fn is_sound(&self) -> bool {
        self.version_and_words >> 4 == 4 && self.version_and_words & 0x0f >= 5
    }

    /// Whether it is part of a larger packet.
    #[inline(always)]
    pub const fn is_fragment(&self) -> bool {
        u16::from_be_bytes(self.fragment) & FRAGMENTED != 0
    }

    /// Whether the packet that it declares has its header, and lies within so many bytes.
    #[inline(always)]
    pub fn fits(&self, available: u32) -> bool {
        let declared = declared(u32::from(u16::from_be_bytes(self.total_bytes)), available);
        declared >= u32::from(self.version_and_words & 0x0f) * 4 && declared <= available
    }
}

impl V6 {
    /// Source address.
    #[inline(always)]
    pub const fn source(&self) -> Addr {
        Addr::v6(self.source)
    }

    /// Destination address.
    #[inline(always)]
    pub const fn destination(&self) -> Addr {
        Addr::v6(self.destination)
    }

    /// What follows, as a protocol number.
    #[inline(always)]
    pub const fn next_header(&self) -> u8 {
        self.next_header
    }

    /// Service class and congestion bits.
    #[inline(always)]
    pub const fn class(&self) -> u8 {
        let [first, ..] = self.flow;
        self.version << 4 | first >> 4
    }

    /// Whether the version is right, and the addresses mean IPv6 (RFC 5156).
    #[inline(always)]
    pub const fn is_sound(&self) -> bool {
        self.version >> 4 == 6 && !self.source().is_v4() && !self.destination().is_v4()
    }

    /// Whether the packet that it declares lies within so many bytes.
    #[inline(always)]
    pub fn fits(&self, available: u32) -> bool {
        let Some(available) = available.checked_sub(V6_LEN) else { return false };
        declared(u32::from(u16::from_be_bytes(self.payload_bytes)), available) <= available
    }
}

/// Bytes of the fixed part of the IPv4 header.
pub const V4_LEN: u32 = 20;
/// Bytes of the IPv6 header.
pub const V6_LEN: u32 = 40;
/// Offset of what follows the IPv6 header.
pub const V6_END: u8 = 54;
/// Offset of the time to live, from the link-layer header.
pub const V4_TTL: u32 = OFFSET + 8;
/// Offset of the header checksum.
pub const V4_CHECKSUM: u32 = OFFSET + 10;
/// Offset of both addresses of IPv4.
pub const V4_ADDRS: u32 = OFFSET + 12;
/// Offset of the hop limit.
pub const V6_HOP_LIMIT: u32 = OFFSET + 7;
/// Offset of both addresses of IPv6.
pub const V6_ADDRS: u32 = OFFSET + 8;

#[expect(clippy::as_conversions, reason = "widening in a constant")]
const _: () = assert!(V6_END as u32 == OFFSET + V6_LEN && header_end(0x45) as u32 == OFFSET + V4_LEN);

/// Extension headers of IPv6 (IANA "IPv6 Extension Header Types"), without the fragment header.
const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const ENCAPSULATION: u8 = 50;
const AUTHENTICATION: u8 = 51;
const DESTINATION: u8 = 60;
const MOBILITY: u8 = 135;
const HIP: u8 = 139;
const SHIM6: u8 = 140;

/// More fragments, or a fragment offset.
const FRAGMENTED: u16 = 0x3fff;

/// Packets above this size carry no usable length in their IP header ("BIG TCP", Linux 5.19).
const LARGEST_DECLARED: u32 = 0xffff;

/// Parses from the IPv4 header on.
#[inline(always)]
pub(super) fn v4<E: Env>(env: &E, side: Side) -> Result<Ip, Verdict> {
    let header: V4 = env.load(OFFSET).ok_or(Verdict::Pass(Reason::NotOurs))?;
    let (source, destination) = (Addr::v4(header.source), Addr::v4(header.destination));
    if !filtered(env.maps(), of(side, source, destination)) {
        return Err(Verdict::Pass(Reason::NotOurs));
    }
    let header_bytes = u32::from(header.version_and_words & 0x0f) * 4;
    if header.version_and_words >> 4 != 4 || header_bytes < V4_LEN {
        return Err(Verdict::Drop(Reason::BadIpHeader));
    }
    let available = env.len_bytes().wrapping_sub(OFFSET);
    if header_bytes > available {
        return Err(Verdict::Drop(Reason::Truncated));
    }
    let declared = declared(u32::from(u16::from_be_bytes(header.total_bytes)), available);
    if declared < header_bytes || declared > available {
        return Err(Verdict::Drop(Reason::BadIpHeader));
    }
    if u16::from_be_bytes(header.fragment) & FRAGMENTED != 0 {
        return Err(Verdict::Pass(Reason::Fragment));
    }
    Ok(Ip {
        source,
        destination,
        v6: false,
        ttl: header.ttl,
        protocol: Protocol::new(header.protocol),
        transport: header_end(header.version_and_words),
        payload: declared - header_bytes,
        class: header.class,
        bytes: declared,
    })
}

/// Parses from the IPv6 header on.
#[inline(always)]
pub(super) fn v6<E: Env>(env: &E, side: Side) -> Result<Ip, Verdict> {
    let header: V6 = env.load(OFFSET).ok_or(Verdict::Pass(Reason::NotOurs))?;
    let (source, destination) = (Addr::v6(header.source), Addr::v6(header.destination));
    let ours = of(side, source, destination);
    // An IPv4-mapped address may not appear in a packet (RFC 5156), and in our keys it means IPv4.
    if ours.is_v4() || !filtered(env.maps(), ours) {
        return Err(Verdict::Pass(Reason::NotOurs));
    }
    // The same of the other address: as a client's it would be that of another client.
    if header.version >> 4 != 6 || source.is_v4() || destination.is_v4() {
        return Err(Verdict::Drop(Reason::BadIpHeader));
    }
    let available = env.len_bytes().wrapping_sub(OFFSET + V6_LEN);
    let payload = declared(u32::from(u16::from_be_bytes(header.payload_bytes)), available);
    if payload > available {
        return Err(Verdict::Drop(Reason::BadIpHeader));
    }
    let [first, ..] = header.flow;
    match header.next_header {
        FRAGMENT => return Err(Verdict::Pass(Reason::Fragment)),
        HOP_BY_HOP | ROUTING | ENCAPSULATION | AUTHENTICATION | DESTINATION | MOBILITY | HIP | SHIM6 => {
            return Err(Verdict::Pass(Reason::ExtensionHeader));
        }
        _ => {}
    }
    Ok(Ip {
        source,
        destination,
        v6: true,
        ttl: header.hop_limit,
        protocol: Protocol::new(header.next_header),
        transport: V6_END,
        payload,
        class: header.version << 4 | first >> 4,
        bytes: payload.wrapping_add(V6_LEN),
    })
}

/// What the IP header told about a packet.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ip {
    pub(super) source: Addr,
    pub(super) destination: Addr,
    pub(super) v6: bool,
    pub(super) ttl: u8,
    pub(super) protocol: Protocol,
    /// Offset of the transport header from the link-layer header.
    pub(super) transport: u8,
    /// Bytes from the transport header to the end of the packet.
    pub(super) payload: u32,
    /// Service class and congestion bits.
    pub(super) class: u8,
    /// Bytes from the IP header to the end of the packet.
    pub(super) bytes: u32,
}

#[inline(always)]
fn of(side: Side, source: Addr, destination: Addr) -> Addr {
    match side {
        Side::Destination => destination,
        Side::Source => source,
    }
}

/// Where a header of IPv4 ends, from its first byte: at most 14 + 60.
#[inline(always)]
const fn header_end(version_and_words: u8) -> u8 {
    14 + (version_and_words & 0x0f) * 4
}

/// The length that a header declares; one that does not fit its field is written as zero.
#[inline(always)]
fn declared(field: u32, available: u32) -> u32 {
    if field == 0 && available > LARGEST_DECLARED { available } else { field }
}
