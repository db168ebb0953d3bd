//! A small world for packet tests: a few services with endpoints, as the agent would have written them.

use std::net::SocketAddr;

use gateway_common::{
    addr::{Addr, Port, Protocol},
    endpoint::{Endpoint, EndpointState, NextHop},
    flow::{Flow, FlowKey, Phase, Tick, Translation},
    hash::Seed,
    service::{Mode, Service, ServiceKey},
    settings::{Settings, Timeouts},
    slot::{Slot, SlotChunk},
};

use crate::{
    memory::{Tables, key_bytes},
    packet::{CLIENT_MAC, NODE_MAC, Packet},
};

/// First translation port.
pub const FIRST_PORT: u16 = 20_000;
/// Translation ports.
pub const N_PORTS: u16 = 100;
/// Timeouts in ticks.
pub const TIMEOUTS: Timeouts = Timeouts { opening: 5, open: 300, closing: 60, udp: 30 };
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

impl World {
    /// The world at an instant.
    pub fn new(now: Tick) -> Self {
        let settings = Settings::new(Seed::new([1, 2]), Port::new(FIRST_PORT), N_PORTS, TIMEOUTS);
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
        let mut service = Service::default();
        service.id = id.0;
        service.first_endpoint = id.row();
        service.n_endpoints = N_ROWS;
        service.first_chunk = [first, first + chunks];
        service.n_slots = N_SLOTS;
        service.current = 1;
        service.mode = Mode::NAT;
        self.tables.claim(at.ip().into());
        self.tables.services.insert(ServiceKey::new(at.ip().into(), Port::new(at.port()), protocol), service);
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
                    weight: 1,
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

    /// Records the flow of a client's packet in both directions.
    pub fn established(&mut self, packet: &Packet, row: u32, port: u16, phase: Phase, seen: Tick) {
        self.flow(packet, row, port, phase, seen);
        self.translation(packet, row, port, phase, seen);
    }

    /// Records the direction from the client.
    pub fn flow(&mut self, packet: &Packet, row: u32, port: u16, phase: Phase, seen: Tick) {
        let generation = self.row(row).generation;
        let flow = Flow::new(row, generation, seen, Port::new(port), phase);
        self.tables.flows.insert(key_bytes(&packet.key()), flow);
    }

    /// Records the direction from the endpoint.
    pub fn translation(&mut self, packet: &Packet, row: u32, port: u16, phase: Phase, seen: Tick) {
        let key = packet.key();
        let endpoint = *self.row(row);
        let reply = reply_key(&endpoint, &key, port);
        let back = NextHop { interface: INGRESS, mac: CLIENT_MAC, own_mac: NODE_MAC };
        let translation = Translation::new(&key, endpoint.service, row, back, seen, phase);
        self.tables.translations.insert(key_bytes(&reply), translation);
    }
}

/// The 5-tuple of an endpoint's packets.
pub fn reply_key(endpoint: &Endpoint, key: &FlowKey, port: u16) -> FlowKey {
    let to = if endpoint.is_local() { key.source } else { endpoint.source };
    FlowKey::new(endpoint.addr, endpoint.port, to, Port::new(port), key.protocol)
}

/// An address as a test writes it.
pub fn addr_of(text: &str) -> Addr {
    text.parse::<std::net::IpAddr>().expect("a test writes an address").into()
}
