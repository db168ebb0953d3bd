//! The keys of `listeners` and `routes`.

use std::time::Duration;

use super::{
    ADDRESS, NAME, NETWORK, PORT, WEIGHT,
    filter::{BACKEND_FILTERS, FILTERS},
    rule::{RETRY, TIMEOUTS, TUNNELS},
    sources::{NEW_FLOWS, SYN_COOKIES},
    tls::TLS,
};
use crate::{
    config::shape::{
        Field, List,
        Presence::{Absent, Default, Required},
        Shape, Table, Text,
    },
    limits,
};

text!(PORT_RANGE, "a port or a range of ports", "30000-32767", "^[0-9]+(-[0-9]+)?$", true);
text!(HOSTNAME, "a host name", "*.example.org", r"^(\*\.)?[A-Za-z0-9]([-A-Za-z0-9.]*[A-Za-z0-9])?$");
text!(HEADER_NAME, "the name of a header field", "x-canary", "^[!#$%&'*+.^_`|~0-9A-Za-z-]+$");
text!(HEADER_VALUE, "the value of a header field", "1", r"^\S(.*\S)?$");
text!(QUERY, "text", "2", "^.+$");
text!(PATH_VALUE, "a path", "/api", "^.+$");

const TEXT_TYPE: Field = Field {
    key: "type",
    shape: Shape::Word(&["Exact", "RegularExpression"]),
    presence: Default("Exact"),
    doc: "`Exact` compares the whole value; `RegularExpression` has to match the whole value, in the syntax of RE2 with \
          ASCII classes.",
};

