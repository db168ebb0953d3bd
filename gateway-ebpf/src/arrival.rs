//! What the pipeline knows of one packet to one service.
//!
//! It stands in memory of the processor's own, not on the program's stack, which has 512 bytes for everything.

use bytemuck::{Pod, Zeroable};
use gateway_common::{
    addr::{Port, Protocol},
    counter::{Hook, Reason},
    flow::{Phase, Scratch, Sequence, Tick},
    hash,
    service::{Mode, Service, Table, Track},
    settings::Settings,
    slot::Slot,
};

use crate::{
    env::Maps,
    packet::Packet,
    select::Seat,
    table::{
        Found, Spot, Wish,
        row::{FlowRows, HeadWord, Who},
    },
    track,
    way::Way,
};

/// A packet, its service, and the instant it came.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct Arrival {
    /// The packet.
    pub packet: Packet,
    /// Whose flow it is.
    pub who: Who,
    /// Where the flow may stand.
    pub spot: Spot,
    /// The hash of the flow.
    pub hash: u64,
    /// The service's table.
    pub table: Table,
    /// The present.
    pub now: Tick,
    /// Number of the service.
    pub id: u32,
    share: u32,
    affinity_ticks: u32,
    flags: u16,
    /// How packets reach the endpoint.
    pub mode: Mode,
    /// What is remembered about a flow.
    pub track: Track,
    /// Row of the endpoint that was chosen; once the packet is refused, the number of the reason.
    pub row: u32,
    /// The way back to the client, for a flow that is recorded.
    pub way_back: Way,
    /// The port that the flow has, or none when it begins now.
    pub preferred: Port,
    /// How far the flow has come.
    pub phase: Phase,
    /// Whether the flow is new: 0 or 1.
    pub is_new: u8,
    /// Whether the entry was taken for this packet: 0 or 1.
    pub is_taken: u8,
    /// Whether the flow that is recorded began with a cookie: 0 or 1.
    pub proxied: u8,
    /// What is left to do for a connection that begins with a cookie, or did.
    pub(crate) errand: Errand,
    /// Whether it goes to the endpoint as the SYN: 0 or 1.
    pub(crate) is_syn: u8,
    /// The hash that a slot is chosen by: of the flow, or of the client where that is what an endpoint is remembered for.
    pub choice: u64,
    /// Slot of the flow.
    pub slot: Slot,
    /// Index of the entry that was found, or [`NO_ENTRY`].
    pub entry: u32,
    /// Its head.
    pub head: HeadWord,
    /// Bytes that the way takes of a packet that is larger.
    fitting_bytes: u32,
    /// Number of the reason why the packet is to be answered.
    reason: u32,
    /// What is told of the packet beside this.
    told: Told,
    /// The number with which the client's connection begins.
    pub(crate) begins: u32,
    /// The cookie that a packet brings back.
    pub(crate) cookie: u32,
    /// What is noted about the numbers of a flow that began with a cookie, under whatever version its entry gets.
    pub(crate) sequence: Sequence,
    /// Index of the interface where a packet leaves; here, because that of a verdict without one is undefined.
    pub(crate) interface: u32,
    /// Segment size of its client as a SYN says it; of another packet, how far the client's number is ahead.
    pub(crate) number: u32,
    /// Index of the entry of the flow whose client is remembered, or [`NO_ENTRY`].
    pub(crate) kept: u32,
    spare: [u32; 3],
}

/// What a packet of a connection that begins with a cookie wants, as one byte.
#[repr(C)]
#[derive(Clone, Copy, Debug, Eq, PartialEq, Pod, Zeroable)]
pub(crate) struct Errand {
    number: u8,
}

impl Errand {
    /// It is a SYN that is answered with a cookie.
    pub(crate) const GREET: Self = Self { number: 0 };
    /// It is for the endpoint, or brings a cookie back.
    pub(crate) const TO_ENDPOINT: Self = Self { number: 1 };
    /// It is for the client.
    pub(crate) const TO_CLIENT: Self = Self { number: 2 };
}

/// How a packet ended, for whoever tells of it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub(crate) struct Told {
    /// Bytes of the packet as it came.
    pub(crate) len_bytes: u32,
    /// Number of the hook.
    pub(crate) hook: u8,
    /// Number of the reason.
    pub(crate) reason: u8,
    /// Whether it is an ICMP message: 0 or 1.
    pub(crate) is_icmp: u8,
    pad: u8,
}

