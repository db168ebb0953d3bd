//! The environment at TC: packets that the stack owns, with checksums that may be the hardware's and segments that
//! may be still together.
#![expect(
    unsafe_code,
    reason = "packet access through raw pointers, each behind its bounds check, and helpers"
)]

use aya_ebpf::{EbpfContext as _, helpers, programs::TcContext};
use bytemuck::Pod;
use gateway_common::{
    addr::{Addr, Protocol},
    aside::Aside,
    counter::{Hook, Reason},
    endpoint::Endpoint,
};
use gateway_ebpf::{
    answer,
    arrival::Arrival,
    checksum::Diff,
    cookie::{Cookie, Syn},
    count::alone,
    env::{Env, Room, TransportFix},
    ingress as pipeline,
    packet::eth,
    probe::{self, Marked},
    proxy, rare,
    receive::{self, Receiver, Shell},
    reply,
    verdict::{TC_SHOT, Verdict},
    way::Way,
};

use super::{aside, fib, word};
use crate::map::{KernelMaps, TC_PROGRAMS, scratch};

/// Bytes that the pipeline may read: Ethernet, IPv4 with all options, TCP.
const HEAD_BYTES: u32 = 14 + 60 + 20;

/// Bytes that the pipeline of rare packets may read: behind extension headers, which end at byte 255 at the latest, an ICMP
/// error and the headers that it quotes.
const RARE_BYTES: u32 = 255 + 8 + 60 + 20;

/// Bytes that an answer may quote.
const ANSWER_BYTES: u32 = 14 + 1_280;

/// `BPF_ADJ_ROOM_MAC` of `linux/bpf.h`.
const ROOM_MAC: u32 = 1;
/// `BPF_F_ADJ_ROOM_FIXED_GSO`: segments keep the size that the sender gave them.
const FIXED_GSO: u64 = 1 << 0;
/// `BPF_F_ADJ_ROOM_ENCAP_L3_IPV4`.
const ENCAP_V4: u64 = 1 << 1;
/// `BPF_F_ADJ_ROOM_ENCAP_L3_IPV6`.
const ENCAP_V6: u64 = 1 << 2;
/// `BPF_F_ADJ_ROOM_ENCAP_L4_UDP`.
const ENCAP_UDP: u64 = 1 << 4;

/// `BPF_F_ADJ_ROOM_DECAP_L3_IPV4` (Linux 6.3): the packet inside is IPv4.
const DECAP_V4: u64 = 1 << 7;
/// `BPF_F_ADJ_ROOM_DECAP_L3_IPV6`.
const DECAP_V6: u64 = 1 << 8;
/// `ETH_P_IP` of `linux/if_ether.h`, as the helper takes it.
const ETH_P_IP: u16 = 0x0800_u16.to_be();
/// `ETH_P_IPV6`.
const ETH_P_IPV6: u16 = 0x86dd_u16.to_be();
/// Bytes by which the headers of both families differ.
const FAMILIES_DIFFER: i32 = 20;

/// `PACKET_HOST` of `linux/if_packet.h`: the frame is addressed to this node.
const TO_THIS_HOST: u32 = 0;

/// `BPF_F_PSEUDO_HDR` of `linux/bpf.h`.
const PSEUDO_HDR: u64 = 1 << 4;
/// `BPF_F_MARK_MANGLED_0`: a sum of zero is written as all ones, and zero is left alone.
const MARK_MANGLED_0: u64 = 1 << 5;
/// `BPF_F_IPV6` (Linux 6.16): a full-packet sum stays right when the pseudo-header of IPv6 changes.
const IPV6: u64 = 1 << 7;

/// Offsets of rare packets are sums that the compiler must not compute twice.
struct Tc<'a, const IS_RARE: bool> {
    ctx: &'a TcContext,
    hook: Hook,
}

/// Runs a pipeline of packets that came in. Not a function: what a compiler is given as one it may leave one.
macro_rules! came_in {
    ($ctx:expr, $head_bytes:expr, $is_rare:literal, $pipeline:path) => {{
        pull($ctx, $head_bytes);
        let Some(scratch) = scratch() else { return TC_SHOT };
        let mut tc = Tc::<$is_rare> { ctx: $ctx, hook: Hook::TcIngress };
        let arrival = Arrival::of(scratch);
        let verdict = $pipeline(&mut tc, arrival);
        tc.end(arrival, verdict)
    }};
}

