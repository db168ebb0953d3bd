//! Every key of the configuration file: its shape, its bounds, its default and what it means.

use std::time::Duration;

use crate::{
    config::shape::{Field, List, Presence, Shape, Table, Text},
    limits,
};

use Presence::{Absent, Default, Required};

const PORT: Shape = Shape::Integer { min: 1, max: 65_535 };
const TIMEOUT: Shape = Shape::Duration { min: Duration::ZERO, max: Duration::from_hours(24) };
const PROBE_TIME: Shape = Shape::Duration { min: Duration::from_millis(10), max: Duration::from_hours(1) };
const THRESHOLD: Shape = Shape::Integer { min: 1, max: 100 };

const fn weight() -> Shape {
    Shape::Integer { min: 0, max: limits::WEIGHT as u64 }
}

macro_rules! text {
    ($name:ident, $what:literal, $example:literal, $pattern:literal) => {
        text!($name, $what, $example, $pattern, false);
    };
    ($name:ident, $what:literal, $example:literal, $pattern:literal, $number:literal) => {
        static $name: Text = Text { what: $what, example: $example, pattern: $pattern, number: $number };
    };
}

text!(NAME, "a name", "web", "^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$");
text!(HOSTNAME, "a host name", "*.example.org", r"^(\*\.)?[A-Za-z0-9]([-A-Za-z0-9.]*[A-Za-z0-9])?$");
text!(HOST, "a value of the `host` header", "app.example.org", "^[!-~]+$");
text!(ADDRESS, "the IP address of a machine", "10.0.0.10", "^[0-9a-fA-F.:]+$");
text!(SOCKET_ADDRESS, "an IP address and a port", "127.0.0.1:9901", r"^[0-9a-fA-F.:\[\]]+:[0-9]+$");
text!(FILE, "a usable file", "web.pem", "^.+$");
text!(DIRECTORY, "the absolute path of a directory", "/sys/fs/bpf", "^/.*$");
text!(PATH, "a path", "/api", "^/[^?#]*$");
text!(HEADER_NAME, "the name of a header field", "x-canary", "^[!#$%&'*+.^_`|~0-9A-Za-z-]+$");
text!(HEADER_VALUE, "the value of a header field", "1", r"^\S(.*\S)?$");
text!(QUERY, "text", "2", "^.+$");
text!(INTERFACE, "the name of an interface, or a pattern of one", "eth*", "^[^/ ]{1,31}$");
text!(PORTS, "a range of ports", "61000-65535", "^[0-9]+-[0-9]+$");
text!(STATUSES, "a status or a range of statuses", "200-399", "^[1-5][0-9]{2}(-[1-5][0-9]{2})?$", true);

/// The whole file.
pub static ROOT: Table = Table {
    name: "file",
    doc: "The file has two parts: `agent` holds settings of the process and takes effect when it starts; the rest is \
          what is wanted and takes effect as soon as the file changes.",
    fields: &[
        Field {
            key: "agent",
            shape: Shape::Table(&AGENT),
            presence: Absent("every setting has its default"),
            doc: "Settings of the process. A change needs a restart; a reload says so.",
        },
        Field {
            key: "listeners",
            shape: Shape::List(&List { item: Shape::Table(&LISTENER), min: 0, max: limits::NAMED_THINGS }),
            presence: Required("[]"),
            doc: "Addresses to accept on.",
        },
        Field {
            key: "routes",
            shape: Shape::List(&List { item: Shape::Table(&ROUTE), min: 0, max: limits::NAMED_THINGS }),
            presence: Absent("no routes"),
            doc: "Which requests and connections go to which services.",
        },
        Field {
            key: "services",
            shape: Shape::List(&List { item: Shape::Table(&SERVICE), min: 0, max: limits::NAMED_THINGS }),
            presence: Absent("no services"),
            doc: "Named groups of endpoints.",
        },
    ],
    one_of: &[],
};

