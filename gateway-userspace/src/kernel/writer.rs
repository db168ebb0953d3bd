//! The writer: the one place that writes maps. It knows what stands there, what should, and in which order to change.
//!
//! Make before break: endpoint rows first, then slots, then the service values that refer to them, then the filter
//! that lets packets in; removals in the opposite order. A change of health or weight goes the same way, for the
//! services it concerns.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    net::IpAddr,
    sync::Arc,
};

use gateway_common::{
    addr::{Addr, Port},
    endpoint::{self as shared, EndpointState, NextHop},
    filter,
    hash::Seed,
    service::{Mode, Service, ServiceKey},
    slot::Slot,
};

use crate::{
    endpoint::{Availability, Endpoint},
    image::{self, Image, Way},
    kernel::{
        Error,
        maps::{Maps, Observed},
    },
    maglev,
};

/// What an apply or a publish did.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Written {
    /// Endpoint rows written.
    pub rows: usize,
    /// Slot tables published.
    pub tables: usize,
    /// Services written or removed.
    pub services: usize,
}

/// Writes maps.
pub struct Writer<M> {
    maps: M,
    seed: Seed,
    /// What stands in the maps, by our own account since the first look.
    written: Observed,
    image: Arc<Image>,
    ways: HashMap<IpAddr, Way>,
    /// Addresses that translated packets come back to.
    sources: BTreeSet<Addr>,
}

impl<M: Maps> Writer<M> {
    /// Looks at what stands in the maps; deletes nothing.
    ///
    /// # Errors
    /// When the kernel refuses to read.
    pub fn new(maps: M, seed: Seed) -> Result<Self, Error> {
        let written = maps.observe()?;
        Ok(Self {
            maps,
            seed,
            written,
            image: Arc::default(),
            ways: HashMap::new(),
            sources: BTreeSet::new(),
        })
    }

    /// What stands in the maps.
    pub const fn written(&self) -> &Observed {
        &self.written
    }

    /// The maps.
    pub const fn maps(&self) -> &M {
        &self.maps
    }

    /// The maps, for what the writer does not own: sockets and settings.
    pub const fn maps_mut(&mut self) -> &mut M {
        &mut self.maps
    }

    /// The image that was applied last.
    pub fn image(&self) -> Arc<Image> {
        Arc::clone(&self.image)
    }

    /// Brings the maps to an image.
    ///
    /// # Errors
    /// When the kernel refuses a write. What was written stays; the next apply goes on from there.
    pub fn apply(&mut self, image: Arc<Image>) -> Result<Written, Error> {
        let mut written = Written::default();
        self.image = Arc::clone(&image);
        for service in &image.services {
            self.write(service, &mut written)?;
        }
        self.write_filter(&image, true)?;
        let wanted: HashSet<ServiceKey> = image.services.iter().map(|service| service.key).collect();
        let stale: Vec<ServiceKey> =
            self.written.services.keys().filter(|key| !wanted.contains(key)).copied().collect();
        for key in stale {
            self.maps.delete_service(&key)?;
            self.written.services.remove(&key);
            self.written.slots.remove(&key);
            written.services += 1;
        }
        self.write_filter(&image, false)?;
        let rows: HashSet<u32> = image.services.iter().flat_map(|s| s.endpoints.iter().map(|row| row.row)).collect();
        let stale: Vec<u32> = self.written.endpoints.keys().filter(|row| !rows.contains(row)).copied().collect();
        for row in stale {
            self.clear_row(row, &mut written)?;
        }
        Ok(written)
    }

    /// Publishes changes of live endpoints.
    ///
    /// # Errors
    /// See [`Writer::apply`].
    pub fn publish(&mut self, changed: &[Arc<Endpoint>]) -> Result<Written, Error> {
        let mut written = Written::default();
        let image = Arc::clone(&self.image);
        let concerns = |service: &&image::Service| {
            service.endpoints.iter().any(|row| changed.iter().any(|endpoint| Arc::ptr_eq(endpoint, &row.endpoint)))
        };
        for service in image.services.iter().filter(concerns) {
            self.write(service, &mut written)?;
        }
        Ok(written)
    }

    /// Takes new ways to endpoints, and writes the rows that they concern.
    ///
    /// # Errors
    /// See [`Writer::apply`].
    pub fn set_ways(&mut self, ways: HashMap<IpAddr, Way>) -> Result<Written, Error> {
        let mut written = Written::default();
        self.ways = ways;
        let image = Arc::clone(&self.image);
        for service in &image.services {
            self.write_rows(service, &mut written)?;
        }
        self.write_filter(&image, true)?;
        Ok(written)
    }

    fn write(&mut self, service: &image::Service, written: &mut Written) -> Result<(), Error> {
        self.write_rows(service, written)?;
        let mut value = Service::default();
        value.id = service.id;
        value.first_endpoint = service.rows.first;
        value.n_endpoints = service.rows.count;
        value.first_chunk = service.chunks;
        value.first_socket = service.sockets.first;
        value.n_sockets = service.sockets.count;
        value.mode = service.mode;
        value.track = service.track;
        let present = self.written.services.get(&service.key).copied();
        if service.mode == Mode::NAT {
            let table = self.table(service);
            value.n_slots = u32::try_from(table.len()).unwrap_or(0);
            let unchanged = present.is_some_and(|present| {
                present.first_chunk == value.first_chunk && self.stands(&service.key, &table)
            });
            value.current = present.map_or(0, |present| present.current);
            if !unchanged {
                value.current = u8::from(value.current == 0);
                let former = self.written.slots.remove(&service.key).unwrap_or_default();
                let slots = with_former(&table, &former);
                let [first, second] = value.first_chunk;
                self.maps.put_slots(if value.current == 0 { first } else { second }, &slots);
                self.written.slots.insert(service.key, slots);
                written.tables += 1;
            }
        }
        if present != Some(value) {
            self.maps.put_service(&service.key, &value)?;
            self.written.services.insert(service.key, value);
            written.services += 1;
        }
        Ok(())
    }

