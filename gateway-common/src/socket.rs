//! Sockets of this node's processes: what they asked for, where that is not what they talk to.

use bytemuck::{Pod, Zeroable};

use crate::addr::{Addr, Port};

/// Key of [`SocketPeers`](crate::map::SocketPeers): a socket, and the endpoint that it talks to.
#[repr(C)]
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd, Pod, Zeroable)]
pub struct SocketPeer {
    /// The kernel's number of the socket, which no other socket gets as long as the system runs.
    pub cookie: u64,
    /// Address of the endpoint.
    pub addr: Addr,
    /// Port of the endpoint.
    pub port: Port,
    pad: [u8; 6],
}

impl SocketPeer {
    /// From its parts.
    #[inline(always)]
    pub const fn new(cookie: u64, addr: Addr, port: Port) -> Self {
        Self { cookie, addr, port, pad: [0; 6] }
    }
}

/// Value of [`SocketPeers`](crate::map::SocketPeers): what the process asked for.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Pod, Zeroable)]
pub struct AskedFor {
    /// The virtual address.
    pub addr: Addr,
    /// The virtual port.
    pub port: Port,
    pad: [u8; 2],
    /// Number of the service.
    pub service: u32,
}

impl AskedFor {
    /// From its parts.
    #[inline(always)]
    pub const fn new(addr: Addr, port: Port, service: u32) -> Self {
        Self { addr, port, pad: [0; 2], service }
    }
}

/// Value of [`SocketScopes`](crate::map::SocketScopes), a single row: whose sockets are translated.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Pod, Zeroable)]
pub struct SocketScope {
    /// The kernel's number (cookie) of the agent's network namespace; zero for none.
    pub network: u64,
}

const _: () = assert!(size_of::<SocketPeer>() == 32);
const _: () = assert!(size_of::<AskedFor>() == 24);
const _: () = assert!(size_of::<SocketScope>() == 8);
