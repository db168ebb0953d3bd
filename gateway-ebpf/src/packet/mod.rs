//! Parsing: from the bytes of a packet to what the pipeline needs to know, with the filter in between.

mod chain;
pub mod eth;
pub mod icmp;
pub mod ip;
pub mod transport;

use bytemuck::{Pod, Zeroable};
use gateway_common::{
    addr::{Addr, Protocol},
    counter::Reason,
    filter,
    flow::FlowKey,
};

use crate::{
    env::{Env, Hidden as _, Maps},
    verdict::Verdict,
    way::Way,
};
use ip::Ip;
use transport::{Flags, Transport};

/// A TCP or UDP packet that concerns us, parsed.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct Packet {
    /// The 5-tuple as the packet carries it.
    key: FlowKey,
    /// Bytes from the IP header to the end of the packet.
    pub bytes: u32,
    v6: u8,
    /// Offset of the transport header in bytes from the link-layer header.
    /// A byte, because the verifier only follows offsets whose bound it sees; 74 is the largest.
    pub transport: u8,
    /// Time to live, or hop limit.
    pub ttl: u8,
    /// Flags of TCP; none for UDP.
    pub flags: Flags,
    /// Service class and congestion bits (RFC 2474, RFC 3168).
    pub class: u8,
    /// Whether it is a later fragment, without a transport header: 0 or 1.
    pub(crate) is_later: u8,
    pad: [u8; 6],
}

impl Packet {
    /// A TCP packet that was read without the filter: its 5-tuple, its bytes from the IP header on, where TCP begins, and
    /// its service class.
    #[inline(always)]
    pub fn tcp(key: FlowKey, bytes: u32, transport: u8, class: u8) -> Self {
        Self {
            key,
            bytes,
            v6: u8::from(!key.source.is_v4()),
            transport,
            ttl: 0,
            flags: Flags::default(),
            class,
            is_later: 0,
            pad: [0; 6],
        }
    }

    /// The 5-tuple as the packet carries it.
    #[inline(always)]
    pub const fn key(&self) -> &FlowKey {
        &self.key
    }

    /// Whether it is IPv6.
    #[inline(always)]
    pub const fn is_v6(&self) -> bool {
        self.v6 != 0
    }

    /// Notes a packet with its transport header.
    #[inline(always)]
    pub(crate) fn is(&mut self, key: FlowKey, ip: &Ip, flags: Flags) {
        self.key = key;
        self.bytes = ip.bytes;
        self.v6 = u8::from(ip.v6);
        self.transport = ip.transport;
        self.ttl = ip.ttl;
        self.flags = flags;
        self.class = ip.class;
        self.is_later = 0;
    }

    /// Gives it another source.
    #[inline(always)]
    pub(crate) const fn comes_from(&mut self, source: Addr) {
        self.key.source = source;
    }
}

/// Which address of a packet the filter looks at.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Side {
    /// The destination, on ingress.
    Destination,
    /// The source, on egress.
    Source,
}

/// Parses a packet. A packet that is not ours ends with a pass, whatever else is wrong with it; one that is ours and
/// cannot be read without guessing ends with a drop.
///
/// # Errors
///
/// The verdict of a packet that goes no further.
#[inline(always)]
pub fn parse<E: Env>(env: &E, side: Side, packet: &mut Packet) -> Result<(), Verdict> {
    let mut ip = Ip::UNKNOWN;
    headers::<E, false>(env, side, &mut ip)?;
    let mut transport = Transport::UNKNOWN;
    transport::parse(env, &ip, &mut transport)?;
    let key = FlowKey::of_packet(ip.source, ip.destination, transport.ports, ip.protocol);
    packet.is(key, &ip, transport.flags);
    Ok(())
}

/// Parses what is in front of the transport header.
#[inline(always)]
pub(crate) fn headers<E: Env, const IS_RARE: bool>(env: &E, side: Side, ip: &mut Ip) -> Result<(), Verdict> {
    if let Some(reason) = env.apart() {
        return Err(E::Maps::ends(Verdict::Pass(reason)));
    }
    let Some([.., ethertype]) = env.load::<[u16; 7]>(0) else {
        return Err(E::Maps::ends(Verdict::Pass(Reason::NotIp)));
    };
    match ethertype.to_ne_bytes() {
        eth::IPV4 => ip::v4::<E, IS_RARE>(env, side, ip),
        eth::IPV6 => ip::v6::<E, IS_RARE>(env, side, ip),
        eth::VLAN | eth::SERVICE_VLAN => Err(E::Maps::ends(Verdict::Pass(Reason::Vlan))),
        _ => Err(E::Maps::ends(Verdict::Pass(Reason::NotIp))),
    }
}

/// Bytes of what leaves at once, from the IP header on: of each segment, where the stack or the hardware will make some.
#[inline(always)]
pub(crate) fn bytes_at_once<E: Env>(env: &E, packet: &Packet) -> u32 {
    let Some(payload) = env.segment_payload() else { return packet.bytes };
    let header = if packet.key.protocol == Protocol::TCP {
        let offset = env.load(u32::from(packet.transport) + transport::OFFSET).unwrap_or(0_u8);
        u32::from(offset >> 4) * 4
    } else {
        transport::UDP_LEN
    };
    u32::from(packet.transport).wrapping_sub(ip::OFFSET).wrapping_add(header).wrapping_add(payload)
}

/// Whether an address may be one of ours.
#[inline(always)]
pub fn filtered<M: Maps>(maps: &M, addr: Addr) -> bool {
    let bit = filter::bit(addr);
    maps.filter_word(bit >> 6).bits >> (bit & 63) & 1 != 0
}

/// The way back to the sender of this packet, as its own frame shows it.
#[inline(always)]
pub fn way_back<E: Env>(env: &E) -> Way {
    env.load(0).map_or(Way::UNKNOWN, |frame| Way::back(env.ingress(), frame))
}
