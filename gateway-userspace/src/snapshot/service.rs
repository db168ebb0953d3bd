//! Wanted services: groups of endpoints, how to speak to them and how to know that they are alive.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use crate::{name::ServiceName, retry, snapshot::listener::Certificate};

/// A named group of endpoints.
#[derive(Clone, Debug)]
pub struct Service {
    /// Unique name.
    pub name: ServiceName,
    /// Its endpoints; addresses are unique.
    pub endpoints: Vec<Endpoint>,
    /// What the endpoints speak when requests are sent to them.
    pub protocol: UpstreamProtocol,
    /// How connections for requests are secured; none leaves them in plain text.
    pub tls: Option<EndpointTls>,
    /// How an endpoint is picked for a request. Packets are always balanced by Maglev.
    pub balance: Policy,
    /// How the agent knows that an endpoint is alive; none trusts it always.
    pub health: Option<HealthCheck>,
    /// When endpoints are taken out because clients do not get through to them; none never does.
    pub passive_health: Option<PassiveHealth>,
    /// Bound on opening a connection, TLS included.
    pub connect_timeout: Duration,
    /// How many retries it bears.
    pub retries: retry::Limits,
    /// Whether endpoints are told by PROXY protocol, version 2, who the client is; not where packets are forwarded.
    pub is_announced: bool,
}

/// One wanted endpoint.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Endpoint {
    /// Address and port.
    pub addr: SocketAddr,
    /// Relative share of new flows; zero drains.
    pub weight: u32,
}

/// What endpoints speak.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum UpstreamProtocol {
    /// HTTP/1.1.
    #[default]
    Http1,
    /// HTTP/2 by prior knowledge.
    H2c,
    /// HTTP/2 over TLS.
    H2,
}

/// TLS towards endpoints.
#[derive(Clone, Debug)]
pub struct EndpointTls {
    /// The host name or address that certificates of endpoints have to be good for. A name is sent to endpoints, too.
    pub server_name: String,
    /// Whom to trust.
    pub trust: Trust,
    /// Who the agent is towards endpoints; none says nothing.
    pub certificate: Option<Certificate>,
}

/// Authorities that a certificate may lead to.
#[derive(Clone, Debug)]
pub struct Trust {
    /// Where they came from, for messages.
    pub origin: String,
    /// As PEM; one copy for all services that trust the same.
    pub pem: Arc<[u8]>,
    /// Whether they are the system's, some of which may be of no use.
    pub is_of_system: bool,
}

/// How an endpoint is picked for a request.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Policy {
    /// In turn, by weight.
    #[default]
    RoundRobin,
    /// The less loaded of two drawn by weight.
    LeastRequest,
    /// By the client's address and port, with the table that the kernel uses.
    Maglev,
}

/// An active health check.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct HealthCheck {
    /// What is done.
    pub kind: CheckKind,
    /// From the start of one check to the start of the next.
    pub interval: Duration,
    /// Bound on one check; below the interval.
    pub timeout: Duration,
    /// Silent or wrong checks in a row that take an endpoint down. A refused or reset connection does at once.
    pub unhealthy_threshold: u32,
    /// Passed checks in a row that bring it back.
    pub healthy_threshold: u32,
}

/// Terms on which clients' own attempts to connect decide about an endpoint.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct PassiveHealth {
    /// Time that attempts count.
    pub window: Duration,
    /// Attempts within it below which nothing is judged.
    pub minimum_attempts: u32,
    /// Failures in percent of the attempts that take an endpoint out.
    pub failure_percent: u32,
    /// How long it is out the first time.
    pub out_for: Duration,
    /// How long it is out at most.
    pub out_for_at_most: Duration,
    /// Endpoints of the service that may be without new flows, in percent.
    pub share_percent: u32,
}

/// What a health check does.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum CheckKind {
    /// A TCP connection is opened and closed.
    Tcp,
    /// A GET request over HTTP/1.1 answers with one of the statuses.
    Http {
        /// Origin-form path.
        path: String,
        /// Value of `host`; none sends the endpoint's address.
        host: Option<String>,
        /// Accepted statuses, inclusive.
        statuses: std::ops::RangeInclusive<u16>,
    },
}

impl HealthCheck {
    /// Default interval.
    pub const INTERVAL: Duration = Duration::from_secs(1);
    /// Default timeout.
    pub const TIMEOUT: Duration = Duration::from_millis(500);
    /// Default threshold for taking an endpoint down.
    pub const UNHEALTHY: u32 = 2;
    /// Default threshold for bringing it back.
    pub const HEALTHY: u32 = 1;
}
