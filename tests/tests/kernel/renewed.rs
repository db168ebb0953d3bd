//! What flows have recorded of the way to their endpoint, and is not so any more: the address that packets leave from, the
//! node that the endpoint is on, whether packets are translated. Their next packet records it anew.

use gateway_common::{
    addr::Addr,
    counter::{Hook, Reason},
    endpoint::{Endpoint, NextHop},
    flow::{HeadState, Phase},
    service::{Mode, Service, Track},
};
use gateway_tests::{
    memory::Run,
    packet::{Packet, inspect, tcp, udp},
    world::{ENDPOINT_MAC, INGRESS, INNER_MAC, Id, LOCAL4, TCP4, UDP4, World, addr_of},
};

use crate::check::{Case, case, check, steps};

const VIP4: &str = "198.51.100.1:443";
const DNS4: &str = "198.51.100.1:53";
const LOCAL_VIP4: &str = "198.51.100.2:443";
const CLIENT4: &str = "192.0.2.9:40000";
const FIRST: &str = "10.0.0.10:8443";
const FIRST_DNS: &str = "10.0.0.10:5353";
const HERE: &str = "10.0.0.1:9000";

/// What the agent writes beside another way to an endpoint whose packets are translated.
fn another_way(world: &mut World, row: u32) {
    world.row(row).generation += Endpoint::OWNER + 1;
}

/// Packets to a service leave from another address of this node.
fn from_elsewhere(world: &mut World, id: Id) {
    world.row(id.row()).source = addr_of("10.0.0.2");
    world.tables.claim(addr_of("10.0.0.2"));
    world.slots(id, 1);
    another_way(world, id.row());
}

/// The endpoint moves to this node.
fn to_here(world: &mut World) {
    let row = world.row(TCP4.row());
    (row.flags, row.source, row.next_hop) = (Endpoint::LOCAL, Addr::UNSPECIFIED, NextHop::UNKNOWN);
    world.tables.claim(addr_of("10.0.0.10"));
    another_way(world, TCP4.row());
}

/// The endpoint of this node moves to another one.
fn from_here(world: &mut World) {
    let row = world.row(LOCAL4.row());
    (row.flags, row.source) = (0, addr_of("10.0.0.2"));
    row.next_hop = NextHop { interface: INGRESS, mac: ENDPOINT_MAC, own_mac: INNER_MAC };
    world.tables.claim(addr_of("10.0.0.2"));
    another_way(world, LOCAL4.row());
}

/// What was a service with direct return that remembers its flows is translated.
fn translated(world: &mut World, id: Id) {
    world.change(id, |service| (service.mode, service.track) = (Mode::NAT, Track::ALWAYS));
    another_way(world, id.row());
}

/// A packet of a known flow ends so, in a world that has changed so since.
fn known(name: &'static str, packet: &Packet, port: u16, reason: Reason, and: fn(&mut World)) -> Case {
    let flow = packet.clone();
    let id = [(VIP4, TCP4), (DNS4, UDP4), (LOCAL_VIP4, LOCAL4)];
    let to = inspect(&packet.bytes()).unwrap().destination.to_string();
    let (_, id) = *id.iter().find(|(addr, _)| *addr == to).unwrap();
    case(name, packet, reason).with(move |world| {
        if port == 0 {
            world.flow(&flow, id.row(), port, Phase::OPEN, world.now);
        } else {
            world.established(&flow, id.row(), port, Phase::OPEN, world.now);
        }
        and(world);
    })
}

