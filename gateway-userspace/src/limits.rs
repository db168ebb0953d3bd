//! Every bound of the agent: its default and what happens when it is reached.

use std::time::Duration;

/// Bytes of one HTTP request head; beyond it the request is refused with 431.
pub const HEAD_BYTES: usize = 32 * 1024;

/// Header fields of one request; beyond it the request is refused with 431. As in Envoy's edge profile.
pub const HEADERS: usize = 100;

/// Time for a client of the operator's window to send a request head; then its connection is closed.
pub const ADMIN_HEAD_TIMEOUT: Duration = Duration::from_secs(10);

/// Seconds for which a connection waits in the kernel for its client to say something before the agent accepts it, where
/// clients speak first: as short as the kernel can.
pub const ACCEPT_DEFERRED_SECONDS: u8 = 1;

/// Time after which a client's departure is looked for that has not been waited for before, while its first response is under
/// way: most come sooner.
pub const DEPARTURE: Duration = Duration::from_millis(50);

/// How long a client is waited for whose connection ends, and that may still be sending: what is on its way to the client would
/// be lost if the connection were reset.
pub const LINGER: Duration = Duration::from_secs(2);

/// How often is looked meanwhile whether the client has it.
pub const LINGER_LOOK: Duration = Duration::from_millis(20);

/// How much of what the client sends is read meanwhile.
pub const LINGER_BYTES: usize = 256 * 1024;

/// Time for an endpoint to begin its response where the route says nothing; then the client gets 504. As long as in nginx.
pub const BACKEND_REQUEST_TIMEOUT: Duration = Duration::from_mins(1);

/// Time that one of the process's own keys makes session tickets, and then opens them as long again.
pub const TICKET_KEY_USE: Duration = Duration::from_hours(6);

/// Age of a session ticket beyond which it is refused and the handshake is a full one.
pub const TICKET_LIFETIME: Duration = Duration::from_hours(12);

/// Bytes of a session ticket that is looked at: it carries the client's certificates. A longer one counts as none.
pub const TICKET_BYTES: usize = 64 * 1024;

/// Bytes of a client's `ClientHello`, its records included; then its connection is closed. Those of browsers have 2 KiB.
pub const HELLO_BYTES: usize = 16 * 1024;

/// Time without a byte after which a connection that the agent forwards ends, where the listener says nothing.
pub const FORWARDED_IDLE: Duration = Duration::from_hours(1);

/// Bytes of a PROXY protocol header of version 2 after its length; then its connection is closed.
pub const PROXY_HEADER_BYTES: usize = 4 * 1024;

/// Networks that may send a PROXY protocol header to one listener.
pub const PROXY_SOURCES: usize = 64;

/// Networks whose tunnels end at this node: room in the kernel's row for them.
pub const TUNNEL_PEERS: usize = gateway_common::receive::Receive::PEERS;

/// How often a virtual address is announced on a link where it is new, a second apart (RFC 4861, section 10).
pub const ANNOUNCEMENTS: u32 = 3;

/// Questions about routes that wait for their answers at once; further ones wait for these.
pub const ROUTES_ASKED_AT_ONCE: usize = 64;

/// Announcements that are sent at once; further ones wait for the next second.
pub const ANNOUNCED_AT_ONCE: usize = 256;

/// Networks of virtual addresses that are announced.
pub const ANNOUNCED_NETWORKS: usize = 64;

/// Names of a client's certificate that are kept; further ones are left out.
pub const IDENTITY_NAMES: usize = 64;

/// Bytes of the header field that says who a client is; names beyond it are left out.
pub const IDENTITY_BYTES: usize = 4 * 1024;

/// Networks of each list of sources: the kernel has room for both, and for what else is refused.
pub const SOURCE_NETWORKS: usize = 16_384;

/// Virtual addresses whose echo requests the kernel programs answer: the index of services has room for so many keys beside
/// those of services. The stack answers for further ones.
pub const ECHO_ADDRS: usize = 512;

/// Sources that the dump names of those whose packets were refused.
pub const REFUSED_SOURCES: usize = 32;

/// Events of the kernel that the admin window shows; older ones are forgotten.
pub const EVENTS: usize = 256;

/// Events that are taken from the kernel at one look; further ones wait for the next, or are lost there and counted.
pub const EVENTS_AT_ONCE: usize = 1_024;

