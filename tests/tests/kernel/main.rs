//! The kernel programs and the host build of the same pipeline: packets in, verdicts, bytes, counts and maps out.
#![allow(
    clippy::disallowed_methods,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    missing_docs,
    unreachable_pub,
    reason = "a suite fails loudly, and nothing outside reads it"
)]

mod answer;
mod change;
mod check;
mod conformance;
mod cookies;
mod direct;
mod displaced;
mod echo;
mod events;
mod filter;
mod flows;
mod hairpin;
mod health;
mod icmp;
mod local;
mod ports;
mod probe;
mod proxied;
mod rare;
mod receive;
mod renewed;
mod sockets;
mod sources;
mod standby;
mod steer;

use check::{case, check};
use gateway_common::{counter::Reason, flow::Phase};
use gateway_tests::{
    packet::{CLIENT_MAC, NODE_MAC, tcp, udp},
    world::{ENDPOINT_MAC, INNER_MAC, TCP4, TCP6, UDP4, UDP6},
};

const VIP4: &str = "198.51.100.1:443";
const DNS4: &str = "198.51.100.1:53";
const VIP6: &str = "[2001:db8::1]:443";
const DNS6: &str = "[2001:db8::1]:53";
const CLIENT4: &str = "192.0.2.9:40000";
const CLIENT6: &str = "[2001:db8:9::9]:40000";
const XDP_TX: i32 = 3;

#[test]
fn a_new_flow_is_recorded_and_sent() {
    check(vec![
        case("tcp over v4", &tcp(CLIENT4, VIP4).syn(), Reason::Forwarded)
            .sent("10.0.0.1:?", "10.0.0.10:8443", 63)
            .macs(INNER_MAC, ENDPOINT_MAC)
            .code(XDP_TX)
            .after(|world| {
                assert_eq!(world.tables.flows.len(), 1);
                assert_eq!(world.tables.replies.len(), 1);
                assert_eq!(world.tables.service_counts[&TCP4.0].new_flows, 1);
                assert_eq!(world.tables.endpoint_counts[&TCP4.row()].packets, 1);
            }),
        case("udp over v4", &udp(CLIENT4, DNS4), Reason::Forwarded)
            .sent("10.0.0.1:?", "10.0.0.10:5353", 63)
            .code(XDP_TX),
        case("udp over v4 without checksum", &udp(CLIENT4, DNS4).without_checksum(), Reason::Forwarded).sent(
            "10.0.0.1:?",
            "10.0.0.10:5353",
            63,
        ),
        case("tcp over v6", &tcp(CLIENT6, VIP6).syn(), Reason::Forwarded)
            .sent("[fd00::1]:?", "[fd00::10]:8443", 63)
            .code(XDP_TX),
        case("udp over v6", &udp(CLIENT6, DNS6), Reason::Forwarded)
            .sent("[fd00::1]:?", "[fd00::10]:5353", 63)
            .code(XDP_TX),
    ]);
}

#[test]
fn replies_go_back_to_the_client() {
    let (t4, u4, t6, u6) = (tcp(CLIENT4, VIP4), udp(CLIENT4, DNS4), tcp(CLIENT6, VIP6), udp(CLIENT6, DNS6));
    check(vec![
        case("tcp over v4", &tcp("10.0.0.10:8443", "10.0.0.1:20005"), Reason::Replied)
            .with(move |world| world.established(&t4, TCP4.row(), 20_005, Phase::OPEN, world.now))
            .sent(VIP4, CLIENT4, 63)
            .macs(NODE_MAC, CLIENT_MAC)
            .code(XDP_TX)
            .after(|world| assert_eq!(world.tables.service_counts[&TCP4.0].reply_packets, 1)),
        case("udp over v4", &udp("10.0.0.10:5353", "10.0.0.1:20005"), Reason::Replied)
            .with(move |world| world.established(&u4, UDP4.row(), 20_005, Phase::OPENING, world.ago(2)))
            .sent(DNS4, CLIENT4, 63),
        case("tcp over v6", &tcp("[fd00::10]:8443", "[fd00::1]:20005"), Reason::Replied)
            .with(move |world| world.established(&t6, TCP6.row(), 20_005, Phase::OPEN, world.ago(2)))
            .sent(VIP6, CLIENT6, 63),
        case("udp over v6", &udp("[fd00::10]:5353", "[fd00::1]:20005"), Reason::Replied)
            .with(move |world| world.established(&u6, UDP6.row(), 20_005, Phase::OPEN, world.now))
            .sent(DNS6, CLIENT6, 63),
    ]);
}
