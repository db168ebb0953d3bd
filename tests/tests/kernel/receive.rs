//! The receiving end of tunnels: what comes out is what the client sent, and only peers may send.

use std::net::IpAddr;

use gateway_common::{
    addr::{Addr, Port},
    counter::{Hook, Reason},
    endpoint::NextHop,
    receive::{Peer, Receive},
};
use gateway_tests::{
    packet::{Packet, checksum, inspect, tcp, udp},
    world::World,
};

use crate::check::{Case, check, raw};

const VIP4: &str = "198.51.100.1:443";
const VIP6: &str = "[2001:db8::1]:443";
const CLIENT4: &str = "192.0.2.9:40000";
const CLIENT6: &str = "[2001:db8:9::9]:40000";
/// Outer addresses: a peer of each family, and this node, which in a test run is whoever looks.
const PEER4: &str = "172.16.7.7";
const PEER6: &str = "100::7:7";
const NODE4: &str = "127.0.0.1";
const NODE6: &str = "::1";
const TC_NEXT: i32 = -1;
const TC_SHOT: i32 = 2;
const PORT: u16 = 6_080;

/// What stands between the outer IP header and the packet.
#[derive(Clone, Copy)]
enum Tunnel {
    /// Nothing.
    Ip,
    /// UDP.
    Gue,
    /// UDP, a header of version 0 and so many words of fields.
    GueHeader(u8),
    /// UDP and these bytes.
    Other([u8; 4]),
}

/// A packet in its tunnel.
struct Outer {
    from: &'static str,
    to: &'static str,
    class: u8,
    tunnel: Tunnel,
    port: u16,
}

const fn from(from: &'static str, to: &'static str, tunnel: Tunnel) -> Outer {
    Outer { from, to, class: 0, tunnel, port: PORT }
}

impl Outer {
    fn around(&self, inner: &[u8]) -> Vec<u8> {
        let number = if inner[12] == 0x08 { 4 } else { 41 };
        let inner = &inner[14..];
        let mut body = match self.tunnel {
            Tunnel::Ip | Tunnel::Gue => Vec::new(),
            Tunnel::GueHeader(words) => [vec![words, number, 0, 0], vec![9; usize::from(words) * 4]].concat(),
            Tunnel::Other(bytes) => bytes.to_vec(),
        };
        body.extend(inner);
        let mut protocol = number;
        if !matches!(self.tunnel, Tunnel::Ip) {
            let length = u16::try_from(body.len() + 8).unwrap();
            let [a, b] = self.port.to_be_bytes();
            let [c, d] = length.to_be_bytes();
            body.splice(0..0, [0xc1, 0x23, a, b, c, d, 0, 0]);
            protocol = 17;
        }
        // The link-layer address of the loopback interface, over which the kernel runs a packet of a test.
        let mut frame = vec![0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 1];
        match (self.from.parse().unwrap(), self.to.parse().unwrap()) {
            (IpAddr::V4(from), IpAddr::V4(to)) => {
                let [a, b] = u16::try_from(body.len() + 20).unwrap().to_be_bytes();
                let mut header = vec![0x45, self.class, a, b, 0, 0, 0x40, 0, 64, protocol, 0, 0];
                header.extend(from.octets());
                header.extend(to.octets());
                let sum = checksum(&header);
                header[10..12].copy_from_slice(&sum.to_be_bytes());
                frame.extend([0x08, 0]);
                frame.extend(header);
            }
            (IpAddr::V6(from), IpAddr::V6(to)) => {
                let [a, b] = u16::try_from(body.len()).unwrap().to_be_bytes();
                frame.extend([0x86, 0xdd]);
                frame.extend([0x60 | self.class >> 4, self.class << 4, 0, 0, a, b, protocol, 64]);
                frame.extend(from.octets());
                frame.extend(to.octets());
            }
            _ => panic!("a tunnel has one family outside"),
        }
        frame.extend(body);
        frame
    }
}

fn peers(world: &mut World) {
    let peer = |addr: &str, bits| Peer::new(Addr::from(addr.parse::<IpAddr>().unwrap()), bits);
    world.tables.receive = Receive::new([peer("172.16.0.0", 16), peer("100::", 64)], Port::new(PORT));
}

