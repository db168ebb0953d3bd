//! SYN cookies of translated services: what is sent, what is taken back, and how both sides' numbers are kept apart.

use gateway_common::{
    addr::{Addr, Port},
    cookie::{CookieKeys, OwnCookie, STEP_SHIFT, SynCookie},
    counter::{Hook, Reason},
    endpoint::{Endpoint, EndpointState, NextHop},
    flow::{Phase, Sequence, SequenceBucket, SequenceStage, Tick},
    service::{Rate, Service},
    settings::Settings,
    source::{self, ServiceRate},
};
use gateway_tests::{
    memory::Tables,
    packet::{ACK, CLIENT_MAC, FIN, NODE_MAC, Packet, RST, SYN, icmp_error, inspect, inspect_icmp, tcp},
    piece::{pieces, together},
    world::{ENDPOINT_MAC, INNER_MAC, Id, LOCAL4, TCP4, TCP6, TICK_SHIFT, World, addr_of},
};
use gateway_userspace::clock;

use crate::check::{Case, case, check, steps};

/// An address of each party: the client, the service, the endpoint, and this node towards the endpoint.
struct Side {
    id: Id,
    v6: bool,
    client: &'static str,
    vip: &'static str,
    endpoint: &'static str,
    node: &'static str,
}

const V4: Side = Side {
    id: TCP4,
    v6: false,
    client: "192.0.2.9:40000",
    vip: "198.51.100.1:443",
    endpoint: "10.0.0.10:8443",
    node: "10.0.0.1",
};
const V6: Side = Side {
    id: TCP6,
    v6: true,
    client: "[2001:db8:9::9]:40000",
    vip: "[2001:db8::1]:443",
    endpoint: "[fd00::10]:8443",
    node: "[fd00::1]",
};

/// At each hook where clients' packets come in, with the code for a packet that goes back where it came from.
const HOOKS: [(Hook, i32); 2] = [(Hook::XdpBalance, 3), (Hook::TcIngress, 7)];

/// The number with which the client begins, close to the end of the range; and the endpoint.
const CLIENT_BEGINS: u32 = 0xffff_fff0;
const ENDPOINT_BEGINS: u32 = 0x1234_5678;

/// The port of a connection that is there already.
const PORT: u16 = 20_005;

const KEYS: CookieKeys = CookieKeys { keys: [[11, 12], [13, 14]] };

impl Side {
    fn client_says(&self) -> Packet {
        tcp(self.client, self.vip).payload(b"")
    }

    fn endpoint_says(&self) -> Packet {
        tcp(self.endpoint, &format!("{}:{PORT}", self.node)).payload(b"")
    }

    /// The cookie of a moment, for segments of 1,400 bytes.
    fn cookie_of(&self, moment: Tick) -> u32 {
        OwnCookie::make(&KEYS, &self.client_says().key(), CLIENT_BEGINS, 4, moment).sequence()
    }

    fn cookie(&self) -> u32 {
        self.cookie_of(moment())
    }

    /// The packet that brings the cookie back.
    fn proof(&self, cookie: u32) -> Packet {
        self.client_says().numbers(CLIENT_BEGINS.wrapping_add(1), cookie.wrapping_add(1))
    }

    /// The header of TCP in a frame.
    fn tcp<'a>(&self, frame: &'a [u8]) -> &'a [u8] {
        inspect(frame).unwrap_or_else(|error| panic!("{error}: {frame:02x?}"));
        let end =
            if self.v6 { frame.len() } else { 14 + usize::from(u16::from_be_bytes([frame[16], frame[17]])) };
        let end = if self.v6 { 54 + usize::from(u16::from_be_bytes([frame[18], frame[19]])) } else { end };
        &frame[if self.v6 { 54 } else { 34 }..end]
    }
}

fn moment() -> Tick {
    SynCookie::moment(clock::monotonic_ns())
}

/// So many moments ago, also where the machine has not run for as long.
fn ago(moments: u32) -> Tick {
    Tick::new(moment().count().wrapping_sub(moments))
}

