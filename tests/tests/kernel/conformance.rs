//! The conformance suite: packets and what has to come out of them, as scapy says (`tests/conformance/generate.py`).
//!
//! Nothing of the pipeline and of this harness's own packets had a part in the expected bytes, so kernel, host build and
//! the other suites cannot share a mistake with it.

use std::{collections::BTreeMap, thread};

use gateway_common::{
    addr::{Addr, Port},
    counter::{Class, Count, Hook, Reason, ServiceReasons},
    endpoint::{Endpoint, EndpointState, NextHop},
    flow::ReplyBucket,
    receive::{Peer, Receive},
    service::{Mode, PortRange, Rate, Service, ServiceKey, Track},
    settings::Settings,
    source::ServiceRate,
};
use gateway_tests::{
    kernel_run::Kernel,
    memory::{Outcome, Run, Tables},
    packet::checksum,
    privilege,
    world::{INGRESS, Id, TCP4, TCP6, TICK_SHIFT, UDP4, UDP6, World, addr_of},
};
use serde::Deserialize;

use crate::check::now;

const CASES: &str = include_str!("../../conformance/cases.json");

/// Cases that there are at least.
const AT_LEAST: usize = 3_400;

/// The client, as the generator has it.
const CLIENT4: &str = "192.0.2.9";
const CLIENT6: &str = "2001:db8:9::9";

/// Who may send through tunnels to this node, and the port of those over UDP.
const PEERS: [(&str, u8); 2] = [("172.16.0.0", 16), ("100::", 64)];
const TUNNEL_PORT: u16 = 6_080;

/// Flows that a service with a limit takes at once, and so slow a clock that none is added while a case runs.
const BURST: u32 = 3;
const SLOW: u16 = 60_000;

/// The translation's range has one port, so that the case says which it is.
const N_PORTS: u16 = 1;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    name: String,
    given: Given,
    steps: Vec<Step>,
    counts: Counts,
}

/// What the tables say.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(clippy::struct_excessive_bools, reason = "words of the file, each of which is there or not")]
struct Given {
    service: String,
    mode: String,
    endpoint: Option<String>,
    #[serde(default)]
    local: bool,
    track: Option<String>,
    /// Of both endpoints.
    state: Option<String>,
    /// The address of the second endpoint, and its state.
    other: Option<String>,
    other_state: Option<String>,
    /// Which endpoint every slot led to before it led to the first.
    former: Option<u16>,
    /// Clients keep their endpoint.
    #[serde(default)]
    affinity: bool,
    /// Which one the client has.
    sticks: Option<u32>,
    /// The service has these ports, first and last of each range.
    #[serde(default)]
    ranges: Vec<(u16, u16)>,
    /// The service has all ports, and its endpoints keep the packet's.
    #[serde(default)]
    any_port: bool,
    /// How many new flows the service still takes, where it has a limit.
    flows_left: Option<u64>,
    /// Tunnels of peers end at this node.
    #[serde(default)]
    receive: bool,
}

/// A packet, and what becomes of it.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Step {
    hook: String,
    reason: String,
    verdict: String,
    #[serde(rename = "in")]
    frame: String,
    /// Only where the frame changes.
    out: Option<String>,
    /// Steps with one name here have the same free nibbles.
    flow: Option<String>,
}

/// What is counted after the last packet; what is zero is left out.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Counts {
    service: BTreeMap<String, u64>,
    /// Why the service dropped packets.
    #[serde(default)]
    reasons: BTreeMap<String, u64>,
    endpoint: BTreeMap<String, u64>,
    /// Of the second endpoint.
    #[serde(default)]
    other: BTreeMap<String, u64>,
    flows: u64,
    replies: usize,
}

#[test]
fn packets_are_what_scapy_says() {
    let cases: Vec<Case> = serde_json::from_str(CASES).unwrap();
    assert!(cases.len() >= AT_LEAST, "only {} cases", cases.len());
    let in_kernel = privilege::require("running the conformance suite through the kernel programs");
    // Under emulation this is most of the time that a kernel takes: each processor has its share, and programs of its own.
    let halves = thread::scope(|scope| {
        let half = |which: usize| {
            let cases = cases.iter().skip(which).step_by(2);
            scope.spawn(move || {
                some(cases, in_kernel.then(|| Kernel::load().expect("the kernel loads the programs")))
            })
        };
        [half(0), half(1)].map(|thread| thread.join().expect("no case panics"))
    });
    let [(mut faults, mut freedom), (others, other_freedom)] = halves;
    faults.extend(others);
    faults.extend(freedom.merge(other_freedom));
    println!("{} cases, {} of them wrong", cases.len(), faults.len());
    assert!(faults.is_empty(), "{}", faults.join("\n"));
    freedom.check();
}

