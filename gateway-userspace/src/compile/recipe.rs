//! What a service of the image is made of, so that only those are made again of which something changed.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::SocketAddr,
    ops::RangeInclusive,
    time::Duration,
};

use gateway_common::{
    service::{Mode, ServiceKey, Track},
    slot::{Slot, size_class},
};

use crate::{
    compile::{
        id::{Full, Ids, Numbers},
        sources,
    },
    endpoint::{EndpointId, Registry},
    image::{Limits, Range, Row, Service},
    name::{ListenerName, ServiceName},
    snapshot::{
        Snapshot,
        listener::{Forwarding, Listener},
        route::Backend,
        service::Service as Group,
    },
};

/// Endpoints that are no longer wanted but may still hold flows, of one service.
pub(super) type Leaving = BTreeMap<SocketAddr, EndpointId>;

/// Everything that a service follows from besides its numbers and the handles of its endpoints, both of which stay as
/// long as this does.
#[derive(Debug)]
pub(super) struct Recipe {
    said: Said,
    backends: Vec<(Backend, Vec<SocketAddr>)>,
    leaving: Leaving,
}

/// What a listener says by itself.
#[derive(Debug, PartialEq)]
struct Said {
    listener: ListenerName,
    mode: Mode,
    track: Track,
    affinity: Option<Duration>,
    resets: bool,
    ports: Vec<RangeInclusive<u16>>,
    sockets: Range,
    limits: Limits,
    cookie_rate: Option<u32>,
    fails_open: bool,
}

impl Said {
    fn of(listener: &Listener, sockets: Range) -> Self {
        let is_by_agent = listener.is_by_agent();
        let mode = match listener.forwarding {
            _ if is_by_agent => Mode::AGENT,
            Forwarding::Nat | Forwarding::Agent => Mode::NAT,
            Forwarding::DsrL2 => Mode::DSR_L2,
            Forwarding::DsrIpip => Mode::DSR_IPIP,
            Forwarding::DsrGue => Mode::DSR_GUE,
        };
        let has_ports = !is_by_agent && listener.addr.port() != 0;
        Self {
            listener: listener.name.clone(),
            mode,
            track: if is_by_agent { agents_track(listener) } else { listener.track() },
            affinity: if is_by_agent { None } else { listener.packets.affinity },
            resets: !is_by_agent && listener.packets.resets,
            ports: if has_ports { listener.packets.ports.clone() } else { Vec::new() },
            sockets: if is_by_agent { sockets } else { Range::default() },
            limits: sources::limits(&listener.new_flows),
            cookie_rate: listener.syn_cookies,
            fails_open: is_by_agent && listener.fails_open,
        }
    }

    /// Whether the kernel has to know endpoints.
    fn is_balanced(&self) -> bool {
        self.mode != Mode::AGENT || self.fails_open
    }
}

/// What is remembered about flows of a listener of the agent: those that go to endpoints, if any do, are translated.
const fn agents_track(listener: &Listener) -> Track {
    if listener.fails_open { Track::ALWAYS } else { Track::NEVER }
}

/// Where a recipe comes from.
#[derive(Clone, Copy)]
pub(super) struct Origin<'a> {
    /// What the listener's routes lead to.
    pub(super) index: &'a Index<'a>,
    /// Endpoints of it that left.
    pub(super) leaving: Option<&'a Leaving>,
    /// Where its sockets stand.
    pub(super) sockets: Range,
}

impl Recipe {
    /// That of a listener.
    pub(super) fn of(listener: &Listener, origin: Origin<'_>) -> Self {
        let said = Said::of(listener, origin.sockets);
        if !said.is_balanced() {
            return Self { said, backends: Vec::new(), leaving: Leaving::new() };
        }
        let groups = origin.index.groups(listener);
        Self {
            said,
            backends: groups.map(|(backend, addrs)| (backend.clone(), addrs.collect())).collect(),
            leaving: origin.leaving.cloned().unwrap_or_default(),
        }
    }

    /// Whether a listener's would be the same.
    pub(super) fn is_of(&self, listener: &Listener, origin: Origin<'_>) -> bool {
        if self.said != Said::of(listener, origin.sockets) {
            return false;
        }
        if !self.said.is_balanced() {
            return true;
        }
        let same_leaving = origin.leaving.map_or(self.leaving.is_empty(), |leaving| *leaving == self.leaving);
        let mut groups = origin.index.groups(listener);
        let same_backends = self.backends.iter().all(|(backend, addrs)| {
            let next = groups.next();
            next.is_some_and(|(next, of_next)| next == backend && of_next.eq(addrs.iter().copied()))
        });
        same_leaving && same_backends && groups.next().is_none()
    }

    /// A service of the agent.
    pub(super) fn agent(&self, key: ServiceKey, ids: &mut Ids) -> Result<Service, Full> {
        let id = ids.agent_service(key)?;
        Ok(self.service(key, &Numbers { id, ..Numbers::default() }, 0, Vec::new()))
    }

