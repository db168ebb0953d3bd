//! The environment of the pipeline: all that differs between the kernel and the host.

use core::{ops::Deref, sync::atomic::AtomicU64};

use bytemuck::Pod;
use gateway_common::{
    addr::Protocol,
    answer::Answers,
    cookie::CookieKeys,
    counter::{EndpointCount, Hook, Reason, ServiceCount},
    endpoint::Endpoint,
    event::{Event, EventCount},
    filter::FilterWord,
    flow::Tick,
    health::EndpointHealth,
    heartbeat::Heartbeat,
    probe::Probe,
    receive::Receive,
    service::{PortRange, Service, ServiceBucket, Table},
    settings::Settings,
    slot::Slot,
    source::{RefusedRow, SourceNetwork, SourceRule},
};

use crate::{
    arrival::Arrival,
    checksum::{self, Diff},
    cookie::{Cookie, CookieWords, Syn},
    guard::RateWords,
    outcome::{Outcome, Stage},
    packet::{eth, ip},
    rare::fragment::FragmentRows,
    table::{
        row::{FlowRows, ReplyRows},
        sequence::SequenceRows,
    },
    verdict::Verdict,
    way::Way,
};

/// Values of which the compiler is told nothing.
pub trait Hidden {
    /// The same verdict, as one that is made where a packet ends: of what it knows, the compiler keeps every part at hand on
    /// the way of all packets, in case that it will be needed.
    #[inline(always)]
    fn ends(verdict: Verdict) -> Verdict {
        verdict
    }

    /// The same number, of which the compiler knows nothing: it would join comparisons that are better made one by one.
    #[inline(always)]
    fn hidden(number: u8) -> u8 {
        number
    }

    /// The same reason as [`ends`](Self::ends) for verdicts.
    #[inline(always)]
    fn why(reason: Reason) -> Reason {
        reason
    }
}

/// The maps and the clock. Rows are references into the maps, not copies.
pub trait Maps: Hidden {
    /// A reference to a value inside a map.
    type Row<T: 'static>: Deref<Target = T> + Clone;

