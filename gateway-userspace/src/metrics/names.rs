//! Every metric of the agent: name, unit, labels, help. Labels come from closed sets or from the configuration.

use std::{fmt, net::SocketAddr, sync::Arc};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeLabelSet, MetricEncoder},
    metrics::{MetricType, counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};

use crate::metrics::{
    Sampler,
    announcement::Announcements,
    datagram::Datagrams,
    forwarded::Forwarded,
    guard::Guarded,
    handshake::Handshakes,
    kernel,
    memory::MemoryGauges,
    misuse::{Misuse, MisuseLabels},
    refusal::{Refusal, RefusalLabels},
    timeout::{ClientTimeout, ClientTimeoutLabels},
    tunnel::Tunnels,
    verdict::Verdicts,
};
pub use crate::metrics::{
    fault::FaultKind,
    limit::{Limit, LimitLabels},
};

/// What every name begins with.
pub const PREFIX: &str = "sluice";

/// A name without prefix and suffix, and its help.
pub type Described = (&'static str, &'static str);

/// By listener, route, class of status.
pub const REQUESTS: Described = ("requests", "Responses sent downstream");
/// By listener, route, kind of fault.
pub const REQUEST_FAULTS: Described =
    ("request_faults", "Requests that were answered by the gateway because of a fault");
/// By listener and route.
pub const REQUEST_DURATION: Described =
    ("request_duration", "Time from the head of a request to the head of its response");
/// By service.
pub const UPSTREAM_TRIES: Described = ("upstream_tries", "Requests sent to endpoints, retries included");
/// By service.
pub const UPSTREAM_RETRIES: Described = ("upstream_retries", "Tries that followed a failed one");
/// By service.
pub const UPSTREAM_CONNECTS: Described = ("upstream_connects", "Connections opened to endpoints");
/// By service.
pub const UPSTREAM_CONNECT_FAILURES: Described =
    ("upstream_connect_failures", "Connections to endpoints that could not be opened");
/// By service and state.
pub const UPSTREAM_CONNECTIONS: Described = ("upstream_connections", "Pooled connections to endpoints");
/// By service.
pub const POOL_STEALS: Described = ("pool_steals", "Connections taken from the shard of another worker");
/// By service and endpoint.
pub const ENDPOINT_UP: Described = (
    "endpoint_up",
    "Whether the endpoint may receive traffic: 1 unless it is down by a way that packets take to it",
);
/// By service and endpoint.
pub const ENDPOINT_OUT: Described =
    ("endpoint_out", "One for an endpoint that gets no new flows because clients do not get through to it");
/// By hook and reason.
pub const PACKETS: [Described; 2] = [
    ("packets", "Packets that a kernel program saw, by what became of them; connections at sk_lookup"),
    ("packet_bytes", "Bytes of packets that a kernel program saw, by what became of them"),
];
/// By listener and what is counted.
pub const KERNEL_SERVICES: Described = ("kernel_service", "Counters of a listener's service in the kernel");

/// What services hold in the kernel's flow table, flows that are over included.
pub const FLOW_ENTRIES: Described = ("kernel_flow_entries", "Entries of the kernel's flow table by listener");
/// The table's room.
pub const FLOW_ROOM: Described = ("kernel_flow_room", "Flows that the kernel's flow table has room for");

/// Labels of connections: the address they came to.
#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
pub struct BindLabels {
    /// Virtual address and port.
    pub address: String,
    /// `tcp` or `udp`.
    pub protocol: &'static str,
}

/// Labels of probes.
#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
pub struct ProbeLabels {
    /// Name of the service.
    pub service: String,
    /// One of [`Outcome`](crate::health::Outcome).
    pub outcome: &'static str,
}

/// Label of an outcome.
#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
pub struct OutcomeLabels {
    /// `applied` or `refused`.
    pub outcome: &'static str,
}

/// Label of the mode.
#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
pub struct ModeLabels {
    /// `ebpf` or `userspace`.
    pub mode: &'static str,
}

