//! Packets that cannot go on: their senders are told so, by the right message, and not without end.

use gateway_common::{
    answer::Answers,
    counter::{Hook, Reason},
    endpoint::EndpointState,
    flow::Phase,
    service::{Mode, Service, Track},
};
use gateway_tests::{
    packet::{ACK, CLIENT_MAC, FIN, NODE_MAC, Packet, RST, SYN, inspect_icmp, tcp, udp},
    world::{Id, TCP4, TCP6, UDP4, UDP6, World},
};

use crate::check::{Case, case, check};

const VIP4: &str = "198.51.100.1:443";
const DNS4: &str = "198.51.100.1:53";
const VIP6: &str = "[2001:db8::1]:443";
const DNS6: &str = "[2001:db8::1]:53";
const CLIENT4: &str = "192.0.2.9:40000";
const CLIENT6: &str = "[2001:db8:9::9]:40000";

/// Codes of a packet that goes back where it came from.
const BACK: [(Hook, i32); 2] = [(Hook::XdpBalance, 3), (Hook::TcIngress, 7)];

fn all_down(world: &mut World) {
    for id in [TCP4, UDP4, TCP6, UDP6] {
        world.state(id, EndpointState::DOWN);
    }
}

/// The numbers of a reset: sequence, acknowledgment, flags.
fn numbers(frame: &[u8]) -> (u32, u32, u8) {
    let at = if frame[12] == 0x08 { 34 } else { 54 };
    let word = |at: usize| u32::from_be_bytes(frame[at..at + 4].try_into().unwrap());
    assert_eq!((frame[at + 12], word(at + 16) & 0xffff), (0x50, 0), "no options, nothing urgent");
    (word(at + 4), word(at + 8), frame[at + 13])
}

/// A packet of TCP whose sequence number is 1 and acknowledgment 2 is answered with these numbers.
fn reset(name: &'static str, packet: &Packet, wanted: (u32, u32, u8)) -> Vec<Case> {
    let key = packet.key();
    let v6 = !key.source.is_v4();
    let len = packet.bytes().len();
    let make = |(hook, code): (Hook, i32)| {
        let (from, to) = if v6 { (VIP6, CLIENT6) } else { (VIP4, CLIENT4) };
        let of = if v6 { TCP6 } else { TCP4 };
        case(name, packet, Reason::ResetSent)
            .at(hook)
            .with(all_down)
            .sent(from, to, 64)
            .macs(NODE_MAC, CLIENT_MAC)
            .leaves(move |frame| {
                assert_eq!(numbers(frame), wanted);
                assert_eq!(
                    frame.len(),
                    if v6 {
                        74
                    } else if len < 60 {
                        54
                    } else {
                        60
                    }
                );
                assert!(
                    v6 || frame[54..].iter().all(|byte| *byte == 0),
                    "nothing of the sender's behind the end"
                );
            })
            .code(code)
            .after(move |world| {
                assert_eq!(world.tables.answers, Answers { tick: world.now, sent: 1, echoes: 0 });
                assert_eq!(world.tables.service_counts[&of.0].dropped, 1);
            })
    };
    BACK.map(make).into()
}

#[test]
fn tcp_without_endpoints_is_reset() {
    let mut cases = Vec::new();
    for (client, vip) in [(CLIENT4, VIP4), (CLIENT6, VIP6)] {
        let packet = || tcp(client, vip).payload(b"");
        cases.extend(reset("a syn", &packet().syn(), (0, 2, RST | ACK)));
        cases.extend(reset("a syn with data", &packet().syn().payload(b"12345"), (0, 7, RST | ACK)));
        cases.extend(reset("data", &packet().payload(b"12345"), (2, 0, RST)));
        cases.extend(reset("data and options", &packet().payload(b"12345").tcp_options(10), (2, 0, RST)));
        cases.extend(reset("a fin", &packet().flags(FIN | ACK), (2, 0, RST)));
        cases.extend(reset("a fin without ack", &packet().flags(FIN).tcp_options(3), (0, 2, RST | ACK)));
        cases.extend(reset("syn and fin", &packet().flags(SYN | FIN).payload(b"1"), (0, 4, RST | ACK)));
    }
    cases.extend(reset("ip options", &tcp(CLIENT4, VIP4).ip_options(10), (2, 0, RST)));
    check(cases);
}