/// Checks some cases; what is wrong with them, and what they chose.
fn some<'a>(cases: impl Iterator<Item = &'a Case>, mut kernel: Option<Kernel>) -> (Vec<String>, Freedom) {
    let mut freedom = Freedom::default();
    let faults = cases.filter_map(|case| {
        let fault = case.check(&mut kernel, &mut freedom).err()?;
        Some(format!("{}: {fault}", case.name))
    });
    (faults.collect(), freedom)
}

impl Case {
    fn check(&self, kernel: &mut Option<Kernel>, freedom: &mut Freedom) -> Result<(), String> {
        let Some(kernel) = kernel else {
            let world = self.world();
            let (outcomes, tables) = self.on_host(&world)?;
            return self.compare(&outcomes, &tables, freedom);
        };
        // A run that a tick of the clock falls into is run again.
        for _ in 0..5 {
            let world = self.world();
            kernel.fill(&world.tables).map_err(|error| format!("{error:#}"))?;
            let found = self.in_kernel(kernel, &world.tables);
            if now() != world.now {
                continue;
            }
            let (in_kernel, kernel_tables) = found?;
            let (on_host, mut host_tables) = self.on_host(&world)?;
            // They hold instants of a finer clock.
            host_tables.service_rates.clone_from(&world.tables.service_rates);
            if in_kernel != on_host {
                return Err(format!("kernel and host differ:\n{in_kernel:02x?}\n{on_host:02x?}"));
            }
            if kernel_tables != host_tables {
                return Err("maps of kernel and host differ".to_owned());
            }
            return self.compare(&on_host, &host_tables, freedom);
        }
        Err("the clock ticks faster than the kernel runs".to_owned())
    }

    /// Runs all packets through the host build; after each, everything received has one reason.
    fn on_host(&self, world: &World) -> Result<(Vec<Outcome>, Tables), String> {
        let mut tables = world.tables.clone();
        let mut outcomes = Vec::new();
        for step in &self.steps {
            let before = tables.clone();
            let run = Run { hook: step.hook(), ingress: INGRESS, now: world.now, next_hop: None };
            outcomes.push(run.packet(&mut tables, &bytes(&step.frame)));
            step.counted(&before, &tables)?;
        }
        Ok((outcomes, tables))
    }

    /// The same in the kernel.
    fn in_kernel(&self, kernel: &mut Kernel, tables: &Tables) -> Result<(Vec<Outcome>, Tables), String> {
        let mut before = tables.clone();
        let mut outcomes = Vec::new();
        for step in &self.steps {
            let failed = |error| format!("in the kernel: {error:#}");
            outcomes.push(kernel.run(step.hook(), &bytes(&step.frame)).map_err(failed)?);
            let after = kernel.read(tables).map_err(failed)?;
            step.counted(&before, &after)?;
            before = after;
        }
        Ok((outcomes, before))
    }

    fn world(&self) -> World {
        let mut world = World::new(now());
        world.tables.settings.n_ports = N_PORTS;
        let (id, given) = (self.id(), &self.given);
        world.change(id, |service| {
            service.mode = mode(&given.mode);
            service.track = given.track.as_deref().map_or(Track::ALWAYS, track);
        });
        if let Some(state) = &given.state {
            world.state(id, endpoint_state(state));
        }
        if let Some(other) = &given.other {
            world.row(id.row() + 1).addr = addr_of(other);
        }
        if let Some(state) = &given.other_state {
            world.row(id.row() + 1).state = endpoint_state(state);
        }
        if let Some(former) = given.former {
            world.changing(id, former);
        }
        self.remembers(&mut world);
        self.listens(&mut world);
        let row = world.row(id.row());
        if let Some(endpoint) = &given.endpoint {
            row.addr = addr_of(endpoint);
        }
        if given.local {
            (row.flags, row.source, row.next_hop) = (Endpoint::LOCAL, Addr::UNSPECIFIED, NextHop::UNKNOWN);
        }
        world
    }

