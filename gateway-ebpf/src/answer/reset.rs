//! A reset (RFC 9293, section 3.10.7.1): what a host answers that knows nothing of a connection.

use bytemuck::{Pod, Zeroable};
use gateway_common::addr::Protocol;

use super::{head, pad, pseudo, shorten};
use crate::{
    env::Env,
    packet::{Packet, eth, ip, transport},
};

/// RST, and RST with ACK, as the flags of a header.
const RST: u8 = 0x04;
const ACK: u8 = 0x10;

/// A header without options, in words.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Header {
    words: [u32; 5],
}

/// Makes a reset of the packet.
#[inline(always)]
pub(super) fn reset<E: Env>(env: &mut E, packet: &Packet) -> Option<()> {
    let header: Header = env.load(u32::from(packet.transport))?;
    let [ports, sequence, acknowledgment, rest, _] = header.words;
    let [offset, flags, _, _] = rest.to_ne_bytes();
    // What the sender has sent up to here. Its lengths were checked when it was parsed.
    let end = u32::from(packet.transport) - ip::OFFSET + u32::from(offset >> 4) * 4;
    let bytes = packet.bytes.wrapping_sub(end) + transport::Flags::new(flags).sequence_numbers();
    let (sequence, acknowledgment, flags) = if flags & ACK == 0 {
        (0, u32::from_be(sequence).wrapping_add(bytes).to_be(), RST | ACK)
    } else {
        (acknowledgment, 0, RST)
    };
    let [a, b, c, d] = ports.to_ne_bytes();
    let start = if packet.is_v6() { ip::V6_LEN } else { ip::V4_LEN };
    let mut words = [
        u32::from_ne_bytes([c, d, a, b]),
        sequence,
        acknowledgment,
        u32::from_ne_bytes([0x50, flags, 0, 0]),
        0,
    ];
    let mut sum = pseudo(packet, Protocol::TCP, transport::TCP_LEN);
    for word in words {
        sum = sum.and(word);
    }
    let [high, low] = sum.checksum();
    let [.., last] = &mut words;
    *last = u32::from_ne_bytes([high, low, 0, 0]);
    let length = eth::LEN + start + transport::TCP_LEN;
    let end = shorten(env, length)?;
    head(env, packet, Protocol::TCP, transport::TCP_LEN)?;
    env.store(eth::LEN + start, &Header { words })?;
    pad(env, length, end)
}
