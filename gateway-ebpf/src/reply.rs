//! A packet on its way back from an endpoint to its client.

use gateway_common::{
    addr::{Addr, Port, Protocol},
    counter::Reason,
    flow::{FlowKey, Phase},
    settings::Settings,
};

use crate::{
    arrival::{Arrival, Errand, NO_ENTRY},
    count::dropped,
    env::{Env, Maps},
    event::Seen,
    ingress::ended,
    outcome::Stage,
    packet::{self, Side},
    rewrite::{self, Edit},
    table::{
        reply::{self, Answered},
        row::FlowRows,
    },
    track,
    verdict::Verdict,
    way::Way,
};

/// A packet of an endpoint, and what its flow says.
pub(crate) struct Reply<R> {
    /// Its flow.
    pub(crate) answered: Answered<R>,
    /// The virtual address that the client knows.
    pub(crate) addr: Addr,
    /// Whether the endpoint is on this node.
    pub(crate) is_local: bool,
}

/// Sees to it that the packet is that endpoint's.
#[inline(always)]
pub(crate) fn seen<M: Maps>(
    maps: &M,
    key: &FlowKey,
    answered: Answered<M::Row<FlowRows>>,
) -> Option<Reply<M::Row<FlowRows>>> {
    let endpoint = maps.endpoint(answered.held.endpoint)?;
    // Also on a way that the row had before: what was sent there is answered there.
    let is_its = endpoint.still_holds(answered.held.generation)
        && endpoint.addr == key.source
        && endpoint.port_for(answered.who.port()) == key.source_port;
    let is_local = endpoint.is_local();
    // Only the destination was translated for an endpoint on this node, so replies carry the client's own address.
    let is_to_client =
        answered.who.client() == key.destination && answered.who.client_port() == key.destination_port;
    let service = maps.service(answered.who.service())?;
    let addr = service.addr;
    (is_its && is_local == is_to_client && addr != Addr::UNSPECIFIED).then_some(Reply {
        answered,
        addr,
        is_local,
    })
}

/// Translates the reply of a remote endpoint and sends it to the client; none when it is no reply.
#[inline(always)]
pub fn to_client<E: Env>(env: &mut E, arrival: &mut Arrival, settings: &Settings) -> Option<Verdict> {
    let packet = &arrival.packet;
    let mut changing = NO_ENTRY;
    let answered = reply::find(env.maps(), settings, packet.key(), packet.is_v6(), &mut changing);
    if let Some((service, row)) = reply::whose(env.maps(), changing) {
        arrival.is_from(service, row);
        return Some(ended::<E>(env.maps(), arrival, Verdict::Drop(Reason::FlowContended), false));
    }
    let answered = answered?;
    let packet = &arrival.packet;
    let reply = seen(env.maps(), packet.key(), answered).filter(|reply| !reply.is_local)?;
    let service = reply.answered.who.service();
    if reply.answered.held.proxied != 0 {
        arrival.errand = Errand::TO_CLIENT;
        arrival.is_from(service, reply.answered.held.endpoint);
        return Some(Verdict::Proxy(Reason::HandshakePending));
    }
    let verdict = send(env, arrival, settings, &reply);
    if let Verdict::Drop(_) = verdict {
        arrival.is_from(service, reply.answered.held.endpoint);
    }
    let is_answered = matches!(verdict, Verdict::Drop(Reason::TooBig));
    Some(ended::<E>(env.maps(), arrival, verdict, is_answered))
}

/// Bytes that every way takes (RFC 8200, section 5): whether it takes more, the kernel is asked.
const EVERY_WAY: u32 = 1_280;

/// Whether the interface towards the client takes a packet. What it does not take would be lost, and the endpoint would
/// never hear of it.
#[inline(always)]
pub(crate) fn fits<E: Env>(env: &E, arrival: &mut Arrival, way: Way) -> bool {
    let bytes = packet::bytes_at_once(env, &arrival.packet);
    if bytes <= EVERY_WAY {
        return true;
    }
    let most = env.takes_bytes(way.interface());
    if most == 0 || bytes <= most {
        return true;
    }
    arrival.fits(most);
    false
}

#[inline(always)]
fn send<E: Env>(
    env: &mut E,
    arrival: &mut Arrival,
    settings: &Settings,
    reply: &Reply<<E::Maps as Maps>::Row<FlowRows>>,
) -> Verdict {
    if arrival.packet.ttl <= 1 {
        return Verdict::Drop(Reason::TtlExpired);
    }
    // Learned from the client's own packet, so it is known unless something else wrote the entry.
    let way = reply.answered.way_back;
    if !way.is_known() {
        return Verdict::Drop(Reason::NoNextHop);
    }
    if !fits(env, arrival, way) {
        return Verdict::Drop(Reason::TooBig);
    }
    refresh(env.maps(), arrival, settings, &reply.answered);
    let packet = &arrival.packet;
    let who = &reply.answered.who;
    let edit = edit(reply, who.client(), who.client_port());
    if rewrite::forward(env, packet, &edit, way).is_none() {
        return Verdict::Drop(Reason::RewriteFailed);
    }
    count(env, &reply.answered, u64::from(env.len_bytes()));
    arrival.leaves_by(way.interface());
    Verdict::Transmit(Reason::Replied)
}

