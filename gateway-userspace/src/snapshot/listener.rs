//! Wanted listeners: virtual addresses and what happens there.

use std::{fmt, net::SocketAddr, ops::RangeInclusive, time::Duration};

use gateway_common::service::Track;

use crate::{
    field, name::ListenerName, network::Network, secret::Secret, snapshot::sources::NewFlows, target,
};

/// An address we accept on, and what to do there.
#[derive(Clone, Debug)]
pub struct Listener {
    /// Unique name.
    pub name: ListenerName,
    /// Virtual address and port; where there are [`Packets::ports`], the first of them, or zero for all.
    pub addr: SocketAddr,
    /// What is spoken there.
    pub protocol: Protocol,
    /// Serves only requests for these names; none serves all.
    pub hostname: Option<Hostname>,
    /// Certificates of an `Https` listener, one at least; empty otherwise.
    pub certificates: Vec<Certificate>,
    /// Keys that session tickets are made with, the first one for new tickets, 32 bytes each; empty uses those of the process.
    /// The same for all listeners of an address and port; so is the next.
    pub ticket_keys: Vec<Secret>,
    /// Certificates that clients need; none asks for no certificate.
    pub clients: Option<ClientCertificates>,
    /// How a `Tcp` or `Udp` listener reaches the endpoint.
    pub forwarding: Forwarding,
    /// The rest of what a listener says whose packets are balanced.
    pub packets: Packets,
    /// Who has to say by PROXY protocol for whom it connects. The same for all listeners of an address and port.
    pub proxies: Vec<Network>,
    /// Time without a byte after which a connection that the agent forwards ends.
    pub idle_timeout: Duration,
    /// Bounds on new flows, the same for all listeners of an address and port.
    pub new_flows: NewFlows,
    /// Connections that may begin in a second before they are answered with cookies, the same for all listeners of an address
    /// and port; none for never.
    pub syn_cookies: Option<u32>,
    /// Whether the kernel sends new connections to endpoints while the agent is silent; the same for all listeners of an
    /// address and port.
    pub fails_open: bool,
    /// What is done with paths that applications read differently.
    pub paths: target::Rules,
    /// What becomes of fields with an underscore in their names.
    pub underscores: field::Underscores,
    /// Proxies in front of this one whose word about the client is taken.
    pub trusted_hops: usize,
}

/// What a listener speaks.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Protocol {
    /// HTTP/1.1, and HTTP/2 by prior knowledge.
    Http,
    /// The same behind TLS that ends here.
    Https,
    /// TLS that ends at the endpoint, by the name that clients ask for.
    Tls,
    /// Balanced by connection.
    Tcp,
    /// Balanced by flow.
    Udp,
}

impl Protocol {
    /// The word of the configuration.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Http => "HTTP",
            Self::Https => "HTTPS",
            Self::Tls => "TLS",
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
        }
    }

    /// Whether requests are what is routed there.
    pub const fn is_layer7(self) -> bool {
        matches!(self, Self::Http | Self::Https)
    }

    /// Whether host names tell clients apart there.
    pub const fn has_names(self) -> bool {
        matches!(self, Self::Http | Self::Https | Self::Tls)
    }
}

/// How packets of a balanced listener reach the endpoint.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Forwarding {
    /// Addresses are translated; replies come back through this node.
    #[default]
    Nat,
    /// Frames are addressed to the endpoint, on the same link; it answers the client by itself, as for the next two.
    DsrL2,
    /// Packets go to the endpoint through a tunnel, IP in IP.
    DsrIpip,
    /// Packets go to the endpoint through a tunnel over UDP.
    DsrGue,
    /// The agent accepts connections, and forwards their bytes over connections of its own.
    Agent,
}

impl Forwarding {
    /// Whether the endpoint answers the client by itself.
    pub const fn is_direct(self) -> bool {
        matches!(self, Self::DsrL2 | Self::DsrIpip | Self::DsrGue)
    }

    /// Whether packets go through a tunnel, which takes either address family.
    pub const fn is_tunnel(self) -> bool {
        matches!(self, Self::DsrIpip | Self::DsrGue)
    }
}

