//! Flows whose home was taken: they stand at another entry of their first bucket, or in their second, and only where one
//! does is looked there.

use gateway_common::{
    addr::Port,
    counter::Reason,
    endpoint::EndpointState,
    flow::{HeadState, Phase, Tick},
    service::{Mode, Track},
};
use gateway_tests::{
    packet::{Packet, tcp},
    world::{TCP4, UDP4, World},
};

use crate::check::{case, check};

const FIRST: &str = "10.0.0.10:8443";
const SECOND: &str = "10.0.0.11:8443";

fn client() -> Packet {
    tcp("192.0.2.9:40000", "198.51.100.1:443")
}

fn client6() -> Packet {
    tcp("[2001:db8:9::9]:40000", "[2001:db8::1]:443")
}

fn alive(world: &World) -> Tick {
    world.now.after(100)
}

/// The first bucket is full of others, and the flow stands in its second, towards the first endpoint.
fn displaced(world: &mut World) {
    world.crowd(&client(), UDP4.0, alive(world));
    world.established(&client(), TCP4.row(), 20_005, Phase::OPEN, world.ago(3));
    assert_eq!(world.n_displaced(&client()), [0, 1]);
}

#[test]
fn a_flow_without_a_place_stands_in_its_second_bucket() {
    let counted = |packet: Packet| {
        move |world: &World| {
            assert_eq!(world.n_displaced(&packet), [0, 1]);
            assert_eq!(world.tables.live().count(), 5);
            assert!(world.found(&packet).is_some());
        }
    };
    check(vec![
        case("over v4", &client().syn(), Reason::Forwarded)
            .with(|world| world.crowd(&client(), UDP4.0, alive(world)))
            .sent("10.0.0.1:?", FIRST, 63)
            .after(counted(client())),
        case("over v6", &client6().syn(), Reason::Forwarded)
            .with(|world| world.crowd(&client6(), UDP4.0, alive(world)))
            .sent("[fd00::1]:?", "[fd00::10]:8443", 63)
            .after(counted(client6())),
        case("and counts beside others", &client().syn(), Reason::Forwarded)
            .with(|world| {
                world.crowd(&client(), UDP4.0, alive(world));
                for word in 0..8 {
                    world.tables.displaced.insert(word, 0x3b3b_3b3b_3b3b_3b3b);
                }
            })
            .sent("10.0.0.1:?", FIRST, 63)
            .after(|world| {
                assert_eq!(world.n_displaced(&client()), [3, 8]);
                let sum: u32 =
                    world.tables.displaced.values().flat_map(|word| word.to_ne_bytes()).map(u32::from).sum();
                assert_eq!(sum, 64 * 0x3b + 8, "no other count changed");
            }),
        case("a count at its end stays there", &client().syn(), Reason::Forwarded)
            .with(|world| {
                world.crowd(&client(), UDP4.0, alive(world));
                for word in 0..8 {
                    world.tables.displaced.insert(word, u64::MAX);
                }
            })
            .sent("10.0.0.1:?", FIRST, 63)
            .after(|world| assert!(world.tables.displaced.values().all(|word| *word == u64::MAX))),
    ]);
}

#[test]
fn a_displaced_flow_is_found() {
    let moved = |world: &mut World| {
        displaced(world);
        world.slots(TCP4, 1);
    };
    check(vec![
        case("it stays where it is", &client(), Reason::Forwarded)
            .with(moved)
            .sent("10.0.0.1:?", FIRST, 63)
            .after(|world| {
                assert_eq!((world.tables.live().count(), world.n_displaced(&client())), (5, [0, 1]));
                assert_eq!(world.tables.service_counts[&TCP4.0].new_flows, 0);
            }),
        case("it selects again in its place", &client(), Reason::Forwarded)
            .with(move |world| {
                moved(world);
                world.row(TCP4.row()).state = EndpointState::DOWN;
            })
            .sent("10.0.0.1:?", SECOND, 63)
            .after(|world| {
                assert_eq!((world.tables.live().count(), world.n_displaced(&client())), (5, [0, 1]));
            }),
        case(
            "where none is counted nobody looks, until both buckets are seen to be taken",
            &client(),
            Reason::FlowContended,
        )
        .with(move |world| {
            moved(world);
            world.tables.displaced.clear();
        }),
    ]);
}

/// A flow whose first bucket is the second of the one above.
fn neighbor() -> Packet {
    let world = World::new(Tick::new(0));
    let [_, second] = world.buckets(&client());
    let mut packets = (40_001..u16::MAX).map(|port| tcp(&format!("192.0.2.9:{port}"), "198.51.100.1:443"));
    let is_next = |packet: &Packet| {
        let [first, other] = world.buckets(packet);
        first == second && other != second
    };
    packets.find(is_next).expect("one of a few dozen")
}

