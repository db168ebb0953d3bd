//! The part of the plan that concerns the memory of slots: where their flows were before a change. Pure.
//!
//! What begins while a slot changes is remembered in the flow table, whichever endpoint it has. So a slot that changes once
//! more still remembers the endpoint from before the first change: only there are flows that nobody has seen since. One
//! that changes back remembers nothing.

use std::collections::BTreeSet;

use gateway_common::{service::Track, slot::Slot};

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

/// Endpoints of the present slots, by their numbers, whose rows get another owner with this image.
pub(super) fn passed_on(service: &image::Service, written: &Observed) -> BTreeSet<u16> {
    let Some(present) = written.services.get(&service.key) else { return BTreeSet::new() };
    let first = present.table().first_endpoint;
    let is_passed_on = |row: &&image::Row| {
        let owner = written.endpoints.get(&row.row).map(|present| present.generation);
        owner.is_some_and(|owner| owner != row.generation)
    };
    let local = |row: &image::Row| u16::try_from(row.row.checked_sub(first)?).ok();
    service.endpoints.iter().filter(is_passed_on).filter_map(local).collect()
}

/// What comes before rows are passed on: slots that do not remember their owners, so that no flow goes to a stranger.
/// Nothing when no slot does.
pub(super) fn forgotten(service: &image::Service, passed_on: &BTreeSet<u16>, written: &Observed) -> Vec<Op> {
    if passed_on.is_empty() {
        return Vec::new();
    }
    without(service, written, |_, slot| passed_on.contains(&slot.former))
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
        let former = if forgets(idx, slot) { slot.endpoint } else { slot.former };
        Slot { former, ..*slot }
    };
    let slots: Vec<Slot> = former.iter().enumerate().map(slot).collect();
    if slots == former {
        return Vec::new();
    }
    let mut value = *present;
    let table = value.table();
    let rows = Range { first: table.first_endpoint, count: table.n_endpoints };
    let first_chunk = plan::turn(&mut value, rows, slots.len());
    vec![Op::Slots { key: service.key, first_chunk, slots }, Op::Service { key: service.key, value }]
}

/// The slots of a table that follows present ones.
pub(super) fn next(table: &[u16], present: &[Slot], track: Track, passed_on: &BTreeSet<u16>) -> Vec<Slot> {
    let is_same_size = table.len() == present.len();
    let slot = |(idx, endpoint): (usize, &u16)| {
        let present = present.get(idx).filter(|_| is_same_size);
        // Where nothing, or everything, is remembered in the flow table, a change has no end.
        let before = present.map(|slot| if track == Track::CHANGE { slot.former } else { slot.endpoint });
        let former = before.filter(|before| !passed_on.contains(before)).unwrap_or(*endpoint);
        Slot { endpoint: *endpoint, former }
    };
    table.iter().enumerate().map(slot).collect()
}
