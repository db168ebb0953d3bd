//! The pipeline's environment in memory: the host's side of the packet tests.

use std::{
    cell::RefCell,
    collections::BTreeMap,
    rc::Rc,
    sync::atomic::{AtomicU64, Ordering::SeqCst},
};

use bytemuck::{Pod, Zeroable as _};
use gateway_common::{
    addr::Protocol,
    answer::Answers,
    cookie::SynCookie,
    counter::{EndpointCount, Hook, Reason, ServiceCount},
    endpoint::{Endpoint, NextHop},
    filter::FilterWord,
    flow::{FlowBucket, FlowKey, ReplyBucket, Scratch, Tick},
    fragment::FragmentBucket,
    map::{self, INDEX_BUCKETS, MapDef as _},
    probe::Probe,
    receive::Receive,
    service::{PortRange, Service, ServiceBucket, Table},
    settings::Settings,
    slot::{Slot, SlotChunk},
    source::{RefusedRow, ServiceRate, SourceNetwork, SourceRateBucket, SourceRule},
};
use gateway_ebpf::{
    answer,
    arrival::Arrival,
    cookie::{self, Cookie, CookieWords, Syn},
    env::{Env, Maps, Room},
    guard::RateWords,
    ingress,
    outcome::{self, Stage},
    probe,
    rare::{
        self,
        fragment::{FragmentRow, FragmentRows},
    },
    receive as tunnels, record, reply, steer,
    table::row::{FlowRow, FlowRows, ReplyRow, ReplyRows},
    verdict::Verdict,
    way::Way,
};

mod receive;

pub use crate::tables::Tables;

/// Buckets of the flow tables of a test.
pub const BUCKETS: u32 = 64;

/// Buckets of the fragments of a test.
pub const FRAGMENTS: u16 = 4;

/// What came out of one run.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Outcome {
    /// The code that the program returned.
    pub code: i32,
    /// The packet afterwards.
    pub bytes: Vec<u8>,
}

/// One packet, and what is around it.
#[derive(Clone, Debug)]
pub struct Run {
    /// The hook.
    pub hook: Hook,
    /// Index of the interface where the packet came in.
    pub ingress: u32,
    /// The present.
    pub now: Tick,
    /// What the kernel's routing table would say.
    pub next_hop: Option<NextHop>,
}

impl Run {
    /// Runs a packet over the tables, and leaves in them what it changed.
    pub fn packet(&self, tables: &mut Tables, packet: &[u8]) -> Outcome {
        let maps = MemoryMaps::new(std::mem::take(tables), self.now);
        let mut env = Memory { maps, run: self.clone(), bytes: packet.to_vec() };
        let mut scratch = Scratch::zeroed();
        let arrival = Arrival::of(&mut scratch);
        let mut verdict = match self.hook {
            Hook::XdpBalance | Hook::TcIngress => ingress::ingress(&mut env, arrival),
            Hook::TcEgress => reply::egress(&mut env, arrival),
            Hook::TcReceive => tunnels::receive(&mut env),
            Hook::TcProbeOut => probe::out(&mut env),
            Hook::TcProbeIn => probe::back(&mut env),
            Hook::SkLookup => panic!("a socket lookup has no packet: use connection()"),
        };
        // In the kernel, programs of their own, which end in each other.
        let is_egress = self.hook == Hook::TcEgress;
        if let Verdict::Rare(_) = verdict {
            verdict =
                if is_egress { rare::egress(&mut env, arrival) } else { rare::ingress(&mut env, arrival) };
        }
        if let Verdict::Icmp(_) = verdict {
            verdict = if is_egress {
                rare::icmp_egress(&mut env, arrival)
            } else {
                rare::icmp_ingress(&mut env, arrival)
            };
        }
        if let Verdict::Answer(_) = verdict {
            verdict = answer::answer(&mut env, arrival);
        }
        if let Verdict::Cookie(_) = verdict {
            verdict = cookie::answer(&mut env, arrival);
        }
        let code = if self.hook == Hook::XdpBalance {
            i32::from_ne_bytes(verdict.xdp_code(self.ingress).to_ne_bytes())
        } else {
            verdict.tc_code()
        };
        *tables = env.maps.into_tables();
        Outcome { code, bytes: env.bytes }
    }