/// Counters and gauges that are written once per connection or less often.
#[derive(Clone, Debug, Default)]
pub struct Families {
    /// Connections and UDP flows accepted.
    pub accepted: Family<BindLabels, Counter>,
    /// Connections and UDP flows being served.
    pub open: Family<BindLabels, Gauge>,
    /// Connections for another address than that of the socket that accepted them; they are closed.
    pub misdirected: Family<BindLabels, Counter>,
    /// TLS handshakes that failed or took too long.
    pub handshake_failures: Family<BindLabels, Counter>,
    /// TLS handshakes that succeeded.
    pub handshakes: Handshakes,
    /// Connections that were forwarded byte by byte.
    pub forwarded: Forwarded,
    /// Datagrams that got no further.
    pub datagrams: Datagrams,
    /// Who was refused without the kernel side.
    pub guarded: Guarded,
    /// What clients speak instead of HTTP.
    pub tunnels: Tunnels,
    /// Verdicts on endpoints.
    pub verdicts: Verdicts,
    /// Finished probes.
    pub probes: Family<ProbeLabels, Counter>,
    /// Requests that were refused for what their bytes say.
    pub refused: Family<RefusalLabels, Counter>,
    /// Header fields that went no further because their names have an underscore.
    pub underscored: Counter,
    /// Connections of HTTP/2 that were ended because of what the client did.
    pub misused: Family<MisuseLabels, Counter>,
    /// Clients that were not waited for any longer.
    pub client_timeouts: Family<ClientTimeoutLabels, Counter>,
    /// The memory of the process.
    pub memory: MemoryGauges,
    /// Times a bound was reached.
    pub limits: Family<LimitLabels, Counter>,
    /// Announcements of virtual addresses.
    pub announced: Announcements,
    /// Generation of the snapshot being served.
    pub config_generation: Gauge,
    /// Snapshots offered.
    pub config_reloads: Family<OutcomeLabels, Counter>,
    /// One for the mode that runs, zero for the other.
    pub kernel_mode: Family<ModeLabels, Gauge>,
    /// Whether the kernel's maps are what they should be: zero while a failed write waits for another try.
    pub kernel_in_step: Gauge,
}

impl Families {
    pub(crate) fn register(registry: &mut Registry) -> Self {
        let families = Self::default();
        registry.register(
            "connections_accepted",
            "Connections and UDP flows accepted",
            families.accepted.clone(),
        );
        registry.register(
            "connections_open",
            "Connections and UDP flows being served",
            families.open.clone(),
        );
        registry.register(
            "connections_misdirected",
            "Connections closed because the kernel gave them to the socket of another address",
            families.misdirected.clone(),
        );
        registry.register(
            "tls_handshake_failures",
            "TLS handshakes that failed or took too long",
            families.handshake_failures.clone(),
        );
        families.handshakes.register(registry);
        families.forwarded.register(registry);
        families.datagrams.register(registry);
        families.guarded.register(registry);
        families.tunnels.register(registry);
        families.verdicts.register(registry);
        families.announced.register(registry);
        families.memory.register(registry);
        registry.register("probes", "Finished health checks", families.probes.clone());
        registry.register(
            "requests_refused",
            "Requests that were refused for what their bytes say",
            families.refused.clone(),
        );
        registry.register(
            "fields_underscored",
            "Header fields of requests that went no further because their names have an underscore",
            families.underscored.clone(),
        );
        registry.register(
            "http2_misuse",
            "Connections of HTTP/2 that were ended because of what the client did",
            families.misused.clone(),
        );
        registry.register(
            "client_timeouts",
            "Clients that were not waited for any longer, by what they did not do in time",
            families.client_timeouts.clone(),
        );
        registry.register("limit_reached", "Times a bound of the agent was reached", families.limits.clone());
        registry.register(
            "config_generation",
            "Generation of the snapshot being served",
            families.config_generation.clone(),
        );
        registry.register(
            "config_reloads",
            "Snapshots offered, by what became of them",
            families.config_reloads.clone(),
        );
        registry.register("kernel_mode", "One for the mode that runs", families.kernel_mode.clone());
        registry.register(
            "kernel_in_step",
            "One while the kernel's maps are what they should be",
            families.kernel_in_step.clone(),
        );
        families
    }

    /// Counts that the bytes of a request were refused.
    pub fn refuse(&self, reason: Refusal) {
        self.refused.get_or_create(&RefusalLabels { reason }).inc();
    }

    /// Counts that a connection of HTTP/2 was ended because of what the client did.
    pub fn misuse(&self, reason: Misuse) {
        self.misused.get_or_create(&MisuseLabels { reason }).inc();
    }

    /// Counts that a client was not waited for any longer.
    pub fn client_timeout(&self, timeout: ClientTimeout) {
        self.client_timeouts.get_or_create(&ClientTimeoutLabels { timeout }).inc();
    }

    /// Forgets an address, so that labels never outnumber what is configured.
    pub fn forget(&self, bind: &BindLabels, addr: SocketAddr) {
        self.accepted.remove(bind);
        self.open.remove(bind);
        self.misdirected.remove(bind);
        self.handshake_failures.remove(bind);
        self.datagrams.forget(bind);
        // These are of TCP, whatever else the address is used for.
        if bind.protocol == "tcp" {
            self.handshakes.forget(addr);
            self.forwarded.forget(addr);
            self.tunnels.forget(addr);
        }
    }

    /// Counts that a bound was reached.
    pub fn limit(&self, limit: Limit) {
        self.limits.get_or_create(&LimitLabels { limit }).inc();
    }
}

