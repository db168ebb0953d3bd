//! Everything at one look: what is wanted, what is served, what stands in the kernel, in the same words and without
//! secrets.

use std::net::{IpAddr, SocketAddr};

use gateway_common::{counter::Reason, endpoint::EndpointState, service::Service};
use serde_json::{Value, json};

use crate::{
    endpoint::{Availability, Health, Registry},
    kernel::{Kernel, probe},
    name::ListenerName,
    snapshot::{Snapshot, listener::Hostname},
    state::State,
};

/// What is wanted.
pub fn wanted(snapshot: &Snapshot) -> Value {
    let listeners: Vec<Value> = snapshot
        .listeners
        .iter()
        .map(|listener| {
            json!({
                "name": listener.name.as_str(),
                "address": listener.addr.to_string(),
                "protocol": listener.protocol.as_str(),
                "hostname": listener.hostname.as_ref().map(Hostname::to_string),
                // Where certificates come from; never what they are.
                "certificates": listener.certificates.iter().map(|one| one.origin.as_str()).collect::<Vec<_>>(),
            })
        })
        .collect();
    let routes: Vec<Value> = snapshot
        .routes
        .iter()
        .map(|route| {
            let backends = route.rules.iter().flat_map(|rule| &rule.backends);
            json!({
                "name": route.name.as_str(),
                "listeners": route.listeners.iter().map(ListenerName::as_str).collect::<Vec<_>>(),
                "hostnames": route.hostnames.iter().map(Hostname::to_string).collect::<Vec<_>>(),
                "rules": route.rules.len(),
                "backends": backends
                    .map(|backend| json!({ "service": backend.service.as_str(), "weight": backend.weight }))
                    .collect::<Vec<_>>(),
            })
        })
        .collect();
    let services: Vec<Value> = snapshot
        .services
        .iter()
        .map(|service| {
            let endpoints = service.endpoints.iter();
            json!({
                "name": service.name.as_str(),
                "endpoints": endpoints
                    .map(|endpoint| json!({ "address": endpoint.addr.to_string(), "weight": endpoint.weight }))
                    .collect::<Vec<_>>(),
            })
        })
        .collect();
    json!({ "generation": snapshot.generation, "listeners": listeners, "routes": routes, "services": services })
}

/// What is served.
pub fn served(state: &State, registry: &Registry) -> Value {
    let mut binds: Vec<String> = state.binds.keys().map(ToString::to_string).collect();
    binds.sort();
    let endpoints: Vec<Value> = registry
        .all()
        .iter()
        .map(|endpoint| {
            json!({
                "service": endpoint.id().service.as_str(),
                "address": endpoint.addr().to_string(),
                "weight": endpoint.weight(),
                "health": match endpoint.health() {
                    Health::Unknown => "unknown",
                    Health::Up => "up",
                    Health::Down => "down",
                },
                "state": match endpoint.availability() {
                    Availability::Active => "active",
                    Availability::Draining => "draining",
                    Availability::Down => "down",
                },
                "active": endpoint.active(),
            })
        })
        .collect();
    json!({ "generation": state.generation, "addresses": binds, "endpoints": endpoints })
}

/// What stands in the kernel.
pub fn kernel(kernel: &Kernel) -> Value {
    let written = kernel.written();
    let services: Vec<Value> = written
        .services
        .iter()
        .map(|(key, service)| {
            let slots = written.slots.get(key);
            let rows = written.endpoints.iter().filter(|(_, endpoint)| endpoint.service == service.id);
            let rows = rows.filter(|(_, endpoint)| endpoint.port.number() != 0);
            json!({
                "address": SocketAddr::new(key.addr.into(), key.port.number()).to_string(),
                "protocol": key.protocol.number(),
                "id": service.id,
                "mode": service.mode.number(),
                "slots": service.table().n_slots,
                "synCookies": syn_cookies(kernel, service),
                "endpoints": rows
                    .map(|(row, endpoint)| {
                        let local = row.wrapping_sub(service.table().first_endpoint);
                        let mine = |slot: &&gateway_common::slot::Slot| u32::from(slot.endpoint) == local;
                        json!({
                            "row": row,
                            "address": SocketAddr::new(endpoint.addr.into(), endpoint.port.number()).to_string(),
                            "state": match endpoint.state {
                                EndpointState::ACTIVE => "active",
                                EndpointState::DRAINING => "draining",
                                _ => "down",
                            },
                            "slots": slots.map_or(0, |slots| slots.iter().filter(mine).count()),
                            "nextHop": endpoint.next_hop.is_known(),
                            "packets": kernel.endpoint_packets(*row).map_or(Value::Null, |(there, back)| {
                                json!({ "forwarded": there, "replied": back })
                            }),
                        })
                    })
                    .collect::<Vec<_>>(),
            })
        })
        .collect();
    let attachments: serde_json::Map<String, Value> = kernel
        .attached()
        .iter()
        .map(|(name, one)| (name.clone(), json!({ "ingress": one.ingress, "why": one.why })))
        .collect();
    let receiving: Vec<&str> = kernel.receiving().collect();
    json!({
        "services": services,
        "attachments": attachments,
        "receiving": receiving,
        "refusedSources": refused_sources(kernel),
    })
}

/// Whether the connections of a service are answered with cookies; nothing where they never are.
fn syn_cookies(kernel: &Kernel, service: &Service) -> Value {
    if service.flags & Service::COOKIES == 0 {
        return Value::Null;
    }
    kernel.cookies(service.id).map_or(Value::Null, |cookies| {
        json!({
            "perSecond": service.cookie_rate,
            "armed": cookies.is_armed,
            "sent": cookies.sent,
            "tcpSyncookies": probe::tcp_syncookies(),
        })
    })
}

/// Whose packets were refused most.
fn refused_sources(kernel: &Kernel) -> Value {
    let Ok(sources) = kernel.refused_sources() else { return Value::Null };
    let service = |id: u32| {
        let services = &kernel.written().services;
        let key = services.iter().find(|(_, service)| service.id == id).map(|(key, _)| key);
        key.map(|key| SocketAddr::new(key.addr.into(), key.port.number()).to_string())
    };
    let reason = |number: u32| {
        let reason = Reason::ALL.iter().find(|reason| reason.number() == number);
        reason.map(|reason| reason.name())
    };
    sources
        .iter()
        .map(|one| {
            json!({
                "source": IpAddr::from(one.site).to_string(),
                "prefixBits": if one.site.is_v4() { 32 } else { 64 },
                "packetsAtMost": one.packets,
                "packetsAtLeast": one.packets.saturating_sub(one.doubtful),
                "lastService": service(one.service),
                "lastReason": reason(one.reason),
            })
        })
        .collect()
}
