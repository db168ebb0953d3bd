//! Sources: networks that are refused, sources that are forged, and how many new flows may begin.

use gateway_common::{
    addr::{Addr, Protocol},
    counter::{Hook, Reason},
    flow::Phase,
    hash,
    map::SOURCE_BUCKETS,
    service::{Mode, Rate, Service, Track},
    settings::Settings,
    source::{self, RefusedSource, ServiceRate, SourceRule},
};
use gateway_tests::{
    packet::{Packet, icmp_error, tcp, udp},
    world::{AGENT4, Id, TCP4, TCP6, TICK_SHIFT, UDP4, UDP6, World, addr_of},
};

use crate::check::{Case, case, check, raw};

const VIP4: &str = "198.51.100.1:443";
const AGENT: &str = "198.51.100.1:80";
const DNS4: &str = "198.51.100.1:53";
const VIP6: &str = "[2001:db8::1]:443";
const DNS6: &str = "[2001:db8::1]:53";
const CLIENT4: &str = "192.0.2.9:40000";
const CLIENT6: &str = "[2001:db8:9::9]:40000";

fn list(world: &mut World, network: &str, rule: SourceRule) {
    let (addr, bits) = network.split_once('/').expect("a network");
    world.tables.list(addr_of(addr), bits.parse().expect("bits"), rule);
}

/// A packet in a world where these networks are listed.
fn listed(
    name: &'static str,
    packet: &Packet,
    rules: &'static [(&'static str, SourceRule)],
    reason: Reason,
) -> Case {
    case(name, packet, reason)
        .with(|world| rules.iter().for_each(|(network, rule)| list(world, network, *rule)))
}

fn refused(world: &World) -> RefusedSource {
    let mut all = world.tables.refused_sources();
    let one = *all.next().expect("a source is remembered");
    assert_eq!(all.next(), None);
    one
}

#[test]
fn networks_are_denied() {
    let denied = |name, packet: &Packet, rules| {
        let source = source::site(packet.key().source);
        listed(name, packet, rules, Reason::Denied).after(move |world| {
            let one = refused(world);
            assert_eq!((one.site, one.packets, one.doubtful, one.last), (source, 1, 0, world.now));
            assert_eq!(one.reason, Reason::Denied.number());
        })
    };
    let passes = |name, packet: &Packet, rules, to: &str| {
        let source = if packet.key().source.is_v4() { "10.0.0.1:?" } else { "[fd00::1]:?" };
        listed(name, packet, rules, Reason::Forwarded)
            .sent(source, to, 63)
            .after(|world| assert_eq!(world.tables.refused_sources().count(), 0))
    };
    let open = tcp(CLIENT4, VIP4);
    check(vec![
        denied("an address", &tcp(CLIENT4, VIP4).syn(), &[("192.0.2.9/32", SourceRule::DENY)]),
        denied("a network", &udp(CLIENT4, DNS4), &[("192.0.2.0/24", SourceRule::DENY)]),
        denied(
            "everything",
            &tcp(CLIENT4, VIP4).syn(),
            &[("0.0.0.0/0", SourceRule::DENY), (MARK4, SourceRule::ALLOW)],
        ),
        denied("at tc", &tcp(CLIENT4, VIP4).syn(), &[("192.0.2.0/24", SourceRule::DENY)]).at(Hook::TcIngress),
        denied("a service of the agent", &tcp(CLIENT4, AGENT).syn(), &[("192.0.2.0/24", SourceRule::DENY)]),
        denied("a flow that is open", &open, &[("192.0.2.0/24", SourceRule::DENY)]).with(|world| {
            world.established(&tcp(CLIENT4, VIP4), TCP4.row(), 20_005, Phase::OPEN, world.now);
            list(world, "192.0.2.0/24", SourceRule::DENY);
        }),
        denied("an address over v6", &tcp(CLIENT6, VIP6).syn(), &[("2001:db8:9::9/128", SourceRule::DENY)]),
        denied("a network over v6", &tcp(CLIENT6, VIP6).syn(), &[("2001:db8::/32", SourceRule::DENY)]),
        denied("a short network over v6", &tcp(CLIENT6, VIP6).syn(), &[("2001::/16", SourceRule::DENY)]),
        passes(
            "an exception",
            &tcp(CLIENT4, VIP4).syn(),
            &[("192.0.2.0/24", SourceRule::DENY), ("192.0.2.8/31", SourceRule::ALLOW)],
            "10.0.0.10:8443",
        ),
        passes(
            "a neighbor",
            &tcp(CLIENT4, VIP4).syn(),
            &[("192.0.2.8/32", SourceRule::DENY)],
            "10.0.0.10:8443",
        ),
        passes(
            "elsewhere",
            &tcp(CLIENT4, VIP4).syn(),
            &[("203.0.113.0/24", SourceRule::DENY)],
            "10.0.0.10:8443",
        ),
        passes(
            "v6 elsewhere",
            &tcp(CLIENT6, VIP6).syn(),
            &[("2001:db8:8::/48", SourceRule::DENY)],
            "[fd00::10]:8443",
        ),
        listed("a packet to nobody", &tcp(CLIENT4, "198.51.100.1:9"), DENY4, Reason::NoService),
        listed("a packet elsewhere", &tcp(CLIENT4, "203.0.113.1:443"), DENY4, Reason::NotOurs),
    ]);
}