fn at(name: &'static str, frame: Vec<u8>, reason: Reason) -> Case {
    raw(name, frame, reason).at(Hook::TcReceive).with(peers)
}

/// The packet as it came to the balancing node, in a frame for this one.
fn came(packet: &Packet) -> Vec<u8> {
    packet.clone().macs([2, 0, 0, 0, 0, 1], [0; 6]).bytes()
}

fn opens(name: &'static str, outer: &Outer, packet: &Packet) -> Case {
    let inner = came(packet);
    let frame = outer.around(&inner);
    at(name, frame, Reason::Decapsulated).code(TC_NEXT).leaves(move |frame| {
        assert_eq!(frame, inner, "{name}");
        inspect(frame).unwrap();
    })
}

#[test]
fn packets_of_peers_come_out() {
    let (t4, u4, t6, u6) = (tcp(CLIENT4, VIP4), udp(CLIENT4, VIP4), tcp(CLIENT6, VIP6), udp(CLIENT6, VIP6));
    let (four, six) = (|tunnel| from(PEER4, NODE4, tunnel), |tunnel| from(PEER6, NODE6, tunnel));
    let (ip, gue) = (Tunnel::Ip, Tunnel::Gue);
    check(vec![
        opens("v4 in v4", &four(ip), &t4),
        opens("v6 in v4", &four(ip), &t6),
        opens("v4 in v6", &six(ip), &t4),
        opens("v6 in v6", &six(ip), &u6),
        opens("a short one in v6", &six(ip), &u4.clone().payload(b"")),
        opens("options inside", &four(ip), &t4.clone().ip_options(9)),
        opens("v4 in gue over v4", &four(gue), &u4),
        opens("v6 in gue over v4", &four(gue), &u6),
        opens("v4 in gue over v6", &six(gue), &t4),
        opens("v6 in gue over v6", &six(gue), &t6),
        opens("behind a gue header", &four(Tunnel::GueHeader(0)), &t4),
        opens("behind a gue header with fields", &six(Tunnel::GueHeader(3)), &t4),
        opens("behind the longest gue header", &four(Tunnel::GueHeader(31)), &t6),
        opens("a fragment inside is the stack's", &four(ip), &t4.fragment(0, true)),
    ]);
}

#[test]
fn congestion_marks_come_out() {
    let inner = |packet: &Packet, class: u8| {
        let mut frame = came(packet);
        if frame[12] == 0x08 {
            frame[15] = class;
            frame[24..26].fill(0);
            let sum = checksum(&frame[14..34]);
            frame[24..26].copy_from_slice(&sum.to_be_bytes());
        } else {
            frame[14] = 0x60 | class >> 4;
            frame[15] = class << 4;
        }
        frame
    };
    let marks = |name, to: &'static str, packet: Packet, (inside, outside, expected): (u8, u8, u8)| {
        let source = if to == NODE4 { PEER4 } else { PEER6 };
        let outer = Outer { class: outside, ..from(source, to, Tunnel::Ip) };
        let wanted = inner(&packet, expected);
        at(name, outer.around(&inner(&packet, inside)), Reason::Decapsulated).leaves(move |frame| {
            assert_eq!(frame, wanted, "{name}");
            inspect(frame).unwrap();
        })
    };
    let (t4, t6) = (tcp(CLIENT4, VIP4), tcp(CLIENT6, VIP6));
    let lost = Outer { class: 0xb3, ..from(PEER4, NODE4, Tunnel::Ip) };
    check(vec![
        marks("the inner service class stays", NODE4, t4.clone(), (0xb8, 0x28, 0xb8)),
        marks("congestion on the way, v4", NODE4, t4.clone(), (0xba, 0xbb, 0xbb)),
        marks("congestion on the way, v6", NODE6, t6.clone(), (0x29, 0x2b, 0x2b)),
        marks("congestion on the way, v6 in v4", NODE4, t6, (0x02, 0x03, 0x03)),
        marks("congestion before the way", NODE4, t4.clone(), (0x03, 0x02, 0x03)),
        marks("a mark that has another meaning", NODE6, t4.clone(), (0x02, 0x01, 0x01)),
        at("a mark that cannot be carried", lost.around(&inner(&t4, 0xb0)), Reason::TunnelCongested)
            .code(TC_SHOT),
    ]);
}

