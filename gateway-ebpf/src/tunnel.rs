//! Tunnels: the outer headers of a packet that goes to an endpoint as it came.

use bytemuck::{Pod, Zeroable};
use gateway_common::{endpoint::Endpoint, service::Mode, settings::Settings};

use crate::{
    checksum,
    env::{Env, Room},
    packet::{Packet, eth, ip},
    way::Way,
};

/// IPv4 in something, as a protocol number.
const INNER_V4: u8 = 4;
/// IPv6 in something.
const INNER_V6: u8 = 41;
/// UDP.
const UDP: u8 = 17;
/// Time to live of outer headers (RFC 1700's default, and Linux's).
const TTL: u8 = 64;
/// "Don't fragment" of IPv4, as the word of flags and offset.
const DONT_FRAGMENT: [u8; 2] = [0x40, 0];

/// A packet on its way into a tunnel.
#[derive(Clone, Copy, Debug)]
pub struct Tunnel<'a> {
    /// The packet.
    pub packet: &'a Packet,
    /// The endpoint, at the tunnel's other end.
    pub endpoint: &'a Endpoint,
    /// The settings.
    pub settings: &'a Settings,
    /// The way there.
    pub way: Way,
    /// The hash of the flow.
    pub hash: u64,
}

/// Headers that a mode puts in front of a packet to an endpoint.
#[inline(always)]
pub fn room(mode: Mode, endpoint: &Endpoint) -> Room {
    Room::new(!endpoint.addr.is_v4(), mode == Mode::DSR_GUE)
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct OuterV4 {
    words: [u32; 5],
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct OuterV6 {
    words: [u64; 5],
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct OuterUdp {
    words: [u32; 2],
}

/// Puts the packet into a tunnel and addresses its frame to the next hop.
#[inline(always)]
pub fn enter<E: Env>(env: &mut E, tunnel: &Tunnel<'_>, room: Room) -> Option<()> {
    // Programs for rare packets have no room on their stack to keep the sum of its bytes.
    let room = if E::IS_RARE { Room::new(room.v6, room.udp) } else { room };
    env.make_room(room)?;
    let after = if room.v6 {
        let words = outer_v6(tunnel, room);
        env.store_outer(&OuterV6 { words }, tunnel.way, eth::IPV6)?;
        ip::OFFSET + ip::V6_LEN
    } else {
        let words = outer_v4(tunnel, room);
        env.store_outer(&OuterV4 { words }, tunnel.way, eth::IPV4)?;
        ip::OFFSET + ip::V4_LEN
    };
    if room.udp {
        env.store(after, &OuterUdp { words: udp(tunnel) })?;
    }
    env.store_outer_link(tunnel.way, if room.v6 { eth::IPV6 } else { eth::IPV4 })
}

/// What the outer header carries.
#[inline(always)]
const fn payload(tunnel: &Tunnel<'_>, room: Room) -> u8 {
    if room.udp {
        UDP
    } else if tunnel.packet.is_v6() {
        INNER_V6
    } else {
        INNER_V4
    }
}

/// Bits of the flow's hash that are used for nothing else, so that the receiver spreads flows over its queues.
#[inline(always)]
#[expect(clippy::as_conversions, clippy::cast_possible_truncation, reason = "part of the hash")]
const fn entropy(hash: u64) -> u32 {
    (hash >> 16) as u32
}

#[inline(always)]
#[expect(
    clippy::as_conversions,
    clippy::cast_possible_truncation,
    reason = "a packet with its tunnel fits the field"
)]
fn outer_v4(tunnel: &Tunnel<'_>, room: Room) -> [u32; 5] {
    let total = (tunnel.packet.bytes + room.bytes()) as u16;
    let [high, low] = total.to_be_bytes();
    let [a, b, _, _] = tunnel.settings.tunnel_v4.v4_octets();
    let [c, d, _, _] = entropy(tunnel.hash).to_ne_bytes();
    let [flags, offset] = DONT_FRAGMENT;
    // Service class and congestion bits as the packet has them (RFC 2983, uniform; RFC 6040, normal mode).
    let words = [
        u32::from_ne_bytes([0x45, tunnel.packet.class, high, low]),
        u32::from_ne_bytes([0, 0, flags, offset]),
        u32::from_ne_bytes([TTL, payload(tunnel, room), 0, 0]),
        u32::from_ne_bytes([a, b, c, d]),
        u32::from_ne_bytes(tunnel.endpoint.addr.v4_octets()),
    ];
    let [first, second, third, source, destination] = words;
    let [sum_a, sum_b] = checksum::of_header(words);
    let [ttl, protocol, _, _] = third.to_ne_bytes();
    [first, second, u32::from_ne_bytes([ttl, protocol, sum_a, sum_b]), source, destination]
}

#[inline(always)]
#[expect(
    clippy::as_conversions,
    clippy::cast_possible_truncation,
    reason = "a packet with its tunnel fits the field"
)]
fn outer_v6(tunnel: &Tunnel<'_>, room: Room) -> [u64; 5] {
    let length = (tunnel.packet.bytes + room.bytes() - ip::V6_LEN) as u16;
    let [high, low] = length.to_be_bytes();
    let entropy = entropy(tunnel.hash);
    // The flow label (RFC 6438) says the same as the address: queues and paths share the load.
    let first = 0x6000_0000 | u32::from(tunnel.packet.class) << 20 | entropy & 0x000f_ffff;
    let second = u32::from_ne_bytes([high, low, payload(tunnel, room), TTL]);
    let [s0, s1] = tunnel.settings.tunnel_v6.halves();
    let [s2, _]: [u32; 2] = bytemuck::must_cast(s1);
    let [d0, d1] = tunnel.endpoint.addr.halves();
    [bytemuck::must_cast([first.to_be(), second]), s0, bytemuck::must_cast([s2, entropy]), d0, d1]
}

/// A UDP header without a checksum (RFC 768; RFC 6935 for tunnels over IPv6): the packet inside has its own.
#[inline(always)]
#[expect(
    clippy::as_conversions,
    clippy::cast_possible_truncation,
    reason = "a packet with its tunnel fits the field"
)]
fn udp(tunnel: &Tunnel<'_>) -> [u32; 2] {
    let [high, low] = ((tunnel.packet.bytes + 8) as u16).to_be_bytes();
    let [a, b, _, _] = entropy(tunnel.hash).to_ne_bytes();
    let [c, d] = tunnel.settings.tunnel_port.to_wire();
    // Source ports of tunnels come from the dynamic range (RFC 6335).
    [u32::from_ne_bytes([a | 0xc0, b, c, d]), u32::from_ne_bytes([high, low, 0, 0])]
}
