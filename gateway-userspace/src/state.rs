//! The state: everything compiled and being served, immutable, and its publication by one swap.

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use arc_swap::ArcSwap;
use foldhash::fast::RandomState;
use gateway_common::{addr::Protocol, flow::FlowKey};
use http::HeaderName;

use crate::{
    balance::{self, Balancer},
    field,
    filter::{BackendFilters, Filters},
    guard::{Bounds, Lists, Refused, Sources},
    metrics::shard::RouteStats,
    name::{ListenerName, RouteName, ServiceName},
    net::connect,
    network::Network,
    observer::Watched,
    pool::registry::Pools,
    prober::Probe,
    retry,
    route::{Table, host::Hosts},
    target,
    tls::{accept::Acceptor, fetched::Fetched, ticket::Scope},
    tunnel::Tunnels,
    upstream::Upstream,
};

/// Transport of a bind.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Transport {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl Transport {
    /// The word of logs and metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }
}

/// What listeners share a socket by: virtual address, port and transport.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct BindKey {
    /// Virtual address and port.
    pub addr: SocketAddr,
    /// Transport.
    pub transport: Transport,
}

impl fmt::Display for BindKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.addr, self.transport.as_str())
    }
}

/// Until when a certificate is good, in seconds since 1970.
#[derive(Clone, Debug)]
pub struct Expiry {
    /// By itself.
    pub certificate_s: i64,
    /// By what its authority says about it; none when clients are told nothing.
    pub staple_s: Option<i64>,
    /// What the agent asks about it by itself, if it does.
    pub fetched: Option<Arc<Fetched>>,
}

/// Everything that is served.
#[derive(Debug, Default)]
pub struct State {
    /// Generation of the snapshot it was compiled from.
    pub generation: u64,
    /// What is served at each address.
    pub binds: HashMap<BindKey, Bind, RandomState>,
    /// Who has to say by PROXY protocol for whom it connects; addresses where nobody has to are not there.
    pub proxies: HashMap<BindKey, Vec<Network>>,
    /// When certificates expire, by listener and origin.
    pub expiries: BTreeMap<(ListenerName, String), Expiry>,
    /// When certificates that the agent shows to endpoints expire, by service and origin, in seconds since 1970.
    pub endpoint_expiries: BTreeMap<(ServiceName, String), i64>,
    /// Services by name.
    pub services: HashMap<ServiceName, Arc<Upstream>>,
    /// Header fields that say who a client is, on any address: what clients send under these names is removed.
    pub identity_headers: Arc<[HeaderName]>,
    /// Endpoints to check, one entry each.
    pub probes: Vec<Probe>,
    /// Who may come, and how many flows may begin; empty where the kernel programs decide it.
    pub guards: Guards,
    /// Services whose endpoints are judged by clients' attempts.
    pub watched: Vec<Watched>,
}

impl State {
    /// Whether the connections that an address let in under the state `before` would be let in alike now.
    pub fn admits_as(&self, before: &Self, bind: &BindKey) -> bool {
        match (before.binds.get(bind), self.binds.get(bind)) {
            (Some(Bind::Http(before)), Some(Bind::Http(now))) => before.admission() == now.admission(),
            (Some(Bind::Http(_)), _) | (Some(_), None) => false,
            // What is forwarded stays with its endpoint, whatever is served at the address.
            (Some(Bind::Balanced(_) | Bind::Passthrough(_)), Some(_)) | (None, _) => true,
        }
    }
}

/// Who may come, and how many flows may begin.
#[derive(Debug, Default)]
pub struct Guards {
    /// Networks.
    pub lists: Lists,
    /// Bounds on new flows; addresses without any are not there.
    pub bounds: HashMap<BindKey, Bounds>,
}

impl Guards {
    /// Whether a connection may not begin, and why.
    pub fn refuse(&self, bind: BindKey, ip: IpAddr, sources: &Sources) -> Option<Refused> {
        self.lists.refuses(ip).or_else(|| self.limits(bind, ip, sources))
    }

    /// Whether a flow of somebody who may come may not begin now, and why.
    pub fn limits(&self, bind: BindKey, ip: IpAddr, sources: &Sources) -> Option<Refused> {
        sources.refuse(ip, self.bounds.get(&bind)?)
    }
}

/// What is served at one address.
#[derive(Debug)]
pub enum Bind {
    /// Requests.
    Http(Box<HttpBind>),
    /// Connections or flows, by packets in the kernel or by bytes here.
    Balanced(Arc<Balanced>),
    /// TLS that ends at the endpoint, by the name that clients ask for.
    Passthrough(Box<Hosts<Hosts<Arc<Balanced>>>>),
}

impl Bind {
    /// Whether a client has to speak before anybody else does.
    pub const fn hears_client_first(&self) -> bool {
        match self {
            Self::Http(_) | Self::Passthrough(_) => true,
            Self::Balanced(_) => false,
        }
    }

    /// Whether the agent must accept connections there in every mode.
    pub fn is_by_agent(&self) -> bool {
        match self {
            Self::Http(_) | Self::Passthrough(_) => true,
            Self::Balanced(balanced) => balanced.is_by_agent,
        }
    }
}

/// Requests at one address.
#[derive(Debug)]
pub struct HttpBind {
    /// Accepts TLS; none in plain text.
    pub tls: Option<Acceptor>,
    /// The header field that says who a client is; none where clients have no certificates.
    pub identity_header: Option<HeaderName>,
    /// Listeners by host name: the most specific one alone takes a request.
    pub listeners: Hosts<HttpListener>,
    /// Counts requests for host names of no listener.
    pub unmatched: Arc<RouteStats>,
}