/// A listener.
pub(super) static LISTENER: Table = Table {
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
        Field {
            key: "port",
            shape: PORT,
            presence: Absent("see `ports`"),
            doc: "Port. This or `ports` is written.",
        },
        Field {
            key: "ports",
            shape: Shape::List(&List { item: Shape::Text(&PORT_RANGE), min: 1, max: limits::PORT_RANGES }),
            presence: Absent("see `port`"),
            doc: "Several ports, and ranges of them, such as `[20000-29999, \"5060\"]`; `[1-65535]` takes every port of the \
                  address that no other listener has. Packets keep their port; the port of an endpoint is the one that is \
                  checked. TCP and UDP that the kernel forwards only.",
        },
        Field {
            key: "protocol",
            shape: Shape::Word(&["HTTP", "HTTPS", "TLS", "TCP", "UDP"]),
            presence: Required("HTTP"),
            doc: "What is spoken there. HTTP includes HTTP/2 by prior knowledge; HTTPS ends TLS here; TLS is \
                  forwarded as it is by the name that the client asks for, and ends at the endpoint.",
        },
        Field {
            key: "hostname",
            shape: Shape::Text(&HOSTNAME),
            presence: Absent("all names"),
            doc: "Serves only requests for this name; `*.` stands for one label or more. HTTP, HTTPS and TLS \
                  only.",
        },
        Field {
            key: "tls",
            shape: Shape::Table(&TLS),
            presence: Absent("no TLS"),
            doc: "Required for HTTPS, refused for others.",
        },
        Field {
            key: "forwarding",
            shape: Shape::Word(&["nat", "dsr-l2", "dsr-ipip", "dsr-gue", "agent"]),
            presence: Absent("`nat`"),
            doc: "How the endpoint is reached: `nat` translates the addresses of packets in the kernel, and replies come \
                  back through this node. With `dsr-l2` (on the same link), `dsr-ipip` (IP in IP) and `dsr-gue` (over UDP) \
                  packets keep their addresses and ports, and the endpoint, which has to own the virtual address, answers \
                  the client by itself. With `agent` the agent forwards bytes over a connection of its own (TCP only), \
                  slower, and needed for the PROXY protocol. Without eBPF everything is forwarded as with `agent`. TCP and \
                  UDP only.",
        },
        Field {
            key: "track",
            shape: Shape::Word(&["always", "change", "never"]),
            presence: Absent("`always` with `nat` or `affinity`, otherwise `change`"),
            doc: "What is remembered about a flow: `always` its endpoint; `change` its endpoint only while the service \
                  changes, so that an open connection stays; `never` nothing, so that a change moves flows. `nat` and \
                  `affinity` need `always`. With `change` and `never`, `newFlows` bounds SYNs alone. Listeners that the kernel forwards only.",
        },
        Field {
            key: "affinity",
            shape: Shape::Table(&AFFINITY),
            presence: Absent("each connection goes where its slot says"),
            doc: "A client keeps its endpoint. Listeners that the kernel forwards only.",
        },
        Field {
            key: "whenDown",
            shape: Shape::Word(&["select", "reset"]),
            presence: Absent("`select`"),
            doc: "What becomes of an open TCP connection whose endpoint is down or gone: `select` sends its packets to \
                  another endpoint, which resets it as soon as it sees one; `reset` has the kernel reset it at the \
                  client's next packet. TCP listeners that the kernel forwards only.",
        },
        Field {
            key: "proxyProtocol",
            shape: Shape::Table(&PROXY_PROTOCOL),
            presence: Absent("nobody's word is taken"),
            doc: "Load balancers in front that say by PROXY protocol who the client is. The same for all listeners of an \
                  address and port. Not for what the kernel forwards.",
        },
        Field {
            key: "idleTimeout",
            shape: Shape::Duration { min: Duration::from_millis(100), max: Duration::from_hours(24) },
            presence: Absent("`1h`"),
            doc: "Time without a byte after which a connection ends. TLS, and TCP with `forwarding: agent`, only.",
        },
        Field {
            key: "newFlows",
            shape: Shape::Table(&NEW_FLOWS),
            presence: Absent("no bounds"),
            doc: "Bounds on new flows, held in the kernel.",
        },
        Field {
            key: "synCookies",
            shape: Shape::Table(&SYN_COOKIES),
            presence: Absent("never"),
            doc: "When connections that begin are answered with cookies, in the kernel. Not for UDP, and not with direct \
                  return.",
        },
        Field {
            key: "failMode",
            shape: Shape::Word(&["closed", "open"]),
            presence: Absent("`closed`"),
            doc: "What becomes of new connections while the agent is gone or silent (`agent.kernel.failOpenAfter`): `closed` \
                  refuses them; `open` has the kernel send them to endpoints, translated, past everything that the agent does. \
                  For that all routes of the listener's address and port lead to one service, whose endpoints understand what \
                  clients say: with HTTPS they take TLS themselves. HTTP, HTTPS, TLS, and TCP with `forwarding: agent`, only.",
        },
        Field {
            key: "paths",
            shape: Shape::Table(&PATHS),
            presence: Absent("every setting has its default"),
            doc: "What is done with paths that applications read differently. HTTP and HTTPS only.",
        },
        Field {
            key: "underscores",
            shape: Shape::Word(&["reject", "drop", "allow"]),
            presence: Absent("`reject`"),
            doc: "What becomes of header fields with an underscore in their names, such as `x_real_ip`, which applications \
                  behind CGI and its like take for `x-real-ip`: a request that has one is refused with 400, or they are \
                  dropped, or they go on. It holds for fields behind a body (trailers) as well: there the request breaks off \
                  for its endpoint, and an answer that has begun with it. HTTP and HTTPS only.",
        },
        Field {
            key: "trustedHops",
            shape: Shape::Integer { min: 0, max: 16 },
            presence: Default("0"),
            doc: "Proxies in front of this one whose word about the client is taken. With 0, what a request says in \
                  `x-forwarded-*`, `forwarded` and `x-real-ip` is dropped; with more, so many entries of \
                  `x-forwarded-for` and `forwarded` stay, counted from the end, and the host and scheme that they name. \
                  HTTP and HTTPS only.",
        },
    ],
    one_of: &["port", "ports"],
};

static AFFINITY: Table = Table {
    name: "affinity",
    doc: "All connections of a client's address go to one endpoint, as long as it is up.",
    fields: &[Field {
        key: "timeout",
        shape: Shape::Duration { min: Duration::from_secs(1), max: Duration::from_hours(24) },
        presence: Default("3h"),
        doc: "Time without a new connection, or a new flow of UDP, after which the client is forgotten.",
    }],
    one_of: &[],
};

static PROXY_PROTOCOL: Table = Table {
    name: "proxyProtocol",
    doc: "Load balancers in front that say by PROXY protocol, version 1 or 2, who the client is. They have to: a connection \
          of theirs that begins otherwise is closed. Others are served as they are.",
    fields: &[Field {
        key: "from",
        shape: Shape::List(&List { item: Shape::Text(&NETWORK), min: 1, max: limits::PROXY_SOURCES }),
        presence: Required("[10.0.0.0/24]"),
        doc: "Their networks.",
    }],
    one_of: &[],
};

