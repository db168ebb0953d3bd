//! Health checks through tunnels: on the link they are a client's packets to the virtual address.

use std::net::IpAddr;

use gateway_common::{
    addr::{Addr, Port},
    counter::{Hook, Reason},
    probe::Probe,
    service::Mode,
};
use gateway_tests::{
    packet::{Packet, inspect, tcp, udp},
    world::World,
};

use crate::check::{Case, case, check};

const OWN4: &str = "10.0.0.1:40000";
const OWN6: &str = "[fd00::1]:40000";
const END4: &str = "10.0.0.10:443";
const END6: &str = "[fd00::10]:443";
const VIP4: &str = "198.51.100.1:443";
const VIP6: &str = "[2001:db8::1]:443";
const TC_NEXT: i32 = -1;

fn ip(text: &str) -> Addr {
    let addr: std::net::SocketAddr = text.parse().unwrap();
    Addr::from(addr.ip())
}

/// A check of an endpoint that is addressed to something else inside.
fn probing(world: &mut World, endpoint: &str, destination: &str, mode: Mode) {
    let port = Port::new(40_000);
    let probe = Probe::new(ip(endpoint), ip(destination), port, mode);
    world.tables.probes.insert(Probe::row(port), probe);
}

fn leaves(name: &'static str, sent: &Packet, (to, mode): (&'static str, Mode), skipped: usize) -> Case {
    let expected = sent.bytes();
    let outer: IpAddr = ip(if sent.bytes()[12] == 0x08 { END4 } else { END6 }).into();
    let endpoint = if outer.is_ipv4() { END4 } else { END6 };
    case(name, sent, Reason::ProbeSent)
        .at(Hook::TcProbeOut)
        .with(move |world| probing(world, endpoint, to, mode))
        .code(TC_NEXT)
        .leaves(move |frame| {
            assert_eq!(frame[..12], expected[..12], "{name}: the frame goes where it went");
            let outer_to = if outer.is_ipv4() { frame[30..34].to_vec() } else { frame[38..54].to_vec() };
            let outer_bytes = match outer {
                IpAddr::V4(addr) => addr.octets().to_vec(),
                IpAddr::V6(addr) => addr.octets().to_vec(),
            };
            assert_eq!(outer_to, outer_bytes, "{name}: the tunnel ends at the endpoint");
            let inner = [&expected[..14], &frame[14 + skipped..]].concat();
            let seen = inspect(&inner).unwrap_or_else(|error| panic!("{name}: {error}"));
            assert_eq!(seen.destination.to_string(), to, "{name}");
            assert_eq!(inner.len(), expected.len());
        })
        .after(|world| assert!(world.tables.probes.values().all(|probe| probe.sent == 1)))
}

#[test]
fn checks_go_into_the_tunnel() {
    let (ipip, gue) = (Mode::DSR_IPIP, Mode::DSR_GUE);
    let passes = |name, packet: &Packet| {
        case(name, packet, Reason::NotProbe)
            .at(Hook::TcProbeOut)
            .with(|world| probing(world, END4, VIP4, Mode::DSR_IPIP))
            .code(TC_NEXT)
            .after(|world| assert!(world.tables.probes.values().all(|probe| probe.sent == 0)))
    };
    check(vec![
        leaves("v4", &tcp(OWN4, END4).syn(), (VIP4, ipip), 20),
        leaves("v4 over udp", &tcp(OWN4, END4), (VIP4, gue), 28),
        leaves("v6", &tcp(OWN6, END6), (VIP6, ipip), 40),
        leaves("v6 over udp", &tcp(OWN6, END6).payload(b"GET / HTTP/1.1"), (VIP6, gue), 48),
        leaves("to the endpoint itself", &tcp(OWN4, END4), (END4, ipip), 20),
        passes("from another port", &tcp("10.0.0.1:40001", END4)),
        passes("from a port of the same row", &tcp("10.0.0.1:56384", END4)),
        passes("to another endpoint", &tcp(OWN4, "10.0.0.11:443")),
        passes("another protocol", &udp(OWN4, END4)),
        passes("another family", &tcp(OWN6, END6)),
    ]);
}

#[test]
fn answers_come_back() {
    let comes = |name, answer: &Packet, from: &'static str, to: &'static str, seen: (&str, &str)| {
        case(name, answer, Reason::ProbeAnswered)
            .at(Hook::TcProbeIn)
            .with(move |world| probing(world, from, to, Mode::DSR_IPIP))
            .sent(seen.0, seen.1, 64)
            .code(TC_NEXT)
    };
    let passes = |name, packet: &Packet| {
        case(name, packet, Reason::NotProbe)
            .at(Hook::TcProbeIn)
            .with(|world| probing(world, END4, VIP4, Mode::DSR_IPIP))
    };
    check(vec![
        comes("v4", &tcp(VIP4, OWN4), END4, VIP4, (END4, OWN4)),
        comes("v6", &tcp(VIP6, OWN6), END6, VIP6, (END6, OWN6)),
        comes("from the endpoint itself", &tcp(END4, OWN4), END4, END4, (END4, OWN4)),
        passes("to another port", &tcp(VIP4, "10.0.0.1:40001")),
        passes("from somebody else", &tcp("198.51.100.9:443", OWN4)),
        passes("another protocol", &udp(VIP4, OWN4)),
    ]);
}
