//! What a route says, as the kernel tells it.

use std::net::IpAddr;

use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteMessage, RouteMetric, RouteType, RouteVia,
};

#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "netlink may name addresses of any family; two matter here"
)]
pub(super) fn ip(addr: &RouteAddress) -> Option<IpAddr> {
    match addr {
        RouteAddress::Inet(addr) => Some(IpAddr::V4(*addr)),
        RouteAddress::Inet6(addr) => Some(IpAddr::V6(*addr)),
        _ => None,
    }
}

pub(super) fn attribute<T>(route: &RouteMessage, read: impl Fn(&RouteAttribute) -> Option<T>) -> Option<T> {
    route.attributes.iter().find_map(read)
}

/// The router that packets go to, where there is one.
#[expect(clippy::wildcard_enum_match_arm, reason = "of many attributes two matter here")]
pub(super) fn gateway(route: &RouteMessage) -> Option<IpAddr> {
    attribute(route, |attribute| match attribute {
        RouteAttribute::Gateway(gateway) => ip(gateway),
        // A router of the other family: IPv4 behind an IPv6 next hop (RFC 8950).
        RouteAttribute::Via(RouteVia::Inet(gateway)) => Some(IpAddr::V4(*gateway)),
        RouteAttribute::Via(RouteVia::Inet6(gateway)) => Some(IpAddr::V6(*gateway)),
        _ => None,
    })
}

/// Whether a route leads nowhere, on purpose. Asked for the way to an address of IPv6, the kernel answers with such a route;
/// of IPv4, with an error.
pub(super) const fn is_refusal(kind: RouteType) -> bool {
    matches!(kind, RouteType::BlackHole | RouteType::Unreachable | RouteType::Prohibit | RouteType::Throw)
}

/// Every interface of a route: one that is spread over several ways names each of them.
pub(super) fn interfaces(route: &RouteMessage) -> Vec<u32> {
    let several = attribute(route, |attribute| {
        let RouteAttribute::MultiPath(ways) = attribute else { return None };
        Some(ways.iter().map(|way| way.interface_index).collect())
    });
    several.unwrap_or_else(|| oif(route).into_iter().collect())
}

/// What a route says of the size of packets. Not what the kernel has learned for a while: nobody says when that is over.
pub(super) fn route_mtu(route: &RouteMessage) -> u32 {
    let expires = attribute(route, |attribute| {
        if let RouteAttribute::CacheInfo(cache) = attribute { Some(cache.expires) } else { None }
    });
    if expires.is_some_and(|expires| expires != 0) {
        return 0;
    }
    let mtu = |metric: &RouteMetric| if let RouteMetric::Mtu(mtu) = metric { Some(*mtu) } else { None };
    let found = attribute(route, |attribute| {
        if let RouteAttribute::Metrics(metrics) = attribute { metrics.iter().find_map(mtu) } else { None }
    });
    found.unwrap_or(0)
}

pub(super) fn oif(route: &RouteMessage) -> Option<u32> {
    attribute(route, |attribute| if let RouteAttribute::Oif(index) = attribute { Some(*index) } else { None })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(attribute: RouteAttribute) -> RouteMessage {
        let mut route = RouteMessage::default();
        route.attributes.push(attribute);
        route
    }

    #[test]
    fn a_router_may_be_of_the_other_family() {
        let (v4, v6) = (IpAddr::from([10, 1, 1, 1]), "fe80::1".parse::<std::net::Ipv6Addr>().unwrap());
        assert_eq!(
            gateway(&with(RouteAttribute::Gateway(RouteAddress::Inet([10, 1, 1, 1].into())))),
            Some(v4)
        );
        assert_eq!(gateway(&with(RouteAttribute::Via(RouteVia::Inet6(v6)))), Some(v6.into()));
        assert_eq!(gateway(&with(RouteAttribute::Oif(3))), None);
    }

    #[test]
    fn some_routes_lead_nowhere() {
        for kind in [RouteType::BlackHole, RouteType::Unreachable, RouteType::Prohibit] {
            assert!(is_refusal(kind), "{kind:?}");
        }
        assert!(!is_refusal(RouteType::Unicast));
    }
}