#[test]
fn strangers_and_nonsense_are_dropped() {
    let inner = came(&tcp(CLIENT4, VIP4));
    let drops = |name, outer: Outer, reason| at(name, outer.around(&inner), reason).code(TC_SHOT);
    let mut longer = inner.clone();
    longer[17] += 1;
    let mut of_version_5 = inner.clone();
    of_version_5[14] = 0x55;
    let mut short_header = inner.clone();
    short_header[14] = 0x44;
    let ip = |inner: &[u8]| from(PEER4, NODE4, Tunnel::Ip).around(inner);
    let mut unlike = ip(&inner);
    unlike[23] = 41;
    let sum = checksum(&[&unlike[14..24], &[0, 0], &unlike[26..34]].concat());
    unlike[24..26].copy_from_slice(&sum.to_be_bytes());
    let nothing = |frame: &[u8]| frame[..34].to_vec();
    check(vec![
        drops("a stranger", from("172.17.0.1", NODE4, Tunnel::Ip), Reason::TunnelStranger),
        drops("a stranger over v6", from("100:0:0:1::1", NODE6, Tunnel::Ip), Reason::TunnelStranger),
        drops("a stranger over udp", from("10.0.0.1", NODE4, Tunnel::Gue), Reason::TunnelStranger),
        drops("a control message", from(PEER4, NODE4, Tunnel::Other([0x20, 4, 0, 0])), Reason::BadTunnel),
        drops("another protocol inside", from(PEER4, NODE4, Tunnel::Other([0, 17, 0, 0])), Reason::BadTunnel),
        drops("another version of gue", from(PEER4, NODE4, Tunnel::Other([0x80; 4])), Reason::BadTunnel),
        at("longer than its tunnel", ip(&longer), Reason::BadTunnel),
        at("another version of ip", ip(&of_version_5), Reason::BadTunnel),
        at("a header too short", ip(&short_header), Reason::BadTunnel),
        at("another family than said", unlike, Reason::BadTunnel),
        at("nothing inside", nothing(&ip(&inner)), Reason::BadTunnel),
    ]);
}

#[test]
fn what_is_in_no_tunnel_passes() {
    let inner = came(&tcp(CLIENT4, VIP4));
    let passes = |name, frame: Vec<u8>| at(name, frame, Reason::NotTunnelled).code(TC_NEXT);
    let mut fragment = from(PEER4, NODE4, Tunnel::Ip).around(&inner);
    fragment[20] = 0x20;
    let mut arp = inner.clone();
    arp[13] = 0x06;
    let hop = NextHop { interface: 1, mac: [2; 6], own_mac: [2; 6] };
    let mut on = passes("to another node", from(PEER4, "10.0.0.77", Tunnel::Ip).around(&inner));
    // On the host only: what the kernel would do with it depends on the machine.
    on.next_hop = Some(hop);
    check(vec![
        on,
        passes("tcp", inner.clone()),
        passes("another port", Outer { port: 6_081, ..from(PEER4, NODE4, Tunnel::Gue) }.around(&inner)),
        passes("a fragment of a tunnelled packet", fragment),
        passes("neither family", arp),
        passes("tagged", tcp(CLIENT4, VIP4).vlan(7).macs([2, 0, 0, 0, 0, 1], [0; 6]).bytes()),
        at("nobody is a peer", from(PEER4, NODE4, Tunnel::Ip).around(&inner), Reason::NotTunnelled)
            .with(|world| world.tables.receive = Receive::default()),
        at("no tunnels over udp", from(PEER4, NODE4, Tunnel::Gue).around(&inner), Reason::NotTunnelled).with(
            |world| {
                peers(world);
                world.tables.receive.port = Port::NONE;
            },
        ),
    ]);
}
