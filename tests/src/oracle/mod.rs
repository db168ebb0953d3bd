//! What holds for every packet and for every state of the flow table, whatever comes: the judge of the fuzz targets and of
//! the random tests. Each input is read as one packet, or as a story of packets, changes and time.

mod judge;

use std::net::{IpAddr, SocketAddr};

use gateway_common::{
    addr::{Addr, Protocol},
    cookie::{CookieKeys, OwnCookie, SynCookie},
    counter::Hook,
    endpoint::{Endpoint, EndpointState, NextHop},
    flow::Tick,
    service::{Mode, Rate, Service, Track},
    slot::{Slot, SlotChunk},
};

use self::judge::{built, holds, inner, key_of, run};
use crate::{
    packet::{ACK, FIN, Packet, RST, SYN, icmp_error, inspect},
    piece::{pieces, together},
    world::{AGENT4, FIRST_PORT, INGRESS, Id, LOCAL4, LOCAL6, TCP4, TCP6, UDP4, UDP6, World, addr_of},
};

/// Steps of a story that are looked at.
const STEPS: usize = 96;

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
    if choice & 0xe0 == 0xe0 {
        return cookie_step(world, told, choice & 15);
    }
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
            let mut was = Mode::NAT;
            world.change(id, |service| was = service.mode);
            if was != Mode::NAT && mode(choice) == Mode::NAT {
                (id.row()..id.row() + 2).for_each(|row| another_way(world, row));
            }
            world.change(id, |service| {
                (service.mode, service.track) = (mode(choice), track(choice >> 3));
                service.flags = if choice & 0x80 == 0 { 0 } else { Service::AFFINITY };
                service.affinity_ticks = 20;
                service.flow_share = u32::from(share & 15);
            });
        }
        14 => slots(world, told),
        _ => way(world, told),
    }
}

/// Another way to an endpoint: another next hop, another address of this node that packets leave from, or the endpoint moves
/// to this node or away from it. With what the agent writes beside it.
fn way(world: &mut World, told: &mut Told<'_>) {
    let (id, how) = (told.of(&SERVICES), told.byte());
    let at = id.row() + u32::from(how >> 3 & 1);
    let row = *world.row(at);
    if how & 7 < 3 {
        world.row(at).next_hop = [HOP, NextHop::UNKNOWN][usize::from(how & 1)];
        return;
    }
    let (source, next_hop, flags) = if how & 7 == 7 {
        world.tables.claim(row.addr);
        (Addr::UNSPECIFIED, NextHop::UNKNOWN, Endpoint::LOCAL)
    } else {
        let nodes = if row.addr.is_v4() { ["10.0.0.1", "10.0.0.2"] } else { ["fd00::1", "fd00::2"] };
        let source = addr_of(nodes[usize::from(how & 1)]);
        world.tables.claim(source);
        (source, HOP, 0)
    };
    let is_same = (row.source, row.flags) == (source, flags);
    (world.row(at).source, world.row(at).next_hop, world.row(at).flags) = (source, next_hop, flags);
    let mut mode = Mode::NAT;
    world.change(id, |service| mode = service.mode);
    if !is_same && matches!(mode, Mode::NAT | Mode::AGENT) {
        another_way(world, at);
    }
}