static PATHS: Table = Table {
    name: "paths",
    doc: "Paths are matched and sent in one form: unreserved characters unescaped, other escapes in upper case, without \
          dot segments. These settings say what becomes of spellings that applications read differently; an escaped \
          zero byte is always refused.",
    fields: &[
        Field {
            key: "repeatedSlashes",
            shape: Shape::Word(&["merge", "keep"]),
            presence: Default("merge"),
            doc: "Whether several slashes in a row become one.",
        },
        Field {
            key: "escapedSlashes",
            shape: Shape::Word(&["reject", "keep", "redirect"]),
            presence: Default("reject"),
            doc: "Whether a request with `%2F`, `%5C` or a backslash is refused with 400, or these stay escaped and end no \
                  segment, or the client is sent with 307 to the path in which they are slashes.",
        },
        Field {
            key: "escapedDelimiters",
            shape: Shape::Word(&["keep", "reject"]),
            presence: Default("keep"),
            doc: "Whether `%3B`, `%3F`, `%23` and `%25` stay escaped, or a request with one is refused with 400. They are never \
                  unescaped: a path in which they are `;`, `?`, `#` or `%` names something else.",
        },
    ],
    one_of: &[],
};

/// A route.
pub(super) static ROUTE: Table = Table {
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
            presence: Absent("nothing is forwarded"),
            doc: "Where requests go, by weight. Required, unless a filter answers.",
        },
        Field {
            key: "filters",
            shape: Shape::Table(&FILTERS),
            presence: Absent("requests are forwarded as they are"),
            doc: "What is done besides. HTTP and HTTPS only.",
        },
        Field {
            key: "timeouts",
            shape: Shape::Table(&TIMEOUTS),
            presence: Absent("the defaults of each"),
            doc: "Bounds on time. HTTP and HTTPS only.",
        },
        Field {
            key: "retry",
            shape: Shape::Table(&RETRY),
            presence: Absent(
                "two retries, on other endpoints, when an endpoint could not do what it was asked for",
            ),
            doc: "When requests are sent again. HTTP and HTTPS only.",
        },
        Field {
            key: "tunnels",
            shape: Shape::Table(&TUNNELS),
            presence: Absent("every setting has its default"),
            doc: "What clients may speak instead of HTTP. HTTP and HTTPS only.",
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
            doc: "Of header fields; all of them have to match.",
        },
        Field {
            key: "queryParams",
            shape: Shape::List(&List { item: Shape::Table(&QUERY_MATCH), min: 1, max: 16 }),
            presence: Absent("any parameters"),
            doc: "Of query parameters; all of them have to match.",
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
            shape: Shape::Word(&["Exact", "PathPrefix", "RegularExpression"]),
            presence: Default("PathPrefix"),
            doc: "`Exact` compares the whole path; `PathPrefix` whole segments from the start: `/api` matches \
                  `/api` and `/api/x`, not `/apix`; `RegularExpression` has to match the whole path, in the syntax of \
                  RE2 with ASCII classes. Exact comes before expressions, the longest first, and those before the \
                  longest prefix. Expressions are tried one after another, so each costs every request of its host name.",
        },
        Field {
            key: "value",
            shape: Shape::Text(&PATH_VALUE),
            presence: Default("/"),
            doc: "Path or expression, at most 1,024 bytes. A path is written as it is sent: percent-encoded, without \
                  query.",
        },
    ],
    one_of: &[],
};

static HEADER_MATCH: Table = Table {
    name: "headerMatch",
    doc: "A match of a header field.",
    fields: &[
        TEXT_TYPE,
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
            doc: "Value or expression, in this case, at most 4,096 bytes.",
        },
    ],
    one_of: &[],
};

static QUERY_MATCH: Table = Table {
    name: "queryMatch",
    doc: "A match of a query parameter.",
    fields: &[
        TEXT_TYPE,
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
            doc: "Value or expression, in this case, at most 1,024 bytes.",
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
            shape: WEIGHT,
            presence: Default("1"),
            doc: "Share relative to the other backends; 0 gets nothing.",
        },
        Field {
            key: "filters",
            shape: Shape::Table(&BACKEND_FILTERS),
            presence: Absent("no change besides those of the rule"),
            doc: "What is done besides, for this backend alone. HTTP and HTTPS only.",
        },
    ],
    one_of: &[],
};
