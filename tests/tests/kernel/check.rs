//! One case: a packet, the maps around it, and what must become of it; in the kernel and on the host alike.

use std::{net::SocketAddr, sync::Mutex};

use gateway_common::{
    aside::Swept,
    counter::{Class, Hook, Reason, ServiceReasons},
    endpoint::NextHop,
    flow::Tick,
    health::EndpointHealth,
};
use gateway_tests::{
    kernel_run::Kernel,
    memory::{BUCKETS, Outcome, Run, Tables},
    packet::{self, Packet},
    privilege, ticks,
    world::{INGRESS, TICK_SHIFT, World},
};

/// What a packet that was translated must say.
#[derive(Clone, Debug)]
pub struct Sent {
    pub source: String,
    pub destination: String,
    pub ttl: u8,
    pub macs: Option<([u8; 6], [u8; 6])>,
}

/// What looks at a frame.
type Look = Box<dyn Fn(&[u8])>;

/// One case.
pub struct Case {
    pub name: &'static str,
    pub hook: Hook,
    pub frame: Vec<u8>,
    pub prepare: Box<dyn Fn(&mut World)>,
    pub reason: Reason,
    pub sent: Option<Sent>,
    pub leaves: Option<Look>,
    pub code: Option<i32>,
    pub next_hop: Option<NextHop>,
    pub without_instants: fn(&mut Tables),
    pub why: Reason,
    pub after: Box<dyn Fn(&World)>,
}

/// A case at XDP that ends with `reason`.
pub fn case(name: &'static str, packet: &Packet, reason: Reason) -> Case {
    raw(name, packet.bytes(), reason)
}

/// The same for a frame that is no proper packet.
pub fn raw(name: &'static str, frame: Vec<u8>, reason: Reason) -> Case {
    Case {
        name,
        hook: Hook::XdpBalance,
        frame,
        prepare: Box::new(|_| {}),
        reason,
        sent: None,
        leaves: None,
        code: None,
        next_hop: None,
        without_instants: |_| {},
        why: why(reason),
        after: Box::new(|_| {}),
    }
}

impl Case {
    /// At another hook.
    pub fn at(mut self, hook: Hook) -> Self {
        self.hook = hook;
        self
    }

    /// In a world changed by this.
    pub fn with(mut self, prepare: impl Fn(&mut World) + 'static) -> Self {
        self.prepare = Box::new(prepare);
        self
    }

    /// The packet leaves with these addresses; `:?` stands for any translation port.
    pub fn sent(mut self, source: &str, destination: &str, ttl: u8) -> Self {
        self.sent = Some(Sent { source: source.into(), destination: destination.into(), ttl, macs: None });
        self
    }

    /// The packet leaves in a frame that satisfies this.
    pub fn leaves(mut self, leaves: impl Fn(&[u8]) + 'static) -> Self {
        self.leaves = Some(Box::new(leaves));
        self
    }

    /// In a frame from and to these link-layer addresses.
    pub fn macs(mut self, source: [u8; 6], destination: [u8; 6]) -> Self {
        self.sent.as_mut().expect("sent() first").macs = Some((source, destination));
        self
    }

    /// The packet is answered for this reason.
    pub fn because(mut self, why: Reason) -> Self {
        self.why = why;
        self
    }

    /// The program returns this code.
    pub fn code(mut self, code: i32) -> Self {
        self.code = Some(code);
        self
    }

    /// What this takes out of the maps is not compared: instants of a finer clock.
    pub fn with_instants(mut self, without: fn(&mut Tables)) -> Self {
        self.without_instants = without;
        self
    }

    /// The maps afterwards satisfy this.
    pub fn after(mut self, after: impl Fn(&World) + 'static) -> Self {
        self.after = Box::new(after);
        self
    }
}

/// Runs cases on the host alone.
pub fn check_on_host(cases: &[Case]) {
    for case in cases {
        on_host(case, now());
    }
}

static KERNEL: Mutex<Option<Kernel>> = Mutex::new(None);

/// Runs cases on the host and, where this process may, in the kernel.
pub fn check(cases: Vec<Case>) {
    let kernel = privilege::require("running packets through the kernel programs");
    for case in cases {
        on_host(&case, now());
        if kernel {
            in_kernel(&case);
        }
    }
}

/// Does something with the kernel's programs.
pub fn kernel<T>(with: impl FnOnce(&mut Kernel) -> T) -> T {
    let mut guard = KERNEL.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    with(guard.get_or_insert_with(|| Kernel::load().expect("the kernel loads the programs")))
}