/// Settings of the process.
pub static AGENT: Table = Table {
    name: "agent",
    doc: "Settings of the process.",
    fields: &[
        Field {
            key: "workers",
            shape: Shape::Integer { min: 1, max: 1_024 },
            presence: Absent("one for each CPU that the process may use"),
            doc: "Threads that serve connections.",
        },
        Field {
            key: "drainDeadline",
            shape: Shape::Duration { min: Duration::ZERO, max: Duration::from_hours(1) },
            presence: Default("30s"),
            doc: "Time to finish what is being served after SIGTERM.",
        },
        Field {
            key: "admin",
            shape: Shape::Table(&ADMIN),
            presence: Absent("every setting has its default"),
            doc: "The operator's window: metrics, readiness, dumps.",
        },
        Field {
            key: "log",
            shape: Shape::Table(&LOG),
            presence: Absent("every setting has its default"),
            doc: "The log, on standard error.",
        },
        Field {
            key: "kernel",
            shape: Shape::Table(&KERNEL),
            presence: Absent("every setting has its default"),
            doc: "What the agent does in the kernel.",
        },
    ],
    one_of: &[],
};

static ADMIN: Table = Table {
    name: "admin",
    doc: "The operator's window. It has no authentication: leave it on an address that only the node reaches.",
    fields: &[Field {
        key: "address",
        shape: Shape::Text(&SOCKET_ADDRESS),
        presence: Default("127.0.0.1:9901"),
        doc: "Where it is served.",
    }],
    one_of: &[],
};

static LOG: Table = Table {
    name: "log",
    doc: "The log, on standard error.",
    fields: &[
        Field {
            key: "level",
            shape: Shape::Word(&["error", "warn", "info", "debug", "trace"]),
            presence: Default("info"),
            doc: "The least severe messages that are written.",
        },
        Field {
            key: "format",
            shape: Shape::Word(&["text", "json"]),
            presence: Default("text"),
            doc: "Lines for people or for machines.",
        },
    ],
    one_of: &[],
};

static KERNEL: Table = Table {
    name: "kernel",
    doc: "What the agent does in the kernel.",
    fields: &[
        Field {
            key: "mode",
            shape: Shape::Word(&["auto", "required", "off"]),
            presence: Default("auto"),
            doc: "`auto` uses eBPF where the kernel and the privileges allow and says once what is lost otherwise; \
                  `required` ends the agent instead; `off` serves everything in userspace.",
        },
        Field {
            key: "interfaces",
            shape: Shape::List(&List { item: Shape::Text(&INTERFACE), min: 1, max: 64 }),
            presence: Absent("the interfaces that carry a default route"),
            doc: "Interfaces whose packets are balanced; `*` stands for any letters. They may come and go.",
        },
        Field {
            key: "attach",
            shape: Shape::Word(&["auto", "native", "generic", "tc"]),
            presence: Default("auto"),
            doc: "Where packets are seen: XDP in the driver, generic XDP, or TC; `auto` takes the first that works \
                  on each interface.",
        },
        Field {
            key: "bpffs",
            shape: Shape::Text(&DIRECTORY),
            presence: Default("/sys/fs/bpf"),
            doc: "The BPF file system that holds pinned maps and links.",
        },
        Field {
            key: "translationPorts",
            shape: Shape::Text(&PORTS),
            presence: Default("61000-65535"),
            doc: "Source ports of translated packets; at least 64 above 1023, outside the kernel's own \
                  `net.ipv4.ip_local_port_range`.",
        },
        Field {
            key: "seedFile",
            shape: Shape::Text(&FILE),
            presence: Absent("the node makes a seed once and keeps it in its pinned `settings` map"),
            doc: "File with the cluster's seed, 16 bytes as 32 hexadecimal digits, the same on every node that shares \
                  virtual addresses. Keep it secret: whoever knows it can aim at an endpoint.",
        },
        Field {
            key: "flows",
            shape: Shape::Integer { min: 1_024, max: 16_777_216 },
            presence: Default("262144"),
            doc: "Flows that the kernel remembers; beyond it the least recently used is forgotten.",
        },
    ],
    one_of: &[],
};

