//! Connections to the agent's services, at the socket lookup.

use std::{net::TcpListener, os::fd::AsRawFd as _};

use gateway_common::counter::{Hook, Reason};
use gateway_tests::{
    kernel_run::Kernel,
    memory::Run,
    packet::tcp,
    privilege,
    world::{AGENT4, INGRESS, World},
};

use crate::check::now;

const CLIENT: &str = "192.0.2.9:40000";
const SK_DROP: u32 = 0;
const SK_PASS: u32 = 1;
/// Where the world's agent keeps its two sockets.
const SOCKETS: [u32; 2] = [4, 5];

struct Lookup {
    name: &'static str,
    to: &'static str,
    sockets: Vec<u32>,
    prepare: fn(&mut World),
    code: u32,
    reason: Reason,
}

fn lookups() -> Vec<Lookup> {
    let lookup = |name, to, sockets: &[u32], code, reason| Lookup {
        name,
        to,
        sockets: sockets.to_vec(),
        prepare: |_| {},
        code,
        reason,
    };
    vec![
        lookup("a service of the agent", "198.51.100.1:80", &SOCKETS, SK_PASS, Reason::Steered),
        lookup("whose sockets are gone", "198.51.100.1:80", &[], SK_DROP, Reason::NoSocket),
        Lookup {
            prepare: |world| world.change(AGENT4, |service| service.n_sockets = 0),
            ..lookup("that never had one", "198.51.100.1:80", &SOCKETS, SK_DROP, Reason::NoSocket)
        },
        lookup("a service that is balanced", "198.51.100.1:443", &SOCKETS, SK_PASS, Reason::NoService),
        lookup("a port without a service", "198.51.100.1:81", &SOCKETS, SK_PASS, Reason::NoService),
        lookup("a stranger", "203.0.113.77:80", &SOCKETS, SK_PASS, Reason::NotOurs),
        Lookup {
            prepare: |world| {
                world.change(gateway_tests::world::TCP6, |service| {
                    (service.mode, service.first_socket, service.n_sockets) =
                        (gateway_common::service::Mode::AGENT, 4, 2);
                });
            },
            ..lookup("over v6", "[2001:db8::1]:443", &SOCKETS, SK_PASS, Reason::Steered)
        },
    ]
}

fn check_host(lookup: &Lookup, world: &World) -> (World, Option<u32>) {
    let name = lookup.name;
    let client = if lookup.to.starts_with('[') { "[2001:db8:9::9]:40000" } else { CLIENT };
    let run = Run { hook: Hook::SkLookup, ingress: INGRESS, now: world.now, next_hop: None };
    let mut after = world.clone();
    let key = tcp(client, lookup.to).key();
    let (code, chosen) = run.connection(&mut after.tables, &key, &lookup.sockets);
    assert_eq!(code, lookup.code, "{name}: code");
    assert_eq!(chosen.is_some(), lookup.reason == Reason::Steered, "{name}: socket");
    for reason in Reason::ALL {
        let wanted = u64::from(*reason == Reason::Received || *reason == lookup.reason);
        let counted = after.tables.reason(Hook::SkLookup, *reason).packets;
        assert_eq!(counted, wanted, "{name}: {}", reason.name());
    }
    (after, chosen)
}

#[test]
fn connections_are_steered() {
    let mut kernel = privilege::require("looking sockets up in the kernel")
        .then(|| Kernel::load().expect("the programs load"));
    let listeners = SOCKETS.map(|index| {
        (index, TcpListener::bind("127.0.0.1:0").unwrap(), TcpListener::bind("[::1]:0").unwrap())
    });
    for lookup in lookups() {
        let mut world = World::new(now());
        (lookup.prepare)(&mut world);
        let (after, chosen) = check_host(&lookup, &world);
        let Some(kernel) = &mut kernel else { continue };
        let v6 = lookup.to.starts_with('[');
        let client = if v6 { "[2001:db8:9::9]:40000" } else { CLIENT };
        if lookup.sockets.is_empty() {
            *kernel = Kernel::load().expect("the programs load");
        }
        for (index, v4_listener, v6_listener) in
            listeners.iter().filter(|(index, ..)| lookup.sockets.contains(index))
        {
            let socket = if v6 { v6_listener.as_raw_fd() } else { v4_listener.as_raw_fd() };
            kernel.set_socket(*index, &socket).unwrap();
        }
        kernel.fill(&world.tables).unwrap();
        let (code, cookie) = kernel.lookup(&tcp(client, lookup.to).key()).unwrap();
        assert_eq!(code, lookup.code, "{}: the kernel's code", lookup.name);
        assert_eq!(cookie != 0, chosen.is_some(), "{}: the kernel's socket", lookup.name);
        assert_eq!(kernel.read(&world.tables).unwrap(), after.tables, "{}: maps", lookup.name);
    }
}

#[test]
fn both_sockets_are_used() {
    let world = World::new(now());
    let mut used = [0_u32; 2];
    for port in 1_000..1_200 {
        let run = Run { hook: Hook::SkLookup, ingress: INGRESS, now: world.now, next_hop: None };
        let key = tcp(&format!("192.0.2.9:{port}"), "198.51.100.1:80").key();
        let (_, chosen) = run.connection(&mut world.tables.clone(), &key, &SOCKETS);
        used[usize::try_from(chosen.unwrap() - SOCKETS[0]).unwrap()] += 1;
    }
    assert!(used.iter().all(|count| *count > 60), "{used:?} is no fair share");
}