/// A packet is answered with this message about it, which quotes so many bytes.
fn told(
    name: &'static str,
    packet: &Packet,
    reason: Reason,
    message: (u8, u8, u32),
    quoted: usize,
) -> Vec<Case> {
    let frame = packet.bytes();
    let make = |(hook, code): (Hook, i32)| {
        let frame = frame.clone();
        let key = packet.key();
        case(name, packet, reason)
            .at(hook)
            .leaves(move |sent| {
                let seen = inspect_icmp(sent).unwrap();
                assert_eq!(seen.message, message);
                assert_eq!(std::net::IpAddr::from(key.destination), seen.source);
                assert_eq!(std::net::IpAddr::from(key.source), seen.destination);
                assert_eq!((seen.ttl, seen.macs), (64, (NODE_MAC, CLIENT_MAC)));
                assert_eq!(seen.payload.len(), quoted);
                assert_eq!(seen.payload, frame[14..14 + quoted], "what it quotes is as it came");
                let headers = if key.source.is_v4() { 28 } else { 48 };
                assert_eq!(sent.len(), 14 + headers + quoted);
            })
            .code(code)
    };
    BACK.map(make).into()
}

#[test]
fn udp_without_endpoints_is_unreachable() {
    let mut cases = Vec::new();
    for (client, dns, message, headers, most) in
        [(CLIENT4, DNS4, (3, 3, 0), 28, 548), (CLIENT6, DNS6, (1, 4, 0), 48, 1_232)]
    {
        for payload in [0, 1, 4, 7, 8, 16, 19, 20, most - headers, most - headers + 1, 1_400] {
            let packet = udp(client, dns).payload(&vec![0x5a; payload]);
            let quoted = (headers + payload).min(most) & !3;
            for case in told("a datagram", &packet, Reason::UnreachableSent, message, quoted) {
                cases.push(case.with(all_down));
            }
        }
    }
    let options = udp(CLIENT4, DNS4).ip_options(10).payload(b"");
    for case in told("ip options", &options, Reason::UnreachableSent, (3, 3, 0), 68) {
        cases.push(case.with(all_down));
    }
    check(cases);
}

#[test]
fn what_is_too_big_is_told_what_fits() {
    let mut cases = Vec::new();
    let long = [7; 1_400];
    let flows = [
        (tcp(CLIENT4, VIP4).payload(&long), TCP4, 548, (3, 4)),
        (udp(CLIENT4, DNS4).payload(&long), UDP4, 548, (3, 4)),
        (tcp(CLIENT6, VIP6).payload(&long), TCP6, 1_232, (2, 0)),
        (udp(CLIENT6, DNS6).payload(&long), UDP6, 1_232, (2, 0)),
    ];
    for (packet, id, quoted, (kind, code)) in flows {
        let v6 = !packet.key().source.is_v4();
        let outer = if v6 { 40 } else { 20 };
        let modes = [(Mode::NAT, 0), (Mode::DSR_L2, 0), (Mode::DSR_IPIP, outer), (Mode::DSR_GUE, outer + 8)];
        for (mode, extra) in modes {
            let message = (kind, code, 1_400 - extra);
            for case in told("a long packet", &packet, Reason::TooBigAnswered, message, quoted) {
                cases.push(case.with(move |world| {
                    world.change(id, |service| {
                        service.mode = mode;
                        service.track = if mode == Mode::NAT { Track::ALWAYS } else { Track::CHANGE };
                    });
                    world.row(id.row()).mtu = 1_400;
                }));
            }
        }
    }
    check(cases);
}

/// Dropped under its own reason, not answered.
fn silent(name: &'static str, packet: &Packet, reason: Reason) -> Case {
    case(name, packet, reason).with(all_down).code(1).after(|world| assert_eq!(world.tables.answers.sent, 0))
}

