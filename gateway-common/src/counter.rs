//! Counters: every packet that a hook sees ends in exactly one reason.

use bytemuck::{Pod, Zeroable};

/// One reason at one hook.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Pod, Zeroable)]
pub struct Count {
    /// Packets; connections at `sk_lookup`, and calls of processes at the hooks of their sockets.
    pub packets: u64,
    /// Bytes from the link-layer header on; zero at `sk_lookup` and at the hooks of sockets.
    pub bytes: u64,
}

/// Value of [`Reasons`](crate::map::Reasons): the reasons of one hook, by their numbers.
#[repr(C)]
#[derive(Clone, Copy, Debug, Eq, PartialEq, Pod, Zeroable)]
pub struct HookCounts {
    /// By the number of the reason.
    pub reasons: [Count; Reason::ROOM],
}

/// Value of [`ServiceCounts`](crate::map::ServiceCounts).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Pod, Zeroable)]
pub struct ServiceCount {
    /// Packets sent on to an endpoint.
    pub packets: u64,
    /// Bytes of those packets as received.
    pub bytes: u64,
    /// Packets of replies sent back to clients.
    pub reply_packets: u64,
    /// Bytes of those packets as received.
    pub reply_bytes: u64,
    /// Flows recorded for the first time, also those that a process of this node began at its socket.
    pub new_flows: u64,
    /// Connections steered into the agent.
    pub steered: u64,
    /// Packets dropped, whatever the reason.
    pub dropped: u64,
    /// Flows and clients that should have been remembered, found no place, and went on.
    pub unrecorded: u64,
}

impl ServiceCount {
    /// Each count by its name.
    #[must_use]
    pub const fn named(&self) -> [(&'static str, u64); 8] {
        [
            ("packets", self.packets),
            ("bytes", self.bytes),
            ("reply_packets", self.reply_packets),
            ("reply_bytes", self.reply_bytes),
            ("new_flows", self.new_flows),
            ("steered", self.steered),
            ("dropped", self.dropped),
            ("unrecorded", self.unrecorded),
        ]
    }
}

/// Value of [`ServiceReasons`](crate::map::ServiceReasons): why packets to and from a service were dropped.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Pod, Zeroable)]
pub struct ServiceReasons {
    /// Packets by [`Reason::place`].
    pub packets: [u64; Reason::PLACES],
}

/// Value of [`EndpointCounts`](crate::map::EndpointCounts).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Pod, Zeroable)]
pub struct EndpointCount {
    /// Packets sent to the endpoint.
    pub packets: u64,
    /// Bytes of those packets as received.
    pub bytes: u64,
    /// Packets that the endpoint sent back.
    pub reply_packets: u64,
    /// Bytes of those packets as received.
    pub reply_bytes: u64,
    /// Flows recorded for the first time.
    pub new_flows: u64,
}

impl EndpointCount {
    /// Each count by its name.
    #[must_use]
    pub const fn named(&self) -> [(&'static str, u64); 5] {
        [
            ("packets", self.packets),
            ("bytes", self.bytes),
            ("reply_packets", self.reply_packets),
            ("reply_bytes", self.reply_bytes),
            ("new_flows", self.new_flows),
        ]
    }
}

/// Where a program is attached. Its number is the index into [`Reasons`](crate::map::Reasons).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Hook {
    /// XDP on ingress.
    XdpBalance,
    /// TC on ingress.
    TcIngress,
    /// TC on egress.
    TcEgress,
    /// Socket lookup.
    SkLookup,
    /// TC on ingress, for packets that come through a tunnel.
    TcReceive,
    /// TC on egress, for health checks that go through a tunnel.
    TcProbeOut,
    /// TC on ingress, for their answers.
    TcProbeIn,
    /// A process connects a socket, over IPv4.
    Connect4,
    /// A process connects a socket, over IPv6.
    Connect6,
    /// A process sends a datagram to an address that it names, over IPv4.
    SendMsg4,
    /// A process sends a datagram to an address that it names, over IPv6.
    SendMsg6,
    /// A process receives a datagram and asks from where, over IPv4.
    RecvMsg4,
    /// A process receives a datagram and asks from where, over IPv6.
    RecvMsg6,
    /// A process asks what a socket is connected to, over IPv4.
    GetPeerName4,
    /// A process asks what a socket is connected to, over IPv6.
    GetPeerName6,
}

impl Hook {
    /// Room for hooks.
    pub const LIMIT: u32 = 16;

