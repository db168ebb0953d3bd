//! Translation as edits of a packet, with the checksums kept true.

use bytemuck::{Pod, Zeroable};
use gateway_common::addr::{Addr, Port, Protocol};

use crate::{
    Aligned,
    checksum::{self, Diff},
    env::{Env, TransportFix},
    packet::{
        Packet, ip,
        transport::{Ports, TCP_CHECKSUM, UDP_CHECKSUM},
    },
    way::Way,
};

/// The addresses and ports that a packet shall carry.
#[derive(Clone, Copy, Debug)]
pub struct Edit {
    /// Source address.
    pub source: Addr,
    /// Destination address, of the same family as the packet.
    pub destination: Addr,
    /// Source port.
    pub source_port: Port,
    /// Destination port.
    pub destination_port: Port,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub(crate) struct V4Addrs {
    pub(crate) source: [u8; 4],
    pub(crate) destination: [u8; 4],
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub(crate) struct V6Addrs {
    pub(crate) source: [u8; 16],
    pub(crate) destination: [u8; 16],
}

/// Hops of a packet that this node forwards.
const HOP: u8 = 1;
/// Hops of one that its stack delivers or sends.
const STAYS: u8 = 0;

/// Translates a packet that this node's stack delivers or sends: the time to live stays.
#[inline(always)]
pub fn in_place<E: Env>(env: &mut E, packet: &Packet, edit: &Edit) -> Option<()> {
    let pseudo = addrs(env, packet, edit, STAYS, Diff::ZERO)?;
    transport(env, packet, edit, pseudo)
}

/// Translates a packet that this node forwards, and addresses its frame to the next hop.
#[inline(always)]
pub fn forward<E: Env>(env: &mut E, packet: &Packet, edit: &Edit, way: Way) -> Option<()> {
    v6_hop(env, packet)?;
    let pseudo = addrs(env, packet, edit, HOP, Diff::ZERO)?;
    transport(env, packet, edit, pseudo)?;
    env.store_link(way)
}

/// Lets a packet of IPv6 live for one hop less. With IPv4, that is written with the addresses.
#[inline(always)]
fn v6_hop<E: Env>(env: &mut E, packet: &Packet) -> Option<()> {
    if packet.is_v6() { env.store(ip::V6_HOP_LIMIT, &packet.ttl.wrapping_sub(HOP)) } else { Some(()) }
}

/// What becomes of a segment of TCP beside its addresses and ports.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Segment {
    /// Sequence number, acknowledgment, and the word with length, flags and window, in the packet's byte order.
    pub(crate) old: [u32; 3],
    /// The same afterwards.
    pub(crate) new: [u32; 3],
    /// Bytes from the IP header on, afterwards.
    pub(crate) bytes: u32,
    /// Change of what follows the header.
    pub(crate) rest: Diff,
}

/// The same as [`forward`] for a segment whose header changes beyond that. What follows the header is there already.
#[inline(always)]
pub(crate) fn segment<E: Env>(
    env: &mut E,
    packet: &Packet,
    edit: &Edit,
    way: Way,
    segment: &Segment,
) -> Option<()> {
    v6_hop(env, packet)?;
    let length = length(env, packet, segment.bytes)?;
    let (start, key) = (u32::from(packet.transport), packet.key());
    let before = u32::from(packet.transport).wrapping_sub(ip::OFFSET);
    let pseudo = addrs(env, packet, edit, HOP, length)?
        .replace(packet.bytes.wrapping_sub(before).to_be(), segment.bytes.wrapping_sub(before).to_be());
    // The first fragment has the header, and the checksum over all of them.
    if packet.is_later != 0 {
        return env.store_link(way);
    }
    let ports = ports_word(edit.source_port, edit.destination_port);
    let ([a, b, c], [d, e, f]) = (segment.old, segment.new);
    let own = segment
        .rest
        .replace(ports_word(key.source_port, key.destination_port), ports)
        .replace(a, d)
        .replace(b, e)
        .replace(c, f);
    env.store(start, &[ports, d, e, f])?;
    env.fix_transport_checksum(&TransportFix {
        offset: start + TCP_CHECKSUM,
        protocol: Protocol::TCP,
        v6: packet.is_v6(),
        pseudo,
        own,
    })?;
    env.store_link(way)
}

/// Writes the length of a packet where it changes; returns what that does to the header's checksum.
#[inline(always)]
fn length<E: Env>(env: &mut E, packet: &Packet, bytes: u32) -> Option<Diff> {
    if bytes == packet.bytes {
        return Some(Diff::ZERO);
    }
    let [_, _, high, low] = bytes.to_be_bytes();
    if packet.is_v6() {
        let [_, _, high, low] = bytes.wrapping_sub(ip::V6_LEN).to_be_bytes();
        env.store(ip::V6_BYTES, &[high, low])?;
        return Some(Diff::ZERO);
    }
    env.store(ip::V4_BYTES, &[high, low])?;
    Some(Diff::ZERO.replace(packet.bytes.to_be(), bytes.to_be()))
}

/// Lets a packet that goes into a tunnel, or over the link as it is, live for one hop less.
#[inline(always)]
pub fn hop<E: Env>(env: &mut E, packet: &Packet) -> Option<()> {
    if packet.is_v6() {
        return v6_hop(env, packet);
    }
    let word = env.load(ip::V4_TTL)?;
    env.store(ip::V4_TTL, &checksum::one_hop_less(word))
}

/// The time to live as part of the 16-bit word it shares with the protocol, which stays.
#[inline(always)]
pub(crate) const fn ttl_word(ttl: u8) -> u32 {
    u32::from_ne_bytes([ttl, 0, 0, 0])
}

/// Writes the addresses, with IPv4 the time to live and the header's checksum too; returns what that does to the
/// pseudo-header. `hops` are those that an IPv4 packet lives less, `length` is what else changes in its header.
#[inline(always)]
fn addrs<E: Env>(env: &mut E, packet: &Packet, edit: &Edit, hops: u8, length: Diff) -> Option<Diff> {
    let key = packet.key();
    if packet.is_v6() {
        let diff =
            all_words(all_words(Diff::ZERO, key.source, edit.source), key.destination, edit.destination);
        env.store(
            ip::V6_ADDRS,
            &V6Addrs { source: edit.source.octets(), destination: edit.destination.octets() },
        )?;
        return Some(diff);
    }
    let diff = last_word(last_word(Diff::ZERO, key.source, edit.source), key.destination, edit.destination);
    let [old, protocol, a, b]: [u8; 4] = env.load(ip::V4_TTL)?;
    let ttl = old.wrapping_sub(hops);
    let hop = Diff::ZERO.replace(ttl_word(old), ttl_word(ttl));
    let [a, b] = checksum::update([a, b], diff.and(hop).and(length));
    let [source, destination] =
        [edit.source, edit.destination].map(|addr| u32::from_ne_bytes(addr.v4_octets()));
    // What stands together is written at once: outside XDP each write is a call into the kernel.
    let words = Aligned([u32::from_ne_bytes([ttl, protocol, a, b]), source, destination]);
    env.store(ip::V4_TTL, &words.0)?;
    Some(diff)
}

#[inline(always)]
pub(crate) const fn last_word(diff: Diff, old: Addr, new: Addr) -> Diff {
    diff.replace(u32::from_ne_bytes(old.v4_octets()), u32::from_ne_bytes(new.v4_octets()))
}

#[inline(always)]
pub(crate) const fn all_words(diff: Diff, old: Addr, new: Addr) -> Diff {
    let [a, b, c, d] = old.words();
    let [e, f, g, h] = new.words();
    diff.replace(a, e).replace(b, f).replace(c, g).replace(d, h)
}

#[inline(always)]
fn transport<E: Env>(env: &mut E, packet: &Packet, edit: &Edit, pseudo: Diff) -> Option<()> {
    if E::IS_RARE && packet.is_later != 0 {
        return Some(());
    }
    let key = packet.key();
    let own = Diff::ZERO.replace(
        ports_word(key.source_port, key.destination_port),
        ports_word(edit.source_port, edit.destination_port),
    );
    let ports = Ports { source: edit.source_port.to_wire(), destination: edit.destination_port.to_wire() };
    env.store(u32::from(packet.transport), &ports)?;
    let checksum = if key.protocol == Protocol::TCP { TCP_CHECKSUM } else { UDP_CHECKSUM };
    env.fix_transport_checksum(&TransportFix {
        offset: u32::from(packet.transport) + checksum,
        protocol: key.protocol,
        v6: packet.is_v6(),
        pseudo,
        own,
    })
}

#[inline(always)]
pub(crate) const fn ports_word(source: Port, destination: Port) -> u32 {
    let [a, b] = source.to_wire();
    let [c, d] = destination.to_wire();
    u32::from_ne_bytes([a, b, c, d])
}
