//! Translation of an ICMP error: its own addresses, and the packet that it quotes, with all checksums kept true.
//!
//! Checksums are computed here, at TC too: what is stored keeps the sum over the message, so that a sum which the
//! hardware took over the whole packet stays right.

use bytemuck::{Pod, Zeroable};
use gateway_common::{
    addr::{Addr, Port, Protocol},
    flow::FlowKey,
};

use crate::{
    checksum::{self, Diff},
    env::Env,
    packet::{
        Packet,
        icmp::{self, Quote},
        ip,
        transport::{Ports, SEQUENCE, TCP_CHECKSUM, UDP_CHECKSUM},
    },
    rewrite::{V4Addrs, V6Addrs, all_words, last_word, ports_word},
};

/// What an error shall carry.
#[derive(Clone, Copy, Debug)]
pub(super) struct Change {
    /// Where it comes from.
    pub(super) source: Addr,
    /// Where it goes.
    pub(super) destination: Addr,
    /// Who sent the packet that is quoted.
    pub(super) sender: Addr,
    /// From which port.
    pub(super) sender_port: Port,
    /// To whom it was sent.
    pub(super) receiver: Addr,
    /// To which port.
    pub(super) receiver_port: Port,
    /// How far the sequence number that is quoted is ahead of the one that the sender knows.
    pub(super) ahead: u32,
}

/// A checksum field.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Sum {
    bytes: [u8; 2],
}

/// Translates the error that came from `source` about the flow of `packet`. The time to live stays.
#[inline(always)]
pub(super) fn translate<E: Env>(
    env: &mut E,
    packet: &Packet,
    source: Addr,
    quote: &Quote,
    change: &Change,
) -> Option<()> {
    let key = packet.key();
    let v6 = packet.is_v6();
    let outer =
        addresses(env, ip::OFFSET, v6, (source, key.destination), (change.source, change.destination))?;
    let inner =
        addresses(env, quote.header, v6, (key.destination, key.source), (change.sender, change.receiver))?;
    let ports = ports(env, key, quote, change)?.and(number(env, quote, change.ahead)?);
    let mut total = inner.and(ports);
    if v6 {
        // The pseudo-header of the message.
        total = total.and(outer);
    } else {
        env.fix_ip_checksum(ip::V4_CHECKSUM, outer)?;
        total = total.and(fix(env, quote.header + (ip::V4_CHECKSUM - ip::OFFSET), inner)?);
    }
    total = total.and(transport(env, key, quote, inner.and(ports))?);
    let at = quote.message + icmp::CHECKSUM;
    let old: Sum = env.load(at)?;
    env.store(at, &Sum { bytes: checksum::update(old.bytes, total) })
}

/// Writes the addresses of an IP header; returns what that does to sums over them.
#[inline(always)]
fn addresses<E: Env>(
    env: &mut E,
    header: u32,
    v6: bool,
    (old_source, old_destination): (Addr, Addr),
    (source, destination): (Addr, Addr),
) -> Option<Diff> {
    if v6 {
        let addrs = V6Addrs { source: source.octets(), destination: destination.octets() };
        env.store(header + (ip::V6_ADDRS - ip::OFFSET), &addrs)?;
        return Some(all_words(all_words(Diff::ZERO, old_source, source), old_destination, destination));
    }
    let addrs = V4Addrs { source: source.v4_octets(), destination: destination.v4_octets() };
    env.store(header + (ip::V4_ADDRS - ip::OFFSET), &addrs)?;
    Some(last_word(last_word(Diff::ZERO, old_source, source), old_destination, destination))
}

#[inline(always)]
fn ports<E: Env>(env: &mut E, key: &FlowKey, quote: &Quote, change: &Change) -> Option<Diff> {
    let ports = Ports { source: change.sender_port.to_wire(), destination: change.receiver_port.to_wire() };
    env.store(quote.transport, &ports)?;
    let old = ports_word(key.destination_port, key.source_port);
    Some(Diff::ZERO.replace(old, ports_word(change.sender_port, change.receiver_port)))
}

/// Writes the sequence number as its sender knows it.
#[inline(always)]
fn number<E: Env>(env: &mut E, quote: &Quote, ahead: u32) -> Option<Diff> {
    if ahead == 0 {
        return Some(Diff::ZERO);
    }
    let at = quote.transport + SEQUENCE;
    let old: u32 = env.load(at)?;
    let new = u32::from_be(old).wrapping_sub(ahead).to_be();
    env.store(at, &new)?;
    Some(Diff::ZERO.replace(old, new))
}

/// Applies a difference to a checksum inside the message; returns what that does to the sum over the message.
#[inline(always)]
fn fix<E: Env>(env: &mut E, at: u32, diff: Diff) -> Option<Diff> {
    let old: Sum = env.load(at)?;
    replace(env, at, old.bytes, checksum::update(old.bytes, diff))
}

#[inline(always)]
fn replace<E: Env>(env: &mut E, at: u32, old: [u8; 2], new: [u8; 2]) -> Option<Diff> {
    env.store(at, &Sum { bytes: new })?;
    Some(Diff::ZERO.replace(u32::from(u16::from_ne_bytes(old)), u32::from(u16::from_ne_bytes(new))))
}

/// Keeps the checksum of the quoted transport header true, if it is quoted at all: of TCP, eight bytes need not hold it.
#[inline(always)]
fn transport<E: Env>(env: &mut E, key: &FlowKey, quote: &Quote, diff: Diff) -> Option<Diff> {
    let is_udp = key.protocol == Protocol::UDP;
    let offset = if is_udp { UDP_CHECKSUM } else { TCP_CHECKSUM };
    if quote.bytes < offset + 2 {
        return Some(Diff::ZERO);
    }
    let at = quote.transport + offset;
    let Some(Sum { bytes: old }) = env.load(at) else { return Some(Diff::ZERO) };
    let new = if is_udp { checksum::update_udp(old, diff) } else { checksum::update(old, diff) };
    replace(env, at, old, new)
}
