//! The kernel's maps, typed by their definitions, and the one bridge to aya's notion of plain bytes.
#![expect(unsafe_code, reason = "the one bridge to aya")]

use std::os::fd::AsFd;

use aya::{
    Ebpf,
    maps::{Array, HashMap, MapData, PerCpuArray, SockMap},
};
use gateway_common::{
    counter::{Count, EndpointCount, ServiceCount},
    endpoint::Endpoint,
    filter::{self, FilterWord},
    map::{self, MapDef},
    service::{Service, ServiceKey},
    settings::Settings,
    slot::Slot,
};

use crate::{
    image::Capacity,
    kernel::{
        Error,
        maps::{Maps, Observed},
        sys::SlotMemory,
    },
};

#[repr(transparent)]
#[derive(Clone, Copy)]
struct Shared<T>(T);

// SAFETY: `bytemuck::Pod` proves at compile time what `aya::Pod` asks for: no padding and no invalid bit pattern.
// `Shared` is `repr(transparent)`, so its bytes are those of `T`.
unsafe impl<T: bytemuck::Pod> aya::Pod for Shared<T> {}

type Rows<V> = Array<MapData, Shared<V>>;
type PerCpu<V> = PerCpuArray<MapData, Shared<V>>;

/// All maps of the loaded object.
pub(super) struct KernelMaps {
    capacity: Capacity,
    services: HashMap<MapData, Shared<ServiceKey>, Shared<Service>>,
    endpoints: Rows<Endpoint>,
    filter: Rows<FilterWord>,
    settings: Rows<Settings>,
    slots: SlotMemory,
    sockets: SockMap<MapData>,
    reasons: PerCpu<Count>,
    service_counts: PerCpu<ServiceCount>,
    endpoint_counts: PerCpu<EndpointCount>,
}

fn taken<M, T>(object: &mut Ebpf) -> Result<T, Error>
where
    M: MapDef,
    T: TryFrom<aya::maps::Map, Error = aya::maps::MapError>,
{
    let map = object.take_map(M::NAME).ok_or(Error::NoMap { name: M::NAME })?;
    T::try_from(map).map_err(|source| Error::Map { name: M::NAME, source })
}

fn size_of_map<M: MapDef>(object: &Ebpf) -> Result<u32, Error> {
    use aya::maps::Map;
    let Some(Map::HashMap(data) | Map::Array(data) | Map::PerCpuArray(data)) = object.map(M::NAME) else {
        return Err(Error::NoMap { name: M::NAME });
    };
    Ok(data.info().map_err(failed::<M>)?.max_entries())
}

fn failed<M: MapDef>(source: aya::maps::MapError) -> Error {
    Error::Map { name: M::NAME, source }
}

impl KernelMaps {
    /// Takes the maps out of a loaded object.
    pub(super) fn take(object: &mut Ebpf) -> Result<Self, Error> {
        let name = map::Slots::NAME;
        let Some(aya::maps::Map::Array(slots)) = object.take_map(name) else {
            return Err(Error::NoMap { name });
        };
        let n_chunks = slots.info().map_err(failed::<map::Slots>)?.max_entries();
        let memory =
            SlotMemory::new(slots.fd().as_fd(), n_chunks).map_err(|source| Error::SlotMemory { source })?;
        let capacity = Capacity {
            services: size_of_map::<map::Services>(object)?.min(size_of_map::<map::ServiceCounts>(object)?),
            rows: size_of_map::<map::Endpoints>(object)?.min(size_of_map::<map::EndpointCounts>(object)?),
            chunks: n_chunks,
        };
        Ok(Self {
            capacity,
            services: taken::<map::Services, _>(object)?,
            endpoints: taken::<map::Endpoints, _>(object)?,
            filter: taken::<map::Filter, _>(object)?,
            settings: taken::<map::SettingsMap, _>(object)?,
            slots: memory,
            sockets: taken::<map::Sockets, _>(object)?,
            reasons: taken::<map::Reasons, _>(object)?,
            service_counts: taken::<map::ServiceCounts, _>(object)?,
            endpoint_counts: taken::<map::EndpointCounts, _>(object)?,
        })
    }
}

impl Maps for KernelMaps {
    fn observe(&self) -> Result<Observed, Error> {
        let mut observed = Observed::default();
        for entry in &self.services {
            let (Shared(key), Shared(value)) = entry.map_err(failed::<map::Services>)?;
            observed.services.insert(key, value);
        }
        for (key, service) in &observed.services {
            let first = if service.current == 0 { service.first_chunk[0] } else { service.first_chunk[1] };
            observed.slots.insert(*key, self.slots.read(first, service.n_slots));
        }
        for row in 0..self.endpoints.len() {
            let Shared(endpoint) = self.endpoints.get(&row, 0).map_err(failed::<map::Endpoints>)?;
            if endpoint != Endpoint::default() {
                observed.endpoints.insert(row, endpoint);
            }
        }
        for word in 0..filter::WORDS {
            let Shared(value) = self.filter.get(&word, 0).map_err(failed::<map::Filter>)?;
            if value.bits != 0 {
                observed.filter.insert(word, value.bits);
            }
        }
        Ok(observed)
    }

