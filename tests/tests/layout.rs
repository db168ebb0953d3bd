//! The object file against the definitions: every map's name, kind, sizes and flags, and the sizes behind the versions.
#![allow(
    clippy::disallowed_methods,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a suite fails loudly"
)]

use aya::{Ebpf, EbpfLoader, maps::MapInfo};
use gateway_common::{
    aside::{Aside, SWEEP},
    counter::Hook,
    layout::{FLOW_LAYOUT_VERSION, FLOW_SIZES, LAYOUT_VERSION, SIZES},
    map::{self, Description, Kind, MapDef as _},
};
use gateway_tests::{kernel_run::object_path, privilege};

/// Sizes at layout version 6. A change here without a new version opens old maps with new types.
const RECORDED: (u32, &[(&str, usize)]) = (
    6,
    &[
        ("ServiceBucket", 64),
        ("PortRange", 8),
        ("Service", 128),
        ("Endpoint", 64),
        ("SlotChunk", 64),
        ("FilterWord", 8),
        ("SourceNetwork", 20),
        ("SourceRule", 4),
        ("ServiceRate", 8),
        ("SourceRateBucket", 64),
        ("RefusedRow", 192),
        ("SynCookie", 24),
        ("CookieKeys", 32),
        ("Settings", 128),
        ("SocketPeer", 32),
        ("AskedFor", 24),
        ("SocketScope", 8),
        ("Probe", 40),
        ("Receive", 1_032),
        ("Scratch", 256),
        ("FragmentBucket", 64),
        ("Answers", 12),
        ("HookCounts", 2_048),
        ("ServiceCount", 64),
        ("ServiceReasons", 256),
        ("EndpointCount", 40),
        ("Event", 64),
        ("EventCount", 40),
        ("EndpointHealth", 40),
        ("Handshake", 8),
        ("Heartbeat", 8),
    ],
);

/// Sizes at flow layout version 4.
const RECORDED_FLOWS: (u32, &[(&str, usize)]) = (
    5,
    &[
        ("FlowBucket", 256),
        ("DisplacedFlows", 8),
        ("ReplyBucket", 64),
        ("SequenceBucket", 32),
        ("FlowCount", 8),
        ("ServiceFlowCount", 16),
    ],
);

#[test]
fn sizes_stand_behind_their_versions() {
    assert_eq!(
        (LAYOUT_VERSION, SIZES),
        RECORDED,
        "a size changed: raise LAYOUT_VERSION and record the sizes here"
    );
    assert_eq!(
        (FLOW_LAYOUT_VERSION, FLOW_SIZES),
        RECORDED_FLOWS,
        "a size changed: raise FLOW_LAYOUT_VERSION and record the sizes here"
    );
}

#[test]
fn maps_of_another_layout_are_taken_where_they_mean_the_same() {
    use gateway_common::layout::{CHANGED, MOVED, has_moved_since, is_unchanged_since};
    assert!(is_unchanged_since("SERVICES", 2));
    assert!(!is_unchanged_since("REASONS", 4) && is_unchanged_since("REASONS", 5));
    assert!(!is_unchanged_since("SERVICES", 1), "nothing is known of it");
    assert!(!is_unchanged_since("SERVICES", LAYOUT_VERSION + 1));
    assert!(has_moved_since("SERVICE_INDEX", 5) && !has_moved_since("SERVICE_INDEX", 6));
    assert!(!has_moved_since("SERVICE_INDEX", 1) && !has_moved_since("SERVICE_INDEX", LAYOUT_VERSION + 1));
    assert!(!has_moved_since("REASONS", 4), "it changed what it says");
    assert!(MOVED.iter().all(|moved| CHANGED.iter().any(|(changed, _)| changed == moved)));
    let is_map = |name: &str| map::ALL.iter().any(|map| map.name == name);
    assert!(CHANGED.iter().all(|(name, since)| is_map(name) && *since <= LAYOUT_VERSION));
}

/// `BPF_F_MMAPABLE` of `linux/bpf.h`.
const MMAPABLE: u32 = 1 << 10;

/// `BPF_F_NO_PREALLOC`.
const NO_PREALLOC: u32 = 1;

fn wanted(map: &Description) -> (aya::maps::MapType, u32, u32, u32, u32) {
    use aya::maps::MapType;
    let (kind, flags) = match map.kind {
        Kind::Array => (MapType::Array, 0),
        Kind::MappedArray => (MapType::Array, MMAPABLE),
        Kind::PerCpuArray => (MapType::PerCpuArray, 0),
        Kind::SockMap => (MapType::SockMap, 0),
        Kind::ProgArray => (MapType::ProgramArray, 0),
        Kind::LpmTrie => (MapType::LpmTrie, NO_PREALLOC),
        Kind::RingBuf => (MapType::RingBuf, 0),
        Kind::LruHash => (MapType::LruHash, 0),
    };
    // The kernel looks sockets up by a number of 4 or 8 bytes; the object says 4.
    let value_size = match map.kind {
        Kind::SockMap => 4,
        Kind::RingBuf => 0,
        Kind::Array
        | Kind::MappedArray
        | Kind::PerCpuArray
        | Kind::ProgArray
        | Kind::LpmTrie
        | Kind::LruHash => map.value_size,
    };
    (kind, flags, u32::try_from(map.key_size).unwrap(), u32::try_from(value_size).unwrap(), map.capacity)
}

