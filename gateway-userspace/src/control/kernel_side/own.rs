//! The virtual addresses that this node answers for: local everywhere, on links where asked, and told there.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use super::{KernelSide, error_chain};
use crate::{
    address::{Assignment, Link, LinkKind},
    limits,
    net::{announce, sys::FrameSocket},
};

/// An address that is announced a few times.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Announcing {
    mac: [u8; 6],
    left: u32,
}

impl KernelSide {
    /// Makes virtual addresses local, also those that somebody took away, and assigns those to interfaces that are to be
    /// found there.
    pub(super) async fn own_addrs(&mut self) {
        let addrs = self.addrs.clone();
        let local = self.netlink.set_local(&addrs).await;
        self.note(local.map_err(|error| error_chain(&error)));
        let links = match self.places.announced {
            Some(_) => self.netlink.links().await,
            None => Ok(Vec::new()),
        };
        let links = match links {
            Ok(links) => links,
            Err(error) => return self.note(Err(error_chain(&error))),
        };
        let wanted = self.wanted_there(&addrs, &links);
        let assignments: BTreeSet<Assignment> = wanted.keys().copied().collect();
        match self.netlink.set_assigned(&assignments).await {
            Ok(added) => {
                self.kernel.lock().set_announced(by_name(&wanted, &links));
                self.announcing.retain(|at, _| wanted.contains_key(at));
                for at in added {
                    let mac = wanted.get(&at).copied().unwrap_or_default();
                    self.announcing.insert(at, Announcing { mac, left: limits::ANNOUNCEMENTS });
                }
                self.announce();
            }
            Err(error) => self.note(Err(error_chain(&error))),
        }
    }

    /// Which addresses belong on which interfaces, and the interfaces' own addresses.
    fn wanted_there(&self, addrs: &BTreeSet<IpAddr>, links: &[Link]) -> BTreeMap<Assignment, [u8; 6]> {
        let Some(announced) = &self.places.announced else { return BTreeMap::new() };
        let is_meant = |link: &&Link| {
            link.kind != LinkKind::Loopback
                && announced.interfaces.iter().any(|pattern| pattern.matches(&link.name))
        };
        let is_of_pool = |addr: &&IpAddr| announced.networks.iter().any(|network| network.contains(**addr));
        let mut wanted = BTreeMap::new();
        for link in links.iter().filter(is_meant) {
            let Some(mac) = link.mac else { continue };
            wanted.extend(addrs.iter().filter(is_of_pool).map(|addr| ((link.index, *addr), mac)));
        }
        wanted
    }

    /// Tells links of addresses that are new there, so many at once and each a few times.
    pub(super) fn announce(&mut self) {
        if self.announcing.is_empty() {
            return;
        }
        let socket = match FrameSocket::open() {
            Ok(socket) => socket,
            Err(error) => {
                tracing::warn!(%error, "virtual addresses cannot be announced: neighbors learn of them by asking");
                for (_, addr) in self.announcing.keys() {
                    self.families.announced.note(*addr, false);
                }
                return self.announcing.clear();
            }
        };
        // Those with the most left are the newest.
        let mut due: Vec<(Assignment, Announcing)> =
            self.announcing.iter().map(|(at, what)| (*at, *what)).collect();
        due.sort_by_key(|(_, what)| std::cmp::Reverse(what.left));
        for (at, Announcing { mac, left }) in due.into_iter().take(limits::ANNOUNCED_AT_ONCE) {
            let (index, addr) = at;
            let sent = socket.send(index, &announce::frame(mac, addr));
            self.families.announced.note(addr, sent.is_ok());
            if let Err(error) = sent {
                tracing::debug!(%addr, interface = index, %error, "an announcement was not sent");
            }
            match left.checked_sub(1).filter(|left| *left > 0) {
                Some(left) => drop(self.announcing.insert(at, Announcing { mac, left })),
                None => drop(self.announcing.remove(&at)),
            }
        }
    }
}

/// Addresses by the names of their interfaces.
fn by_name(wanted: &BTreeMap<Assignment, [u8; 6]>, links: &[Link]) -> BTreeMap<String, Vec<IpAddr>> {
    let mut found: BTreeMap<String, Vec<IpAddr>> = BTreeMap::new();
    for (index, addr) in wanted.keys() {
        if let Some(link) = links.iter().find(|link| link.index == *index) {
            found.entry(link.name.clone()).or_default().push(*addr);
        }
    }
    found
}
