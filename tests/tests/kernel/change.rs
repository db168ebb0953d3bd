//! Slots that change: flows stay where they are while the endpoint of their slot becomes another one.

use gateway_common::{
    addr::Port,
    counter::Reason,
    endpoint::EndpointState,
    flow::{Phase, Tick},
    service::{Mode, Service, Track},
    slot::{Slot, SlotChunk},
};
use gateway_tests::{
    packet::{ACK, FIN, Packet, tcp, udp},
    world::{Id, TCP4, TIMEOUTS, UDP4, World},
};

use crate::check::{Case, case, check};

const VIP: &str = "198.51.100.1:443";
const DNS: &str = "198.51.100.1:53";
const CLIENT: &str = "192.0.2.9:40000";

/// Which endpoint a frame that was sent over the link went to.
fn to_endpoint(nth: u8) -> impl Fn(&[u8]) {
    move |frame| assert_eq!(frame[5], 0x10 + nth, "the endpoint")
}

/// Both services return directly, and every slot leads to the second endpoint where it led to the first before.
fn changing(world: &mut World) {
    for id in [TCP4, UDP4] {
        world.change(id, |service| {
            (service.mode, service.track, service.affinity_ticks) = (Mode::DSR_L2, Track::CHANGE, 40);
        });
        for nth in 0..2 {
            world.row(id.row() + nth).next_hop.mac[5] = 0x10 + u8::try_from(nth).unwrap();
        }
    }
    slots(world, 1, 0);
}

/// Every slot leads to the second endpoint, and the table before, of another size and with rows of its own, to the first.
fn grown(world: &mut World) {
    changing(world);
    slots(world, 1, Slot::ELSEWHERE);
    half_before(world, Slot { endpoint: 0, former: 0 });
    for id in [TCP4, UDP4] {
        world.change(id, |service| {
            service.tables[0].n_slots = 1;
            service.tables[0].n_endpoints = 1;
        });
    }
}

/// The half that is not current.
fn half_before(world: &mut World, slot: Slot) {
    for id in [TCP4, UDP4] {
        let mut first = 0;
        world.change(id, |service| first = service.idle_table().first_chunk);
        world.tables.chunks.insert(first, SlotChunk { slots: [slot; SlotChunk::LEN] });
    }
}

fn slots(world: &mut World, endpoint: u16, former: u16) {
    for chunk in world.tables.chunks.values_mut() {
        if chunk.slots[0].endpoint != 999 {
            *chunk = SlotChunk { slots: [Slot { endpoint, former }; SlotChunk::LEN] };
        }
    }
}

/// A case whose packet goes to the nth endpoint, after which so many flows are remembered.
fn goes(name: &'static str, packet: &Packet, nth: u8, remembered: usize) -> Case {
    case(name, packet, Reason::Forwarded).with(changing).leaves(to_endpoint(nth)).after(move |world| {
        assert_eq!(world.tables.live().count(), remembered);
        let held: u64 = world.tables.service_flows.values().sum();
        assert_eq!(usize::try_from(held).unwrap(), remembered, "the count of entries");
    })
}

fn known(
    name: &'static str,
    packet: &Packet,
    (id, at): (Id, u32),
    and: fn(&mut World),
    (nth, n): (u8, usize),
) -> Case {
    let flow = packet.clone();
    goes(name, packet, nth, n).with(move |world| {
        changing(world);
        world.flow(&flow, id.row() + at, 0, Phase::OPEN, world.ago(1));
        and(world);
    })
}

fn client() -> Packet {
    tcp(CLIENT, VIP)
}

