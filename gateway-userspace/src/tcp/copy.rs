//! Bytes both ways: each direction waits for the slower side and ends by itself, and a connection on which nothing moves
//! ends.

use std::{
    io,
    os::fd::{AsRawFd, RawFd},
    pin::Pin,
    sync::atomic::{AtomicU64, Ordering},
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};

use crate::net::sys;

/// Bytes that wait in each direction of one connection.
const COPY_BYTES: usize = 16 * 1024;

/// Looks at a connection in the time after which it counts as idle: it ends that much later at most.
const LOOKS: u32 = 4;

/// How a connection ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Copied {
    /// By both sides.
    Ended,
    /// Nothing moved for too long.
    Idle,
}

/// Bytes that were taken from each side.
#[derive(Debug, Default)]
pub(super) struct Moved {
    from_client: AtomicU64,
    from_endpoint: AtomicU64,
    /// Counts writes too: a side that reads slowly is not idle. One that reads so slowly that nothing more can be written takes
    /// what was, as its socket says.
    steps: AtomicU64,
}

impl Moved {
    /// From the client, and from the endpoint.
    pub(super) fn counts(&self) -> [u64; 2] {
        [&self.from_client, &self.from_endpoint].map(|count| count.load(Ordering::Relaxed))
    }
}

/// Copies until both sides have ended, or nothing moves for `idle`.
pub(super) async fn both_ways(
    client: &mut TcpStream,
    endpoint: &mut TcpStream,
    idle: Duration,
    moved: &Moved,
) -> io::Result<Copied> {
    // Of streams that live as long as this.
    let sockets = [&*client, &*endpoint].map(AsRawFd::as_raw_fd);
    let mut client = Metered { inner: client, read: &moved.from_client, steps: &moved.steps };
    let mut endpoint = Metered { inner: endpoint, read: &moved.from_endpoint, steps: &moved.steps };
    tokio::select! {
        copied = tokio::io::copy_bidirectional_with_sizes(&mut client, &mut endpoint, COPY_BYTES, COPY_BYTES) => {
            copied.map(|_| Copied::Ended)
        }
        () = until_idle(moved, sockets, idle) => Ok(Copied::Idle),
    }
}

async fn until_idle(moved: &Moved, sockets: [RawFd; 2], idle: Duration) {
    let look = || (moved.steps.load(Ordering::Relaxed), sockets.map(|socket| sys::queued(&socket)));
    let (mut seen, mut n_still) = (look(), 0);
    while n_still < LOOKS {
        tokio::time::sleep(idle / LOOKS).await;
        let now = look();
        n_still = if now == seen { n_still + 1 } else { 0 };
        seen = now;
    }
}

/// A stream that counts what passes.
struct Metered<'m, S> {
    inner: &'m mut S,
    read: &'m AtomicU64,
    steps: &'m AtomicU64,
}

impl<S: AsyncRead + Unpin> AsyncRead for Metered<'_, S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        let polled = Pin::new(&mut *this.inner).poll_read(cx, buf);
        let n = buf.filled().len().saturating_sub(before);
        if n > 0 {
            this.read.fetch_add(u64::try_from(n).unwrap_or(u64::MAX), Ordering::Relaxed);
            this.steps.fetch_add(1, Ordering::Relaxed);
        }
        polled
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Metered<'_, S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let polled = Pin::new(&mut *this.inner).poll_write(cx, buf);
        if polled.is_ready() {
            this.steps.fetch_add(1, Ordering::Relaxed);
        }
        polled
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.get_mut().inner).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.get_mut().inner).poll_shutdown(cx)
    }
}