    /// Runs a connection over the tables; `sockets` are the indices that hold a socket. Returns the code and the
    /// index that was chosen.
    pub fn connection(&self, tables: &mut Tables, key: &FlowKey, sockets: &[u32]) -> (u32, Option<u32>) {
        let maps = MemoryMaps::new(std::mem::take(tables), self.now);
        let mut chosen = None;
        let verdict = steer::steer(&maps, key, |socket| {
            chosen = sockets.contains(&socket).then_some(socket);
            chosen.is_some()
        });
        *tables = maps.into_tables();
        (verdict.sk_code(), chosen)
    }
}

struct Memory {
    maps: MemoryMaps,
    run: Run,
    bytes: Vec<u8>,
}

impl Env for Memory {
    type Maps = MemoryMaps;

    const IS_RARE: bool = true;

    fn maps(&self) -> &MemoryMaps {
        &self.maps
    }

    fn hook(&self) -> Hook {
        self.run.hook
    }

    fn len_bytes(&self) -> u32 {
        u32::try_from(self.bytes.len()).unwrap_or(u32::MAX)
    }

    fn ingress(&self) -> u32 {
        self.run.ingress
    }

    fn load<T: Pod>(&self, offset: u32) -> Option<T> {
        let start = usize::try_from(offset).ok()?;
        let bytes = self.bytes.get(start..start.checked_add(size_of::<T>())?)?;
        Some(bytemuck::pod_read_unaligned(bytes))
    }

    fn store<T: Pod>(&mut self, offset: u32, header: &T) -> Option<()> {
        let start = usize::try_from(offset).ok()?;
        let bytes = self.bytes.get_mut(start..start.checked_add(size_of::<T>())?)?;
        bytes.copy_from_slice(bytemuck::bytes_of(header));
        Some(())
    }

    fn make_room(&mut self, room: Room) -> Option<()> {
        let bytes = usize::try_from(room.bytes()).ok()?;
        self.bytes.get(14)?;
        self.bytes.splice(14..14, vec![0; bytes]);
        Some(())
    }

    fn cut(&mut self, len_bytes: u32) -> Option<()> {
        let len = usize::try_from(len_bytes).ok().filter(|len| (14..=self.bytes.len()).contains(len))?;
        self.bytes.truncate(len);
        Some(())
    }

    fn grow(&mut self, bytes: u32) -> Option<()> {
        self.bytes.splice(0..0, vec![0; usize::try_from(bytes).ok()?]);
        Some(())
    }

    fn cookie(&self, _socket: u32, _syn: &Syn) -> Cookie {
        Cookie::from_word(self.maps.tables.borrow().cookie)
    }

    fn next_hop(&mut self, _endpoint: &Endpoint, _protocol: Protocol, _ip_bytes: u16) -> Option<Way> {
        self.run.next_hop.as_ref().map(Way::from)
    }
}

/// The maps over plain tables. Buckets of the flow tables are made when they are asked for.
struct MemoryMaps {
    tables: RefCell<Tables>,
    index: BTreeMap<u32, ServiceBucket>,
    flows: RefCell<BTreeMap<u32, Rc<FlowRows>>>,
    displaced: RefCell<BTreeMap<u32, Rc<AtomicU64>>>,
    replies: RefCell<BTreeMap<u32, Rc<ReplyRows>>>,
    fragments: RefCell<BTreeMap<u32, Rc<FragmentRows>>>,
    service_flows: RefCell<BTreeMap<u32, Rc<AtomicU64>>>,
    service_rates: RefCell<BTreeMap<u32, Rc<AtomicU64>>>,
    syn_cookies: RefCell<BTreeMap<u32, Rc<CookieWords>>>,
    source_rates: RefCell<BTreeMap<u32, Rc<RateWords>>>,
    now: Tick,
}

