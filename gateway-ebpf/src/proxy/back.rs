//! The endpoint's packets of a connection that began with a cookie, on their way to the client.

use gateway_common::{
    counter::Reason,
    flow::{Sequence, SequenceStage},
    settings::Settings,
};

use super::{ACK, Head, SHORT, segment_bytes};
use crate::{
    arrival::{Arrival, NO_ENTRY},
    checksum::Diff,
    env::{Env, Maps},
    packet::{Packet, ip, transport::TCP_LEN},
    reply,
    rewrite::{self, Segment},
    table::{reply as replies, sequence},
};

/// Bytes of the smallest frame (IEEE 802.3) without its checksum: not every driver pads what XDP sends.
const FRAME: u32 = 60;

/// Words of options that a header can have.
const OPTION_WORDS: u32 = 10;

/// Sends a packet of the endpoint to the client, with the numbers that it knows.
// A frame of its own, so that the stack of what goes the other way is not deeper for it.
#[inline(never)]
pub(super) fn to_client<E: Env>(
    env: &mut E,
    arrival: &mut Arrival,
    settings: &Settings,
) -> Result<Reason, Reason> {
    let packet = &arrival.packet;
    let mut changing = NO_ENTRY;
    let answered = replies::find(env.maps(), settings, packet.key(), packet.is_v6(), &mut changing);
    if replies::whose(env.maps(), changing).is_some() {
        return Err(Reason::FlowContended);
    }
    let reply = answered
        .and_then(|answered| reply::seen(env.maps(), packet.key(), answered))
        .filter(|reply| !reply.is_local);
    let Some(reply) = reply else { return Err(Reason::HandshakePending) };
    arrival.id = reply.answered.who.service();
    let (index, head) = (reply.answered.index(), reply.answered.held.head);
    let row = reply.answered.held.endpoint;
    if arrival.packet.ttl <= 1 {
        return Err(told(arrival, row, Reason::TtlExpired));
    }
    let way = reply.answered.way_back;
    if !way.is_known() {
        return Err(told(arrival, row, Reason::NoNextHop));
    }
    if !reply::fits(env, arrival, way) {
        return Err(told(arrival, row, Reason::TooBig));
    }
    let known = sequence::of(env.maps(), index, head);
    let bytes = u64::from(env.len_bytes());
    let segment = match segment(env, arrival, index, known) {
        Ok(segment) => segment,
        Err(reason) => return Err(told(arrival, row, reason)),
    };
    reply::refresh(env.maps(), arrival, settings, &reply.answered);
    let edit = reply::edit(&reply, reply.answered.who.client(), reply.answered.who.client_port());
    if rewrite::segment(env, &arrival.packet, &edit, way, &segment).is_none() {
        return Err(told(arrival, row, Reason::RewriteFailed));
    }
    reply::count(env, &reply.answered, bytes);
    arrival.interface = way.interface();
    Ok(if arrival.packet.flags.agrees() { Reason::HandshakeJoined } else { Reason::Replied })
}

/// Notes whose packet goes no further.
#[inline(always)]
fn told(arrival: &mut Arrival, row: u32, reason: Reason) -> Reason {
    arrival.row = row;
    reason
}

/// The segment that the client gets.
#[inline(always)]
fn segment<E: Env>(env: &mut E, arrival: &Arrival, index: u32, known: Sequence) -> Result<Segment, Reason> {
    let packet = &arrival.packet;
    if packet.is_later != 0 {
        return Ok(Segment { old: [0; 3], new: [0; 3], bytes: packet.bytes, rest: Diff::ZERO });
    }
    let head = Head::of(env, packet).ok_or(Reason::RewriteFailed)?;
    let agrees = packet.flags.agrees();
    let [sequence, acknowledgment, rest] = head.rest();
    let first = if known.stage == SequenceStage::WAITING {
        if agrees {
            joined(env.maps(), index, known, head.sequence())?;
            known.number
        } else if packet.flags.resets() {
            // What it says no to is all that the client knows of.
            known.number.wrapping_add(1)
        } else {
            return Err(Reason::HandshakePending);
        }
    } else if known.stage == SequenceStage::JOINED {
        head.sequence().wrapping_add(known.number)
    } else {
        return Err(Reason::HandshakePending);
    };
    if agrees {
        return window(env, packet, head, first);
    }
    let new = [first.to_be(), acknowledgment, rest];
    Ok(Segment { old: [sequence, acknowledgment, rest], new, bytes: packet.bytes, rest: Diff::ZERO })
}

/// Notes how far the numbers are apart, unless another processor just did.
#[inline(always)]
fn joined<M: Maps>(maps: &M, index: u32, known: Sequence, begins: u32) -> Result<(), Reason> {
    let ahead = known.number.wrapping_sub(begins);
    let new = Sequence::new(ahead, known.version, SequenceStage::JOINED);
    // Else the endpoint's answer came twice at one moment, and this one is not needed.
    if sequence::join(maps, index, known, new) { Ok(()) } else { Err(Reason::HandshakePending) }
}

/// Makes the endpoint's answer what opens the window, and what the client answers at once: a segment with one byte that the
/// client has already, as a probe of a window has (RFC 9293, section 3.8.6.1), so that the endpoint too hears that the
/// connection is there if the client has nothing to say. `first` is the number of the SYN that the client has got.
#[inline(always)]
fn window<E: Env>(env: &mut E, packet: &Packet, head: Head, first: u32) -> Result<Segment, Reason> {
    let start = u32::from(packet.transport);
    let options = head.bytes().saturating_sub(TCP_LEN) / 4;
    if head.payload(packet) != 0 {
        return Err(Reason::HandshakePending);
    }
    let mut rest = Diff::ZERO;
    for word in 0..OPTION_WORDS {
        if word >= options {
            break;
        }
        let old: u32 = env.load(start + TCP_LEN + word * 4).ok_or(Reason::RewriteFailed)?;
        rest = rest.replace(old, 0);
    }
    let end = start + TCP_LEN + 1;
    let has_room = env.len_bytes() >= end;
    if has_room {
        cut(env, end).ok_or(Reason::RewriteFailed)?;
    }
    let (first, bytes) = if has_room { (first, TCP_LEN + 1) } else { (first.wrapping_add(1), TCP_LEN) };
    let [_, acknowledgment, _] = head.rest();
    Ok(Segment {
        old: head.rest(),
        new: [first.to_be(), acknowledgment, head.with(SHORT, ACK)],
        bytes: packet.bytes.wrapping_sub(segment_bytes(packet)).wrapping_add(bytes),
        rest,
    })
}

/// Ends a packet here, or where the smallest frame ends; its last byte, and what follows it, is zero.
#[inline(always)]
fn cut<E: Env>(env: &mut E, len_bytes: u32) -> Option<()> {
    let end = if len_bytes < FRAME && env.len_bytes() >= FRAME { FRAME } else { len_bytes };
    env.cut(end)?;
    for byte in 0..FRAME - 54 {
        let at = len_bytes - 1 + byte;
        if at >= end {
            break;
        }
        env.store(at, &0_u8)?;
    }
    Some(())
}

const _: () = assert!(ip::OFFSET + ip::V4_LEN + TCP_LEN == 54);
