//! The environment at the hooks of sockets, which a process's calls run through (`struct bpf_sock_addr` of `linux/bpf.h`).
//!
//! Each family has programs of its own: the verifier lets one read the fields of its own family only.
#![expect(unsafe_code, reason = "the context is a raw pointer, and counts are shared with packets")]

use core::sync::atomic::AtomicU64;

use aya_ebpf::{
    EbpfContext as _,
    bindings::{BPF_ANY, bpf_sock},
    btf_maps::{Array, LruHashMap},
    helpers::generated::{bpf_get_netns_cookie, bpf_get_prandom_u32, bpf_get_socket_cookie, bpf_set_retval},
    macros::btf_map,
    programs::SockAddrContext,
};
use gateway_common::{
    addr::{Addr, Port, Protocol},
    counter::{Count, Hook, Reason},
    map::{SocketPeers, SocketScopes},
    socket::{AskedFor, SocketPeer, SocketScope},
};
use gateway_ebpf::socket::{Call, Sockets, restore, translate};

use crate::{
    hook::word,
    map::{ENDPOINT_COUNTS, KernelMaps, REASONS, SERVICE_COUNTS, SERVICE_REASONS, capacity},
};

#[btf_map]
static SOCKET_PEERS: LruHashMap<SocketPeer, AskedFor, { capacity::<SocketPeers>() }> = LruHashMap::new();
#[btf_map]
static SOCKET_SCOPES: Array<SocketScope, { capacity::<SocketScopes>() }> = Array::new();

/// `ECONNREFUSED` of Linux: what a process sees when nobody listens.
const ECONNREFUSED: i32 = 111;

/// The call goes on.
const PROCEED: i32 = 1;

/// A call that names an IPv4 address to go to; returns the code of the program.
#[inline(always)]
pub(crate) fn translate4(ctx: &SockAddrContext, hook: Hook) -> i32 {
    finish(translate(&KernelMaps, &mut At::<false> { ctx, hook }).sk_code())
}

/// The same of IPv6.
#[inline(always)]
pub(crate) fn translate6(ctx: &SockAddrContext, hook: Hook) -> i32 {
    finish(translate(&KernelMaps, &mut At::<true> { ctx, hook }).sk_code())
}

/// A call that is answered with an IPv4 address; returns the code of the program, which may not be another.
#[inline(always)]
pub(crate) fn restore4(ctx: &SockAddrContext, hook: Hook) -> i32 {
    let _counted = restore(&KernelMaps, &mut At::<false> { ctx, hook });
    PROCEED
}

/// The same of IPv6.
#[inline(always)]
pub(crate) fn restore6(ctx: &SockAddrContext, hook: Hook) -> i32 {
    let _counted = restore(&KernelMaps, &mut At::<true> { ctx, hook });
    PROCEED
}

#[inline(always)]
fn finish(code: u32) -> i32 {
    if code == 0 {
        // SAFETY: the helper takes no pointer. Without it the process would be told that it may not.
        unsafe { bpf_set_retval(-ECONNREFUSED) };
        return 0;
    }
    PROCEED
}

/// A call at a hook.
struct At<'a, const V6: bool> {
    ctx: &'a SockAddrContext,
    hook: Hook,
}

/// Reads one field of the context. Volatile, because the verifier refuses wider and narrower accesses.
macro_rules! field {
    ($call:ident, $($field:tt)+) => {{
        // SAFETY: the context is the program's own, and the field is one that the kernel lets it read.
        unsafe { (&raw const (*$call.ctx.sock_addr).$($field)+).read_volatile() }
    }};
}

/// Writes one.
macro_rules! set {
    ($call:ident, $value:expr, $($field:tt)+) => {{
        // SAFETY: as for reading.
        unsafe { (&raw mut (*$call.ctx.sock_addr).$($field)+).write_volatile($value) };
    }};
}

