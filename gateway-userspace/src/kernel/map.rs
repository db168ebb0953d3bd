//! The kernel's maps, typed by their definitions, and the one bridge to aya's notion of plain bytes.
#![expect(unsafe_code, reason = "the one bridge to aya")]

use std::{mem::offset_of, os::fd::AsFd, path::Path, sync::atomic::Ordering};

use aya::{
    Ebpf,
    maps::{Array, LpmTrie, MapData, MapError, PerCpuArray, SockMap, lpm_trie::Key},
};
use gateway_common::{
    addr::Addr,
    cookie::{CookieKeys, SynCookie},
    counter::{Count, EndpointCount, Hook, HookCounts, Reason, ServiceCount, ServiceReasons},
    endpoint::{Endpoint, NextHop},
    event::EventCount,
    filter::{self, FilterWord},
    flow::{FlowCount, ServiceFlowCount},
    health::EndpointHealth,
    map::{self, MapDef},
    receive::Receive,
    service::{PortRange, Service, ServiceBucket, ServiceEntry, ServiceKey},
    settings::Settings,
    slot::{Slot, SlotChunk},
    socket::SocketScope,
    source::{self, RefusedRow, RefusedSource, SourceNetwork, SourceRule},
};

use crate::{
    image::Capacity,
    kernel::{
        Error,
        index::{Index, Write},
        maps::{Maps, Observed},
        sys::MappedRows,
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
    index: Index,
    buckets: MappedRows<ServiceBucket>,
    services: MappedRows<Service>,
    port_ranges: MappedRows<PortRange>,
    endpoints: MappedRows<Endpoint>,
    slots: MappedRows<SlotChunk>,
    service_flows: MappedRows<ServiceFlowCount>,
    endpoint_flows: MappedRows<FlowCount>,
    /// Buckets of the flow table and of the table of replies.
    flow_buckets: [u32; 2],
    filter: Rows<FilterWord>,
    source_networks: LpmTrie<MapData, [u8; 16], Shared<SourceRule>>,
    source_filter: Rows<FilterWord>,
    syn_cookies: Rows<SynCookie>,
    cookie_keys: Rows<CookieKeys>,
    refused_sources: PerCpu<RefusedRow>,
    settings: Rows<Settings>,
    receiving: Rows<Receive>,
    socket_scopes: Rows<SocketScope>,
    sockets: SockMap<MapData>,
    reasons: PerCpu<HookCounts>,
    service_counts: PerCpu<ServiceCount>,
    service_reasons: PerCpu<ServiceReasons>,
    endpoint_counts: PerCpu<EndpointCount>,
    endpoint_health: PerCpu<EndpointHealth>,
    event_counts: PerCpu<EventCount>,
}

fn taken<M, T>(object: &mut Ebpf) -> Result<T, Error>
where
    M: MapDef,
    T: TryFrom<aya::maps::Map, Error = MapError>,
{
    let map = object.take_map(M::NAME).ok_or(Error::NoMap { name: M::NAME })?;
    T::try_from(map).map_err(|source| Error::Map { name: M::NAME, source })
}

pub(super) fn mapped<M: MapDef>(object: &Ebpf) -> Result<MappedRows<M::Value>, Error> {
    let Some(aya::maps::Map::Array(data)) = object.map(M::NAME) else {
        return Err(Error::NoMap { name: M::NAME });
    };
    rows_of::<M>(data)
}

/// The rows of a pinned map, which has the kind and the sizes of its definition.
pub(super) fn mapped_at<M: MapDef>(pin: &Path) -> Result<MappedRows<M::Value>, Error> {
    rows_of::<M>(&MapData::from_pin(pin).map_err(failed::<M>)?)
}

fn rows_of<M: MapDef>(data: &MapData) -> Result<MappedRows<M::Value>, Error> {
    let n = data.info().map_err(failed::<M>)?.max_entries();
    MappedRows::new(data.fd().as_fd(), n).map_err(memory::<M>)
}

fn size_of_map<M: MapDef>(object: &Ebpf) -> Result<u32, Error> {
    use aya::maps::Map;
    let Some(Map::Array(data) | Map::PerCpuArray(data)) = object.map(M::NAME) else {
        return Err(Error::NoMap { name: M::NAME });
    };
    Ok(data.info().map_err(failed::<M>)?.max_entries())
}

const fn memory<M: MapDef>(source: std::io::Error) -> Error {
    Error::Memory { name: M::NAME, source }
}

fn failed<M: MapDef>(source: MapError) -> Error {
    Error::Map { name: M::NAME, source }
}

impl KernelMaps {
    /// Takes the maps out of a loaded object.
    pub(super) fn take(object: &mut Ebpf) -> Result<Self, Error> {
        let buckets = mapped::<map::ServiceIndex>(object)?;
        let capacity = Capacity {
            services: size_of_map::<map::Services>(object)?
                .min(size_of_map::<map::ServiceCounts>(object)?)
                .min(size_of_map::<map::ServiceReasons>(object)?),
            rows: size_of_map::<map::Endpoints>(object)?.min(size_of_map::<map::EndpointCounts>(object)?),
            chunks: size_of_map::<map::Slots>(object)?,
        };
        Ok(Self {
            capacity,
            index: indexed(&buckets),
            buckets,
            services: mapped::<map::Services>(object)?,
            port_ranges: mapped::<map::PortRanges>(object)?,
            endpoints: mapped::<map::Endpoints>(object)?,
            slots: mapped::<map::Slots>(object)?,
            service_flows: mapped::<map::ServiceFlows>(object)?,
            endpoint_flows: mapped::<map::EndpointFlows>(object)?,
            flow_buckets: [size_of_map::<map::Flows>(object)?, size_of_map::<map::Replies>(object)?],
            filter: taken::<map::Filter, _>(object)?,
            source_networks: taken::<map::SourceNetworks, _>(object)?,
            source_filter: taken::<map::SourceFilter, _>(object)?,
            syn_cookies: taken::<map::SynCookies, _>(object)?,
            cookie_keys: taken::<map::CookieKeysMap, _>(object)?,
            refused_sources: taken::<map::RefusedSources, _>(object)?,
            settings: taken::<map::SettingsMap, _>(object)?,
            receiving: taken::<map::Receiving, _>(object)?,
            socket_scopes: taken::<map::SocketScopes, _>(object)?,
            sockets: taken::<map::Sockets, _>(object)?,
            reasons: taken::<map::Reasons, _>(object)?,
            service_counts: taken::<map::ServiceCounts, _>(object)?,
            service_reasons: taken::<map::ServiceReasons, _>(object)?,
            endpoint_counts: taken::<map::EndpointCounts, _>(object)?,
            endpoint_health: taken::<map::EndpointHealths, _>(object)?,
            event_counts: taken::<map::EventCounts, _>(object)?,
        })
    }

    /// Buckets of the flow table and of the table of replies.
    pub(super) const fn flow_buckets(&self) -> [u32; 2] {
        self.flow_buckets
    }
}

/// What stands in the buckets of an index.
pub(super) fn indexed(buckets: &MappedRows<ServiceBucket>) -> Index {
    Index::new((0..buckets.len()).map_while(|bucket| buckets.get(bucket)).collect())
}

/// Makes the writes of an index, in their order.
pub(super) fn write_index(buckets: &MappedRows<ServiceBucket>, writes: &[Write]) -> Result<(), Error> {
    for (place, entry) in writes {
        let first = place.place * ENTRY_WORDS;
        let words: [u64; ENTRY_WORDS] = bytemuck::cast(*entry);
        // The word with the number of the service last where the entry comes, first where it goes.
        let order: [usize; ENTRY_WORDS] = if entry.is_taken() { [0, 1, 3, 2] } else { [2, 3, 0, 1] };
        for at in order {
            let word = buckets.word(place.bucket, first + at);
            let (word, value) = word.zip(words.get(at)).ok_or_else(no_room::<map::ServiceIndex>)?;
            word.store(*value, Ordering::Release);
        }
    }
    Ok(())
}

/// Words of an entry of the index.
const ENTRY_WORDS: usize = size_of::<ServiceEntry>() / 8;

fn no_room<M: MapDef>() -> Error {
    Error::Map { name: M::NAME, source: MapError::OutOfBounds { index: 0, max_entries: M::CAPACITY } }
}

/// Words of a service in the order in which they are written: `current`, which makes a table current, last.
const SERVICE_ORDER: [usize; 16] = [0, 1, 2, 3, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 4];

/// Words of an endpoint in the order in which they are written: the one with the state last, before it the next hop, of
/// which the word with the interface comes last.
const ENDPOINT_ORDER: [usize; 8] = [0, 1, 2, 3, 7, 5, 4, 6];

impl Maps for KernelMaps {
    fn observe(&self) -> Result<Observed, Error> {
        let mut observed = Observed::default();
        let (services, ranges) = (&self.services, &self.port_ranges);
        observed.follow(self.index.entries().copied(), |id| services.get(id), |row| ranges.get(row));
        observed.follow_slots(|table| self.slots.read(table.first_chunk, table.n_slots));
        for (row, endpoint) in (0..).map_while(|row| Some((row, self.endpoints.get(row)?))) {
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
        for word in 0..source::WORDS {
            let Shared(value) = self.source_filter.get(&word, 0).map_err(failed::<map::SourceFilter>)?;
            if value.bits != 0 {
                observed.source_filter.insert(word, value.bits);
            }
        }
        for entry in &self.source_networks {
            let (key, Shared(rule)) = entry.map_err(failed::<map::SourceNetworks>)?;
            let network = SourceNetwork { prefix_bits: key.prefix_len(), addr: Addr::v6(key.data()) };
            observed.networks.insert(network, rule);
        }
        observed.guards = self.settings()?.guards;
        Ok(observed)
    }

    fn settings(&self) -> Result<Settings, Error> {
        self.settings.get(&0, 0).map(|Shared(settings)| settings).map_err(failed::<map::SettingsMap>)
    }

    fn put_settings(&mut self, settings: &Settings) -> Result<(), Error> {
        self.settings.set(0, Shared(*settings), 0).map_err(failed::<map::SettingsMap>)
    }

    fn put_service(&mut self, _: &ServiceKey, service: &Service) -> Result<(), Error> {
        self.services.put(service.id, service, &SERVICE_ORDER).map_err(memory::<map::Services>)
    }

    fn put_ranges(&mut self, first: u32, ranges: &[PortRange]) -> Result<(), Error> {
        let mut rows = (first..).zip(ranges);
        rows.try_for_each(|(row, range)| self.port_ranges.put(row, range, &[0]))
            .map_err(memory::<map::PortRanges>)
    }

    fn put_entry(&mut self, entry: &ServiceEntry) -> Result<(), Error> {
        let writes = self.index.put(*entry).ok_or_else(no_room::<map::ServiceIndex>)?;
        write_index(&self.buckets, &writes)
    }

    fn delete_entry(&mut self, key: &ServiceKey) -> Result<(), Error> {
        let writes = self.index.remove(key);
        write_index(&self.buckets, &writes)
    }

    fn put_endpoint(&mut self, row: u32, endpoint: &Endpoint) -> Result<(), Error> {
        let failed = memory::<map::Endpoints>;
        if let Some(present) = self.endpoints.get(row) {
            let whose = |row: &Endpoint| (row.addr, row.port, row.owner(), row.flags);
            let is_other = whose(&present) != whose(endpoint);
            // While more than one word changes, packets see a row that takes none, or one without a next hop.
            let mut between = present;
            if is_other {
                between.state = gateway_common::endpoint::EndpointState::DOWN;
            }
            if present.next_hop != endpoint.next_hop {
                between.next_hop.interface = NextHop::UNKNOWN.interface;
            }
            self.endpoints.put(row, &between, &[6, 4]).map_err(failed)?;
        }
        self.endpoints.put(row, endpoint, &ENDPOINT_ORDER).map_err(failed)
    }

    fn clear_service_count(&mut self, id: u32) -> Result<(), Error> {
        self.syn_cookies.set(id, Shared(SynCookie::default()), 0).map_err(failed::<map::SynCookies>)?;
        if let Some(evicted) = self.service_flows.word(id, offset_of!(ServiceFlowCount, evicted) / 8) {
            evicted.store(0, Ordering::Relaxed);
        }
        let failed_counts = failed::<map::ServiceCounts>;
        self.service_counts.set(id, zeroes::<map::ServiceCounts>()?, 0).map_err(failed_counts)?;
        let failed_reasons = failed::<map::ServiceReasons>;
        self.service_reasons.set(id, zeroes::<map::ServiceReasons>()?, 0).map_err(failed_reasons)
    }

    fn clear_endpoint_count(&mut self, row: u32) -> Result<(), Error> {
        self.endpoint_counts
            .set(row, zeroes::<map::EndpointCounts>()?, 0)
            .map_err(failed::<map::EndpointCounts>)?;
        self.endpoint_health
            .set(row, zeroes::<map::EndpointHealths>()?, 0)
            .map_err(failed::<map::EndpointHealths>)
    }

    fn put_filter(&mut self, word: u32, bits: u64) -> Result<(), Error> {
        self.filter.set(word, Shared(FilterWord { bits }), 0).map_err(failed::<map::Filter>)
    }

    fn put_source_network(&mut self, network: &SourceNetwork, rule: SourceRule) -> Result<(), Error> {
        let failed = failed::<map::SourceNetworks>;
        self.source_networks.insert(&trie_key(network), Shared(rule), 0).map_err(failed)
    }

    fn delete_source_network(&mut self, network: &SourceNetwork) -> Result<(), Error> {
        match self.source_networks.remove(&trie_key(network)) {
            Ok(()) | Err(MapError::KeyNotFound) => Ok(()),
            Err(source) => Err(failed::<map::SourceNetworks>(source)),
        }
    }

    fn put_source_filter(&mut self, word: u32, bits: u64) -> Result<(), Error> {
        self.source_filter.set(word, Shared(FilterWord { bits }), 0).map_err(failed::<map::SourceFilter>)
    }

    fn put_guards(&mut self, guards: u8) -> Result<(), Error> {
        let settings = self.settings()?;
        self.put_settings(&settings.guarding(guards))
    }

    fn put_slots(&mut self, _: &ServiceKey, first_chunk: u32, slots: &[Slot]) -> Result<(), Error> {
        self.slots.write(first_chunk, slots).map_err(memory::<map::Slots>)
    }
}

/// The key of a network as the library has it: the same bytes.
const fn trie_key(network: &SourceNetwork) -> Key<[u8; 16]> {
    Key::new(network.prefix_bits, network.addr.octets())
}

/// Nothing, for each processor.
fn zeroes<M>() -> Result<aya::maps::PerCpuValues<Shared<M::Value>>, Error>
where
    M: MapDef,
    M::Value: Default,
{
    let failed = memory::<M>;
    let n_cpus = aya::util::nr_cpus().map_err(|(_, source)| failed(source))?;
    aya::maps::PerCpuValues::try_from(vec![Shared(M::Value::default()); n_cpus]).map_err(failed)
}

impl KernelMaps {
    /// Room in the maps as they are.
    pub(super) const fn capacity(&self) -> Capacity {
        self.capacity
    }

    /// Says whose tunnels end here.
    pub(super) fn put_receive(&mut self, receive: &Receive) -> Result<(), Error> {
        self.receiving.set(0, Shared(*receive), 0).map_err(failed::<map::Receiving>)
    }

    /// Says whose sockets may be translated.
    pub(super) fn put_socket_scope(&mut self, scope: SocketScope) -> Result<(), Error> {
        self.socket_scopes.set(0, Shared(scope), 0).map_err(failed::<map::SocketScopes>)
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

    /// Sources whose packets were refused, of all processors, some of them more than once.
    pub(super) fn refused_sources(&self) -> Result<Vec<RefusedSource>, Error> {
        let mut sources = Vec::new();
        for row in 0..map::RefusedSources::CAPACITY {
            let values = self.refused_sources.get(&row, 0).map_err(failed::<map::RefusedSources>)?;
            let all = values.iter().flat_map(|Shared(row)| row.sources);
            sources.extend(all.filter(|source| source.packets != 0));
        }
        Ok(sources)
    }

    /// Packets and bytes at a hook, by the number of the reason, of all processors together.
    pub(super) fn reasons(&self, hook: Hook) -> Result<[Count; Reason::ROOM], Error> {
        let values = self.reasons.get(&hook.number(), 0).map_err(failed::<map::Reasons>)?;
        let mut sums = [Count::default(); Reason::ROOM];
        for Shared(one) in values.iter() {
            for (sum, count) in sums.iter_mut().zip(&one.reasons) {
                sum.packets += count.packets;
                sum.bytes += count.bytes;
            }
        }
        Ok(sums)
    }

    /// Whether a service answers with cookies, and how many it has sent.
    pub(super) fn syn_cookie(&self, id: u32) -> Result<SynCookie, Error> {
        let row = self.syn_cookies.get(&id, 0).map_err(failed::<map::SynCookies>)?;
        let Shared(row) = row;
        Ok(row)
    }

    /// Keys that the programs make cookies with.
    pub(super) fn cookie_keys(&self) -> Result<CookieKeys, Error> {
        let row = self.cookie_keys.get(&0, 0).map_err(failed::<map::CookieKeysMap>)?;
        let Shared(keys) = row;
        Ok(keys)
    }

    /// Replaces them.
    pub(super) fn put_cookie_keys(&mut self, keys: &CookieKeys) -> Result<(), Error> {
        self.cookie_keys.set(0, Shared(*keys), 0).map_err(failed::<map::CookieKeysMap>)
    }

    /// What was told of packets with a reason, of all processors together.
    pub(super) fn event_count(&self, reason: Reason) -> Result<EventCount, Error> {
        let values = self.event_counts.get(&reason.number(), 0).map_err(failed::<map::EventCounts>)?;
        Ok(values.iter().fold(EventCount::default(), |sum, Shared(one)| sum.and(one)))
    }

    /// Entries that a service holds in the flow table.
    pub(super) fn service_flows(&self, id: u32) -> ServiceFlowCount {
        self.service_flows.get(id).unwrap_or_default()
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
            unrecorded: sum.unrecorded + one.unrecorded,
        }))
    }

    /// Packets of a service that were dropped, of all processors together: by reason, those that are not zero.
    pub(super) fn service_drops(&self, id: u32) -> Result<Vec<(&'static str, u64)>, Error> {
        let values = self.service_reasons.get(&id, 0).map_err(failed::<map::ServiceReasons>)?;
        let mut sums = [0_u64; Reason::PLACES];
        for Shared(one) in values.iter() {
            sums.iter_mut().zip(one.packets).for_each(|(sum, packets)| *sum += packets);
        }
        let names = Reason::OF_SERVICES.iter().map(|reason| reason.name());
        let names = names.chain(std::iter::repeat(Reason::OTHER));
        Ok(names.zip(sums).filter(|(_, packets)| *packets != 0).collect())
    }

    /// Flows of an endpoint row in the flow table.
    pub(super) fn endpoint_flows(&self, row: u32) -> u64 {
        self.endpoint_flows.get(row).map_or(0, |count| count.entries)
    }

    /// The signals of an endpoint row, of all processors together.
    pub(super) fn endpoint_health(&self, row: u32) -> Result<EndpointHealth, Error> {
        let values = self.endpoint_health.get(&row, 0).map_err(failed::<map::EndpointHealths>)?;
        Ok(values.iter().fold(EndpointHealth::default(), |sum, Shared(one)| sum.and(one)))
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
