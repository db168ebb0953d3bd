//! Metrics of TLS: handshakes, and when certificates expire.

use std::net::SocketAddr;

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};

/// Handshakes that succeeded, and the certificates they are made with.
#[derive(Clone, Debug, Default)]
pub struct Handshakes {
    finished: Family<HandshakeLabels, Counter>,
    expiries: Family<CertificateLabels, Gauge>,
    staples: Family<CertificateLabels, Gauge>,
    shown: Family<ShownLabels, Gauge>,
    asked: Family<AskedLabels, Counter>,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct AskedLabels {
    /// The file of the chain.
    certificate: String,
    /// `good` or `failed`.
    outcome: &'static str,
}

impl AskedLabels {
    fn new(certificate: &str, is_good: bool) -> Self {
        Self { certificate: certificate.to_owned(), outcome: if is_good { "good" } else { "failed" } }
    }
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct ShownLabels {
    service: String,
    /// The file of the chain.
    certificate: String,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct CertificateLabels {
    listener: String,
    /// The file of the chain.
    certificate: String,
}

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
        registry.register("tls_handshakes", "TLS handshakes that succeeded", self.finished.clone());
        registry.register(
            "certificate_expiry_timestamp_seconds",
            "When a certificate that is served expires, in seconds since 1970",
            self.expiries.clone(),
        );
        registry.register(
            "ocsp_expiry_timestamp_seconds",
            "Until when the OCSP response about a certificate is sent to clients, in seconds since 1970",
            self.staples.clone(),
        );
        registry.register(
            "client_certificate_expiry_timestamp_seconds",
            "When a certificate that is shown to endpoints expires, in seconds since 1970",
            self.shown.clone(),
        );
        registry.register(
            "ocsp_fetches",
            "Questions to authorities about certificates with `ocsp: fetch`, and whether a good answer came",
            self.asked.clone(),
        );
    }

    /// Counts one.
    pub fn count(&self, addr: SocketAddr, is_resumed: bool) {
        self.finished.get_or_create(&HandshakeLabels::new(addr, is_resumed)).inc();
    }

    /// Sets when a certificate of a listener expires, and what its authority says about it.
    pub fn expires(&self, listener: &str, certificate: &str, at_s: i64, staple_s: Option<i64>) {
        let labels = CertificateLabels { listener: listener.to_owned(), certificate: certificate.to_owned() };
        self.expiries.get_or_create(&labels).set(at_s);
        match staple_s {
            Some(until_s) => drop(self.staples.get_or_create(&labels).set(until_s)),
            None => drop(self.staples.remove(&labels)),
        }
    }

    /// Forgets a certificate that is not served any more.
    pub fn dropped(&self, listener: &str, certificate: &str) {
        let labels = CertificateLabels { listener: listener.to_owned(), certificate: certificate.to_owned() };
        self.expiries.remove(&labels);
        self.staples.remove(&labels);
    }

    /// Sets when a certificate expires that is shown to the endpoints of a service.
    pub fn shown_expires(&self, service: &str, certificate: &str, at_s: i64) {
        let labels = ShownLabels { service: service.to_owned(), certificate: certificate.to_owned() };
        self.shown.get_or_create(&labels).set(at_s);
    }

    /// Forgets a certificate that is not shown any more.
    pub fn shown_dropped(&self, service: &str, certificate: &str) {
        let labels = ShownLabels { service: service.to_owned(), certificate: certificate.to_owned() };
        self.shown.remove(&labels);
    }

    /// Counts a question to an authority.
    pub fn asked(&self, certificate: &str, is_good: bool) {
        self.asked.get_or_create(&AskedLabels::new(certificate, is_good)).inc();
    }

    /// Forgets the questions about a certificate.
    pub fn never_asked(&self, certificate: &str) {
        for is_good in [false, true] {
            self.asked.remove(&AskedLabels::new(certificate, is_good));
        }
    }

    pub(super) fn forget(&self, addr: SocketAddr) {
        for is_resumed in [false, true] {
            self.finished.remove(&HandshakeLabels::new(addr, is_resumed));
        }
    }
}
