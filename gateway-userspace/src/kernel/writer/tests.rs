//! The order of writes, what they say, and that stopping anywhere in between leaves every service whole.

use std::net::SocketAddr;

use gateway_common::{
    addr::{Addr, Port, Protocol},
    endpoint::{Endpoint as SharedEndpoint, EndpointState, NextHop},
    filter,
    service::{Mode, Table, Track},
    slot::{SlotChunk, size_class},
};

use super::*;
use crate::{
    endpoint::{EndpointId, Health, Registry},
    image::{Limits, Range, Row, Service},
    kernel::{memory::Memory, row},
    name::{ListenerName, ServiceName},
};

const SEED: Seed = Seed::new([1, 2]);
const WINDOW: Duration = Duration::from_mins(10);
const TERMS: Terms = Terms {
    seed: SEED,
    flows: 1 << 18,
    ticks: Ticks::of_interrupts(250),
    change_window: WINDOW,
    echo: false,
};
const SOURCE: [u8; 4] = [192, 0, 2, 1];

fn key(n: u8) -> ServiceKey {
    ServiceKey::new(Addr::v4([198, 51, 100, n]), Port::new(80), Protocol::TCP)
}

fn endpoint(registry: &Registry, n: u8) -> Arc<Endpoint> {
    let addr = SocketAddr::from(([10, 1, 0, n], 8080));
    registry.resolve(&EndpointId { service: ServiceName::new("web"), addr })
}

/// Service `n`, with rows from `first_row` on, and slots in a place that goes with the rows.
fn service(registry: &Registry, n: u8, first_row: u32, hosts: &[u8]) -> Service {
    let n_slots = size_class(u32::try_from(hosts.len()).unwrap());
    let first = first_row * 16;
    let row = |(local, host): (u16, &u8)| Row {
        row: first_row + u32::from(local),
        local: Some(local),
        generation: 1,
        backend_weight: 1,
        endpoint: endpoint(registry, *host),
    };
    Service {
        key: key(n),
        listener: ListenerName::new("web"),
        id: u32::from(n),
        mode: Mode::NAT,
        track: Track::ALWAYS,
        affinity: None,
        resets: false,
        ports: Vec::new(),
        rows: Range { first: first_row, count: 8 },
        n_slots,
        chunks: [first, first + SlotChunk::chunks_for(n_slots)],
        sockets: Range::default(),
        limits: Limits::default(),
        cookie_rate: None,
        fails_open: false,
        endpoints: (0u16..).zip(hosts).map(row).collect(),
    }
}

fn image(services: impl IntoIterator<Item = Service>) -> Arc<Image> {
    Arc::new(Image { services: services.into_iter().map(Arc::new).collect(), ..Image::default() })
}

fn ways() -> HashMap<IpAddr, Way> {
    let next_hop = NextHop { interface: 2, mac: [2; 6], own_mac: [3; 6] };
    let way = Way {
        is_local: false,
        is_on_link: true,
        interface: next_hop.interface,
        source: Some(IpAddr::from(SOURCE)),
        next_hop,
        mtu: 1_500,
    };
    (0..=50u8).map(|n| (IpAddr::from([10, 1, 0, n]), way)).collect()
}

fn writer_over(memory: Memory) -> Writer<Memory> {
    Writer::new(memory, TERMS, Clock::driven()).unwrap()
}

fn writer() -> Writer<Memory> {
    let mut writer = writer_over(Memory::default());
    writer.set_ways(ways()).unwrap();
    writer
}

fn state(writer: &Writer<Memory>, row: u32) -> EndpointState {
    writer.maps().observe().unwrap().endpoints[&row].state
}

fn n_slots_of(writer: &Writer<Memory>, n: u8, local: u16) -> usize {
    writer.maps().observe().unwrap().slots[&key(n)].iter().filter(|slot| slot.endpoint == local).count()
}

/// Position of a write in the order of make before break.
fn rank(op: &Op) -> usize {
    match op {
        Op::Row { value, .. } if value.addr == Addr::UNSPECIFIED => 7,
        Op::Row { .. } => 0,
        Op::Slots { .. } => 1,
        Op::Service { .. } | Op::Sources(_) => 2,
        Op::Ranges { .. } | Op::Entry { .. } => 3,
        Op::Filter { bits, .. } if *bits != 0 => 4,
        Op::Remove { .. } => 5,
        Op::Filter { .. } => 6,
    }
}

/// Every slot that packets read now leads to a row of the service.
#[track_caller]
fn check_whole(memory: &Memory) {
    let observed = memory.observe().unwrap();
    for (key, service) in &observed.services {
        for slot in &observed.slots[key] {
            assert!(
                u32::from(slot.endpoint) < service.table().n_endpoints,
                "a slot beyond the rows of {key:?}"
            );
            let row = &observed.endpoints[&(service.table().first_endpoint + u32::from(slot.endpoint))];
            assert_eq!((row.service, row.addr == Addr::UNSPECIFIED), (service.id, false), "{key:?}");
        }
        let bit = filter::bit(key.addr);
        assert_eq!(observed.slots[key].len(), usize::try_from(service.table().n_slots).unwrap());
        let is_let_in = observed.filter.get(&(bit / 64)).is_some_and(|bits| bits & (1 << (bit % 64)) != 0);
        assert!(is_let_in || service.table().n_slots > 0, "an empty service whose packets are not even seen");
    }
}

#[test]
fn additions_go_leaves_first_and_removals_roots_first() {
    let registry = Registry::default();
    let mut writer = writer();
    writer.apply(image([service(&registry, 1, 0, &[1, 2])])).unwrap();
    let ranks: Vec<usize> = writer.maps_mut().take_journal().iter().map(rank).collect();
    assert_eq!(
        ranks,
        [4, 4, 0, 0, 1, 2, 3],
        "filter (virtual address and source), rows, slots, service, index"
    );
    writer.apply(image([service(&registry, 2, 16, &[3])])).unwrap();
    let journal = writer.maps_mut().take_journal();
    let ranks: Vec<usize> = journal.iter().map(rank).collect();
    assert_eq!(ranks, [4, 0, 1, 2, 3, 5, 6, 7, 7], "{journal:?}");
}