impl HttpBind {
    /// What clients have to prove before they are let in; none in plain text.
    pub fn admission(&self) -> Option<Scope> {
        self.tls.as_ref().map(Acceptor::scope)
    }
}

/// Routes of one listener.
#[derive(Debug)]
pub struct HttpListener {
    /// Its name.
    pub name: ListenerName,
    /// What is done with paths that applications read differently.
    pub paths: target::Rules,
    /// What becomes of fields with an underscore in their names.
    pub underscores: field::Underscores,
    /// Proxies in front of this one whose word about the client is taken.
    pub trusted_hops: usize,
    /// Its routes.
    pub table: Table<Matched>,
    /// Counts requests that no route takes.
    pub unmatched: Arc<RouteStats>,
}

/// One match.
#[derive(Clone, Debug)]
pub struct Matched {
    /// What follows.
    pub rule: Arc<Rule>,
    /// Length of the prefix that matches, without a slash at its end; zero where no prefix is asked for.
    pub prefix_bytes: usize,
}

/// What follows a match.
#[derive(Debug)]
pub struct Rule {
    /// The route it belongs to.
    pub route: RouteName,
    /// Where requests go.
    pub backends: Backends,
    /// What is done besides.
    pub filters: Option<Arc<Filters>>,
    /// Who gets copies.
    pub mirrors: Vec<Mirror>,
    /// Bound on the whole exchange.
    pub request_timeout: Option<Duration>,
    /// Bound on each try.
    pub backend_timeout: Option<Duration>,
    /// How long an endpoint may be silent in the middle of a response.
    pub idle_timeout: Option<Duration>,
    /// When requests are sent again.
    pub retry: retry::Policy,
    /// What clients may speak instead of HTTP.
    pub tunnels: Tunnels,
    /// Counts its requests.
    pub stats: Arc<RouteStats>,
}

/// A service that gets copies of requests.
#[derive(Debug)]
pub struct Mirror {
    /// The service.
    pub service: Arc<Upstream>,
    /// Share of the requests that are copied.
    pub percent: u32,
}

/// A service, and what is done on the way to it alone.
#[derive(Clone, Debug)]
pub struct Backend {
    /// The service.
    pub service: Arc<Upstream>,
    /// What is done; none leaves requests and responses as they are.
    pub filters: Option<Arc<BackendFilters>>,
}

/// Weighted services.
#[derive(Debug, Default)]
pub struct Backends {
    /// Upper ends of the shares, ascending; `None` is a service that does not exist.
    ends: Vec<(u64, Option<Backend>)>,
}

impl Backends {
    /// From weights and services.
    pub fn new(backends: impl IntoIterator<Item = (u32, Option<Backend>)>) -> Self {
        let mut end = 0;
        let ends = backends
            .into_iter()
            .filter(|(weight, _)| *weight > 0)
            .map(|(weight, backend)| {
                end += u64::from(weight);
                (end, backend)
            })
            .collect();
        Self { ends }
    }

    /// Weights and services, in the order of the route; without those that get nothing.
    pub fn shares(&self) -> impl Iterator<Item = (u64, Option<&Arc<Upstream>>)> {
        let mut begin = 0;
        self.ends.iter().map(move |(end, backend)| {
            let weight = end - begin;
            begin = *end;
            (weight, backend.as_ref().map(|backend| &backend.service))
        })
    }

    /// Draws one by weight; none when the share of a missing service was drawn, or there are no shares.
    pub fn draw(&self) -> Option<&Backend> {
        if let [(_, only)] = self.ends.as_slice() {
            return only.as_ref();
        }
        let (total, _) = self.ends.last()?;
        let drawn = fastrand::u64(..*total);
        let idx = self.ends.partition_point(|(end, _)| *end <= drawn);
        self.ends.get(idx)?.1.as_ref()
    }
}

/// Connections or flows of one address.
#[derive(Debug)]
pub struct Balanced {
    /// The listener.
    pub listener: ListenerName,
    /// Whether the agent forwards its bytes also where the kernel could forward its packets.
    pub is_by_agent: bool,
    /// Whether a client's connections go to one endpoint.
    pub by_client: bool,
    /// Picks as the kernel does.
    pub balancer: Balancer,
    /// By the index of the balancer's members: whether the endpoint is told by PROXY protocol who the client is.
    pub announced: Box<[bool]>,
    /// Time without a byte after which a connection ends.
    pub idle_timeout: Duration,
    /// Bound on opening a connection.
    pub connect_timeout: Duration,
    /// How sockets towards endpoints are made.
    pub options: connect::Options,
    /// Where connections to endpoints are counted.
    pub pools: Arc<Pools>,
}

impl Balanced {
    /// What an endpoint is picked by, as the kernel does.
    pub fn flow(&self, peer: SocketAddr, local: SocketAddr, protocol: Protocol) -> FlowKey {
        if self.by_client { balance::client(peer, local) } else { balance::flow(peer, local, protocol) }
    }
}

/// The one state that is served now.
#[derive(Debug, Default)]
pub struct Published(ArcSwap<State>);

impl Published {
    /// Begins with `state`.
    pub fn new(state: State) -> Self {
        Self(ArcSwap::from_pointee(state))
    }

    /// The state as of now. Whoever holds it sees no later change.
    pub fn load(&self) -> Arc<State> {
        self.0.load_full()
    }

    /// Replaces it. What began with the old one ends with it.
    pub fn publish(&self, state: Arc<State>) {
        self.0.store(state);
    }
}
