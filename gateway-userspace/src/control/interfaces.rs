//! Which interfaces get hooks, and where XDP is not the right one.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;

use crate::{
    address::{Link, LinkKind},
    config::{AnnounceSettings, InterfacePattern, Interfaces},
    image::Way,
};

/// Why an interface is balanced at TC when the configuration leaves the choice to the agent; none where XDP fits.
///
/// XDP sends a packet by handing its frame to a device, and not every device takes frames: a veth does only when its
/// other end polls (which GRO or a program there turns on), a bridge or a VLAN never does. The kernel drops such frames
/// after the program has counted them as sent. A driver that takes VLAN tags off hides them from XDP.
pub(super) fn avoid_xdp(
    link: &Link,
    links: &[Link],
    ways: &HashMap<IpAddr, Way>,
    has_pods: bool,
) -> Option<String> {
    if has_pods {
        return Some(
            "replies go to pods, behind interfaces that do not take the frames that XDP sends in every case"
                .to_owned(),
        );
    }
    if !link.kind.takes_frames() {
        return Some("it does not take the frames that XDP sends in every case".to_owned());
    }
    if links.iter().any(|other| other.kind == LinkKind::Vlan && other.parent == Some(link.index)) {
        return Some("VLANs lie over it, and a driver may hide their tags from XDP".to_owned());
    }
    let by_index: BTreeMap<u32, &Link> = links.iter().map(|link| (link.index, link)).collect();
    let used: BTreeSet<u32> = ways.values().filter(|way| !way.is_local).map(|way| way.interface).collect();
    let stacked =
        used.iter().filter_map(|index| by_index.get(index)).find(|link| !link.kind.takes_frames())?;
    Some(format!(
        "endpoints are reached over {}, which does not take the frames that XDP sends",
        stacked.name
    ))
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
    let used: BTreeSet<u32> = ways.values().filter(|way| !way.is_local).map(|way| way.interface).collect();
    let is_meant = |link: &&Link| match interfaces {
        Interfaces::DefaultRoute => {
            link.kind != LinkKind::Loopback && (uplinks.contains(&link.index) || used.contains(&link.index))
        }
        Interfaces::Matching(patterns) => patterns.iter().any(|pattern| pattern.matches(&link.name)),
    };
    links.iter().filter(is_meant).collect()
}

/// The interfaces that health checks through tunnels leave by, and that their answers may come in at.
pub(super) fn probing<'a>(
    links: &'a [Link],
    balanced: &[&'a Link],
    ways: &HashMap<IpAddr, Way>,
) -> Vec<&'a Link> {
    let used: BTreeSet<u32> = ways.values().filter(|way| !way.is_local).map(|way| way.interface).collect();
    let is_meant = |link: &&Link| {
        used.contains(&link.index) || balanced.iter().any(|balanced| balanced.index == link.index)
    };
    links.iter().filter(is_meant).collect()
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
        link.kind != LinkKind::Loopback
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

    #[test]
    fn xdp_is_for_devices_that_take_frames() {
        let nic = link(2, "eth0");
        let bridge = Link { kind: LinkKind::Other, ..link(3, "br0") };
        let vlan = Link { kind: LinkKind::Vlan, parent: Some(2), ..link(4, "eth0.5") };
        let links = [nic.clone(), bridge.clone()];
        assert_eq!(avoid_xdp(&nic, &links, &way(2), false), None);
        assert!(avoid_xdp(&bridge, &links, &way(2), false).is_some());
        let why = avoid_xdp(&nic, &links, &way(3), false).unwrap();
        assert!(why.contains("br0"), "{why}");
        let why = avoid_xdp(&nic, &[nic.clone(), vlan], &way(2), false).unwrap();
        assert!(why.contains("VLAN"), "{why}");
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
        assert!(avoid_xdp(&links[1], &links, &way(2), true).unwrap().contains("pods"));
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
