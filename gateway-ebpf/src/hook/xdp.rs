//! The environment at XDP: direct access to the packet.
#![expect(unsafe_code, reason = "packet access through raw pointers, each behind its bounds check")]

use core::mem::offset_of;

use aya_ebpf::{EbpfContext as _, helpers, programs::XdpContext};
use bytemuck::Pod;
use gateway_common::{addr::Protocol, aside::Aside, counter::Hook, endpoint::Endpoint};
use gateway_ebpf::{
    answer,
    arrival::Arrival,
    cookie::{Cookie, Syn},
    count::alone,
    env::{Env, Room},
    ingress,
    packet::eth,
    proxy, rare,
    verdict::{Verdict, XDP_DROP},
    way::Way,
};

use super::{apart, aside, fib, word};
use crate::map::{KernelMaps, XDP_PROGRAMS, scratch};

/// Offsets of rare packets are sums that the compiler must not compute twice.
struct Xdp<'a, const IS_RARE: bool> {
    ctx: &'a XdpContext,
    data: usize,
    data_end: usize,
    ingress: u32,
}

/// Runs the ingress pipeline; returns the XDP code.
#[inline(always)]
pub(crate) fn run(ctx: &XdpContext) -> u32 {
    let mut env = Xdp::<false>::new(ctx);
    let Some(scratch) = scratch() else { return XDP_DROP };
    let arrival = Arrival::of(scratch);
    let verdict = ingress::ingress(&mut env, arrival);
    env.end(arrival, verdict)
}

/// Runs the pipeline of rare packets; returns the XDP code.
#[inline(always)]
pub(crate) fn rare(ctx: &XdpContext) -> u32 {
    let mut env = Xdp::<true>::new(ctx);
    let Some(scratch) = scratch() else { return XDP_DROP };
    let arrival = Arrival::of(scratch);
    let verdict = rare::ingress(&mut env, arrival);
    env.end(arrival, verdict)
}

/// Runs the rest of it, for packets that were understood; returns the XDP code.
#[inline(always)]
pub(crate) fn parsed(ctx: &XdpContext) -> u32 {
    let mut env = Xdp::<true>::new(ctx);
    let Some(scratch) = scratch() else { return XDP_DROP };
    let arrival = Arrival::of(scratch);
    let verdict = rare::parsed(&mut env, arrival);
    env.end(arrival, verdict)
}

/// Runs the pipeline of ICMP messages; returns the XDP code.
#[inline(always)]
pub(crate) fn icmp(ctx: &XdpContext) -> u32 {
    let mut env = Xdp::<true>::new(ctx);
    let Some(scratch) = scratch() else { return XDP_DROP };
    let arrival = Arrival::of(scratch);
    let verdict = rare::icmp_ingress(&mut env, arrival);
    env.end(arrival, verdict)
}

/// Answers a packet; returns the XDP code.
#[inline(always)]
pub(crate) fn answer(ctx: &XdpContext) -> u32 {
    let mut env = Xdp::<true>::new(ctx);
    let Some(scratch) = scratch() else { return XDP_DROP };
    let arrival = Arrival::of(scratch);
    let verdict = answer::answer(&mut env, arrival);
    env.end(arrival, verdict)
}

/// Answers a SYN with a cookie, or passes it; returns the XDP code.
#[inline(always)]
pub(crate) fn cookie(ctx: &XdpContext) -> u32 {
    let mut env = Xdp::<true>::new(ctx);
    let Some(scratch) = scratch() else { return XDP_DROP };
    let arrival = Arrival::of(scratch);
    let verdict = gateway_ebpf::cookie::answer(&mut env, arrival);
    env.end(arrival, verdict)
}

/// Goes on with a connection that begins with a cookie; returns the XDP code.
#[inline(always)]
pub(crate) fn proxy(ctx: &XdpContext) -> u32 {
    let mut env = Xdp::<true>::new(ctx);
    let Some(scratch) = scratch() else { return XDP_DROP };
    let arrival = Arrival::of(scratch);
    let verdict = proxy::ingress(&mut env, arrival);
    env.end(arrival, verdict)
}

