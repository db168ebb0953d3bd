//! Addresses: which virtual addresses are local to this node, how endpoints are reached, which interfaces there are.
//!
//! Everything by netlink. A virtual address gets a route in the `local` table, so that the stack delivers its packets
//! and answers ARP for it; what the agent added is marked with a routing protocol number of its own, so that it can
//! find and remove it later, also after a crash.

mod assigned;
mod change;
mod link;
mod route;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    io,
    net::IpAddr,
};

use futures_util::{Stream, StreamExt as _, TryStreamExt as _, stream};
use gateway_common::endpoint::NextHop;
use rtnetlink::{
    Handle, MulticastGroup, RouteMessageBuilder,
    packet_route::{
        AddressFamily,
        link::LinkMessage,
        neighbour::{NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState},
        route::{RouteAttribute, RouteMessage, RouteProtocol, RouteScope, RouteType},
    },
};

use self::route::{attribute, gateway, interfaces, ip, is_refusal, oif, route_mtu};
pub use crate::address::{
    assigned::Assignment,
    change::{Change, Changes},
    link::{Link, LinkKind},
};
use crate::{drain::Tasks, image::Way, limits, network::Network};

/// Marks the routes and the addresses of this agent (`rtnetlink(7)`: numbers above 4 belong to userspace; this one is
/// unassigned).
const ROUTE_PROTOCOL: u8 = 0xb5;

/// The `local` routing table.
const LOCAL_TABLE: u8 = 255;

/// What went wrong with netlink.
#[derive(Debug)]
pub enum Error {
    /// The socket cannot be opened.
    Open(io::Error),
    /// The kernel refused a request.
    Request {
        /// What was asked.
        what: String,
        /// The kernel's answer.
        source: Box<rtnetlink::Error>,
    },
    /// The kernel took an address without its mark.
    Unmarked {
        /// Index of the interface.
        index: u32,
        /// The address.
        addr: IpAddr,
    },
}

impl std::fmt::Display for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Open(_) => f.write_str("cannot open a netlink socket"),
            Self::Request { what, .. } => write!(f, "netlink: cannot {what}"),
            Self::Unmarked { index, addr } => write!(
                f,
                "cannot assign {addr} to interface {index}: this kernel does not keep whose it is (Linux 5.18); leave out `agent.kernel.announce`"
            ),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Open(source) => Some(source),
            Self::Request { source, .. } => Some(source.as_ref()),
            Self::Unmarked { .. } => None,
        }
    }
}

/// Who sends packets to endpoints.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Senders {
    /// XDP alone.
    Xdp,
    /// XDP where it fits, and TC, which sends over any device.
    Any,
}

/// Answers about routes, good until routes, links or addresses change.
#[derive(Debug, Default)]
pub struct Routes {
    answers: BTreeMap<IpAddr, RouteMessage>,
    /// Neighbours that packets went to, as of the last look.
    hops: HashSet<IpAddr>,
}

impl Routes {
    /// Asks anew from now on.
    pub fn forget(&mut self) {
        self.answers.clear();
    }

    /// Asks anew from now on for addresses of a network. Whether there are any.
    pub fn forget_in(&mut self, network: &Network) -> bool {
        let from_first = self.answers.range(network.first()..).map(|(addr, _)| *addr);
        let concerned: Vec<IpAddr> = from_first.take_while(|addr| network.contains(*addr)).collect();
        for addr in &concerned {
            self.answers.remove(addr);
        }
        !concerned.is_empty()
    }

    /// Whether packets went to this neighbour at the last look.
    pub fn is_hop(&self, addr: IpAddr) -> bool {
        self.hops.contains(&addr)
    }
}

/// A neighbour on a link.
#[derive(Clone, Copy, Debug)]
struct Neighbour {
    mac: [u8; 6],
    /// Nobody has confirmed the address for a while.
    is_stale: bool,
}