    /// All hooks, in the order of their numbers.
    pub const ALL: [Self; 15] = [
        Self::XdpBalance,
        Self::TcIngress,
        Self::TcEgress,
        Self::SkLookup,
        Self::TcReceive,
        Self::TcProbeOut,
        Self::TcProbeIn,
        Self::Connect4,
        Self::Connect6,
        Self::SendMsg4,
        Self::SendMsg6,
        Self::RecvMsg4,
        Self::RecvMsg6,
        Self::GetPeerName4,
        Self::GetPeerName6,
    ];

    /// The number of the hook; append-only.
    #[inline(always)]
    pub const fn number(self) -> u32 {
        match self {
            Self::XdpBalance => 0,
            Self::TcIngress => 1,
            Self::TcEgress => 2,
            Self::SkLookup => 3,
            Self::TcReceive => 4,
            Self::TcProbeOut => 5,
            Self::TcProbeIn => 6,
            Self::Connect4 => 7,
            Self::Connect6 => 8,
            Self::SendMsg4 => 9,
            Self::SendMsg6 => 10,
            Self::RecvMsg4 => 11,
            Self::RecvMsg6 => 12,
            Self::GetPeerName4 => 13,
            Self::GetPeerName6 => 14,
        }
    }

    /// The name of the program, and the value of the metric's `hook` label.
    pub const fn name(self) -> &'static str {
        match self {
            Self::XdpBalance => "xdp_balance",
            Self::TcIngress => "tc_ingress",
            Self::TcEgress => "tc_egress",
            Self::SkLookup => "sk_lookup",
            Self::TcReceive => "tc_receive",
            Self::TcProbeOut => "tc_probe_out",
            Self::TcProbeIn => "tc_probe_in",
            Self::Connect4 => "connect4",
            Self::Connect6 => "connect6",
            Self::SendMsg4 => "sendmsg4",
            Self::SendMsg6 => "sendmsg6",
            Self::RecvMsg4 => "recvmsg4",
            Self::RecvMsg6 => "recvmsg6",
            Self::GetPeerName4 => "getpeername4",
            Self::GetPeerName6 => "getpeername6",
        }
    }

    /// Index into [`Reasons`](crate::map::Reasons).
    #[inline(always)]
    pub const fn index(self, reason: Reason) -> u32 {
        self.number() * Reason::LIMIT + reason.number()
    }
}

/// What becomes of a packet.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Class {
    /// Not an outcome: counts arrivals.
    Received,
    /// The packet goes on to the stack, untouched.
    Passed,
    /// The packet was translated and sent, or handed to the stack translated.
    Forwarded,
    /// The packet ends here.
    Dropped,
    /// The packet ends here, and its sender gets an answer.
    Answered,
}

