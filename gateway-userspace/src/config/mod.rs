//! Settings of this process, final and typed, and the way a configuration file is read: a tree with places, shapes
//! for every key, readers that report every fault at once.

use std::{net::SocketAddr, num::NonZeroUsize, ops::RangeInclusive, path::PathBuf, time::Duration};

use gateway_common::settings::Tunnel;

use crate::{network::Network, secret::Secret};

pub mod agent;
pub mod args;
pub mod fault;
pub mod files;
pub mod keys;
pub mod read;
pub mod reference;
pub mod schema;
pub mod shape;
pub mod text;
pub mod yaml;

/// The settings of this process and where they came from.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Config {
    /// The configuration file, as it was named.
    pub file: PathBuf,
    /// Its `agent` part.
    pub agent: AgentSettings,
}

/// Settings of the process; a change needs a restart.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct AgentSettings {
    /// Threads that serve connections.
    pub workers: NonZeroUsize,
    /// Time to finish what is being served after SIGTERM.
    pub drain_deadline: Duration,
    /// Folder for what the next start should know; none keeps nothing.
    pub state_folder: Option<PathBuf>,
    /// Where the operator's window is served.
    pub admin: SocketAddr,
    /// The log.
    pub log: LogSettings,
    /// The log of requests; none writes nothing.
    pub access_log: Option<AccessSettings>,
    /// Trace context of requests.
    pub trace: TraceSettings,
    /// When there is too much to do.
    pub overload: OverloadSettings,
    /// What one client may hold.
    pub per_client: ClientSettings,
    /// How long clients are waited for.
    pub client_timeouts: ClientTimeouts,
    /// What the agent does in the kernel.
    pub kernel: KernelSettings,
}

/// What one client may hold; a client is an IPv4 address, or 64 bits of an IPv6 address.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct ClientSettings {
    /// Connections, of all listeners.
    pub connections: usize,
    /// Streams of HTTP/2, of all its connections.
    pub streams: usize,
}

/// How long clients are waited for, by what they are to do.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct ClientTimeouts {
    /// A load balancer in front to send its PROXY protocol header.
    pub proxy_header: Duration,
    /// A `ClientHello` to arrive, where TLS ends at the endpoint.
    pub hello: Duration,
    /// A TLS handshake to end.
    pub handshake: Duration,
    /// A first request to begin, and the head of any to end.
    pub head: Duration,
    /// The next request to begin.
    pub idle: Duration,
    /// A client of HTTP/2 to answer whether it is there, which it is asked after as long a silence.
    pub answer: Duration,
    /// Any piece of a request's body to arrive, or any of a response to be taken.
    pub stall: Duration,
    /// Bytes that a client sends of a body, or takes of a response over HTTP/2, for each second that it is waited for
    /// beyond `stall`.
    pub bytes_per_second: u32,
}

/// When there is too much to do; requests are refused then.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct OverloadSettings {
    /// Requests under way, of all workers.
    pub requests: usize,
    /// How late a worker may come to what is due.
    pub delay: Duration,
    /// Memory of the process; none takes most of what there is.
    pub memory_bytes: Option<u64>,
}

/// The log, on standard error.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct LogSettings {
    /// The least severe messages that are written.
    pub level: LogLevel,
    /// Lines for people or for machines.
    pub format: LogFormat,
}

/// Severity of a log message.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum LogLevel {
    /// Something failed.
    Error,
    /// Something is not as it should be.
    Warn,
    /// Something changed.
    Info,
    /// What an author needs.
    Debug,
    /// Everything.
    Trace,
}

/// Form of a log message.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum LogFormat {
    /// Lines for people.
    Text,
    /// One JSON object per line.
    Json,
}

/// The log of requests.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct AccessSettings {
    /// Where it is written.
    pub output: AccessOutput,
    /// What each line has.
    pub fields: Vec<AccessField>,
    /// Share of the requests that are written.
    pub sample_percent: u32,
}

/// Where the log of requests is written.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum AccessOutput {
    /// To standard output.
    Stdout,
    /// To the end of this file.
    File(PathBuf),
}

/// Trace context of requests.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct TraceSettings {
    /// Whether a request without one gets one.
    pub is_created: bool,
    /// Share of those that say that they are recorded.
    pub sampled_percent: u32,
}

macro_rules! access_fields {
    ($($name:ident, $word:literal, $doc:literal;)*) => {
        /// What a line of the log of requests may have.
        #[derive(Clone, Copy, Debug, Eq, PartialEq)]
        pub enum AccessField {
            $(#[doc = $doc] $name,)*
        }

        impl AccessField {
            /// All of them, in the order of a line.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// Their words.
            pub const WORDS: &'static [&'static str] = &[$($word,)*];

            /// The word of the configuration, and the key in a line.
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$name => $word,)*
                }
            }

            /// Its place in [`AccessField::ALL`].
            #[expect(clippy::as_conversions, reason = "a fieldless enum's number, the order of `ALL`")]
            pub const fn index(self) -> usize {
                self as usize
            }
        }
    };
}

