//! What packets tell of endpoints, how many flows endpoints have, and entries that are swept when they are over.

use std::time::Duration;

use gateway_common::{
    addr::Port,
    counter::{Hook, Reason},
    endpoint::{Endpoint, EndpointState},
    flow::{Phase, Tick},
    health::EndpointHealth,
    service::{Mode, Service, Track},
};
use gateway_tests::{
    packet::{ACK, FIN, Packet, RST, SYN, tcp, udp},
    world::{Id, LOCAL4, LOCAL6, TCP4, TCP6, UDP4, World, addr_of},
};

use crate::check::{case, check, steps, swept, timed};

const VIP4: &str = "198.51.100.1:443";
const DNS4: &str = "198.51.100.1:53";
const LOCAL_VIP4: &str = "198.51.100.2:443";
const LOCAL_VIP6: &str = "[2001:db8::2]:443";
const VIP6: &str = "[2001:db8::1]:443";
const CLIENT4: &str = "192.0.2.9:40000";
const CLIENT6: &str = "[2001:db8:9::9]:40000";
const NODE4: &str = "10.0.0.1:20005";
const FIRST: &str = "10.0.0.10:8443";

fn health(world: &World, row: u32) -> EndpointHealth {
    world.tables.endpoint_health.get(&row).copied().unwrap_or_default()
}

fn flows(world: &World, row: u32) -> u64 {
    world.tables.endpoint_flows.get(&row).copied().unwrap_or_default()
}

#[test]
fn packets_tell_of_their_endpoints() {
    let known = |phase: Phase| {
        move |world: &mut World| world.established(&tcp(CLIENT4, VIP4), TCP4.row(), 20_005, phase, world.now)
    };
    let reply = |flags: u8| tcp(FIRST, NODE4).flags(flags);
    let told = |name, packet: Packet, phase, wanted: EndpointHealth| {
        let case = case(name, &packet, Reason::Replied).with(known(phase)).sent(VIP4, CLIENT4, 63);
        case.after(move |world| assert_eq!(health(world, TCP4.row()), wanted))
    };
    let nothing = EndpointHealth::default();
    check(vec![
        case("a SYN once more", &tcp(CLIENT4, VIP4).syn(), Reason::Forwarded)
            .with(known(Phase::OPENING))
            .sent(NODE4, FIRST, 63)
            .after(|world| assert_eq!(health(world, TCP4.row()).syn_retransmits, 1)),
        case("a SYN for the first time", &tcp(CLIENT4, VIP4).syn(), Reason::Forwarded)
            .sent("10.0.0.1:?", FIRST, 63)
            .after(move |world| assert_eq!(health(world, TCP4.row()), nothing)),
        case("what follows a SYN", &tcp(CLIENT4, VIP4), Reason::Forwarded)
            .with(known(Phase::OPENING))
            .sent(NODE4, FIRST, 63)
            .after(move |world| assert_eq!(health(world, TCP4.row()), nothing)),
        told("refused", reply(RST | ACK), Phase::OPENING, EndpointHealth { refused: 1, ..nothing }),
        told("reset", reply(RST), Phase::OPEN, EndpointHealth { resets: 1, ..nothing }),
        told("reset after its end", reply(RST), Phase::CLOSING, nothing),
        told("ended", reply(FIN | ACK), Phase::OPEN, nothing),
        told("accepted", reply(SYN | ACK), Phase::OPENING, nothing),
        case(
            "a SYN once more, of a flow that is remembered while its slot changes",
            &tcp(CLIENT4, VIP4).syn(),
            Reason::Forwarded,
        )
        .with(|world| {
            world.change(TCP4, |service| {
                service.track = Track::CHANGE;
                service.mode = Mode::DSR_L2;
            });
            world.flow(&tcp(CLIENT4, VIP4), TCP4.row() + 1, 0, Phase::OPENING, world.now);
        })
        .leaves(|_| {})
        .after(|world| assert_eq!(health(world, TCP4.row() + 1).syn_retransmits, 1)),
    ]);
}

