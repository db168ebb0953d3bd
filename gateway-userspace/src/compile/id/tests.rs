//! Numbers stay with their owners, rest before they change hands, and are found again in the maps.

use gateway_common::{
    addr::{Port, Protocol},
    map::{self, MapDef as _},
    service::{Mode, Table},
};

use super::*;

const CAPACITY: Capacity = Capacity { services: 8, rows: 256, chunks: 4_000 };

fn key(last: u8) -> ServiceKey {
    ServiceKey::new(Addr::v4([10, 0, 0, last]), Port::new(80), Protocol::TCP)
}

fn endpoint(n: u8) -> SocketAddr {
    SocketAddr::from(([10, 1, 0, n], 8080))
}

fn endpoints(range: std::ops::Range<u8>) -> BTreeSet<SocketAddr> {
    range.map(endpoint).collect()
}

fn keys(range: std::ops::Range<u8>) -> BTreeSet<ServiceKey> {
    range.map(key).collect()
}

/// What the maps hold when these numbers were written.
fn written(ids: &Ids) -> (BTreeMap<ServiceKey, Service>, BTreeMap<u32, Endpoint>) {
    let mut endpoints = BTreeMap::new();
    let mut services = BTreeMap::new();
    for (key, numbers) in ids.services() {
        let mut service = Service::new(*key, numbers.id);
        let [table, before] = &mut service.tables;
        before.first_chunk = numbers.chunks_before.first;
        before.n_slots = numbers.chunks_before.count * SlotChunk::SLOTS;
        table.first_endpoint = numbers.rows.first;
        table.n_endpoints = numbers.rows.count;
        table.n_slots = numbers.n_slots;
        service.halves = numbers.chunks;
        service.mode = if numbers.n_slots == 0 { Mode::AGENT } else { Mode::NAT };
        services.insert(*key, service);
        let rows = numbers.members.iter().map(|(addr, row)| (*row, *addr)).chain(numbers.outgrown.clone());
        for (row, addr) in rows {
            let value = Endpoint {
                addr: addr.ip().into(),
                port: Port::new(addr.port()),
                service: numbers.id,
                generation: ids.generation(row),
                ..Endpoint::default()
            };
            endpoints.insert(row, value);
        }
    }
    (services, endpoints)
}

#[test]
fn an_endpoint_keeps_its_row_when_others_come_and_go() {
    let mut ids = Ids::new(CAPACITY);
    let before = ids.balanced_service(key(1), &endpoints(0..3), |_| false).unwrap().clone();
    let after = ids.balanced_service(key(1), &endpoints(1..5), |_| false).unwrap().clone();
    for n in 1..3 {
        assert_eq!(before.members[&endpoint(n)], after.members[&endpoint(n)]);
    }
    assert_eq!((before.id, before.rows, before.chunks), (after.id, after.rows, after.chunks));
    let rows: BTreeSet<u32> = after.members.values().copied().collect();
    assert_eq!(rows.len(), 4, "each has a row of its own");
}

#[test]
fn a_row_has_another_generation_for_another_owner() {
    let mut ids = Ids::new(CAPACITY);
    let rows = ids.balanced_service(key(1), &endpoints(0..9), |_| false).unwrap().rows;
    let n = u8::try_from(rows.count).unwrap();
    let full = ids.balanced_service(key(1), &endpoints(0..n), |_| false).unwrap().clone();
    assert_eq!(full.rows, rows);
    let before: BTreeMap<u32, u32> = full.members.values().map(|row| (*row, ids.generation(*row))).collect();
    let after = ids.balanced_service(key(1), &endpoints(1..n + 1), |_| false).unwrap().clone();
    let row = after.members[&endpoint(n)];
    assert_eq!(row, full.members[&endpoint(0)], "the range is full, so the freed row is the only one");
    assert_eq!(ids.generation(row), before[&row] + 1);
    assert_eq!(ids.generation(after.members[&endpoint(1)]), before[&after.members[&endpoint(1)]]);
}

