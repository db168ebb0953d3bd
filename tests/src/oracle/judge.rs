//! What holds of one packet, and of the flow table between packets.

use std::{collections::BTreeMap, net::SocketAddr};

use gateway_common::{
    addr::{Addr, Port, Protocol},
    counter::{Class, Hook, Reason},
    endpoint::Endpoint,
    filter,
    flow::{Flow, HeadState},
    service::{Mode, ServiceKey, Track},
};

use crate::{
    memory::{Outcome, Run, Tables},
    packet::{ACK, Packet, SYN, inspect, inspect_icmp, tcp, udp},
    world::{INGRESS, Id, World},
};

/// Bytes of headers that a tunnel may put in front: IPv6 and UDP.
const OUTER: usize = 48;

const ETHERNET: usize = 14;

/// Codes of a packet that goes on to the stack.
const XDP_PASS: i32 = 2;
const TC_NEXT: i32 = -1;

/// Runs a frame, and judges what became of it.
pub(super) fn run(world: &mut World, hook: Hook, frame: &[u8]) -> Outcome {
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
        Class::Forwarded if matches!(reason, Reason::CookieTaken | Reason::HandshakeJoined) => {
            is_handshake(reason, frame, &outcome.bytes);
        }
        Class::Forwarded => {
            // What is handed over to the stack is delivered here: that is no hop.
            let hops = u8::from(outcome.code != if hook == Hook::XdpBalance { XDP_PASS } else { TC_NEXT });
            is_sound(reason, frame, &outcome.bytes, hops);
            if reason == Reason::Forwarded {
                is_translated(world, frame, &outcome.bytes);
            }
        }
        Class::Answered => is_answer(reason, frame, &outcome.bytes),
        Class::Received => panic!("no packet ends so"),
    }
    outcome
}

