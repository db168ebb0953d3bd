//! The kernel's half of the control loop: images, sockets, ways to endpoints, interfaces that come and go.

mod hooks;
mod own;
mod ways;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
};

use gateway_common::{
    map::{self, MapDef},
    service::{Mode, ServiceKey},
};
use parking_lot::Mutex;

use crate::{
    address::{Assignment, Changes, Netlink, Routes},
    compile::{
        id::{Full, Ids, Numbers},
        image::{self, Made, Means, Retired, SocketRanges, Wanted},
    },
    control::{
        Refusal,
        interfaces::Places,
        kernel_side::{hooks::Purpose, own::Announcing, ways::Heard},
        sockets::Sockets,
    },
    endpoint::{EndpointId, Health, Reach, Registry},
    image::{Image, Way},
    kernel::{Kernel, probe},
    listener::Workers,
    metrics::names::Families,
    net::listen::Place,
    snapshot::Snapshot,
    state::BindKey,
};

/// How long an endpoint that is no longer wanted keeps its rows for flows that nobody has recorded.
const RETIRED: Duration = Duration::from_hours(1);

/// The kernel and what the loop knows about it.
pub struct KernelSide {
    kernel: Arc<Mutex<Kernel>>,
    netlink: Netlink,
    changes: Changes,
    places: Places,
    families: Families,
    /// Interfaces of pods that are too many, as of the last look.
    n_left_out: usize,
    ids: Ids,
    /// What the present image was made of; it goes with the numbers.
    made: Made,
    sockets: Sockets,
    /// Endpoints that are no longer wanted, and since when.
    retired: BTreeMap<(ServiceKey, EndpointId), Instant>,
    /// The image that should stand in the maps.
    image: Arc<Image>,
    /// Its virtual addresses.
    addrs: BTreeSet<IpAddr>,
    /// Interfaces that could not be attached to, and why; said once.
    refused: BTreeMap<(Purpose, String), String>,
    is_steering: bool,
    applied: Applied,
    heard: Heard,
    /// When what was heard is looked at.
    due: Option<Instant>,
    /// How long the last look at what was heard took.
    looked_for: Duration,
    routes: Routes,
    /// Interfaces with default routes, as long as those are as they were.
    uplinks: Option<BTreeSet<u32>>,
    /// How endpoints are reached, as of the last look.
    ways: HashMap<IpAddr, Way>,
    /// Addresses of endpoints, as of the last look.
    seen: BTreeSet<IpAddr>,
    /// Those of them that have a route but no neighbour yet.
    unresolved: BTreeSet<IpAddr>,
    /// Whether the ports of translation are the node's own too; said once.
    shares_ports: bool,
    /// What is wrong, until a later try succeeds.
    gap: Option<String>,
    /// Why packets that should be balanced do not meet the programs.
    detached: Option<String>,
    /// Addresses that links are still told of.
    announcing: BTreeMap<Assignment, Announcing>,
    /// Why processes that should be given endpoints are not.
    disconnected: Option<String>,
}

/// Which image was applied.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Applied {
    /// None: what stands in the maps is an earlier agent's.
    Nothing,
    /// One before the image that was made last.
    Former,
    /// The one that was made last.
    Last,
}

impl KernelSide {
    /// Puts it together; nothing is written or attached yet.
    pub fn new(
        kernel: Arc<Mutex<Kernel>>,
        netlink: (Netlink, Changes),
        (places, families): (Places, Families),
        n_workers: usize,
    ) -> Self {
        let (ids, sockets) = {
            let kernel = kernel.lock();
            let written = kernel.written();
            let n_workers = u32::try_from(n_workers).unwrap_or(1);
            let ids = Ids::found(kernel.capacity(), &written.services, &written.endpoints);
            (ids, Sockets::found(&written.services, n_workers))
        };
        let (netlink, changes) = netlink;
        Self {
            kernel,
            netlink,
            changes,
            places,
            families,
            n_left_out: 0,
            ids,
            made: Made::default(),
            sockets,
            retired: BTreeMap::new(),
            image: Arc::default(),
            addrs: BTreeSet::new(),
            refused: BTreeMap::new(),
            is_steering: false,
            applied: Applied::Nothing,
            heard: Heard::default(),
            due: None,
            looked_for: Duration::ZERO,
            routes: Routes::default(),
            uplinks: None,
            ways: HashMap::new(),
            seen: BTreeSet::new(),
            unresolved: BTreeSet::new(),
            shares_ports: false,
            gap: None,
            detached: None,
            announcing: BTreeMap::new(),
            disconnected: None,
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
            if !sockets.place(*bind) {
                return Err(full("sockets", map::Sockets::NAME));
            }
        }
        let ranges: SocketRanges = sockets.ranges().collect();
        let retired = self.retire(snapshot, now);
        let keep: Retired = retired.keys().cloned().collect();
        let mut ids = self.ids.clone();
        if snapshot.listeners.iter().any(|listener| !ids.services().contains_key(&image::key(listener))) {
            ids.avoid(self.kernel.lock().with_flows());
        }
        // Where this fails, the next image is made of everything.
        let mut made = std::mem::take(&mut self.made);
        // What the last image gave back may be another's when the maps do not name it any more: not while a write is
        // missing, nor when that image never came here.
        let is_written = self.applied == Applied::Last && !self.kernel.lock().is_behind();
        let means = Means { registry, sockets: &ranges, retired: &keep, is_written };
        let image = image::image(snapshot, means, &mut ids, &mut made).map_err(|error| match error {
            Full::Services => full("services", map::Services::NAME),
            Full::Rows => full("endpoints", map::Endpoints::NAME),
            Full::Chunks => full("slots", map::Slots::NAME),
        })?;
        self.place_sockets(workers, &sockets)?;
        if self.applied == Applied::Nothing {
            self.believe(&image, snapshot);
        }
        self.ids = ids;
        if self.applied == Applied::Last {
            self.applied = Applied::Former;
        }
        self.made = made;
        self.sockets = sockets;
        self.retired = retired;
        Ok(image)
    }

