//! The pipeline's environment in memory: the host's side of the packet tests.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    rc::Rc,
};

use bytemuck::Pod;
use gateway_common::{
    addr::Protocol,
    counter::{Count, EndpointCount, Hook, ServiceCount},
    endpoint::{Endpoint, NextHop},
    filter::{self, FilterWord},
    flow::{Flow, FlowKey, Phase, Scratch, Tick, Translation},
    map::{self, MapDef as _},
    service::{Service, ServiceKey},
    settings::Settings,
    slot::{Slot, SlotChunk},
};
use gateway_ebpf::{
    env::{Env, Maps, Record},
    ingress, reply, steer,
    way::Way,
};

/// Contents of every map, in plain form: what a test starts with, and what it compares afterwards.
#[derive(Clone, Default, Eq, PartialEq)]
pub struct Tables {
    /// Services by virtual address.
    pub services: BTreeMap<ServiceKey, Service>,
    /// Chunks of slots.
    pub chunks: BTreeMap<u32, SlotChunk>,
    /// Endpoint rows.
    pub endpoints: BTreeMap<u32, Endpoint>,
    /// Flows, keyed by the bytes of their keys because those have an order.
    pub flows: BTreeMap<[u8; 40], Flow>,
    /// Translations, likewise.
    pub translations: BTreeMap<[u8; 40], Translation>,
    /// Words of the filter that are not zero.
    pub filter: BTreeMap<u32, FilterWord>,
    /// The settings.
    pub settings: Settings,
    /// Counts by hook and reason that are not zero.
    pub reasons: BTreeMap<u32, Count>,
    /// Counts by service that are not zero.
    pub service_counts: BTreeMap<u32, ServiceCount>,
    /// Counts by endpoint row that are not zero.
    pub endpoint_counts: BTreeMap<u32, EndpointCount>,
    /// Whether the flow tables refuse new entries, as the kernel does when it has no memory.
    pub flows_refused: bool,
}

impl std::fmt::Debug for Tables {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let flows: Vec<_> = self.flows.iter().map(|(key, flow)| (key_of(key), flow)).collect();
        let translations: Vec<_> =
            self.translations.iter().map(|(key, translation)| (key_of(key), translation)).collect();
        f.debug_struct("Tables")
            .field("flows", &flows)
            .field("translations", &translations)
            .field("reasons", &self.reasons)
            .field("service_counts", &self.service_counts)
            .field("endpoint_counts", &self.endpoint_counts)
            .finish_non_exhaustive()
    }
}

fn key_of(bytes: &[u8; 40]) -> FlowKey {
    bytemuck::pod_read_unaligned(bytes)
}

/// The bytes of a flow key, as the tables are keyed.
pub fn key_bytes(key: &FlowKey) -> [u8; 40] {
    raw(key)
}

/// The bytes of a shared type.
pub(crate) fn raw<T: Pod, const N: usize>(value: &T) -> [u8; N] {
    bytemuck::bytes_of(value).try_into().expect("the caller names the size of the type")
}

/// What came out of one run.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Outcome {
    /// The code that the program returned.
    pub code: i32,
    /// The packet afterwards.
    pub bytes: Vec<u8>,
}

/// One packet, and what is around it.
#[derive(Clone, Debug)]
pub struct Run {
    /// The hook.
    pub hook: Hook,
    /// Index of the interface where the packet came in.
    pub ingress: u32,
    /// The present.
    pub now: Tick,
    /// What the kernel's routing table would say.
    pub next_hop: Option<NextHop>,
}

impl Run {
    /// Runs a packet over the tables, and leaves in them what it changed.
    pub fn packet(&self, tables: &mut Tables, packet: &[u8]) -> Outcome {
        let maps = MemoryMaps::new(tables.clone(), self.now);
        let mut env = Memory { maps, run: self.clone(), bytes: packet.to_vec() };
        let code = match self.hook {
            Hook::XdpBalance => {
                i32::from_ne_bytes(ingress::ingress(&mut env).xdp_code(self.ingress).to_ne_bytes())
            }
            Hook::TcIngress => ingress::ingress(&mut env).tc_code(),
            Hook::TcEgress => reply::egress(&mut env).tc_code(),
            Hook::SkLookup => -1,
        };
        *tables = env.maps.into_tables();
        Outcome { code, bytes: env.bytes }
    }

