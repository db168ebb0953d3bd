//! "Too big" and "port unreachable": a message in front of the beginning of the packet that it speaks of.

use bytemuck::{Pod, Zeroable};
use gateway_common::addr::Protocol;

use super::{head, pseudo};
use crate::{
    arrival::Arrival,
    checksum::Sum,
    env::Env,
    packet::{icmp::LEN, ip},
};

/// Bytes of a packet that are quoted at most: the message fits the smallest packet that every host takes (RFC 1812,
/// section 4.3.2.3).
const QUOTED_V4: u32 = 576 - ip::V4_LEN - LEN;
/// The same for IPv6 (RFC 4443, section 2.4).
const QUOTED_V6: u32 = 1_280 - ip::V6_LEN - LEN;

/// A message before its checksum.
#[derive(Clone, Copy)]
struct Message {
    kind: u8,
    code: u8,
    rest: u32,
}

/// Four words of what is quoted.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Quad {
    words: [u32; 4],
}

/// "Fragmentation needed" or "packet too big", with the bytes that the way takes.
#[inline(always)]
pub(super) fn too_big<E: Env>(env: &mut E, arrival: &Arrival) -> Option<()> {
    let rest = arrival.fitting_bytes();
    let message = if arrival.packet.is_v6() {
        Message { kind: 2, code: 0, rest }
    } else {
        Message { kind: 3, code: 4, rest }
    };
    send(env, arrival, message)
}

/// "Port unreachable".
#[inline(always)]
pub(super) fn unreachable<E: Env>(env: &mut E, arrival: &Arrival) -> Option<()> {
    let message = if arrival.packet.is_v6() {
        Message { kind: 1, code: 4, rest: 0 }
    } else {
        Message { kind: 3, code: 3, rest: 0 }
    };
    send(env, arrival, message)
}

/// Cuts the packet, and puts the message in front of it.
#[inline(always)]
fn send<E: Env>(env: &mut E, arrival: &Arrival, message: Message) -> Option<()> {
    let packet = &arrival.packet;
    let v6 = packet.is_v6();
    let most = if v6 { QUOTED_V6 } else { QUOTED_V4 };
    // Whole words, without the padding of a short frame.
    let quoted = packet.bytes.min(most) & !3;
    let mut sum = sum(env, quoted)?;
    env.cut(ip::OFFSET + quoted)?;
    let (front, protocol) =
        if v6 { (ip::V6_LEN + LEN, Protocol::ICMP_V6) } else { (ip::V4_LEN + LEN, Protocol::ICMP) };
    env.grow(front)?;
    head(env, packet, protocol, LEN + quoted)?;
    let [a, b, c, d] = message.rest.to_be_bytes();
    let rest = u32::from_ne_bytes([a, b, c, d]);
    sum = sum.and(u32::from_ne_bytes([message.kind, message.code, 0, 0])).and(rest);
    if v6 {
        sum = sum.plus(pseudo(packet, protocol, LEN + quoted));
    }
    let [high, low] = sum.checksum();
    let words = [u32::from_ne_bytes([message.kind, message.code, high, low]), rest];
    env.store(ip::OFFSET + front - LEN, &words)
}

/// The sum over the beginning of the packet.
#[inline(always)]
fn sum<E: Env>(env: &E, bytes: u32) -> Option<Sum> {
    let mut sum = Sum::ZERO;
    let quads = bytes / 16;
    for idx in 0..QUOTED_V6 / 16 {
        if idx >= quads {
            break;
        }
        let Quad { words: [a, b, c, d] } = env.load(ip::OFFSET + idx * 16)?;
        sum = sum.and(a).and(b).and(c).and(d);
    }
    // At most three words are left.
    for idx in 0..3 {
        let at = quads * 16 + idx * 4;
        if at >= bytes {
            break;
        }
        sum = sum.and(env.load(ip::OFFSET + at)?);
    }
    Some(sum)
}