    /// Has the next image made of everything: handles of endpoints may not be those that the last one was made with.
    pub fn forget_made(&mut self) {
        self.made = Made::default();
    }

    fn place_sockets(&self, workers: &Workers, sockets: &Sockets) -> Result<(), Refusal> {
        let listening = workers.sockets().map_err(Refusal::Listen)?;
        let mut kernel = self.kernel.lock();
        for socket in &listening {
            let Some(first) = sockets.first(&socket.bind) else { continue };
            let place = first.saturating_add(u32::try_from(socket.worker).unwrap_or(u32::MAX));
            kernel.put_socket(place, &socket.fd).map_err(|error| Refusal::Full(error_chain(&error)))?;
        }
        Ok(())
    }

    /// Takes over what an earlier agent knew of endpoints that are checked: one that was down is not tried again before
    /// a check says so.
    fn believe(&self, image: &Image, snapshot: &Snapshot) {
        let checked: BTreeSet<_> = snapshot
            .services
            .iter()
            .filter(|service| service.health.is_some())
            .map(|service| &service.name)
            .collect();
        let kernel = self.kernel.lock();
        let rows =
            image.services.iter().flat_map(|service| service.endpoints.iter().map(move |row| (service, row)));
        for (service, row) in rows {
            if checked.contains(&row.endpoint.id().service) && kernel.was_found_down(service, row) {
                row.endpoint.set_health_by(Reach::of(service.mode), Health::Down);
            }
        }
    }

    /// Endpoints of the present image, or of an earlier agent, that the snapshot does not want any more for their
    /// listener, with those that left before.
    fn retire(&self, snapshot: &Snapshot, now: Instant) -> BTreeMap<(ServiceKey, EndpointId), Instant> {
        let wanted = Wanted::of(snapshot);
        let mut retired = self.retired.clone();
        let left = if self.applied == Applied::Nothing {
            image::left_over(snapshot, &self.ids)
        } else {
            Retired::new()
        };
        for left in left.into_iter().chain(image::left(&wanted, &self.image)) {
            retired.entry(left).or_insert(now);
        }
        let kernel = self.kernel.lock();
        let n_flows = |row| kernel.endpoint_flows(row);
        retired.retain(|(key, id), since| {
            let ago = now.saturating_duration_since(*since);
            wanted.has(key)
                && wanted.addrs(key).binary_search(&id.addr).is_err()
                && keeps_rows(self.ids.services().get(key).map(Arc::as_ref), id.addr, ago, n_flows)
        });
        retired
    }

    /// The maps, for whoever publishes what live endpoints become.
    pub fn maps(&self) -> Arc<Mutex<Kernel>> {
        Arc::clone(&self.kernel)
    }

    /// Brings the kernel to an image, whose ways are known. The maps are as it wants before anything is waited for.
    pub async fn take(&mut self, image: Image) {
        let wants_cookies =
            image.services.iter().any(|service| service.mode == Mode::AGENT && service.cookie_rate.is_some());
        if wants_cookies && probe::tcp_syncookies() == Some(0) {
            tracing::warn!("`synCookies` has no effect while net.ipv4.tcp_syncookies is 0: set it to 1");
        }
        self.image = Arc::new(image);
        self.addrs = self.image.virtual_addrs().map(IpAddr::from).collect();
        self.applied = Applied::Last;
        self.write().await;
    }

