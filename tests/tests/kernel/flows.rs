//! Flows: what is remembered about a connection, for how long, and what makes it select an endpoint again.

use gateway_common::{
    counter::{Hook, Reason},
    endpoint::{EndpointState, NextHop},
    flow::{Flow, Phase},
    service::Mode,
};
use gateway_tests::{
    memory::NARROW,
    packet::{ACK, FIN, Packet, RST, SYN, inspect_icmp, tcp, udp},
    world::{
        ELSEWHERE, ENDPOINT_MAC, FIRST_PORT, INNER_MAC, N_PORTS, TCP4, TCP6, TIMEOUTS, UDP4, World, addr_of,
    },
};

use crate::check::{Case, case, check, check_on_host};

const VIP4: &str = "198.51.100.1:443";
const DNS4: &str = "198.51.100.1:53";
const VIP6: &str = "[2001:db8::1]:443";
const CLIENT4: &str = "192.0.2.9:40000";
const CLIENT6: &str = "[2001:db8:9::9]:40000";
const XDP_REDIRECT: i32 = 4;
const TC_REDIRECT: i32 = 7;

fn client() -> Packet {
    tcp(CLIENT4, VIP4)
}

fn query() -> Packet {
    udp(CLIENT4, DNS4)
}

/// A case whose flow exists: on the service's first endpoint, with port 20005, in this phase, silent for so long.
fn known(name: &'static str, packet: &Packet, phase: Phase, silent: u32, to: &str) -> Case {
    known_and(name, packet, (phase, silent), to, |_| {})
}

fn known_and(
    name: &'static str,
    packet: &Packet,
    (phase, silent): (Phase, u32),
    to: &str,
    and: impl Fn(&mut World) + 'static,
) -> Case {
    let flow = packet.clone();
    case(name, packet, Reason::Forwarded)
        .with(move |world| {
            let row =
                if flow.key().protocol == gateway_common::addr::Protocol::UDP { UDP4 } else { TCP4 }.row();
            world.established(&flow, row, 20_005, phase, world.ago(silent));
            and(world);
        })
        .sent("10.0.0.1:?", to, 63)
}

fn flow_of(world: &World, packet: &Packet) -> Flow {
    world.found(packet).expect("the flow is remembered")
}

const FIRST: &str = "10.0.0.10:8443";
const SECOND: &str = "10.0.0.11:8443";
const FIRST_DNS: &str = "10.0.0.10:5353";
const SECOND_DNS: &str = "10.0.0.11:5353";

#[test]
fn a_flow_stays_where_it_is() {
    let elsewhere = |world: &mut World| world.slots(TCP4, 1);
    let elsewhere_udp = |world: &mut World| world.slots(UDP4, 1);
    let draining = |world: &mut World| {
        world.slots(TCP4, 1);
        world.row(TCP4.row()).state = EndpointState::DRAINING;
    };
    let all_drain = |world: &mut World| world.state(UDP4, EndpointState::DRAINING);
    let port_kept = |world: &World| {
        let flow = flow_of(world, &client());
        assert_eq!((flow.source_port.number(), flow.expires), (20_005, world.now.after(TIMEOUTS.open)));
        assert_eq!(world.tables.live().count(), 1);
        assert_eq!(world.tables.service_counts[&TCP4.0].new_flows, 0);
    };
    check(vec![
        known("seen in this tick", &client(), Phase::OPEN, 0, FIRST).after(port_kept),
        known("seen some ticks ago", &client(), Phase::OPEN, 9, FIRST).after(port_kept),
        known_and("after its slot moved", &client(), (Phase::OPEN, 3), FIRST, elsewhere).after(port_kept),
        known_and("long silent, but not a syn", &client(), (Phase::OPEN, 5_000), FIRST, elsewhere),
        known_and("a syn that is sent again", &client().syn(), (Phase::OPENING, 3), FIRST, elsewhere),
        known_and("its endpoint drains", &client(), (Phase::OPEN, 3), FIRST, draining).after(port_kept),
        known_and("a stray syn while it drains", &client().syn(), (Phase::OPEN, 3), FIRST, draining)
            .after(port_kept),
        known_and("udp in time", &query(), (Phase::OPEN, 30), FIRST_DNS, elsewhere_udp),
        known_and("udp while all drain", &query(), (Phase::OPEN, 1), FIRST_DNS, all_drain).after(|world| {
            let flow = flow_of(world, &query());
            assert_eq!((flow.source_port.number(), flow.expires), (20_005, world.now.after(TIMEOUTS.udp)));
            assert_eq!(world.tables.service_counts[&UDP4.0].new_flows, 0);
        }),
        known_and(
            "a syn that is sent again while all drain",
            &client().syn(),
            (Phase::OPENING, 1),
            FIRST,
            |world| {
                world.state(TCP4, EndpointState::DRAINING);
            },
        )
        .after(|world| assert_eq!(world.tables.service_counts[&TCP4.0].new_flows, 0)),
        known("at tc", &client(), Phase::OPEN, 2, FIRST)
            .at(Hook::TcIngress)
            .code(TC_REDIRECT)
            .after(port_kept),
    ]);
}

