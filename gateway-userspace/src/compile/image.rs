//! The kernel's view of a snapshot. Pure: numbers come from [`Ids`], handles from the registry.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::SocketAddr,
};

use gateway_common::{
    addr::{Addr, Port, Protocol as Transport},
    service::{Mode, ServiceKey, Track},
    slot::size_class,
};

use crate::{
    compile::{
        id::{Full, Ids, Numbers},
        sources,
    },
    endpoint::{EndpointId, Registry},
    image::{Image, Range, Row, Service},
    name::{ListenerName, ServiceName},
    snapshot::{
        Snapshot,
        listener::{Forwarding, Listener, Protocol},
        route::Backend,
        service::Service as Group,
    },
};

/// Where the listening sockets of the agent stand in `SOCKETS`.
pub type SocketRanges = HashMap<SocketAddr, Range>;

/// Endpoints that are no longer wanted but may still hold flows, for each balanced service.
pub type Retired = BTreeSet<(ServiceKey, EndpointId)>;

/// The key of a listener.
pub fn key(listener: &Listener) -> ServiceKey {
    let transport = match listener.protocol {
        Protocol::Http | Protocol::Https | Protocol::Tls | Protocol::Tcp => Transport::TCP,
        Protocol::Udp => Transport::UDP,
    };
    ServiceKey::new(Addr::from(listener.addr.ip()), Port::new(listener.addr.port()), transport)
}

/// Makes the image of a snapshot. `ids` is brought up to date, or left alone on an error.
///
/// # Errors
/// When the kernel's maps have no room.
pub fn image(
    snapshot: &Snapshot,
    registry: &Registry,
    ids: &mut Ids,
    sockets: &SocketRanges,
    retired: &Retired,
) -> Result<Image, Full> {
    let mut next = ids.clone();
    let keys: BTreeSet<ServiceKey> = snapshot.listeners.iter().map(key).collect();
    next.retain(&keys);
    let index = Index::of(snapshot);
    let mut services: BTreeMap<ServiceKey, Service> = BTreeMap::new();
    for listener in &snapshot.listeners {
        let key = key(listener);
        // Listeners that share an address and differ by host name are one service.
        if services.contains_key(&key) {
            continue;
        }
        let service = if listener.is_by_agent() {
            agent(listener, key, &mut next, sockets)?
        } else {
            balanced(listener, key, &index.members(listener), &mut next, registry, retired)?
        };
        services.insert(key, service);
    }
    *ids = next;
    Ok(Image { services: services.into_values().collect(), networks: sources::networks(snapshot) })
}

/// Every endpoint that a balanced listener sends to, with the listener's key.
pub fn wanted(snapshot: &Snapshot) -> BTreeSet<(ServiceKey, SocketAddr)> {
    let index = Index::of(snapshot);
    let balanced = snapshot.listeners.iter().filter(|listener| !listener.is_by_agent());
    let members = |listener: &Listener| -> Vec<_> {
        index.members(listener).into_keys().map(|addr| (key(listener), addr)).collect()
    };
    balanced.flat_map(members).collect()
}

/// Endpoints that an earlier agent left in the maps and nobody wants any more. They may still hold flows: retiring them
/// for a while, instead of clearing their rows at once, lets these end by themselves.
pub fn left_over(snapshot: &Snapshot, ids: &Ids) -> Retired {
    let index = Index::of(snapshot);
    let mut retired = Retired::new();
    for listener in snapshot.listeners.iter().filter(|listener| !listener.is_by_agent()) {
        let Some(numbers) = ids.services().get(&key(listener)) else { continue };
        let members = index.members(listener);
        let service = members.values().next().map_or_else(
            // Without any endpoint the name only tells the handle from others of this address.
            || ServiceName::new(listener.name.as_str()),
            |member| member.service.clone(),
        );
        let known = numbers.members.keys().chain(numbers.outgrown.values());
        let unwanted = known.filter(|addr| !members.contains_key(addr));
        retired.extend(
            unwanted.map(|addr| (key(listener), EndpointId { service: service.clone(), addr: *addr })),
        );
    }
    retired
}

fn agent(
    listener: &Listener,
    key: ServiceKey,
    ids: &mut Ids,
    sockets: &SocketRanges,
) -> Result<Service, Full> {
    Ok(Service {
        key,
        listener: listener.name.clone(),
        id: ids.agent_service(key)?,
        mode: Mode::AGENT,
        track: Track::NEVER,
        affinity: None,
        resets: false,
        ports: Vec::new(),
        rows: Range::default(),
        n_slots: 0,
        chunks: [0, 0],
        sockets: sockets.get(&listener.addr).copied().unwrap_or_default(),
        limits: sources::limits(&listener.new_flows),
        cookie_rate: listener.syn_cookies,
        endpoints: Vec::new(),
    })
}

