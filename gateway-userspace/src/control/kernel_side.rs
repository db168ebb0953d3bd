//! The kernel's half of the control loop: images, sockets, ways to endpoints, interfaces that come and go.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use gateway_common::{
    map::{self, MapDef},
    service::{Mode, ServiceKey},
};
use parking_lot::Mutex;

use crate::{
    address::{Changes, Link, Netlink},
    compile::{
        id::{Full, Ids},
        image::{self, Retired, SocketRanges},
    },
    config::Interfaces,
    control::Refusal,
    endpoint::{Endpoint, EndpointId, Registry},
    image::{Image, Range, Way},
    kernel::Kernel,
    listener::Workers,
    net::listen::Place,
    snapshot::Snapshot,
    state::BindKey,
};

/// How long an endpoint that is no longer wanted keeps its row for the flows it still has.
const RETIRED: Duration = Duration::from_hours(1);

/// A neighbour on a link answers within a millisecond; one that is down never does, and then the change goes on.
const NEIGHBOR_TRIES: u32 = 10;
const NEIGHBOR_PAUSE: Duration = Duration::from_millis(10);

/// The kernel and what the loop knows about it.
pub struct KernelSide {
    kernel: Arc<Mutex<Kernel>>,
    netlink: Netlink,
    changes: Changes,
    interfaces: Interfaces,
    ids: Ids,
    /// First place in `SOCKETS` of each address; every worker has one from there on.
    sockets: BTreeMap<BindKey, u32>,
    n_workers: u32,
    /// Endpoints that are no longer wanted, and since when.
    retired: BTreeMap<(ServiceKey, EndpointId), Instant>,
    /// The image that should stand in the maps.
    image: Arc<Image>,
    /// Interfaces that could not be attached to, and why; said once.
    refused: BTreeMap<String, String>,
    is_steering: bool,
    /// Addresses of endpoints, as of the last look.
    seen: BTreeSet<IpAddr>,
    /// Those of them that have a route but no neighbour yet.
    unresolved: BTreeSet<IpAddr>,
    /// What is wrong, until a later try succeeds.
    gap: Option<String>,
}

impl KernelSide {
    /// Puts it together; nothing is written or attached yet.
    pub fn new(
        kernel: Arc<Mutex<Kernel>>,
        netlink: (Netlink, Changes),
        interfaces: Interfaces,
        n_workers: usize,
    ) -> Self {
        let ids = {
            let kernel = kernel.lock();
            let written = kernel.written();
            Ids::found(kernel.capacity(), &written.services, &written.endpoints)
        };
        let (netlink, changes) = netlink;
        Self {
            kernel,
            netlink,
            changes,
            interfaces,
            ids,
            sockets: BTreeMap::new(),
            n_workers: u32::try_from(n_workers).unwrap_or(1),
            retired: BTreeMap::new(),
            image: Arc::default(),
            refused: BTreeMap::new(),
            is_steering: false,
            seen: BTreeSet::new(),
            unresolved: BTreeSet::new(),
            gap: None,
        }
    }

    /// Makes the image of a snapshot; changes nothing when there is no room for it.
    ///
    /// # Errors
    /// When the maps are full.
    pub fn compile(
        &mut self,
        snapshot: &Snapshot,
        registry: &Registry,
        workers: &Workers,
        binds: &[(BindKey, Place)],
        now: Instant,
    ) -> Result<Image, Refusal> {
        let mut sockets = self.sockets.clone();
        for (bind, _) in binds {
            if !sockets.contains_key(bind) {
                let first = self.free_sockets(&sockets).ok_or_else(|| full("sockets", map::Sockets::NAME))?;
                sockets.insert(*bind, first);
            }
        }
        let ranges: SocketRanges = sockets
            .iter()
            .map(|(bind, first)| (bind.addr, Range { first: *first, count: self.n_workers }))
            .collect();
        let retired = self.retire(snapshot, now);
        let keep: Retired = retired.keys().cloned().collect();
        let mut ids = self.ids.clone();
        let image =
            image::image(snapshot, registry, &mut ids, &ranges, &keep).map_err(|error| match error {
                Full::Services => full("services", map::Services::NAME),
                Full::Rows => full("endpoints", map::Endpoints::NAME),
                Full::Chunks => full("slots", map::Slots::NAME),
            })?;
        self.place_sockets(workers, &sockets)?;
        self.ids = ids;
        self.sockets = sockets;
        self.retired = retired;
        Ok(image)
    }

