//! Listeners, grouped by the address that they share.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use foldhash::fast::RandomState;

use crate::{
    balance::{Balancer, Member, Policy},
    compile::{Fault, Faults, route, sources, state::Shared, tls},
    guard::{Bounds, Lists, Rate},
    limits,
    metrics::shard::RouteLabels,
    name::{ListenerName, ServiceName},
    network::Network,
    route::host::{Host, Hosts},
    snapshot::{
        Snapshot,
        listener::{Hostname, Listener, Protocol},
        route::{Route, Rule},
        sources::Pace,
    },
    state::{Balanced, Bind, BindKey, Expiry, Guards, HttpBind, HttpListener, Transport},
    upstream::Upstream,
};

/// Services by name.
pub(super) type Services = HashMap<ServiceName, Arc<Upstream>>;

/// What is served at each address.
pub(super) fn binds(
    snapshot: &Snapshot,
    shared: &Shared,
    services: &Services,
    expiries: &mut BTreeMap<(ListenerName, String), Expiry>,
    faults: &mut Faults,
) -> HashMap<BindKey, Bind, RandomState> {
    let mut groups: BTreeMap<BindKey, Vec<&Listener>> = BTreeMap::new();
    for listener in &snapshot.listeners {
        groups.entry(key(listener)).or_default().push(listener);
    }
    let mut binds = HashMap::default();
    for (key, listeners) in groups {
        let Some(first) = listeners.first() else { continue };
        if let Some(other) = listeners.iter().find(|listener| listener.protocol != first.protocol) {
            faults.0.push(Fault {
                place: format!("listener `{}`", other.name),
                message: format!(
                    "{key} already speaks {} for listener `{}`; give it another port",
                    first.protocol.as_str(),
                    first.name
                ),
            });
            continue;
        }
        let bind = match first.protocol {
            Protocol::Http => Some(Bind::Http(Box::new(http(snapshot, shared, services, &listeners)))),
            Protocol::Https => tls::acceptor(&listeners, shared, expiries, faults).map(|acceptor| {
                let identity_header = first.clients.as_ref().map(|clients| clients.identity_header.clone());
                let bind = http(snapshot, shared, services, &listeners);
                Bind::Http(Box::new(HttpBind { tls: Some(acceptor), identity_header, ..bind }))
            }),
            Protocol::Tls => Some(Bind::Passthrough(Box::new(passthrough(snapshot, shared, &listeners)))),
            Protocol::Tcp | Protocol::Udp => {
                let rule = attached(snapshot, first).next().and_then(|route| route.rules.first());
                Some(Bind::Balanced(Arc::new(balanced(snapshot, shared, first, rule))))
            }
        };
        binds.extend(bind.map(|bind| (key, bind)));
    }
    binds
}

fn key(listener: &Listener) -> BindKey {
    let transport = match listener.protocol {
        Protocol::Http | Protocol::Https | Protocol::Tls | Protocol::Tcp => Transport::Tcp,
        Protocol::Udp => Transport::Udp,
    };
    BindKey { addr: listener.addr, transport }
}

fn http(snapshot: &Snapshot, shared: &Shared, services: &Services, listeners: &[&Listener]) -> HttpBind {
    let stats = |listener: &Listener| {
        let labels = RouteLabels { listener: listener.name.as_str().to_owned(), route: String::new() };
        shared.parts.metrics.route(&labels)
    };
    let mut by_host = Hosts::default();
    let mut unmatched = None;
    for listener in listeners {
        let stats = stats(listener);
        unmatched.get_or_insert_with(|| Arc::clone(&stats));
        let table = route::table(snapshot, shared, services, listener);
        let compiled = HttpListener {
            name: listener.name.clone(),
            paths: listener.paths,
            underscores: listener.underscores,
            trusted_hops: listener.trusted_hops,
            table,
            unmatched: stats,
        };
        by_host.insert(host(listener.hostname.as_ref()), compiled);
    }
    let none = RouteLabels { listener: String::new(), route: String::new() };
    let unmatched = unmatched.unwrap_or_else(|| shared.parts.metrics.route(&none));
    HttpBind { tls: None, identity_header: None, listeners: by_host, unmatched }
}