#[test]
fn a_displaced_flow_that_goes_is_counted_no_more() {
    check(vec![
        case("its place is another's, whose first bucket this is", &neighbor().syn(), Reason::Forwarded)
            .with(|world| {
                displaced(world);
                let expires = alive(world);
                for bucket in 0..gateway_tests::kernel_run::BUCKETS {
                    for flow in &mut world.tables.flows.entry(bucket).or_default().flows {
                        if flow.head.state.is_live() && flow.service == TCP4.0 {
                            flow.expires = Tick::new(expires.count() - 101);
                        } else {
                            flow.head.state = HeadState::LIVE;
                            (flow.service, flow.expires) = (UDP4.0, expires);
                        }
                    }
                }
            })
            .sent("10.0.0.1:?", FIRST, 63)
            .after(|world| {
                assert_eq!((world.n_displaced(&client()), world.n_displaced(&neighbor())[1]), ([0, 0], 0));
                assert!(world.found(&client()).is_none() && world.found(&neighbor()).is_some());
            }),
        case("its slot alone decides again", &client(), Reason::Forwarded)
            .with(|world| {
                world.change(TCP4, |service| (service.mode, service.track) = (Mode::DSR_L2, Track::CHANGE));
                world.crowd(&client(), UDP4.0, alive(world));
                world.flow(&client(), TCP4.row(), 0, Phase::OPEN, world.ago(3));
                assert_eq!(world.n_displaced(&client()), [0, 1]);
            })
            .leaves(|_| {})
            .after(|world| {
                assert_eq!(world.n_displaced(&client()), [0, 0]);
                assert!(world.found(&client()).is_none());
            }),
    ]);
}

/// The home of the client's flow is another's, and the flow stands at the next entry, towards the first endpoint.
fn beside(world: &mut World) {
    world.occupy(&client(), 0..1, UDP4.0, alive(world));
    world.established(&client(), TCP4.row(), 20_005, Phase::OPEN, world.ago(3));
    assert_eq!(world.n_displaced(&client()), [1, 0]);
}

/// The one at the client's home goes.
fn leave(world: &mut World) {
    let home = world.home(&client());
    home.head.state = HeadState::FREE;
    let is_flow = home.client_port != Port::NONE;
    world.tables.service_flows.remove(&UDP4.0);
    if is_flow {
        world.tables.endpoint_flows.remove(&0);
    }
}

#[test]
fn a_flow_whose_home_is_taken_stands_beside_it() {
    let moved = |world: &mut World| {
        beside(world);
        world.slots(TCP4, 1);
    };
    check(vec![
        case("a new one", &client().syn(), Reason::Forwarded)
            .with(|world| world.occupy(&client(), 0..1, UDP4.0, alive(world)))
            .sent("10.0.0.1:?", FIRST, 63)
            .after(|world| {
                assert_eq!((world.tables.live().count(), world.n_displaced(&client())), (2, [1, 0]));
            }),
        case("at home it is not counted", &client().syn(), Reason::Forwarded)
            .with(|world| world.occupy(&client(), 1..4, UDP4.0, alive(world)))
            .sent("10.0.0.1:?", FIRST, 63)
            .after(|world| {
                assert_eq!((world.tables.live().count(), world.n_displaced(&client())), (4, [0, 0]));
            }),
        case("a known one is found", &client(), Reason::Forwarded)
            .with(moved)
            .sent("10.0.0.1:?", FIRST, 63)
            .after(|world| assert_eq!(world.tables.service_counts[&TCP4.0].new_flows, 0)),
        case("also when its home is free again", &client(), Reason::Forwarded)
            .with(move |world| {
                moved(world);
                leave(world);
            })
            .sent("10.0.0.1:?", FIRST, 63)
            .after(|world| {
                assert_eq!((world.tables.live().count(), world.n_displaced(&client())), (1, [1, 0]));
            }),
        case("where none is counted nobody looks", &client(), Reason::Forwarded)
            .with(move |world| {
                moved(world);
                world.tables.displaced.clear();
                leave(world);
            })
            .sent("10.0.0.1:?", SECOND, 63)
            .after(|world| assert_eq!(world.tables.live().count(), 2)),
        case(
            "while another processor records it there, both give way",
            &client().syn(),
            Reason::FlowContended,
        )
        .with(move |world| {
            beside(world);
            let flows = world.tables.flows.values_mut().flat_map(|bucket| &mut bucket.flows);
            for flow in flows.filter(|flow| flow.service == TCP4.0 && flow.head.state.is_live()) {
                flow.head.state = HeadState::BUSY;
            }
        })
        .after(|world| assert_eq!(world.n_displaced(&client()), [1, 0])),
        case("its slot alone decides again, and it is counted no more", &client(), Reason::Forwarded)
            .with(move |world| {
                world.change(TCP4, |service| (service.mode, service.track) = (Mode::DSR_L2, Track::CHANGE));
                world.occupy(&client(), 0..1, UDP4.0, alive(world));
                world.flow(&client(), TCP4.row(), 0, Phase::OPEN, world.ago(3));
                assert_eq!(world.n_displaced(&client()), [1, 0]);
            })
            .leaves(|_| {})
            .after(|world| {
                assert_eq!(world.n_displaced(&client()), [0, 0]);
                assert!(world.found(&client()).is_none());
            }),
    ]);
}
