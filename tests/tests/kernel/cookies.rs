//! SYN cookies of the agent's services: when they are sent, what they look like, and that the kernel's own are in them.

use std::{
    fs,
    net::{SocketAddr, TcpListener},
    sync::OnceLock,
};

use gateway_common::{
    cookie::{HOLD_MOMENTS, SynCookie},
    counter::{Hook, Reason},
    flow::Tick,
    service::{Mode, Service},
};
use gateway_ebpf::cookie::Cookie;
use gateway_tests::{
    memory::Tables,
    packet::{ACK, CLIENT_MAC, FIN, NODE_MAC, Packet, RST, SYN, inspect, tcp},
    privilege,
    world::{AGENT4, Id, TCP6, World},
};
use nix::sched::{CloneFlags, unshare};

use crate::check::{self, case, check};

const VIP4: &str = "198.51.100.1:80";
const VIP6: &str = "[2001:db8::1]:443";
const CLIENT4: &str = "192.0.2.9:40000";
const CLIENT6: &str = "[2001:db8:9::9]:40000";
const BACK: [(Hook, i32); 2] = [(Hook::XdpBalance, 3), (Hook::TcIngress, 7)];
const SOCKETS: [u32; 2] = [4, 5];

/// What a listening socket says on the host: a sequence number and 1,300 bytes.
const GIVEN: u64 = 1_300 << 32 | 0x8765_4321;

fn of(v6: bool) -> (Id, &'static str, &'static str) {
    if v6 { (TCP6, CLIENT6, VIP6) } else { (AGENT4, CLIENT4, VIP4) }
}

/// Both services are the agent's and answer with cookies, at this moment too.
fn armed(world: &mut World) {
    let until = SynCookie::until(Tick::new(u32::MAX / 4));
    for id in [AGENT4, TCP6] {
        world.change(id, |service| {
            service.mode = Mode::AGENT;
            (service.first_socket, service.n_sockets) = (4, 2);
            service.cookie_rate = 1_000;
            service.flags |= Service::COOKIES;
        });
        world.tables.syn_cookies.insert(id.0, SynCookie { full_at: 0, armed: until, sent: 41 });
    }
    world.tables.cookie = GIVEN;
}

/// Listening sockets that always give a cookie, in a network namespace of their own.
fn listeners() -> &'static [TcpListener] {
    static LISTENERS: OnceLock<Vec<TcpListener>> = OnceLock::new();
    LISTENERS.get_or_init(|| {
        let made = std::thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace");
            fs::write("/proc/sys/net/ipv4/tcp_syncookies", "2").expect("its setting");
            let any: SocketAddr = "[::]:0".parse().unwrap();
            SOCKETS.map(|_| TcpListener::bind(any).expect("a listening socket")).into()
        });
        made.join().expect("it does not panic")
    })
}

/// What tells no more than when a packet came.
fn without_instants(tables: &mut Tables) {
    for row in tables.syn_cookies.values_mut() {
        (row.full_at, row.armed) = (0, row.armed >> 32);
    }
}

/// The sequence number of an answer.
fn sequence(frame: &[u8]) -> u32 {
    let at = if frame[12] == 0x08 { 34 } else { 54 };
    u32::from_be_bytes(frame[at + 4..at + 8].try_into().unwrap())
}