/// Sweeps the buckets that the packet names, of the table that it names; returns how many entries or places are free now.
#[inline(always)]
pub(crate) fn sweep(ctx: &XdpContext) -> u32 {
    let env = Xdp::<false>::new(ctx);
    let Some([first, count, what]) = env.load::<[u32; 3]>(eth::LEN) else { return 0 };
    apart::sweep(first, count, what)
}

/// The link-layer header in words, and the header behind it.
#[repr(C, packed)]
struct Framed<T> {
    first: u64,
    last: u32,
    ethertype: [u8; 2],
    header: T,
}

#[inline(always)]
#[expect(
    clippy::as_conversions,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "the helper returns an XDP code in a long"
)]
fn redirect(interface: u32) -> u32 {
    // SAFETY: the helper takes no pointer.
    unsafe { helpers::bpf_redirect(interface, 0) as u32 }
}

impl<'a, const IS_RARE: bool> Xdp<'a, IS_RARE> {
    #[inline(always)]
    fn new(ctx: &'a XdpContext) -> Self {
        // SAFETY: the context is the program's own.
        let ingress = unsafe { (*ctx.ctx).ingress_ifindex };
        Self { ctx, data: ctx.data(), data_end: ctx.data_end(), ingress }
    }

    /// Goes on in another program, or ends with the verdict's code.
    #[inline(always)]
    fn end(&self, arrival: &Arrival, verdict: Verdict) -> u32 {
        // First, because most packets leave.
        if let Verdict::Transmit(_) = verdict {
            let interface = arrival.interface();
            let is_back = interface == self.ingress;
            return if is_back { verdict.xdp_code(is_back) } else { redirect(interface) };
        }
        let aside = match verdict {
            Verdict::Rare(_) => Some(if IS_RARE { Aside::XdpParsed } else { Aside::XdpRare }),
            Verdict::Icmp(_) => Some(Aside::XdpIcmp),
            Verdict::Answer(_) => Some(Aside::XdpAnswer),
            Verdict::Cookie(_) => Some(Aside::XdpCookie),
            Verdict::Proxy(_) => Some(Aside::XdpProxy),
            Verdict::Pass(_) | Verdict::HandOver(_) | Verdict::Transmit(_) | Verdict::Drop(_) => None,
        };
        let verdict = match aside {
            Some(aside) => {
                aside::go_on(&XDP_PROGRAMS, self.ctx, aside);
                alone(self, verdict)
            }
            None => verdict,
        };
        super::log_drop!(self.ctx, Hook::XdpBalance, verdict, unless IS_RARE);
        verdict.xdp_code(false)
    }

    /// The address of `T` at `offset`, if all of it is inside the packet.
    #[inline(always)]
    #[expect(clippy::as_conversions, reason = "an address in the form that the verifier follows")]
    fn at<T>(&self, offset: u32) -> Option<*mut T> {
        let start = self.data.wrapping_add(offset as usize);
        let start = if IS_RARE { word::fixed(start) } else { start };
        (start.wrapping_add(size_of::<T>()) <= self.data_end).then_some(start as *mut T)
    }

    /// Reads the addresses of a packet again that a helper has moved, if it did.
    #[inline(always)]
    fn moved(&mut self, code: i64) -> Option<()> {
        if code != 0 {
            return None;
        }
        self.data = self.ctx.data();
        self.data_end = self.ctx.data_end();
        Some(())
    }
}