#[test]
fn messages_about_flows_are_their_senders() {
    let message = |name, rules: &'static [(&'static str, SourceRule)], reason| {
        let reply = tcp(VIP4, CLIENT4);
        let message = icmp_error("203.0.113.1", "198.51.100.1", (3, 3), 0, &reply, 28);
        raw(name, message.bytes(), reason).leaves(|_| {}).with(move |world| {
            world.established(&tcp(CLIENT4, VIP4), TCP4.row(), 20_005, Phase::OPEN, world.now);
            for (network, rule) in rules {
                list(world, network, *rule);
            }
        })
    };
    check(vec![
        message("of a router that is refused", &[("203.0.113.0/24", SourceRule::DENY)], Reason::Denied)
            .after(|world| {
                assert_eq!(refused(world).site, source::site(addr_of("203.0.113.1")));
                assert_eq!(world.tables.service_counts[&TCP4.0].dropped, 1);
            }),
        message("of a router to a client that is refused", DENY4, Reason::IcmpForwarded),
    ]);
    let back = |name, rules: &'static [(&'static str, SourceRule)], reason| {
        let request = tcp("10.0.0.1:20005", "10.0.0.10:8443");
        let error = icmp_error("203.0.113.1", "10.0.0.1", (3, 3), 0, &request, 28);
        raw(name, error.bytes(), reason).leaves(|_| {}).with(move |world| {
            world.established(&tcp(CLIENT4, VIP4), TCP4.row(), 20_005, Phase::OPEN, world.now);
            for (network, rule) in rules {
                list(world, network, *rule);
            }
        })
    };
    check(vec![
        back(
            "to a client, of a router that is refused",
            &[("203.0.113.0/24", SourceRule::DENY)],
            Reason::Denied,
        )
        .after(|world| {
            assert_eq!(refused(world).site, source::site(addr_of("203.0.113.1")));
            assert_eq!(world.tables.service_counts[&TCP4.0].dropped, 1);
        }),
        back("to a client, of any other router", DENY4, Reason::IcmpForwarded),
    ]);
}

/// Sets the bit of the client's network: the agent sets all of them for a network without any.
const MARK4: &str = "192.0.0.0/24";
const DENY4: &[(&str, SourceRule)] = &[("192.0.2.0/24", SourceRule::DENY)];