/// Runs the ingress pipeline; returns the TC code.
#[inline(always)]
pub(crate) fn ingress(ctx: &TcContext) -> i32 {
    came_in!(ctx, HEAD_BYTES, false, pipeline::ingress)
}

/// Runs the pipeline of rare packets on ingress; returns the TC code.
#[inline(always)]
pub(crate) fn rare_ingress(ctx: &TcContext) -> i32 {
    came_in!(ctx, RARE_BYTES, true, rare::ingress)
}

/// Runs the rest of it, for packets that were understood; returns the TC code.
#[inline(always)]
pub(crate) fn parsed(ctx: &TcContext) -> i32 {
    came_in!(ctx, RARE_BYTES, true, rare::parsed)
}

/// Runs the pipeline of ICMP messages on ingress; returns the TC code.
#[inline(always)]
pub(crate) fn icmp_ingress(ctx: &TcContext) -> i32 {
    came_in!(ctx, RARE_BYTES, true, rare::icmp_ingress)
}

/// Answers a packet; returns the TC code.
#[inline(always)]
pub(crate) fn answer(ctx: &TcContext) -> i32 {
    came_in!(ctx, ANSWER_BYTES, true, answer::answer)
}

/// Answers a SYN with a cookie, or passes it; returns the TC code.
#[inline(always)]
pub(crate) fn cookie(ctx: &TcContext) -> i32 {
    came_in!(ctx, RARE_BYTES, true, gateway_ebpf::cookie::answer)
}

/// Goes on with a connection that begins with a cookie; returns the TC code.
#[inline(always)]
pub(crate) fn proxy(ctx: &TcContext) -> i32 {
    came_in!(ctx, RARE_BYTES, true, proxy::ingress)
}

/// Runs the egress pipeline; returns the TC code.
#[inline(always)]
pub(crate) fn egress(ctx: &TcContext) -> i32 {
    pull(ctx, HEAD_BYTES);
    let Some(scratch) = scratch() else { return TC_SHOT };
    let mut tc = Tc::<false> { ctx, hook: Hook::TcEgress };
    let verdict = reply::egress(&mut tc, Arrival::of(scratch));
    tc.leave(verdict)
}

/// Runs the pipeline of rare packets on egress; returns the TC code.
#[inline(always)]
pub(crate) fn rare_egress(ctx: &TcContext) -> i32 {
    pull(ctx, RARE_BYTES);
    let Some(scratch) = scratch() else { return TC_SHOT };
    let mut tc = Tc::<true> { ctx, hook: Hook::TcEgress };
    let verdict = rare::egress(&mut tc, Arrival::of(scratch));
    tc.leave(verdict)
}

/// Runs the pipeline of ICMP messages on egress; returns the TC code.
#[inline(always)]
pub(crate) fn icmp_egress(ctx: &TcContext) -> i32 {
    pull(ctx, RARE_BYTES);
    let Some(scratch) = scratch() else { return TC_SHOT };
    let mut tc = Tc::<true> { ctx, hook: Hook::TcEgress };
    let verdict = rare::icmp_egress(&mut tc, Arrival::of(scratch));
    tc.leave(verdict)
}

/// Opens tunnels; returns the TC code.
#[inline(always)]
pub(crate) fn receive(ctx: &TcContext) -> i32 {
    pull(ctx, receive::HEAD_BYTES);
    let verdict = receive::receive(&mut Tc::<false> { ctx, hook: Hook::TcReceive });
    super::log_drop!(ctx, Hook::TcReceive, verdict);
    verdict.tc_code()
}

/// Sends health checks into tunnels; returns the TC code.
#[inline(always)]
pub(crate) fn probe_out(ctx: &TcContext) -> i32 {
    pull(ctx, HEAD_BYTES);
    let verdict = probe::out(&mut Tc::<false> { ctx, hook: Hook::TcProbeOut });
    super::log_drop!(ctx, Hook::TcProbeOut, verdict);
    verdict.tc_code()
}

/// Takes answers to health checks; returns the TC code.
#[inline(always)]
pub(crate) fn probe_in(ctx: &TcContext) -> i32 {
    pull(ctx, HEAD_BYTES);
    let verdict = probe::back(&mut Tc::<false> { ctx, hook: Hook::TcProbeIn });
    super::log_drop!(ctx, Hook::TcProbeIn, verdict);
    verdict.tc_code()
}

