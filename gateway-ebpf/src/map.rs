//! The maps: one static per definition in `gateway-common`, and the pipeline's view of them.
#![expect(unsafe_code, reason = "rows of maps are raw pointers, and the license is a section of its own")]
#![expect(clippy::as_conversions, reason = "capacities are u32 in the definitions and usize in the statics")]

use core::sync::atomic::AtomicU64;

use aya_ebpf::{
    bindings::BPF_F_MMAPABLE,
    btf_maps::{Array, LpmTrie, PerCpuArray, ProgramArray, RingBuf, SockMap, lpm_trie},
    helpers,
    macros::btf_map,
};
use gateway_common::{
    addr::Addr,
    answer::Answers,
    cookie::{CookieKeys, SynCookie},
    counter::{Count, EndpointCount, Hook, HookCounts, Reason, ServiceCount, ServiceReasons},
    endpoint::Endpoint,
    event::{Event, EventCount},
    filter::FilterWord,
    flow::{
        DisplacedFlows, FlowBucket, FlowCount, ReplyBucket, Scratch, SequenceBucket, ServiceFlowCount, Tick,
    },
    fragment::FragmentBucket,
    health::{EndpointHealth, Handshake},
    heartbeat::Heartbeat,
    map::{self, MapDef},
    probe::Probe,
    receive::Receive,
    service::{PortRange, Service, ServiceBucket, Table},
    settings::Settings,
    slot::{Slot, SlotChunk},
    source::{RefusedRow, ServiceRate, SourceNetwork, SourceRateBucket, SourceRule},
};
use gateway_ebpf::{
    arrival::Arrival,
    cookie::CookieWords,
    env::Maps,
    guard::RateWords,
    outcome::{Outcome, Stage},
    rare::fragment::FragmentRows,
    table::{
        row::{FlowRows, ReplyRows},
        sequence::SequenceRows,
    },
};

use crate::hook::{
    apart, cookie,
    word::{self, number_of, place_of},
};

pub(crate) const fn capacity<M: MapDef>() -> usize {
    M::CAPACITY as usize
}

/// Maps that the agent has in its memory too.
const MAPPED: usize = BPF_F_MMAPABLE as usize;

type Value<M> = <M as MapDef>::Value;

#[btf_map]
static SERVICE_INDEX: Array<Value<map::ServiceIndex>, { capacity::<map::ServiceIndex>() }, MAPPED> =
    Array::new();
#[btf_map]
static SERVICES: Array<Value<map::Services>, { capacity::<map::Services>() }, MAPPED> = Array::new();
#[btf_map]
static PORT_RANGES: Array<Value<map::PortRanges>, { capacity::<map::PortRanges>() }, MAPPED> = Array::new();
#[btf_map]
static SLOTS: Array<Value<map::Slots>, { capacity::<map::Slots>() }, MAPPED> = Array::new();
#[btf_map]
static ENDPOINTS: Array<Value<map::Endpoints>, { capacity::<map::Endpoints>() }, MAPPED> = Array::new();
#[btf_map]
static FLOWS: Array<Value<map::Flows>, { capacity::<map::Flows>() }, MAPPED> = Array::new();
#[btf_map]
static DISPLACED: Array<Value<map::Displaced>, { capacity::<map::Displaced>() }, MAPPED> = Array::new();
#[btf_map]
static REPLIES: Array<Value<map::Replies>, { capacity::<map::Replies>() }, MAPPED> = Array::new();
#[btf_map]
static SEQUENCES: Array<Value<map::Sequences>, { capacity::<map::Sequences>() }> = Array::new();
#[btf_map]
static COOKIE_KEYS: Array<Value<map::CookieKeysMap>, { capacity::<map::CookieKeysMap>() }> = Array::new();
#[btf_map]
static SERVICE_FLOWS: Array<Value<map::ServiceFlows>, { capacity::<map::ServiceFlows>() }, MAPPED> =
    Array::new();
#[btf_map]
static ENDPOINT_FLOWS: Array<Value<map::EndpointFlows>, { capacity::<map::EndpointFlows>() }, MAPPED> =
    Array::new();
#[btf_map]
static FILTER: Array<Value<map::Filter>, { capacity::<map::Filter>() }> = Array::new();
#[btf_map]
static SOURCE_NETWORKS: LpmTrie<Addr, Value<map::SourceNetworks>, { capacity::<map::SourceNetworks>() }> =
    LpmTrie::new();