/// A listener.
pub static LISTENER: Table = Table {
    name: "listener",
    doc: "An address to accept on. HTTP and HTTPS listeners may share an address and port when their host names \
          differ; TCP and UDP listeners have theirs alone.",
    fields: &[
        Field {
            key: "name",
            shape: Shape::Text(&NAME),
            presence: Required("web"),
            doc: "Unique among listeners.",
        },
        Field {
            key: "address",
            shape: Shape::Text(&ADDRESS),
            presence: Required("10.0.0.10"),
            doc: "Virtual address, IPv4 or IPv6.",
        },
        Field { key: "port", shape: PORT, presence: Required("443"), doc: "Port." },
        Field {
            key: "protocol",
            shape: Shape::Word(&["HTTP", "HTTPS", "TCP", "UDP"]),
            presence: Required("HTTP"),
            doc: "What is spoken there. HTTP includes HTTP/2 by prior knowledge; HTTPS ends TLS here.",
        },
        Field {
            key: "hostname",
            shape: Shape::Text(&HOSTNAME),
            presence: Absent("all names"),
            doc: "Serves only requests for this name; `*.` stands for one label or more. HTTP and HTTPS only.",
        },
        Field {
            key: "tls",
            shape: Shape::Table(&TLS),
            presence: Absent("no TLS"),
            doc: "Required for HTTPS, refused for others.",
        },
        Field {
            key: "forwarding",
            shape: Shape::Word(&["nat"]),
            presence: Absent("`nat`"),
            doc: "How packets reach the endpoint: `nat` translates addresses, and replies come back through this \
                  node. TCP and UDP only.",
        },
    ],
    one_of: &[],
};

static TLS: Table = Table {
    name: "tls",
    doc: "TLS of an HTTPS listener.",
    fields: &[Field {
        key: "certificates",
        shape: Shape::List(&List { item: Shape::Table(&CERTIFICATE), min: 1, max: 64 }),
        presence: Required("[{certificateFile: web.pem, keyFile: web.key}]"),
        doc: "Certificates with their keys; the client's server name picks one.",
    }],
    one_of: &[],
};

static CERTIFICATE: Table = Table {
    name: "certificate",
    doc: "A certificate chain and its key. Relative paths start at the folder of the configuration file; the files \
          are watched, too.",
    fields: &[
        Field {
            key: "certificateFile",
            shape: Shape::Text(&FILE),
            presence: Required("web.pem"),
            doc: "PEM file with the chain, leaf first.",
        },
        Field {
            key: "keyFile",
            shape: Shape::Text(&FILE),
            presence: Required("web.key"),
            doc: "PEM file with the key, unencrypted: PKCS#8, PKCS#1 or SEC1.",
        },
    ],
    one_of: &[],
};

/// A route.
pub static ROUTE: Table = Table {
    name: "route",
    doc: "Which requests or connections go to which services. The most specific match wins, as in the Gateway API. A \
          route on a TCP or UDP listener has one rule, without matches, host names or timeouts.",
    fields: &[
        Field {
            key: "name",
            shape: Shape::Text(&NAME),
            presence: Required("web"),
            doc: "Unique among routes.",
        },
        Field {
            key: "listeners",
            shape: Shape::List(&List { item: Shape::Text(&NAME), min: 1, max: 64 }),
            presence: Required("[web]"),
            doc: "Names of the listeners it is attached to.",
        },
        Field {
            key: "hostnames",
            shape: Shape::List(&List { item: Shape::Text(&HOSTNAME), min: 1, max: 64 }),
            presence: Absent("those of the listener"),
            doc: "Names it serves; each has to overlap with the name of a listener.",
        },
        Field {
            key: "rules",
            shape: Shape::List(&List { item: Shape::Table(&RULE), min: 1, max: 256 }),
            presence: Required("[{backends: [{service: app}]}]"),
            doc: "What follows, in order.",
        },
    ],
    one_of: &[],
};

static RULE: Table = Table {
    name: "rule",
    doc: "Matches and what follows.",
    fields: &[
        Field {
            key: "matches",
            shape: Shape::List(&List { item: Shape::Table(&MATCH), min: 1, max: 64 }),
            presence: Absent("every request"),
            doc: "Any of these.",
        },
        Field {
            key: "backends",
            shape: Shape::List(&List { item: Shape::Table(&BACKEND), min: 1, max: 64 }),
            presence: Required("[{service: app}]"),
            doc: "Where requests go, by weight.",
        },
        Field {
            key: "timeouts",
            shape: Shape::Table(&TIMEOUTS),
            presence: Absent("no bound"),
            doc: "Bounds on time. HTTP and HTTPS only.",
        },
    ],
    one_of: &[],
};

