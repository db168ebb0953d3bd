//! Checks what refers to what: routes to listeners, backends to services, and whether both ends fit.

use std::collections::{HashMap, HashSet};

use crate::{
    limits,
    name::{ListenerName, ServiceName},
    place::Located,
    snapshot::{
        build::Problems,
        draft::{Draft, DraftListener, DraftRoute, DraftRule, DraftService},
        listener::{Forwarding, Hostname, Protocol},
        service::UpstreamProtocol,
    },
};

/// The things that others refer to, by name; of several with one name, the first. And what to write where a name is
/// none of them.
struct Index<'d> {
    listeners: HashMap<&'d ListenerName, &'d DraftListener>,
    services: HashMap<&'d ServiceName, &'d DraftService>,
    listener_remedy: String,
    service_remedy: String,
}

/// Checks every reference of the draft.
pub(super) fn check(draft: &Draft, problems: &mut Problems) {
    let listeners = draft.listeners.iter().filter_map(|listener| listener.name.as_ref());
    let services = draft.services.iter().filter_map(|service| service.name.as_ref());
    let mut index = Index {
        listeners: HashMap::new(),
        services: HashMap::new(),
        listener_remedy: listed("listeners", listeners.map(|name| name.value.as_str())),
        service_remedy: listed("services", services.map(|name| name.value.as_str())),
    };
    for listener in &draft.listeners {
        if let Some(name) = &listener.name {
            index.listeners.entry(&name.value).or_insert(listener);
        }
    }
    for service in &draft.services {
        if let Some(name) = &service.name {
            index.services.entry(&name.value).or_insert(service);
        }
    }
    for route in &draft.routes {
        check_listeners(route, &index, problems);
        check_hostnames(route, &index, problems);
        check_backends(route, &index, problems);
    }
    check_attached(draft, problems);
    check_used(draft, problems);
}

fn attached<'d>(route: &DraftRoute, index: &Index<'d>) -> Vec<&'d DraftListener> {
    route.listeners.iter().filter_map(|name| index.listeners.get(&name.value).copied()).collect()
}

/// The first protocol of a route's listeners that routes connections, not requests.
fn layer4(route: &DraftRoute, index: &Index<'_>) -> Option<Protocol> {
    attached(route, index)
        .into_iter()
        .filter_map(|listener| listener.protocol.as_ref())
        .map(|protocol| protocol.value)
        .find(|protocol| !protocol.is_layer7())
}

fn check_listeners(route: &DraftRoute, index: &Index<'_>, problems: &mut Problems) {
    let mut seen = HashSet::new();
    for Located { value: name, place } in &route.listeners {
        if !seen.insert(name) {
            problems.fault(*place, format!("{name} is written twice"), "write each listener once");
        }
        if !index.listeners.contains_key(name) {
            let remedy = index.listener_remedy.clone();
            problems.fault(*place, format!("no listener is named {name}"), remedy);
        }
    }
    let Some(protocol) = layer4(route, index) else { return };
    let protocols = attached(route, index).into_iter().filter_map(|listener| listener.protocol.as_ref());
    let kind = |protocol: Protocol| (protocol.is_layer7(), protocol.has_names());
    if let Some(other) = protocols.map(|other| other.value).find(|other| kind(*other) != kind(protocol)) {
        let message = format!("one route on both {} and {} listeners", other.as_str(), protocol.as_str());
        problems.fault(route.place, message, "write a route for each");
        return;
    }
    let word = protocol.as_str();
    if let Some(hostname) = route.hostnames.first()
        && !protocol.has_names()
    {
        let message = format!("host names have no meaning on a {word} listener");
        problems.fault(hostname.place, message, "remove `hostnames`");
    }
    if let Some(second) = route.rules.get(1) {
        let message = format!("a second rule has no meaning on a {word} listener");
        problems.fault(second.place, message, "write one rule");
    }
    for rule in &route.rules {
        if let Some(matches) = &rule.matches {
            let message = format!("matches have no meaning on a {word} listener");
            problems.fault(matches.place, message, "remove `matches`");
        }
        if let Some(filters) = &rule.filters {
            let message = format!("filters have no meaning on a {word} listener");
            problems.fault(filters.place, message, "remove `filters`");
        }
        if let Some(backend) = rule.backends.iter().find(|backend| backend.value.filters.is_some()) {
            let message = format!("filters of a backend have no meaning on a {word} listener");
            problems.fault(backend.place, message, "remove `filters`");
        }
        if let Some(retry) = &rule.retry {
            let message = format!("retries have no meaning on a {word} listener");
            problems.fault(retry.place, message, "remove `retry`");
        }
        if let Some(tunnels) = &rule.tunnels {
            let message = format!("tunnels have no meaning on a {word} listener");
            problems.fault(tunnels.place, message, "remove `tunnels`");
        }
        if let Some(timeout) =
            [&rule.request_timeout, &rule.backend_timeout, &rule.idle_timeout].into_iter().flatten().next()
        {
            let message = format!("timeouts have no meaning on a {word} listener");
            problems.fault(timeout.place, message, "remove `timeouts`");
        }
    }
}