/// Runs a SYN on the host and in the kernel: what differs is the cookie alone, which is the kernel's own.
fn answered(name: &str, hook: Hook, code: i32, packet: &Packet, looks: impl Fn(&[u8], Cookie)) {
    let frame = packet.bytes();
    let mut world = World::new(check::now());
    armed(&mut world);
    let mut tables = world.tables.clone();
    let outcome = check::host(hook, &mut tables, world.now, &frame);
    assert_eq!(outcome.code, code, "{name}: code");
    looks(&outcome.bytes, Cookie::from_word(GIVEN));
    assert_eq!(tables.reason(hook, Reason::CookieSent).packets, 1, "{name}");
    assert_eq!(tables.reason(hook, Reason::Received).packets, 1, "{name}");
    let sent: Vec<u64> = tables.syn_cookies.values().map(|row| row.sent).collect();
    assert!(sent == [42, 41] || sent == [41, 42], "{name}: {sent:?}");
    if !privilege::require("asking the kernel for cookies") {
        return;
    }
    check::kernel(|kernel| {
        for (index, listener) in SOCKETS.iter().zip(listeners()) {
            kernel.set_socket(*index, listener).unwrap();
        }
        kernel.fill(&world.tables).unwrap();
        let found = kernel.run(hook, &frame).unwrap();
        let mut found_tables = kernel.read(&world.tables).unwrap();
        let seen = inspect(&found.bytes).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_ne!(sequence(&found.bytes), 0, "{name}: {seen:?}");
        // The host says the same when its socket does.
        let segment = found.bytes.len() > 58 || found.bytes[12] == 0x08 && found.bytes[46] == 0x60;
        let at = if found.bytes[12] == 0x08 { 56 } else { 76 };
        let bytes = if segment { u16::from_be_bytes([found.bytes[at], found.bytes[at + 1]]) } else { 536 };
        world.tables.cookie = u64::from(bytes) << 32 | u64::from(sequence(&found.bytes));
        let mut tables = world.tables.clone();
        let outcome = check::host(hook, &mut tables, world.now, &frame);
        found_tables.cookie = world.tables.cookie;
        assert_eq!(found, outcome, "{name}: kernel (left) and host differ");
        without_instants(&mut found_tables);
        without_instants(&mut tables);
        assert_eq!(found_tables, tables, "{name}: maps of kernel (left) and host differ");
    });
}

#[test]
fn a_syn_is_answered_by_what_the_kernel_takes_back() {
    // Options as a stack sends them: segment size, selective acknowledgment, timestamps, padding, window scale.
    let usual = [2, 4, 5, 0xb4, 4, 2, 8, 10, 1, 2, 3, 4, 0, 0, 0, 0, 1, 3, 3, 7];
    for v6 in [false, true] {
        let (_, client, vip) = of(v6);
        for (hook, code) in BACK {
            let syn = || tcp(client, vip).payload(b"").syn();
            let cases: [(&str, Packet); 6] = [
                ("usual options", syn().tcp_option_bytes(&usual)),
                ("the segment size alone", syn().tcp_option_bytes(&[2, 4, 5, 0xb4])),
                ("the segment size last", syn().tcp_option_bytes(&[1, 3, 3, 7, 4, 2, 1, 1, 2, 4, 5, 0xb4])),
                ("data", syn().tcp_option_bytes(&usual).payload(b"GET / HTTP/1.1")),
                ("IP options", syn().ip_options(if v6 { 0 } else { 10 }).tcp_option_bytes(&usual)),
                ("no segment size", syn().tcp_option_bytes(&[4, 2, 1, 1, 1, 1, 1, 0])),
            ];
            for (name, packet) in cases {
                answered(name, hook, code, &packet, |frame, cookie| {
                    let seen = inspect(frame).unwrap();
                    assert_eq!(
                        (seen.source.to_string(), seen.destination.to_string()),
                        (vip.into(), client.into())
                    );
                    assert_eq!((seen.ttl, seen.macs), (64, (NODE_MAC, CLIENT_MAC)));
                    let tcp = &frame[if v6 { 54 } else { 34 }..];
                    assert_eq!(sequence(frame), cookie.sequence());
                    assert_eq!(tcp[8..12], 2_u32.to_be_bytes(), "one more than the client's");
                    assert_eq!((tcp[12], tcp[13]), (0x60, SYN | ACK));
                    assert_eq!(tcp[20..24], [2, 4, 1_300_u16.to_be_bytes()[0], 1_300_u16.to_be_bytes()[1]]);
                    assert!(tcp[24..].iter().all(|byte| *byte == 0) && tcp.len() <= 26, "{tcp:?}");
                });
            }
        }
    }
}

#[test]
fn large_segments_are_offered_as_the_link_takes_them() {
    for (v6, most) in [(false, 1_460_u16), (true, 1_440)] {
        let (_, client, vip) = of(v6);
        let mut world = World::new(check::now());
        armed(&mut world);
        world.tables.cookie = 8_960 << 32 | 7;
        let syn = tcp(client, vip).payload(b"").syn().tcp_option_bytes(&[2, 4, 0x23, 0]);
        let outcome = check::host(Hook::XdpBalance, &mut world.tables, world.now, &syn.bytes());
        let at = if v6 { 76 } else { 56 };
        assert_eq!(outcome.bytes[at..at + 2], most.to_be_bytes());
    }
}

