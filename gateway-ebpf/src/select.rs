//! Selection: from the hash of a flow to an endpoint that may receive it.

use gateway_common::{
    counter::Reason,
    endpoint::{Endpoint, EndpointState},
    hash,
    service::Service,
    slot::SlotChunk,
};

use crate::env::Maps;

/// Further slots that are tried when the endpoint of a flow's own slot takes no new flows.
const PROBES: u32 = 8;

/// An endpoint and its row.
#[derive(Debug)]
pub struct Chosen<R> {
    /// Number of the row.
    pub row: u32,
    /// The row.
    pub endpoint: R,
}

enum Probe<R> {
    Usable(Chosen<R>),
    Draining(Chosen<R>),
    Down,
    Bad,
}

/// Chooses the endpoint of a new flow.
///
/// # Errors
///
/// [`Reason::NoEndpoint`] or [`Reason::BadSlot`] when no slot that was tried leads to an endpoint.
// A frame of its own: the kernel gives a program 512 bytes of stack, and only new flows come here.
#[inline(never)]
pub fn select<M: Maps>(
    maps: &M,
    service: &Service,
    v6: bool,
    hash: u64,
) -> Result<Chosen<M::Row<Endpoint>>, Reason> {
    if service.n_slots == 0 {
        return Err(Reason::NoEndpoint);
    }
    let mut draining = None;
    let mut bad = false;
    for attempt in 0..=PROBES {
        match probe(maps, service, v6, spread(hash, attempt)) {
            Probe::Usable(chosen) => return Ok(chosen),
            Probe::Draining(chosen) => draining = draining.or(Some(chosen)),
            Probe::Down => {}
            Probe::Bad => bad = true,
        }
    }
    draining.ok_or(if bad { Reason::BadSlot } else { Reason::NoEndpoint })
}

/// The hash that decides the slot of one attempt; the first is the flow's own.
#[inline(always)]
const fn spread(hash: u64, attempt: u32) -> u64 {
    hash.rotate_left(attempt * 7)
}

#[inline(always)]
fn probe<M: Maps>(maps: &M, service: &Service, v6: bool, hash: u64) -> Probe<M::Row<Endpoint>> {
    let slot_idx = hash::slot(hash, service.n_slots);
    let [even, odd] = service.first_chunk;
    let first_chunk = if service.current & 1 == 0 { even } else { odd };
    let Some(slot) = maps.slot(first_chunk.wrapping_add(slot_idx / SlotChunk::SLOTS), slot_idx) else {
        return Probe::Bad;
    };
    let local = u32::from(slot.endpoint);
    if local >= service.n_endpoints {
        return Probe::Bad;
    }
    let row = service.first_endpoint.wrapping_add(local);
    let Some(endpoint) = maps.endpoint(row) else {
        return Probe::Bad;
    };
    // A row that another service took over, or one of the other family, would send the packet to a stranger.
    if endpoint.service != service.id || endpoint.addr.is_v4() == v6 {
        return Probe::Bad;
    }
    if endpoint.state == EndpointState::ACTIVE {
        Probe::Usable(Chosen { row, endpoint })
    } else if endpoint.state == EndpointState::DRAINING {
        Probe::Draining(Chosen { row, endpoint })
    } else {
        Probe::Down
    }
}
