//! The part of the plan that concerns the memory of slots: where their flows were before a change. Pure.
//!
//! What begins while a slot changes is remembered in the flow table, whichever endpoint it has. So a slot that changes once
//! more still remembers the endpoint from before the first change: only there are flows that nobody has seen since. One
//! that changes back remembers nothing.

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
};

use gateway_common::{
    endpoint::Endpoint,
    service::{Table, Track},
    slot::Slot,
};

use crate::{
    image::{self, Range},
    kernel::{
        maps::Observed,
        plan::{self, Op},
    },
};

/// Whether a slot remembers another endpoint than its own.
pub(super) fn is_changing(slots: &[Slot]) -> bool {
    slots.iter().any(|slot| slot.endpoint != slot.former)
}

/// Whether a slot refers to the table before.
pub(super) fn is_divided(slots: &[Slot]) -> bool {
    slots.iter().any(|slot| slot.former == Slot::ELSEWHERE)
}

/// Rows that get another owner with this image.
pub(super) fn passed_on(service: &image::Service, written: &Observed) -> BTreeSet<u32> {
    let is_passed_on = |row: &&image::Row| {
        let owner = written.endpoints.get(&row.row).map(Endpoint::owner);
        owner.is_some_and(|owner| owner != row.generation)
    };
    service.endpoints.iter().filter(is_passed_on).map(|row| row.row).collect()
}

/// What comes before rows are passed on: slots that do not remember their owners, so that no flow goes to a stranger.
/// Nothing when no slot does.
pub(super) fn forgotten(service: &image::Service, passed_on: &BTreeSet<u32>, written: &Observed) -> Vec<Op> {
    let Some(present) = written.services.get(&service.key).filter(|_| !passed_on.is_empty()) else {
        return Vec::new();
    };
    let before = written.before.get(&service.key).map_or(&[][..], Vec::as_slice);
    let n_slots = written.slots.get(&service.key).map_or(0, Vec::len);
    let is_lost = |table: &Table, local: u16| passed_on.contains(&(table.first_endpoint + u32::from(local)));
    without(service, written, |idx, slot| {
        if slot.former == Slot::ELSEWHERE {
            shared(idx, n_slots, before).iter().any(|slot| is_lost(&present.idle_table(), slot.before()))
        } else {
            is_lost(&present.table(), slot.former)
        }
    })
}

/// The end of a change: slots that know nothing of the endpoints before it, without those that changed later. Nothing when
/// no slot does.
pub(super) fn settled(
    service: &image::Service,
    written: &Observed,
    is_late: impl Fn(usize) -> bool,
) -> Vec<Op> {
    without(service, written, |idx, _| !is_late(idx))
}

/// The present slots, of which some forget what was before.
fn without(service: &image::Service, written: &Observed, forgets: impl Fn(usize, &Slot) -> bool) -> Vec<Op> {
    let Some(present) = written.services.get(&service.key) else { return Vec::new() };
    let former = written.slots.get(&service.key).map_or(&[][..], Vec::as_slice);
    let slot = |(idx, slot): (usize, &Slot)| {
        let before = if forgets(idx, slot) { slot.endpoint } else { slot.former };
        Slot { former: before, ..*slot }
    };
    let slots: Vec<Slot> = former.iter().enumerate().map(slot).collect();
    if slots == former {
        return Vec::new();
    }
    let mut value = *present;
    let table = value.table();
    // The table before stands in the other half: this one is written where it is.
    if is_divided(former) {
        return vec![Op::Slots { key: service.key, first_chunk: table.first_chunk, slots }];
    }
    let rows = Range { first: table.first_endpoint, count: table.n_endpoints };
    let first_chunk = plan::turn(&mut value, rows, slots.len());
    vec![Op::Slots { key: service.key, first_chunk, slots }, Op::Service { key: service.key, value }]
}

