//! The memory of the process, as numbers.

use prometheus_client::{metrics::gauge::Gauge, registry::Registry};

/// What there is, and what there may be.
#[derive(Clone, Debug, Default)]
pub struct MemoryGauges {
    /// Bytes of the process that are in memory.
    pub resident: Gauge,
    /// Bytes above which nothing new is begun; zero where nobody knows.
    pub bound: Gauge,
}

impl MemoryGauges {
    pub(crate) fn register(&self, registry: &mut Registry) {
        registry.register(
            "memory_resident_bytes",
            "Bytes of the process that are in memory, at the last look",
            self.resident.clone(),
        );
        registry.register(
            "memory_bound_bytes",
            "Bytes of memory above which requests and connections are refused",
            self.bound.clone(),
        );
    }
}
