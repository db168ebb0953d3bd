//! The plan: which writes bring the maps from what stands in them to what an image wants. Pure.
//!
//! Make before break. Additions begin with the bits of the filter, so that whatever comes back from an endpoint is seen, and go
//! on leaves first: endpoint rows, slots, the service values that refer to both, then the entries of the index. Removals go
//! roots first: services, bits, rows. At every moment in between a packet finds either the old or the new state of its
//! service, whole.

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    net::IpAddr,
    ops::RangeInclusive,
};

use gateway_common::{
    addr::{Addr, Port, Protocol},
    endpoint::{self as shared, EndpointState},
    filter,
    hash::Seed,
    service::{Mode, PortRange, Service, ServiceEntry, ServiceKey, Table},
    slot::Slot,
};

use crate::{
    image::{self, Image, Limits, Range, Row, Way},
    kernel::{
        former,
        maps::Observed,
        row::{endpoint, state, way},
        sources::{self, SourceOp},
        ticks::Ticks,
    },
    limits, maglev,
};

/// One write.
#[derive(Clone, Debug, PartialEq)]
pub enum Op {
    /// An endpoint row.
    Row {
        /// Index of the row.
        row: u32,
        /// Its content.
        value: shared::Endpoint,
    },
    /// The half of a service's slots that packets do not read now, or the one that they read once more, with as many
    /// slots.
    Slots {
        /// The service.
        key: ServiceKey,
        /// First chunk of the half.
        first_chunk: u32,
        /// Its content.
        slots: Vec<Slot>,
    },
    /// A service value, which makes rows and slots current.
    Service {
        /// The service.
        key: ServiceKey,
        /// Its value.
        value: Service,
    },
    /// Rows of ranges that no entry of the index refers to.
    Ranges {
        /// The first row.
        first: u32,
        /// Their content.
        ranges: Vec<PortRange>,
    },
    /// An entry of the index, which lets packets find a service, or several by their ports.
    Entry {
        /// Its content.
        entry: ServiceEntry,
    },
    /// 64 bits of the filter.
    Filter {
        /// Index of the word.
        word: u32,
        /// Its bits.
        bits: u64,
    },
    /// Of the lists of sources.
    Sources(SourceOp),
    /// An entry of the index that goes.
    Remove {
        /// Its key.
        key: ServiceKey,
    },
}

/// What the node adds to an image.
pub(super) struct Facts {
    /// The cluster's seed.
    pub(super) seed: Seed,
    /// How endpoints are reached.
    pub(super) ways: HashMap<IpAddr, Way>,
    /// Entries of the flow table that each service may hold while others need room.
    pub(super) flow_share: u32,
    /// The kernel's measure of time.
    pub(super) ticks: Ticks,
    /// Whether echo requests to virtual addresses are answered.
    pub(super) echo: bool,
}

/// Everything between the maps and an image, in order.
pub(super) fn whole(image: &Image, facts: &Facts, written: &Observed) -> Vec<Op> {
    let rows = image.services.iter().flat_map(|service| {
        let forgotten = former::forgotten(service, &former::passed_on(service, written), written);
        forgotten.into_iter().chain(rows(service, facts, written))
    });
    let mut ops: Vec<Op> = rows.collect();
    let tables = image.services.iter().flat_map(|service| {
        let made = Seated::of(service, facts, written).table(facts);
        table(service, Some(&made), &former::passed_on(service, written), facts, written)
    });
    ops.extend(tables);
    ops.extend(sources::ops(image, written).into_iter().map(Op::Sources));
    ops.extend(entries(image, facts, written));
    ops.extend(widened(image, facts, written));
    ops.extend(removals(image, facts, written));
    ops.extend(narrowed(image, facts, written));
    ops.extend(cleared(image, written));
    ops
}

/// Rows of a service that differ.
pub(super) fn rows(service: &image::Service, facts: &Facts, written: &Observed) -> Vec<Op> {
    let op = |row: &Row| {
        let present = written.endpoints.get(&row.row);
        let value = endpoint(service, row, facts, written);
        (present != Some(&value)).then_some(Op::Row { row: row.row, value })
    };
    service.endpoints.iter().filter_map(op).collect()
}

