//! Answers to packets that cannot go on: their sender is told why, at once and in its own protocol.
//!
//! A packet that is too large for its way is answered with the size that fits (RFC 1191, RFC 4443), one to a service
//! without endpoints with a reset or "port unreachable". There are not more of them than [`Answers::PER_TICK`]; what is
//! not answered is dropped under its first reason.

pub(crate) mod handshake;
mod icmp;
mod reset;

use gateway_common::{
    addr::{Addr, Protocol},
    answer::Answers,
    counter::Reason,
};

use crate::{
    arrival::Arrival,
    checksum::{self, Sum},
    env::{Env, Maps},
    event::told_in_any_case,
    packet::{self, eth, ip},
    rewrite::{V4Addrs, V6Addrs},
    verdict::Verdict,
};

/// Bytes of the smallest frame (IEEE 802.3) without its checksum: not every driver pads what XDP sends.
const FRAME: u32 = 60;

/// Time to live of answers, Linux's default.
pub(crate) const TTL: u8 = 64;

/// Answers the packet that the arrival speaks of, counted.
#[inline(always)]
pub fn answer<E: Env>(env: &mut E, arrival: &mut Arrival) -> Verdict {
    told_in_any_case(env, arrival, |env, arrival| run(env, arrival))
}

#[inline(always)]
fn run<E: Env>(env: &mut E, arrival: &mut Arrival) -> Verdict {
    let reason = arrival.reason();
    if !may_be_answered(env, arrival) || !allowed(env.maps()) {
        return Verdict::Drop(reason);
    }
    let way = packet::way_back(env);
    let is_too_big = matches!(reason, Reason::TooBig);
    let (done, sent) = if is_too_big {
        (icmp::too_big(env, arrival), Reason::TooBigAnswered)
    } else if arrival.packet.key().protocol == Protocol::TCP {
        (reset::reset(env, &arrival.packet), Reason::ResetSent)
    } else {
        (icmp::unreachable(env, arrival), Reason::UnreachableSent)
    };
    if done.and_then(|()| env.store_link(way)).is_none() {
        return Verdict::Drop(Reason::RewriteFailed);
    }
    arrival.leaves_by(way.interface());
    Verdict::Transmit(sent)
}

/// Takes one of the answers that this processor may send.
#[inline(always)]
fn allowed<M: Maps>(maps: &M) -> bool {
    maps.settings().is_some_and(|settings| {
        let now = maps.now(settings.tick_shift);
        maps.answers(|answers: &mut Answers| answers.take(now))
    })
}

/// Whether its sender may be answered: nobody who speaks to many, and no reset by a reset (RFC 1122, section 3.2.2;
/// RFC 4443, section 2.4; RFC 9293, section 3.10.7).
#[inline(always)]
pub(crate) fn may_be_answered<E: Env>(env: &E, arrival: &Arrival) -> bool {
    let Some([first, ..]) = env.load::<[u8; 2]>(0) else { return false };
    let packet = &arrival.packet;
    first & 1 == 0 && is_one_host(packet.key().source) && !packet.flags.resets()
}

/// Makes a packet as short as this, or as the smallest frame; returns its bytes.
#[inline(always)]
fn shorten<E: Env>(env: &mut E, len_bytes: u32) -> Option<u32> {
    let end = if len_bytes < FRAME && env.len_bytes() >= FRAME { FRAME } else { len_bytes };
    env.cut(end)?;
    Some(end)
}

/// Nothing of the sender's stays between the end of a packet and that of the smallest frame: six bytes at most.
#[inline(always)]
fn pad<E: Env>(env: &mut E, len_bytes: u32, end: u32) -> Option<()> {
    for word in 0..3 {
        let at = len_bytes + word * 2;
        if at >= end {
            break;
        }
        env.store(at, &0_u16)?;
    }
    Some(())
}

#[inline(always)]
fn is_one_host(addr: Addr) -> bool {
    if addr.is_v4() {
        let [first, ..] = addr.v4_octets();
        return first != 0 && first != 127 && first < 224;
    }
    let [a, b, c, d] = addr.words();
    let [first, ..] = a.to_ne_bytes();
    // Neither multicast, nor unspecified, nor loopback.
    first != 0xff && (a | b | c) != 0 || (a | b | c) == 0 && u32::from_be(d) > 1
}

/// Writes the headers in front of an answer from the packet's destination to its source; `payload` bytes follow.
#[inline(always)]
#[expect(clippy::as_conversions, clippy::cast_possible_truncation, reason = "an answer is a short packet")]
fn head<E: Env>(env: &mut E, arrival: &packet::Packet, protocol: Protocol, payload: u32) -> Option<()> {
    let key = arrival.key();
    if arrival.is_v6() {
        let [high, low] = (payload as u16).to_be_bytes();
        env.store(eth::TYPE, &eth::IPV6)?;
        let words =
            [u32::from_ne_bytes([0x60, 0, 0, 0]), u32::from_ne_bytes([high, low, protocol.number(), TTL])];
        env.store(ip::OFFSET, &words)?;
        let addrs = V6Addrs { source: key.destination.octets(), destination: key.source.octets() };
        return env.store(ip::V6_ADDRS, &addrs);
    }
    let [high, low] = ((payload + ip::V4_LEN) as u16).to_be_bytes();
    let words = [
        u32::from_ne_bytes([0x45, 0, high, low]),
        // "Don't fragment", so that it needs no identification (RFC 6864).
        u32::from_ne_bytes([0, 0, 0x40, 0]),
        u32::from_ne_bytes([TTL, protocol.number(), 0, 0]),
    ];
    let (source, destination) = (key.destination.v4_octets(), key.source.v4_octets());
    let [first, second, third] = words;
    let [a, b] = checksum::of_header([
        first,
        second,
        third,
        u32::from_ne_bytes(source),
        u32::from_ne_bytes(destination),
    ]);
    env.store(eth::TYPE, &eth::IPV4)?;
    env.store(ip::OFFSET, &[first, second, u32::from_ne_bytes([TTL, protocol.number(), a, b])])?;
    env.store(ip::V4_ADDRS, &V4Addrs { source, destination })
}

/// The sum over the pseudo-header of an answer. Both addresses are in it, whichever way round.
#[inline(always)]
fn pseudo(packet: &packet::Packet, protocol: Protocol, payload: u32) -> Sum {
    let key = packet.key();
    let sum = Sum::ZERO.and(u32::from(protocol.number()).to_be()).and(payload.to_be());
    if packet.is_v6() {
        let [a, b, c, d] = key.source.words();
        let [e, f, g, h] = key.destination.words();
        return sum.and(a).and(b).and(c).and(d).and(e).and(f).and(g).and(h);
    }
    sum.and(u32::from_ne_bytes(key.source.v4_octets())).and(u32::from_ne_bytes(key.destination.v4_octets()))
}
