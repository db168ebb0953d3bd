//! A new connection to a service that the agent serves: which of its listening sockets gets it.

use gateway_common::{
    counter::Reason,
    flow::FlowKey,
    hash,
    service::{Mode, Service, ServiceKey},
    settings::Settings,
};

use crate::{
    count::{counted_lookup, dropped},
    env::Maps,
    index,
    packet::filtered,
    verdict::Verdict,
};

/// The whole socket lookup pipeline for one connection, counted. `key` is the 5-tuple of the client's packet;
/// `assign` gives the connection to the socket at an index and says whether there was one.
#[inline(always)]
pub fn steer<M: Maps>(maps: &M, key: &FlowKey, assign: impl FnOnce(u32) -> bool) -> Verdict {
    counted_lookup(maps, |maps| run(maps, key, assign))
}

#[inline(always)]
fn run<M: Maps>(maps: &M, key: &FlowKey, assign: impl FnOnce(u32) -> bool) -> Verdict {
    if !filtered(maps, key.destination) {
        return Verdict::Pass(Reason::NotOurs);
    }
    let service_key = ServiceKey::new(key.destination, key.destination_port, key.protocol);
    let Some(service) = index::service(maps, service_key).and_then(|id| maps.service(id)) else {
        return Verdict::Pass(Reason::NoService);
    };
    if service.mode != Mode::AGENT {
        return Verdict::Pass(Reason::NoService);
    }
    let Some(settings) = maps.settings() else {
        return Verdict::Pass(Reason::NoService);
    };
    let socket = socket(&service, &settings, key);
    // A port whose socket is gone stays ours: nothing else on the node may take its connections.
    let verdict = if service.n_sockets != 0 && assign(socket) {
        maps.count_service(service.id, |count| count.steered += 1);
        Verdict::HandOver(Reason::Steered)
    } else {
        Verdict::Drop(Reason::NoSocket)
    };
    dropped(maps, service.id, verdict)
}

/// The index of the socket that a connection to a service of the agent belongs to: one of its workers'.
#[inline(always)]
pub(crate) fn socket(service: &Service, settings: &Settings, key: &FlowKey) -> u32 {
    let worker = hash::slot(hash::flow(&settings.keys, key, !key.destination.is_v4()), service.n_sockets);
    service.first_socket.wrapping_add(worker)
}