#[test]
fn a_syn_without_options_has_an_answer_without() {
    for (hook, code) in BACK {
        answered("no options", hook, code, &tcp(CLIENT4, VIP4).payload(b"").syn(), |frame, _| {
            assert_eq!((frame.len(), frame[46], frame[47]), (54, 0x50, SYN | ACK));
        });
    }
}

#[test]
fn what_begins_nothing_passes() {
    let mut cases = Vec::new();
    for v6 in [false, true] {
        let (_, client, vip) = of(v6);
        let passes = |name, packet: &Packet| case(name, packet, Reason::Agent).with(armed).code(2);
        cases.push(passes("data", &tcp(client, vip).payload(b"12")));
        cases.push(passes("the second packet", &tcp(client, vip).flags(SYN | ACK)));
        cases.push(passes("a syn that ends", &tcp(client, vip).flags(SYN | FIN)));
        cases.push(passes("a syn that resets", &tcp(client, vip).flags(SYN | RST)));
        cases.push(passes("a socket with room", &tcp(client, vip).syn()).with(|world| {
            armed(world);
            world.tables.cookie = 0;
            // Nobody listens there in the kernel.
            for id in [AGENT4, TCP6] {
                world.change(id, |service| service.first_socket = 100);
            }
        }));
        cases.push(case("without cookies", &tcp(client, vip).syn(), Reason::Agent).with(|world| {
            armed(world);
            for id in [AGENT4, TCP6] {
                world.change(id, |service| service.flags = 0);
            }
        }));
    }
    let from_many = tcp("224.0.0.9:7", VIP4).syn();
    cases.push(case("from many", &from_many, Reason::Agent).with(armed));
    check(cases.into_iter().map(|case| case.with_instants(without_instants)).collect());
}

/// Whether so many SYNs at one moment, beside those before, arm a service that allows ten in a second.
fn arms(world: &mut World, syns: u32) -> Vec<bool> {
    let frame = tcp(CLIENT4, VIP4).syn().bytes();
    let answered = |tables: &mut Tables| {
        let before = tables.reason(Hook::XdpBalance, Reason::CookieSent).packets;
        check::host(Hook::XdpBalance, tables, world.now, &frame);
        tables.reason(Hook::XdpBalance, Reason::CookieSent).packets != before
    };
    (0..syns).map(|_| answered(&mut world.tables)).collect()
}

#[test]
fn too_many_arm_a_service_and_silence_disarms_it() {
    let mut world = World::new(Tick::new(1_000));
    armed(&mut world);
    world.tables.syn_cookies.clear();
    world.change(AGENT4, |service| service.cookie_rate = 10);
    let first = arms(&mut world, 13);
    assert_eq!(first.iter().position(|is| *is), Some(10), "ten are allowed: {first:?}");
    assert!(first[10..].iter().all(|is| *is), "and then all are answered: {first:?}");
    let row = world.tables.syn_cookies[&AGENT4.0];
    assert_eq!(row.armed, SynCookie::until(world.now.after(HOLD_MOMENTS)));
    assert_eq!(row.sent, 3);
    // Half as many in a second do not keep it up, but are answered while it lasts; a tick of a test is two seconds.
    for _ in 0..HOLD_MOMENTS {
        world.now = world.now.after(1);
        assert_eq!(arms(&mut world, 3), [true; 3]);
    }
    assert_eq!(world.tables.syn_cookies[&AGENT4.0].armed, row.armed, "not prolonged");
    world.now = world.now.after(1);
    assert_eq!(arms(&mut world, 3), [false; 3], "over");
    // More than half, while it is armed, prolongs it.
    let mut again = world.clone();
    arms(&mut again, 11);
    let until = again.tables.syn_cookies[&AGENT4.0].armed;
    again.now = again.now.after(5);
    arms(&mut again, 6);
    assert_ne!(again.tables.syn_cookies[&AGENT4.0].armed, until, "prolonged");
}