/// Events that are written to the log in a second; further ones are only shown.
pub const EVENTS_LOGGED: usize = 50;

/// Time in which the bucket of new flows has to fill again: beyond it the kernel would lose count.
pub const BURST_TIME: Duration = Duration::from_hours(1);

/// Questions to authorities about certificates that are under way at a time; further ones wait.
pub const OCSP_QUESTIONS: usize = 8;

/// Time for one of them, from the lookup of the name to the last byte; then it has failed.
pub const OCSP_TIMEOUT: Duration = Duration::from_secs(10);

/// Times that whoever is asked may send us elsewhere; then it has failed.
pub const OCSP_REDIRECTS: usize = 3;

/// Between two questions about a certificate at least; after failures it doubles.
pub const OCSP_SOONEST: Duration = Duration::from_secs(10);

/// Between two questions about a certificate at most, after a good answer: authorities give answers for days.
pub const OCSP_LATEST: Duration = Duration::from_hours(24);

/// Between two questions about a certificate at most, after failures.
pub const OCSP_BACK_OFF: Duration = Duration::from_hours(1);

/// Keys of session tickets that nodes share by a file.
pub const TICKET_KEYS: usize = 16;

/// Time for a connection to an endpoint, TLS included; then the next endpoint is tried.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

/// Concurrent streams of one downstream HTTP/2 connection.
pub const STREAMS: u32 = 100;

/// Bytes that a client may send ahead on one stream of HTTP/2, and on all streams of its connection: what endpoints have not
/// taken yet. It sends no more then.
pub const STREAM_WINDOW_BYTES: u32 = 256 * 1024;
/// See [`STREAM_WINDOW_BYTES`].
pub const CONNECTION_WINDOW_BYTES: u32 = 1024 * 1024;

/// Bytes that one stream of HTTP/2 may have waiting to be written to its client before more is read from the endpoint. A
/// client that opens all its streams and reads none holds a hundred times as much.
pub const STREAM_SEND_BYTES: usize = 16 * 1024;

/// Frames of HTTP/2 that carry nothing and that a client may send at once; beyond it its connection ends with
/// `ENHANCE_YOUR_CALM`. Requests, data and what is written to it earn it more, see `http::h2::frames`.
pub const CONTROL_FRAMES: u32 = 1_000;

/// Requests that a client may take back in ten seconds before they are answered; beyond it, and if they are most of its
/// requests, its connection ends with `ENHANCE_YOUR_CALM`.
pub const TAKEN_BACK: u32 = 200;

/// Streams that a client's mistakes may make us reset on one connection; beyond it the connection ends with
/// `ENHANCE_YOUR_CALM`.
pub const FAULTY_STREAMS: usize = 128;

/// Idle time after which a pooled upstream connection is closed.
pub const POOL_IDLE: Duration = Duration::from_mins(1);

/// Idle connections kept for one endpoint by one worker; the oldest is closed beyond it. As many as requests are under way
/// at once at a busy endpoint: with fewer, each wave of requests opens connections that the next one needs again.
pub const POOL_IDLE_CONNECTIONS: usize = 1_024;

/// Endpoints to which one client's connection keeps connections of its own, where endpoints are told who the client is;
/// beyond it the least recently used are given up.
pub const OWN_POOLS: usize = 64;

/// Connections to one endpoint from this agent, busy and idle; beyond it a request tries another endpoint, then gets 503.
pub const UPSTREAM_CONNECTIONS: usize = 8_192;

/// Streams that one upstream HTTP/2 connection carries before another is opened.
pub const UPSTREAM_STREAMS: usize = 100;

/// Interim responses of one try that are passed on to a client; further ones are left out.
pub const INTERIMS: usize = 16;

/// Bytes of interim responses that wait for a client who takes nothing; further ones are left out.
pub const INTERIM_BYTES: usize = 64 * 1024;

/// Time without a byte after which a tunnel (WebSocket, CONNECT) ends, where its rule says nothing.
pub const TUNNEL_IDLE: Duration = Duration::from_hours(1);

/// Tunnels that are open on one address; beyond it a request for one gets 503.
pub const TUNNELS: usize = 16_384;

/// Time that what is still done aside gets when everything else has ended.
pub const LAST_WORK: Duration = Duration::from_secs(1);

/// Time in which whoever asks the operator's window has to take some of a page: scrapers take all of it in a second.
pub const ADMIN_STALL: Duration = Duration::from_secs(10);

