//! What holds for every packet and for every state of the flow table, whatever comes: the judge of the fuzz targets and of
//! the random tests. Each input is read as one packet, or as a story of packets, changes and time.

use std::{collections::BTreeMap, net::SocketAddr};

use gateway_common::{
    addr::{Addr, Port, Protocol},
    counter::{Class, Hook, Reason},
    endpoint::{Endpoint, EndpointState, NextHop},
    filter,
    flow::{Flow, HeadState, Tick},
    service::{Mode, Rate, Service, ServiceKey, Track},
    slot::{Slot, SlotChunk},
};

use crate::{
    memory::{Outcome, Run, Tables},
    packet::{ACK, FIN, Packet, RST, SYN, icmp_error, inspect, inspect_icmp, tcp, udp},
    piece::{pieces, together},
    world::{AGENT4, FIRST_PORT, INGRESS, Id, LOCAL4, LOCAL6, TCP4, TCP6, UDP4, UDP6, World},
};

/// Steps of a story that are looked at.
const STEPS: usize = 96;

/// Bytes of headers that a tunnel may put in front: IPv6 and UDP.
const OUTER: usize = 48;

const ETHERNET: usize = 14;

/// Judges one frame, at the hook that the first byte says, in a world whose services are in the mode that it says.
///
/// # Panics
/// When something does not hold.
pub fn packet(data: &[u8]) {
    let Some((choice, frame)) = data.split_first() else { return };
    let mut world = World::new(Tick::new(100_000));
    for id in [TCP4, UDP4, TCP6, UDP6] {
        world.change(id, |service| {
            (service.mode, service.track) = (mode(choice >> 2), track(choice >> 5));
        });
    }
    let hook = [Hook::XdpBalance, Hook::TcIngress, Hook::TcEgress, Hook::XdpBalance][usize::from(choice & 3)];
    run(&mut world, hook, frame);
    holds(&world);
}

/// Judges a story: packets of clients and endpoints, changes of endpoints, services and slots, and time that goes by.
///
/// # Panics
/// When something does not hold.
pub fn story(data: &[u8]) {
    let mut told = Told(data);
    let mut world = World::new(Tick::new(100_000));
    let size = told.byte();
    world.tables.settings.n_ports = [1, 3, 8, 100][usize::from(size & 3)];
    world.tables.settings.flow_mask = [0, 1, 7, 63][usize::from(size >> 2 & 3)];
    world.tables.settings.reply_mask = [0, 1, 7, 63][usize::from(size >> 4 & 3)];
    for _ in 0..STEPS {
        if told.0.is_empty() {
            break;
        }
        step(&mut world, &mut told);
    }
    holds(&world);
}

/// A story that has not been told to its end; afterwards it goes on with zeros.
struct Told<'a>(&'a [u8]);

impl Told<'_> {
    fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *first
    }

    fn of<T: Copy>(&mut self, some: &[T]) -> T {
        some[usize::from(self.byte()) % some.len()]
    }
}

const SERVICES: [Id; 7] = [TCP4, UDP4, TCP6, UDP6, LOCAL4, LOCAL6, AGENT4];

fn step(world: &mut World, told: &mut Told<'_>) {
    let choice = told.byte();
    if choice & 16 != 0 {
        return rare_step(world, told, choice & 15);
    }
    match choice & 15 {
        0..=5 => from_client(world, told),
        6..=8 => from_endpoint(world, told),
        9 => from_here(world, told),
        10 => {
            let n = usize::from(told.byte()).min(told.0.len());
            let (frame, rest) = told.0.split_at(n);
            told.0 = rest;
            run(world, Hook::XdpBalance, frame);
        }
        11 => world.now = world.now.after(u32::from(told.byte()) + 1),
        12 => {
            let row = u32::from(told.byte()) % (u32::try_from(SERVICES.len()).expect("a few") * 2);
            let state = told.of(&[EndpointState::ACTIVE, EndpointState::DRAINING, EndpointState::DOWN]);
            world.row(row).state = state;
            if told.byte().is_multiple_of(8) {
                world.row(row).generation += 1;
            }
        }
        13 => {
            let (id, choice, share) = (told.of(&SERVICES[..4]), told.byte(), told.byte());
            world.change(id, |service| {
                (service.mode, service.track) = (mode(choice), track(choice >> 3));
                service.flags = if choice & 0x80 == 0 { 0 } else { Service::AFFINITY };
                service.affinity_ticks = 20;
                service.flow_share = u32::from(share & 15);
            });
        }
        14 => slots(world, told),
        _ => world.row(told.of(&SERVICES).row()).next_hop = told.of(&[NextHop::UNKNOWN, HOP]),
    }
}

