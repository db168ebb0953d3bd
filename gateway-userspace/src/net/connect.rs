//! Connections to endpoints, with a deadline.

use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use tokio::net::{TcpSocket, TcpStream, UdpSocket};

/// How connections of the agent to endpoints are made.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// Mark of the agent's own packets, so that its own hooks leave them alone; none needs no privilege.
    pub mark: Option<u32>,
}

/// Opens a connection; `TimedOut` when it takes longer than `timeout`.
pub async fn tcp(addr: SocketAddr, timeout: Duration, options: Options) -> io::Result<TcpStream> {
    let socket = if addr.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    if let Some(mark) = options.mark {
        socket2::SockRef::from(&socket).set_mark(mark)?;
    }
    socket.set_nodelay(true)?;
    match tokio::time::timeout(timeout, socket.connect(addr)).await {
        Ok(connected) => connected,
        Err(_) => Err(io::Error::from(io::ErrorKind::TimedOut)),
    }
}

/// A socket that exchanges datagrams with one endpoint.
pub fn udp(addr: SocketAddr, options: Options) -> io::Result<UdpSocket> {
    let any = if addr.is_ipv4() {
        SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0))
    } else {
        SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0))
    };
    let socket = std::net::UdpSocket::bind(any)?;
    if let Some(mark) = options.mark {
        socket2::SockRef::from(&socket).set_mark(mark)?;
    }
    socket.set_nonblocking(true)?;
    socket.connect(addr)?;
    UdpSocket::from_std(socket)
}
