//! Which interfaces get hooks, and where XDP is not the right one.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;

use crate::{
    address::{Link, LinkKind},
    config::{AnnounceSettings, InterfacePattern, Interfaces},
    image::Way,
};

/// What the choice of a hook depends on, beside the interface itself.
pub(super) struct Around<'a> {
    /// All interfaces.
    pub(super) links: &'a [Link],
    /// Those whose packets are balanced.
    pub(super) balanced: &'a [&'a Link],
    /// How endpoints are reached.
    pub(super) ways: &'a HashMap<IpAddr, Way>,
    /// Whether there are local pods.
    pub(super) has_pods: bool,
}

/// Why an interface is balanced at TC when the configuration leaves the choice to the agent; none where XDP fits.
///
/// XDP sends a packet by handing its frame to a device, and not every device takes frames: a veth does only when its
/// other end polls (which GRO or a program there turns on), a bridge or a VLAN never does. The kernel drops such frames
/// after the program has counted them as sent. A driver that takes VLAN tags off hides them from XDP.
pub(super) fn avoid_xdp(link: &Link, around: &Around<'_>) -> Option<String> {
    if around.has_pods {
        return Some(
            "replies go to pods, behind interfaces that do not take the frames that XDP sends in every case"
                .to_owned(),
        );
    }
    if !link.kind.takes_frames() {
        return Some("it does not take the frames that XDP sends in every case".to_owned());
    }
    let links = around.links;
    if links.iter().any(|other| other.kind == LinkKind::Vlan && other.parent == Some(link.index)) {
        return Some("VLANs lie over it, and a driver may hide their tags from XDP".to_owned());
    }
    let by_index: BTreeMap<u32, &Link> = links.iter().map(|link| (link.index, link)).collect();
    let takes_none = |link: &&&Link| !link.kind.takes_frames();
    let used: BTreeSet<u32> = used(around.ways);
    if let Some(stacked) = used.iter().filter_map(|index| by_index.get(index)).find(takes_none) {
        let name = &stacked.name;
        return Some(format!(
            "endpoints are reached over {name}, which does not take the frames that XDP sends"
        ));
    }
    // What comes from an endpoint goes back to where its client came in.
    let stacked = around.balanced.iter().find(takes_none)?;
    Some(format!("clients come over {}, which does not take the frames that XDP sends", stacked.name))
}

/// The interfaces that endpoints are reached by.
fn used(ways: &HashMap<IpAddr, Way>) -> BTreeSet<u32> {
    ways.values().filter(|way| !way.is_local).map(|way| way.interface).collect()
}

/// Where hooks sit.
#[derive(Clone, Debug)]
pub struct Places {
    /// Interfaces whose packets are balanced.
    pub balanced: Interfaces,
    /// Interfaces where tunnels end.
    pub receiving: Option<Interfaces>,
    /// Names of the interfaces of local pods.
    pub pods: Vec<InterfacePattern>,
    /// Where which virtual addresses are to be found on the link.
    pub announced: Option<AnnounceSettings>,
}

impl Places {
    /// Whether the answer depends on default routes.
    pub(super) fn follow_routes(&self) -> bool {
        self.balanced == Interfaces::DefaultRoute || self.receiving == Some(Interfaces::DefaultRoute)
    }
}

/// Names of interfaces that keep their hooks. A default route that is gone for a moment is no reason to stop; a name
/// that is not meant is.
pub(super) fn kept(interfaces: &Interfaces, links: &[Link], meant: &[&Link]) -> BTreeSet<String> {
    match interfaces {
        Interfaces::Matching(_) => meant.iter().map(|link| link.name.clone()).collect(),
        Interfaces::DefaultRoute => links.iter().map(|link| link.name.clone()).collect(),
    }
}

/// The interfaces that get hooks.
pub(super) fn meant<'a>(
    interfaces: &Interfaces,
    links: &'a [Link],
    uplinks: &BTreeSet<u32>,
    ways: &HashMap<IpAddr, Way>,
) -> Vec<&'a Link> {
    // Replies of translated flows come back the way that the requests went.
    let used = used(ways);
    let is_meant = |link: &&Link| match interfaces {
        Interfaces::DefaultRoute => {
            link.kind != LinkKind::Loopback && (uplinks.contains(&link.index) || used.contains(&link.index))
        }
        Interfaces::Matching(patterns) => patterns.iter().any(|pattern| pattern.matches(&link.name)),
    };
    links.iter().filter(|link| link.kind != LinkKind::Headless).filter(is_meant).collect()
}

/// The interfaces that health checks through tunnels leave by, and that their answers may come in at.
pub(super) fn probing<'a>(
    links: &'a [Link],
    balanced: &[&'a Link],
    ways: &HashMap<IpAddr, Way>,
) -> Vec<&'a Link> {
    let used = used(ways);
    let is_meant = |link: &&Link| {
        used.contains(&link.index) || balanced.iter().any(|balanced| balanced.index == link.index)
    };
    links.iter().filter(|link| link.kind != LinkKind::Headless).filter(is_meant).collect()
}

/// The interfaces of pods that get hooks, besides those that are balanced anyway, and how many are too many. The oldest come
/// first: a pod that has its hooks does not lose them to a new one.
pub(super) fn pods<'a>(
    patterns: &[InterfacePattern],
    links: &'a [Link],
    balanced: &[&Link],
    most: usize,
) -> (Vec<&'a Link>, usize) {
    let is_meant = |link: &&Link| {
        !matches!(link.kind, LinkKind::Loopback | LinkKind::Headless)
            && patterns.iter().any(|pattern| pattern.matches(&link.name))
            && balanced.iter().all(|balanced| balanced.index != link.index)
    };
    let mut found: Vec<&Link> = links.iter().filter(is_meant).collect();
    found.sort_by_key(|link| link.index);
    let n_left_out = found.len().saturating_sub(most);
    found.truncate(most);
    (found, n_left_out)
}