/// The slots of a service when they differ, and its value when that or the slots do. Without a table, the slots lead where
/// they shall. Rows that were passed on meanwhile are forgotten.
pub(super) fn table(
    service: &image::Service,
    table: Option<&[u16]>,
    passed_on: &BTreeSet<u32>,
    facts: &Facts,
    written: &Observed,
) -> Vec<Op> {
    let present = written.services.get(&service.key).copied();
    let mut value = value(service, present, facts);
    let mut ops = Vec::new();
    if service.is_balanced() {
        let slots_now = written.slots.get(&service.key).map_or(&[][..], Vec::as_slice);
        let former = former::known(service.track, present.map(|present| present.track), slots_now);
        let present_table = || former.iter().map(|slot| slot.endpoint);
        let same_slots =
            *former == *slots_now && table.is_none_or(|table| present_table().eq(table.iter().copied()));
        let now = value.table();
        let same_place = present.is_some_and(|present| present.halves == value.halves)
            && (now.first_endpoint, now.n_endpoints) == (service.rows.first, service.rows.count);
        if !(same_slots && same_place) {
            let table = table.map_or_else(|| Cow::Owned(present_table().collect()), Cow::Borrowed);
            let stays = same_place && table.len() == former.len();
            let is_divided = former::is_divided(slots_now);
            let slots = if stays {
                former::next(&table, &former, now.first_endpoint, service.track, passed_on)
            } else {
                former::moved(&table, &former, now, service, passed_on)
            };
            // What packets may be sent to is not written: the table before stands in the other half.
            let first_chunk = if stays && is_divided {
                now.first_chunk
            } else {
                if is_divided {
                    let slots = former::undivided(slots_now);
                    ops.push(Op::Slots { key: service.key, first_chunk: now.first_chunk, slots });
                }
                turn(&mut value, service.rows, table.len())
            };
            ops.push(Op::Slots { key: service.key, first_chunk, slots });
        }
    } else if (value.table().n_slots, value.table().n_endpoints) != (0, 0) {
        // Its chunks and its rows are others' from the next change on.
        let first_chunk = turn(&mut value, Range::default(), 0);
        ops.push(Op::Slots { key: service.key, first_chunk, slots: Vec::new() });
    }
    if present != Some(value) {
        ops.push(Op::Service { key: service.key, value });
    }
    ops
}

/// The value of a service, with the tables that it has now.
fn value(service: &image::Service, present: Option<Service>, facts: &Facts) -> Service {
    let mut value = Service::new(service.key, service.id);
    value.halves = service.chunks;
    value.first_socket = service.sockets.first;
    value.n_sockets = service.sockets.count;
    value.mode = service.mode;
    value.track = service.track;
    value.flow_share = facts.flow_share;
    (value.flow_rate, value.source_rate) = (service.limits.service, service.limits.source);
    if service.limits != Limits::default() {
        value.flags |= Service::LIMITED;
    }
    if let Some(timeout) = service.affinity {
        value.flags |= Service::AFFINITY;
        value.affinity_ticks = facts.ticks.of(timeout);
    }
    if let Some(rate) = service.cookie_rate {
        value.flags |= Service::COOKIES;
        value.cookie_rate = rate;
    }
    if service.fails_open {
        value.flags |= Service::FAILS_OPEN;
    }
    if service.resets {
        value.flags |= Service::RESETS;
    }
    if let Some(present) = present {
        (value.tables, value.current) = (present.tables, present.current);
    }
    value
}

/// Names the other half of a service's slots as current; returns its first chunk.
pub(super) fn turn(value: &mut Service, rows: Range, n_slots: usize) -> u32 {
    let next = value.current ^ 1;
    let [even, odd] = value.halves;
    let first_chunk = if next == 0 { even } else { odd };
    let [even, odd] = &mut value.tables;
    *(if next == 0 { even } else { odd }) = Table {
        first_chunk,
        n_slots: u32::try_from(n_slots).unwrap_or(0),
        first_endpoint: rows.first,
        n_endpoints: rows.count,
    };
    value.current = next;
    first_chunk
}