/// What is remembered of a client is no connection: its next SYN is not one that came once more.
#[test]
fn clients_of_endpoints_that_drain_send_nothing_twice() {
    for mode in [Mode::NAT, Mode::DSR_L2] {
        steps(
            "the next connection of a client",
            Hook::XdpBalance,
            move |world| {
                world.state(TCP4, EndpointState::DRAINING);
                world.change(TCP4, |service| {
                    (service.flags, service.affinity_ticks) = (Service::AFFINITY, 40);
                    (service.mode, service.track) = (mode, Track::ALWAYS);
                });
            },
            &[tcp(CLIENT4, VIP4).syn().bytes(), tcp("192.0.2.9:40001", VIP4).syn().bytes()],
            Reason::Forwarded,
            |world| {
                assert_eq!(world.tables.live().count(), 3, "the client and two flows");
                assert!((0..2).all(|nth| health(world, TCP4.row() + nth).syn_retransmits == 0));
            },
        );
    }
}

/// What the answers of endpoints on this node tell is seen where they leave.
#[test]
fn packets_of_endpoints_on_this_node_tell_of_them() {
    let nothing = EndpointHealth::default();
    let mut cases = Vec::new();
    for (client, vip, endpoint, id) in
        [(CLIENT4, LOCAL_VIP4, "10.0.0.1:9000", LOCAL4), (CLIENT6, LOCAL_VIP6, "[fd00::1]:9000", LOCAL6)]
    {
        let known = move |phase: Phase| {
            move |world: &mut World| {
                world.established(&tcp(client, vip), id.row(), 40_000, phase, world.now);
            }
        };
        let told = |name, flags: u8, phase, wanted: EndpointHealth| {
            case(name, &tcp(endpoint, client).flags(flags), Reason::Replied)
                .at(Hook::TcEgress)
                .with(known(phase))
                .sent(vip, client, 64)
                .after(move |world| assert_eq!(health(world, id.row()), wanted))
        };
        cases.extend([
            told("refused", RST | ACK, Phase::OPENING, EndpointHealth { refused: 1, ..nothing }),
            told("reset", RST, Phase::OPEN, EndpointHealth { resets: 1, ..nothing }),
            told("reset after its end", RST, Phase::CLOSING, nothing),
            told("ended", FIN | ACK, Phase::OPEN, nothing),
            told("accepted", SYN | ACK, Phase::OPENING, nothing),
            case("a SYN once more", &tcp(client, vip).syn(), Reason::ForwardedLocal)
                .with(known(Phase::OPENING))
                .sent(client, endpoint, 64)
                .after(move |world| assert_eq!(health(world, id.row()).syn_retransmits, 1)),
            // With direct return its packets carry the virtual address from the start, and are nobody's flow.
            case("refused, of direct return", &tcp(vip, client).flags(RST | ACK), Reason::NotTranslated)
                .at(Hook::TcEgress)
                .with(move |world| {
                    world.change(id, |service| service.mode = Mode::DSR_L2);
                    world.flow(&tcp(client, vip), id.row(), 0, Phase::OPENING, world.now);
                })
                .after(move |world| assert_eq!(health(world, id.row()), nothing)),
        ]);
    }
    check(cases);
}

/// Connections, each by itself, with so much time between SYN and answer: what is known of the endpoint of those that were
/// timed. Nothing for those who may not.
fn handshakes(
    vip: &str,
    row: u32,
    answer: impl Fn(&str) -> (Hook, Packet),
    pause: Duration,
) -> Option<EndpointHealth> {
    let mut seen = EndpointHealth::default();
    // One connection of eight: with sixty-four the chance of none is one in 5,000.
    for host in 1..=64 {
        let client = if vip.starts_with('[') {
            format!("[2001:db8:9::{host:x}]:40000")
        } else {
            format!("192.0.2.{host}:40000")
        };
        let prepare = |world: &mut World| world.tables.settings.n_ports = 1;
        let (hook, answer) = answer(&client);
        let frames = [(Hook::XdpBalance, tcp(&client, vip).syn().bytes()), (hook, answer.bytes())];
        let health = timed(prepare, &frames, pause)?;
        if let Some(one) = health.get(&row) {
            seen = seen.and(one);
        }
        if seen.handshakes >= 2 {
            break;
        }
    }
    Some(seen)
}