impl<const IS_RARE: bool> Env for Xdp<'_, IS_RARE> {
    type Maps = KernelMaps;

    const IS_RARE: bool = IS_RARE;

    #[inline(always)]
    fn maps(&self) -> &KernelMaps {
        &KernelMaps
    }

    #[inline(always)]
    fn hook(&self) -> Hook {
        Hook::XdpBalance
    }

    #[inline(always)]
    #[expect(
        clippy::as_conversions,
        clippy::cast_possible_truncation,
        reason = "a packet is shorter than 2^32 bytes"
    )]
    fn len_bytes(&self) -> u32 {
        self.data_end.wrapping_sub(self.data) as u32
    }

    #[inline(always)]
    fn ingress(&self) -> u32 {
        self.ingress
    }

    #[inline(always)]
    fn takes_bytes(&self, interface: u32) -> u32 {
        fib::mtu(self.ctx.as_ptr(), interface)
    }

    #[inline(always)]
    fn load<T: Pod>(&self, offset: u32) -> Option<T> {
        let at = self.at::<T>(offset)?;
        // SAFETY: all of `T` is inside the packet, and every bit pattern is a `T`.
        Some(unsafe { at.read_unaligned() })
    }

    #[inline(always)]
    fn load_words<W: Pod>(&self, offset: u32) -> Option<[W; 5]> {
        let at = self.at::<[W; 5]>(offset)?;
        // SAFETY: all of the words are inside the packet.
        Some(unsafe { word::five(at.cast()) })
    }

    #[inline(always)]
    fn store<T: Pod>(&mut self, offset: u32, header: &T) -> Option<()> {
        let at = self.at::<T>(offset)?;
        // SAFETY: all of `T` is inside the packet, which this program owns while it runs.
        unsafe { at.write_unaligned(*header) };
        Some(())
    }

    #[inline(always)]
    fn store_outer<T: Pod>(&mut self, header: &T, way: Way, ethertype: [u8; 2]) -> Option<()> {
        // All of it behind one look at the end.
        let at = self.at::<Framed<T>>(0)?;
        let (first, last) = way.link();
        let part = |offset: usize| at.cast::<u8>().wrapping_add(offset);
        // SAFETY: all of the frame's headers are inside the packet, which this program owns while it runs.
        unsafe { part(offset_of!(Framed<T>, first)).cast::<u64>().write_unaligned(first) };
        // SAFETY: as above.
        unsafe { part(offset_of!(Framed<T>, last)).cast::<u32>().write_unaligned(last) };
        // SAFETY: as above.
        unsafe { part(offset_of!(Framed<T>, ethertype)).cast::<[u8; 2]>().write_unaligned(ethertype) };
        // SAFETY: as above.
        unsafe { part(offset_of!(Framed<T>, header)).cast::<T>().write_unaligned(*header) };
        Some(())
    }

    #[inline(always)]
    fn store_outer_link(&mut self, _: Way, _: [u8; 2]) -> Option<()> {
        Some(())
    }

    #[inline(always)]
    fn make_room(&mut self, room: Room) -> Option<()> {
        let bytes = i32::try_from(room.bytes()).ok()?;
        // SAFETY: the context is the program's own; the addresses of the packet are read again below.
        let code = unsafe { helpers::bpf_xdp_adjust_head(self.ctx.ctx, -bytes) };
        self.moved(code)
    }

    #[inline(always)]
    fn cut(&mut self, len_bytes: u32) -> Option<()> {
        let less = i32::try_from(self.len_bytes().wrapping_sub(len_bytes)).ok()?;
        // SAFETY: the context is the program's own; the addresses of the packet are read again below.
        let code = unsafe { helpers::bpf_xdp_adjust_tail(self.ctx.ctx, -less) };
        self.moved(code)
    }

    #[inline(always)]
    fn stretch(&mut self, len_bytes: u32) -> Option<()> {
        let more = i32::try_from(len_bytes.saturating_sub(self.len_bytes())).ok()?;
        if more == 0 {
            return Some(());
        }
        // SAFETY: the context is the program's own; the addresses of the packet are read again below.
        let code = unsafe { helpers::bpf_xdp_adjust_tail(self.ctx.ctx, more) };
        // Also where it did nothing: whoever asks goes on with the packet as it was.
        self.moved(0)?;
        (code == 0).then_some(())
    }

    #[inline(always)]
    fn grow(&mut self, bytes: u32) -> Option<()> {
        let bytes = i32::try_from(bytes).ok()?;
        // SAFETY: the context is the program's own; the addresses of the packet are read again below.
        let code = unsafe { helpers::bpf_xdp_adjust_head(self.ctx.ctx, -bytes) };
        self.moved(code)
    }

    #[inline(always)]
    fn cookie(&self, socket: u32, syn: &Syn) -> Cookie {
        super::cookie::of(socket, syn)
    }

    #[inline(always)]
    fn next_hop(&mut self, endpoint: &Endpoint, protocol: Protocol, ip_bytes: u32) -> Result<Way, u32> {
        fib::next_hop(self.ctx.as_ptr(), self.ingress, endpoint, fib::flow(protocol, ip_bytes))
    }
}