/// What a listener says whose packets are balanced.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Packets {
    /// What is remembered about a flow; none leaves it to the forwarding.
    pub track: Option<Track>,
    /// Time of silence for which a client keeps its endpoint; none sends each flow where its slot says.
    pub affinity: Option<Duration>,
    /// Whether an open connection is reset whose endpoint is down.
    pub resets: bool,
    /// Ports, in ascending order, none next to another; empty for the one of the address.
    pub ports: Vec<RangeInclusive<u16>>,
}

impl Listener {
    /// What is remembered about a flow: translation and affinity need all of it.
    pub fn track(&self) -> Track {
        let needs_all = !self.forwarding.is_direct() || self.packets.affinity.is_some();
        self.packets.track.unwrap_or(if needs_all { Track::ALWAYS } else { Track::CHANGE })
    }

    /// Whether the agent serves it, rather than the kernel.
    pub const fn is_by_agent(&self) -> bool {
        self.protocol.has_names() || matches!(self.forwarding, Forwarding::Agent)
    }

    /// Whether the kernel has to know its endpoints.
    pub const fn is_balanced(&self) -> bool {
        !self.is_by_agent() || self.fails_open
    }
}

/// A host name pattern: exact, or `*.` and a suffix of at least one label. Lower case, without a trailing dot.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Hostname {
    /// This name.
    Exact(String),
    /// Any name of at least one label more than this suffix (which has no leading dot).
    Wildcard(String),
}

impl Hostname {
    /// Whether some name is of both patterns.
    pub fn overlaps(&self, other: &Self) -> bool {
        let below = |name: &str, suffix: &str| {
            name.strip_suffix(suffix).is_some_and(|rest| rest.len() > 1 && rest.ends_with('.'))
        };
        match (self, other) {
            (Self::Exact(a), Self::Exact(b)) => a == b,
            (Self::Exact(name), Self::Wildcard(suffix)) | (Self::Wildcard(suffix), Self::Exact(name)) => {
                below(name, suffix)
            }
            (Self::Wildcard(a), Self::Wildcard(b)) => a == b || below(a, b) || below(b, a),
        }
    }
}

impl fmt::Display for Hostname {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(name) => f.write_str(name),
            Self::Wildcard(suffix) => write!(f, "*.{suffix}"),
        }
    }
}

/// A certificate chain and its key, as PEM, read but not parsed.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Certificate {
    /// Where it came from, for messages.
    pub origin: String,
    /// Leaf first.
    pub chain_pem: Vec<u8>,
    /// PKCS#8, PKCS#1 or SEC1.
    pub key_pem: Secret,
    /// What the authority says about it, as DER (OCSP); none sends clients nothing.
    pub ocsp: Option<Vec<u8>>,
    /// Whether the agent asks the authority by itself.
    pub fetches_ocsp: bool,
}

/// Whose certificates let a client in.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ClientCertificates {
    /// A client without a certificate is refused.
    pub is_required: bool,
    /// Where the bundle came from, for messages.
    pub origin: String,
    /// Certificate authorities, as PEM.
    pub trust_pem: Vec<u8>,
    /// The header field that tells endpoints who the client is.
    pub identity_header: http::HeaderName,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_names_overlap_by_whole_labels() {
        let name = |text: &str| match text.strip_prefix("*.") {
            Some(suffix) => Hostname::Wildcard(suffix.to_owned()),
            None => Hostname::Exact(text.to_owned()),
        };
        let check = |a: &str, b: &str, expected: bool| {
            assert_eq!(name(a).overlaps(&name(b)), expected, "{a} {b}");
            assert_eq!(name(b).overlaps(&name(a)), expected, "{b} {a}");
        };
        check("a.example.org", "a.example.org", true);
        check("a.example.org", "b.example.org", false);
        check("*.example.org", "a.b.example.org", true);
        check("*.example.org", "example.org", false);
        check("*.example.org", "aexample.org", false);
        check("*.example.org", "*.b.example.org", true);
        check("*.example.org", "*.example.com", false);
        check("*.example.org", "*.anexample.org", false);
    }
}