impl Told {
    /// A packet.
    #[inline(always)]
    #[expect(clippy::as_conversions, clippy::cast_possible_truncation, reason = "both are below 128")]
    pub(crate) const fn new(hook: Hook, reason: Reason, len_bytes: u32, is_icmp: bool) -> Self {
        let (hook, reason) = (hook.number() as u8, reason.number() as u8);
        Self { len_bytes, hook, reason, is_icmp: is_icmp as u8, pad: 0 }
    }
}

/// No entry has this index.
pub const NO_ENTRY: u32 = u32::MAX;

impl Arrival {
    /// The notes of a program.
    #[inline(always)]
    pub fn of(scratch: &mut Scratch) -> &mut Self {
        bytemuck::must_cast_mut(scratch)
    }

    /// Notes the service of the packet that was parsed, and whose flow it is.
    #[inline(always)]
    pub fn is_to<M: Maps>(&mut self, maps: &M, id: u32, service: &M::Row<Service>, settings: &Settings) {
        self.is_for::<M>(id, service, settings);
        self.has_flow(maps, service, settings);
    }

    /// Notes the service of the packet that was parsed: what a slot is found by.
    #[inline(always)]
    pub(crate) fn is_for<M: Maps>(&mut self, id: u32, service: &M::Row<Service>, settings: &Settings) {
        self.id = id;
        self.flags = service.flags;
        self.mode = service.mode;
        self.track = service.track;
        self.table = M::current(service);
        let hash = hash::flow(&settings.keys, self.packet.key(), self.packet.is_v6());
        self.hash = hash;
        self.choice = hash;
    }

    /// Notes whose flow it is, and the present: for whoever asks the flow table, which most packets of services that
    /// remember flows of some slots alone need not do.
    #[inline(always)]
    pub(crate) fn has_flow<M: Maps>(&mut self, maps: &M, service: &Service, settings: &Settings) {
        self.share = service.flow_share;
        self.affinity_ticks = service.affinity_ticks;
        self.now = maps.now(settings.tick_shift);
        self.means_flow(settings);
    }

    /// Notes the interface through which the packet leaves, should that be its verdict.
    #[inline(always)]
    pub(crate) const fn leaves_by(&mut self, interface: u32) {
        self.interface = interface;
    }

    /// Index of the interface through which a packet leaves whose verdict is [`Verdict::Transmit`](crate::verdict::Verdict).
    #[inline(always)]
    pub const fn interface(&self) -> u32 {
        self.interface
    }

    /// Notes how large a packet may be.
    #[inline(always)]
    pub(crate) const fn fits(&mut self, bytes: u32) {
        self.fitting_bytes = bytes;
    }

    /// Bytes that the way takes.
    #[inline(always)]
    pub(crate) const fn fitting_bytes(&self) -> u32 {
        self.fitting_bytes
    }

    /// Notes why the packet is to be answered.
    #[inline(always)]
    pub(crate) const fn is_answered(&mut self, reason: Reason) {
        self.reason = reason.number();
    }

    /// Notes how the packet ended.
    #[inline(always)]
    pub(crate) const fn is_told(&mut self, told: Told) {
        self.told = told;
    }

    /// How the packet ended.
    #[inline(always)]
    pub(crate) const fn told(&self) -> Told {
        self.told
    }

    /// Notes whose packet a reply is that goes no further.
    #[inline(always)]
    pub(crate) const fn is_from(&mut self, service: u32, row: u32) {
        self.id = service;
        self.row = row;
    }

    /// Why the packet is to be answered.
    #[inline(always)]
    pub(crate) const fn reason(&self) -> Reason {
        if self.reason == Reason::TooBig.number() {
            Reason::TooBig
        } else if self.reason == Reason::CookieRefused.number() {
            Reason::CookieRefused
        } else {
            Reason::NoEndpoint
        }
    }

    /// A slot, as the service remembers it: where nothing, or everything, is remembered, flows follow slots at once.
    #[inline(always)]
    pub(crate) fn as_remembered(&self, slot: Slot) -> Slot {
        if self.track == Track::CHANGE { slot } else { slot.settled() }
    }