#[test]
fn the_same_image_again_writes_nothing() {
    let registry = Registry::default();
    let mut writer = writer();
    let services = || [service(&registry, 1, 0, &[1, 2]), service(&registry, 2, 16, &[2, 3])];
    writer.apply(image(services())).unwrap();
    writer.maps_mut().take_journal();
    assert_eq!(writer.apply(image(services())).unwrap(), Written::default());
    assert_eq!(writer.set_ways(ways()).unwrap(), Written::default());
    assert_eq!(writer.maps_mut().take_journal(), []);
}

#[test]
fn slots_follow_weights() {
    let registry = Registry::default();
    let mut writer = writer();
    writer.apply(image([service(&registry, 1, 0, &[1, 2])])).unwrap();
    endpoint(&registry, 2).set_weight(3);
    writer.publish(&registry.changes().take()).unwrap();
    let shares = [n_slots_of(&writer, 1, 0), n_slots_of(&writer, 1, 1)];
    assert_eq!(shares.iter().sum::<usize>(), 509);
    assert!(shares[0].abs_diff(127) <= 1, "{shares:?}");
}

#[test]
fn an_endpoint_that_goes_down_loses_its_row_state_first() {
    let registry = Registry::default();
    let mut writer = writer();
    let services = [
        service(&registry, 1, 0, &[1, 2]),
        service(&registry, 2, 16, &[2, 3]),
        service(&registry, 3, 32, &[3]),
    ];
    writer.apply(image(services)).unwrap();
    let before = writer.maps().observe().unwrap();
    writer.maps_mut().take_journal();
    endpoint(&registry, 2).set_health(Health::Down);
    let done = writer.publish(&registry.changes().take()).unwrap();
    assert_eq!((done.rows, done.tables, done.services), (2, 2, 2));
    let journal = writer.maps_mut().take_journal();
    let ranks: Vec<usize> = journal.iter().map(rank).collect();
    assert_eq!(ranks, [0, 0, 1, 2, 1, 2], "service 3 has nothing to do with it");
    assert_eq!((state(&writer, 1), n_slots_of(&writer, 1, 1)), (EndpointState::DOWN, 0));
    let after = writer.maps().observe().unwrap();
    assert_ne!(before.services[&key(1)].current, after.services[&key(1)].current);
    // Where all flows are remembered, slots remember none, and change at once.
    assert!(after.slots[&key(1)].iter().all(|slot| slot.former == slot.endpoint));
    endpoint(&registry, 2).set_health(Health::Up);
    writer.publish(&registry.changes().take()).unwrap();
    let back = writer.maps().observe().unwrap();
    let endpoints = |slots: &[Slot]| slots.iter().map(|slot| slot.endpoint).collect::<Vec<_>>();
    assert_eq!(endpoints(&back.slots[&key(1)]), endpoints(&before.slots[&key(1)]));
}

#[test]
fn draining_endpoints_are_the_last_resort() {
    let registry = Registry::default();
    let mut writer = writer();
    writer.apply(image([service(&registry, 1, 0, &[1, 2])])).unwrap();
    endpoint(&registry, 1).set_weight(0);
    writer.publish(&registry.changes().take()).unwrap();
    assert_eq!((state(&writer, 0), n_slots_of(&writer, 1, 0)), (EndpointState::DRAINING, 0));
    endpoint(&registry, 2).set_health(Health::Down);
    writer.publish(&registry.changes().take()).unwrap();
    assert_eq!(n_slots_of(&writer, 1, 0), 509);
    endpoint(&registry, 1).set_health(Health::Down);
    writer.publish(&registry.changes().take()).unwrap();
    let service = writer.maps().observe().unwrap().services[&key(1)];
    assert_eq!(service.table().n_slots, 0, "known, and nothing to send to");
}

#[test]
fn a_row_without_slots_keeps_its_flows() {
    let registry = Registry::default();
    let mut writer = writer();
    let mut moved = service(&registry, 1, 0, &[1, 2]);
    moved.rows = Range { first: 64, count: 16 };
    let alias = |row: &Row| Row { local: None, ..row.clone() };
    let mut aliases: Vec<Row> = moved.endpoints.iter().map(alias).collect();
    aliases[1].backend_weight = 0;
    for row in &mut moved.endpoints {
        row.row += 64;
    }
    moved.endpoints.splice(0..0, aliases);
    writer.apply(image([service(&registry, 1, 0, &[1, 2])])).unwrap();
    writer.apply(image([moved])).unwrap();
    assert_eq!([state(&writer, 0), state(&writer, 1)], [EndpointState::ACTIVE, EndpointState::DRAINING]);
    let observed = writer.maps().observe().unwrap();
    assert_eq!(observed.services[&key(1)].table().first_endpoint, 64);
    check_whole(writer.maps());
}

#[test]
fn a_refused_write_is_made_up_for() {
    let registry = Registry::default();
    let before = || image([service(&registry, 1, 0, &[1, 2]), service(&registry, 2, 16, &[3])]);
    // Service 1 gets other rows and other endpoints, 2 goes, 3 comes.
    let after = || image([service(&registry, 1, 64, &[2, 4, 5]), service(&registry, 3, 32, &[6])]);
    let mut whole = writer();
    whole.apply(before()).unwrap();
    whole.maps_mut().take_journal();
    whole.apply(after()).unwrap();
    let n_writes = whole.maps_mut().take_journal().len();
    assert!(n_writes > 10);
    for stop in 0..n_writes {
        let mut writer = writer();
        writer.apply(before()).unwrap();
        assert_eq!(writer.gap(), 0);
        writer.maps_mut().refuse_after(Some(stop));
        writer.apply(after()).unwrap_err();
        check_whole(writer.maps());
        assert!(writer.gap() > 0);
        writer.maps_mut().refuse_after(None);
        // A change of health may well come before anybody tries again: it makes up for everything.
        writer.publish(&[]).unwrap();
        assert_eq!(writer.gap(), 0);
        assert_eq!(writer.maps().observe().unwrap().services.len(), 2);
        assert_eq!(writer.maps().observe().unwrap().endpoints, whole.maps().observe().unwrap().endpoints);
        assert_eq!(writer.maps().observe().unwrap().filter, whole.maps().observe().unwrap().filter);
        check_whole(writer.maps());
    }
}

