//! Frames as they are, for what no socket of the stack would send.
#![expect(unsafe_code, reason = "packet sockets have no safe interface")]

use std::{
    io,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
};

use anyhow::{Context as _, Result};

use crate::netns::Ns;

/// Sends one frame out of an interface of a namespace.
///
/// # Errors
/// When the kernel refuses.
pub fn send(ns: &Ns, interface: &str, frame: &[u8]) -> Result<()> {
    send_all(ns, interface, std::iter::once(frame.to_vec()))
}

/// Sends frames, one after the other and without a pause.
///
/// # Errors
/// When the kernel refuses.
pub fn send_all(ns: &Ns, interface: &str, frames: impl Iterator<Item = Vec<u8>> + Send) -> Result<()> {
    ns.run(|| send_here(interface, frames)).with_context(|| format!("cannot send a frame out of {interface}"))
}

fn send_here(interface: &str, frames: impl Iterator<Item = Vec<u8>>) -> io::Result<()> {
    let index = nix::net::if_::if_nametoindex(interface)?;
    // SAFETY: the call takes no pointer.
    let fd = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this descriptor for us.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    // SAFETY: a link-layer address is plain integers.
    let mut to: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    to.sll_family = u16::try_from(libc::AF_PACKET).map_err(io::Error::other)?;
    to.sll_ifindex = i32::try_from(index).map_err(io::Error::other)?;
    let len = u32::try_from(size_of::<libc::sockaddr_ll>()).map_err(io::Error::other)?;
    for frame in frames {
        let (at, bytes) = (frame.as_ptr().cast(), frame.len());
        // SAFETY: both buffers live until the call returns, and their lengths are theirs.
        let sent = unsafe { libc::sendto(socket.as_raw_fd(), at, bytes, 0, (&raw const to).cast(), len) };
        if sent < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// The link-layer address of an interface of a namespace.
///
/// # Errors
/// When there is no such interface.
pub fn mac(ns: &Ns, interface: &str) -> Result<[u8; 6]> {
    let text = ns.tool("ip", &format!("-o link show dev {interface}"))?;
    let mac = text.split_whitespace().skip_while(|word| *word != "link/ether").nth(1);
    let bytes: Option<Vec<u8>> =
        mac.map(|mac| mac.split(':').filter_map(|byte| u8::from_str_radix(byte, 16).ok()).collect());
    bytes
        .and_then(|bytes| bytes.try_into().ok())
        .with_context(|| format!("{interface} has no link-layer address: {text}"))
}
