//! One service with many endpoints, in the maps of the agent's programs and in those of the reference: the same
//! addresses, the same weights.

use std::{collections::BTreeMap, net::IpAddr};

use anyhow::{Context as _, Result};
use aya::{
    Ebpf,
    maps::{Array, HashMap, LpmTrie, Map, MapData, lpm_trie::Key},
};
use gateway_common::{
    addr::{Addr, Port, Protocol},
    endpoint::{Endpoint, EndpointState, NextHop},
    filter::{self, FilterWord},
    flow::tick_shift,
    hash::Seed,
    map::{self, MapDef as _},
    service::{Mode, Rate, Service, ServiceBucket, ServiceEntry, ServiceKey, Table, Track},
    settings::{Ports, Settings, Tables as Sizes, Timeouts, Tunnel},
    slot::{Slot, SlotChunk, size_class},
    source::{self, SourceRule},
};
use gateway_userspace::{
    clock::interrupts_per_second,
    kernel::index::Index,
    maglev::{self, Member},
};

use crate::tables::raw;

/// Endpoints of each of the first services of a family: so many that each of 100,000 flows finds a free port for its translation.
pub const ENDPOINTS: u16 = 256;
/// Buckets of the flow table: room for a million flows.
pub const FLOW_BUCKETS: u32 = 1 << 19;
/// Buckets of the table of replies.
pub const REPLY_BUCKETS: u32 = 1 << 19;
/// Services of each family that packets may be for at once: as many with [`ENDPOINTS`], and behind them as many of all.
pub const BUSY: u32 = 16;
/// Services in all, and endpoints of most of them.
pub const SERVICES: u32 = 10_000;
const FEW_ENDPOINTS: u16 = 10;
/// Chunks of slots: room for all of them.
pub const CHUNKS: u32 = 1 << 21;
/// Port of the services.
pub const PORT: u16 = 80;
/// Slots of the reference's ring.
const RING: u32 = 65_537;
/// New flows in a second, of a service and of a source: so many that none is refused.
const RATE: Rate = Rate { per_second: 100_000_000, burst: 100_000_000 };
/// Events that a processor tells of each reason in a tick: what `agent.kernel.events` has for a second by default.
const EVENTS: u16 = 5;

/// The virtual addresses that packets may be for (RFC 2544 and RFC 5180, both for benchmarks), those of IPv4 first.
pub fn services() -> impl Iterator<Item = IpAddr> {
    let v4 = (1..).map(|n| IpAddr::from([198, 18, 0, n]));
    let v6 = (1..).map(|n| IpAddr::from([0x2001, 2, 0, 0, 0, 0, 0, n]));
    let n = usize::try_from(BUSY * 2).unwrap_or(0);
    v4.take(n).chain(v6.take(n))
}

/// An address that no packet is for.
fn idle_addr(id: u32) -> IpAddr {
    let [_, _, high, low] = id.to_be_bytes();
    IpAddr::from([198, 18, 128 + high, low])
}

fn source(v6: bool) -> Addr {
    Addr::from(if v6 { IpAddr::from([0x2001, 2, 0, 1, 0, 0, 0, 1]) } else { IpAddr::from([198, 18, 1, 1]) })
}

fn endpoint_addr(v6: bool, idx: u16) -> Addr {
    let [high, low] = (idx + 2).to_be_bytes();
    Addr::from(if v6 {
        IpAddr::from([0x2001, 2, 0, 2, 0, 0, 0, idx + 2])
    } else {
        IpAddr::from([198, 19, high, low])
    })
}

/// The row of an endpoint; packets to it leave through `interface`.
fn endpoint(v6: bool, idx: u16, service: u32, interface: u32) -> Endpoint {
    let mac = [0x02, 0, 0, 0, 1, 1];
    Endpoint {
        addr: endpoint_addr(v6, idx),
        source: source(v6),
        next_hop: NextHop { interface, mac, own_mac: [0x02, 0, 0, 0, 1, 2] },
        port: Port::new(8_080),
        state: EndpointState::ACTIVE,
        flags: 0,
        service,
        generation: 1,
        mtu: 1_500,
        known_by: Port::NONE,
    }
}

fn map<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut Map> {
    ebpf.map_mut(name).with_context(|| format!("the object has no map {name}"))
}

fn array<'a, const V: usize>(ebpf: &'a mut Ebpf, name: &str) -> Result<Array<&'a mut MapData, [u8; V]>> {
    Ok(Array::try_from(map(ebpf, name)?)?)
}