#[test]
fn forged_sources_are_dropped() {
    let forged = |name, packet: &Packet, rules| {
        listed(name, packet, rules, Reason::ForgedSource)
            .after(|world| assert_eq!(refused(world).reason, Reason::ForgedSource.number()))
    };
    check(vec![
        forged(
            "this host",
            &tcp("127.0.0.1:9", VIP4).syn(),
            &[("127.0.0.0/8", SourceRule::FORGED), ("127.0.0.0/16", SourceRule::FORGED)],
        ),
        forged("a group over v6", &tcp("[ff02::1]:9", VIP6).syn(), &[("ff02::/16", SourceRule::FORGED)]),
    ]);
}

/// So slow a clock that a tick of the tests is nothing against a step between two flows.
const SLOW: u16 = 60_000;
const STEP: u64 = 60_000 << 32;

/// The instant of a world.
fn instant(world: &World) -> u64 {
    u64::from(world.now.count()) << (32 + u32::from(TICK_SHIFT))
}

/// A service takes one new flow in a second and three at once.
fn limit(world: &mut World, id: Id, change: impl Fn(&mut Service, Rate)) {
    world.tables.settings.guards |= Settings::RATES;
    world.tables.settings.interrupts = SLOW;
    world.change(id, |service| {
        service.flags |= Service::LIMITED;
        change(service, Rate { per_second: 1, burst: 3 });
    });
    for client in [CLIENT4, CLIENT6] {
        let client: std::net::SocketAddr = client.parse().expect("addr:port");
        let (bucket, _) = place(world, id, client.ip().into());
        world.tables.source_rates.entry(bucket).or_default();
    }
}

/// A service has taken so many flows just now.
fn taken(world: &mut World, id: Id, flows: u64) {
    limit(world, id, |service, rate| service.flow_rate = rate);
    let full_at = instant(world).wrapping_add(flows * STEP);
    world.tables.service_rates.insert(id.0, ServiceRate { full_at });
}

/// A source has begun so many flows just now.
fn begun(world: &mut World, id: Id, source: Addr, flows: u64) {
    limit(world, id, |service, rate| service.source_rate = rate);
    let (bucket, tag) = place(world, id, source);
    let full_at = instant(world).wrapping_add(flows * STEP);
    world.tables.source_rates.entry(bucket).or_default().words[3] = full_at & !0xffff | tag;
}

fn place(world: &World, id: Id, source: Addr) -> (u32, u64) {
    let hash = hash::source(&world.tables.settings.keys, source::site(source), id.0, !source.is_v4());
    (u32::try_from(hash & 0xffff_ffff).unwrap() & (SOURCE_BUCKETS - 1), hash >> 48)
}

/// A flow of datagrams that has been silent for longer than it is remembered.
fn silent(world: &mut World) {
    let seen = world.ago(world.tables.settings.udp_ticks + 1);
    world.established(&udp(CLIENT4, DNS4), UDP4.row(), 20_005, Phase::OPEN, seen);
}