#[test]
fn another_agent_goes_on_where_the_first_stopped() {
    let registry = Registry::default();
    let services = || image([service(&registry, 1, 0, &[1, 2]), service(&registry, 2, 16, &[2, 3])]);
    let mut first = writer();
    first.apply(services()).unwrap();
    first.maps_mut().take_journal();
    let mut second = writer_over(first.maps().clone());
    assert_eq!(second.written().endpoints, first.written().endpoints);
    // Nobody has looked at routes and neighbours yet, and still nothing gets worse.
    assert_eq!(second.apply(services()).unwrap(), Written::default());
    second.set_ways(ways()).unwrap();
    assert_eq!(second.maps_mut().take_journal(), []);
}

#[test]
fn before_the_first_image_nothing_is_touched() {
    let registry = Registry::default();
    let mut first = writer();
    first.apply(image([service(&registry, 1, 0, &[1])])).unwrap();
    first.maps_mut().take_journal();
    let mut second = writer_over(first.maps().clone());
    second.set_ways(HashMap::new()).unwrap();
    second.set_ways(ways()).unwrap();
    endpoint(&registry, 1).set_health(Health::Down);
    second.publish(&registry.changes().take()).unwrap();
    second.reconcile().unwrap();
    assert_eq!((second.maps_mut().take_journal(), second.gap()), (Vec::new(), 0));
}

#[test]
fn without_a_way_there_is_no_endpoint() {
    let registry = Registry::default();
    let mut writer = writer_over(Memory::default());
    writer.apply(image([service(&registry, 1, 0, &[1, 2])])).unwrap();
    assert_eq!(
        (state(&writer, 0), writer.written().services[&key(1)].table().n_slots),
        (EndpointState::DOWN, 0)
    );
    let mut one = ways();
    one.insert(IpAddr::from([10, 1, 0, 2]), Way::default());
    writer.set_ways(one).unwrap();
    assert_eq!([state(&writer, 0), state(&writer, 1)], [EndpointState::ACTIVE, EndpointState::DOWN]);
    assert_eq!([n_slots_of(&writer, 1, 0), n_slots_of(&writer, 1, 1)], [509, 0]);
}

#[test]
fn an_endpoint_on_this_node_is_marked_and_its_replies_are_seen() {
    let registry = Registry::default();
    let mut writer = writer();
    let mut here = ways();
    let addr = IpAddr::from([10, 1, 0, 1]);
    here.insert(addr, Way { is_local: true, ..Way::default() });
    writer.set_ways(here).unwrap();
    writer.apply(image([service(&registry, 1, 0, &[1])])).unwrap();
    let observed = writer.maps().observe().unwrap();
    let row = observed.endpoints[&0];
    assert_eq!(
        (row.flags, row.state, row.source),
        (SharedEndpoint::LOCAL, EndpointState::ACTIVE, Addr::UNSPECIFIED)
    );
    for (addr, expected) in
        [(addr, true), (IpAddr::from(SOURCE), false), (IpAddr::from([198, 51, 100, 1]), true)]
    {
        let bit = filter::bit(Addr::from(addr));
        let is_set = observed.filter.get(&(bit / 64)).is_some_and(|bits| bits & (1 << (bit % 64)) != 0);
        assert_eq!(is_set, expected, "{addr}");
    }
}

#[test]
fn endpoints_of_the_other_family_have_no_slots() {
    let registry = Registry::default();
    let mut writer = writer();
    let mut mixed = service(&registry, 1, 0, &[1, 2]);
    let addr = "[2001:db8::2]:8080".parse().unwrap();
    mixed.endpoints[1].endpoint = registry.resolve(&EndpointId { service: ServiceName::new("web"), addr });
    writer.apply(image([mixed])).unwrap();
    assert_eq!([n_slots_of(&writer, 1, 0), n_slots_of(&writer, 1, 1)], [509, 0]);
}

#[test]
fn a_service_is_published_once_in_a_millisecond() {
    let registry = Registry::default();
    let clock = Clock::real();
    let mut writer = Writer::new(Memory::default(), TERMS, clock.clone()).unwrap();
    writer.set_ways(ways()).unwrap();
    writer.apply(image([service(&registry, 1, 0, &[1, 2])])).unwrap();
    let start = clock.now();
    for n in 0..5u8 {
        endpoint(&registry, 1).set_health(if n % 2 == 0 { Health::Down } else { Health::Up });
        assert_eq!(writer.publish(&registry.changes().take()).unwrap().tables, 1);
    }
    assert!(clock.now() - start >= turns::SPACING * 4);
}

/// A service that keeps packets as they are, and remembers flows of slots that change.
fn direct(registry: &Registry, hosts: &[u8]) -> Service {
    Service { mode: Mode::DSR_L2, track: Track::CHANGE, ..service(registry, 1, 0, hosts) }
}

fn n_changing(writer: &Writer<Memory>) -> usize {
    let observed = writer.maps().observe().unwrap();
    observed.slots[&key(1)].iter().filter(|slot| slot.endpoint != slot.former).count()
}

#[test]
fn a_change_ends_after_its_window() {
    let registry = Registry::default();
    let mut writer = writer();
    let clock = writer.clock.clone();
    writer.apply(image([direct(&registry, &[1, 2])])).unwrap();
    assert_eq!(n_changing(&writer), 0);
    endpoint(&registry, 2).set_weight(3);
    writer.publish(&registry.changes().take()).unwrap();
    let n = n_changing(&writer);
    assert!((100..160).contains(&n), "a quarter of 509 slots: {n}");
    clock.advance(Duration::from_secs(599));
    assert_eq!(writer.settle().unwrap(), Written::default());
    assert_eq!(n_changing(&writer), n);
    let shares = [n_slots_of(&writer, 1, 0), n_slots_of(&writer, 1, 1)];
    clock.advance(Duration::from_secs(1));
    let done = writer.settle().unwrap();
    assert_eq!((done.rows, done.tables, done.services), (0, 1, 1));
    assert_eq!(n_changing(&writer), 0);
    assert_eq!([n_slots_of(&writer, 1, 0), n_slots_of(&writer, 1, 1)], shares);
    check_whole(writer.maps());
    assert_eq!(writer.settle().unwrap(), Written::default());
}

