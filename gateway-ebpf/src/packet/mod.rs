//! Parsing: from the bytes of a packet to what the pipeline needs to know, with the filter in between.

pub mod eth;
pub mod ip;
pub mod transport;

use gateway_common::{
    addr::{Addr, Port},
    counter::Reason,
    endpoint::NextHop,
    filter,
    flow::FlowKey,
};

use crate::{
    Aligned,
    env::{Env, Maps},
    verdict::Verdict,
};
use transport::Flags;

/// A TCP or UDP packet that concerns us, parsed.
#[derive(Clone, Copy, Debug)]
pub struct Packet {
    /// The 5-tuple as the packet carries it.
    pub key: Aligned<FlowKey>,
    /// Whether it is IPv6.
    pub v6: bool,
    /// Offset of the transport header in bytes from the link-layer header.
    pub transport: u32,
    /// Time to live, or hop limit.
    pub ttl: u8,
    /// Flags of TCP; none for UDP.
    pub flags: Flags,
}

impl Packet {
    /// The 5-tuple as the packet carries it.
    #[inline(always)]
    pub const fn key(&self) -> &FlowKey {
        &self.key.0
    }

    /// Bytes from the IP header on, as far as they fit the IP header's own field.
    #[inline(always)]
    #[expect(clippy::as_conversions, clippy::cast_possible_truncation, reason = "at most 0xffff")]
    pub fn ip_bytes<E: Env>(&self, env: &E) -> u16 {
        env.len_bytes().saturating_sub(ip::OFFSET).min(0xffff) as u16
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
pub fn parse<E: Env>(env: &E, side: Side) -> Result<Packet, Verdict> {
    let header: eth::Header = env.load(0).ok_or(Verdict::Pass(Reason::NotIp))?;
    let ip = match header.ethertype {
        eth::IPV4 => ip::v4(env, side)?,
        eth::IPV6 => ip::v6(env, side)?,
        eth::VLAN | eth::SERVICE_VLAN => return Err(Verdict::Pass(Reason::Vlan)),
        _ => return Err(Verdict::Pass(Reason::NotIp)),
    };
    let (ports, flags) = transport::parse(env, &ip)?;
    let key = FlowKey::new(
        ip.source,
        Port::new(u16::from_be(ports.source)),
        ip.destination,
        Port::new(u16::from_be(ports.destination)),
        ip.protocol,
    );
    Ok(Packet { key: Aligned(key), v6: ip.v6, transport: ip.transport, ttl: ip.ttl, flags })
}

/// Whether an address may be one of ours.
#[inline(always)]
pub fn filtered<M: Maps>(maps: &M, addr: Addr) -> bool {
    let bit = filter::bit(addr);
    maps.filter_word(bit >> 6).bits >> (bit & 63) & 1 != 0
}

/// The way back to the sender of this packet, as its own frame shows it.
#[inline(always)]
pub fn way_back<E: Env>(env: &E) -> NextHop {
    match env.load::<eth::Header>(0) {
        Some(header) => {
            NextHop { interface: env.ingress(), mac: header.source, own_mac: header.destination }
        }
        None => NextHop::UNKNOWN,
    }
}
