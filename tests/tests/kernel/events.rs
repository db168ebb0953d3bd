//! Events: what is told of a packet that ends early, how often, and that nothing is told unless somebody asked.

use gateway_common::{
    addr::Protocol,
    counter::{Hook, Reason},
    endpoint::EndpointState,
    event::Event,
    flow::Phase,
    source::SourceRule,
};
use gateway_tests::{
    packet::{Packet, tcp, udp},
    world::{TCP4, TCP6, UDP4, World, addr_of},
};

use crate::check::{Case, case, check, raw, steps};

const VIP4: &str = "198.51.100.1:443";
const DNS4: &str = "198.51.100.1:53";
const VIP6: &str = "[2001:db8::1]:443";
const CLIENT4: &str = "192.0.2.9:40000";
const CLIENT6: &str = "[2001:db8:9::9]:40000";

const HOOKS: [Hook; 2] = [Hook::XdpBalance, Hook::TcIngress];

fn listen(world: &mut World) {
    world.tables.settings.events = 3;
}

fn deny(world: &mut World) {
    world.tables.list(addr_of("192.0.2.0"), 24, SourceRule::DENY);
    world.tables.list(addr_of("2001:db8:9::"), 48, SourceRule::DENY);
}

fn number(number: u32) -> u8 {
    number.to_le_bytes()[0]
}

/// The one event of a case.
fn only(world: &World) -> Event {
    let [event] = world.tables.events[..] else { panic!("{:?}", world.tables.events) };
    event
}

/// The packet is told of, and so is the service.
fn told(case: Case, packet: &Packet, hook: Hook, service: u32, endpoint: u32) -> Case {
    let key = packet.key();
    let (len, reason) = (case.frame.len(), case.reason);
    case.at(hook).after(move |world| {
        let event = only(world);
        assert_eq!((event.source, event.source_port), (key.source, key.source_port));
        assert_eq!((event.destination, event.destination_port), (key.destination, key.destination_port));
        assert_eq!((event.protocol, event.is_icmp, event.skipped), (key.protocol, 0, 0));
        assert_eq!((event.hook, event.reason), (number(hook.number()), number(reason.number())));
        assert_eq!((event.service, event.endpoint), (service, endpoint));
        assert_eq!(usize::try_from(event.len_bytes), Ok(len));
        assert_eq!(world.tables.event_counts[&reason.number()].told, 1);
    })
}

#[test]
fn packets_that_end_early_are_told_of() {
    let (syn4, syn6, dns) = (tcp(CLIENT4, VIP4).syn(), tcp(CLIENT6, VIP6).syn(), udp(CLIENT4, DNS4));
    let reply = tcp("10.0.0.10:8443", "10.0.0.1:20005");
    let mut cases = Vec::new();
    for hook in HOOKS {
        let denied = |name, packet: &Packet, id: u32| {
            let case = case(name, packet, Reason::Denied).with(|world| {
                listen(world);
                deny(world);
            });
            told(case, packet, hook, id, 0)
        };
        cases.extend([
            denied("denied over v4", &syn4, TCP4.0),
            denied("denied over v6", &syn6, TCP6.0),
            denied("denied udp", &dns, UDP4.0),
        ]);
        let expired =
            case("without a hop left", &tcp(CLIENT4, VIP4).syn().ttl(1), Reason::TtlExpired).with(listen);
        cases.push(told(expired, &syn4, hook, TCP4.0, TCP4.row()));
        let known = tcp(CLIENT4, VIP4);
        let back = case(
            "a reply without a hop left",
            &tcp("10.0.0.10:8443", "10.0.0.1:20005").ttl(1),
            Reason::TtlExpired,
        )
        .with(move |world| {
            listen(world);
            world.established(&known, TCP4.row(), 20_005, Phase::OPEN, world.now);
        });
        cases.push(told(back, &reply, hook, TCP4.0, TCP4.row()));
        let mut short = syn4.bytes();
        short.truncate(40);
        let unread = raw("without the end of its header", short, Reason::BadIpHeader).with(listen).at(hook);
        cases.push(unread.after(|world| {
            let event = only(world);
            assert_eq!((event.source, event.service, event.len_bytes), (addr_of("::"), 0, 40));
        }));
    }
    check(cases);
}

#[test]
fn what_is_answered_is_told_of_once() {
    let cases = HOOKS.map(|hook| {
        let syn = tcp(CLIENT4, VIP4).syn();
        let down = case("a reset", &syn, Reason::ResetSent).with(|world| {
            listen(world);
            world.state(TCP4, EndpointState::DOWN);
        });
        told(down.sent(VIP4, CLIENT4, 64), &syn, hook, TCP4.0, 0)
    });
    check(cases.into());
}

#[test]
fn what_goes_on_is_not_told_of() {
    let syn = tcp(CLIENT4, VIP4).syn();
    check(vec![
        case("forwarded", &syn, Reason::Forwarded)
            .with(listen)
            .sent("10.0.0.1:?", "10.0.0.10:8443", 63)
            .after(|world| assert_eq!(world.tables.events, [])),
        case("passed", &tcp(CLIENT4, "198.51.100.1:444"), Reason::NoService)
            .with(listen)
            .after(|world| assert_eq!(world.tables.events, [])),
        case("dropped, and nobody asked", &syn, Reason::Denied)
            .with(deny)
            .after(|world| assert!(world.tables.events.is_empty() && world.tables.event_counts.is_empty())),
    ]);
}

#[test]
fn no_more_than_so_many_of_a_reason_are_told_of() {
    let frames: Vec<Vec<u8>> = (0..10_u16).map(|_| tcp(CLIENT4, VIP4).syn().bytes()).collect();
    let prepare = |world: &mut World| {
        listen(world);
        deny(world);
    };
    steps("ten of three", Hook::XdpBalance, prepare, &frames, Reason::Denied, |world| {
        assert_eq!(world.tables.events.len(), 3);
        assert!(world.tables.events.iter().all(|event| event.protocol == Protocol::TCP));
        let count = world.tables.event_counts[&Reason::Denied.number()];
        assert_eq!((count.told, count.limited, count.lost, count.skipped), (3, 7, 0, 7));
    });
}