/// Does something to a world on the host and, where this process may, in the kernel: both find the same and leave the same
/// maps. Returns what the host found, and its world.
fn both<T: std::fmt::Debug + PartialEq>(
    name: &str,
    prepare: impl Fn(&mut World),
    on_host: impl Fn(&mut World) -> T,
    in_kernel: impl Fn(&mut Kernel) -> T,
) -> (T, World) {
    let prepared = || {
        let mut world = World::new(now());
        prepare(&mut world);
        world
    };
    if privilege::require("running packets through the kernel programs") {
        let agreed = (0..5).any(|_| {
            let mut world = prepared();
            let (found, tables) = kernel(|kernel| {
                kernel.fill(&world.tables).unwrap();
                let found = in_kernel(kernel);
                (found, kernel.read(&world.tables).unwrap())
            });
            if now() != world.now {
                return false;
            }
            assert_eq!(found, on_host(&mut world), "{name}: kernel (left) and host differ");
            assert_eq!(tables, world.tables, "{name}: maps of kernel (left) and host differ");
            true
        });
        assert!(agreed, "{name}: the clock ticks faster than the kernel runs");
    }
    let mut world = prepared();
    let found = on_host(&mut world);
    (found, world)
}

/// Runs packets one after the other on the host and, where this process may, in the kernel: each ends with this reason.
/// Returns what came out.
pub fn steps(
    name: &str,
    hook: Hook,
    prepare: impl Fn(&mut World),
    frames: &[Vec<u8>],
    reason: Reason,
    after: impl Fn(&World),
) -> Vec<Vec<u8>> {
    let on_host = |world: &mut World| -> Vec<Outcome> {
        let run = Run { hook, ingress: INGRESS, now: world.now, next_hop: None };
        frames.iter().map(|frame| run.packet(&mut world.tables, frame)).collect()
    };
    let in_kernel =
        |kernel: &mut Kernel| frames.iter().map(|frame| kernel.run(hook, frame).unwrap()).collect();
    let (outcomes, world) = both(name, prepare, on_host, in_kernel);
    let received = world.tables.reason(hook, Reason::Received).packets;
    assert_eq!(received, u64::try_from(frames.len()).unwrap(), "{name}: received");
    assert_eq!(world.tables.reason(hook, reason).packets, received, "{name}: {:?}", world.tables.reasons);
    after(&world);
    outcomes.into_iter().map(|outcome| outcome.bytes).collect()
}

/// Sweeps the whole flow table of a world and then the places for replies, on the host and, where this process may, in the
/// kernel: so many are freed.
pub fn swept(name: &str, prepare: impl Fn(&mut World), freed: [u32; 2], after: impl Fn(&World)) {
    const TABLES: [Swept; 2] = [Swept::Flows, Swept::Replies];
    let on_host = |world: &mut World| {
        let run = Run { hook: Hook::XdpBalance, ingress: INGRESS, now: world.now, next_hop: None };
        TABLES.map(|table| run.sweep(&mut world.tables, table, 0..BUCKETS))
    };
    let in_kernel = |kernel: &mut Kernel| TABLES.map(|table| kernel.sweep(table, 0, BUCKETS).unwrap());
    let (found, world) = both(name, prepare, on_host, in_kernel);
    assert_eq!(found, freed, "{name}: entries and places");
    after(&world);
}

/// Runs packets in the kernel alone, each at its hook, with so much time between them; what the maps of signals say then.
/// Nothing for those who may not.
pub fn timed(
    prepare: impl Fn(&mut World),
    frames: &[(Hook, Vec<u8>)],
    pause: std::time::Duration,
) -> Option<std::collections::BTreeMap<u32, EndpointHealth>> {
    if !privilege::require("running packets through the kernel programs") {
        return None;
    }
    Some(kernel(|kernel| {
        let mut world = World::new(now());
        prepare(&mut world);
        kernel.fill(&world.tables).unwrap();
        for (hook, frame) in frames {
            kernel.run(*hook, frame).unwrap();
            std::thread::sleep(pause);
        }
        kernel.health().unwrap()
    }))
}

/// Runs one packet on the host over these tables.
pub fn host(hook: Hook, tables: &mut Tables, now: Tick, frame: &[u8]) -> Outcome {
    Run { hook, ingress: INGRESS, now, next_hop: None }.packet(tables, frame)
}

/// The instant of the kernel's clock; any instant for those who may not see it.
pub fn now() -> Tick {
    ticks::now(TICK_SHIFT).unwrap_or(Tick::new(100_000))
}

fn world(case: &Case, now: Tick) -> World {
    let mut world = World::new(now);
    (case.prepare)(&mut world);
    world
}

fn run(case: &Case, world: &World) -> (Outcome, Tables) {
    let mut tables = world.tables.clone();
    let run = Run { hook: case.hook, ingress: INGRESS, now: world.now, next_hop: case.next_hop };
    let outcome = run.packet(&mut tables, &case.frame);
    (outcome, tables)
}