#[test]
fn a_row_that_was_just_freed_comes_last() {
    let mut ids = Ids::new(CAPACITY);
    let before = ids.balanced_service(key(1), &endpoints(0..3), |_| false).unwrap().clone();
    let after = ids.balanced_service(key(1), &endpoints(1..4), |_| false).unwrap();
    assert_ne!(after.members[&endpoint(3)], before.members[&endpoint(0)]);
}

#[test]
fn a_retired_endpoint_keeps_its_row_as_long_as_asked() {
    let mut ids = Ids::new(CAPACITY);
    let before = ids.balanced_service(key(1), &endpoints(0..3), |_| false).unwrap().clone();
    let kept = ids.balanced_service(key(1), &endpoints(1..3), |addr| addr == endpoint(0)).unwrap().clone();
    assert_eq!(kept.members, before.members);
    let gone = ids.balanced_service(key(1), &endpoints(1..3), |_| false).unwrap();
    assert!(!gone.members.contains_key(&endpoint(0)));
}

#[test]
fn a_service_that_outgrows_its_rows_keeps_the_old_ones() {
    let mut ids = Ids::new(CAPACITY);
    ids.balanced_service(key(2), &endpoints(0..1), |_| false).unwrap();
    let small = ids.balanced_service(key(1), &endpoints(0..2), |_| false).unwrap().clone();
    let large = ids.balanced_service(key(1), &endpoints(0..40), |_| false).unwrap().clone();
    assert!(large.rows.count >= 50, "room for a quarter more");
    assert!(large.n_slots > small.n_slots);
    let old: BTreeMap<u32, SocketAddr> = small.members.iter().map(|(addr, row)| (*row, *addr)).collect();
    assert_eq!(large.outgrown, old);
    let later = ids.balanced_service(key(1), &endpoints(1..40), |_| false).unwrap();
    assert_eq!(later.outgrown.values().copied().collect::<Vec<_>>(), [endpoint(1)]);
}

#[test]
fn chunks_that_became_too_few_stay_until_they_do_again() {
    let mut ids = Ids::new(CAPACITY);
    let small = ids.balanced_service(key(1), &endpoints(0..2), |_| false).unwrap().chunk_range();
    let large = ids.balanced_service(key(1), &endpoints(0..3), |_| false).unwrap().clone();
    assert_eq!(large.chunks_before, small);
    // Found again in the maps, where the other half of the service says so.
    let (mut services, rows) = written(&ids);
    let service = services.get_mut(&key(1)).unwrap();
    let half = SlotChunk::chunks_for(size_class(2));
    let first = Table { first_chunk: small.first, n_slots: size_class(2), ..service.tables[0] };
    service.tables[1] = first;
    let found = Ids::found(CAPACITY, &services, &rows);
    assert_eq!(found.services()[&key(1)].chunks_before, Range { count: half, ..small });
    // What another service has is that one's.
    let mut other = Service::new(key(2), 7);
    other.halves = [small.first, small.first + half];
    other.tables = [Table { n_slots: size_class(2), first_endpoint: 100, n_endpoints: 8, ..first }; 2];
    services.insert(key(2), other);
    let found = Ids::found(CAPACITY, &services, &rows);
    assert_eq!(found.services()[&key(1)].chunks_before, Range::default());
    assert_eq!(found.services()[&key(2)].chunks, other.halves);
    for _ in 0..3 {
        ids.retain(&keys(1..3), true);
        let other = ids.balanced_service(key(2), &endpoints(0..2), |_| false).unwrap().chunk_range();
        assert_ne!(other.first, small.first);
    }
    ids.balanced_service(key(1), &endpoints(0..6), |_| false).unwrap();
    ids.retain(&keys(1..4), true);
    let next = ids.balanced_service(key(3), &endpoints(0..2), |_| false).unwrap().chunk_range();
    assert_eq!(next, small);
}