    /// Runs a connection over the tables; `sockets` are the indices that hold a socket. Returns the code and the
    /// index that was chosen.
    pub fn connection(&self, tables: &mut Tables, key: &FlowKey, sockets: &[u32]) -> (u32, Option<u32>) {
        let maps = MemoryMaps::new(tables.clone(), self.now);
        let mut chosen = None;
        let verdict = steer::steer(&maps, key, |socket| {
            chosen = sockets.contains(&socket).then_some(socket);
            chosen.is_some()
        });
        *tables = maps.into_tables();
        (verdict.sk_code(), chosen)
    }
}

struct Memory {
    maps: MemoryMaps,
    run: Run,
    bytes: Vec<u8>,
}

impl Env for Memory {
    type Maps = MemoryMaps;

    fn maps(&self) -> &MemoryMaps {
        &self.maps
    }

    fn hook(&self) -> Hook {
        self.run.hook
    }

    fn len_bytes(&self) -> u32 {
        u32::try_from(self.bytes.len()).unwrap_or(u32::MAX)
    }

    fn ingress(&self) -> u32 {
        self.run.ingress
    }

    fn load<T: Pod>(&self, offset: u32) -> Option<T> {
        let start = usize::try_from(offset).ok()?;
        let bytes = self.bytes.get(start..start.checked_add(size_of::<T>())?)?;
        Some(bytemuck::pod_read_unaligned(bytes))
    }

    fn store<T: Pod>(&mut self, offset: u32, header: &T) -> Option<()> {
        let start = usize::try_from(offset).ok()?;
        let bytes = self.bytes.get_mut(start..start.checked_add(size_of::<T>())?)?;
        bytes.copy_from_slice(bytemuck::bytes_of(header));
        Some(())
    }

    fn next_hop(&mut self, _endpoint: &Endpoint, _protocol: Protocol, _ip_bytes: u16) -> Option<Way> {
        self.run.next_hop.as_ref().map(Way::from)
    }
}

type Rows<T> = RefCell<BTreeMap<[u8; 40], Rc<Cell<T>>>>;

/// The maps over plain tables.
struct MemoryMaps {
    tables: RefCell<Tables>,
    flows: Rows<Flow>,
    translations: Rows<Translation>,
    now: Tick,
}

impl MemoryMaps {
    fn new(mut tables: Tables, now: Tick) -> Self {
        let flows = lend(std::mem::take(&mut tables.flows));
        let translations = lend(std::mem::take(&mut tables.translations));
        Self { tables: RefCell::new(tables), flows, translations, now }
    }

    fn into_tables(self) -> Tables {
        let mut tables = self.tables.into_inner();
        tables.flows = settle(self.flows);
        tables.translations = settle(self.translations);
        tables
    }
}

fn lend<T>(plain: BTreeMap<[u8; 40], T>) -> Rows<T> {
    RefCell::new(plain.into_iter().map(|(key, value)| (key, Rc::new(Cell::new(value)))).collect())
}

fn settle<T: Copy>(rows: Rows<T>) -> BTreeMap<[u8; 40], T> {
    rows.into_inner().into_iter().map(|(key, value)| (key, value.get())).collect()
}

impl Maps for MemoryMaps {
    type Row<T: 'static> = Rc<T>;

    fn now(&self) -> Tick {
        self.now
    }

    fn filter_word(&self, index: u32) -> FilterWord {
        self.tables.borrow().filter.get(&index).copied().unwrap_or_default()
    }

