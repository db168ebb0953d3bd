//! ICMP errors about packets of flows: each reaches whoever sent the packet, in the terms that it knows.

use gateway_common::{
    addr::Addr,
    counter::{Hook, Reason},
    endpoint::{EndpointState, NextHop},
    flow::Phase,
    service::{Mode, Track},
    slot::Slot,
};
use gateway_tests::{
    packet::{CLIENT_MAC, NODE_MAC, Packet, checksum, icmp_error, inspect, inspect_icmp, tcp, udp},
    world::{ENDPOINT_MAC, INNER_MAC, Id, LOCAL4, LOCAL6, TCP4, TCP6, UDP4, UDP6, World, addr_of},
};

use crate::check::{case, check, raw};

const XDP_TX: i32 = 3;

/// One flow, as the client knows it and as the endpoint knows it.
#[derive(Clone, Copy)]
struct Flow {
    id: Id,
    is_udp: bool,
    client: &'static str,
    virtual_addr: &'static str,
    endpoint: &'static str,
    node: &'static str,
    /// A router somewhere.
    router: &'static str,
}

const FLOWS: [Flow; 4] = [
    Flow {
        id: TCP4,
        is_udp: false,
        client: "192.0.2.9:40000",
        virtual_addr: "198.51.100.1:443",
        endpoint: "10.0.0.10:8443",
        node: "10.0.0.1:20005",
        router: "203.0.113.1",
    },
    Flow {
        id: UDP4,
        is_udp: true,
        client: "192.0.2.9:40000",
        virtual_addr: "198.51.100.1:53",
        endpoint: "10.0.0.10:5353",
        node: "10.0.0.1:20005",
        router: "203.0.113.1",
    },
    Flow {
        id: TCP6,
        is_udp: false,
        client: "[2001:db8:9::9]:40000",
        virtual_addr: "[2001:db8::1]:443",
        endpoint: "[fd00::10]:8443",
        node: "[fd00::1]:20005",
        router: "[2001:db8:77::1]",
    },
    Flow {
        id: UDP6,
        is_udp: true,
        client: "[2001:db8:9::9]:40000",
        virtual_addr: "[2001:db8::1]:53",
        endpoint: "[fd00::10]:5353",
        node: "[fd00::1]:20005",
        router: "[2001:db8:77::1]",
    },
];

fn host(socket: &str) -> &str {
    socket.rsplit_once(':').unwrap().0
}

fn ip(host: &str) -> Addr {
    addr_of(host.trim_matches(['[', ']']))
}

impl Flow {
    fn is_v6(self) -> bool {
        self.client.starts_with('[')
    }

    fn packet(self, from: &str, to: &str) -> Packet {
        if self.is_udp { udp(from, to) } else { tcp(from, to) }
    }

    /// Types and codes of errors: unreachable host, port and too big, time exceeded, parameter problem.
    fn kinds(self) -> [(u8, u8); 5] {
        if self.is_v6() {
            [(1, 3), (1, 4), (2, 0), (3, 0), (4, 1)]
        } else {
            [(3, 1), (3, 3), (3, 4), (11, 0), (12, 0)]
        }
    }

    fn establish(self, world: &mut World) {
        let packet = self.packet(self.client, self.virtual_addr);
        world.established(&packet, self.id.row(), 20_005, Phase::OPEN, world.now);
    }

    /// Headers of the quoted packet, and as many bytes behind.
    fn quoted(self, bytes: usize) -> usize {
        bytes + if self.is_v6() { 40 } else { 20 }
    }

    /// An error about the packet that the client sees from the virtual address.
    fn about_reply(self, kind: (u8, u8), quoted: usize) -> Packet {
        let packet = self.packet(self.virtual_addr, self.client);
        icmp_error(self.router, host(self.virtual_addr), kind, 1_400, &packet, quoted)
    }

