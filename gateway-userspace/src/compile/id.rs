//! Numbers that stay: which service, row and chunk belongs to what, across changes and restarts.
//!
//! A service keeps its number, its rows and its chunks as long as its address, port and protocol are wanted; an
//! endpoint keeps its row within a service as long as its address and port are. After a restart both are found
//! again in the maps themselves.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
};

use gateway_common::{
    endpoint::Endpoint,
    service::{Mode, Service, ServiceKey},
    slot::{SlotChunk, size_class},
};

use crate::image::Range;

/// Room for numbers.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Capacity {
    /// Services.
    pub services: u32,
    /// Endpoint rows.
    pub rows: u32,
    /// Slot chunks.
    pub chunks: u32,
}

/// Everything that was given out.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Ids {
    capacity: Capacity,
    services: BTreeMap<ServiceKey, Numbers>,
    /// Last generation of every row that was ever used.
    generations: BTreeMap<u32, u32>,
}

/// The numbers of one service.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Numbers {
    /// Number of the service.
    pub id: u32,
    /// Its rows; empty for a service of the agent.
    pub rows: Range,
    /// Slots that there is room for in one half.
    pub n_slots: u32,
    /// First chunk of each half.
    pub chunks: [u32; 2],
    /// Row of each endpoint, wanted or retired.
    pub members: BTreeMap<SocketAddr, u32>,
    /// Rows of a range that became too small: flows that began there still use them.
    pub outgrown: BTreeMap<u32, SocketAddr>,
}

/// No room for a number.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Full {
    /// Too many services.
    Services,
    /// Too many endpoints.
    Rows,
    /// Too many slots of all services together.
    Chunks,
}

impl Ids {
    /// Nothing given out yet.
    pub const fn new(capacity: Capacity) -> Self {
        Self { capacity, services: BTreeMap::new(), generations: BTreeMap::new() }
    }

    /// What the maps say was given out by an earlier agent.
    pub fn found(
        capacity: Capacity,
        services: &BTreeMap<ServiceKey, Service>,
        endpoints: &BTreeMap<u32, Endpoint>,
    ) -> Self {
        let mut ids = Self::new(capacity);
        ids.generations = endpoints.iter().map(|(row, endpoint)| (*row, endpoint.generation)).collect();
        for (key, service) in services {
            let rows = Range { first: service.first_endpoint, count: service.n_endpoints };
            let mut numbers = Numbers {
                id: service.id,
                rows,
                n_slots: if service.mode == Mode::AGENT { 0 } else { size_class(rows.count / 2) },
                chunks: service.first_chunk,
                ..Numbers::default()
            };
            // The size of a half follows from the rows when every endpoint was down and the table empty.
            if service.n_slots != 0 {
                numbers.n_slots = service.n_slots;
            }
            for (row, endpoint) in endpoints {
                if endpoint.service != service.id || endpoint.addr == gateway_common::addr::Addr::UNSPECIFIED {
                    continue;
                }
                let addr = SocketAddr::new(endpoint.addr.into(), endpoint.port.number());
                if (rows.first..rows.first.saturating_add(rows.count)).contains(row) {
                    numbers.members.insert(addr, *row);
                } else {
                    numbers.outgrown.insert(*row, addr);
                }
            }
            ids.services.insert(*key, numbers);
        }
        ids
    }

    /// Generation of a row's present owner.
    pub fn generation(&self, row: u32) -> u32 {
        self.generations.get(&row).copied().unwrap_or(0)
    }

    /// Forgets services that are not wanted.
    pub fn retain(&mut self, wanted: &BTreeSet<ServiceKey>) {
        self.services.retain(|key, _| wanted.contains(key));
    }

    /// The numbers of a service of the agent.
    ///
    /// # Errors
    /// When there is no number left.
    pub fn agent_service(&mut self, key: ServiceKey) -> Result<u32, Full> {
        let id = self.service_id(&key)?;
        self.services.insert(key, Numbers { id, ..Numbers::default() });
        Ok(id)
    }

