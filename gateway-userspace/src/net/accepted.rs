//! Connections that the runtime watches only once somebody has to wait for them: what a client says first has often arrived
//! when it is accepted, and the answer leaves at once. A connection for one request then costs neither the entry in epoll(7)
//! nor its removal.

use std::{
    io::{self, IoSlice, Read as _, Write as _},
    net::{Shutdown, SocketAddr, TcpStream as Unwatched},
    pin::Pin,
    task::{Context, Poll},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, Interest, ReadBuf, unix::AsyncFd},
    net::TcpStream,
};

use super::sys;
use crate::taken::Taken;

/// A listening socket that is watched.
#[derive(Debug)]
pub struct Listener(AsyncFd<mio::net::TcpListener>);

impl Listener {
    /// Watched by the runtime that the caller has entered.
    ///
    /// # Errors
    /// When the kernel refuses to watch it.
    pub fn new(socket: std::net::TcpListener) -> io::Result<Self> {
        sys::watched(socket).map(Self)
    }

    /// Waits for a connection.
    ///
    /// # Errors
    /// Those of accept(2), also of a connection that is gone already.
    pub async fn accept(&self) -> io::Result<(Accepted, SocketAddr)> {
        self.0.async_io(Interest::READABLE, mio::net::TcpListener::accept).await.map(accepted)
    }

    /// A connection that waits already; none when there is none.
    pub fn accept_now(&self) -> Option<(Accepted, SocketAddr)> {
        self.0.get_ref().accept().ok().map(accepted)
    }

    /// The address that it is bound to.
    ///
    /// # Errors
    /// When the kernel does not say.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.0.get_ref().local_addr()
    }
}

fn accepted((stream, peer): (mio::net::TcpStream, SocketAddr)) -> (Accepted, SocketAddr) {
    (Accepted { state: State::Unwatched(stream.into()), n_written: 0 }, peer)
}

/// A connection that was accepted.
#[derive(Debug)]
pub struct Accepted {
    state: State,
    n_written: u64,
}

#[derive(Debug)]
enum State {
    Unwatched(Unwatched),
    Watched(TcpStream),
    /// Could not be watched.
    Gone,
}

impl Accepted {
    /// The connection as the runtime knows it.
    ///
    /// # Errors
    /// When the kernel refuses to watch it.
    pub fn watched(self) -> io::Result<TcpStream> {
        match self.state {
            State::Unwatched(stream) => TcpStream::from_std(stream),
            State::Watched(stream) => Ok(stream),
            State::Gone => Err(io::ErrorKind::NotConnected.into()),
        }
    }

    /// The address that the client connected to.
    ///
    /// # Errors
    /// When the kernel does not say.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        match &self.state {
            State::Unwatched(stream) => stream.local_addr(),
            State::Watched(stream) => stream.local_addr(),
            State::Gone => Err(io::ErrorKind::NotConnected.into()),
        }
    }

    /// Closes it with a reset, and nothing stays behind.
    pub fn reset(self) {
        self.break_off();
    }

    /// Does something at once if nobody watches yet; none when that has to be waited for, which the runtime does from then on.
    fn at_once<T>(&mut self, act: impl FnOnce(&mut Unwatched) -> io::Result<T>) -> io::Result<Option<T>> {
        let State::Unwatched(stream) = &mut self.state else { return Ok(None) };
        match act(stream) {
            Err(cause) if cause.kind() == io::ErrorKind::WouldBlock => {}
            done => return done.map(Some),
        }
        let gone = Self { state: State::Gone, ..*self };
        let watched = std::mem::replace(self, gone).watched()?;
        self.state = State::Watched(watched);
        Ok(None)
    }

    /// Counts what was written.
    fn written(&mut self, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if let Poll::Ready(Ok(n)) = written {
            self.n_written = self.n_written.wrapping_add(u64::try_from(n).unwrap_or(u64::MAX));
        }
        written
    }

    fn later(&mut self) -> io::Result<Pin<&mut TcpStream>> {
        match &mut self.state {
            State::Watched(stream) => Ok(Pin::new(stream)),
            State::Unwatched(_) | State::Gone => Err(io::ErrorKind::NotConnected.into()),
        }
    }
}

impl Taken for Accepted {
    fn n_taken(&self) -> Option<u64> {
        // The end of the stream is queued like a byte.
        self.n_queued().map(|queued| self.n_written.saturating_sub(queued))
    }

    fn n_queued(&self) -> Option<u64> {
        match &self.state {
            State::Unwatched(stream) => sys::queued(stream),
            State::Watched(stream) => sys::queued(stream),
            State::Gone => None,
        }
    }

