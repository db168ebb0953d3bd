//! The environment at XDP: direct access to the packet.
#![expect(unsafe_code, reason = "packet access through raw pointers, each behind its bounds check")]

use aya_ebpf::{EbpfContext as _, helpers, programs::XdpContext};
use bytemuck::Pod;
use gateway_common::{addr::Protocol, counter::Hook, endpoint::Endpoint};
use gateway_ebpf::{
    arrival::Arrival,
    env::{Env, Room},
    ingress,
    verdict::{Verdict, XDP_DROP, XDP_REDIRECT},
    way::Way,
};

use super::fib;
use crate::map::{KernelMaps, scratch};

struct Xdp<'a> {
    ctx: &'a XdpContext,
    data: usize,
    data_end: usize,
    ingress: u32,
}

/// Runs the ingress pipeline; returns the XDP code.
#[inline(always)]
pub(crate) fn run(ctx: &XdpContext) -> u32 {
    // SAFETY: the context is the program's own.
    let ingress = unsafe { (*ctx.ctx).ingress_ifindex };
    let mut env = Xdp { ctx, data: ctx.data(), data_end: ctx.data_end(), ingress };
    let Some(scratch) = scratch() else { return XDP_DROP };
    let verdict = ingress::ingress(&mut env, Arrival::of(scratch));
    super::log_drop!(ctx, Hook::XdpBalance, verdict);
    let code = verdict.xdp_code(ingress);
    match verdict {
        Verdict::Transmit(_, interface) if code == XDP_REDIRECT => redirect(interface),
        Verdict::Transmit(..) | Verdict::Pass(_) | Verdict::HandOver(_) | Verdict::Drop(_) => code,
    }
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

impl Xdp<'_> {
    /// The address of `T` at `offset`, if all of it is inside the packet.
    #[inline(always)]
    #[expect(clippy::as_conversions, reason = "an address in the form that the verifier follows")]
    fn at<T>(&self, offset: u32) -> Option<*mut T> {
        let start = self.data.wrapping_add(offset as usize);
        (start.wrapping_add(size_of::<T>()) <= self.data_end).then_some(start as *mut T)
    }
}

impl Env for Xdp<'_> {
    type Maps = KernelMaps;

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
    fn load<T: Pod>(&self, offset: u32) -> Option<T> {
        let at = self.at::<T>(offset)?;
        // SAFETY: all of `T` is inside the packet, and every bit pattern is a `T`.
        Some(unsafe { at.read_unaligned() })
    }

    #[inline(always)]
    fn store<T: Pod>(&mut self, offset: u32, header: &T) -> Option<()> {
        let at = self.at::<T>(offset)?;
        // SAFETY: all of `T` is inside the packet, which this program owns while it runs.
        unsafe { at.write_unaligned(*header) };
        Some(())
    }

    #[inline(always)]
    fn make_room(&mut self, room: Room) -> Option<()> {
        let bytes = i32::try_from(room.bytes()).ok()?;
        // SAFETY: the context is the program's own; the addresses of the packet are read again below.
        let code = unsafe { helpers::bpf_xdp_adjust_head(self.ctx.ctx, -bytes) };
        if code != 0 {
            return None;
        }
        self.data = self.ctx.data();
        self.data_end = self.ctx.data_end();
        Some(())
    }

    #[inline(always)]
    fn next_hop(&mut self, endpoint: &Endpoint, protocol: Protocol, ip_bytes: u16) -> Option<Way> {
        fib::next_hop(self.ctx.as_ptr(), self.ingress, endpoint, fib::flow(protocol, ip_bytes))
    }
}
