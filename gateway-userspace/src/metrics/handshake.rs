//! Metrics of TLS handshakes.

use std::net::SocketAddr;

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family},
    registry::Registry,
};

/// Handshakes that succeeded.
#[derive(Clone, Debug, Default)]
pub struct Handshakes(Family<HandshakeLabels, Counter>);

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct HandshakeLabels {
    address: String,
    /// `full` or `resumed`.
    kind: &'static str,
}

impl HandshakeLabels {
    fn new(addr: SocketAddr, is_resumed: bool) -> Self {
        Self { address: addr.to_string(), kind: if is_resumed { "resumed" } else { "full" } }
    }
}

impl Handshakes {
    pub(super) fn register(&self, registry: &mut Registry) {
        registry.register("tls_handshakes", "TLS handshakes that succeeded", self.0.clone());
    }

    /// Counts one.
    pub fn count(&self, addr: SocketAddr, is_resumed: bool) {
        self.0.get_or_create(&HandshakeLabels::new(addr, is_resumed)).inc();
    }

    pub(super) fn forget(&self, addr: SocketAddr) {
        for is_resumed in [false, true] {
            self.0.remove(&HandshakeLabels::new(addr, is_resumed));
        }
    }
}
