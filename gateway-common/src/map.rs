//! The maps: name, kind, default capacity, key and value of each, declared once for both sides.

use bytemuck::Pod;

use crate::{
    counter::{Count, EndpointCount, Hook, Reason, ServiceCount},
    endpoint::Endpoint,
    filter::{self, FilterWord},
    flow::{Flow, FlowKey, Scratch, Translation},
    service::{Service, ServiceKey},
    settings::Settings,
    slot::SlotChunk,
};

/// What the kernel makes of a map.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Kind {
    /// `BPF_MAP_TYPE_ARRAY`.
    Array,
    /// `BPF_MAP_TYPE_ARRAY` with `BPF_F_MMAPABLE` (Linux 5.5).
    MappedArray,
    /// `BPF_MAP_TYPE_HASH`, preallocated.
    Hash,
    /// `BPF_MAP_TYPE_LRU_HASH`.
    LruHash,
    /// `BPF_MAP_TYPE_PERCPU_ARRAY`.
    PerCpuArray,
    /// `BPF_MAP_TYPE_SOCKMAP`; cannot carry BTF.
    SockMap,
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

maps! {
    /// Virtual address, port and protocol to service.
    Services "SERVICES" Hash [10_240] ServiceKey => Service;
    /// Slot tables of all services, two halves each, in chunks of sixteen slots.
    Slots "SLOTS" MappedArray [65_536] u32 => SlotChunk;
    /// Endpoint rows of all services.
    Endpoints "ENDPOINTS" Array [131_072] u32 => Endpoint;
    /// Flows from clients, by the 5-tuple of the client's packet.
    Flows "FLOWS" LruHash [262_144] FlowKey => Flow;
    /// Flows from endpoints, by the 5-tuple of the endpoint's packet.
    Translations "TRANSLATIONS" LruHash [262_144] FlowKey => Translation;
    /// Bitmap over the destination addresses that are ours.
    Filter "FILTER" Array [filter::WORDS] u32 => FilterWord;
    /// The agent's settings, one row.
    SettingsMap "SETTINGS" Array [1] u32 => Settings;
    /// Listening sockets of the agent.
    Sockets "SOCKETS" SockMap [4_096] u32 => u64;
    /// Room where a program puts a new flow's entries together: its stack is too small for them. Holds nothing between packets.
    ScratchMap "SCRATCH" PerCpuArray [1] u32 => Scratch;
    /// Packets by hook and reason; the index is `hook * 64 + reason`.
    Reasons "REASONS" PerCpuArray [Reason::LIMIT * 4] u32 => Count;
    /// Packets and flows by service.
    ServiceCounts "SERVICE_COUNTS" PerCpuArray [10_240] u32 => ServiceCount;
    /// Packets and flows by endpoint row.
    EndpointCounts "ENDPOINT_COUNTS" PerCpuArray [131_072] u32 => EndpointCount;
}

const _: () = assert!(Hook::ALL.len() == 4, "REASONS has room for four hooks");
