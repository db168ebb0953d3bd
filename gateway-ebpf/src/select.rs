//! Selection: from the hash of a flow to an endpoint that may receive it.

use gateway_common::{
    counter::Reason,
    endpoint::{Endpoint, EndpointState},
    hash,
    service::Table,
    slot::{Slot, SlotChunk},
};

use crate::env::Maps;

/// Further slots that are tried when the endpoint of a flow's own slot takes no new flows.
const PROBES: u32 = 8;

/// No row has this number.
pub const NO_ROW: u32 = u32::MAX;

/// For whom an endpoint is wanted.
#[derive(Clone, Copy, Debug)]
pub struct Seat<'a> {
    /// Number of the service.
    pub service: u32,
    /// The table.
    pub table: &'a Table,
    /// The families that endpoints may have: [`Seat::V4`] and its neighbors.
    pub family: u32,
}

impl Seat<'_> {
    /// IPv4 only.
    pub const V4: u32 = 1;
    /// IPv6 only.
    pub const V6: u32 = 2;
    /// Either: the way there is a tunnel.
    pub const EITHER: u32 = 3;
}

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

/// Chooses the endpoint of a new flow; returns its row.
///
/// # Errors
///
/// [`Reason::NoEndpoint`] or [`Reason::BadSlot`] when no slot that was tried leads to an endpoint.
#[inline(always)]
pub fn select<M: Maps>(maps: &M, seat: &Seat<'_>, hash: u64) -> Result<u32, Reason> {
    if seat.table.n_slots == 0 {
        return Err(Reason::NoEndpoint);
    }
    // A number, not an option, half of which would be undefined.
    let mut draining = NO_ROW;
    let mut bad = false;
    for attempt in 0..=PROBES {
        match probe(maps, seat, spread(hash, attempt)) {
            Probe::Usable(chosen) => return Ok(chosen.row),
            Probe::Draining(chosen) => {
                if draining == NO_ROW {
                    draining = chosen.row;
                }
            }
            Probe::Down => {}
            Probe::Bad => bad = true,
        }
    }
    match draining {
        NO_ROW if bad => Err(Reason::BadSlot),
        NO_ROW => Err(Reason::NoEndpoint),
        row => Ok(row),
    }
}

/// The hash that decides the slot of one attempt; the first is the flow's own.
#[inline(always)]
const fn spread(hash: u64, attempt: u32) -> u64 {
    hash.rotate_left(attempt * 7)
}

#[inline(always)]
fn probe<M: Maps>(maps: &M, seat: &Seat<'_>, hash: u64) -> Probe<M::Row<Endpoint>> {
    let Some(chosen) = slot(maps, seat.table, hash).and_then(|slot| local(maps, seat, slot.endpoint)) else {
        return Probe::Bad;
    };
    if chosen.endpoint.state == EndpointState::ACTIVE {
        Probe::Usable(chosen)
    } else if chosen.endpoint.state == EndpointState::DRAINING {
        Probe::Draining(chosen)
    } else {
        Probe::Down
    }
}

/// The slot of a hash.
#[inline(always)]
pub fn slot<M: Maps>(maps: &M, table: &Table, hash: u64) -> Option<Slot> {
    let idx = hash::slot(hash, table.n_slots);
    maps.slot(table.first_chunk.wrapping_add(idx / SlotChunk::SLOTS), idx)
}

/// The endpoint that a slot had before it changed. Where its flows had several, because the table had another number of
/// slots or other rows, the table before knows.
#[inline(always)]
pub fn before<M: Maps>(maps: &M, seat: &Seat<'_>, hash: u64, slot: Slot) -> Option<Chosen<M::Row<Endpoint>>> {
    if slot.former != Slot::ELSEWHERE {
        return local(maps, seat, slot.former);
    }
    let service = maps.service(seat.service)?;
    let [even, odd] = &service.tables;
    let table = if even.first_chunk == seat.table.first_chunk { *odd } else { *even };
    if table.n_slots == 0 {
        return None;
    }
    let held = self::slot(maps, &table, hash)?;
    local(maps, &Seat { table: &table, ..*seat }, held.before())
}

/// An endpoint by its number within the service. A row that another service took over, or one of the other family, would
/// send the packet to a stranger.
#[inline(always)]
pub fn local<M: Maps>(maps: &M, seat: &Seat<'_>, local: u16) -> Option<Chosen<M::Row<Endpoint>>> {
    let local = u32::from(local);
    if local >= seat.table.n_endpoints {
        return None;
    }
    let row = seat.table.first_endpoint.wrapping_add(local);
    let endpoint = maps.endpoint(row)?;
    let is_other_family = || {
        let family = if endpoint.addr.is_v4() { Seat::V4 } else { Seat::V6 };
        seat.family & family == 0
    };
    let is_stranger = endpoint.service != seat.service || seat.family != Seat::EITHER && is_other_family();
    (!is_stranger).then_some(Chosen { row, endpoint })
}
