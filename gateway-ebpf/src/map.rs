//! The maps: one static per definition in `gateway-common`, and the pipeline's view of them.
#![expect(unsafe_code, reason = "rows of maps are raw pointers, and the license is a section of its own")]
#![expect(clippy::as_conversions, reason = "capacities are u32 in the definitions and usize in the statics")]

use core::cell::Cell;

use aya_ebpf::{
    bindings::BPF_F_MMAPABLE,
    btf_maps::{Array, HashMap, LruHashMap, PerCpuArray, SockMap},
    helpers,
    macros::btf_map,
};
use gateway_common::{
    counter::{Count, EndpointCount, ServiceCount},
    endpoint::Endpoint,
    filter::FilterWord,
    flow::{Flow, FlowKey, Phase, Scratch, Tick, Translation},
    map::{self, MapDef},
    service::{Service, ServiceKey},
    settings::Settings,
    slot::{Slot, SlotChunk},
};
use gateway_ebpf::env::{Maps, Record};

const fn capacity<M: MapDef>() -> usize {
    M::CAPACITY as usize
}

type Key<M> = <M as MapDef>::Key;
type Value<M> = <M as MapDef>::Value;

#[btf_map]
static SERVICES: HashMap<Key<map::Services>, Value<map::Services>, { capacity::<map::Services>() }> =
    HashMap::new();
#[btf_map]
static SLOTS: Array<Value<map::Slots>, { capacity::<map::Slots>() }, { BPF_F_MMAPABLE as usize }> =
    Array::new();
#[btf_map]
static ENDPOINTS: Array<Value<map::Endpoints>, { capacity::<map::Endpoints>() }> = Array::new();
#[btf_map]
static FLOWS: LruHashMap<Key<map::Flows>, Value<map::Flows>, { capacity::<map::Flows>() }> =
    LruHashMap::new();
#[btf_map]
static TRANSLATIONS: LruHashMap<
    Key<map::Translations>,
    Value<map::Translations>,
    { capacity::<map::Translations>() },
> = LruHashMap::new();
#[btf_map]
static FILTER: Array<Value<map::Filter>, { capacity::<map::Filter>() }> = Array::new();
#[btf_map]
static SETTINGS: Array<Value<map::SettingsMap>, { capacity::<map::SettingsMap>() }> = Array::new();
#[btf_map]
pub(crate) static SOCKETS: SockMap<{ capacity::<map::Sockets>() }> = SockMap::new();
#[btf_map]
static SCRATCH: PerCpuArray<Value<map::ScratchMap>, { capacity::<map::ScratchMap>() }> = PerCpuArray::new();
#[btf_map]
static REASONS: PerCpuArray<Value<map::Reasons>, { capacity::<map::Reasons>() }> = PerCpuArray::new();
#[btf_map]
static SERVICE_COUNTS: PerCpuArray<Value<map::ServiceCounts>, { capacity::<map::ServiceCounts>() }> =
    PerCpuArray::new();
#[btf_map]
static ENDPOINT_COUNTS: PerCpuArray<Value<map::EndpointCounts>, { capacity::<map::EndpointCounts>() }> =
    PerCpuArray::new();

/// Some helpers are open to GPL-compatible programs only.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 4] = *b"GPL\0";

/// `BPF_ANY` of `linux/bpf.h`.
const ANY: u64 = 0;
/// `BPF_NOEXIST` of `linux/bpf.h`.
const NOEXIST: u64 = 1;
/// `-EEXIST` of Linux.
const EXISTS: i32 = -17;

/// The pipeline's view of the maps above.
pub(crate) struct KernelMaps;

/// Lends a row of a flow table that the pipeline reads and writes as a whole.
macro_rules! cell {
    ($row:expr, $value:ty) => {{
        let row: *mut $value = $row?;
        // SAFETY: the kernel keeps the row in place while the program runs, and a cell has the layout of its value.
        Some(unsafe { &*row.cast::<Cell<$value>>() })
    }};
}

impl Maps for KernelMaps {
    type Row<T: 'static> = &'static T;