#[test]
fn a_flow_selects_again() {
    let moved = |world: &mut World| world.slots(TCP4, 1);
    let moved_udp = |world: &mut World| world.slots(UDP4, 1);
    let state = |state: EndpointState| {
        move |world: &mut World| {
            world.slots(TCP4, 1);
            world.row(TCP4.row()).state = state;
        }
    };
    let is_new = |world: &World| assert_eq!(world.tables.service_counts[&TCP4.0].new_flows, 1);
    check(vec![
        known_and("a syn after a close", &client().syn(), (Phase::CLOSING, 1), SECOND, moved).after(is_new),
        known_and("a syn after a long silence", &client().syn(), (Phase::OPEN, 301), SECOND, moved)
            .after(is_new),
        known_and("a syn long after a first syn", &client().syn(), (Phase::OPENING, 6), SECOND, moved)
            .after(is_new),
        known_and("its endpoint is down", &client(), (Phase::OPEN, 1), SECOND, state(EndpointState::DOWN))
            .after(is_new),
        known_and(
            "a syn to a draining endpoint",
            &client().syn(),
            (Phase::OPENING, 1),
            SECOND,
            state(EndpointState::DRAINING),
        )
        .after(is_new),
        known_and("the row holds another endpoint", &client(), (Phase::OPEN, 1), SECOND, |world| {
            world.slots(TCP4, 1);
            world.row(TCP4.row()).generation += 1;
        })
        .after(is_new),
        known_and("the row went to another service", &client(), (Phase::OPEN, 1), SECOND, |world| {
            world.slots(TCP4, 1);
            world.row(TCP4.row()).service = 3;
        }),
        known_and("udp after a long silence", &query(), (Phase::OPEN, 31), SECOND_DNS, moved_udp),
        known_and("udp to a draining endpoint", &query(), (Phase::OPEN, 1), SECOND_DNS, |world| {
            world.slots(UDP4, 1);
            world.row(UDP4.row()).state = EndpointState::DRAINING;
        }),
    ]);
}

#[test]
fn another_slot_is_tried() {
    check(vec![
        case("its own endpoint is down", &client().syn(), Reason::Forwarded)
            .with(|world| {
                world.slots_in_turns(TCP4);
                world.row(TCP4.row()).state = EndpointState::DOWN;
            })
            .sent("10.0.0.1:?", SECOND, 63),
        case("its own endpoint drains", &client().syn(), Reason::Forwarded)
            .with(|world| {
                world.slots_in_turns(TCP4);
                world.row(TCP4.row() + 1).state = EndpointState::DRAINING;
            })
            .sent("10.0.0.1:?", FIRST, 63),
        case("all drain", &client().syn(), Reason::Forwarded)
            .with(|world| world.state(TCP4, EndpointState::DRAINING))
            .sent("10.0.0.1:?", FIRST, 63),
        case("all are down", &client().syn(), Reason::ResetSent)
            .leaves(|_| {})
            .with(|world| world.state(TCP4, EndpointState::DOWN))
            .after(|world| assert!(world.tables.flows.is_empty() && world.tables.replies.is_empty())),
        case("a flow whose endpoints are down", &client(), Reason::ResetSent).leaves(|_| {}).with(|world| {
            world.established(&client(), TCP4.row(), 20_005, Phase::OPEN, world.now);
            world.state(TCP4, EndpointState::DOWN);
        }),
    ]);
}