fn hash<'a, const K: usize, const V: usize>(
    ebpf: &'a mut Ebpf,
    name: &str,
) -> Result<HashMap<&'a mut MapData, [u8; K], [u8; V]>> {
    Ok(HashMap::try_from(map(ebpf, name)?)?)
}

fn service_key(addr: IpAddr) -> ServiceKey {
    ServiceKey::new(Addr::from(addr), Port::new(PORT), Protocol::TCP)
}

/// What kind of service is measured.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Traits {
    /// How packets reach the endpoint.
    pub mode: Mode,
    /// What is remembered about a flow.
    pub track: Track,
    /// Whether every slot has just changed its endpoint.
    pub is_changing: bool,
}

/// Fills the maps of the agent's programs.
///
/// # Errors
/// When the kernel refuses a write.
pub fn fill(ebpf: &mut Ebpf, interface: u32, traits: Traits) -> Result<()> {
    let seed = Seed::new([0x5eed, 0x5eed]);
    let tick_shift = tick_shift(interrupts_per_second());
    let timeouts = Timeouts { opening: 30, open: 3_600, closing: 120, udp: 60, tick_shift, interrupts: 250 };
    let ports = Ports { first: Port::new(61_000), count: 4_536 };
    let sizes = Sizes {
        flow_buckets: FLOW_BUCKETS,
        reply_buckets: REPLY_BUCKETS,
        fragment_buckets: map::FRAGMENT_BUCKETS,
    };
    let settings = Settings::new(seed, ports, sizes, timeouts, Tunnel::DEFAULT)
        .guarding(Settings::SOURCES | Settings::RATES)
        .telling(EVENTS);
    deny(ebpf)?;
    array(ebpf, map::SettingsMap::NAME)?.set(0, raw::<_, { size_of::<Settings>() }>(&settings), 0)?;
    let empty = vec![ServiceBucket::default(); usize::try_from(map::INDEX_BUCKETS)?];
    let mut made = Made {
        index: Index::new(empty),
        buckets: BTreeMap::new(),
        filter: BTreeMap::new(),
        next: Next::default(),
    };
    for (id, addr) in (0_u32..).zip(services()) {
        let n_endpoints = if id % (BUSY * 2) < BUSY { ENDPOINTS } else { FEW_ENDPOINTS };
        made.service(ebpf, &Wanted { seed, id, addr, n_endpoints, interface, traits })?;
    }
    for id in BUSY * 4..SERVICES {
        let wanted = Wanted { seed, id, addr: idle_addr(id), n_endpoints: FEW_ENDPOINTS, interface, traits };
        made.service(ebpf, &wanted)?;
    }
    for (bucket, entries) in &made.buckets {
        let bytes = raw::<_, { size_of::<ServiceBucket>() }>(entries);
        array(ebpf, map::ServiceIndex::NAME)?.set(*bucket, bytes, 0)?;
    }
    for (index, word) in made.filter {
        array(ebpf, map::Filter::NAME)?.set(index, raw::<_, { size_of::<FilterWord>() }>(&word), 0)?;
    }
    Ok(())
}

/// Refuses a network of each family that no packet is from: for documentation (RFC 5737, RFC 9637).
fn deny(ebpf: &mut Ebpf) -> Result<()> {
    let networks = [
        (Addr::v4([203, 0, 113, 0]), 96 + 24),
        (Addr::from(IpAddr::from([0x3fff, 0, 0, 0, 0, 0, 0, 0])), 32),
    ];
    let mut words = BTreeMap::new();
    for (addr, prefix_bits) in networks {
        let map = map(ebpf, map::SourceNetworks::NAME)?;
        let mut map: LpmTrie<_, [u8; 16], [u8; 4]> = LpmTrie::try_from(map)?;
        let rule = raw::<_, { size_of::<SourceRule>() }>(&SourceRule::DENY);
        map.insert(&Key::new(prefix_bits, raw(&addr)), rule, 0)?;
        let [bit, _] = source::bits(addr);
        words.entry(bit >> 6).or_insert(FilterWord { bits: 0 }).bits |= 1 << (bit & 63);
    }
    for (index, word) in words {
        array(ebpf, map::SourceFilter::NAME)?.set(index, raw::<_, { size_of::<FilterWord>() }>(&word), 0)?;
    }
    Ok(())
}

/// A service to be made.
struct Wanted {
    seed: Seed,
    id: u32,
    addr: IpAddr,
    n_endpoints: u16,
    interface: u32,
    traits: Traits,
}

/// What was made so far, where several services share a value.
struct Made {
    index: Index,
    buckets: BTreeMap<u32, ServiceBucket>,
    filter: BTreeMap<u32, FilterWord>,
    next: Next,
}