/// What flows to an endpoint have recorded of their way is not so any more.
fn another_way(world: &mut World, row: u32) {
    let generation = &mut world.row(row).generation;
    *generation = generation.wrapping_add(Endpoint::OWNER + 1);
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

const KEYS: CookieKeys = CookieKeys { keys: [[1, 2], [3, 4]] };

/// The number with which connections begin that bring a cookie back, close to the end of the range.
const BEGINS: u32 = 0xffff_fffe;

/// What belongs to connections that begin with a cookie.
fn cookie_step(world: &mut World, told: &mut Told<'_>, choice: u8) {
    let (id, who, how) = (told.of(&[TCP4, TCP6, LOCAL4]), told.byte(), told.byte());
    let (client, virtual_addr) = (client(world, id, who), virtual_addr(world, id));
    let asks = built(Protocol::TCP, client, virtual_addr).payload(b"");
    match choice {
        0..=2 => {
            world.tables.cookie_keys = KEYS;
            let mut was = Mode::NAT;
            world.change(id, |service| was = service.mode);
            if was != Mode::NAT {
                (id.row()..id.row() + 2).for_each(|row| another_way(world, row));
            }
            world.change(id, |service| {
                (service.mode, service.track) = (Mode::NAT, Track::ALWAYS);
                service.cookie_rate = u32::from(who);
                service.flags = if how.is_multiple_of(8) { 0 } else { Service::COOKIES };
            });
            let until = SynCookie::until(world.now.after(u32::from(how)));
            world.tables.syn_cookies.insert(id.0, SynCookie { full_at: 0, armed: until, sent: 0 });
        }
        3..=5 => {
            let asks = asks.flags(SYN).numbers(BEGINS, 0).tcp_option_bytes(&[2, 4, 5, how]);
            let hook = hook(told);
            run(world, hook, &asks.bytes());
        }
        6..=11 => {
            let made = Tick::new(world.now.count().wrapping_sub(u32::from(how >> 5) * 50));
            let cookie = OwnCookie::make(&KEYS, &asks.key(), BEGINS, u32::from(how & 7), made).sequence();
            let first = BEGINS.wrapping_add(u32::from(how >> 3 & 1));
            let proof = asks.flags(ACK).numbers(first, cookie.wrapping_add(1)).payload(&vec![
                how;
                usize::from(
                    how >> 4 & 1
                )
            ]);
            let hook = hook(told);
            run(world, hook, &proof.bytes());
        }
        _ => {
            let row = told.of(&[TCP4, TCP6]).row() + u32::from(who & 1);
            let endpoint = *world.row(row);
            let from = SocketAddr::new(endpoint.addr.into(), endpoint.port.number());
            let port = FIRST_PORT + u16::from(how >> 2) % world.tables.settings.n_ports;
            let flags = [SYN | ACK, SYN | ACK, ACK, RST | ACK][usize::from(how & 3)];
            let answer = built(Protocol::TCP, from, SocketAddr::new(node(&endpoint), port));
            let hook = hook(told);
            run(world, hook, &answer.flags(flags).numbers(77, BEGINS.wrapping_add(1)).payload(b"").bytes());
        }
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
            SocketAddr::new(node(&row), port),
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
    let node = SocketAddr::new(node(&row), port);
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

/// The address of this node that packets to an endpoint leave from, or would.
fn node(endpoint: &Endpoint) -> IpAddr {
    let source = if endpoint.source != Addr::UNSPECIFIED {
        endpoint.source
    } else if endpoint.addr.is_v4() {
        addr_of("10.0.0.1")
    } else {
        addr_of("fd00::1")
    };
    source.into()
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
    let to = SocketAddr::new(node(&endpoint), port);
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

#[cfg(test)]
mod tests {
    use gateway_common::flow::Phase;

    use super::*;
    use crate::packet::{tcp, udp};

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

    /// Few clients and services, whose endpoints are reached on other ways again and again.
    #[test]
    fn stories_of_ways_hold() {
        let mut numbers = Numbers(0xbb67_ae85_84ca_a73b);
        for _ in 0..300 {
            let mut told = vec![0x3f];
            for step in numbers.bytes(4 * STEPS).chunks(4) {
                let [kind, service, a, b] = [step[0], step[1], step[2], step[3]];
                let service = [0, 1, 4][usize::from(service) % 3];
                match kind & 15 {
                    0..=9 => told.extend([0, service, 8 + (a & 1), b & 1, 1]),
                    10..=13 => told.extend([15, service, a]),
                    14 => told.extend([13, service & 1, [0, 5][usize::from(a & 1)], 15]),
                    _ => told.extend([11, a & 15]),
                }
            }
            story(&told);
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
        world.flow(&client, UDP4.row(), 0, Phase::OPEN, world.now);
        world.tables.service_flows.clear();
        holds(&world);
    }

    #[test]
    #[should_panic(expected = "the answer to")]
    fn a_flow_without_its_way_back_is_noticed() {
        let mut world = World::new(Tick::new(100_000));
        let client = udp("192.0.2.9:40000", "198.51.100.1:53");
        world.flow(&client, UDP4.row(), 20_005, Phase::OPEN, world.now);
        holds(&world);
    }
}
