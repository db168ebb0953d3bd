//! A draft: what a source read, with the place of everything, before it is known to make sense together.
//!
//! What a source could not read is absent here and has been reported by it; the checks go on with the rest, so that
//! all faults come at once.

use std::{net::SocketAddr, ops::RangeInclusive, time::Duration};

use gateway_common::service::Track;

use crate::{
    field,
    filter::Filters,
    name::{ListenerName, RouteName, ServiceName},
    network::Network,
    place::{Located, Place},
    retry,
    secret::Secret,
    snapshot::{
        listener::{Certificate, ClientCertificates, Forwarding, Hostname, Protocol},
        route::{Backend, Match, Mirror},
        service::{Endpoint, EndpointTls, HealthCheck, PassiveHealth, Policy, UpstreamProtocol},
        sources::{DraftNewFlows, DraftSources},
    },
    target,
    tunnel::Tunnels,
};

/// Everything a source wants.
#[derive(Clone, Debug, Default)]
pub struct Draft {
    /// Listeners.
    pub listeners: Vec<DraftListener>,
    /// Routes.
    pub routes: Vec<DraftRoute>,
    /// Services.
    pub services: Vec<DraftService>,
    /// Who may send packets.
    pub sources: DraftSources,
}

/// A listener that may lack what could not be read.
#[derive(Clone, Debug)]
pub struct DraftListener {
    /// The whole of it.
    pub place: Place,
    /// See [`Listener`](crate::snapshot::listener::Listener); so are the others.
    pub name: Option<Located<ListenerName>>,
    /// The place is that of the address.
    pub addr: Option<Located<SocketAddr>>,
    /// Protocol.
    pub protocol: Option<Located<Protocol>>,
    /// Host name, if one is written.
    pub hostname: Option<Located<Hostname>>,
    /// TLS, if it is written.
    pub tls: Option<Located<DraftTls>>,
    /// Forwarding, if it is written.
    pub forwarding: Option<Located<Forwarding>>,
    /// What is remembered about a flow, if it is written.
    pub track: Option<Located<Track>>,
    /// How long a client keeps its endpoint, if it is written.
    pub affinity: Option<Located<Duration>>,
    /// Whether an open connection is reset whose endpoint is down, if it is written.
    pub resets: Option<Located<bool>>,
    /// Several ports instead of one, if they are written.
    pub ports: Option<Located<Vec<RangeInclusive<u16>>>>,
    /// Who speaks PROXY protocol, if it is written.
    pub proxies: Option<Located<Vec<Network>>>,
    /// Time without a byte, if it is written.
    pub idle_timeout: Option<Located<Duration>>,
    /// Bounds on new flows, if they are written.
    pub new_flows: Option<DraftNewFlows>,
    /// Connections that may begin in a second before they are answered with cookies, if it is written.
    pub syn_cookies: Option<Located<Option<u32>>>,
    /// Whether it fails open, if it is written.
    pub fails_open: Option<Located<bool>>,
    /// What is done with paths, if it is written.
    pub paths: Option<Located<target::Rules>>,
    /// What becomes of fields with an underscore in their names, if it is written.
    pub underscores: Option<Located<field::Underscores>>,
    /// Trusted proxies in front, if they are written.
    pub trusted_hops: Option<Located<usize>>,
}

/// TLS of a listener.
#[derive(Clone, Debug, Default)]
pub struct DraftTls {
    /// Certificates.
    pub certificates: Vec<Certificate>,
    /// Keys of session tickets.
    pub ticket_keys: Vec<Secret>,
    /// Certificates that clients need.
    pub clients: Option<ClientCertificates>,
}

/// A route that may lack what could not be read.
#[derive(Clone, Debug)]
pub struct DraftRoute {
    /// The whole of it.
    pub place: Place,
    /// See [`Route`](crate::snapshot::route::Route); so are the others.
    pub name: Option<Located<RouteName>>,
    /// Listeners it refers to.
    pub listeners: Vec<Located<ListenerName>>,
    /// Host names, if any are written.
    pub hostnames: Vec<Located<Hostname>>,
    /// Rules.
    pub rules: Vec<DraftRule>,
}

/// A rule.
#[derive(Clone, Debug)]
pub struct DraftRule {
    /// The whole of it.
    pub place: Place,
    /// Matches, if any are written.
    pub matches: Option<Located<Vec<Match>>>,
    /// Backends.
    pub backends: Vec<Located<Backend>>,
    /// Whether backends or an answer are written, even if they could not be read.
    pub has_effect: bool,
    /// What is done besides, if anything is written.
    pub filters: Option<Located<Filters>>,
    /// Mirrors.
    pub mirrors: Vec<Located<Mirror>>,
    /// Bound on the whole exchange; zero is none.
    pub request_timeout: Option<Located<Duration>>,
    /// Bound on each try; zero is none.
    pub backend_timeout: Option<Located<Duration>>,
    /// How long an endpoint may be silent in the middle of a response; zero is for ever.
    pub idle_timeout: Option<Located<Duration>>,
    /// When requests are sent again, if it is written.
    pub retry: Option<Located<retry::Policy>>,
    /// What clients may speak instead of HTTP, if it is written.
    pub tunnels: Option<Located<Tunnels>>,
}

/// A service that may lack what could not be read.
#[derive(Clone, Debug)]
pub struct DraftService {
    /// The whole of it.
    pub place: Place,
    /// See [`Service`](crate::snapshot::service::Service); so are the others.
    pub name: Option<Located<ServiceName>>,
    /// Endpoints.
    pub endpoints: Vec<Located<Endpoint>>,
    /// Protocol.
    pub protocol: Option<Located<UpstreamProtocol>>,
    /// TLS towards endpoints, if it is written, even if it could not be read.
    pub tls: Option<Located<Option<EndpointTls>>>,
    /// Policy.
    pub balance: Option<Policy>,
    /// Health check, if one is written; its place is that of the timeout.
    pub health: Option<Located<HealthCheck>>,
    /// When clients' attempts decide about endpoints, if it is written.
    pub passive_health: Option<Located<PassiveHealth>>,
    /// Bound on opening a connection.
    pub connect_timeout: Option<Duration>,
    /// How many retries it bears.
    pub retries: Option<retry::Limits>,
    /// Whether endpoints are told who the client is, if it is written.
    pub announced: Option<Located<()>>,
}

/// Something that makes no sense together with the rest.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Problem {
    /// Where.
    pub place: Place,
    /// Whether it keeps the snapshot from being made.
    pub severity: Severity,
    /// What is wrong.
    pub message: String,
    /// What to write instead.
    pub remedy: String,
}

/// Whether a problem keeps the snapshot from being made.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Severity {
    /// It does.
    Fault,
    /// It does not, but somebody should look.
    Warning,
}