/// What comes seldom: pieces of packets, errors about packets, and bounds on who may come.
fn rare_step(world: &mut World, told: &mut Told<'_>, choice: u8) {
    match choice {
        0..=4 => in_pieces(world, told, true),
        5..=6 => in_pieces(world, told, false),
        7..=10 => error_for_endpoint(world, told),
        11..=13 => error_for_client(world, told),
        _ => bounds(world, told),
    }
}

/// A packet of a client or of an endpoint, in pieces of which some may be missing. What was sent on of all of them is the
/// packet, with the right checksum.
fn in_pieces(world: &mut World, told: &mut Told<'_>, is_request: bool) {
    let (id, who, how) = (told.of(&SERVICES[..4]), told.byte(), told.byte());
    let protocol = key_of(world, id).protocol;
    let packet = if is_request {
        let (client, virtual_addr) = (client(world, id, who), virtual_addr(world, id));
        built(protocol, client, virtual_addr)
    } else {
        let row = *world.row(id.row() + u32::from(who & 1));
        let port = FIRST_PORT + u16::from(how) % world.tables.settings.n_ports;
        built(
            protocol,
            SocketAddr::new(row.addr.into(), row.port.number()),
            SocketAddr::new(row.source.into(), port),
        )
    };
    let frame = packet.payload(&[how; 80]).bytes();
    let cuts: &[usize] = told.of(&[&[48], &[24, 64, 72], &[40, 80]]);
    let all = pieces(&frame, 0, u32::from(who & 3), cuts);
    let missing = usize::from(told.byte()) % 8;
    let hook = hook(told);
    let mut sent = Vec::new();
    for (nth, piece) in all.iter().enumerate().filter(|(nth, _)| *nth != missing) {
        let outcome = run(world, hook, piece);
        let grown = outcome.bytes.len().saturating_sub(piece.len());
        if outcome.bytes != *piece && outcome.code != 1 && outcome.code != 2 && sent.len() == nth {
            sent.push(inner(&outcome.bytes, grown));
        }
    }
    if sent.len() == all.len() {
        inspect(&together(&sent)).unwrap_or_else(|error| panic!("pieces make a packet no more: {error}"));
    }
}

const ERRORS: [[(u8, u8); 5]; 2] =
    [[(3, 1), (3, 3), (3, 4), (11, 0), (12, 0)], [(1, 3), (1, 4), (2, 0), (3, 0), (4, 1)]];

/// An error about a packet that the virtual address has sent to a client.
fn error_for_endpoint(world: &mut World, told: &mut Told<'_>) {
    let (id, who, how) = (told.of(&SERVICES), told.byte(), told.byte());
    let (client, virtual_addr) = (client(world, id, who), virtual_addr(world, id));
    let about = built(key_of(world, id).protocol, virtual_addr, client);
    error(world, told, virtual_addr, &about, how);
}

/// An error about a packet that this node has sent to an endpoint.
fn error_for_client(world: &mut World, told: &mut Told<'_>) {
    let (id, which, how) = (told.of(&SERVICES[..4]), told.byte(), told.byte());
    let row = *world.row(id.row() + u32::from(which & 1));
    let port = FIRST_PORT + u16::from(which >> 1) % (world.tables.settings.n_ports + 1);
    let node = SocketAddr::new(row.source.into(), port);
    let about = built(key_of(world, id).protocol, node, SocketAddr::new(row.addr.into(), row.port.number()));
    error(world, told, node, &about, how);
}

/// An error from a router about a packet, quoting more or less of it.
fn error(world: &mut World, told: &mut Told<'_>, to: SocketAddr, about: &Packet, how: u8) {
    let kinds = ERRORS[usize::from(to.is_ipv6())];
    let quoted = [1_000, 28, 48, 8, 21, 40, 60, usize::from(how)][usize::from(how & 7)];
    let (router, host) = if to.is_ipv4() {
        ("203.0.113.1".to_owned(), to.ip().to_string())
    } else {
        ("[2001:db8:77::1]".to_owned(), format!("[{}]", to.ip()))
    };
    let kind = kinds[usize::from(how >> 3) % kinds.len()];
    let about = if how & 0x80 == 0 { about.clone() } else { about.clone().without_checksum() };
    let ttl = told.of(&[64, 64, 64, 2, 1]);
    let frame = icmp_error(&router, &host, kind, 1_400, &about, quoted).ttl(ttl).bytes();
    let hook = hook(told);
    run(world, hook, &frame);
}

