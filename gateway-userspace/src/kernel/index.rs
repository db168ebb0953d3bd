//! The service index: which place of the hash table each key has, and the writes that give it one.
//!
//! A key may stand in two buckets of two places each. When all four are taken, others move: each is written to its new
//! place before its old one is given away, so that packets find it at every moment; and a place is empty before another
//! key gets it, so that no packet takes it for half of the one and half of the other.

use std::collections::VecDeque;

use gateway_common::{
    hash,
    map::INDEX_BUCKETS,
    service::{ServiceBucket, ServiceEntry, ServiceKey},
};

/// Places in a bucket.
const PLACES: usize = 2;

/// Moves that are tried before the index counts as full; at two thirds of the places taken, five are rare.
const MOVES: usize = 64;

/// Where an entry stands.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Place {
    /// Number of the bucket.
    pub bucket: u32,
    /// Number of the place in it.
    pub place: usize,
}

/// One write.
pub type Write = (Place, ServiceEntry);

/// What stands in the index.
#[derive(Clone, Debug)]
pub struct Index {
    buckets: Vec<ServiceBucket>,
}

impl Index {
    /// From what the map holds.
    pub const fn new(buckets: Vec<ServiceBucket>) -> Self {
        Self { buckets }
    }

    /// Every entry.
    pub fn entries(&self) -> impl Iterator<Item = &ServiceEntry> {
        self.buckets.iter().flat_map(|bucket| &bucket.entries).filter(|entry| entry.is_taken())
    }

    /// The writes, in order, after which `entry` stands under its key; nothing when there is no room.
    pub fn put(&mut self, entry: ServiceEntry) -> Option<Vec<Write>> {
        let key = entry.key();
        let mut writes = Vec::new();
        let present = self.found(&key).next();
        let place = match present.or_else(|| self.free(&key)) {
            Some(place) => place,
            None => self.make_room(&key, &mut writes)?,
        };
        self.set(place, entry);
        writes.push((place, entry));
        Some(writes)
    }

    /// The writes after which nothing stands under a key: several where an earlier agent ended while it moved the entry.
    pub fn remove(&mut self, key: &ServiceKey) -> Vec<Write> {
        let writes: Vec<Write> = self.found(key).map(|place| (place, ServiceEntry::default())).collect();
        for (place, nothing) in &writes {
            self.set(*place, *nothing);
        }
        writes
    }

    /// Where a key stands; packets take the first.
    fn found(&self, key: &ServiceKey) -> impl Iterator<Item = Place> {
        places(key)
            .filter(|place| self.get(*place).is_some_and(|entry| entry.is_taken() && entry.is_for(key)))
    }

    fn free(&self, key: &ServiceKey) -> Option<Place> {
        places(key).find(|place| self.get(*place).is_some_and(|entry| !entry.is_taken()))
    }

    /// Looks for the shortest row of moves that ends at a free place, and makes them from there on.
    fn make_room(&mut self, wanted: &ServiceKey, writes: &mut Vec<Write>) -> Option<Place> {
        // Each step: a taken place, and the step whose entry would move there.
        let mut steps: Vec<(Place, Option<usize>)> = Vec::new();
        let mut queue: VecDeque<usize> = VecDeque::new();
        for place in places(wanted) {
            queue.push_back(steps.len());
            steps.push((place, None));
        }
        while let Some(at) = queue.pop_front() {
            let (from, _) = *steps.get(at)?;
            let moved = self.get(from)?.key();
            if let Some(free) = self.free(&moved) {
                return self.shift(&steps, at, free, writes);
            }
            if steps.len() > MOVES {
                continue;
            }
            for place in places(&moved).filter(|place| place.bucket != from.bucket) {
                queue.push_back(steps.len());
                steps.push((place, Some(at)));
            }
        }
        None
    }

    /// Moves the entries of a row of steps, the last one first; returns the place that is free then.
    fn shift(
        &mut self,
        steps: &[(Place, Option<usize>)],
        last: usize,
        free: Place,
        writes: &mut Vec<Write>,
    ) -> Option<Place> {
        let mut to = free;
        let mut at = Some(last);
        while let Some(step) = at {
            let (from, before) = *steps.get(step)?;
            let entry = *self.get(from)?;
            for write in [(to, entry), (from, ServiceEntry::default())] {
                self.set(write.0, write.1);
                writes.push(write);
            }
            to = from;
            at = before;
        }
        Some(to)
    }

