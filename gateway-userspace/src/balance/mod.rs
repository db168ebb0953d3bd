//! Which endpoint gets the next request: pure choices over live endpoints.

pub mod least_request;
pub mod maglev;
pub mod round_robin;

use std::{net::SocketAddr, sync::Arc};

use gateway_common::{
    addr::{Addr, Port, Protocol},
    flow::FlowKey,
    hash::Seed,
};

use crate::{
    balance::{least_request::LeastRequest, maglev::Maglev, round_robin::RoundRobin},
    endpoint::{Availability, Endpoint},
    limits,
};

/// The 5-tuple of a client's packets, as the kernel sees it.
pub fn flow(peer: SocketAddr, local: SocketAddr, protocol: Protocol) -> FlowKey {
    let (source, destination) = (Addr::from(peer.ip()), Addr::from(local.ip()));
    FlowKey::new(source, Port::new(peer.port()), destination, Port::new(local.port()), protocol)
}

/// A client without its ports, for services that keep a client on its endpoint.
pub fn client(peer: SocketAddr, local: SocketAddr) -> FlowKey {
    let (source, destination) = (Addr::from(peer.ip()), Addr::from(local.ip()));
    FlowKey::new(source, Port::NONE, destination, Port::NONE, Protocol::default())
}

/// One endpoint that takes part.
#[derive(Clone, Debug)]
pub struct Member {
    /// The live endpoint.
    pub endpoint: Arc<Endpoint>,
    /// Weight of the backend that refers to its service; one where there is no backend.
    pub backend_weight: u32,
    /// Its own weight as configured.
    pub weight: u32,
}

/// How to choose.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Policy {
    /// In turn, by weight.
    RoundRobin,
    /// The less loaded of two drawn by weight.
    LeastRequest,
    /// By the flow, with the table that the kernel uses.
    Maglev,
}

/// Members that one request has tried. Bounded by the number of tries.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tried {
    idxs: [usize; limits::RETRIES_AT_MOST + 1],
    len: usize,
}

impl Tried {
    /// Remembers one; beyond the bound of tries nothing is tried any more.
    pub fn push(&mut self, idx: usize) {
        if let Some(place) = self.idxs.get_mut(self.len) {
            *place = idx;
            self.len += 1;
        }
    }

    /// Whether it was tried.
    pub fn contains(&self, idx: usize) -> bool {
        self.idxs.iter().take(self.len).any(|tried| *tried == idx)
    }
}

/// A choice among members.
#[derive(Debug)]
pub struct Balancer {
    members: Box<[Member]>,
    algorithm: Algorithm,
}

#[derive(Debug)]
enum Algorithm {
    RoundRobin(RoundRobin),
    LeastRequest(LeastRequest),
    Maglev(Maglev),
}

impl Balancer {
    /// A balancer over `members`; `seed` is the cluster's, for Maglev.
    pub fn new(policy: Policy, members: Vec<Member>, seed: &Seed) -> Self {
        let weights: Vec<u32> = members.iter().map(|member| member.weight).collect();
        let algorithm = match policy {
            Policy::RoundRobin => Algorithm::RoundRobin(RoundRobin::new(&weights)),
            Policy::LeastRequest => Algorithm::LeastRequest(LeastRequest::new(&weights)),
            Policy::Maglev => Algorithm::Maglev(Maglev::new(*seed, &members)),
        };
        Self { members: members.into(), algorithm }
    }

    /// The members, in the order of the configuration.
    pub fn members(&self) -> &[Member] {
        &self.members
    }

    /// The index of the member that gets the next request of this flow; none when no member may receive.
    ///
    /// A member in `tried` is not chosen again. Draining members are chosen only when no member is active.
    pub fn pick(&self, flow: &FlowKey, tried: &Tried) -> Option<usize> {
        let chosen = match &self.algorithm {
            Algorithm::RoundRobin(algorithm) => algorithm.pick(|idx| self.is_active(idx, tried)),
            Algorithm::LeastRequest(algorithm) => {
                algorithm.pick(&self.members, |idx| self.is_active(idx, tried))
            }
            Algorithm::Maglev(algorithm) => return algorithm.pick(&self.members, flow, tried),
        };
        chosen.or_else(|| self.any(tried, Availability::Active)).or_else(|| {
            let none_active = !self.members.iter().any(|m| m.endpoint.availability() == Availability::Active);
            if none_active { self.any(tried, Availability::Draining) } else { None }
        })
    }

    fn is_active(&self, idx: usize, tried: &Tried) -> bool {
        !tried.contains(idx)
            && self
                .members
                .get(idx)
                .is_some_and(|member| member.endpoint.availability() == Availability::Active)
    }

    /// Any member of this availability, from a random start.
    fn any(&self, tried: &Tried, wanted: Availability) -> Option<usize> {
        let n = self.members.len();
        let start = if n == 0 { return None } else { fastrand::usize(..n) };
        (start..n).chain(0..start).find(|idx| {
            !tried.contains(*idx)
                && self.members.get(*idx).is_some_and(|m| m.endpoint.availability() == wanted)
        })
    }
}

#[cfg(test)]
mod tests;