/// What is known about where flows were when a service wants that remembered from now on: as long as it did not, its
/// flows followed the slots, or all were remembered elsewhere.
pub(super) fn known(wanted: Track, present: Option<Track>, slots: &[Slot]) -> Cow<'_, [Slot]> {
    if wanted == Track::CHANGE && present != Some(Track::CHANGE) && is_changing(slots) {
        Cow::Owned(slots.iter().map(|slot| Slot { former: slot.endpoint, ..*slot }).collect())
    } else {
        Cow::Borrowed(slots)
    }
}

/// The same slots without those that refer to the table before, which is about to be written over.
pub(super) fn undivided(slots: &[Slot]) -> Vec<Slot> {
    slots.iter().map(|slot| Slot { former: slot.before(), ..*slot }).collect()
}

/// The slots of a table that follows present ones, as many and with the same rows.
pub(super) fn next(
    table: &[u16],
    present: &[Slot],
    first_row: u32,
    track: Track,
    passed_on: &BTreeSet<u32>,
) -> Vec<Slot> {
    let slot = |(endpoint, present): (&u16, &Slot)| {
        // Where nothing, or everything, is remembered in the flow table, flows follow the slot at once.
        let before = if track == Track::CHANGE { present.former } else { *endpoint };
        let is_lost = passed_on.contains(&first_row.saturating_add(u32::from(before)));
        Slot { endpoint: *endpoint, former: if is_lost { *endpoint } else { before } }
    };
    table.iter().zip(present).map(slot).collect()
}

/// The slots of a table that follows present ones of another number, or with other rows. A slot of one shares flows with
/// several of the other; where these had several endpoints, it refers to the table before.
pub(super) fn moved(
    table: &[u16],
    present: &[Slot],
    at: Table,
    service: &image::Service,
    passed_on: &BTreeSet<u32>,
) -> Vec<Slot> {
    let places = places(at, service);
    let is_lost =
        |slot: &Slot| passed_on.contains(&at.first_endpoint.saturating_add(u32::from(slot.before())));
    let slot = |(idx, endpoint): (usize, &u16)| {
        let place = |slot: &Slot| places.get(usize::from(slot.before())).copied().flatten();
        let shared = shared(idx, table.len(), present);
        let forgets = service.track != Track::CHANGE || shared.iter().any(is_lost);
        let mut before = shared.iter().map(place);
        let first = before.next().filter(|_| !forgets);
        let former = match first {
            Some(first) if before.all(|other| other == first) => first.unwrap_or(*endpoint),
            Some(_) => Slot::ELSEWHERE,
            None => *endpoint,
        };
        Slot { endpoint: *endpoint, former }
    };
    table.iter().enumerate().map(slot).collect()
}

/// Where the endpoints of a table are now, by their numbers: under another one where their service has other rows,
/// [`Slot::ELSEWHERE`] where they have none among these, nowhere when nobody has their row.
fn places(at: Table, service: &image::Service) -> Vec<Option<u16>> {
    let own = |row: u32| {
        let local = row.checked_sub(service.rows.first).filter(|local| *local < service.rows.count)?;
        u16::try_from(local).ok()
    };
    let addrs: BTreeMap<u32, SocketAddr> =
        service.endpoints.iter().map(|row| (row.row, row.endpoint.addr())).collect();
    let locals: BTreeMap<SocketAddr, u16> = service
        .endpoints
        .iter()
        .filter_map(|row| own(row.row).map(|local| (row.endpoint.addr(), local)))
        .collect();
    let elsewhere =
        |row: u32| addrs.get(&row).map(|addr| locals.get(addr).copied().unwrap_or(Slot::ELSEWHERE));
    let place = |row: u32| own(row).or_else(|| elsewhere(row));
    (at.first_endpoint..at.first_endpoint.saturating_add(at.n_endpoints)).map(place).collect()
}

/// The slots of a table that a slot of another one shares flows with: both are the same hash on another scale.
fn shared(idx: usize, n_slots: usize, others: &[Slot]) -> &[Slot] {
    let first = idx.saturating_mul(others.len()).checked_div(n_slots).unwrap_or(0);
    let end = idx.saturating_add(1).saturating_mul(others.len()).div_ceil(n_slots.max(1));
    others.get(first..end).unwrap_or_default()
}