    fn settings(&self) -> Result<Settings, Error> {
        self.settings.get(&0, 0).map(|Shared(settings)| settings).map_err(failed::<map::SettingsMap>)
    }

    fn put_settings(&mut self, settings: &Settings) -> Result<(), Error> {
        self.settings.set(0, Shared(*settings), 0).map_err(failed::<map::SettingsMap>)
    }

    fn put_service(&mut self, key: &ServiceKey, service: &Service) -> Result<(), Error> {
        self.services.insert(Shared(*key), Shared(*service), 0).map_err(failed::<map::Services>)
    }

    fn delete_service(&mut self, key: &ServiceKey) -> Result<(), Error> {
        match self.services.remove(&Shared(*key)) {
            Ok(()) | Err(aya::maps::MapError::KeyNotFound) => Ok(()),
            Err(source) => Err(failed::<map::Services>(source)),
        }
    }

    fn put_endpoint(&mut self, row: u32, endpoint: &Endpoint) -> Result<(), Error> {
        self.endpoints.set(row, Shared(*endpoint), 0).map_err(failed::<map::Endpoints>)
    }

    fn clear_service_count(&mut self, id: u32) -> Result<(), Error> {
        self.service_counts.set(id, zeroes()?, 0).map_err(failed::<map::ServiceCounts>)
    }

    fn clear_endpoint_count(&mut self, row: u32) -> Result<(), Error> {
        self.endpoint_counts.set(row, zeroes()?, 0).map_err(failed::<map::EndpointCounts>)
    }

    fn put_filter(&mut self, word: u32, bits: u64) -> Result<(), Error> {
        self.filter.set(word, Shared(FilterWord { bits }), 0).map_err(failed::<map::Filter>)
    }

    fn put_slots(&mut self, _: &ServiceKey, first_chunk: u32, slots: &[Slot]) -> Result<(), Error> {
        self.slots.write(first_chunk, slots).map_err(|source| Error::SlotMemory { source })
    }
}

/// Nothing, for each processor.
fn zeroes<T: bytemuck::Pod + Default>() -> Result<aya::maps::PerCpuValues<Shared<T>>, Error> {
    let failed = |source| Error::SlotMemory { source };
    let n_cpus = aya::util::nr_cpus().map_err(|(_, source)| failed(source))?;
    aya::maps::PerCpuValues::try_from(vec![Shared(T::default()); n_cpus]).map_err(failed)
}

impl KernelMaps {
    /// Room in the maps as they are.
    pub(super) const fn capacity(&self) -> Capacity {
        self.capacity
    }

    /// Gives a listening socket its place.
    pub(super) fn put_socket(&mut self, idx: u32, socket: &impl std::os::fd::AsRawFd) -> Result<(), Error> {
        self.sockets.set(idx, socket, 0).map_err(failed::<map::Sockets>)
    }

    /// Takes a listening socket out of its place; an empty place is as good.
    pub(super) fn clear_socket(&mut self, idx: u32) {
        // A socket that was closed has left the map by itself.
        drop(self.sockets.clear_index(&idx));
    }

    /// Packets and bytes at an index of `REASONS`, of all processors together.
    pub(super) fn reason(&self, index: u32) -> Result<Count, Error> {
        let values = self.reasons.get(&index, 0).map_err(failed::<map::Reasons>)?;
        Ok(values.iter().fold(Count::default(), |sum, Shared(one)| Count {
            packets: sum.packets + one.packets,
            bytes: sum.bytes + one.bytes,
        }))
    }

    /// The counters of a service, of all processors together.
    pub(super) fn service_count(&self, id: u32) -> Result<ServiceCount, Error> {
        let values = self.service_counts.get(&id, 0).map_err(failed::<map::ServiceCounts>)?;
        Ok(values.iter().fold(ServiceCount::default(), |sum, Shared(one)| ServiceCount {
            packets: sum.packets + one.packets,
            bytes: sum.bytes + one.bytes,
            reply_packets: sum.reply_packets + one.reply_packets,
            reply_bytes: sum.reply_bytes + one.reply_bytes,
            new_flows: sum.new_flows + one.new_flows,
            steered: sum.steered + one.steered,
            dropped: sum.dropped + one.dropped,
        }))
    }

    /// The counters of an endpoint row, of all processors together.
    pub(super) fn endpoint_count(&self, row: u32) -> Result<EndpointCount, Error> {
        let values = self.endpoint_counts.get(&row, 0).map_err(failed::<map::EndpointCounts>)?;
        Ok(values.iter().fold(EndpointCount::default(), |sum, Shared(one)| EndpointCount {
            packets: sum.packets + one.packets,
            bytes: sum.bytes + one.bytes,
            reply_packets: sum.reply_packets + one.reply_packets,
            reply_bytes: sum.reply_bytes + one.reply_bytes,
            new_flows: sum.new_flows + one.new_flows,
        }))
    }
}