    /// An error about the packet that the endpoint sees from this node.
    fn about_request(self, kind: (u8, u8), quoted: usize) -> Packet {
        let packet = self.packet(self.node, self.endpoint);
        icmp_error(self.router, host(self.node), kind, 1_400, &packet, quoted)
    }
}

/// What an error says: from whom, to whom, and the packet that it quotes.
fn says(
    error: &Packet,
    from: &'static str,
    to: &'static str,
    quotes: Packet,
    ttl: u8,
) -> impl Fn(&[u8]) + use<> {
    let before = inspect_icmp(&error.bytes()).unwrap();
    move |frame| {
        let seen = inspect_icmp(frame).unwrap();
        assert_eq!((Addr::from(seen.source), Addr::from(seen.destination)), (ip(from), ip(to)));
        assert_eq!((seen.message, seen.ttl), (before.message, ttl));
        let whole = quotes.bytes();
        let wanted = &whole[14..14 + seen.payload.len()];
        // What is quoted is the packet that the receiver sent, every byte and checksum of it.
        assert_eq!(seen.payload, wanted);
        assert_eq!(seen.payload.len(), before.payload.len());
    }
}

#[test]
fn the_endpoint_hears_about_its_packets() {
    let mut cases = Vec::new();
    for flow in FLOWS {
        for kind in flow.kinds() {
            for quoted in [flow.quoted(8), flow.quoted(20), 1_000] {
                let error = flow.about_reply(kind, quoted);
                let own = flow.packet(flow.endpoint, flow.node);
                let says = says(&error, host(flow.node), host(flow.endpoint), own, 63);
                let case = case("towards the endpoint", &error, Reason::IcmpForwarded)
                    .with(move |world| flow.establish(world))
                    .leaves(move |frame| {
                        assert_eq!((&frame[..6], &frame[6..12]), (&ENDPOINT_MAC[..], &INNER_MAC[..]));
                        says(frame);
                    })
                    .code(XDP_TX)
                    .after(move |world| {
                        assert_eq!(world.tables.endpoint_counts[&flow.id.row()].packets, 1);
                        assert_eq!(world.tables.service_counts[&flow.id.0].new_flows, 0);
                    });
                cases.push(case);
            }
        }
    }
    check(cases);
}

#[test]
fn the_client_hears_about_its_packets() {
    let mut cases = Vec::new();
    for flow in FLOWS {
        for kind in flow.kinds() {
            for quoted in [flow.quoted(8), flow.quoted(20), 1_000] {
                let error = flow.about_request(kind, quoted);
                let own = flow.packet(flow.client, flow.virtual_addr);
                let says = says(&error, host(flow.virtual_addr), host(flow.client), own, 63);
                let case = case("towards the client", &error, Reason::IcmpForwarded)
                    .with(move |world| flow.establish(world))
                    .leaves(move |frame| {
                        assert_eq!((&frame[..6], &frame[6..12]), (&CLIENT_MAC[..], &NODE_MAC[..]));
                        says(frame);
                    })
                    .code(XDP_TX)
                    .after(move |world| {
                        assert_eq!(world.tables.endpoint_counts[&flow.id.row()].reply_packets, 1);
                    });
                cases.push(case);
            }
        }
    }
    check(cases);
}