/// A SYN that a service with `track: change` remembers comes once more, while another connection waits for its answer.
#[test]
fn another_service_s_syn_ends_no_handshake() {
    let pause = Duration::from_millis(1);
    let port = format!("10.0.0.1:{}", gateway_tests::world::FIRST_PORT);
    let prepare = |world: &mut World| {
        world.tables.settings.n_ports = 1;
        world.change(TCP6, |service| (service.mode, service.track) = (Mode::DSR_L2, Track::CHANGE));
        world.changing(TCP6, 1);
        world.flow(&tcp(CLIENT6, VIP6), TCP6.row(), 0, Phase::OPENING, world.now);
    };
    let mut timed_ones = 0;
    for host in 1..60 {
        let frames = [
            tcp(&format!("192.0.2.{host}:40000"), VIP4).syn().bytes(),
            tcp(CLIENT6, VIP6).syn().bytes(),
            tcp(FIRST, &port).flags(SYN | ACK).bytes(),
        ];
        let frames = frames.map(|frame| (Hook::XdpBalance, frame));
        let Some(health) = timed(prepare, &frames, pause) else { return };
        assert_eq!(health[&TCP6.row()].syn_retransmits, 1);
        timed_ones += health.get(&TCP4.row()).map_or(0, |seen| seen.handshakes);
    }
    assert!(timed_ones > 0, "one in eight is timed");
}

#[test]
fn handshakes_are_timed_by_sample() {
    let pause = Duration::from_millis(20);
    let port = format!("10.0.0.1:{}", gateway_tests::world::FIRST_PORT);
    let remote =
        handshakes(VIP4, TCP4.row(), |_| (Hook::XdpBalance, tcp(FIRST, &port).flags(SYN | ACK)), pause);
    let local = |vip, id: Id, endpoint: &'static str| {
        let answer = move |client: &str| (Hook::TcEgress, tcp(endpoint, client).flags(SYN | ACK));
        handshakes(vip, id.row(), answer, pause)
    };
    let local4 = local(LOCAL_VIP4, LOCAL4, "10.0.0.1:9000");
    let local6 = local(LOCAL_VIP6, LOCAL6, "[fd00::1]:9000");
    for (what, seen) in [("remote", remote), ("on this node", local4), ("on this node, v6", local6)] {
        let Some(seen) = seen else { return };
        assert!(seen.handshakes >= 1, "{what}: {seen:?}");
        let average = Duration::from_micros(seen.handshake_us / seen.handshakes);
        assert!((pause..pause * 20).contains(&average), "{what}: {average:?}");
    }
}

#[test]
fn endpoints_have_as_many_flows_as_the_table_says() {
    let (t4, t6) = (tcp(CLIENT4, VIP4), tcp(CLIENT6, VIP6));
    let count = |row: u32, n: u64| move |world: &World| assert_eq!(flows(world, row), n);
    check(vec![
        case("a new flow", &tcp(CLIENT4, VIP4).syn(), Reason::Forwarded)
            .sent("10.0.0.1:?", FIRST, 63)
            .after(count(TCP4.row(), 1)),
        case("one that is known", &t4, Reason::Forwarded)
            .with(|world| world.established(&tcp(CLIENT4, VIP4), TCP4.row(), 20_005, Phase::OPEN, world.now))
            .sent(NODE4, FIRST, 63)
            .after(count(TCP4.row(), 1)),
        case("one whose endpoint is down goes to another", &t6, Reason::Forwarded)
            .with(|world| {
                world.established(&tcp(CLIENT6, VIP6), TCP6.row() + 1, 20_005, Phase::OPEN, world.now);
                world.row(TCP6.row() + 1).state = EndpointState::DOWN;
            })
            .sent("[fd00::1]:?", "[fd00::10]:8443", 63)
            .after(|world| assert_eq!((flows(world, TCP6.row()), flows(world, TCP6.row() + 1)), (1, 0))),
        case("what is over makes room", &tcp(CLIENT4, VIP4).syn(), Reason::Forwarded)
            .with(|world| {
                let over = world.ago(3);
                world.crowd(&tcp(CLIENT4, VIP4), UDP4.0, over);
            })
            .sent("10.0.0.1:?", FIRST, 63)
            .after(|world| {
                let live = world.tables.live().filter(|flow| flow.client_port != Port::NONE);
                let mut rows: Vec<u32> = live.map(|flow| flow.endpoint).collect();
                rows.sort_unstable();
                assert_eq!(rows, [TCP4.row(), UDP4.row(), UDP4.row()]);
                assert_eq!([TCP4, UDP4].map(|id| flows(world, id.row())), [1, 2]);
            }),
    ]);
}

