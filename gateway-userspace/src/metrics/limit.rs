//! The bounds whose reaching is counted: a closed set.

use std::fmt;

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder};

/// A bound that was reached; the closed set behind the label `limit`.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Limit {
    /// Bytes of the access log that wait to be written, in lines that were dropped.
    AccessLog,
    /// Connections to endpoints of all services.
    AllUpstreamConnections,
    /// Connections of one client.
    ClientConnections,
    /// Streams of HTTP/2 of one client.
    ClientStreams,
    /// Downstream connections of a worker.
    Connections,
    /// How late a worker comes to what is due.
    Delay,
    /// Events of the kernel that are written to the log.
    Events,
    /// Idle connections of a worker to all endpoints.
    IdleConnections,
    /// Interim responses that are passed on.
    Interims,
    /// Memory of the process, in requests that were refused.
    Memory,
    /// Memory of the process, in connections and flows of UDP that were refused.
    MemoryConnections,
    /// Copies of requests, in number or in bytes that wait.
    Mirrors,
    /// Interfaces of pods.
    Pods,
    /// Idle connections to an endpoint.
    PoolIdle,
    /// Requests under way.
    Requests,
    /// Retries that a service bears.
    RetryBudget,
    /// Connections to an endpoint.
    UpstreamConnections,
    /// Tunnels that are open on an address.
    Tunnels,
    /// UDP flows of a worker.
    UdpFlows,
}

impl Limit {
    /// All of them.
    pub const ALL: [Self; 19] = [
        Self::AccessLog,
        Self::AllUpstreamConnections,
        Self::ClientConnections,
        Self::ClientStreams,
        Self::Connections,
        Self::Delay,
        Self::Events,
        Self::IdleConnections,
        Self::Interims,
        Self::Memory,
        Self::MemoryConnections,
        Self::Mirrors,
        Self::Pods,
        Self::PoolIdle,
        Self::Requests,
        Self::RetryBudget,
        Self::UpstreamConnections,
        Self::Tunnels,
        Self::UdpFlows,
    ];

    /// The value of the label.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::AccessLog => "access_log",
            Self::AllUpstreamConnections => "all_upstream_connections",
            Self::ClientConnections => "client_connections",
            Self::ClientStreams => "client_streams",
            Self::Connections => "connections",
            Self::Delay => "delay",
            Self::Memory => "memory",
            Self::MemoryConnections => "memory_connections",
            Self::Requests => "requests",
            Self::Events => "events",
            Self::IdleConnections => "idle_connections",
            Self::Interims => "interims",
            Self::Mirrors => "mirrors",
            Self::Pods => "pods",
            Self::PoolIdle => "pool_idle",
            Self::RetryBudget => "retry_budget",
            Self::UpstreamConnections => "upstream_connections",
            Self::Tunnels => "tunnels",
            Self::UdpFlows => "udp_flows",
        }
    }
}

impl EncodeLabelValue for Limit {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> Result<(), fmt::Error> {
        EncodeLabelValue::encode(&self.as_str(), encoder)
    }
}

/// Label of a bound.
#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
pub struct LimitLabels {
    /// Which.
    pub limit: Limit,
}
