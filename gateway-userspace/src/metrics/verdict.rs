//! What was decided about endpoints from clients' attempts.

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family},
    registry::Registry,
};

/// Labels of verdicts.
#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct VerdictLabels {
    /// Name of the service.
    service: String,
    /// `out`, `spared`, `trial`, `trusted`.
    verdict: &'static str,
}

/// Counts verdicts by service.
#[derive(Clone, Debug, Default)]
pub struct Verdicts(Family<VerdictLabels, Counter>);

impl Verdicts {
    pub(crate) fn register(&self, registry: &mut Registry) {
        registry.register(
            "endpoint_verdicts",
            "Verdicts on endpoints of services with passiveHealth, from clients' attempts to connect",
            self.0.clone(),
        );
    }

    /// Counts one.
    pub fn count(&self, service: &str, verdict: &'static str) {
        self.0.get_or_create(&VerdictLabels { service: service.to_owned(), verdict }).inc();
    }

    /// Forgets a service, so that labels never outnumber what is configured.
    pub fn forget(&self, service: &str, verdicts: &[&'static str]) {
        for verdict in verdicts {
            self.0.remove(&VerdictLabels { service: service.to_owned(), verdict });
        }
    }
}