    /// A balanced service.
    pub(super) fn balanced(
        &self,
        key: ServiceKey,
        ids: &mut Ids,
        registry: &Registry,
    ) -> Result<Service, Full> {
        let members = members(self.backends.iter().map(|(backend, addrs)| (backend, addrs.iter().copied())));
        let wanted: BTreeSet<SocketAddr> = members.keys().copied().collect();
        let is_leaving = |addr| self.leaving.contains_key(&addr);
        let numbers = ids.balanced_service(key, &wanted, is_leaving)?.clone();
        // The same as userspace takes for as many endpoints, even when there is room for more.
        let n_slots = size_class(u32::try_from(wanted.len()).unwrap_or(u32::MAX));
        let rows = self.rows(&numbers, &members, ids, registry);
        Ok(self.service(key, &numbers, n_slots, rows))
    }

    fn service(&self, key: ServiceKey, numbers: &Numbers, n_slots: u32, endpoints: Vec<Row>) -> Service {
        Service {
            key,
            listener: self.said.listener.clone(),
            id: numbers.id,
            mode: self.said.mode,
            track: self.said.track,
            affinity: self.said.affinity,
            resets: self.said.resets,
            ports: self.said.ports.clone(),
            rows: numbers.rows,
            n_slots,
            chunks: numbers.chunks,
            sockets: self.said.sockets,
            limits: self.said.limits,
            cookie_rate: self.said.cookie_rate,
            fails_open: self.said.fails_open,
            endpoints,
        }
    }

    /// Rows of a service in ascending order: those that slots name, and those that only old flows use.
    fn rows(&self, numbers: &Numbers, members: &Members, ids: &Ids, registry: &Registry) -> Vec<Row> {
        let row = |addr: &SocketAddr, row: u32, local: Option<u16>| {
            let (id, backend_weight) = match members.get(addr) {
                Some(member) => (EndpointId { service: member.service.clone(), addr: *addr }, member.weight),
                None => (self.leaving.get(addr)?.clone(), 0),
            };
            let endpoint = registry.resolve(&id);
            Some(Row { row, local, generation: ids.generation(row), backend_weight, endpoint })
        };
        let local = |addr: &SocketAddr, row: u32| {
            let local = row.checked_sub(numbers.rows.first).and_then(|local| u16::try_from(local).ok());
            local.filter(|local| *local != Slot::ELSEWHERE && members.contains_key(addr))
        };
        let own = numbers.members.iter().filter_map(|(addr, at)| row(addr, *at, local(addr, *at)));
        let outgrown = numbers.outgrown.iter().filter_map(|(at, addr)| row(addr, *at, None));
        let mut rows: Vec<Row> = own.chain(outgrown).collect();
        rows.sort_by_key(|row| row.row);
        rows
    }
}

/// Endpoints behind a balanced listener.
pub(super) type Members = BTreeMap<SocketAddr, Member>;

/// What is known about one of them.
pub(super) struct Member {
    /// The service that it belongs to.
    pub(super) service: ServiceName,
    /// Weight of the backend that leads there.
    pub(super) weight: u32,
}

/// The endpoints of every backend, with the backend's weight. An address that two backends share belongs to the first.
fn members<'a, A: Iterator<Item = SocketAddr>>(backends: impl Iterator<Item = (&'a Backend, A)>) -> Members {
    let mut members = Members::new();
    for (backend, addrs) in backends {
        for addr in addrs {
            let member = || Member { service: backend.service.clone(), weight: backend.weight };
            members.entry(addr).or_insert_with(member);
        }
    }
    members
}

/// What listeners refer to, by name.
pub(super) struct Index<'a> {
    backends: HashMap<&'a ListenerName, Vec<&'a Backend>>,
    services: HashMap<&'a ServiceName, &'a Group>,
}

impl<'a> Index<'a> {
    /// That of a snapshot.
    pub(super) fn of(snapshot: &'a Snapshot) -> Self {
        let mut backends: HashMap<&ListenerName, Vec<&Backend>> = HashMap::new();
        for route in &snapshot.routes {
            for listener in &route.listeners {
                backends
                    .entry(listener)
                    .or_default()
                    .extend(route.rules.iter().flat_map(|rule| &rule.backends));
            }
        }
        Self {
            backends,
            services: snapshot.services.iter().map(|service| (&service.name, service)).collect(),
        }
    }

    /// The endpoints behind a listener.
    pub(super) fn members(&self, listener: &Listener) -> Members {
        members(self.groups(listener))
    }

    /// Addresses of the endpoints behind a listener; one that two backends share comes twice.
    pub(super) fn addrs(&self, listener: &Listener) -> impl Iterator<Item = SocketAddr> {
        self.groups(listener).flat_map(|(_, addrs)| addrs)
    }

    /// The backends of a listener's routes, and the addresses of the endpoints of each.
    fn groups(
        &self,
        listener: &Listener,
    ) -> impl Iterator<Item = (&'a Backend, impl Iterator<Item = SocketAddr> + use<'a>)> {
        self.backends.get(&listener.name).into_iter().flatten().filter_map(|backend| {
            let service = self.services.get(&backend.service)?;
            Some((*backend, service.endpoints.iter().map(|endpoint| endpoint.addr)))
        })
    }
}