    /// Writes what should stand in the maps, and makes virtual addresses local.
    async fn write(&mut self) {
        let applied = self.kernel.lock().apply(Arc::clone(&self.image));
        self.note(applied.map(drop).map_err(|error| error_chain(&error)));
        if !self.is_steering {
            let steered = self.kernel.lock().steer();
            self.is_steering = steered.is_ok();
            self.note(steered.map_err(|error| error_chain(&error)));
        }
        self.attach().await;
        self.connect();
        // Last: from here on the node answers for the addresses, and everything else must be ready.
        self.own_addrs().await;
    }

    /// Clears what only the former image referred to. The endpoints that still have a row.
    pub fn settle(&mut self, binds: &BTreeSet<BindKey>) -> BTreeSet<EndpointId> {
        // As long as the maps are behind, a service may still name places that nobody wants.
        if self.gap.is_none() {
            let mut kernel = self.kernel.lock();
            for range in self.sockets.retain(binds) {
                for place in range.first..range.first.saturating_add(range.count) {
                    kernel.clear_socket(place);
                }
            }
        }
        self.retired()
    }

    /// Endpoints that nobody wants any more and that still may hold flows.
    pub fn retired(&self) -> BTreeSet<EndpointId> {
        self.retired.keys().map(|(_, id)| id.clone()).collect()
    }

    /// Tries again what failed, and looks for ways that were unknown.
    pub async fn keep_house(&mut self) {
        self.announce();
        self.look_at_ports();
        let is_missing = self.gap.take().is_some() || self.kernel.lock().is_behind();
        self.look().await;
        if is_missing {
            self.write().await;
        } else {
            let settled = self.kernel.lock().settle();
            self.note(settled.map(drop).map_err(|error| error_chain(&error)));
            if let Err(error) = self.kernel.lock().sweep() {
                tracing::warn!(
                    why = error_chain(&error),
                    "the flow table cannot be swept: entries that are over stay"
                );
            }
            if let Err(error) = self.kernel.lock().renew_keys() {
                tracing::warn!(
                    why = error_chain(&error),
                    "keys of cookies are not replaced: the last ones go on"
                );
            }
            if self.detached.is_some() {
                self.uplinks = None;
            }
            if self.detached.is_some() || !self.refused.is_empty() {
                self.attach().await;
            }
            self.connect();
        }
    }

    /// The node's own ports may be set anew at any time. What is translated goes on: ports are no reason to cut connections.
    fn look_at_ports(&mut self) {
        let overlap = self.kernel.lock().check_ports().err();
        match &overlap {
            Some(error) if !self.shares_ports => {
                tracing::error!(
                    why = error_chain(error),
                    "translated packets may take ports of the node's own sockets"
                );
            }
            None if self.shares_ports => {
                tracing::info!("ports of translation are apart from the node's own again");
            }
            Some(_) | None => {}
        }
        self.shares_ports = overlap.is_some();
    }

    /// Notes why the maps are not what they should be.
    pub(super) fn note(&mut self, outcome: Result<(), String>) {
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
        self.gap.as_deref().or(self.detached.as_deref()).or(self.disconnected.as_deref())
    }
}

/// Whether an endpoint that left so long ago keeps its rows. Flows that are recorded with it would go on at another one
/// without them, however busy they are.
fn keeps_rows(
    numbers: Option<&Numbers>,
    addr: SocketAddr,
    ago: Duration,
    n_flows: impl Fn(u32) -> u64,
) -> bool {
    ago < RETIRED || numbers.is_some_and(|numbers| numbers.rows_of(addr).any(|row| n_flows(row) > 0))
}

fn full(what: &str, map: &str) -> Refusal {
    Refusal::Full(format!("no room for more {what} in {map}; want fewer of them"))
}

/// An error with its causes, on one line.
pub(super) fn error_chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_keeps_its_rows_while_one_of_them_holds_flows() {
        let [one, other] = ["10.0.0.10:80", "10.0.0.11:80"].map(|addr| addr.parse::<SocketAddr>().unwrap());
        let numbers = Numbers {
            members: BTreeMap::from([(one, 7), (other, 8)]),
            outgrown: BTreeMap::from([(3, one), (4, other)]),
            ..Numbers::default()
        };
        let numbers = Some(&numbers);
        let late = RETIRED + Duration::from_secs(1);
        for (row, holder) in [(7, one), (3, one), (8, other), (4, other)] {
            let n_flows = |asked: u32| u64::from(asked == row);
            for addr in [one, other] {
                assert_eq!(keeps_rows(numbers, addr, late, n_flows), addr == holder, "row {row}, {addr}");
                assert!(keeps_rows(numbers, addr, RETIRED / 2, n_flows), "what is not recorded");
            }
        }
        assert!(!keeps_rows(numbers, one, late, |_| 0));
        assert!(!keeps_rows(None, one, late, |_| 1), "a service that is gone");
    }
}
