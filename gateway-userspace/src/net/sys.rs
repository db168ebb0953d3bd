//! What no library wraps: frames that go out as they are, listening sockets whose connections the runtime does not watch,
//! what sockets have not delivered, and memory that the allocator keeps.
#![expect(
    unsafe_code,
    reason = "sendto(2) and ioctl(2) take raw pointers, the runtime trusts whoever names a descriptor, and the allocator is foreign"
)]

use std::{io, os::fd::AsRawFd};

use mio::net::TcpListener;
use socket2::{Domain, Socket, Type};
use tokio::io::{Interest, unix::AsyncFd};

/// Has the runtime that the caller has entered watch a listening socket.
///
/// # Errors
/// When the kernel refuses to watch it.
pub fn watched(socket: std::net::TcpListener) -> io::Result<AsyncFd<TcpListener>> {
    // SAFETY: the listener owns its descriptor, gives the same one whenever it is asked, and is dropped after it is not
    // watched any more.
    Ok(unsafe { AsyncFd::register_with_interest(TcpListener::from_std(socket), Interest::READABLE) }?)
}

/// Has a listening socket accept connections only when their client has said something, or has said nothing for `seconds`
/// (`TCP_DEFER_ACCEPT` of tcp(7)); zero for at once.
///
/// # Errors
/// When the kernel refuses.
pub fn defer_accept(socket: &impl AsRawFd, seconds: u8) -> io::Result<()> {
    let seconds = libc::c_int::from(seconds);
    let len = libc::socklen_t::try_from(size_of_val(&seconds)).map_err(io::Error::other)?;
    let (level, name, value) = (libc::IPPROTO_TCP, libc::TCP_DEFER_ACCEPT, (&raw const seconds).cast());
    // SAFETY: the value lives until the call returns, and has its true size.
    let done = unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, value, len) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Bytes that were written to a TCP socket and that its peer has not acknowledged (`SIOCOUTQ` of tcp(7)); none where the
/// kernel does not say.
pub fn queued(socket: &impl AsRawFd) -> Option<u64> {
    let mut n_bytes: libc::c_int = 0;
    // The request has the number, and the name, of the one for terminals.
    // SAFETY: the kernel writes one int behind the pointer, which is valid for that until the call returns, for sockets and
    // terminals alike; it refuses any other descriptor.
    let done = unsafe { libc::ioctl(socket.as_raw_fd(), libc::TIOCOUTQ, &raw mut n_bytes) };
    if done < 0 { None } else { u64::try_from(n_bytes).ok() }
}

/// Gives memory that was freed, and that the allocator keeps for later, back to the kernel. Who allocates meanwhile may wait
/// for some milliseconds.
pub fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it takes the allocator's own locks, and touches nothing that is in use.
    let _was_some = unsafe { libc::malloc_trim(0) };
}

/// Sends frames as they are, and receives none.
#[derive(Debug)]
pub struct FrameSocket(Socket);

impl FrameSocket {
    /// In the network namespace of the calling thread.
    ///
    /// # Errors
    /// Without `CAP_NET_RAW`.
    pub fn open() -> io::Result<Self> {
        Socket::new(Domain::PACKET, Type::RAW.cloexec().nonblocking(), None).map(Self)
    }

    /// Sends a frame out of an interface, by its index.
    ///
    /// # Errors
    /// When the interface is gone or down, or its queue is full.
    pub fn send(&self, interface: u32, frame: &[u8]) -> io::Result<()> {
        let family = libc::sa_family_t::try_from(libc::AF_PACKET).map_err(io::Error::other)?;
        let to = libc::sockaddr_ll {
            sll_family: family,
            sll_protocol: 0,
            sll_ifindex: i32::try_from(interface).map_err(io::Error::other)?,
            sll_hatype: 0,
            sll_pkttype: 0,
            sll_halen: 0,
            sll_addr: [0; 8],
        };
        let len = libc::socklen_t::try_from(size_of::<libc::sockaddr_ll>()).map_err(io::Error::other)?;
        let (fd, to) = (self.0.as_raw_fd(), &raw const to);
        // SAFETY: both pointers are of values that live until the call returns, with their true sizes.
        let sent = unsafe { libc::sendto(fd, frame.as_ptr().cast(), frame.len(), 0, to.cast(), len) };
        if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}
