//! The kernel's view of a snapshot. Pure: numbers come from [`Ids`], handles from the registry.

use std::{
    collections::{BTreeSet, HashMap},
    mem,
    net::SocketAddr,
    sync::Arc,
};

use gateway_common::{
    addr::{Addr, Port, Protocol as Transport},
    service::ServiceKey,
};

use crate::{
    compile::{
        id::{Full, Ids},
        recipe::{Index, Leaving, Origin, Recipe},
        sources,
    },
    endpoint::{EndpointId, Registry},
    image::{Image, Range, Service},
    name::ServiceName,
    snapshot::{
        Snapshot,
        listener::{Listener, Protocol},
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

/// What an image is made from besides the snapshot and numbers.
#[derive(Clone, Copy, Debug)]
pub struct Means<'a> {
    /// Live endpoints.
    pub registry: &'a Registry,
    /// Where the agent's sockets stand.
    pub sockets: &'a SocketRanges,
    /// Endpoints that left.
    pub retired: &'a Retired,
    /// Whether the image that these numbers were last brought up to date for stands in the maps: what it gave back is
    /// free then.
    pub is_written: bool,
}

/// What the services of the last image were made of: those of which it is the same stay as they are. Empty, it has
/// everything made anew, with the same outcome.
#[derive(Debug, Default)]
pub struct Made {
    services: HashMap<ServiceKey, (Recipe, Arc<Service>)>,
}

/// Makes the image of a snapshot. `ids` and `made`, which belong together, are brought up to date; on an error numbers
/// stay as they are, and the next image is made of everything.
///
/// # Errors
/// When the kernel's maps have no room.
pub fn image(snapshot: &Snapshot, means: Means<'_>, ids: &mut Ids, made: &mut Made) -> Result<Image, Full> {
    let mut former = mem::take(&mut made.services);
    let mut next = ids.clone();
    let keys: BTreeSet<ServiceKey> = snapshot.listeners.iter().map(key).collect();
    next.retain(&keys, means.is_written);
    let index = Index::of(snapshot);
    let leaving = leaving(means.retired);
    let mut services = HashMap::with_capacity(keys.len());
    for listener in &snapshot.listeners {
        let key = key(listener);
        // Listeners that share an address and differ by host name are one service.
        if services.contains_key(&key) {
            continue;
        }
        let sockets = means.sockets.get(&listener.addr).copied().unwrap_or_default();
        let origin = Origin { index: &index, leaving: leaving.get(&key), sockets };
        let kept = former.remove(&key).filter(|(recipe, _)| recipe.is_of(listener, origin));
        let one = if let Some(kept) = kept {
            kept
        } else {
            let recipe = Recipe::of(listener, origin);
            let service = if listener.is_balanced() {
                recipe.balanced(key, &mut next, means.registry)?
            } else {
                recipe.agent(key, &mut next)?
            };
            (recipe, Arc::new(service))
        };
        services.insert(key, one);
    }
    *ids = next;
    let in_order = keys.iter().filter_map(|key| services.get(key));
    let image = Image {
        services: in_order.map(|(_, service)| Arc::clone(service)).collect(),
        networks: sources::networks(snapshot),
    };
    made.services = services;
    Ok(image)
}

/// The endpoints that a snapshot wants, by the key of their listener.
pub struct Wanted<'a> {
    index: Index<'a>,
    listeners: HashMap<ServiceKey, &'a Listener>,
}

impl<'a> Wanted<'a> {
    /// Those of a snapshot.
    pub fn of(snapshot: &'a Snapshot) -> Self {
        let listeners = snapshot.listeners.iter().map(|listener| (key(listener), listener));
        Self { index: Index::of(snapshot), listeners: listeners.collect() }
    }

    /// Whether there is a listener with this key.
    pub fn has(&self, key: &ServiceKey) -> bool {
        self.listeners.contains_key(key)
    }

    /// Addresses of the endpoints that packets of a listener are sent to, in ascending order.
    pub fn addrs(&self, key: &ServiceKey) -> Vec<SocketAddr> {
        let balanced = self.listeners.get(key).filter(|listener| listener.is_balanced());
        let mut addrs: Vec<_> =
            balanced.into_iter().flat_map(|listener| self.index.addrs(listener)).collect();
        addrs.sort_unstable();
        addrs
    }
}

/// Endpoints of an image that a snapshot does not want any more for their listener, which it still has.
pub fn left(wanted: &Wanted<'_>, former: &Image) -> Retired {
    let mut left = Retired::new();
    for service in former.services.iter().filter(|service| wanted.has(&service.key)) {
        let addrs = wanted.addrs(&service.key);
        let gone = service.endpoints.iter().map(|row| row.endpoint.id());
        let gone = gone.filter(|id| addrs.binary_search(&id.addr).is_err());
        left.extend(gone.map(|id| (service.key, id.clone())));
    }
    left
}

/// Endpoints that an earlier agent left in the maps and nobody wants any more. They may still hold flows: retiring them
/// for a while, instead of clearing their rows at once, lets these end by themselves.
pub fn left_over(snapshot: &Snapshot, ids: &Ids) -> Retired {
    let index = Index::of(snapshot);
    let mut retired = Retired::new();
    for listener in snapshot.listeners.iter().filter(|listener| listener.is_balanced()) {
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

/// The retired endpoints of each service.
fn leaving(retired: &Retired) -> HashMap<ServiceKey, Leaving> {
    let mut leaving: HashMap<ServiceKey, Leaving> = HashMap::new();
    for (key, id) in retired {
        leaving.entry(*key).or_default().insert(id.addr, id.clone());
    }
    leaving
}

#[cfg(test)]
mod tests {
    use gateway_common::{service::Mode, slot::size_class};

    use super::*;
    use crate::{
        image::Capacity,
        name::{ListenerName, RouteName},
        snapshot::{
            listener::Forwarding,
            route::{Backend, Route, Rule},
            service::{Endpoint, Policy, Service as Group, UpstreamProtocol},
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
            fails_open: false,
            paths: crate::target::Rules::DEFAULT,
            underscores: crate::field::Underscores::DEFAULT,
            trusted_hops: 0,
        }
    }

    fn route(name: &str, listener: &str, backends: &[(&str, u32)]) -> Route {
        let backends = backends
            .iter()
            .map(|(service, weight)| Backend {
                service: ServiceName::new(service),
                weight: *weight,
                filters: None,
            })
            .collect();
        let rule = Rule {
            matches: Vec::new(),
            backends,
            filters: None,
            mirrors: Vec::new(),
            request_timeout: None,
            backend_timeout: None,
            idle_timeout: None,
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
            passive_health: None,
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
        let registry = Registry::default();
        let means = Means { registry: &registry, sockets: &sockets, retired, is_written: true };
        image(snapshot, means, ids, &mut Made::default()).unwrap()
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
        let (registry, sockets, retired) = (Registry::default(), SocketRanges::new(), Retired::new());
        let means = Means { registry: &registry, sockets: &sockets, retired: &retired, is_written: true };
        let empty = Snapshot { listeners: Vec::new(), ..snapshot(&[1]) };
        image(&empty, means, &mut ids, &mut Made::default()).unwrap();
        let before = ids.clone();
        let result = image(&snapshot(&[1, 2]), means, &mut ids, &mut Made::default());
        assert_eq!(result.unwrap_err(), Full::Chunks);
        assert_eq!(ids, before);
    }
}
