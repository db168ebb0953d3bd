//! Places of listening sockets in `SOCKETS`: each address of the agent has a range, one place for each worker.
//!
//! The services that an earlier agent left pinned go on naming their ranges until the first image is written, and until
//! then connections are steered by them. So an address gets its old range back, and no other gets a part of one that a
//! pinned service names: a connection for one address must never reach the socket of another.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
};

use gateway_common::{
    map::{self, MapDef},
    service::{Mode, Service, ServiceKey},
};

use crate::{
    image::Range,
    state::{BindKey, Transport},
};

/// Who has which places.
#[derive(Clone, Debug, Default)]
pub(super) struct Sockets {
    first: BTreeMap<BindKey, u32>,
    n_workers: u32,
    /// Ranges that pinned services name and nobody can take over.
    left: Vec<Range>,
}

impl Sockets {
    /// What the pinned services say. A range of another number of workers is left alone.
    pub(super) fn found(services: &BTreeMap<ServiceKey, Service>, n_workers: u32) -> Self {
        let mut found = Self { n_workers, ..Self::default() };
        for (key, service) in services.iter().filter(|(_, service)| service.mode == Mode::AGENT) {
            let range = Range { first: service.first_socket, count: service.n_sockets };
            if range.count == n_workers && !found.is_taken(range) {
                let addr = SocketAddr::new(key.addr.into(), key.port.number());
                found.first.insert(BindKey { addr, transport: Transport::Tcp }, range.first);
            } else {
                found.left.push(range);
            }
        }
        found
    }

    /// Gives an address its places; false when there is no room.
    pub(super) fn place(&mut self, bind: BindKey) -> bool {
        if self.first.contains_key(&bind) {
            return true;
        }
        let count = self.n_workers.max(1);
        let ranges = (0..map::Sockets::CAPACITY / count).map(|number| Range { first: number * count, count });
        let Some(free) = ranges.into_iter().find(|range| !self.is_taken(*range)) else { return false };
        self.first.insert(bind, free.first);
        true
    }

    fn is_taken(&self, range: Range) -> bool {
        let meets = |other: Range| {
            range.first < other.first.saturating_add(other.count)
                && other.first < range.first.saturating_add(range.count)
        };
        let own = self.first.values().map(|first| Range { first: *first, count: self.n_workers });
        own.chain(self.left.iter().copied()).any(meets)
    }

    /// First place of an address.
    pub(super) fn first(&self, bind: &BindKey) -> Option<u32> {
        self.first.get(bind).copied()
    }

    /// The range of each address.
    pub(super) fn ranges(&self) -> impl Iterator<Item = (SocketAddr, Range)> {
        self.first.iter().map(|(bind, first)| (bind.addr, Range { first: *first, count: self.n_workers }))
    }

    /// Forgets every address but these, now that no service names it any more. The places that are free.
    pub(super) fn retain(&mut self, binds: &BTreeSet<BindKey>) -> Vec<Range> {
        let mut gone = std::mem::take(&mut self.left);
        let n_workers = self.n_workers;
        let unwanted = self.first.extract_if(.., |bind, _| !binds.contains(bind));
        gone.extend(unwanted.map(|(_, first)| Range { first, count: n_workers }));
        gone
    }
}

#[cfg(test)]
mod tests {
    use gateway_common::addr::{Addr, Port, Protocol};

    use super::*;

    fn bind(n: u8) -> BindKey {
        BindKey { addr: SocketAddr::from(([198, 51, 100, n], 80)), transport: Transport::Tcp }
    }

    fn pinned(services: &[(u8, u32, u32)]) -> BTreeMap<ServiceKey, Service> {
        let service = |(n, first, count): &(u8, u32, u32)| {
            let mut service = Service::default();
            (service.mode, service.first_socket, service.n_sockets) = (Mode::AGENT, *first, *count);
            (ServiceKey::new(Addr::v4([198, 51, 100, *n]), Port::new(80), Protocol::TCP), service)
        };
        services.iter().map(service).collect()
    }

    #[test]
    fn an_address_gets_its_old_places_back() {
        let mut sockets = Sockets::found(&pinned(&[(1, 4, 2), (2, 0, 2)]), 2);
        assert!(sockets.place(bind(3)) && sockets.place(bind(1)) && sockets.place(bind(2)));
        assert_eq!([1, 2, 3].map(|n| sockets.first(&bind(n))), [Some(4), Some(0), Some(2)]);
    }

    #[test]
    fn nobody_gets_a_part_of_a_range_that_a_pinned_service_names() {
        let mut sockets = Sockets::found(&pinned(&[(1, 0, 3), (2, 3, 3)]), 2);
        assert!(sockets.place(bind(1)) && sockets.place(bind(2)));
        assert_eq!([1, 2].map(|n| sockets.first(&bind(n))), [Some(6), Some(8)]);
        let free = sockets.retain(&BTreeSet::from([bind(2)]));
        assert_eq!(free.len(), 3, "two that were left, and that of the address that is gone");
        assert!(sockets.place(bind(3)));
        assert_eq!(sockets.first(&bind(3)), Some(0));
    }

    #[test]
    fn places_run_out() {
        let mut sockets = Sockets::found(&pinned(&[(1, 0, map::Sockets::CAPACITY - 1)]), 1);
        assert!(sockets.place(bind(2)));
        assert!(!sockets.place(bind(3)));
    }
}
