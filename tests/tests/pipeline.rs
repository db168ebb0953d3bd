//! Properties of the pipeline on the host: no packet makes it panic, none is misread, none that is not ours is touched.
#![allow(
    clippy::disallowed_methods,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a suite fails loudly"
)]

use gateway_common::{
    counter::{Class, Hook, Reason},
    flow::{Phase, Tick},
};
use gateway_tests::{
    expect,
    memory::{Outcome, Run, Tables},
    oracle,
    packet::{Packet, inspect, tcp, udp},
    world::{INGRESS, LOCAL4, TCP4, World},
};
use proptest::{prelude::*, sample::Index};

const HOOKS: [Hook; 3] = [Hook::XdpBalance, Hook::TcIngress, Hook::TcEgress];

fn world() -> World {
    let mut world = World::new(Tick::new(10_000));
    let remote = tcp("192.0.2.9:40000", "198.51.100.1:443");
    world.established(&remote, TCP4.row(), 20_005, Phase::OPEN, world.ago(1));
    let local = tcp("192.0.2.9:40000", "198.51.100.2:443");
    world.established(&local, LOCAL4.row(), 40_000, Phase::OPEN, world.ago(1));
    world
}

fn run(hook: Hook, frame: &[u8]) -> (Outcome, Tables) {
    let world = world();
    let mut tables = world.tables;
    let outcome = Run { hook, ingress: INGRESS, now: world.now, next_hop: None }.packet(&mut tables, frame);
    (outcome, tables)
}

/// What fuzzing has kept, so that what it found once is not there again.
#[test]
fn all_that_fuzzing_has_seen_holds() {
    type Judge = fn(&[u8]);
    let judges: [(&str, Judge); 2] = [("packet", oracle::packet), ("story", oracle::story)];
    for (target, judge) in judges {
        let corpus = expect::root().join("tests/fuzz/corpus").join(target);
        let mut n = 0;
        for input in std::fs::read_dir(&corpus).unwrap() {
            judge(&std::fs::read(input.unwrap().path()).unwrap());
            n += 1;
        }
        assert!(n > 100, "{n} inputs in {}", corpus.display());
    }
}

/// The one reason that the packet ended with.
fn reason(hook: Hook, tables: &Tables) -> Reason {
    let count = |reason: &&Reason| tables.reason(hook, **reason).packets;
    assert_eq!(count(&&Reason::Received), 1, "counted on arrival");
    let ended: Vec<_> =
        Reason::ALL.iter().filter(|reason| **reason != Reason::Received && count(reason) > 0).collect();
    assert_eq!(ended.len(), 1, "one reason, not {ended:?}");
    assert_eq!(count(&ended[0]), 1, "counted once");
    *ended[0]
}

/// What holds for every frame at every hook; `intact` when its checksums were right on arrival.
fn holds(hook: Hook, frame: &[u8], intact: bool) -> Result<Reason, TestCaseError> {
    let (outcome, tables) = run(hook, frame);
    let reason = reason(hook, &tables);
    prop_assert!(reason.class() == Class::Answered || outcome.bytes.len() == frame.len());
    match reason.class() {
        Class::Passed | Class::Dropped => {
            prop_assert_eq!(&outcome.bytes, frame, "changed, but {}", reason.name());
        }
        Class::Forwarded if intact => {
            let seen = inspect(&outcome.bytes);
            prop_assert!(seen.is_ok(), "{}: {:?}", reason.name(), seen);
        }
        Class::Forwarded => {}
        // Nothing of the packet need be left.
        Class::Answered => return Ok(reason),
        Class::Received => prop_assert!(false, "no packet ends so"),
    }
    prop_assert!(
        hook != Hook::TcEgress || reason.class() != Class::Dropped,
        "egress drops nothing: {}",
        reason.name()
    );
    Ok(reason)
}

fn v4_addr() -> impl Strategy<Value = &'static str> {
    prop::sample::select(vec![
        "192.0.2.9",
        "198.51.100.1",
        "198.51.100.2",
        "10.0.0.1",
        "10.0.0.10",
        "10.0.0.11",
        "203.0.113.7",
    ])
}

