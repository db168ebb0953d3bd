//! Bytes both ways: each direction waits for the slower side and ends by itself, and a connection on which nothing moves
//! ends.

use std::{
    io,
    os::fd::{AsRawFd, RawFd},
    pin::pin,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::TcpStream,
    time::Instant,
};

use crate::{limits, net::sys};

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

/// Who broke a connection off.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Broken {
    Client,
    Endpoint,
}

/// Copies until both sides have ended, or nothing moves for `idle`. An endpoint that takes no more may still have said
/// something: that goes on to its end.
pub(super) async fn both_ways(
    client: &mut TcpStream,
    endpoint: &mut TcpStream,
    idle: Duration,
    moved: &Moved,
) -> Result<Copied, Broken> {
    // Of streams that live as long as this.
    let sockets = [&*client, &*endpoint].map(AsRawFd::as_raw_fd);
    let (mut from_client, mut to_client) = client.split();
    let (mut from_endpoint, mut to_endpoint) = endpoint.split();
    let mut up = pin!(one_way(&mut from_client, &mut to_endpoint, &moved.from_client, &moved.steps));
    let mut down = pin!(one_way(&mut from_endpoint, &mut to_client, &moved.from_endpoint, &moved.steps));
    let mut idle = pin!(until_idle(moved, sockets, idle));
    let (mut is_up, mut is_down) = (true, true);
    while is_up || is_down {
        tokio::select! {
            ended = &mut up, if is_up => match ended {
                Ok(()) => is_up = false,
                Err(Part::Read(cause)) => return Err(broken(&cause, Broken::Client)),
                Err(Part::Write(cause)) => {
                    tracing::debug!(%cause, "an endpoint takes no more");
                    is_up = false;
                }
            },
            ended = &mut down, if is_down => match ended {
                Ok(()) => is_down = false,
                Err(Part::Read(cause)) => return Err(broken(&cause, Broken::Endpoint)),
                Err(Part::Write(cause)) => return Err(broken(&cause, Broken::Client)),
            },
            () = &mut idle => return Ok(Copied::Idle),
        }
    }
    Ok(Copied::Ended)
}

fn broken(cause: &io::Error, by: Broken) -> Broken {
    tracing::debug!(%cause, ?by, "a forwarded connection broke off");
    by
}

/// Which part of a copy failed.
enum Part {
    Read(io::Error),
    Write(io::Error),
}

/// Copies one direction to its end, which it passes on.
async fn one_way(
    from: &mut (impl AsyncRead + Unpin),
    to: &mut (impl AsyncWrite + Unpin),
    n_read: &AtomicU64,
    steps: &AtomicU64,
) -> Result<(), Part> {
    let mut room = vec![0; COPY_BYTES];
    loop {
        let n = from.read(&mut room).await.map_err(Part::Read)?;
        let mut rest = room.get(..n).unwrap_or_default();
        if rest.is_empty() {
            return to.shutdown().await.map_err(Part::Write);
        }
        n_read.fetch_add(u64::try_from(n).unwrap_or(u64::MAX), Ordering::Relaxed);
        steps.fetch_add(1, Ordering::Relaxed);
        while !rest.is_empty() {
            let n = to.write(rest).await.map_err(Part::Write)?;
            if n == 0 {
                return Err(Part::Write(io::ErrorKind::WriteZero.into()));
            }
            steps.fetch_add(1, Ordering::Relaxed);
            rest = rest.get(n..).unwrap_or_default();
        }
    }
}

/// Waits until a client has got what was written to it. It may still be sending: the kernel resets a connection that is closed
/// before everything was read, and takes back what the client has not got.
pub(super) async fn delivered(client: &TcpStream) {
    let (mut queued, mut n_read) = (sys::queued(client), 0);
    let mut since = Instant::now();
    while queued.is_some_and(|queued| queued > 0) && since.elapsed() < limits::LINGER {
        while n_read < limits::LINGER_BYTES {
            match client.try_read(&mut [0; 4 * 1024]) {
                Ok(n @ 1..) => n_read += n,
                Err(cause) if cause.kind() != io::ErrorKind::WouldBlock => return,
                Ok(_) | Err(_) => break,
            }
        }
        tokio::time::sleep(limits::LINGER_LOOK).await;
        let now = sys::queued(client);
        if now != queued {
            (queued, since) = (now, Instant::now());
        }
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
