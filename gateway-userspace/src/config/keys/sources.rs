//! The keys of `sources`, and of `newFlows` and `synCookies` of a listener: who may send packets, how many flows may begin, and
//! how a flood of them is met.

use super::NETWORK;
use crate::{
    config::shape::{
        Field, List,
        Presence::{Absent, Default, Required},
        Shape, Table,
    },
    limits,
};

const NETWORKS: Shape =
    Shape::List(&List { item: Shape::Text(&NETWORK), min: 1, max: limits::SOURCE_NETWORKS });

/// Who may send packets to services.
pub(super) static SOURCES: Table = Table {
    name: "sources",
    doc: "Who may send packets to the listeners' addresses, whatever protocol they speak. Held in the kernel, before \
          anything else is done with a packet, also of connections that are open; without the kernel side the \
          agent resets connections as it accepts them, and drops datagrams.",
    fields: &[
        Field {
            key: "deny",
            shape: NETWORKS,
            presence: Absent("nobody"),
            doc: "Networks whose packets are dropped. To let only some in, deny `0.0.0.0/0` and `::/0` and allow those.",
        },
        Field {
            key: "allow",
            shape: NETWORKS,
            presence: Absent("no exceptions"),
            doc: "Networks inside those whose packets are not: of all networks that an address is in, the smallest decides.",
        },
        Field {
            key: "forged",
            shape: Shape::Word(&["drop", "pass"]),
            presence: Default("pass"),
            doc: "What becomes of packets from addresses that no packet can come from: this host, loopback, \
                  documentation, multicast and reserved ranges (RFC 6890), and the listeners' own addresses. A network in \
                  `allow` is an exception here, too.",
        },
    ],
    one_of: &[],
};

/// Bounds on new flows of a listener.
pub(super) static NEW_FLOWS: Table = Table {
    name: "newFlows",
    doc: "How many flows may begin. Always counted: SYNs of TCP. Also, where every flow is remembered (`track: always`, which \
          `forwarding: nat` and `affinity` bring along): packets of UDP that belong to no flow the kernel knows and, with \
          `nat`, such packets of TCP. With `track: change` and `track: never` nothing tells the first packet of a flow \
          of UDP from its others, so that UDP is not bounded there. With direct return a packet in the middle of a connection \
          always goes on, since another node may have begun it, and the handshake does not come back through this \
          node, so that nothing is known of how it went. Packets beyond are dropped in the kernel, and clients \
          that mean it come again. Without the kernel side the agent counts connections as it accepts them and flows of UDP \
          as they begin. The same for all listeners of an address and port.",
    fields: &[
        Field {
            key: "perSecond",
            shape: Shape::Integer { min: 1, max: 10_000_000 },
            presence: Absent("no bound"),
            doc: "New flows of all clients together in a second.",
        },
        Field {
            key: "burst",
            shape: BURST,
            presence: Absent("as many as in a second"),
            doc: "New flows at once, after a pause. In the kernel no more than come in twelve days, where its clock \
                  interrupts a thousand times in a second.",
        },
        Field {
            key: "sourcePerSecond",
            shape: Shape::Integer { min: 1, max: 100_000 },
            presence: Absent("no bound"),
            doc: "New flows of one source in a second: an IPv4 address, or an IPv6 network of 64 bits. The kernel knows \
                  65,536 sources and forgets the one that was silent for longest.",
        },
        Field {
            key: "sourceBurst",
            shape: BURST,
            presence: Absent("as many as in a second"),
            doc: "New flows of one source at once, after a pause. In the kernel no more than come in twelve days, where its clock \
                  interrupts a thousand times in a second.",
        },
    ],
    one_of: &[],
};

/// Cookies of a listener.
pub(super) static SYN_COOKIES: Table = Table {
    name: "synCookies",
    doc: "While more connections begin than this, the kernel side answers them without remembering them: a flood from \
          forged addresses then costs neither the stack nor endpoints anything. A connection that began so has no window \
          scaling, no selective acknowledgment and no timestamps. Ten seconds after there was less than half of that for a \
          while, connections begin as usual again. For what the agent serves, as soon as the queue of the listening socket \
          is full (always, where `net.ipv4.tcp_syncookies` is 2; with 0, never). For `forwarding: nat`, at once, and the \
          endpoint is asked when the client has proven to be there; connections to endpoints on this node always begin as \
          usual. The same for all listeners of an address and port. With `newFlows`, what that refuses is not answered; for \
          `forwarding: nat`, its `perSecond` counts a connection when the cookie has come back.",
    fields: &[Field {
        key: "perSecond",
        shape: Shape::Integer { min: 1, max: 10_000_000 },
        presence: Required("1000"),
        doc: "Connections that may begin in a second before they are answered so.",
    }],
    one_of: &[],
};

const BURST: Shape = Shape::Integer { min: 1, max: 100_000_000 };
