//! The second packet of a handshake (RFC 9293, section 3.5), for a first one that nothing remembers.

use gateway_common::addr::Protocol;

use super::{head, pad, pseudo, shorten};
use crate::{
    cookie::Cookie,
    env::Env,
    packet::{
        Packet, eth, ip,
        transport::{self, SEQUENCE, TCP_LEN},
    },
};

/// SYN with ACK, as the flags of a header.
const SYN_ACK: u8 = 0x12;

/// Bytes that a client may send before it hears from the stack: twice what it would send at once (RFC 6928).
pub(crate) const WINDOW: u16 = 29_200;

/// The largest segments that are offered: what fits an Ethernet frame.
const LARGEST_V4: u16 = 1_460;
/// The same for IPv6.
const LARGEST_V6: u16 = 1_440;

/// Options that are read: those of today's stacks are five, with padding twice as many.
const OPTIONS: u32 = 12;

/// "End of options", "no operation" and "maximum segment size" (RFC 9293, section 3.2).
const END: u8 = 0;
const PADDING: u8 = 1;
const SEGMENT: u8 = 2;

/// Bytes of the option for the segment size.
const SEGMENT_LEN: u32 = 4;

/// The sequence number that a packet begins with, in the packet's byte order.
#[inline(always)]
pub(crate) fn begins<E: Env>(env: &E, packet: &Packet) -> Option<u32> {
    env.load(u32::from(packet.transport) + SEQUENCE)
}

/// The segment size that a SYN names, in the packet's byte order; none when it names none, or after too many other options.
#[inline(always)]
pub(crate) fn segment<E: Env>(env: &E, packet: &Packet) -> Option<[u8; 2]> {
    let start = u32::from(packet.transport);
    let [offset]: [u8; 1] = env.load(start + transport::OFFSET)?;
    let end = u32::from(offset >> 4) * 4;
    let mut at = TCP_LEN;
    for _ in 0..OPTIONS {
        if at + SEGMENT_LEN > end {
            return None;
        }
        let [kind, length]: [u8; 2] = env.load(start + at)?;
        match kind {
            END => return None,
            PADDING => at += 1,
            SEGMENT if u32::from(length) == SEGMENT_LEN => {
                return env.load::<[u8; 2]>(start + at + 2).filter(|size| *size != [0, 0]);
            }
            _ if length < 2 => return None,
            _ => at += u32::from(length),
        }
    }
    None
}

/// Makes the second packet of a handshake of the first one, which began with the sequence number `begins`. The client may
/// send `window` bytes before it hears more.
#[inline(always)]
pub(crate) fn answer<E: Env>(
    env: &mut E,
    packet: &Packet,
    begins: u32,
    cookie: Cookie,
    window: u16,
) -> Option<()> {
    let (start, largest) = if packet.is_v6() { (ip::V6_LEN, LARGEST_V6) } else { (ip::V4_LEN, LARGEST_V4) };
    // A SYN without options has no room for one, and whoever sends it expects none.
    let has_room = env.len_bytes() >= eth::LEN + start + TCP_LEN + SEGMENT_LEN;
    let [high, low] = cookie.segment_bytes().min(largest).to_be_bytes();
    let (words, option, bytes) = if has_room {
        (0x60, u32::from_ne_bytes([SEGMENT, 4, high, low]), TCP_LEN + SEGMENT_LEN)
    } else {
        (0x50, 0, TCP_LEN)
    };
    let key = packet.key();
    let [a, b] = key.destination_port.to_wire();
    let [c, d] = key.source_port.to_wire();
    let [e, f] = window.to_be_bytes();
    let mut header = [
        u32::from_ne_bytes([a, b, c, d]),
        cookie.sequence().to_be(),
        u32::from_be(begins).wrapping_add(1).to_be(),
        u32::from_ne_bytes([words, SYN_ACK, e, f]),
        0,
    ];
    let mut sum = pseudo(packet, Protocol::TCP, bytes).and(option);
    for word in header {
        sum = sum.and(word);
    }
    let [high, low] = sum.checksum();
    let [.., last] = &mut header;
    *last = u32::from_ne_bytes([high, low, 0, 0]);
    let end = shorten(env, eth::LEN + start + bytes)?;
    head(env, packet, Protocol::TCP, bytes)?;
    env.store(eth::LEN + start, &header)?;
    if has_room {
        env.store(eth::LEN + start + TCP_LEN, &option)?;
    }
    pad(env, eth::LEN + start + bytes, end)
}
