//! Entries of the flow table as several processors share them: the same bytes as in `gateway-common`, each field read
//! and written as a whole.

use core::sync::atomic::AtomicU64;

use bytemuck::{Pod, Zeroable};
use gateway_common::{
    addr::{Addr, Port, Protocol},
    flow::{Flow, FlowBucket, Head, HeadState, Phase, REPLY_WAYS, Reply, ReplyBucket, Tick, WAYS},
    settings::Settings,
};

use crate::{env::Maps, way::Way};

/// A bucket of [`Flows`](gateway_common::map::Flows).
pub type FlowRows = [FlowRow; WAYS];

/// A bucket of [`Replies`](gateway_common::map::Replies).
pub type ReplyRows = [ReplyRow; REPLY_WAYS];

/// The bytes of a [`Flow`].
#[repr(C)]
#[derive(Debug, Default)]
pub struct FlowRow {
    head: AtomicU64,
    client: [AtomicU64; 2],
    tuple: AtomicU64,
    target: AtomicU64,
    life: AtomicU64,
    next_hop: [AtomicU64; 2],
}

/// The word of an entry that changes while the flow lasts.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Life {
    expires: Tick,
    source_port: Port,
    phase: Phase,
    proxied: u8,
}

const _: () = assert!(size_of::<FlowRows>() == size_of::<FlowBucket>());
const _: () = assert!(size_of::<ReplyRows>() == size_of::<ReplyBucket>());

/// Whose flow it is, in whole words as the table compares them.
#[repr(C)]
#[derive(Clone, Copy, Debug, Eq, PartialEq, Pod, Zeroable)]
pub struct Who {
    client: [u64; 2],
    tuple: u64,
}

/// Ports and service, as an entry has them.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Tuple {
    client_port: Port,
    port: Port,
    service: u32,
}

impl Who {
    /// A client's flow to a port of a service.
    #[inline(always)]
    pub const fn new(client: Addr, client_port: Port, port: Port, service: u32) -> Self {
        Self {
            client: bytemuck::must_cast(client),
            tuple: bytemuck::must_cast(Tuple { client_port, port, service }),
        }
    }

    #[inline(always)]
    const fn parts(self) -> Tuple {
        bytemuck::must_cast(self.tuple)
    }

    /// The client.
    #[inline(always)]
    pub const fn client(self) -> Addr {
        bytemuck::must_cast(self.client)
    }

    /// The client's port.
    #[inline(always)]
    pub const fn client_port(self) -> Port {
        self.parts().client_port
    }

    /// The virtual port.
    #[inline(always)]
    pub const fn port(self) -> Port {
        self.parts().port
    }

    /// Number of the service.
    #[inline(always)]
    pub const fn service(self) -> u32 {
        self.parts().service
    }
}

/// What an entry says of its flow, read at one instant.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Held {
    /// The head that it was read under.
    pub head: HeadWord,
    /// Row of the endpoint.
    pub endpoint: u32,
    /// Generation of the row when the flow was recorded.
    pub generation: u32,
    /// When the entry is over.
    pub expires: Tick,
    /// Port towards the endpoint.
    pub source_port: Port,
    /// How far the connection has come.
    pub phase: Phase,
    /// Whether it began with a cookie: 0 or 1.
    pub proxied: u8,
}

/// What is written to an entry, beside whose it is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Content {
    /// Row of the endpoint.
    pub endpoint: u32,
    /// Generation of the row.
    pub generation: u32,
    /// When the entry is over.
    pub expires: Tick,
    /// Port towards the endpoint.
    pub source_port: Port,
    /// How far the connection has come.
    pub phase: Phase,
    /// Whether it began with a cookie: 0 or 1.
    pub proxied: u8,
    /// The way back to the client.
    pub next_hop: Way,
}

/// A [`Head`] as one word: the compiler would write a struct in pieces, and the verifier refuses pieces at odd places.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Eq, PartialEq, Pod, Zeroable)]
pub struct HeadWord {
    word: u64,
}

