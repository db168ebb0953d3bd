//! ICMP (RFC 792) and ICMP for IPv6 (RFC 4443): errors, and the packets that they quote.

use bytemuck::{Pod, Zeroable};
use gateway_common::{
    addr::{Addr, Port, Protocol},
    counter::Reason,
    flow::FlowKey,
};

use super::{
    Packet, chain,
    ip::{self, Ip},
    transport::{Flags, Ports},
};
use crate::{env::Env, verdict::Verdict};

/// The header of every message.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct Header {
    /// Type of the message.
    pub kind: u8,
    /// Code within the type.
    pub code: u8,
    /// Checksum over the message, and for IPv6 over the pseudo-header.
    pub checksum: [u8; 2],
    /// What it means depends on the type.
    pub rest: [u8; 4],
}

/// Bytes of the header.
pub const LEN: u32 = 8;
/// Offset of the checksum from the header.
pub const CHECKSUM: u32 = 2;

/// Bytes of the transport header that an error quotes at least.
const QUOTED: u32 = 8;

/// "Destination unreachable", "time exceeded" and "parameter problem" of IPv4.
const ERRORS_V4: [u8; 3] = [3, 11, 12];
/// "Destination unreachable" to "parameter problem" of IPv6.
const ERRORS_V6: core::ops::RangeInclusive<u8> = 1..=4;

/// More fragments do not matter here: only what begins with a transport header can be told.
const OFFSET: u16 = 0x1fff;

/// The packet that an error speaks of, as the error quotes it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Quote {
    /// Offset of the message.
    pub(crate) message: u32,
    /// Offset of the quoted IP header.
    pub(crate) header: u32,
    /// Offset of the quoted transport header.
    pub(crate) transport: u32,
    /// Bytes that are quoted from there on.
    pub(crate) bytes: u32,
}

/// Parses an error, and what it quotes. Notes the 5-tuple of the quoted packet the other way round: that of packets which
/// come from where the error comes from.
#[inline(always)]
pub(crate) fn quote<E: Env>(env: &E, ip: &Ip, packet: &mut Packet) -> Result<Quote, Verdict> {
    let bad = Verdict::Drop(Reason::BadIcmp);
    let message = u32::from(ip.transport);
    let rest = ip.payload.checked_sub(LEN).ok_or(bad)?;
    let header: Header = env.load(message).ok_or(bad)?;
    let is_error = if ip.v6 { ERRORS_V6.contains(&header.kind) } else { ERRORS_V4.contains(&header.kind) };
    if !is_error {
        return Err(Verdict::Pass(Reason::OtherProtocol));
    }
    let inner = if ip.v6 { v6(env, message + LEN)? } else { v4(env, message + LEN)? };
    // A fault of whoever sends it, or somebody's guess: what we sent came from where this is sent to.
    if inner.source != ip.destination {
        return Err(Verdict::Pass(Reason::IcmpNoFlow));
    }
    let transport = message + LEN + inner.header_bytes;
    let bytes = rest.checked_sub(inner.header_bytes).filter(|bytes| *bytes >= QUOTED).ok_or(bad)?;
    if inner.protocol != Protocol::TCP && inner.protocol != Protocol::UDP {
        return Err(Verdict::Pass(Reason::OtherProtocol));
    }
    let ports: Ports = env.load(transport).ok_or(bad)?;
    let key = FlowKey::new(
        inner.destination,
        Port::from_wire(ports.destination),
        inner.source,
        Port::from_wire(ports.source),
        inner.protocol,
    );
    packet.is(key, ip, Flags::default());
    Ok(Quote { message, header: message + LEN, transport, bytes })
}

/// A quoted IP header.
struct Inner {
    source: Addr,
    destination: Addr,
    protocol: Protocol,
    header_bytes: u32,
}

#[inline(always)]
fn v4<E: Env>(env: &E, at: u32) -> Result<Inner, Verdict> {
    let header: ip::V4 = env.load(at).ok_or(Verdict::Drop(Reason::BadIcmp))?;
    let header_bytes = u32::from(header.version_and_words & 0x0f) * 4;
    if header.version_and_words >> 4 != 4 || header_bytes < ip::V4_LEN {
        return Err(Verdict::Drop(Reason::BadIcmp));
    }
    if u16::from_be_bytes(header.fragment) & OFFSET != 0 {
        return Err(Verdict::Pass(Reason::IcmpNoFlow));
    }
    Ok(Inner {
        source: Addr::v4(header.source),
        destination: Addr::v4(header.destination),
        protocol: Protocol::new(header.protocol),
        header_bytes,
    })
}

#[inline(always)]
fn v6<E: Env>(env: &E, at: u32) -> Result<Inner, Verdict> {
    let header: ip::V6 = env.load(at).ok_or(Verdict::Drop(Reason::BadIcmp))?;
    if header.version >> 4 != 6 {
        return Err(Verdict::Drop(Reason::BadIcmp));
    }
    let (protocol, bytes) = chain::past_quoted(env, at + ip::V6_LEN, header.next_header)?;
    Ok(Inner {
        source: Addr::v6(header.source),
        destination: Addr::v6(header.destination),
        protocol: Protocol::new(protocol),
        header_bytes: ip::V6_LEN + bytes,
    })
}