impl<const V6: bool> Call for At<'_, V6> {
    #[inline(always)]
    fn hook(&self) -> Hook {
        self.hook
    }

    #[inline(always)]
    #[expect(clippy::as_conversions, clippy::cast_possible_truncation, reason = "the kernel widened it")]
    fn peer(&self) -> (Addr, Port) {
        let addr = if V6 {
            let words = [
                field!(self, user_ip6[0]),
                field!(self, user_ip6[1]),
                field!(self, user_ip6[2]),
                field!(self, user_ip6[3]),
            ];
            Addr::v6(bytemuck::must_cast(words))
        } else {
            Addr::v4(field!(self, user_ip4).to_ne_bytes())
        };
        (addr, Port::from_wire((field!(self, user_port) as u16).to_ne_bytes()))
    }

    #[inline(always)]
    #[expect(
        clippy::as_conversions,
        clippy::cast_possible_truncation,
        reason = "whatever is larger is masked to none"
    )]
    fn protocol(&self) -> Protocol {
        let number = field!(self, protocol);
        Protocol::new(if number > 0xff { 0 } else { number as u8 })
    }

    #[inline(always)]
    fn cookie(&self) -> u64 {
        // SAFETY: the context is the program's own.
        unsafe { bpf_get_socket_cookie(self.ctx.as_ptr()) }
    }

    #[inline(always)]
    fn mark(&self) -> u32 {
        let socket: *mut bpf_sock = field!(self, __bindgen_anon_1.sk);
        // SAFETY: the kernel gives the socket of the call, which lasts as long as the call does.
        let mark = unsafe { &raw const (*socket).mark };
        // SAFETY: a field of it.
        unsafe { mark.read_volatile() }
    }

    #[inline(always)]
    fn network(&self) -> u64 {
        // SAFETY: the context is the program's own.
        unsafe { bpf_get_netns_cookie(self.ctx.as_ptr()) }
    }

    #[inline(always)]
    fn name(&mut self, addr: Addr, port: Port) {
        if V6 {
            let [a, b, c, d] = addr.words();
            set!(self, a, user_ip6[0]);
            set!(self, b, user_ip6[1]);
            set!(self, c, user_ip6[2]);
            set!(self, d, user_ip6[3]);
        } else {
            set!(self, u32::from_ne_bytes(addr.v4_octets()), user_ip4);
        }
        set!(self, u32::from(u16::from_ne_bytes(port.to_wire())), user_port);
    }
}

impl Sockets for KernelMaps {
    #[inline(always)]
    fn socket_scope(&self) -> Option<&'static SocketScope> {
        SOCKET_SCOPES.get(0)
    }

    #[inline(always)]
    fn asked_for(&self, peer: &SocketPeer) -> Option<AskedFor> {
        let asked: *const AskedFor = SOCKET_PEERS.get_ptr(peer)?;
        // SAFETY: an entry that is given away meanwhile stays readable while the program runs; another socket's would be
        // read at worst, of the moment in which the table was too small.
        Some(unsafe { asked.read() })
    }

    #[inline(always)]
    fn note_asked(&self, peer: &SocketPeer, asked: &AskedFor) -> bool {
        SOCKET_PEERS.insert(peer, asked, u64::from(BPF_ANY)).is_ok()
    }

    #[inline(always)]
    fn random(&self) -> u32 {
        // SAFETY: the helper takes no pointer.
        unsafe { bpf_get_prandom_u32() }
    }

    #[inline(always)]
    fn count_call(&self, hook: Hook, reason: Reason) {
        let number = word::number_of(reason);
        let Some(row) = REASONS.get_ptr_mut(hook.number()) else { return };
        let counts = row.cast::<Count>();
        plus_one(counts.cast::<u64>());
        // SAFETY: the number is below that of the counts.
        plus_one(unsafe { counts.add(number) }.cast::<u64>());
    }

    #[inline(always)]
    fn count_flow(&self, service: u32, row: u32) {
        if let Some(count) = SERVICE_COUNTS.get_ptr_mut(service) {
            // SAFETY: a field of a live value.
            plus_one(unsafe { &raw mut (*count).new_flows });
        }
        if let Some(count) = ENDPOINT_COUNTS.get_ptr_mut(row) {
            // SAFETY: a field of a live value.
            plus_one(unsafe { &raw mut (*count).new_flows });
        }
    }

    #[inline(always)]
    fn count_refused(&self, service: u32, reason: Reason) {
        if let Some(count) = SERVICE_COUNTS.get_ptr_mut(service) {
            // SAFETY: a field of a live value.
            plus_one(unsafe { &raw mut (*count).dropped });
        }
        let Some(row) = SERVICE_REASONS.get_ptr_mut(service) else { return };
        let place = word::place_of(reason);
        // SAFETY: the place is below that of the counts.
        plus_one(unsafe { row.cast::<u64>().add(place) });
    }
}

/// Adds one to a count of this processor that packets may change in between.
#[inline(always)]
fn plus_one(count: *mut u64) {
    // SAFETY: the caller has it from a live value of a map, where it is aligned; programs on packets are done with it
    // before this one goes on.
    let word = unsafe { &*count.cast::<AtomicU64>() };
    word::add(word, 1);
}
