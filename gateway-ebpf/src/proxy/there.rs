//! The client's packets of a connection that begins with a cookie, on their way to the endpoint.

use gateway_common::{
    addr::Port,
    counter::Reason,
    endpoint::Endpoint,
    flow::{Phase, Sequence, SequenceStage},
    settings::Settings,
};

use super::{Head, OPTION_END, SHORT, SYN, WITH_OPTION, is_over};
use crate::{
    arrival::Arrival,
    balance,
    checksum::Diff,
    env::{Env, Maps},
    guard,
    outcome::Stage,
    packet::{self, ip, transport::TCP_LEN},
    record,
    rewrite::{self, Edit, Segment},
    table::{self, Found, row::FlowRows, sequence},
    track,
};

/// "Maximum segment size" and its length (RFC 9293, section 3.2).
const SEGMENT: [u8; 2] = [2, 4];

/// Finds the endpoint: a packet that brings a cookie back gets one, one of a connection has one. Notes how it goes there.
// A frame of its own, so that none of what is called below has that of the others above it.
#[inline(never)]
pub(super) fn to_endpoint<E: Env>(
    env: &mut E,
    arrival: &mut Arrival,
    settings: &Settings,
) -> Result<(), Reason> {
    let mut found = table::find(env.maps(), &arrival.spot, &arrival.who);
    let known = match &found {
        Some(found) => sequence::of(env.maps(), found.place.index(), found.held.head),
        None => sequence::UNKNOWN,
    };
    let is_waiting = known.stage == SequenceStage::WAITING;
    let may_begin = match &found {
        Some(found) => is_over(&found.held, arrival) || found.held.proxied != 0 && is_waiting,
        None => true,
    };
    if may_begin {
        // In memory from here on: half of what is not found is undefined, and the verifier does not let it outlive a call.
        let may_stay = notes(env.maps(), arrival, found.as_ref());
        if arrival.packet.is_later == 0
            && arrival.packet.flags.goes_on()
            && let Some(head) = Head::of(env, &arrival.packet)
        {
            arrival.begins = head.sequence();
            arrival.cookie = head.acknowledgment().wrapping_sub(1);
            if let Ok(bytes) = env.maps().apart(Stage::Prove, arrival).get() {
                // Nobody has been offered an option, and segments that are still together are not of a window that is closed.
                if head.bytes() != TCP_LEN || env.segment_payload().is_some() {
                    return Err(Reason::HandshakePending);
                }
                arrival.number = bytes;
                let is_again = may_stay && is_waiting && known.number == arrival.cookie;
                return begin(env, arrival, settings, is_again);
            }
        }
        if is_waiting {
            return Err(Reason::HandshakePending);
        }
        found = table::find(env.maps(), &arrival.spot, &arrival.who);
    }
    let Some(found) = found else { return Err(Reason::CookieRefused) };
    if found.held.proxied == 0 {
        go_on(env, arrival, settings, &found, sequence::UNKNOWN)
    } else if known.stage == SequenceStage::JOINED {
        go_on(env, arrival, settings, &found, known)
    } else {
        Err(Reason::CookieRefused)
    }
}

/// Notes what was found; says whether it may stay where it is, as it is.
#[inline(always)]
fn notes<M: Maps>(maps: &M, arrival: &mut Arrival, found: Option<&Found<M::Row<FlowRows>>>) -> bool {
    arrival.notes_entry(found);
    let Some(found) = found else { return false };
    (arrival.row, arrival.preferred) = (found.held.endpoint, found.held.source_port);
    maps.endpoint(found.held.endpoint).is_some_and(|endpoint| {
        endpoint.generation == found.held.generation
            && track::may_stay(arrival.id, &endpoint, &found.held, &arrival.packet)
    })
}

/// Gives the connection an endpoint, and makes the packet its SYN: again, where one was chosen that has not answered.
#[inline(always)]
fn begin<E: Env>(
    env: &mut E,
    arrival: &mut Arrival,
    settings: &Settings,
    is_again: bool,
) -> Result<(), Reason> {
    arrival.is_syn = 1;
    if is_again {
        arrival.is_new = 0;
        let _nothing = env.maps().apart(Stage::Retry, arrival).word();
        return aims(env, arrival);
    }
    let (entry, head) = (arrival.entry, arrival.head);
    record::seat(env.maps(), arrival, settings, entry)?;
    if env.maps().endpoint(arrival.row).is_none_or(|endpoint| endpoint.is_local()) {
        // Its answers would not come through here.
        return Err(Reason::CookieRefused);
    }
    (arrival.entry, arrival.head, arrival.is_taken) = (entry, head, 0);
    (arrival.is_new, arrival.phase, arrival.preferred) = (1, Phase::OPENING, Port::NONE);
    arrival.proxied = 1;
    arrival.sequence = Sequence::new(arrival.cookie, 0, SequenceStage::WAITING);
    arrival.way_back = packet::way_back(env);
    guard::serves(env.maps(), arrival)?;
    arrival.preferred = balance::port_of(env.maps().apart(Stage::Record, arrival).get()?);
    aims(env, arrival)
}