static MATCH: Table = Table {
    name: "match",
    doc: "A match; all its parts must hold.",
    fields: &[
        Field {
            key: "path",
            shape: Shape::Table(&PATH_MATCH),
            presence: Absent("any path"),
            doc: "Of the path.",
        },
        Field {
            key: "method",
            shape: Shape::Word(&[
                "GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH",
            ]),
            presence: Absent("any method"),
            doc: "Of the method.",
        },
        Field {
            key: "headers",
            shape: Shape::List(&List { item: Shape::Table(&HEADER_MATCH), min: 1, max: 16 }),
            presence: Absent("any headers"),
            doc: "Of header fields, each exactly.",
        },
        Field {
            key: "queryParams",
            shape: Shape::List(&List { item: Shape::Table(&QUERY_MATCH), min: 1, max: 16 }),
            presence: Absent("any parameters"),
            doc: "Of query parameters, each exactly.",
        },
    ],
    one_of: &[],
};

static PATH_MATCH: Table = Table {
    name: "pathMatch",
    doc: "A match of the path.",
    fields: &[
        Field {
            key: "type",
            shape: Shape::Word(&["Exact", "PathPrefix"]),
            presence: Default("PathPrefix"),
            doc: "`Exact` compares the whole path; `PathPrefix` whole segments from the start: `/api` matches \
                  `/api` and `/api/x`, not `/apix`.",
        },
        Field {
            key: "value",
            shape: Shape::Text(&PATH),
            presence: Default("/"),
            doc: "Path, at most 1,024 bytes, as it is sent: percent-encoded, without query.",
        },
    ],
    one_of: &[],
};

static HEADER_MATCH: Table = Table {
    name: "headerMatch",
    doc: "A match of a header field.",
    fields: &[
        Field {
            key: "name",
            shape: Shape::Text(&HEADER_NAME),
            presence: Required("x-canary"),
            doc: "Name, in any case, at most 256 bytes.",
        },
        Field {
            key: "value",
            shape: Shape::Text(&HEADER_VALUE),
            presence: Required("\"1\""),
            doc: "The whole value, in this case, at most 4,096 bytes.",
        },
    ],
    one_of: &[],
};

static QUERY_MATCH: Table = Table {
    name: "queryMatch",
    doc: "A match of a query parameter.",
    fields: &[
        Field {
            key: "name",
            shape: Shape::Text(&QUERY),
            presence: Required("version"),
            doc: "Name, in this case, at most 256 bytes.",
        },
        Field {
            key: "value",
            shape: Shape::Text(&QUERY),
            presence: Required("\"2\""),
            doc: "The whole value, in this case, at most 1,024 bytes.",
        },
    ],
    one_of: &[],
};

static BACKEND: Table = Table {
    name: "backend",
    doc: "A weighted reference to a service.",
    fields: &[
        Field {
            key: "service",
            shape: Shape::Text(&NAME),
            presence: Required("app"),
            doc: "Name of the service. When a request goes to one that does not exist, it is answered with 500.",
        },
        Field {
            key: "weight",
            shape: weight(),
            presence: Default("1"),
            doc: "Share relative to the other backends; 0 gets nothing.",
        },
    ],
    one_of: &[],
};

static TIMEOUTS: Table = Table {
    name: "timeouts",
    doc: "Bounds on time; `0s` means none.",
    fields: &[
        Field {
            key: "request",
            shape: TIMEOUT,
            presence: Absent("no bound"),
            doc: "On the whole exchange, tries on other endpoints included.",
        },
        Field {
            key: "backendRequest",
            shape: TIMEOUT,
            presence: Absent("no bound"),
            doc: "On each try; at most `request`.",
        },
    ],
    one_of: &[],
};

