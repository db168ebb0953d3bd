//! The maps in memory, as the pipeline asks for them.

use std::{
    rc::Rc,
    sync::atomic::{AtomicU64, Ordering::SeqCst},
};

use gateway_common::{
    answer::Answers,
    cookie::CookieKeys,
    counter::{EndpointCount, Hook, Reason, ServiceCount},
    endpoint::Endpoint,
    event::{Event, EventCount},
    filter::FilterWord,
    flow::Tick,
    health::EndpointHealth,
    heartbeat::Heartbeat,
    map::{self, INDEX_BUCKETS, MapDef as _},
    probe::Probe,
    receive::Receive,
    service::{PortRange, Service, ServiceBucket, Table},
    settings::Settings,
    slot::{Slot, SlotChunk},
    source::{RefusedRow, SourceNetwork, SourceRule},
};
use gateway_ebpf::{
    arrival::Arrival,
    cookie::CookieWords,
    env::{Hidden, Maps},
    guard::RateWords,
    outcome::{self, Stage},
    rare::fragment::FragmentRows,
    record,
    table::{
        row::{FlowRows, ReplyRows},
        sequence::SequenceRows,
    },
};

use super::MemoryMaps;

impl Hidden for MemoryMaps {}

impl Maps for MemoryMaps {
    type Row<T: 'static> = Rc<T>;

    fn now(&self, _: u8) -> Tick {
        self.now
    }

    fn filter_word(&self, index: u32) -> FilterWord {
        self.tables.borrow().filter.get(&index).copied().unwrap_or_default()
    }

    fn settings(&self) -> Option<Rc<Settings>> {
        Some(Rc::new(self.tables.borrow().settings))
    }

    fn receive(&self) -> Option<Rc<Receive>> {
        Some(Rc::new(self.tables.borrow().receive))
    }

    fn probe(&self, row: u32) -> Option<Rc<Probe>> {
        (row < Probe::ROWS)
            .then(|| Rc::new(self.tables.borrow().probes.get(&row).copied().unwrap_or_default()))
    }

    fn note_probe(&self, row: u32) {
        self.tables.borrow_mut().probes.entry(row).or_default().sent = 1;
    }

    fn service_bucket(&self, bucket: u32) -> Option<Rc<ServiceBucket>> {
        (bucket < INDEX_BUCKETS).then(|| Rc::new(self.index.get(&bucket).copied().unwrap_or_default()))
    }

    fn port_range(&self, row: u32) -> Option<Rc<PortRange>> {
        (row < map::PortRanges::CAPACITY)
            .then(|| Rc::new(self.tables.borrow().ranges.get(&row).copied().unwrap_or_default()))
    }

    fn service(&self, id: u32) -> Option<Rc<Service>> {
        let tables = self.tables.borrow();
        let service = tables.services.values().find(|service| service.id == id);
        (id < map::Services::CAPACITY).then(|| Rc::new(service.copied().unwrap_or_default()))
    }

    fn current(service: &Rc<Service>) -> Table {
        service.table()
    }

    fn slot(&self, chunk: u32, index: u32) -> Option<Slot> {
        if chunk >= map::Slots::CAPACITY {
            return None;
        }
        let chunk = self.tables.borrow().chunks.get(&chunk).copied().unwrap_or_default();
        chunk.slots.get(usize::try_from(index % SlotChunk::SLOTS).ok()?).copied()
    }

    fn endpoint(&self, row: u32) -> Option<Rc<Endpoint>> {
        (row < map::Endpoints::CAPACITY)
            .then(|| Rc::new(self.tables.borrow().endpoints.get(&row).copied().unwrap_or_default()))
    }

    fn flows(&self, bucket: u32) -> Option<Rc<FlowRows>> {
        let is_there = bucket <= self.tables.borrow().settings.flow_mask;
        is_there.then(|| Rc::clone(self.flows.borrow_mut().entry(bucket).or_default()))
    }

    fn displaced(&self, row: u32) -> Option<Rc<AtomicU64>> {
        let is_there = row <= self.tables.borrow().settings.flow_mask / 8;
        is_there.then(|| Rc::clone(self.displaced.borrow_mut().entry(row).or_default()))
    }

    fn replies(&self, bucket: u32) -> Option<Rc<ReplyRows>> {
        let is_there = bucket <= self.tables.borrow().settings.reply_mask;
        is_there.then(|| Rc::clone(self.replies.borrow_mut().entry(bucket).or_default()))
    }

    fn service_flows(&self, id: u32) -> Option<Rc<AtomicU64>> {
        (id < map::ServiceFlows::CAPACITY)
            .then(|| Rc::clone(self.service_flows.borrow_mut().entry(id).or_default()))
    }

    fn service_evictions(&self, id: u32) -> Option<Rc<AtomicU64>> {
        (id < map::ServiceFlows::CAPACITY)
            .then(|| Rc::clone(self.service_evictions.borrow_mut().entry(id).or_default()))
    }

    fn endpoint_flows(&self, row: u32) -> Option<Rc<AtomicU64>> {
        (row < map::EndpointFlows::CAPACITY)
            .then(|| Rc::clone(self.endpoint_flows.borrow_mut().entry(row).or_default()))
    }

    /// Nobody waits: times are the kernel's.
    fn handshake(&self, _at: u32) -> Option<Rc<AtomicU64>> {
        None
    }

    fn count_health(&self, row: u32, change: impl FnOnce(&mut EndpointHealth)) {
        change(self.tables.borrow_mut().endpoint_health.entry(row).or_default());
    }