    /// The present. The shift is [`Settings::tick_shift`].
    fn now(&self, shift: u8) -> Tick;
    /// One word of the filter; zero when the index is out of range.
    fn filter_word(&self, index: u32) -> FilterWord;
    /// The agent's settings.
    fn settings(&self) -> Option<Self::Row<Settings>>;
    /// Whose tunnels end here.
    fn receive(&self) -> Option<Self::Row<Receive>>;
    /// A health check on its way.
    fn probe(&self, row: u32) -> Option<Self::Row<Probe>>;
    /// Notes that it sent a packet.
    fn note_probe(&self, row: u32);
    /// A bucket of the service index.
    fn service_bucket(&self, bucket: u32) -> Option<Self::Row<ServiceBucket>>;
    /// A row of the port ranges.
    fn port_range(&self, row: u32) -> Option<Self::Row<PortRange>>;
    /// A service by its number.
    fn service(&self, id: u32) -> Option<Self::Row<Service>>;
    /// The table of a service that is current: which one it is, is read once.
    fn current(service: &Self::Row<Service>) -> Table;
    /// Slot `index` modulo sixteen of a chunk.
    fn slot(&self, chunk: u32, index: u32) -> Option<Slot>;
    /// A row of the endpoints.
    fn endpoint(&self, row: u32) -> Option<Self::Row<Endpoint>>;
    /// A bucket of the flow table.
    fn flows(&self, bucket: u32) -> Option<Self::Row<FlowRows>>;
    /// Counts of displaced flows of eight buckets.
    fn displaced(&self, row: u32) -> Option<Self::Row<AtomicU64>>;
    /// A bucket of the table of replies.
    fn replies(&self, bucket: u32) -> Option<Self::Row<ReplyRows>>;
    /// Number of entries that a service holds in the flow table.
    fn service_flows(&self, id: u32) -> Option<Self::Row<AtomicU64>>;
    /// Number of flows of a service that lost their place in the flow table.
    fn service_evictions(&self, id: u32) -> Option<Self::Row<AtomicU64>>;
    /// Number of flows of an endpoint row in the flow table.
    fn endpoint_flows(&self, row: u32) -> Option<Self::Row<AtomicU64>>;
    /// A place of the handshakes that are timed.
    fn handshake(&self, at: u32) -> Option<Self::Row<AtomicU64>>;
    /// The present in 2^-32 of the kernel's timer interrupts, around the end of its range; the shift is that of
    /// [`Maps::now`], for environments that know no more.
    fn instant(&self, shift: u8) -> u64;
    /// One word of the filter of sources; zero when the index is out of range.
    fn source_filter(&self, index: u32) -> FilterWord;
    /// What the longest network with a rule says that a source is in; [`SourceRule::ALLOW`] when there is none.
    fn source_rule(&self, asked: &SourceNetwork) -> SourceRule;
    /// The word of a service's bucket of tokens.
    fn service_rate(&self, id: u32) -> Option<Self::Row<AtomicU64>>;
    /// A bucket of the sequence numbers, for a bucket of the flow table.
    fn sequences(&self, bucket: u32) -> Option<Self::Row<SequenceRows>>;
    /// The keys of cookies.
    fn cookie_keys(&self) -> Option<Self::Row<CookieKeys>>;
    /// The words of a service's row of SYN cookies.
    fn syn_cookie(&self, id: u32) -> Option<Self::Row<CookieWords>>;
    /// The present by a clock that the agent can read; see [`MOMENT_SHIFT`](gateway_common::cookie::MOMENT_SHIFT).
    fn moment(&self) -> Tick;
    /// Words of sources' buckets of tokens.
    fn source_rates(&self, bucket: u32) -> Option<Self::Row<RateWords>>;
    /// Changes a row of this processor's refused sources; nothing happens when the number is out of range.
    fn note_refused(&self, row: u32, change: impl FnOnce(&mut RefusedRow));
    /// Reads a word, once and as a whole.
    fn load(word: &AtomicU64) -> u64;
    /// Writes a word as a whole.
    fn store(word: &AtomicU64, value: u64);
    /// Replaces a word by another if it still is what it was; says whether it did. A barrier for all other accesses.
    fn exchange(word: &AtomicU64, old: u64, new: u64) -> bool;
    /// Replaces a word. A barrier likewise.
    fn swap(word: &AtomicU64, new: u64);
    /// Adds to a word, around the end of its range.
    fn add(word: &AtomicU64, number: u64);
    /// Does a part of the work apart: [`record::stage`](crate::record::stage), in a function of its own.
    fn apart(&self, stage: Stage, arrival: &mut Arrival) -> Outcome;
    /// Adds a packet to what its hook received, and to the reason that it ended with.
    fn count_packet(&self, hook: Hook, reason: Reason, bytes: u64);
    /// A bucket of the fragments.
    fn fragments(&self, bucket: u32) -> Option<Self::Row<FragmentRows>>;
    /// Changes what this processor has answered; says what the change says, or no when it cannot be reached.
    fn answers(&self, change: impl FnOnce(&mut Answers) -> bool) -> bool;
    /// Changes the counts of a service; nothing happens when the number is out of range.
    fn count_service(&self, id: u32, change: impl FnOnce(&mut ServiceCount));
    /// Adds a dropped packet to the reasons of a service; nothing happens when the number is out of range.
    fn count_service_drop(&self, id: u32, reason: Reason);
    /// Changes the signals of an endpoint row; nothing happens when the number is out of range.
    fn count_health(&self, row: u32, change: impl FnOnce(&mut EndpointHealth));
    /// The present in nanoseconds of the monotonic clock.
    fn clock_ns(&self) -> u64;
    /// The heartbeat of a worker of the agent; one that is silent when the number is out of range.
    fn heartbeat(&self, worker: u32) -> Heartbeat;
    /// Whether there is a listening socket at an index of the sockets.
    fn listens(&self, socket: u32) -> bool;
    /// Changes what this processor has told of a reason; says what the change says, or no when it cannot be reached.
    fn event_count(&self, reason: u32, change: impl FnOnce(&mut EventCount) -> bool) -> bool;
    /// Tells the agent of a packet; says whether there was room. The change writes every field.
    fn tell(&self, fill: impl FnOnce(&mut Event)) -> bool;
    /// Changes the counts of an endpoint row; nothing happens when the number is out of range.
    fn count_endpoint(&self, row: u32, change: impl FnOnce(&mut EndpointCount));
}

