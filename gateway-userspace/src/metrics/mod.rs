//! Numbers about this process: where they are counted, and the text that Prometheus reads.
//!
//! What the request path touches is counted in [`shard`]s, one per worker, so that no two cores write the same cache
//! line. A series lives as long as the compiled thing that counts into it, so that labels never outnumber what is
//! configured.

pub mod announcement;
pub mod datagram;
pub mod fault;
pub mod forwarded;
pub mod guard;
pub mod handshake;
pub mod kernel;
pub mod limit;
pub mod memory;
pub mod misuse;
pub mod names;
pub mod refusal;
mod runtime;
pub mod shard;
pub mod timeout;
pub mod tunnel;
pub mod verdict;

use std::{fmt, sync::Arc};

use parking_lot::{Mutex, RwLock};
use prometheus_client::{encoding::text, registry::Registry};

use crate::metrics::{
    names::{Families, Samples},
    runtime::Runtimes,
    shard::{Requests, RouteLabels, RouteStats, ServiceStats, Services},
};

/// Everything that is counted, for one process.
pub struct Metrics {
    registry: Mutex<Registry>,
    /// Counters and gauges that are not on the request path.
    pub families: Families,
    requests: Arc<Requests>,
    services: Arc<Services>,
    sampler: Arc<Sampler>,
    runtimes: Arc<Runtimes>,
    n_shards: usize,
}

/// Asked for values at every scrape, instead of being told at every change.
#[derive(Default)]
pub(crate) struct Sampler(RwLock<Option<Box<Sample>>>);

type Sample = dyn Fn() -> Samples + Send + Sync;

impl Sampler {
    pub(crate) fn take(&self) -> Samples {
        self.0.read().as_ref().map_or_else(Samples::default, |sample| sample())
    }
}

impl fmt::Debug for Sampler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Sampler")
    }
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics").field("n_shards", &self.n_shards).finish_non_exhaustive()
    }
}

impl Metrics {
    /// Registers every metric. `n_workers` is the number of data path threads.
    pub fn new(n_workers: usize) -> Self {
        let mut registry = Registry::with_prefix(names::PREFIX);
        let families = Families::register(&mut registry);
        let requests = Arc::new(Requests::default());
        let services = Arc::new(Services::default());
        let sampler = Arc::new(Sampler::default());
        registry.register_collector(Box::new(Arc::clone(&requests)));
        registry.register_collector(Box::new(Arc::clone(&services)));
        registry.register_collector(Box::new(names::Sampled(Arc::clone(&sampler))));
        let runtimes = Arc::new(Runtimes::default());
        registry.register_collector(Box::new(Arc::clone(&runtimes)));
        Self {
            registry: Mutex::new(registry),
            families,
            requests,
            services,
            sampler,
            runtimes,
            n_shards: n_workers.max(1),
        }
    }

    /// Where requests of one route on one listener are counted: the same place as long as anyone holds it.
    pub fn route(&self, labels: &RouteLabels) -> Arc<RouteStats> {
        self.requests.resolve(labels, self.n_shards)
    }

    /// Where tries towards one service are counted: the same place as long as anyone holds it.
    pub fn service(&self, service: &str) -> Arc<ServiceStats> {
        self.services.resolve(service, self.n_shards)
    }

    /// The number of data path threads.
    pub const fn n_workers(&self) -> usize {
        self.n_shards
    }

    /// Sets what is asked at every scrape.
    pub fn sample_with(&self, sample: impl Fn() -> Samples + Send + Sync + 'static) {
        *self.sampler.0.write() = Some(Box::new(sample));
    }

    /// Tells of the tasks of a runtime from now on, under the name of its thread.
    pub fn watch_tasks(&self, thread: impl Into<String>, runtime: &tokio::runtime::Handle) {
        self.runtimes.add(thread.into(), runtime.metrics());
    }

    /// Lets another part of the agent register its own metrics; their names stand in its part of [`names`].
    pub fn register(&self, register: impl FnOnce(&mut Registry)) {
        register(&mut self.registry.lock());
    }