fn check_hostnames(route: &DraftRoute, index: &Index<'_>, problems: &mut Problems) {
    if layer4(route, index).is_some_and(|protocol| !protocol.has_names()) || route.hostnames.is_empty() {
        return;
    }
    let listeners = attached(route, index);
    if listeners.is_empty() {
        return;
    }
    for Located { value: hostname, place } in &route.hostnames {
        let served = |listener: &&DraftListener| {
            listener.hostname.as_ref().is_none_or(|name| name.value.overlaps(hostname))
        };
        if !listeners.iter().any(served) {
            let names: Vec<String> = listeners
                .iter()
                .filter_map(|listener| listener.hostname.as_ref())
                .map(|name| name.value.to_string())
                .collect();
            let message = format!("{hostname} is served by none of the route's listeners");
            problems.fault(*place, message, format!("write a name within {}", names.join(" or ")));
        }
    }
    for name in &route.listeners {
        let Some(listener) = index.listeners.get(&name.value) else { continue };
        let Some(hostname) = &listener.hostname else { continue };
        if !route.hostnames.iter().any(|wanted| hostname.value.overlaps(&wanted.value)) {
            let message = format!("{} serves none of the route's host names", name.value);
            let remedy = format!("remove it here, or add a name within {} to `hostnames`", hostname.value);
            problems.fault(name.place, message, remedy);
        }
    }
}

fn check_backends(route: &DraftRoute, index: &Index<'_>, problems: &mut Problems) {
    let layer4 = layer4(route, index);
    for backend in route.rules.iter().flat_map(|rule| &rule.backends) {
        let name = &backend.value.service;
        if index.services.contains_key(name) {
            continue;
        }
        let message = format!("no service is named {name}");
        let remedy = index.service_remedy.clone();
        if layer4.is_some() {
            problems.fault(backend.place, message, remedy);
        } else {
            problems.warning(backend.place, format!("{message}: its share is answered with 500"), remedy);
        }
    }
    for mirror in route.rules.iter().flat_map(|rule| &rule.mirrors) {
        let name = &mirror.value.service;
        if !index.services.contains_key(name) {
            let message = format!("no service is named {name}: nothing is copied");
            problems.warning(mirror.place, message, index.service_remedy.clone());
        }
    }
    if layer4.is_some_and(|protocol| !protocol.has_names()) {
        check_packets(route, index, problems);
    }
    check_announced(route, index, problems);
    check_secured(route, index, problems);
    check_tunnels(route, index, problems);
}

/// Bytes that follow CONNECT take a connection to the endpoint for themselves, and HTTP/2 shares its connections.
fn check_tunnels(route: &DraftRoute, index: &Index<'_>, problems: &mut Problems) {
    let takes_connect =
        |rule: &&DraftRule| rule.tunnels.as_ref().is_some_and(|tunnels| tunnels.value.connect);
    for backend in route.rules.iter().filter(takes_connect).flat_map(|rule| &rule.backends) {
        let name = &backend.value.service;
        let protocol = index.services.get(name).and_then(|service| service.protocol.as_ref());
        if protocol.is_some_and(|protocol| protocol.value != UpstreamProtocol::Http1) {
            let message = format!("{name} speaks HTTP/2, over which the rule's CONNECT leads nowhere");
            let remedy = "name a service with `protocol: http1`, or leave `connect` of the rule out";
            problems.fault(backend.place, message, remedy);
        }
    }
}

