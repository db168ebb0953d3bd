//! How long slots remember what was before a change.
//!
//! A service has two windows at most: one that begins with the first change and is never longer than it should be, and one
//! that takes everything that changes meanwhile and ends that long after the last of it, after less than twice the time.
//! It takes the place of the first when that is over. So no slot forgets early, and none remembers for ever however often
//! others change. A table of another size has slots of its own: its window begins anew.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use gateway_common::{
    service::{ServiceKey, Track},
    slot::Slot,
};

use crate::kernel::{former, maps::Observed};

/// Services with slots that remember.
#[derive(Debug, Default)]
pub(super) struct Windows(BTreeMap<ServiceKey, Window>);

/// The windows of one service.
#[derive(Debug)]
struct Window {
    /// When the first changed.
    since: Instant,
    /// What changed later.
    late: Option<Late>,
}

#[derive(Debug)]
struct Late {
    /// The last time that a slot changed.
    since: Instant,
    /// A bit for each slot.
    slots: Vec<bool>,
}

impl Windows {
    /// Those of an earlier agent: nobody knows how long its changes have gone on.
    pub(super) fn of(written: &Observed, now: Instant) -> Self {
        let mut windows = Self::default();
        for (key, slots) in &written.slots {
            if written.services.get(key).is_some_and(|service| service.track == Track::CHANGE) {
                windows.note(*key, slots, slots, now);
            }
        }
        windows
    }

    /// Slots that packets read from now on, after others.
    pub(super) fn note(&mut self, key: ServiceKey, former: &[Slot], slots: &[Slot], now: Instant) {
        if !former::is_changing(slots) {
            self.0.remove(&key);
            return;
        }
        let Some(window) = self.0.get_mut(&key).filter(|_| former.len() == slots.len()) else {
            self.0.insert(key, Window { since: now, late: None });
            return;
        };
        let begins =
            |(former, slot): (&Slot, &Slot)| former.endpoint == former.former && slot.endpoint != slot.former;
        for (idx, pair) in former.iter().zip(slots).enumerate() {
            if begins(pair) {
                let late =
                    window.late.get_or_insert_with(|| Late { since: now, slots: vec![false; slots.len()] });
                late.since = now;
                if let Some(is_late) = late.slots.get_mut(idx) {
                    *is_late = true;
                }
            }
        }
    }

    /// Forgets a service whose slots need not remember.
    pub(super) fn remove(&mut self, key: &ServiceKey) {
        self.0.remove(key);
    }

    /// Forgets services that are not wanted.
    pub(super) fn retain(&mut self, wanted: &BTreeSet<&ServiceKey>) {
        self.0.retain(|key, _| wanted.contains(key));
    }

    /// Services whose first window is over.
    pub(super) fn over(&self, now: Instant, length: Duration) -> BTreeSet<ServiceKey> {
        let is_over = |window: &Window| now.saturating_duration_since(window.since) >= length;
        self.0.iter().filter(|(_, window)| is_over(window)).map(|(key, _)| *key).collect()
    }

    /// Whether a slot changed after the first window began.
    pub(super) fn is_late(&self, key: &ServiceKey, idx: usize) -> bool {
        let late = self.0.get(key).and_then(|window| window.late.as_ref());
        late.and_then(|late| late.slots.get(idx)).is_some_and(|is_late| *is_late)
    }

    /// Ends the first window of a service.
    pub(super) fn end(&mut self, key: &ServiceKey) {
        let Some(window) = self.0.get_mut(key) else { return };
        match window.late.take() {
            Some(late) => window.since = late.since,
            None => self.remove(key),
        }
    }
}
