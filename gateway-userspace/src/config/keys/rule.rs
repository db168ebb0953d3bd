//! The keys of what a rule says beside matches and backends: retries, tunnels, timeouts.

use std::time::Duration;

use crate::{
    config::shape::{
        Field, List,
        Presence::{Absent, Default},
        Shape, Table, Text,
    },
    limits,
};

const TIMEOUT: Shape = Shape::Duration { min: Duration::ZERO, max: Duration::from_hours(24) };

text!(STATUSES, "a status or a range of statuses", "502-504", "^[1-5][0-9]{2}(-[1-5][0-9]{2})?$", true);

text!(
    GRPC_STATUSES,
    "a status of gRPC",
    "unavailable",
    "^(cancelled|deadline-exceeded|internal|resource-exhausted|unavailable)$",
    false
);

/// When requests are sent again.
pub(super) static RETRY: Table = Table {
    name: "retry",
    doc: "When requests are sent again. What no endpoint has begun with is always eligible; what one may have begun with \
          only if sending it twice has the effect of once (GET, HEAD, OPTIONS, PUT, DELETE, TRACE); nothing is once its \
          response has begun to reach the client, or when more of its body than 64 KiB was sent. Retries that an endpoint \
          has to bear are within `retryBudget` of the service. Endpoints that were tried come last.",
    fields: &[
        Field {
            key: "attempts",
            shape: Shape::Integer { min: 0, max: ATTEMPTS },
            presence: Default("2"),
            doc: "Retries of one request, on top of the first try.",
        },
        Field {
            key: "statuses",
            shape: Shape::List(&List { item: Shape::Text(&STATUSES), min: 1, max: 16 }),
            presence: Absent("no status"),
            doc: "Statuses of endpoints that call for another try.",
        },
        Field {
            key: "grpcStatuses",
            shape: Shape::List(&List { item: Shape::Text(&GRPC_STATUSES), min: 1, max: 5 }),
            presence: Absent("no status"),
            doc: "Statuses of endpoints that call for another try of a call of gRPC, where nothing stood in front of them: \
                  `cancelled`, `deadline-exceeded`, `internal`, `resource-exhausted`, `unavailable`. All calls are POST, so \
                  that nobody can tell whether doing one twice does harm: write this only for methods of which you know that \
                  it does none.",
        },
        Field {
            key: "backoff",
            shape: Shape::Duration { min: Duration::ZERO, max: Duration::from_mins(1) },
            presence: Default("25ms"),
            doc: "The least wait before the first retry; it doubles with each, up to tenfold, and varies by half.",
        },
    ],
    one_of: &[],
};

#[expect(clippy::as_conversions, reason = "widening, in a constant, where `From` cannot be called")]
const ATTEMPTS: u64 = limits::RETRIES_AT_MOST as u64;

/// What clients may speak instead of HTTP.
pub(super) static TUNNELS: Table = Table {
    name: "tunnels",
    doc: "What clients may speak instead of HTTP, over their connection or one of its streams. Bytes then pass both ways until \
          both sides have ended, nothing passes for `idleTimeout`, or ten seconds after the drain began.",
    fields: &[
        Field {
            key: "webSocket",
            shape: Shape::Word(&["allow", "refuse"]),
            presence: Default("allow"),
            doc: "WebSocket, by an upgrade over HTTP/1.1 or by CONNECT over HTTP/2 (RFC 8441), to endpoints of either protocol; \
                  those of `h2c` have to offer it. A refused request gets 501.",
        },
        Field {
            key: "connect",
            shape: Shape::Word(&["refuse", "allow"]),
            presence: Default("refuse"),
            doc: "CONNECT: a connection to an endpoint of the rule's services, which have to be `http1`, for whatever bytes. The \
                  host that the client names picks the route, and nothing else; the path is `/`. A refused request gets 501.",
        },
        Field {
            key: "idleTimeout",
            shape: Shape::Duration { min: Duration::from_millis(100), max: Duration::from_hours(24) },
            presence: Default("1h"),
            doc: "Time without a byte after which a tunnel ends.",
        },
    ],
    one_of: &[],
};

/// Bounds on time.
pub(super) static TIMEOUTS: Table = Table {
    name: "timeouts",
    doc: "Bounds on time; `0s` means none.",
    fields: &[
        Field {
            key: "request",
            shape: TIMEOUT,
            presence: Absent("no bound"),
            doc: "On the whole exchange, tries on other endpoints included. A call of gRPC takes no longer than its client waits (`grpc-timeout`), whatever stands here.",
        },
        Field {
            key: "backendRequest",
            shape: TIMEOUT,
            presence: Absent("one minute"),
            doc: "On each try, until the head of the response; at most `request`. It begins anew with each piece of the \
                  request's body, and does not run while the client has to send the next one.",
        },
        Field {
            key: "idle",
            shape: TIMEOUT,
            presence: Absent("one hour"),
            doc: "Time without a byte of the endpoint in the middle of a response, while the client would take it; then the \
                  response is broken off.",
        },
    ],
    one_of: &[],
};