/// Time for which an endpoint may be silent in the middle of a response where the route says nothing: as long as tunnels may.
pub const RESPONSE_IDLE: Duration = Duration::from_hours(1);

/// Time for which a response is kept, whose last byte has come, for its endpoint to say over HTTP/2 that it was the last.
pub const STREAM_END: Duration = Duration::from_millis(100);

/// For so long after a request began, a kept connection that ends without an answer is taken for one that its endpoint had
/// ended before: the request goes to the same endpoint again, and costs nobody anything.
pub const RACE: Duration = Duration::from_secs(1);

/// Time for a tunnel to end by itself after the drain began; then it is closed.
pub const TUNNEL_DRAIN: Duration = Duration::from_secs(10);

/// Time for an endpoint of HTTP/2 to say that it takes extended CONNECT, which it does when it is connected to.
pub const SETTINGS_TIMEOUT: Duration = Duration::from_secs(1);

/// Bytes of a request's body that are remembered while it is sent; a longer one cannot be sent again.
pub const REPLAY_BYTES: usize = 64 * 1024;

/// Tries of one connection on different endpoints, the first included.
pub const TRIES: usize = 3;

/// Retries of one request where its rule says nothing.
pub const RETRIES: usize = TRIES - 1;

/// Retries of one request that a rule may ask for.
pub const RETRIES_AT_MOST: usize = 10;

/// Wait before a retry where its rule says nothing. As in Envoy.
pub const RETRY_BACKOFF: Duration = Duration::from_millis(25);

/// Copies of requests that one worker has under way; beyond it requests are not copied.
pub const MIRRORS: usize = 256;

/// Bytes of a copied body that wait for the mirror, and bytes of its answer that are read; beyond it the copy ends.
pub const MIRROR_BYTES: usize = 256 * 1024;

/// Time for a copy and its answer; then it ends.
pub const MIRROR_TIMEOUT: Duration = Duration::from_mins(1);

/// Downstream connections of one worker, or fewer where descriptors are scarce; beyond it the oldest waiting ones stay in
/// the kernel's queue.
pub const CONNECTIONS_PER_WORKER: usize = 16_384;

/// Connections that wait in the kernel for `accept`; beyond it the kernel drops SYNs.
pub const ACCEPT_BACKLOG: i32 = 4_096;

/// UDP flows that a worker forwards without the kernel's help, of all addresses, or fewer where descriptors are scarce; beyond
/// it the oldest is forgotten.
pub const UDP_FLOWS: usize = 16_384;

/// Connections to endpoints for each worker: a client of HTTP/2 may need many.
pub const UPSTREAM_PER_WORKER: usize = 65_536;

/// Silence after which a UDP flow is forgotten.
pub const UDP_FLOW_IDLE: Duration = Duration::from_mins(1);

/// Bytes of the access log that each worker holds for the writer, which has as much in hand; beyond it lines are dropped.
pub const ACCESS_LOG_BYTES: usize = 1024 * 1024;

/// Time for the rest of the access log to be written when the agent ends.
pub const ACCESS_LOG_PATIENCE: Duration = Duration::from_secs(2);

/// Bytes of a configuration file.
pub const CONFIG_BYTES: u64 = 16 * 1024 * 1024;

/// Ranges of ports of a listener, and of all listeners of an address and protocol: packets go through them one by one.
pub const PORT_RANGES: usize = 32;

/// Ranges of ports of all listeners: half of the kernel's rows, so that new ones are written beside the old.
pub const ALL_PORT_RANGES: usize = 2_048;

/// Listeners, routes and services of a snapshot, each.
pub const NAMED_THINGS: usize = 10_000;

/// Regular expressions of all matches together: each is tried by itself, and takes memory in every worker.
pub const PATTERNS: usize = 1_000;

/// Endpoints of all services together.
pub const ENDPOINTS: usize = 100_000;

/// Endpoints of one service: a slot names them in 16 bits, and each needs its slots.
pub const ENDPOINTS_PER_SERVICE: usize = 4_096;

/// Largest weight of an endpoint or a backend, as in the Gateway API.
pub const WEIGHT: u32 = 1_000_000;

/// Probes that run at the same time; others wait for their turn. Silent endpoints hold their place for the whole timeout,
/// so it takes thousands of them to make the others late.
pub const PROBES: usize = 4_096;

