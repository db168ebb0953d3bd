//! Sockets of this node's processes that name a virtual address: they get an endpoint's instead, before there is any
//! packet, and are told the virtual one whenever they ask.
//!
//! Connecting sockets and datagrams without a connection come to [`translate`]; answers to "who is that?" come to
//! [`restore`]. What the process asked for is kept by the kernel's number of the socket and the endpoint. Programs here run
//! for a process, which packets may interrupt: they change counts by atomic operations only.

use gateway_common::{
    addr::{Addr, Port, Protocol},
    counter::{Hook, Reason},
    endpoint::Endpoint,
    hash,
    probe::OWN_MARK,
    service::{Mode, Service, ServiceKey},
    socket::{AskedFor, SocketPeer, SocketScope},
};

use crate::{
    Aligned,
    env::Maps,
    index,
    packet::filtered,
    select::{self, Seat},
    verdict::Verdict,
};

/// The maps of sockets, and counts that may be changed while packets interrupt.
pub trait Sockets: Maps {
    /// Whose sockets are translated.
    fn socket_scope(&self) -> Option<Self::Row<SocketScope>>;
    /// What a socket asked for when it got this endpoint.
    fn asked_for(&self, peer: &SocketPeer) -> Option<AskedFor>;
    /// Writes that down; says whether there was room.
    fn note_asked(&self, peer: &SocketPeer, asked: &AskedFor) -> bool;
    /// A number that nobody can guess.
    fn random(&self) -> u32;
    /// Adds a call to what its hook received, and to the reason that it ended with.
    fn count_call(&self, hook: Hook, reason: Reason);
    /// Adds a flow to the counts of a service and of an endpoint row.
    fn count_flow(&self, service: u32, row: u32);
    /// Adds a refused call to the counts of a service.
    fn count_refused(&self, service: u32, reason: Reason);
}

/// A process's call at one of the hooks of its socket.
pub trait Call {
    /// The hook.
    fn hook(&self) -> Hook;
    /// The address and port that the call names, or would answer with.
    fn peer(&self) -> (Addr, Port);
    /// The protocol of the socket.
    fn protocol(&self) -> Protocol;
    /// The kernel's number of the socket.
    fn cookie(&self) -> u64;
    /// The mark of the socket.
    fn mark(&self) -> u32;
    /// The kernel's number of the network namespace of the socket.
    fn network(&self) -> u64;
    /// Puts another address and port in the place of those that the call names.
    fn name(&mut self, addr: Addr, port: Port);
}

/// A call that names where to: the whole pipeline, counted.
#[inline(always)]
pub fn translate<S: Sockets>(maps: &S, call: &mut impl Call) -> Verdict {
    let verdict = to_endpoint(maps, call);
    maps.count_call(call.hook(), verdict.reason());
    verdict
}

/// A call that asks from where, counted.
#[inline(always)]
pub fn restore<S: Sockets>(maps: &S, call: &mut impl Call) -> Verdict {
    let (addr, port) = call.peer();
    let peer = Aligned(SocketPeer::new(call.cookie(), addr, port));
    let verdict = if let Some(asked) = maps.asked_for(&peer.0) {
        call.name(asked.addr, asked.port);
        Verdict::HandOver(Reason::SocketRestored)
    } else {
        Verdict::Pass(Reason::NotTranslated)
    };
    maps.count_call(call.hook(), verdict.reason());
    verdict
}

#[inline(always)]
fn to_endpoint<S: Sockets>(maps: &S, call: &mut impl Call) -> Verdict {
    let (addr, port) = call.peer();
    if !filtered(maps, addr) {
        return Verdict::Pass(Reason::NotOurs);
    }
    let protocol = call.protocol();
    // The index has entries for other protocols too, which mean something else.
    if protocol != Protocol::TCP && protocol != Protocol::UDP {
        return Verdict::Pass(Reason::OtherProtocol);
    }
    let key = ServiceKey::new(addr, port, protocol);
    let Some(service) = index::service(maps, key).and_then(|id| maps.service(id)) else {
        return Verdict::Pass(Reason::NoService);
    };
    if service.mode == Mode::AGENT {
        return Verdict::Pass(Reason::Agent);
    }
    if is_foreign(maps, call) {
        return Verdict::Pass(Reason::ForeignSocket);
    }
    let service_id = service.id;
    let verdict = give(maps, call, &service, (addr, port, protocol));
    if let Verdict::Drop(reason) = verdict {
        maps.count_refused(service_id, reason);
    }
    verdict
}

/// Whether the socket is the agent's own, or in a network of which nothing is known here.
#[inline(always)]
fn is_foreign<S: Sockets>(maps: &S, call: &impl Call) -> bool {
    let Some(scope) = maps.socket_scope() else { return true };
    call.mark() == OWN_MARK || call.network() != scope.network
}

/// Chooses an endpoint, writes down what was asked for, and names the endpoint in its place.
#[inline(always)]
fn give<S: Sockets>(
    maps: &S,
    call: &mut impl Call,
    service: &S::Row<Service>,
    (addr, port, protocol): (Addr, Port, Protocol),
) -> Verdict {
    let Some(settings) = maps.settings() else { return Verdict::Pass(Reason::NoService) };
    let cookie = call.cookie();
    // Connections are spread; datagrams of a socket stay together; and the node is one client.
    let whose = if service.flags & Service::AFFINITY != 0 {
        0
    } else if protocol == Protocol::TCP {
        u64::from(maps.random())
    } else {
        cookie
    };
    let whose = Addr::v6(bytemuck::must_cast([whose, 0]));
    let hash = hash::client(&settings.keys, whose, addr, true);
    let table = S::current(service);
    // A socket talks to addresses of its own family, also where a tunnel could carry its packets over the other.
    let family = if addr.is_v4() { Seat::V4 } else { Seat::V6 };
    let seat = Seat { service: service.id, table: &table, family };
    let row = match select::select(maps, &seat, hash) {
        Ok(row) => row,
        // Endpoints of the other family are none here.
        Err(_) if service.mode != Mode::NAT => return Verdict::Drop(Reason::NoEndpoint),
        Err(reason) => return Verdict::Drop(reason),
    };
    let Some(endpoint) = maps.endpoint(row) else { return Verdict::Drop(Reason::BadSlot) };
    let to = (endpoint.addr, port_at(&endpoint, service.mode, port));
    let peer = Aligned(SocketPeer::new(cookie, to.0, to.1));
    let asked = Aligned(AskedFor::new(addr, port, service.id));
    let noted = maps.asked_for(&peer.0);
    if noted != Some(asked.0) {
        if !maps.note_asked(&peer.0, &asked.0) {
            return Verdict::Drop(Reason::SocketsFull);
        }
        // Datagrams that go by turns to two virtual addresses with the same endpoint are no flow each.
        if noted.is_none() || protocol == Protocol::TCP {
            maps.count_flow(service.id, row);
        }
    }
    call.name(to.0, to.1);
    Verdict::HandOver(Reason::SocketTranslated)
}

/// Where direct return sends packets as they are, the endpoint listens at the virtual port.
#[inline(always)]
fn port_at(endpoint: &Endpoint, mode: Mode, port: Port) -> Port {
    if mode == Mode::NAT { endpoint.port_for(port) } else { port }
}