fn info(ebpf: &Ebpf, name: &str) -> MapInfo {
    use aya::maps::Map;
    let map = ebpf.map(name).unwrap_or_else(|| panic!("the object has no map {name}"));
    let (Map::Array(data)
    | Map::PerCpuArray(data)
    | Map::SockMap(data)
    | Map::ProgramArray(data)
    | Map::LpmTrie(data)
    | Map::LruHashMap(data)
    | Map::RingBuf(data)) = map
    else {
        panic!("{name} is a map of an unknown kind");
    };
    data.info().unwrap()
}

#[test]
fn the_object_holds_the_maps_that_are_defined() {
    if !privilege::require("making the maps of the object") {
        return;
    }
    let object = std::fs::read(object_path().unwrap()).unwrap();
    let ebpf = EbpfLoader::new().load(&object).unwrap();
    for map in map::ALL {
        let info = info(&ebpf, map.name);
        let seen = (
            info.map_type().unwrap(),
            info.map_flags(),
            info.key_size(),
            info.value_size(),
            info.max_entries(),
        );
        assert_eq!(seen, wanted(map), "{}: kind, flags, key size, value size, capacity", map.name);
        assert_eq!(info.name_as_str(), Some(map.name), "the kernel's own name");
    }
    let mut others: Vec<_> = ebpf
        .maps()
        .map(|(name, _)| name)
        .filter(|name| map::ALL.iter().all(|map| map.name != *name))
        .filter(|name| !name.starts_with(".rodata"))
        .collect();
    others.sort_unstable();
    assert_eq!(others, [""; 0], "maps without a definition");
    let mut programs: Vec<_> = ebpf.programs().map(|(name, _)| name).collect();
    programs.sort_unstable();
    let mut named: Vec<_> =
        Hook::ALL.map(Hook::name).into_iter().chain(Aside::ALL.map(Aside::name)).chain([SWEEP]).collect();
    named.sort_unstable();
    assert_eq!(programs, named, "one program for each hook and each program aside, under its name");
}

/// As much of an object file (ELF, 64 bits, little endian) as says which function calls which by name.
struct Elf<'a> {
    bytes: &'a [u8],
}

/// A part of it, as its header says.
struct Section {
    kind: usize,
    start: usize,
    size: usize,
    link: usize,
    info: usize,
}

impl Elf<'_> {
    const SYMBOLS: usize = 2;
    const RELOCATIONS: usize = 9;

    fn number<const N: usize>(&self, at: usize) -> usize {
        let mut word = [0; 8];
        word[..N].copy_from_slice(&self.bytes[at..at + N]);
        usize::from_le_bytes(word)
    }

    fn sections(&self) -> Vec<Section> {
        let (first, size, n) = (self.number::<8>(0x28), self.number::<2>(0x3a), self.number::<2>(0x3c));
        let section = |at: usize| Section {
            kind: self.number::<4>(at + 4),
            start: self.number::<8>(at + 0x18),
            size: self.number::<8>(at + 0x20),
            link: self.number::<4>(at + 0x28),
            info: self.number::<4>(at + 0x2c),
        };
        (0..n).map(|idx| section(first + idx * size)).collect()
    }

    /// What the function with this name refers to.
    fn refers_to(&self, function: &str) -> Vec<String> {
        let sections = self.sections();
        let symbols = sections.iter().find(|section| section.kind == Self::SYMBOLS).unwrap();
        let name = |at: usize| {
            let start = sections[symbols.link].start + self.number::<4>(at);
            let end = self.bytes[start..].iter().position(|byte| *byte == 0).unwrap();
            String::from_utf8_lossy(&self.bytes[start..start + end]).into_owned()
        };
        let symbol = |idx: usize| symbols.start + idx * 24;
        let its = (0..symbols.size / 24).map(symbol).find(|at| name(*at) == function).unwrap();
        let (home, start, size) =
            (self.number::<2>(its + 6), self.number::<8>(its + 8), self.number::<8>(its + 16));
        let mut found = Vec::new();
        for section in sections.iter().filter(|it| it.kind == Self::RELOCATIONS && it.info == home) {
            for at in (section.start..section.start + section.size).step_by(16) {
                if (start..start + size).contains(&self.number::<8>(at)) {
                    found.push(name(symbol(self.number::<4>(at + 12))));
                }
            }
        }
        found
    }
}

#[test]
fn what_every_packet_runs_copies_nothing_by_calls() {
    let bytes = std::fs::read(object_path().unwrap()).unwrap();
    let object = Elf { bytes: &bytes };
    for hook in [Hook::XdpBalance, Hook::TcIngress, Hook::TcEgress, Hook::SkLookup] {
        let found = object.refers_to(hook.name());
        assert!(found.iter().any(|name| name == map::Filter::NAME), "{}: {found:?}", hook.name());
        let copies = ["memcpy", "memmove", "memset", "memcmp"];
        assert!(
            found.iter().all(|name| !copies.contains(&name.as_str())),
            "{} calls what goes byte by byte: {found:?}",
            hook.name()
        );
    }
}
