//! A small world for packet tests: a few services with endpoints, as the agent would have written them.

use std::{collections::BTreeMap, net::SocketAddr, ops::Range};

use gateway_common::{
    addr::{Addr, Port, Protocol},
    counter::{Count, Hook, Reason},
    endpoint::{Endpoint, EndpointState, NextHop},
    filter,
    flow::{Flow, FlowKey, Head, HeadState, Phase, Reply, Tick},
    hash::{self, Seed},
    map::INDEX_BUCKETS,
    service::{Mode, Service, ServiceBucket, ServiceEntry, ServiceKey, Table},
    settings::{Ports, Settings, Tables as Sizes, Timeouts, Tunnel},
    slot::{Slot, SlotChunk},
};

use gateway_ebpf::table::{self, reply};

use crate::{
    memory::{BUCKETS, FRAGMENTS, Tables},
    packet::{CLIENT_MAC, NODE_MAC, Packet},
};

/// First translation port.
pub const FIRST_PORT: u16 = 20_000;
/// Translation ports.
pub const N_PORTS: u16 = 100;
/// Timeouts in ticks.
pub const TIMEOUTS: Timeouts =
    Timeouts { opening: 5, open: 300, closing: 60, udp: 30, tick_shift: TICK_SHIFT, interrupts: INTERRUPTS };
/// Timer interrupts in a second, as the settings say; that they are others in truth makes no difference to a case.
pub const INTERRUPTS: u16 = 250;
/// Bits by which the kernel's timer interrupts are shifted: two seconds at 250 in a second, so that a case seldom falls
/// into two ticks.
pub const TICK_SHIFT: u8 = 9;
/// Link-layer address of the endpoints' side.
pub const ENDPOINT_MAC: [u8; 6] = [0x02, 0, 0, 0, 1, 0x01];
/// Link-layer address of this node towards endpoints.
pub const INNER_MAC: [u8; 6] = [0x02, 0, 0, 0, 1, 0x02];
/// Interface on which every packet comes in: `BPF_PROG_TEST_RUN` uses the loopback interface.
pub const INGRESS: u32 = 1;
/// Another interface.
pub const ELSEWHERE: u32 = 77;

/// Slots of every service.
const N_SLOTS: u32 = 251;
/// Rows of every service.
const N_ROWS: u32 = 2;

/// The tables, and the instant at which they are looked at.
#[derive(Clone, Debug)]
pub struct World {
    /// The maps.
    pub tables: Tables,
    /// The present.
    pub now: Tick,
}

/// A service of the world: its number; its rows are twice that and the next.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Id(pub u32);

/// `198.51.100.1:443`, TCP.
pub const TCP4: Id = Id(0);
/// `198.51.100.1:53`, UDP.
pub const UDP4: Id = Id(1);
/// `[2001:db8::1]:443`, TCP.
pub const TCP6: Id = Id(2);
/// `[2001:db8::1]:53`, UDP.
pub const UDP6: Id = Id(3);
/// `198.51.100.2:443`, TCP, with an endpoint on this node.
pub const LOCAL4: Id = Id(4);
/// `[2001:db8::2]:443`, TCP, with an endpoint on this node.
pub const LOCAL6: Id = Id(5);
/// `198.51.100.1:80`, TCP, served by the agent.
pub const AGENT4: Id = Id(6);

impl Id {
    /// The first row of the service.
    pub const fn row(self) -> u32 {
        self.0 * N_ROWS
    }
}

impl Tables {
    /// The count of a reason at a hook.
    pub fn reason(&self, hook: Hook, reason: Reason) -> Count {
        self.reasons.get(&(hook.number(), reason.number())).copied().unwrap_or_default()
    }

    /// Every live entry of the flow table.
    pub fn live(&self) -> impl Iterator<Item = &Flow> {
        self.flows.values().flat_map(|bucket| &bucket.flows).filter(|flow| flow.head.state.is_live())
    }

