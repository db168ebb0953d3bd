//! The kernel programs: one function per hook and for each program that others end in, one expression each.
#![no_std]
#![no_main]
#![cfg_attr(target_arch = "bpf", feature(asm_experimental_arch))]
#![expect(clippy::needless_pass_by_value, reason = "the signature that the macros of the programs ask for")]

mod hook;
mod map;

use aya_ebpf::{
    bindings::bpf_sk_lookup,
    macros::{cgroup_sock_addr, classifier, xdp},
    programs::{SkLookupContext, SockAddrContext, TcContext, XdpContext},
};
use gateway_common::counter::Hook;

/// Balances clients' packets and translates replies back, before the stack sees them.
#[xdp]
#[inline(always)]
fn xdp_balance(ctx: XdpContext) -> u32 {
    hook::xdp::run(&ctx)
}

/// The same for interfaces where XDP does not fit.
#[classifier]
#[inline(always)]
fn tc_ingress(ctx: TcContext) -> i32 {
    hook::tc::ingress(&ctx)
}

/// Gives replies of endpoints on this node their virtual address.
#[classifier]
#[inline(always)]
fn tc_egress(ctx: TcContext) -> i32 {
    hook::tc::egress(&ctx)
}

/// Takes packets of peers out of their tunnels.
#[classifier]
fn tc_receive(ctx: TcContext) -> i32 {
    hook::tc::receive(&ctx)
}

/// Sends the agent's health checks through the tunnels of their endpoints.
#[classifier]
fn tc_probe_out(ctx: TcContext) -> i32 {
    hook::tc::probe_out(&ctx)
}

/// Gives answers to health checks the address that they were sent to.
#[classifier]
fn tc_probe_in(ctx: TcContext) -> i32 {
    hook::tc::probe_in(&ctx)
}

/// Fragments and packets with extension headers, at XDP: `xdp_balance` ends in it.
#[xdp]
fn xdp_rare(ctx: XdpContext) -> u32 {
    hook::xdp::rare(&ctx)
}

/// The same at TC: `tc_ingress` ends in it.
#[classifier]
fn tc_rare_ingress(ctx: TcContext) -> i32 {
    hook::tc::rare_ingress(&ctx)
}

/// What is left to do with them when they were understood, at XDP: `xdp_rare` ends in it.
#[xdp]
fn xdp_parsed(ctx: XdpContext) -> u32 {
    hook::xdp::parsed(&ctx)
}

/// The same at TC: `tc_rare_ingress` ends in it.
#[classifier]
fn tc_parsed(ctx: TcContext) -> i32 {
    hook::tc::parsed(&ctx)
}

/// Fragments and packets with extension headers on their way out: `tc_egress` ends in it.
#[classifier]
fn tc_rare_egress(ctx: TcContext) -> i32 {
    hook::tc::rare_egress(&ctx)
}

/// ICMP messages, at XDP: `xdp_balance` and `xdp_rare` end in it.
#[xdp]
fn xdp_icmp(ctx: XdpContext) -> u32 {
    hook::xdp::icmp(&ctx)
}

/// The same at TC.
#[classifier]
fn tc_icmp_ingress(ctx: TcContext) -> i32 {
    hook::tc::icmp_ingress(&ctx)
}

/// The same on their way out.
#[classifier]
fn tc_icmp_egress(ctx: TcContext) -> i32 {
    hook::tc::icmp_egress(&ctx)
}

/// Answers to packets that cannot go on, at XDP.
#[xdp]
fn xdp_answer(ctx: XdpContext) -> u32 {
    hook::xdp::answer(&ctx)
}

/// The same at TC.
#[classifier]
fn tc_answer(ctx: TcContext) -> i32 {
    hook::tc::answer(&ctx)
}

/// SYNs of services that answer some with cookies, at XDP.
#[xdp]
fn xdp_cookie(ctx: XdpContext) -> u32 {
    hook::xdp::cookie(&ctx)
}

/// The same at TC.
#[classifier]
fn tc_cookie(ctx: TcContext) -> i32 {
    hook::tc::cookie(&ctx)
}

/// Connections that begin with a cookie, to services that are translated, at XDP.
#[xdp]
fn xdp_proxy(ctx: XdpContext) -> u32 {
    hook::xdp::proxy(&ctx)
}

/// The same at TC.
#[classifier]
fn tc_proxy(ctx: TcContext) -> i32 {
    hook::tc::proxy(&ctx)
}

/// Frees entries of the flow table that are over, or places for replies that lead to none. On no hook: the agent runs it,
/// with the first bucket, how many of them, and of which table in the bytes behind a link-layer header; returns how many.
#[xdp]
fn xdp_sweep(ctx: XdpContext) -> u32 {
    hook::xdp::sweep(&ctx)
}

/// Gives connections to the agent's services to its listening sockets. Written without the macro, which would give
/// the section the name of the function: the linker refuses two symbols of one name.
#[expect(unsafe_code, reason = "the name and section of a program")]
#[unsafe(no_mangle)]
#[unsafe(link_section = "sk_lookup/connection")]
extern "C" fn sk_lookup(ctx: *mut bpf_sk_lookup) -> u32 {
    hook::sk_lookup::run(&SkLookupContext::new(ctx))
}

/// A process of this node connects over IPv4: a virtual address becomes an endpoint's.
#[cgroup_sock_addr(connect4)]
fn connect4(ctx: SockAddrContext) -> i32 {
    hook::socket::translate4(&ctx, Hook::Connect4)
}

/// The same over IPv6, also of IPv4 addresses in that form.
#[cgroup_sock_addr(connect6)]
fn connect6(ctx: SockAddrContext) -> i32 {
    hook::socket::translate6(&ctx, Hook::Connect6)
}

/// A process of this node sends a datagram to a virtual address.
#[cgroup_sock_addr(sendmsg4)]
fn sendmsg4(ctx: SockAddrContext) -> i32 {
    hook::socket::translate4(&ctx, Hook::SendMsg4)
}

/// The same over IPv6.
#[cgroup_sock_addr(sendmsg6)]
fn sendmsg6(ctx: SockAddrContext) -> i32 {
    hook::socket::translate6(&ctx, Hook::SendMsg6)
}

/// A process of this node is told whom a datagram is from.
#[cgroup_sock_addr(recvmsg4)]
fn recvmsg4(ctx: SockAddrContext) -> i32 {
    hook::socket::restore4(&ctx, Hook::RecvMsg4)
}

/// The same over IPv6.
#[cgroup_sock_addr(recvmsg6)]
fn recvmsg6(ctx: SockAddrContext) -> i32 {
    hook::socket::restore6(&ctx, Hook::RecvMsg6)
}

/// A process of this node is told what it is connected to.
#[cgroup_sock_addr(getpeername4)]
fn getpeername4(ctx: SockAddrContext) -> i32 {
    hook::socket::restore4(&ctx, Hook::GetPeerName4)
}

/// The same over IPv6.
#[cgroup_sock_addr(getpeername6)]
fn getpeername6(ctx: SockAddrContext) -> i32 {
    hook::socket::restore6(&ctx, Hook::GetPeerName6)
}

/// Never reached: the verifier proves it, because a loop without an end would not load.
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
