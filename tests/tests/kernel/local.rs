//! Endpoints on this node: only the destination is translated, and their replies get the virtual address on egress.

use gateway_common::{
    counter::{Hook, Reason},
    flow::Phase,
};
use gateway_tests::{
    packet::{ACK, CLIENT_MAC, FIN, NODE_MAC, SYN, tcp, udp},
    world::{LOCAL4, LOCAL6, TCP4, World},
};

use crate::check::{case, check, raw, steps};

const VIP4: &str = "198.51.100.2:443";
const VIP6: &str = "[2001:db8::2]:443";
const CLIENT4: &str = "192.0.2.9:40000";
const CLIENT6: &str = "[2001:db8:9::9]:40000";
const XDP_PASS: i32 = 2;
const TC_NEXT: i32 = -1;

#[test]
fn a_local_endpoint_gets_the_clients_address() {
    check(vec![
        case("over v4", &tcp(CLIENT4, VIP4).syn(), Reason::ForwardedLocal)
            .sent(CLIENT4, "10.0.0.1:9000", 64)
            .macs(CLIENT_MAC, NODE_MAC)
            .code(XDP_PASS)
            .after(|world| assert_eq!(world.tables.service_counts[&LOCAL4.0].new_flows, 1)),
        case("over v6", &tcp(CLIENT6, VIP6).syn(), Reason::ForwardedLocal)
            .sent(CLIENT6, "[fd00::1]:9000", 64)
            .code(XDP_PASS),
        case("at tc", &tcp(CLIENT4, VIP4), Reason::ForwardedLocal)
            .at(Hook::TcIngress)
            .sent(CLIENT4, "10.0.0.1:9000", 64)
            .code(TC_NEXT),
        case("on the last hop", &tcp(CLIENT4, VIP4).ttl(1), Reason::ForwardedLocal).sent(
            CLIENT4,
            "10.0.0.1:9000",
            1,
        ),
        case("of a known flow", &tcp(CLIENT4, VIP4), Reason::ForwardedLocal)
            .with(|world| {
                let packet = tcp(CLIENT4, VIP4);
                world.established(&packet, LOCAL4.row(), 40_000, Phase::OPEN, world.ago(2));
            })
            .sent(CLIENT4, "10.0.0.1:9000", 64)
            .after(|world| assert_eq!(world.tables.service_counts[&LOCAL4.0].new_flows, 0)),
        case(
            "of a client whose port is a translation port",
            &tcp("192.0.2.9:20005", VIP4).syn(),
            Reason::ForwardedLocal,
        )
        .sent("192.0.2.9:20005", "10.0.0.1:9000", 64),
    ]);
}

#[test]
fn a_flow_that_was_silent_for_too_long_finds_its_reply_again() {
    check(vec![
        case("over v4, whose place another took", &tcp(CLIENT4, VIP4), Reason::ForwardedLocal)
            .with(|world| {
                let silent = world.ago(400);
                world.flow(&tcp(CLIENT4, VIP4), LOCAL4.row(), 40_000, Phase::OPEN, silent);
            })
            .sent(CLIENT4, "10.0.0.1:9000", 64)
            .after(|world| {
                assert_eq!(world.tables.live().count(), 1);
                assert_eq!(world.tables.replies.len(), 1, "the endpoint's packets lead to it again");
                assert_eq!(world.tables.service_counts[&LOCAL4.0].new_flows, 0);
            }),
    ]);
}