    /// What the service knows of clients and how many flows it takes.
    fn remembers(&self, world: &mut World) {
        let (id, given) = (self.id(), &self.given);
        if given.affinity {
            world.change(id, |service| {
                (service.flags, service.affinity_ticks) = (service.flags | Service::AFFINITY, 40);
            });
        }
        if let Some(nth) = given.sticks {
            let client = addr_of(if matches!(id, TCP4 | UDP4) { CLIENT4 } else { CLIENT6 });
            world.client(client, id, id.row() + nth, world.now.after(20));
        }
        if let Some(left) = given.flows_left {
            world.tables.settings.guards |= Settings::RATES;
            world.tables.settings.interrupts = SLOW;
            world.change(id, |service| {
                (service.flags, service.flow_rate) =
                    (service.flags | Service::LIMITED, Rate { per_second: 1, burst: BURST });
            });
            let now = u64::from(world.now.count()) << (32 + u32::from(TICK_SHIFT));
            let taken = (u64::from(BURST) - left) * (u64::from(SLOW) << 32);
            world.tables.service_rates.insert(id.0, ServiceRate { full_at: now.wrapping_add(taken) });
        }
    }

    /// Which ports the service has, and whose tunnels end here.
    fn listens(&self, world: &mut World) {
        let (id, given) = (self.id(), &self.given);
        let mut key = ServiceKey::new(Addr::UNSPECIFIED, Port::NONE, gateway_common::addr::Protocol::TCP);
        world.change(id, |service| key = service.key());
        let all = ServiceKey::new(key.addr, Port::NONE, key.protocol);
        for (row, (first, last)) in (7..).zip(&given.ranges) {
            let range = PortRange { first: Port::new(*first), last: Port::new(*last), service: id.0 };
            world.tables.ranges.insert(row, range);
        }
        if !given.ranges.is_empty() {
            world.tables.range_keys.insert(all, (7, u32::try_from(given.ranges.len()).unwrap()));
        }
        if given.any_port {
            let mut service = world.tables.services.remove(&key).unwrap();
            service.port = Port::NONE;
            world.tables.services.insert(all, service);
            for row in id.row()..id.row() + 2 {
                world.row(row).port = Port::NONE;
            }
        }
        if given.receive {
            let peers = PEERS.map(|(addr, bits)| Peer::new(addr_of(addr), bits));
            world.tables.receive = Receive::new(peers, Port::new(TUNNEL_PORT));
        }
    }

    fn id(&self) -> Id {
        match self.given.service.as_str() {
            "tcp4" => TCP4,
            "udp4" => UDP4,
            "tcp6" => TCP6,
            "udp6" => UDP6,
            other => panic!("{}: no service {other}", self.name),
        }
    }

    fn compare(&self, outcomes: &[Outcome], tables: &Tables, freedom: &mut Freedom) -> Result<(), String> {
        for (step, outcome) in self.steps.iter().zip(outcomes) {
            step.compare(outcome)?;
            step.notes_freedom(outcome, freedom)?;
        }
        let id = self.id();
        let service = tables.service_counts.get(&id.0).copied().unwrap_or_default();
        same("counts of the service", &not_zero(service.named()), &self.counts.service)?;
        let reasons = tables.service_reasons.get(&id.0).copied().unwrap_or_default();
        same("drops of the service by reason", &by_reason(&reasons), &self.counts.reasons)?;
        same("all drops of the service", &reasons.packets.iter().sum(), &service.dropped)?;
        let rows = [id.row(), id.row() + 1];
        for (what, row, wanted) in
            [("the endpoint", rows[0], &self.counts.endpoint), ("the other one", rows[1], &self.counts.other)]
        {
            let counts = tables.endpoint_counts.get(&row).copied().unwrap_or_default();
            let mut counts = not_zero(counts.named());
            let open = tables.endpoint_flows.get(&row).copied().unwrap_or_default();
            if open != 0 {
                counts.insert("open_flows".to_owned(), open);
            }
            same(&format!("counts of {what}"), &counts, wanted)?;
        }
        let others = tables.service_counts.keys().any(|service| *service != id.0)
            || tables.service_reasons.keys().any(|service| *service != id.0)
            || tables
                .endpoint_counts
                .keys()
                .chain(tables.endpoint_flows.keys())
                .any(|row| !rows.contains(row));
        if others {
            return Err("another service or endpoint was counted".to_owned());
        }
        let held = tables.service_flows.get(&id.0).copied().unwrap_or_default();
        same("entries that the service holds", &held, &self.counts.flows)?;
        same("live entries", &tables.live().count(), &usize::try_from(self.counts.flows).unwrap())?;
        let place = |bucket: &ReplyBucket| bucket.replies.iter().filter(|one| one.tag != 0).count();
        same("places of replies", &tables.replies.values().map(place).sum(), &self.counts.replies)
    }
}