    fn place_sockets(&self, workers: &Workers, sockets: &BTreeMap<BindKey, u32>) -> Result<(), Refusal> {
        let listening = workers.sockets().map_err(Refusal::Listen)?;
        let mut kernel = self.kernel.lock();
        for socket in &listening {
            let Some(first) = sockets.get(&socket.bind) else { continue };
            let place = first.saturating_add(u32::try_from(socket.worker).unwrap_or(u32::MAX));
            kernel.put_socket(place, &socket.fd).map_err(|error| Refusal::Full(error_chain(&error)))?;
        }
        Ok(())
    }

    fn free_sockets(&self, taken: &BTreeMap<BindKey, u32>) -> Option<u32> {
        let taken: BTreeSet<u32> = taken.values().copied().collect();
        let step = usize::try_from(self.n_workers.max(1)).ok()?;
        let last = map::Sockets::CAPACITY.checked_sub(self.n_workers)?;
        (0..=last).step_by(step).find(|first| !taken.contains(first))
    }

    /// Endpoints of the present image that the snapshot does not want any more, with those that left before.
    fn retire(&self, snapshot: &Snapshot, now: Instant) -> BTreeMap<(ServiceKey, EndpointId), Instant> {
        let listeners: BTreeSet<ServiceKey> = snapshot.listeners.iter().map(image::key).collect();
        let wanted: BTreeSet<EndpointId> = super::served(snapshot);
        let mut retired = self.retired.clone();
        for service in self.image.services.iter().filter(|service| service.mode == Mode::NAT) {
            for row in &service.endpoints {
                retired.entry((service.key, row.endpoint.id().clone())).or_insert(now);
            }
        }
        retired.retain(|(key, id), since| {
            listeners.contains(key) && !wanted.contains(id) && now.saturating_duration_since(*since) < RETIRED
        });
        retired
    }

    /// Brings the kernel to an image.
    pub async fn take(&mut self, image: Image) {
        self.image = Arc::new(image);
        self.write().await;
    }

    /// Writes what should stand in the maps, and makes virtual addresses local.
    async fn write(&mut self) {
        self.gap = None;
        let addrs: BTreeSet<IpAddr> =
            self.image.services.iter().map(|service| IpAddr::from(service.key.addr)).collect();
        self.learn_new_ways().await;
        let applied = self.kernel.lock().apply(Arc::clone(&self.image));
        self.note(applied.map(drop).map_err(|error| error_chain(&error)));
        let local = self.netlink.set_local(&addrs).await;
        self.note(local.map_err(|error| error_chain(&error)));
        if !self.is_steering {
            let steered = self.kernel.lock().steer();
            self.is_steering = steered.is_ok();
            self.note(steered.map_err(|error| error_chain(&error)));
        }
        self.attach().await;
    }

    /// Waits a little for neighbours of endpoints that are new: a flow that is sent there before is lost.
    async fn learn_new_ways(&mut self) {
        let seen = std::mem::take(&mut self.seen);
        for _ in 0..NEIGHBOR_TRIES {
            self.learn_ways().await;
            let waits = |addr: &IpAddr| !seen.contains(addr) && self.unresolved.contains(addr);
            if !self.seen.iter().any(waits) {
                return;
            }
            tokio::time::sleep(NEIGHBOR_PAUSE).await;
        }
    }

    async fn learn_ways(&mut self) {
        let addrs: BTreeSet<IpAddr> = self
            .image
            .services
            .iter()
            .flat_map(|service| service.endpoints.iter().map(|row| row.endpoint.addr().ip()))
            .collect();
        match self.netlink.ways(&addrs).await {
            Ok(ways) => {
                let is_open = |way: &Way| !way.is_local && way.source.is_some() && !way.next_hop.is_known();
                self.unresolved =
                    ways.iter().filter(|(_, way)| is_open(way)).map(|(addr, _)| *addr).collect();
                self.seen = addrs;
                let written = self.kernel.lock().set_ways(ways);
                self.note(written.map(drop).map_err(|error| error_chain(&error)));
            }
            Err(error) => self.note(Err(error_chain(&error))),
        }
    }

    /// Clears what only the former image referred to. The endpoints that still have a row.
    pub fn settle(&mut self, binds: &BTreeSet<BindKey>) -> BTreeSet<EndpointId> {
        let gone: Vec<(BindKey, u32)> = self
            .sockets
            .iter()
            .filter(|(bind, _)| !binds.contains(bind))
            .map(|(bind, first)| (*bind, *first))
            .collect();
        let mut kernel = self.kernel.lock();
        for (bind, first) in gone {
            for place in first..first.saturating_add(self.n_workers) {
                kernel.clear_socket(place);
            }
            self.sockets.remove(&bind);
        }
        self.retired.keys().map(|(_, id)| id.clone()).collect()
    }