fn slots_of(writer: &Writer<Memory>) -> Vec<Slot> {
    writer.maps().observe().unwrap().slots[&key(1)].clone()
}

#[test]
fn what_changes_something_else_leaves_the_memory_of_slots_alone() {
    let registry = Registry::default();
    let mut writer = writer();
    writer.apply(image([direct(&registry, &[1, 2, 3])])).unwrap();
    let before = slots_of(&writer);
    endpoint(&registry, 2).set_health(Health::Down);
    writer.publish(&registry.changes().take()).unwrap();
    let during = slots_of(&writer);
    assert!(during.iter().any(|slot| slot.endpoint != slot.former));
    // A weight: most slots stay.
    endpoint(&registry, 3).set_weight(2);
    writer.publish(&registry.changes().take()).unwrap();
    for ((before, during), after) in before.iter().zip(&during).zip(slots_of(&writer)) {
        assert_eq!(during.former, before.endpoint);
        assert_eq!(after.former, before.endpoint, "what began since is remembered in the flow table");
    }
    // Back to where it was: nobody's flows are anywhere else, unless they are remembered.
    endpoint(&registry, 3).set_weight(1);
    endpoint(&registry, 2).set_health(Health::Up);
    writer.publish(&registry.changes().take()).unwrap();
    assert_eq!(slots_of(&writer), before);
    writer.clock.advance(WINDOW);
    assert_eq!(writer.settle().unwrap(), Written::default());
}

#[test]
fn a_change_within_the_window_of_another_has_a_whole_one() {
    let registry = Registry::default();
    let mut writer = writer();
    writer.apply(image([direct(&registry, &[1, 2, 3])])).unwrap();
    endpoint(&registry, 2).set_health(Health::Down);
    writer.publish(&registry.changes().take()).unwrap();
    let first = slots_of(&writer);
    let is_first = |idx: usize| first[idx].endpoint != first[idx].former;
    writer.clock.advance(WINDOW / 2);
    endpoint(&registry, 3).set_weight(3);
    writer.publish(&registry.changes().take()).unwrap();
    let both = slots_of(&writer);
    let n_late = |slots: &[Slot]| {
        let late = |(idx, slot): &(usize, &Slot)| !is_first(*idx) && slot.endpoint != slot.former;
        slots.iter().enumerate().filter(late).count()
    };
    assert!(n_late(&both) > 10);
    writer.clock.advance(WINDOW / 2);
    assert_eq!(writer.settle().unwrap().tables, 1);
    for (idx, (both, after)) in both.iter().zip(slots_of(&writer)).enumerate() {
        let former = if is_first(idx) { both.endpoint } else { both.former };
        assert_eq!(after, Slot { former, ..*both });
    }
    assert_eq!(writer.settle().unwrap(), Written::default());
    writer.clock.advance(WINDOW / 2);
    assert_eq!(writer.settle().unwrap().tables, 1);
    assert_eq!(n_changing(&writer), 0);
}

#[test]
fn slots_forget_however_often_others_change() {
    let registry = Registry::default();
    let mut writer = writer();
    writer.apply(image([direct(&registry, &[1, 2, 3])])).unwrap();
    endpoint(&registry, 2).set_health(Health::Down);
    writer.publish(&registry.changes().take()).unwrap();
    let first = slots_of(&writer);
    for n in 0..20u32 {
        writer.clock.advance(WINDOW / 10);
        endpoint(&registry, 3).set_weight(if n % 2 == 0 { 2 } else { 1 });
        writer.publish(&registry.changes().take()).unwrap();
        writer.settle().unwrap();
    }
    // Those that have not changed since.
    let slots = slots_of(&writer);
    let still = first.iter().zip(&slots).filter(|(first, slot)| first.endpoint == slot.endpoint);
    let n = still.filter(|(first, slot)| first.former == 1 && slot.former == 1).count();
    assert_eq!(n, 0, "after two windows");
    writer.clock.advance(WINDOW);
    writer.settle().unwrap();
    writer.clock.advance(WINDOW);
    writer.settle().unwrap();
    assert_eq!(n_changing(&writer), 0);
}

/// Hosts that new flows of each of many hashes go to, and those that went before.
fn leads(writer: &Writer<Memory>) -> Vec<(u8, u8)> {
    let observed = writer.maps().observe().unwrap();
    let (service, slots) = (observed.services[&key(1)], &observed.slots[&key(1)]);
    let slot_of = |slots: &[Slot], hash: u64| {
        slots[usize::try_from(gateway_common::hash::slot(hash, u32::try_from(slots.len()).unwrap())).unwrap()]
    };
    let host = |table: Table, local: u16| match observed.endpoints[&(table.first_endpoint + u32::from(local))]
    {
        row if row.service == service.id => {
            IpAddr::from(row.addr).to_string().rsplit('.').next().unwrap().parse().unwrap()
        }
        _ => 0,
    };
    let lead = |hash: u64| {
        let slot = slot_of(slots, hash);
        let former = if slot.former == Slot::ELSEWHERE {
            host(service.idle_table(), slot_of(&observed.before[&key(1)], hash).before())
        } else {
            host(service.table(), slot.former)
        };
        (host(service.table(), slot.endpoint), former)
    };
    (0..4_096u64).map(|n| lead(n.wrapping_mul(0x9e37_79b9_7f4a_7c15))).collect()
}

/// Where new flows go.
fn now(leads: &[(u8, u8)]) -> Vec<u8> {
    leads.iter().map(|(now, _)| *now).collect()
}

/// Where flows were before.
fn before(leads: &[(u8, u8)]) -> Vec<u8> {
    leads.iter().map(|(_, before)| *before).collect()
}

fn is_divided(writer: &Writer<Memory>) -> bool {
    former::is_divided(&slots_of(writer))
}

/// A service whose slots have another place than those of `direct`.
fn grown(registry: &Registry, hosts: &[u8]) -> Service {
    Service { chunks: [100, 200], ..direct(registry, hosts) }
}

