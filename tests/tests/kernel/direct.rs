//! Direct return: packets that go to their endpoint as they came, over the link or through a tunnel.

use gateway_common::{
    addr::Addr,
    counter::{Hook, Reason},
    endpoint::Endpoint,
    service::{Mode, Track},
};
use gateway_tests::{
    packet::{Packet, inspect, tcp, udp},
    world::{ENDPOINT_MAC, INNER_MAC, Id, TCP4, TCP6, UDP4, UDP6, World, addr_of},
};

use crate::check::{Case, case, check};

const VIP4: &str = "198.51.100.1:443";
const DNS4: &str = "198.51.100.1:53";
const VIP6: &str = "[2001:db8::1]:443";
const DNS6: &str = "[2001:db8::1]:53";
const CLIENT4: &str = "192.0.2.9:40000";
const CLIENT6: &str = "[2001:db8:9::9]:40000";
const XDP_TX: i32 = 3;
const TC_REDIRECT: i32 = 7;

/// IP in IP (RFC 2003), IPv6 in something (RFC 2473), UDP.
const PROTOCOLS: [u8; 3] = [4, 41, 17];

fn direct(world: &mut World, id: Id, mode: Mode) {
    world.change(id, |service| (service.mode, service.track) = (mode, Track::CHANGE));
}

fn sum(bytes: &[u8]) -> u16 {
    let mut sum: u32 = bytes.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    u16::try_from(sum).unwrap()
}

/// The packet that is in the tunnel, in the frame of the outside.
fn inside(frame: &[u8], headers: usize, v6: bool) -> Vec<u8> {
    let mut inner = frame[..12].to_vec();
    inner.extend(if v6 { [0x86, 0xdd] } else { [0x08, 0x00] });
    inner.extend(&frame[14 + headers..]);
    inner
}

/// What the outside must say.
#[derive(Clone, Copy)]
struct Outside {
    to: &'static str,
    inner_v6: bool,
    is_udp: bool,
}

/// Looks at a frame with a tunnel: its addresses, lengths and sums, and that the inside is the client's packet, one hop
/// older.
fn tunnelled(outside: Outside, packet: &Packet) -> impl Fn(&[u8]) + use<> {
    let before = packet.bytes();
    let class = if outside.inner_v6 { before[14] << 4 | before[15] >> 4 } else { before[15] };
    let seen_before = inspect(&before).unwrap();
    move |frame| {
        let Outside { to, inner_v6, is_udp } = outside;
        let addr = addr_of(to);
        assert_eq!((&frame[..6], &frame[6..12]), (&ENDPOINT_MAC[..], &INNER_MAC[..]));
        let [ip_ip, ip_ipv6, udp_number] = PROTOCOLS;
        let protocol = if is_udp {
            udp_number
        } else if inner_v6 {
            ip_ipv6
        } else {
            ip_ip
        };
        let rest = before.len() - 14 + if is_udp { 8 } else { 0 };
        let headers = if addr.is_v4() {
            let ip = &frame[14..34];
            assert_eq!(&frame[12..14], [0x08, 0x00]);
            assert_eq!((ip[0], ip[1], ip[8], ip[9]), (0x45, class, 64, protocol));
            assert_eq!(usize::from(u16::from_be_bytes([ip[2], ip[3]])), 20 + rest);
            assert_eq!(&ip[6..8], [0x40, 0], "do not fragment");
            assert_eq!(sum(ip), 0xffff);
            assert_eq!(&ip[12..14], [172, 16], "a source that belongs to nobody");
            assert_eq!(ip[16..20], addr.v4_octets());
            20
        } else {
            let ip = &frame[14..54];
            assert_eq!(&frame[12..14], [0x86, 0xdd]);
            assert_eq!((ip[0] >> 4, ip[0] << 4 | ip[1] >> 4, ip[6], ip[7]), (6, class, protocol, 64));
            assert_eq!(usize::from(u16::from_be_bytes([ip[4], ip[5]])), rest);
            assert_eq!(&ip[8..16], [1, 0, 0, 0, 0, 0, 0, 0]);
            assert_eq!(ip[24..40], addr.octets());
            40
        };
        let udp = &frame[14 + headers..];
        if is_udp {
            assert!(u16::from_be_bytes([udp[0], udp[1]]) >= 0xc000, "a port of the dynamic range");
            assert_eq!(u16::from_be_bytes([udp[2], udp[3]]), 6_080);
            assert_eq!(usize::from(u16::from_be_bytes([udp[4], udp[5]])), rest);
            assert_eq!(&udp[6..8], [0, 0]);
        }
        let inner = inside(frame, headers + if is_udp { 8 } else { 0 }, inner_v6);
        let seen = inspect(&inner).unwrap();
        assert_eq!((seen.source, seen.destination), (seen_before.source, seen_before.destination));
        assert_eq!(seen.ttl, seen_before.ttl - 1);
    }
}