    /// The text that Prometheus reads (`OpenMetrics` 1.0).
    pub fn encode(&self) -> Result<String, fmt::Error> {
        let mut out = String::new();
        text::encode(&mut out, &self.registry.lock())?;
        Ok(out)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::metrics::names::{EndpointSample, FaultKind, PoolSample};

    #[test]
    fn every_series_is_in_the_text_and_leaves_with_its_owner() {
        let metrics = Metrics::new(2);
        let labels = RouteLabels { listener: "web".to_owned(), route: "main".to_owned() };
        let route = metrics.route(&labels);
        route.record(0, 200, Duration::from_millis(3));
        route.record(1, 503, Duration::from_secs(100));
        route.fault(1, FaultKind::NoEndpoint);
        let service = metrics.service("api");
        service.tried(0);
        service.retried(1);
        metrics.sample_with(|| Samples {
            flow_room: 1_024,
            flows: vec![("dns".to_owned(), 7)],
            packets: Vec::new(),
            services: Vec::new(),
            kernel: kernel::Samples {
                drops: vec![("dns".to_owned(), "no_endpoint", 5)],
                endpoints: vec![kernel::EndpointSample {
                    listener: "dns".to_owned(),
                    endpoint: "192.0.2.1:53".to_owned(),
                    what: "new_flows",
                    count: 6,
                }],
                open: vec![("dns".to_owned(), "192.0.2.1:53".to_owned(), 2)],
                events: vec![("denied", "limited", 4)],
                networks: [3, 8],
                socket_pairs: Some([2, 9]),
                cookies: vec![("web".to_owned(), true, 9)],
            },
            pools: vec![PoolSample { service: "api".to_owned(), open: 3, idle: 2, stolen: 1 }],
            endpoints: vec![EndpointSample {
                service: "api".to_owned(),
                endpoint: "192.0.2.1:80".to_owned(),
                up: true,
                is_out: true,
            }],
        });
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        metrics.watch_tasks("worker-0", runtime.handle());
        runtime.spawn(std::future::pending::<()>());
        let text = metrics.encode().unwrap();
        for line in [
            "sluice_tasks{thread=\"worker-0\"} 1",
            "sluice_requests_total{listener=\"web\",route=\"main\",status=\"2xx\"} 1",
            "sluice_requests_total{listener=\"web\",route=\"main\",status=\"5xx\"} 1",
            "sluice_request_duration_seconds_count{listener=\"web\",route=\"main\"} 2",
            "sluice_request_duration_seconds_bucket{le=\"0.005\",listener=\"web\",route=\"main\"} 1",
            "sluice_request_faults_total{listener=\"web\",route=\"main\",kind=\"no_endpoint\"} 1",
            "sluice_upstream_tries_total{service=\"api\"} 1",
            "sluice_upstream_retries_total{service=\"api\"} 1",
            "sluice_upstream_connections{service=\"api\",state=\"idle\"} 2",
            "sluice_kernel_service_drops_total{listener=\"dns\",reason=\"no_endpoint\"} 5",
            "sluice_kernel_endpoint_total{listener=\"dns\",endpoint=\"192.0.2.1:53\",what=\"new_flows\"} 6",
            "sluice_kernel_syn_cookies_total{listener=\"web\"} 9",
            "sluice_kernel_syn_cookies_armed{listener=\"web\"} 1",
            "sluice_kernel_endpoint_open_flows{listener=\"dns\",endpoint=\"192.0.2.1:53\"} 2",
            "sluice_kernel_events_total{reason=\"denied\",outcome=\"limited\"} 4",
            "sluice_endpoint_out{service=\"api\",endpoint=\"192.0.2.1:80\"} 1",
            "sluice_endpoint_up{service=\"api\",endpoint=\"192.0.2.1:80\"} 1",
        ] {
            assert!(text.contains(line), "{line} is missing in\n{text}");
        }
        drop(route);
        assert!(!metrics.encode().unwrap().contains("route=\"main\""));
    }
}
