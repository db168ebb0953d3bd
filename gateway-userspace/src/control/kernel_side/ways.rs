//! How endpoints are reached, followed as neighbours, routes and links change.
//!
//! Whoever hears of a change asks anew for what it may concern, and what was asked before and is told later does not stand:
//! one task asks and hears, so that a change that comes during a look is heeded after it.

use std::{collections::BTreeSet, net::IpAddr, ops::RangeInclusive, time::Duration};

use super::{KernelSide, error_chain};
use crate::{
    address::{Change, Routes, Senders},
    clock::Clock,
    image::{Image, Way},
    kernel::AttachMode,
};

/// A neighbour on a link answers within a millisecond; one that is down never does, and then the change goes on.
const NEIGHBOR_TRIES: u32 = 10;
const NEIGHBOR_PAUSE: Duration = Duration::from_millis(10);

/// How long neighbours, routes and links may go on changing before they are looked at, at least and at most: half of the
/// time, where a look takes long.
const SETTLE: RangeInclusive<Duration> = Duration::from_millis(20)..=Duration::from_secs(1);

/// What was heard of the network since the last look, as far as it is of any concern.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) struct Heard {
    /// Ways to endpoints may be others.
    ways: bool,
    /// Interfaces may be meant that were not, or not any more.
    interfaces: bool,
    /// Virtual addresses may have been taken away.
    addrs: bool,
}

impl Heard {
    const ANYTHING: Self = Self { ways: true, interfaces: true, addrs: true };

    const fn add(&mut self, other: Self) {
        self.ways |= other.ways;
        self.interfaces |= other.interfaces;
        self.addrs |= other.addrs;
    }
}

/// What a change concerns, of endpoints' addresses and virtual ones; answers about routes that may be others are forgotten. A
/// node with many routes hears of them all the time: those of others, and neighbours that no packet of ours goes to, are of
/// no concern.
fn concern(
    change: Change,
    routes: &mut Routes,
    endpoints: &BTreeSet<IpAddr>,
    virtual_addrs: &BTreeSet<IpAddr>,
) -> Heard {
    match change {
        Change::Neighbour(addr) => Heard { ways: routes.is_hop(addr), ..Heard::default() },
        Change::Route(network) => {
            let has_one = |addrs: &BTreeSet<IpAddr>| {
                addrs.range(network.first()..).next().is_some_and(|addr| network.contains(*addr))
            };
            Heard {
                ways: routes.forget_in(&network) | has_one(endpoints),
                interfaces: network.prefix_bits == 0,
                addrs: has_one(virtual_addrs),
            }
        }
        Change::Any => {
            routes.forget();
            Heard::ANYTHING
        }
    }
}

impl KernelSide {
    /// Waits a little for neighbours of endpoints that are new with an image: a flow that is sent there before is lost.
    pub async fn learn_new_ways(&mut self, image: &Image) {
        self.gap = None;
        let seen = self.seen.clone();
        // The image before stands in the maps meanwhile.
        let addrs: BTreeSet<IpAddr> = endpoint_addrs(&self.image).chain(endpoint_addrs(image)).collect();
        for _ in 0..NEIGHBOR_TRIES {
            self.learn_ways(addrs.clone()).await;
            let waits = |addr: &IpAddr| !seen.contains(addr) && self.unresolved.contains(addr);
            if !self.seen.iter().any(waits) {
                return;
            }
            tokio::time::sleep(NEIGHBOR_PAUSE).await;
        }
    }

    /// Looks how the endpoints of the present image are reached.
    pub(super) async fn look(&mut self) {
        let addrs = endpoint_addrs(&self.image).collect();
        self.learn_ways(addrs).await;
    }