/// Entries of the index that differ, each after the ranges that it refers to.
pub(super) fn entries(image: &Image, facts: &Facts, written: &Observed) -> Vec<Op> {
    let mut ops = Vec::new();
    let mut taken: Vec<Range> = written.ranges.values().map(|(range, _)| *range).collect();
    for (key, wanted) in wanted_entries(image, facts) {
        let first = match written.ranges.get(&key) {
            Some((present, ranges)) if *ranges == wanted.ranges => present.first,
            Some(_) | None if wanted.ranges.is_empty() => 0,
            Some(_) | None => {
                let first = free(&mut taken, wanted.ranges.len());
                ops.push(Op::Ranges { first, ranges: wanted.ranges.clone() });
                first
            }
        };
        let n_ranges = u32::try_from(wanted.ranges.len()).unwrap_or(0);
        let entry = ServiceEntry::new(key, wanted.service, first, n_ranges);
        if written.entries.get(&key) != Some(&entry) {
            ops.push(Op::Entry { entry });
        }
    }
    ops
}

/// What an entry of the index leads to.
#[derive(Default)]
struct Wanted {
    service: Option<u32>,
    ranges: Vec<PortRange>,
}

/// Entries for the addresses whose echo requests are answered: each under a service of its own.
fn echoes(image: &Image) -> BTreeMap<ServiceKey, Wanted> {
    let mut entries = BTreeMap::new();
    for service in &image.services {
        let addr = service.key.addr;
        let protocol = if addr.is_v4() { Protocol::ICMP } else { Protocol::ICMP_V6 };
        let key = ServiceKey::new(addr, Port::NONE, protocol);
        if entries.len() < limits::ECHO_ADDRS {
            entries.entry(key).or_insert(Wanted { service: Some(service.id), ranges: Vec::new() });
        }
    }
    entries
}

fn wanted_entries(image: &Image, facts: &Facts) -> BTreeMap<ServiceKey, Wanted> {
    let mut entries: BTreeMap<ServiceKey, Wanted> = BTreeMap::new();
    if facts.echo {
        entries.extend(echoes(image));
    }
    for service in &image.services {
        if service.ports.is_empty() {
            entries.entry(service.key).or_default().service = Some(service.id);
            continue;
        }
        let every = ServiceKey::new(service.key.addr, Port::NONE, service.key.protocol);
        let range = |ports: &RangeInclusive<u16>| PortRange {
            first: Port::new(*ports.start()),
            last: Port::new(*ports.end()),
            service: service.id,
        };
        entries.entry(every).or_default().ranges.extend(service.ports.iter().map(range));
    }
    entries
}

/// The first of so many rows that nobody has, beyond the map when there is no such place; from now on they are taken.
fn free(taken: &mut Vec<Range>, n: usize) -> u32 {
    let count = u32::try_from(n).unwrap_or(u32::MAX);
    taken.sort_unstable_by_key(|range| range.first);
    let mut first = 0;
    for range in &*taken {
        if range.first.saturating_sub(first) >= count {
            break;
        }
        first = first.max(range.first.saturating_add(range.count));
    }
    taken.push(Range { first, count });
    first
}

/// Bits of the filter that are missing.
pub(super) fn widened(image: &Image, facts: &Facts, written: &Observed) -> Vec<Op> {
    let op = |(word, bits): (u32, u64)| {
        let present = written.filter.get(&word).copied().unwrap_or(0);
        (present | bits != present).then_some(Op::Filter { word, bits: present | bits })
    };
    ours(image, facts, written).into_iter().filter_map(op).collect()
}

/// Bits of the filter that nobody wants any more.
pub(super) fn narrowed(image: &Image, facts: &Facts, written: &Observed) -> Vec<Op> {
    let wanted = ours(image, facts, written);
    let op = |(word, present): (&u32, &u64)| {
        let bits = wanted.get(word).copied().unwrap_or(0);
        (present & !bits != 0).then_some(Op::Filter { word: *word, bits })
    };
    written.filter.iter().filter_map(op).collect()
}

/// Entries of the index that nobody wants any more.
pub(super) fn removals(image: &Image, facts: &Facts, written: &Observed) -> Vec<Op> {
    let wanted = wanted_entries(image, facts);
    let unwanted = written.entries.keys().filter(|key| !wanted.contains_key(key));
    unwanted.map(|key| Op::Remove { key: *key }).collect()
}