impl Step {
    fn hook(&self) -> Hook {
        Hook::ALL.into_iter().find(|hook| hook.name() == self.hook).expect("the generator knows the hooks")
    }

    fn reason(&self) -> Reason {
        let found = Reason::ALL.iter().find(|reason| reason.name() == self.reason);
        *found.unwrap_or_else(|| panic!("no reason {}", self.reason))
    }

    /// The packet was counted once on arrival and once under its reason, and all received are the sum of the reasons.
    fn counted(&self, before: &Tables, after: &Tables) -> Result<(), String> {
        let bytes = u64::try_from(bytes(&self.frame).len()).unwrap();
        for (number, reason) in Reason::ALL.iter().map(|reason| (reason.number(), *reason)) {
            let (was, is) = (before.reason(self.hook(), reason), after.reason(self.hook(), reason));
            let more = Count { packets: is.packets - was.packets, bytes: is.bytes - was.bytes };
            let wanted = if reason == Reason::Received || reason == self.reason() {
                Count { packets: 1, bytes }
            } else {
                Count::default()
            };
            same(&format!("count {} ({number})", reason.name()), &more, &wanted)?;
        }
        for hook in Hook::ALL {
            let received = after.reason(hook, Reason::Received);
            let others = Reason::ALL.iter().filter(|reason| **reason != Reason::Received);
            let sum = others.map(|reason| after.reason(hook, *reason).packets).sum();
            same("received, and the sum of the reasons", &received.packets, &sum)?;
        }
        Ok(())
    }

    fn compare(&self, outcome: &Outcome) -> Result<(), String> {
        let (send, pass, drop) = if self.hook() == Hook::XdpBalance { (3, 2, 1) } else { (7, -1, 2) };
        let code = match self.verdict.as_str() {
            "send" => send,
            "pass" => pass,
            "drop" => drop,
            other => panic!("no verdict {other}"),
        };
        same("code", &outcome.code, &code)?;
        let changes = matches!(self.reason().class(), Class::Forwarded | Class::Answered);
        if !changes && self.out.is_some() {
            return Err("a packet that is neither forwarded nor answered changes".to_owned());
        }
        let wanted = self.out.as_ref().unwrap_or(&self.frame);
        matches(wanted, &outcome.bytes)
    }

    /// Whether the free nibbles are those of the flow's other packets.
    fn notes_freedom(&self, outcome: &Outcome, freedom: &mut Freedom) -> Result<(), String> {
        let (Some(flow), Some(out)) = (&self.flow, &self.out) else { return Ok(()) };
        let pattern: String = digits(out).collect();
        let free: String = pattern
            .chars()
            .zip(hex(&outcome.bytes).chars())
            .filter_map(|(wanted, found)| matches!(wanted, '.' | 'x').then_some(found))
            .collect();
        let places =
            pattern.chars().map(|c| if matches!(c, '.' | 'x') { c } else { ' ' }).collect::<String>();
        let key = (flow.clone(), places.trim_end().to_owned());
        let known = freedom.flows.entry(key).or_insert_with(|| free.clone());
        same("what is free, and the same in packets of a flow", &free, known)
    }
}

/// What the implementation chose where the suite leaves it open, by flow and by what is open.
#[derive(Default)]
struct Freedom {
    flows: BTreeMap<(String, String), String>,
}