fn v6_addr() -> impl Strategy<Value = &'static str> {
    prop::sample::select(vec![
        "[2001:db8:9::9]",
        "[2001:db8::1]",
        "[2001:db8::2]",
        "[fd00::1]",
        "[fd00::10]",
        "[2001:db8:ff::1]",
    ])
}

fn port() -> impl Strategy<Value = u16> {
    prop_oneof![prop::sample::select(vec![443, 53, 80, 8443, 5353, 9000, 20_005, 40_000]), any::<u16>()]
}

fn packet() -> impl Strategy<Value = Packet> {
    let ends = prop_oneof![(v4_addr(), port(), v4_addr(), port()), (v6_addr(), port(), v6_addr(), port()),];
    (
        ends,
        any::<bool>(),
        any::<u8>(),
        any::<u8>(),
        0..=10_usize,
        prop::collection::vec(any::<u8>(), 0..64),
        any::<bool>(),
    )
        .prop_map(|((source, from, destination, to), is_tcp, flags, ttl, options, payload, sum)| {
            let (source, destination) = (format!("{source}:{from}"), format!("{destination}:{to}"));
            let packet = if is_tcp { tcp(&source, &destination) } else { udp(&source, &destination) };
            let packet =
                packet.flags(flags).ttl(ttl).payload(&payload).ip_options(options).tcp_options(options);
            if sum || source.starts_with('[') { packet } else { packet.without_checksum() }
        })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_bytes_are_never_translated_wrongly(frame in prop::collection::vec(any::<u8>(), 0..200)) {
        for hook in HOOKS {
            holds(hook, &frame, false)?;
        }
    }

    #[test]
    fn packets_keep_true_checksums(packet in packet()) {
        for hook in HOOKS {
            holds(hook, &packet.bytes(), true)?;
        }
    }

    #[test]
    fn packets_to_a_service_are_forwarded(client in 1_024..u16::MAX, flags in any::<u8>(), payload in prop::collection::vec(any::<u8>(), 0..100)) {
        let packet = tcp(&format!("192.0.2.9:{client}"), "198.51.100.1:443").flags(flags).payload(&payload);
        let (outcome, tables) = run(Hook::XdpBalance, &packet.bytes());
        prop_assert_eq!(reason(Hook::XdpBalance, &tables), Reason::Forwarded);
        let seen = inspect(&outcome.bytes).map_err(TestCaseError::fail)?;
        // What the endpoint answers comes back as if the service had.
        let reply = tcp(&seen.destination.to_string(), &seen.source.to_string()).bytes();
        let mut tables = tables;
        let replied = Run { hook: Hook::XdpBalance, ingress: INGRESS, now: world().now, next_hop: None }.packet(&mut tables, &reply);
        let back = inspect(&replied.bytes).map_err(TestCaseError::fail)?;
        prop_assert_eq!(back.source.to_string(), "198.51.100.1:443");
        prop_assert_eq!(back.destination.to_string(), format!("192.0.2.9:{client}"));
    }

    #[test]
    fn damaged_packets_are_read_or_left(packet in packet(), at in any::<Index>(), byte in any::<u8>(), cut in any::<Index>()) {
        let mut damaged = packet.bytes();
        let position = at.index(damaged.len());
        damaged[position] = byte;
        let cut = &damaged[..=cut.index(damaged.len())];
        for hook in HOOKS {
            holds(hook, &damaged, false)?;
            holds(hook, cut, false)?;
        }
    }

    #[test]
    fn strangers_pass_untouched(packet in packet(), at in any::<Index>(), byte in any::<u8>()) {
        // The same packets in a world whose filter is empty: whatever is wrong with one, it is none of ours.
        let mut frame = packet.bytes();
        let position = at.index(frame.len());
        frame[position] = byte;
        for hook in HOOKS {
            let world = world();
            let mut tables = world.tables;
            tables.filter.clear();
            let outcome = Run { hook, ingress: INGRESS, now: world.now, next_hop: None }.packet(&mut tables, &frame);
            prop_assert_eq!(&outcome.bytes, &frame);
            let reason = reason(hook, &tables);
            prop_assert!(matches!(reason, Reason::NotOurs | Reason::NotIp | Reason::Vlan), "{}", reason.name());
        }
    }
}