/// Bounds on new flows, or none.
fn bounds(world: &mut World, told: &mut Told<'_>) {
    let (id, flows, source) = (told.of(&SERVICES[..4]), told.byte(), told.byte());
    let rate = |n: u8| Rate { per_second: u32::from(n & 7), burst: u32::from(n >> 5) };
    world.tables.settings.guards = flows >> 6;
    world.change(id, |service| {
        (service.flow_rate, service.source_rate) = (rate(flows), rate(source));
        service.flags =
            (service.flags & !Service::LIMITED) | if flows.is_multiple_of(8) { 0 } else { Service::LIMITED };
    });
}

fn virtual_addr(world: &World, id: Id) -> SocketAddr {
    let key = key_of(world, id);
    SocketAddr::new(key.addr.into(), key.port.number())
}

/// One of the clients.
fn client(world: &World, id: Id, number: u8) -> SocketAddr {
    let (host, port) = (number & 7, 40_000 + u16::from(number >> 3));
    if key_of(world, id).addr.is_v4() {
        SocketAddr::from(([192, 0, 2, host], port))
    } else {
        SocketAddr::from(([0x2001, 0xdb8, 9, 0, 0, 0, 0, u16::from(host)], port))
    }
}

const HOP: NextHop = NextHop { interface: INGRESS, mac: [2, 0, 0, 0, 1, 1], own_mac: [2, 0, 0, 0, 1, 2] };

fn mode(choice: u8) -> Mode {
    [Mode::NAT, Mode::NAT, Mode::NAT, Mode::NAT, Mode::DSR_L2, Mode::DSR_IPIP, Mode::DSR_GUE, Mode::NAT]
        [usize::from(choice & 7)]
}

fn track(choice: u8) -> Track {
    [Track::ALWAYS, Track::ALWAYS, Track::CHANGE, Track::NEVER][usize::from(choice & 3)]
}

/// The slots of a service: one endpoint, both in turns, or both in a change.
fn slots(world: &mut World, told: &mut Told<'_>) {
    let id = told.of(&SERVICES[..4]);
    match told.byte() & 3 {
        0 => world.slots(id, 0),
        1 => world.slots(id, 1),
        2 => world.slots_in_turns(id),
        _ => {
            let first = world.tables.services.values().find(|service| service.id == id.0);
            let first = first.expect("a service of the world").table().first_chunk;
            for chunk in first..first + SlotChunk::chunks_for(251) {
                let slots = [Slot { endpoint: 1, former: 0 }; SlotChunk::LEN];
                world.tables.chunks.insert(chunk, SlotChunk { slots });
            }
        }
    }
}

const FLAGS: [u8; 8] = [SYN, ACK, SYN, ACK, FIN | ACK, RST, SYN | ACK, 0];

fn varied(packet: Packet, told: &mut Told<'_>) -> Vec<u8> {
    let look = told.byte();
    let packet = packet.flags(FLAGS[usize::from(look & 7)]).ttl([64, 1, 2, 0][usize::from(look >> 3 & 3)]);
    let packet = if look & 0x20 == 0 { packet } else { packet.without_checksum() };
    let mut frame = packet.payload(&vec![look; usize::from(look >> 6) * 3]).bytes();
    if look & 0xc0 == 0xc0 {
        let (at, byte) = (usize::from(told.byte()), told.byte());
        if let Some(there) = frame.get_mut(at) {
            *there = byte;
        }
    }
    frame
}

fn hook(told: &mut Told<'_>) -> Hook {
    if told.byte().is_multiple_of(4) { Hook::TcIngress } else { Hook::XdpBalance }
}

fn from_client(world: &mut World, told: &mut Told<'_>) {
    let (id, number) = (told.of(&SERVICES), told.byte());
    let (source, to) = (client(world, id, number), virtual_addr(world, id));
    let frame = varied(built(key_of(world, id).protocol, source, to), told);
    let hook = hook(told);
    run(world, hook, &frame);
}

