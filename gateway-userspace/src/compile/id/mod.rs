//! Numbers that stay: which service, row and chunk belongs to what, across changes and restarts.
//!
//! A service keeps its number, its rows and its chunks as long as its address, port and protocol are wanted; an
//! endpoint keeps its row within a service as long as its address and port are. After a restart both are found
//! again in the maps themselves.
//!
//! What is given back rests for one change before anybody else gets it: the kernel's maps are changed leaves first,
//! so that the value that refers to the old owner still stands when the new owner's rows and slots are written.

mod pool;

use std::{
    collections::{BTreeMap, BTreeSet},
    mem,
    net::SocketAddr,
    sync::Arc,
};

use gateway_common::{
    addr::Addr,
    endpoint::Endpoint,
    service::{Service, ServiceKey},
    slot::{SIZE_CLASSES, SlotChunk, size_class},
};

use self::pool::Pool;
use crate::image::{Capacity, Range};

/// Everything that was given out.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Ids {
    /// Shared with the copy that a change begins with, as long as the change leaves them alone; so are generations.
    services: BTreeMap<ServiceKey, Arc<Numbers>>,
    /// Last generation of every row that was ever used.
    generations: Arc<BTreeMap<u32, u32>>,
    free: Free,
    /// Given back since the last change.
    resting: Vec<Given>,
    /// Numbers of services that flows are counted for.
    held: Pool,
}

#[derive(Clone, Debug, Eq, PartialEq)]
struct Free {
    ids: Pool,
    rows: Pool,
    chunks: Pool,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Given {
    Id(u32),
    Rows(Range),
    Chunks(Range),
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
    /// The chunks that became too few the last time: packets still look there for where flows were before.
    pub chunks_before: Range,
    /// Row of each endpoint, wanted or retired.
    pub members: BTreeMap<SocketAddr, u32>,
    /// Rows of a range that became too small: flows that began there still use them.
    pub outgrown: BTreeMap<u32, SocketAddr>,
}

impl Numbers {
    /// Both halves, which lie side by side.
    fn chunk_range(&self) -> Range {
        Range { first: self.chunks[0], count: SlotChunk::chunks_for(self.n_slots) * 2 }
    }

    /// Rows of an endpoint: its own, and those of ranges that became too small.
    pub fn rows_of(&self, addr: SocketAddr) -> impl Iterator<Item = u32> {
        let outgrown = self.outgrown.iter().filter(move |(_, of)| **of == addr).map(|(row, _)| *row);
        self.members.get(&addr).copied().into_iter().chain(outgrown)
    }

    fn owns(&self, row: u32) -> bool {
        row.checked_sub(self.rows.first).is_some_and(|local| local < self.rows.count)
    }
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

impl std::fmt::Display for Full {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Services => {
                "the kernel's tables have no room for another listener; remove listeners that are not needed"
            }
            Self::Rows => {
                "the kernel's tables have no room for more endpoints; remove endpoints or balanced listeners"
            }
            Self::Chunks => {
                "the kernel's tables have no room for more slots; remove endpoints or balanced listeners"
            }
        })
    }
}

impl std::error::Error for Full {}

impl Ids {
    /// Nothing given out yet.
    pub fn new(capacity: Capacity) -> Self {
        let free = Free {
            ids: Pool::new(capacity.services),
            rows: Pool::new(capacity.rows),
            chunks: Pool::new(capacity.chunks),
        };
        Self {
            services: BTreeMap::new(),
            generations: Arc::default(),
            free,
            resting: Vec::new(),
            held: Pool::of([]),
        }
    }

