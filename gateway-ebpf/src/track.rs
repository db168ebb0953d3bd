//! What is remembered about a flow: phases, ages, and when it is over.

use gateway_common::{
    addr::Protocol,
    endpoint::{Endpoint, EndpointState},
    flow::{Phase, Tick},
    settings::Settings,
};

use crate::{
    packet::{Packet, transport::Flags},
    table::row::Held,
};

/// Ticks that an entry lasts without another packet.
#[inline(always)]
pub fn timeout(settings: &Settings, protocol: Protocol, phase: Phase) -> u32 {
    if phase == Phase::OPENING {
        settings.opening_ticks
    } else if phase == Phase::CLOSING {
        settings.closing_ticks
    } else if protocol == Protocol::UDP {
        settings.udp_ticks
    } else {
        settings.open_ticks
    }
}

/// The phase of a flow whose first packet this is.
#[inline(always)]
pub fn first_phase(protocol: Protocol, flags: Flags) -> Phase {
    if flags.closes() {
        Phase::CLOSING
    } else if flags.opens() || protocol == Protocol::UDP {
        Phase::OPENING
    } else {
        Phase::OPEN
    }
}

/// The phase after one more packet from the client. UDP opens with an answer, TCP with what follows its SYN.
#[inline(always)]
pub fn forward_phase(phase: Phase, protocol: Protocol, flags: Flags) -> Phase {
    if flags.closes() {
        Phase::CLOSING
    } else if phase == Phase::OPENING && protocol == Protocol::TCP && !flags.opens() {
        Phase::OPEN
    } else {
        phase
    }
}

/// The phase after one more packet from the endpoint.
#[inline(always)]
pub fn reply_phase(phase: Phase, flags: Flags) -> Phase {
    if flags.closes() {
        Phase::CLOSING
    } else if phase == Phase::OPENING {
        Phase::OPEN
    } else {
        phase
    }
}

/// The further of two phases of one flow: each direction may have seen what the other did not.
#[inline(always)]
pub fn later(a: Phase, b: Phase) -> Phase {
    a.max(b)
}

/// Whether this packet begins a new flow under the 5-tuple of an old one: a SYN after a close or a long silence, or UDP
/// after a long silence. Another packet of TCP goes on where the flow was, as long as nobody took its place. A SYN of a
/// client that has brought a cookie back, and waits for the endpoint, is that of another connection.
#[inline(always)]
pub fn begins_anew(held: &Held, packet: &Packet, now: Tick) -> bool {
    let is_over = held.expires.is_before(now);
    if packet.key().protocol == Protocol::UDP {
        is_over
    } else {
        let is_waiting = held.proxied != 0 && held.phase == Phase::OPENING;
        packet.flags.opens() && (is_over || held.phase == Phase::CLOSING || is_waiting)
    }
}

/// Whether the endpoint of a flow may still receive this packet, which does not [begin anew](begins_anew).
#[inline(always)]
pub fn may_stay(service: u32, endpoint: &Endpoint, held: &Held, packet: &Packet) -> bool {
    // What begins nothing is a stray SYN of the open connection, which its endpoint knows how to answer (RFC 9293, section
    // 3.10.7.4).
    let is_its = endpoint.state == EndpointState::DRAINING
        && packet.key().protocol == Protocol::TCP
        && held.phase == Phase::OPEN;
    endpoint.still_holds(held.generation)
        && endpoint.service == service
        && (takes(endpoint, packet) || is_its)
}

/// Whether an endpoint takes this packet of a flow that it has: one that drains keeps its connections, and nothing else.
#[inline(always)]
pub fn takes(endpoint: &Endpoint, packet: &Packet) -> bool {
    endpoint.state == EndpointState::ACTIVE
        || endpoint.state == EndpointState::DRAINING
            && packet.key().protocol == Protocol::TCP
            && !packet.flags.opens()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn phases_only_go_forward() {
        let syn = Flags::new(0x02);
        let ack = Flags::new(0x10);
        let fin = Flags::new(0x11);
        assert_eq!(first_phase(Protocol::TCP, syn), Phase::OPENING);
        assert_eq!(first_phase(Protocol::TCP, ack), Phase::OPEN);
        assert_eq!(first_phase(Protocol::UDP, Flags::default()), Phase::OPENING);
        assert_eq!(forward_phase(Phase::OPENING, Protocol::TCP, syn), Phase::OPENING);
        assert_eq!(forward_phase(Phase::OPENING, Protocol::TCP, ack), Phase::OPEN);
        assert_eq!(forward_phase(Phase::OPENING, Protocol::UDP, Flags::default()), Phase::OPENING);
        assert_eq!(forward_phase(Phase::CLOSING, Protocol::TCP, ack), Phase::CLOSING);
        assert_eq!(reply_phase(Phase::OPENING, Flags::default()), Phase::OPEN);
        assert_eq!(reply_phase(Phase::OPEN, fin), Phase::CLOSING);
        assert_eq!(later(Phase::OPEN, Phase::OPENING), Phase::OPEN);
        assert_eq!(later(Phase::OPEN, Phase::CLOSING), Phase::CLOSING);
    }
}
