//! Services of the agent that fail open: who gets a connection while a worker is silent, and what stays where it began.

use std::{net::TcpListener, sync::OnceLock};

use gateway_common::{
    counter::{Hook, Reason},
    endpoint::EndpointState,
    flow::Phase,
    heartbeat::Heartbeat,
    service::{Mode, Service, Track},
};
use gateway_tests::{
    packet::{ACK, CLIENT_MAC, FIN, NODE_MAC, Packet, RST, icmp_error, inspect, inspect_icmp, tcp},
    privilege,
    world::{AGENT4, ENDPOINT_MAC, INNER_MAC, Id, TCP6, World},
};

use crate::check::{self, Case, case, check};

/// Where the two sockets are, which no other test uses, and where none is.
const SOCKETS: [u32; 2] = [200, 201];
const NOWHERE: u32 = 300;
const XDP_PASS: i32 = 2;
const XDP_TX: i32 = 3;
const TC_NEXT: i32 = -1;
const TC_REDIRECT: i32 = 7;

/// A client, a service and the endpoint of all of its slots, of one family.
#[derive(Clone, Copy)]
struct Family {
    id: Id,
    vip: &'static str,
    client: &'static str,
    own: &'static str,
    endpoint: &'static str,
}

const V4: Family = Family {
    id: AGENT4,
    vip: "198.51.100.1:80",
    client: "192.0.2.9:40000",
    own: "10.0.0.1",
    endpoint: "10.0.0.10:80",
};
const V6: Family = Family {
    id: TCP6,
    vip: "[2001:db8::1]:443",
    client: "[2001:db8:9::9]:40000",
    own: "[fd00::1]",
    endpoint: "[fd00::10]:8443",
};

/// Makes the world of a case.
type Prepare = fn(&mut World);

fn host(socket: &str) -> &str {
    socket.rsplit_once(':').unwrap().0
}

impl Family {
    fn packet(self) -> Packet {
        tcp(self.client, self.vip)
    }

    fn to_endpoint(self, name: &'static str, packet: &Packet) -> Case {
        case(name, packet, Reason::FailedOpen)
            .sent(&format!("{}:?", self.own), self.endpoint, 63)
            .macs(INNER_MAC, ENDPOINT_MAC)
    }
}

/// The agent listens, and its workers speak.
fn served(world: &mut World) {
    for id in [AGENT4, TCP6] {
        world.change(id, |service| {
            (service.mode, service.track) = (Mode::AGENT, Track::ALWAYS);
            service.flags |= Service::FAILS_OPEN;
            (service.first_socket, service.n_sockets) = (SOCKETS[0], 2);
        });
    }
    world.tables.listening = SOCKETS.into();
    for worker in [0, 1] {
        world.tables.heartbeats.insert(worker, Heartbeat { until_ns: u64::MAX });
    }
}

/// The agent listens, but its workers have not spoken for too long.
fn silent(world: &mut World) {
    served(world);
    world.tables.heartbeats.clear();
}

/// Its workers spoke just now, and its sockets are gone.
fn gone(world: &mut World) {
    served(world);
    for id in [AGENT4, TCP6] {
        world.change(id, |service| service.first_socket = NOWHERE);
    }
}

/// It never had a socket.
fn without_sockets(world: &mut World) {
    served(world);
    for id in [AGENT4, TCP6] {
        world.change(id, |service| service.n_sockets = 0);
    }
}

/// Runs cases beside listening sockets.
fn check_beside(cases: Vec<Case>) {
    static LISTENERS: OnceLock<[TcpListener; 2]> = OnceLock::new();
    if privilege::require("listening sockets in the kernel's map") {
        let listeners = LISTENERS.get_or_init(|| SOCKETS.map(|_| TcpListener::bind("127.0.0.1:0").unwrap()));
        check::kernel(|kernel| {
            for (index, listener) in SOCKETS.iter().zip(listeners) {
                kernel.set_socket(*index, listener).unwrap();
            }
        });
    }
    check(cases);
}

#[test]
fn new_connections_go_to_the_agent_as_long_as_it_speaks() {
    let mut cases = Vec::new();
    for family in [V4, V6] {
        for (hook, code) in [(Hook::XdpBalance, XDP_PASS), (Hook::TcIngress, TC_NEXT)] {
            let passes = |name, packet: &Packet| case(name, packet, Reason::Agent).at(hook).code(code);
            cases.push(passes("a syn", &family.packet().syn()).with(served));
            cases.push(passes("what follows", &family.packet()).with(served));
            cases.push(passes("what follows while it is silent", &family.packet()).with(silent));
            cases.push(passes("what follows without sockets", &family.packet()).with(gone));
            cases.push(passes("an end", &family.packet().flags(FIN | ACK)).with(silent));
            cases.push(passes("a syn where it fails closed", &family.packet().syn()).with(move |world| {
                gone(world);
                world.change(family.id, |service| service.flags = 0);
            }));
        }
    }
    check_beside(cases);
}