    /// Publishes changes of live endpoints.
    pub fn publish(&mut self, changed: &[Arc<Endpoint>]) {
        let published = self.kernel.lock().publish(changed);
        self.note(published.map(drop).map_err(|error| error_chain(&error)));
    }

    /// Waits for a change of links, addresses, routes or neighbours.
    pub async fn changed(&mut self) {
        if !self.changes.next().await {
            // The socket is gone; housekeeping looks by itself.
            std::future::pending::<()>().await;
        }
    }

    /// Forgets changes that the next look covers.
    pub fn forget_changes(&mut self) {
        self.changes.forget();
    }

    /// Looks at links, routes and neighbours again.
    pub async fn follow(&mut self) {
        self.learn_ways().await;
        self.attach().await;
    }

    /// Tries again what failed, and looks for ways that were unknown.
    pub async fn keep_house(&mut self, now: Instant) {
        if self.gap.is_some() {
            self.write().await;
        } else {
            self.learn_ways().await;
        }
        self.retired.retain(|_, since| now.saturating_duration_since(*since) < RETIRED);
    }

    async fn attach(&mut self) {
        let links = match self.netlink.links().await {
            Ok(links) => links,
            Err(error) => return self.note(Err(error_chain(&error))),
        };
        let uplinks = match (&self.interfaces, self.netlink.uplinks().await) {
            (Interfaces::Matching(_), _) => BTreeSet::new(),
            (Interfaces::DefaultRoute, Ok(uplinks)) => uplinks,
            (Interfaces::DefaultRoute, Err(error)) => return self.note(Err(error_chain(&error))),
        };
        let wanted: Vec<&Link> =
            links.iter().filter(|link| is_meant(&self.interfaces, &uplinks, link)).collect();
        let mut kernel = self.kernel.lock();
        // A default route that is gone for a moment is no reason to stop balancing; a name that is not meant is.
        let keep: BTreeSet<String> = match &self.interfaces {
            Interfaces::Matching(_) => wanted.iter().map(|link| link.name.clone()).collect(),
            Interfaces::DefaultRoute => links.iter().map(|link| link.name.clone()).collect(),
        };
        let kept = kernel.keep_only(&keep).map_err(|error| error_chain(&error));
        for link in wanted {
            if kernel.is_attached(&link.name, link.index) {
                continue;
            }
            if let Err(error) = kernel.attach(&link.name) {
                let why = error_chain(&error);
                if self.refused.get(&link.name) != Some(&why) {
                    tracing::error!(
                        interface = link.name,
                        why,
                        "cannot attach; packets of this interface are not balanced"
                    );
                    self.refused.insert(link.name.clone(), why);
                }
            } else {
                self.refused.remove(&link.name);
            }
        }
        drop(kernel);
        self.note(kept);
    }

    fn note(&mut self, outcome: Result<(), String>) {
        if let Err(why) = outcome {
            tracing::error!(why, "the kernel is not in step; trying again");
            self.gap = Some(why);
        }
    }

    /// Whether the maps are what they should be.
    pub const fn is_in_step(&self) -> bool {
        self.gap.is_none()
    }

    /// What is wrong.
    pub fn gap(&self) -> Option<&str> {
        self.gap.as_deref()
    }
}

fn is_meant(interfaces: &Interfaces, uplinks: &BTreeSet<u32>, link: &Link) -> bool {
    match interfaces {
        Interfaces::DefaultRoute => !link.is_loopback && uplinks.contains(&link.index),
        Interfaces::Matching(patterns) => patterns.iter().any(|pattern| pattern.matches(&link.name)),
    }
}

/// The words of the log.
pub fn interfaces_of(interfaces: &Interfaces) -> String {
    match interfaces {
        Interfaces::DefaultRoute => "those with a default route".to_owned(),
        Interfaces::Matching(patterns) => {
            patterns.iter().map(crate::config::InterfacePattern::as_str).collect::<Vec<_>>().join(", ")
        }
    }
}

fn full(what: &str, map: &str) -> Refusal {
    Refusal::Full(format!("no room for more {what} in {map}; want fewer of them"))
}

/// An error with its causes, on one line.
fn error_chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
