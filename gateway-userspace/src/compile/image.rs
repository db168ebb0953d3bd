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
    compile::id::{Full, Ids},
    endpoint::{EndpointId, Registry},
    image::{Image, Range, Row, Service},
    name::ServiceName,
    snapshot::{
        Snapshot,
        listener::{Forwarding, Listener, Protocol},
        route::Backend,
    },
};

/// Where the listening sockets of the agent stand in `SOCKETS`.
pub type SocketRanges = HashMap<SocketAddr, Range>;

/// Endpoints that are no longer wanted but may still hold flows, for each balanced service.
pub type Retired = BTreeSet<(ServiceKey, EndpointId)>;

/// The key of a listener.
pub fn key(listener: &Listener) -> ServiceKey {
    let transport = match listener.protocol {
        Protocol::Http | Protocol::Https | Protocol::Tcp => Transport::TCP,
        Protocol::Udp => Transport::UDP,
    };
    ServiceKey::new(Addr::from(listener.addr.ip()), Port::new(listener.addr.port()), transport)
}

/// Makes the image of a snapshot. `ids` is brought up to date.
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
    let keys: BTreeSet<ServiceKey> = snapshot.listeners.iter().map(key).collect();
    ids.retain(&keys);
    let mut services: BTreeMap<ServiceKey, Service> = BTreeMap::new();
    for listener in &snapshot.listeners {
        let key = key(listener);
        // Listeners that share an address and differ by host name are one service.
        if services.contains_key(&key) {
            continue;
        }
        let service = if listener.protocol.is_layer7() {
            agent(listener, key, ids, sockets)?
        } else {
            balanced(snapshot, listener, key, registry, ids, retired)?
        };
        services.insert(key, service);
    }
    Ok(Image { services: services.into_values().collect() })
}

fn agent(listener: &Listener, key: ServiceKey, ids: &mut Ids, sockets: &SocketRanges) -> Result<Service, Full> {
    Ok(Service {
        key,
        listener: listener.name.clone(),
        id: ids.agent_service(key)?,
        mode: Mode::AGENT,
        track: Track::NEVER,
        rows: Range::default(),
        n_slots: 0,
        chunks: [0, 0],
        sockets: sockets.get(&listener.addr).copied().unwrap_or_default(),
        endpoints: Vec::new(),
    })
}

fn balanced(
    snapshot: &Snapshot,
    listener: &Listener,
    key: ServiceKey,
    registry: &Registry,
    ids: &mut Ids,
    retired: &Retired,
) -> Result<Service, Full> {
    let members = members(snapshot, listener);
    let wanted: BTreeSet<SocketAddr> = members.keys().copied().collect();
    let leaving: BTreeMap<SocketAddr, EndpointId> = retired
        .iter()
        .filter(|(of, id)| *of == key && !wanted.contains(&id.addr))
        .map(|(_, id)| (id.addr, id.clone()))
        .collect();
    let numbers = ids.balanced_service(key, &wanted, |addr| leaving.contains_key(&addr))?.clone();
    let (mode, track) = match listener.forwarding {
        // Translation has ports to remember.
        Forwarding::Nat => (Mode::NAT, Track::ALWAYS),
    };
    let handle = |addr: &SocketAddr| {
        let id = match members.get(addr) {
            Some(member) => EndpointId { service: member.service.clone(), addr: *addr },
            None => leaving.get(addr)?.clone(),
        };
        Some(registry.resolve(&id))
    };
    let row = |addr: &SocketAddr, row: u32, in_slots: bool| {
        let weight = members.get(addr).map_or(0, |member| member.weight);
        let local = row.checked_sub(numbers.rows.first).and_then(|local| u16::try_from(local).ok());
        Some(Row {
            row,
            local: local.filter(|_| in_slots && members.contains_key(addr)),
            generation: ids.generation(row),
            backend_weight: weight,
            endpoint: handle(addr)?,
        })
    };
    let mut endpoints: Vec<Row> = numbers.members.iter().filter_map(|(addr, at)| row(addr, *at, true)).collect();
    endpoints.extend(numbers.outgrown.iter().filter_map(|(at, addr)| row(addr, *at, false)));
    endpoints.sort_by_key(|row| row.row);
    Ok(Service {
        key,
        listener: listener.name.clone(),
        id: numbers.id,
        mode,
        track,
        rows: numbers.rows,
        // The same as userspace takes for as many endpoints, even when there is room for more.
        n_slots: size_class(u32::try_from(wanted.len()).unwrap_or(u32::MAX)),
        chunks: numbers.chunks,
        sockets: Range::default(),
        endpoints,
    })
}

struct Member {
    service: ServiceName,
    weight: u32,
}

/// The endpoints behind a balanced listener: those of every backend of its one route, with the backend's weight.
fn members(snapshot: &Snapshot, listener: &Listener) -> BTreeMap<SocketAddr, Member> {
    let routes = snapshot.routes.iter().filter(|route| route.listeners.contains(&listener.name));
    let backends: Vec<&Backend> = routes.flat_map(|route| &route.rules).flat_map(|rule| &rule.backends).collect();
    let mut members = BTreeMap::new();
    for backend in backends {
        let services = snapshot.services.iter().filter(|service| service.name == backend.service);
        for endpoint in services.flat_map(|service| &service.endpoints) {
            members
                .entry(endpoint.addr)
                .or_insert_with(|| Member { service: backend.service.clone(), weight: backend.weight });
        }
    }
    members
}
