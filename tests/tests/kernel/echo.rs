//! Echo requests to virtual addresses: answered here where the agent says so, and by nobody else's rules.

use gateway_common::{
    addr::{Addr, Port, Protocol},
    answer::Answers,
    counter::{Hook, Reason},
    service::ServiceKey,
    source::SourceRule,
};
use gateway_tests::{
    packet::{CLIENT_MAC, NODE_MAC, Packet, icmp, icmp_error, inspect_icmp, udp},
    world::{TCP4, TCP6, World},
};

use crate::check::{Case, case, check, raw};

const VIP4: &str = "198.51.100.1:0";
const VIP6: &str = "[2001:db8::1]:0";
const CLIENT4: &str = "192.0.2.9:0";
const CLIENT6: &str = "[2001:db8:9::9]:0";
const BACK: [(Hook, i32); 2] = [(Hook::XdpBalance, 3), (Hook::TcIngress, 7)];

fn addr(text: &str) -> Addr {
    text.parse::<std::net::IpAddr>().unwrap().into()
}

/// Both virtual addresses are answered for.
fn answering(world: &mut World) {
    for (of, id, protocol) in
        [("198.51.100.1", TCP4, Protocol::ICMP), ("2001:db8::1", TCP6, Protocol::ICMP_V6)]
    {
        world.tables.echo.insert(ServiceKey::new(addr(of), Port::NONE, protocol), id.0);
    }
}

/// What a request carries comes back, at both hooks.
fn answered(name: &'static str, request: &Packet) -> Vec<Case> {
    let frame = request.bytes();
    let key = request.key();
    let make = |(hook, code): (Hook, i32)| {
        let frame = frame.clone();
        case(name, request, Reason::EchoAnswered)
            .at(hook)
            .with(answering)
            .leaves(move |sent| {
                let seen = inspect_icmp(sent).unwrap();
                let v6 = frame[12] != 0x08;
                assert_eq!(seen.message, (if v6 { 129 } else { 0 }, 0, 0x0001_0001));
                assert_eq!((seen.source, seen.destination), (key.destination.into(), key.source.into()));
                assert_eq!((seen.ttl, seen.macs), (64, (NODE_MAC, CLIENT_MAC)));
                let message = if v6 { 54 } else { 34 };
                assert_eq!(sent[message + 4..], frame[message + 4..], "number and data are the sender's");
            })
            .code(code)
            .after(|world| {
                assert_eq!(world.tables.answers, Answers { tick: world.now, sent: 0, echoes: 1 });
                assert_eq!(world.tables.service_counts.len(), 0);
            })
    };
    BACK.map(make).into()
}

#[test]
fn a_request_to_a_virtual_address_is_answered() {
    let mut cases = Vec::new();
    for (client, vip) in [(CLIENT4, VIP4), (CLIENT6, VIP6)] {
        for bytes in [0, 1, 7, 56, 57, 1_400] {
            let data: Vec<u8> = (0..bytes).map(|at: usize| u8::try_from(at % 251).unwrap()).collect();
            cases.extend(answered("data", &icmp(client, vip).payload(&data)));
        }
        cases.extend(answered("the last hop", &icmp(client, vip).ttl(1)));
    }
    check(cases);
}

#[test]
fn checksums_hold_at_both_ends_of_their_range() {
    let mut cases = Vec::new();
    // The new type adds 8 to the upper half of one checksum, and takes 1 from that of the other.
    let ends = [
        (CLIENT4, VIP4, 36, [0, 0xf7fe, 0xf7ff, 0xf800, 0xfffe]),
        (CLIENT6, VIP6, 56, [0, 0xff, 0x100, 0x101, 0xfffe]),
    ];
    for (client, vip, at, ends) in ends {
        let packets = (0..=u16::MAX).map(|word| icmp(client, vip).payload(&word.to_be_bytes()));
        let found: Vec<Packet> = packets
            .filter(|packet| {
                let bytes = packet.bytes();
                ends.contains(&u16::from_be_bytes([bytes[at], bytes[at + 1]]))
            })
            .collect();
        assert_eq!(found.len(), ends.len());
        for packet in found {
            cases.push(
                case("a sum near the end", &packet, Reason::EchoAnswered)
                    .with(answering)
                    .leaves(|sent| drop(inspect_icmp(sent).unwrap())),
            );
        }
    }
    check(cases);
}