/// What a host cuts into pieces, or gives options on its way, is quoted as it went.
#[test]
fn quoted_extension_headers_are_read() {
    type Shape = fn(Packet) -> Packet;
    const DESTINATION: u8 = 60;
    let [.., udp6] = FLOWS;
    let shapes: [(Shape, usize); 3] = [
        (|packet| packet.fragment(0, true), 8),
        (|packet| packet.extension(DESTINATION), 8),
        (|packet| packet.extension(DESTINATION).fragment(0, true), 16),
    ];
    let mut cases = Vec::new();
    for (shape, more) in shapes {
        for hook in [Hook::XdpBalance, Hook::TcIngress] {
            let about = |from: &'static str, to: &'static str| shape(udp6.packet(from, to).payload(&[7; 64]));
            for quoted in [udp6.quoted(8) + more, 1_000] {
                let quote = about(udp6.virtual_addr, udp6.client);
                let error = icmp_error(udp6.router, host(udp6.virtual_addr), (2, 0), 1_400, &quote, quoted);
                let own = about(udp6.endpoint, udp6.node);
                cases.push(
                    case("towards the endpoint", &error, Reason::IcmpForwarded)
                        .at(hook)
                        .with(move |world| udp6.establish(world))
                        .leaves(says(&error, host(udp6.node), host(udp6.endpoint), own, 63)),
                );
                let quote = about(udp6.node, udp6.endpoint);
                let error = icmp_error(udp6.router, host(udp6.node), (2, 0), 1_400, &quote, quoted);
                let own = about(udp6.client, udp6.virtual_addr);
                cases.push(
                    case("towards the client", &error, Reason::IcmpForwarded)
                        .at(hook)
                        .with(move |world| udp6.establish(world))
                        .leaves(says(&error, host(udp6.virtual_addr), host(udp6.client), own, 63)),
                );
            }
        }
    }
    let later = udp6.packet(udp6.virtual_addr, udp6.client).payload(&[7; 64]).fragment(8, true);
    let error = icmp_error(udp6.router, host(udp6.virtual_addr), (2, 0), 1_400, &later, 1_000);
    cases.push(
        case("a later piece has no ports", &error, Reason::IcmpNoFlow)
            .with(move |world| udp6.establish(world)),
    );
    check(cases);
}

#[test]
fn the_same_at_tc() {
    let mut cases = Vec::new();
    for flow in FLOWS {
        let [_, port, ..] = flow.kinds();
        let error = flow.about_reply(port, flow.quoted(8));
        let own = flow.packet(flow.endpoint, flow.node);
        cases.push(
            case("towards the endpoint", &error, Reason::IcmpForwarded)
                .at(Hook::TcIngress)
                .with(move |world| flow.establish(world))
                .leaves(says(&error, host(flow.node), host(flow.endpoint), own, 63)),
        );
        let error = flow.about_request(port, 1_000);
        let own = flow.packet(flow.client, flow.virtual_addr);
        cases.push(
            case("towards the client", &error, Reason::IcmpForwarded)
                .at(Hook::TcIngress)
                .with(move |world| flow.establish(world))
                .leaves(says(&error, host(flow.virtual_addr), host(flow.client), own, 63)),
        );
    }
    check(cases);
}

/// A frame whose checksum of UDP, in the packet that it quotes, says that there is none.
fn without_quoted_checksum(flow: Flow) -> (Packet, Packet) {
    let packet = udp(flow.virtual_addr, flow.client).without_checksum();
    let error = icmp_error(flow.router, host(flow.virtual_addr), (3, 3), 0, &packet, 28);
    (error, udp(flow.endpoint, flow.node).without_checksum())
}

#[test]
fn checksums_that_are_not_there_stay_away() {
    let [_, flow, ..] = FLOWS;
    let (error, own) = without_quoted_checksum(flow);
    check(vec![
        case("no checksum in the quoted packet", &error, Reason::IcmpForwarded)
            .with(move |world| flow.establish(world))
            .leaves(says(&error, host(flow.node), host(flow.endpoint), own, 63)),
    ]);
}

#[test]
fn options_in_the_quoted_packet_are_skipped() {
    let [flow, ..] = FLOWS;
    let packet = tcp(flow.virtual_addr, flow.client).ip_options(10);
    let error = icmp_error(flow.router, host(flow.virtual_addr), (11, 0), 0, &packet, 68).ip_options(10);
    let own = tcp(flow.endpoint, flow.node).ip_options(10);
    check(vec![
        case("options inside and outside", &error, Reason::IcmpForwarded)
            .with(move |world| flow.establish(world))
            .leaves(says(&error, host(flow.node), host(flow.endpoint), own, 63)),
    ]);
}

