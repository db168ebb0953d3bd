//! Announcements of virtual addresses on links: how many were sent, and how many the kernel did not take.

use std::net::IpAddr;

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family},
    registry::Registry,
};

/// Labels of announcements.
#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct AnnouncementLabels {
    /// `ipv4` or `ipv6`.
    family: &'static str,
    /// `sent` or `failed`.
    outcome: &'static str,
}

/// Counts announcements by family and outcome.
#[derive(Clone, Debug, Default)]
pub struct Announcements(Family<AnnouncementLabels, Counter>);

impl Announcements {
    pub(crate) fn register(&self, registry: &mut Registry) {
        registry.register(
            "announcements",
            "Frames that tell links of virtual addresses, where `agent.kernel.announce` asks for them: sent, or not taken by the kernel",
            self.0.clone(),
        );
    }

    /// Counts one of an address.
    pub fn note(&self, addr: IpAddr, is_sent: bool) {
        let family = if addr.is_ipv4() { "ipv4" } else { "ipv6" };
        let outcome = if is_sent { "sent" } else { "failed" };
        self.0.get_or_create(&AnnouncementLabels { family, outcome }).inc();
    }
}
