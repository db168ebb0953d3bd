//! One service: from words to something that requests can be sent to, and the checks of its endpoints.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use gateway_common::service::Mode;

use crate::{
    balance::Policy,
    compile::state::Shared,
    endpoint::{EndpointId, Health, Reach, Registry},
    health::{Check, Kind, Thresholds, passive::Terms},
    kernel::tunnelled::Detour,
    name::{ListenerName, ServiceName},
    observer::Watched,
    pool::Protocol,
    prober::Probe,
    snapshot::{
        Snapshot,
        listener::{Forwarding, Listener},
        route::Rule,
        service::{self, CheckKind, Service, UpstreamProtocol},
    },
    tls::connect::Connector,
    upstream::{Definition, Upstream},
};

/// Every endpoint of a snapshot.
pub fn served(snapshot: &Snapshot) -> BTreeSet<EndpointId> {
    let ids = |service: &Service| {
        let name = service.name.clone();
        let addrs: Vec<_> = service.endpoints.iter().map(|endpoint| endpoint.addr).collect();
        addrs.into_iter().map(move |addr| EndpointId { service: name.clone(), addr })
    };
    snapshot.services.iter().flat_map(ids).collect()
}

/// Brings the live endpoints to a snapshot: weights, and draining for those that it does not name any more. Of services that
/// are as they were in `former`, to which the endpoints were brought before, nothing is looked at.
pub fn settle(snapshot: &Snapshot, former: Option<&Snapshot>, registry: &Registry) {
    let Some(former) = former else {
        let wanted = served(snapshot);
        for endpoint in registry.all() {
            endpoint.set_draining(!wanted.contains(endpoint.id()));
        }
        return snapshot.services.iter().for_each(|service| settle_one(service, registry));
    };
    let mut before: HashMap<&ServiceName, &Service> =
        former.services.iter().map(|service| (&service.name, service)).collect();
    for service in &snapshot.services {
        let before = before.remove(&service.name);
        if before.is_some_and(|before| before.endpoints == service.endpoints) {
            continue;
        }
        if let Some(before) = before {
            let wanted = service.endpoints.iter().map(|endpoint| endpoint.addr).collect();
            drain(before, &wanted, registry);
        }
        settle_one(service, registry);
    }
    for gone in before.into_values() {
        drain(gone, &HashSet::new(), registry);
    }
}

fn settle_one(service: &Service, registry: &Registry) {
    for endpoint in &service.endpoints {
        let id = EndpointId { service: service.name.clone(), addr: endpoint.addr };
        let live = registry.resolve(&id);
        if service.health.is_none() && live.is_draining() {
            // It may have been down when it went, and nobody would ever find it up.
            for reach in Reach::ALL {
                live.set_health_by(reach, Health::Unknown);
            }
        }
        live.set_draining(false);
        live.set_weight(endpoint.weight);
    }
}

/// Drains what is not wanted any more of a service.
fn drain(service: &Service, wanted: &HashSet<SocketAddr>, registry: &Registry) {
    for endpoint in service.endpoints.iter().filter(|endpoint| !wanted.contains(&endpoint.addr)) {
        let id = EndpointId { service: service.name.clone(), addr: endpoint.addr };
        registry.resolve(&id).set_draining(true);
    }
}

pub(super) fn definition(wanted: &Service, tls: Option<Connector>) -> Definition {
    Definition {
        name: wanted.name.clone(),
        endpoints: wanted.endpoints.iter().map(|endpoint| (endpoint.addr, endpoint.weight)).collect(),
        protocol: match wanted.protocol {
            UpstreamProtocol::Http1 => Protocol::Http1,
            UpstreamProtocol::H2c | UpstreamProtocol::H2 => Protocol::Http2,
        },
        tls,
        policy: match wanted.balance {
            service::Policy::RoundRobin => Policy::RoundRobin,
            service::Policy::LeastRequest => Policy::LeastRequest,
            service::Policy::Maglev => Policy::Maglev,
        },
        connect_timeout: wanted.connect_timeout,
        retries: wanted.retries,
        is_announced: wanted.is_announced,
    }
}

/// Whether a service can be taken over: the same definition, over the endpoints that are live now.
pub(super) fn is_current(kept: &Upstream, definition: &Definition, registry: &Registry) -> bool {
    kept.definition() == definition
        && kept.endpoints().all(|endpoint| Arc::ptr_eq(endpoint, &registry.resolve(endpoint.id())))
}

pub(super) fn upstream(definition: Definition, shared: &Shared) -> Upstream {
    Upstream::new(definition, &shared.parts, &shared.seed)
}