#[test]
fn phases_follow_the_flags() {
    let phase = |name, packet: Packet, from, to| {
        known(name, &packet, from, 0, FIRST)
            .after(move |world| assert_eq!(flow_of(world, &client()).phase, to))
    };
    let reply = |name, flags, from: Phase, to: Phase| {
        case(name, &tcp(FIRST, "10.0.0.1:20005").flags(flags), Reason::Replied)
            .with(move |world| world.established(&client(), TCP4.row(), 20_005, from, world.now))
            .sent(VIP4, CLIENT4, 63)
            .after(move |world| {
                assert_eq!(flow_of(world, &client()).phase, to);
            })
    };
    check(vec![
        phase("an ack opens", client().flags(ACK), Phase::OPENING, Phase::OPEN),
        phase("a fin closes", client().flags(FIN | ACK), Phase::OPEN, Phase::CLOSING),
        phase("a rst closes", client().flags(RST), Phase::OPEN, Phase::CLOSING),
        phase("nothing opens what is closed", client().flags(ACK), Phase::CLOSING, Phase::CLOSING),
        reply("a reply opens", SYN | ACK, Phase::OPENING, Phase::OPEN),
        reply("a reply with fin closes both directions", FIN | ACK, Phase::OPEN, Phase::CLOSING),
        reply("a reply with rst closes both directions", RST, Phase::OPENING, Phase::CLOSING),
    ]);
}

#[test]
fn an_entry_is_written_anew_under_its_port() {
    let kept = |world: &World| {
        assert_eq!(flow_of(world, &client()).source_port.number(), 20_005);
        assert_eq!(world.tables.service_counts[&TCP4.0].new_flows, 0);
        assert_eq!(world.tables.service_flows[&TCP4.0], 1);
    };
    let elsewhere = |packet: Packet| packet.macs([2, 9, 9, 9, 9, 9], [2, 8, 8, 8, 8, 8]);
    check(vec![
        case("the way back changed", &elsewhere(client()), Reason::Forwarded)
            .with(|world| world.established(&client(), TCP4.row(), 20_005, Phase::OPEN, world.ago(1)))
            .sent("10.0.0.1:20005", FIRST, 63)
            .after(move |world| {
                kept(world);
                let back = flow_of(world, &client()).next_hop;
                assert_eq!((back.mac, back.own_mac), ([2, 9, 9, 9, 9, 9], [2, 8, 8, 8, 8, 8]));
            }),
        case("it was silent for long, and nobody wanted its port", &client(), Reason::Forwarded)
            .with(|world| world.established(&client(), TCP4.row(), 20_005, Phase::OPEN, world.ago(5_000)))
            .sent("10.0.0.1:20005", FIRST, 63)
            .after(kept),
        case("its port went to another client meanwhile", &client(), Reason::Forwarded)
            .with(|world| {
                world.flow(&client(), TCP4.row(), 20_005, Phase::OPEN, world.ago(5_000));
                let other = tcp("192.0.2.77:1234", VIP4);
                world.established(&other, TCP4.row(), 20_005, Phase::OPEN, world.now);
            })
            .sent("10.0.0.1:?", FIRST, 63)
            .after(|world| {
                assert_ne!(flow_of(world, &client()).source_port.number(), 20_005);
                assert_eq!(world.tables.live().count(), 2);
            }),
    ]);
}

/// Every translation port towards the first endpoint is held by another client.
fn exhaust(world: &mut World, phase: Phase, silent: u32) {
    let other = tcp("192.0.2.77:1234", VIP4);
    let index = world.flow(&other, TCP4.row(), FIRST_PORT, phase, world.ago(silent));
    for port in FIRST_PORT..FIRST_PORT + N_PORTS {
        world.hold(&other, TCP4.row(), port, index);
    }
}

#[test]
fn ports_run_out_and_come_back() {
    let taken = |name, phase, silent, reason| {
        let taken = case(name, &client().syn(), reason).with(move |world| exhaust(world, phase, silent));
        if reason == Reason::Forwarded { taken.sent("10.0.0.1:?", FIRST, 63) } else { taken }
    };
    check(vec![
        taken("open and in time", Phase::OPEN, 300, Reason::PortsExhausted),
        taken("open and expired", Phase::OPEN, 301, Reason::Forwarded),
        taken("closing and in time", Phase::CLOSING, 60, Reason::PortsExhausted),
        taken("closing and expired", Phase::CLOSING, 61, Reason::Forwarded),
        taken("opening and in time", Phase::OPENING, 5, Reason::PortsExhausted),
        taken("opening and expired", Phase::OPENING, 6, Reason::Forwarded),
        case("no translation ports at all", &client().syn(), Reason::PortsExhausted)
            .with(|world| world.tables.settings.n_ports = 0)
            .after(|world| assert_eq!(world.tables.live().count(), 0)),
        case("a single port", &client().syn(), Reason::Forwarded)
            .with(|world| world.tables.settings.n_ports = 1)
            .sent("10.0.0.1:20000", FIRST, 63),
    ]);
}