#[test]
fn what_is_no_request_to_a_virtual_address_is_the_stacks() {
    let mut cases = Vec::new();
    for (client, vip, node) in [(CLIENT4, VIP4, "10.0.0.1:0"), (CLIENT6, VIP6, "[fd00::1]:0")] {
        let passes =
            |name, packet: &Packet| case(name, packet, Reason::OtherProtocol).with(answering).code(2);
        let v6 = vip == VIP6;
        cases.push(case("no address is answered for", &icmp(client, vip), Reason::OtherProtocol));
        cases.push(passes("to the node itself", &icmp(client, node)));
        let inner = udp(if v6 { "[2001:db8::1]:1" } else { "198.51.100.1:1" }, &client.replace(":0", ":9"));
        let (a, b) = (client.trim_end_matches(":0"), vip.trim_end_matches(":0"));
        let reply = icmp_error(a, b, (if v6 { 129 } else { 0 }, 0), 7, &inner, 0);
        cases.push(passes("a reply", &reply));
        let odd = icmp_error(a, b, (if v6 { 128 } else { 8 }, 1), 7, &inner, 0);
        cases.push(passes("a code that means nothing", &odd));
    }
    cases.push(
        case("behind options", &icmp(CLIENT4, VIP4).ip_options(10), Reason::OtherProtocol).with(answering),
    );
    cases.push(
        case("behind an extension header", &icmp(CLIENT6, VIP6).extension(60), Reason::OtherProtocol)
            .with(answering),
    );
    cases.push(case("from many", &icmp("224.0.0.9:0", VIP4), Reason::OtherProtocol).with(answering));
    cases.push(
        case("a piece", &icmp(CLIENT4, VIP4).payload(&[0; 16]).fragment(0, true), Reason::Fragment)
            .with(answering),
    );
    let mut short = icmp(CLIENT4, VIP4).payload(b"").bytes();
    short.truncate(40);
    short[17] = 26;
    let sum = gateway_tests::packet::checksum(&[&short[14..24], &[0, 0], &short[26..34]].concat());
    short[24..26].copy_from_slice(&sum.to_be_bytes());
    cases.push(raw("cut off", short, Reason::BadIcmp).with(answering));
    check(cases);
}

#[test]
fn requests_are_bounded_and_sources_that_are_denied_get_no_answer() {
    let used = |echoes: u32, ticks: u32| {
        move |world: &mut World| {
            answering(world);
            world.tables.answers = Answers { tick: world.ago(ticks), sent: 5, echoes };
        }
    };
    let most = Answers::ECHOES_PER_TICK;
    check(vec![
        case("one is left", &icmp(CLIENT4, VIP4), Reason::EchoAnswered)
            .with(used(most - 1, 0))
            .leaves(|_| {})
            .after(move |world| {
                let all = Answers { tick: world.now, sent: 5, echoes: most };
                assert_eq!(world.tables.answers, all);
            }),
        case("none is left", &icmp(CLIENT6, VIP6), Reason::EchoLimited)
            .with(used(most, 0))
            .code(1)
            .after(|world| assert_eq!(world.tables.service_counts[&TCP6.0].dropped, 1)),
        case("the next tick", &icmp(CLIENT4, VIP4), Reason::EchoAnswered).with(used(most, 1)).leaves(|_| {}),
        case("denied", &icmp(CLIENT4, VIP4), Reason::Denied).code(1).with(|world| {
            answering(world);
            world.tables.list(addr("192.0.2.0"), 24, SourceRule::DENY);
        }),
    ]);
}