/// The flow is the same one, as the row is now, and its client gets what the endpoint answers.
fn is_answered(of: &Packet, from: &'static str) -> impl Fn(&World) + 'static {
    let of = of.clone();
    move |world| {
        let mut world = World { tables: world.tables.clone(), now: world.now };
        let flow = world.found(&of).expect("the flow is remembered");
        let row = *world.row(flow.endpoint);
        assert_eq!((flow.generation, world.tables.live().count()), (row.generation, 1));
        assert_eq!(world.tables.service_counts[&flow.service].new_flows, 0);
        let to = if row.is_local() { flow.client } else { row.source };
        let to = format!("{}:{}", std::net::IpAddr::from(to), flow.source_port.number());
        let is_udp = of.key().protocol == gateway_common::addr::Protocol::UDP;
        let answer = if is_udp { udp(from, &to) } else { tcp(from, &to) };
        let hook = if row.is_local() { Hook::TcEgress } else { Hook::XdpBalance };
        let run = Run { hook, ingress: INGRESS, now: world.now, next_hop: None };
        let seen = inspect(&run.packet(&mut world.tables, &answer.bytes()).bytes).unwrap();
        let asked = inspect(&of.bytes()).unwrap();
        assert_eq!((seen.source, seen.destination), (asked.destination, asked.source));
    }
}

#[test]
fn a_flow_leaves_from_where_its_endpoint_is_reached_now() {
    let (stream, query, here) = (tcp(CLIENT4, VIP4), udp(CLIENT4, DNS4), tcp(CLIENT4, LOCAL_VIP4));
    check(vec![
        known("another address", &stream, 20_005, Reason::Forwarded, |world| from_elsewhere(world, TCP4))
            .sent("10.0.0.2:20005", FIRST, 63)
            .after(is_answered(&stream, FIRST)),
        known("another address, over udp", &query, 20_005, Reason::Forwarded, |world| {
            from_elsewhere(world, UDP4);
        })
        .sent("10.0.0.2:20005", FIRST_DNS, 63)
        .after(is_answered(&query, FIRST_DNS)),
        known(
            "also where flows of endpoints that are down are reset",
            &stream,
            20_005,
            Reason::Forwarded,
            |world| {
                from_elsewhere(world, TCP4);
                world.change(TCP4, |service| service.flags |= Service::RESETS);
            },
        )
        .sent("10.0.0.2:20005", FIRST, 63),
        known("from this node to another", &here, 40_000, Reason::Forwarded, from_here)
            .sent("10.0.0.2:?", HERE, 63)
            .after(is_answered(&here, HERE)),
        known("from another node to this one", &stream, 20_005, Reason::ForwardedLocal, to_here)
            .sent(CLIENT4, FIRST, 64)
            .after(is_answered(&stream, FIRST)),
        known("from direct return to translation", &query, 0, Reason::Forwarded, |world| {
            translated(world, UDP4);
        })
        .sent("10.0.0.1:?", FIRST_DNS, 63)
        .after(is_answered(&query, FIRST_DNS)),
    ]);
}

#[test]
fn a_flow_that_was_recorded_while_its_service_became_a_translated_one_gets_a_port() {
    let query = udp(CLIENT4, DNS4);
    // With the row as it is since, and without a port: the row is written before the service is.
    let between = |world: &mut World| {
        another_way(world, UDP4.row());
        world.flow(&udp(CLIENT4, DNS4), UDP4.row(), 0, Phase::OPEN, world.now);
    };
    check(vec![
        case("over udp", &query, Reason::Forwarded)
            .with(between)
            .sent("10.0.0.1:?", FIRST_DNS, 63)
            .after(is_answered(&query, FIRST_DNS)),
    ]);
}

#[test]
fn what_was_sent_before_is_answered_where_it_came_from() {
    let query = udp(CLIENT4, DNS4);
    check(vec![
        case("to the address before", &udp(FIRST_DNS, "10.0.0.1:20005"), Reason::Replied)
            .with(move |world| {
                world.established(&query, UDP4.row(), 20_005, Phase::OPEN, world.now);
                from_elsewhere(world, UDP4);
            })
            .sent(DNS4, CLIENT4, 63),
    ]);
}

/// Another processor writes the entry of the flow at this instant, or has just done so.
fn written(world: &mut World, state: HeadState, versions: u16) {
    let entry = world.tables.flows.values_mut().flat_map(|bucket| &mut bucket.flows);
    for flow in entry.filter(|flow| flow.head.state == HeadState::LIVE) {
        (flow.head.state, flow.head.version) = (state, flow.head.version.wrapping_add(versions));
    }
}

/// Taken for no reply, it would go to the stack, which resets the connection.
#[test]
fn an_answer_that_comes_while_its_flow_is_written_is_sent_again() {
    let (stream, here) = (tcp(CLIENT4, VIP4), tcp(CLIENT4, LOCAL_VIP4));
    let answer = tcp(FIRST, "10.0.0.1:20005");
    let remote = |name, reason, state, versions| {
        let stream = stream.clone();
        case(name, &answer, reason).with(move |world| {
            world.established(&stream, TCP4.row(), 20_005, Phase::OPEN, world.now);
            written(world, state, versions);
        })
    };
    let local = |name, reason, state, versions| {
        let here = here.clone();
        case(name, &tcp(HERE, CLIENT4), reason).at(Hook::TcEgress).with(move |world| {
            world.established(&here, LOCAL4.row(), 40_000, Phase::OPEN, world.now);
            written(world, state, versions);
        })
    };
    let dropped = |world: &World| {
        let count = world.tables.service_counts.values().map(|count| count.dropped).sum::<u64>();
        assert_eq!(count, 1);
    };
    check(vec![
        remote("taken", Reason::FlowContended, HeadState::BUSY, 0).after(dropped),
        remote("taken for its next version", Reason::FlowContended, HeadState::BUSY, 1).after(dropped),
        remote("written since its place was read", Reason::Replied, HeadState::LIVE, 1)
            .sent(VIP4, CLIENT4, 63),
        remote("taken for others since", Reason::NoTranslation, HeadState::BUSY, 2),
        remote("others' since", Reason::NoTranslation, HeadState::LIVE, 2),
        remote("nobody's", Reason::NoTranslation, HeadState::FREE, 0),
        local("of this node, taken", Reason::FlowContended, HeadState::BUSY, 1).after(dropped),
        local("of this node, written", Reason::Replied, HeadState::LIVE, 1).sent(LOCAL_VIP4, CLIENT4, 64),
        local("of this node, others'", Reason::NotTranslated, HeadState::LIVE, 2),
    ]);
}

/// Its place towards the former address is nobody's, and a stranger's from there on.
#[test]
fn two_flows_never_share_a_port_after_a_change() {
    let query = udp(CLIENT4, DNS4).bytes();
    let prepare = |world: &mut World| {
        world.tables.settings.n_ports = 2;
        world.established(&udp(CLIENT4, DNS4), UDP4.row(), 20_001, Phase::OPEN, world.now);
        from_elsewhere(world, UDP4);
        world.slots(UDP4, 0);
    };
    let frames = [query.clone(), udp("192.0.2.10:40000", DNS4).bytes(), query];
    let sent = steps("two clients", Hook::XdpBalance, prepare, &frames, Reason::Forwarded, |_| {});
    let from: Vec<_> = sent.iter().map(|frame| inspect(frame).unwrap().source.to_string()).collect();
    assert_eq!(from, ["10.0.0.2:20001", "10.0.0.2:20000", "10.0.0.2:20001"]);
}

#[test]
fn what_does_not_depend_on_the_way_stays() {
    let direct = |world: &mut World| {
        world.change(TCP4, |service| (service.mode, service.track) = (Mode::DSR_L2, Track::CHANGE));
        world.changing(TCP4, 1);
        another_way(world, TCP4.row() + 1);
    };
    let sticky = |world: &mut World| {
        world.change(TCP4, |service| (service.flags, service.affinity_ticks) = (Service::AFFINITY, 500));
        world.client(addr_of("192.0.2.9"), TCP4, TCP4.row(), world.now.after(100));
        from_elsewhere(world, TCP4);
    };
    let flow = tcp(CLIENT4, VIP4);
    check(vec![
        case("a flow of direct return", &flow, Reason::Forwarded)
            .with(move |world| {
                world.flow(&flow, TCP4.row() + 1, 0, Phase::OPEN, world.ago(1));
                direct(world);
            })
            .sent(CLIENT4, VIP4, 63)
            .after(|world| assert_eq!(world.tables.endpoint_counts[&(TCP4.row() + 1)].packets, 1)),
        case("the endpoint of a client", &tcp(CLIENT4, VIP4).syn(), Reason::Forwarded).with(sticky).sent(
            "10.0.0.2:?",
            FIRST,
            63,
        ),
    ]);
}