#[test]
fn replies_of_local_endpoints_get_the_virtual_address() {
    let (v4, v6) = (tcp(CLIENT4, VIP4), tcp(CLIENT6, VIP6));
    let closing = v4.clone();
    check(vec![
        case("over v4", &tcp("10.0.0.1:9000", CLIENT4), Reason::Replied)
            .at(Hook::TcEgress)
            .with(move |world| world.established(&v4, LOCAL4.row(), 40_000, Phase::OPENING, world.now))
            .sent(VIP4, CLIENT4, 64)
            .macs(CLIENT_MAC, NODE_MAC)
            .code(TC_NEXT)
            .after(|world| {
                assert_eq!(world.tables.service_counts[&LOCAL4.0].reply_packets, 1);
                assert_eq!(world.tables.endpoint_counts[&LOCAL4.row()].reply_packets, 1);
            }),
        case("over v6", &tcp("[fd00::1]:9000", CLIENT6), Reason::Replied)
            .at(Hook::TcEgress)
            .with(move |world| world.established(&v6, LOCAL6.row(), 40_000, Phase::OPEN, world.ago(1)))
            .sent(VIP6, CLIENT6, 64),
        case("with fin", &tcp("10.0.0.1:9000", CLIENT4).flags(FIN), Reason::Replied)
            .at(Hook::TcEgress)
            .with(move |world| world.established(&closing, LOCAL4.row(), 40_000, Phase::OPEN, world.ago(1)))
            .sent(VIP4, CLIENT4, 64)
            .after(|world| assert_eq!(world.tables.live().next().unwrap().phase, Phase::CLOSING)),
    ]);
}

/// A client whose flow is over comes past the virtual address, from the port that the flow had.
#[test]
fn a_connection_of_its_own_is_not_taken_for_a_flow_that_is_over() {
    let agrees = tcp("10.0.0.1:9000", CLIENT4).flags(SYN | ACK);
    let known = |phase, silent| {
        move |world: &mut World| {
            world.established(&tcp(CLIENT4, VIP4), LOCAL4.row(), 40_000, phase, world.ago(silent));
        }
    };
    for (name, phase, silent) in [("that was closed", Phase::CLOSING, 1), ("that ended", Phase::OPEN, 400)] {
        let frames = [agrees.bytes(), tcp("10.0.0.1:9000", CLIENT4).flags(ACK).bytes()];
        steps(name, Hook::TcEgress, known(phase, silent), &frames, Reason::NotTranslated, |world| {
            assert!(world.tables.replies.is_empty());
        });
    }
    check(vec![
        case("of a flow that begins", &agrees, Reason::Replied)
            .at(Hook::TcEgress)
            .with(known(Phase::OPENING, 1))
            .sent(VIP4, CLIENT4, 64),
        case("of one that is open, once more", &agrees, Reason::Replied)
            .at(Hook::TcEgress)
            .with(known(Phase::OPEN, 1))
            .sent(VIP4, CLIENT4, 64),
    ]);
}

#[test]
fn what_else_leaves_is_left_alone() {
    let mut arp = tcp(CLIENT4, VIP4).bytes();
    arp[12..14].copy_from_slice(&[0x08, 0x06]);
    let cut = tcp("10.0.0.1:9000", CLIENT4).bytes()[..40].to_vec();
    let remote = tcp("192.0.2.9:40000", "198.51.100.1:443");
    check(vec![
        case("a stranger", &tcp("203.0.113.5:80", CLIENT4), Reason::NotOurs).at(Hook::TcEgress).code(TC_NEXT),
        case("a stranger over v6", &udp("[2001:db8:ff::1]:80", CLIENT6), Reason::NotOurs).at(Hook::TcEgress),
        case("a connection of its own", &tcp("10.0.0.1:9000", CLIENT4), Reason::NotTranslated)
            .at(Hook::TcEgress)
            .code(TC_NEXT),
        raw("a packet cut short", cut, Reason::NotTranslated).at(Hook::TcEgress).code(TC_NEXT),
        raw("arp", arp, Reason::NotIp).at(Hook::TcEgress).code(TC_NEXT),
        // A remote endpoint's translation is none of egress, even if a packet with its key should leave.
        case(
            "under the key of a remote endpoint",
            &tcp("10.0.0.10:8443", "10.0.0.1:20005"),
            Reason::NotTranslated,
        )
        .at(Hook::TcEgress)
        .with(move |world| {
            world.established(&remote, TCP4.row(), 20_005, Phase::OPEN, world.now);
            world.tables.claim(gateway_tests::world::addr_of("10.0.0.10"));
        }),
    ]);
}