macro_rules! reasons {
    ($($(#[doc = $doc:literal])+ $variant:ident = $number:literal $name:literal $class:ident,)+) => {
        /// Why a packet went where it went. Numbers are append-only: they are indices of a pinned map.
        #[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
        #[repr(u8)]
        pub enum Reason {
            $($(#[doc = $doc])+ $variant = $number,)+
        }

        impl Reason {
            /// Room for reasons at each hook.
            pub const LIMIT: u32 = 128;

            /// The same, as the length of an array.
            pub const ROOM: usize = 128;

            /// Every reason, in the order of the numbers.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// The number of the reason.
            #[inline(always)]
            pub const fn number(self) -> u32 {
                match self { $(Self::$variant => $number,)+ }
            }

            /// The value of the metric's `reason` label.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)+ }
            }

            /// What becomes of the packet.
            pub const fn class(self) -> Class {
                match self { $(Self::$variant => Class::$class,)+ }
            }

            /// One sentence for the reference.
            pub const fn help(self) -> &'static str {
                match self { $(Self::$variant => concat!($($doc,)+),)+ }
            }
        }
    };
}

reasons! {
    /// Every packet that the hook saw, counted on arrival; the sum of all others equals it.
    Received = 0 "received" Received,
    /// Neither IPv4 nor IPv6, and not VLAN-tagged.
    NotIp = 1 "not_ip" Passed,
    /// The destination is no address of a service or of translation.
    NotOurs = 2 "not_ours" Passed,
    /// VLAN-tagged.
    Vlan = 3 "vlan" Passed,
    /// To one of our addresses, but neither TCP nor UDP.
    OtherProtocol = 4 "other_protocol" Passed,
    /// A fragment to one of our addresses whose first fragment was not seen, or is neither TCP nor UDP.
    Fragment = 5 "fragment" Passed,
    /// To one of our addresses, with an IPv6 extension header that is for the stack, or more of them than are read.
    ExtensionHeader = 6 "extension_header" Passed,
    /// To a virtual address, but to no port and protocol of a service.
    NoService = 7 "no_service" Passed,
    /// To a service that the agent serves: the stack delivers it to the agent's socket.
    Agent = 8 "agent" Passed,
    /// To a translation port that no flow holds; a socket of this node may own it.
    NoTranslation = 9 "no_translation" Passed,
    /// Leaves from an address and port that no translation holds; at the hooks of sockets, an address that was never another.
    NotTranslated = 10 "not_translated" Passed,
    /// Translated or tunnelled, and sent to an endpoint.
    Forwarded = 16 "forwarded" Forwarded,
    /// Translated and handed to the stack for an endpoint on this node.
    ForwardedLocal = 17 "forwarded_local" Forwarded,
    /// A reply, translated back and sent to the client.
    Replied = 18 "replied" Forwarded,
    /// A connection given to a listening socket of the agent.
    Steered = 19 "steered" Forwarded,
    /// A header runs past the end of the packet.
    Truncated = 32 "truncated" Dropped,
    /// An IP header with the wrong version, with a length below the minimum or beyond the packet, or with an IPv4-mapped
    /// address (RFC 5156).
    BadIpHeader = 33 "bad_ip_header" Dropped,
    /// A TCP or UDP header with an impossible length.
    BadTransportHeader = 34 "bad_transport_header" Dropped,
    /// Time to live or hop limit would reach zero.
    TtlExpired = 35 "ttl_expired" Dropped,
    /// The service has no endpoint that may receive the packet.
    NoEndpoint = 36 "no_endpoint" Dropped,
    /// A slot names a row outside its service.
    BadSlot = 37 "bad_slot" Dropped,
    /// No way to the endpoint or back to the client is known yet.
    NoNextHop = 38 "no_next_hop" Dropped,
    /// Every translation port that was tried towards this endpoint is taken.
    PortsExhausted = 39 "ports_exhausted" Dropped,
    /// The flow table could not be reached.
    FlowNotRecorded = 40 "flow_not_recorded" Dropped,
    /// The kernel refused to change the packet.
    RewriteFailed = 41 "rewrite_failed" Dropped,
    /// A connection to a service of the agent whose listening socket is gone.
    NoSocket = 42 "no_socket" Dropped,
    /// The service's forwarding mode is one that this build does not know.
    UnknownMode = 43 "unknown_mode" Dropped,
    /// The packet is larger than its way takes, to the endpoint or back to the client.
    TooBig = 44 "too_big" Dropped,
    /// The flow table has no place for the flow that may be taken from another.
    FlowTableFull = 45 "flow_table_full" Dropped,
    /// Another processor was recording the same flow.
    FlowContended = 46 "flow_contended" Dropped,
    /// An ICMP error about a packet of a flow, translated or tunnelled like the flow, and sent on.
    IcmpForwarded = 47 "icmp_forwarded" Forwarded,
    /// An ICMP error about a packet of no flow that is known.
    IcmpNoFlow = 48 "icmp_no_flow" Passed,
    /// An ICMP message that ends before what it must say.
    BadIcmp = 49 "bad_icmp" Dropped,
    /// TCP to a service without an endpoint that may receive it, or of a connection whose endpoint is down where the service says `whenDown: reset`: answered with a reset.
    ResetSent = 50 "reset_sent" Answered,
    /// UDP to a service without an endpoint that may receive it: answered with "port unreachable".
    UnreachableSent = 51 "unreachable_sent" Answered,
    /// Larger than its way takes, to the endpoint or back to the client: answered with the size that fits.
    TooBigAnswered = 52 "too_big_answered" Answered,
    /// A chain of IPv6 extension headers that runs past the end of the packet, or breaks its order.
    BadExtension = 53 "bad_extension" Dropped,
    /// A fragment that ends inside a unit of eight bytes or beyond the largest packet, or overlaps the header of TCP.
    BadFragment = 54 "bad_fragment" Dropped,
    /// A first fragment that cannot be remembered: there is no place for any. A full table forgets the oldest.
    FragmentsFull = 55 "fragments_full" Dropped,
    /// From a network that may not send to services.
    Denied = 60 "denied" Dropped,
    /// From an address that no packet can come from.
    ForgedSource = 61 "forged_source" Dropped,
    /// One more new flow than the source may begin.
    SourceLimited = 62 "source_limited" Dropped,
    /// One more new flow than the service takes.
    ServiceLimited = 63 "service_limited" Dropped,
    /// At `tc_receive`: in no tunnel that ends at this node.
    NotTunnelled = 80 "not_tunnelled" Passed,
    /// Taken out of its tunnel and handed to the stack.
    Decapsulated = 81 "decapsulated" Forwarded,
    /// In a tunnel that ends at this node, from an address that is none of `receive.peers`.
    TunnelStranger = 82 "tunnel_stranger" Dropped,
    /// In a tunnel that ends at this node, but no IP packet that can be read.
    BadTunnel = 83 "bad_tunnel" Dropped,
    /// Congestion was marked on the tunnel's way, and the packet inside cannot carry the mark (RFC 6040).
    TunnelCongested = 84 "tunnel_congested" Dropped,
    /// At `tc_probe_out` and `tc_probe_in`: no health check that goes through a tunnel, or its answer.
    NotProbe = 85 "not_probe" Passed,
    /// A health check's packet, put into the tunnel to its endpoint.
    ProbeSent = 86 "probe_sent" Forwarded,
    /// The answer to a health check that went through a tunnel.
    ProbeAnswered = 87 "probe_answered" Forwarded,
    /// A SYN to a service with `synCookies`, more of which came than that allows: answered with a cookie, and forgotten.
    CookieSent = 100 "cookie_sent" Answered,
    /// An echo request to a virtual address, answered in place of the stack.
    EchoAnswered = 101 "echo_answered" Answered,
    /// One more echo request to virtual addresses than is answered in a second.
    EchoLimited = 102 "echo_limited" Dropped,
    /// To a translated service that answers with cookies, of no connection that is known, and without a cookie that is taken back.
    CookieRefused = 103 "cookie_refused" Dropped,
    /// To a service of the agent with `failMode: open`, of a connection that began while the agent was silent: translated, and sent to an endpoint.
    FailedOpen = 104 "failed_open" Forwarded,
    /// An endpoint's answer to such a SYN: sent to the client as the window that it has waited for.
    HandshakeJoined = 105 "handshake_joined" Forwarded,
    /// Of a connection that began with a cookie, before its endpoint has answered; the sender comes again.
    HandshakePending = 106 "handshake_pending" Dropped,
    /// A client's packet with its cookie, or with it once more: sent to the endpoint as the SYN of the connection.
    CookieTaken = 107 "cookie_taken" Forwarded,
    /// At the hooks of sockets: to a service, by the agent itself or from another network namespace than the agent's.
    ForeignSocket = 110 "foreign_socket" Passed,
    /// At the hooks of sockets: a virtual address became that of an endpoint.
    SocketTranslated = 111 "socket_translated" Forwarded,
    /// At the hooks of sockets: the address of an endpoint became the virtual one that the process had asked for.
    SocketRestored = 112 "socket_restored" Forwarded,
    /// At the hooks of sockets: refused, because what the process asked for could not be written down.
    SocketsFull = 113 "sockets_full" Dropped,
}

impl Reason {
    /// Places of [`ServiceReasons`].
    pub const PLACES: usize = 32;

    /// The reasons that are counted by service, by their places; append-only. One that is not here is counted at the last
    /// place.
    pub const OF_SERVICES: [Self; 20] = [
        Self::TtlExpired,
        Self::NoEndpoint,
        Self::BadSlot,
        Self::NoNextHop,
        Self::PortsExhausted,
        Self::FlowNotRecorded,
        Self::RewriteFailed,
        Self::NoSocket,
        Self::UnknownMode,
        Self::TooBig,
        Self::FlowTableFull,
        Self::FlowContended,
        Self::Denied,
        Self::ForgedSource,
        Self::SourceLimited,
        Self::ServiceLimited,
        Self::EchoLimited,
        Self::SocketsFull,
        Self::CookieRefused,
        Self::HandshakePending,
    ];

    /// The name that [`ServiceReasons`] has for its last place.
    pub const OTHER: &'static str = "other";

    /// Place in [`ServiceReasons`] by the number of the reason.
    #[expect(
        clippy::as_conversions,
        clippy::cast_possible_truncation,
        clippy::indexing_slicing,
        reason = "a constant, whose faults stop the compiler"
    )]
    pub const BY_NUMBER: [u8; Self::ROOM] = {
        let mut places = [Self::PLACES as u8 - 1; Self::ROOM];
        let mut place = 0;
        while place < Self::OF_SERVICES.len() {
            places[Self::OF_SERVICES[place].number() as usize] = place as u8;
            place += 1;
        }
        places
    };

    /// Place in [`ServiceReasons`].
    pub fn place(self) -> usize {
        let number = usize::try_from(self.number()).unwrap_or(0);
        Self::BY_NUMBER.get(number).map_or(Self::PLACES - 1, |place| usize::from(*place))
    }
}

