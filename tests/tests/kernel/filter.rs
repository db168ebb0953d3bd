//! What is not ours passes untouched; what is ours and cannot be read is dropped, or left to the stack by name.

use gateway_common::{
    counter::{Hook, Reason},
    service::Mode,
};
use gateway_tests::{
    packet::{icmp, tcp, udp},
    world::{AGENT4, TCP4, TCP6},
};

use crate::check::{Case, case, check, raw};

const VIP4: &str = "198.51.100.1:443";
const VIP6: &str = "[2001:db8::1]:443";
const CLIENT4: &str = "192.0.2.9:40000";
const CLIENT6: &str = "[2001:db8:9::9]:40000";
const XDP_DROP: i32 = 1;
const XDP_PASS: i32 = 2;
const TC_NEXT: i32 = -1;
const TC_SHOT: i32 = 2;

/// The same case at XDP and at TC.
fn at_both(make: impl Fn() -> Case, pass: bool) -> [Case; 2] {
    let (xdp, tc) = if pass { (XDP_PASS, TC_NEXT) } else { (XDP_DROP, TC_SHOT) };
    [make().code(xdp), make().at(Hook::TcIngress).code(tc)]
}

fn passes(name: &'static str, frame: &[u8], reason: Reason) -> [Case; 2] {
    at_both(|| raw(name, frame.to_vec(), reason), true)
}

fn drops(name: &'static str, frame: &[u8], reason: Reason) -> [Case; 2] {
    at_both(|| raw(name, frame.to_vec(), reason), false)
}

/// A frame whose byte at `at` is replaced.
fn with_byte(mut frame: Vec<u8>, at: usize, byte: u8) -> Vec<u8> {
    frame[at] = byte;
    frame
}

#[test]
fn what_is_not_ours_passes() {
    let mut arp = tcp(CLIENT4, VIP4).bytes();
    arp[12..14].copy_from_slice(&[0x08, 0x06]);
    let stranger = tcp(CLIENT4, "203.0.113.77:443").bytes();
    let truncated_stranger = stranger[..40].to_vec();
    let bad_stranger = with_byte(stranger.clone(), 14, 0x42);
    let cases = [
        passes("arp", &arp, Reason::NotIp),
        passes("a stranger over v4", &stranger, Reason::NotOurs),
        passes("a stranger over v6", &tcp(CLIENT6, "[2001:db8:ff::1]:443").bytes(), Reason::NotOurs),
        passes("a truncated stranger", &truncated_stranger, Reason::NotOurs),
        passes("a stranger with a bad header", &bad_stranger, Reason::NotOurs),
        passes("vlan", &tcp(CLIENT4, VIP4).vlan(5).bytes(), Reason::Vlan),
        passes("icmp over v4", &icmp(CLIENT4, VIP4).bytes(), Reason::OtherProtocol),
        passes("icmp over v6", &icmp(CLIENT6, VIP6).bytes(), Reason::OtherProtocol),
        passes("a port without a service", &tcp(CLIENT4, "198.51.100.1:444").bytes(), Reason::NoService),
        passes("a protocol without a service", &udp(CLIENT4, VIP4).bytes(), Reason::NoService),
        passes("a service of the agent", &tcp(CLIENT4, "198.51.100.1:80").syn().bytes(), Reason::Agent),
        passes(
            "a port that no flow holds",
            &tcp("10.0.0.10:8443", "10.0.0.1:20005").bytes(),
            Reason::NoTranslation,
        ),
        passes("no flow over v6", &udp("[fd00::10]:5353", "[fd00::1]:20005").bytes(), Reason::NoTranslation),
        passes(
            "the first port below the range",
            &tcp("10.0.0.10:8443", "10.0.0.1:19999").bytes(),
            Reason::NoService,
        ),
        passes(
            "the first port above the range",
            &tcp("10.0.0.10:8443", "10.0.0.1:20100").bytes(),
            Reason::NoService,
        ),
    ];
    check(cases.into_iter().flatten().collect());
}

/// A frame with these tags, the outermost first, which ends after `bytes`.
fn tagged(frame: &[u8], tags: &[(u16, u16)], bytes: usize) -> Vec<u8> {
    let mut tagged = frame[..12].to_vec();
    for (kind, tag) in tags {
        tagged.extend(kind.to_be_bytes());
        tagged.extend(tag.to_be_bytes());
    }
    tagged.extend(&frame[12..]);
    tagged.truncate(bytes);
    tagged
}

#[test]
fn tags_that_are_not_ours_pass() {
    let mut cases = Vec::new();
    for frame in [
        tcp(CLIENT4, VIP4).bytes(),
        udp(CLIENT4, "198.51.100.1:53").bytes(),
        tcp(CLIENT6, VIP6).bytes(),
        udp(CLIENT6, "[2001:db8::1]:53").bytes(),
        icmp(CLIENT4, VIP4).bytes(),
        tcp(CLIENT4, VIP4).fragment(0, true).bytes(),
    ] {
        for (name, tags) in [
            ("a tag", &[(0x8100, 5)][..]),
            ("a priority tag", &[(0x8100, 0xe000)]),
            ("a service tag", &[(0x88a8, 5)]),
            ("two tags", &[(0x88a8, 7), (0x8100, 5)]),
            ("two customer tags", &[(0x8100, 7), (0x8100, 5)]),
            ("three tags", &[(0x88a8, 7), (0x8100, 5), (0x8100, 6)]),
        ] {
            cases.extend(passes(name, &tagged(&frame, tags, 1_500), Reason::Vlan));
        }
        cases.extend(passes("cut behind a tag", &tagged(&frame, &[(0x8100, 5)], 18), Reason::Vlan));
        cases.extend(passes(
            "cut inside the packet",
            &tagged(&frame, &[(0x88a8, 7), (0x8100, 5)], 40),
            Reason::Vlan,
        ));
    }
    check(cases);
}

