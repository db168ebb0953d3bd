//! Numbers of the kernel programs that name a service or an endpoint: why its packets were dropped, and how many went there.

use std::fmt;

use prometheus_client::{encoding::DescriptorEncoder, metrics::MetricType};

use crate::metrics::names::{Described, counter, gauge};

/// By listener and reason.
pub const DROPS: Described =
    ("kernel_service_drops", "Packets of a listener's service that the kernel programs dropped, by reason");
/// By listener, endpoint and what is counted.
pub const ENDPOINTS: Described =
    ("kernel_endpoint", "Counters of an endpoint of a balanced listener in the kernel");

/// By reason and what became of them.
pub const EVENTS: Described = (
    "kernel_events",
    "Packets that ended early, where `agent.kernel.events` asks for them: told of, or not, and why not",
);

/// By listener and endpoint.
pub const OPEN_FLOWS: Described = (
    "kernel_endpoint_open_flows",
    "Flows of an endpoint that the kernel's flow table holds, as far as the listener's `track` has them recorded",
);

/// What sources are listed.
pub const NETWORKS: Described =
    ("kernel_source_networks", "Networks that the kernel's list of sources holds");
/// The list's room.
pub const NETWORK_ROOM: Described =
    ("kernel_source_network_room", "Networks that the kernel's list of sources has room for");

/// What sockets asked for.
pub const SOCKET_PAIRS: Described = (
    "kernel_socket_pairs",
    "Sockets with their endpoints that are remembered where `agent.kernel.connect` is on, those of closed ones among them; an estimate",
);
/// The room for that.
pub const SOCKET_PAIR_ROOM: Described = (
    "kernel_socket_pair_room",
    "Sockets with their endpoints that there is room for; beyond, the oldest is forgotten",
);

/// By listener.
pub const COOKIES: Described =
    ("kernel_syn_cookies", "Connections of a listener that the kernel side answered with a cookie");
/// By listener.
pub const COOKIES_ARMED: Described =
    ("kernel_syn_cookies_armed", "Whether a listener's connections are answered with cookies at present");

/// Values taken at a scrape; empty in userspace.
#[derive(Clone, Debug, Default)]
pub struct Samples {
    /// Dropped packets by name of the listener and reason.
    pub drops: Vec<(String, &'static str, u64)>,
    /// Counters of endpoints.
    pub endpoints: Vec<EndpointSample>,
    /// Flows by listener and endpoint.
    pub open: Vec<(String, String, u64)>,
    /// Packets that ended early, by reason and what became of telling.
    pub events: Vec<(&'static str, &'static str, u64)>,
    /// Networks that are listed, and for how many there is room.
    pub networks: [u64; 2],
    /// Sockets with endpoints that are remembered, and for how many there is room; none where there are none.
    pub socket_pairs: Option<[u64; 2]>,
    /// By name of the listener: whether it answers with cookies, and how many there were.
    pub cookies: Vec<(String, bool, u64)>,
}

/// One value of one endpoint.
#[derive(Clone, Debug)]
pub struct EndpointSample {
    /// Name of the listener.
    pub listener: String,
    /// Address and port.
    pub endpoint: String,
    /// What is counted.
    pub what: &'static str,
    /// How many.
    pub count: u64,
}

impl Samples {
    pub(crate) fn encode(&self, encoder: &mut DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let (name, help) = DROPS;
        let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
        for (listener, reason, packets) in &self.drops {
            counter(&mut family, &[("listener", listener.as_str()), ("reason", *reason)], *packets)?;
        }
        let (name, help) = ENDPOINTS;
        let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
        for sample in &self.endpoints {
            let labels = [
                ("listener", sample.listener.as_str()),
                ("endpoint", sample.endpoint.as_str()),
                ("what", sample.what),
            ];
            counter(&mut family, &labels, sample.count)?;
        }
        let (name, help) = COOKIES;
        let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
        for (listener, _, sent) in &self.cookies {
            counter(&mut family, &[("listener", listener.as_str())], *sent)?;
        }
        let (name, help) = COOKIES_ARMED;
        let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
        for (listener, is_armed, _) in &self.cookies {
            gauge(&mut family, &[("listener", listener.as_str())], u64::from(*is_armed))?;
        }
        let (name, help) = OPEN_FLOWS;
        let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
        for (listener, endpoint, flows) in &self.open {
            gauge(&mut family, &[("listener", listener.as_str()), ("endpoint", endpoint.as_str())], *flows)?;
        }
        let (name, help) = EVENTS;
        let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
        for (reason, outcome, packets) in &self.events {
            counter(&mut family, &[("reason", *reason), ("outcome", *outcome)], *packets)?;
        }
        for ((name, help), value) in [NETWORKS, NETWORK_ROOM].into_iter().zip(self.networks) {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            gauge(&mut family, &[], value)?;
        }
        for ((name, help), value) in
            [SOCKET_PAIRS, SOCKET_PAIR_ROOM].into_iter().zip(self.socket_pairs.into_iter().flatten())
        {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            gauge(&mut family, &[], value)?;
        }
        Ok(())
    }
}