#[btf_map]
static SOURCE_FILTER: Array<Value<map::SourceFilter>, { capacity::<map::SourceFilter>() }> = Array::new();
#[btf_map]
static SERVICE_RATES: Array<Value<map::ServiceRates>, { capacity::<map::ServiceRates>() }> = Array::new();
#[btf_map]
static SOURCE_RATES: Array<Value<map::SourceRates>, { capacity::<map::SourceRates>() }> = Array::new();
#[btf_map]
static REFUSED_SOURCES: PerCpuArray<Value<map::RefusedSources>, { capacity::<map::RefusedSources>() }> =
    PerCpuArray::new();
#[btf_map]
static SYN_COOKIES: Array<Value<map::SynCookies>, { capacity::<map::SynCookies>() }> = Array::new();
#[btf_map]
static SETTINGS: Array<Value<map::SettingsMap>, { capacity::<map::SettingsMap>() }> = Array::new();
#[btf_map]
static RECEIVING: Array<Value<map::Receiving>, { capacity::<map::Receiving>() }> = Array::new();
#[btf_map]
static PROBES: Array<Value<map::Probes>, { capacity::<map::Probes>() }, MAPPED> = Array::new();
#[btf_map]
pub(crate) static SOCKETS: SockMap<{ capacity::<map::Sockets>() }> = SockMap::new();
#[btf_map]
static HEARTBEATS: Array<
    Value<map::Heartbeats>,
    { capacity::<map::Heartbeats>() },
    { BPF_F_MMAPABLE as usize },
> = Array::new();
#[btf_map]
static FRAGMENTS: Array<Value<map::Fragments>, { capacity::<map::Fragments>() }> = Array::new();
#[btf_map]
pub(crate) static XDP_PROGRAMS: ProgramArray<{ capacity::<map::XdpPrograms>() }> = ProgramArray::new();
#[btf_map]
pub(crate) static TC_PROGRAMS: ProgramArray<{ capacity::<map::TcPrograms>() }> = ProgramArray::new();
#[btf_map]
static SCRATCH: PerCpuArray<Value<map::ScratchMap>, { capacity::<map::ScratchMap>() }> = PerCpuArray::new();
#[btf_map]
static ANSWERS: PerCpuArray<Value<map::AnswersMap>, { capacity::<map::AnswersMap>() }> = PerCpuArray::new();
#[btf_map]
pub(crate) static REASONS: PerCpuArray<Value<map::Reasons>, { capacity::<map::Reasons>() }> =
    PerCpuArray::new();
#[btf_map]
pub(crate) static SERVICE_COUNTS: PerCpuArray<
    Value<map::ServiceCounts>,
    { capacity::<map::ServiceCounts>() },
> = PerCpuArray::new();
#[btf_map]
pub(crate) static SERVICE_REASONS: PerCpuArray<
    Value<map::ServiceReasons>,
    { capacity::<map::ServiceReasons>() },
> = PerCpuArray::new();
#[btf_map]
pub(crate) static ENDPOINT_COUNTS: PerCpuArray<
    Value<map::EndpointCounts>,
    { capacity::<map::EndpointCounts>() },
> = PerCpuArray::new();
#[btf_map]
static ENDPOINT_HEALTH: PerCpuArray<Value<map::EndpointHealths>, { capacity::<map::EndpointHealths>() }> =
    PerCpuArray::new();
#[btf_map]
static HANDSHAKES: Array<Value<map::Handshakes>, { capacity::<map::Handshakes>() }> = Array::new();
#[btf_map]
static EVENTS: RingBuf<Value<map::Events>, { capacity::<map::Events>() }> = RingBuf::new();
#[btf_map]
static EVENT_COUNTS: PerCpuArray<Value<map::EventCounts>, { capacity::<map::EventCounts>() }> =
    PerCpuArray::new();

/// `BPF_RB_NO_WAKEUP` of `linux/bpf.h`: the agent looks by itself.
const NO_WAKEUP: u64 = 1;

/// Some helpers are open to GPL-compatible programs only.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 4] = *b"GPL\0";

/// This processor's room for notes; the program asks for it once.
#[inline(always)]
pub(crate) fn scratch() -> Option<&'static mut Scratch> {
    let row: *mut Scratch = SCRATCH.get_ptr_mut(0)?;
    // SAFETY: the row belongs to this processor, nothing else runs there in between, and the caller asks once.
    Some(unsafe { &mut *row })
}

