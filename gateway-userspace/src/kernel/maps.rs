//! What the writer asks of maps: the kernel's, or memory's in a test.

use std::collections::{BTreeMap, BTreeSet};

use gateway_common::{
    endpoint::Endpoint,
    service::{PortRange, Service, ServiceEntry, ServiceKey, Table},
    settings::Settings,
    slot::Slot,
    source::{SourceNetwork, SourceRule},
};

use crate::{
    image::Range,
    kernel::{Error, former},
};

/// What stands in the maps. Rows and words that are zero are left out.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Observed {
    /// `SERVICES`.
    pub services: BTreeMap<ServiceKey, Service>,
    /// The current half of the slots of each service.
    pub slots: BTreeMap<ServiceKey, Vec<Slot>>,
    /// The other half of services whose slots refer to it.
    pub before: BTreeMap<ServiceKey, Vec<Slot>>,
    /// `ENDPOINTS`.
    pub endpoints: BTreeMap<u32, Endpoint>,
    /// `SERVICE_INDEX`, by the keys of its entries.
    pub entries: BTreeMap<ServiceKey, ServiceEntry>,
    /// `PORT_RANGES`: the rows that an entry refers to, and their content.
    pub ranges: BTreeMap<ServiceKey, (Range, Vec<PortRange>)>,
    /// `FILTER`.
    pub filter: BTreeMap<u32, u64>,
    /// `SOURCE_NETWORKS`.
    pub networks: BTreeMap<SourceNetwork, SourceRule>,
    /// `SOURCE_FILTER`.
    pub source_filter: BTreeMap<u32, u64>,
    /// Of `SETTINGS`, what is refused.
    pub guards: u8,
}

impl Observed {
    /// Takes the slots of every service; none of one that names those of others, as an earlier agent may have left it.
    pub fn follow_slots(&mut self, read: impl Fn(Table) -> Vec<Slot>) {
        for (key, service) in &self.services {
            if !has_slots(service) {
                self.slots.insert(*key, Vec::new());
                continue;
            }
            let slots = read(service.table());
            if former::is_divided(&slots) {
                self.before.insert(*key, read(service.idle_table()));
            }
            self.slots.insert(*key, slots);
        }
    }

    /// The service when it is these slots that its packets read now.
    pub fn reader(&self, key: &ServiceKey, first_chunk: u32, n_slots: usize) -> Option<Service> {
        let service = *self.services.get(key)?;
        let table = service.table();
        let is_read = table.first_chunk == first_chunk && usize::try_from(table.n_slots) == Ok(n_slots);
        is_read.then_some(service)
    }

    /// Takes the slots that a service has now, in its other half or where it had them.
    pub fn take_slots(&mut self, key: ServiceKey, slots: Vec<Slot>, is_turned: bool) {
        let is_divided = former::is_divided(&slots);
        let before = self.slots.insert(key, slots);
        if !is_divided {
            self.before.remove(&key);
        } else if is_turned {
            self.before.insert(key, before.unwrap_or_default());
        }
    }

    /// Forgets services that are not wanted.
    pub fn retain(&mut self, wanted: &BTreeSet<&ServiceKey>) {
        self.services.retain(|key, _| wanted.contains(key));
        self.slots.retain(|key, _| wanted.contains(key));
        self.before.retain(|key, _| wanted.contains(key));
    }

    /// Takes the entries of the index, and everything that they lead to.
    pub fn follow(
        &mut self,
        entries: impl Iterator<Item = ServiceEntry>,
        service: impl Fn(u32) -> Option<Service>,
        range: impl Fn(u32) -> Option<PortRange>,
    ) {
        for entry in entries {
            let key = entry.key();
            let rows = entry.first_range..entry.first_range.saturating_add(entry.n_ranges);
            let ranges: Vec<PortRange> = rows.map_while(&range).collect();
            let by_range = ranges.iter().map(|range| range.service);
            for found in entry.service_id().into_iter().chain(by_range).filter_map(&service) {
                self.services.insert(found.key(), found);
            }
            if entry.n_ranges > 0 {
                self.ranges.insert(key, (Range { first: entry.first_range, count: entry.n_ranges }, ranges));
            }
            self.entries.insert(key, entry);
        }
    }
}