    /// The index of the services, as the agent would write it.
    pub fn index(&self) -> BTreeMap<u32, ServiceBucket> {
        let mut buckets: BTreeMap<u32, ServiceBucket> = BTreeMap::new();
        let mut keys: BTreeMap<ServiceKey, (Option<u32>, (u32, u32))> = BTreeMap::new();
        for (key, service) in &self.services {
            keys.entry(*key).or_default().0 = Some(service.id);
        }
        for (key, id) in &self.echo {
            keys.entry(*key).or_default().0 = Some(*id);
        }
        for (key, ranges) in &self.range_keys {
            keys.entry(*key).or_default().1 = *ranges;
        }
        for (key, (service, (first, n))) in keys {
            let entry = ServiceEntry::new(key, service, first, n);
            let place =
                hash::service(&key).map(|bucket| bucket & (INDEX_BUCKETS - 1)).into_iter().find_map(|at| {
                    let bucket = buckets.entry(at).or_default();
                    let place = bucket.entries.iter().position(|entry| *entry == ServiceEntry::default())?;
                    Some((at, place))
                });
            let (at, place) = place.expect("a test has few services");
            buckets.get_mut(&at).expect("it was just made").entries[place] = entry;
        }
        buckets.retain(|_, bucket| *bucket != ServiceBucket::default());
        buckets
    }

    /// Sets the filter's bit for an address.
    pub fn claim(&mut self, addr: Addr) {
        let bit = filter::bit(addr);
        self.filter.entry(bit >> 6).or_default().bits |= 1 << (bit & 63);
    }
}

impl World {
    /// The world at an instant.
    pub fn new(now: Tick) -> Self {
        let ports = Ports { first: Port::new(FIRST_PORT), count: N_PORTS };
        let sizes = Sizes { flow_buckets: BUCKETS, reply_buckets: BUCKETS, fragment_buckets: FRAGMENTS };
        let settings = Settings::new(Seed::new([1, 2]), ports, sizes, TIMEOUTS, Tunnel::DEFAULT);
        let tables = Tables { settings, ..Tables::default() };
        let mut world = Self { tables, now };
        world.service(TCP4, "198.51.100.1:443", Protocol::TCP, ["10.0.0.10:8443", "10.0.0.11:8443"]);
        world.service(UDP4, "198.51.100.1:53", Protocol::UDP, ["10.0.0.10:5353", "10.0.0.11:5353"]);
        world.service(TCP6, "[2001:db8::1]:443", Protocol::TCP, ["[fd00::10]:8443", "[fd00::11]:8443"]);
        world.service(UDP6, "[2001:db8::1]:53", Protocol::UDP, ["[fd00::10]:5353", "[fd00::11]:5353"]);
        world.service(LOCAL4, "198.51.100.2:443", Protocol::TCP, ["10.0.0.1:9000", "10.0.0.11:9000"]);
        world.service(LOCAL6, "[2001:db8::2]:443", Protocol::TCP, ["[fd00::1]:9000", "[fd00::11]:9000"]);
        world.service(AGENT4, "198.51.100.1:80", Protocol::TCP, ["10.0.0.10:80", "10.0.0.11:80"]);
        for local in [LOCAL4, LOCAL6] {
            let row = world.row(local.row());
            (row.flags, row.source, row.next_hop) = (Endpoint::LOCAL, Addr::UNSPECIFIED, NextHop::UNKNOWN);
        }
        world.change(AGENT4, |service| {
            (service.mode, service.first_socket, service.n_sockets) = (Mode::AGENT, 4, 2);
        });
        for addr in ["10.0.0.1", "fd00::1"] {
            world.tables.claim(addr_of(addr));
        }
        world
    }

