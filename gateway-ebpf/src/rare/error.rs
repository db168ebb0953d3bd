//! ICMP errors about packets of flows: each goes on to whoever sent the packet, as if there were no balancer in between.
//!
//! A client, or a router on the way to it, tells the virtual address about an endpoint's packet: the endpoint is told.
//! An endpoint, or a router on the way to it, tells this node about a translated packet: the client is told. The source
//! becomes the address that the other side knows, as with every translation (RFC 5508, REQ-5).

use gateway_common::{
    addr::Addr,
    counter::Reason,
    endpoint::{Endpoint, EndpointState},
    flow::SequenceStage,
    service::{Mode, ServiceKey, Track},
    settings::Settings,
};

use super::quoted::{self, Change};
use crate::{
    arrival::{Arrival, NO_ENTRY},
    balance,
    count::dropped,
    env::{Env, Maps},
    guard, index, ingress,
    outcome::Stage,
    packet::{Packet, icmp::Quote},
    reply::{self, Reply},
    rewrite, select, standby,
    table::{self, Found, reply as replies, row::FlowRows, sequence},
    tunnel,
    verdict::Verdict,
    way::Way,
};

/// An error that comes in.
#[inline(always)]
pub(super) fn ingress<E: Env>(
    env: &mut E,
    arrival: &mut Arrival,
    settings: &Settings,
    source: Addr,
    quote: &Quote,
) -> Verdict {
    if ingress::is_translation_port(settings, &arrival.packet)
        && let Some(verdict) = to_client(env, arrival, settings, source, quote)
    {
        return verdict;
    }
    let key = arrival.packet.key();
    let service_key = ServiceKey::new(key.destination, key.destination_port, key.protocol);
    let Some(id) = index::service(env.maps(), service_key) else {
        return Verdict::Pass(Reason::IcmpNoFlow);
    };
    let Some(service) = env.maps().service(id) else {
        return Verdict::Pass(Reason::IcmpNoFlow);
    };
    if let Some(reason) = guard::refuses_message(env.maps(), arrival, settings, source) {
        return refused(env.maps(), arrival, settings, id, reason);
    }
    let fails_open = standby::is_for(&service);
    if service.mode == Mode::AGENT && !(fails_open && table::holds_any(env.maps(), id)) {
        return Verdict::Pass(Reason::Agent);
    }
    if service.mode.number() > Mode::LAST.number() {
        arrival.id = id;
        return dropped(env.maps(), id, Verdict::Drop(Reason::UnknownMode));
    }
    arrival.is_to(env.maps(), id, &service, settings);
    if fails_open {
        arrival.mode = Mode::NAT;
    }
    if !holder(env.maps(), arrival) {
        return Verdict::Pass(if fails_open { Reason::Agent } else { Reason::IcmpNoFlow });
    }
    let verdict = to_endpoint(env, arrival, settings, source, quote).unwrap_or_else(Verdict::Drop);
    dropped(env.maps(), id, verdict)
}

/// Drops an error whose sender is on a list.
#[inline(always)]
fn refused<M: Maps>(
    maps: &M,
    arrival: &mut Arrival,
    settings: &Settings,
    service: u32,
    reason: Reason,
) -> Verdict {
    arrival.id = service;
    guard::blames(maps, arrival, settings, reason);
    dropped(maps, service, Verdict::Drop(reason))
}