/// A service.
pub static SERVICE: Table = Table {
    name: "service",
    doc: "A named group of endpoints.",
    fields: &[
        Field {
            key: "name",
            shape: Shape::Text(&NAME),
            presence: Required("app"),
            doc: "Unique among services.",
        },
        Field {
            key: "endpoints",
            shape: Shape::List(&List {
                item: Shape::Table(&ENDPOINT),
                min: 0,
                max: limits::ENDPOINTS_PER_SERVICE,
            }),
            presence: Required("[{address: 10.1.0.2, port: 8080}]"),
            doc: "Its endpoints; an address and port occurs once.",
        },
        Field {
            key: "protocol",
            shape: Shape::Word(&["http1", "h2c"]),
            presence: Default("http1"),
            doc: "What endpoints speak when requests are sent to them: HTTP/1.1, or HTTP/2 by prior knowledge.",
        },
        Field {
            key: "balance",
            shape: Shape::Word(&["roundRobin", "leastRequest", "maglev"]),
            presence: Default("roundRobin"),
            doc: "How an endpoint is picked for a request: in turn by weight, the less loaded of two, or by the \
                  client's address and port. Packets are always balanced by Maglev.",
        },
        Field {
            key: "connectTimeout",
            shape: Shape::Duration { min: Duration::from_millis(10), max: Duration::from_mins(5) },
            presence: Default("1s"),
            doc: "Bound on opening a connection.",
        },
        Field {
            key: "health",
            shape: Shape::Table(&HEALTH),
            presence: Absent("endpoints are trusted"),
            doc: "How the agent knows that an endpoint is alive.",
        },
    ],
    one_of: &[],
};

static ENDPOINT: Table = Table {
    name: "endpoint",
    doc: "One address of a service.",
    fields: &[
        Field {
            key: "address",
            shape: Shape::Text(&ADDRESS),
            presence: Required("10.1.0.2"),
            doc: "Address, IPv4 or IPv6. Endpoints of a TCP or UDP listener have the family of the listener.",
        },
        Field { key: "port", shape: PORT, presence: Required("8080"), doc: "Port." },
        Field {
            key: "weight",
            shape: weight(),
            presence: Default("1"),
            doc: "Share of new flows relative to the other endpoints; 0 gets no new ones and keeps those it has.",
        },
    ],
    one_of: &[],
};

static HEALTH: Table = Table {
    name: "health",
    doc: "An active health check. A refused or reset connection takes an endpoint down at once, a silent or wrong one \
          after `unhealthyThreshold` checks.",
    fields: &[
        Field {
            key: "http",
            shape: Shape::Table(&HTTP_CHECK),
            presence: Absent("`tcp` is written"),
            doc: "Sends a GET request over HTTP/1.1.",
        },
        Field {
            key: "tcp",
            shape: Shape::Table(&TCP_CHECK),
            presence: Absent("`http` is written"),
            doc: "Opens a TCP connection and closes it.",
        },
        Field {
            key: "interval",
            shape: PROBE_TIME,
            presence: Default("1s"),
            doc: "From the start of one check to the start of the next.",
        },
        Field {
            key: "timeout",
            shape: PROBE_TIME,
            presence: Default("500ms"),
            doc: "Bound on one check; below `interval`.",
        },
        Field {
            key: "unhealthyThreshold",
            shape: THRESHOLD,
            presence: Default("2"),
            doc: "Silent or wrong checks in a row that take an endpoint down.",
        },
        Field {
            key: "healthyThreshold",
            shape: THRESHOLD,
            presence: Default("1"),
            doc: "Passed checks in a row that bring it back.",
        },
    ],
    one_of: &["http", "tcp"],
};

static HTTP_CHECK: Table = Table {
    name: "httpCheck",
    doc: "An HTTP check.",
    fields: &[
        Field { key: "path", shape: Shape::Text(&PATH), presence: Default("/"), doc: "Path of the request." },
        Field {
            key: "host",
            shape: Shape::Text(&HOST),
            presence: Absent("the endpoint's address and port"),
            doc: "Value of the `host` header.",
        },
        Field {
            key: "statuses",
            shape: Shape::Text(&STATUSES),
            presence: Default("200-399"),
            doc: "Statuses of a living endpoint, one or an inclusive range.",
        },
    ],
    one_of: &[],
};

static TCP_CHECK: Table =
    Table { name: "tcpCheck", doc: "A TCP check; it has no settings: write `{}`.", fields: &[], one_of: &[] };