/// Endpoints can be told who the client is at the beginning of a connection that belongs to this client alone.
fn check_announced(route: &DraftRoute, index: &Index<'_>, problems: &mut Problems) {
    let by_agent = |listener: &&DraftListener| {
        let protocol = listener.protocol.as_ref().map(|protocol| protocol.value);
        let forwarding = listener.forwarding.as_ref().map(|forwarding| forwarding.value);
        protocol.is_some_and(|protocol| protocol == Protocol::Tls || protocol.is_layer7())
            || (protocol == Some(Protocol::Tcp) && forwarding == Some(Forwarding::Agent))
    };
    if attached(route, index).iter().all(by_agent) {
        return;
    }
    let used = route.rules.iter().flat_map(|rule| {
        let backends = rule.backends.iter().map(|backend| (&backend.value.service, backend.place));
        backends.chain(rule.mirrors.iter().map(|mirror| (&mirror.value.service, mirror.place)))
    });
    for (name, place) in used {
        let Some(service) = index.services.get(name) else { continue };
        if service.announced.is_some() {
            let message =
                format!("{name} wants the PROXY protocol, and a listener of this route forwards packets");
            let remedy = "write `forwarding: agent` where the protocol is TCP, or another service";
            problems.fault(place, message, remedy);
        }
    }
}

/// TLS begins here only where requests are forwarded; bytes and packets go to endpoints as they come.
fn check_secured(route: &DraftRoute, index: &Index<'_>, problems: &mut Problems) {
    if layer4(route, index).is_none() {
        return;
    }
    for backend in route.rules.iter().flat_map(|rule| &rule.backends) {
        let name = &backend.value.service;
        if index.services.get(name).is_some_and(|service| service.tls.is_some()) {
            let message = format!("{name} wants TLS, and a listener of this route forwards what it gets");
            let remedy = "write `protocol: HTTP` or `HTTPS`, or another service";
            problems.fault(backend.place, message, remedy);
        }
    }
}

/// Packets keep their address family, and the kernel numbers the endpoints of one listener in 16 bits.
fn check_packets(route: &DraftRoute, index: &Index<'_>, problems: &mut Problems) {
    let services: Vec<&DraftService> = route
        .rules
        .iter()
        .flat_map(|rule| &rule.backends)
        .filter_map(|backend| index.services.get(&backend.value.service).copied())
        .collect();
    let n_endpoints: usize = services.iter().map(|service| service.endpoints.len()).sum();
    if n_endpoints > limits::ENDPOINTS_PER_SERVICE {
        let message = format!("its services have {n_endpoints} endpoints together");
        let remedy = format!("write at most {} behind one listener", limits::ENDPOINTS_PER_SERVICE);
        problems.fault(route.place, message, remedy);
    }
    for listener in attached(route, index) {
        let (Some(addr), Some(name)) = (&listener.addr, &listener.name) else { continue };
        let forwarding = listener.forwarding.as_ref().map(|it| it.value).unwrap_or_default();
        if forwarding.is_direct() && listener.ports.is_none() {
            check_port(name.value.as_str(), addr.value.port(), &services, problems);
        }
        if forwarding.is_tunnel() {
            continue;
        }
        let other = services
            .iter()
            .flat_map(|service| &service.endpoints)
            .find(|endpoint| endpoint.value.addr.is_ipv4() != addr.value.is_ipv4());
        if let Some(endpoint) = other {
            let (ours, theirs) = if addr.value.is_ipv4() { ("IPv4", "IPv6") } else { ("IPv6", "IPv4") };
            let message =
                format!("an {theirs} endpoint behind {}, an {ours} listener for packets", name.value);
            let remedy = format!("write an {ours} address, or a service for each family");
            problems.fault(endpoint.place, message, remedy);
        }
    }
}