/// Whether the present slots of a service stand in its own chunks, rather than in some that it gave back.
fn has_slots(service: &Service) -> bool {
    let [even, odd] = service.halves;
    even != odd && [even, odd].contains(&service.table().first_chunk)
}

/// The maps that the writer fills.
pub trait Maps {
    /// Everything that stands in the maps.
    ///
    /// # Errors
    /// When the kernel refuses to read.
    fn observe(&self) -> Result<Observed, Error>;
    /// The row of `SETTINGS`.
    ///
    /// # Errors
    /// When the kernel refuses to read.
    fn settings(&self) -> Result<Settings, Error>;
    /// Writes the row of `SETTINGS`.
    ///
    /// # Errors
    /// When the kernel refuses.
    fn put_settings(&mut self, settings: &Settings) -> Result<(), Error>;
    /// Writes the row of a service: its last word makes a table current, atomic for packets.
    ///
    /// # Errors
    /// When the row is beyond the map.
    fn put_service(&mut self, key: &ServiceKey, service: &Service) -> Result<(), Error>;
    /// Writes rows of ranges that no entry refers to.
    ///
    /// # Errors
    /// When a row is beyond the map.
    fn put_ranges(&mut self, first: u32, ranges: &[PortRange]) -> Result<(), Error>;
    /// Writes an entry of the index.
    ///
    /// # Errors
    /// When the index is full.
    fn put_entry(&mut self, entry: &ServiceEntry) -> Result<(), Error>;
    /// Removes an entry of the index; one that is not there is as good.
    ///
    /// # Errors
    /// When the kernel refuses.
    fn delete_entry(&mut self, key: &ServiceKey) -> Result<(), Error>;
    /// Writes an endpoint row.
    ///
    /// # Errors
    /// When the row is beyond the map.
    fn put_endpoint(&mut self, row: u32, endpoint: &Endpoint) -> Result<(), Error>;
    /// Begins the counts of a service anew: its number was another's.
    ///
    /// # Errors
    /// When the kernel refuses.
    fn clear_service_count(&mut self, id: u32) -> Result<(), Error>;
    /// Begins the counts of an endpoint row anew: it was another's.
    ///
    /// # Errors
    /// When the kernel refuses.
    fn clear_endpoint_count(&mut self, row: u32) -> Result<(), Error>;
    /// Writes 64 bits of the filter.
    ///
    /// # Errors
    /// When the word is beyond the map.
    fn put_filter(&mut self, word: u32, bits: u64) -> Result<(), Error>;
    /// Writes what becomes of packets of a network.
    ///
    /// # Errors
    /// When the kernel refuses: the map is full.
    fn put_source_network(&mut self, network: &SourceNetwork, rule: SourceRule) -> Result<(), Error>;
    /// Removes a network; one that is not there is as good.
    ///
    /// # Errors
    /// When the kernel refuses.
    fn delete_source_network(&mut self, network: &SourceNetwork) -> Result<(), Error>;
    /// Writes 64 bits of the filter of sources.
    ///
    /// # Errors
    /// When the word is beyond the map.
    fn put_source_filter(&mut self, word: u32, bits: u64) -> Result<(), Error>;
    /// Says what is refused.
    ///
    /// # Errors
    /// When the kernel refuses.
    fn put_guards(&mut self, guards: u8) -> Result<(), Error>;
    /// Writes a half of a service's slots that no service value calls current, or the current one again with as many
    /// slots: packets see each slot whole.
    ///
    /// # Errors
    /// When the half is beyond the map.
    fn put_slots(&mut self, key: &ServiceKey, first_chunk: u32, slots: &[Slot]) -> Result<(), Error>;
}
