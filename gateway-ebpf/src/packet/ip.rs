//! IPv4 with options, IPv6, and what of them the pipeline leaves to the stack.

use bytemuck::{Pod, Zeroable};
use gateway_common::{
    addr::{Addr, Protocol},
    counter::Reason,
};

use super::{
    Side,
    chain::{
        AUTHENTICATION, Chain, DESTINATION, ENCAPSULATION, FRAGMENT, HIP, HOP_BY_HOP, MOBILITY, ROUTING,
        SHIM6,
    },
    eth, filtered,
};
use crate::{
    env::{Env, Hidden as _},
    verdict::Verdict,
};

/// Offset of the header in bytes from the link-layer header.
pub const OFFSET: u32 = eth::LEN;

/// The fixed part of the IPv4 header (RFC 791, section 3.1).
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct V4 {
    pub(super) version_and_words: u8,
    class: u8,
    total_bytes: [u8; 2],
    id: [u8; 2],
    pub(super) fragment: [u8; 2],
    /// Time to live.
    pub ttl: u8,
    pub(super) protocol: u8,
    /// Header checksum.
    pub checksum: [u8; 2],
    pub(super) source: [u8; 4],
    pub(super) destination: [u8; 4],
}

/// The IPv6 header (RFC 8200, section 3).
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct V6 {
    pub(super) version: u8,
    flow: [u8; 3],
    payload_bytes: [u8; 2],
    pub(super) next_header: u8,
    hop_limit: u8,
    pub(super) source: [u8; 16],
    pub(super) destination: [u8; 16],
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
/// Offset of the packet's length, from the link-layer header.
pub const V4_BYTES: u32 = OFFSET + 2;
/// Offset of the length of what follows the header of IPv6.
pub const V6_BYTES: u32 = OFFSET + 4;
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

/// What packets mostly carry.
const TCP: u8 = Protocol::TCP.number();
const UDP: u8 = Protocol::UDP.number();

/// More fragments, or a fragment offset.
const FRAGMENTED: u16 = 0x3fff;
/// More fragments.
const MORE: u16 = 0x2000;
/// The offset, in units of eight bytes.
const OFFSET_BITS: u16 = 0x1fff;

/// Packets above this size carry no usable length in their IP header ("BIG TCP", Linux 5.19).
const LARGEST_DECLARED: u32 = 0xffff;

/// Parses from the IPv4 header on. Fragments only where rare packets are expected.
// Both in whole words: of fields, the compiler reads and keeps some in pieces.
#[inline(always)]
#[expect(clippy::as_conversions, clippy::cast_possible_truncation, reason = "fields of words")]
pub(super) fn v4<E: Env, const IS_RARE: bool>(env: &E, side: Side, ip: &mut Ip) -> Result<(), Verdict> {
    let Some([first, second, third, source, destination]) = env.load_words::<u32>(OFFSET) else {
        return Err(E::Maps::ends(Verdict::Pass(Reason::NotOurs)));
    };
    let (source, destination) = (Addr::v4(source.to_ne_bytes()), Addr::v4(destination.to_ne_bytes()));
    if !filtered(env.maps(), of(side, source, destination)) {
        return Err(E::Maps::ends(Verdict::Pass(Reason::NotOurs)));
    }
    let [first, second, third] = [u32::from_le(first), u32::from_le(second), u32::from_le(third)];
    let version_and_words = first as u8;
    if version_and_words.wrapping_sub(0x45) > 0x0f - 5 {
        return Err(E::Maps::ends(Verdict::Drop(Reason::BadIpHeader)));
    }
    let header_bytes = (first & 0x0f) * 4;
    let available = env.len_bytes().wrapping_sub(OFFSET);
    let mut bytes = u32::from(((first >> 16) as u16).swap_bytes());
    if IS_RARE || bytes < header_bytes || bytes > available {
        bytes = declared(bytes, available);
        // Every packet whose header is not all there comes here, too.
        if header_bytes > available {
            return Err(E::Maps::ends(Verdict::Drop(Reason::Truncated)));
        }
        if bytes < header_bytes || bytes > available {
            return Err(E::Maps::ends(Verdict::Drop(Reason::BadIpHeader)));
        }
    }
    let protocol = Protocol::new((third >> 8) as u8);
    let mut piece = Piece::Whole;
    if second >> 16 & u32::from(FRAGMENTED.swap_bytes()) != 0 {
        if !IS_RARE {
            return Err(E::Maps::ends(Verdict::Rare(Reason::Fragment)));
        }
        let fragment = ((second >> 16) as u16).swap_bytes();
        let offset = u32::from(fragment & OFFSET_BITS) * 8;
        piece = piece_of(offset, fragment & MORE != 0, bytes - header_bytes, protocol == Protocol::TCP)?;
    }
    *ip = Ip {
        piece,
        identification: (second & 0xffff).to_le(),
        source,
        destination,
        v6: false,
        ttl: third as u8,
        protocol,
        transport: header_end(version_and_words),
        payload: bytes - header_bytes,
        class: (first >> 8) as u8,
        bytes,
    };
    Ok(())
}

/// Parses from the IPv6 header on. Extension headers only where rare packets are expected.
#[inline(always)]
#[expect(clippy::as_conversions, clippy::cast_possible_truncation, reason = "fields of words")]
pub(super) fn v6<E: Env, const IS_RARE: bool>(env: &E, side: Side, ip: &mut Ip) -> Result<(), Verdict> {
    let Some([head, s0, s1, d0, d1]) = env.load_words::<u64>(OFFSET) else {
        return Err(E::Maps::ends(Verdict::Pass(Reason::NotOurs)));
    };
    let (source, destination) = (Addr::from_halves([s0, s1]), Addr::from_halves([d0, d1]));
    let ours = of(side, source, destination);
    // An IPv4-mapped address may not appear in a packet (RFC 5156), and in our keys it means IPv4.
    if ours.is_v4() || !filtered(env.maps(), ours) {
        return Err(E::Maps::ends(Verdict::Pass(Reason::NotOurs)));
    }
    let head = u64::from_le(head);
    // The same of the other address: as a client's it would be that of another client.
    if head & 0xf0 != 0x60 || source.is_v4() || destination.is_v4() {
        return Err(E::Maps::ends(Verdict::Drop(Reason::BadIpHeader)));
    }
    let available = env.len_bytes().wrapping_sub(OFFSET + V6_LEN);
    let payload = declared(u32::from(((head >> 32) as u16).swap_bytes()), available);
    if payload > available {
        return Err(E::Maps::ends(Verdict::Drop(Reason::BadIpHeader)));
    }
    let next_header = (head >> 48) as u8;
    let mut chain = Chain {
        next: next_header,
        end: u32::from(V6_END),
        left: payload,
        piece: Piece::Whole,
        identification: 0,
    };
    // Most packets carry TCP or UDP, and are not looked for among the others.
    if IS_RARE || next_header != TCP && next_header != UDP {
        match E::Maps::hidden(next_header) {
            HOP_BY_HOP | ROUTING | DESTINATION | FRAGMENT => {
                if !IS_RARE {
                    let is_fragment = next_header == FRAGMENT;
                    let reason = if is_fragment { Reason::Fragment } else { Reason::ExtensionHeader };
                    return Err(E::Maps::ends(Verdict::Rare(reason)));
                }
                chain.walk(env)?;
            }
            ENCAPSULATION | AUTHENTICATION | MOBILITY | HIP | SHIM6 => {
                return Err(E::Maps::ends(Verdict::Pass(Reason::ExtensionHeader)));
            }
            _ => {}
        }
    }
    *ip = Ip {
        source,
        destination,
        v6: true,
        ttl: (head >> 56) as u8,
        protocol: Protocol::new(chain.next),
        transport: if IS_RARE { chain.transport()? } else { V6_END },
        payload: chain.left,
        piece: chain.piece,
        identification: chain.identification,
        class: ((head as u16).swap_bytes() >> 4) as u8,
        bytes: payload.wrapping_add(V6_LEN),
    };
    Ok(())
}

/// What the IP header told about a packet.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ip {
    pub(crate) source: Addr,
    pub(crate) destination: Addr,
    pub(crate) v6: bool,
    pub(crate) ttl: u8,
    pub(crate) protocol: Protocol,
    /// Offset of the transport header from the link-layer header.
    pub(crate) transport: u8,
    /// Bytes from the transport header to the end of the packet.
    pub(crate) payload: u32,
    /// Service class and congestion bits.
    pub(crate) class: u8,
    /// Bytes from the IP header to the end of the packet.
    pub(crate) bytes: u32,
    /// Whether it is all of the packet.
    pub(crate) piece: Piece,
    /// What pieces of one packet have in common, as the header has it.
    pub(crate) identification: u32,
}