/// The endpoint of the flow: the one that is remembered, else the one that the slot leads to. Notes its row and the
/// flow's port; says whether there is one.
#[inline(always)]
fn holder<M: Maps>(maps: &M, arrival: &mut Arrival) -> bool {
    if arrival.track != Track::NEVER
        && let Some(found) = table::find(maps, &arrival.spot, &arrival.who)
        && let Some(endpoint) = maps.endpoint(found.held.endpoint)
        && endpoint.generation == found.held.generation
        && endpoint.service == arrival.id
        && endpoint.state != EndpointState::DOWN
    {
        arrival.row = found.held.endpoint;
        arrival.preferred = found.held.source_port;
        arrival.number = ahead(maps, &found);
        return true;
    }
    if arrival.mode == Mode::NAT || arrival.table.n_slots == 0 {
        return false;
    }
    // What is not remembered while a slot changes is with the endpoint that the slot had before.
    if let Some(slot) =
        select::slot(maps, &arrival.table, arrival.hash).map(|slot| arrival.as_remembered(slot))
        && let Some(former) = select::before(maps, &arrival.seat(), arrival.hash, slot)
        && former.endpoint.state != EndpointState::DOWN
    {
        arrival.row = former.row;
        return true;
    }
    match maps.apart(Stage::Select, arrival).get() {
        Ok(row) => {
            arrival.row = row;
            true
        }
        Err(_) => false,
    }
}

/// How far the number that the client knows is ahead of the endpoint's.
#[inline(always)]
fn ahead<M: Maps>(maps: &M, found: &Found<M::Row<FlowRows>>) -> u32 {
    if found.held.proxied == 0 {
        return 0;
    }
    let known = sequence::of(maps, found.place.index(), found.held.head);
    if known.stage == SequenceStage::JOINED { known.number } else { 0 }
}

/// Tells the endpoint: what is translated, as the endpoint knows the flow; what returns directly, as it came.
#[inline(always)]
fn to_endpoint<E: Env>(
    env: &mut E,
    arrival: &mut Arrival,
    settings: &Settings,
    source: Addr,
    quote: &Quote,
) -> Result<Verdict, Reason> {
    let endpoint = env.maps().endpoint(arrival.row).ok_or(Reason::BadSlot)?;
    let way = balance::aim(env, arrival, &endpoint)?;
    let is_local = endpoint.is_local();
    let bytes = u64::from(env.len_bytes());
    let done = if arrival.mode == Mode::NAT {
        let change = at_endpoint(arrival, &endpoint, source);
        send(env, arrival, source, quote, &change, way)
    } else if is_local {
        Some(())
    } else {
        balance::fits(env, arrival, &endpoint)?;
        let room = tunnel::room(arrival.mode, &endpoint);
        balance::direct(env, arrival, settings, &endpoint, way, room)
    };
    done.ok_or(Reason::RewriteFailed)?;
    env.maps().count_service(arrival.id, |count| {
        count.packets += 1;
        count.bytes += bytes;
    });
    env.maps().count_endpoint(arrival.row, |count| {
        count.packets += 1;
        count.bytes += bytes;
    });
    if is_local {
        Ok(Verdict::HandOver(Reason::IcmpForwarded))
    } else {
        arrival.leaves_by(way.interface());
        Ok(Verdict::Transmit(Reason::IcmpForwarded))
    }
}

/// The error as the endpoint of a translated flow knows things.
#[inline(always)]
fn at_endpoint(arrival: &Arrival, endpoint: &Endpoint, source: Addr) -> Change {
    let key = arrival.packet.key();
    let sender_port = endpoint.port_for(key.destination_port);
    if endpoint.is_local() {
        return Change {
            source,
            destination: endpoint.addr,
            sender: endpoint.addr,
            sender_port,
            receiver: key.source,
            receiver_port: key.source_port,
            ahead: 0,
        };
    }
    Change {
        source: endpoint.source,
        destination: endpoint.addr,
        sender: endpoint.addr,
        sender_port,
        receiver: endpoint.source,
        receiver_port: arrival.preferred,
        ahead: arrival.number,
    }
}

/// Translates the error and addresses its frame; for a way that is unknown, for this node's own stack.
#[inline(always)]
fn send<E: Env>(
    env: &mut E,
    arrival: &Arrival,
    source: Addr,
    quote: &Quote,
    change: &Change,
    way: Way,
) -> Option<()> {
    if !way.is_known() {
        return quoted::translate(env, &arrival.packet, source, quote, change);
    }
    rewrite::hop(env, &arrival.packet)?;
    quoted::translate(env, &arrival.packet, source, quote, change)?;
    env.store_link(way)
}