#[test]
fn flows_are_found_over_a_class_of_sizes_and_back() {
    let registry = Registry::default();
    let mut writer = writer();
    writer.apply(image([direct(&registry, &[1, 2])])).unwrap();
    let small = now(&leads(&writer));
    writer.apply(image([grown(&registry, &[1, 2, 3])])).unwrap();
    assert!(is_divided(&writer));
    assert_eq!(before(&leads(&writer)), small);
    let n_marked = slots_of(&writer).iter().filter(|slot| slot.former == Slot::ELSEWHERE).count();
    assert!((100..500).contains(&n_marked), "only those that share flows with slots that differ: {n_marked}");
    // What follows within the window leaves the table before where it is.
    let turns = writer.written().services[&key(1)].current;
    for (host, weight) in [(3, 2), (1, 3), (2, 0), (2, 1)] {
        endpoint(&registry, host).set_weight(weight);
        assert_eq!(writer.publish(&registry.changes().take()).unwrap().tables, 1);
        assert_eq!(before(&leads(&writer)), small);
        check_whole(writer.maps());
    }
    assert_eq!(writer.written().services[&key(1)].current, turns);
    assert_eq!(writer.written(), &writer.maps().observe().unwrap());
    // Another agent knows it as well.
    let mut second = writer_over(writer.maps().clone());
    assert_eq!(second.written(), writer.written());
    second.set_ways(ways()).unwrap();
    assert_eq!(second.apply(image([grown(&registry, &[1, 2, 3])])).unwrap(), Written::default());
    writer.clock.advance(WINDOW);
    writer.settle().unwrap();
    writer.clock.advance(WINDOW);
    writer.settle().unwrap();
    assert_eq!(n_changing(&writer), 0);
    assert_eq!(writer.written(), &writer.maps().observe().unwrap());
    // Back, with a row for what left.
    let large = now(&leads(&writer));
    let mut back = Service { n_slots: size_class(2), ..grown(&registry, &[1, 2, 3]) };
    back.endpoints[2].local = None;
    writer.apply(image([back])).unwrap();
    assert_eq!(slots_of(&writer).len(), 509);
    let leads = leads(&writer);
    assert_eq!(before(&leads), large);
    assert!(!now(&leads).contains(&3));
}

#[test]
fn two_classes_within_a_window_leave_what_is_known_of_both() {
    let registry = Registry::default();
    let mut writer = writer();
    writer.apply(image([direct(&registry, &[1, 2])])).unwrap();
    let small = now(&leads(&writer));
    writer.apply(image([grown(&registry, &[1, 2, 3])])).unwrap();
    let large = now(&leads(&writer));
    let six = Service { chunks: [300, 400], ..direct(&registry, &[1, 2, 3, 4, 5, 6]) };
    writer.apply(image([six])).unwrap();
    for ((before, small), large) in before(&leads(&writer)).into_iter().zip(small).zip(large) {
        assert!(before == small || before == large, "{before} after {small} and {large}");
    }
    check_whole(writer.maps());
}

#[test]
fn flows_are_found_when_the_rows_move() {
    let registry = Registry::default();
    let mut writer = writer();
    let hosts: Vec<u8> = (1..=8).collect();
    writer.apply(image([direct(&registry, &hosts)])).unwrap();
    let eight = now(&leads(&writer));
    // The eighth left with the move, a ninth and a tenth came.
    let mut moved = direct(&registry, &[1, 2, 3, 4, 5, 6, 7, 9, 10]);
    let old = direct(&registry, &hosts).endpoints;
    moved.rows = Range { first: 64, count: 12 };
    for row in &mut moved.endpoints {
        row.row += 64;
    }
    moved.endpoints.splice(0..0, old.into_iter().map(|row| Row { local: None, ..row }));
    let n_slots = moved.n_slots;
    writer.apply(image([moved.clone()])).unwrap();
    assert_eq!(u32::try_from(slots_of(&writer).len()).unwrap(), n_slots);
    assert_eq!(before(&leads(&writer)), eight);
    assert!(!now(&leads(&writer)).contains(&8));
    endpoint(&registry, 3).set_health(Health::Down);
    writer.publish(&registry.changes().take()).unwrap();
    assert_eq!(before(&leads(&writer)), eight);
    check_whole(writer.maps());
    // The rows before are nobody's: what was there is lost, and goes to no stranger.
    moved.endpoints.retain(|row| row.row >= 64);
    writer.apply(image([moved])).unwrap();
    let lost = leads(&writer).iter().zip(&eight).filter(|((_, before), eight)| before != *eight).count();
    assert!(
        lost > 0
            && leads(&writer).iter().zip(&eight).all(|((_, before), eight)| before == eight || *before == 0)
    );
}

#[test]
fn a_service_that_was_the_agents_meanwhile_remembers_nothing() {
    let registry = Registry::default();
    let mut writer = writer();
    writer.apply(image([direct(&registry, &[1, 2])])).unwrap();
    let none = Service { mode: Mode::AGENT, chunks: [0, 0], n_slots: 0, ..direct(&registry, &[]) };
    writer.apply(image([none])).unwrap();
    writer.apply(image([grown(&registry, &[1, 2, 3])])).unwrap();
    assert_eq!(n_changing(&writer), 0);
}

/// A service of the agent, which has neither chunks nor rows.
fn agents(registry: &Registry) -> Service {
    Service {
        mode: Mode::AGENT,
        track: Track::NEVER,
        rows: Range::default(),
        chunks: [0, 0],
        n_slots: 0,
        ..direct(registry, &[])
    }
}

#[test]
fn a_service_of_the_agent_names_neither_slots_nor_rows() {
    let registry = Registry::default();
    let mut writer = writer();
    writer.apply(image([direct(&registry, &[1, 2])])).unwrap();
    endpoint(&registry, 2).set_weight(3);
    writer.publish(&registry.changes().take()).unwrap();
    let before = writer.written().services[&key(1)];
    writer.apply(image([agents(&registry)])).unwrap();
    let value = writer.written().services[&key(1)];
    assert_eq!(value.table(), Table::default());
    assert_eq!(value.idle_table(), before.table(), "packets that have begun read what they began with");
    assert_eq!(writer.maps().observe().unwrap().slots[&key(1)], []);
    writer.clock.advance(WINDOW);
    assert_eq!(writer.settle().unwrap(), Written::default());
    assert_eq!(writer.apply(image([agents(&registry)])).unwrap(), Written::default());
}