    fn service(&mut self, id: Id, at: &str, protocol: Protocol, endpoints: [&str; 2]) {
        let at: SocketAddr = at.parse().expect("a test writes addr:port");
        let chunks = SlotChunk::chunks_for(N_SLOTS);
        let first = id.0 * chunks * 2;
        let key = ServiceKey::new(at.ip().into(), Port::new(at.port()), protocol);
        let mut service = Service::new(key, id.0);
        let table = |first_chunk| Table {
            first_chunk,
            n_slots: N_SLOTS,
            first_endpoint: id.row(),
            n_endpoints: N_ROWS,
        };
        service.tables = [table(first), table(first + chunks)];
        service.halves = [first, first + chunks];
        service.current = 1;
        service.mode = Mode::NAT;
        service.flow_share = 64;
        self.tables.claim(at.ip().into());
        self.tables.services.insert(key, service);
        for (row, endpoint) in (id.row()..).zip(endpoints) {
            let endpoint: SocketAddr = endpoint.parse().expect("a test writes addr:port");
            let source = if endpoint.is_ipv4() { "10.0.0.1" } else { "fd00::1" };
            self.tables.endpoints.insert(
                row,
                Endpoint {
                    addr: endpoint.ip().into(),
                    source: addr_of(source),
                    next_hop: NextHop { interface: INGRESS, mac: ENDPOINT_MAC, own_mac: INNER_MAC },
                    port: Port::new(endpoint.port()),
                    state: EndpointState::ACTIVE,
                    flags: 0,
                    service: id.0,
                    generation: 7,
                    mtu: 1_500,
                    known_by: Port::NONE,
                },
            );
        }
        // The half that is not current leads nowhere, so that a test notices when it is used.
        self.fill_half(first, Slot { endpoint: 999, former: 999 });
        self.slots(id, 0);
    }

    fn fill_half(&mut self, first: u32, slot: Slot) {
        for chunk in first..first + SlotChunk::chunks_for(N_SLOTS) {
            self.tables.chunks.insert(chunk, SlotChunk { slots: [slot; SlotChunk::LEN] });
        }
    }

    /// All current slots of a service lead to this endpoint.
    pub fn slots(&mut self, id: Id, endpoint: u16) {
        let chunks = SlotChunk::chunks_for(N_SLOTS);
        self.fill_half(id.0 * chunks * 2 + chunks, Slot { endpoint, former: endpoint });
    }

    /// All current slots of a service lead to the first endpoint, and led to this one before.
    pub fn changing(&mut self, id: Id, former: u16) {
        let chunks = SlotChunk::chunks_for(N_SLOTS);
        self.fill_half(id.0 * chunks * 2 + chunks, Slot { endpoint: 0, former });
    }

    /// The current slots of a service lead to its two endpoints in turns.
    pub fn slots_in_turns(&mut self, id: Id) {
        let chunks = SlotChunk::chunks_for(N_SLOTS);
        let first = id.0 * chunks * 2 + chunks;
        for chunk in first..first + chunks {
            let mut slots = [Slot::default(); SlotChunk::LEN];
            for (slot, endpoint) in slots.iter_mut().zip([0, 1].into_iter().cycle()) {
                *slot = Slot { endpoint, former: endpoint };
            }
            self.tables.chunks.insert(chunk, SlotChunk { slots });
        }
    }

    /// An endpoint row.
    pub fn row(&mut self, row: u32) -> &mut Endpoint {
        self.tables.endpoints.get_mut(&row).expect("a test names a row of the world")
    }

    /// Both rows of a service get this state.
    pub fn state(&mut self, id: Id, state: EndpointState) {
        for row in id.row()..id.row() + N_ROWS {
            self.row(row).state = state;
        }
    }

    /// Changes a service.
    pub fn change(&mut self, id: Id, by: impl FnOnce(&mut Service)) {
        let service = self.tables.services.values_mut().find(|service| service.id == id.0);
        by(service.expect("a test names a service of the world"));
    }

    /// Some ticks ago.
    pub fn ago(&self, ticks: u32) -> Tick {
        Tick::new(self.now.count().wrapping_sub(ticks))
    }