fn from_endpoint(world: &mut World, told: &mut Told<'_>) {
    let id = told.of(&SERVICES[..4]);
    let row = id.row() + u32::from(told.byte() & 1);
    let port = FIRST_PORT + u16::from(told.byte()) % (world.tables.settings.n_ports + 1);
    let endpoint = *world.row(row);
    let from = SocketAddr::new(endpoint.addr.into(), endpoint.port.number());
    let to = SocketAddr::new(endpoint.source.into(), port);
    let frame = varied(built(key_of(world, id).protocol, from, to), told);
    let hook = hook(told);
    run(world, hook, &frame);
}

/// What an endpoint on this node sends.
fn from_here(world: &mut World, told: &mut Told<'_>) {
    let (id, client) = (told.of(&[LOCAL4, LOCAL6]), told.byte());
    let endpoint = *world.row(id.row());
    let from = SocketAddr::new(endpoint.addr.into(), endpoint.port.number());
    let port = 40_000 + u16::from(client >> 3);
    let to = if endpoint.addr.is_v4() {
        SocketAddr::from(([192, 0, 2, client & 7], port))
    } else {
        SocketAddr::from(([0x2001, 0xdb8, 9, 0, 0, 0, 0, u16::from(client & 7)], port))
    };
    let frame = varied(built(Protocol::TCP, from, to), told);
    run(world, Hook::TcEgress, &frame);
}

fn key_of(world: &World, id: Id) -> &ServiceKey {
    let found = world.tables.services.iter().find(|(_, service)| service.id == id.0);
    found.expect("a service of the world").0
}

fn built(protocol: Protocol, from: SocketAddr, to: SocketAddr) -> Packet {
    let (from, to) = (from.to_string(), to.to_string());
    if protocol == Protocol::TCP { tcp(&from, &to) } else { udp(&from, &to) }
}

/// Runs a frame, and judges what became of it.
fn run(world: &mut World, hook: Hook, frame: &[u8]) -> Outcome {
    let before = sums(&world.tables, hook);
    let is_strange = is_strange(&world.tables, hook, frame);
    let run = Run { hook, ingress: INGRESS, now: world.now, next_hop: None };
    let outcome = run.packet(&mut world.tables, frame);
    let after = sums(&world.tables, hook);
    let ended: Vec<Reason> = after
        .iter()
        .filter(|(reason, n)| **reason != Reason::Received.number() && before.get(reason) != Some(n))
        .map(|(reason, _)| reason_of(*reason))
        .collect();
    let [reason] = ended[..] else { panic!("a packet ended with {ended:?}") };
    let count = |sums: &BTreeMap<u32, u64>, reason: Reason| sums.get(&reason.number()).copied().unwrap_or(0);
    assert_eq!(count(&after, reason), count(&before, reason) + 1, "counted once");
    let others: u64 =
        after.iter().filter(|(number, _)| **number != Reason::Received.number()).map(|(_, n)| n).sum();
    assert_eq!(count(&after, Reason::Received), others, "received is the sum of the reasons");
    if is_strange {
        assert_eq!(reason.class(), Class::Passed, "a stranger's packet ended with {reason:?}");
    }
    match reason.class() {
        Class::Passed | Class::Dropped => assert_eq!(outcome.bytes, frame, "{reason:?} changed the packet"),
        Class::Forwarded => is_sound(reason, frame, &outcome.bytes),
        Class::Answered => is_answer(reason, frame, &outcome.bytes),
        Class::Received => panic!("no packet ends so"),
    }
    outcome
}

fn sums(tables: &Tables, hook: Hook) -> BTreeMap<u32, u64> {
    let of_hook = tables.reasons.iter().filter(|((at, _), _)| *at == hook.number());
    of_hook.map(|((_, reason), count)| (*reason, count.packets)).collect()
}

fn reason_of(number: u32) -> Reason {
    *Reason::ALL.iter().find(|reason| reason.number() == number).expect("a reason that there is")
}

/// Whether the filter says that a frame is none of ours.
fn is_strange(tables: &Tables, hook: Hook, frame: &[u8]) -> bool {
    let is_source = hook == Hook::TcEgress;
    let array = |at: usize| frame.get(at..at + 4).and_then(|bytes| <[u8; 4]>::try_from(bytes).ok());
    let addr = match frame.get(12..14) {
        Some([0x08, 0x00]) => array(if is_source { 26 } else { 30 }).map(Addr::v4),
        Some([0x86, 0xdd]) => {
            let at = if is_source { 22 } else { 38 };
            frame.get(at..at + 16).and_then(|bytes| <[u8; 16]>::try_from(bytes).ok()).map(Addr::v6)
        }
        // With a tag, or without an address.
        _ => return false,
    };
    let bit = |addr: Addr| {
        let bit = filter::bit(addr);
        tables.filter.get(&(bit / 64)).is_some_and(|word| word.bits >> (bit % 64) & 1 == 1)
    };
    addr.is_none_or(|addr| !bit(addr))
}

