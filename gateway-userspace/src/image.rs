//! The image: the desired content of every kernel map, made from a snapshot, immutable.
//!
//! Slots are not in it: they follow from the live endpoints it holds, and the publisher fills them.

use std::{collections::BTreeMap, ops::RangeInclusive, sync::Arc, time::Duration};

use gateway_common::{
    addr::Addr,
    service::{Mode, Rate, ServiceKey, Track},
    settings::Settings,
    source::{SourceNetwork, SourceRule},
};

use crate::{endpoint::Endpoint, name::ListenerName, network::Network};

/// The desired content of the kernel maps.
#[derive(Clone, Debug, Default)]
pub struct Image {
    /// Services, sorted by key. One that is as it was in the image before is the same value: whoever compares two images
    /// compares pointers.
    pub services: Vec<Arc<Service>>,
    /// Networks that are listed, and what becomes of their packets.
    pub networks: BTreeMap<SourceNetwork, SourceRule>,
}

/// One row of `SERVICES` and everything it refers to.
#[derive(Clone, Debug, PartialEq)]
pub struct Service {
    /// Virtual address, port and protocol.
    pub key: ServiceKey,
    /// The listener that it was made from; the first one, when several share an address.
    pub listener: ListenerName,
    /// Stable number.
    pub id: u32,
    /// How packets reach an endpoint.
    pub mode: Mode,
    /// What is remembered about a flow.
    pub track: Track,
    /// Time of silence for which a client keeps its endpoint.
    pub affinity: Option<Duration>,
    /// Whether an open connection is reset whose endpoint is down.
    pub resets: bool,
    /// Its ports, in ascending order; empty for that of the key, which is zero where it is every port.
    pub ports: Vec<RangeInclusive<u16>>,
    /// First row of its endpoints, and how many rows it owns.
    pub rows: Range,
    /// Slots of one half, a prime; zero for a service of the agent.
    pub n_slots: u32,
    /// First chunk of each half of its slots.
    pub chunks: [u32; 2],
    /// Listening sockets of the agent, for a service of the agent.
    pub sockets: Range,
    /// New flows that may begin.
    pub limits: Limits,
    /// Connections that may begin in a second before they are answered with cookies.
    pub cookie_rate: Option<u32>,
    /// Whether new connections to a service of the agent go to endpoints while it is silent.
    pub fails_open: bool,
    /// Its endpoints, by row.
    pub endpoints: Vec<Row>,
}

impl Service {
    /// Whether packets may go from the kernel to its endpoints.
    pub fn is_balanced(&self) -> bool {
        self.mode != Mode::AGENT || self.fails_open
    }

    /// How packets reach its endpoints, when they do.
    pub fn forwarding(&self) -> Mode {
        forwarding(self.mode)
    }
}

/// How packets of a service of this mode reach its endpoints, when they do.
pub fn forwarding(mode: Mode) -> Mode {
    if mode == Mode::AGENT { Mode::NAT } else { mode }
}

/// How many new flows of a service may begin.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Limits {
    /// All of them.
    pub service: Rate,
    /// Those of one source.
    pub source: Rate,
}

/// Room for numbers in the kernel's maps.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Capacity {
    /// Services.
    pub services: u32,
    /// Endpoint rows.
    pub rows: u32,
    /// Slot chunks.
    pub chunks: u32,
}

/// A range of rows, chunks or sockets.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Range {
    /// The first.
    pub first: u32,
    /// How many.
    pub count: u32,
}

/// One row of `ENDPOINTS`.
#[derive(Clone, Debug)]
pub struct Row {
    /// Index of the row.
    pub row: u32,
    /// Index within the service, as slots carry it; `None` for a row that only old flows still use.
    pub local: Option<u16>,
    /// Counts the endpoints that this row has held: see [`Endpoint::owner`](gateway_common::endpoint::Endpoint::owner).
    pub generation: u32,
    /// Weight of the backend that refers to the endpoint's service, multiplied by the endpoint's own at publication.
    pub backend_weight: u32,
    /// The live endpoint: state and weight.
    pub endpoint: Arc<Endpoint>,
}

/// Two rows are the same when they hold the same live endpoint, whatever becomes of it.
impl PartialEq for Row {
    fn eq(&self, other: &Self) -> bool {
        let Self { row, local, generation, backend_weight, endpoint } = self;
        Arc::ptr_eq(endpoint, &other.endpoint)
            && (row, local, generation, backend_weight)
                == (&other.row, &other.local, &other.generation, &other.backend_weight)
    }
}

impl Image {
    /// The addresses whose packets are ours: virtual addresses. The publisher adds those of translation and of local
    /// endpoints, which depend on the node.
    pub fn virtual_addrs(&self) -> impl Iterator<Item = Addr> + '_ {
        self.services.iter().map(|service| service.key.addr)
    }
}

/// Everything the kernel side is told apart from the image: changes only with a restart.
#[derive(Clone, Copy, Default)]
pub struct KernelSettings {
    /// Content of the `SETTINGS` map.
    pub settings: Settings,
}

/// A network as the kernel's maps have it.
pub fn source_network(network: &Network) -> SourceNetwork {
    let prefix_bits = u32::from(network.prefix_bits);
    let prefix_bits = if network.addr.is_ipv4() { prefix_bits + 96 } else { prefix_bits };
    SourceNetwork { prefix_bits, addr: Addr::from(network.addr) }
}

/// How this node reaches an endpoint's address.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Way {
    /// The address is one of this node's own.
    pub is_local: bool,
    /// It is on the link: no router lies between.
    pub is_on_link: bool,
    /// Index of the interface that packets there leave by; zero without a route.
    pub interface: u32,
    /// The address of this node that packets there carry as their source.
    pub source: Option<std::net::IpAddr>,
    /// Interface and link-layer addresses, when they are known.
    pub next_hop: gateway_common::endpoint::NextHop,
    /// Bytes of an IP packet that the way takes; zero when it is not known.
    pub mtu: u16,
}
