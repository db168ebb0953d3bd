//! Everything at one look: what is wanted, what is served, what stands in the kernel, in the same words and without
//! secrets.

use std::{
    collections::{BTreeMap, HashMap},
    net::{IpAddr, SocketAddr},
};

use gateway_common::{
    addr::Addr,
    counter::Reason as Ending,
    endpoint::EndpointState,
    service::{Mode, Service, ServiceKey},
};
use parking_lot::{Mutex, MutexGuard};
use serde_json::{Value, json};

use crate::{
    endpoint::{Availability, Endpoint, Health, Reach, Reason, Registry},
    kernel::{self, Kernel, probe},
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
                "health": endpoint.worst_health().as_str(),
                // By each way that is checked.
                "ways": checked(endpoint),
                "state": match endpoint.availability_at_worst() {
                    Availability::Active => "active",
                    Availability::Draining => "draining",
                    Availability::Down => "down",
                },
                // Why it gets no new flows.
                "because": endpoint.reasons().map(Reason::as_str).collect::<Vec<_>>(),
                "active": endpoint.active(),
            })
        })
        .collect();
    json!({ "generation": state.generation, "addresses": binds, "endpoints": endpoints })
}

/// What checks say of an endpoint, by the ways that they took.
fn checked(endpoint: &Endpoint) -> BTreeMap<&'static str, &'static str> {
    let by_reach = Reach::ALL.into_iter().map(|reach| (reach, endpoint.health_by(reach)));
    let known = by_reach.filter(|(_, health)| *health != Health::Unknown);
    known.map(|(reach, health)| (reach.as_str(), health.as_str())).collect()
}

/// What stands in the kernel, read in portions: whoever writes the maps waits for one of them at most. What changes meanwhile
/// is shown as it was or as it is.
pub fn kernel(kernel: &Mutex<Kernel>) -> Value {
    let rows = rows_by_service(kernel);
    let keys: Vec<ServiceKey> = portion(kernel, |kernel| kernel.written().services.keys().copied().collect());
    let services: Vec<Value> = keys.iter().filter_map(|key| service(kernel, key, &rows)).collect();
    portion(kernel, |kernel| {
        let attachments: serde_json::Map<String, Value> = kernel
            .attached()
            .iter()
            .map(|(name, one)| (name.clone(), json!({ "ingress": one.ingress, "why": one.why })))
            .collect();
        let receiving: Vec<&str> = kernel.receiving().collect();
        // A dump that is asked for while the kernel refuses shows the rest.
        let pairs = kernel.socket_pairs().ok().flatten();
        json!({
            "services": services,
            "attachments": attachments,
            "receiving": receiving,
            // Virtual addresses that are to be found on the link, by the name of the interface.
            "announced": kernel.announced(),
            "connect": kernel.connected().map(|(cgroup, is_attached)| {
                let [held, room] = pairs.map_or([None; 2], |pairs| pairs.map(Some));
                json!({
                    "cgroup": cgroup.display().to_string(),
                    "attached": is_attached,
                    "sockets": held,
                    "room": room,
                })
            }),
            "refusedSources": refused_sources(kernel),
        })
    })
}

/// Does a part of the work with something shared, and lets others have it then who wait for it.
fn portion<T, R>(shared: &Mutex<T>, work: impl FnOnce(&T) -> R) -> R {
    let shared = shared.lock();
    let done = work(&shared);
    MutexGuard::unlock_fair(shared);
    done
}

/// Rows of endpoints, by the number of their service.
fn rows_by_service(kernel: &Mutex<Kernel>) -> HashMap<u32, Vec<u32>> {
    /// Rows that are looked at in one portion: without a system call for each.
    const AT_ONCE: usize = 4_096;
    let mut by_service: HashMap<u32, Vec<u32>> = HashMap::new();
    let mut next = Some(0);
    while let Some(first) = next {
        next = portion(kernel, |kernel| {
            let mut last = None;
            for (row, endpoint) in kernel.written().endpoints.range(first..).take(AT_ONCE) {
                if endpoint.addr != Addr::UNSPECIFIED {
                    by_service.entry(endpoint.service).or_default().push(*row);
                }
                last = Some(*row);
            }
            last.and_then(|last| last.checked_add(1))
        });
    }
    by_service
}

