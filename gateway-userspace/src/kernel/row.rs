//! The part of the plan that concerns one row: what it says of its endpoint, of the way there, and whether packets may go.
//! Pure.

use std::net::IpAddr;

use gateway_common::{
    addr::{Addr, Port},
    endpoint::{self as shared, EndpointState, NextHop},
    service::Mode,
};

use crate::{
    endpoint::{Availability, Reach},
    image::{self, Row, Way},
    kernel::{Kernel, generation, maps::Observed, plan::Facts},
};

/// The content of a row.
pub(super) fn endpoint(
    service: &image::Service,
    row: &Row,
    facts: &Facts,
    written: &Observed,
) -> shared::Endpoint {
    let way = way(row, facts, written);
    let own_port = Port::new(row.endpoint.addr().port());
    let source = source(service.forwarding(), row, &way);
    shared::Endpoint {
        addr: Addr::from(row.endpoint.addr().ip()),
        source,
        next_hop: if way.is_local { NextHop::UNKNOWN } else { way.next_hop },
        // Packets for many ports keep theirs; the next agent finds the endpoint by its own all the same.
        port: if is_one_port(service) { own_port } else { Port::NONE },
        state: state(service.forwarding(), row, &way),
        flags: if way.is_local { shared::Endpoint::LOCAL } else { 0 },
        service: service.id,
        generation: generation::of(service, row, source, way.is_local, written),
        mtu: way.mtu,
        known_by: if is_one_port(service) { Port::NONE } else { own_port },
    }
}

/// The address of this node towards an endpoint; unspecified where its service has no way there, so that the next agent
/// does not take the row for one that a check found down.
fn source(mode: Mode, row: &Row, way: &Way) -> Addr {
    let has_way = (way.is_on_link || mode != Mode::DSR_L2) && !is_dropped(mode, row);
    way.source.filter(|_| has_way).map_or(Addr::UNSPECIFIED, Addr::from)
}

/// Whether the node's own stack drops what is translated to this endpoint: it takes nothing from outside for a loopback
/// address, however well its own checks get there.
fn is_dropped(mode: Mode, row: &Row) -> bool {
    mode == Mode::NAT && row.endpoint.addr().ip().to_canonical().is_loopback()
}

impl Kernel {
    /// Whether the row that stands there, of an earlier agent, says that its endpoint was found down.
    pub fn was_found_down(&self, service: &image::Service, row: &Row) -> bool {
        says_down(self.written(), service, row)
    }
}

/// Whether what an earlier agent wrote says that an endpoint was found down.
pub(super) fn says_down(written: &Observed, service: &image::Service, row: &Row) -> bool {
    let before = written.services.get(&service.key).map(|before| image::forwarding(before.mode));
    // The mode that it was written in may have been why packets had no way there.
    let mut modes = [service.forwarding()].into_iter().chain(before);
    let present = written.endpoints.get(&row.row);
    present.is_some_and(|present| modes.all(|mode| was_found_down(mode, row, present)))
}

/// Whether a row says that its endpoint was found down, and not that packets had no way there.
pub(super) fn was_found_down(mode: Mode, row: &Row, present: &shared::Endpoint) -> bool {
    // Without a source the row was down for want of a route, which says nothing about the endpoint.
    let had_way = present.is_local() || present.source != Addr::UNSPECIFIED;
    let is_own = IpAddr::from(present.addr) == row.endpoint.addr().ip();
    present.state == EndpointState::DOWN && is_own && had_way && !is_dropped(mode, row)
}

/// Whether a service has a port of its own, rather than several or all.
fn is_one_port(service: &image::Service) -> bool {
    service.ports.is_empty() && service.key.port != Port::NONE
}

/// How an endpoint is reached. As long as nobody has looked, what an earlier agent wrote still holds.
pub(super) fn way(row: &Row, facts: &Facts, written: &Observed) -> Way {
    let addr = row.endpoint.addr().ip();
    if let Some(way) = facts.ways.get(&addr) {
        return *way;
    }
    match written.endpoints.get(&row.row) {
        Some(present) if IpAddr::from(present.addr) == addr => Way {
            is_local: present.is_local(),
            // It has no source where this mattered and was not so.
            is_on_link: present.source != Addr::UNSPECIFIED,
            interface: present.next_hop.interface,
            source: (present.source != Addr::UNSPECIFIED).then(|| present.source.into()),
            next_hop: present.next_hop,
            mtu: present.mtu,
        },
        Some(_) | None => Way::default(),
    }
}

/// May an endpoint receive packets, and which.
pub(super) fn state(mode: Mode, row: &Row, way: &Way) -> EndpointState {
    if is_dropped(mode, row) {
        return EndpointState::DOWN;
    }
    let is_reachable = way.is_local
        || match mode {
            // Without an address of this node to send from, a packet could not come back.
            Mode::NAT => way.source.is_some(),
            // A router would send it back here, where the virtual address is.
            Mode::DSR_L2 => way.interface != 0 && way.is_on_link,
            _ => way.interface != 0,
        };
    if !is_reachable {
        return EndpointState::DOWN;
    }
    match row.endpoint.availability_by(Reach::of(mode)) {
        // Also for rows that no slot names: flows that began there go on.
        Availability::Active if row.backend_weight > 0 => EndpointState::ACTIVE,
        Availability::Active | Availability::Draining => EndpointState::DRAINING,
        Availability::Down => EndpointState::DOWN,
    }
}