/// A connection of a client that was last seen then.
fn open(world: &mut World, client: &str, phase: Phase, seen: Tick) {
    world.established(&tcp(client, VIP4), TCP4.row(), 20_000, phase, seen);
}

fn timeouts(world: &World) -> (u32, u32, u32) {
    let settings = &world.tables.settings;
    (settings.opening_ticks, settings.open_ticks, settings.udp_ticks)
}

#[test]
fn entries_that_are_over_are_swept() {
    swept(
        "nothing is over",
        |world| open(world, CLIENT4, Phase::OPEN, world.now),
        [0, 0],
        |world| {
            assert_eq!((flows(world, TCP4.row()), world.tables.service_flows[&TCP4.0]), (1, 1));
        },
    );
    swept(
        "a connection that never was open",
        |world| {
            let (opening, ..) = timeouts(world);
            open(world, CLIENT4, Phase::OPENING, world.ago(opening + 1));
        },
        [1, 0],
        |world| {
            assert!(world.tables.live().next().is_none() && world.tables.replies.is_empty());
            assert!(world.tables.service_flows.is_empty() && world.tables.endpoint_flows.is_empty());
        },
    );
    swept(
        "an open one may go on after a long silence",
        |world| {
            let (_, open_ticks, _) = timeouts(world);
            open(world, CLIENT4, Phase::OPEN, world.ago(open_ticks + 1));
        },
        [0, 0],
        |world| assert_eq!(flows(world, TCP4.row()), 1),
    );
    swept(
        "and not after twice as long",
        |world| {
            let (_, open_ticks, _) = timeouts(world);
            open(world, CLIENT4, Phase::OPEN, world.ago(2 * open_ticks + 1));
        },
        [1, 0],
        |world| assert!(world.tables.service_flows.is_empty()),
    );
}

#[test]
fn entries_whose_endpoint_left_are_swept() {
    let left = |name: &str, places: u32, change: fn(&mut Endpoint)| {
        swept(
            name,
            |world| {
                open(world, CLIENT4, Phase::OPEN, world.now);
                change(world.row(TCP4.row()));
            },
            [1, places],
            |world| {
                assert!(world.tables.live().next().is_none() && world.tables.replies.is_empty(), "{name}");
                assert!(world.tables.service_flows.is_empty() && world.tables.endpoint_flows.is_empty());
            },
        );
    };
    // Where its address is forgotten, the place for its replies is found by itself.
    left("its row is nobody's", 1, |row| {
        *row = Endpoint { generation: row.generation, service: TCP4.0, ..Endpoint::default() };
    });
    left("its row is another endpoint's", 0, |row| row.generation += 1);
    left("its row is another service's", 0, |row| row.service = UDP4.0);
    swept(
        "its endpoint is down, or reached on another way",
        |world| {
            open(world, CLIENT4, Phase::OPEN, world.now);
            world.row(TCP4.row()).state = EndpointState::DOWN;
            world.row(TCP4.row()).generation += Endpoint::OWNER + 1;
        },
        [0, 0],
        |world| assert_eq!(flows(world, TCP4.row()), 1),
    );
}