/// Tells the client of the flow whose translated packet is quoted; none when there is no such flow.
#[inline(always)]
fn to_client<E: Env>(
    env: &mut E,
    arrival: &mut Arrival,
    settings: &Settings,
    source: Addr,
    quote: &Quote,
) -> Option<Verdict> {
    let (key, v6, mut changing) = (arrival.packet.key(), arrival.packet.is_v6(), NO_ENTRY);
    let answered = replies::find(env.maps(), settings, key, v6, &mut changing);
    if let Some((service, row)) = replies::whose(env.maps(), changing) {
        arrival.is_from(service, row);
        return Some(dropped(env.maps(), service, Verdict::Drop(Reason::FlowContended)));
    }
    let answered = answered?;
    let reply = reply::seen(env.maps(), arrival.packet.key(), answered).filter(|reply| !reply.is_local)?;
    let service = reply.answered.who.service();
    if let Some(reason) = guard::refuses_message(env.maps(), arrival, settings, source) {
        return Some(refused(env.maps(), arrival, settings, service, reason));
    }
    let verdict = back(env, arrival, source, quote, &reply).unwrap_or_else(Verdict::Drop);
    if let Verdict::Drop(_) = verdict {
        arrival.is_from(service, reply.answered.held.endpoint);
    }
    Some(dropped(env.maps(), service, verdict))
}

#[inline(always)]
fn back<E: Env>(
    env: &mut E,
    arrival: &mut Arrival,
    source: Addr,
    quote: &Quote,
    reply: &Reply<<E::Maps as Maps>::Row<FlowRows>>,
) -> Result<Verdict, Reason> {
    if arrival.packet.ttl <= 1 {
        return Err(Reason::TtlExpired);
    }
    let way = reply.answered.way_back;
    if !way.is_known() {
        return Err(Reason::NoNextHop);
    }
    let change = at_client(reply, reply.answered.who.client());
    let bytes = u64::from(env.len_bytes());
    send(env, arrival, source, quote, &change, way).ok_or(Reason::RewriteFailed)?;
    reply::count(env, &reply.answered, bytes);
    arrival.leaves_by(way.interface());
    Ok(Verdict::Transmit(Reason::IcmpForwarded))
}

/// The error as the client of a flow knows things.
#[inline(always)]
fn at_client<R>(reply: &Reply<R>, destination: Addr) -> Change {
    let who = &reply.answered.who;
    Change {
        source: reply.addr,
        destination,
        sender: who.client(),
        sender_port: who.client_port(),
        receiver: reply.addr,
        receiver_port: who.port(),
        ahead: 0,
    }
}

/// An error of this node's own stack about a packet to an endpoint on this node.
#[inline(always)]
pub(super) fn egress<E: Env>(
    env: &mut E,
    packet: &Packet,
    settings: &Settings,
    source: Addr,
    quote: &Quote,
) -> Verdict {
    let key = packet.key();
    let mut changing = NO_ENTRY;
    let reply = replies::find_local(env.maps(), settings, key, packet.is_v6(), &mut changing)
        .and_then(|answered| reply::seen(env.maps(), key, answered));
    if let Some((service, _)) = replies::whose(env.maps(), changing) {
        return dropped(env.maps(), service, Verdict::Drop(Reason::FlowContended));
    }
    let Some(reply) = reply.filter(|reply| reply.is_local) else {
        return Verdict::Pass(Reason::NotTranslated);
    };
    let change = at_client(&reply, key.destination);
    let bytes = u64::from(env.len_bytes());
    let verdict = if quoted::translate(env, packet, source, quote, &change).is_none() {
        Verdict::Drop(Reason::RewriteFailed)
    } else {
        reply::count(env, &reply.answered, bytes);
        Verdict::HandOver(Reason::IcmpForwarded)
    };
    dropped(env.maps(), reply.answered.who.service(), verdict)
}
