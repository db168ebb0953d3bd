//! A client's packet to a service: its flow, else a new endpoint; then translated and on its way.

use gateway_common::{
    addr::Port,
    counter::Reason,
    endpoint::Endpoint,
    flow::{Flow, Tick},
    hash,
    service::Service,
    settings::Settings,
};

use crate::{
    env::{Env, Maps},
    packet::{self, Packet},
    port::Claim,
    rewrite::{self, Edit},
    select::{Chosen, select},
    track,
    verdict::Verdict,
    way::Way,
};

/// One packet to one service, and the instant it came.
struct Arrival<'a> {
    packet: &'a Packet,
    service: &'a Service,
    settings: &'a Settings,
    now: Tick,
}

/// An endpoint that shall receive the packet, and the way there.
struct Target<'a> {
    row: u32,
    endpoint: &'a Endpoint,
    /// Unknown for an endpoint on this node.
    way: Way,
}

impl Arrival<'_> {
    /// The hash that decides slot and port.
    #[inline(always)]
    fn hash(&self) -> u64 {
        hash::flow(&self.settings.seed, self.packet.key())
    }
}

/// Balances one packet to a service whose mode is translation.
#[inline(always)]
pub fn forward<E: Env>(env: &mut E, packet: &Packet, service: &Service, settings: &Settings) -> Verdict {
    let arrival = Arrival { packet, service, settings, now: env.maps().now() };
    match run(env, &arrival) {
        Ok(verdict) => verdict,
        Err(reason) => Verdict::Drop(reason),
    }
}

#[inline(always)]
fn run<E: Env>(env: &mut E, arrival: &Arrival<'_>) -> Result<Verdict, Reason> {
    let packet = arrival.packet;
    let row = env.maps().flow(packet.key());
    let flow = row.as_ref().map_or(Flow::default(), |row| row.get());
    let lasts = row.is_some() && !track::begins_anew(arrival.settings, &flow, packet, arrival.now);
    let staying = if lasts { present(env.maps(), arrival, &flow) } else { None };
    let chosen = match staying {
        Some(chosen) => chosen,
        None => select(env.maps(), arrival.service, packet.v6, arrival.hash())?,
    };
    // When nothing better was found than what the flow has, the flow is not new either.
    let is_new = !lasts || flow.endpoint != chosen.row || flow.generation != chosen.endpoint.generation;
    let target = aim(env, packet, chosen.row, &chosen.endpoint)?;
    let port = settle(env, arrival, &target, &flow, is_new)?;
    send(env, arrival, &target, port, is_new)
}

/// The endpoint of a flow, if it may still receive the packet.
#[inline(always)]
fn present<M: Maps>(maps: &M, arrival: &Arrival<'_>, flow: &Flow) -> Option<Chosen<M::Row<Endpoint>>> {
    let endpoint = maps.endpoint(flow.endpoint)?;
    track::may_stay(arrival.service, &endpoint, flow, arrival.packet)
        .then_some(Chosen { row: flow.endpoint, endpoint })
}

/// Finds the way to an endpoint, before anything is recorded or changed.
#[inline(always)]
fn aim<'a, E: Env>(
    env: &mut E,
    packet: &Packet,
    row: u32,
    endpoint: &'a Endpoint,
) -> Result<Target<'a>, Reason> {
    if endpoint.is_local() {
        return Ok(Target { row, endpoint, way: Way::UNKNOWN });
    }
    if packet.ttl <= 1 {
        return Err(Reason::TtlExpired);
    }
    let way = Way::from(&endpoint.next_hop);
    if way.is_known() {
        return Ok(Target { row, endpoint, way });
    }
    let bytes = packet.ip_bytes(env);
    let way = env.next_hop(endpoint, packet.key().protocol, bytes).ok_or(Reason::NoNextHop)?;
    Ok(Target { row, endpoint, way })
}

/// Sees to it that both directions are recorded; returns the source port.
///
/// The directions are separate entries that the kernel may evict one by one, so once per tick, and when the phase
/// changes, both are made whole again.
#[inline(always)]
fn settle<E: Env>(
    env: &E,
    arrival: &Arrival<'_>,
    target: &Target<'_>,
    flow: &Flow,
    is_new: bool,
) -> Result<Port, Reason> {
    let key = arrival.packet.key();
    let flags = arrival.packet.flags;
    let phase = if is_new {
        track::first_phase(key.protocol, flags)
    } else {
        track::forward_phase(flow.phase, key.protocol, flags)
    };
    if !is_new && flow.seen == arrival.now && flow.phase == phase {
        return Ok(flow.source_port);
    }
    let mut claim = Claim {
        key,
        service: arrival.service.id,
        row: target.row,
        endpoint: target.endpoint,
        way_back: packet::way_back(env),
        now: arrival.now,
        phase,
        port: if is_new { Port::NONE } else { flow.source_port },
    };
    claim.take(env.maps(), arrival.settings, arrival.hash())?;
    Ok(claim.port)
}

/// Translates the packet and counts it.
#[inline(always)]
fn send<E: Env>(
    env: &mut E,
    arrival: &Arrival<'_>,
    target: &Target<'_>,
    port: Port,
    is_new: bool,
) -> Result<Verdict, Reason> {
    let Target { row, endpoint, way } = target;
    let key = arrival.packet.key();
    let local = endpoint.is_local();
    let edit = Edit {
        source: if local { key.source } else { endpoint.source },
        destination: endpoint.addr,
        source_port: port,
        destination_port: endpoint.port,
    };
    let done = if local {
        rewrite::in_place(env, arrival.packet, &edit)
    } else {
        rewrite::forward(env, arrival.packet, &edit, *way)
    };
    done.ok_or(Reason::RewriteFailed)?;
    let bytes = u64::from(env.len_bytes());
    env.maps().count_service(arrival.service.id, |count| {
        count.packets += 1;
        count.bytes += bytes;
        count.new_flows += u64::from(is_new);
    });
    env.maps().count_endpoint(*row, |count| {
        count.packets += 1;
        count.bytes += bytes;
        count.new_flows += u64::from(is_new);
    });
    if local {
        Ok(Verdict::HandOver(Reason::ForwardedLocal))
    } else {
        Ok(Verdict::Transmit(Reason::Forwarded, way.interface()))
    }
}
