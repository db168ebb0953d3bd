//! The test run of a socket lookup program, which the library does not have.

use std::os::fd::RawFd;

use anyhow::{Context as _, Result};
use gateway_common::flow::FlowKey;

/// `struct bpf_sk_lookup` of `linux/bpf.h`, as `BPF_PROG_TEST_RUN` takes it.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct LookupContext {
    cookie: u64,
    family: u32,
    protocol: u32,
    remote_ip4: u32,
    remote_ip6: [u32; 4],
    remote_port: [u8; 2],
    zero: u16,
    local_ip4: u32,
    local_ip6: [u32; 4],
    local_port: u32,
    ingress: u32,
    tail: u32,
}

/// The part of `union bpf_attr` that `BPF_PROG_TEST_RUN` reads.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct TestRunAttr {
    program: u32,
    code: u32,
    data_sizes: [u32; 2],
    data: [u64; 2],
    repeat: u32,
    duration: u32,
    context_in_bytes: u32,
    context_out_bytes: u32,
    context_in: u64,
    context_out: u64,
    flags_cpu_batch: [u32; 4],
}

const BPF_PROG_TEST_RUN: libc::c_long = 10;

/// Runs a socket lookup program for a connection; returns its code and the cookie of the socket.
pub(crate) fn run_lookup(program: RawFd, key: &FlowKey) -> Result<(u32, u64)> {
    let v4 = key.destination.is_v4();
    let mut context: LookupContext = bytemuck::Zeroable::zeroed();
    context.family = u32::try_from(if v4 { libc::AF_INET } else { libc::AF_INET6 })?;
    context.protocol = u32::from(key.protocol.number());
    context.remote_port = key.source_port.to_wire();
    context.local_port = u32::from(key.destination_port.number());
    if v4 {
        context.remote_ip4 = u32::from_ne_bytes(key.source.v4_octets());
        context.local_ip4 = u32::from_ne_bytes(key.destination.v4_octets());
    } else {
        context.remote_ip6 = key.source.words();
        context.local_ip6 = key.destination.words();
    }
    let size = u32::try_from(size_of::<LookupContext>())?;
    let mut out: LookupContext = bytemuck::Zeroable::zeroed();
    let mut attr: TestRunAttr = bytemuck::Zeroable::zeroed();
    attr.program = u32::try_from(program)?;
    attr.context_in_bytes = size;
    attr.context_out_bytes = size;
    attr.context_in = u64::try_from((&raw const context).addr())?;
    attr.context_out = u64::try_from((&raw mut out).addr())?;
    // SAFETY: the attribute block is initialized and as long as said, and its addresses are those of two contexts
    // that live until the call returns.
    #[expect(unsafe_code, reason = "aya has no test run for socket lookups")]
    let code =
        unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_TEST_RUN, &raw mut attr, size_of::<TestRunAttr>()) };
    if code != 0 {
        return Err(std::io::Error::last_os_error()).context("running sk_lookup");
    }
    Ok((attr.code, out.cookie))
}