    /// Records the flow of a client's packet, and the reply's place.
    pub fn established(&mut self, packet: &Packet, row: u32, port: u16, phase: Phase, seen: Tick) {
        let index = self.flow(packet, row, port, phase, seen);
        self.hold(packet, row, port, index);
    }

    /// Gives the place of a port towards an endpoint to an entry.
    pub fn hold(&mut self, packet: &Packet, row: u32, port: u16, index: u32) {
        let endpoint = *self.row(row);
        let reply = reply_key(&endpoint, &packet.key(), port);
        let of = reply::Of { addr: reply.source, port: reply.source_port, protocol: reply.protocol };
        let spot = reply::Spot::new(&self.tables.settings, &of, reply.destination, Port::new(port));
        let bucket = self.tables.replies.entry(spot.bucket).or_default();
        let way = if endpoint.is_local() { 0 } else { usize::try_from(spot.way).expect("below eight") };
        bucket.replies[way] = Reply::new(spot.tag, index, VERSION);
    }

    /// Records the flow of a client's packet; returns the number of the entry.
    pub fn flow(&mut self, packet: &Packet, row: u32, port: u16, phase: Phase, seen: Tick) -> u32 {
        let key = packet.key();
        let endpoint = *self.row(row);
        let back = NextHop { interface: INGRESS, mac: CLIENT_MAC, own_mac: NODE_MAC };
        let timeout = gateway_ebpf::track::timeout(&self.tables.settings, key.protocol, phase);
        let mut flow = Flow::default();
        (flow.client, flow.client_port, flow.port) = (key.source, key.source_port, key.destination_port);
        (flow.service, flow.endpoint, flow.generation) = (endpoint.service, row, endpoint.generation);
        (flow.expires, flow.source_port, flow.phase) = (seen.after(timeout), Port::new(port), phase);
        flow.next_hop = if port == 0 { NextHop::UNKNOWN } else { back };
        self.entry(&key, flow)
    }

    /// Puts an entry where the flow of this 5-tuple stands; returns its number.
    pub fn entry(&mut self, key: &FlowKey, flow: Flow) -> u32 {
        let hash = hash::flow(&self.tables.settings.keys, key, !key.source.is_v4());
        self.entry_at(hash, key.protocol, flow)
    }

    /// Records which endpoint a client of a service has, until this instant.
    pub fn client(&mut self, client: Addr, id: Id, row: u32, expires: Tick) {
        let mut key = ServiceKey::new(Addr::UNSPECIFIED, Port::NONE, Protocol::TCP);
        self.change(id, |service| key = service.key());
        let hash = hash::client(&self.tables.settings.keys, client, key.addr, !client.is_v4());
        let mut flow = Flow { client, service: id.0, endpoint: row, expires, ..Flow::default() };
        (flow.generation, flow.phase) = (self.row(row).generation, Phase::OPEN);
        self.entry_at(hash, key.protocol, flow);
    }

    /// Puts an entry where a flow with this hash stands; returns its number.
    pub fn entry_at(&mut self, hash: u64, protocol: Protocol, mut flow: Flow) -> u32 {
        let spot = table::Spot::new(hash, self.tables.settings.flow_mask, protocol);
        flow.head = Head { version: VERSION, ..spot.wanted().head() };
        for turn in 0..8 {
            let (bucket, way) = spot.place(turn);
            let at = self.tables.flows.entry(bucket).or_default();
            let place = usize::try_from(way).ok().and_then(|way| at.flows.get_mut(way));
            if let Some(place) = place.filter(|place| **place == Flow::default()) {
                *place = flow;
                let first = spot.place(0).0;
                let displaced = if bucket == first {
                    u64::from(turn != 0)
                } else {
                    place.head.state = place.head.state.displaced();
                    TO_BUCKET
                };
                if displaced != 0 {
                    *self.tables.displaced.entry(first / 8).or_default() += displaced * displaced_one(first);
                }
                *self.tables.service_flows.entry(flow.service).or_default() += 1;
                if flow.client_port != Port::NONE {
                    *self.tables.endpoint_flows.entry(flow.endpoint).or_default() += 1;
                }
                return bucket * 4 + way;
            }
        }
        panic!("a test has few flows");
    }