const _: () = assert!(Reason::OF_SERVICES.len() < Reason::PLACES);
const _: () = assert!(size_of::<Count>() == 16);
const _: () = assert!(size_of::<HookCounts>() == 2_048);
const _: () = assert!(size_of::<ServiceReasons>() == 256);
const _: () = assert!(size_of::<ServiceCount>() == 64);
const _: () = assert!(size_of::<EndpointCount>() == 40);

#[cfg(test)]
mod tests {
    extern crate std;

    use std::vec::Vec;

    use super::*;

    #[test]
    fn numbers_are_ascending_and_fit() {
        assert!(Reason::ALL.windows(2).all(|pair| pair[0].number() < pair[1].number()));
        assert!(Reason::ALL.iter().all(|reason| reason.number() < Reason::LIMIT));
    }

    #[test]
    fn what_a_service_drops_has_a_place() {
        let before_the_service = [
            Reason::Truncated,
            Reason::BadIpHeader,
            Reason::BadTransportHeader,
            Reason::BadIcmp,
            Reason::BadExtension,
            Reason::BadFragment,
            Reason::FragmentsFull,
            // What comes out of a tunnel has not met a service here.
            Reason::TunnelStranger,
            Reason::BadTunnel,
            Reason::TunnelCongested,
        ];
        let missing: Vec<_> = Reason::ALL
            .iter()
            .filter(|reason| reason.class() == Class::Dropped && !before_the_service.contains(reason))
            .filter(|reason| reason.place() == Reason::PLACES - 1)
            .collect();
        assert!(missing.is_empty(), "append to OF_SERVICES, or say that no service is known: {missing:?}");
        for (place, reason) in Reason::OF_SERVICES.iter().enumerate() {
            assert_eq!(reason.place(), place);
        }
    }
}