/// A netlink socket for questions and changes.
#[derive(Clone, Debug)]
pub struct Netlink {
    handle: Handle,
    /// For routes: the kernel looks at what is asked for, and tells no others.
    strict: Handle,
}

impl Netlink {
    /// Opens a socket, and one that hears of changes. Both belong to the network namespace of the calling thread.
    ///
    /// # Errors
    /// When the kernel refuses a socket.
    pub fn open(tasks: &Tasks) -> Result<(Self, Changes), Error> {
        let groups = [
            MulticastGroup::Link,
            MulticastGroup::Neigh,
            MulticastGroup::Ipv4Ifaddr,
            MulticastGroup::Ipv6Ifaddr,
            MulticastGroup::Ipv4Route,
            MulticastGroup::Ipv6Route,
            MulticastGroup::Ipv4Rule,
            MulticastGroup::Ipv6Rule,
        ];
        let (connection, handle, _) = rtnetlink::new_connection().map_err(Error::Open)?;
        tasks.spawn("netlink", connection);
        let (connection, strict, _) = rtnetlink::new_connection_with_strict_check().map_err(Error::Open)?;
        tasks.spawn("netlink-routes", connection);
        let (connection, _, messages) = rtnetlink::new_multicast_connection(&groups).map_err(Error::Open)?;
        tasks.spawn("netlink-changes", connection);
        Ok((Self { handle, strict }, Changes::of(messages)))
    }