#[test]
fn some_are_not_answered() {
    let [a, b, c, d, e, f] = CLIENT_MAC;
    check(vec![
        silent("a reset", &tcp(CLIENT4, VIP4).flags(RST), Reason::NoEndpoint),
        silent("a reset over v6", &tcp(CLIENT6, VIP6).flags(RST | ACK), Reason::NoEndpoint),
        silent("from a multicast address", &udp("224.0.0.9:7", DNS4), Reason::NoEndpoint),
        silent("from the broadcast address", &tcp("255.255.255.255:7", VIP4), Reason::NoEndpoint),
        silent("from loopback", &udp("127.0.0.1:7", DNS4), Reason::NoEndpoint),
        silent("from nobody", &udp("0.0.0.0:7", DNS4), Reason::NoEndpoint),
        silent("from nobody over v6", &udp("[::]:7", DNS6), Reason::NoEndpoint),
        silent("from loopback over v6", &udp("[::1]:7", DNS6), Reason::NoEndpoint),
        silent("from a multicast address over v6", &udp("[ff02::1]:7", DNS6), Reason::NoEndpoint),
        silent(
            "sent to many",
            &udp(CLIENT4, DNS4).macs([a, b, c, d, e, f], [0x01, 0, 0x5e, 0, 0, 1]),
            Reason::NoEndpoint,
        ),
    ]);
}

#[test]
fn a_tick_has_so_many_answers() {
    let used = |sent: u32, ticks: u32| {
        move |world: &mut World| {
            all_down(world);
            world.tables.answers = Answers { tick: world.ago(ticks), sent, echoes: 0 };
        }
    };
    check(vec![
        case("one is left", &tcp(CLIENT4, VIP4), Reason::ResetSent)
            .with(used(Answers::PER_TICK - 1, 0))
            .sent(VIP4, CLIENT4, 64)
            .after(|world| assert_eq!(world.tables.answers.sent, Answers::PER_TICK)),
        case("none is left", &tcp(CLIENT4, VIP4), Reason::NoEndpoint)
            .with(used(Answers::PER_TICK, 0))
            .after(|world| assert_eq!(world.tables.answers.sent, Answers::PER_TICK)),
        case("none is left for what is too big", &tcp(CLIENT4, VIP4), Reason::TooBig).with(|world| {
            world.tables.answers = Answers { tick: world.now, sent: Answers::PER_TICK, echoes: 0 };
            world.row(TCP4.row()).mtu = 40;
        }),
        case("the next tick", &udp(CLIENT6, DNS6), Reason::UnreachableSent)
            .with(used(Answers::PER_TICK, 1))
            .leaves(|frame| assert_eq!(inspect_icmp(frame).unwrap().message, (1, 4, 0)))
            .after(|world| assert_eq!(world.tables.answers, Answers { tick: world.now, sent: 1, echoes: 0 })),
    ]);
}

/// Services that want connections reset whose endpoint is down.
fn strict(world: &mut World, mode: Mode, track: Track) {
    for id in [TCP4, UDP4, TCP6] {
        world.change(id, |service| {
            (service.mode, service.track) = (mode, track);
            service.flags |= Service::RESETS;
        });
    }
}