/// One packet at one hook.
pub trait Env {
    /// The maps and the clock.
    type Maps: Maps;

    /// Whether rare packets come here: fragments, and offsets that depend on extension headers.
    const IS_RARE: bool;

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
    /// Bytes behind the transport header in each segment that the stack or the hardware will make of this packet; none
    /// when it stays whole.
    fn segment_payload(&self) -> Option<u32> {
        None
    }
    /// Index of the interface where the packet came in.
    fn ingress(&self) -> u32;
    /// Bytes that an interface sends at once, from the IP header on; zero when the kernel does not say.
    fn takes_bytes(&self, interface: u32) -> u32;
    /// Reads a header at `offset` bytes from the link-layer header; `None` when it runs past the end.
    fn load<T: Pod>(&self, offset: u32) -> Option<T>;
    /// Reads a header of five words, each as a whole: of fields, the compiler reads and keeps some in pieces, and puts them
    /// together again.
    #[inline(always)]
    fn load_words<W: Pod>(&self, offset: u32) -> Option<[W; 5]> {
        self.load(offset)
    }
    /// Writes a header; `None` when it runs past the end or the packet cannot be written.
    fn store<T: Pod>(&mut self, offset: u32, header: &T) -> Option<()>;
    /// Addresses the frame.
    #[inline(always)]
    fn store_link(&mut self, way: Way) -> Option<()> {
        let (first, last) = way.link();
        self.store(0, &first)?;
        self.store(8, &last)
    }
    /// Writes an outer header of IP, and addresses its frame where that is cheaper at once than with
    /// [`store_outer_link`](Self::store_outer_link).
    #[inline(always)]
    fn store_outer<T: Pod>(&mut self, header: &T, _way: Way, _ethertype: [u8; 2]) -> Option<()> {
        self.store(ip::OFFSET, header)
    }
    /// Addresses the frame of an outer header that was written.
    #[inline(always)]
    fn store_outer_link(&mut self, way: Way, ethertype: [u8; 2]) -> Option<()> {
        self.store_link(way)?;
        self.store(eth::TYPE, &ethertype)
    }
    /// Makes room between the link-layer header and the IP header. The link-layer header has to be written again.
    fn make_room(&mut self, room: Room) -> Option<()>;
    /// Makes the packet as short as this, from its link-layer header on.
    fn cut(&mut self, len_bytes: u32) -> Option<()>;
    /// Makes the packet at least as long as this, from its link-layer header on. What is new is zero.
    fn stretch(&mut self, len_bytes: u32) -> Option<()>;
    /// Makes room in front of the packet, whose link-layer header has to be written again.
    fn grow(&mut self, bytes: u32) -> Option<()>;
    /// Asks the listening socket at an index of the sockets for the cookie of a SYN; [`Cookie::NONE`] when it would rather have
    /// the SYN: its queue has room, or it is gone.
    fn cookie(&self, socket: u32, syn: &Syn) -> Cookie;
    /// Asks the kernel's routing and neighbor tables for the way of a packet to an endpoint. `ip_bytes` counts from the
    /// IP header on, and is no more than fits that header; of what will be cut into segments, nobody is asked about the size.
    ///
    /// # Errors
    /// The bytes that the way takes when the packet has more; zero when there is no way.
    fn next_hop(&mut self, endpoint: &Endpoint, protocol: Protocol, ip_bytes: u32) -> Result<Way, u32>;

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

/// Room for the outer headers of a tunnel.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Room {
    /// Whether the outer header is IPv6.
    pub v6: bool,
    /// Whether there is a UDP header too.
    pub udp: bool,
    bytes: u32,
}

impl Room {
    /// For an outer header of IPv6 or IPv4, with UDP or without.
    #[inline(always)]
    pub const fn new(v6: bool, udp: bool) -> Self {
        Self { v6, udp, bytes: (if v6 { 40 } else { 20 }) + (if udp { 8 } else { 0 }) }
    }

    /// Bytes of the headers.
    #[inline(always)]
    pub const fn bytes(self) -> u32 {
        self.bytes
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