#[test]
fn what_the_way_does_not_take_is_told_what_fits() {
    let too_big = |name, bytes: usize, mode| {
        let packet = client().payload(&vec![7; bytes]);
        let mut case = case(name, &packet, Reason::TooBigAnswered).leaves(move |frame| {
            let fits = if mode == Mode::NAT { 1_300 } else { 1_280 };
            assert_eq!(inspect_icmp(frame).unwrap().message, (3, 4, fits));
        });
        case.next_hop = Some(NextHop { interface: NARROW, mac: [3; 6], own_mac: [4; 6] });
        case.with(move |world| {
            world.change(TCP4, |service| service.mode = mode);
            world.row(TCP4.row()).next_hop = NextHop::UNKNOWN;
        })
    };
    // What the kernel's tables say is no test's to choose.
    check_on_host(&[
        too_big("translated", 1_261, Mode::NAT),
        too_big("with what the tunnel puts in front", 1_241, Mode::DSR_IPIP),
    ]);
}

#[test]
fn time_to_live_and_next_hops() {
    let via = |interface| {
        move |world: &mut World| {
            world.row(TCP4.row()).next_hop = NextHop { interface, mac: ENDPOINT_MAC, own_mac: INNER_MAC };
        }
    };
    let reply = |ttl| tcp(FIRST, "10.0.0.1:20005").ttl(ttl);
    let open = |world: &mut World| world.established(&client(), TCP4.row(), 20_005, Phase::OPEN, world.now);
    let mut routed = case("the routing table knows the way", &client(), Reason::Forwarded)
        .with(via(0))
        .sent("10.0.0.1:?", FIRST, 63)
        .macs([4; 6], [3; 6])
        .code(XDP_REDIRECT);
    routed.next_hop = Some(NextHop { interface: ELSEWHERE, mac: [3; 6], own_mac: [4; 6] });
    check(vec![
        case("a last hop", &client().ttl(1), Reason::TtlExpired),
        case("no hop", &client().ttl(0), Reason::TtlExpired),
        case("one hop", &client().ttl(2), Reason::Forwarded).sent("10.0.0.1:?", FIRST, 1),
        case("a last hop over v6", &tcp(CLIENT6, VIP6).ttl(1), Reason::TtlExpired),
        case("a reply's last hop", &reply(1), Reason::TtlExpired).with(open),
        case("a reply's one hop", &reply(2), Reason::Replied).with(open).sent(VIP4, CLIENT4, 1),
        case("another interface at xdp", &client(), Reason::Forwarded)
            .with(via(ELSEWHERE))
            .sent("10.0.0.1:?", FIRST, 63)
            .macs(INNER_MAC, ENDPOINT_MAC)
            .code(XDP_REDIRECT),
        case("at tc", &client(), Reason::Forwarded)
            .at(Hook::TcIngress)
            .with(via(ELSEWHERE))
            .sent("10.0.0.1:?", FIRST, 63)
            .macs(INNER_MAC, ENDPOINT_MAC)
            .code(TC_REDIRECT),
        case("no way to the endpoint", &client(), Reason::NoNextHop).with(|world| {
            let row = world.row(TCP4.row());
            // TEST-NET-3 by an address that this node does not have: no routing table has a way.
            (row.next_hop, row.addr) = (NextHop::UNKNOWN, addr_of("255.255.255.255"));
        }),
        case("no way over v6", &tcp(CLIENT6, VIP6), Reason::NoNextHop)
            .with(|world| world.row(TCP6.row()).next_hop = NextHop::UNKNOWN),
        case("no way back to the client", &reply(64), Reason::NoNextHop).with(move |world| {
            open(world);
            let flows = world.tables.flows.values_mut().flat_map(|bucket| &mut bucket.flows);
            flows.for_each(|flow| flow.next_hop = NextHop::UNKNOWN);
        }),
        routed,
    ]);
}
