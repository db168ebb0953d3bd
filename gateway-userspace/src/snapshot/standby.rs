//! Checks of listeners that fail open: whether their clients are served when the kernel sends them to endpoints, past
//! everything that the agent does.

use std::{
    collections::{HashMap, HashSet},
    net::SocketAddr,
};

use crate::{
    name::{ListenerName, ServiceName},
    place::{Located, Place},
    snapshot::{
        build::Problems,
        draft::{Draft, DraftListener, DraftRoute, DraftRule, DraftService},
        listener::Protocol,
        route::Backend,
        service::Endpoint,
    },
};

/// Checks every listener that fails open.
pub(super) fn check(draft: &Draft, problems: &mut Problems) {
    let services: HashMap<&ServiceName, &DraftService> =
        draft.services.iter().filter_map(|service| Some((&service.name.as_ref()?.value, service))).collect();
    let mut seen: HashSet<Option<SocketAddr>> = HashSet::new();
    for listener in &draft.listeners {
        let Some(Located { value: true, place }) = listener.fails_open else { continue };
        let Some(protocol) = listener.protocol.as_ref().map(|protocol| protocol.value) else { continue };
        let mut refuse = |message: String, remedy: &str| problems.fault(place, message, remedy);
        check_clients(listener, &mut refuse);
        let (routes, is_whole) = routes(draft, listener);
        if !is_whole {
            refuse(
                "no route is attached, so there is no endpoint to send connections to".to_owned(),
                "write a route for the listener, or `failMode: closed`",
            );
        }
        // What is wrong with their routes is said once for listeners that share them.
        if !seen.insert(listener.addr.as_ref().map(|addr| addr.value)) {
            continue;
        }
        let rules = || routes.iter().flat_map(|route| &route.rules);
        if let Some(rule) = rules().find(|rule| rule.backends.is_empty()) {
            check_answer(rule, problems);
        }
        check_one(rules().flat_map(|rule| &rule.backends), problems);
        let service = rules().flat_map(|rule| &rule.backends).next();
        if let Some(service) = service.and_then(|backend| services.get(&backend.value.service)) {
            check_service(listener, protocol, (service, place), problems);
        }
    }
}

/// What the agent takes from clients, and endpoints would not.
fn check_clients(listener: &DraftListener, refuse: &mut impl FnMut(String, &str)) {
    if listener.proxies.is_some() {
        let message = "endpoints would get the PROXY protocol of the load balancers in front".to_owned();
        refuse(message, "remove `proxyProtocol`, or write `failMode: closed`");
    }
    if listener.tls.as_ref().is_some_and(|tls| tls.value.clients.is_some()) {
        let message = "nobody would ask clients for the certificates that they need".to_owned();
        refuse(message, "remove `clientCertificates`, or write `failMode: closed`");
    }
}

/// The routes of all listeners of the address and port, and whether this one has any.
fn routes<'d>(draft: &'d Draft, listener: &DraftListener) -> (Vec<&'d DraftRoute>, bool) {
    let addr = |listener: &DraftListener| listener.addr.as_ref().map(|addr| addr.value);
    let is_udp =
        |listener: &DraftListener| listener.protocol.as_ref().is_some_and(|it| it.value == Protocol::Udp);
    let here: Option<SocketAddr> = addr(listener);
    let beside = draft.listeners.iter().filter(|other| addr(other) == here && !is_udp(other));
    let names: Vec<&ListenerName> = beside.filter_map(|other| Some(&other.name.as_ref()?.value)).collect();
    let leads = |route: &DraftRoute, name: &ListenerName| route.listeners.iter().any(|it| it.value == *name);
    let routes: Vec<&DraftRoute> =
        draft.routes.iter().filter(|route| names.iter().any(|name| leads(route, name))).collect();
    // A listener without a name was reported.
    let own = listener.name.as_ref().map(|name| &name.value);
    let is_whole = own.is_none_or(|own| routes.iter().any(|route| leads(route, own)));
    (routes, is_whole)
}

/// A rule that answers may keep something from clients.
fn check_answer(rule: &DraftRule, problems: &mut Problems) {
    let message = "a listener of this rule has `failMode: open`, and endpoints would get what it answers";
    problems.fault(rule.place, message, "give it a listener of its own, or write `failMode: closed` there");
}

/// Packets tell nothing of what requests are matched by.
fn check_one<'d>(mut backends: impl Iterator<Item = &'d Located<Backend>>, problems: &mut Problems) {
    let Some(first) = backends.next() else { return };
    let first = &first.value.service;
    if let Some(other) = backends.find(|backend| backend.value.service != *first) {
        let message = format!("a listener of this route has `failMode: open` and leads to {first} already");
        let remedy = "let its address and port lead to one service, or write `failMode: closed` there";
        problems.fault(other.place, message, remedy);
    }
}

/// Whether endpoints understand what clients of the listener say.
fn check_service(
    listener: &DraftListener,
    protocol: Protocol,
    (service, place): (&DraftService, Place),
    problems: &mut Problems,
) {
    let name = service.name.as_ref().map_or("its service", |name| name.value.as_str());
    let tls = service.tls.as_ref().map(|tls| tls.value.as_ref());
    let mut refuse = |message: String, remedy: &str| problems.fault(place, message, remedy);
    match (protocol, tls) {
        (Protocol::Https, None) => {
            let message = format!("clients speak TLS, which {name} does not take");
            refuse(message, "give the service `tls`, or write `failMode: closed`");
        }
        (Protocol::Https, Some(Some(tls))) if tls.certificate.is_some() => {
            let message = format!("{name} wants a certificate, which clients do not have");
            refuse(message, "remove the service's `certificate`, or write `failMode: closed`");
        }
        (Protocol::Http, Some(_)) => {
            let message = format!("{name} wants TLS, and clients speak plain text");
            refuse(message, "name a service without `tls`, or write `failMode: closed`");
        }
        // What is wrong with others was said elsewhere.
        (Protocol::Http | Protocol::Https | Protocol::Tls | Protocol::Tcp | Protocol::Udp, _) => {}
    }
    if service.announced.is_some() {
        let message = format!("{name} wants the PROXY protocol, which clients do not speak");
        refuse(message, "name a service without `proxyProtocol`, or write `failMode: closed`");
    }
    let Some(addr) = &listener.addr else { return };
    let is_other = |endpoint: &&Located<Endpoint>| endpoint.value.addr.is_ipv4() != addr.value.is_ipv4();
    if let Some(endpoint) = service.endpoints.iter().find(is_other) {
        let family = if addr.value.is_ipv4() { "IPv4" } else { "IPv6" };
        let message = format!("packets keep their family, and {} is not {family}", endpoint.value.addr);
        refuse(message, "name a service of the listener's family, or write `failMode: closed`");
    }
}
