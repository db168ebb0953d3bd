//! Parsing: from the bytes of a packet to what the pipeline needs to know, with the filter in between.

pub mod eth;
pub mod ip;
pub mod transport;

use gateway_common::{
    addr::{Addr, Port},
    counter::Reason,
    filter,
    flow::FlowKey,
};

use crate::{
    env::{Env, Maps},
    verdict::Verdict,
    way::Way,
};
use transport::Flags;

/// A TCP or UDP packet that concerns us, parsed.
#[derive(Clone, Copy, Debug)]
pub struct Packet {
    /// The 5-tuple as the packet carries it, in whole words: the compiler copies a [`FlowKey`] field by field, and its
    /// padding then lands on stack addresses that the verifier refuses.
    key: [u64; 5],
    /// Whether it is IPv6.
    pub v6: bool,
    /// Offset of the transport header in bytes from the link-layer header.
    /// A byte, because the verifier only follows offsets whose bound it sees; 74 is the largest.
    pub transport: u8,
    /// Time to live, or hop limit.
    pub ttl: u8,
    /// Flags of TCP; none for UDP.
    pub flags: Flags,
}

impl Packet {
    /// The 5-tuple as the packet carries it.
    #[inline(always)]
    pub fn key(&self) -> &FlowKey {
        bytemuck::must_cast_ref(&self.key)
    }

    /// Bytes from the IP header on, as far as they fit the IP header's own field.
    #[inline(always)]
    #[expect(clippy::as_conversions, reason = "at most 0xffff")]
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
    if let Some(reason) = env.apart() {
        return Err(Verdict::Pass(reason));
    }
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
        Port::from_wire(ports.source),
        ip.destination,
        Port::from_wire(ports.destination),
        ip.protocol,
    );
    Ok(Packet { key: bytemuck::must_cast(key), v6: ip.v6, transport: ip.transport, ttl: ip.ttl, flags })
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