fn through(name: &'static str, packet: &Packet, id: Id, mode: Mode, to: &'static str) -> Case {
    let inner_v6 = packet.bytes()[12] == 0x86;
    let outside = Outside { to, inner_v6, is_udp: mode == Mode::DSR_GUE };
    case(name, packet, Reason::Forwarded)
        .with(move |world| {
            direct(world, id, mode);
            world.row(id.row()).addr = addr_of(to);
        })
        .leaves(tunnelled(outside, packet))
        .code(XDP_TX)
        .after(move |world| {
            assert!(world.tables.flows.is_empty(), "nothing is remembered");
            assert_eq!(world.tables.endpoint_counts[&id.row()].packets, 1);
        })
}

#[test]
fn packets_go_through_tunnels() {
    let (ipip, gue) = (Mode::DSR_IPIP, Mode::DSR_GUE);
    check(vec![
        through("tcp over v4", &tcp(CLIENT4, VIP4), TCP4, ipip, "10.0.0.10"),
        through("a syn over v4", &tcp(CLIENT4, VIP4).syn(), TCP4, ipip, "10.0.0.10"),
        through("udp over v4", &udp(CLIENT4, DNS4), UDP4, ipip, "10.0.0.10"),
        through("udp without checksum", &udp(CLIENT4, DNS4).without_checksum(), UDP4, ipip, "10.0.0.10"),
        through("tcp over v6", &tcp(CLIENT6, VIP6), TCP6, ipip, "fd00::10"),
        through("udp over v6", &udp(CLIENT6, DNS6), UDP6, ipip, "fd00::10"),
        through("v4 in v6", &tcp(CLIENT4, VIP4), TCP4, ipip, "fd00::10"),
        through("v6 in v4", &tcp(CLIENT6, VIP6), TCP6, ipip, "10.0.0.10"),
        through("options inside", &tcp(CLIENT4, VIP4).ip_options(5).tcp_options(3), TCP4, ipip, "10.0.0.10"),
        through("gue over v4", &tcp(CLIENT4, VIP4), TCP4, gue, "10.0.0.10"),
        through("gue over v6", &udp(CLIENT6, DNS6), UDP6, gue, "fd00::10"),
        through("v4 in gue over v6", &tcp(CLIENT4, VIP4), TCP4, gue, "fd00::10"),
        through("v6 in gue over v4", &tcp(CLIENT6, VIP6), TCP6, gue, "10.0.0.10"),
        through("on two hops", &tcp(CLIENT4, VIP4).ttl(2), TCP4, ipip, "10.0.0.10"),
        case("on the last hop", &tcp(CLIENT4, VIP4).ttl(1), Reason::TtlExpired)
            .with(|world| direct(world, TCP4, Mode::DSR_IPIP)),
    ]);
}