    async fn learn_ways(&mut self, addrs: BTreeSet<IpAddr>) {
        let is_native = self.kernel.lock().mode() == AttachMode::Native;
        let senders = if is_native { Senders::Xdp } else { Senders::Any };
        match self.netlink.ways(&addrs, &mut self.routes, senders).await {
            Ok(ways) => {
                let is_open = |way: &Way| !way.is_local && way.source.is_some() && !way.next_hop.is_known();
                self.unresolved =
                    ways.iter().filter(|(_, way)| is_open(way)).map(|(addr, _)| *addr).collect();
                self.seen = addrs;
                self.ways.clone_from(&ways);
                let written = self.kernel.lock().set_ways(ways);
                self.note(written.map(drop).map_err(|error| error_chain(&error)));
            }
            Err(error) => self.note(Err(error_chain(&error))),
        }
    }

    /// Waits until something of links, addresses, routes or neighbours has changed that is of concern, and then a while for
    /// the end of changes. Whoever stops waiting misses nothing.
    pub async fn changed(&mut self, clock: &Clock) {
        while self.heard == Heard::default() {
            match self.changes.next().await {
                Some(change) => self.heed(change),
                // The socket is gone; housekeeping looks by itself.
                None => std::future::pending::<()>().await,
            }
        }
        let pause = self.looked_for.clamp(*SETTLE.start(), *SETTLE.end());
        let due = *self.due.get_or_insert_with(|| clock.now() + pause);
        tokio::time::sleep(due.saturating_duration_since(clock.now())).await;
    }

    fn heed(&mut self, change: Change) {
        self.heard.add(concern(change, &mut self.routes, &self.seen, &self.addrs));
        if self.heard.interfaces {
            self.uplinks = None;
        }
    }

    /// Looks again at what has changed.
    pub async fn follow(&mut self, clock: &Clock) {
        while let Some(change) = self.changes.take() {
            self.heed(change);
        }
        self.due = None;
        let begun = clock.now();
        // What is heard from here on is looked at again.
        let heard = std::mem::take(&mut self.heard);
        let before = self.interfaces_used();
        if heard.ways {
            self.look().await;
        }
        if heard.interfaces || self.interfaces_used() != before {
            self.attach().await;
        }
        if heard.addrs {
            self.own_addrs().await;
        }
        self.looked_for = clock.now().saturating_duration_since(begun);
    }

    /// The interfaces that endpoints are reached by.
    fn interfaces_used(&self) -> BTreeSet<u32> {
        self.ways.values().map(|way| way.interface).collect()
    }
}

/// Addresses of the endpoints of an image.
fn endpoint_addrs(image: &Image) -> impl Iterator<Item = IpAddr> {
    image.services.iter().flat_map(|service| service.endpoints.iter().map(|row| row.endpoint.addr().ip()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::network::Network;

    #[test]
    fn only_what_is_of_concern_is_looked_at() {
        let addrs = |list: &[[u8; 4]]| list.iter().map(|addr| IpAddr::from(*addr)).collect::<BTreeSet<_>>();
        let endpoints = addrs(&[[10, 1, 0, 1], [10, 1, 2, 1]]);
        let virtual_addrs = addrs(&[[198, 51, 100, 1]]);
        let of = |change| concern(change, &mut Routes::default(), &endpoints, &virtual_addrs);
        let route =
            |addr: [u8; 4], prefix_bits| of(Change::Route(Network { addr: addr.into(), prefix_bits }));
        let nothing = Heard::default();
        assert_eq!(route([10, 1, 1, 0], 24), nothing, "between the endpoints");
        assert_eq!(route([203, 0, 113, 7], 32), nothing);
        assert_eq!(route([10, 1, 2, 0], 24), Heard { ways: true, ..nothing });
        assert_eq!(route([198, 51, 100, 1], 32), Heard { addrs: true, ..nothing });
        assert_eq!(route([0, 0, 0, 0], 0), Heard::ANYTHING);
        let v6 = Change::Route(Network { addr: IpAddr::from([0_u16; 8]), prefix_bits: 0 });
        assert_eq!(of(v6), Heard { interfaces: true, ..nothing });
        assert_eq!(of(Change::Neighbour([10, 9, 9, 9].into())), nothing);
        assert_eq!(of(Change::Any), Heard::ANYTHING);
    }
}