fn balanced(
    listener: &Listener,
    key: ServiceKey,
    members: &Members,
    ids: &mut Ids,
    registry: &Registry,
    retired: &Retired,
) -> Result<Service, Full> {
    let wanted: BTreeSet<SocketAddr> = members.keys().copied().collect();
    let leaving: BTreeMap<SocketAddr, EndpointId> = retired
        .iter()
        .filter(|(of, id)| *of == key && !wanted.contains(&id.addr))
        .map(|(_, id)| (id.addr, id.clone()))
        .collect();
    let numbers = ids.balanced_service(key, &wanted, |addr| leaving.contains_key(&addr))?.clone();
    let mode = match listener.forwarding {
        Forwarding::Nat | Forwarding::Agent => Mode::NAT,
        Forwarding::DsrL2 => Mode::DSR_L2,
        Forwarding::DsrIpip => Mode::DSR_IPIP,
        Forwarding::DsrGue => Mode::DSR_GUE,
    };
    Ok(Service {
        key,
        listener: listener.name.clone(),
        id: numbers.id,
        mode,
        track: listener.track(),
        affinity: listener.packets.affinity,
        resets: listener.packets.resets,
        ports: if listener.addr.port() == 0 { Vec::new() } else { listener.packets.ports.clone() },
        rows: numbers.rows,
        // The same as userspace takes for as many endpoints, even when there is room for more.
        n_slots: size_class(u32::try_from(wanted.len()).unwrap_or(u32::MAX)),
        chunks: numbers.chunks,
        sockets: Range::default(),
        limits: sources::limits(&listener.new_flows),
        cookie_rate: None,
        endpoints: rows(&numbers, members, &leaving, ids, registry),
    })
}

/// Rows of a service in ascending order: those that slots name, and those that only old flows use.
fn rows(
    numbers: &Numbers,
    members: &Members,
    leaving: &BTreeMap<SocketAddr, EndpointId>,
    ids: &Ids,
    registry: &Registry,
) -> Vec<Row> {
    let row = |addr: &SocketAddr, row: u32, local: Option<u16>| {
        let (id, backend_weight) = match members.get(addr) {
            Some(member) => (EndpointId { service: member.service.clone(), addr: *addr }, member.weight),
            None => (leaving.get(addr)?.clone(), 0),
        };
        let endpoint = registry.resolve(&id);
        Some(Row { row, local, generation: ids.generation(row), backend_weight, endpoint })
    };
    let local = |addr: &SocketAddr, row: u32| {
        let local = row.checked_sub(numbers.rows.first).and_then(|local| u16::try_from(local).ok());
        local.filter(|_| members.contains_key(addr))
    };
    let own = numbers.members.iter().filter_map(|(addr, at)| row(addr, *at, local(addr, *at)));
    let outgrown = numbers.outgrown.iter().filter_map(|(at, addr)| row(addr, *at, None));
    let mut rows: Vec<Row> = own.chain(outgrown).collect();
    rows.sort_by_key(|row| row.row);
    rows
}

/// Endpoints behind a balanced listener.
type Members = BTreeMap<SocketAddr, Member>;

struct Member {
    service: ServiceName,
    weight: u32,
}

/// What listeners refer to, by name.
struct Index<'a> {
    backends: HashMap<&'a ListenerName, Vec<&'a Backend>>,
    services: HashMap<&'a ServiceName, &'a Group>,
}