    /// What the maps say was given out by an earlier agent. A service whose numbers cannot be (beyond a map, or another
    /// one's) is left out, and gets new ones.
    pub fn found(
        capacity: Capacity,
        services: &BTreeMap<ServiceKey, Service>,
        endpoints: &BTreeMap<u32, Endpoint>,
    ) -> Self {
        let mut ids = Self::new(capacity);
        let generation = |(row, endpoint): (&u32, &Endpoint)| (*row, endpoint.owner());
        ids.generations = Arc::new(endpoints.iter().map(generation).collect());
        let mut by_service: BTreeMap<u32, Vec<(u32, SocketAddr)>> = BTreeMap::new();
        for (row, endpoint) in endpoints.iter().filter(|(_, endpoint)| endpoint.addr != Addr::UNSPECIFIED) {
            let addr = SocketAddr::new(endpoint.addr.into(), endpoint.own_port().number());
            by_service.entry(endpoint.service).or_default().push((*row, addr));
        }
        for (key, service) in services {
            let rows = by_service.remove(&service.id).unwrap_or_default();
            if let Some(numbers) = ids.free.reserve(service, rows) {
                ids.services.insert(*key, Arc::new(numbers));
            }
        }
        // After what every service has: a table that nobody looks at any more may be another one's.
        for (key, numbers) in ids.services.iter_mut().filter(|(_, numbers)| numbers.n_slots > 0) {
            let Some(before) = services.get(key).map(Service::idle_table) else { continue };
            let range = Range { first: before.first_chunk, count: SlotChunk::chunks_for(before.n_slots) };
            let is_outgrown = range.count > 0 && !numbers.chunks.contains(&range.first);
            if is_outgrown && ids.free.chunks.reserve(range) {
                Arc::make_mut(numbers).chunks_before = range;
            }
        }
        ids
    }

    /// Generation of a row's present owner.
    pub fn generation(&self, row: u32) -> u32 {
        self.generations.get(&row).copied().unwrap_or(0)
    }

    /// Numbers of each service.
    pub const fn services(&self) -> &BTreeMap<ServiceKey, Arc<Numbers>> {
        &self.services
    }

    /// Numbers that flows are counted for in the flow table, also of services that are gone: no new service gets one while
    /// there are others, for these flows would be within its share.
    pub fn avoid(&mut self, held: BTreeSet<u32>) {
        self.held = Pool::of(held);
    }

    /// Begins a change: forgets services that are not wanted. Their numbers are free from the first change on that begins
    /// when the last one stands in the maps (`is_written`): until then packets may be sent to what was given back.
    pub fn retain(&mut self, wanted: &BTreeSet<ServiceKey>, is_written: bool) {
        let free = if is_written { mem::take(&mut self.resting) } else { Vec::new() };
        for given in free {
            match given {
                Given::Id(id) => self.free.ids.give(Range { first: id, count: 1 }),
                Given::Rows(rows) => self.free.rows.give(rows),
                Given::Chunks(chunks) => self.free.chunks.give(chunks),
            }
        }
        let gone: Vec<ServiceKey> =
            self.services.keys().filter(|key| !wanted.contains(key)).copied().collect();
        for key in gone {
            let Some(numbers) = self.services.remove(&key) else { continue };
            self.resting.push(Given::Id(numbers.id));
            self.rest_tables(Arc::unwrap_or_clone(numbers));
        }
    }

    /// The number of a service of the agent.
    ///
    /// # Errors
    /// When there is no number left.
    pub fn agent_service(&mut self, key: ServiceKey) -> Result<u32, Full> {
        let mut numbers = self.take(&key)?;
        let id = numbers.id;
        if numbers != (Numbers { id, ..Numbers::default() }) {
            self.rest_tables(mem::take(&mut numbers));
        }
        self.services.insert(key, Arc::new(Numbers { id, ..Numbers::default() }));
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
        let mut numbers = self.take(&key)?;
        let stays = |addr: &SocketAddr| wanted.contains(addr) || keep(*addr);
        let freed: BTreeSet<u32> =
            numbers.members.extract_if(.., |addr, _| !stays(addr)).map(|(_, row)| row).collect();
        for (row, _) in numbers.outgrown.extract_if(.., |_, addr| !stays(addr)) {
            self.resting.push(Given::Rows(Range { first: row, count: 1 }));
        }
        let missing: Vec<SocketAddr> =
            wanted.iter().filter(|addr| !numbers.members.contains_key(addr)).copied().collect();
        let needed = u32::try_from(numbers.members.len() + missing.len()).map_err(|_| Full::Rows)?;
        let missing = if needed > numbers.rows.count {
            self.grow(&mut numbers, needed)?;
            wanted.iter().copied().collect()
        } else {
            missing
        };
        self.place(&mut numbers, missing, &freed)?;
        let n_slots = size_class(u32::try_from(wanted.len()).map_err(|_| Full::Rows)?);
        if n_slots > numbers.n_slots {
            let count = SlotChunk::chunks_for(n_slots);
            let first = self.free.chunks.take(count * 2).ok_or(Full::Chunks)?;
            let present = numbers.chunk_range();
            let before = mem::replace(&mut numbers.chunks_before, present);
            if before.count > 0 {
                self.resting.push(Given::Chunks(before));
            }
            numbers.n_slots = n_slots;
            numbers.chunks = [first, first + count];
        }
        Ok(self.services.entry(key).or_insert_with(|| Arc::new(numbers)))
    }