    /// Takes every place of the first bucket of a flow for others of a service.
    pub fn crowd(&mut self, packet: &Packet, service: u32, expires: Tick) {
        self.occupy(packet, 0..4, service, expires);
    }

    /// Takes the places of these turns in the first bucket of a flow for others of a service, whose homes they are.
    pub fn occupy(&mut self, packet: &Packet, turns: Range<u32>, service: u32, expires: Tick) {
        let row = Id(service).row();
        let generation = self.row(row).generation;
        for turn in turns {
            let (bucket, way) = self.spot(packet).place(turn);
            let flows = &mut self.tables.flows.entry(bucket).or_default().flows;
            let (Ok(at), Ok(tag)) = (usize::try_from(way), u16::try_from(way)) else { continue };
            let Some(flow) = flows.get_mut(at) else { continue };
            (flow.head.tag, flow.head.state) = (tag, HeadState::LIVE);
            // The last of four is a client's, which is no flow.
            let port = u16::try_from((turn + 1) % 4).map_or(Port::NONE, Port::new);
            (flow.client_port, flow.service, flow.expires) = (port, service, expires);
            (flow.endpoint, flow.generation) = (row, generation);
            *self.tables.service_flows.entry(service).or_default() += 1;
            if port != Port::NONE {
                *self.tables.endpoint_flows.entry(row).or_default() += 1;
            }
        }
    }

    /// The entry at the home of a flow.
    pub fn home(&mut self, packet: &Packet) -> &mut Flow {
        let (bucket, way) = self.spot(packet).place(0);
        let way = usize::try_from(way).expect("below four");
        &mut self.tables.flows.entry(bucket).or_default().flows[way]
    }

    /// How many flows of the first bucket of a flow are counted as displaced: to other entries, and to their second bucket.
    pub fn n_displaced(&self, packet: &Packet) -> [u64; 2] {
        let (bucket, _) = self.spot(packet).place(0);
        let word = self.tables.displaced.get(&(bucket / 8)).copied().unwrap_or_default();
        let byte = (word / displaced_one(bucket)) & 0xff;
        [byte % TO_BUCKET, byte / TO_BUCKET]
    }

    /// The two buckets of a flow.
    pub fn buckets(&self, packet: &Packet) -> [u32; 2] {
        let spot = self.spot(packet);
        [0, 4].map(|turn| spot.place(turn).0)
    }

    fn spot(&self, packet: &Packet) -> table::Spot {
        let key = packet.key();
        let hash = hash::flow(&self.tables.settings.keys, &key, !key.source.is_v4());
        table::Spot::new(hash, self.tables.settings.flow_mask, key.protocol)
    }

    /// The entry of a flow.
    pub fn found(&self, packet: &Packet) -> Option<Flow> {
        let key = packet.key();
        self.tables.live().copied().find(|flow| {
            (flow.client, flow.client_port, flow.port) == (key.source, key.source_port, key.destination_port)
                && flow.head.protocol == key.protocol
        })
    }
}

/// One flow in its second bucket, in the byte of its first.
const TO_BUCKET: u64 = 8;

/// One in the byte of a bucket.
const fn displaced_one(bucket: u32) -> u64 {
    1 << (bucket % 8 * 8)
}

/// Version of the entries that a test makes.
const VERSION: u16 = 1;

/// The 5-tuple of an endpoint's packets.
pub fn reply_key(endpoint: &Endpoint, key: &FlowKey, port: u16) -> FlowKey {
    let to = if endpoint.is_local() { key.source } else { endpoint.source };
    FlowKey::new(endpoint.addr, endpoint.port_for(key.destination_port), to, Port::new(port), key.protocol)
}

/// An address as a test writes it.
pub fn addr_of(text: &str) -> Addr {
    text.parse::<std::net::IpAddr>().expect("a test writes an address").into()
}
