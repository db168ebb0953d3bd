//! The keys of `agent` that say what clients can make it do and hold, and for how long it waits for them.

use std::time::Duration;

use crate::config::shape::{
    Field,
    Presence::{Absent, Default},
    Shape, Table,
};

pub(super) static OVERLOAD: Table = Table {
    name: "overload",
    doc: "Beyond these bounds requests are answered with 503 and `retry-after` before anything is done for them, until there is \
          less to do; `sluice_limit_reached_total` says which bound it was.",
    fields: &[
        Field {
            key: "requests",
            shape: Shape::Integer { min: 1, max: 10_000_000 },
            presence: Default("16384"),
            doc: "Requests under way, from their head to the last byte of their response; each worker has its share.",
        },
        Field {
            key: "delay",
            shape: Shape::Duration { min: Duration::from_millis(10), max: Duration::from_mins(1) },
            presence: Default("2s"),
            doc: "How late a worker may come to what is due, on average over some looks: the time that everything in its queue \
                  waits.",
        },
        Field {
            key: "memoryMib",
            shape: Shape::Integer { min: 16, max: 16_777_216 },
            presence: Absent("nine tenths of what the control group may use, or else of the node's memory"),
            doc: "Memory of the process, in MiB. Beyond it connections of TLS and those that the agent forwards are refused before \
                  anything is read, too, and others end with their request; a twentieth beyond it, every connection is refused.",
        },
    ],
    one_of: &[],
};

pub(super) static PER_CLIENT: Table = Table {
    name: "perClient",
    doc: "What one client may hold, on all listeners together: an IPv4 address, or the first 64 bits of an IPv6 address. Behind \
          `proxyProtocol` it is the client that the load balancer names. Where many come from one address, such as a load \
          balancer that does not say for whom, set both as high as they may be.",
    fields: &[
        Field {
            key: "connections",
            shape: Shape::Integer { min: 1, max: 10_000_000 },
            presence: Default("16384"),
            doc: "Connections; further ones are closed before anything is read.",
        },
        Field {
            key: "streams",
            shape: Shape::Integer { min: 1, max: 10_000_000 },
            presence: Default("4096"),
            doc: "Requests over HTTP/2 that are under way; further ones are refused (`REFUSED_STREAM`), and clients may send them \
                  again.",
        },
    ],
    one_of: &[],
};

/// Shorter ones would end clients whose packet was lost once.
const SHORTEST: Duration = Duration::from_millis(100);
/// A bound on what is to come at once, and on what may take its time.
const PROMPT: Shape = Shape::Duration { min: SHORTEST, max: Duration::from_mins(10) };
const PATIENT: Shape = Shape::Duration { min: SHORTEST, max: Duration::from_hours(1) };

pub(super) static CLIENT_TIMEOUTS: Table = Table {
    name: "clientTimeouts",
    doc: "How long clients are waited for, by what they are to do; then their connection, or their stream of HTTP/2, is closed, and \
          `sluice_client_timeouts_total` says why. What endpoints may take is written with the rules (`timeouts`) and services, \
          how long tunnels and forwarded connections may be silent with rules and listeners.",
    fields: &[
        Field {
            key: "proxyHeader",
            shape: PROMPT,
            presence: Default("5s"),
            doc: "For a load balancer in front to send its PROXY protocol header.",
        },
        Field {
            key: "hello",
            shape: PROMPT,
            presence: Default("10s"),
            doc: "For a `ClientHello` to arrive where TLS ends at the endpoint.",
        },
        Field {
            key: "handshake",
            shape: PROMPT,
            presence: Default("10s"),
            doc: "For a TLS handshake to end.",
        },
        Field {
            key: "head",
            shape: PROMPT,
            presence: Default("10s"),
            doc: "For the first request of a connection to begin, and for the head of any request to end. A head of HTTP/1 that \
                  does not end is answered with 408.",
        },
        Field {
            key: "idle",
            shape: PATIENT,
            presence: Default("75s"),
            doc: "For the next request to begin; with HTTP/2 at most twice as long.",
        },
        Field {
            key: "answer",
            shape: PROMPT,
            presence: Default("25s"),
            doc: "For a client of HTTP/2 to answer PING, which it is sent when it has been silent for as long while requests of it \
                  are under way.",
        },
        Field {
            key: "stall",
            shape: PATIENT,
            presence: Default("1m"),
            doc: "For any piece of a request's body to arrive that an endpoint waits for, and for any of a response to be taken, \
                  as the client's kernel acknowledges it (where nothing is, a response is cut a quarter later at most). A \
                  body that does not come is answered with 408.",
        },
        Field {
            key: "bytesPerSecond",
            shape: Shape::Integer { min: 1, max: 1_048_576 },
            presence: Default("1024"),
            doc: "Bytes that a client sends of a body, or takes of all responses of a connection, for each second that it is \
                  waited for, beyond the time that `stall` says. A body without a length is free of it when its endpoint \
                  has begun to answer, one of gRPC always.",
        },
    ],
    one_of: &[],
};