    /// The numbers of a balanced service with these endpoints; `keep` says which retired ones still hold flows.
    ///
    /// # Errors
    /// When there is no room left.
    pub fn balanced_service(
        &mut self,
        key: ServiceKey,
        wanted: &BTreeSet<SocketAddr>,
        keep: impl Fn(SocketAddr) -> bool,
    ) -> Result<&Numbers, Full> {
        let id = self.service_id(&key)?;
        let mut numbers = self.services.remove(&key).unwrap_or_default();
        numbers.id = id;
        numbers.members.retain(|addr, _| wanted.contains(addr) || keep(*addr));
        numbers.outgrown.retain(|_, addr| wanted.contains(addr) || keep(*addr));
        let missing = wanted.iter().filter(|addr| !numbers.members.contains_key(addr)).count();
        let needed = u32::try_from(numbers.members.len() + missing).map_err(|_| Full::Rows)?;
        if needed > numbers.rows.count {
            let room = needed.saturating_mul(2).max(8).next_power_of_two();
            let grown = self.free_rows(&numbers, room).ok_or(Full::Rows)?;
            let outgrown = std::mem::take(&mut numbers.members);
            numbers.outgrown.extend(outgrown.into_iter().map(|(addr, row)| (row, addr)));
            numbers.rows = grown;
        }
        for addr in wanted {
            if numbers.members.contains_key(addr) {
                continue;
            }
            let taken: BTreeSet<u32> = numbers.members.values().copied().collect();
            let range = numbers.rows.first..numbers.rows.first.saturating_add(numbers.rows.count);
            let row = range.into_iter().find(|row| !taken.contains(row)).ok_or(Full::Rows)?;
            *self.generations.entry(row).or_default() += 1;
            numbers.members.insert(*addr, row);
        }
        let n_slots = size_class(u32::try_from(wanted.len()).map_err(|_| Full::Rows)?);
        if n_slots > numbers.n_slots {
            let count = SlotChunk::chunks_for(n_slots);
            let first = self.free_chunks(&numbers, count * 2).ok_or(Full::Chunks)?;
            numbers.n_slots = n_slots;
            numbers.chunks = [first, first + count];
        }
        Ok(self.services.entry(key).or_insert(numbers))
    }

    fn service_id(&self, key: &ServiceKey) -> Result<u32, Full> {
        if let Some(numbers) = self.services.get(key) {
            return Ok(numbers.id);
        }
        let taken: BTreeSet<u32> = self.services.values().map(|numbers| numbers.id).collect();
        (0..self.capacity.services).find(|id| !taken.contains(id)).ok_or(Full::Services)
    }

    /// A range that overlaps no row of any service, `own` included: its old rows stay in use.
    fn free_rows(&self, own: &Numbers, count: u32) -> Option<Range> {
        let mut taken: Vec<Range> = self.services.values().map(|numbers| numbers.rows).collect();
        taken.push(own.rows);
        let outgrown = self.services.values().flat_map(|numbers| numbers.outgrown.keys()).chain(own.outgrown.keys());
        taken.extend(outgrown.map(|row| Range { first: *row, count: 1 }));
        gap(taken, count, self.capacity.rows).map(|first| Range { first, count })
    }

    fn free_chunks(&self, own: &Numbers, count: u32) -> Option<u32> {
        let halves = |numbers: &Numbers| {
            let count = SlotChunk::chunks_for(numbers.n_slots);
            numbers.chunks.map(|first| Range { first, count })
        };
        let mut taken: Vec<Range> = self.services.values().flat_map(halves).collect();
        // Packets read the old halves until the new service value stands.
        taken.extend(halves(own));
        gap(taken, count, self.capacity.chunks)
    }
}

/// The first gap of `count` numbers between ranges.
fn gap(mut taken: Vec<Range>, count: u32, capacity: u32) -> Option<u32> {
    taken.retain(|range| range.count > 0);
    taken.sort_by_key(|range| range.first);
    let mut first = 0u32;
    for range in taken {
        if range.first >= first.saturating_add(count) {
            return Some(first);
        }
        first = first.max(range.first.saturating_add(range.count));
    }
    (first.checked_add(count)? <= capacity).then_some(first)
}

