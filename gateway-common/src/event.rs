//! Events: single packets that ended early, told to the agent, so many of each reason and no more.

use bytemuck::{Pod, Zeroable};

use crate::{
    addr::{Addr, Port, Protocol},
    counter::{Hook, Reason},
    flow::Tick,
};

/// What stands in [`Events`](crate::map::Events): one packet. Parts of which nothing is known hold what was there before;
/// [`Event::known`] says which mean something.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Pod, Zeroable)]
pub struct Event {
    /// When, in nanoseconds of the kernel's monotonic clock.
    pub time_ns: u64,
    /// Source address of the packet; of the flow that it speaks of, for an ICMP message.
    pub source: Addr,
    /// Destination address of the same.
    pub destination: Addr,
    /// Source port of the same.
    pub source_port: Port,
    /// Destination port of the same.
    pub destination_port: Port,
    /// TCP or UDP.
    pub protocol: Protocol,
    /// Number of the hook.
    pub hook: u8,
    /// Number of the reason.
    pub reason: u8,
    /// Whether it was an ICMP message: 0 or 1.
    pub is_icmp: u8,
    /// Number of the service.
    pub service: u32,
    /// Row of the endpoint.
    pub endpoint: u32,
    /// Bytes of the packet as it came, from its link-layer header on.
    pub len_bytes: u32,
    /// Packets that ended for the same reason on the same processor, and were not told about, since the last that was.
    pub skipped: u32,
}

/// Which parts of an [`Event`] mean something.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Known {
    /// Addresses, ports and protocol.
    pub packet: bool,
    /// The service.
    pub service: bool,
    /// The endpoint.
    pub endpoint: bool,
}

impl Event {
    /// The reason, unless it is one that this build does not know.
    pub fn reason(&self) -> Option<Reason> {
        Reason::ALL.iter().find(|reason| reason.number() == u32::from(self.reason)).copied()
    }

    /// The hook.
    pub fn hook(&self) -> Option<Hook> {
        Hook::ALL.into_iter().find(|hook| hook.number() == u32::from(self.hook))
    }

    /// What is known of the packet follows from how far it came.
    pub fn known(&self) -> Known {
        let nothing = Known { packet: false, service: false, endpoint: false };
        let Some(reason) = self.reason() else { return nothing };
        let is_read = !Self::UNREAD.contains(&reason);
        // What leaves is looked up by its own addresses alone.
        let service = is_read && self.hook() != Some(Hook::TcEgress);
        let endpoint = service && Self::SEATED.contains(&reason);
        Known { packet: is_read, service, endpoint }
    }

    /// The same with zeros for what means nothing.
    #[must_use]
    pub fn without_rest(mut self) -> Self {
        let known = self.known();
        if !known.packet {
            (self.source, self.destination) = (Addr::UNSPECIFIED, Addr::UNSPECIFIED);
            (self.source_port, self.destination_port) = (Port::NONE, Port::NONE);
            self.protocol = Protocol::default();
        }
        if !known.service {
            self.service = 0;
        }
        if !known.endpoint {
            self.endpoint = 0;
        }
        self
    }

    /// Reasons of packets that could not be read.
    const UNREAD: [Reason; 7] = [
        Reason::Truncated,
        Reason::BadIpHeader,
        Reason::BadTransportHeader,
        Reason::BadIcmp,
        Reason::BadExtension,
        Reason::BadFragment,
        // Remembered under what is not in a packet of its own yet.
        Reason::FragmentsFull,
    ];

    /// Reasons of packets whose endpoint was chosen.
    const SEATED: [Reason; 6] = [
        Reason::TtlExpired,
        Reason::NoNextHop,
        Reason::PortsExhausted,
        Reason::RewriteFailed,
        Reason::TooBig,
        Reason::TooBigAnswered,
    ];
}

/// Value of [`EventCounts`](crate::map::EventCounts): what was told of one reason.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Pod, Zeroable)]
pub struct EventCount {
    /// The tick that the next field speaks of.
    pub tick: Tick,
    /// Events in that tick.
    pub in_tick: u32,
    /// Packets since the last event.
    pub skipped: u32,
    pad: u32,
    /// Events.
    pub told: u64,
    /// Packets without one, because there were enough in their tick.
    pub limited: u64,
    /// Packets without one, because the agent had not read what was there.
    pub lost: u64,
}

impl EventCount {
    /// Whether one more may be told at this instant, of so many in a tick.
    #[inline(always)]
    pub fn may_tell(&mut self, now: Tick, most: u32) -> bool {
        if self.tick != now {
            self.tick = now;
            self.in_tick = 0;
        }
        if self.in_tick >= most {
            self.limited = self.limited.wrapping_add(1);
            self.skipped = self.skipped.wrapping_add(1);
            return false;
        }
        self.in_tick = self.in_tick.wrapping_add(1);
        true
    }

    /// Notes whether it was.
    #[inline(always)]
    pub const fn note(&mut self, is_told: bool) {
        if is_told {
            self.told = self.told.wrapping_add(1);
            self.skipped = 0;
        } else {
            self.lost = self.lost.wrapping_add(1);
            self.skipped = self.skipped.wrapping_add(1);
        }
    }

    /// What two processors counted.
    #[must_use]
    pub const fn and(&self, other: &Self) -> Self {
        Self {
            told: self.told.wrapping_add(other.told),
            limited: self.limited.wrapping_add(other.limited),
            lost: self.lost.wrapping_add(other.lost),
            ..*self
        }
    }
}

const _: () = assert!(size_of::<Event>() == 64);
const _: () = assert!(size_of::<EventCount>() == 40);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn so_many_are_told_in_a_tick_and_the_rest_is_counted() {
        let mut count = EventCount::default();
        let mut told = 0;
        for packet in 0..10 {
            if count.may_tell(Tick::new(5), 3) {
                count.note(true);
                told += 1;
                assert!(packet < 3);
            }
        }
        assert_eq!((told, count.told, count.limited, count.skipped), (3, 3, 7, 7));
        assert!(count.may_tell(Tick::new(6), 3), "another tick");
        count.note(false);
        assert_eq!((count.lost, count.skipped), (1, 8));
        count.note(true);
        assert_eq!(count.skipped, 0);
    }

    #[test]
    fn every_dropped_packet_says_what_is_known_of_it() {
        let event = |reason: Reason, hook: Hook| Event {
            reason: reason.number().to_le_bytes()[0],
            hook: hook.number().to_le_bytes()[0],
            ..Event::default()
        };
        let known = |reason| {
            let known = event(reason, Hook::XdpBalance).known();
            (known.packet, known.service, known.endpoint)
        };
        assert_eq!(known(Reason::Truncated), (false, false, false));
        assert_eq!(known(Reason::Denied), (true, true, false));
        assert_eq!(known(Reason::NoEndpoint), (true, true, false));
        assert_eq!(known(Reason::NoNextHop), (true, true, true));
        let leaving = event(Reason::RewriteFailed, Hook::TcEgress).known();
        assert_eq!((leaving.packet, leaving.service), (true, false));
    }
}