/// Rows that nobody refers to any more.
pub(super) fn cleared(image: &Image, written: &Observed) -> Vec<Op> {
    let wanted: HashSet<u32> =
        image.services.iter().flat_map(|s| s.endpoints.iter().map(|row| row.row)).collect();
    released(written.endpoints.keys().copied().filter(|row| !wanted.contains(row)), written)
}

/// The end of rows. They keep their generation, so that the next owner has another one.
pub(super) fn released(rows: impl IntoIterator<Item = u32>, written: &Observed) -> Vec<Op> {
    let op = |row: u32| {
        let present = written.endpoints.get(&row)?;
        let value = shared::Endpoint { generation: present.generation, ..shared::Endpoint::default() };
        (*present != value).then_some(Op::Row { row, value })
    };
    rows.into_iter().filter_map(op).collect()
}

/// What the slots of a service follow from.
#[derive(Debug, Eq, PartialEq)]
pub(super) struct Seated {
    n_slots: u32,
    /// All that the configuration wants there, whatever their state: their slots are theirs when they come back.
    members: Vec<maglev::Member>,
    present: Vec<maglev::Member>,
}

impl Seated {
    /// The active endpoints of a service by weight, or the draining ones when none is active.
    pub(super) fn of(service: &image::Service, facts: &Facts, written: &Observed) -> Self {
        // Packets keep their family on the way, unless it is a tunnel.
        let is_tunnel = service.mode == Mode::DSR_IPIP || service.mode == Mode::DSR_GUE;
        let fits = |row: &&Row| {
            row.local.is_some() && (is_tunnel || row.endpoint.addr().is_ipv4() == service.key.addr.is_v4())
        };
        let rows: Vec<&Row> = service.endpoints.iter().filter(fits).collect();
        let state = |row: &Row| state(service.forwarding(), row, &way(row, facts, written));
        let in_state = |wanted| rows.iter().copied().filter(|row| state(row) == wanted).collect::<Vec<_>>();
        let active = members(&in_state(EndpointState::ACTIVE), false);
        let (members, present) = if active.iter().any(|member| member.weight > 0) {
            (members(&rows, false), active)
        } else {
            // Alike, which the slots of their weights would not be.
            let draining = members(&in_state(EndpointState::DRAINING), true);
            (draining.clone(), draining)
        };
        Self { n_slots: service.n_slots, members, present }
    }

    /// The endpoint of each slot.
    pub(super) fn table(&self, facts: &Facts) -> Vec<u16> {
        maglev::table_of(&facts.seed, &self.members, &self.present, self.n_slots)
    }
}

/// Endpoints with the weights that the table follows. Weight zero drains: when only such ones are left, they share
/// alike.
fn members(rows: &[&Row], alike: bool) -> Vec<maglev::Member> {
    let shares: Vec<maglev::Share<'_>> = rows
        .iter()
        .map(|row| maglev::Share {
            service: row.endpoint.id().service.as_str(),
            backend: if alike { row.backend_weight.max(1) } else { row.backend_weight },
            own: if alike { 1 } else { row.endpoint.weight() },
        })
        .collect();
    let member = |(row, weight): (&&Row, u32)| {
        let addr = row.endpoint.addr();
        let index = row.local?;
        Some(maglev::Member { addr: Addr::from(addr.ip()), port: Port::new(addr.port()), index, weight })
    };
    rows.iter().zip(maglev::weights(&shares)).filter_map(member).collect()
}

/// The bits of every address whose packets are ours: virtual addresses, addresses that translated packets come back
/// to, and endpoints on this node, whose replies are translated on their way out.
fn ours(image: &Image, facts: &Facts, written: &Observed) -> BTreeMap<u32, u64> {
    let mut words: BTreeMap<u32, u64> = BTreeMap::new();
    let mut add = |addr: Addr| {
        let bit = filter::bit(addr);
        *words.entry(bit / 64).or_default() |= 1 << (bit % 64);
    };
    image.virtual_addrs().for_each(&mut add);
    let translated = image.services.iter().filter(|service| service.forwarding() == Mode::NAT);
    for row in translated.flat_map(|service| &service.endpoints) {
        let way = way(row, facts, written);
        if way.is_local {
            add(Addr::from(row.endpoint.addr().ip()));
        } else if let Some(source) = way.source {
            add(Addr::from(source));
        }
    }
    words
}
