//! Verdicts: what a hook does with a packet, and the table to each hook's codes.

use gateway_common::counter::Reason;

/// What becomes of one packet, and why. Every packet that a hook saw ends in exactly one.
#[must_use]
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(u8)]
pub enum Verdict {
    /// Goes on to the stack as it came.
    Pass(Reason),
    /// Goes on through the stack, translated.
    HandOver(Reason),
    /// Leaves through the interface that the arrival names, translated.
    // Not named here: a verdict is two bytes that the compiler keeps in a register.
    Transmit(Reason),
    /// Ends here.
    Drop(Reason),
    /// Is rare, and goes on in a program of its own; where there is none, it goes on to the stack as it came.
    Rare(Reason),
    /// The same for an ICMP message.
    Icmp(Reason),
    /// Ends here, and its sender is answered in a program of its own; where there is none, it is dropped.
    Answer(Reason),
    /// May be answered with a cookie in a program of its own; where there is none, it goes on to the stack as it came.
    Cookie(Reason),
    /// Is of a connection that begins with a cookie, and goes on in a program of its own; where there is none, it is dropped.
    Proxy(Reason),
}

/// `XDP_DROP` of `linux/bpf.h`.
pub const XDP_DROP: u32 = 1;
/// `XDP_PASS` of `linux/bpf.h`.
pub const XDP_PASS: u32 = 2;
/// `XDP_TX` of `linux/bpf.h`.
pub const XDP_TX: u32 = 3;
/// `XDP_REDIRECT` of `linux/bpf.h`.
pub const XDP_REDIRECT: u32 = 4;

/// `TCX_NEXT` of `linux/bpf.h`: programs after this one still see the packet. Classic TC reads it as "unspecified",
/// which has the same effect.
pub const TC_NEXT: i32 = -1;
/// `TC_ACT_SHOT` of `linux/pkt_cls.h`.
pub const TC_SHOT: i32 = 2;
/// `TC_ACT_REDIRECT` of `linux/pkt_cls.h`.
pub const TC_REDIRECT: i32 = 7;

/// `SK_DROP` of `linux/bpf.h`.
pub const SK_DROP: u32 = 0;
/// `SK_PASS` of `linux/bpf.h`.
pub const SK_PASS: u32 = 1;

impl Verdict {
    /// The reason under which the packet is counted.
    #[inline(always)]
    pub const fn reason(self) -> Reason {
        match self {
            Self::Pass(reason)
            | Self::HandOver(reason)
            | Self::Transmit(reason)
            | Self::Drop(reason)
            | Self::Rare(reason)
            | Self::Icmp(reason)
            | Self::Answer(reason)
            | Self::Cookie(reason)
            | Self::Proxy(reason) => reason,
        }
    }

    /// The code that an XDP program returns, for a packet that would leave through the interface where it came in, or another.
    #[inline(always)]
    pub const fn xdp_code(self, is_back: bool) -> u32 {
        match self {
            Self::Pass(_) | Self::HandOver(_) | Self::Rare(_) | Self::Icmp(_) | Self::Cookie(_) => XDP_PASS,
            Self::Transmit(_) if is_back => XDP_TX,
            Self::Transmit(_) => XDP_REDIRECT,
            Self::Drop(_) | Self::Answer(_) | Self::Proxy(_) => XDP_DROP,
        }
    }

    /// The code that a TC program returns.
    #[inline(always)]
    pub const fn tc_code(self) -> i32 {
        match self {
            Self::Pass(_) | Self::HandOver(_) | Self::Rare(_) | Self::Icmp(_) | Self::Cookie(_) => TC_NEXT,
            Self::Transmit(_) => TC_REDIRECT,
            Self::Drop(_) | Self::Answer(_) | Self::Proxy(_) => TC_SHOT,
        }
    }

    /// The code that a socket lookup program returns.
    #[inline(always)]
    pub const fn sk_code(self) -> u32 {
        match self {
            Self::Pass(_)
            | Self::HandOver(_)
            | Self::Transmit(_)
            | Self::Rare(_)
            | Self::Icmp(_)
            | Self::Cookie(_) => SK_PASS,
            Self::Drop(_) | Self::Answer(_) | Self::Proxy(_) => SK_DROP,
        }
    }
}