impl MemoryMaps {
    fn new(mut tables: Tables, now: Tick) -> Self {
        let flows = std::mem::take(&mut tables.flows);
        let flows =
            flows.iter().map(|(at, bucket)| (*at, Rc::new(bucket.flows.each_ref().map(FlowRow::from))));
        let replies = std::mem::take(&mut tables.replies);
        let replies =
            replies.iter().map(|(at, bucket)| (*at, Rc::new(bucket.replies.each_ref().map(ReplyRow::from))));
        let fragments = std::mem::take(&mut tables.fragments);
        let fragments = fragments.iter().map(|(at, bucket)| {
            let words = bucket.packets.map(bytemuck::cast::<_, [u64; 2]>);
            (*at, Rc::new(words.map(FragmentRow::from)))
        });
        let counts = std::mem::take(&mut tables.service_flows);
        let displaced = std::mem::take(&mut tables.displaced);
        let service_rates = std::mem::take(&mut tables.service_rates);
        let service_rates = service_rates.into_iter().map(|(id, rate)| (id, rate.full_at)).collect();
        let syn_cookies = std::mem::take(&mut tables.syn_cookies);
        let syn_cookies = syn_cookies.iter().map(|(id, row)| {
            let words: [u64; 3] = bytemuck::cast(*row);
            (*id, Rc::new(words.map(AtomicU64::new)))
        });
        let source_rates = std::mem::take(&mut tables.source_rates);
        let source_rates =
            source_rates.iter().map(|(at, rates)| (*at, Rc::new(rates.words.map(AtomicU64::new))));
        let words = |words: BTreeMap<u32, u64>| {
            RefCell::new(words.into_iter().map(|(at, word)| (at, Rc::new(AtomicU64::new(word)))).collect())
        };
        Self {
            index: tables.index(),
            flows: RefCell::new(flows.collect()),
            replies: RefCell::new(replies.collect()),
            fragments: RefCell::new(fragments.collect()),
            displaced: words(displaced),
            service_flows: words(counts),
            service_rates: words(service_rates),
            syn_cookies: RefCell::new(syn_cookies.collect()),
            source_rates: RefCell::new(source_rates.collect()),
            tables: RefCell::new(tables),
            now,
        }
    }

    fn into_tables(self) -> Tables {
        let mut tables = self.tables.into_inner();
        for (at, rows) in self.flows.into_inner() {
            let bucket = FlowBucket { flows: rows.each_ref().map(FlowRow::plain::<Self>) };
            if bucket != FlowBucket::default() {
                tables.flows.insert(at, bucket);
            }
        }
        for (at, rows) in self.replies.into_inner() {
            let bucket = ReplyBucket { replies: rows.each_ref().map(ReplyRow::get::<Self>) };
            if bucket != ReplyBucket::default() {
                tables.replies.insert(at, bucket);
            }
        }
        for (at, rows) in self.fragments.into_inner() {
            let packets = rows.each_ref().map(|row| bytemuck::cast(row.plain::<Self>()));
            let bucket = FragmentBucket { packets };
            if bucket != FragmentBucket::default() {
                tables.fragments.insert(at, bucket);
            }
        }
        tables.service_flows = not_zero(self.service_flows);
        tables.displaced = not_zero(self.displaced);
        let rates = not_zero(self.service_rates).into_iter();
        tables.service_rates = rates.map(|(id, full_at)| (id, ServiceRate { full_at })).collect();
        for (id, words) in self.syn_cookies.into_inner() {
            let row: SynCookie = bytemuck::cast(words.each_ref().map(|word| word.load(SeqCst)));
            if row != SynCookie::default() {
                tables.syn_cookies.insert(id, row);
            }
        }
        for (at, words) in self.source_rates.into_inner() {
            let words = words.each_ref().map(|word| word.load(SeqCst));
            tables.source_rates.insert(at, SourceRateBucket { words });
        }
        tables
    }
}

fn not_zero(words: RefCell<BTreeMap<u32, Rc<AtomicU64>>>) -> BTreeMap<u32, u64> {
    let words = words.into_inner().into_iter().map(|(at, word)| (at, word.load(SeqCst)));
    words.filter(|(_, word)| *word != 0).collect()
}

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

    fn syn_cookie(&self, id: u32) -> Option<Rc<CookieWords>> {
        (id < map::SynCookies::CAPACITY)
            .then(|| Rc::clone(self.syn_cookies.borrow_mut().entry(id).or_default()))
    }

    fn moment(&self) -> Tick {
        self.now
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

    fn count_endpoint(&self, row: u32, change: impl FnOnce(&mut EndpointCount)) {
        if row < map::EndpointCounts::CAPACITY {
            change(self.tables.borrow_mut().endpoint_counts.entry(row).or_default());
        }
    }
}