#[test]
fn endpoints_on_this_node_hear_and_are_heard() {
    let client = "192.0.2.9:40000";
    let (vip, endpoint) = ("198.51.100.2:443", "10.0.0.1:9000");
    let client6 = "[2001:db8:9::9]:40000";
    let (vip6, endpoint6) = ("[2001:db8::2]:443", "[fd00::1]:9000");
    let heard = icmp_error("203.0.113.1", "198.51.100.2", (3, 4), 1_400, &tcp(vip, client), 1_000);
    let heard6 = icmp_error("[2001:db8:77::1]", "[2001:db8::2]", (2, 0), 1_400, &tcp(vip6, client6), 1_000);
    let told = icmp_error("10.0.0.1", "192.0.2.9", (3, 3), 0, &tcp(client, endpoint), 1_000);
    let told6 = icmp_error("[fd00::1]", "[2001:db8:9::9]", (1, 4), 0, &tcp(client6, endpoint6), 1_000);
    let open4 = move |world: &mut World| {
        world.established(&tcp(client, vip), LOCAL4.row(), 40_000, Phase::OPEN, world.now);
    };
    let open6 = move |world: &mut World| {
        world.established(&tcp(client6, vip6), LOCAL6.row(), 40_000, Phase::OPEN, world.now);
    };
    check(vec![
        case("from a router over v4", &heard, Reason::IcmpForwarded)
            .with(open4)
            .leaves(says(&heard, "203.0.113.1", "10.0.0.1", tcp(endpoint, client), 64))
            .code(2),
        case("from a router over v6", &heard6, Reason::IcmpForwarded).with(open6).leaves(says(
            &heard6,
            "[2001:db8:77::1]",
            "[fd00::1]",
            tcp(endpoint6, client6),
            64,
        )),
        case("of the stack over v4", &told, Reason::IcmpForwarded)
            .at(Hook::TcEgress)
            .with(open4)
            .leaves(says(&told, "198.51.100.2", "192.0.2.9", tcp(client, vip), 64))
            .code(-1),
        case("of the stack over v6", &told6, Reason::IcmpForwarded)
            .at(Hook::TcEgress)
            .with(open6)
            .leaves(says(&told6, "[2001:db8::2]", "[2001:db8:9::9]", tcp(client6, vip6), 64)),
        case("of the stack about something else", &told, Reason::NotTranslated).at(Hook::TcEgress).code(-1),
        raw("cut short on its way out", told.bytes()[..50].to_vec(), Reason::NotTranslated)
            .at(Hook::TcEgress),
    ]);
}

fn direct(world: &mut World, mode: Mode, track: Track) {
    for id in [TCP4, UDP4, TCP6, UDP6] {
        world.change(id, |service| (service.mode, service.track) = (mode, track));
    }
}

#[test]
fn direct_return_hears_through_the_same_way() {
    let mut cases = Vec::new();
    for flow in FLOWS {
        let [_, port, ..] = flow.kinds();
        let error = flow.about_reply(port, flow.quoted(8));
        let before = error.bytes();
        let headers = if flow.is_v6() { 40 } else { 20 };
        let modes = [(Mode::DSR_L2, 0), (Mode::DSR_IPIP, headers), (Mode::DSR_GUE, headers + 8)];
        for (mode, outer) in modes {
            let before = before.clone();
            let case = case("direct return", &error, Reason::IcmpForwarded)
                .with(move |world| direct(world, mode, Track::CHANGE))
                .leaves(move |frame| {
                    assert_eq!((&frame[..6], &frame[6..12]), (&ENDPOINT_MAC[..], &INNER_MAC[..]));
                    let inside = [&before[..14], &frame[14 + outer..]].concat();
                    let (was, seen) = (inspect_icmp(&before).unwrap(), inspect_icmp(&inside).unwrap());
                    assert_eq!(seen.ttl, was.ttl - 1);
                    assert_eq!((seen.source, seen.destination), (was.source, was.destination));
                    assert_eq!((seen.message, seen.payload), (was.message, was.payload));
                })
                .code(XDP_TX);
            cases.push(case);
        }
    }
    check(cases);
}