    /// Every interface.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn links(&self) -> Result<Vec<Link>, Error> {
        let links: Vec<LinkMessage> =
            self.handle.link().get().execute().try_collect().await.map_err(refused("list interfaces"))?;
        Ok(links.iter().map(link::read).collect())
    }

    /// Interfaces that carry a default route, or a part of one.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn uplinks(&self) -> Result<BTreeSet<u32>, Error> {
        let mut found = BTreeSet::new();
        let questions = [
            RouteMessageBuilder::<std::net::Ipv4Addr>::new().build(),
            RouteMessageBuilder::<std::net::Ipv6Addr>::new().build(),
        ];
        for question in questions {
            let mut routes = Box::pin(self.handle.route().get(question).execute());
            while let Some(route) = routes.try_next().await.map_err(refused("list routes"))? {
                let is_default =
                    route.header.destination_prefix_length == 0 && route.header.kind == RouteType::Unicast;
                if is_default {
                    found.extend(interfaces(&route));
                }
            }
        }
        Ok(found)
    }

    /// How this node reaches each address. An address without a route has the default way: unknown.
    ///
    /// # Errors
    /// When the kernel refuses to list interfaces or neighbours.
    pub async fn ways(
        &self,
        addrs: &BTreeSet<IpAddr>,
        routes: &mut Routes,
        senders: Senders,
    ) -> Result<HashMap<IpAddr, Way>, Error> {
        let links: BTreeMap<u32, Link> =
            self.links().await?.into_iter().map(|link| (link.index, link)).collect();
        let neighbours = self.neighbours().await?;
        routes.answers.retain(|addr, _| addrs.contains(addr));
        let unknown: Vec<IpAddr> =
            addrs.iter().filter(|addr| !routes.answers.contains_key(addr)).copied().collect();
        let ask = |addr| async move { Some((addr, self.route(addr).await?)) };
        let mut asked = stream::iter(unknown).map(ask).buffer_unordered(limits::ROUTES_ASKED_AT_ONCE);
        while let Some(answer) = asked.next().await {
            routes.answers.extend(answer);
        }
        routes.hops = routes.answers.iter().map(|(addr, route)| gateway(route).unwrap_or(*addr)).collect();
        let mut ways = HashMap::new();
        for addr in addrs {
            let way = match routes.answers.get(addr) {
                Some(route) => self.way(*addr, route, &links, &neighbours, senders).await,
                None => Way::default(),
            };
            ways.insert(*addr, way);
        }
        Ok(ways)
    }

    async fn way(
        &self,
        addr: IpAddr,
        route: &RouteMessage,
        links: &BTreeMap<u32, Link>,
        neighbours: &HashMap<(u32, IpAddr), Neighbour>,
        senders: Senders,
    ) -> Way {
        if route.header.kind == RouteType::Local {
            return Way { is_local: true, ..Way::default() };
        }
        if is_refusal(route.header.kind) {
            return Way::default();
        }
        let source = attribute(route, |attribute| {
            if let RouteAttribute::PrefSource(source) = attribute { ip(source) } else { None }
        });
        let gateway = gateway(route);
        let interface = oif(route).unwrap_or(0);
        let mut way = Way {
            is_local: false,
            is_on_link: gateway.is_none(),
            interface,
            source,
            next_hop: NextHop::UNKNOWN,
            mtu: 0,
        };
        let Some(link) = links.get(&interface) else { return way };
        way.mtu = link.narrower(route_mtu(route));
        let hop = gateway.unwrap_or(addr);
        let known = neighbours.get(&(link.index, hop));
        // Where XDP cannot hand its frames over, the kernel's routing table may know a device below that takes them.
        let is_usable = link.kind.may_take_frames() || senders == Senders::Any;
        if let (Some(known), Some(own_mac), true) = (known, link.mac, is_usable) {
            way.next_hop = NextHop { interface: link.index, mac: known.mac, own_mac };
        }
        // Balanced packets do not pass the stack, so it never doubts an address by itself: an endpoint that came back
        // with another one would stay lost. Whoever is stale is asked again; the answer comes as a change.
        if known.is_none_or(|known| known.is_stale) {
            self.resolve(link.index, hop).await;
        }
        way
    }

    async fn route(&self, addr: IpAddr) -> Option<RouteMessage> {
        let question = match addr {
            IpAddr::V4(addr) => {
                RouteMessageBuilder::<std::net::Ipv4Addr>::new().destination_prefix(addr, 32).build()
            }
            IpAddr::V6(addr) => {
                RouteMessageBuilder::<std::net::Ipv6Addr>::new().destination_prefix(addr, 128).build()
            }
        };
        let mut question = question;
        // A question about the way carries none of the properties of a route.
        question.header.table = 0;
        question.header.protocol = RouteProtocol::Unspec;
        question.header.scope = RouteScope::Universe;
        question.header.kind = RouteType::Unspec;
        Box::pin(self.handle.route().get(question).execute()).try_next().await.ok().flatten()
    }

    /// Asks the kernel to find a neighbour's link-layer address; the answer comes as a change.
    async fn resolve(&self, interface: u32, addr: IpAddr) {
        let request = self
            .handle
            .neighbours()
            .add(interface, addr)
            .state(NeighbourState::None)
            .flags(NeighbourFlags::Use);
        if let Err(error) = request.replace().execute().await {
            tracing::debug!(%addr, %error, "cannot ask for a neighbour");
        }
    }

    async fn neighbours(&self) -> Result<HashMap<(u32, IpAddr), Neighbour>, Error> {
        let mut found = HashMap::new();
        let mut neighbours = Box::pin(self.handle.neighbours().get().execute());
        while let Some(message) = neighbours.try_next().await.map_err(refused("list neighbours"))? {
            if let Some((addr, known)) = neighbour(&message) {
                found.insert((message.header.ifindex, addr), known);
            }
        }
        Ok(found)
    }

    /// Makes addresses local that are not, and takes back what this agent made local and nobody wants any more.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn set_local(&self, wanted: &BTreeSet<IpAddr>) -> Result<(), Error> {
        let mine = self.own_routes().await?;
        for addr in wanted.iter().filter(|addr| !mine.contains_key(addr)) {
            let is_local = self.route(*addr).await.is_some_and(|route| route.header.kind == RouteType::Local);
            if is_local {
                continue;
            }
            let what = format!("make {addr} local");
            self.handle
                .route()
                .add(self.local_route(*addr).await?)
                .execute()
                .await
                .map_err(refused(&what))?;
            tracing::info!(%addr, "added a local route for a virtual address");
        }
        for (addr, route) in mine {
            if !wanted.contains(&addr) {
                let what = format!("remove the local route of {addr}");
                self.handle.route().del(route).execute().await.map_err(refused(&what))?;
                tracing::info!(%addr, "removed the local route of a virtual address");
            }
        }
        Ok(())
    }

    /// Addresses that this agent, or one before it, made local.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn local_addrs(&self) -> Result<Vec<IpAddr>, Error> {
        Ok(self.own_routes().await?.into_keys().collect())
    }

    async fn local_route(&self, addr: IpAddr) -> Result<RouteMessage, Error> {
        let loopback = self
            .links()
            .await?
            .into_iter()
            .find(|link| link.kind == LinkKind::Loopback)
            .map_or(1, |link| link.index);
        let protocol = RouteProtocol::from(ROUTE_PROTOCOL);
        Ok(match addr {
            IpAddr::V4(addr) => RouteMessageBuilder::<std::net::Ipv4Addr>::new()
                .destination_prefix(addr, 32)
                .output_interface(loopback)
                .table_id(LOCAL_TABLE.into())
                .kind(RouteType::Local)
                .scope(RouteScope::Host)
                .protocol(protocol)
                .build(),
            IpAddr::V6(addr) => RouteMessageBuilder::<std::net::Ipv6Addr>::new()
                .destination_prefix(addr, 128)
                .output_interface(loopback)
                .table_id(LOCAL_TABLE.into())
                .kind(RouteType::Local)
                .protocol(protocol)
                .build(),
        })
    }

    async fn own_routes(&self) -> Result<BTreeMap<IpAddr, RouteMessage>, Error> {
        let mut found = BTreeMap::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut question = RouteMessage::default();
            question.header.address_family = family;
            question.header.table = LOCAL_TABLE;
            question.header.protocol = RouteProtocol::from(ROUTE_PROTOCOL);
            let mut routes = Box::pin(self.strict.route().get(question).execute());
            while let Some(route) = next(&mut routes).await? {
                let destination = attribute(&route, |attribute| {
                    if let RouteAttribute::Destination(addr) = attribute { ip(addr) } else { None }
                });
                if route.header.protocol == RouteProtocol::from(ROUTE_PROTOCOL)
                    && let Some(addr) = destination
                {
                    found.insert(addr, route);
                }
            }
        }
        Ok(found)
    }
}

