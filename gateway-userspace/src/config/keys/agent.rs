//! The keys of `agent`: settings of the process.

use std::time::Duration;

use gateway_common::flow::Reply;

use super::{
    NETWORK, PORT, SEED_FILE,
    bounds::{CLIENT_TIMEOUTS, OVERLOAD, PER_CLIENT},
};
use crate::{
    config::shape::{
        Field, List,
        Presence::{Absent, Default, Required},
        Shape, Table, Text,
    },
    limits,
};

text!(SOCKET_ADDRESS, "an IP address and a port", "127.0.0.1:9901", r"^[0-9a-fA-F.:\[\]]+:[0-9]+$");
text!(DIRECTORY, "the absolute path of a directory", "/sys/fs/bpf", "^/.*$");
text!(STATE_FOLDER, "the absolute path of a directory", "/var/lib/sluice", "^/.*$");
text!(CGROUP, "the absolute path of a control group", "/sys/fs/cgroup", "^/.*$");
text!(INTERFACE, "the name of an interface, or a pattern of one", "eth*", "^[^/ ]{1,31}$");
text!(POD, "the name of an interface, or a pattern of one", "veth*", "^[^/ ]{1,31}$");
text!(ACCESS_OUTPUT, "`stdout` or the path of a file", "/var/log/sluice/access.log", "^(stdout|/.+)$");
text!(ACCESS_FIELD, "a field of the access log", "status", "^[a-zA-Z]+$");
text!(PORTS, "a range of ports", "61000-65535", "^[0-9]+-[0-9]+$");

/// Flows at most: with more, replies could not name every place of theirs.
const FLOWS: u64 = 1 << (Reply::INDEX_BITS - 1);