impl HeadWord {
    /// Of an entry of a flow, without its version.
    #[inline(always)]
    pub const fn of(tag: u16, protocol: Protocol) -> Self {
        let [a, b] = tag.to_ne_bytes();
        Self { word: u64::from_ne_bytes([a, b, 0, 0, 0, 0, protocol.number(), LIVE]) }
    }

    /// The bits that tell whose entry it may be.
    const MASK: u64 = u64::from_ne_bytes([0xff, 0xff, 0, 0, 0, 0, 0xff, !DISPLACED]);

    /// The parts.
    #[inline(always)]
    pub const fn head(self) -> Head {
        Head::from_word(self.word)
    }

    /// From the parts.
    #[inline(always)]
    pub const fn from_head(head: Head) -> Self {
        Self { word: head.word() }
    }

    /// The head of an entry that is taken away from this flow for another, or for itself; whether it is in the second of
    /// that flow's buckets.
    #[inline(always)]
    #[must_use]
    pub const fn taken_for(self, wanted: Self, is_displaced: bool) -> Self {
        let [_, _, c, d, ..] = self.word.to_ne_bytes();
        let [v, w] = u16::from_ne_bytes([c, d]).wrapping_add(1).to_ne_bytes();
        let [a, b, _, _, _, _, protocol, _] = wanted.word.to_ne_bytes();
        let state = if is_displaced { BUSY | DISPLACED } else { BUSY };
        Self { word: u64::from_ne_bytes([a, b, v, w, 0, 0, protocol, state]) }
    }

    #[inline(always)]
    const fn with(self, state: u8) -> Self {
        let [a, b, c, d, e, f, g, _] = self.word.to_ne_bytes();
        Self { word: u64::from_ne_bytes([a, b, c, d, e, f, g, state]) }
    }

    /// With a flow.
    #[inline(always)]
    #[must_use]
    pub const fn live(self) -> Self {
        self.with(if self.is_displaced() { LIVE | DISPLACED } else { LIVE })
    }

    /// While a processor writes the entry, which stays that of its flow.
    #[inline(always)]
    #[must_use]
    pub const fn busy(self) -> Self {
        self.with(if self.is_displaced() { BUSY | DISPLACED } else { BUSY })
    }

    /// Without.
    #[inline(always)]
    #[must_use]
    pub const fn free(self) -> Self {
        self.with(FREE)
    }

    #[inline(always)]
    const fn state(self) -> u8 {
        let [.., state] = self.word.to_ne_bytes();
        state & !DISPLACED
    }

    /// Whether the entry is in the second of its flow's buckets.
    #[inline(always)]
    pub const fn is_displaced(self) -> bool {
        let [.., state] = self.word.to_ne_bytes();
        state & DISPLACED != 0
    }

    /// Bits of the flow's hash.
    #[inline(always)]
    pub const fn tag(self) -> u16 {
        let [a, b, ..] = self.word.to_ne_bytes();
        u16::from_ne_bytes([a, b])
    }

    /// Whether there is a flow.
    #[inline(always)]
    pub const fn is_live(self) -> bool {
        self.state() == LIVE
    }

    /// Whether there is none.
    #[inline(always)]
    pub const fn is_free(self) -> bool {
        self.state() == FREE
    }

    /// Whether a processor is writing the entry.
    #[inline(always)]
    pub const fn is_busy(self) -> bool {
        self.state() == BUSY
    }

    /// Counts the flows that the entry has held.
    #[inline(always)]
    pub const fn version(self) -> u16 {
        let [_, _, c, d, ..] = self.word.to_ne_bytes();
        u16::from_ne_bytes([c, d])
    }

    /// TCP or UDP.
    #[inline(always)]
    pub const fn protocol(self) -> Protocol {
        let [.., protocol, _] = self.word.to_ne_bytes();
        Protocol::new(protocol)
    }

    /// Whether this is the head of a live entry that may be of the flow with this one.
    #[inline(always)]
    pub const fn is_of(self, wanted: Self) -> bool {
        self.word & Self::MASK == wanted.word
    }

