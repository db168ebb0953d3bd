//! Listening sockets: one per worker and address.

use std::{io, net::SocketAddr};

use socket2::{Domain, Protocol, Socket, Type};

use crate::limits;

/// Where a socket really listens.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Place {
    /// At the virtual address itself: all workers share it by `SO_REUSEPORT`.
    Virtual,
    /// At a loopback port of the same family: the kernel's lookup hook steers connections to it, and the accepted
    /// socket carries the virtual address.
    Steered,
}

/// A TCP socket that listens.
pub fn tcp(addr: SocketAddr, place: Place) -> io::Result<std::net::TcpListener> {
    let socket = open(addr, place, Type::STREAM, Protocol::TCP)?;
    socket.set_tcp_nodelay(true)?;
    // Accepted sockets inherit both.
    socket.set_tcp_keepalive(&limits::keepalive())?;
    socket.listen(limits::ACCEPT_BACKLOG)?;
    Ok(socket.into())
}

/// A UDP socket that receives.
pub fn udp(addr: SocketAddr, place: Place) -> io::Result<std::net::UdpSocket> {
    Ok(open(addr, place, Type::DGRAM, Protocol::UDP)?.into())
}

fn open(addr: SocketAddr, place: Place, kind: Type, protocol: Protocol) -> io::Result<Socket> {
    let domain = if addr.is_ipv4() { Domain::IPV4 } else { Domain::IPV6 };
    let socket = Socket::new(domain, kind, Some(protocol))?;
    socket.set_nonblocking(true)?;
    if addr.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    // A restarted agent must not wait for the connections of its predecessor to leave TIME_WAIT. Accepted sockets inherit
    // it, and one that was steered here carries the virtual address: it must not keep an agent from listening there.
    socket.set_reuse_address(true)?;
    match place {
        Place::Virtual => {
            socket.set_reuse_port(true)?;
            free_bind(&socket, addr)?;
            socket.bind(&addr.into())?;
        }
        Place::Steered => {
            let loopback = if addr.is_ipv4() {
                SocketAddr::from((std::net::Ipv4Addr::LOCALHOST, 0))
            } else {
                SocketAddr::from((std::net::Ipv6Addr::LOCALHOST, 0))
            };
            socket.bind(&loopback.into())?;
        }
    }
    Ok(socket)
}

/// Allows binding an address that the node does not have yet.
fn free_bind(socket: &Socket, addr: SocketAddr) -> io::Result<()> {
    if addr.is_ipv4() { socket.set_freebind_v4(true) } else { socket.set_freebind_v6(true) }
}
