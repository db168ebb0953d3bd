//! The environment of the pipeline: all that differs between the kernel and the host.

use core::{cell::Cell, ops::Deref};

use bytemuck::Pod;
use gateway_common::{
    addr::Protocol,
    counter::{EndpointCount, Hook, Reason, ServiceCount},
    endpoint::Endpoint,
    filter::FilterWord,
    flow::{Flow, FlowKey, Phase, Scratch, Tick, Translation},
    service::{Service, ServiceKey},
    settings::Settings,
    slot::Slot,
};

use crate::{
    checksum::{self, Diff},
    way::Way,
};

/// The maps and the clock.
///
/// Rows are references into the map, not copies: a row of a flow table that was looked up must not be used after
/// the next insertion into the same table, because the kernel may have recycled it.
pub trait Maps {
    /// A reference to a value inside a map.
    type Row<T: 'static>: Deref<Target = T>;

    /// The kernel's coarse monotonic clock.
    fn now(&self) -> Tick;
    /// One word of the filter; zero when the index is out of range.
    fn filter_word(&self, index: u32) -> FilterWord;
    /// The agent's settings.
    fn settings(&self) -> Option<Self::Row<Settings>>;
    /// The service at a virtual address.
    /// A copy, taken at once: the kernel gives the place of a value that was replaced to the next one that is written.
    fn service(&self, key: &ServiceKey) -> Option<Service>;
    /// Slot `index` modulo sixteen of a chunk.
    fn slot(&self, chunk: u32, index: u32) -> Option<Slot>;
    /// A row of the endpoints.
    fn endpoint(&self, row: u32) -> Option<Self::Row<Endpoint>>;
    /// What is remembered about a flow, by the client's 5-tuple.
    fn flow(&self, key: &FlowKey) -> Option<Self::Row<Cell<Flow>>>;
    /// What is remembered about a flow, by the endpoint's 5-tuple.
    fn translation(&self, key: &FlowKey) -> Option<Self::Row<Cell<Translation>>>;
    /// Records a flow, or replaces what was recorded.
    fn record_flow(&self, key: &FlowKey, flow: &Flow) -> Record;
    /// Records a translation unless there is one under this key.
    fn record_translation(&self, key: &FlowKey, translation: &Translation) -> Record;
    /// Forgets a translation.
    fn forget_translation(&self, key: &FlowKey);
    /// Says that a translation is alive. Nothing else of the row is written: an LRU table may have given its place to
    /// another flow meanwhile, whose addresses must stay its own.
    fn refresh_translation(row: &Self::Row<Cell<Translation>>, seen: Tick, phase: Phase);
    /// Says that a flow is ending, likewise.
    fn close_flow(row: &Self::Row<Cell<Flow>>);
    /// Records a translation, or replaces what was recorded.
    fn replace_translation(&self, key: &FlowKey, translation: &Translation) -> Record;
    /// Lends this processor's room for the entries of a flow. What it held before means nothing.
    fn scratch<R>(&self, use_it: impl FnOnce(&mut Scratch) -> R) -> Option<R>;
    /// Adds one packet to a row of the reasons.
    fn count_reason(&self, index: u32, bytes: u64);
    /// Changes the counts of a service; nothing happens when the number is out of range.
    fn count_service(&self, id: u32, change: impl FnOnce(&mut ServiceCount));
    /// Changes the counts of an endpoint row; nothing happens when the number is out of range.
    fn count_endpoint(&self, row: u32, change: impl FnOnce(&mut EndpointCount));
}

/// What came of writing to a flow table.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Record {
    /// It is written.
    Written,
    /// There is an entry already.
    Exists,
    /// The kernel refused.
    Refused,
}

/// One packet at one hook.
pub trait Env {
    /// The maps and the clock.
    type Maps: Maps;

    /// The maps and the clock.
    fn maps(&self) -> &Self::Maps;
    /// Why a packet is none of ours by what the kernel knows of it beside its bytes; none as a rule.
    fn apart(&self) -> Option<Reason> {
        None
    }
    /// The hook that the packet met.
    fn hook(&self) -> Hook;
    /// Bytes of the packet from its link-layer header on, also those that [`Env::load`] does not reach.
    fn len_bytes(&self) -> u32;
    /// Index of the interface where the packet came in.
    fn ingress(&self) -> u32;
    /// Reads a header at `offset` bytes from the link-layer header; `None` when it runs past the end.
    fn load<T: Pod>(&self, offset: u32) -> Option<T>;
    /// Writes a header; `None` when it runs past the end or the packet cannot be written.
    fn store<T: Pod>(&mut self, offset: u32, header: &T) -> Option<()>;
    /// Asks the kernel's routing and neighbor tables for the way of a packet to an endpoint. `ip_bytes` counts from the
    /// IP header on.
    fn next_hop(&mut self, endpoint: &Endpoint, protocol: Protocol, ip_bytes: u16) -> Option<Way>;

    /// Applies a difference to the header checksum of IPv4 at `offset`.
    #[inline(always)]
    fn fix_ip_checksum(&mut self, offset: u32, diff: Diff) -> Option<()> {
        let old: [u8; 2] = self.load(offset)?;
        self.store(offset, &checksum::update(old, diff))
    }

    /// Applies differences to the checksum of TCP or UDP.
    #[inline(always)]
    fn fix_transport_checksum(&mut self, fix: &TransportFix) -> Option<()> {
        let old: [u8; 2] = self.load(fix.offset)?;
        let diff = fix.pseudo.and(fix.own);
        let new = if fix.protocol == Protocol::UDP {
            checksum::update_udp(old, diff)
        } else {
            checksum::update(old, diff)
        };
        self.store(fix.offset, &new)
    }
}

/// What a change of addresses and ports does to the checksum of TCP or UDP.
///
/// The parts are kept apart because a packet whose checksum is left to the hardware holds a sum over the
/// pseudo-header only.
#[derive(Clone, Copy, Debug)]
pub struct TransportFix {
    /// Offset of the checksum field in bytes from the link-layer header.
    pub offset: u32,
    /// TCP or UDP.
    pub protocol: Protocol,
    /// Whether the addresses are IPv6.
    pub v6: bool,
    /// Change of the pseudo-header: the addresses.
    pub pseudo: Diff,
    /// Change of the transport header: the ports.
    pub own: Diff,
}