/// Packets that go to an endpoint as they came arrive at the port that the client asked for.
fn check_port(listener: &str, port: u16, services: &[&DraftService], problems: &mut Problems) {
    let endpoints = services.iter().flat_map(|service| &service.endpoints);
    for endpoint in endpoints.filter(|endpoint| endpoint.value.addr.port() != port) {
        let message = format!(
            "packets for {listener} keep their port {port}, and this endpoint is said to have another"
        );
        problems.fault(endpoint.place, message, format!("write `port: {port}`"));
    }
}

/// A listener for packets has one route; one for requests has one at least, or serves nothing.
fn check_attached(draft: &Draft, problems: &mut Problems) {
    let mut routes: HashMap<&ListenerName, Vec<(&DraftRoute, &Located<ListenerName>)>> = HashMap::new();
    for route in &draft.routes {
        for name in &route.listeners {
            let here = routes.entry(&name.value).or_default();
            // Routes come one after another, so a listener that one names twice finds it last.
            if here.last().is_none_or(|(other, _)| other.place != route.place) {
                here.push((route, name));
            }
        }
    }
    for listener in &draft.listeners {
        let (Some(name), Some(protocol)) = (&listener.name, &listener.protocol) else { continue };
        let here = routes.get(&name.value).map(Vec::as_slice).unwrap_or_default();
        let name = &name.value;
        if protocol.value == Protocol::Tls {
            check_names(listener, here, problems);
        }
        match (protocol.value.is_layer7(), here) {
            (true, []) => {
                let message = format!("no route is attached to {name}: it answers 404");
                problems.warning(
                    listener.place,
                    message,
                    format!("write a route with `listeners: [{name}]`"),
                );
            }
            (false, []) => {
                let message = format!("no route is attached to {name}, so its packets have nowhere to go");
                problems.fault(listener.place, message, format!("write a route with `listeners: [{name}]`"));
            }
            (false, [_, more @ ..]) if !protocol.value.has_names() => {
                for (_, second) in more {
                    let message = format!("{name} has a route already, and packets follow one");
                    problems.fault(second.place, message, "write both backends into one route, with weights");
                }
            }
            (true | false, [_, ..]) => {}
        }
    }
}

/// Connections under one name have one route.
fn check_names(
    listener: &DraftListener,
    routes: &[(&DraftRoute, &Located<ListenerName>)],
    problems: &mut Problems,
) {
    let mut seen: HashSet<Option<&Hostname>> = HashSet::new();
    let everything = listener.hostname.as_ref().map(|name| &name.value);
    for (route, name) in routes {
        if route.hostnames.is_empty() && !seen.insert(everything) {
            let message = format!("another route has the same names on {}", name.value);
            problems.fault(name.place, message, "write both backends into one route, or `hostnames`");
        }
        for Located { value: hostname, place } in &route.hostnames {
            if !seen.insert(Some(hostname)) {
                let message = format!("another route has the same name on {}", name.value);
                problems.fault(*place, message, "write both backends into one route, or another name");
            }
        }
    }
}

fn check_used(draft: &Draft, problems: &mut Problems) {
    let used: HashSet<&ServiceName> = draft
        .routes
        .iter()
        .flat_map(|route| &route.rules)
        .flat_map(|rule| {
            let backends = rule.backends.iter().map(|backend| &backend.value.service);
            backends.chain(rule.mirrors.iter().map(|mirror| &mirror.value.service))
        })
        .collect();
    for service in &draft.services {
        if let Some(name) = &service.name
            && !used.contains(&name.value)
        {
            let message = format!("no route leads to {}", name.value);
            problems.warning(service.place, message, "refer to it in `backends`, or remove it");
        }
    }
}

fn listed<'n>(kind: &str, names: impl Iterator<Item = &'n str>) -> String {
    const SHOWN: usize = 5;
    let mut names: Vec<&str> = names.collect();
    names.sort_unstable();
    names.dedup();
    if names.is_empty() {
        return format!("add it below `{kind}`");
    }
    let more = if names.len() > SHOWN { ", ..." } else { "" };
    names.truncate(SHOWN);
    format!("add it below `{kind}`, or write one of {}{more}", names.join(", "))
}