/// The next of listed routes. A table that nothing was ever put in is not there, and no fault.
async fn next(
    routes: &mut (impl Stream<Item = Result<RouteMessage, rtnetlink::Error>> + Unpin),
) -> Result<Option<RouteMessage>, Error> {
    match routes.try_next().await {
        Err(rtnetlink::Error::NetlinkError(error)) if error.to_io().kind() == io::ErrorKind::NotFound => {
            Ok(None)
        }
        other => other.map_err(refused("list routes")),
    }
}

fn refused(what: &str) -> impl FnOnce(rtnetlink::Error) -> Error {
    let what = what.to_owned();
    move |source| Error::Request { what, source: Box::new(source) }
}

/// A neighbour's link-layer address, when it has one.
#[expect(clippy::wildcard_enum_match_arm, reason = "of many attributes one matters here")]
fn neighbour(message: &NeighbourMessage) -> Option<(IpAddr, Neighbour)> {
    let state = message.header.state;
    if matches!(state, NeighbourState::Failed | NeighbourState::Incomplete | NeighbourState::None) {
        return None;
    }
    let mac = message.attributes.iter().find_map(|attribute| match attribute {
        NeighbourAttribute::LinkLayerAddress(bytes) => <[u8; 6]>::try_from(bytes.as_slice()).ok(),
        _ => None,
    });
    let addr = change::destination(message)?;
    Some((addr, Neighbour { mac: mac?, is_stale: state == NeighbourState::Stale }))
}
