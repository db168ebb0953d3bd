//! Which interfaces have which programs, followed as they come and go.

use std::{collections::BTreeSet, sync::Arc};

use gateway_common::service::Mode;

use super::{KernelSide, error_chain};
use crate::{
    address::Link,
    config::Interfaces,
    control::interfaces::{self, Around, Places},
    kernel::{self, Beside, Kept},
    limits,
    metrics::names::Limit,
};

/// What an interface is attached to for.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(super) enum Purpose {
    Balance,
    Pod,
    Receive,
    Probe,
}

impl Purpose {
    /// What an operator reads when it cannot be had.
    const fn loss(self) -> &'static str {
        match self {
            Self::Balance => "its packets are not balanced",
            Self::Pod => "the pod's packets are not balanced",
            Self::Receive => "no tunnel ends there",
            Self::Probe => "health checks that should go through tunnels fail",
        }
    }
}

/// Interfaces, by what they are attached to for.
struct Found<'a> {
    balanced: Vec<&'a Link>,
    pods: Vec<&'a Link>,
    receiving: Vec<&'a Link>,
    probing: Vec<&'a Link>,
}

impl<'a> Found<'a> {
    const fn of(&self, purpose: Purpose) -> &Vec<&'a Link> {
        match purpose {
            Purpose::Balance => &self.balanced,
            Purpose::Pod => &self.pods,
            Purpose::Receive => &self.receiving,
            Purpose::Probe => &self.probing,
        }
    }

    /// What stays attached.
    fn kept(&self, places: &Places, links: &[Link]) -> Kept {
        let names = |links: &[&Link]| links.iter().map(|link| link.name.clone()).collect::<BTreeSet<_>>();
        let mut balanced = interfaces::kept(&places.balanced, links, &self.balanced);
        balanced.extend(names(&self.pods));
        let kept = |places| interfaces::kept(places, links, &self.receiving);
        let receiving = places.receiving.as_ref().map_or_else(BTreeSet::new, kept);
        Kept { balanced, receiving, probing: names(&self.probing) }
    }
}

impl KernelSide {
    pub(super) async fn attach(&mut self) {
        let links = match self.netlink.links().await {
            Ok(links) => links,
            Err(error) => return self.note(Err(error_chain(&error))),
        };
        let uplinks = match &self.uplinks {
            _ if !self.places.follow_routes() => BTreeSet::new(),
            Some(uplinks) => uplinks.clone(),
            None => match self.netlink.uplinks().await {
                Ok(uplinks) => self.uplinks.insert(uplinks).clone(),
                Err(error) => return self.note(Err(error_chain(&error))),
            },
        };
        let places = self.places.clone();
        let found = self.found(&places, &links, &uplinks);
        let kernel = Arc::clone(&self.kernel);
        let mut kernel = kernel.lock();
        let kept = kernel.keep_only(&found.kept(&places, &links)).map_err(|error| error_chain(&error));
        self.refused.retain(|(purpose, name), _| found.of(*purpose).iter().any(|link| link.name == *name));
        let (balanced, has_pods) = (&found.balanced[..], !found.pods.is_empty());
        for link in balanced {
            let around = Around { links: &links, balanced, ways: &self.ways, has_pods };
            let avoid = interfaces::avoid_xdp(link, &around);
            if !kernel.is_attached(&link.name, link.index, avoid.as_deref()) {
                let attached = kernel.attach(&link.name, avoid.as_deref()).map(drop);
                self.attached(Purpose::Balance, link, attached);
            }
        }
        for link in &found.pods {
            if !kernel.is_pod_attached(&link.name, link.index) {
                let attached = kernel.attach_pod(&link.name);
                self.attached(Purpose::Pod, link, attached);
            }
        }
        for (purpose, beside) in [(Purpose::Receive, Beside::Receive), (Purpose::Probe, Beside::Probe)] {
            for link in found.of(purpose) {
                if !kernel.is_beside(beside, &link.name, link.index) {
                    let attached = kernel.attach_beside(beside, &link.name);
                    self.attached(purpose, link, attached);
                }
            }
        }
        drop(kernel);
        let is_balanced = self.image.services.iter().any(|service| service.mode != Mode::AGENT);
        self.detached = if is_balanced && found.balanced.is_empty() && places.pods.is_empty() {
            Some(nowhere("to balance packets on", "interfaces", &places.balanced))
        } else if let (Some(places), true) = (&places.receiving, found.receiving.is_empty()) {
            Some(nowhere("where tunnels end", "receive.interfaces", places))
        } else if is_balanced || !found.receiving.is_empty() {
            // A pod that goes while it is attached to is no reason to be unready.
            let mut refused = self.refused.iter().filter(|((purpose, _), _)| *purpose != Purpose::Pod);
            refused.next().map(|((_, name), why)| format!("{name} cannot be attached to: {why}"))
        } else {
            None
        };
        self.note(kept);
    }

    /// Attaches to the sockets of a control group, where one is configured, also when it was made anew; what is wrong is said
    /// once.
    pub(super) fn connect(&mut self) {
        let outcome = self.kernel.lock().connect_sockets();
        let disconnected =
            outcome.err().map(|error| format!("agent.kernel.connect: {}", error_chain(&error)));
        if let Some(why) = disconnected.as_ref().filter(|_| disconnected != self.disconnected) {
            tracing::error!(why, "processes of this node are given no endpoints");
        }
        self.disconnected = disconnected;
    }

    /// What there is for each purpose.
    fn found<'a>(&mut self, places: &Places, links: &'a [Link], uplinks: &BTreeSet<u32>) -> Found<'a> {
        let meant = |places| interfaces::meant(places, links, uplinks, &self.ways);
        let balanced = meant(&places.balanced);
        let receiving = places.receiving.as_ref().map_or_else(Vec::new, meant);
        let probing =
            if self.has_tunnels() { interfaces::probing(links, &balanced, &self.ways) } else { Vec::new() };
        let (pods, n_left_out) = interfaces::pods(&places.pods, links, &balanced, limits::PODS);
        for _ in self.n_left_out..n_left_out {
            self.families.limit(Limit::Pods);
        }
        if n_left_out > self.n_left_out {
            tracing::warn!(
                n_left_out,
                most = limits::PODS,
                "too many interfaces of pods; the packets of some are not balanced"
            );
        }
        self.n_left_out = n_left_out;
        Found { balanced, pods, receiving, probing }
    }

    /// Whether packets go through tunnels from here.
    fn has_tunnels(&self) -> bool {
        let is_tunnel = |mode| mode == Mode::DSR_IPIP || mode == Mode::DSR_GUE;
        self.image.services.iter().any(|service| is_tunnel(service.mode))
    }

    /// Notes whether an interface could be attached to; what is wrong is said once.
    fn attached(&mut self, purpose: Purpose, link: &Link, outcome: Result<(), kernel::Error>) {
        let place = (purpose, link.name.clone());
        let Err(error) = outcome else {
            self.refused.remove(&place);
            return;
        };
        let why = error_chain(&error);
        let said = self.refused.insert(place, why.clone());
        if said.as_ref() != Some(&why) {
            let (interface, what) = (&link.name, purpose.loss());
            tracing::error!(interface, why, "cannot attach; {what}");
        }
    }
}

fn nowhere(what: &str, key: &str, interfaces: &Interfaces) -> String {
    let meant = interfaces::interfaces_of(interfaces);
    format!("no interface with Ethernet frames is there {what}; `agent.kernel.{key}` means {meant}")
}