/// Runs a case on the host and holds it against what it promises.
fn on_host(case: &Case, now: Tick) {
    let world = world(case, now);
    let (outcome, tables) = run(case, &world);
    let name = case.name;
    let count = |reason: Reason| tables.reason(case.hook, reason).packets;
    assert_eq!(count(Reason::Received), 1, "{name}: counted on arrival");
    let ended: Vec<_> =
        Reason::ALL.iter().filter(|reason| **reason != Reason::Received && count(**reason) != 0).collect();
    assert_eq!(ended, [&case.reason], "{name}: the reason");
    assert_eq!(count(case.reason), 1, "{name}: counted once");
    let bytes = tables.reason(case.hook, case.reason).bytes;
    assert_eq!(bytes, u64::try_from(case.frame.len()).unwrap(), "{name}: bytes");
    if let Some(code) = case.code {
        assert_eq!(outcome.code, code, "{name}: code");
    }
    match case.reason.class() {
        Class::Forwarded | Class::Answered => {
            assert!(case.sent.is_some() || case.leaves.is_some(), "{name}: say what is sent");
            if let Some(sent) = &case.sent {
                compare(name, sent, &outcome.bytes);
            }
            if let Some(leaves) = &case.leaves {
                leaves(&outcome.bytes);
            }
        }
        Class::Passed | Class::Dropped => assert_eq!(outcome.bytes, case.frame, "{name}: changed"),
        Class::Received => panic!("{name}: no packet ends so"),
    }
    by_service(case, &tables);
    (case.after)(&World { tables, now });
}

/// The reason why a packet is answered.
fn why(reason: Reason) -> Reason {
    #[expect(clippy::wildcard_enum_match_arm, reason = "all others are their own")]
    match reason {
        Reason::ResetSent | Reason::UnreachableSent => Reason::NoEndpoint,
        Reason::TooBigAnswered => Reason::TooBig,
        reason => reason,
    }
}

/// What a service drops, it drops for a reason.
fn by_service(case: &Case, tables: &Tables) {
    let name = case.name;
    let none = ServiceReasons::default();
    for (id, count) in &tables.service_counts {
        let reasons = tables.service_reasons.get(id).unwrap_or(&none);
        assert_eq!(reasons.packets.iter().sum::<u64>(), count.dropped, "{name}: drops of service {id}");
    }
    for reasons in tables.service_reasons.values() {
        assert_eq!(reasons.packets[case.why.place()], 1, "{name}: the reason by service");
    }
}

fn compare(name: &str, sent: &Sent, frame: &[u8]) {
    let seen = packet::inspect(frame).unwrap_or_else(|error| panic!("{name}: {error}"));
    address(name, "source", &sent.source, seen.source);
    address(name, "destination", &sent.destination, seen.destination);
    assert_eq!(seen.ttl, sent.ttl, "{name}: time to live");
    if let Some(macs) = sent.macs {
        assert_eq!(seen.macs, macs, "{name}: link-layer addresses");
    }
}

fn address(name: &str, what: &str, wanted: &str, seen: SocketAddr) {
    use gateway_tests::world::{FIRST_PORT, N_PORTS};
    match wanted.strip_suffix(":?") {
        Some(ip) => {
            assert_eq!(seen.ip().to_string(), ip.trim_matches(['[', ']']), "{name}: {what}");
            assert!(
                (FIRST_PORT..FIRST_PORT + N_PORTS).contains(&seen.port()),
                "{name}: {what} port {}",
                seen.port()
            );
        }
        None => assert_eq!(seen.to_string(), wanted, "{name}: {what}"),
    }
}

/// Runs a case in the kernel and compares everything with the host: code, packet, flows, translations and counts.
fn in_kernel(case: &Case) {
    if case.next_hop.is_some() {
        return;
    }
    kernel(|kernel| {
        // A run that a tick of the clock falls into is run again.
        for _ in 0..5 {
            let before = now();
            let world = world(case, before);
            kernel.fill(&world.tables).unwrap();
            let outcome = kernel.run(case.hook, &case.frame).unwrap();
            let mut tables = kernel.read(&world.tables).unwrap();
            if now() != before {
                continue;
            }
            let (expected, mut expected_tables) = run(case, &world);
            (case.without_instants)(&mut tables);
            (case.without_instants)(&mut expected_tables);
            // They hold instants of a finer clock.
            expected_tables.service_rates.clone_from(&world.tables.service_rates);
            expected_tables.source_rates.clone_from(&world.tables.source_rates);
            assert_eq!(outcome, expected, "{}: kernel (left) and host differ", case.name);
            assert_eq!(tables, expected_tables, "{}: maps of kernel (left) and host differ", case.name);
            return;
        }
        panic!("{}: the clock ticks faster than the kernel runs", case.name);
    });
}