/// Values taken at a scrape.
#[derive(Clone, Debug, Default)]
pub struct Samples {
    /// Pools, one per service.
    pub pools: Vec<PoolSample>,
    /// Endpoints.
    pub endpoints: Vec<EndpointSample>,
    /// Counters of the kernel programs; empty in userspace.
    pub packets: Vec<PacketSample>,
    /// Counters of balanced and steered services in the kernel.
    pub services: Vec<ServiceSample>,
    /// Entries of the flow table, by name of the listener.
    pub flows: Vec<(String, u64)>,
    /// Flows that the table has room for.
    pub flow_room: u64,
    /// What names a service or an endpoint.
    pub kernel: kernel::Samples,
}

/// One outcome at one hook.
#[derive(Clone, Copy, Debug)]
pub struct PacketSample {
    /// Where.
    pub hook: &'static str,
    /// What became of the packets.
    pub reason: &'static str,
    /// How many packets, or connections at socket lookup.
    pub packets: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// One value of one service in the kernel.
#[derive(Clone, Debug)]
pub struct ServiceSample {
    /// Name of the listener.
    pub listener: String,
    /// What is counted.
    pub what: &'static str,
    /// How many.
    pub count: u64,
}

/// Connections towards one service.
#[derive(Clone, Debug)]
pub struct PoolSample {
    /// Name of the service.
    pub service: String,
    /// Open connections, idle ones included.
    pub open: u64,
    /// Idle connections.
    pub idle: u64,
    /// Connections that a worker took from another's shard, ever.
    pub stolen: u64,
}

/// State of one endpoint.
#[derive(Clone, Debug)]
pub struct EndpointSample {
    /// Name of the service.
    pub service: String,
    /// Address and port.
    pub endpoint: String,
    /// Whether it is not down.
    pub up: bool,
    /// Whether clients do not get through to it.
    pub is_out: bool,
}

/// Encodes [`Samples`].
#[derive(Debug)]
pub(crate) struct Sampled(pub(crate) Arc<Sampler>);

impl Collector for Sampled {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let samples = self.0.take();
        let (name, help) = UPSTREAM_CONNECTIONS;
        let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
        for pool in &samples.pools {
            for (state, count) in [("open", pool.open), ("idle", pool.idle)] {
                gauge(&mut family, &[("service", pool.service.as_str()), ("state", state)], count)?;
            }
        }
        let (name, help) = POOL_STEALS;
        let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
        for pool in &samples.pools {
            let labels = [("service", pool.service.as_str())];
            let mut series = family.encode_family(&labels)?;
            let none = None::<
                &prometheus_client::metrics::exemplar::Exemplar<prometheus_client::encoding::NoLabelSet, u64>,
            >;
            series.encode_counter(&pool.stolen, none)?;
        }
        let (name, help) = ENDPOINT_UP;
        let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
        for endpoint in &samples.endpoints {
            let labels = [("service", endpoint.service.as_str()), ("endpoint", endpoint.endpoint.as_str())];
            gauge(&mut family, &labels, u64::from(endpoint.up))?;
        }
        let (name, help) = ENDPOINT_OUT;
        let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
        for endpoint in samples.endpoints.iter().filter(|endpoint| endpoint.is_out) {
            let labels = [("service", endpoint.service.as_str()), ("endpoint", endpoint.endpoint.as_str())];
            gauge(&mut family, &labels, 1)?;
        }
        let values: [fn(&PacketSample) -> u64; 2] = [packets_of, bytes_of];
        for ((name, help), value) in PACKETS.into_iter().zip(values) {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            for sample in &samples.packets {
                counter(&mut family, &[("hook", sample.hook), ("reason", sample.reason)], value(sample))?;
            }
        }
        let (name, help) = KERNEL_SERVICES;
        let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
        for sample in &samples.services {
            counter(
                &mut family,
                &[("listener", sample.listener.as_str()), ("what", sample.what)],
                sample.count,
            )?;
        }
        let (name, help) = FLOW_ENTRIES;
        let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
        for (listener, entries) in &samples.flows {
            gauge(&mut family, &[("listener", listener.as_str())], *entries)?;
        }
        let (name, help) = FLOW_ROOM;
        let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
        gauge(&mut family, &[], samples.flow_room)?;
        samples.kernel.encode(&mut encoder)
    }
}

pub(crate) fn gauge<const N: usize>(
    family: &mut MetricEncoder<'_>,
    labels: &[(&str, &str); N],
    value: u64,
) -> Result<(), fmt::Error> {
    family.encode_family(labels)?.encode_gauge(&i64::try_from(value).unwrap_or(i64::MAX))
}

pub(crate) fn counter<const N: usize>(
    family: &mut MetricEncoder<'_>,
    labels: &[(&str, &str); N],
    value: u64,
) -> Result<(), fmt::Error> {
    let none =
        None::<&prometheus_client::metrics::exemplar::Exemplar<prometheus_client::encoding::NoLabelSet, u64>>;
    family.encode_family(labels)?.encode_counter(&value, none)
}

const fn packets_of(sample: &PacketSample) -> u64 {
    sample.packets
}

const fn bytes_of(sample: &PacketSample) -> u64 {
    sample.bytes
}