    /// The phase of the flow whose first packet this is.
    #[inline(always)]
    pub(crate) fn first_phase(&self) -> Phase {
        let protocol = self.packet.key().protocol;
        if protocol == Protocol::UDP && self.mode != Mode::NAT {
            // No answer passes here.
            Phase::OPEN
        } else {
            track::first_phase(protocol, self.packet.flags)
        }
    }

    /// Whether a client keeps its endpoint for a while.
    #[inline(always)]
    pub const fn is_sticky(&self) -> bool {
        self.flags & Service::AFFINITY != 0
    }

    /// Whether connections may begin with cookies of the programs' own: what is the agent's has the stack's.
    #[inline(always)]
    pub(crate) fn may_begin_with_cookies(&self) -> bool {
        self.flags & (Service::COOKIES | Service::FAILS_OPEN) == Service::COOKIES
            && self.packet.key().protocol == Protocol::TCP
    }

    /// Whether new flows are limited.
    #[inline(always)]
    pub const fn is_limited(&self) -> bool {
        self.flags & Service::LIMITED != 0
    }

    /// Whether the packet is of an open connection, and the service wants such a one reset when its endpoint is down.
    #[inline(always)]
    pub fn wants_reset(&self) -> bool {
        self.flags & Service::RESETS != 0
            && self.packet.key().protocol == Protocol::TCP
            && !self.packet.flags.opens()
    }

    /// Whether packets go through a tunnel.
    #[inline(always)]
    pub fn is_tunnelled(&self) -> bool {
        self.mode == Mode::DSR_IPIP || self.mode == Mode::DSR_GUE
    }

    /// Where endpoints are looked for. Without a tunnel, packets keep their family on the way.
    #[inline(always)]
    pub fn seat(&self) -> Seat<'_> {
        let family = if self.is_tunnelled() {
            Seat::EITHER
        } else if self.packet.is_v6() {
            Seat::V6
        } else {
            Seat::V4
        };
        Seat { service: self.id, table: &self.table, family }
    }

    /// An entry for this flow, and not the one with this index.
    #[inline(always)]
    pub fn wish<'a>(&'a self, settings: &'a Settings, keeps: u32) -> Wish<'a> {
        Wish { spot: &self.spot, who: &self.who, settings, share: self.share, now: self.now, keeps }
    }

    /// Notes the entry that was found, or that there is none. In memory, not in an option: half of one would be undefined,
    /// and the verifier refuses to look at that.
    #[inline(always)]
    pub fn notes_entry<R: core::ops::Deref<Target = FlowRows>>(&mut self, found: Option<&Found<R>>) {
        self.is_taken = 0;
        match found {
            Some(found) => {
                self.entry = found.place.index();
                self.head = found.held.head;
            }
            None => self.entry = NO_ENTRY,
        }
    }

    /// Speaks of the client from now on, not of its flow.
    #[inline(always)]
    pub fn means_client(&mut self, settings: &Settings) {
        let key = self.packet.key();
        let hash = hash::client(&settings.keys, key.source, key.destination, self.packet.is_v6());
        self.who = Who::new(key.source, Port::NONE, Port::NONE, self.id);
        self.spot = Spot::new(hash, settings.flow_mask, key.protocol);
        self.choice = hash;
    }

    /// Speaks of the flow again.
    #[inline(always)]
    pub fn means_flow(&mut self, settings: &Settings) {
        let key = self.packet.key();
        self.who = Who::new(key.source, key.source_port, key.destination_port, self.id);
        self.spot = Spot::new(self.hash, settings.flow_mask, key.protocol);
        self.choice = self.hash;
    }

    /// When an entry of a client is over.
    #[inline(always)]
    pub const fn affinity_ends(&self) -> Tick {
        self.now.after(self.affinity_ticks)
    }

    /// When an entry in this phase is over.
    #[inline(always)]
    pub fn expires(&self, settings: &Settings, phase: Phase) -> Tick {
        if self.who.client_port() == Port::NONE {
            self.affinity_ends()
        } else {
            self.now.after(track::timeout(settings, self.packet.key().protocol, phase))
        }
    }
}

const _: () = assert!(size_of::<Arrival>() == size_of::<Scratch>());
