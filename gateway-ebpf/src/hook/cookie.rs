//! The agent's listening sockets: whether they are there, and cookies of the kernel's own, which they take back.
#![expect(unsafe_code, reason = "helpers over a socket, which is given back before anything else is done")]

use core::ptr;

use aya_ebpf::helpers;
use gateway_ebpf::cookie::{Cookie, Syn};

use crate::map::SOCKETS;

/// Whether there is a socket at an index.
#[inline(always)]
pub(crate) fn listens(socket: u32) -> bool {
    let map = (&raw const SOCKETS).cast_mut();
    // SAFETY: a map and a key of its type.
    let found = unsafe { helpers::bpf_map_lookup_elem(map.cast(), ptr::from_ref(&socket).cast()) };
    if found.is_null() {
        return false;
    }
    // SAFETY: the lookup above took it.
    unsafe { helpers::bpf_sk_release(found) };
    true
}

/// Asks a listening socket for the cookie of a SYN.
#[inline(always)]
#[expect(clippy::as_conversions, clippy::cast_sign_loss, reason = "not negative")]
pub(crate) fn of(socket: u32, syn: &Syn) -> Cookie {
    let map = (&raw const SOCKETS).cast_mut();
    // SAFETY: a map and a key of its type.
    let found = unsafe { helpers::bpf_map_lookup_elem(map.cast(), ptr::from_ref(&socket).cast()) };
    if found.is_null() {
        return Cookie::NONE;
    }
    let ip = (&raw const syn.ip).cast_mut();
    let tcp = (&raw const syn.tcp).cast_mut();
    // SAFETY: the socket is held until it is released below; both headers are as long as they are said to be.
    let word =
        unsafe { helpers::bpf_tcp_gen_syncookie(found, ip.cast(), syn.ip_bytes, tcp.cast(), Syn::TCP_BYTES) };
    // SAFETY: the lookup above took it.
    unsafe { helpers::bpf_sk_release(found) };
    if word <= 0 { Cookie::NONE } else { Cookie::from_word(word as u64) }
}
