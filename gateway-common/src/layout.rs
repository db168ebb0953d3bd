//! Versions of the layout, which are part of the pin paths, and the sizes that they stand for.
//!
//! A new layout never opens an old map: it starts beside it and is filled from the same snapshot. Capacity is no
//! part of a layout.

use crate::{counter, endpoint, filter, flow, service, settings, slot};

/// Version of every map that can be rebuilt from the snapshot, and of the links.
pub const LAYOUT_VERSION: u32 = 1;

/// Version of the flow tables, whose entries outlive a change of the other maps.
pub const FLOW_LAYOUT_VERSION: u32 = 1;

/// Directory under a BPF file system that holds everything of Sluice.
pub const PIN_ROOT: &str = "sluice";

/// Name and size of every shared type. A test compares this list with the versions.
pub const SIZES: &[(&str, usize)] = &[
    ("ServiceKey", size_of::<service::ServiceKey>()),
    ("Service", size_of::<service::Service>()),
    ("Endpoint", size_of::<endpoint::Endpoint>()),
    ("SlotChunk", size_of::<slot::SlotChunk>()),
    ("FilterWord", size_of::<filter::FilterWord>()),
    ("Settings", size_of::<settings::Settings>()),
    ("Scratch", size_of::<flow::Scratch>()),
    ("Count", size_of::<counter::Count>()),
    ("ServiceCount", size_of::<counter::ServiceCount>()),
    ("EndpointCount", size_of::<counter::EndpointCount>()),
];

/// Name and size of every type of the flow tables.
pub const FLOW_SIZES: &[(&str, usize)] = &[
    ("FlowKey", size_of::<flow::FlowKey>()),
    ("Flow", size_of::<flow::Flow>()),
    ("Translation", size_of::<flow::Translation>()),
];
