//! Every bound of the agent: its default and what happens when it is reached.

use std::time::Duration;

/// Bytes of one HTTP request head; beyond it the request is refused with 431.
pub const HEAD_BYTES: usize = 32 * 1024;

/// Header fields of one request; beyond it the request is refused with 431. As in Envoy's edge profile.
pub const HEADERS: usize = 100;

/// Time for a client to send a request head, from its first byte; then its connection is closed. Defends against slow
/// headers.
pub const HEAD_TIMEOUT: Duration = Duration::from_secs(10);

/// Time that a client's HTTP/1 connection may wait for its next request; then it is closed. As long as nginx: clients that
/// keep connections expect about a minute.
pub const DOWNSTREAM_IDLE: Duration = Duration::from_secs(75);

/// Time for a client's TLS handshake; then its connection is closed.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// Time for a connection to an endpoint, TLS included; then the next endpoint is tried.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

/// Concurrent streams of one downstream HTTP/2 connection.
pub const STREAMS: u32 = 100;

/// Idle time after which a pooled upstream connection is closed.
pub const POOL_IDLE: Duration = Duration::from_mins(1);

/// Idle connections kept for one endpoint by one worker; the oldest is closed beyond it.
pub const POOL_IDLE_CONNECTIONS: usize = 64;

/// Connections to one endpoint from this agent, busy and idle; beyond it a request tries another endpoint, then gets 503.
pub const UPSTREAM_CONNECTIONS: usize = 8_192;

/// Streams that one upstream HTTP/2 connection carries before another is opened.
pub const UPSTREAM_STREAMS: usize = 100;

/// Tries of one request on different endpoints, the first included.
pub const TRIES: usize = 3;

/// Downstream connections of one worker; beyond it the oldest waiting ones stay in the kernel's queue.
pub const CONNECTIONS_PER_WORKER: usize = 16_384;

/// Connections that wait in the kernel for `accept`; beyond it the kernel drops SYNs.
pub const ACCEPT_BACKLOG: i32 = 4_096;

/// UDP flows that a worker forwards without the kernel's help; beyond it the oldest is forgotten.
pub const UDP_FLOWS: usize = 16_384;

/// Silence after which a UDP flow is forgotten.
pub const UDP_FLOW_IDLE: Duration = Duration::from_mins(1);

/// Bytes of a configuration file.
pub const CONFIG_BYTES: u64 = 16 * 1024 * 1024;

/// Listeners, routes and services of a snapshot, each.
pub const NAMED_THINGS: usize = 10_000;

/// Endpoints of all services together.
pub const ENDPOINTS: usize = 100_000;

/// Endpoints of one service: a slot names them in 16 bits, and each needs its slots.
pub const ENDPOINTS_PER_SERVICE: usize = 4_096;

/// Largest weight of an endpoint or a backend, as in the Gateway API.
pub const WEIGHT: u32 = 1_000_000;

/// Probes that run at the same time; others wait for their turn.
pub const PROBES: usize = 256;

/// Bytes of a probe's response that are read.
pub const PROBE_RESPONSE_BYTES: usize = 64 * 1024;

/// Time to finish what is being served after SIGTERM.
pub const DRAIN_DEADLINE: Duration = Duration::from_secs(30);