/// The words of the log.
pub fn interfaces_of(interfaces: &Interfaces) -> String {
    match interfaces {
        Interfaces::DefaultRoute => {
            "those with a default route, and those that endpoints are reached by".to_owned()
        }
        Interfaces::Matching(patterns) => {
            patterns.iter().map(InterfacePattern::as_str).collect::<Vec<_>>().join(", ")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(index: u32, name: &str) -> Link {
        Link {
            index,
            name: name.to_owned(),
            mac: Some([2; 6]),
            kind: LinkKind::Hardware,
            mtu: 1_500,
            parent: None,
        }
    }

    fn way(interface: u32) -> HashMap<IpAddr, Way> {
        HashMap::from([(IpAddr::from([10, 1, 0, 1]), Way { interface, ..Way::default() })])
    }

    fn avoided(link: &Link, links: &[Link], balanced: &[&Link], way_over: u32) -> Option<String> {
        avoid_xdp(link, &Around { links, balanced, ways: &way(way_over), has_pods: false })
    }

    #[test]
    fn xdp_is_for_devices_that_take_frames() {
        let nic = link(2, "eth0");
        let bridge = Link { kind: LinkKind::Other, ..link(3, "br0") };
        let vlan = Link { kind: LinkKind::Vlan, parent: Some(2), ..link(4, "eth0.5") };
        let bond = Link { kind: LinkKind::Bond, ..link(5, "bond0") };
        let links = [nic.clone(), bridge.clone(), bond.clone()];
        assert_eq!(avoided(&nic, &links, &[&nic], 2), None);
        assert!(avoided(&bridge, &links, &[&bridge], 2).is_some());
        assert!(avoided(&bond, &links, &[&bond], 2).is_some());
        let why = avoided(&nic, &links, &[&nic], 3).unwrap();
        assert!(why.contains("endpoints") && why.contains("br0"), "{why}");
        let why = avoided(&nic, &[nic.clone(), vlan], &[&nic], 2).unwrap();
        assert!(why.contains("VLAN"), "{why}");
    }

    #[test]
    fn replies_are_not_sent_by_xdp_to_clients_behind_what_takes_no_frames() {
        let nic = link(2, "eth0");
        let uplinks = [
            Link { kind: LinkKind::Vlan, parent: Some(9), ..link(4, "eth1.5") },
            Link { kind: LinkKind::Other, ..link(4, "br0") },
            Link { kind: LinkKind::Bond, ..link(4, "bond0") },
            Link { kind: LinkKind::Veth, ..link(4, "veth0") },
        ];
        for uplink in uplinks {
            let links = [nic.clone(), uplink.clone()];
            let why = avoided(&nic, &links, &[&nic, &uplink], 2).unwrap();
            assert!(why.contains("clients") && why.contains(&uplink.name), "{why}");
        }
        let second = link(4, "eth1");
        assert_eq!(avoided(&nic, &[nic.clone(), second.clone()], &[&nic, &second], 2), None);
    }

    #[test]
    fn what_carries_no_ethernet_frames_is_never_meant() {
        let tunnel = Link { kind: LinkKind::Headless, mac: None, ..link(7, "wg0") };
        let links = [link(2, "eth0"), tunnel];
        let all = Interfaces::Matching(vec![InterfacePattern::new("*")]);
        for interfaces in [Interfaces::DefaultRoute, all] {
            let meant = meant(&interfaces, &links, &BTreeSet::from([2, 7]), &way(7));
            assert_eq!(meant.iter().map(|link| link.name.as_str()).collect::<Vec<_>>(), ["eth0"]);
            assert_eq!(probing(&links, &meant, &way(7)).len(), 1);
        }
        assert_eq!(pods(&[InterfacePattern::new("*")], &links, &[], 9).0.len(), 1);
    }

    #[test]
    fn pods_are_counted_and_bounded() {
        let links = [link(9, "veth3"), link(2, "eth0"), link(5, "veth1"), link(7, "veth2")];
        let patterns = [InterfacePattern::new("veth*")];
        let names = |most, balanced: &[&Link]| {
            let (chosen, n_left_out) = pods(&patterns, &links, balanced, most);
            (chosen.into_iter().map(|link| link.name.clone()).collect::<Vec<_>>(), n_left_out)
        };
        let all = ["veth1", "veth2", "veth3"].map(str::to_owned).to_vec();
        assert_eq!(names(3, &[]), (all.clone(), 0));
        assert_eq!(names(2, &[]), (all[..2].to_vec(), 1));
        assert_eq!(names(3, &[&links[2]]), (all[1..].to_vec(), 0), "what is balanced anyway is no pod");
        let around = Around { links: &links, balanced: &[], ways: &way(2), has_pods: true };
        assert!(avoid_xdp(&links[1], &around).unwrap().contains("pods"));
    }

    #[test]
    fn interfaces_that_endpoints_are_reached_by_are_meant() {
        let links = [link(2, "eth0"), link(3, "eth1"), link(4, "eth2")];
        let names = |interfaces: &Interfaces| -> Vec<String> {
            let meant = meant(interfaces, &links, &BTreeSet::from([2]), &way(3));
            meant.into_iter().map(|link| link.name.clone()).collect()
        };
        assert_eq!(names(&Interfaces::DefaultRoute), ["eth0", "eth1"]);
    }
}
