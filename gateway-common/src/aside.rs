//! Programs that go on where the program of a hook ends, with packets that are rare: each has a stack and an instruction
//! count of its own, so that the packets of every day do not pay for them.

use crate::map::{MapDef, TcPrograms, XdpPrograms};

/// The program that frees entries of the flow table which are over, and places that led to such ones; on no hook, the agent
/// runs it.
pub const SWEEP: &str = "xdp_sweep";

/// Buckets that it looks at in one run.
pub const SWEPT_AT_ONCE: u32 = 512;

/// What it looks at.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Swept {
    /// Entries of [`Flows`](crate::map::Flows) that are over.
    Flows,
    /// Places of [`Replies`](crate::map::Replies) that lead to no flow any more.
    Replies,
}

impl Swept {
    /// The number that the program is told.
    pub const fn number(self) -> u32 {
        match self {
            Self::Flows => 0,
            Self::Replies => 1,
        }
    }
}

/// A program that others end in (`bpf_tail_call`).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Aside {
    /// At XDP: ICMP errors about flows.
    XdpIcmp,
    /// The same at TC on ingress.
    TcIcmpIngress,
    /// At TC on egress.
    TcIcmpEgress,
    /// At XDP: answers to packets that cannot go on.
    XdpAnswer,
    /// The same at TC.
    TcAnswer,
    /// At XDP: fragments, and packets with extension headers.
    XdpRare,
    /// The same at TC on ingress.
    TcRareIngress,
    /// At TC on egress.
    TcRareEgress,
    /// At XDP: what is left to do with fragments and packets with extension headers that were understood.
    XdpParsed,
    /// The same at TC on ingress.
    TcParsed,
    /// At XDP: SYNs of services that answer some with cookies.
    XdpCookie,
    /// The same at TC.
    TcCookie,
    /// At XDP: connections that begin with a cookie, to services that are translated.
    XdpProxy,
    /// The same at TC on ingress.
    TcProxy,
}

impl Aside {
    /// Room for programs in each map.
    pub const LIMIT: u32 = 8;

    /// All of them.
    pub const ALL: [Self; 14] = [
        Self::XdpIcmp,
        Self::TcIcmpIngress,
        Self::TcIcmpEgress,
        Self::XdpAnswer,
        Self::TcAnswer,
        Self::XdpRare,
        Self::TcRareIngress,
        Self::TcRareEgress,
        Self::XdpParsed,
        Self::TcParsed,
        Self::XdpCookie,
        Self::TcCookie,
        Self::XdpProxy,
        Self::TcProxy,
    ];

    /// The name of the program.
    pub const fn name(self) -> &'static str {
        match self {
            Self::XdpIcmp => "xdp_icmp",
            Self::TcIcmpIngress => "tc_icmp_ingress",
            Self::TcIcmpEgress => "tc_icmp_egress",
            Self::XdpRare => "xdp_rare",
            Self::TcRareIngress => "tc_rare_ingress",
            Self::TcRareEgress => "tc_rare_egress",
            Self::XdpParsed => "xdp_parsed",
            Self::TcParsed => "tc_parsed",
            Self::XdpAnswer => "xdp_answer",
            Self::TcAnswer => "tc_answer",
            Self::XdpCookie => "xdp_cookie",
            Self::TcCookie => "tc_cookie",
            Self::XdpProxy => "xdp_proxy",
            Self::TcProxy => "tc_proxy",
        }
    }

    /// The map that the program stands in: one for each kind of program.
    pub const fn map(self) -> &'static str {
        match self {
            Self::XdpIcmp
            | Self::XdpAnswer
            | Self::XdpRare
            | Self::XdpParsed
            | Self::XdpCookie
            | Self::XdpProxy => XdpPrograms::NAME,
            Self::TcIcmpIngress
            | Self::TcIcmpEgress
            | Self::TcAnswer
            | Self::TcRareIngress
            | Self::TcRareEgress
            | Self::TcParsed
            | Self::TcCookie
            | Self::TcProxy => TcPrograms::NAME,
        }
    }

    /// Its place in the map; append-only.
    #[inline(always)]
    pub const fn index(self) -> u32 {
        match self {
            Self::XdpIcmp | Self::TcIcmpIngress => 0,
            Self::TcIcmpEgress | Self::XdpAnswer => 1,
            Self::TcAnswer | Self::XdpRare => 2,
            Self::TcRareIngress | Self::XdpCookie => 3,
            Self::TcRareEgress | Self::XdpProxy => 4,
            Self::TcCookie | Self::XdpParsed => 5,
            Self::TcProxy => 6,
            Self::TcParsed => 7,
        }
    }
}