    /// It is closed with a reset.
    fn break_off(&self) {
        let linger = Some(std::time::Duration::ZERO);
        // Whoever cannot be reset is closed.
        drop(match &self.state {
            State::Unwatched(stream) => socket2::SockRef::from(stream).set_linger(linger),
            State::Watched(stream) => socket2::SockRef::from(stream).set_linger(linger),
            State::Gone => Ok(()),
        });
    }
}

impl AsyncRead for Accepted {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        match this.at_once(|stream| stream.read(buf.initialize_unfilled()))? {
            Some(n) => {
                buf.advance(n);
                Poll::Ready(Ok(()))
            }
            None => this.later()?.poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Accepted {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = match this.at_once(|stream| stream.write(buf))? {
            Some(n) => Poll::Ready(Ok(n)),
            None => this.later()?.poll_write(cx, buf),
        };
        this.written(written)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = match this.at_once(|stream| stream.write_vectored(bufs))? {
            Some(n) => Poll::Ready(Ok(n)),
            None => this.later()?.poll_write_vectored(cx, bufs),
        };
        this.written(written)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        // Nothing is kept here.
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        match this.at_once(|stream| stream.shutdown(Shutdown::Write))? {
            Some(()) => Poll::Ready(Ok(())),
            None => this.later()?.poll_shutdown(cx),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    const LATER: Duration = Duration::from_millis(20);

    async fn pair() -> (Accepted, TcpStream) {
        let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        socket.set_nonblocking(true).unwrap();
        let listener = Listener::new(socket).unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (accepted, peer) = listener.accept().await.unwrap();
        assert_eq!(peer, client.local_addr().unwrap());
        assert_eq!(accepted.local_addr().unwrap(), client.peer_addr().unwrap());
        assert!(listener.accept_now().is_none());
        (accepted, client)
    }

    #[tokio::test]
    async fn what_has_arrived_is_read_and_answered_without_being_watched() {
        let (mut accepted, mut client) = pair().await;
        // Loopback delivers before the write returns.
        client.write_all(b"ask").await.unwrap();
        let mut asked = [0; 3];
        accepted.read_exact(&mut asked).await.unwrap();
        accepted.write_all(b"answer").await.unwrap();
        accepted.shutdown().await.unwrap();
        assert!(matches!(accepted.state, State::Unwatched(_)));
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.unwrap();
        assert_eq!((&asked, answer.as_str()), (b"ask", "answer"));
    }

    #[tokio::test]
    async fn whoever_has_to_wait_is_woken() {
        let (mut accepted, mut client) = pair().await;
        let mut late = [0; 4];
        let says = async {
            tokio::time::sleep(LATER).await;
            client.write_all(b"late").await.unwrap();
        };
        let (read, ()) = tokio::join!(accepted.read_exact(&mut late), says);
        assert_eq!((read.unwrap(), &late), (4, b"late"));
        assert!(matches!(accepted.state, State::Watched(_)));
        drop(client);
        assert_eq!(accepted.read(&mut late).await.unwrap(), 0);
    }

    #[tokio::test]
    async fn a_client_that_takes_nothing_is_waited_for() {
        let (mut accepted, mut client) = pair().await;
        let (all, mut taken) = (vec![7; 32 * 1_024 * 1_024], Vec::new());
        let says = async {
            accepted.write_all(&all).await.unwrap();
            assert!(matches!(accepted.state, State::Watched(_)));
            accepted.shutdown().await.unwrap();
        };
        let reads = async {
            tokio::time::sleep(LATER).await;
            client.read_to_end(&mut taken).await.unwrap();
        };
        tokio::join!(says, reads);
        assert!(taken == all);
    }

    #[tokio::test]
    async fn what_a_client_has_taken_is_known_while_nothing_more_can_be_written() {
        let (mut accepted, mut client) = pair().await;
        assert_eq!(accepted.n_taken(), Some(0));
        let all = vec![7; 1_024 * 1_024];
        let mut n_written = 0;
        while let Ok(written) = tokio::time::timeout(LATER, accepted.write(&all)).await {
            n_written += u64::try_from(written.unwrap()).unwrap();
        }
        let before = accepted.n_taken().unwrap();
        assert!(before < n_written, "{before} of {n_written}");
        // Too little for more to be written.
        let mut some = vec![0; 256 * 1_024];
        client.read_exact(&mut some).await.unwrap();
        tokio::time::sleep(LATER).await;
        let after = accepted.n_taken().unwrap();
        assert!(after > before && after < n_written, "{before}, then {after} of {n_written}");
        drop(client);
    }
}