/// Brings the headers into the linear part of the packet. They almost always are there; where it fails, the packet
/// is too short, and parsing says so.
#[inline(always)]
#[expect(clippy::as_conversions, reason = "widening")]
fn pull(ctx: &TcContext, head_bytes: u32) {
    let wanted = ctx.len().min(head_bytes);
    if ctx.data().wrapping_add(wanted as usize) > ctx.data_end() {
        // SAFETY: the context is the program's own; no pointer into the packet is held.
        let _code = unsafe { helpers::bpf_skb_pull_data(ctx.skb.skb, wanted) };
    }
}

#[inline(always)]
#[expect(
    clippy::as_conversions,
    clippy::cast_possible_truncation,
    reason = "the helper returns a TC code in a long"
)]
fn redirect(interface: u32) -> i32 {
    // SAFETY: the helper takes no pointer.
    unsafe { helpers::bpf_redirect(interface, 0) as i32 }
}

impl<const IS_RARE: bool> Tc<'_, IS_RARE> {
    /// Goes on in another program on ingress, or ends with the verdict's code.
    #[inline(always)]
    fn end(&self, arrival: &Arrival, verdict: Verdict) -> i32 {
        let aside = match verdict {
            Verdict::Rare(_) => Some(if IS_RARE { Aside::TcParsed } else { Aside::TcRareIngress }),
            Verdict::Icmp(_) => Some(Aside::TcIcmpIngress),
            Verdict::Answer(_) => Some(Aside::TcAnswer),
            Verdict::Cookie(_) => Some(Aside::TcCookie),
            Verdict::Proxy(_) => Some(Aside::TcProxy),
            Verdict::Pass(_) | Verdict::HandOver(_) | Verdict::Transmit(_) | Verdict::Drop(_) => None,
        };
        let verdict = self.go_on(verdict, aside);
        if let Verdict::Transmit(_) = verdict { redirect(arrival.interface()) } else { verdict.tc_code() }
    }

    /// The same on egress, where nothing is answered.
    #[inline(always)]
    fn leave(&self, verdict: Verdict) -> i32 {
        let aside = match verdict {
            Verdict::Rare(_) => Some(Aside::TcRareEgress),
            Verdict::Icmp(_) => Some(Aside::TcIcmpEgress),
            Verdict::Answer(_)
            | Verdict::Cookie(_)
            | Verdict::Proxy(_)
            | Verdict::Pass(_)
            | Verdict::HandOver(_)
            | Verdict::Transmit(_)
            | Verdict::Drop(_) => None,
        };
        self.go_on(verdict, aside).tc_code()
    }

    #[inline(always)]
    fn go_on(&self, verdict: Verdict, aside: Option<Aside>) -> Verdict {
        let verdict = match aside {
            Some(aside) => {
                aside::go_on(&TC_PROGRAMS, self.ctx, aside);
                alone(self, verdict)
            }
            None => verdict,
        };
        super::log_drop!(self.ctx, self.hook, verdict, unless IS_RARE);
        verdict
    }

    #[inline(always)]
    fn fix(&self, fix: &TransportFix, diff: Diff, flags: u64) -> i64 {
        // SAFETY: the context is the program's own; no pointer into the packet is held.
        unsafe {
            helpers::bpf_l4_csum_replace(self.ctx.skb.skb, fix.offset, 0, u64::from(diff.fold32()), flags)
        }
    }
}

impl Marked for Tc<'_, false> {
    #[inline(always)]
    fn mark(&self) -> u32 {
        // SAFETY: the context is the program's own.
        unsafe { (*self.ctx.skb.skb).mark }
    }
}

impl Receiver for Tc<'_, false> {
    #[inline(always)]
    fn is_delivered(&mut self, source: Addr, destination: Addr) -> bool {
        // SAFETY: the context is the program's own.
        let to = unsafe { (*self.ctx.skb.skb).pkt_type };
        to == TO_THIS_HOST && fib::is_delivered(self.ctx.as_ptr(), self.ingress(), source, destination)
    }

    #[inline(always)]
    fn leave_tunnel(&mut self, shell: Shell) -> Option<()> {
        let (flag, ethertype) = if shell.inner_v6 { (DECAP_V6, eth::IPV6) } else { (DECAP_V4, eth::IPV4) };
        let bytes = i32::try_from(shell.bytes).ok()?;
        // Kernels before 6.3 do not know the flags, and refuse them before they change anything.
        if self.shrink(bytes, flag).is_none() {
            self.leave_by_steps(shell, bytes)?;
        }
        if shell.inner_v6 == shell.outer_v6 { Some(()) } else { self.store(eth::TYPE, &ethertype) }
    }
}