#[test]
fn new_connections_go_to_endpoints_while_it_is_silent_or_gone() {
    let mut cases = Vec::new();
    for family in [V4, V6] {
        let ways: [(&str, Prepare); 3] =
            [("silent", silent), ("gone", gone), ("without sockets", without_sockets)];
        for (name, prepare) in ways {
            for (hook, code) in [(Hook::XdpBalance, XDP_TX), (Hook::TcIngress, TC_REDIRECT)] {
                let case = family.to_endpoint(name, &family.packet().syn()).at(hook).code(code);
                cases.push(case.with(prepare).after(move |world| {
                    let flow = world.found(&family.packet()).expect("the flow is remembered");
                    assert_eq!((flow.endpoint, flow.phase), (family.id.row(), Phase::OPENING));
                    assert_eq!(world.tables.service_counts[&family.id.0].new_flows, 1);
                    assert_eq!(world.tables.endpoint_counts[&family.id.row()].packets, 1);
                }));
            }
        }
    }
    check_beside(cases);
}

#[test]
fn what_began_at_an_endpoint_stays_there_until_it_ends() {
    let mut cases = Vec::new();
    for family in [V4, V6] {
        let times: [(&str, Prepare); 2] = [("later", served), ("meanwhile", silent)];
        for (when, prepare) in times {
            let with = move |phase| {
                move |world: &mut World| {
                    prepare(world);
                    world.established(&family.packet(), family.id.row(), 20_005, phase, world.now);
                }
            };
            cases.push(family.to_endpoint(when, &family.packet()).with(with(Phase::OPEN)));
            cases.push(family.to_endpoint(when, &family.packet().flags(RST)).with(with(Phase::OPEN)));
            cases.push(family.to_endpoint(when, &family.packet().syn()).with(with(Phase::OPENING)));
            let reply = tcp(family.endpoint, &format!("{}:20005", family.own));
            let back = case(when, &reply, Reason::Replied).with(with(Phase::OPEN));
            cases.push(back.sent(family.vip, family.client, 63).macs(NODE_MAC, CLIENT_MAC));
        }
        let ended = move |world: &mut World| {
            world.established(&family.packet(), family.id.row(), 20_005, Phase::CLOSING, world.now);
        };
        cases.push(
            case("a new one from the same port", &family.packet().syn(), Reason::Agent)
                .with(move |world| {
                    served(world);
                    ended(world);
                })
                .after(|world| {
                    assert_eq!(world.tables.live().count(), 0, "what follows must not find it");
                    assert!(world.tables.replies.is_empty() && world.tables.endpoint_flows.is_empty());
                    assert!(world.tables.service_flows.is_empty());
                }),
        );
        cases.push(family.to_endpoint("the same while it is silent", &family.packet().syn()).with(
            move |world| {
                silent(world);
                ended(world);
            },
        ));
        let other = tcp(&family.client.replace("40000", "40001"), family.vip);
        cases.push(case("another client's", &other, Reason::Agent).with(move |world| {
            served(world);
            world.established(&family.packet(), family.id.row(), 20_005, Phase::OPEN, world.now);
        }));
    }
    check_beside(cases);
}

#[test]
fn without_an_endpoint_clients_hear_so() {
    let mut cases = Vec::new();
    for family in [V4, V6] {
        let answered = case("no endpoint", &family.packet().payload(b"").syn(), Reason::ResetSent);
        cases.push(
            answered
                .with(move |world| {
                    gone(world);
                    world.state(family.id, EndpointState::DOWN);
                })
                .leaves(move |frame| {
                    let seen = inspect(frame).unwrap();
                    assert_eq!(seen.source.to_string(), family.vip);
                    assert_eq!(seen.destination.to_string(), family.client);
                }),
        );
    }
    check_beside(cases);
}

#[test]
fn errors_about_connections_follow_them() {
    let mut cases = Vec::new();
    let of = |family: &Family, router: &str, kind| {
        let about = tcp(family.vip, family.client);
        icmp_error(router, host(family.vip), kind, 1_400, &about, 60)
    };
    for (family, router, kind) in [(V4, "203.0.113.1", (3, 4)), (V6, "[2001:db8:77::1]", (2, 0))] {
        cases.push(case("of the agent", &of(&family, router, kind), Reason::Agent).with(served));
        let with = move |world: &mut World| {
            served(world);
            world.established(&family.packet(), family.id.row(), 20_005, Phase::OPEN, world.now);
        };
        let sent = case("of an endpoint", &of(&family, router, kind), Reason::IcmpForwarded).with(with);
        cases.push(sent.leaves(move |frame| {
            let to = inspect_icmp(frame).unwrap().destination.to_string();
            assert_eq!(to, host(family.endpoint).trim_matches(['[', ']']));
        }));
        let other = Family {
            client: if router.starts_with('[') { "[2001:db8:9::9]:9" } else { "192.0.2.9:9" },
            ..family
        };
        cases.push(case("of the agent beside it", &of(&other, router, kind), Reason::Agent).with(with));
    }
    check_beside(cases);
}