access_fields! {
    Time, "time", "When the request began, RFC 3339 in UTC with milliseconds.";
    Listener, "listener", "Name of the listener; absent when none serves the host name.";
    Route, "route", "Name of the route; absent when none matches.";
    Client, "client", "Address of the client's connection.";
    ServerName, "serverName", "The name that the TLS connection was opened for.";
    Method, "method", "Method.";
    Host, "host", "Host that was asked for, as it was written.";
    Target, "target", "Path and query as they came.";
    Protocol, "protocol", "What the client speaks, such as HTTP/2.0.";
    UserAgent, "userAgent", "The field of that name.";
    Trace, "trace", "Trace that the request belongs to, 32 digits.";
    Status, "status", "Status of the response.";
    Refusal, "refusal", "Why bytes were refused that are no request; absent where they are one.";
    Fault, "fault", "Kind of the fault that the gateway answered for; absent when there was none.";
    Service, "service", "Name of the service; absent when nothing was forwarded.";
    Endpoint, "endpoint", "Address of the endpoint that answered.";
    Retries, "retries", "Retries before that.";
    HeadTime, "headTime", "Microseconds until the head of the response.";
    BytesSent, "bytesSent", "Bytes of the response's body.";
    Duration, "duration", "Microseconds until the response had ended.";
    Complete, "complete", "Whether the response ended as it should.";
}

/// What the agent does in the kernel.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct KernelSettings {
    /// Whether it does anything there.
    pub mode: KernelMode,
    /// Interfaces whose packets are balanced.
    pub interfaces: Interfaces,
    /// Interfaces behind which local pods are.
    pub pods: Vec<InterfacePattern>,
    /// Where packets are seen.
    pub attach: AttachMode,
    /// The BPF file system that holds pinned maps and links.
    pub bpffs: PathBuf,
    /// Source ports of translated packets.
    pub translation_ports: RangeInclusive<u16>,
    /// The cluster's seed.
    pub seed: SeedSource,
    /// Flows that the kernel remembers; none for as many as suit the node's memory.
    pub flows: Option<u32>,
    /// How long slots remember the endpoints before a change.
    pub change_window: Duration,
    /// Silence of a worker after which listeners fail open.
    pub fail_open_after: Duration,
    /// Whether the programs answer echo requests, rather than the stack.
    pub echo: bool,
    /// How tunnelled packets look on the outside.
    pub tunnel: Tunnel,
    /// Tunnels that end at this node.
    pub receive: Option<ReceiveSettings>,
    /// Packets that each processor tells of for each reason, in a second; zero for none.
    pub events: u16,
    /// Whose sockets are translated.
    pub connect: Option<ConnectSettings>,
    /// Where which virtual addresses are to be found on the link.
    pub announce: Option<AnnounceSettings>,
}

/// Virtual addresses that this node answers for on links.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct AnnounceSettings {
    /// The addresses, by the networks that they are in.
    pub networks: Vec<Network>,
    /// Names of the interfaces.
    pub interfaces: Vec<InterfacePattern>,
}

/// Processes whose sockets get an endpoint's address instead of a virtual one.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ConnectSettings {
    /// The folder of their control group.
    pub cgroup: PathBuf,
    /// Sockets and endpoints that are remembered.
    pub sockets: u32,
}

/// The receiving end of tunnels.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ReceiveSettings {
    /// Networks of the outer source addresses.
    pub peers: Vec<Network>,
    /// Interfaces where tunnelled packets come in.
    pub interfaces: Interfaces,
    /// UDP port of GUE.
    pub port: u16,
}

/// Whether eBPF is used.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum KernelMode {
    /// Where it is possible; otherwise userspace does the same.
    Auto,
    /// The agent ends when it is impossible.
    Required,
    /// Never.
    Off,
}

/// Where packets are seen.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum AttachMode {
    /// The first that works on each interface.
    Auto,
    /// XDP in the driver.
    Native,
    /// XDP after the driver.
    Generic,
    /// Traffic control.
    Tc,
}

/// Which interfaces are attached to.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Interfaces {
    /// Those that carry a default route.
    DefaultRoute,
    /// Those whose name matches one of these.
    Matching(Vec<InterfacePattern>),
}

/// The name of an interface, in which `*` stands for any letters, or none.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct InterfacePattern(String);

/// Where the cluster's seed comes from.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum SeedSource {
    /// From a file: 16 bytes, the same on every node.
    Given(Secret),
    /// Made once by this node and kept in its pinned `settings` map.
    Node,
}

impl LogLevel {
    /// The word of the configuration, which is also that of `tracing`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warn => "warn",
            Self::Info => "info",
            Self::Debug => "debug",
            Self::Trace => "trace",
        }
    }
}

impl InterfacePattern {
    /// Takes a pattern that [`text::interface`] has checked.
    pub(crate) fn new(pattern: &str) -> Self {
        Self(pattern.to_owned())
    }

    /// The pattern as it was written.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether an interface of that name is meant.
    pub fn matches(&self, name: &str) -> bool {
        let mut parts = self.0.split('*');
        let Some(mut rest) = parts.next().and_then(|first| name.strip_prefix(first)) else { return false };
        let mut parts = parts.peekable();
        if parts.peek().is_none() {
            return rest.is_empty();
        }
        while let Some(part) = parts.next() {
            if parts.peek().is_none() {
                return rest.ends_with(part);
            }
            let Some((_, after)) = rest.split_once(part) else { return false };
            rest = after;
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_whole_names() {
        let check = |pattern: &str, name: &str, expected: bool| {
            assert_eq!(InterfacePattern::new(pattern).matches(name), expected, "{pattern} {name}");
        };
        check("eth0", "eth0", true);
        check("eth0", "eth01", false);
        check("eth*", "eth", true);
        check("eth*", "eth12", true);
        check("eth*", "veth1", false);
        check("*", "lo", true);
        check("*0", "eth0", true);
        check("*0", "eth01", false);
        check("e*h*1", "enp3h21", true);
        check("e*h*1", "enp3h22", false);
        check("a*a", "a", false);
        check("v**1", "veth1", true);
    }
}
