//! The kernel's routing and neighbor tables, asked only for endpoints whose next hop the agent does not know yet.
#![expect(unsafe_code, reason = "the helper takes pointers, and its parameter block has unions")]

use core::{ffi::c_void, mem};

use aya_ebpf::{bindings::bpf_fib_lookup, helpers};
use gateway_common::endpoint::NextHop;
use gateway_ebpf::env::Route;

/// `AF_INET` of Linux.
const AF_INET: u8 = 2;
/// `AF_INET6` of Linux.
const AF_INET6: u8 = 10;

/// Looks up the way of a packet that came in at `ingress`. `ctx` must be the context of the running program.
// Not inlined: it is the exception, and its parameter block takes an eighth of the kernel's stack.
#[inline(never)]
pub(super) fn next_hop(ctx: *mut c_void, ingress: u32, route: &Route) -> Option<NextHop> {
    // SAFETY: the block is integers, arrays of integers and unions of both, for which zero is a value.
    let mut block: bpf_fib_lookup = unsafe { mem::zeroed() };
    block.l4_protocol = route.protocol.number();
    block.ifindex = ingress;
    block.__bindgen_anon_1.tot_len = route.len_bytes;
    if route.destination.is_v4() {
        block.family = AF_INET;
        block.__bindgen_anon_3.ipv4_src = u32::from_ne_bytes(route.source.v4_octets());
        block.__bindgen_anon_4.ipv4_dst = u32::from_ne_bytes(route.destination.v4_octets());
    } else {
        block.family = AF_INET6;
        block.__bindgen_anon_3.ipv6_src = route.source.words();
        block.__bindgen_anon_4.ipv6_dst = route.destination.words();
    }
    let size = i32::try_from(size_of::<bpf_fib_lookup>()).ok()?;
    // SAFETY: the context is the program's own, and the block is initialized and as long as `size` says.
    let code = unsafe { helpers::bpf_fib_lookup(ctx, &raw mut block, size, 0) };
    // Zero is `BPF_FIB_LKUP_RET_SUCCESS`; everything else means that the stack would not forward it either.
    (code == 0).then_some(NextHop { interface: block.ifindex, mac: block.dmac, own_mac: block.smac })
}