    /// Whether both are of the same tag and protocol.
    #[inline(always)]
    pub const fn is_like(self, other: Self) -> bool {
        (self.word ^ other.word) & Self::MASK & u64::from_ne_bytes([0xff, 0xff, 0, 0, 0, 0, 0xff, 0]) == 0
    }
}

const FREE: u8 = HeadState::FREE.number();
const BUSY: u8 = HeadState::BUSY.number();
const LIVE: u8 = HeadState::LIVE.number();
const DISPLACED: u8 = HeadState::DISPLACED;

impl FlowRow {
    /// The head.
    #[inline(always)]
    pub fn head<M: Maps>(&self) -> HeadWord {
        HeadWord { word: M::load(&self.head) }
    }

    /// Changes the head if nobody else did.
    #[inline(always)]
    pub fn exchange<M: Maps>(&self, old: HeadWord, new: HeadWord) -> bool {
        M::exchange(&self.head, old.word, new.word)
    }

    /// Sets the head of an entry that is ours, after everything else of it.
    #[inline(always)]
    pub fn publish<M: Maps>(&self, head: HeadWord) {
        M::swap(&self.head, head.word);
    }

    /// What the entry says, if it is the live entry of this flow. `wanted` is the head without its version.
    #[inline(always)]
    pub fn read<M: Maps>(&self, wanted: HeadWord, who: &Who) -> Option<Held> {
        let before = self.head::<M>();
        if !before.is_of(wanted) || !self.is_of::<M>(who) {
            return None;
        }
        let held = self.held::<M>(before.word);
        // Nobody took the entry while it was read.
        (self.head::<M>() == before).then_some(held)
    }

    #[inline(always)]
    fn held<M: Maps>(&self, head: u64) -> Held {
        let [endpoint, generation] = bytemuck::must_cast(M::load(&self.target));
        let Life { expires, source_port, phase, proxied } = self.life::<M>();
        Held { head: HeadWord { word: head }, endpoint, generation, expires, source_port, phase, proxied }
    }

    #[inline(always)]
    fn life<M: Maps>(&self) -> Life {
        bytemuck::must_cast(M::load(&self.life))
    }

    #[inline(always)]
    fn tuple<M: Maps>(&self) -> Tuple {
        bytemuck::must_cast(M::load(&self.tuple))
    }

    /// Everything of a live entry, whoever's it is: for replies.
    #[inline(always)]
    pub fn read_any<M: Maps>(&self) -> Option<(Who, Held, Way)> {
        let before = M::load(&self.head);
        if !(HeadWord { word: before }).is_live() {
            return None;
        }
        let [a, b] = &self.client;
        let who = Who { client: [M::load(a), M::load(b)], tuple: M::load(&self.tuple) };
        let held = self.held::<M>(before);
        let way = self.way::<M>();
        (M::load(&self.head) == before).then_some((who, held, way))
    }

    /// The way back, as it is at this instant.
    #[inline(always)]
    pub fn way<M: Maps>(&self) -> Way {
        let [c, d] = &self.next_hop;
        Way::from_words(bytemuck::must_cast([M::load(c), M::load(d)]))
    }

    /// Whether the entry is this flow's, also while a processor is writing it.
    #[inline(always)]
    pub fn is_of<M: Maps>(&self, who: &Who) -> bool {
        let [a, b] = &self.client;
        let [c, d] = who.client;
        let other = (M::load(a) ^ c) | (M::load(b) ^ d) | (M::load(&self.tuple) ^ who.tuple);
        other == 0
    }

    /// When the entry is over.
    #[inline(always)]
    pub fn expires<M: Maps>(&self) -> Tick {
        self.life::<M>().expires
    }

    /// Whether nobody may come back to it: it is over, and a TCP connection that was open has been so for as long again.
    #[inline(always)]
    pub fn is_long_over<M: Maps>(&self, head: HeadWord, settings: &Settings, now: Tick) -> bool {
        let Life { expires, phase, .. } = self.life::<M>();
        let was_open = head.protocol() == Protocol::TCP && phase == Phase::OPEN;
        let grace = if was_open { settings.open_ticks } else { 0 };
        expires.after(grace).is_before(now)
    }