/// Settings of the process.
pub(super) static AGENT: Table = Table {
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
            key: "stateFolder",
            shape: Shape::Text(&STATE_FOLDER),
            presence: Absent("nothing is kept in files"),
            doc: "Folder for what the next start should know: OCSP responses that were fetched (`ocsp: fetch`), which \
                  are checked again when they are read.",
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
            key: "accessLog",
            shape: Shape::Table(&ACCESS_LOG),
            presence: Absent("no log of requests"),
            doc: "The log of requests: one JSON object per line.",
        },
        Field {
            key: "trace",
            shape: Shape::Table(&TRACE),
            presence: Absent("every setting has its default"),
            doc: "Trace context of requests (W3C). What is valid passes on; what is not is dropped.",
        },
        Field {
            key: "overload",
            shape: Shape::Table(&OVERLOAD),
            presence: Absent("every setting has its default"),
            doc: "When there is too much to do.",
        },
        Field {
            key: "perClient",
            shape: Shape::Table(&PER_CLIENT),
            presence: Absent("every setting has its default"),
            doc: "What one client may hold.",
        },
        Field {
            key: "clientTimeouts",
            shape: Shape::Table(&CLIENT_TIMEOUTS),
            presence: Absent("every setting has its default"),
            doc: "How long clients are waited for.",
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

static ACCESS_LOG: Table = Table {
    name: "accessLog",
    doc: "The log of requests. Lines are written in batches, a few times a second; what the output does not keep up with is \
          dropped and counted in `sluice_limit_reached_total{limit=\"access_log\"}`. A file that is moved away is made anew.",
    fields: &[
        Field {
            key: "output",
            shape: Shape::Text(&ACCESS_OUTPUT),
            presence: Required("/var/log/sluice/access.log"),
            doc: "`stdout`, or the absolute path of a file that is appended to.",
        },
        Field {
            key: "fields",
            shape: Shape::List(&List { item: Shape::Text(&ACCESS_FIELD), min: 1, max: 32 }),
            presence: Absent("all of them"),
            doc: "What a line has: `time`, `listener`, `route`, `client`, `serverName`, `method`, `host`, `target`, \
                  `protocol`, `userAgent`, `trace`, `status`, `refusal`, `fault`, `service`, `endpoint`, `retries`, \
                  `headTime`, `bytesSent`, `duration`, `complete`. Times are microseconds; what does not apply is absent.",
        },
        Field {
            key: "samplePercent",
            shape: Shape::Integer { min: 0, max: 100 },
            presence: Default("100"),
            doc: "Share of the requests that are written, drawn for each.",
        },
    ],
    one_of: &[],
};

static TRACE: Table = Table {
    name: "trace",
    doc: "Trace context of requests: `traceparent` and `tracestate`.",
    fields: &[
        Field {
            key: "absent",
            shape: Shape::Word(&["create", "leave"]),
            presence: Default("create"),
            doc: "What becomes of a request without a context: it gets one, or none.",
        },
        Field {
            key: "sampledPercent",
            shape: Shape::Integer { min: 0, max: 100 },
            presence: Default("100"),
            doc: "Share of the contexts made here that ask endpoints to record; endpoints that follow their parent record \
                  these and no others.",
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
            key: "pods",
            shape: Shape::List(&List { item: Shape::Text(&POD), min: 1, max: 64 }),
            presence: Absent("none"),
            doc: "Interfaces behind which local pods or containers are, the node's side of their veth: what they send to \
                  virtual addresses is balanced there, at TC. They come and go; at most 1024 get hooks. Packets that come in \
                  elsewhere are then seen at TC too where the agent chooses: XDP cannot send to every pod.",
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
            shape: Shape::Text(&SEED_FILE),
            presence: Absent("the node makes a seed once and keeps it in its pinned `settings` map"),
            doc: "File with the cluster's seed, 16 bytes as 32 hexadecimal digits, the same on every node that shares \
                  virtual addresses. Keep it secret: whoever knows it can aim at an endpoint.",
        },
        Field {
            key: "flows",
            shape: Shape::Integer { min: 1_024, max: FLOWS },
            presence: Absent(
                "what a two-hundredth of the node's memory holds, at 192 bytes each, rounded down to a power \
                              of two, from 16384 to 1048576",
            ),
            doc: "Flows that the kernel remembers. When there is no place, a service gives up flows of its own, and those \
                  of services that hold more than their share.",
        },
        Field {
            key: "changeWindow",
            shape: Shape::Duration { min: Duration::from_secs(1), max: Duration::from_hours(24) },
            presence: Default("1h"),
            doc: "How long a service with `track: change` remembers where flows went before its endpoints changed. A flow \
                  that is silent for longer may move to another endpoint.",
        },
        Field {
            key: "failOpenAfter",
            shape: Shape::Duration { min: Duration::from_millis(200), max: Duration::from_mins(5) },
            presence: Default("3s"),
            doc: "Silence of a worker after which new connections to listeners with `failMode: open` go to endpoints. Where \
                  its process has ended they do at once.",
        },
        Field {
            key: "echo",
            shape: Shape::Word(&["program", "stack"]),
            presence: Default("program"),
            doc: "Who answers echo requests (ping) to virtual addresses: the kernel programs, at most 1,000 in a second on \
                  each processor and without those that `sources` denies, or the node's stack.",
        },
        Field {
            key: "tunnel",
            shape: Shape::Table(&TUNNEL),
            presence: Absent("every setting has its default"),
            doc: "How packets look that go to an endpoint through a tunnel.",
        },
        Field {
            key: "receive",
            shape: Shape::Table(&RECEIVE),
            presence: Absent("no tunnel ends at this node"),
            doc: "Takes packets out of the tunnels of balancing nodes (direct return).",
        },
        Field {
            key: "events",
            shape: Shape::Table(&EVENTS),
            presence: Absent("nothing is told of single packets"),
            doc: "Tells of single packets that are dropped or answered, in the log and at `/events` of the admin window.",
        },
        Field {
            key: "connect",
            shape: Shape::Table(&CONNECT),
            presence: Absent("processes of this node reach only what the agent serves"),
            doc: "Gives processes of this node an endpoint where they ask for a virtual address.",
        },
        Field {
            key: "announce",
            shape: Shape::Table(&ANNOUNCE),
            presence: Absent(
                "virtual addresses are routed to this node; ARP is answered as `arp_ignore` says",
            ),
            doc: "Makes this node be found on a link under virtual addresses.",
        },
    ],
    one_of: &[],
};

static TUNNEL: Table = Table {
    name: "tunnel",
    doc: "How packets look that go to an endpoint through a tunnel (`dsr-ipip`, `dsr-gue`). Their outer source follows from \
          the flow, so that the endpoint's receive queues share the load; nothing answers there.",
    fields: &[
        Field {
            key: "sourceV4",
            shape: Shape::Text(&NETWORK),
            presence: Default("172.16.0.0/16"),
            doc: "Network of outer sources towards IPv4 endpoints, 16 bits long.",
        },
        Field {
            key: "sourceV6",
            shape: Shape::Text(&NETWORK),
            presence: Default("100::/96"),
            doc: "Network of outer sources towards IPv6 endpoints, 96 bits long.",
        },
        Field {
            key: "port",
            shape: PORT,
            presence: Default("6080"),
            doc: "UDP port that endpoints decapsulate at, for `dsr-gue`; 6080 is that of GUE (IANA).",
        },
    ],
    one_of: &[],
};

static EVENTS: Table = Table {
    name: "events",
    doc: "Packets that are dropped or answered, one by one: when, where and why, addresses and ports, listener and endpoint. \
          What is left out is counted in `sluice_kernel_events_total`. Whoever sends such packets decides what is in the log: \
          switch it on to look for something.",
    fields: &[Field {
        key: "perSecond",
        shape: Shape::Integer { min: 1, max: 1_000 },
        presence: Default("5"),
        doc: "Packets of each reason that each processor tells of in a second.",
    }],
    one_of: &[],
};

static ANNOUNCE: Table = Table {
    name: "announce",
    doc: "Virtual addresses of these networks are assigned to the interfaces (Linux 5.18), so that the node answers ARP and \
          neighbor solicitations for them, and the link is told when one is new. Only one node of a link may have an address: \
          take its listener away from the other one.",
    fields: &[
        Field {
            key: "networks",
            shape: Shape::List(&List {
                item: Shape::Text(&NETWORK),
                min: 1,
                max: limits::ANNOUNCED_NETWORKS,
            }),
            presence: Required("[192.0.2.0/24]"),
            doc: "Networks; an address of a listener that is in none of them is not assigned.",
        },
        Field {
            key: "interfaces",
            shape: Shape::List(&List { item: Shape::Text(&INTERFACE), min: 1, max: 64 }),
            presence: Required("[eth0]"),
            doc: "Interfaces; `*` stands for any letters. They may come and go.",
        },
    ],
    one_of: &[],
};

static CONNECT: Table = Table {
    name: "connect",
    doc: "Processes of this node that connect, or send a datagram, to a virtual address of a listener that the kernel forwards \
          get an endpoint at their socket, before there is a packet, and are told the virtual address when they ask \
          (Linux 6.1). It concerns processes of the control group and of those below it, in the agent's network namespace.",
    fields: &[
        Field {
            key: "cgroup",
            shape: Shape::Text(&CGROUP),
            presence: Required("/sys/fs/cgroup"),
            doc: "Folder of the control group, of version 2. Programs of others on it stay.",
        },
        Field {
            key: "sockets",
            shape: Shape::Integer { min: 1_024, max: 4_194_304 },
            presence: Default("65536"),
            doc: "Pairs of a socket and an endpoint whose virtual address is remembered, about 100 bytes each; beyond it the \
                  least recently used is forgotten, and the process sees the endpoint's address.",
        },
    ],
    one_of: &[],
};

static RECEIVE: Table = Table {
    name: "receive",
    doc: "The receiving end of direct return: packets in IPIP or GUE to an address of this node come out as their clients \
          sent them and go to the stack, where the virtual address has to be local (`ip address add ADDRESS dev lo`). \
          Tunnelled packets of anybody else to this node are dropped.",
    fields: &[
        Field {
            key: "peers",
            shape: Shape::List(&List { item: Shape::Text(&NETWORK), min: 1, max: limits::TUNNEL_PEERS }),
            presence: Required("[172.16.0.0/16]"),
            doc: "Networks of the outer source addresses that balancing nodes use (`tunnel`). Whoever can send from them can \
                  claim to be any client: nobody else must be able to.",
        },
        Field {
            key: "interfaces",
            shape: Shape::List(&List { item: Shape::Text(&INTERFACE), min: 1, max: 64 }),
            presence: Absent("those of `kernel.interfaces`"),
            doc: "Interfaces where tunnelled packets come in; `*` stands for any letters.",
        },
        Field { key: "port", shape: PORT, presence: Default("6080"), doc: "UDP port of GUE." },
    ],
    one_of: &[],
};
