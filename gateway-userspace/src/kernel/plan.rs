//! The plan: which writes bring the maps from what stands in them to what an image wants. Pure.
//!
//! Make before break. Additions go leaves first: endpoint rows, slots, the service values that refer to both, then the
//! bits of the filter that let packets in. Removals go roots first: services, bits, rows. At every moment in between a
//! packet finds either the old or the new state of its service, whole.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    net::IpAddr,
};

use gateway_common::{
    addr::{Addr, Port},
    endpoint::{self as shared, EndpointState, NextHop},
    filter,
    hash::Seed,
    service::{Mode, Service, ServiceKey, Table},
    slot::Slot,
};

use crate::{
    endpoint::Availability,
    image::{self, Image, Row, Way},
    kernel::maps::Observed,
    maglev,
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
    /// The half of a service's slots that packets do not read now.
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
    /// 64 bits of the filter.
    Filter {
        /// Index of the word.
        word: u32,
        /// Its bits.
        bits: u64,
    },
    /// A service that goes.
    Remove {
        /// The service.
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
}

/// Everything between the maps and an image, in order.
pub(super) fn whole(image: &Image, facts: &Facts, written: &Observed) -> Vec<Op> {
    let mut ops: Vec<Op> = image.services.iter().flat_map(|service| rows(service, facts, written)).collect();
    ops.extend(image.services.iter().flat_map(|service| table(service, facts, written)));
    ops.extend(widened(image, facts, written));
    ops.extend(removals(image, written));
    ops.extend(narrowed(image, facts, written));
    ops.extend(cleared(image, written));
    ops
}

/// Rows of a service that differ.
pub(super) fn rows(service: &image::Service, facts: &Facts, written: &Observed) -> Vec<Op> {
    let op = |row: &Row| {
        let present = written.endpoints.get(&row.row);
        let value = endpoint(service.id, row, facts, written);
        (present != Some(&value)).then_some(Op::Row { row: row.row, value })
    };
    service.endpoints.iter().filter_map(op).collect()
}

/// The slots of a service when they differ, and its value when that or the slots do.
pub(super) fn table(service: &image::Service, facts: &Facts, written: &Observed) -> Vec<Op> {
    let present = written.services.get(&service.key).copied();
    let mut value = Service::new(service.key, service.id);
    value.halves = service.chunks;
    value.first_socket = service.sockets.first;
    value.n_sockets = service.sockets.count;
    value.mode = service.mode;
    value.track = service.track;
    value.flow_share = facts.flow_share;
    if let Some(present) = present {
        (value.tables, value.current) = (present.tables, present.current);
    }
    let mut ops = Vec::new();
    if service.mode != Mode::AGENT {
        let table = maglev_table(service, facts, written);
        let former = written.slots.get(&service.key).map_or(&[][..], Vec::as_slice);
        let same_slots =
            former.len() == table.len() && former.iter().zip(&table).all(|(slot, new)| slot.endpoint == *new);
        let now = value.table();
        let same_rows = now.first_endpoint == service.rows.first;
        let is_same = present.is_some_and(|present| present.halves == value.halves)
            && same_slots
            && same_rows
            && now.n_endpoints == service.rows.count;
        if !is_same {
            let next = value.current ^ 1;
            let [even, odd] = service.chunks;
            let first_chunk = if next == 0 { even } else { odd };
            let [even, odd] = &mut value.tables;
            *(if next == 0 { even } else { odd }) = Table {
                first_chunk,
                n_slots: u32::try_from(table.len()).unwrap_or(0),
                first_endpoint: service.rows.first,
                n_endpoints: service.rows.count,
            };
            value.current = next;
            // Slots name rows by their distance from the first, so they mean something else after a move of the rows.
            let slots = with_former(&table, if same_rows { former } else { &[] });
            ops.push(Op::Slots { key: service.key, first_chunk, slots });
        }
    }
    if present != Some(value) {
        ops.push(Op::Service { key: service.key, value });
    }
    ops
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

/// Services that nobody wants any more.
pub(super) fn removals(image: &Image, written: &Observed) -> Vec<Op> {
    let wanted: HashSet<&ServiceKey> = image.services.iter().map(|service| &service.key).collect();
    written.services.keys().filter(|key| !wanted.contains(key)).map(|key| Op::Remove { key: *key }).collect()
}

/// Rows that nobody refers to any more. They keep their generation, so that the next owner has another one.
pub(super) fn cleared(image: &Image, written: &Observed) -> Vec<Op> {
    let wanted: HashSet<u32> =
        image.services.iter().flat_map(|s| s.endpoints.iter().map(|row| row.row)).collect();
    let op = |(row, present): (&u32, &shared::Endpoint)| {
        let value = shared::Endpoint { generation: present.generation, ..shared::Endpoint::default() };
        (*present != value).then_some(Op::Row { row: *row, value })
    };
    written.endpoints.iter().filter(|(row, _)| !wanted.contains(row)).filter_map(op).collect()
}

/// The content of a row.
fn endpoint(service: u32, row: &Row, facts: &Facts, written: &Observed) -> shared::Endpoint {
    let addr = row.endpoint.addr();
    let way = way(row, facts, written);
    shared::Endpoint {
        addr: Addr::from(addr.ip()),
        source: way.source.map_or(Addr::UNSPECIFIED, Addr::from),
        next_hop: if way.is_local { NextHop::UNKNOWN } else { way.next_hop },
        port: Port::new(addr.port()),
        state: state(row, &way),
        flags: if way.is_local { shared::Endpoint::LOCAL } else { 0 },
        service,
        generation: row.generation,
        mtu: way.mtu,
        vlan: 0,
    }
}

/// How an endpoint is reached. As long as nobody has looked, what an earlier agent wrote still holds.
fn way(row: &Row, facts: &Facts, written: &Observed) -> Way {
    let addr = row.endpoint.addr().ip();
    if let Some(way) = facts.ways.get(&addr) {
        return *way;
    }
    match written.endpoints.get(&row.row) {
        Some(present) if IpAddr::from(present.addr) == addr => Way {
            is_local: present.is_local(),
            interface: present.next_hop.interface,
            source: (present.source != Addr::UNSPECIFIED).then(|| present.source.into()),
            next_hop: present.next_hop,
            mtu: present.mtu,
        },
        Some(_) | None => Way::default(),
    }
}

/// May an endpoint receive packets, and which.
fn state(row: &Row, way: &Way) -> EndpointState {
    // Without an address of this node to send from, a packet could not come back.
    if !way.is_local && way.source.is_none() {
        return EndpointState::DOWN;
    }
    match row.endpoint.availability() {
        // Also for rows that no slot names: flows that began there go on.
        Availability::Active if row.backend_weight > 0 => EndpointState::ACTIVE,
        Availability::Active | Availability::Draining => EndpointState::DRAINING,
        Availability::Down => EndpointState::DOWN,
    }
}

/// The slots of a service: its active endpoints by weight, or the draining ones when none is active.
fn maglev_table(service: &image::Service, facts: &Facts, written: &Observed) -> Vec<u16> {
    let in_state = |wanted: EndpointState| -> Vec<&Row> {
        // Packets keep their family on the way.
        let fits =
            |row: &&Row| row.local.is_some() && row.endpoint.addr().is_ipv4() == service.key.addr.is_v4();
        let is_wanted = |row: &&Row| state(row, &way(row, facts, written)) == wanted;
        service.endpoints.iter().filter(fits).filter(is_wanted).collect()
    };
    let active =
        maglev::table(&facts.seed, &members(&in_state(EndpointState::ACTIVE), false), service.n_slots);
    if !active.is_empty() {
        return active;
    }
    maglev::table(&facts.seed, &members(&in_state(EndpointState::DRAINING), true), service.n_slots)
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

/// Slots that remember where their flows went before.
fn with_former(table: &[u16], former: &[Slot]) -> Vec<Slot> {
    let same_size = table.len() == former.len();
    let slot = |(idx, endpoint): (usize, &u16)| {
        let before = if same_size { former.get(idx).map(|slot| slot.endpoint) } else { None };
        Slot { endpoint: *endpoint, former: before.unwrap_or(*endpoint) }
    };
    table.iter().enumerate().map(slot).collect()
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
    for row in image.services.iter().flat_map(|service| &service.endpoints) {
        let way = way(row, facts, written);
        if way.is_local {
            add(Addr::from(row.endpoint.addr().ip()));
        } else if let Some(source) = way.source {
            add(Addr::from(source));
        }
    }
    words
}