    /// Port towards the endpoint.
    #[inline(always)]
    pub fn source_port<M: Maps>(&self) -> Port {
        self.life::<M>().source_port
    }

    /// Row of the service.
    #[inline(always)]
    pub fn service<M: Maps>(&self) -> u32 {
        self.tuple::<M>().service
    }

    /// The virtual port.
    #[inline(always)]
    pub fn port<M: Maps>(&self) -> Port {
        self.tuple::<M>().port
    }

    /// Row of the endpoint.
    #[inline(always)]
    pub fn endpoint<M: Maps>(&self) -> u32 {
        let [endpoint, _]: [u32; 2] = bytemuck::must_cast(M::load(&self.target));
        endpoint
    }

    /// Generation of that row when the flow was recorded.
    #[inline(always)]
    pub fn generation<M: Maps>(&self) -> u32 {
        let [_, generation]: [u32; 2] = bytemuck::must_cast(M::load(&self.target));
        generation
    }

    /// The client and its port.
    #[inline(always)]
    pub fn client<M: Maps>(&self) -> (Addr, Port) {
        let [a, b] = &self.client;
        (bytemuck::must_cast([M::load(a), M::load(b)]), self.tuple::<M>().client_port)
    }

    /// Says that the flow that was read is alive. When the entry changed meanwhile, another packet said so, or it has
    /// become another flow's.
    #[inline(always)]
    pub fn refresh<M: Maps>(&self, held: &Held, expires: Tick, phase: Phase) {
        let Held { source_port, proxied, .. } = *held;
        let old = Life { expires: held.expires, source_port, phase: held.phase, proxied };
        let new = Life { expires, source_port, phase, proxied };
        M::exchange(&self.life, bytemuck::must_cast(old), bytemuck::must_cast(new));
    }

    /// Fills an entry that is ours.
    #[inline(always)]
    pub fn fill<M: Maps>(&self, who: &Who, content: &Content) {
        let [a, b] = &self.client;
        let [client_a, client_b] = who.client;
        M::store(a, client_a);
        M::store(b, client_b);
        M::store(&self.tuple, who.tuple);
        M::store(&self.target, bytemuck::must_cast([content.endpoint, content.generation]));
        let Content { expires, source_port, phase, proxied, .. } = *content;
        M::store(&self.life, bytemuck::must_cast(Life { expires, source_port, phase, proxied }));
        let [c, d] = &self.next_hop;
        let [way_a, way_b] = content.next_hop.halves();
        M::store(c, way_a);
        M::store(d, way_b);
    }

    /// A copy in the plain form.
    pub fn plain<M: Maps>(&self) -> Flow {
        let [a, b] = &self.client;
        let [c, d] = &self.next_hop;
        let words = [&self.head, a, b, &self.tuple, &self.target, &self.life, c, d];
        bytemuck::must_cast(words.map(|word| M::load(word)))
    }
}

impl From<&Flow> for FlowRow {
    fn from(flow: &Flow) -> Self {
        let words: [u64; 8] = bytemuck::must_cast(*flow);
        let [head, a, b, tuple, target, life, c, d] = words.map(AtomicU64::new);
        Self { head, client: [a, b], tuple, target, life, next_hop: [c, d] }
    }
}

/// The bytes of a [`Reply`].
#[repr(transparent)]
#[derive(Debug, Default)]
pub struct ReplyRow {
    word: AtomicU64,
}

impl ReplyRow {
    /// What stands there.
    #[inline(always)]
    pub fn get<M: Maps>(&self) -> Reply {
        Reply::from_word(M::load(&self.word))
    }

    /// Changes what stands there if nobody else did.
    #[inline(always)]
    pub fn exchange<M: Maps>(&self, old: Reply, new: Reply) -> bool {
        M::exchange(&self.word, old.word(), new.word())
    }
}

impl From<&Reply> for ReplyRow {
    fn from(reply: &Reply) -> Self {
        Self { word: AtomicU64::new(reply.word()) }
    }
}