#[test]
fn direct_return_hears_at_the_endpoint_of_the_flow() {
    let [flow, ..] = FLOWS;
    let error = flow.about_reply((3, 3), 1_000);
    // What is remembered wins over the slot; without, the flow is where its slot led before.
    let remembered = move |world: &mut World| {
        direct(world, Mode::DSR_L2, Track::CHANGE);
        world.row(TCP4.row() + 1).next_hop.mac[5] = 0x77;
        world.flow(&tcp(flow.client, flow.virtual_addr), TCP4.row() + 1, 0, Phase::OPEN, world.now);
    };
    let changing = move |world: &mut World| {
        direct(world, Mode::DSR_L2, Track::CHANGE);
        world.row(TCP4.row() + 1).next_hop.mac[5] = 0x77;
        for chunk in world.tables.chunks.values_mut() {
            chunk.slots.iter_mut().filter(|slot| slot.endpoint != 999).for_each(|slot| slot.former = 1);
        }
    };
    let to = |last: u8| move |frame: &[u8]| assert_eq!(frame[5], last);
    check(vec![
        case("remembered", &error, Reason::IcmpForwarded).with(remembered).leaves(to(0x77)),
        case("while a slot changes", &error, Reason::IcmpForwarded).with(changing).leaves(to(0x77)),
        case("which nobody remembers", &error, Reason::IcmpForwarded)
            .with(move |world| {
                changing(world);
                world.change(TCP4, |service| service.track = Track::NEVER);
            })
            .leaves(to(0x01)),
        case("whose former endpoint is down", &error, Reason::IcmpForwarded)
            .with(move |world| {
                changing(world);
                world.row(TCP4.row() + 1).state = EndpointState::DOWN;
            })
            .leaves(to(0x01)),
        case("while the table before is of another size", &error, Reason::IcmpForwarded)
            .with(move |world| {
                changing(world);
                for chunk in world.tables.chunks.values_mut() {
                    for slot in &mut chunk.slots {
                        // The other half led nowhere until now.
                        *slot = if slot.endpoint == 999 {
                            Slot { endpoint: 1, former: 1 }
                        } else {
                            Slot { former: Slot::ELSEWHERE, ..*slot }
                        };
                    }
                }
                world.change(TCP4, |service| service.tables[0].n_slots = 1);
            })
            .leaves(to(0x77)),
        case("no endpoint is up", &error, Reason::IcmpNoFlow).with(|world| {
            direct(world, Mode::DSR_L2, Track::CHANGE);
            world.state(TCP4, EndpointState::DOWN);
        }),
        case("too big for its tunnel", &error, Reason::TooBig).with(|world| {
            direct(world, Mode::DSR_IPIP, Track::CHANGE);
            world.row(TCP4.row()).mtu = 60;
        }),
    ]);
}