#[cfg(test)]
mod tests {
    use super::*;
    use gateway_common::addr::{Addr, Port, Protocol};

    const CAPACITY: Capacity = Capacity { services: 4, rows: 256, chunks: 1_000 };

    fn key(last: u8) -> ServiceKey {
        ServiceKey::new(Addr::v4([10, 0, 0, last]), Port::new(80), Protocol::TCP)
    }

    fn endpoints(count: u8) -> BTreeSet<SocketAddr> {
        (0..count).map(|n| SocketAddr::from(([10, 1, 0, n], 8080))).collect()
    }

    #[test]
    fn an_endpoint_keeps_its_row_when_others_come_and_go() {
        let mut ids = Ids::new(CAPACITY);
        let before = ids.balanced_service(key(1), &endpoints(3), |_| false).unwrap().clone();
        let mut fewer = endpoints(5);
        fewer.remove(&SocketAddr::from(([10, 1, 0, 0], 8080)));
        let after = ids.balanced_service(key(1), &fewer, |_| false).unwrap().clone();
        let kept = SocketAddr::from(([10, 1, 0, 2], 8080));
        assert_eq!(before.members[&kept], after.members[&kept]);
        assert_eq!(before.id, after.id);
    }

    #[test]
    fn a_row_has_another_generation_for_another_owner() {
        let mut ids = Ids::new(CAPACITY);
        let row = ids.balanced_service(key(1), &endpoints(1), |_| false).unwrap().members.values().next().copied().unwrap();
        let before = ids.generation(row);
        let other = BTreeSet::from([SocketAddr::from(([10, 9, 0, 1], 8080))]);
        let after = ids.balanced_service(key(1), &other, |_| false).unwrap();
        assert_eq!(after.members.values().copied().collect::<Vec<_>>(), [row]);
        assert_eq!(ids.generation(row), before + 1);
    }

    #[test]
    fn a_service_that_outgrows_its_rows_keeps_the_old_ones() {
        let mut ids = Ids::new(CAPACITY);
        ids.balanced_service(key(2), &endpoints(1), |_| false).unwrap();
        let small = ids.balanced_service(key(1), &endpoints(2), |_| false).unwrap().clone();
        let large = ids.balanced_service(key(1), &endpoints(40), |_| false).unwrap().clone();
        assert_ne!(small.rows, large.rows);
        assert_eq!(large.outgrown.len(), 2);
        assert!(large.rows.count >= 80);
        assert!(large.n_slots > small.n_slots);
    }

    #[test]
    fn what_the_maps_say_is_what_was_given_out() {
        let mut ids = Ids::new(CAPACITY);
        let numbers = ids.balanced_service(key(3), &endpoints(3), |_| false).unwrap().clone();
        let mut service = Service::default();
        service.id = numbers.id;
        service.first_endpoint = numbers.rows.first;
        service.n_endpoints = numbers.rows.count;
        service.first_chunk = numbers.chunks;
        service.n_slots = numbers.n_slots;
        service.mode = Mode::NAT;
        let rows = numbers.members.iter().map(|(addr, row)| {
            let endpoint = Endpoint {
                addr: addr.ip().into(),
                port: Port::new(addr.port()),
                service: numbers.id,
                generation: ids.generation(*row),
                ..Endpoint::default()
            };
            (*row, endpoint)
        });
        let found = Ids::found(CAPACITY, &BTreeMap::from([(key(3), service)]), &rows.collect());
        assert_eq!(found, ids);
    }

    #[test]
    fn no_room_is_an_error() {
        let mut ids = Ids::new(CAPACITY);
        for n in 0..4 {
            ids.agent_service(key(n)).unwrap();
        }
        assert_eq!(ids.agent_service(key(9)), Err(Full::Services));
    }
}