/// Notes the way to the endpoint that the notes name.
#[inline(always)]
fn aims<E: Env>(env: &mut E, arrival: &mut Arrival) -> Result<(), Reason> {
    let endpoint = env.maps().endpoint(arrival.row).ok_or(Reason::BadSlot)?;
    // What was noted there is recorded by now.
    arrival.way_back = balance::aim(env, arrival, &endpoint)?;
    balance::fits(env, arrival, &endpoint)
}

/// Sends a packet on to the endpoint, from the port and on the way that the notes name.
// A frame of its own, as above.
#[inline(never)]
pub(super) fn sends<E: Env>(env: &mut E, arrival: &mut Arrival) -> Result<Reason, Reason> {
    let endpoint = env.maps().endpoint(arrival.row).ok_or(Reason::BadSlot)?;
    let bytes = u64::from(env.len_bytes());
    let is_syn = arrival.is_syn != 0;
    let segment = if is_syn { syn(env, arrival) } else { translated(env, arrival) };
    let segment = segment.ok_or(Reason::RewriteFailed)?;
    send(env, arrival, &endpoint, &segment).ok_or(Reason::RewriteFailed)?;
    balance::count(env.maps(), arrival, bytes);
    arrival.interface = arrival.way_back.interface();
    Ok(if is_syn { Reason::CookieTaken } else { Reason::Forwarded })
}

/// The segment of a SYN. What the client sent along stays where it is, and leaves no room for the size of its segments; so
/// does a packet that cannot grow.
#[inline(always)]
fn syn<E: Env>(env: &mut E, arrival: &Arrival) -> Option<Segment> {
    let packet = &arrival.packet;
    let start = u32::from(packet.transport);
    let head = Head::of(env, packet)?;
    let mut segment = Segment {
        old: head.rest(),
        new: [arrival.begins.to_be(), 0, head.with(SHORT, SYN)],
        bytes: packet.bytes,
        rest: Diff::ZERO,
    };
    if head.payload(packet) == 0 && env.stretch(start + OPTION_END).is_some() {
        let [_, _, high, low] = arrival.number.to_be_bytes();
        let [kind, length] = SEGMENT;
        let option = u32::from_ne_bytes([kind, length, high, low]);
        env.store(start + TCP_LEN, &option)?;
        let [sequence, acknowledgment, _] = segment.new;
        segment.new = [sequence, acknowledgment, head.with(WITH_OPTION, SYN)];
        segment.rest = Diff::ZERO.replace(0, option);
        segment.bytes = start - ip::OFFSET + OPTION_END;
    }
    Some(segment)
}

/// A packet of a connection that has its endpoint.
#[inline(always)]
fn go_on<E: Env>(
    env: &mut E,
    arrival: &mut Arrival,
    settings: &Settings,
    found: &Found<<E::Maps as Maps>::Row<FlowRows>>,
    known: Sequence,
) -> Result<(), Reason> {
    let endpoint = env.maps().endpoint(found.held.endpoint).ok_or(Reason::BadSlot)?;
    // Another one would know nothing of it, and one on this node has no packets from here.
    if !track::may_stay(arrival.id, &endpoint, &found.held, &arrival.packet) || endpoint.is_local() {
        return Err(Reason::NoEndpoint);
    }
    (arrival.row, arrival.is_new) = (found.held.endpoint, 0);
    let port = if let Some(port) = balance::refresh(env, arrival, settings, found, &endpoint) {
        port
    } else {
        arrival.sequence = known;
        balance::port_of(env.maps().apart(Stage::Record, arrival).get()?)
    };
    (arrival.preferred, arrival.is_syn, arrival.number) = (port, 0, known.number);
    aims(env, arrival)
}

/// The segment with the endpoint's numbers in place of those that the client knows.
#[inline(always)]
fn translated<E: Env>(env: &E, arrival: &Arrival) -> Option<Segment> {
    let packet = &arrival.packet;
    if packet.is_later != 0 {
        return Some(Segment { old: [0; 3], new: [0; 3], bytes: packet.bytes, rest: Diff::ZERO });
    }
    let head = Head::of(env, packet)?;
    let [sequence, acknowledgment, rest] = head.rest();
    let known = if packet.flags.acknowledges() {
        head.acknowledgment().wrapping_sub(arrival.number).to_be()
    } else {
        acknowledgment
    };
    Some(Segment {
        old: [sequence, acknowledgment, rest],
        new: [sequence, known, rest],
        bytes: packet.bytes,
        rest: Diff::ZERO,
    })
}

#[inline(always)]
fn send<E: Env>(env: &mut E, arrival: &Arrival, endpoint: &Endpoint, segment: &Segment) -> Option<()> {
    let key = arrival.packet.key();
    let edit = Edit {
        source: endpoint.source,
        destination: endpoint.addr,
        source_port: arrival.preferred,
        destination_port: endpoint.port_for(key.destination_port),
    };
    rewrite::segment(env, &arrival.packet, &edit, arrival.way_back, segment)
}