/// A packet to an endpoint that is translated leaves from the address that the endpoint's row has now, and from a port of
/// translation; and what the endpoint answers there goes to its client.
fn is_translated(world: &World, frame: &[u8], sent: &[u8]) {
    // Neither pieces nor what was wrong before.
    let (Ok(before), Ok(after)) = (inspect(frame), inspect(sent)) else { return };
    let (to, from, client) = (before.destination, after.source, before.source);
    let is_its = |key: &ServiceKey| (key.addr, key.port.number()) == (to.ip().into(), to.port());
    let Some(service) = world.tables.services.iter().find_map(|(key, it)| is_its(key).then_some(it)) else {
        return;
    };
    if service.mode != Mode::NAT || service.track != Track::ALWAYS {
        return;
    }
    let addr = |endpoint: &Endpoint| SocketAddr::new(endpoint.addr.into(), endpoint.port.number());
    let mut rows = world.tables.endpoints.values().filter(|row| row.service == service.id);
    let row = rows.find(|row| addr(row) == after.destination).expect("an endpoint of the service");
    assert_eq!(row.source, from.ip().into(), "the address that a packet leaves from");
    let settings = &world.tables.settings;
    assert!(settings.translates_from(Port::new(from.port())), "a packet left from port {}", from.port());
    let is_flow = |flow: &&Flow| {
        (flow.client, flow.client_port.number()) == (client.ip().into(), client.port())
            && (flow.service, flow.port.number()) == (service.id, to.port())
    };
    is_answered(world, world.tables.live().find(is_flow).expect("it is remembered"));
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

/// A packet that was sent on can be read again, so many hops further, and its checksums are right if they were right
/// before.
fn is_sound(reason: Reason, frame: &[u8], sent: &[u8], hops: u8) {
    let grown = sent.len().checked_sub(frame.len()).expect("nothing is cut off");
    assert!(grown <= OUTER, "{grown} bytes were put in front");
    let inner = inner(sent, grown);
    if reason == Reason::IcmpForwarded && inspect_icmp(frame).is_ok() {
        inspect_icmp(&inner).unwrap_or_else(|error| panic!("an ICMP error was spoiled: {error}"));
    }
    // Also of pieces, and of packets whose checksum is wrong.
    assert_eq!(
        hops_left(frame).checked_sub(hops_left(&inner)),
        Some(hops),
        "hops of what ended with {reason:?}"
    );
    // What was wrong before may stay wrong.
    if inspect(frame).is_ok()
        && let Err(error) = inspect(&inner)
    {
        panic!("{reason:?} spoiled a packet: {error}");
    }
    if grown >= 20 && sent[12..14] == [0x08, 0x00] {
        assert_eq!(crate::packet::checksum(&sent[ETHERNET..ETHERNET + 20]), 0, "the outer header");
    }
}

/// Time to live, or hop limit, of a frame that was forwarded.
fn hops_left(frame: &[u8]) -> u8 {
    match frame[12..14] {
        [0x08, 0x00] => frame[ETHERNET + 8],
        [0x86, 0xdd] => frame[ETHERNET + 7],
        _ => panic!("neither IPv4 nor IPv6 was forwarded"),
    }
}

/// A packet that became another of the same connection's handshake can be read, and all its checksums are right.
fn is_handshake(reason: Reason, frame: &[u8], sent: &[u8]) {
    if let Ok(before) = inspect(frame) {
        let after = inspect(sent).unwrap_or_else(|error| panic!("{reason:?} spoiled a packet: {error}"));
        assert_eq!(before.ttl.checked_sub(after.ttl), Some(1), "{reason:?}");
    }
}

/// An answer can be read, goes back where the packet came from, and all its checksums are right.
fn is_answer(reason: Reason, frame: &[u8], sent: &[u8]) {
    assert_eq!((&sent[..6], &sent[6..12]), (&frame[6..12], &frame[..6]), "{reason:?}: the way back");
    let read = if matches!(reason, Reason::ResetSent | Reason::CookieSent) {
        inspect(sent).map(|seen| seen.ttl)
    } else {
        inspect_icmp(sent).map(|seen| seen.ttl)
    };
    assert_eq!(read, Ok(64), "{reason:?}");
}

/// The frame without so many bytes of outer headers.
pub(super) fn inner(sent: &[u8], grown: usize) -> Vec<u8> {
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
pub(super) fn holds(world: &World) {
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
    let service = world.tables.services.values().find(|service| service.id == flow.service);
    let service = service.expect("a service of the world");
    let is_direct = !matches!(service.mode, Mode::NAT | Mode::AGENT);
    if !is_translated || is_over || !is_present || is_direct {
        return;
    }
    let is_local = endpoint.flags & Endpoint::LOCAL != 0;
    let to = if is_local { flow.client } else { endpoint.source };
    let from = SocketAddr::new(endpoint.addr.into(), endpoint.port.number());
    let answer = built(flow.head.protocol, from, SocketAddr::new(to.into(), flow.source_port.number()));
    // Until the endpoint agrees, nothing of it reaches a client that has brought a cookie back.
    let answer = if flow.proxied == 0 { answer } else { answer.flags(SYN | ACK).payload(b"") };
    let hook = if is_local { Hook::TcEgress } else { Hook::XdpBalance };
    let mut tables = world.tables.clone();
    let run = Run { hook, ingress: INGRESS, now: world.now, next_hop: None };
    let outcome = run.packet(&mut tables, &answer.bytes());
    let seen = inspect(&outcome.bytes).unwrap_or_else(|error| panic!("an answer was spoiled: {error}"));
    let client = SocketAddr::new(flow.client.into(), flow.client_port.number());
    let known = SocketAddr::new(service.addr.into(), flow.port.number());
    assert_eq!((seen.source, seen.destination), (known, client), "the answer to {flow:?}");
}

pub(super) fn key_of(world: &World, id: Id) -> &ServiceKey {
    let found = world.tables.services.iter().find(|(_, service)| service.id == id.0);
    found.expect("a service of the world").0
}

pub(super) fn built(protocol: Protocol, from: SocketAddr, to: SocketAddr) -> Packet {
    let (from, to) = (from.to_string(), to.to_string());
    if protocol == Protocol::TCP { tcp(&from, &to) } else { udp(&from, &to) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Judges a packet of 64 hops that was sent on with so many.
    fn sent(ttl: u8, hops: u8) {
        let packet = udp("192.0.2.9:40000", "198.51.100.1:53");
        is_sound(Reason::Forwarded, &packet.clone().bytes(), &packet.ttl(ttl).bytes(), hops);
    }

    #[test]
    fn a_hop_is_counted_once() {
        sent(63, 1);
        sent(64, 0);
    }

    #[test]
    #[should_panic(expected = "hops of what ended with Forwarded")]
    fn a_packet_that_is_sent_on_as_far_as_it_came_is_noticed() {
        sent(64, 1);
    }

    #[test]
    #[should_panic(expected = "hops of what ended with Forwarded")]
    fn a_packet_for_this_node_that_lost_a_hop_is_noticed() {
        sent(63, 0);
    }
}
