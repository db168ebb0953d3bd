//! The maps: name, kind, default capacity, key and value of each, declared once for both sides.

use bytemuck::Pod;

use crate::{
    answer::Answers,
    aside::Aside,
    cookie::{CookieKeys, SynCookie},
    counter::{EndpointCount, Hook, HookCounts, Reason, ServiceCount, ServiceReasons as DropCounts},
    endpoint::Endpoint,
    event::{Event, EventCount},
    filter::{self, FilterWord},
    flow::{DisplacedFlows, FlowBucket, FlowCount, ReplyBucket, Scratch, SequenceBucket, ServiceFlowCount},
    fragment::FragmentBucket,
    health::{EndpointHealth, Handshake},
    heartbeat::Heartbeat,
    probe::Probe,
    receive::Receive,
    service::{PortRange, Service, ServiceBucket},
    settings::Settings,
    slot::SlotChunk,
    socket::{AskedFor, SocketPeer, SocketScope},
    source::{self, RefusedRow, ServiceRate, SourceNetwork, SourceRateBucket, SourceRule},
};

/// What the kernel makes of a map.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Kind {
    /// `BPF_MAP_TYPE_ARRAY`.
    Array,
    /// `BPF_MAP_TYPE_ARRAY` with `BPF_F_MMAPABLE` (Linux 5.5).
    MappedArray,
    /// `BPF_MAP_TYPE_PERCPU_ARRAY`.
    PerCpuArray,
    /// `BPF_MAP_TYPE_LRU_HASH`: when it is full, what was not asked for lately goes.
    LruHash,
    /// `BPF_MAP_TYPE_SOCKMAP`; cannot carry BTF.
    SockMap,
    /// `BPF_MAP_TYPE_PROG_ARRAY`.
    ProgArray,
    /// `BPF_MAP_TYPE_LPM_TRIE`: the longest prefix that matches; takes memory for each entry.
    LpmTrie,
    /// `BPF_MAP_TYPE_RINGBUF` (Linux 5.8): without keys, its capacity in bytes.
    RingBuf,
}

/// One kernel map.
pub trait MapDef {
    /// Name in the object file; in lower case, the name of the pin.
    const NAME: &'static str;
    /// What the kernel makes of it.
    const KIND: Kind;
    /// Default bound on entries. The loader may set another: capacity is no part of the layout.
    const CAPACITY: u32;
    /// What the kernel hashes, or an index.
    type Key: Pod;
    /// What the kernel stores.
    type Value: Pod;
}