impl Freedom {
    /// Takes what was chosen in other cases; what is not the same for the same flow.
    fn merge(&mut self, other: Self) -> Vec<String> {
        let mut faults = Vec::new();
        for (flow, chosen) in other.flows {
            let before = self.flows.entry(flow.clone()).or_insert_with(|| chosen.clone());
            if *before != chosen {
                faults.push(format!("{flow:?}: {before} and {chosen}"));
            }
        }
        faults
    }

    /// A choice that is the same for all flows would bring all packets to one queue of the receiver.
    fn check(&self) {
        let mut by_place: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for ((_, place), chosen) in &self.flows {
            by_place.entry(place).or_default().push(chosen);
        }
        assert!(!by_place.is_empty(), "nothing is free in any case");
        for (place, mut chosen) in by_place {
            let n = chosen.len();
            assert!(n > 1, "one flow alone has free nibbles at {place:?}");
            chosen.sort_unstable();
            chosen.dedup();
            assert_eq!(chosen.len(), n, "flows share what is free at {place:?}");
        }
    }
}

fn same<T: PartialEq + std::fmt::Debug>(what: &str, found: &T, wanted: &T) -> Result<(), String> {
    if found == wanted { Ok(()) } else { Err(format!("{what}: {found:?} instead of {wanted:?}")) }
}

fn digits(text: &str) -> impl Iterator<Item = char> + '_ {
    text.chars().filter(|c| *c != ' ')
}

fn bytes(text: &str) -> Vec<u8> {
    let digits: Vec<u8> =
        digits(text).map(|c| u8::try_from(c.to_digit(16).expect("a digit")).unwrap()).collect();
    digits.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect()
}

fn hex(bytes: &[u8]) -> String {
    let digit = |nibble: u8| char::from_digit(u32::from(nibble), 16).expect("below sixteen");
    bytes.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]).collect()
}

/// Holds bytes against what is wanted, in which some nibbles are free. See the generator.
fn matches(wanted: &str, found: &[u8]) -> Result<(), String> {
    let pattern: Vec<char> = digits(wanted).collect();
    let text: Vec<char> = hex(found).chars().collect();
    let fits = |(wanted, found): (&char, &char)| match wanted {
        '.' | '~' => true,
        'x' => matches!(found, 'c'..='f'),
        digit => digit == found,
    };
    let whole = pattern.len() == text.len();
    let wrong = pattern.iter().zip(&text).position(|pair| !fits(pair));
    if !whole || wrong.is_some() {
        let at = wrong.unwrap_or_else(|| pattern.len().min(text.len())) / 2;
        let found = hex(found);
        return Err(format!("other bytes from byte {at} on:\n{found}\ninstead of\n{wanted}"));
    }
    if pattern.contains(&'~') {
        same("the sum of the outer header", &checksum(&found[14..34]), &0)?;
    }
    Ok(())
}

fn mode(name: &str) -> Mode {
    match name {
        "nat" => Mode::NAT,
        "dsr-l2" => Mode::DSR_L2,
        "dsr-ipip" => Mode::DSR_IPIP,
        "dsr-gue" => Mode::DSR_GUE,
        other => panic!("no mode {other}"),
    }
}

fn track(name: &str) -> Track {
    match name {
        "always" => Track::ALWAYS,
        "change" => Track::CHANGE,
        "never" => Track::NEVER,
        other => panic!("no way to track {other}"),
    }
}

fn endpoint_state(name: &str) -> EndpointState {
    match name {
        "down" => EndpointState::DOWN,
        "draining" => EndpointState::DRAINING,
        other => panic!("no state {other}"),
    }
}

/// The drops of a service by the name of their reason.
fn by_reason(reasons: &ServiceReasons) -> BTreeMap<String, u64> {
    let name = |place: usize| Reason::OF_SERVICES.get(place).map_or(Reason::OTHER, |reason| reason.name());
    let counts = reasons.packets.iter().enumerate().filter(|(_, n)| **n != 0);
    counts.map(|(place, n)| (name(place).to_owned(), *n)).collect()
}

fn not_zero<const N: usize>(counts: [(&str, u64); N]) -> BTreeMap<String, u64> {
    counts.into_iter().filter(|(_, n)| *n != 0).map(|(name, n)| (name.to_owned(), n)).collect()
}
