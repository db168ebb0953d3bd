//! What is remembered about a flow: phases, ages, and when it is over.

use gateway_common::{
    addr::Protocol,
    endpoint::{Endpoint, EndpointState},
    flow::{Flow, Phase, Tick},
    service::Service,
    settings::Settings,
};

use crate::packet::{Packet, transport::Flags};

/// Ticks since `seen`. An instant in the future, which another processor with a later clock may have written, is now.
#[inline(always)]
pub const fn age(now: Tick, seen: Tick) -> u32 {
    let age = now.since(seen);
    if age > u32::MAX / 2 { 0 } else { age }
}

/// Whether an entry has been silent for so long that it may lose its port.
#[inline(always)]
pub fn expired(settings: &Settings, protocol: Protocol, phase: Phase, seen: Tick, now: Tick) -> bool {
    let limit = if phase == Phase::OPENING {
        settings.opening_ticks
    } else if phase == Phase::CLOSING {
        settings.closing_ticks
    } else if protocol == Protocol::UDP {
        settings.udp_ticks
    } else {
        settings.open_ticks
    };
    age(now, seen) > limit
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

/// Whether this packet begins a new flow under the 5-tuple of an old one: a SYN after a close or a long silence, or
/// UDP after a long silence.
#[inline(always)]
pub fn begins_anew(settings: &Settings, flow: &Flow, packet: &Packet, now: Tick) -> bool {
    if packet.key().protocol == Protocol::UDP {
        age(now, flow.seen) > settings.udp_ticks
    } else {
        packet.flags.opens()
            && (flow.phase == Phase::CLOSING || expired(settings, Protocol::TCP, flow.phase, flow.seen, now))
    }
}

/// Whether the endpoint of a flow may still receive this packet.
#[inline(always)]
pub fn may_stay(service: &Service, endpoint: &Endpoint, flow: &Flow, packet: &Packet) -> bool {
    if endpoint.generation != flow.generation || endpoint.service != service.id {
        return false;
    }
    if endpoint.state == EndpointState::ACTIVE {
        return true;
    }
    endpoint.state == EndpointState::DRAINING
        && packet.key().protocol == Protocol::TCP
        && !packet.flags.opens()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_instant_in_the_future_is_now() {
        assert_eq!(age(Tick::new(5), Tick::new(3)), 2);
        assert_eq!(age(Tick::new(5), Tick::new(6)), 0);
        assert_eq!(age(Tick::new(1), Tick::new(u32::MAX)), 2);
    }

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
