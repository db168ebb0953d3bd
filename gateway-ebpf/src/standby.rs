//! Services of the agent that fail open: while the worker is silent that a connection belongs to, or its listening socket is
//! gone, a SYN goes to an endpoint, translated as for a balanced service. What began there stays there.
//!
//! A connection that is open to the agent is not remembered: its packets go to the stack as always, which has its socket, or
//! resets it.

use gateway_common::{
    counter::Reason,
    hash,
    service::{Mode, Service},
    settings::Settings,
};

use crate::{
    arrival::Arrival,
    env::Maps,
    outcome::{Outcome, Stage},
    table, track,
    verdict::Verdict,
};

/// Whether a service is the agent's, and fails open.
#[inline(always)]
pub(crate) fn is_for(service: &Service) -> bool {
    service.mode == Mode::AGENT && service.flags & Service::FAILS_OPEN != 0
}

/// Whether the packet goes to an endpoint; then the arrival speaks of it as of one to a service that translates.
#[inline(always)]
pub(crate) fn takes<M: Maps>(maps: &M, arrival: &mut Arrival, id: u32) -> bool {
    arrival.id = id;
    maps.apart(Stage::StandBy, arrival) == Outcome::from(Ok(1))
}

/// The same, apart: 0 or 1.
#[inline(always)]
pub(crate) fn takes_apart<M: Maps>(maps: &M, arrival: &mut Arrival, settings: &Settings) -> u32 {
    let id = arrival.id;
    let Some(service) = maps.service(id) else { return 0 };
    arrival.is_to(maps, id, &service, settings);
    arrival.mode = Mode::NAT;
    let opens = arrival.packet.flags.opens();
    if table::holds_any(maps, id)
        && let Some(found) = table::find(maps, &arrival.spot, &arrival.who)
    {
        let begins_anew = track::begins_anew(&found.held, &arrival.packet, arrival.now);
        // The agent has the connection from its SYN on, or not at all.
        return u32::from(
            !begins_anew || is_silent(maps, arrival, &service) || !table::forget(maps, &found, settings),
        );
    }
    u32::from(opens && is_silent(maps, arrival, &service))
}

/// Whether the worker of a connection is silent, or its socket is gone.
#[inline(always)]
fn is_silent<M: Maps>(maps: &M, arrival: &Arrival, service: &Service) -> bool {
    if service.n_sockets == 0 {
        return true;
    }
    let worker = hash::slot(arrival.hash, service.n_sockets);
    let beat = maps.heartbeat(worker);
    !beat.is_fresh(maps.clock_ns()) || !maps.listens(service.first_socket.wrapping_add(worker))
}

/// Packets that went to an endpoint are counted under a reason of their own.
#[inline(always)]
pub(crate) fn counted(verdict: Verdict) -> Verdict {
    match verdict {
        Verdict::Transmit(Reason::Forwarded) => Verdict::Transmit(Reason::FailedOpen),
        Verdict::HandOver(Reason::ForwardedLocal) => Verdict::HandOver(Reason::FailedOpen),
        Verdict::Pass(_)
        | Verdict::HandOver(_)
        | Verdict::Transmit(_)
        | Verdict::Drop(_)
        | Verdict::Rare(_)
        | Verdict::Icmp(_)
        | Verdict::Answer(_)
        | Verdict::Cookie(_)
        | Verdict::Proxy(_) => verdict,
    }
}
