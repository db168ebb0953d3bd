//! The kernel's routing and neighbor tables, asked only for endpoints whose next hop the agent does not know yet.
#![expect(unsafe_code, reason = "the helper takes pointers")]

use core::{ffi::c_void, hint::black_box};

use aya_ebpf::{bindings::bpf_fib_lookup, helpers};
use gateway_common::{
    addr::{Addr, Protocol},
    endpoint::Endpoint,
};
use gateway_ebpf::way::Way;

/// `AF_INET` of Linux.
const AF_INET: u8 = 2;
/// `AF_INET6` of Linux.
const AF_INET6: u8 = 10;

/// `struct bpf_fib_lookup` of `linux/bpf.h` without its unions, so that every byte is written. Fields that share a word are one
/// word here: the compiler joins neighboring writes, and the verifier refuses the unaligned ones on the stack.
#[repr(C)]
struct Block {
    /// Family and protocol, a byte each; both ports; bytes of the packet on the way in, the path's MTU on the way out.
    head: u64,
    interface: u32,
    flow_info: u32,
    source: [u64; 2],
    destination: [u64; 2],
    /// Two words of VLAN, then the link-layer source and destination, six bytes each. Hidden from the
    /// compiler when written: runs of zeros become calls.
    links: (u64, u64),
}

const _: () = assert!(size_of::<Block>() == size_of::<bpf_fib_lookup>());
const _: () = assert!(size_of::<Block>() == 64);

/// Protocol and length of a packet in one word: a function of the kernel takes five arguments.
#[inline(always)]
pub(super) fn flow(protocol: Protocol, ip_bytes: u32) -> u32 {
    u32::from(protocol.number()) << 16 | ip_bytes & 0xffff
}

/// Looks up the way of a packet that came in at `ingress`; where it does not go because of its size, the bytes that would, and
/// zero where nothing goes. `ctx` must be the context of the running program.
#[inline(always)]
pub(super) fn next_hop(ctx: *mut c_void, ingress: u32, endpoint: &Endpoint, flow: u32) -> Result<Way, u32> {
    let words = look_up(ctx, ingress, endpoint, flow);
    let way = Way::from_words(words);
    let [_, bytes, ..] = words;
    if way.is_known() { Ok(way) } else { Err(bytes) }
}

/// The next hop as whole words; without an interface, in the second one the bytes that would go.
// A frame of its own: the block would not fit the program's 512 bytes of stack beside the rest.
#[inline(never)]
fn look_up(ctx: *mut c_void, ingress: u32, endpoint: &Endpoint, flow: u32) -> [u32; 4] {
    let family = if endpoint.addr.is_v4() { AF_INET } else { AF_INET6 };
    let [low, high, protocol, _] = flow.to_le_bytes();
    let ip_bytes = u16::from_le_bytes([low, high]);
    let [first, second] = ip_bytes.to_ne_bytes();
    let zero = black_box(0);
    let mut block = Block {
        head: u64::from_ne_bytes([family, protocol, 0, 0, 0, 0, first, second]),
        interface: ingress,
        flow_info: 0,
        source: words(endpoint.source),
        destination: words(endpoint.addr),
        links: (zero, zero),
    };
    let at = (&raw mut block).cast::<bpf_fib_lookup>();
    // SAFETY: the context is the program's own, and the block has the size and the fields of the kernel's.
    let code = unsafe { helpers::bpf_fib_lookup(ctx, at, 64, 0) };
    if code == TOO_BIG {
        let [.., c, d] = block.head.to_ne_bytes();
        return [0, u32::from(u16::from_ne_bytes([c, d])), 0, 0];
    }
    // Zero is `BPF_FIB_LKUP_RET_SUCCESS`; everything else means that the stack would not forward it either.
    if code != 0 {
        return [0; 4];
    }
    let (first, second) = block.links;
    let [_, _, _, _, a, b, c, d] = first.to_ne_bytes();
    let [e, f, m, n, o, p, q, r] = second.to_ne_bytes();
    [
        block.interface,
        u32::from_ne_bytes([m, n, o, p]),
        u32::from_ne_bytes([q, r, a, b]),
        u32::from_ne_bytes([c, d, e, f]),
    ]
}

/// `BPF_FIB_LKUP_RET_FRAG_NEEDED` of `linux/bpf.h`.
const TOO_BIG: i64 = 8;

/// The MTU of an interface; zero when there is none with this index. `ctx` must be the context of the running program.
#[inline(never)]
pub(super) fn mtu(ctx: *mut c_void, interface: u32) -> u32 {
    let mut bytes = 0_u32;
    // SAFETY: the context is the program's own, and the helper writes four bytes.
    let code = unsafe { helpers::bpf_check_mtu(ctx, interface, &raw mut bytes, 0, 0) };
    // Below zero it has not looked; else it says in any case what fits, beside whether the packet does.
    if code < 0 { 0 } else { bytes }
}

/// `BPF_FIB_LKUP_RET_NOT_FWDED` of `linux/bpf.h`: the route is none that leads on.
const NOT_FORWARDED: i64 = 4;
/// `BPF_FIB_LKUP_RET_FWD_DISABLED`: this node forwards nothing that comes in there.
const FORWARDING_DISABLED: i64 = 5;

/// Whether the stack would deliver a packet rather than forward it. `ctx` must be the context of the running program.
#[inline(never)]
pub(super) fn is_delivered(ctx: *mut c_void, ingress: u32, source: Addr, destination: Addr) -> bool {
    let family = if destination.is_v4() { AF_INET } else { AF_INET6 };
    let zero = black_box(0);
    let mut block = Block {
        head: u64::from_ne_bytes([family, 0, 0, 0, 0, 0, 0, 0]),
        interface: ingress,
        flow_info: 0,
        source: words(source),
        destination: words(destination),
        links: (zero, zero),
    };
    let at = (&raw mut block).cast::<bpf_fib_lookup>();
    // SAFETY: the context is the program's own, and the block has the size and the fields of the kernel's.
    let code = unsafe { helpers::bpf_fib_lookup(ctx, at, 64, 0) };
    code == NOT_FORWARDED || code == FORWARDING_DISABLED
}

/// An address as the helper takes it: IPv4 in the first word alone.
#[inline(always)]
fn words(addr: Addr) -> [u64; 2] {
    if !addr.is_v4() {
        return addr.halves();
    }
    let [_, _, _, last] = addr.words();
    [bytemuck::must_cast([last, 0]), 0]
}
