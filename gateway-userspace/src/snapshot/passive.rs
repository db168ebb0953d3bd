//! Checks that clients' attempts leave a trace where they shall decide about endpoints.

use std::collections::HashMap;

use gateway_common::service::Track;

use crate::{
    name::{ListenerName, ServiceName},
    place::Located,
    snapshot::{
        build::Problems,
        draft::{Draft, DraftListener},
        listener::{Forwarding, Protocol},
    },
};

/// A service with `passiveHealth` needs a listener whose attempts are seen.
pub(super) fn check(draft: &Draft, problems: &mut Problems) {
    if draft.services.iter().all(|service| service.passive_health.is_none()) {
        return;
    }
    let listeners = listeners(draft);
    for service in &draft.services {
        let (Some(name), Some(Located { place, .. })) = (&service.name, &service.passive_health) else {
            continue;
        };
        let Some(listeners) = listeners.get(&name.value) else { continue };
        let blind: Vec<_> =
            listeners.iter().filter_map(|listener| Some((listener, blindness(listener)?))).collect();
        if let Some((listener, why)) = blind.first()
            && blind.len() == listeners.len()
        {
            let listener = listener.name.as_ref().map_or("its listener", |name| name.value.as_str());
            let message = format!("nobody sees whether clients get through: {listener} {why}");
            let remedy = "remove it, or write `health`, which asks the endpoints itself";
            problems.fault(*place, message, remedy);
        }
    }
}

/// The listeners that lead to each service.
fn listeners(draft: &Draft) -> HashMap<&ServiceName, Vec<&DraftListener>> {
    let named = draft.listeners.iter().filter_map(|one| Some((&one.name.as_ref()?.value, one)));
    let by_name: HashMap<&ListenerName, &DraftListener> = named.collect();
    let mut listeners: HashMap<&ServiceName, Vec<&DraftListener>> = HashMap::new();
    for route in &draft.routes {
        let attached = || route.listeners.iter().filter_map(|name| by_name.get(&name.value).copied());
        for backend in route.rules.iter().flat_map(|rule| &rule.backends) {
            listeners.entry(&backend.value.service).or_default().extend(attached());
        }
    }
    listeners
}

/// Why attempts at a listener are not seen, if they are not.
fn blindness(listener: &DraftListener) -> Option<&'static str> {
    let protocol = listener.protocol.as_ref()?.value;
    let forwarding = listener.forwarding.as_ref().map(|it| it.value).unwrap_or_default();
    match protocol {
        Protocol::Http | Protocol::Https | Protocol::Tls => None,
        Protocol::Udp => Some("is UDP, where nothing says that a flow began"),
        Protocol::Tcp if forwarding == Forwarding::Agent => None,
        Protocol::Tcp => {
            let is_recorded = match &listener.track {
                Some(track) => track.value == Track::ALWAYS,
                None => !forwarding.is_direct() || listener.affinity.is_some(),
            };
            (!is_recorded).then_some("remembers no flows; it would with `track: always`")
        }
    }
}