impl<'a> Index<'a> {
    fn of(snapshot: &'a Snapshot) -> Self {
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

    /// The endpoints of every backend of a listener's route, with the backend's weight. An address that two backends
    /// share belongs to the first.
    fn members(&self, listener: &Listener) -> Members {
        let mut members = Members::new();
        for backend in self.backends.get(&listener.name).into_iter().flatten() {
            let Some(service) = self.services.get(&backend.service) else { continue };
            for endpoint in &service.endpoints {
                members
                    .entry(endpoint.addr)
                    .or_insert_with(|| Member { service: backend.service.clone(), weight: backend.weight });
            }
        }
        members
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        image::Capacity,
        name::RouteName,
        snapshot::{
            route::{Route, Rule},
            service::{Endpoint, Policy, UpstreamProtocol},
            sources::{NewFlows, Sources},
        },
    };

    fn listener(name: &str, protocol: Protocol, port: u16) -> Listener {
        Listener {
            name: ListenerName::new(name),
            addr: SocketAddr::from(([198, 51, 100, 1], port)),
            protocol,
            hostname: None,
            certificates: Vec::new(),
            ticket_keys: Vec::new(),
            clients: None,
            forwarding: Forwarding::Nat,
            packets: crate::snapshot::listener::Packets::default(),
            proxies: Vec::new(),
            idle_timeout: std::time::Duration::from_secs(1),
            new_flows: NewFlows::default(),
            syn_cookies: None,
            paths: crate::target::Rules::DEFAULT,
            trusted_hops: 0,
        }
    }

    fn route(name: &str, listener: &str, backends: &[(&str, u32)]) -> Route {
        let backends = backends
            .iter()
            .map(|(service, weight)| Backend { service: ServiceName::new(service), weight: *weight })
            .collect();
        let rule = Rule {
            matches: Vec::new(),
            backends,
            filters: None,
            mirrors: Vec::new(),
            request_timeout: None,
            backend_timeout: None,
            retry: crate::retry::Policy::DEFAULT,
            tunnels: crate::tunnel::Tunnels::DEFAULT,
        };
        Route {
            name: RouteName::new(name),
            listeners: vec![ListenerName::new(listener)],
            hostnames: Vec::new(),
            rules: vec![rule],
        }
    }

    fn service(name: &str, hosts: &[u8]) -> Group {
        let endpoint = |host: &u8| Endpoint { addr: SocketAddr::from(([10, 1, 0, *host], 8080)), weight: 1 };
        Group {
            name: ServiceName::new(name),
            endpoints: hosts.iter().map(endpoint).collect(),
            protocol: UpstreamProtocol::Http1,
            tls: None,
            balance: Policy::RoundRobin,
            health: None,
            connect_timeout: crate::limits::CONNECT_TIMEOUT,
            retries: crate::retry::Limits::DEFAULT,
            is_announced: false,
        }
    }

    fn snapshot(hosts: &[u8]) -> Snapshot {
        Snapshot {
            generation: 1,
            listeners: vec![
                listener("dns", Protocol::Udp, 53),
                listener("web", Protocol::Https, 443),
                listener("other-web", Protocol::Https, 443),
                listener("db", Protocol::Tcp, 5432),
            ],
            routes: vec![route("db", "db", &[("blue", 3), ("green", 1), ("absent", 9)])],
            services: vec![service("blue", hosts), service("green", &[9, 1])],
            sources: Sources::default(),
        }
    }

    fn ids() -> Ids {
        Ids::new(Capacity { services: 8, rows: 64, chunks: 256 })
    }

    fn compiled(snapshot: &Snapshot, ids: &mut Ids, retired: &Retired) -> Image {
        let sockets = SocketRanges::from([(snapshot.listeners[1].addr, Range { first: 4, count: 2 })]);
        image(snapshot, &Registry::default(), ids, &sockets, retired).unwrap()
    }

    #[test]
    fn each_address_is_one_service() {
        let snapshot = snapshot(&[1, 2]);
        let image = compiled(&snapshot, &mut ids(), &Retired::new());
        let modes: Vec<_> =
            image.services.iter().map(|s| (s.listener.as_str(), s.mode, s.sockets.count)).collect();
        let expected = [("dns", Mode::NAT, 0), ("web", Mode::AGENT, 2), ("db", Mode::NAT, 0)];
        assert_eq!(modes, expected, "by key: port 53, 443, 5432");
        assert!(image.services[0].endpoints.is_empty(), "a listener without a route has no endpoints");
    }

    #[test]
    fn endpoints_of_all_backends_share_a_service() {
        let snapshot = snapshot(&[1, 2]);
        let image = compiled(&snapshot, &mut ids(), &Retired::new());
        let db = &image.services[2];
        let rows: Vec<_> = db
            .endpoints
            .iter()
            .map(|row| {
                (row.endpoint.addr().to_string(), row.endpoint.id().service.as_str(), row.backend_weight)
            })
            .collect();
        let expected =
            [("10.1.0.1:8080", "blue", 3), ("10.1.0.2:8080", "blue", 3), ("10.1.0.9:8080", "green", 1)];
        let expected: Vec<_> =
            expected.iter().map(|(addr, name, weight)| ((*addr).to_owned(), *name, *weight)).collect();
        assert_eq!(rows, expected);
        assert_eq!(db.n_slots, size_class(3));
    }

    #[test]
    fn a_retired_endpoint_has_a_row_and_no_slots() {
        let mut ids = ids();
        let first = compiled(&snapshot(&[1, 2]), &mut ids, &Retired::new());
        let gone = first.services[2].endpoints[1].endpoint.id().clone();
        let second =
            compiled(&snapshot(&[1]), &mut ids, &Retired::from([(first.services[2].key, gone.clone())]));
        let row = &second.services[2].endpoints[1];
        assert_eq!((row.endpoint.id(), row.local, row.backend_weight), (&gone, None, 0));
        let third = compiled(&snapshot(&[1]), &mut ids, &Retired::new());
        assert_eq!(third.services[2].endpoints.len(), 2);
    }

    #[test]
    fn what_an_earlier_agent_left_is_named() {
        let mut ids = ids();
        compiled(&snapshot(&[1, 2]), &mut ids, &Retired::new());
        let left = left_over(&snapshot(&[1]), &ids);
        let left: Vec<_> = left.iter().map(|(key, id)| (key.port.number(), id.addr.to_string())).collect();
        assert_eq!(left, [(5432, "10.1.0.2:8080".to_owned())]);
    }

    #[test]
    fn without_room_nothing_changes() {
        let mut ids = Ids::new(Capacity { services: 8, rows: 8, chunks: 64 });
        let registry = Registry::default();
        image(
            &Snapshot { listeners: Vec::new(), ..snapshot(&[1]) },
            &registry,
            &mut ids,
            &SocketRanges::new(),
            &Retired::new(),
        )
        .unwrap();
        let before = ids.clone();
        let result = image(&snapshot(&[1, 2]), &registry, &mut ids, &SocketRanges::new(), &Retired::new());
        assert_eq!(result.unwrap_err(), Full::Chunks);
        assert_eq!(ids, before);
    }
}