#[test]
fn what_speaks_of_nothing_known_passes() {
    let [flow, _, flow6, _] = FLOWS;
    let error = flow.about_reply((3, 3), 1_000);
    let request = flow.about_request((3, 3), 1_000);
    let elsewhere =
        icmp_error(flow.router, "198.51.100.2", (3, 3), 0, &tcp(flow.virtual_addr, flow.client), 28);
    let fragment = tcp(flow.virtual_addr, flow.client).fragment(100, false);
    let fragment = icmp_error(flow.router, "198.51.100.1", (3, 3), 0, &fragment, 28);
    let agent = icmp_error(flow.router, "198.51.100.1", (3, 3), 0, &tcp("198.51.100.1:80", flow.client), 28);
    let echo = gateway_tests::packet::icmp("198.51.100.1:0", flow.client);
    let inner = icmp_error(flow.router, "198.51.100.1", (3, 3), 0, &echo, 28);
    let nothing =
        icmp_error(flow.router, "198.51.100.1", (3, 3), 0, &tcp("198.51.100.1:81", flow.client), 28);
    let quench = icmp_error(flow.router, "198.51.100.1", (4, 0), 0, &tcp(flow.virtual_addr, flow.client), 28);
    check(vec![
        case("no flow to the endpoint", &error, Reason::IcmpNoFlow).code(2),
        case("no flow to the client", &request, Reason::IcmpNoFlow),
        case("no flow over v6", &flow6.about_reply((1, 4), 1_000), Reason::IcmpNoFlow),
        case("no flow at tc", &error, Reason::IcmpNoFlow).at(Hook::TcIngress).code(-1),
        case("quotes what was sent from elsewhere", &elsewhere, Reason::IcmpNoFlow)
            .with(move |world| flow.establish(world)),
        case("quotes a later fragment", &fragment, Reason::IcmpNoFlow)
            .with(move |world| flow.establish(world)),
        case("about a service of the agent", &agent, Reason::Agent),
        case("about an ICMP message", &inner, Reason::OtherProtocol),
        case("about a port without a service", &nothing, Reason::IcmpNoFlow),
        case("source quench", &quench, Reason::OtherProtocol),
    ]);
}

#[test]
fn what_cannot_be_read_is_dropped() {
    let [flow, _, flow6, _] = FLOWS;
    let mut cases = Vec::new();
    for (flow, headers) in [(flow, 20), (flow6, 40)] {
        let [_, port, ..] = flow.kinds();
        let whole = flow.about_reply(port, 1_000);
        for quoted in [0, headers - 1, headers, headers + 7] {
            let error = flow.about_reply(port, quoted);
            for hook in [Hook::XdpBalance, Hook::TcIngress] {
                let case = case("quotes too little", &error, Reason::BadIcmp)
                    .at(hook)
                    .with(move |world| flow.establish(world));
                cases.push(case);
            }
        }
        let mut short = whole.bytes()[..14 + headers + 7].to_vec();
        let length = if flow.is_v6() { 7 } else { 27 };
        short[if flow.is_v6() { 19 } else { 17 }] = length;
        short[if flow.is_v6() { 18 } else { 16 }] = 0;
        cases.push(raw("ends inside the message's header", short, Reason::BadIcmp));
        let mut version = whole.bytes();
        version[14 + headers + 8] = 0x25;
        cases.push(raw("quotes another version", version, Reason::BadIcmp));
        let last = flow.about_reply(port, 1_000).ttl(1);
        let case =
            case("on its last hop", &last, Reason::TtlExpired).with(move |world| flow.establish(world));
        cases.push(case);
        let last = flow.about_request(port, 1_000).ttl(1);
        cases.push(
            self::case("back on its last hop", &last, Reason::TtlExpired)
                .with(move |world| flow.establish(world)),
        );
    }
    let case = case("no way to the endpoint", &flow.about_reply((3, 3), 1_000), Reason::NoNextHop).with(
        move |world| {
            flow.establish(world);
            world.row(TCP4.row()).next_hop = NextHop::UNKNOWN;
        },
    );
    cases.push(case);
    let mut options = flow.about_reply((3, 3), 1_000).bytes();
    options[14 + 20 + 8] = 0x44;
    cases.push(raw("quotes a header below the minimum", options, Reason::BadIcmp));
    check(cases);
}

#[test]
fn the_harness_reads_what_it_writes() {
    let [flow, ..] = FLOWS;
    let error = flow.about_reply((3, 4), 28).bytes();
    assert_eq!(checksum(&error[34..]), 0);
    assert_eq!(inspect_icmp(&error).unwrap().message, (3, 4, 1_400));
    let mut wrong = error;
    wrong[50] ^= 1;
    assert!(inspect_icmp(&wrong).is_err());
    assert!(inspect(&flow.packet(flow.client, flow.virtual_addr).bytes()).is_ok());
}