/// Endpoints of services with `passiveHealth` whose attempts are looked at in a second, which takes the control thread
/// some hundredths of it; where there are more, each service is looked at less often.
pub const WATCHED_ENDPOINTS: usize = 8_192;

/// Interfaces of pods that get hooks, several times what a node has; others are left out and counted, and their packets are
/// not balanced.
pub const PODS: usize = 1_024;

/// Ports that a probe through a tunnel tries until one is free in the kernel's table; then it fails.
pub const PROBE_PORTS: usize = 8;

/// Bytes of a probe's response that are read.
pub const PROBE_RESPONSE_BYTES: usize = 64 * 1024;

/// Time to finish what is being served after SIGTERM.
pub const DRAIN_DEADLINE: Duration = Duration::from_secs(30);

/// Time in which a peer acknowledges nothing of what was sent; then its connection is closed (`TCP_USER_TIMEOUT`).
pub const UNACKNOWLEDGED: Duration = Duration::from_secs(30);

/// How a silent peer is asked whether it still is there: after a minute, four times in a minute more. It ends connections
/// whose other side vanished, which nothing else would notice where nothing is sent.
pub const fn keepalive() -> socket2::TcpKeepalive {
    socket2::TcpKeepalive::new()
        .with_time(Duration::from_mins(1))
        .with_interval(Duration::from_secs(15))
        .with_retries(4)
}

/// File descriptors that are not for connections: sockets that listen, maps, files, health checks.
pub const RESERVED_DESCRIPTORS: usize = 512;

/// What one worker may hold of the process's descriptors.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Share {
    /// Downstream connections.
    pub connections: usize,
    /// Connections to endpoints, which all workers have together.
    pub upstream: usize,
    /// UDP flows that it forwards without the kernel's help, of all addresses.
    pub udp_flows: usize,
    /// There are too few for both: each flow takes the place of a connection.
    pub is_scarce: bool,
}

impl Share {
    /// What each of so many workers may hold with so many descriptors for the process: two for a connection, which may need
    /// one towards an endpoint, too, and one for a flow of UDP; what is left is for connections to endpoints, too. Flows may have half of the places where they take those of
    /// connections.
    pub const fn per_worker(n_descriptors: usize, n_workers: usize) -> Self {
        let n_workers = if n_workers == 0 { 1 } else { n_workers };
        let share = n_descriptors.saturating_sub(RESERVED_DESCRIPTORS) / n_workers;
        let connections = bounded(share / 2, CONNECTIONS_PER_WORKER);
        let is_scarce = share < 2 * connections + UDP_FLOWS;
        let udp_flows = if is_scarce { bounded(connections / 2, UDP_FLOWS) } else { UDP_FLOWS };
        let beside = if is_scarce { 0 } else { udp_flows };
        let upstream = bounded(share.saturating_sub(connections + beside), UPSTREAM_PER_WORKER);
        Self { connections, upstream, udp_flows, is_scarce }
    }

    /// Idle connections to endpoints, of all together; the oldest are closed beyond it. They are in the place of those that
    /// clients who wait do not need.
    pub const fn idle_upstream(self) -> usize {
        self.connections / 2
    }
}

/// Without a few nothing would be served at all.
const fn bounded(n: usize, most: usize) -> usize {
    if n < 16 {
        16
    } else if n > most {
        most
    } else {
        n
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workers_together_need_no_more_descriptors_than_there_are() {
        for n_workers in [1, 4, 64] {
            for n_descriptors in [8_192, 20_000, 65_536, 524_288, 1 << 30] {
                let share = Share::per_worker(n_descriptors, n_workers);
                let beside = if share.is_scarce { 0 } else { share.udp_flows };
                let needed = n_workers * (share.connections + share.upstream + beside) + RESERVED_DESCRIPTORS;
                assert!(needed <= n_descriptors, "{share:?} of {n_workers} with {n_descriptors}");
            }
        }
        let most = Share {
            connections: CONNECTIONS_PER_WORKER,
            upstream: UPSTREAM_PER_WORKER,
            udp_flows: UDP_FLOWS,
            is_scarce: false,
        };
        assert_eq!(Share::per_worker(524_288, 4), most);
        let least = Share { connections: 16, upstream: 16, udp_flows: 16, is_scarce: true };
        assert_eq!(Share::per_worker(64, 0), least);
    }
}
