//! Listeners, grouped by the address that they share.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use crate::{
    balance::{Balancer, Member, Policy},
    compile::{Fault, Faults, route, state::Shared, tls},
    limits,
    metrics::shard::RouteLabels,
    name::ServiceName,
    route::host::{Host, Hosts},
    snapshot::{
        Snapshot,
        listener::{Hostname, Listener, Protocol},
    },
    state::{Balanced, Bind, BindKey, HttpBind, HttpListener, Transport},
    upstream::Upstream,
};

/// Services by name.
pub(super) type Services = HashMap<ServiceName, Arc<Upstream>>;

/// What is served at each address.
pub(super) fn binds(
    snapshot: &Snapshot,
    shared: &Shared,
    services: &Services,
    faults: &mut Faults,
) -> HashMap<BindKey, Bind> {
    let mut groups: BTreeMap<BindKey, Vec<&Listener>> = BTreeMap::new();
    for listener in &snapshot.listeners {
        groups.entry(key(listener)).or_default().push(listener);
    }
    let mut binds = HashMap::new();
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
            Protocol::Https => tls::acceptor(&listeners, shared, faults).map(|acceptor| {
                let identity_header = first.clients.as_ref().map(|clients| clients.identity_header.clone());
                let bind = http(snapshot, shared, services, &listeners);
                Bind::Http(Box::new(HttpBind { tls: Some(acceptor), identity_header, ..bind }))
            }),
            Protocol::Tcp | Protocol::Udp => Some(Bind::Balanced(balanced(snapshot, shared, first))),
        };
        binds.extend(bind.map(|bind| (key, bind)));
    }
    binds
}

fn key(listener: &Listener) -> BindKey {
    let transport = match listener.protocol {
        Protocol::Http | Protocol::Https | Protocol::Tcp => Transport::Tcp,
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

/// The endpoints of all backends of the one rule, as the kernel has them.
fn balanced(snapshot: &Snapshot, shared: &Shared, listener: &Listener) -> Balanced {
    let attached = |route: &&crate::snapshot::route::Route| route.listeners.contains(&listener.name);
    let rule = snapshot.routes.iter().find(attached).and_then(|route| route.rules.first());
    let mut connect_timeout = None;
    let mut members = Vec::new();
    for backend in rule.map_or(&[][..], |rule| &rule.backends) {
        let Some(service) = snapshot.services.iter().find(|service| service.name == backend.service) else {
            continue;
        };
        connect_timeout = connect_timeout.max(Some(service.connect_timeout));
        for endpoint in &service.endpoints {
            let id = crate::endpoint::EndpointId { service: service.name.clone(), addr: endpoint.addr };
            let endpoint_weight = endpoint.weight;
            let endpoint = shared.parts.registry.resolve(&id);
            members.push(Member { endpoint, backend_weight: backend.weight, weight: endpoint_weight });
        }
    }
    Balanced {
        listener: listener.name.clone(),
        balancer: Balancer::new(Policy::Maglev, members, &shared.seed),
        connect_timeout: connect_timeout.unwrap_or(limits::CONNECT_TIMEOUT),
        options: shared.parts.options,
    }
}