#[test]
fn services_limit_new_flows() {
    let at = |name, packet: Packet, id, flows, reason| {
        let case = case(name, &packet, reason).with(move |world| taken(world, id, flows));
        if reason == Reason::Forwarded { sent(case, &packet) } else { case }
    };
    let one_more = |world: &World, id: Id, flows: u64| {
        let ahead = world.tables.service_rates[&id.0].full_at.wrapping_sub(instant(world));
        assert_eq!(ahead / STEP, flows);
    };
    check(vec![
        at("a bucket that is full", tcp(CLIENT4, VIP4).syn(), TCP4, 0, Reason::Forwarded)
            .after(move |world| one_more(world, TCP4, 1)),
        at("its last token", tcp(CLIENT4, VIP4).syn(), TCP4, 2, Reason::Forwarded)
            .after(move |world| one_more(world, TCP4, 3)),
        at("an empty bucket", tcp(CLIENT4, VIP4).syn(), TCP4, 3, Reason::ServiceLimited)
            .after(move |world| one_more(world, TCP4, 3)),
        at("an empty bucket over v6", tcp(CLIENT6, VIP6).syn(), TCP6, 3, Reason::ServiceLimited),
        at("a token over v6", tcp(CLIENT6, VIP6).syn(), TCP6, 2, Reason::Forwarded),
        at("a service of the agent", tcp(CLIENT4, AGENT).syn(), AGENT4, 3, Reason::ServiceLimited),
        at("a service of the agent with a token", tcp(CLIENT4, AGENT).syn(), AGENT4, 2, Reason::Agent),
        at("what is no syn at the agent", tcp(CLIENT4, AGENT), AGENT4, 3, Reason::Agent),
        at("udp that nobody knows", udp(CLIENT4, DNS4), UDP4, 3, Reason::ServiceLimited),
        at("udp with a token", udp(CLIENT4, DNS4), UDP4, 1, Reason::Forwarded),
        at("tcp that nobody knows", tcp(CLIENT4, VIP4), TCP4, 3, Reason::ServiceLimited),
        case("udp that begins anew after a silence", &udp(CLIENT4, DNS4), Reason::ServiceLimited)
            .with(|world| {
                silent(world);
                taken(world, UDP4, 3);
            })
            .after(move |world| one_more(world, UDP4, 3)),
        case("udp that begins anew with a token", &udp(CLIENT4, DNS4), Reason::Forwarded)
            .with(|world| {
                silent(world);
                taken(world, UDP4, 2);
            })
            .sent("10.0.0.1:?", "10.0.0.10:5353", 63)
            .after(move |world| one_more(world, UDP4, 3)),
        case("a flow that is open", &tcp(CLIENT4, VIP4), Reason::Forwarded)
            .with(|world| {
                world.established(&tcp(CLIENT4, VIP4), TCP4.row(), 20_005, Phase::OPEN, world.now);
                taken(world, TCP4, 3);
            })
            .sent("10.0.0.1:20005", "10.0.0.10:8443", 63),
        case("another service", &tcp(CLIENT4, VIP4).syn(), Reason::Forwarded)
            .with(|world| taken(world, TCP6, 3))
            .sent("10.0.0.1:?", "10.0.0.10:8443", 63),
    ]);
}

const WAYS: [Mode; 3] = [Mode::DSR_L2, Mode::DSR_IPIP, Mode::DSR_GUE];

/// A packet to a service of direct return that has taken so many flows just now.
fn direct(
    name: &'static str,
    packet: &Packet,
    id: Id,
    way: (Mode, Track),
    flows: u64,
    reason: Reason,
) -> Case {
    let case = case(name, packet, reason).with(move |world| {
        world.change(id, |service| (service.mode, service.track) = way);
        taken(world, id, flows);
    });
    case.leaves(|_| {}).after(move |world| {
        let ahead = world.tables.service_rates[&id.0].full_at.wrapping_sub(instant(world));
        let takes = reason == Reason::Forwarded && flows < 3;
        assert_eq!(ahead / STEP, flows + u64::from(takes));
    })
}

#[test]
fn direct_return_that_forgets_is_bounded_by_its_syns_alone() {
    let mut cases = Vec::new();
    for way in WAYS.into_iter().flat_map(|mode| [(mode, Track::CHANGE), (mode, Track::NEVER)]) {
        for (client, vip, id) in [(CLIENT4, VIP4, TCP4), (CLIENT6, VIP6, TCP6)] {
            let at = |name, packet: Packet, flows, reason| direct(name, &packet, id, way, flows, reason);
            cases.push(at("a syn with a token", tcp(client, vip).syn(), 2, Reason::Forwarded));
            cases.push(at("a syn too many", tcp(client, vip).syn(), 3, Reason::ServiceLimited));
            // Whose handshake it ends is not known here.
            cases.push(at("what follows a syn", tcp(client, vip), 3, Reason::Forwarded));
        }
        for (client, vip, id) in [(CLIENT4, DNS4, UDP4), (CLIENT6, DNS6, UDP6)] {
            // Whether it is its flow's first is not known.
            cases.push(direct("a datagram", &udp(client, vip), id, way, 3, Reason::Forwarded));
        }
    }
    check(cases);
}

