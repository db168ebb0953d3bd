//! Who may send packets, as the kernel's maps have it. Pure.

use std::{collections::BTreeMap, net::Ipv6Addr};

use gateway_common::{
    addr::Addr,
    service::Rate,
    source::{SourceNetwork, SourceRule},
};

use crate::{
    image::{Limits, source_network},
    network::Network,
    snapshot::{
        Snapshot,
        sources::{NewFlows, Pace},
    },
};

/// Networks of IPv4 that no packet to a service comes from: those that RFC 6890 knows as no source (this host, loopback,
/// protocol assignments, documentation), multicast (RFC 5771) and what is reserved, broadcast included (RFC 1112).
const FORGED_V4: [([u8; 4], u8); 8] = [
    ([0, 0, 0, 0], 8),
    ([127, 0, 0, 0], 8),
    ([192, 0, 0, 0], 24),
    ([192, 0, 2, 0], 24),
    ([198, 51, 100, 0], 24),
    ([203, 0, 113, 0], 24),
    ([224, 0, 0, 0], 4),
    ([240, 0, 0, 0], 4),
];

/// The same of IPv6: unspecified, loopback, documentation (RFC 3849, RFC 9637) and multicast (RFC 4291).
const FORGED_V6: [([u16; 2], u8, u16); 5] =
    [([0, 0], 128, 0), ([0, 0], 128, 1), ([0x2001, 0xdb8], 32, 0), ([0x3fff, 0], 20, 0), ([0xff00, 0], 8, 0)];

/// Every network that is listed: what the operator wrote comes before what is forged by its nature.
pub(super) fn networks(snapshot: &Snapshot) -> BTreeMap<SourceNetwork, SourceRule> {
    let mut networks = BTreeMap::new();
    if snapshot.sources.drops_forged {
        let v4 = FORGED_V4.iter().map(|(addr, bits)| Network { addr: (*addr).into(), prefix_bits: *bits });
        let v6 = FORGED_V6.iter().map(|([a, b], bits, last)| Network {
            addr: [*a, *b, 0, 0, 0, 0, 0, *last].into(),
            prefix_bits: *bits,
        });
        networks.extend(v4.chain(v6).map(|network| (source_network(&network), SourceRule::FORGED)));
        let own = snapshot.listeners.iter().map(|listener| SourceNetwork::of(Addr::from(listener.addr.ip())));
        networks.extend(own.map(|network| (network, SourceRule::FORGED)));
    }
    let lists = [(&snapshot.sources.deny, SourceRule::DENY), (&snapshot.sources.allow, SourceRule::ALLOW)];
    for (list, rule) in lists {
        networks.extend(list.iter().map(|network| (source_network(network), rule)));
    }
    // Addresses of IPv4 stand inside IPv6 in the map; a network of IPv6 around them does not mean them.
    let v4 = source_network(&Network { addr: [0; 4].into(), prefix_bits: 0 });
    if networks.keys().any(|network| network.prefix_bits < v4.prefix_bits && begins(network, &v4)) {
        networks.entry(v4).or_insert(SourceRule::ALLOW);
    }
    networks
}

/// Those that sockets can tell: what comes from this node itself comes from its own addresses and from loopback ones.
pub(super) fn from_elsewhere(snapshot: &Snapshot) -> BTreeMap<SourceNetwork, SourceRule> {
    let mut networks = networks(snapshot);
    let own = snapshot.listeners.iter().map(|listener| listener.addr.ip());
    let loopback = [([127, 0, 0, 0].into(), 8), (Ipv6Addr::LOCALHOST.into(), 128)];
    let loopback = loopback.map(|(addr, prefix_bits)| source_network(&Network { addr, prefix_bits }));
    for network in own.map(|ip| SourceNetwork::of(Addr::from(ip))).chain(loopback) {
        networks.entry(network).and_modify(|rule| {
            if *rule == SourceRule::FORGED {
                *rule = SourceRule::ALLOW;
            }
        });
    }
    networks
}

/// Whether a network holds another, smaller one.
fn begins(network: &SourceNetwork, other: &SourceNetwork) -> bool {
    let [a, b] = [network.addr, other.addr].map(|addr| u128::from_be_bytes(addr.octets()));
    let rest = 128_u32.saturating_sub(network.prefix_bits);
    (a ^ b).checked_shr(rest).unwrap_or(0) == 0
}

/// Bounds on new flows.
pub(super) fn limits(flows: &NewFlows) -> Limits {
    let rate = |pace: Option<Pace>| {
        pace.map_or(Rate::NONE, |pace| Rate { per_second: pace.per_second, burst: pace.burst })
    };
    Limits { service: rate(flows.all), source: rate(flows.source) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::sources::Sources;

    fn network(text: &str) -> Network {
        let (addr, bits) = text.split_once('/').unwrap();
        Network { addr: addr.parse().unwrap(), prefix_bits: bits.parse().unwrap() }
    }

    fn listed(deny: &[&str], allow: &[&str], drops_forged: bool) -> BTreeMap<SourceNetwork, SourceRule> {
        let all = |texts: &[&str]| texts.iter().map(|text| network(text)).collect();
        let sources = Sources { deny: all(deny), allow: all(allow), drops_forged };
        networks(&Snapshot { sources, ..Snapshot::default() })
    }

    fn rule(networks: &BTreeMap<SourceNetwork, SourceRule>, text: &str) -> Option<SourceRule> {
        networks.get(&source_network(&network(text))).copied()
    }

    #[test]
    fn what_is_written_comes_before_what_is_forged() {
        let networks = listed(&["127.0.0.0/8"], &["192.0.2.0/24"], true);
        assert_eq!(rule(&networks, "127.0.0.0/8"), Some(SourceRule::DENY));
        assert_eq!(rule(&networks, "192.0.2.0/24"), Some(SourceRule::ALLOW));
        for forged in ["0.0.0.0/8", "255.0.0.0/8", "ff00::/8", "::/128", "::1/128", "2001:db8::/32"] {
            let expected = (forged != "255.0.0.0/8").then_some(SourceRule::FORGED);
            assert_eq!(rule(&networks, forged), expected, "{forged}");
        }
        assert!(listed(&[], &[], false).is_empty());
    }

    #[test]
    fn ipv6_around_ipv4_does_not_mean_it() {
        let networks = listed(&["::/0"], &[], false);
        assert_eq!(rule(&networks, "0.0.0.0/0"), Some(SourceRule::ALLOW));
        let networks = listed(&["::/0", "0.0.0.0/0"], &[], false);
        assert_eq!(rule(&networks, "0.0.0.0/0"), Some(SourceRule::DENY));
        let networks = listed(&["2001:db8::/32"], &[], false);
        assert_eq!(rule(&networks, "0.0.0.0/0"), None);
    }
}