#[test]
fn flows_stay_through_a_change() {
    let settled = |world: &mut World| {
        changing(world);
        slots(world, 1, 1);
    };
    let never = |world: &mut World| {
        changing(world);
        world.change(TCP4, |service| service.track = Track::NEVER);
    };
    let draining = move |world: &mut World| {
        never(world);
        world.row(TCP4.row()).state = EndpointState::DRAINING;
        world.row(TCP4.row() + 1).state = EndpointState::DRAINING;
    };
    let state = |nth: u32, state: EndpointState| {
        move |world: &mut World| {
            changing(world);
            world.row(TCP4.row() + nth).state = state;
            world.row(UDP4.row() + nth).state = state;
        }
    };
    check(vec![
        goes("a syn goes to the new endpoint and is remembered", &client().syn(), 1, 1),
        goes("the middle of a flow goes where it was, and is remembered", &client(), 0, 1),
        goes("udp goes where it was", &udp(CLIENT, DNS), 0, 1),
        goes("and stays for as long as datagrams do, though no answer passes here", &udp(CLIENT, DNS), 0, 1)
            .after(|world| {
                let udp_ticks = world.tables.settings.udp_ticks;
                let flows: Vec<_> = world.tables.live().map(|flow| (flow.phase, flow.expires)).collect();
                assert_eq!(flows, [(Phase::OPEN, world.now.after(udp_ticks))]);
            }),
        goes("nothing changed: nothing is remembered", &client().syn(), 1, 0).with(settled),
        goes("a former endpoint that drains keeps its flows", &client(), 0, 1)
            .with(state(0, EndpointState::DRAINING)),
        goes("but no datagrams", &udp(CLIENT, DNS), 1, 1).with(state(0, EndpointState::DRAINING)),
        goes("a former endpoint that is down is left", &client(), 1, 1).with(state(0, EndpointState::DOWN)),
        goes("a service that remembers nothing follows its slots", &client(), 1, 0).with(never),
        goes("also while all its endpoints drain", &client(), 1, 0).with(draining),
        goes("to where its connections began", &client().syn(), 1, 0).with(draining),
    ]);
}

#[test]
fn flows_stay_when_the_table_before_is_of_another_size() {
    let former = |and: fn(&mut World)| {
        move |world: &mut World| {
            grown(world);
            and(world);
        }
    };
    let half = |slot: Slot| {
        move |world: &mut World| {
            grown(world);
            half_before(world, slot);
        }
    };
    let twice = Slot { endpoint: 0, former: Slot::ELSEWHERE };
    check(vec![
        goes("a syn goes to the new endpoint and is remembered", &client().syn(), 1, 1).with(grown),
        goes("the middle of a flow goes where the table before says", &client(), 0, 1).with(grown),
        goes("and so does udp", &udp(CLIENT, DNS), 0, 1).with(grown),
        goes("to where that was going before", &client(), 0, 1).with(half(Slot { endpoint: 1, former: 0 })),
        goes("of which only one is kept", &client(), 0, 1).with(half(twice)),
        goes("one that is down is left", &client(), 1, 1)
            .with(former(|world| world.row(TCP4.row()).state = EndpointState::DOWN)),
        goes("one that drains keeps its flows", &client(), 0, 1)
            .with(former(|world| world.row(TCP4.row()).state = EndpointState::DRAINING)),
        goes("a row that is another service's is left", &client(), 1, 1)
            .with(former(|world| world.row(TCP4.row()).service = UDP4.0)),
        goes("rows beyond the table are left", &client(), 1, 1)
            .with(former(|world| world.change(TCP4, |service| service.tables[0].n_endpoints = 0))),
        goes("there was none", &client(), 1, 1)
            .with(former(|world| world.change(TCP4, |service| service.tables[0].n_slots = 0))),
        goes("rows that moved", &client(), 0, 1).with(former(|world| {
            world.change(TCP4, |service| {
                // The first endpoint of the new range is nobody, the second the same as before.
                service.tables[1].first_endpoint = TCP4.row() + 1;
                service.tables[1].n_endpoints = 1;
            });
            slots(world, 0, Slot::ELSEWHERE);
            half_before(world, Slot { endpoint: 0, former: 0 });
        })),
        known("what is remembered wins", &client(), (TCP4, 1), grown, (1, 1)),
    ]);
}

