//! The kernel programs: one function per hook, one expression each.
#![no_std]
#![no_main]
#![cfg_attr(target_arch = "bpf", feature(asm_experimental_arch))]
#![expect(clippy::needless_pass_by_value, reason = "the signature that the macros of the programs ask for")]

mod hook;
mod map;

use aya_ebpf::{
    bindings::bpf_sk_lookup,
    macros::{classifier, xdp},
    programs::{SkLookupContext, TcContext, XdpContext},
};

/// Balances clients' packets and translates replies back, before the stack sees them.
#[xdp]
fn xdp_balance(ctx: XdpContext) -> u32 {
    hook::xdp::run(&ctx)
}

/// The same for interfaces where XDP does not fit.
#[classifier]
fn tc_ingress(ctx: TcContext) -> i32 {
    hook::tc::ingress(&ctx)
}

/// Gives replies of endpoints on this node their virtual address.
#[classifier]
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

/// Gives connections to the agent's services to its listening sockets. Written without the macro, which would give
/// the section the name of the function: the linker refuses two symbols of one name.
#[expect(unsafe_code, reason = "the name and section of a program")]
#[unsafe(no_mangle)]
#[unsafe(link_section = "sk_lookup/connection")]
extern "C" fn sk_lookup(ctx: *mut bpf_sk_lookup) -> u32 {
    hook::sk_lookup::run(&SkLookupContext::new(ctx))
}

/// Never reached: the verifier proves it, because a loop without an end would not load.
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