#[test]
fn what_an_earlier_agent_left_in_the_value_of_a_service_is_nobodys() {
    let registry = Registry::default();
    let mut first = writer();
    // The chunks of another service, as if they had been this one's.
    let other = Service { chunks: [0, 16], ..service(&registry, 2, 8, &[3, 4]) };
    first.apply(image([direct(&registry, &[1, 2]), other.clone()])).unwrap();
    let mut maps = first.maps().clone();
    let mut stale = first.written().services[&key(1)];
    (stale.mode, stale.track, stale.halves) = (Mode::AGENT, Track::NEVER, [0, 0]);
    maps.put_service(&key(1), &stale).unwrap();
    let mut second = writer_over(maps);
    second.set_ways(ways()).unwrap();
    assert_eq!(second.written().slots[&key(1)], []);
    let slots = second.written().slots[&key(2)].clone();
    // Balanced again at once, with another owner in the first row.
    let mut again = Service { chunks: [100, 200], ..direct(&registry, &[5, 2]) };
    again.endpoints[0].generation = 2;
    second.apply(image([again, other])).unwrap();
    assert_eq!(n_changing(&second), 0);
    assert_eq!(second.maps().observe().unwrap().slots[&key(2)], slots);
    check_whole(second.maps());
}

#[test]
fn what_is_remembered_begins_when_it_is_wanted() {
    let registry = Registry::default();
    let with = |track| image([Service { track, ..direct(&registry, &[1, 2]) }]);
    for track in [Track::NEVER, Track::ALWAYS] {
        let mut writer = writer();
        writer.apply(with(track)).unwrap();
        endpoint(&registry, 2).set_weight(3);
        writer.publish(&registry.changes().take()).unwrap();
        writer.apply(with(Track::CHANGE)).unwrap();
        assert_eq!(n_changing(&writer), 0, "flows followed the slots");
        assert_eq!(writer.written(), &writer.maps().observe().unwrap());
        let known = now(&leads(&writer));
        endpoint(&registry, 2).set_weight(1);
        writer.publish(&registry.changes().take()).unwrap();
        assert_eq!(before(&leads(&writer)), known);
        // In the middle of a window, not wanted, and wanted again.
        writer.apply(with(track)).unwrap();
        writer.clock.advance(WINDOW);
        assert_eq!(writer.settle().unwrap(), Written::default());
        writer.apply(with(Track::CHANGE)).unwrap();
        assert_eq!(n_changing(&writer), 0);
    }
}

#[test]
fn slots_without_their_value_are_forgotten() {
    let registry = Registry::default();
    for has_grown in [false, true] {
        let mut writer = writer();
        let mut hosts = direct(&registry, &[1, 2]);
        writer.apply(image([hosts.clone()])).unwrap();
        if has_grown {
            hosts = grown(&registry, &[1, 2, 3]);
            writer.apply(image([hosts.clone()])).unwrap();
        }
        assert_eq!(is_divided(&writer), has_grown);
        let limited = image([Service { cookie_rate: Some(9), ..hosts }]);
        endpoint(&registry, 2).set_weight(3);
        registry.changes().take();
        writer.maps_mut().refuse_after(Some(1));
        writer.apply(Arc::clone(&limited)).unwrap_err();
        writer.maps_mut().refuse_after(None);
        // Meanwhile the weight is what it was.
        endpoint(&registry, 2).set_weight(1);
        registry.changes().take();
        writer.apply(limited).unwrap();
        assert_eq!(writer.written().slots, writer.maps().observe().unwrap().slots);
        let mut second = writer_over(writer.maps().clone());
        second.set_ways(ways()).unwrap();
        assert_eq!(second.apply(writer.image()).unwrap(), Written::default());
    }
}

#[test]
fn a_table_is_not_written_over_while_slots_refer_to_it() {
    let registry = Registry::default();
    let mut writer = writer();
    let sized = |n_slots| Service { n_slots, chunks: [100, 200], ..direct(&registry, &[1, 2, 3]) };
    writer.apply(image([sized(1_021)])).unwrap();
    writer.apply(image([sized(509)])).unwrap();
    assert!(is_divided(&writer));
    let half = writer.written().services[&key(1)].table().first_chunk;
    writer.maps_mut().take_journal();
    // Its half is the one before.
    writer.apply(image([sized(251)])).unwrap();
    let places = |op: &Op| {
        let Op::Slots { first_chunk, slots, .. } = op else { return None };
        Some((*first_chunk, former::is_divided(slots)))
    };
    let written: Vec<_> = writer.maps_mut().take_journal().iter().filter_map(places).collect();
    assert_eq!(written, [(half, false), (300 - half, true)]);
    check_whole(writer.maps());
}

#[test]
fn a_row_that_is_passed_on_as_the_table_grows_leads_to_no_stranger() {
    let registry = Registry::default();
    let mut writer = writer();
    writer.apply(image([direct(&registry, &[1, 2])])).unwrap();
    let small = now(&leads(&writer));
    let mut taken = grown(&registry, &[4, 2, 3]);
    taken.endpoints[0].generation = 2;
    writer.apply(image([taken])).unwrap();
    let leads = leads(&writer);
    assert!(leads.iter().zip(&small).any(|((now, before), small)| before == small && now != before));
    assert!(leads.iter().all(|(now, before)| *before != 4 || *now == 4));
}

#[test]
fn no_table_before_leads_to_a_stranger() {
    let registry = Registry::default();
    let mut writer = writer();
    writer.apply(image([direct(&registry, &[1, 2])])).unwrap();
    let small = now(&leads(&writer));
    writer.apply(image([grown(&registry, &[1, 2, 3])])).unwrap();
    let mut without = grown(&registry, &[1, 2, 3]);
    without.endpoints.remove(0);
    writer.apply(image([without])).unwrap();
    let mut taken = grown(&registry, &[4, 2, 3]);
    taken.endpoints[0].generation = 2;
    writer.apply(image([taken])).unwrap();
    assert!(is_divided(&writer) || n_changing(&writer) > 0);
    for ((now, before), small) in leads(&writer).into_iter().zip(small) {
        assert!(before != 4 || now == 4, "a flow of {small} goes to a stranger");
    }
    check_whole(writer.maps());
}