/// The whole egress pipeline for one packet, counted: replies of endpoints on this node get the virtual address as
/// their source.
#[inline(always)]
pub fn egress<E: Env>(env: &mut E, arrival: &mut Arrival) -> Verdict {
    let seen = Seen::of(env);
    let verdict = run_egress(env, arrival);
    seen.told(env, arrival, verdict, false)
}

#[inline(always)]
fn run_egress<E: Env>(env: &mut E, arrival: &mut Arrival) -> Verdict {
    match packet::parse(env, Side::Source, &mut arrival.packet) {
        Ok(()) => {}
        Err(Verdict::Drop(_)) => return Verdict::Pass(Reason::NotTranslated),
        Err(verdict) => return verdict,
    }
    let Some(settings) = env.maps().settings() else {
        return Verdict::Pass(Reason::NotTranslated);
    };
    leaves(env, arrival, &settings)
}

/// The rest of the egress pipeline, for a packet that was parsed.
#[inline(always)]
pub(crate) fn leaves<E: Env>(env: &mut E, arrival: &mut Arrival, settings: &Settings) -> Verdict {
    let packet = &arrival.packet;
    let mut changing = NO_ENTRY;
    let reply = reply::find_local(env.maps(), settings, packet.key(), packet.is_v6(), &mut changing)
        .and_then(|answered| seen(env.maps(), packet.key(), answered));
    if let Some((service, row)) = reply::whose(env.maps(), changing) {
        arrival.is_from(service, row);
        return dropped(env.maps(), service, Verdict::Drop(Reason::FlowContended));
    }
    let Some(reply) = reply.filter(|reply| reply.is_local) else {
        return Verdict::Pass(Reason::NotTranslated);
    };
    // The client has come past the virtual address since, from the port that its flow had.
    let held = &reply.answered.held;
    if packet.flags.agrees()
        && (held.phase == Phase::CLOSING || held.expires.is_before(env.maps().now(settings.tick_shift)))
    {
        reply::forget_local(env.maps(), settings, packet.key(), packet.is_v6());
        return Verdict::Pass(Reason::NotTranslated);
    }
    refresh(env.maps(), arrival, settings, &reply.answered);
    let packet = &arrival.packet;
    let key = packet.key();
    let edit = edit(&reply, key.destination, key.destination_port);
    let verdict = if rewrite::in_place(env, packet, &edit).is_none() {
        Verdict::Drop(Reason::RewriteFailed)
    } else {
        count(env, &reply.answered, u64::from(env.len_bytes()));
        Verdict::HandOver(Reason::Replied)
    };
    dropped(env.maps(), reply.answered.who.service(), verdict)
}

/// What becomes of its addresses and ports.
#[inline(always)]
pub(crate) fn edit<R>(reply: &Reply<R>, destination: Addr, destination_port: Port) -> Edit {
    Edit { source: reply.addr, destination, source_port: reply.answered.who.port(), destination_port }
}

/// Keeps the flow alive.
#[inline(always)]
pub(crate) fn refresh<M: Maps>(
    maps: &M,
    arrival: &mut Arrival,
    settings: &Settings,
    answered: &Answered<M::Row<FlowRows>>,
) {
    let held = &answered.held;
    let protocol = arrival.packet.key().protocol;
    let phase = track::reply_phase(held.phase, arrival.packet.flags);
    let now = maps.now(settings.tick_shift);
    let expires = now.after(track::timeout(settings, protocol, phase));
    if held.phase != phase && protocol == Protocol::TCP {
        (arrival.row, arrival.phase) = (held.endpoint, held.phase);
        (arrival.entry, arrival.head) = (answered.index(), held.head);
        let _nothing = maps.apart(Stage::Answer, arrival).word();
    }
    if held.expires != expires || held.phase != phase {
        answered.row().refresh::<M>(held, expires, phase);
    }
}

#[inline(always)]
pub(crate) fn count<E: Env>(env: &E, answered: &Answered<<E::Maps as Maps>::Row<FlowRows>>, bytes: u64) {
    env.maps().count_service(answered.who.service(), |count| {
        count.reply_packets += 1;
        count.reply_bytes += bytes;
    });
    env.maps().count_endpoint(answered.held.endpoint, |count| {
        count.reply_packets += 1;
        count.reply_bytes += bytes;
    });
}
