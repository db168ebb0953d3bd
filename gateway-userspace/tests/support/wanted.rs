//! Snapshots, written like sentences.

use std::{net::SocketAddr, time::Duration};

use gateway_userspace::{
    field,
    name::{ListenerName, RouteName, ServiceName},
    retry,
    secret::Secret,
    snapshot::{
        Snapshot,
        listener::{Certificate, Forwarding, Hostname, Listener, Packets, Protocol},
        route::{Backend, Match, PathMatch, Route, Rule},
        service::{CheckKind, Endpoint, HealthCheck, Policy, Service, UpstreamProtocol},
        sources::{NewFlows, Sources},
    },
    target,
    tunnel::Tunnels,
};

pub fn listener(name: &str, addr: SocketAddr, protocol: Protocol) -> Listener {
    Listener {
        name: ListenerName::new(name),
        addr,
        protocol,
        hostname: None,
        certificates: Vec::new(),
        ticket_keys: Vec::new(),
        clients: None,
        forwarding: Forwarding::Nat,
        packets: Packets::default(),
        proxies: Vec::new(),
        idle_timeout: Duration::from_hours(1),
        new_flows: NewFlows::default(),
        syn_cookies: None,
        fails_open: false,
        paths: target::Rules::DEFAULT,
        underscores: field::Underscores::DEFAULT,
        trusted_hops: 0,
    }
}

pub fn hostname(text: &str) -> Hostname {
    match text.strip_prefix("*.") {
        Some(suffix) => Hostname::Wildcard(suffix.to_owned()),
        None => Hostname::Exact(text.to_owned()),
    }
}

pub fn certificate(name: &str) -> Certificate {
    let pair = rcgen::generate_simple_self_signed([name.to_owned()]).unwrap();
    Certificate {
        origin: format!("{name}.pem"),
        chain_pem: pair.cert.pem().into_bytes(),
        key_pem: Secret::new(pair.signing_key.serialize_pem().as_bytes()),
        ocsp: None,
        fetches_ocsp: false,
    }
}

pub fn prefix(path: &str) -> Match {
    Match { path: PathMatch::Prefix(path.to_owned()), method: None, headers: Vec::new(), query: Vec::new() }
}

pub fn exact(path: &str) -> Match {
    Match { path: PathMatch::Exact(path.to_owned()), ..prefix("/") }
}

pub fn rule(matched: Match, backends: &[(&str, u32)]) -> Rule {
    let backend = |(service, weight): &(&str, u32)| Backend {
        service: ServiceName::new(service),
        weight: *weight,
        filters: None,
    };
    Rule {
        matches: vec![matched],
        backends: backends.iter().map(backend).collect(),
        filters: None,
        mirrors: Vec::new(),
        request_timeout: None,
        backend_timeout: None,
        idle_timeout: None,
        retry: retry::Policy::DEFAULT,
        tunnels: Tunnels::DEFAULT,
    }
}

pub fn route(name: &str, listener: &str, rules: Vec<Rule>) -> Route {
    Route {
        name: RouteName::new(name),
        listeners: vec![ListenerName::new(listener)],
        hostnames: Vec::new(),
        rules,
    }
}

pub fn service(name: &str, endpoints: &[SocketAddr]) -> Service {
    Service {
        name: ServiceName::new(name),
        endpoints: endpoints.iter().map(|addr| Endpoint { addr: *addr, weight: 1 }).collect(),
        protocol: UpstreamProtocol::Http1,
        tls: None,
        balance: Policy::RoundRobin,
        health: None,
        passive_health: None,
        connect_timeout: Duration::from_millis(500),
        retries: retry::Limits::DEFAULT,
        is_announced: false,
    }
}

pub fn check(kind: CheckKind) -> HealthCheck {
    HealthCheck {
        kind,
        interval: Duration::from_millis(200),
        timeout: Duration::from_millis(100),
        unhealthy_threshold: 2,
        healthy_threshold: 1,
    }
}

/// One listener, one route, one service.
pub fn simple(addr: SocketAddr, endpoints: &[SocketAddr]) -> Snapshot {
    Snapshot {
        generation: 1,
        listeners: vec![listener("web", addr, Protocol::Http)],
        routes: vec![route("all", "web", vec![rule(prefix("/"), &[("api", 1)])])],
        services: vec![service("api", endpoints)],
        sources: Sources::default(),
    }
}
