//! Endpoints that are clients of their own service: their source is translated, so that their replies come back here.

use gateway_common::{
    counter::{Hook, Reason},
    flow::Phase,
    service::{Mode, Track},
};
use gateway_tests::{
    packet::{Packet, inspect, tcp, udp},
    world::{ENDPOINT_MAC, INNER_MAC, Id, LOCAL4, TCP4, TCP6, UDP4, UDP6, World},
};

use crate::check::{Case, case, check, steps};

/// A service, its address, the endpoint as a client, and as an endpoint; and this node.
const SERVICES: [(Id, bool, &str, &str, &str, &str); 4] = [
    (TCP4, false, "198.51.100.1:443", "10.0.0.10:50000", "10.0.0.10:8443", "10.0.0.1"),
    (UDP4, true, "198.51.100.1:53", "10.0.0.10:50000", "10.0.0.10:5353", "10.0.0.1"),
    (TCP6, false, "[2001:db8::1]:443", "[fd00::10]:50000", "[fd00::10]:8443", "[fd00::1]"),
    (UDP6, true, "[2001:db8::1]:53", "[fd00::10]:50000", "[fd00::10]:5353", "[fd00::1]"),
];

fn packet(is_udp: bool, from: &str, to: &str) -> Packet {
    let packet = if is_udp { udp(from, to) } else { tcp(from, to) };
    packet.macs(ENDPOINT_MAC, INNER_MAC)
}

#[test]
fn an_endpoint_reaches_itself_and_hears_itself() {
    let mut cases = Vec::new();
    for (id, is_udp, vip, client, endpoint, node) in SERVICES {
        for hook in [Hook::XdpBalance, Hook::TcIngress] {
            let there = packet(is_udp, client, vip);
            let sent = case("to itself", &there, Reason::Forwarded).at(hook);
            cases.push(sent.sent(&format!("{node}:?"), endpoint, 63).macs(INNER_MAC, ENDPOINT_MAC));
            let back = packet(is_udp, endpoint, &format!("{node}:20005"));
            let open = move |world: &mut World| {
                world.established(&there, id.row(), 20_005, Phase::OPEN, world.now);
                // Its own link leads back to it.
                let back = world.row(id.row()).next_hop;
                let flows = world.tables.flows.values_mut().flat_map(|bucket| &mut bucket.flows);
                flows.for_each(|flow| flow.next_hop = back);
            };
            let replied = case("and back", &back, Reason::Replied).at(hook).with(open);
            cases.push(replied.sent(vip, client, 63).macs(INNER_MAC, ENDPOINT_MAC));
        }
    }
    check(cases);
}

#[test]
fn the_whole_way_without_a_prepared_flow() {
    for (_, is_udp, vip, client, endpoint, _) in SERVICES {
        let first = packet(is_udp, client, vip).bytes();
        let there =
            steps("there", Hook::XdpBalance, |_| {}, std::slice::from_ref(&first), Reason::Forwarded, |_| {});
        let seen = inspect(&there[0]).unwrap();
        assert_eq!(seen.destination.to_string(), endpoint);
        let answer = packet(is_udp, endpoint, &seen.source.to_string()).bytes();
        let recorded = |world: &mut World| {
            let now = world.now;
            crate::check::host(Hook::XdpBalance, &mut world.tables, now, &first);
            // The kernel begins every run with no counts.
            world.tables.reasons.clear();
            world.tables.service_counts.clear();
            world.tables.endpoint_counts.clear();
        };
        let back = steps("back", Hook::XdpBalance, recorded, &[answer], Reason::Replied, |_| {});
        let seen = inspect(&back[0]).unwrap();
        assert_eq!((seen.source.to_string(), seen.destination.to_string()), (vip.into(), client.into()));
        assert_eq!(seen.macs, (INNER_MAC, ENDPOINT_MAC));
    }
}

#[test]
fn an_endpoint_of_direct_return_gets_what_it_sends() {
    // It owns the virtual address, so nothing but a mistake on its side brings such a packet here; it is treated like
    // that of any client.
    let mut cases = Vec::new();
    for (id, is_udp, vip, client, _, _) in SERVICES {
        for (mode, outer) in [(Mode::DSR_L2, 0), (Mode::DSR_IPIP, 20), (Mode::DSR_GUE, 28)] {
            let there = packet(is_udp, client, vip);
            let len = there.bytes().len();
            let outer = if outer != 0 && !there.key().source.is_v4() { outer + 20 } else { outer };
            let case = case("direct return", &there, Reason::Forwarded)
                .with(move |world| {
                    world.change(id, |service| (service.mode, service.track) = (mode, Track::CHANGE));
                })
                .leaves(move |frame| {
                    assert_eq!((&frame[..6], &frame[6..12]), (&ENDPOINT_MAC[..], &INNER_MAC[..]));
                    assert_eq!(frame.len(), len + outer);
                });
            cases.push(case);
        }
    }
    check(cases);
}

#[test]
fn an_endpoint_on_this_node_is_a_client_of_a_remote_one() {
    // What its own process sends never meets a hook of ingress; the service of the local endpoint is open to remote ones.
    let cases: Vec<Case> = vec![
        case(
            "a remote endpoint at a local one",
            &tcp("10.0.0.10:50000", "198.51.100.2:443"),
            Reason::ForwardedLocal,
        )
        .sent("10.0.0.10:50000", "10.0.0.1:9000", 64)
        .after(|world| assert_eq!(world.tables.service_counts[&LOCAL4.0].packets, 1)),
    ];
    check(cases);
}