/// One service with its endpoints; none when it is gone.
fn service(kernel: &Mutex<Kernel>, key: &ServiceKey, rows: &HashMap<u32, Vec<u32>>) -> Option<Value> {
    let (mut shown, service, n_slots) = portion(kernel, |kernel| {
        let service = *kernel.written().services.get(key)?;
        let mut n_slots: HashMap<u32, usize> = HashMap::new();
        for slot in kernel.written().slots.get(key).into_iter().flatten() {
            *n_slots.entry(slot.endpoint.into()).or_default() += 1;
        }
        let shown = json!({
            "address": SocketAddr::new(key.addr.into(), key.port.number()).to_string(),
            "protocol": key.protocol.number(),
            "id": service.id,
            "mode": service.mode.number(),
            "slots": service.table().n_slots,
            "synCookies": syn_cookies(kernel, &service),
            "failOpen": fail_open(kernel, &service),
        });
        Some((shown, service, n_slots))
    })?;
    let mut endpoints = Vec::new();
    for rows in rows.get(&service.id).map(Vec::as_slice).unwrap_or_default().chunks(kernel::AT_ONCE) {
        portion(kernel, |kernel| {
            let of_it = |row: &u32| {
                let endpoint = kernel.written().endpoints.get(row)?;
                let local = row.wrapping_sub(service.table().first_endpoint);
                Some(json!({
                    "row": row,
                    "address": SocketAddr::new(endpoint.addr.into(), endpoint.own_port().number()).to_string(),
                    "state": match endpoint.state {
                        EndpointState::ACTIVE => "active",
                        EndpointState::DRAINING => "draining",
                        _ => "down",
                    },
                    "slots": n_slots.get(&local).copied().unwrap_or(0),
                    "nextHop": endpoint.next_hop.is_known(),
                    "packets": kernel.endpoint_packets(*row).map_or(Value::Null, |(there, back)| {
                        json!({ "forwarded": there, "replied": back })
                    }),
                }))
            };
            endpoints.extend(rows.iter().filter_map(of_it));
        });
    }
    shown.as_object_mut()?.insert("endpoints".to_owned(), endpoints.into());
    Some(shown)
}

/// Whether the connections of a service are answered with cookies; nothing where they never are.
fn syn_cookies(kernel: &Kernel, service: &Service) -> Value {
    if service.flags & Service::COOKIES == 0 {
        return Value::Null;
    }
    kernel.cookies(service.id).map_or(Value::Null, |cookies| {
        let mut said = json!({
            "perSecond": service.cookie_rate,
            "armed": cookies.is_armed,
            "sent": cookies.sent,
        });
        // The others are the programs' own, which the stack does not see.
        if service.mode == Mode::AGENT
            && let Some(said) = said.as_object_mut()
        {
            said.insert("tcpSyncookies".to_owned(), json!(probe::tcp_syncookies()));
        }
        said
    })
}

/// How many workers of a service are silent, so that new connections go past them; nothing where it fails closed.
fn fail_open(kernel: &Kernel, service: &Service) -> Value {
    if service.flags & Service::FAILS_OPEN == 0 {
        return Value::Null;
    }
    json!({
        "workers": service.n_sockets,
        "silentWorkers": kernel.heart().n_silent(service.n_sockets),
        "connectionsPastTheAgent": kernel.flows(service.id),
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
        let reason = Ending::ALL.iter().find(|reason| reason.number() == number);
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

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    #[test]
    fn whoever_waits_gets_its_turn_after_the_present_portion() {
        const PORTIONS: u32 = 1_000;
        let (shared, is_waiting) = (Mutex::new(()), Mutex::new(false));
        let done = AtomicU32::new(0);
        let missed = std::thread::scope(|scope| {
            let waiter = scope.spawn(|| {
                let mut missed = 0;
                for _ in 0..20 {
                    *is_waiting.lock() = true;
                    let before = done.load(Ordering::SeqCst);
                    let turn = shared.lock();
                    missed = missed.max(done.load(Ordering::SeqCst) - before);
                    *is_waiting.lock() = false;
                    drop(turn);
                }
                missed
            });
            for _ in 0..PORTIONS {
                portion(&shared, |()| {
                    // Long enough for who waits to be asleep, and so in the queue.
                    if *is_waiting.lock() {
                        std::thread::park_timeout(std::time::Duration::from_millis(5));
                    }
                });
                done.fetch_add(1, Ordering::SeqCst);
            }
            waiter.join().unwrap()
        });
        assert!(missed <= 20, "others had {missed} portions while one waited");
    }
}