#[test]
fn packets_go_over_the_link() {
    let l2 = |name, packet: Packet, id: Id, to: &'static str, from: &'static str| {
        case(name, &packet, Reason::Forwarded)
            .with(move |world| direct(world, id, Mode::DSR_L2))
            .sent(from, to, 63)
            .macs(INNER_MAC, ENDPOINT_MAC)
            .code(XDP_TX)
    };
    check(vec![
        l2("tcp over v4", tcp(CLIENT4, VIP4), TCP4, VIP4, CLIENT4),
        l2("udp over v4", udp(CLIENT4, DNS4), UDP4, DNS4, CLIENT4),
        l2("tcp over v6", tcp(CLIENT6, VIP6).syn(), TCP6, VIP6, CLIENT6),
        l2("udp over v6", udp(CLIENT6, DNS6), UDP6, DNS6, CLIENT6),
        l2("with options", tcp(CLIENT4, VIP4).ip_options(9), TCP4, VIP4, CLIENT4),
        case("at tc", &tcp(CLIENT4, VIP4), Reason::Forwarded)
            .at(Hook::TcIngress)
            .with(|world| direct(world, TCP4, Mode::DSR_L2))
            .sent(CLIENT4, VIP4, 63)
            .macs(INNER_MAC, ENDPOINT_MAC)
            .code(TC_REDIRECT),
        case("an endpoint on this node owns the address itself", &tcp(CLIENT4, VIP4), Reason::ForwardedLocal)
            .with(|world| {
                direct(world, TCP4, Mode::DSR_L2);
                let row = world.row(TCP4.row());
                (row.flags, row.source) = (Endpoint::LOCAL, Addr::UNSPECIFIED);
            })
            .sent(CLIENT4, VIP4, 64),
    ]);
}

#[test]
fn what_does_not_fit_the_way_goes_back() {
    let payload = |bytes: usize| tcp(CLIENT4, VIP4).payload(&vec![7; bytes]);
    let case = |name, bytes, reason, mode| {
        let fits = case(name, &payload(bytes), reason).with(move |world| direct(world, TCP4, mode));
        fits.leaves(|_| {})
    };
    check(vec![
        case("as large as the way takes", 1_440, Reason::Forwarded, Mode::DSR_IPIP),
        case("a byte more than the tunnel leaves", 1_441, Reason::TooBigAnswered, Mode::DSR_IPIP),
        case("as large as gue leaves", 1_432, Reason::Forwarded, Mode::DSR_GUE),
        case("a byte more than gue leaves", 1_433, Reason::TooBigAnswered, Mode::DSR_GUE),
        case("as large as the link takes", 1_460, Reason::Forwarded, Mode::DSR_L2),
        case("a byte more than the link takes", 1_461, Reason::TooBigAnswered, Mode::DSR_L2),
        case("as large as the link takes, translated", 1_460, Reason::Forwarded, Mode::NAT),
        case("a byte more, translated", 1_461, Reason::TooBigAnswered, Mode::NAT),
    ]);
}

/// What the stack or a card cuts into segments on its way out fits if each segment with its own headers does.
#[test]
fn segments_that_do_not_fit_the_way_go_back() {
    let case = |name, packet: &Packet, payload: u32, id: Id, mode: Mode, reason| {
        case(name, packet, reason).at(Hook::TcIngress).leaves(|_| {}).with(move |world| {
            direct(world, id, mode);
            world.tables.segment_payload = Some(payload);
        })
    };
    let long = vec![7; 3_000];
    let (sent, too_big) = (Reason::Forwarded, Reason::TooBigAnswered);
    let plain = tcp(CLIENT4, VIP4).payload(&long);
    let stamped = tcp(CLIENT4, VIP4).tcp_options(3).payload(&long);
    let v6 = tcp(CLIENT6, VIP6).payload(&long);
    let datagrams = udp(CLIENT4, DNS4).payload(&long);
    check(vec![
        case("as large as the link takes", &plain, 1_460, TCP4, Mode::DSR_L2, sent),
        case("a byte more", &plain, 1_461, TCP4, Mode::DSR_L2, too_big),
        case("a byte more than the tunnel leaves", &plain, 1_441, TCP4, Mode::DSR_IPIP, too_big),
        case("with time stamps", &stamped, 1_448, TCP4, Mode::DSR_L2, sent),
        case("a byte more with time stamps", &stamped, 1_449, TCP4, Mode::DSR_L2, too_big),
        case("v6", &v6, 1_440, TCP6, Mode::DSR_L2, sent),
        case("a byte more over v6", &v6, 1_441, TCP6, Mode::DSR_L2, too_big),
        case("udp", &datagrams, 1_472, UDP4, Mode::DSR_L2, sent),
        case("a byte more of udp", &datagrams, 1_473, UDP4, Mode::DSR_L2, too_big),
    ]);
}
