//! Maps in memory: the same as the kernel's for whoever writes them, with a journal, and able to refuse.

use std::collections::BTreeMap;

use gateway_common::{
    endpoint::Endpoint,
    map::{self, MapDef as _},
    service::{PortRange, Service, ServiceEntry, ServiceKey},
    settings::Settings,
    slot::{Slot, SlotChunk},
    source::{SourceNetwork, SourceRule},
};

use crate::kernel::{
    Error,
    maps::{Maps, Observed},
    plan::Op,
    sources::SourceOp,
};

/// Maps in memory.
#[derive(Clone, Default)]
pub struct Memory {
    /// Endpoint rows and the filter; the rest follows from what is below.
    content: Observed,
    services: BTreeMap<u32, Service>,
    ranges: BTreeMap<u32, PortRange>,
    entries: BTreeMap<ServiceKey, ServiceEntry>,
    settings: Settings,
    /// Every slot that was ever written, by its place.
    slots: BTreeMap<u64, Slot>,
    journal: Vec<Op>,
    /// Writes that succeed before all others are refused.
    room: Option<usize>,
}

impl std::fmt::Debug for Memory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Settings hold the seed.
        f.debug_struct("Memory").field("content", &self.content).finish_non_exhaustive()
    }
}

impl Memory {
    /// Every write since the last call, in order.
    pub fn take_journal(&mut self) -> Vec<Op> {
        std::mem::take(&mut self.journal)
    }

    /// Refuses every write after the next `count`; none refuses nothing.
    pub fn refuse_after(&mut self, count: Option<usize>) {
        self.room = count;
    }

    fn write(&mut self, name: &'static str, op: Op) -> Result<(), Error> {
        match &mut self.room {
            Some(0) => return Err(Error::Map { name, source: aya::maps::MapError::ElementNotFound }),
            Some(room) => *room -= 1,
            None => {}
        }
        self.journal.push(op);
        Ok(())
    }

    fn read_slots(&self, first_chunk: u32, n_slots: u32) -> Vec<Slot> {
        let first = u64::from(first_chunk) * u64::from(SlotChunk::SLOTS);
        let slots = first..first + u64::from(n_slots);
        slots.map(|place| self.slots.get(&place).copied().unwrap_or_default()).collect()
    }
}

impl Maps for Memory {
    fn observe(&self) -> Result<Observed, Error> {
        let mut observed = self.content.clone();
        let entries = self.entries.values().copied();
        observed.follow(entries, |id| self.services.get(&id).copied(), |row| self.ranges.get(&row).copied());
        observed.follow_slots(|table| self.read_slots(table.first_chunk, table.n_slots));
        Ok(observed)
    }

    fn settings(&self) -> Result<Settings, Error> {
        Ok(self.settings)
    }

    fn put_settings(&mut self, settings: &Settings) -> Result<(), Error> {
        self.settings = *settings;
        Ok(())
    }

    fn put_service(&mut self, key: &ServiceKey, service: &Service) -> Result<(), Error> {
        self.write(map::Services::NAME, Op::Service { key: *key, value: *service })?;
        self.services.insert(service.id, *service);
        Ok(())
    }

    fn put_ranges(&mut self, first: u32, ranges: &[PortRange]) -> Result<(), Error> {
        self.write(map::PortRanges::NAME, Op::Ranges { first, ranges: ranges.to_vec() })?;
        self.ranges.extend((first..).zip(ranges.iter().copied()));
        Ok(())
    }

    fn put_entry(&mut self, entry: &ServiceEntry) -> Result<(), Error> {
        self.write(map::ServiceIndex::NAME, Op::Entry { entry: *entry })?;
        self.entries.insert(entry.key(), *entry);
        Ok(())
    }

    fn delete_entry(&mut self, key: &ServiceKey) -> Result<(), Error> {
        self.write(map::ServiceIndex::NAME, Op::Remove { key: *key })?;
        self.entries.remove(key);
        Ok(())
    }

    fn put_endpoint(&mut self, row: u32, endpoint: &Endpoint) -> Result<(), Error> {
        self.write(map::Endpoints::NAME, Op::Row { row, value: *endpoint })?;
        self.content.endpoints.insert(row, *endpoint);
        Ok(())
    }

    fn clear_service_count(&mut self, _: u32) -> Result<(), Error> {
        Ok(())
    }

    fn clear_endpoint_count(&mut self, _: u32) -> Result<(), Error> {
        Ok(())
    }

    fn put_filter(&mut self, word: u32, bits: u64) -> Result<(), Error> {
        self.write(map::Filter::NAME, Op::Filter { word, bits })?;
        if bits == 0 {
            self.content.filter.remove(&word);
        } else {
            self.content.filter.insert(word, bits);
        }
        Ok(())
    }

    fn put_source_network(&mut self, network: &SourceNetwork, rule: SourceRule) -> Result<(), Error> {
        self.write(
            map::SourceNetworks::NAME,
            Op::Sources(SourceOp::Network { network: *network, rule: Some(rule) }),
        )?;
        self.content.networks.insert(*network, rule);
        Ok(())
    }

    fn delete_source_network(&mut self, network: &SourceNetwork) -> Result<(), Error> {
        self.write(
            map::SourceNetworks::NAME,
            Op::Sources(SourceOp::Network { network: *network, rule: None }),
        )?;
        self.content.networks.remove(network);
        Ok(())
    }

    fn put_source_filter(&mut self, word: u32, bits: u64) -> Result<(), Error> {
        self.write(map::SourceFilter::NAME, Op::Sources(SourceOp::Filter { word, bits }))?;
        if bits == 0 {
            self.content.source_filter.remove(&word);
        } else {
            self.content.source_filter.insert(word, bits);
        }
        Ok(())
    }

    fn put_guards(&mut self, guards: u8) -> Result<(), Error> {
        self.write(map::SettingsMap::NAME, Op::Sources(SourceOp::Guards { guards }))?;
        self.content.guards = guards;
        Ok(())
    }

    fn put_slots(&mut self, key: &ServiceKey, first_chunk: u32, slots: &[Slot]) -> Result<(), Error> {
        self.write(map::Slots::NAME, Op::Slots { key: *key, first_chunk, slots: slots.to_vec() })?;
        let first = u64::from(first_chunk) * u64::from(SlotChunk::SLOTS);
        self.slots.extend((first..).zip(slots.iter().copied()));
        Ok(())
    }
}