#[test]
fn other_entries_are_swept() {
    swept(
        "datagrams",
        |world| {
            let (_, _, udp_ticks) = timeouts(world);
            let seen = world.ago(udp_ticks + 1);
            world.established(&udp(CLIENT4, DNS4), UDP4.row(), 20_005, Phase::OPEN, seen);
        },
        [1, 0],
        |world| assert!(world.tables.replies.is_empty()),
    );
    swept(
        "displaced ones, which are counted so",
        |world| {
            let (opening, ..) = timeouts(world);
            world.crowd(&tcp(CLIENT4, VIP4), UDP4.0, world.now.after(10));
            open(world, CLIENT4, Phase::OPENING, world.ago(opening + 1));
        },
        [1, 0],
        |world| {
            assert_eq!(world.n_displaced(&tcp(CLIENT4, VIP4)), [0, 0]);
            assert_eq!(world.tables.service_flows.get(&TCP4.0), None);
        },
    );
}

#[test]
fn places_for_replies_that_lead_nowhere_are_swept() {
    let over = |world: &mut World| {
        let (opening, ..) = timeouts(world);
        open(world, CLIENT4, Phase::OPENING, world.ago(opening + 1));
    };
    swept(
        "of a row that was released",
        move |world| {
            over(world);
            *world.row(TCP4.row()) = Endpoint::default();
        },
        [1, 1],
        |world| assert!(world.tables.live().next().is_none() && world.tables.replies.is_empty()),
    );
    swept(
        "of a row that packets leave for from another address",
        move |world| {
            over(world);
            world.row(TCP4.row()).source = addr_of("10.0.0.2");
        },
        [1, 1],
        |world| assert!(world.tables.replies.is_empty()),
    );
    swept(
        "on this node",
        |world| {
            let (opening, ..) = timeouts(world);
            let flow = tcp(CLIENT4, "198.51.100.2:443");
            world.established(&flow, LOCAL4.row(), 40_000, Phase::OPENING, world.ago(opening + 1));
        },
        [1, 1],
        |world| assert!(world.tables.replies.is_empty()),
    );
    swept(
        "of an entry that is another flow's by now",
        |world| {
            open(world, CLIENT4, Phase::OPEN, world.now);
            let flow = world.tables.flows.values_mut().flat_map(|bucket| &mut bucket.flows);
            flow.for_each(|flow| flow.head.version += 1);
        },
        [0, 1],
        |world| assert_eq!(flows(world, TCP4.row()), 1),
    );
    swept(
        "and not that of a connection that is over and may go on",
        |world| {
            let (_, open_ticks, _) = timeouts(world);
            open(world, CLIENT4, Phase::OPEN, world.ago(open_ticks + 1));
        },
        [0, 0],
        |world| assert_eq!(world.tables.replies.len(), 1),
    );
}

#[test]
fn a_service_asks_the_table_no_longer_when_its_entries_are_swept() {
    let over = |world: &mut World| {
        world.change(TCP4, |service| service.track = Track::CHANGE);
        let seen = world.ago(world.tables.settings.opening_ticks + 1);
        world.flow(&tcp("192.0.2.77:7", VIP4), TCP4.row() + 1, 0, Phase::OPENING, seen);
    };
    swept("the last entry of a window that closed", over, [1, 0], |world| {
        assert_eq!(world.tables.service_flows.get(&TCP4.0), None);
    });
    // What the packets of such a service then do is the same as if nothing had ever changed.
    steps(
        "no entry for a flow of a settled slot",
        Hook::XdpBalance,
        |world| {
            world.change(TCP4, |service| {
                service.track = Track::CHANGE;
                service.mode = Mode::DSR_L2;
            });
        },
        &[tcp(CLIENT4, VIP4).syn().bytes()],
        Reason::Forwarded,
        |world| {
            assert_eq!(world.tables.service_flows.get(&TCP4.0), None);
            assert!(world.tables.live().all(|flow| flow.client_port == Port::NONE));
        },
    );
}
