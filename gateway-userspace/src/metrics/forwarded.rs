//! Metrics of connections that are forwarded byte by byte, and of those that others forward to us.

use std::net::SocketAddr;

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family},
    registry::Registry,
};

/// Counters that are written once per connection.
#[derive(Clone, Debug, Default)]
pub struct Forwarded {
    connections: Family<ForwardLabels, Counter>,
    bytes: Family<ForwardBytesLabels, Counter>,
    headers: Family<AddressLabels, Counter>,
}

impl Forwarded {
    pub(super) fn register(&self, registry: &mut Registry) {
        registry.register(
            "forwarded_connections",
            "Connections that were forwarded byte by byte, by how they ended",
            self.connections.clone(),
        );
        registry.register(
            "forwarded_bytes",
            "Bytes of connections that were forwarded byte by byte, by who sent them; counted when they end",
            self.bytes.clone(),
        );
        registry.register(
            "proxy_protocol_failures",
            "Connections that should have begun with a PROXY protocol header and did not",
            self.headers.clone(),
        );
    }

    /// Counts a connection.
    pub fn ended(&self, addr: SocketAddr, outcome: ForwardOutcome) {
        let labels = ForwardLabels { address: addr.to_string(), outcome: outcome.as_str() };
        self.connections.get_or_create(&labels).inc();
    }

    /// Counts bytes from the client and from the endpoint.
    pub fn moved(&self, addr: SocketAddr, counts: [u64; 2]) {
        for (from, count) in SENDERS.into_iter().zip(counts) {
            let labels = ForwardBytesLabels { address: addr.to_string(), from };
            self.bytes.get_or_create(&labels).inc_by(count);
        }
    }

    /// Counts a connection that should have begun with a PROXY protocol header and did not.
    pub fn no_header(&self, addr: SocketAddr) {
        self.headers.get_or_create(&AddressLabels { address: addr.to_string() }).inc();
    }

    pub(super) fn forget(&self, addr: SocketAddr) {
        for outcome in ForwardOutcome::ALL {
            let labels = ForwardLabels { address: addr.to_string(), outcome: outcome.as_str() };
            self.connections.remove(&labels);
        }
        self.headers.remove(&AddressLabels { address: addr.to_string() });
        for from in SENDERS {
            self.bytes.remove(&ForwardBytesLabels { address: addr.to_string(), from });
        }
    }
}

/// How a forwarded connection ended; the closed set behind the label `outcome`.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum ForwardOutcome {
    /// By both sides.
    Ended,
    /// One side broke off, or its endpoint went down.
    Broken,
    /// Nothing moved for too long.
    Idle,
    /// No endpoint could be reached.
    NoEndpoint,
    /// The connections to endpoints that this node may have were all in use.
    NoDescriptor,
    /// The name that the client asked for has no route.
    NoRoute,
    /// No `ClientHello` arrived, or none that could be read.
    NoHello,
}

impl ForwardOutcome {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::Ended,
        Self::Broken,
        Self::Idle,
        Self::NoEndpoint,
        Self::NoDescriptor,
        Self::NoRoute,
        Self::NoHello,
    ];

    /// The value of the label.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ended => "ended",
            Self::Broken => "broken",
            Self::Idle => "idle",
            Self::NoEndpoint => "no_endpoint",
            Self::NoDescriptor => "no_descriptor",
            Self::NoRoute => "no_route",
            Self::NoHello => "no_hello",
        }
    }
}

/// Label of an address.
#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct AddressLabels {
    address: String,
}

/// Labels of forwarded connections.
#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
pub struct ForwardLabels {
    /// Virtual address and port.
    pub address: String,
    /// How they ended.
    pub outcome: &'static str,
}

/// Labels of forwarded bytes.
#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
pub struct ForwardBytesLabels {
    /// Virtual address and port.
    pub address: String,
    /// Who sent them: `client` or `endpoint`.
    pub from: &'static str,
}

/// Both sides of a forwarded connection.
const SENDERS: [&str; 2] = ["client", "endpoint"];