#[test]
fn no_slot_remembers_who_has_another_owner() {
    let registry = Registry::default();
    let mut writer = writer();
    writer.apply(image([direct(&registry, &[1, 2, 3])])).unwrap();
    // The second leaves, and its row is another's one change later.
    let mut without = direct(&registry, &[1, 2, 3]);
    without.endpoints.remove(1);
    writer.apply(image([without])).unwrap();
    assert!(slots_of(&writer).iter().any(|slot| slot.former == 1 && slot.endpoint != 1));
    assert_eq!(state(&writer, 1), EndpointState::DOWN);
    let mut taken = direct(&registry, &[1, 4, 3]);
    taken.endpoints[1].generation = 2;
    writer.maps_mut().take_journal();
    writer.apply(image([taken])).unwrap();
    let journal = writer.maps_mut().take_journal();
    let forgets = |op: &Op| matches!(op, Op::Slots { slots, .. } if slots.iter().all(|slot| slot.former != 1 && slot.endpoint != 1));
    let [slots, value, row] = [
        journal.iter().position(forgets),
        journal.iter().position(|op| matches!(op, Op::Service { .. })),
        journal.iter().position(|op| matches!(op, Op::Row { row: 1, .. })),
    ];
    assert!(
        slots < value && value < row && slots.is_some(),
        "forgotten before the row is another's: {journal:#?}"
    );
    let strangers = |writer: &Writer<Memory>, local: u16| {
        slots_of(writer).iter().filter(|slot| slot.former == local && slot.endpoint != local).count()
    };
    assert_eq!(strangers(&writer, 1), 0);
    // The third leaves, and its row is another's at once.
    let mut at_once = direct(&registry, &[1, 4, 5]);
    at_once.endpoints[1].generation = 2;
    at_once.endpoints[2].generation = 2;
    writer.maps_mut().refuse_after(Some(1));
    writer.apply(image([at_once])).unwrap_err();
    writer.maps_mut().refuse_after(None);
    writer.reconcile().unwrap();
    assert_eq!((strangers(&writer, 2), writer.gap()), (0, 0));
    check_whole(writer.maps());
}

#[test]
fn a_change_of_an_earlier_agent_ends_too() {
    let registry = Registry::default();
    let mut first = writer();
    first.apply(image([direct(&registry, &[1, 2])])).unwrap();
    endpoint(&registry, 2).set_weight(3);
    first.publish(&registry.changes().take()).unwrap();
    let mut second = writer_over(first.maps().clone());
    second.set_ways(ways()).unwrap();
    second.apply(image([direct(&registry, &[1, 2])])).unwrap();
    assert!(n_changing(&second) > 0);
    second.clock.advance(WINDOW);
    assert_eq!(second.settle().unwrap().tables, 1);
    assert_eq!(n_changing(&second), 0);
}

#[test]
fn affinity_is_told_in_ticks() {
    let registry = Registry::default();
    let mut writer = writer();
    let sticky = Service { affinity: Some(Duration::from_hours(3)), ..service(&registry, 1, 0, &[1]) };
    writer.apply(image([sticky])).unwrap();
    let row = writer.maps().observe().unwrap().services[&key(1)];
    assert_eq!(row.flags, gateway_common::service::Service::AFFINITY);
    assert_eq!(row.affinity_ticks, TERMS.ticks.of(Duration::from_hours(3)));
}

#[test]
fn resets_are_told() {
    let registry = Registry::default();
    let mut writer = writer();
    let strict = Service { resets: true, ..service(&registry, 1, 0, &[1]) };
    writer.apply(image([strict])).unwrap();
    let row = writer.maps().observe().unwrap().services[&key(1)];
    assert_eq!(row.flags, gateway_common::service::Service::RESETS);
}

#[test]
fn nothing_is_translated_to_a_loopback_address() {
    let registry = Registry::default();
    let mut writer = writer();
    let addr = SocketAddr::from(([127, 0, 0, 1], 8080));
    let mut ways = ways();
    ways.insert(addr.ip(), Way { is_local: true, ..ways[&IpAddr::from([10, 1, 0, 1])] });
    writer.set_ways(ways).unwrap();
    let mut service = service(&registry, 1, 0, &[1, 2]);
    service.endpoints[1].endpoint = registry.resolve(&EndpointId { service: ServiceName::new("web"), addr });
    writer.apply(image([service.clone()])).unwrap();
    assert_eq!([state(&writer, 0), state(&writer, 1)], [EndpointState::ACTIVE, EndpointState::DOWN]);
    let present = writer.maps().observe().unwrap().endpoints[&1];
    assert_eq!(present.source, Addr::UNSPECIFIED);
    writer.reconcile().unwrap();
    assert_eq!(writer.maps().observe().unwrap().endpoints[&1], present, "it stays as it is");
    // Its checks get there, and the next agent does not take it for one that they found down.
    let was_found_down = |present| row::was_found_down(Mode::NAT, &service.endpoints[1], present);
    assert!(present.is_local() && !was_found_down(&present));
    let elsewhere = SharedEndpoint { addr: Addr::from(IpAddr::from([10, 1, 0, 9])), ..present };
    assert!(!was_found_down(&elsewhere), "the row of another one");
    endpoint(&registry, 1).set_health(Health::Down);
    writer.publish(&registry.changes().take()).unwrap();
    let down = writer.maps().observe().unwrap().endpoints[&0];
    assert!(row::was_found_down(Mode::NAT, &service.endpoints[0], &down));
    endpoint(&registry, 1).set_health(Health::Up);
    // What comes by direct return keeps its destination.
    service.mode = Mode::DSR_L2;
    let mut written = writer.maps().observe().unwrap();
    assert!(!row::says_down(&written, &service, &service.endpoints[1]), "it was down for want of a way");
    for before in written.services.values_mut() {
        before.mode = Mode::DSR_L2;
    }
    assert!(row::says_down(&written, &service, &service.endpoints[1]));
    writer.apply(image([service])).unwrap();
    assert_eq!(state(&writer, 1), EndpointState::ACTIVE);
}

