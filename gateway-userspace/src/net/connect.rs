//! Connections to endpoints, with a deadline.

use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

pub use gateway_common::probe::OWN_MARK;
use tokio::net::{TcpSocket, TcpStream, UdpSocket};

use crate::limits;

/// How connections of the agent to endpoints are made.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// Mark of the agent's own packets; none needs no privilege.
    pub mark: Option<u32>,
}

/// Opens a connection; `TimedOut` when it takes longer than `timeout`.
pub async fn tcp(addr: SocketAddr, timeout: Duration, options: Options) -> io::Result<TcpStream> {
    finish(socket(addr, options)?, addr, timeout).await
}

/// A socket for a connection to an endpoint.
pub fn socket(addr: SocketAddr, options: Options) -> io::Result<TcpSocket> {
    let socket = if addr.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    if let Some(mark) = options.mark {
        socket2::SockRef::from(&socket).set_mark(mark)?;
    }
    socket.set_nodelay(true)?;
    let reference = socket2::SockRef::from(&socket);
    reference.set_tcp_keepalive(&limits::keepalive())?;
    reference.set_tcp_user_timeout(Some(limits::UNACKNOWLEDGED))?;
    Ok(socket)
}

/// Connects a socket; `TimedOut` when it takes longer than `timeout`.
pub async fn finish(socket: TcpSocket, addr: SocketAddr, timeout: Duration) -> io::Result<TcpStream> {
    match tokio::time::timeout(timeout, socket.connect(addr)).await {
        Ok(connected) => connected,
        Err(_) => Err(io::Error::from(io::ErrorKind::TimedOut)),
    }
}

/// Whether an error says something about whom it was connected to, and not about this node: its ports, its descriptors, its
/// routes.
pub fn is_of_peer(cause: &io::Error) -> bool {
    matches!(
        cause.kind(),
        io::ErrorKind::ConnectionRefused
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionAborted
            | io::ErrorKind::BrokenPipe
            | io::ErrorKind::UnexpectedEof
            | io::ErrorKind::TimedOut
            | io::ErrorKind::HostUnreachable
    )
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

#[cfg(test)]
#[expect(clippy::disallowed_methods, clippy::print_stdout, reason = "a test says why it was skipped")]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_sent_to_endpoints_carries_the_mark() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let options = Options { mark: Some(OWN_MARK) };
        let (stream, datagrams) = (tcp(addr, Duration::from_secs(1), options).await, udp(addr, options));
        let refused = |error: &io::Error| error.kind() == io::ErrorKind::PermissionDenied;
        match (stream, datagrams) {
            (Ok(stream), Ok(datagrams)) => {
                assert_eq!(socket2::SockRef::from(&stream).mark().unwrap(), OWN_MARK);
                assert_eq!(socket2::SockRef::from(&datagrams).mark().unwrap(), OWN_MARK);
            }
            (Err(one), Err(other)) if refused(&one) && refused(&other) => {
                let is_all = std::env::var("SLUICE_TESTS").is_ok_and(|value| value == "all");
                assert!(!is_all, "marks need root, and all tests are wanted");
                println!("skipped: needs root");
            }
            (stream, datagrams) => panic!("{stream:?} {datagrams:?}"),
        }
    }
}
