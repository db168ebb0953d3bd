//! From a connected stream to a connection that is driven, counted and cut when its endpoint goes down.

use std::{
    future::Future,
    io,
    os::fd::RawFd,
    pin::Pin,
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use h2::{Ping, PingPong, client::Connection};
use nix::sys::socket::{Shutdown, shutdown};
use parking_lot::Mutex;
use tokio::{
    task::AbortHandle,
    time::{Instant, Sleep},
};

use crate::{
    limits,
    metrics::names::Limit,
    pool::{
        Lease, Multiplexed, OpenError, Origin, Pool, Wire, http1, http2,
        link::{Heard, Link},
        places::Place,
    },
};

/// Bytes that an endpoint may send ahead on one stream of HTTP/2, and on a connection: all streams together, so that
/// clients that do not read cannot use up what the others need.
const STREAM_WINDOW_BYTES: u32 = 64 * 1024;
const CONNECTION_WINDOW_BYTES: u32 = STREAM_WINDOW_BYTES * 100;
const _: () = assert!(limits::UPSTREAM_STREAMS == 100, "the window of a connection follows from it");

/// Bytes of one stream that wait to be written before more is read from its client.
const SEND_BUFFER_BYTES: usize = 64 * 1024;

/// Silence after which an endpoint is asked whether an HTTP/2 connection with open streams still lives, and the time it has
/// to answer. Servers of gRPC close connections that ask more often than every five minutes. A connection that gave no
/// answer in a request's time is left anyway, and one whose peer acknowledges nothing ends by itself.
const PING_INTERVAL: Duration = Duration::from_secs(310);
const PING_TIMEOUT: Duration = Duration::from_secs(20);

/// What a connection lives by.
#[derive(Debug)]
pub(super) enum Driver {
    /// The task that drives it.
    Task(AbortHandle),
    /// Its descriptor, which is open as long as it is listed.
    Socket(RawFd),
}

impl Driver {
    /// Ends the connection. Whoever waits for it learns it at once.
    fn cut(&self) {
        match self {
            Self::Task(task) => task.abort(),
            // One that is not connected any more is cut already.
            Self::Socket(socket) => drop(shutdown(*socket, Shutdown::Both)),
        }
    }
}

/// One open connection, counted for the node and for its home.
#[derive(Debug)]
pub(super) struct Counted {
    pool: Weak<Pool>,
    total: Arc<AtomicUsize>,
    home: usize,
    driver: u64,
    _place: Place,
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.total.fetch_sub(1, Ordering::AcqRel);
        let Some(pool) = self.pool.upgrade() else { return };
        pool.open.fetch_sub(1, Ordering::AcqRel);
        if let Some(shard) = pool.shards.get(self.home) {
            shard.open.fetch_sub(1, Ordering::AcqRel);
        }
        pool.drivers.lock().remove(&self.driver);
    }
}

impl Pool {
    pub(super) async fn open_http1<F>(
        self: &Arc<Self>,
        home: usize,
        place: Option<Place>,
        connect: F,
    ) -> Result<Lease, OpenError>
    where
        F: Future<Output = Result<Link, OpenError>>,
    {
        let counted = self.count(home, place)?;
        let link = connect.await?;
        self.drivers.lock().insert(counted.driver, Driver::Socket(link.socket()));
        self.watch();
        let connection = Box::new(http1::Connection::new(counted, link));
        Ok(Lease { pool: Arc::clone(self), home, wire: Wire::Http1(connection), origin: Origin::Opened })
    }