/// Whether a packet is whole.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Piece {
    /// It is.
    Whole,
    /// The first fragment, with the transport header.
    First,
    /// Another one, without.
    Later,
}

/// Which piece of a packet a fragment is.
#[inline(always)]
pub(super) fn piece_of(offset: u32, has_more: bool, bytes: u32, is_tcp: bool) -> Result<Piece, Verdict> {
    // Pieces in the middle are whole units, and none ends beyond the largest packet (RFC 791, RFC 8200). One that begins
    // inside the header of TCP is made to mislead whoever reads the first only (RFC 3128).
    let is_bad = has_more && !bytes.is_multiple_of(8) || offset + bytes > 0xffff || is_tcp && offset == 8;
    if is_bad || bytes == 0 {
        return Err(Verdict::Drop(Reason::BadFragment));
    }
    Ok(if offset == 0 { Piece::First } else { Piece::Later })
}

impl Ip {
    /// Of a packet that was not looked at yet. Whoever parses it writes here: half of a result that is an error is room that
    /// others use, and to tell them apart the compiler takes addresses to pieces.
    pub(crate) const UNKNOWN: Self = Self {
        source: Addr::UNSPECIFIED,
        destination: Addr::UNSPECIFIED,
        v6: false,
        ttl: 0,
        protocol: Protocol::new(0),
        transport: 0,
        payload: 0,
        class: 0,
        bytes: 0,
        piece: Piece::Whole,
        identification: 0,
    };

    /// Whether it is an ICMP message of its own family.
    #[inline(always)]
    pub(crate) fn is_icmp(&self) -> bool {
        self.protocol == if self.v6 { Protocol::ICMP_V6 } else { Protocol::ICMP }
    }
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