    #[inline(always)]
    fn now(&self) -> Tick {
        // SAFETY: the helper takes no pointer.
        Tick::from_ns(unsafe { helpers::bpf_ktime_get_coarse_ns() })
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
    fn service(&self, key: &ServiceKey) -> Option<Service> {
        let row: *const Service = SERVICES.get_ptr(key)?;
        // SAFETY: the kernel keeps the row's memory while the program runs, and every bit pattern is a service.
        Some(unsafe { row.read_volatile() })
    }

    #[inline(always)]
    fn slot(&self, chunk: u32, index: u32) -> Option<Slot> {
        let chunk: *const SlotChunk = SLOTS.get_ptr(chunk)?;
        // The mask, not a remainder or a comparison: the compiler knows that those change nothing and removes them,
        // and the verifier does not.
        let index = (index & (SlotChunk::SLOTS - 1)) as usize;
        // SAFETY: the index is below the number of slots in a chunk.
        let slot = unsafe { chunk.cast::<Slot>().add(index) };
        // SAFETY: the slot is inside the chunk; the agent writes slots of the idle half only.
        Some(unsafe { slot.read() })
    }

    #[inline(always)]
    fn endpoint(&self, row: u32) -> Option<&'static Endpoint> {
        ENDPOINTS.get(row)
    }

    #[inline(always)]
    fn flow(&self, key: &FlowKey) -> Option<&'static Cell<Flow>> {
        cell!(FLOWS.get_ptr_mut(key), Flow)
    }

    #[inline(always)]
    fn translation(&self, key: &FlowKey) -> Option<&'static Cell<Translation>> {
        cell!(TRANSLATIONS.get_ptr_mut(key), Translation)
    }

    #[inline(always)]
    fn record_flow(&self, key: &FlowKey, flow: &Flow) -> Record {
        written(FLOWS.insert(key, flow, ANY))
    }

    #[inline(always)]
    fn record_translation(&self, key: &FlowKey, translation: &Translation) -> Record {
        written(TRANSLATIONS.insert(key, translation, NOEXIST))
    }

    #[inline(always)]
    fn forget_translation(&self, key: &FlowKey) {
        // One that another processor forgot first is as good.
        let _gone = TRANSLATIONS.remove(key);
    }

    #[inline(always)]
    fn refresh_translation(row: &&'static Cell<Translation>, seen: Tick, phase: Phase) {
        // SAFETY: the kernel keeps the row's memory while the program runs, and nothing else here refers to it.
        let row = unsafe { &mut *row.as_ptr() };
        row.seen = seen;
        row.phase = phase;
    }

    #[inline(always)]
    fn close_flow(row: &&'static Cell<Flow>) {
        // SAFETY: the kernel keeps the row's memory while the program runs, and nothing else here refers to it.
        let row = unsafe { &mut *row.as_ptr() };
        row.phase = Phase::CLOSING;
    }

    #[inline(always)]
    fn replace_translation(&self, key: &FlowKey, translation: &Translation) -> Record {
        written(TRANSLATIONS.insert(key, translation, ANY))
    }

    #[inline(always)]
    fn scratch<R>(&self, use_it: impl FnOnce(&mut Scratch) -> R) -> Option<R> {
        let row: *mut Scratch = SCRATCH.get_ptr_mut(0)?;
        // SAFETY: the row belongs to this processor, nothing else runs there in between, and the pipeline borrows it
        // once at a time.
        Some(use_it(unsafe { &mut *row }))
    }

    #[inline(always)]
    fn count_reason(&self, index: u32, bytes: u64) {
        change(REASONS.get_ptr_mut(index), |count: &mut Count| {
            count.packets += 1;
            count.bytes += bytes;
        });
    }

    #[inline(always)]
    fn count_service(&self, id: u32, by: impl FnOnce(&mut ServiceCount)) {
        change(SERVICE_COUNTS.get_ptr_mut(id), by);
    }

    #[inline(always)]
    fn count_endpoint(&self, row: u32, by: impl FnOnce(&mut EndpointCount)) {
        change(ENDPOINT_COUNTS.get_ptr_mut(row), by);
    }
}

#[inline(always)]
fn change<T>(row: Option<*mut T>, by: impl FnOnce(&mut T)) {
    if let Some(row) = row {
        // SAFETY: the row belongs to this processor, and nothing else runs there in between.
        by(unsafe { &mut *row });
    }
}

#[inline(always)]
fn written(result: Result<(), i32>) -> Record {
    match result {
        Ok(()) => Record::Written,
        Err(EXISTS) => Record::Exists,
        Err(_) => Record::Refused,
    }
}
