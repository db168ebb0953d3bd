//! Connections and datagrams that were refused where no kernel program does it.

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family},
    registry::Registry,
};

use crate::metrics::names::BindLabels;

/// Labels of what was refused.
#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct GuardLabels {
    /// Virtual address and port.
    address: String,
    /// `tcp` or `udp`.
    protocol: &'static str,
    /// `denied`, `forged_source`, `source_limited`, `service_limited`.
    reason: &'static str,
}

impl GuardLabels {
    fn new(bind: &BindLabels, reason: &'static str) -> Self {
        Self { address: bind.address.clone(), protocol: bind.protocol, reason }
    }
}

/// Counts what was refused by address.
#[derive(Clone, Debug, Default)]
pub struct Guarded(Family<GuardLabels, Counter>);

impl Guarded {
    pub(crate) fn register(&self, registry: &mut Registry) {
        registry.register(
            "guard_refused",
            "Connections and datagrams that sources or newFlows refused without the kernel side",
            self.0.clone(),
        );
    }

    /// Counts one.
    pub fn count(&self, bind: &BindLabels, reason: &'static str) {
        self.0.get_or_create(&GuardLabels::new(bind, reason)).inc();
    }

    /// Forgets an address, so that labels never outnumber what is configured.
    pub fn forget(&self, bind: &BindLabels, reasons: impl IntoIterator<Item = &'static str>) {
        for reason in reasons {
            self.0.remove(&GuardLabels::new(bind, reason));
        }
    }
}