#[test]
fn what_is_ours_and_unreadable_is_dropped() {
    let v4 = tcp(CLIENT4, VIP4).bytes();
    let v6 = tcp(CLIENT6, VIP6).bytes();
    let dns = udp(CLIENT4, "198.51.100.1:53").bytes();
    let options = tcp(CLIENT4, VIP4).ip_options(10).payload(b"").bytes();
    let cases = [
        drops("tcp cut short over v4", &v4[..14 + 20 + 10], Reason::BadIpHeader),
        drops("tcp cut short over v6", &v6[..14 + 40 + 10], Reason::BadIpHeader),
        drops("options cut short", &options[..14 + 24], Reason::Truncated),
        drops("a version that is not 4", &with_byte(v4.clone(), 14, 0x55), Reason::BadIpHeader),
        drops("a header length below the minimum", &with_byte(v4.clone(), 14, 0x44), Reason::BadIpHeader),
        drops("a total length beyond the packet", &with_byte(v4.clone(), 16, 0x7f), Reason::BadIpHeader),
        drops("a total length inside the header", &with_byte(v4.clone(), 17, 10), Reason::BadIpHeader),
        drops("a total length inside tcp", &with_byte(v4.clone(), 17, 30), Reason::Truncated),
        drops("a version that is not 6", &with_byte(v6.clone(), 14, 0x50), Reason::BadIpHeader),
        drops("a payload length beyond the packet", &with_byte(v6.clone(), 18, 0x7f), Reason::BadIpHeader),
        drops("a payload length inside tcp", &with_byte(v6, 19, 12), Reason::Truncated),
        drops(
            "a tcp header below the minimum",
            &with_byte(v4.clone(), 14 + 20 + 12, 0x40),
            Reason::BadTransportHeader,
        ),
        drops(
            "a tcp header beyond the packet",
            &with_byte(v4, 14 + 20 + 12, 0xf0),
            Reason::BadTransportHeader,
        ),
        drops(
            "a udp length below the minimum",
            &with_byte(dns.clone(), 14 + 20 + 5, 7),
            Reason::BadTransportHeader,
        ),
        drops(
            "a udp length beyond the packet",
            &with_byte(dns, 14 + 20 + 5, 200),
            Reason::BadTransportHeader,
        ),
    ];
    check(cases.into_iter().flatten().collect());
}

#[test]
fn options_are_skipped() {
    let sent = |name, packet: &gateway_tests::packet::Packet| {
        case(name, packet, Reason::Forwarded).sent("10.0.0.1:?", "10.0.0.10:8443", 63)
    };
    check(vec![
        sent("one word of ip options", &tcp(CLIENT4, VIP4).ip_options(1)),
        sent("ten words of ip options", &tcp(CLIENT4, VIP4).ip_options(10)),
        sent("ten words of tcp options", &tcp(CLIENT4, VIP4).tcp_options(10)),
        sent("both", &tcp(CLIENT4, VIP4).ip_options(10).tcp_options(10)).at(Hook::TcIngress),
        sent("an odd payload", &tcp(CLIENT4, VIP4).payload(b"odd")),
        sent("no payload", &tcp(CLIENT4, VIP4).payload(b"")),
        case("tcp options over v6", &tcp(CLIENT6, VIP6).tcp_options(5), Reason::Forwarded).sent(
            "[fd00::1]:?",
            "[fd00::10]:8443",
            63,
        ),
    ]);
}

#[test]
fn a_service_says_what_happens() {
    check(vec![
        case("no slots", &tcp(CLIENT4, VIP4), Reason::ResetSent)
            .leaves(|_| {})
            .with(|world| world.change(TCP4, |service| service.tables[1].n_slots = 0))
            .code(3)
            .after(|world| assert_eq!(world.tables.service_counts[&TCP4.0].dropped, 1)),
        case("a slot outside the service", &tcp(CLIENT4, VIP4), Reason::BadSlot)
            .with(|world| world.slots(TCP4, 2)),
        case("a chunk outside the map", &tcp(CLIENT4, VIP4), Reason::BadSlot)
            .with(|world| world.change(TCP4, |service| service.tables[1].first_chunk = 70_000)),
        case("a row of another service", &tcp(CLIENT4, VIP4), Reason::BadSlot)
            .with(|world| world.row(TCP4.row()).service = 9),
        case("a row of the other family", &tcp(CLIENT6, VIP6), Reason::BadSlot).with(|world| {
            let addr = world.row(TCP4.row()).addr;
            world.row(TCP6.row()).addr = addr;
        }),
        case("a mode that nobody knows", &tcp(CLIENT4, VIP4), Reason::UnknownMode)
            .with(|world| world.change(TCP4, |service| service.mode = bytemuck::cast(9_u8))),
        case("the agent's after a change", &tcp(CLIENT4, VIP4), Reason::Agent)
            .with(|world| world.change(TCP4, |service| service.mode = Mode::AGENT)),
        case("balanced after a change", &tcp(CLIENT4, "198.51.100.1:80"), Reason::Forwarded)
            .with(|world| world.change(AGENT4, |service| service.mode = Mode::NAT))
            .sent("10.0.0.1:?", "10.0.0.10:80", 63),
    ]);
}
