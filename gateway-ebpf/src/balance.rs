//! A client's packet to a service: its flow, else a new endpoint; then translated and on its way.

use core::cell::Cell;

use gateway_common::{
    addr::Port,
    counter::Reason,
    endpoint::{Endpoint, NextHop},
    flow::{Flow, Tick},
    hash,
    service::Service,
    settings::Settings,
};

use crate::{
    Aligned,
    env::{Env, Maps, Record, Route},
    packet::{self, Packet},
    port::Claim,
    rewrite::{self, Edit},
    select::{Chosen, select},
    track,
    verdict::Verdict,
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
    /// Means nothing for an endpoint on this node.
    next_hop: NextHop,
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
    let known = env.maps().flow(packet.key());
    let lasting = known.as_ref().filter(|row| {
        !track::begins_anew(arrival.settings, &row.get(), packet, arrival.now)
    });
    let staying = lasting.and_then(|row| present(env.maps(), arrival, &row.get()));
    let chosen = match staying {
        Some(chosen) => chosen,
        None => select(env.maps(), arrival.service, packet.v6, arrival.hash())?,
    };
    // When nothing better was found than what the flow has, the flow is not new either.
    let flow = lasting.filter(|row| {
        let flow = row.get();
        flow.endpoint == chosen.row && flow.generation == chosen.endpoint.generation
    });
    let target = aim(env, packet, chosen.row, &chosen.endpoint)?;
    let (port, is_new) = settle(env, arrival, &target, flow.map(|row| &**row))?;
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
    let local = endpoint.is_local();
    if packet.ttl <= 1 && !local {
        return Err(Reason::TtlExpired);
    }
    if local || endpoint.next_hop.is_known() {
        return Ok(Target { row, endpoint, next_hop: endpoint.next_hop });
    }
    let route = Route {
        source: endpoint.source,
        destination: endpoint.addr,
        protocol: packet.key().protocol,
        len_bytes: packet.ip_bytes(env),
    };
    let next_hop = env.next_hop(&route).ok_or(Reason::NoNextHop)?;
    Ok(Target { row, endpoint, next_hop })
}

/// Sees to it that both directions are recorded; returns the source port, and whether the flow is new.
///
/// The directions are separate entries that the kernel may evict one by one, so once per tick, and when the phase
/// changes, both are made whole again.
#[inline(always)]
fn settle<E: Env>(
    env: &E,
    arrival: &Arrival<'_>,
    target: &Target<'_>,
    row: Option<&Cell<Flow>>,
) -> Result<(Port, bool), Reason> {
    let key = arrival.packet.key();
    let flags = arrival.packet.flags;
    let (phase, port) = match row.map(Cell::get) {
        None => (track::first_phase(key.protocol, flags), None),
        Some(flow) => {
            let phase = track::forward_phase(flow.phase, key.protocol, flags);
            if flow.seen == arrival.now && flow.phase == phase {
                return Ok((flow.source_port, false));
            }
            (phase, Some(flow.source_port))
        }
    };
    let claim = Claim {
        key,
        service: arrival.service.id,
        row: target.row,
        endpoint: target.endpoint,
        way_back: packet::way_back(env),
        now: arrival.now,
        phase,
        port,
    };
    let (port, phase) = claim.take(env.maps(), arrival.settings, arrival.hash())?;
    let flow = Aligned(Flow::new(target.row, target.endpoint.generation, arrival.now, port, phase));
    if let Some(row) = row {
        row.set(flow.0);
        return Ok((port, false));
    }
    match env.maps().record_flow(key, &flow.0) {
        Record::Written => Ok((port, true)),
        Record::Exists | Record::Refused => Err(Reason::FlowNotRecorded),
    }
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
    let Target { row, endpoint, next_hop } = target;
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
        rewrite::forward(env, arrival.packet, &edit, next_hop)
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
        Ok(Verdict::Transmit(Reason::Forwarded, next_hop.interface))
    }
}