/// A check for each endpoint and each way that packets take to it, when the service has any.
pub(super) fn probes(
    ways: &Ways<'_>,
    wanted: &Service,
    tls: Option<&Connector>,
    registry: &Registry,
) -> Vec<Probe> {
    let Some(health) = &wanted.health else { return Vec::new() };
    let thresholds = Thresholds { unhealthy: health.unhealthy_threshold, healthy: health.healthy_threshold };
    // A session that goes on would pass with a certificate that has expired since.
    let tls = tls.map(Connector::without_resumption);
    let is_announced = wanted.is_announced;
    let check =
        |kind| Arc::new(Check { kind, interval: health.interval, timeout: health.timeout, thresholds });
    wanted
        .endpoints
        .iter()
        .flat_map(|endpoint| {
            let ways = ways.to(&wanted.name, endpoint.addr.ip());
            ways.into_iter().map(move |detour| (endpoint, detour))
        })
        .map(|(endpoint, detour)| {
            let kind = match &health.kind {
                CheckKind::Tcp => Kind::Tcp,
                CheckKind::Http { path, host, statuses } => Kind::Http {
                    path: path.clone(),
                    host: host.clone().unwrap_or_else(|| endpoint.addr.to_string()),
                    statuses: statuses.clone(),
                    is_http2: wanted.protocol != UpstreamProtocol::Http1,
                },
            };
            let id = EndpointId { service: wanted.name.clone(), addr: endpoint.addr };
            Probe {
                endpoint: registry.resolve(&id),
                check: check(kind),
                detour,
                tls: tls.clone(),
                is_announced,
            }
        })
        .collect()
}

/// The service's endpoints, when clients' attempts decide about them.
pub(super) fn watched(wanted: &Service, registry: &Registry) -> Option<Watched> {
    let written = wanted.passive_health?;
    let terms = Terms {
        window: written.window,
        minimum: written.minimum_attempts,
        failure_percent: written.failure_percent,
        out_for: written.out_for,
        out_for_at_most: written.out_for_at_most,
        share_percent: written.share_percent,
    };
    let id = |addr| EndpointId { service: wanted.name.clone(), addr };
    let endpoints = wanted.endpoints.iter().map(|endpoint| registry.resolve(&id(endpoint.addr))).collect();
    Some(Watched { service: wanted.name.clone(), endpoints, terms })
}

/// How packets and connections reach the services of a snapshot.
pub(super) struct Ways<'a>(HashMap<&'a ServiceName, Way<'a>>);

/// How they reach one service.
#[derive(Default)]
struct Way<'a> {
    /// Whether anything goes straight to its endpoints.
    is_straight: bool,
    /// The listeners whose packets take each kind of tunnel, in order of the configuration.
    ipip: Vec<&'a Listener>,
    gue: Vec<&'a Listener>,
}

impl<'a> Ways<'a> {
    /// Of all services that a listener leads to.
    pub(super) fn of(snapshot: &'a Snapshot) -> Self {
        let mut rules: HashMap<&ListenerName, Vec<&Rule>> = HashMap::new();
        for route in &snapshot.routes {
            for name in &route.listeners {
                rules.entry(name).or_default().extend(&route.rules);
            }
        }
        let mut ways: HashMap<&ServiceName, Way<'_>> = HashMap::new();
        for listener in &snapshot.listeners {
            let rules = rules.get(&listener.name).into_iter().flatten();
            let backends = rules.clone().flat_map(|rule| &rule.backends).map(|backend| &backend.service);
            let mirrors = rules.flat_map(|rule| &rule.mirrors).map(|mirror| &mirror.service);
            for service in backends.chain(mirrors).collect::<BTreeSet<_>>() {
                let way = ways.entry(service).or_default();
                match listener.forwarding {
                    Forwarding::DsrIpip => way.ipip.push(listener),
                    Forwarding::DsrGue => way.gue.push(listener),
                    Forwarding::Agent | Forwarding::DsrL2 | Forwarding::Nat => way.is_straight = true,
                }
            }
        }
        Self(ways)
    }

    /// Those of checks of an endpoint; none is straight to it, which also is the way of a service that nothing leads to.
    fn to(&self, service: &ServiceName, endpoint: IpAddr) -> Vec<Option<Detour>> {
        let Some(way) = self.0.get(service) else { return vec![None] };
        let ipip = detour(Mode::DSR_IPIP, &way.ipip, endpoint);
        let gue = detour(Mode::DSR_GUE, &way.gue, endpoint);
        let tunnels = ipip.into_iter().chain(gue).map(Some);
        way.is_straight.then_some(None).into_iter().chain(tunnels).collect()
    }
}

/// The tunnel that checks of an endpoint take: to the first virtual address of its family, or, where there are only those
/// of the other, to its own address through the same kind of tunnel.
fn detour(mode: Mode, listeners: &[&Listener], endpoint: IpAddr) -> Option<Detour> {
    let same = listeners.iter().find(|listener| listener.addr.is_ipv4() == endpoint.is_ipv4());
    same.or(listeners.first())?;
    Some(Detour { destination: same.map_or(endpoint, |listener| listener.addr.ip()), mode })
}