#[test]
fn what_is_remembered_holds() {
    let nothing = |_: &mut World| {};
    let settle = |world: &mut World| slots(world, 1, 1);
    let back = |world: &mut World| slots(world, 0, 0);
    let down = |world: &mut World| world.row(TCP4.row()).state = EndpointState::DOWN;
    let drain = |world: &mut World| world.state(UDP4, EndpointState::DRAINING);
    check(vec![
        known("on the former endpoint", &client(), (TCP4, 0), nothing, (0, 1)),
        known("on the new endpoint", &client(), (TCP4, 1), nothing, (1, 1)),
        known("after the window closed", &client(), (TCP4, 0), settle, (0, 1)),
        known("until the slot leads there by itself", &client(), (TCP4, 0), back, (0, 0)),
        known("unless its endpoint is down", &client(), (TCP4, 0), down, (1, 1)),
        known("a fin", &client().flags(FIN | ACK), (TCP4, 0), nothing, (0, 1)).after(|world| {
            let flow = world.found(&client()).unwrap();
            assert_eq!((flow.phase, flow.expires), (Phase::CLOSING, world.now.after(TIMEOUTS.closing)));
        }),
        known("udp", &udp(CLIENT, DNS), (UDP4, 0), nothing, (0, 1)),
        known("udp while all drain", &udp(CLIENT, DNS), (UDP4, 1), drain, (1, 1)).after(|world| {
            assert_eq!(world.tables.service_counts[&UDP4.0].new_flows, 0);
            assert_eq!(world.tables.live().count(), 1);
        }),
        known(
            "udp whose endpoint drains selects again",
            &udp(CLIENT, DNS),
            (UDP4, 0),
            |world| {
                world.row(UDP4.row()).state = EndpointState::DRAINING;
            },
            (1, 1),
        ),
    ]);
}

#[test]
fn a_flow_without_a_place_goes_on_and_is_counted() {
    let full =
        |name, packet: &Packet, (nth, flags): (u8, u16), track, (unrecorded, new_flows): (u64, u64)| {
            goes(name, packet, nth, 256)
                .with(move |world| {
                    changing(world);
                    fill(world, UDP4.0, world.now.after(100));
                    world.change(UDP4, |service| service.flow_share = 256);
                    world.change(TCP4, |service| (service.track, service.flags) = (track, flags));
                })
                .after(move |world| {
                    let counts = world.tables.service_counts[&TCP4.0];
                    assert_eq!((counts.unrecorded, counts.new_flows), (unrecorded, new_flows));
                    assert_eq!(world.tables.service_flows[&UDP4.0], 256);
                    assert_eq!(world.tables.live().count(), 256);
                })
        };
    let sticky = Service::AFFINITY;
    check(vec![
        full("every place is another service's", &client(), (0, 0), Track::CHANGE, (1, 0)),
        full("of a service that remembers all", &client().syn(), (1, 0), Track::ALWAYS, (1, 1)),
        full("in the middle of a connection", &client(), (1, 0), Track::ALWAYS, (1, 0)),
        full("nor has its client a place", &client().syn(), (1, sticky), Track::ALWAYS, (2, 1)),
    ]);
}

/// Every entry of the table is a flow of a service.
fn fill(world: &mut World, service: u32, expires: Tick) {
    let mut number = 0_u16;
    for bucket in 0..gateway_tests::kernel_run::BUCKETS {
        let at = world.tables.flows.entry(bucket).or_default();
        for flow in &mut at.flows {
            number += 1;
            flow.head.state = gateway_common::flow::HeadState::LIVE;
            (flow.client_port, flow.service, flow.expires) = (Port::new(number), service, expires);
        }
    }
    world.tables.service_flows.insert(service, u64::from(number));
}