    fn settings(&self) -> Option<Rc<Settings>> {
        Some(Rc::new(self.tables.borrow().settings))
    }

    fn service(&self, key: &ServiceKey) -> Option<Service> {
        self.tables.borrow().services.get(key).copied()
    }

    fn slot(&self, chunk: u32, index: u32) -> Option<Slot> {
        if chunk >= map::Slots::CAPACITY {
            return None;
        }
        let chunk = self.tables.borrow().chunks.get(&chunk).copied().unwrap_or_default();
        chunk.slots.get(usize::try_from(index % SlotChunk::SLOTS).ok()?).copied()
    }

    fn endpoint(&self, row: u32) -> Option<Rc<Endpoint>> {
        (row < map::Endpoints::CAPACITY)
            .then(|| Rc::new(self.tables.borrow().endpoints.get(&row).copied().unwrap_or_default()))
    }

    fn flow(&self, key: &FlowKey) -> Option<Rc<Cell<Flow>>> {
        self.flows.borrow().get(&key_bytes(key)).cloned()
    }

    fn translation(&self, key: &FlowKey) -> Option<Rc<Cell<Translation>>> {
        self.translations.borrow().get(&key_bytes(key)).cloned()
    }

    fn record_flow(&self, key: &FlowKey, flow: &Flow) -> Record {
        if self.tables.borrow().flows_refused {
            return Record::Refused;
        }
        self.flows.borrow_mut().insert(key_bytes(key), Rc::new(Cell::new(*flow)));
        Record::Written
    }

    fn record_translation(&self, key: &FlowKey, translation: &Translation) -> Record {
        if self.tables.borrow().flows_refused {
            return Record::Refused;
        }
        let mut rows = self.translations.borrow_mut();
        if rows.contains_key(&key_bytes(key)) {
            return Record::Exists;
        }
        rows.insert(key_bytes(key), Rc::new(Cell::new(*translation)));
        Record::Written
    }

    fn forget_translation(&self, key: &FlowKey) {
        self.translations.borrow_mut().remove(&key_bytes(key));
    }

    fn refresh_translation(row: &Rc<Cell<Translation>>, seen: Tick, phase: Phase) {
        let mut refreshed = row.get();
        (refreshed.seen, refreshed.phase) = (seen, phase);
        row.set(refreshed);
    }

    fn close_flow(row: &Rc<Cell<Flow>>) {
        let mut closed = row.get();
        closed.phase = Phase::CLOSING;
        row.set(closed);
    }

    fn replace_translation(&self, key: &FlowKey, translation: &Translation) -> Record {
        if self.tables.borrow().flows_refused {
            return Record::Refused;
        }
        self.translations.borrow_mut().insert(key_bytes(key), Rc::new(Cell::new(*translation)));
        Record::Written
    }

    fn scratch<R>(&self, use_it: impl FnOnce(&mut Scratch) -> R) -> Option<R> {
        Some(use_it(&mut bytemuck::Zeroable::zeroed()))
    }

    fn count_reason(&self, index: u32, bytes: u64) {
        let mut tables = self.tables.borrow_mut();
        let count = tables.reasons.entry(index).or_default();
        count.packets += 1;
        count.bytes += bytes;
    }

    fn count_service(&self, id: u32, change: impl FnOnce(&mut ServiceCount)) {
        if id < map::ServiceCounts::CAPACITY {
            change(self.tables.borrow_mut().service_counts.entry(id).or_default());
        }
    }

    fn count_endpoint(&self, row: u32, change: impl FnOnce(&mut EndpointCount)) {
        if row < map::EndpointCounts::CAPACITY {
            change(self.tables.borrow_mut().endpoint_counts.entry(row).or_default());
        }
    }
}

impl Tables {
    /// Sets the filter's bit for an address.
    pub fn claim(&mut self, addr: gateway_common::addr::Addr) {
        let bit = filter::bit(addr);
        self.filter.entry(bit >> 6).or_default().bits |= 1 << (bit & 63);
    }
}