    fn get(&self, place: Place) -> Option<&ServiceEntry> {
        self.buckets.get(usize::try_from(place.bucket).ok()?)?.entries.get(place.place)
    }

    fn set(&mut self, place: Place, entry: ServiceEntry) {
        let bucket = usize::try_from(place.bucket).ok().and_then(|bucket| self.buckets.get_mut(bucket));
        if let Some(at) = bucket.and_then(|bucket| bucket.entries.get_mut(place.place)) {
            *at = entry;
        }
    }
}

fn places(key: &ServiceKey) -> impl Iterator<Item = Place> + use<> {
    let [first, second] = hash::service(key).map(|bucket| bucket & (INDEX_BUCKETS - 1));
    [first, second].into_iter().flat_map(|bucket| (0..PLACES).map(move |place| Place { bucket, place }))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use gateway_common::{
        addr::{Addr, Port, Protocol},
        map::SERVICES,
    };

    use super::*;

    fn key_of(n: u32) -> ServiceKey {
        let [_, b, c, d] = n.to_be_bytes();
        ServiceKey::new(Addr::v4([10, b, c, d]), Port::new(80), Protocol::TCP)
    }

    /// Addresses here and there: those that follow each other spread so evenly that no entry has to move.
    fn scattered(n: u32) -> ServiceKey {
        let mixed = n.wrapping_mul(0x9e37_79b1);
        let mixed = (mixed ^ mixed >> 15).wrapping_mul(0x85eb_ca6b);
        ServiceKey::new(Addr::v4((mixed ^ mixed >> 13).to_be_bytes()), Port::new(80), Protocol::TCP)
    }

    fn empty() -> Index {
        Index::new(vec![ServiceBucket::default(); usize::try_from(INDEX_BUCKETS).unwrap()])
    }

    #[test]
    fn as_many_services_as_a_node_may_hold_find_a_place() {
        let mut index = empty();
        for n in 0..SERVICES {
            index.put(ServiceEntry::new(key_of(n), Some(n), 0, 0)).unwrap();
        }
        let found: BTreeMap<u32, u32> = index
            .entries()
            .map(|entry| (u32::from_be_bytes(entry.addr.v4_octets()), entry.service))
            .collect();
        assert_eq!(found.len(), usize::try_from(SERVICES).unwrap());
        for n in 0..SERVICES {
            let place = index.found(&key_of(n)).next().unwrap();
            assert_eq!(index.get(place).unwrap().service, n + 1);
        }
    }

    #[test]
    fn packets_find_what_moves_at_every_moment() {
        let mut index = empty();
        let mut map = index.clone();
        let mut moved = 0;
        for n in 0..SERVICES {
            let writes = index.put(ServiceEntry::new(scattered(n), Some(n), 0, 0)).unwrap();
            moved += writes.len() - 1;
            for (place, entry) in writes {
                let replaced = *map.get(place).unwrap();
                map.set(place, entry);
                let is_lost = replaced.is_taken() && map.found(&replaced.key()).next().is_none();
                assert!(!is_lost, "{replaced:?}");
                let is_torn = replaced.is_taken() && entry.is_taken() && replaced.key() != entry.key();
                assert!(!is_torn, "{replaced:?} becomes {entry:?}");
            }
        }
        assert!(moved > 0, "nothing had to move: the test shows nothing");
        for n in 0..SERVICES {
            assert!(map.found(&scattered(n)).count() == 1);
        }
    }

    #[test]
    fn what_is_removed_is_gone() {
        let mut index = empty();
        index.put(ServiceEntry::new(key_of(1), Some(7), 0, 0)).unwrap();
        assert_eq!(index.remove(&key_of(1)).len(), 1);
        assert_eq!(index.remove(&key_of(1)), []);
        assert_eq!(index.entries().count(), 0);
    }

    #[test]
    fn what_stands_twice_is_removed_twice() {
        let mut index = empty();
        let entry = ServiceEntry::new(key_of(1), Some(7), 0, 0);
        // So ends an agent that was killed while it moved the entry.
        for place in places(&key_of(1)).skip(1).step_by(2) {
            index.set(place, entry);
        }
        assert_eq!(index.remove(&key_of(1)).len(), 2);
        assert_eq!(index.entries().count(), 0);
    }
}