    /// What a service has, taken out, or a new number.
    fn take(&mut self, key: &ServiceKey) -> Result<Numbers, Full> {
        if let Some(numbers) = self.services.remove(key) {
            return Ok(Arc::unwrap_or_clone(numbers));
        }
        let id = self.free.ids.take_but(&self.held).ok_or(Full::Services)?;
        Ok(Numbers { id, ..Numbers::default() })
    }

    /// Gives a service a wider range. The rows in use stay as they are, for flows that refer to them.
    fn grow(&mut self, numbers: &mut Numbers, needed: u32) -> Result<(), Full> {
        // A quarter more than is needed: growth is rare, and 100,000 endpoints must fit.
        let count = needed.saturating_add(needed / 4).max(8).next_multiple_of(4);
        let first = self.free.rows.take(count).ok_or(Full::Rows)?;
        let old = mem::replace(&mut numbers.rows, Range { first, count });
        let outgrown: BTreeMap<u32, SocketAddr> =
            mem::take(&mut numbers.members).into_iter().map(|(addr, row)| (row, addr)).collect();
        for row in old.first..old.first.saturating_add(old.count) {
            if !outgrown.contains_key(&row) {
                self.resting.push(Given::Rows(Range { first: row, count: 1 }));
            }
        }
        numbers.outgrown.extend(outgrown);
        Ok(())
    }

    /// Gives rows of the service's range to endpoints; those that were freed by this very change come last.
    fn place(
        &mut self,
        numbers: &mut Numbers,
        missing: Vec<SocketAddr>,
        freed: &BTreeSet<u32>,
    ) -> Result<(), Full> {
        let taken: BTreeSet<u32> = numbers.members.values().copied().collect();
        let range = numbers.rows.first..numbers.rows.first.saturating_add(numbers.rows.count);
        let fresh = range.clone().filter(|row| !taken.contains(row) && !freed.contains(row));
        let mut rows = fresh.chain(range.filter(|row| freed.contains(row)));
        for addr in missing {
            let row = rows.next().ok_or(Full::Rows)?;
            let generation = Arc::make_mut(&mut self.generations).entry(row).or_default();
            *generation = generation.wrapping_add(1) & Endpoint::OWNER;
            numbers.members.insert(addr, row);
        }
        Ok(())
    }

    fn rest_tables(&mut self, numbers: Numbers) {
        self.resting.push(Given::Chunks(numbers.chunk_range()));
        if numbers.chunks_before.count > 0 {
            self.resting.push(Given::Chunks(numbers.chunks_before));
        }
        self.resting.push(Given::Rows(numbers.rows));
        let outgrown = numbers.outgrown.into_keys().map(|row| Given::Rows(Range { first: row, count: 1 }));
        self.resting.extend(outgrown);
    }
}

impl Free {
    /// Marks what a service of the maps has as given out; nothing when it cannot be the service's.
    fn reserve(&mut self, service: &Service, rows: Vec<(u32, SocketAddr)>) -> Option<Numbers> {
        let [first_half, second_half] = service.halves;
        let table = service.table();
        // The number of slots is zero while no endpoint can receive; the room for them follows from the halves.
        let half = second_half.checked_sub(first_half)?;
        let n_slots = SIZE_CLASSES.into_iter().find(|class| SlotChunk::chunks_for(*class) == half);
        let rows_now = Range { first: table.first_endpoint, count: table.n_endpoints };
        let mut numbers = Numbers {
            id: service.id,
            // A service without chunks has given its rows back, too, whatever an earlier agent left in its table.
            rows: if half > 0 { rows_now } else { Range::default() },
            n_slots: n_slots.unwrap_or(0),
            chunks: service.halves,
            ..Numbers::default()
        };
        let mut next = self.clone();
        let tables = next.rows.reserve(numbers.rows) && next.chunks.reserve(numbers.chunk_range());
        if !tables || !next.ids.reserve(Range { first: numbers.id, count: 1 }) {
            return None;
        }
        for (row, addr) in rows {
            if numbers.owns(row) {
                numbers.members.insert(addr, row);
            } else if next.rows.reserve(Range { first: row, count: 1 }) {
                numbers.outgrown.insert(row, addr);
            }
        }
        *self = next;
        Some(numbers)
    }
}

#[cfg(test)]
mod tests;