impl<const IS_RARE: bool> Tc<'_, IS_RARE> {
    /// The address of `T` at `offset`, if all of it is inside the linear part of the packet.
    #[inline(always)]
    #[expect(clippy::as_conversions, reason = "an address in the form that the verifier follows")]
    fn at<T>(&self, offset: u32) -> Option<*const T> {
        let start = self.ctx.data().wrapping_add(offset as usize);
        let start = if IS_RARE { word::fixed(start) } else { start };
        let end = self.ctx.data_end();
        let end = if IS_RARE { word::fixed(end) } else { end };
        (start.wrapping_add(size_of::<T>()) <= end).then_some(start as *const T)
    }
}

impl Tc<'_, false> {
    /// Takes bytes off behind the link-layer header.
    #[inline(always)]
    fn shrink(&self, bytes: i32, flags: u64) -> Option<()> {
        let flags = FIXED_GSO | flags;
        // SAFETY: the context is the program's own; no pointer into the packet is held.
        let code = unsafe { helpers::bpf_skb_adjust_room(self.ctx.skb.skb, -bytes, ROOM_MAC, flags) };
        (code == 0).then_some(())
    }

    /// Makes the outer header one of the inner family first, where they differ: its bytes are none that anybody reads.
    #[inline(always)]
    fn leave_by_steps(&self, shell: Shell, bytes: i32) -> Option<()> {
        if shell.inner_v6 == shell.outer_v6 {
            return self.shrink(bytes, 0);
        }
        let (version, rest) = if shell.inner_v6 {
            (ETH_P_IPV6, bytes + FAMILIES_DIFFER)
        } else {
            (ETH_P_IP, bytes - FAMILIES_DIFFER)
        };
        // SAFETY: as for `shrink`.
        let code = unsafe { helpers::bpf_skb_change_proto(self.ctx.skb.skb, version, 0) };
        if code == 0 { self.shrink(rest, 0) } else { None }
    }
}

