//! What the kernel tells of links, addresses, routes and neighbours, as far as somebody may have to ask anew.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use futures_util::{FutureExt as _, Stream, StreamExt as _};
use rtnetlink::{
    packet_core::{NetlinkMessage, NetlinkPayload},
    packet_route::{
        AddressFamily, RouteNetlinkMessage,
        neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage},
        route::{RouteAttribute, RouteMessage},
    },
};

use super::route::{attribute, ip};
use crate::network::Network;

/// What has changed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Change {
    /// What is known of the neighbour with this address.
    Neighbour(IpAddr),
    /// A route to this network came or went: nothing changes for other addresses.
    Route(Network),
    /// Anything: a link or an address changed, which may take routes along in silence, or messages were lost.
    Any,
}

/// Changes of links, addresses, routes and neighbours.
pub struct Changes(Box<dyn Stream<Item = Change> + Send + Unpin>);

impl std::fmt::Debug for Changes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Changes")
    }
}

impl Changes {
    /// Those that messages tell of.
    pub(super) fn of<T>(
        messages: impl Stream<Item = (NetlinkMessage<RouteNetlinkMessage>, T)> + Send + Unpin + 'static,
    ) -> Self {
        let changes = messages.filter_map(|(message, _)| std::future::ready(change(&message.payload)));
        Self(Box::new(changes))
    }

    /// Waits for the next change. None when the socket is gone.
    pub async fn next(&mut self) -> Option<Change> {
        self.0.next().await
    }

    /// The next change, if there is one already.
    pub fn take(&mut self) -> Option<Change> {
        self.0.next().now_or_never().flatten()
    }
}

/// None for what concerns nobody: which link-layer address is behind which port of a bridge is told in the same group as
/// neighbours, and may be told without end.
#[expect(clippy::wildcard_enum_match_arm, reason = "whatever is neither may be anything, also lost messages")]
fn change(payload: &NetlinkPayload<RouteNetlinkMessage>) -> Option<Change> {
    use RouteNetlinkMessage::{DelNeighbour, DelRoute, NewNeighbour, NewRoute};
    let known = match payload {
        NetlinkPayload::InnerMessage(NewNeighbour(message) | DelNeighbour(message))
            if message.header.family == AddressFamily::Bridge =>
        {
            return None;
        }
        NetlinkPayload::InnerMessage(NewNeighbour(message) | DelNeighbour(message)) => {
            destination(message).map(Change::Neighbour)
        }
        NetlinkPayload::InnerMessage(NewRoute(message) | DelRoute(message)) => {
            network(message).map(Change::Route)
        }
        _ => None,
    };
    Some(known.unwrap_or(Change::Any))
}

/// The address of a neighbour.
#[expect(clippy::wildcard_enum_match_arm, reason = "of many attributes one matters here")]
pub(super) fn destination(message: &NeighbourMessage) -> Option<IpAddr> {
    message.attributes.iter().find_map(|attribute| match attribute {
        NeighbourAttribute::Destination(NeighbourAddress::Inet(addr)) => Some(IpAddr::V4(*addr)),
        NeighbourAttribute::Destination(NeighbourAddress::Inet6(addr)) => Some(IpAddr::V6(*addr)),
        _ => None,
    })
}

/// The network that a route leads to. A route to everywhere names no address.
#[expect(clippy::wildcard_enum_match_arm, reason = "of many families two matter here")]
fn network(message: &RouteMessage) -> Option<Network> {
    let named =
        attribute(
            message,
            |attribute| {
                if let RouteAttribute::Destination(addr) = attribute { ip(addr) } else { None }
            },
        );
    let prefix_bits = message.header.destination_prefix_length;
    let addr = match message.header.address_family {
        _ if named.is_some() => named?,
        AddressFamily::Inet => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        AddressFamily::Inet6 => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        _ => return None,
    };
    (named.is_some() || prefix_bits == 0).then_some(Network { addr, prefix_bits })
}

#[cfg(test)]
mod tests {
    use rtnetlink::RouteMessageBuilder;

    use super::{super::Routes, *};

    fn told(message: RouteNetlinkMessage) -> Change {
        change(&NetlinkPayload::InnerMessage(message)).unwrap()
    }

    #[test]
    fn a_change_says_what_it_may_concern() {
        let v4 = |bits| {
            RouteMessageBuilder::<Ipv4Addr>::new().destination_prefix([10, 1, 2, 0].into(), bits).build()
        };
        let network = Network { addr: [10, 1, 2, 0].into(), prefix_bits: 24 };
        assert_eq!(told(RouteNetlinkMessage::NewRoute(v4(24))), Change::Route(network));
        assert_eq!(told(RouteNetlinkMessage::DelRoute(v4(24))), Change::Route(network));
        let default = RouteMessageBuilder::<Ipv6Addr>::new().build();
        let everywhere = Network { addr: Ipv6Addr::UNSPECIFIED.into(), prefix_bits: 0 };
        assert_eq!(told(RouteNetlinkMessage::NewRoute(default)), Change::Route(everywhere));
        let mut neighbour = NeighbourMessage::default();
        assert_eq!(told(RouteNetlinkMessage::NewNeighbour(neighbour.clone())), Change::Any);
        neighbour
            .attributes
            .push(NeighbourAttribute::Destination(NeighbourAddress::Inet([10, 1, 2, 3].into())));
        let changed = told(RouteNetlinkMessage::DelNeighbour(neighbour));
        assert_eq!(changed, Change::Neighbour([10, 1, 2, 3].into()));
        let link = rtnetlink::packet_route::link::LinkMessage::default();
        assert_eq!(told(RouteNetlinkMessage::NewLink(link)), Change::Any);
        assert_eq!(change(&NetlinkPayload::Overrun(Vec::new())), Some(Change::Any));
    }

    #[test]
    fn what_a_bridge_learns_concerns_nobody() {
        let mut learned = NeighbourMessage::default();
        learned.header.family = AddressFamily::Bridge;
        learned.attributes.push(NeighbourAttribute::LinkLayerAddress(vec![2, 0, 0, 0, 0, 1]));
        for message in
            [RouteNetlinkMessage::NewNeighbour(learned.clone()), RouteNetlinkMessage::DelNeighbour(learned)]
        {
            assert_eq!(change(&NetlinkPayload::InnerMessage(message)), None);
        }
    }

    #[test]
    fn answers_are_forgotten_by_network() {
        let mut routes = Routes::default();
        let addrs = [[10, 1, 1, 9], [10, 1, 2, 1], [10, 1, 2, 9], [10, 1, 3, 1]].map(IpAddr::from);
        routes.answers.extend(addrs.map(|addr| (addr, RouteMessage::default())));
        let network = Network { addr: [10, 1, 2, 77].into(), prefix_bits: 24 };
        assert!(routes.forget_in(&network));
        assert!(!routes.forget_in(&network));
        assert_eq!(routes.answers.keys().copied().collect::<Vec<_>>(), [addrs[0], addrs[3]]);
    }
}