#[test]
fn direct_return_that_remembers_is_bounded_in_its_flows() {
    let mut cases = Vec::new();
    for way in WAYS.map(|mode| (mode, Track::ALWAYS)) {
        for (client, vip, id) in [(CLIENT4, VIP4, TCP4), (CLIENT6, VIP6, TCP6)] {
            let at = |name, packet: Packet, flows, reason| direct(name, &packet, id, way, flows, reason);
            cases.push(at("a syn with a token", tcp(client, vip).syn(), 2, Reason::Forwarded));
            cases.push(at("a syn too many", tcp(client, vip).syn(), 3, Reason::ServiceLimited));
            // Another node may have begun its connection.
            cases.push(at("a connection that nobody knows", tcp(client, vip), 3, Reason::Forwarded));
        }
        for (client, vip, id) in [(CLIENT4, DNS4, UDP4), (CLIENT6, DNS6, UDP6)] {
            let packet = udp(client, vip);
            cases.push(direct("a datagram with a token", &packet, id, way, 2, Reason::Forwarded));
            cases.push(direct("a datagram too many", &packet, id, way, 3, Reason::ServiceLimited));
            let source = packet.key().source;
            let of_source = |flows, reason| {
                case("a datagram of a source", &packet, reason).leaves(|_| {}).with(move |world| {
                    world.change(id, |service| (service.mode, service.track) = way);
                    begun(world, id, source, flows);
                })
            };
            cases.push(of_source(2, Reason::Forwarded));
            cases.push(of_source(3, Reason::SourceLimited).after(move |world| {
                assert_eq!(refused(world).site, source::site(source));
                assert_eq!(world.tables.live().count(), 0);
            }));
            let known = udp(client, vip);
            cases.push(case("a flow that is known", &packet, Reason::Forwarded).leaves(|_| {}).with(
                move |world| {
                    world.change(id, |service| (service.mode, service.track) = way);
                    world.flow(&known, id.row(), 0, Phase::OPEN, world.now);
                    taken(world, id, 3);
                },
            ));
        }
    }
    check(cases);
}

#[test]
fn a_flow_too_many_leaves_no_client_behind() {
    let mut cases = Vec::new();
    for mode in [Mode::NAT, Mode::DSR_L2, Mode::DSR_IPIP, Mode::DSR_GUE] {
        for (client, vip, id) in [(CLIENT4, DNS4, UDP4), (CLIENT6, DNS6, UDP6)] {
            let at = |name, flows, reason, entries| {
                case(name, &udp(client, vip), reason)
                    .leaves(|_| {})
                    .with(move |world| {
                        world.change(id, |service| {
                            (service.mode, service.track) = (mode, Track::ALWAYS);
                            (service.flags, service.affinity_ticks) = (Service::AFFINITY, 10);
                        });
                        taken(world, id, flows);
                    })
                    .after(move |world| {
                        let held = world.tables.service_flows.get(&id.0).copied().unwrap_or_default();
                        assert_eq!(held, entries);
                        assert_eq!(u64::try_from(world.tables.live().count()).unwrap(), entries);
                    })
            };
            cases.push(at("a datagram of a client with a token", 2, Reason::Forwarded, 2));
            cases.push(at("a datagram of a client too many", 3, Reason::ServiceLimited, 0));
        }
    }
    check(cases);
}

/// To the first endpoint of its service.
fn sent(case: Case, packet: &Packet) -> Case {
    let key = packet.key();
    match (key.source.is_v4(), key.protocol == Protocol::UDP) {
        (true, false) => case.sent("10.0.0.1:?", FIRST, 63),
        (true, true) => case.sent("10.0.0.1:?", "10.0.0.10:5353", 63),
        (false, _) => case.sent("[fd00::1]:?", "[fd00::10]:8443", 63),
    }
}

const FIRST: &str = "10.0.0.10:8443";

