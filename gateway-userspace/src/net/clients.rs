//! What one client holds of the agent, on all workers together: connections, and streams of HTTP/2.
//!
//! A client is an IPv4 address, or the 64 bits of an IPv6 address that a site has for itself. The table has an entry for a
//! client as long as it has a connection, so that it never has more entries than there are connections, which have their
//! own bound.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use foldhash::fast::RandomState;
use parking_lot::Mutex;

use crate::config::ClientSettings;

/// Parts of the table, so that workers seldom wait for each other.
const SHARDS: usize = 16;

/// All clients that are here.
#[derive(Debug)]
pub struct Clients {
    shards: [Mutex<HashMap<Key, Count, RandomState>>; SHARDS],
    bounds: ClientSettings,
}

/// A client: its family, and what tells it from others of the family.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
struct Key {
    is_v4: bool,
    network: u64,
}

impl Key {
    fn of(ip: IpAddr) -> Self {
        match ip.to_canonical() {
            IpAddr::V4(ip) => Self { is_v4: true, network: u64::from(ip.to_bits()) },
            IpAddr::V6(ip) => {
                let [a, b, c, d, e, f, g, h, ..] = ip.octets();
                Self { is_v4: false, network: u64::from_be_bytes([a, b, c, d, e, f, g, h]) }
            }
        }
    }

    /// Low bits of addresses tell neighbors apart, high bits networks.
    fn shard(self) -> usize {
        let [low, ..] = (self.network ^ self.network >> 32).to_le_bytes();
        usize::from(low) % SHARDS
    }
}

#[derive(Debug, Default)]
struct Count {
    n_connections: usize,
    streams: Arc<AtomicUsize>,
}

/// One connection of a client.
#[derive(Debug)]
pub struct Place {
    clients: Arc<Clients>,
    key: Key,
    streams: Streams,
}

impl Drop for Place {
    fn drop(&mut self) {
        let Some(shard) = self.clients.shards.get(self.key.shard()) else { return };
        let mut shard = shard.lock();
        let Some(count) = shard.get_mut(&self.key) else { return };
        count.n_connections -= 1;
        if count.n_connections == 0 {
            shard.remove(&self.key);
        }
    }
}

impl Place {
    /// The streams of this client.
    pub fn streams(&self) -> Streams {
        self.streams.clone()
    }
}

impl Clients {
    /// Nobody yet.
    pub fn new(bounds: ClientSettings) -> Self {
        Self { shards: std::array::from_fn(|_| Mutex::default()), bounds }
    }

    /// A place for one more connection; none when the client has as many as it may.
    pub fn enter(self: &Arc<Self>, ip: IpAddr) -> Option<Place> {
        let key = Key::of(ip);
        let mut shard = self.shards.get(key.shard())?.lock();
        let count = shard.entry(key).or_default();
        // An entry without a connection was made this moment, and every bound is above zero.
        if count.n_connections >= self.bounds.connections {
            return None;
        }
        count.n_connections += 1;
        let streams = Streams { open: Arc::clone(&count.streams), most: self.bounds.streams };
        drop(shard);
        Some(Place { clients: Arc::clone(self), key, streams })
    }

    /// Clients that have a connection.
    #[cfg(test)]
    fn len(&self) -> usize {
        self.shards.iter().map(|shard| shard.lock().len()).sum()
    }
}

/// The streams of one client, on all its connections.
#[derive(Clone, Debug)]
pub struct Streams {
    open: Arc<AtomicUsize>,
    most: usize,
}

impl Streams {
    /// Begins a stream, which has to [end](Self::end); false when the client has as many as it may.
    pub fn begin(&self) -> bool {
        let is_there_room = self.open.fetch_add(1, Ordering::Relaxed) < self.most;
        if !is_there_room {
            self.end();
        }
        is_there_room
    }

    /// Ends a stream that began.
    pub fn end(&self) {
        self.open.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn clients(connections: usize, streams: usize) -> Arc<Clients> {
        Arc::new(Clients::new(ClientSettings { connections, streams }))
    }

    fn enter(clients: &Arc<Clients>, ip: &str) -> Option<Place> {
        clients.enter(ip.parse().unwrap())
    }

    #[test]
    fn a_client_has_as_many_places_as_it_may_and_gets_back_what_it_leaves() {
        let clients = clients(2, 1);
        let (first, second) = (enter(&clients, "192.0.2.1"), enter(&clients, "192.0.2.1"));
        assert!(first.is_some() && second.is_some() && enter(&clients, "192.0.2.1").is_none());
        assert!(enter(&clients, "192.0.2.2").is_some());
        drop(second);
        assert!(enter(&clients, "192.0.2.1").is_some());
        drop(first);
        assert_eq!(clients.len(), 0, "nobody is remembered who is gone");
    }

    #[test]
    fn a_site_of_ipv6_is_one_client_and_an_address_in_another_form_the_same() {
        let clients = clients(1, 1);
        let _site = enter(&clients, "2001:db8:1:2::1").unwrap();
        assert!(enter(&clients, "2001:db8:1:2:ffff::9").is_none());
        assert!(enter(&clients, "2001:db8:1:3::1").is_some());
        let _host = enter(&clients, "192.0.2.1").unwrap();
        assert!(enter(&clients, "::ffff:192.0.2.1").is_none());
        assert!(enter(&clients, "::c000:201").is_some(), "this is no IPv4 address");
    }

    #[test]
    fn streams_count_over_all_connections() {
        let clients = clients(9, 2);
        let (one, other) = (enter(&clients, "192.0.2.1").unwrap(), enter(&clients, "192.0.2.1").unwrap());
        let (one, other) = (one.streams(), other.streams());
        assert!(one.begin() && other.begin() && !one.begin() && !other.begin());
        other.end();
        assert!(one.begin() && !other.begin());
    }

    #[test]
    fn counts_are_right_whoever_comes_and_goes_at_once() {
        let clients = clients(3, 3);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for n in 0..2_000_u32 {
                        let place = clients.enter(std::net::Ipv4Addr::from(n % 5).into());
                        if let Some(place) = &place
                            && place.streams().begin()
                        {
                            place.streams().end();
                        }
                    }
                });
            }
        });
        assert_eq!(clients.len(), 0);
    }
}