    fn stands(&self, key: &ServiceKey, table: &[u16]) -> bool {
        self.written.slots.get(key).is_some_and(|slots| {
            slots.len() == table.len() && slots.iter().zip(table).all(|(slot, endpoint)| slot.endpoint == *endpoint)
        })
    }

    /// The slots of a service: its active endpoints by weight, or the draining ones when none is active.
    fn table(&self, service: &image::Service) -> Vec<u16> {
        let active = maglev::table(&self.seed, &members(service, Availability::Active), service.n_slots);
        if !active.is_empty() {
            return active;
        }
        maglev::table(&self.seed, &members(service, Availability::Draining), service.n_slots)
    }

    fn write_rows(&mut self, service: &image::Service, written: &mut Written) -> Result<(), Error> {
        for row in &service.endpoints {
            let value = self.row(service.id, row);
            if self.written.endpoints.get(&row.row) != Some(&value) {
                self.maps.put_endpoint(row.row, &value)?;
                self.written.endpoints.insert(row.row, value);
                written.rows += 1;
            }
        }
        Ok(())
    }

    fn row(&self, service: u32, row: &image::Row) -> shared::Endpoint {
        let addr = row.endpoint.addr();
        let way = self.ways.get(&addr.ip()).copied().unwrap_or_default();
        shared::Endpoint {
            addr: Addr::from(addr.ip()),
            source: way.source.map_or(Addr::UNSPECIFIED, Addr::from),
            next_hop: if way.is_local { NextHop::UNKNOWN } else { way.next_hop },
            port: Port::new(addr.port()),
            state: match row.endpoint.availability() {
                Availability::Active if row.local.is_some() => EndpointState::ACTIVE,
                Availability::Active | Availability::Draining => EndpointState::DRAINING,
                Availability::Down => EndpointState::DOWN,
            },
            flags: if way.is_local { shared::Endpoint::LOCAL } else { 0 },
            service,
            generation: row.generation,
            weight: row.backend_weight.saturating_mul(row.endpoint.weight()),
        }
    }

    /// A row that nobody refers to keeps its generation, so that its next owner has another one.
    fn clear_row(&mut self, row: u32, written: &mut Written) -> Result<(), Error> {
        let Some(present) = self.written.endpoints.get(&row).copied() else { return Ok(()) };
        let cleared = shared::Endpoint { generation: present.generation, ..shared::Endpoint::default() };
        if present != cleared {
            self.maps.put_endpoint(row, &cleared)?;
            self.written.endpoints.insert(row, cleared);
            written.rows += 1;
        }
        Ok(())
    }

    /// Sets the bits of everything that is ours; with `keep`, leaves those of what was.
    fn write_filter(&mut self, image: &Image, keep: bool) -> Result<(), Error> {
        self.sources = self.ways.values().filter(|way| !way.is_local).filter_map(|way| way.source).map(Addr::from).collect();
        let local = self.ways.iter().filter(|(_, way)| way.is_local).map(|(addr, _)| Addr::from(*addr));
        let ours = image.virtual_addrs().chain(self.sources.iter().copied()).chain(local);
        let mut words: BTreeMap<u32, u64> = if keep { self.written.filter.clone() } else { BTreeMap::new() };
        for addr in ours {
            let bit = filter::bit(addr);
            *words.entry(bit / 64).or_default() |= 1 << (bit % 64);
        }
        let touched: BTreeSet<u32> = words.keys().chain(self.written.filter.keys()).copied().collect();
        for word in touched {
            let bits = words.get(&word).copied().unwrap_or(0);
            if self.written.filter.get(&word).copied().unwrap_or(0) != bits {
                self.maps.put_filter(word, bits)?;
                self.written.filter.insert(word, bits);
            }
        }
        Ok(())
    }
}

/// Slots that remember where their flows went before.
fn with_former(table: &[u16], former: &[Slot]) -> Vec<Slot> {
    let same_size = table.len() == former.len();
    table
        .iter()
        .enumerate()
        .map(|(idx, endpoint)| {
            let before = if same_size { former.get(idx).map(|slot| slot.endpoint) } else { None };
            Slot { endpoint: *endpoint, former: before.unwrap_or(*endpoint) }
        })
        .collect()
}

/// The endpoints of a service that are in a state. Weight zero drains: when only draining ones are left, they share
/// alike.
fn members(service: &image::Service, wanted: Availability) -> Vec<maglev::Member> {
    let in_state = |row: &&image::Row| row.local.is_some() && row.endpoint.availability() == wanted;
    let rows: Vec<&image::Row> = service.endpoints.iter().filter(in_state).collect();
    let shares: Vec<maglev::Share<'_>> = rows
        .iter()
        .map(|row| {
            let is_draining = wanted == Availability::Draining;
            maglev::Share {
                service: row.endpoint.id().service.as_str(),
                backend: if is_draining { row.backend_weight.max(1) } else { row.backend_weight },
                own: if is_draining { 1 } else { row.endpoint.weight() },
            }
        })
        .collect();
    rows.iter()
        .zip(maglev::weights(&shares))
        .filter_map(|(row, weight)| {
            let addr = row.endpoint.addr();
            Some(maglev::Member {
                addr: Addr::from(addr.ip()),
                port: Port::new(addr.port()),
                index: row.local?,
                weight,
            })
        })
        .collect()
}