    fn instant(&self, shift: u8) -> u64 {
        u64::from(self.now.count()) << (32 + u32::from(shift))
    }

    fn source_filter(&self, index: u32) -> FilterWord {
        self.tables.borrow().source_filter.get(&index).copied().unwrap_or_default()
    }

    fn source_rule(&self, asked: &SourceNetwork) -> SourceRule {
        let tables = self.tables.borrow();
        let holds = |network: &SourceNetwork| {
            let [network_bits, asked_bits] =
                [network.addr, asked.addr].map(|addr| u128::from_be_bytes(addr.octets()));
            let rest = 128 - network.prefix_bits.min(128);
            (network_bits ^ asked_bits).checked_shr(rest).unwrap_or(0) == 0
        };
        let longest = tables.networks.iter().filter(|(network, _)| holds(network));
        longest.max_by_key(|(network, _)| network.prefix_bits).map_or(SourceRule::ALLOW, |(_, rule)| *rule)
    }

    fn service_rate(&self, id: u32) -> Option<Rc<AtomicU64>> {
        (id < map::ServiceRates::CAPACITY)
            .then(|| Rc::clone(self.service_rates.borrow_mut().entry(id).or_default()))
    }

    fn sequences(&self, bucket: u32) -> Option<Rc<SequenceRows>> {
        let is_there = bucket <= self.tables.borrow().settings.flow_mask;
        is_there.then(|| Rc::clone(self.sequences.borrow_mut().entry(bucket).or_default()))
    }

    fn cookie_keys(&self) -> Option<Rc<CookieKeys>> {
        Some(Rc::new(self.tables.borrow().cookie_keys))
    }

    fn syn_cookie(&self, id: u32) -> Option<Rc<CookieWords>> {
        (id < map::SynCookies::CAPACITY)
            .then(|| Rc::clone(self.syn_cookies.borrow_mut().entry(id).or_default()))
    }

    fn moment(&self) -> Tick {
        self.tables.borrow().moment.unwrap_or(self.now)
    }

    fn source_rates(&self, bucket: u32) -> Option<Rc<RateWords>> {
        (bucket < map::SourceRates::CAPACITY)
            .then(|| Rc::clone(self.source_rates.borrow_mut().entry(bucket).or_default()))
    }

    fn note_refused(&self, row: u32, change: impl FnOnce(&mut RefusedRow)) {
        if row < map::RefusedSources::CAPACITY {
            change(self.tables.borrow_mut().refused.entry(row).or_default());
        }
    }

    fn load(word: &AtomicU64) -> u64 {
        word.load(SeqCst)
    }

    fn store(word: &AtomicU64, value: u64) {
        word.store(value, SeqCst);
    }

    fn exchange(word: &AtomicU64, old: u64, new: u64) -> bool {
        word.compare_exchange(old, new, SeqCst, SeqCst).is_ok()
    }

    fn swap(word: &AtomicU64, new: u64) {
        word.swap(new, SeqCst);
    }

    fn add(word: &AtomicU64, number: u64) {
        word.fetch_add(number, SeqCst);
    }

    fn apart(&self, stage: Stage, arrival: &mut Arrival) -> outcome::Outcome {
        record::stage(self, stage, arrival)
    }

    fn count_packet(&self, hook: Hook, reason: Reason, bytes: u64) {
        let mut tables = self.tables.borrow_mut();
        for reason in [Reason::Received, reason] {
            let count = tables.reasons.entry((hook.number(), reason.number())).or_default();
            count.packets += 1;
            count.bytes += bytes;
        }
    }

    fn fragments(&self, bucket: u32) -> Option<Rc<FragmentRows>> {
        (bucket < u32::from(map::FRAGMENT_BUCKETS))
            .then(|| Rc::clone(self.fragments.borrow_mut().entry(bucket).or_default()))
    }

    fn answers(&self, change: impl FnOnce(&mut Answers) -> bool) -> bool {
        change(&mut self.tables.borrow_mut().answers)
    }

    fn count_service(&self, id: u32, change: impl FnOnce(&mut ServiceCount)) {
        if id < map::ServiceCounts::CAPACITY {
            change(self.tables.borrow_mut().service_counts.entry(id).or_default());
        }
    }

    fn count_service_drop(&self, id: u32, reason: Reason) {
        if id < map::ServiceReasons::CAPACITY {
            let mut tables = self.tables.borrow_mut();
            let counts = tables.service_reasons.entry(id).or_default();
            counts.packets[reason.place()] += 1;
        }
    }

    fn clock_ns(&self) -> u64 {
        0
    }

    fn heartbeat(&self, worker: u32) -> Heartbeat {
        self.tables.borrow().heartbeats.get(&worker).copied().unwrap_or_default()
    }

    fn listens(&self, socket: u32) -> bool {
        self.tables.borrow().listening.contains(&socket)
    }

    fn event_count(&self, reason: u32, change: impl FnOnce(&mut EventCount) -> bool) -> bool {
        change(self.tables.borrow_mut().event_counts.entry(reason).or_default())
    }

    fn tell(&self, fill: impl FnOnce(&mut Event)) -> bool {
        self.tables.borrow_mut().tell(fill);
        true
    }

    fn count_endpoint(&self, row: u32, change: impl FnOnce(&mut EndpointCount)) {
        if row < map::EndpointCounts::CAPACITY {
            change(self.tables.borrow_mut().endpoint_counts.entry(row).or_default());
        }
    }
}