#[test]
fn what_is_given_back_rests_for_one_change() {
    let mut ids = Ids::new(CAPACITY);
    let first = ids.balanced_service(key(1), &endpoints(0..2), |_| false).unwrap().clone();
    ids.retain(&keys(2..4), true);
    let second = ids.balanced_service(key(2), &endpoints(0..2), |_| false).unwrap().clone();
    assert_ne!((first.id, first.rows, first.chunks[0]), (second.id, second.rows, second.chunks[0]));
    assert!(first.id != second.id && first.rows != second.rows && first.chunks != second.chunks);
    ids.retain(&keys(2..4), true);
    let third = ids.balanced_service(key(3), &endpoints(0..2), |_| false).unwrap().clone();
    assert_eq!((third.id, third.rows, third.chunks), (first.id, first.rows, first.chunks));
}

#[test]
fn numbers_that_flows_are_counted_for_are_given_out_last() {
    let mut ids = Ids::new(Capacity { services: 3, ..CAPACITY });
    ids.agent_service(key(1)).unwrap();
    ids.retain(&keys(2..5), true);
    ids.retain(&keys(2..5), true);
    ids.avoid(BTreeSet::from([0, 1]));
    let given = [2, 3, 4].map(|n| ids.agent_service(key(n)).unwrap());
    assert_eq!(given, [2, 0, 1]);
    assert_eq!(ids.agent_service(key(5)), Err(Full::Services));
}

#[test]
fn nothing_is_lost_when_services_come_and_go() {
    let mut ids = Ids::new(CAPACITY);
    for round in 0..50u8 {
        let wanted = keys(round % 3..4 + round % 3);
        ids.retain(&wanted, true);
        for (n, key) in (0u8..).zip(&wanted) {
            let count = 1 + (round + n) % 9;
            ids.balanced_service(*key, &endpoints(0..count), |_| false).unwrap();
        }
    }
    ids.retain(&BTreeSet::new(), true);
    ids.retain(&BTreeSet::new(), true);
    assert_eq!(ids.free, Ids::new(CAPACITY).free);
}

#[test]
fn what_the_maps_say_is_what_was_given_out() {
    let mut ids = Ids::new(CAPACITY);
    ids.agent_service(key(4)).unwrap();
    ids.balanced_service(key(5), &endpoints(0..1), |_| false).unwrap();
    ids.balanced_service(key(3), &endpoints(0..3), |_| false).unwrap();
    ids.balanced_service(key(3), &endpoints(0..20), |_| false).unwrap();
    ids.retain(&keys(0..9), true);
    let (services, rows) = written(&ids);
    let mut found = Ids::found(CAPACITY, &services, &rows);
    found.retain(&keys(0..9), true);
    assert_eq!(found.services, ids.services);
    assert_eq!(found.free, ids.free, "what rested before the restart is free after it");
}

#[test]
fn endpoints_are_found_again_where_packets_keep_their_port() {
    let mut ids = Ids::new(CAPACITY);
    // Two of one address are two: each has its weight and its checks.
    let other = SocketAddr::new(endpoint(1).ip(), 9090);
    let mut wanted = endpoints(0..3);
    wanted.insert(other);
    let numbers = ids.balanced_service(key(1), &wanted, |_| false).unwrap().clone();
    let (services, mut rows) = written(&ids);
    for row in rows.values_mut() {
        (row.known_by, row.port) = (row.port, Port::NONE);
    }
    let mut found = Ids::found(CAPACITY, &services, &rows);
    assert_eq!(found, ids);
    assert_eq!(*found.balanced_service(key(1), &wanted, |_| false).unwrap(), numbers);
}

#[test]
fn a_table_that_was_empty_keeps_its_room() {
    let mut ids = Ids::new(CAPACITY);
    ids.balanced_service(key(3), &endpoints(0..1), |_| false).unwrap();
    let (mut services, rows) = written(&ids);
    services.get_mut(&key(3)).unwrap().tables[0].n_slots = 0;
    assert_eq!(Ids::found(CAPACITY, &services, &rows), ids);
}

