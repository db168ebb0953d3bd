//! SYN cookies for services whose packets are translated (RFC 4987, section 3.6): while more connections begin than such a
//! service allows, the programs answer SYNs by themselves, with a number that stands for the connection and with a window
//! that is closed. Whoever sends the number back is there, and gets an endpoint: its packet goes there as a SYN. The
//! endpoint's answer goes to the client as the window that it has waited for, and from then on the numbers of both sides
//! are kept apart by their difference.
//!
//! Neither side is offered anything but a segment size: window scale, selective acknowledgment and timestamps would have to
//! be known before the endpoint is asked. Everything here runs in a program of its own.

mod back;
mod there;

pub(crate) mod proof;

use bytemuck::{Pod, Zeroable};
use gateway_common::{cookie::OwnCookie, counter::Reason, flow::Phase, settings::Settings};

use crate::{
    answer::{self, handshake},
    arrival::{Arrival, Errand},
    cookie::Cookie,
    env::{Env, Maps},
    event::told,
    guard, ingress,
    outcome::Stage,
    packet::{self, Packet, ip, transport::TCP_LEN},
    table::row::Held,
    track,
    verdict::Verdict,
};

/// No more than this of TCP's header is read here: what stands in front of the checksum, in words.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Head {
    words: [u32; 4],
}

impl Head {
    #[inline(always)]
    fn of<E: Env>(env: &E, packet: &Packet) -> Option<Self> {
        env.load(u32::from(packet.transport))
    }

    /// Sequence number, acknowledgment, and the word with length, flags and window, in the packet's byte order.
    #[inline(always)]
    const fn rest(self) -> [u32; 3] {
        let [_, a, b, c] = self.words;
        [a, b, c]
    }

    #[inline(always)]
    const fn sequence(self) -> u32 {
        let [_, sequence, ..] = self.words;
        u32::from_be(sequence)
    }

    #[inline(always)]
    const fn acknowledgment(self) -> u32 {
        let [_, _, acknowledgment, _] = self.words;
        u32::from_be(acknowledgment)
    }

    /// Bytes of the header.
    #[inline(always)]
    fn bytes(self) -> u32 {
        let [_, _, _, rest] = self.words;
        let [offset, ..] = rest.to_ne_bytes();
        u32::from(offset >> 4) * 4
    }

    /// Bytes behind the header.
    #[inline(always)]
    fn payload(self, packet: &Packet) -> u32 {
        segment_bytes(packet).wrapping_sub(self.bytes())
    }

    /// The word with length, flags and window, with the same window.
    #[inline(always)]
    const fn with(self, words: u8, flags: u8) -> u32 {
        let [_, _, _, rest] = self.words;
        let [_, _, high, low] = rest.to_ne_bytes();
        u32::from_ne_bytes([words, flags, high, low])
    }
}

/// Bytes of a packet from TCP's header on.
#[inline(always)]
fn segment_bytes(packet: &Packet) -> u32 {
    packet.bytes.wrapping_add(ip::OFFSET).wrapping_sub(u32::from(packet.transport))
}

/// Length and flags of headers, as they stand in the two bytes of their word.
const SHORT: u8 = 0x50;
const WITH_OPTION: u8 = 0x60;
const SYN: u8 = 0x02;
const ACK: u8 = 0x10;

/// Bytes of the header with the option for the segment size.
const OPTION_END: u32 = TCP_LEN + 4;

/// Whether a packet of a flow that is remembered goes on in the program for connections that began with a cookie.
#[inline(always)]
pub(crate) fn has(arrival: &mut Arrival, held: &Held) -> bool {
    let is_its = is_its(held, arrival);
    if is_its {
        arrival.errand = Errand::TO_ENDPOINT;
    }
    is_its
}

/// Whether a packet is of a flow that is remembered, and began with a cookie.
#[inline(always)]
fn is_its(held: &Held, arrival: &Arrival) -> bool {
    held.proxied != 0 && !track::begins_anew(held, &arrival.packet, arrival.now)
}

/// Looks for a packet that goes on there and is of no such flow: a SYN that is answered, or what may follow an answer.
///
/// # Errors
/// [`Reason::CookieRefused`] for such a packet, and those of [`proof::arms`].
#[inline(always)]
pub(crate) fn begins<M: Maps>(maps: &M, arrival: &mut Arrival) -> Result<(), Reason> {
    if arrival.may_begin_with_cookies() && maps.apart(Stage::Arm, arrival).get()? == 1 {
        return Err(Reason::CookieRefused);
    }
    Ok(())
}

/// Whether a flow has ended, as far as is known.
#[inline(always)]
pub(crate) fn is_over(held: &Held, arrival: &Arrival) -> bool {
    held.phase == Phase::CLOSING || held.expires.is_before(arrival.now)
}

/// Does with a packet what is left to do, counted.
#[inline(always)]
pub fn ingress<E: Env>(env: &mut E, arrival: &mut Arrival) -> Verdict {
    told(env, arrival, false, run)
}

#[inline(always)]
fn run<E: Env>(env: &mut E, arrival: &mut Arrival) -> Verdict {
    let Some(settings) = env.maps().settings() else { return Verdict::Drop(Reason::FlowNotRecorded) };
    let settings: &Settings = &settings;
    // What was sent, or why nothing was.
    let done: Result<Reason, Reason> = if arrival.errand == Errand::GREET {
        greet(env, arrival)
    } else if arrival.errand == Errand::TO_CLIENT {
        back::to_client(env, arrival, settings)
    } else {
        there::to_endpoint(env, arrival, settings).and_then(|()| there::sends(env, arrival))
    };
    match done {
        Ok(sent) => Verdict::Transmit(sent),
        Err(reason) => {
            guard::blames(env.maps(), arrival, settings, reason);
            let is_answered = reason == Reason::TooBig
                || arrival.errand == Errand::TO_ENDPOINT
                    && matches!(reason, Reason::NoEndpoint | Reason::CookieRefused);
            ingress::ended::<E>(env.maps(), arrival, Verdict::Drop(reason), is_answered)
        }
    }
}

/// Answers a SYN with a cookie.
// A frame of its own, so that the stack of what goes on to an endpoint is not deeper for it.
#[inline(never)]
fn greet<E: Env>(env: &mut E, arrival: &mut Arrival) -> Result<Reason, Reason> {
    if arrival.packet.flags.closes() || !answer::may_be_answered(env, arrival) {
        return Err(Reason::CookieRefused);
    }
    let begins = handshake::begins(env, &arrival.packet).ok_or(Reason::RewriteFailed)?;
    let segment = handshake::segment(env, &arrival.packet).map_or(0, u16::from_be_bytes);
    arrival.begins = u32::from_be(begins);
    arrival.cookie = OwnCookie::size_of(segment);
    let cookie = env.maps().apart(Stage::Bake, arrival).get()?;
    let way = packet::way_back(env);
    handshake::answer(env, &arrival.packet, begins, Cookie::own(cookie, u16::MAX), 0)
        .and_then(|()| env.store_link(way))
        .ok_or(Reason::RewriteFailed)?;
    if let Some(row) = env.maps().syn_cookie(arrival.id) {
        let [_, _, sent] = &*row;
        <E::Maps as Maps>::add(sent, 1);
    }
    arrival.interface = way.interface();
    Ok(Reason::CookieSent)
}