/// A packet that was sent on can be read again, and its checksums are right if they were right before.
fn is_sound(reason: Reason, frame: &[u8], sent: &[u8]) {
    let grown = sent.len().checked_sub(frame.len()).expect("nothing is cut off");
    assert!(grown <= OUTER, "{grown} bytes were put in front");
    let inner = inner(sent, grown);
    if reason == Reason::IcmpForwarded && inspect_icmp(frame).is_ok() {
        inspect_icmp(&inner).unwrap_or_else(|error| panic!("an ICMP error was spoiled: {error}"));
    }
    match (inspect(frame), inspect(&inner)) {
        (Ok(before), Ok(after)) => {
            let hops = before.ttl.checked_sub(after.ttl);
            let is_local = matches!(reason, Reason::ForwardedLocal) || before.ttl == after.ttl;
            assert!(is_local || hops == Some(1), "{hops:?} hops");
        }
        (Ok(_), Err(error)) => panic!("{reason:?} spoiled a packet: {error}"),
        // What was wrong before may stay wrong.
        (Err(_), _) => {}
    }
    if grown >= 20 && sent[12..14] == [0x08, 0x00] {
        assert_eq!(crate::packet::checksum(&sent[ETHERNET..ETHERNET + 20]), 0, "the outer header");
    }
}

/// An answer can be read, goes back where the packet came from, and all its checksums are right.
fn is_answer(reason: Reason, frame: &[u8], sent: &[u8]) {
    assert_eq!((&sent[..6], &sent[6..12]), (&frame[6..12], &frame[..6]), "{reason:?}: the way back");
    let read = if reason == Reason::ResetSent {
        inspect(sent).map(|seen| seen.ttl)
    } else {
        inspect_icmp(sent).map(|seen| seen.ttl)
    };
    assert_eq!(read, Ok(64), "{reason:?}");
}

/// The frame without so many bytes of outer headers.
fn inner(sent: &[u8], grown: usize) -> Vec<u8> {
    if grown == 0 {
        return sent.to_vec();
    }
    let packet = &sent[ETHERNET + grown..];
    let ethertype: [u8; 2] =
        if packet.first().is_some_and(|byte| byte >> 4 == 6) { [0x86, 0xdd] } else { [0x08, 0x00] };
    [&sent[..12], &ethertype, packet].concat()
}

/// What holds for the flow table between packets.
///
/// # Panics
/// When it does not.
pub fn holds(world: &World) {
    let tables = &world.tables;
    let mut held: BTreeMap<u32, u64> = BTreeMap::new();
    let mut seated: BTreeMap<u32, u64> = BTreeMap::new();
    let mut seen = BTreeMap::new();
    for flow in tables.flows.values().flat_map(|bucket| &bucket.flows) {
        let is_busy = flow.head.state.number() & !HeadState::DISPLACED == HeadState::BUSY.number();
        assert!(!is_busy, "an entry is still being written: {flow:?}");
        if !flow.head.state.is_live() {
            continue;
        }
        *held.entry(flow.service).or_default() += 1;
        if flow.client_port != Port::NONE {
            *seated.entry(flow.endpoint).or_default() += 1;
        }
        let who = (flow.client, flow.client_port, flow.port, flow.service, flow.head.protocol.number());
        let twin = seen.insert(who, *flow);
        assert!(twin.is_none(), "two entries of one flow: {flow:?} and {twin:?}");
        is_answered(world, flow);
    }
    let counted: BTreeMap<u32, u64> =
        tables.service_flows.iter().filter(|(_, n)| **n != 0).map(|(id, n)| (*id, *n)).collect();
    assert_eq!(counted, held, "what services hold (left: what is counted)");
    let counted: BTreeMap<u32, u64> =
        tables.endpoint_flows.iter().filter(|(_, n)| **n != 0).map(|(row, n)| (*row, *n)).collect();
    assert_eq!(counted, seated, "flows of endpoints (left: what is counted)");
}

