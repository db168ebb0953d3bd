//! Versions of the layout, which are part of the pin paths, and the sizes that they stand for.
//!
//! A new layout opens a map of an old one only where [`CHANGED`] says that it means the same; the others start beside it
//! and are filled from the same snapshot, or from the old one where [`MOVED`] says that only places changed. Capacity is no
//! part of a layout.

use crate::{
    answer, cookie, counter, endpoint, event, filter, flow, fragment, health, heartbeat, probe, receive,
    service, settings, slot, socket, source,
};

/// Version of every map that can be rebuilt from the snapshot, and of the links.
pub const LAYOUT_VERSION: u32 = 6;

/// Maps whose values changed after the first layout that this one knows, 2, and since when. Whoever raises the version
/// writes them down here.
pub const CHANGED: &[(&str, u32)] = &[("REASONS", 5), ("ANSWERS", 4), ("SERVICE_INDEX", 6)];

/// Maps whose values mean the same in every layout that this one knows, and [changed](CHANGED) only where they stand: what
/// an old one holds is put into the new one.
pub const MOVED: &[&str] = &["SERVICE_INDEX"];

/// The oldest layout that [`CHANGED`] speaks of.
const OLDEST: u32 = 2;

/// Whether a map of this version means the same today. Of newer versions than this nothing is known.
pub fn is_unchanged_since(map: &str, version: u32) -> bool {
    (OLDEST..=LAYOUT_VERSION).contains(&version)
        && CHANGED.iter().all(|(changed, since)| *changed != map || *since <= version)
}

/// Whether the values of a map of this version mean the same today, but stand elsewhere.
pub fn has_moved_since(map: &str, version: u32) -> bool {
    MOVED.contains(&map) && (OLDEST..=LAYOUT_VERSION).contains(&version) && !is_unchanged_since(map, version)
}

/// Version of the flow tables, whose entries outlive a change of the other maps.
pub const FLOW_LAYOUT_VERSION: u32 = 5;

/// Directory under a BPF file system that holds everything of Sluice.
pub const PIN_ROOT: &str = "sluice";

/// Name and size of every shared type. A test compares this list with the versions.
pub const SIZES: &[(&str, usize)] = &[
    ("ServiceBucket", size_of::<service::ServiceBucket>()),
    ("PortRange", size_of::<service::PortRange>()),
    ("Service", size_of::<service::Service>()),
    ("Endpoint", size_of::<endpoint::Endpoint>()),
    ("SlotChunk", size_of::<slot::SlotChunk>()),
    ("FilterWord", size_of::<filter::FilterWord>()),
    ("SourceNetwork", size_of::<source::SourceNetwork>()),
    ("SourceRule", size_of::<source::SourceRule>()),
    ("ServiceRate", size_of::<source::ServiceRate>()),
    ("SourceRateBucket", size_of::<source::SourceRateBucket>()),
    ("RefusedRow", size_of::<source::RefusedRow>()),
    ("SynCookie", size_of::<cookie::SynCookie>()),
    ("CookieKeys", size_of::<cookie::CookieKeys>()),
    ("Settings", size_of::<settings::Settings>()),
    ("SocketPeer", size_of::<socket::SocketPeer>()),
    ("AskedFor", size_of::<socket::AskedFor>()),
    ("SocketScope", size_of::<socket::SocketScope>()),
    ("Probe", size_of::<probe::Probe>()),
    ("Receive", size_of::<receive::Receive>()),
    ("Scratch", size_of::<flow::Scratch>()),
    ("FragmentBucket", size_of::<fragment::FragmentBucket>()),
    ("Answers", size_of::<answer::Answers>()),
    ("HookCounts", size_of::<counter::HookCounts>()),
    ("ServiceCount", size_of::<counter::ServiceCount>()),
    ("ServiceReasons", size_of::<counter::ServiceReasons>()),
    ("EndpointCount", size_of::<counter::EndpointCount>()),
    ("Event", size_of::<event::Event>()),
    ("EventCount", size_of::<event::EventCount>()),
    ("EndpointHealth", size_of::<health::EndpointHealth>()),
    ("Handshake", size_of::<health::Handshake>()),
    ("Heartbeat", size_of::<heartbeat::Heartbeat>()),
];

/// Name and size of every type of the flow tables.
pub const FLOW_SIZES: &[(&str, usize)] = &[
    ("FlowBucket", size_of::<flow::FlowBucket>()),
    ("DisplacedFlows", size_of::<flow::DisplacedFlows>()),
    ("ReplyBucket", size_of::<flow::ReplyBucket>()),
    ("SequenceBucket", size_of::<flow::SequenceBucket>()),
    ("FlowCount", size_of::<flow::FlowCount>()),
    ("ServiceFlowCount", size_of::<flow::ServiceFlowCount>()),
];