    pub(super) async fn open_http2<F>(
        self: &Arc<Self>,
        home: usize,
        place: Option<Place>,
        connect: F,
    ) -> Result<Lease, OpenError>
    where
        F: Future<Output = Result<Link, OpenError>>,
    {
        let counted = self.count(home, place)?;
        let link = connect.await?;
        let (link, n_reads) = Heard::new(link);
        let (sender, connection) = h2::client::Builder::new()
            .initial_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .max_header_list_size(u32::try_from(limits::HEAD_BYTES).unwrap_or(u32::MAX))
            .initial_max_send_streams(limits::UPSTREAM_STREAMS)
            .max_send_buffer_size(SEND_BUFFER_BYTES)
            .enable_push(false)
            .handshake(link)
            .await
            .map_err(|cause| OpenError::Io(io::Error::other(cause)))?;
        let multiplexed = Arc::new(Multiplexed {
            sender: sender.clone(),
            is_closed: AtomicBool::new(false),
            is_unaccepted: AtomicBool::new(false),
            streams: AtomicUsize::new(1),
            used: Mutex::new(self.shared.clock.now()),
            bound: AtomicUsize::new(limits::UPSTREAM_STREAMS),
        });
        let connection = Driven::new(connection, &multiplexed, n_reads);
        self.drive(counted, connection);
        if let Some(shard) = self.shards.get(home) {
            shard.connections.lock().shared.push(Arc::clone(&multiplexed));
        }
        Ok(Lease {
            pool: Arc::clone(self),
            home,
            wire: Wire::Http2(sender, multiplexed),
            origin: Origin::Opened,
        })
    }

    /// Takes a place for one more connection, unless it has one.
    fn count(self: &Arc<Self>, home: usize, place: Option<Place>) -> Result<Counted, OpenError> {
        if self.total.fetch_add(1, Ordering::AcqRel) >= limits::UPSTREAM_CONNECTIONS {
            self.total.fetch_sub(1, Ordering::AcqRel);
            self.shared.families.limit(Limit::UpstreamConnections);
            return Err(OpenError::Full);
        }
        let place = match place {
            Some(place) => place,
            None => self.shared.place().map_err(OpenError::Io).inspect_err(|_| {
                self.total.fetch_sub(1, Ordering::AcqRel);
            })?,
        };
        self.open.fetch_add(1, Ordering::AcqRel);
        if let Some(shard) = self.shards.get(home) {
            shard.open.fetch_add(1, Ordering::AcqRel);
        }
        let driver = self.next_driver.fetch_add(1, Ordering::Relaxed);
        let (pool, total) = (Arc::downgrade(self), Arc::clone(&self.total));
        Ok(Counted { pool, total, home, driver, _place: place })
    }

    /// Runs a connection on this worker until it ends, or until the endpoint goes down.
    fn drive<C>(self: &Arc<Self>, counted: Counted, connection: C)
    where
        C: Future<Output = Result<(), h2::Error>> + Send + 'static,
    {
        let driver = counted.driver;
        let mut drivers = self.drivers.lock();
        let task = self.shared.tasks.spawn("upstream connection", async move {
            let counted = counted;
            if let Err(cause) = connection.await {
                tracing::debug!(%cause, "a connection to an endpoint broke off");
            }
            drop(counted);
        });
        // The lock is held since before the task began, so its entry is there when it removes it.
        drivers.insert(driver, Driver::Task(task.abort_handle()));
        drop(drivers);
        self.watch();
    }

    /// Makes sure that somebody watches the endpoint. One watcher for all connections: a wait in every connection would
    /// take the endpoint's lock whenever a byte arrives.
    fn watch(self: &Arc<Self>) {
        let mut watcher = self.watcher.lock();
        if watcher.as_ref().is_some_and(|task| !task.is_finished()) {
            return;
        }
        let (endpoint, pool) = (Arc::clone(&self.endpoint), Arc::downgrade(self));
        let task = self.shared.tasks.spawn("endpoint watcher", async move {
            endpoint.until_down().await;
            if let Some(pool) = pool.upgrade() {
                pool.cut();
            }
        });
        *watcher = Some(task.abort_handle());
    }

    /// Cuts all connections.
    fn cut(&self) {
        // From now on a new connection gets a new watcher.
        *self.watcher.lock() = None;
        for (home, shard) in self.shards.iter().enumerate() {
            let mut connections = shard.connections.lock();
            self.shared.kept.remove(self.worker_of(home), connections.idle.len());
            connections.idle.clear();
            connections.shared.clear();
        }
        // The list is held meanwhile, so that no descriptor on it is closed and becomes another's. Cutting ends nothing in
        // this place: tasks are woken, and sockets are closed by whoever leases them.
        self.drivers.lock().values().for_each(Driver::cut);
    }
}