/// The pipeline's view of the maps above.
pub(crate) struct KernelMaps;

/// Lends a value under the type through which processors share it.
macro_rules! shared {
    ($value:expr => $plain:ty as $shared:ty) => {{
        const _: () = assert!(size_of::<$plain>() == size_of::<$shared>());
        let value: *const $plain = $value?;
        // SAFETY: the kernel keeps the value in place while the program runs; the shared type has the same bytes, and its
        // fields are atomic, so that others may write at the same time.
        Some(unsafe { &*value.cast::<$shared>() })
    }};
}

impl Maps for KernelMaps {
    type Row<T: 'static> = &'static T;

    #[inline(always)]
    fn now(&self, shift: u8) -> Tick {
        // SAFETY: the helper takes no pointer. The JIT makes one load of it.
        Tick::from_jiffies(unsafe { helpers::bpf_jiffies64() }, shift)
    }

    #[inline(always)]
    fn filter_word(&self, index: u32) -> FilterWord {
        FILTER.get(index).copied().unwrap_or_default()
    }

    #[inline(always)]
    fn settings(&self) -> Option<&'static Settings> {
        SETTINGS.get(0)
    }

    #[inline(always)]
    fn receive(&self) -> Option<&'static Receive> {
        RECEIVING.get(0)
    }

    #[inline(always)]
    fn probe(&self, row: u32) -> Option<&'static Probe> {
        PROBES.get(row)
    }

    #[inline(always)]
    fn note_probe(&self, row: u32) {
        let Some(row) = PROBES.get_ptr_mut(row) else { return };
        let row: *mut Probe = row;
        // SAFETY: a field of a live value.
        let sent = unsafe { &raw mut (*row).sent };
        // SAFETY: packets of one socket come one after the other, and the agent writes the field only before the first and
        // after the last.
        unsafe { sent.write_volatile(1) };
    }

    #[inline(always)]
    fn service_bucket(&self, bucket: u32) -> Option<&'static ServiceBucket> {
        SERVICE_INDEX.get(bucket)
    }

    #[inline(always)]
    fn port_range(&self, row: u32) -> Option<&'static PortRange> {
        PORT_RANGES.get(row)
    }

    #[inline(always)]
    fn service(&self, id: u32) -> Option<&'static Service> {
        SERVICES.get(id)
    }

    #[inline(always)]
    fn current(service: &&'static Service) -> Table {
        // SAFETY: a field of a live value. Volatile, because the agent may change it meanwhile, and it must be read once.
        let current = unsafe { (&raw const service.current).read_volatile() };
        let [even, odd] = &service.tables;
        let words: *const u32 = (&raw const *if current & 1 == 0 { even } else { odd }).cast();
        // SAFETY: one of four words of a live value. Volatile: the compiler copies them by a call, byte by byte, otherwise.
        let word = |at: usize| unsafe { words.wrapping_add(at).read_volatile() };
        Table { first_chunk: word(0), n_slots: word(1), first_endpoint: word(2), n_endpoints: word(3) }
    }

    #[inline(always)]
    fn slot(&self, chunk: u32, index: u32) -> Option<Slot> {
        let chunk: *const SlotChunk = SLOTS.get_ptr(chunk)?;
        // The mask, not a remainder or a comparison: the compiler knows that those change nothing and removes them,
        // and the verifier does not.
        let index = (index & (SlotChunk::SLOTS - 1)) as usize;
        // SAFETY: the index is below the number of slots in a chunk.
        let slot = unsafe { chunk.cast::<Slot>().add(index) };
        // SAFETY: the slot is inside the chunk; the agent writes slots of the idle half, or one of the two numbers of a slot.
        Some(unsafe { slot.read() })
    }

    #[inline(always)]
    fn endpoint(&self, row: u32) -> Option<&'static Endpoint> {
        ENDPOINTS.get(row)
    }

    #[inline(always)]
    fn flows(&self, bucket: u32) -> Option<&'static FlowRows> {
        shared!(FLOWS.get_ptr(bucket) => FlowBucket as FlowRows)
    }

    #[inline(always)]
    fn displaced(&self, row: u32) -> Option<&'static AtomicU64> {
        let row: *const DisplacedFlows = DISPLACED.get_ptr(row)?;
        // SAFETY: eight bytes of a live value, aligned like a word; all who write them do so atomically, all at once.
        Some(unsafe { &*row.cast::<AtomicU64>() })
    }

    #[inline(always)]
    fn replies(&self, bucket: u32) -> Option<&'static ReplyRows> {
        shared!(REPLIES.get_ptr(bucket) => ReplyBucket as ReplyRows)
    }

    #[inline(always)]
    fn service_flows(&self, id: u32) -> Option<&'static AtomicU64> {
        let [entries, _] = shared!(SERVICE_FLOWS.get_ptr(id) => ServiceFlowCount as [AtomicU64; 2])?;
        Some(entries)
    }

    #[inline(always)]
    fn service_evictions(&self, id: u32) -> Option<&'static AtomicU64> {
        let [_, evicted] = shared!(SERVICE_FLOWS.get_ptr(id) => ServiceFlowCount as [AtomicU64; 2])?;
        Some(evicted)
    }

    #[inline(always)]
    fn endpoint_flows(&self, row: u32) -> Option<&'static AtomicU64> {
        shared!(ENDPOINT_FLOWS.get_ptr(row) => FlowCount as AtomicU64)
    }

    #[inline(always)]
    fn handshake(&self, at: u32) -> Option<&'static AtomicU64> {
        shared!(HANDSHAKES.get_ptr(at) => Handshake as AtomicU64)
    }

    #[inline(always)]
    fn instant(&self, _: u8) -> u64 {
        // SAFETY: the helper takes no pointer. The JIT makes one load of it.
        let jiffies = unsafe { helpers::bpf_jiffies64() };
        jiffies << 32
    }

    #[inline(always)]
    fn source_filter(&self, index: u32) -> FilterWord {
        SOURCE_FILTER.get(index).copied().unwrap_or_default()
    }

    #[inline(always)]
    fn source_rule(&self, asked: &SourceNetwork) -> SourceRule {
        let [first, second]: [u64; 2] = bytemuck::must_cast(asked.addr);
        // Whole words, and the address at the beginning of one: the verifier refuses words at odd places of the stack.
        let words: [u64; 3] = [bytemuck::must_cast([0, asked.prefix_bits]), first, second];
        let key: *const lpm_trie::Key<Addr> = words.as_ptr().wrapping_byte_add(4).cast();
        // SAFETY: the key is the twenty bytes behind the first four; it has no alignment.
        let key = unsafe { &*key };
        SOURCE_NETWORKS.get(key).copied().unwrap_or(SourceRule::ALLOW)
    }

    #[inline(always)]
    fn service_rate(&self, id: u32) -> Option<&'static AtomicU64> {
        shared!(SERVICE_RATES.get_ptr(id) => ServiceRate as AtomicU64)
    }

    #[inline(always)]
    fn sequences(&self, bucket: u32) -> Option<&'static SequenceRows> {
        shared!(SEQUENCES.get_ptr(bucket) => SequenceBucket as SequenceRows)
    }

    #[inline(always)]
    fn cookie_keys(&self) -> Option<&'static CookieKeys> {
        COOKIE_KEYS.get(0)
    }

    #[inline(always)]
    fn syn_cookie(&self, id: u32) -> Option<&'static CookieWords> {
        shared!(SYN_COOKIES.get_ptr(id) => SynCookie as CookieWords)
    }

    #[inline(always)]
    fn moment(&self) -> Tick {
        // SAFETY: the helper takes no pointer.
        SynCookie::moment(unsafe { helpers::bpf_ktime_get_coarse_ns() })
    }

    #[inline(always)]
    fn source_rates(&self, bucket: u32) -> Option<&'static RateWords> {
        shared!(SOURCE_RATES.get_ptr(bucket) => SourceRateBucket as RateWords)
    }

    #[inline(always)]
    fn note_refused(&self, row: u32, by: impl FnOnce(&mut RefusedRow)) {
        change(REFUSED_SOURCES.get_ptr_mut(row), by);
    }

    #[inline(always)]
    fn load(word: &AtomicU64) -> u64 {
        word::load(word)
    }

    #[inline(always)]
    fn store(word: &AtomicU64, value: u64) {
        word::store(word, value);
    }

    #[inline(always)]
    fn exchange(word: &AtomicU64, old: u64, new: u64) -> bool {
        word::exchange(word, old, new)
    }

    #[inline(always)]
    fn swap(word: &AtomicU64, new: u64) {
        word::swap(word, new);
    }

    #[inline(always)]
    fn add(word: &AtomicU64, number: u64) {
        word::add(word, number);
    }

    #[inline(always)]
    fn apart(&self, stage: Stage, arrival: &mut Arrival) -> Outcome {
        apart::call(stage, arrival)
    }

    #[inline(always)]
    fn count_packet(&self, hook: Hook, reason: Reason, bytes: u64) {
        let number = number_of(reason);
        let Some(row) = REASONS.get_ptr_mut(hook.number()) else { return };
        let row: *mut HookCounts = row;
        let counts = row.cast::<Count>();
        // SAFETY: the row belongs to this processor, nothing else runs there in between, and its first count is one of them.
        add(unsafe { &mut *counts }, bytes);
        // SAFETY: the number is below that of the counts.
        let count = unsafe { counts.add(number) };
        // SAFETY: as for the first.
        add(unsafe { &mut *count }, bytes);
    }

    #[inline(always)]
    fn fragments(&self, bucket: u32) -> Option<&'static FragmentRows> {
        shared!(FRAGMENTS.get_ptr(bucket) => FragmentBucket as FragmentRows)
    }

    #[inline(always)]
    fn answers(&self, by: impl FnOnce(&mut Answers) -> bool) -> bool {
        let Some(row) = ANSWERS.get_ptr_mut(0) else { return false };
        // SAFETY: the row belongs to this processor, and nothing else runs there in between.
        by(unsafe { &mut *row })
    }

    #[inline(always)]
    fn count_service(&self, id: u32, by: impl FnOnce(&mut ServiceCount)) {
        change(SERVICE_COUNTS.get_ptr_mut(id), by);
    }

    #[inline(always)]
    fn count_service_drop(&self, id: u32, reason: Reason) {
        let Some(row) = SERVICE_REASONS.get_ptr_mut(id) else { return };
        let row: *mut ServiceReasons = row;
        let place = place_of(reason);
        // SAFETY: the place is below that of the counts.
        let count = unsafe { row.cast::<u64>().add(place) };
        // SAFETY: the row belongs to this processor, and nothing else runs there in between.
        unsafe { *count += 1 };
    }

    #[inline(always)]
    fn count_health(&self, row: u32, by: impl FnOnce(&mut EndpointHealth)) {
        change(ENDPOINT_HEALTH.get_ptr_mut(row), by);
    }

    #[inline(always)]
    fn clock_ns(&self) -> u64 {
        // SAFETY: the helper takes no pointer.
        unsafe { helpers::bpf_ktime_get_ns() }
    }

    #[inline(always)]
    fn heartbeat(&self, worker: u32) -> Heartbeat {
        let Some(row) = HEARTBEATS.get_ptr(worker) else { return Heartbeat::default() };
        let row: *const Heartbeat = row;
        // SAFETY: a live value of one word; the worker writes it as a whole.
        unsafe { row.read_volatile() }
    }

    #[inline(always)]
    fn listens(&self, socket: u32) -> bool {
        cookie::listens(socket)
    }

    #[inline(always)]
    fn event_count(&self, reason: u32, by: impl FnOnce(&mut EventCount) -> bool) -> bool {
        let Some(row) = EVENT_COUNTS.get_ptr_mut(reason) else { return false };
        // SAFETY: the row belongs to this processor, and nothing else runs there in between.
        by(unsafe { &mut *row })
    }

    #[inline(always)]
    fn tell(&self, fill: impl FnOnce(&mut Event)) -> bool {
        let Some(mut room) = EVENTS.reserve(0) else { return false };
        let event: *mut Event = room.as_mut_ptr();
        // SAFETY: the kernel gives room for an event, aligned to eight bytes, in memory that holds zeros or earlier events.
        fill(unsafe { &mut *event });
        room.submit(NO_WAKEUP);
        true
    }

    #[inline(always)]
    fn count_endpoint(&self, row: u32, by: impl FnOnce(&mut EndpointCount)) {
        change(ENDPOINT_COUNTS.get_ptr_mut(row), by);
    }
}

#[inline(always)]
const fn add(count: &mut Count, bytes: u64) {
    count.packets += 1;
    count.bytes += bytes;
}

#[inline(always)]
fn change<T>(row: Option<*mut T>, by: impl FnOnce(&mut T)) {
    if let Some(row) = row {
        // SAFETY: the row belongs to this processor, and nothing else runs there in between.
        by(unsafe { &mut *row });
    }
}
