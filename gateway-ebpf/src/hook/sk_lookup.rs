//! The environment at the socket lookup.
#![expect(unsafe_code, reason = "the context is a raw pointer")]

use aya_ebpf::programs::SkLookupContext;
use gateway_common::{
    addr::{Addr, Port, Protocol},
    flow::FlowKey,
};
use gateway_ebpf::{Aligned, steer::steer};

use crate::map::{KernelMaps, SOCKETS};

/// `AF_INET` of Linux.
const AF_INET: u32 = 2;

/// Steers one connection; returns the code of a socket lookup program.
#[inline(always)]
pub(crate) fn run(ctx: &SkLookupContext) -> u32 {
    let key = Aligned(key(ctx));
    steer(&KernelMaps, &key.0, |socket| SOCKETS.redirect_sk_lookup(ctx, socket, 0).is_ok()).sk_code()
}

/// Reads one field of the context. Volatile, because the verifier refuses the wider access that two reads side by
/// side would be joined to.
macro_rules! field {
    ($ctx:ident, $($field:tt)+) => {{
        // SAFETY: the context is the program's own, and the field is one that the kernel lets it read.
        unsafe { (&raw const (*$ctx.lookup).$($field)+).read_volatile() }
    }};
}

/// The 5-tuple of the client's packet. The kernel gives addresses and the remote port in wire order, the local port
/// as a number.
#[inline(always)]
#[expect(clippy::as_conversions, clippy::cast_possible_truncation, reason = "the kernel widened them")]
fn key(ctx: &SkLookupContext) -> FlowKey {
    // All fields before the choice: reads in two branches are joined to one read through a computed pointer, which the
    // verifier refuses. The fields of the other family read as zero.
    let family = field!(ctx, family);
    let (remote_v4, local_v4) = (field!(ctx, remote_ip4), field!(ctx, local_ip4));
    let remote_v6 = [
        field!(ctx, remote_ip6[0]),
        field!(ctx, remote_ip6[1]),
        field!(ctx, remote_ip6[2]),
        field!(ctx, remote_ip6[3]),
    ];
    let local_v6 = [
        field!(ctx, local_ip6[0]),
        field!(ctx, local_ip6[1]),
        field!(ctx, local_ip6[2]),
        field!(ctx, local_ip6[3]),
    ];
    let (remote, local) = if family == AF_INET {
        (Addr::v4(remote_v4.to_ne_bytes()), Addr::v4(local_v4.to_ne_bytes()))
    } else {
        (Addr::v6(bytemuck::must_cast(remote_v6)), Addr::v6(bytemuck::must_cast(local_v6)))
    };
    let remote_port = Port::from_wire(field!(ctx, remote_port).to_ne_bytes());
    let local_port = Port::new(field!(ctx, local_port) as u16);
    FlowKey::new(remote, remote_port, local, local_port, Protocol::new(field!(ctx, protocol) as u8))
}
