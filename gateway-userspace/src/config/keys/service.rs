//! The keys of `services`.

use std::time::Duration;

use super::{ADDRESS, NAME, PATH, PORT, WEIGHT, tls::ENDPOINT_TLS};
use crate::{
    config::shape::{
        Field, List,
        Presence::{Absent, Default, Required},
        Shape, Table, Text,
    },
    limits,
};

const PROBE_TIME: Shape = Shape::Duration { min: Duration::from_millis(10), max: Duration::from_hours(1) };
const OUT_TIME: Shape = Shape::Duration { min: Duration::from_secs(1), max: Duration::from_hours(1) };
const THRESHOLD: Shape = Shape::Integer { min: 1, max: 100 };

text!(HOST, "a value of the `host` header", "app.example.org", "^[!-~]+$");
text!(STATUSES, "a status or a range of statuses", "200-399", "^[1-5][0-9]{2}(-[1-5][0-9]{2})?$", true);

/// A service.
pub(super) static SERVICE: Table = Table {
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
            shape: Shape::Word(&["http1", "h2c", "h2"]),
            presence: Default("http1"),
            doc: "What endpoints speak when requests are sent to them: HTTP/1.1, HTTP/2 by prior knowledge, or HTTP/2 over \
                  TLS.",
        },
        Field {
            key: "tls",
            shape: Shape::Table(&ENDPOINT_TLS),
            presence: Absent("endpoints are spoken to in plain text"),
            doc: "TLS towards endpoints. For listeners of protocol HTTP and HTTPS only.",
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
            doc: "Bound on opening a connection, TLS included.",
        },
        Field {
            key: "retryBudget",
            shape: Shape::Table(&RETRY_BUDGET),
            presence: Absent("every setting has its default"),
            doc: "How many retries it bears.",
        },
        Field {
            key: "proxyProtocol",
            shape: Shape::Word(&["v2"]),
            presence: Absent("endpoints see the agent as their client"),
            doc: "Tells endpoints by PROXY protocol who the client is, at the beginning of each connection; connections for \
                  requests then belong to one client each. Not for listeners whose packets are forwarded.",
        },
        Field {
            key: "health",
            shape: Shape::Table(&HEALTH),
            presence: Absent("endpoints are trusted"),
            doc: "How the agent knows that an endpoint is alive.",
        },
        Field {
            key: "passiveHealth",
            shape: Shape::Table(&PASSIVE_HEALTH),
            presence: Absent("what clients meet decides nothing"),
            doc: "Takes endpoints out that clients do not get through to; `{}` has every setting at its default. Beside \
                  `health`, or alone.",
        },
    ],
    one_of: &[],
};

static RETRY_BUDGET: Table = Table {
    name: "retryBudget",
    doc: "How many retries a service bears. Retries of requests that no endpoint has begun with do not count.",
    fields: &[
        Field {
            key: "percent",
            shape: Shape::Integer { min: 0, max: 100 },
            presence: Default("20"),
            doc: "Retries in percent of requests; up to 100 are saved by each worker.",
        },
        Field {
            key: "perSecond",
            shape: Shape::Integer { min: 0, max: 10_000 },
            presence: Default("10"),
            doc: "Retries per second of each worker that are allowed however few the requests are.",
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
            doc: "Address, IPv4 or IPv6. Endpoints of a TCP or UDP listener have the family of the listener; a loopback address \
                  among them gets no packets that the kernel translates.",
        },
        Field { key: "port", shape: PORT, presence: Required("8080"), doc: "Port." },
        Field {
            key: "weight",
            shape: WEIGHT,
            presence: Default("1"),
            doc: "Share of new flows relative to the other endpoints; 0 gets no new ones and keeps its connections, while \
                  flows of UDP go elsewhere.",
        },
    ],
    one_of: &[],
};

static HEALTH: Table = Table {
    name: "health",
    doc: "An active health check. A refused or reset connection takes an endpoint down at once, a silent or wrong one \
          after `unhealthyThreshold` checks. Where listeners lead to the service by different ways (straight, `dsr-ipip`, \
          `dsr-gue`), each way is checked by itself and decides for its own listeners.",
    fields: &[
        Field {
            key: "http",
            shape: Shape::Table(&HTTP_CHECK),
            presence: Absent("`tcp` is written"),
            doc: "Sends a GET request, in the service's `protocol` and with a full handshake where it has `tls`.",
        },
        Field {
            key: "tcp",
            shape: Shape::Table(&TCP_CHECK),
            presence: Absent("`http` is written"),
            doc: "Opens a TCP connection and closes it, also where the service has `tls`.",
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

static PASSIVE_HEALTH: Table = Table {
    name: "passiveHealth",
    doc: "Attempts of clients to connect decide about endpoints: of what the kernel balances SYNs that had to be sent again \
          and connections that were refused, of what the agent serves its own connections, TLS included. An endpoint \
          that is out gets no new flows and keeps those it has; afterwards it is on trial, where half of the failures are \
          enough, until a window passed without them. Not for UDP, and not for listeners that remember no flow \
          (`docs/reference/signals.md`).",
    fields: &[
        Field {
            key: "window",
            shape: Shape::Duration { min: Duration::from_secs(2), max: Duration::from_mins(10) },
            presence: Default("10s"),
            doc: "Time that attempts count.",
        },
        Field {
            key: "minimumAttempts",
            shape: Shape::Integer { min: 1, max: 1_000_000 },
            presence: Default("20"),
            doc: "Attempts within the window below which an endpoint is not judged.",
        },
        Field {
            key: "failurePercent",
            shape: Shape::Integer { min: 1, max: 100 },
            presence: Default("50"),
            doc: "Attempts in percent that have to fail to take an endpoint out.",
        },
        Field {
            key: "outTime",
            shape: OUT_TIME,
            presence: Default("30s"),
            doc: "How long it is out the first time; each time is twice as long as the one before, and as long in good \
                  standing makes up for it. Up to a tenth is added by chance.",
        },
        Field {
            key: "maxOutTime",
            shape: OUT_TIME,
            presence: Default("5m"),
            doc: "How long it is out at most; no shorter than `outTime`.",
        },
        Field {
            key: "maxOutPercent",
            shape: Shape::Integer { min: 1, max: 100 },
            presence: Default("50"),
            doc: "Endpoints of the service in percent that may get no new flows, for whatever reason; beyond it nobody is taken \
                  out, and the only one of a service never is.",
        },
    ],
    one_of: &[],
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