/// The pattern for lookups.
pub(super) fn host(hostname: Option<&Hostname>) -> Host<'_> {
    match hostname {
        None => Host::Any,
        Some(Hostname::Exact(name)) => Host::Exact(name),
        Some(Hostname::Wildcard(suffix)) => Host::Suffix(suffix),
    }
}

/// Who has to speak PROXY protocol at each address; its listeners agree.
pub(super) fn proxies(snapshot: &Snapshot) -> HashMap<BindKey, Vec<Network>> {
    let told = snapshot.listeners.iter().filter(|listener| !listener.proxies.is_empty());
    told.map(|listener| (key(listener), listener.proxies.clone())).collect()
}

/// Who may come to the addresses, and how many flows may begin there; the listeners of an address agree.
pub(super) fn guards(snapshot: &Snapshot, former: Option<&Guards>) -> Guards {
    let mut bounds = HashMap::new();
    for listener in &snapshot.listeners {
        let bind = key(listener);
        let former = former.and_then(|former| former.bounds.get(&bind));
        let at = (bind.addr, bind.transport == Transport::Udp);
        let rate = |pace: Pace| Rate { per_second: pace.per_second, burst: pace.burst };
        let rates = [listener.new_flows.all, listener.new_flows.source].map(|pace| pace.map(rate));
        bounds.extend(Bounds::new(rates, at, former).map(|bounds| (bind, bounds)));
    }
    Guards { lists: Lists::new(&sources::from_elsewhere(snapshot)), bounds }
}

fn attached<'s>(snapshot: &'s Snapshot, listener: &'s Listener) -> impl Iterator<Item = &'s Route> {
    snapshot.routes.iter().filter(|route| route.listeners.contains(&listener.name))
}

/// Where connections go, by the name that clients ask for: the most specific listener for it, then its most specific route.
fn passthrough(snapshot: &Snapshot, shared: &Shared, listeners: &[&Listener]) -> Hosts<Hosts<Arc<Balanced>>> {
    let mut by_listener = Hosts::default();
    for listener in listeners {
        let by_host: &mut Hosts<_> = by_listener.entry(host(listener.hostname.as_ref()));
        for route in attached(snapshot, listener) {
            let balanced = Arc::new(balanced(snapshot, shared, listener, route.rules.first()));
            for hostname in route::hostnames(route, listener) {
                by_host.insert(host(hostname.as_ref()), Arc::clone(&balanced));
            }
        }
    }
    by_listener
}

/// The endpoints of all backends of a rule, as the kernel has them.
fn balanced(snapshot: &Snapshot, shared: &Shared, listener: &Listener, rule: Option<&Rule>) -> Balanced {
    let mut connect_timeout = None;
    let (mut members, mut announced) = (Vec::new(), Vec::new());
    for backend in rule.map_or(&[][..], |rule| &rule.backends) {
        let Some(service) = snapshot.services.iter().find(|service| service.name == backend.service) else {
            continue;
        };
        connect_timeout = connect_timeout.max(Some(service.connect_timeout));
        for endpoint in &service.endpoints {
            let id = crate::endpoint::EndpointId { service: service.name.clone(), addr: endpoint.addr };
            let endpoint_weight = endpoint.weight;
            let endpoint = shared.parts.registry.resolve(&id);
            announced.push(service.is_announced);
            members.push(Member { endpoint, backend_weight: backend.weight, weight: endpoint_weight });
        }
    }
    Balanced {
        listener: listener.name.clone(),
        is_by_agent: listener.is_by_agent(),
        by_client: listener.packets.affinity.is_some(),
        announced: announced.into(),
        idle_timeout: listener.idle_timeout,
        balancer: Balancer::new(Policy::Maglev, members, &shared.seed),
        connect_timeout: connect_timeout.unwrap_or(limits::CONNECT_TIMEOUT),
        options: shared.parts.options,
        pools: Arc::clone(&shared.parts.pools),
    }
}