#[test]
fn sources_begin_so_many_flows() {
    let from = |name, packet: Packet, source: &'static str, id: Id, flows, reason| {
        let case = case(name, &packet, reason).with(move |world| begun(world, id, addr_of(source), flows));
        if reason == Reason::Forwarded {
            return sent(case, &packet);
        }
        case.after(move |world| assert_eq!(refused(world).site, source::site(addr_of(source))))
    };
    let (syn4, syn6) = (|| tcp(CLIENT4, VIP4).syn(), || tcp(CLIENT6, VIP6).syn());
    check(vec![
        from("it has begun none", syn4(), "192.0.2.9", TCP4, 0, Reason::Forwarded),
        from("its last token", syn4(), "192.0.2.9", TCP4, 2, Reason::Forwarded),
        from("it has begun too many", syn4(), "192.0.2.9", TCP4, 3, Reason::SourceLimited),
        from("another has", syn4(), "192.0.2.10", TCP4, 3, Reason::Forwarded),
        from("it has begun too many over v6", syn6(), "2001:db8:9::9", TCP6, 3, Reason::SourceLimited),
        from("another of its network has", syn6(), "2001:db8:9::77", TCP6, 3, Reason::SourceLimited),
        from("another network has", syn6(), "2001:db8:9:1::9", TCP6, 3, Reason::Forwarded),
        case("one too many takes no token of the service", &syn4(), Reason::SourceLimited)
            .with(|world| {
                taken(world, TCP4, 0);
                begun(world, TCP4, addr_of("192.0.2.9"), 3);
            })
            .after(|world| assert_eq!(world.tables.service_rates[&TCP4.0].full_at, instant(world))),
        case("the source that was silent for longest makes room", &syn4(), Reason::Forwarded)
            .with(|world| {
                limit(world, TCP4, |service, rate| service.source_rate = rate);
                let (bucket, tag) = place(world, TCP4, addr_of("192.0.2.9"));
                let now = instant(world);
                let words = &mut world.tables.source_rates.entry(bucket).or_default().words;
                for (word, ago) in words.iter_mut().zip([0, 1, 2, 3, 4, 9, 5, 6]) {
                    *word = now.wrapping_sub(ago * STEP) & !0xffff | tag ^ 1;
                }
            })
            .sent("10.0.0.1:?", FIRST, 63)
            .after(|world| {
                let (bucket, tag) = place(world, TCP4, addr_of("192.0.2.9"));
                let words = world.tables.source_rates[&bucket].words;
                let at = words.iter().position(|word| word & 0xffff == tag);
                assert_eq!(at, Some(5));
            }),
    ]);
}

#[test]
fn the_sources_that_are_refused_most_are_remembered() {
    let row = |world: &World| {
        let keys = &world.tables.settings.keys;
        let hash = hash::source(keys, addr_of("192.0.2.9"), u32::MAX, false);
        u32::try_from(hash & 511).unwrap()
    };
    // Host only: the kernel's rows begin empty.
    let mut world = World::new(crate::check::now());
    list(&mut world, "192.0.2.0/24", SourceRule::DENY);
    let row = row(&world);
    let other = |host, packets: u64| {
        RefusedSource::new(Addr::v4([203, 0, 113, host]), packets - 1, world.now, 0, Reason::Denied.number())
    };
    let full = [other(1, 7), other(2, 3), other(3, 5), other(4, 9)];
    world.tables.refused.entry(row).or_default().sources = full;
    let run = gateway_tests::memory::Run {
        hook: Hook::XdpBalance,
        ingress: gateway_tests::world::INGRESS,
        now: world.now,
        next_hop: None,
    };
    let frame = tcp(CLIENT4, VIP4).syn().bytes();
    run.packet(&mut world.tables, &frame);
    run.packet(&mut world.tables, &frame);
    let sources = world.tables.refused[&row].sources;
    let seen = sources.map(|one| (one.packets, one.doubtful, one.site == addr_of("192.0.2.9")));
    assert_eq!(seen, [(7, 6, false), (5, 3, true), (5, 4, false), (9, 8, false)]);
}