/// What the endpoint of a translated flow answers goes to the flow's client, as long as the flow is not over.
fn is_answered(world: &World, flow: &Flow) {
    let endpoint = world.tables.endpoints.get(&flow.endpoint).copied().unwrap_or_default();
    let is_translated = flow.source_port != Port::NONE && flow.client_port != Port::NONE;
    let is_over = flow.expires.is_before(world.now);
    let is_present = endpoint.generation == flow.generation && endpoint.service == flow.service;
    if !is_translated || is_over || !is_present {
        return;
    }
    let service = world.tables.services.values().find(|service| service.id == flow.service);
    let service = service.expect("a service of the world");
    let is_local = endpoint.flags & Endpoint::LOCAL != 0;
    let to = if is_local { flow.client } else { endpoint.source };
    let from = SocketAddr::new(endpoint.addr.into(), endpoint.port.number());
    let answer = built(flow.head.protocol, from, SocketAddr::new(to.into(), flow.source_port.number()));
    let hook = if is_local { Hook::TcEgress } else { Hook::XdpBalance };
    let mut tables = world.tables.clone();
    let run = Run { hook, ingress: INGRESS, now: world.now, next_hop: None };
    let outcome = run.packet(&mut tables, &answer.bytes());
    let seen = inspect(&outcome.bytes).unwrap_or_else(|error| panic!("an answer was spoiled: {error}"));
    let client = SocketAddr::new(flow.client.into(), flow.client_port.number());
    let known = SocketAddr::new(service.addr.into(), flow.port.number());
    assert_eq!((seen.source, seen.destination), (known, client), "the answer to {flow:?}");
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers without a pattern (xorshift); the same in every run.
    struct Numbers(u64);

    impl Numbers {
        fn bytes(&mut self, n: usize) -> Vec<u8> {
            let byte = || {
                self.0 ^= self.0 << 13;
                self.0 ^= self.0 >> 7;
                self.0 ^= self.0 << 17;
                self.0.to_le_bytes()[3]
            };
            std::iter::repeat_with(byte).take(n).collect()
        }
    }

    /// What fuzzing kept: inputs that each reach something of their own.
    #[test]
    fn what_fuzzing_kept_holds() {
        for (target, is_story) in [("packet", false), ("story", true)] {
            let folder = format!("{}/fuzz/corpus/{target}", env!("CARGO_MANIFEST_DIR"));
            let inputs: Vec<_> = std::fs::read_dir(&folder).expect("there is a corpus").collect();
            assert!(inputs.len() >= 20, "{folder} holds {}", inputs.len());
            for input in inputs {
                let input = std::fs::read(input.expect("an input").path()).expect("it can be read");
                if is_story { story(&input) } else { packet(&input) }
            }
        }
    }

    #[test]
    fn stories_without_a_plan_hold() {
        let mut numbers = Numbers(0x9e37_79b9_7f4a_7c15);
        for _ in 0..300 {
            story(&numbers.bytes(400));
        }
    }

    #[test]
    fn packets_without_a_plan_hold() {
        let mut numbers = Numbers(0x6a09_e667_f3bc_c909);
        for n in 0..300 {
            packet(&numbers.bytes(n % 128));
            // Almost one of ours.
            let mut frame = tcp("192.0.2.9:40000", "198.51.100.1:443").bytes();
            let noise = numbers.bytes(4);
            for pair in noise.chunks(2) {
                let at = usize::from(pair[0]) % frame.len();
                frame[at] = pair[1];
            }
            packet(&[&noise[..1], &frame].concat());
        }
    }

    #[test]
    #[should_panic(expected = "what services hold")]
    fn an_entry_that_nobody_counts_is_noticed() {
        let mut world = World::new(Tick::new(100_000));
        let client = udp("192.0.2.9:40000", "198.51.100.1:53");
        world.flow(&client, UDP4.row(), 0, gateway_common::flow::Phase::OPEN, world.now);
        world.tables.service_flows.clear();
        holds(&world);
    }

    #[test]
    #[should_panic(expected = "the answer to")]
    fn a_flow_without_its_way_back_is_noticed() {
        let mut world = World::new(Tick::new(100_000));
        let client = udp("192.0.2.9:40000", "198.51.100.1:53");
        world.flow(&client, UDP4.row(), 20_005, gateway_common::flow::Phase::OPEN, world.now);
        holds(&world);
    }
}