#[test]
fn places_are_taken_from_whoever_has_too_many() {
    let full = |name, reason: Reason, share: u32, expires: fn(Tick) -> Tick| {
        let taken = case(name, &client().syn(), reason).with(move |world| {
            fill(world, UDP4.0, expires(world.now));
            world.change(UDP4, |service| service.flow_share = share);
        });
        if reason == Reason::Forwarded { taken.sent("10.0.0.1:?", "10.0.0.10:8443", 63) } else { taken }
    };
    let alive = |now: Tick| now.after(100);
    let over = |now: Tick| Tick::new(now.count().wrapping_sub(1));
    check(vec![
        full("from a service with more than its share", Reason::Forwarded, 100, alive).after(|world| {
            assert_eq!(world.tables.service_flows[&UDP4.0], 255);
            assert_eq!(world.tables.service_flows[&TCP4.0], 1);
        }),
        full("never from one within its share", Reason::FlowTableFull, 256, alive)
            .after(|world| assert_eq!(world.tables.service_flows[&UDP4.0], 256)),
        full("from flows that are over, whoever's they are", Reason::Forwarded, 256, over)
            .after(|world| assert_eq!(world.tables.service_flows[&UDP4.0], 255)),
        case("not for a service that has too many itself", &client().syn(), Reason::FlowTableFull).with(
            move |world| {
                fill(world, UDP4.0, alive(world.now));
                world.change(UDP4, |service| service.flow_share = 1);
                world.change(TCP4, |service| service.flow_share = 0);
                world.tables.service_flows.insert(TCP4.0, 1);
            },
        ),
    ]);
}

/// Where a client's entry stands.
fn remember_client(world: &mut World, row: u32, expires: Tick) {
    world.client(client().key().source, TCP4, row, expires);
}

#[test]
fn a_client_keeps_its_endpoint() {
    let sticky = |world: &mut World| {
        world.change(TCP4, |service| (service.flags, service.affinity_ticks) = (Service::AFFINITY, 40));
        world.slots(TCP4, 1);
    };
    let direct = |world: &mut World| {
        changing(world);
        slots(world, 1, 1);
        world.change(TCP4, |service| (service.flags, service.track) = (Service::AFFINITY, Track::ALWAYS));
    };
    let kept = |name, expires: fn(Tick) -> Tick, to: &str| {
        case(name, &client().syn(), Reason::Forwarded)
            .with(move |world| {
                sticky(world);
                remember_client(world, TCP4.row(), expires(world.now));
            })
            .sent("10.0.0.1:?", to, 63)
            .after(|world| {
                assert_eq!(world.tables.live().count(), 2, "the client and its flow");
                let clients = world.tables.live().filter(|flow| flow.client_port.number() == 0);
                assert!(clients.into_iter().all(|flow| flow.expires == world.now.after(40)));
            })
    };
    check(vec![
        case("a first connection", &client().syn(), Reason::Forwarded)
            .with(sticky)
            .sent("10.0.0.1:?", "10.0.0.11:8443", 63)
            .after(|world| assert_eq!(world.tables.live().count(), 2)),
        kept("the next one goes there too", |now| now.after(1), "10.0.0.10:8443"),
        kept("unless it comes too late", |now| Tick::new(now.count() - 1), "10.0.0.11:8443"),
        case("unless its endpoint drains", &client().syn(), Reason::Forwarded)
            .with(move |world| {
                sticky(world);
                remember_client(world, TCP4.row(), world.now.after(1));
                world.row(TCP4.row()).state = EndpointState::DRAINING;
            })
            .sent("10.0.0.1:?", "10.0.0.11:8443", 63),
        goes("by direct return, too", &client().syn(), 0, 2).with(move |world| {
            direct(world);
            remember_client(world, TCP4.row(), world.now.after(1));
        }),
        goes("where a connection stays when the client's next one begins elsewhere", &client(), 0, 2).with(
            move |world| {
                direct(world);
                remember_client(world, TCP4.row() + 1, world.now.after(1));
                world.flow(&client(), TCP4.row(), 0, Phase::OPEN, world.ago(1));
                world.row(TCP4.row()).state = EndpointState::DRAINING;
            },
        ),
        goes("a connection that nobody remembers is with the client's endpoint", &client(), 0, 2).with(
            move |world| {
                direct(world);
                remember_client(world, TCP4.row(), world.now.after(1));
            },
        ),
    ]);
}