/// The first row and chunk that nobody has.
#[derive(Default)]
struct Next {
    row: u32,
    chunk: u32,
}

impl Made {
    fn service(&mut self, ebpf: &mut Ebpf, wanted: &Wanted) -> Result<()> {
        let Wanted { seed, id, addr, n_endpoints, interface, traits } = *wanted;
        let n_slots = size_class(u32::from(n_endpoints));
        let Next { row: first_endpoint, chunk: first_chunk } = self.next;
        let mut members = Vec::new();
        for idx in 0..n_endpoints {
            let row = endpoint(addr.is_ipv6(), idx, id, interface);
            members.push(Member { addr: row.addr, port: row.port, index: idx, weight: 1 });
            let bytes = raw::<_, { size_of::<Endpoint>() }>(&row);
            array(ebpf, map::Endpoints::NAME)?.set(first_endpoint + u32::from(idx), bytes, 0)?;
        }
        slots(ebpf, first_chunk, &maglev::table(&seed, &members, n_slots), traits.is_changing)?;
        self.next.row += u32::from(n_endpoints);
        self.next.chunk += SlotChunk::chunks_for(n_slots);
        let key = service_key(addr);
        let mut service = Service::new(key, id);
        let n_endpoints = u32::from(n_endpoints);
        service.tables = [Table { first_chunk, n_slots, first_endpoint, n_endpoints }; 2];
        service.mode = traits.mode;
        service.track = traits.track;
        service.flow_share = FLOW_BUCKETS;
        service.flags = Service::LIMITED;
        (service.flow_rate, service.source_rate) = (RATE, RATE);
        array(ebpf, map::Services::NAME)?.set(id, raw::<_, { size_of::<Service>() }>(&service), 0)?;
        let bit = filter::bit(Addr::from(addr));
        self.filter.entry(bit >> 6).or_insert(FilterWord { bits: 0 }).bits |= 1 << (bit & 63);
        self.enter(ServiceEntry::new(key, Some(id), 0, 0))
    }

    /// Gives a service its place in the index, as the agent does.
    fn enter(&mut self, entry: ServiceEntry) -> Result<()> {
        for (place, entry) in self.index.put(entry).context("the index has no room")? {
            self.buckets.entry(place.bucket).or_default().entries[place.place] = entry;
        }
        Ok(())
    }
}

fn slots(ebpf: &mut Ebpf, first_chunk: u32, table: &[u16], is_changing: bool) -> Result<()> {
    let mut map = array::<{ size_of::<SlotChunk>() }>(ebpf, map::Slots::NAME)?;
    for (number, part) in (first_chunk..).zip(table.chunks(SlotChunk::LEN)) {
        let mut chunk = SlotChunk::default();
        for (slot, endpoint) in chunk.slots.iter_mut().zip(part) {
            let former = if is_changing { endpoint ^ 1 } else { *endpoint };
            *slot = Slot { endpoint: *endpoint, former };
        }
        map.set(number, raw(&chunk), 0)?;
    }
    Ok(())
}

/// Fills the maps of the reference: one ring for both services, whose slots name an endpoint of the packet's family
/// by an offset, as the classic design's ring does for each of its services.
///
/// # Errors
/// When the kernel refuses a write.
pub fn fill_reference(ebpf: &mut Ebpf, interface: u32) -> Result<()> {
    let seed = Seed::new([0x5eed, 0x5eed]);
    let mut members = Vec::new();
    for v6 in [false, true] {
        let rows = u32::from(ENDPOINTS) * u32::from(v6);
        for idx in 0..ENDPOINTS {
            let row = endpoint(v6, idx, u32::from(v6), interface);
            if !v6 {
                members.push(Member { addr: row.addr, port: row.port, index: idx, weight: 1 });
            }
            let bytes = raw::<_, { size_of::<Endpoint>() }>(&row);
            array(ebpf, "REF_ENDPOINTS")?.set(rows + u32::from(idx), bytes, 0)?;
        }
    }
    for addr in services() {
        let rows = u32::from(ENDPOINTS) * u32::from(addr.is_ipv6());
        let key = raw::<_, { size_of::<ServiceKey>() }>(&service_key(addr));
        hash(ebpf, "REF_SERVICES")?.insert(key, rows.to_ne_bytes(), 0)?;
    }
    let mut ring = array::<4>(ebpf, "REF_RING")?;
    for (slot, endpoint) in (0_u32..).zip(maglev::table(&seed, &members, RING)) {
        ring.set(slot, u32::from(endpoint).to_ne_bytes(), 0)?;
    }
    Ok(())
}