#[test]
fn a_frame_reaches_only_endpoints_on_the_link() {
    let registry = Registry::default();
    let mut writer = writer();
    let mut behind_a_router = ways();
    let way = behind_a_router.get_mut(&IpAddr::from([10, 1, 0, 2])).unwrap();
    way.is_on_link = false;
    writer.set_ways(behind_a_router).unwrap();
    writer.apply(image([direct(&registry, &[1, 2])])).unwrap();
    assert_eq!([state(&writer, 0), state(&writer, 1)], [EndpointState::ACTIVE, EndpointState::DOWN]);
    let source = |row| writer.maps().observe().unwrap().endpoints[&row].source;
    assert_ne!(source(0), Addr::UNSPECIFIED);
    assert_eq!(source(1), Addr::UNSPECIFIED, "for want of a way, which says nothing about the endpoint");
    let tunnel = Service { mode: Mode::DSR_IPIP, ..direct(&registry, &[1, 2]) };
    writer.apply(image([tunnel])).unwrap();
    assert_eq!([state(&writer, 0), state(&writer, 1)], [EndpointState::ACTIVE, EndpointState::ACTIVE]);
}

#[test]
fn a_tunnel_takes_endpoints_of_both_families() {
    let registry = Registry::default();
    let mut writer = writer();
    let addr: SocketAddr = "[2001:db8::2]:80".parse().unwrap();
    let mut both = ways();
    both.insert(addr.ip(), both[&IpAddr::from([10, 1, 0, 1])]);
    writer.set_ways(both).unwrap();
    let mut mixed = Service { mode: Mode::DSR_GUE, ..direct(&registry, &[1, 2]) };
    mixed.endpoints[1].endpoint = registry.resolve(&EndpointId { service: ServiceName::new("web"), addr });
    writer.apply(image([mixed])).unwrap();
    assert!(n_slots_of(&writer, 1, 0).abs_diff(n_slots_of(&writer, 1, 1)) <= 1);
}

/// A service of ranges of ports, numbered by its first row.
fn ranged(registry: &Registry, first_row: u32, ports: &[(u16, u16)]) -> Service {
    let wide = service(registry, 1, first_row, &[1]);
    let first = ports.first().map_or(0, |(first, _)| *first);
    Service {
        key: ServiceKey::new(wide.key.addr, Port::new(first), wide.key.protocol),
        id: first_row,
        ports: ports.iter().map(|(first, last)| *first..=*last).collect(),
        ..wide
    }
}

/// The rows of the ranges of the one address, as numbers.
fn ranges_of(writer: &Writer<Memory>) -> Vec<(u16, u16, u32)> {
    let observed = writer.maps().observe().unwrap();
    let every = ServiceKey::new(key(1).addr, Port::NONE, Protocol::TCP);
    let Some((_, ranges)) = observed.ranges.get(&every) else { return Vec::new() };
    ranges.iter().map(|range| (range.first.number(), range.last.number(), range.service)).collect()
}

#[test]
fn ranges_of_ports_lead_to_their_services() {
    let registry = Registry::default();
    let mut writer = writer();
    let passive = ranged(&registry, 16, &[(30_000, 30_999), (40_000, 40_000)]);
    writer.apply(image([ranged(&registry, 32, &[(50_000, 50_009)]), passive.clone()])).unwrap();
    assert_eq!(ranges_of(&writer), [(50_000, 50_009, 32), (30_000, 30_999, 16), (40_000, 40_000, 16)]);
    let observed = writer.maps().observe().unwrap();
    assert_eq!(observed.services.len(), 2);
    assert_eq!(observed.endpoints[&16].port, Port::NONE, "packets keep their port");
    assert_eq!(writer.gap(), 0);
    // Ranges are written beside those that packets read now.
    let first = observed.ranges.values().next().unwrap().0.first;
    let grown = ranged(&registry, 32, &[(50_000, 50_019)]);
    writer.apply(image([grown, passive.clone()])).unwrap();
    let after = writer.maps().observe().unwrap();
    assert_ne!(after.ranges.values().next().unwrap().0.first, first);
    assert_eq!(ranges_of(&writer)[0], (50_000, 50_019, 32));
    // The rest of the ports, and a port of its own.
    let mut rest = ranged(&registry, 48, &[]);
    rest.key = ServiceKey::new(key(1).addr, Port::NONE, Protocol::TCP);
    let own = service(&registry, 1, 0, &[2]);
    writer.apply(image([rest, own, passive])).unwrap();
    assert_eq!(ranges_of(&writer), [(30_000, 30_999, 16), (40_000, 40_000, 16)]);
    let after = writer.maps().observe().unwrap();
    assert_eq!(after.entries.len(), 2);
    assert_eq!(after.services.len(), 3);
    writer.maps_mut().take_journal();
    let second = writer_over(writer.maps().clone());
    assert_eq!(second.written().services, after.services);
    writer.apply(image([])).unwrap();
    assert_eq!(writer.maps().observe().unwrap().services.len(), 0);
}

#[test]
fn a_port_that_becomes_a_range_keeps_its_service() {
    let registry = Registry::default();
    let mut writer = writer();
    let one = service(&registry, 1, 0, &[1]);
    let many = Service { ports: vec![80..=89], ..one.clone() };
    writer.apply(image([one.clone()])).unwrap();
    writer.maps_mut().take_journal();
    writer.apply(image([many])).unwrap();
    let observed = writer.maps().observe().unwrap();
    assert_eq!((observed.entries.len(), observed.services.len()), (1, 1));
    assert_eq!(ranges_of(&writer), [(80, 89, 1)]);
    writer.apply(image([one])).unwrap();
    assert_eq!(ranges_of(&writer), []);
    assert_eq!(writer.maps().observe().unwrap().entries.len(), 1);
    assert_eq!(writer.gap(), 0);
}