#[test]
fn a_connection_whose_endpoint_is_down_is_reset_where_the_service_says_so() {
    let mut cases = Vec::new();
    for (client, vip, id) in [(CLIENT4, VIP4, TCP4), (CLIENT6, VIP6, TCP6)] {
        let open = tcp(client, vip);
        // The first endpoint has the flow and is down; every slot leads to the second.
        let lost = move |mode: Mode, track: Track| {
            let open = open.clone();
            move |world: &mut World| {
                let port = if mode == Mode::NAT { 20_005 } else { 0 };
                if mode == Mode::NAT {
                    world.established(&open, id.row(), port, Phase::OPEN, world.now);
                } else {
                    world.flow(&open, id.row(), port, Phase::OPEN, world.now);
                }
                strict(world, mode, track);
                world.slots(id, 1);
                world.row(id.row()).state = EndpointState::DOWN;
            }
        };
        for (mode, track) in [
            (Mode::NAT, Track::ALWAYS),
            (Mode::DSR_L2, Track::ALWAYS),
            (Mode::DSR_L2, Track::CHANGE),
            (Mode::DSR_IPIP, Track::CHANGE),
        ] {
            let packet = tcp(client, vip).payload(b"12345");
            cases.push(
                case("an open connection", &packet, Reason::ResetSent)
                    .with(lost(mode, track))
                    .leaves(|frame| assert_eq!(numbers(frame), (2, 0, RST)))
                    .after(move |world| assert_eq!(world.tables.endpoint_counts.len(), 0)),
            );
            cases.push(
                case("a syn begins anew elsewhere", &tcp(client, vip).syn(), Reason::Forwarded)
                    .with(lost(mode, track))
                    .leaves(|_| {})
                    .after(move |world| assert_eq!(world.tables.endpoint_counts[&(id.row() + 1)].packets, 1)),
            );
        }
        let gone = lost(Mode::NAT, Track::ALWAYS);
        cases.push(
            case("a connection whose endpoint's row is another's", &tcp(client, vip), Reason::ResetSent)
                .with(move |world| {
                    gone(world);
                    let row = world.row(id.row());
                    (row.state, row.generation) = (EndpointState::ACTIVE, 8);
                })
                .leaves(|_| {}),
        );
        let draining = lost(Mode::NAT, Track::ALWAYS);
        cases.push(
            case("draining endpoints keep theirs", &tcp(client, vip), Reason::Forwarded)
                .with(move |world| {
                    draining(world);
                    world.row(id.row()).state = EndpointState::DRAINING;
                })
                .leaves(|_| {})
                .after(move |world| assert_eq!(world.tables.endpoint_counts[&id.row()].packets, 1)),
        );
        let indifferent = lost(Mode::NAT, Track::ALWAYS);
        cases.push(
            case("not where the service does not say so", &tcp(client, vip), Reason::Forwarded)
                .with(move |world| {
                    indifferent(world);
                    world.change(id, |service| service.flags = 0);
                })
                .leaves(|_| {}),
        );
    }
    check(cases);
}

#[test]
fn a_connection_that_is_not_remembered_is_where_its_slot_was() {
    let down = |former_is_down: bool| {
        move |world: &mut World| {
            strict(world, Mode::DSR_L2, Track::CHANGE);
            // Slots change from the first endpoint to the second.
            for chunk in world.tables.chunks.values_mut() {
                let slots = chunk.slots.iter_mut().filter(|slot| slot.endpoint != 999);
                slots.for_each(|slot| (slot.endpoint, slot.former) = (1, 0));
            }
            let row = TCP4.row() + u32::from(!former_is_down);
            world.row(row).state = EndpointState::DOWN;
        }
    };
    check(vec![
        case("it was with one that is down", &tcp(CLIENT4, VIP4), Reason::ResetSent)
            .with(down(true))
            .leaves(|frame| assert_eq!(numbers(frame), (2, 0, RST))),
        case("it was with one that is up", &tcp(CLIENT4, VIP4), Reason::Forwarded)
            .with(down(false))
            .leaves(|_| {}),
        case("its slot leads to one that is down", &tcp(CLIENT4, VIP4), Reason::ResetSent)
            .with(|world| {
                strict(world, Mode::DSR_L2, Track::CHANGE);
                world.row(TCP4.row()).state = EndpointState::DOWN;
            })
            .leaves(|_| {}),
        case("of UDP nothing is reset", &udp(CLIENT4, DNS4), Reason::Forwarded)
            .with(|world| {
                strict(world, Mode::DSR_L2, Track::CHANGE);
                world.slots_in_turns(UDP4);
                world.row(UDP4.row()).state = EndpointState::DOWN;
            })
            .leaves(|_| {}),
    ]);
}

#[test]
fn what_draining_endpoints_still_take_is_not_answered() {
    let draining = |id: Id| move |world: &mut World| world.state(id, EndpointState::DRAINING);
    check(vec![
        case("all endpoints drain", &tcp(CLIENT4, VIP4).syn(), Reason::Forwarded).with(draining(TCP4)).sent(
            "10.0.0.1:?",
            "10.0.0.10:8443",
            63,
        ),
    ]);
}