/// A connection of HTTP/2 that tells its pool what it can carry, and asks a silent endpoint whether it still is there.
struct Driven {
    connection: Connection<Heard, Bytes>,
    told: Weak<Multiplexed>,
    /// How often the endpoint was heard.
    n_reads: Arc<AtomicU64>,
    pings: Option<PingPong>,
    /// When to ask, or when the answer is due.
    next: Pin<Box<Sleep>>,
    presence: Presence,
}

/// Whether an endpoint is still there.
#[derive(Debug, Default)]
struct Presence {
    is_asked: bool,
    /// How often it had been heard at the last look.
    n_reads: u64,
}

impl Presence {
    /// When its time is over: how long it has from now on; none when nobody is there.
    fn look(&mut self, n_reads: u64, ask: impl FnOnce() -> bool) -> Option<Duration> {
        let is_heard = std::mem::replace(&mut self.n_reads, n_reads) != n_reads;
        if self.is_asked {
            // The answer may stand behind much else that it has to say, over a slow link.
            return is_heard.then_some(PING_TIMEOUT);
        }
        self.is_asked = ask();
        Some(if self.is_asked { PING_TIMEOUT } else { PING_INTERVAL })
    }
}

impl Driven {
    fn new(
        mut connection: Connection<Heard, Bytes>,
        multiplexed: &Arc<Multiplexed>,
        n_reads: Arc<AtomicU64>,
    ) -> Self {
        let pings = connection.ping_pong();
        let next = Box::pin(tokio::time::sleep(PING_INTERVAL));
        let told = Arc::downgrade(multiplexed);
        Self { connection, told, n_reads, pings, next, presence: Presence::default() }
    }

    /// Ready when the endpoint does not answer.
    fn poll_silence(&mut self, multiplexed: &Multiplexed, cx: &mut Context<'_>) -> Poll<()> {
        let Some(pings) = &mut self.pings else { return Poll::Pending };
        if self.presence.is_asked && pings.poll_pong(cx).is_ready() {
            self.presence.is_asked = false;
            self.next.as_mut().reset(Instant::now() + PING_INTERVAL);
        }
        while self.next.as_mut().poll(cx).is_ready() {
            // Nobody waits for one without streams: the sweep ends it, or its own end.
            let ask =
                || multiplexed.streams.load(Ordering::Acquire) > 0 && pings.send_ping(Ping::opaque()).is_ok();
            match self.presence.look(self.n_reads.load(Ordering::Relaxed), ask) {
                Some(wait) => self.next.as_mut().reset(Instant::now() + wait),
                None => return Poll::Ready(()),
            }
        }
        Poll::Pending
    }
}

impl Future for Driven {
    type Output = Result<(), h2::Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.get_mut();
        let mut ended = Pin::new(&mut this.connection).poll(cx);
        let Some(multiplexed) = this.told.upgrade() else { return ended };
        if let Poll::Ready(Err(cause)) = &ended
            && http2::is_unaccepted(cause)
        {
            multiplexed.is_unaccepted.store(true, Ordering::Release);
        }
        // Woken by every frame that arrives, so also by the endpoint's settings.
        multiplexed.bound.store(this.connection.max_concurrent_send_streams(), Ordering::Relaxed);
        if ended.is_pending() && this.poll_silence(&multiplexed, cx).is_ready() {
            tracing::debug!("an endpoint does not answer over HTTP/2");
            ended = Poll::Ready(Ok(()));
        }
        ended
    }
}

impl Drop for Driven {
    fn drop(&mut self) {
        if let Some(multiplexed) = self.told.upgrade() {
            multiplexed.is_closed.store(true, Ordering::Release);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_that_says_anything_has_time_to_answer() {
        let mut presence = Presence::default();
        assert_eq!(presence.look(7, || false), Some(PING_INTERVAL));
        assert_eq!(presence.look(7, || true), Some(PING_TIMEOUT));
        assert_eq!(presence.look(8, || true), Some(PING_TIMEOUT));
        assert_eq!(presence.look(8, || true), None);
        presence.is_asked = false;
        assert_eq!(presence.look(8, || true), Some(PING_TIMEOUT));
    }
}