#[test]
fn a_service_that_became_the_agents_has_nothing_of_what_its_tables_say() {
    let mut ids = Ids::new(CAPACITY);
    ids.balanced_service(key(1), &endpoints(0..3), |_| false).unwrap();
    let (stale, _) = written(&ids);
    ids.agent_service(key(1)).unwrap();
    ids.retain(&keys(1..3), true);
    ids.balanced_service(key(2), &endpoints(0..3), |_| false).unwrap();
    // What the second has was the first's, and its tables still say so.
    let (mut services, rows) = written(&ids);
    let service = services.get_mut(&key(1)).unwrap();
    service.tables = [stale[&key(1)].tables[0]; 2];
    let found = Ids::found(CAPACITY, &services, &rows);
    assert_eq!(found.services, ids.services);
    assert_eq!(found.free, ids.free);
    // What it says is nobody's is free, and not lost when it becomes the agent's once more.
    services.remove(&key(2));
    for halves in [[0, 0], [100, 103]] {
        services.get_mut(&key(1)).unwrap().halves = halves;
        let mut found = Ids::found(CAPACITY, &services, &BTreeMap::new());
        found.agent_service(key(1)).unwrap();
        found.retain(&BTreeSet::new(), true);
        found.retain(&BTreeSet::new(), true);
        assert_eq!(found.free, Ids::new(CAPACITY).free);
    }
}

#[test]
fn numbers_that_cannot_be_are_not_taken_over() {
    let mut ids = Ids::new(CAPACITY);
    ids.balanced_service(key(1), &endpoints(0..1), |_| false).unwrap();
    ids.balanced_service(key(2), &endpoints(0..1), |_| false).unwrap();
    let (services, rows) = written(&ids);
    let check = |change: &dyn Fn(&mut Service)| {
        let mut services = services.clone();
        change(services.get_mut(&key(2)).unwrap());
        let mut found = Ids::found(CAPACITY, &services, &rows);
        assert_eq!(found.services.keys().copied().collect::<Vec<_>>(), [key(1)]);
        found.balanced_service(key(2), &endpoints(0..1), |_| false).unwrap();
    };
    check(&|service| service.tables[0].first_endpoint = u32::MAX);
    check(&|service| service.tables[0].first_endpoint = 0);
    check(&|service| service.halves = [3_990, 4_006]);
    check(&|service| service.halves = [5, 2]);
    check(&|service| service.id = 99);
}

#[test]
fn no_room_is_an_error() {
    let mut ids = Ids::new(CAPACITY);
    for n in 0..8 {
        ids.agent_service(key(n)).unwrap();
    }
    assert_eq!(ids.agent_service(key(9)), Err(Full::Services));
    let mut ids = Ids::new(Capacity { rows: 8, ..CAPACITY });
    ids.balanced_service(key(1), &endpoints(0..1), |_| false).unwrap();
    assert_eq!(ids.balanced_service(key(2), &endpoints(0..1), |_| false).unwrap_err(), Full::Rows);
    let mut ids = Ids::new(Capacity { chunks: 31, ..CAPACITY });
    assert_eq!(ids.balanced_service(key(1), &endpoints(0..1), |_| false).unwrap_err(), Full::Chunks);
}

#[test]
fn ten_thousand_services_with_ten_endpoints_each_fit() {
    let capacity = Capacity {
        services: map::Services::CAPACITY,
        rows: map::Endpoints::CAPACITY,
        // What a node with 20 GiB of memory gets.
        chunks: 3_140_000,
    };
    let mut ids = Ids::new(capacity);
    for n in 0..10_000_u16 {
        let [high, low] = n.to_be_bytes();
        let key = ServiceKey::new(Addr::v4([10, 8, high, low]), Port::new(80), Protocol::TCP);
        ids.balanced_service(key, &endpoints(0..10), |_| false).unwrap();
    }
}