fn word(tcp: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(tcp[at..at + 4].try_into().unwrap())
}

/// The present, once no step of the cookies ends in the next seconds: the kernel goes by its own clock, later than whoever
/// compares, and under emulation much later.
fn settled() -> Tick {
    const STEP: u32 = 1 << STEP_SHIFT;
    const LATER: u32 = 10;
    while moment().count() % STEP >= STEP - LATER {
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    moment()
}

/// What tells no more than when a packet came.
fn without_instants(tables: &mut Tables) {
    for row in tables.syn_cookies.values_mut() {
        row.full_at = 0;
    }
}

/// The services answer with cookies, and do so at this moment.
fn armed(world: &mut World) {
    world.tables.cookie_keys = KEYS;
    world.tables.moment = Some(settled());
    let until = SynCookie::until(Tick::new(u32::MAX / 4));
    for id in [TCP4, TCP6, LOCAL4] {
        world.change(id, |service| {
            service.cookie_rate = 1_000;
            service.flags |= Service::COOKIES;
        });
        world.tables.syn_cookies.insert(id.0, SynCookie { full_at: 0, armed: until, sent: 41 });
    }
}

/// They would, but there are few SYNs, and were no more in the last minutes.
fn calm(world: &mut World) {
    armed(world);
    world.tables.syn_cookies.clear();
}

/// A connection that began with a cookie.
fn begun(world: &mut World, side: &Side, phase: Phase, number: u32, stage: SequenceStage) {
    armed(world);
    let index = world.flow(&side.client_says(), side.id.row(), PORT, phase, world.now);
    world.hold(&side.client_says(), side.id.row(), PORT, index);
    let place = usize::try_from(index % 4).unwrap();
    let flow = &mut world.tables.flows.get_mut(&(index / 4)).unwrap().flows[place];
    flow.proxied = 1;
    let version = flow.head.version;
    let bucket = world.tables.sequences.entry(index / 4).or_default();
    bucket.entries[place] = Sequence::new(number, version, stage);
}

fn waiting(side: &'static Side, cookie: u32) -> impl Fn(&mut World) + 'static {
    move |world| begun(world, side, Phase::OPENING, cookie, SequenceStage::WAITING)
}

/// How far the client's number is ahead in connections of [`joined`].
const AHEAD: u32 = 0xdead_beef;

fn joined(side: &'static Side) -> impl Fn(&mut World) + 'static {
    move |world| begun(world, side, Phase::OPEN, AHEAD, SequenceStage::JOINED)
}

/// What is known of the one connection that there is.
fn sequence(world: &World) -> Sequence {
    let known: Vec<Sequence> = world
        .tables
        .sequences
        .values()
        .flat_map(|SequenceBucket { entries }| entries)
        .filter(|entry| **entry != Sequence::default())
        .copied()
        .collect();
    assert_eq!(known.len(), 1, "{known:?}");
    known[0]
}

/// Both families, at both hooks.
fn everywhere(cases: impl Fn(&'static Side, i32) -> Vec<Case>) {
    for side in [&V4, &V6] {
        for (hook, code) in HOOKS {
            let cases = cases(side, code).into_iter();
            check(cases.map(|case| case.at(hook).with_instants(without_instants)).collect());
        }
    }
}

#[test]
fn a_syn_too_many_is_answered_with_a_window_that_is_closed() {
    let usual = [2, 4, 5, 0xb4, 4, 2, 8, 10, 1, 2, 3, 4, 0, 0, 0, 0, 1, 3, 3, 7];
    everywhere(|side, code| {
        let syn =
            |options: &[u8]| side.client_says().numbers(CLIENT_BEGINS, 0).syn().tcp_option_bytes(options);
        let greeted = |name, packet: &Packet, size: u32| {
            case(name, packet, Reason::CookieSent)
                .with(armed)
                .code(code)
                .leaves(move |frame| {
                    let seen = inspect(frame).unwrap();
                    assert_eq!(
                        (seen.source.to_string(), seen.destination.to_string()),
                        (side.vip.into(), side.client.into())
                    );
                    assert_eq!((seen.ttl, seen.macs), (64, (NODE_MAC, CLIENT_MAC)));
                    let tcp = side.tcp(frame);
                    let cookie =
                        OwnCookie::make(&KEYS, &side.client_says().key(), CLIENT_BEGINS, size, moment());
                    assert_eq!(word(tcp, 4), cookie.sequence(), "or a minute has just begun");
                    assert_eq!(word(tcp, 8), CLIENT_BEGINS.wrapping_add(1));
                    assert_eq!(tcp[12..16], [0x60, SYN | ACK, 0, 0], "the window is closed");
                    let offered: u16 = if side.v6 { 1_440 } else { 1_460 };
                    assert_eq!(tcp[20..24], [[2, 4], offered.to_be_bytes()].concat());
                })
                .after(|world| {
                    assert!(world.tables.flows.is_empty() && world.tables.sequences.is_empty());
                    assert!(world.tables.syn_cookies.values().any(|row| row.sent == 42));
                })
        };
        vec![
            greeted("usual options", &syn(&usual), 6),
            greeted("no segment size", &syn(&[4, 2, 1, 1]), 0),
            greeted("a large segment size", &syn(&[2, 4, 0x23, 0x28]), 7),
            greeted("a client that came before", &syn(&usual), 6)
                .with(|world| {
                    begun(world, side, Phase::CLOSING, 7, SequenceStage::JOINED);
                    world.tables.sequences.clear();
                })
                .after(|world| assert_eq!(world.tables.live().count(), 1)),
        ]
    });
}

#[test]
fn other_syns_reach_their_endpoints() {
    everywhere(|side, _| {
        let syn = side.client_says().numbers(CLIENT_BEGINS, 0).syn();
        let to = |world: &World, proxied: u8| {
            assert_eq!(world.found(&side.client_says()).unwrap().proxied, proxied);
        };
        let node = format!("{}:?", side.node);
        vec![
            case("few of them", &syn, Reason::Forwarded)
                .with(calm)
                .sent(&node, side.endpoint, 63)
                .after(move |world| to(world, 0)),
            case("of a connection that is there", &syn, Reason::Forwarded)
                .with(move |world| {
                    armed(world);
                    world.established(&side.client_says(), side.id.row(), PORT, Phase::OPEN, world.now);
                })
                .sent(&format!("{}:{PORT}", side.node), side.endpoint, 63),
            case("of a connection that began with a cookie", &syn, Reason::Forwarded)
                .with(joined(side))
                .sent(&format!("{}:{PORT}", side.node), side.endpoint, 63)
                .leaves(move |frame| assert_eq!(word(side.tcp(frame), 8), 0, "nothing is acknowledged")),
            case("of another connection, in calm times", &syn, Reason::Forwarded)
                .with(move |world| {
                    waiting(side, 9)(world);
                    world.tables.syn_cookies.clear();
                })
                .sent(&node, side.endpoint, 63)
                .after(move |world| to(world, 0)),
        ]
    });
    let end = tcp("192.0.2.9:40000", "198.51.100.2:443").payload(b"").flags(ACK);
    let local = end.clone().syn();
    check(vec![
        case("the end of a connection to this node", &end.clone(), Reason::ForwardedLocal)
            .with(move |world| {
                armed(world);
                world.established(&end, LOCAL4.row(), 40_000, Phase::CLOSING, world.now);
            })
            .with_instants(without_instants)
            .sent("192.0.2.9:40000", "10.0.0.1:9000", 64),
        case("to this node, whose stack has its own", &local, Reason::ForwardedLocal)
            .with(armed)
            .with_instants(without_instants)
            .sent("192.0.2.9:40000", "10.0.0.1:9000", 64),
    ]);
}

#[test]
fn who_brings_a_cookie_back_gets_an_endpoint() {
    everywhere(|side, code| {
        let cookie = side.cookie();
        let taken = |name, packet: &Packet, has_option: bool, payload: &'static [u8]| {
            case(name, packet, Reason::CookieTaken)
                .with(armed)
                .code(code)
                .sent(&format!("{}:?", side.node), side.endpoint, 63)
                .macs(INNER_MAC, ENDPOINT_MAC)
                .leaves(move |frame| {
                    let tcp = side.tcp(frame);
                    assert_eq!((word(tcp, 4), word(tcp, 8)), (CLIENT_BEGINS, 0));
                    assert_eq!(
                        tcp[12..16],
                        [if has_option { 0x60 } else { 0x50 }, SYN, 0x20, 0],
                        "the client's window"
                    );
                    let rest: &[u8] = if has_option { &[2, 4, 0x05, 0x78] } else { payload };
                    assert_eq!(&tcp[20..], rest);
                })
                .after(move |world| {
                    let flow = world.found(&side.client_says()).unwrap();
                    assert_eq!((flow.proxied, flow.phase, flow.endpoint), (1, Phase::OPENING, side.id.row()));
                    assert_eq!(
                        sequence(world),
                        Sequence::new(cookie, flow.head.version, SequenceStage::WAITING)
                    );
                    assert_eq!(world.tables.service_counts[&side.id.0].new_flows, 1);
                })
        };
        let proof = || side.proof(cookie);
        let probe = || proof().numbers(CLIENT_BEGINS, cookie.wrapping_add(1));
        let mut padded = taken("in a frame of sixty bytes", &proof(), true, b"");
        padded.frame.resize(padded.frame.len().max(60) + 6, 0xee);
        let before = side.cookie_of(ago(64));
        let earlier = taken("of the minute before", &side.proof(before), true, b"").after(move |world| {
            assert_eq!(sequence(world).number, before);
        });
        vec![
            taken("an acknowledgment", &proof(), true, b""),
            padded,
            earlier,
            taken("a probe of the window", &probe(), true, b""),
            taken("with a byte", &proof().payload(b"G"), false, b"G"),
            taken("the end at once", &proof().flags(ACK | FIN), true, b""),
            taken("after a connection that has ended", &proof(), true, b"").with(move |world| {
                armed(world);
                world.established(&side.client_says(), side.id.row(), PORT, Phase::CLOSING, world.now);
            }),
            taken("in place of another that waits", &proof(), true, b"").with(waiting(side, 77)),
        ]
    });
}

#[test]
fn who_brings_another_is_reset() {
    everywhere(|side, code| {
        let refused = |name, packet: &Packet| {
            case(name, packet, Reason::ResetSent)
                .because(Reason::CookieRefused)
                .with(armed)
                .code(code)
                .sent(side.vip, side.client, 64)
                .leaves(move |frame| assert_eq!(side.tcp(frame)[13] & RST, RST))
                .after(|world| assert!(world.tables.flows.is_empty()))
        };
        let cookie = side.cookie();
        let old = side.cookie_of(ago(128));
        let other = side.proof(cookie).numbers(CLIENT_BEGINS.wrapping_add(2), cookie.wrapping_add(1));
        let is_left = |world: &World| assert_eq!(world.tables.live().count(), 1);
        vec![
            refused("a wrong cookie", &side.proof(cookie ^ 1 << 9)),
            refused("another beginning", &other),
            refused("an old cookie", &side.proof(old)),
            refused("another segment size", &side.proof(cookie ^ 1 << 3)),
            refused("numbers that nobody knows any more", &side.client_says())
                .with(move |world| {
                    joined(side)(world);
                    world.tables.sequences.clear();
                })
                .after(is_left),
            refused("an endpoint that is down", &side.client_says())
                .because(Reason::NoEndpoint)
                .with(move |world| {
                    joined(side)(world);
                    world.state(side.id, EndpointState::DOWN);
                })
                .after(is_left),
            case("a reset", &side.proof(cookie ^ 1 << 9).flags(RST | ACK), Reason::CookieRefused).with(armed),
            case(
                "in calm times: whoever knows nothing of it says so",
                &side.client_says(),
                Reason::Forwarded,
            )
            .with(calm)
            .sent(&format!("{}:?", side.node), side.endpoint, 63),
        ]
    });
}

/// Packets to the endpoint leave from another address of this node.
fn from_elsewhere(world: &mut World, side: &Side) {
    let elsewhere = addr_of(if side.v6 { "fd00::2" } else { "10.0.0.2" });
    world.tables.claim(elsewhere);
    let row = world.row(side.id.row());
    row.source = elsewhere;
    row.generation += Endpoint::OWNER + 1;
}

#[test]
fn a_connection_leaves_from_where_its_endpoint_is_reached_now() {
    everywhere(|side, code| {
        let cookie = side.cookie();
        let elsewhere = if side.v6 { "[fd00::2]" } else { "10.0.0.2" };
        vec![
            case("of a connection", &side.client_says(), Reason::Forwarded)
                .with(move |world| {
                    joined(side)(world);
                    from_elsewhere(world, side);
                })
                .code(code)
                .sent(&format!("{elsewhere}:{PORT}"), side.endpoint, 63)
                .after(|world| {
                    assert_eq!(
                        (sequence(world).number, sequence(world).stage),
                        (AHEAD, SequenceStage::JOINED)
                    );
                    assert_eq!(world.tables.live().count(), 1);
                }),
            case("before the endpoint has answered", &side.proof(cookie), Reason::CookieTaken)
                .with(move |world| {
                    waiting(side, cookie)(world);
                    from_elsewhere(world, side);
                })
                .code(code)
                .sent(&format!("{elsewhere}:?"), side.endpoint, 63),
            case("the endpoint came to this node", &side.client_says(), Reason::ResetSent)
                .because(Reason::NoEndpoint)
                .leaves(|_| {})
                .with(move |world| {
                    joined(side)(world);
                    let row = world.row(side.id.row());
                    (row.flags, row.source, row.next_hop) =
                        (Endpoint::LOCAL, Addr::UNSPECIFIED, NextHop::UNKNOWN);
                    row.generation += Endpoint::OWNER + 1;
                }),
        ]
    });
}

/// So slow a clock that a tick of the tests is nothing against a step between two connections.
const SLOW: u16 = 60_000;

/// The service takes three connections at once, and took so many just now.
fn limited(world: &mut World, side: &Side, taken: u64) {
    world.tables.settings.guards |= Settings::RATES;
    world.tables.settings.interrupts = SLOW;
    world.change(side.id, |service| {
        service.flags |= Service::LIMITED;
        service.flow_rate = Rate { per_second: 1, burst: 3 };
    });
    let now = u64::from(world.now.count()) << (32 + u32::from(TICK_SHIFT));
    let full_at = now.wrapping_add(taken * (u64::from(SLOW) << 32));
    world.tables.service_rates.insert(side.id.0, ServiceRate { full_at });
}

#[test]
fn who_comes_back_to_a_service_that_takes_no_more_is_remembered() {
    everywhere(|side, _| {
        let source = source::site(side.client_says().key().source);
        vec![
            case("with a cookie", &side.proof(side.cookie()), Reason::ServiceLimited)
                .with(move |world| {
                    armed(world);
                    limited(world, side, 3);
                })
                .after(move |world| {
                    let sources: Vec<_> =
                        world.tables.refused_sources().map(|one| (one.site, one.reason)).collect();
                    assert_eq!(sources, [(source, Reason::ServiceLimited.number())]);
                    assert_eq!(world.tables.live().count(), 0);
                }),
        ]
    });
}

/// A flood takes no tokens: who has not come back has begun nothing.
#[test]
fn a_cookie_is_sent_whatever_the_service_has_taken() {
    let taken = |world: &World, side: &Side| {
        let now = u64::from(world.now.count()) << (32 + u32::from(TICK_SHIFT));
        world.tables.service_rates[&side.id.0].full_at.wrapping_sub(now) / (u64::from(SLOW) << 32)
    };
    let calm_and = |side: &'static Side, taken| {
        move |world: &mut World| {
            calm(world);
            world.tables.syn_cookies.insert(side.id.0, SynCookie::default());
            limited(world, side, taken);
        }
    };
    let armed_and = |side: &'static Side, taken| {
        move |world: &mut World| {
            armed(world);
            limited(world, side, taken);
        }
    };
    everywhere(|side, code| {
        let syn = side.client_says().syn().numbers(CLIENT_BEGINS, 0).tcp_option_bytes(&[2, 4, 5, 0xb4]);
        let to = format!("{}:?", side.node);
        vec![
            case("to a service that takes no more", &syn, Reason::CookieSent)
                .with(armed_and(side, 3))
                .with_instants(without_instants)
                .code(code)
                .leaves(|_| {})
                .after(move |world| assert_eq!(taken(world, side), 3)),
            case("who comes back takes one", &side.proof(side.cookie()), Reason::CookieTaken)
                .with(armed_and(side, 2))
                .code(code)
                .sent(&to, side.endpoint, 63)
                .after(move |world| assert_eq!(taken(world, side), 3)),
            case("so does who needs no cookie", &syn, Reason::Forwarded)
                .with(calm_and(side, 2))
                .with_instants(without_instants)
                .code(code)
                .sent(&to, side.endpoint, 63)
                .after(move |world| assert_eq!(taken(world, side), 3)),
            case("or is refused", &syn, Reason::ServiceLimited)
                .with(calm_and(side, 3))
                .with_instants(without_instants)
                .after(|world| assert_eq!(world.tables.refused_sources().count(), 1)),
        ]
    });
    let here = tcp("192.0.2.9:40000", "198.51.100.2:443").syn();
    check(vec![
        case("to an endpoint on this node", &here, Reason::ServiceLimited)
            .with(|world| {
                armed(world);
                limited(world, &Side { id: LOCAL4, ..V4 }, 3);
            })
            .with_instants(without_instants),
    ]);
}

#[test]
fn until_the_endpoint_answers_the_client_asks_again() {
    everywhere(|side, code| {
        let cookie = side.cookie();
        let again = |name, packet: &Packet| {
            case(name, packet, Reason::CookieTaken)
                .with(waiting(side, cookie))
                .code(code)
                .sent(&format!("{}:{PORT}", side.node), side.endpoint, 63)
                .leaves(move |frame| {
                    let tcp = side.tcp(frame);
                    assert_eq!((word(tcp, 4), tcp[13]), (CLIENT_BEGINS, SYN));
                })
                .after(move |world| {
                    assert_eq!(
                        (sequence(world).number, sequence(world).stage),
                        (cookie, SequenceStage::WAITING)
                    );
                    assert_eq!(world.tables.service_counts[&side.id.0].new_flows, 0);
                    assert_eq!(world.tables.endpoint_health[&side.id.row()].syn_retransmits, 1);
                })
        };
        let pending =
            |name, packet: &Packet| case(name, packet, Reason::HandshakePending).with(waiting(side, cookie));
        let proof = || side.proof(cookie);
        vec![
            again("an acknowledgment", &proof()),
            again("a probe of the window", &proof().numbers(CLIENT_BEGINS, cookie.wrapping_add(1))),
            pending(
                "more than the window takes",
                &proof().numbers(CLIENT_BEGINS.wrapping_add(9), cookie.wrapping_add(1)),
            ),
            pending("options that nobody offered", &proof().tcp_options(1)),
            pending("a reset", &proof().flags(RST)),
            pending("the endpoint speaks of another connection", &side.endpoint_says()),
            pending("data with the answer", &side.endpoint_says().flags(SYN | ACK).payload(b"!")),
        ]
    });
}

#[test]
fn the_endpoint_s_answer_opens_the_window() {
    let usual = [2, 4, 5, 0xb4, 1, 1, 4, 2];
    everywhere(|side, code| {
        let cookie = side.cookie();
        let acknowledged = CLIENT_BEGINS.wrapping_add(1);
        let answer = |options: &[u8]| {
            side.endpoint_says()
                .flags(SYN | ACK)
                .numbers(ENDPOINT_BEGINS, acknowledged)
                .tcp_option_bytes(options)
        };
        let opened = |name, packet: &Packet, cookie: u32| {
            case(name, packet, Reason::HandshakeJoined)
                .with(waiting(side, cookie))
                .code(code)
                .sent(side.vip, side.client, 63)
                .macs(NODE_MAC, CLIENT_MAC)
                .leaves(move |frame| {
                    let tcp = side.tcp(frame);
                    assert_eq!((word(tcp, 4), word(tcp, 8)), (cookie, acknowledged));
                    assert_eq!(tcp[12..16], [0x50, ACK, 0x20, 0]);
                    assert_eq!(tcp[20..], [0], "a byte that the client has");
                    assert!(
                        frame[frame.len().min(if side.v6 { 74 } else { 54 })..].iter().all(|byte| *byte == 0)
                    );
                })
                .after(move |world| {
                    let flow = world.found(&side.client_says()).unwrap();
                    assert_eq!((flow.phase, flow.proxied), (Phase::OPEN, 1));
                    let ahead = cookie.wrapping_sub(ENDPOINT_BEGINS);
                    assert_eq!(
                        sequence(world),
                        Sequence::new(ahead, flow.head.version, SequenceStage::JOINED)
                    );
                })
        };
        let mut padded = opened("without options, in a frame of sixty bytes", &answer(&[]), cookie);
        padded.frame.resize(padded.frame.len().max(60) + 2, 0xee);
        vec![
            opened("a segment size", &answer(&[2, 4, 5, 0xb4]), cookie),
            opened("more than was offered", &answer(&usual), cookie),
            padded,
            opened("once more", &answer(&usual), AHEAD.wrapping_add(ENDPOINT_BEGINS)).with(joined(side)),
            case("without room for a byte", &answer(&[]), Reason::HandshakeJoined)
                .with(waiting(side, cookie))
                .sent(side.vip, side.client, 63)
                .leaves(move |frame| {
                    let tcp = side.tcp(frame);
                    assert_eq!((word(tcp, 4), tcp.len()), (cookie.wrapping_add(1), 20));
                }),
            case("no", &side.endpoint_says().flags(RST | ACK).numbers(0, acknowledged), Reason::Replied)
                .with(waiting(side, cookie))
                .code(code)
                .sent(side.vip, side.client, 63)
                .leaves(move |frame| {
                    let tcp = side.tcp(frame);
                    assert_eq!((word(tcp, 4), word(tcp, 8)), (cookie.wrapping_add(1), acknowledged));
                    assert_eq!(tcp[13], RST | ACK);
                })
                .after(move |world| {
                    assert_eq!(world.found(&side.client_says()).unwrap().phase, Phase::CLOSING);
                    assert_eq!(world.tables.endpoint_health[&side.id.row()].refused, 1);
                }),
        ]
    });
}

#[test]
fn numbers_are_kept_apart_for_as_long_as_the_connection_lasts() {
    everywhere(|side, code| {
        let there = |name, packet: &Packet, numbers: (u32, u32), phase: Phase| {
            case(name, packet, Reason::Forwarded)
                .with(joined(side))
                .code(code)
                .sent(&format!("{}:{PORT}", side.node), side.endpoint, 63)
                .leaves(move |frame| {
                    assert_eq!((word(side.tcp(frame), 4), word(side.tcp(frame), 8)), numbers);
                })
                .after(move |world| {
                    let flow = world.found(&side.client_says()).unwrap();
                    assert_eq!((flow.phase, flow.proxied, flow.source_port), (phase, 1, Port::new(PORT)));
                    assert_eq!(sequence(world).number, AHEAD);
                })
        };
        let back = |name, packet: &Packet, phase: Phase| {
            case(name, packet, Reason::Replied)
                .with(joined(side))
                .code(code)
                .sent(side.vip, side.client, 63)
                .leaves(move |frame| {
                    let numbers = (word(side.tcp(frame), 4), word(side.tcp(frame), 8));
                    assert_eq!(numbers, (AHEAD.wrapping_add(700), 800));
                })
                .after(move |world| {
                    assert_eq!(world.found(&side.client_says()).unwrap().phase, phase);
                })
        };
        let client = || side.client_says().numbers(5, 6);
        let endpoint = || side.endpoint_says().numbers(700, 800);
        let acknowledged = 6_u32.wrapping_sub(AHEAD);
        let mut moved =
            there("behind another router", &client(), (5, acknowledged), Phase::CLOSING).with(move |world| {
                joined(side)(world);
                let flows = world.tables.flows.values_mut().flat_map(|bucket| &mut bucket.flows);
                for flow in flows.filter(|flow| flow.head.state.is_live()) {
                    flow.phase = Phase::CLOSING;
                    flow.next_hop.mac = [9; 6];
                }
            });
        moved = moved.after(move |world| {
            let flow = world.found(&side.client_says()).unwrap();
            assert_eq!((flow.next_hop.mac, flow.proxied), (CLIENT_MAC, 1));
            assert_eq!(sequence(world), Sequence::new(AHEAD, flow.head.version, SequenceStage::JOINED));
        });
        moved.frame = client().payload(b"data").flags(ACK | FIN).bytes();
        vec![
            there("data", &client().payload(b"GET / HTTP/1.1"), (5, acknowledged), Phase::OPEN),
            there("options", &client().tcp_options(2), (5, acknowledged), Phase::OPEN),
            there("the end", &client().flags(ACK | FIN), (5, acknowledged), Phase::CLOSING),
            there("a reset", &client().flags(RST), (5, 6), Phase::CLOSING),
            back("data", &endpoint().payload(b"HTTP/1.1 200 OK"), Phase::OPEN),
            back("the end", &endpoint().flags(ACK | FIN), Phase::CLOSING),
            back("a reset", &endpoint().flags(RST | ACK), Phase::CLOSING),
            there("in calm times", &client(), (5, acknowledged), Phase::OPEN).with(move |world| {
                joined(side)(world);
                world.tables.syn_cookies.clear();
                world.change(side.id, |service| service.flags = 0);
            }),
            moved,
        ]
    });
}

#[test]
fn pieces_of_packets_keep_their_bytes() {
    let payload: Vec<u8> = (0..100).collect();
    for (side, (hook, _)) in [&V4, &V6].into_iter().flat_map(|side| HOOKS.map(|hook| (side, hook))) {
        let ways = [
            (side.client_says().numbers(5, 6), Reason::Forwarded, (5, 6_u32.wrapping_sub(AHEAD))),
            (side.endpoint_says().numbers(700, 800), Reason::Replied, (AHEAD.wrapping_add(700), 800)),
        ];
        for (packet, reason, numbers) in ways {
            let all = pieces(&packet.payload(&payload).bytes(), 0, 7, &[24, 32, 64]);
            let whole = together(&steps("pieces", hook, joined(side), &all, reason, |_| {}));
            let sent = side.tcp(&whole);
            assert_eq!((word(sent, 4), word(sent, 8), &sent[20..]), (numbers.0, numbers.1, &payload[..]));
        }
    }
}

#[test]
fn errors_quote_the_number_that_the_endpoint_knows() {
    everywhere(|side, code| {
        // Without the port.
        let ip = |addr: &'static str| addr.rsplit_once(':').unwrap().0;
        let too_big = if side.v6 { (2, 0) } else { (3, 4) };
        let answer = tcp(side.vip, side.client).numbers(AHEAD.wrapping_add(700), 800).payload(&[7; 40]);
        let said = |name, quoted: usize| {
            let error = icmp_error(ip(side.client), ip(side.vip), too_big, 1_400, &answer, quoted);
            case(name, &error, Reason::IcmpForwarded).with(joined(side)).code(code).leaves(move |frame| {
                let seen = inspect_icmp(frame).unwrap();
                assert_eq!(seen.destination.to_string(), ip(side.endpoint).trim_matches(['[', ']']));
                let tcp = &seen.payload[if side.v6 { 40 } else { 20 }..];
                assert_eq!(word(tcp, 4), 700);
            })
        };
        let header = if side.v6 { 40 } else { 20 };
        vec![said("all of it", 1_000), said("eight bytes of it", header + 8)]
    });
}