macro_rules! maps {
    ($($(#[doc = $doc:literal])+ $map:ident $name:literal $kind:ident [$capacity:expr] $key:ty => $value:ty;)+) => {
        $(
            $(#[doc = $doc])+
            #[derive(Debug)]
            pub enum $map {}

            impl MapDef for $map {
                const NAME: &'static str = $name;
                const KIND: Kind = Kind::$kind;
                const CAPACITY: u32 = $capacity;
                type Key = $key;
                type Value = $value;
            }

            const _: () = assert!($name.len() <= 15, "the kernel keeps 15 bytes of a name");
        )+

        /// Every map as data, for the loader, the layout test and the reference.
        pub const ALL: &[Description] = &[$(Description {
            name: $name,
            kind: Kind::$kind,
            capacity: $capacity,
            key_size: size_of::<$key>(),
            value_size: size_of::<$value>(),
            help: concat!($($doc,)+),
        },)+];
    };
}

/// One row of [`ALL`].
#[derive(Clone, Copy, Debug)]
pub struct Description {
    /// [`MapDef::NAME`].
    pub name: &'static str,
    /// [`MapDef::KIND`].
    pub kind: Kind,
    /// [`MapDef::CAPACITY`].
    pub capacity: u32,
    /// Bytes of a key.
    pub key_size: usize,
    /// Bytes of a value.
    pub value_size: usize,
    /// One sentence for the reference.
    pub help: &'static str,
}

/// Buckets of [`ServiceIndex`]: two places each, which are never more than two thirds full.
pub const INDEX_BUCKETS: u32 = 8_192;

/// Buckets of [`Fragments`]: room for the first pieces of 16,384 packets.
pub const FRAGMENT_BUCKETS: u16 = 4_096;
/// Buckets of [`SourceRates`]: room for 65,536 sources, 512 KiB.
pub const SOURCE_BUCKETS: u32 = 8_192;

/// Rows of [`RefusedSources`]: room for 2,048 sources.
pub const REFUSED_ROWS: u32 = 512;

/// Places of [`Handshakes`], by the lowest bits of the flow's entry.
pub const HANDSHAKES: u32 = 4_096;

/// Bytes of [`Events`]: room for 3,640 of them, 8 bytes of the kernel's beside each.
pub const EVENT_BYTES: u32 = 256 * 1024;

/// Services that a node may hold.
pub const SERVICES: u32 = 10_240;

maps! {
    /// Where services stand, by virtual address, port and protocol: a hash table with two places in a bucket and two buckets for a key.
    ServiceIndex "SERVICE_INDEX" MappedArray [INDEX_BUCKETS] u32 => ServiceBucket;
    /// Services by their numbers.
    Services "SERVICES" MappedArray [SERVICES] u32 => Service;
    /// Services of ranges of ports.
    PortRanges "PORT_RANGES" MappedArray [4_096] u32 => PortRange;
    /// Slot tables of all services, two halves each, in chunks of sixteen slots.
    Slots "SLOTS" MappedArray [65_536] u32 => SlotChunk;
    /// Endpoint rows of all services.
    Endpoints "ENDPOINTS" MappedArray [131_072] u32 => Endpoint;
    /// Flows: a hash table with four places in a bucket and two buckets for a flow.
    Flows "FLOWS" MappedArray [131_072] u32 => FlowBucket;
    /// Flows that do not stand at their home, by their first bucket; eight buckets to a value, a byte for each: the lower three
    /// bits count those at another entry of it, the upper five those in their second bucket.
    Displaced "DISPLACED" MappedArray [16_384] u32 => DisplacedFlows;
    /// The way from an endpoint's packets to their flows: a hash table with eight places in a bucket.
    Replies "REPLIES" MappedArray [131_072] u32 => ReplyBucket;
    /// Sequence numbers of connections that began with a cookie, by the buckets of the flow table.
    Sequences "SEQUENCES" Array [131_072] u32 => SequenceBucket;
    /// Places that services hold in the flow table.
    ServiceFlows "SERVICE_FLOWS" MappedArray [SERVICES] u32 => ServiceFlowCount;
    /// Flows of endpoint rows in the flow table.
    EndpointFlows "ENDPOINT_FLOWS" MappedArray [131_072] u32 => FlowCount;
    /// Bitmap over the destination addresses that are ours.
    Filter "FILTER" Array [filter::WORDS] u32 => FilterWord;
    /// Networks whose packets to services are dropped, and networks inside them whose packets are not. An address of IPv4 stands behind 96 bits.
    SourceNetworks "SOURCE_NETWORKS" LpmTrie [65_536] SourceNetwork => SourceRule;
    /// Two bitmaps in front of that: sources that may be listed.
    SourceFilter "SOURCE_FILTER" Array [source::WORDS] u32 => FilterWord;
    /// How many new flows services may still take.
    ServiceRates "SERVICE_RATES" Array [SERVICES] u32 => ServiceRate;
    /// How many new flows sources may still begin: a hash table with eight places in a bucket, which forgets the source that has been silent for longest.
    SourceRates "SOURCE_RATES" Array [SOURCE_BUCKETS] u32 => SourceRateBucket;
    /// Sources whose packets were refused, those with the most.
    RefusedSources "REFUSED_SOURCES" PerCpuArray [REFUSED_ROWS] u32 => RefusedRow;
    /// Which services answer connections that begin with cookies, and how many.
    SynCookies "SYN_COOKIES" Array [SERVICES] u32 => SynCookie;
    /// Keys that the programs make cookies with, one row.
    CookieKeysMap "COOKIE_KEYS" Array [1] u32 => CookieKeys;
    /// The agent's settings, one row.
    SettingsMap "SETTINGS" Array [1] u32 => Settings;
    /// Whose tunnels end at this node, one row.
    Receiving "RECEIVING" Array [1] u32 => Receive;
    /// Health checks that take the way of clients' packets, by the port of the agent's socket.
    Probes "PROBES" MappedArray [Probe::ROWS] u32 => Probe;
    /// Listening sockets of the agent.
    Sockets "SOCKETS" SockMap [4_096] u32 => u64;
    /// Until when the agent's workers are taken for alive, by their numbers.
    Heartbeats "HEARTBEATS" MappedArray [Heartbeat::ROWS] u32 => Heartbeat;
    /// What processes asked for whose sockets got an endpoint's address instead of a virtual one, where `agent.kernel.connect` says so.
    SocketPeers "SOCKET_PEERS" LruHash [65_536] SocketPeer => AskedFor;
    /// Whose sockets those may be, one row.
    SocketScopes "SOCKET_SCOPES" Array [1] u32 => SocketScope;
    /// Packets that came in pieces: what the first one told about the others.
    Fragments "FRAGMENTS" Array [4_096] u32 => FragmentBucket;
    /// Programs that those at XDP end in.
    XdpPrograms "XDP_PROGRAMS" ProgArray [Aside::LIMIT] u32 => u32;
    /// Programs that those at TC end in.
    TcPrograms "TC_PROGRAMS" ProgArray [Aside::LIMIT] u32 => u32;
    /// Room where a program notes what it knows of a packet: its stack is too small for that. Means nothing between packets.
    ScratchMap "SCRATCH" PerCpuArray [1] u32 => Scratch;
    /// Answers that each processor sent in the present tick.
    AnswersMap "ANSWERS" PerCpuArray [1] u32 => Answers;
    /// Packets by hook and reason.
    Reasons "REASONS" PerCpuArray [Hook::LIMIT] u32 => HookCounts;
    /// Packets and flows by service.
    ServiceCounts "SERVICE_COUNTS" PerCpuArray [SERVICES] u32 => ServiceCount;
    /// Dropped packets by service and reason.
    ServiceReasons "SERVICE_REASONS" PerCpuArray [SERVICES] u32 => DropCounts;
    /// Packets and flows by endpoint row.
    EndpointCounts "ENDPOINT_COUNTS" PerCpuArray [131_072] u32 => EndpointCount;
    /// Signals of TCP connections by endpoint row.
    EndpointHealths "ENDPOINT_HEALTH" PerCpuArray [131_072] u32 => EndpointHealth;
    /// Connections that wait for their endpoint's answer, one of eight; a later one takes the place of an earlier one.
    Handshakes "HANDSHAKES" Array [HANDSHAKES] u32 => Handshake;
    /// Packets that ended early, one by one, where `agent.kernel.events` asks for them; capacity in bytes.
    Events "EVENTS" RingBuf [EVENT_BYTES] () => Event;
    /// How many of them were told, by the number of the reason.
    EventCounts "EVENT_COUNTS" PerCpuArray [Reason::LIMIT] u32 => EventCount;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fragments_have_as_many_buckets_as_the_settings_say() {
        assert_eq!(Fragments::CAPACITY, u32::from(FRAGMENT_BUCKETS));
    }
}
