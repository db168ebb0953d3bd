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
/// More fragments.
const MORE: u16 = 0x2000;
/// The offset, in units of eight bytes.
const OFFSET_BITS: u16 = 0x1fff;

/// Packets above this size carry no usable length in their IP header ("BIG TCP", Linux 5.19).
const LARGEST_DECLARED: u32 = 0xffff;

/// Parses from the IPv4 header on. Fragments only where rare packets are expected.
#[inline(always)]
pub(super) fn v4<E: Env, const IS_RARE: bool>(env: &E, side: Side) -> Result<Ip, Verdict> {
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
    let fragment = u16::from_be_bytes(header.fragment);
    let mut piece = Piece::Whole;
    if fragment & FRAGMENTED != 0 {
        if !IS_RARE {
            return Err(Verdict::Rare(Reason::Fragment));
        }
        let is_tcp = header.protocol == Protocol::TCP.number();
        let offset = u32::from(fragment & OFFSET_BITS) * 8;
        piece = piece_of(offset, fragment & MORE != 0, declared - header_bytes, is_tcp)?;
    }
    let [a, b] = header.id;
    Ok(Ip {
        piece,
        identification: u32::from_ne_bytes([a, b, 0, 0]),
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

/// Parses from the IPv6 header on. Extension headers only where rare packets are expected.
#[inline(always)]
pub(super) fn v6<E: Env, const IS_RARE: bool>(env: &E, side: Side) -> Result<Ip, Verdict> {
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
    let mut chain = Chain {
        next: header.next_header,
        end: u32::from(V6_END),
        left: payload,
        piece: Piece::Whole,
        identification: 0,
    };
    match header.next_header {
        HOP_BY_HOP | ROUTING | DESTINATION | FRAGMENT => {
            if !IS_RARE {
                let is_fragment = header.next_header == FRAGMENT;
                let reason = if is_fragment { Reason::Fragment } else { Reason::ExtensionHeader };
                return Err(Verdict::Rare(reason));
            }
            chain.walk(env)?;
        }
        ENCAPSULATION | AUTHENTICATION | MOBILITY | HIP | SHIM6 => {
            return Err(Verdict::Pass(Reason::ExtensionHeader));
        }
        _ => {}
    }
    Ok(Ip {
        source,
        destination,
        v6: true,
        ttl: header.hop_limit,
        protocol: Protocol::new(chain.next),
        transport: if IS_RARE { chain.transport()? } else { V6_END },
        payload: chain.left,
        piece: chain.piece,
        identification: chain.identification,
        class: header.version << 4 | first >> 4,
        bytes: payload.wrapping_add(V6_LEN),
    })
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
fn piece_of(offset: u32, has_more: bool, bytes: u32, is_tcp: bool) -> Result<Piece, Verdict> {
    // Pieces in the middle are whole units, and none ends beyond the largest packet (RFC 791, RFC 8200). One that begins
    // inside the header of TCP is made to mislead whoever reads the first only (RFC 3128).
    let is_bad = has_more && !bytes.is_multiple_of(8) || offset + bytes > 0xffff || is_tcp && offset == 8;
    if is_bad || bytes == 0 {
        return Err(Verdict::Drop(Reason::BadFragment));
    }
    Ok(if offset == 0 { Piece::First } else { Piece::Later })
}

/// A walk along extension headers (RFC 8200, section 4).
struct Chain {
    /// What comes next.
    next: u8,
    /// Where it begins.
    end: u32,
    /// Bytes from there to the end of the packet.
    left: u32,
    piece: Piece,
    identification: u32,
}

/// Headers that are read. Hosts need not read more than a few (RFC 8504, section 5.3).
const HEADERS: u32 = 6;

/// The first bytes of an extension header.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Extension {
    next: u8,
    length: u8,
    kind: u8,
    segments_left: u8,
    identification: [u8; 4],
}

/// Extension headers that are read of a packet that an ICMP error quotes, that of a fragment, and one beside it.
const QUOTED_HEADERS: u32 = 2;

/// Bytes of each.
const QUOTED_BYTES: u32 = 8;

/// Goes past the extension headers of a quoted packet that begin at this offset: the protocol behind them, and their bytes.
///
/// # Errors
/// The verdict about an error whose quotation does not say which flow it is about.
#[inline(always)]
pub(crate) fn past_quoted<E: Env>(env: &E, at: u32, first: u8) -> Result<(u8, u32), Verdict> {
    let (mut next, mut bytes) = (first, 0);
    for _ in 0..QUOTED_HEADERS {
        if !matches!(next, HOP_BY_HOP | ROUTING | DESTINATION | FRAGMENT) {
            break;
        }
        let header: Extension = env.load(at + bytes).ok_or(Verdict::Drop(Reason::BadIcmp))?;
        if next == FRAGMENT {
            // A later piece has no ports.
            if u16::from_be_bytes([header.kind, header.segments_left]) & !7 != 0 {
                return Err(Verdict::Pass(Reason::IcmpNoFlow));
            }
        } else if header.length != 0 || next == ROUTING && header.segments_left != 0 {
            return Err(Verdict::Pass(Reason::IcmpNoFlow));
        }
        bytes += QUOTED_BYTES;
        next = header.next;
    }
    Ok((next, bytes))
}

impl Chain {
    /// Walks to what is no extension header.
    #[inline(always)]
    fn walk<E: Env>(&mut self, env: &E) -> Result<(), Verdict> {
        for idx in 0..HEADERS {
            match self.next {
                HOP_BY_HOP | ROUTING | DESTINATION | FRAGMENT => self.step(env, idx)?,
                ENCAPSULATION | AUTHENTICATION | MOBILITY | HIP | SHIM6 => {
                    return Err(Verdict::Pass(Reason::ExtensionHeader));
                }
                _ => return Ok(()),
            }
            // What stands behind the header of a later piece is payload, whatever it says.
            if self.piece == Piece::Later {
                return Ok(());
            }
        }
        match self.next {
            HOP_BY_HOP | ROUTING | DESTINATION | FRAGMENT | ENCAPSULATION | AUTHENTICATION | MOBILITY
            | HIP | SHIM6 => Err(Verdict::Pass(Reason::ExtensionHeader)),
            _ => Ok(()),
        }
    }

    #[inline(always)]
    fn step<E: Env>(&mut self, env: &E, idx: u32) -> Result<(), Verdict> {
        let bad = Verdict::Drop(Reason::BadExtension);
        let header: Extension = env.load(self.end).ok_or(bad)?;
        let bytes = if self.next == FRAGMENT { 8 } else { (u32::from(header.length) + 1) * 8 };
        if bytes > self.left {
            return Err(bad);
        }
        if self.next == HOP_BY_HOP && idx != 0 {
            return Err(bad);
        }
        if self.next == ROUTING && header.segments_left != 0 {
            // The destination is a place on the way, and the stack's business.
            return Err(Verdict::Pass(Reason::ExtensionHeader));
        }
        self.left -= bytes;
        if self.next == FRAGMENT {
            self.fragment(header)?;
        }
        self.next = header.next;
        self.end += bytes;
        if self.end > LAST {
            return Err(Verdict::Pass(Reason::ExtensionHeader));
        }
        Ok(())
    }

    #[inline(always)]
    fn fragment(&mut self, header: Extension) -> Result<(), Verdict> {
        if self.piece != Piece::Whole {
            return Err(Verdict::Drop(Reason::BadExtension));
        }
        let word = u16::from_be_bytes([header.kind, header.segments_left]);
        let (offset, has_more) = (u32::from(word & !7), word & 1 != 0);
        // A piece that is all of its packet (RFC 6946).
        if offset != 0 || has_more {
            let is_tcp = header.next == Protocol::TCP.number();
            self.piece = piece_of(offset, has_more, self.left, is_tcp)?;
            self.identification = u32::from_ne_bytes(header.identification);
        }
        Ok(())
    }

    /// Where the transport header begins, as a byte: the verifier follows that.
    #[inline(always)]
    fn transport(&self) -> Result<u8, Verdict> {
        u8::try_from(self.end).map_err(|_| Verdict::Pass(Reason::ExtensionHeader))
    }
}

/// The last place where a transport header may begin.
const LAST: u32 = 0xff;

impl Ip {
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