impl<const IS_RARE: bool> Env for Tc<'_, IS_RARE> {
    type Maps = KernelMaps;

    const IS_RARE: bool = IS_RARE;

    #[inline(always)]
    fn maps(&self) -> &KernelMaps {
        &KernelMaps
    }

    #[inline(always)]
    fn apart(&self) -> Option<Reason> {
        // SAFETY: the context is the program's own.
        let has_tag = unsafe { (*self.ctx.skb.skb).vlan_present };
        // The kernel has taken the tag out of the bytes.
        (has_tag != 0).then_some(Reason::Vlan)
    }

    #[inline(always)]
    fn hook(&self) -> Hook {
        self.hook
    }

    #[inline(always)]
    fn len_bytes(&self) -> u32 {
        self.ctx.len()
    }

    #[inline(always)]
    fn ingress(&self) -> u32 {
        // SAFETY: the context is the program's own.
        unsafe { (*self.ctx.skb.skb).ifindex }
    }

    #[inline(always)]
    fn takes_bytes(&self, interface: u32) -> u32 {
        fib::mtu(self.ctx.as_ptr(), interface)
    }

    #[inline(always)]
    fn load<T: Pod>(&self, offset: u32) -> Option<T> {
        let at = self.at::<T>(offset)?;
        // SAFETY: all of `T` is inside the linear part of the packet, and every bit pattern is a `T`.
        Some(unsafe { at.read_unaligned() })
    }

    #[inline(always)]
    fn load_words<W: Pod>(&self, offset: u32) -> Option<[W; 5]> {
        let at = self.at::<[W; 5]>(offset)?;
        // SAFETY: all of the words are inside the linear part of the packet.
        Some(unsafe { word::five(at.cast()) })
    }

    #[inline(always)]
    fn store<T: Pod>(&mut self, offset: u32, header: &T) -> Option<()> {
        // The helper, not a direct write: a program with direct writes makes the kernel copy the head of every
        // cloned packet before it runs, which on egress is every packet of TCP.
        let size = u32::try_from(size_of::<T>()).ok()?;
        let from = (&raw const *header).cast();
        // SAFETY: `from` points to `size` initialized bytes; no pointer into the packet is held.
        let code = unsafe { helpers::bpf_skb_store_bytes(self.ctx.skb.skb, offset, from, size, 0) };
        (code == 0).then_some(())
    }

    #[inline(always)]
    fn store_link(&mut self, way: Way) -> Option<()> {
        let (first, last) = way.link();
        let bytes = [first, u64::from(last.to_le()).to_le()];
        // SAFETY: there are sixteen bytes, of which twelve are written; no pointer into the packet is held.
        let code = unsafe { helpers::bpf_skb_store_bytes(self.ctx.skb.skb, 0, bytes.as_ptr().cast(), 12, 0) };
        (code == 0).then_some(())
    }

    #[inline(always)]
    fn segment_payload(&self) -> Option<u32> {
        // SAFETY: the context is the program's own.
        let payload = unsafe { (*self.ctx.skb.skb).gso_size };
        (payload != 0).then_some(payload)
    }

    #[inline(always)]
    fn make_room(&mut self, room: Room) -> Option<()> {
        let network = if room.v6 { ENCAP_V6 } else { ENCAP_V4 };
        let flags = FIXED_GSO | network | if room.udp { ENCAP_UDP } else { 0 };
        let bytes = i32::try_from(room.bytes()).ok()?;
        // SAFETY: the context is the program's own; no pointer into the packet is held.
        let code = unsafe { helpers::bpf_skb_adjust_room(self.ctx.skb.skb, bytes, ROOM_MAC, flags) };
        (code == 0).then_some(())
    }

    #[inline(always)]
    fn cut(&mut self, len_bytes: u32) -> Option<()> {
        // SAFETY: the context is the program's own; no pointer into the packet is held.
        let code = unsafe { helpers::bpf_skb_change_tail(self.ctx.skb.skb, len_bytes, 0) };
        (code == 0).then_some(())
    }

    #[inline(always)]
    fn stretch(&mut self, len_bytes: u32) -> Option<()> {
        if len_bytes <= self.len_bytes() {
            return Some(());
        }
        self.cut(len_bytes)
    }

    #[inline(always)]
    fn grow(&mut self, bytes: u32) -> Option<()> {
        // SAFETY: the context is the program's own; no pointer into the packet is held.
        let code = unsafe { helpers::bpf_skb_change_head(self.ctx.skb.skb, bytes, 0) };
        (code == 0).then_some(())
    }

    #[inline(always)]
    fn cookie(&self, socket: u32, syn: &Syn) -> Cookie {
        super::cookie::of(socket, syn)
    }

    #[inline(always)]
    fn next_hop(&mut self, endpoint: &Endpoint, protocol: Protocol, ip_bytes: u32) -> Result<Way, u32> {
        let ip_bytes = if self.segment_payload().is_some() { 0 } else { ip_bytes };
        fib::next_hop(self.ctx.as_ptr(), self.ingress(), endpoint, fib::flow(protocol, ip_bytes))
    }

    #[inline(always)]
    fn fix_ip_checksum(&mut self, offset: u32, diff: Diff) -> Option<()> {
        // SAFETY: the context is the program's own; no pointer into the packet is held.
        let code =
            unsafe { helpers::bpf_l3_csum_replace(self.ctx.skb.skb, offset, 0, u64::from(diff.fold32()), 0) };
        (code == 0).then_some(())
    }

    #[inline(always)]
    fn fix_transport_checksum(&mut self, fix: &TransportFix) -> Option<()> {
        let mangled = if fix.protocol == Protocol::UDP { MARK_MANGLED_0 } else { 0 };
        let mut code = if fix.v6 { self.fix(fix, fix.pseudo, PSEUDO_HDR | mangled | IPV6) } else { -1 };
        if code != 0 {
            // IPv4, or a kernel that does not know the flag and refuses it before it changes anything.
            code = self.fix(fix, fix.pseudo, PSEUDO_HDR | mangled);
        }
        (code == 0 && self.fix(fix, fix.own, mangled) == 0).then_some(())
    }
}
