//! Connections to one endpoint, kept between requests: one shard per worker, a rule for stealing, counts node-wide.
//!
//! A connection belongs to the worker that opened it, its home; it may be used by any worker, and returns to the shard of
//! its home. One of HTTP/2 is driven by a task there, one of HTTP/1.1 by whoever leases it. States of an HTTP/1.1 connection: open and idle in its shard, or leased to one
//! request, or gone. An HTTP/2 connection stands in its shard as long as it lives and carries many leases.
//! A worker without an idle connection takes one from another shard before it opens one, and then opens one of its own in
//! the background, as long as it has less than its share: a request never waits for a connection that exists, and in
//! the long run few requests cross from one core to another.
//! When the endpoint goes down, all its connections are cut, busy ones too: whoever waits for an answer learns it then.

pub mod body;
mod error;
pub mod handshake;
mod http1;
mod http2;
pub mod incoming;
pub mod interim;
pub mod kept;
pub mod link;
pub mod own;
pub mod pace;
pub mod places;
pub mod registry;
pub mod stream;

use std::{
    collections::HashMap,
    future::Future,
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use h2::client::SendRequest;
use http::{Response, request::Parts};
use parking_lot::Mutex;
use tokio::task::AbortHandle;

pub use crate::pool::error::{OpenError, SendError, is_of_node};
use crate::{
    endpoint::Endpoint,
    limits,
    pool::{
        body::RequestBody,
        handshake::Driver,
        http1::Connection,
        incoming::Incoming,
        interim::Interim,
        link::Link,
        places::Place,
        registry::{Client, Key, Manner, Shared},
    },
};

/// What is spoken on a connection.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Protocol {
    /// HTTP/1.1: one request at a time.
    Http1,
    /// HTTP/2: many at a time.
    Http2,
}

/// All connections to one endpoint.
#[derive(Debug)]
pub struct Pool {
    key: Key,
    endpoint: Arc<Endpoint>,
    shared: Shared,
    shards: Box<[Shard]>,
    /// The worker that has the first shard, the next one has the next.
    first_worker: usize,
    open: AtomicUsize,
    /// Connections to the endpoint of all pools that count together.
    total: Arc<AtomicUsize>,
    stolen: AtomicU64,
    /// What every connection lives by, to cut them. Bounded by the cap on connections.
    drivers: Mutex<HashMap<u64, Driver>>,
    next_driver: AtomicU64,
    watcher: Mutex<Option<AbortHandle>>,
}

/// What belongs to one worker. Two cache lines apart from the next.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Shard {
    connections: Mutex<Connections>,
    /// Connections whose home this is.
    open: AtomicUsize,
    /// Held while an HTTP/2 connection is opened, so that a burst opens one and not hundreds.
    opening: tokio::sync::Mutex<()>,
    /// Counts failed openings in steps of two, so that those who waited for one do not repeat it one by one; the lowest
    /// bit says what failed last.
    failures: AtomicU64,
    /// Whether a connection is being opened in the background.
    growing: AtomicBool,
}

/// The bit of [`Shard::failures`] for a handshake.
const HANDSHAKE_FAILED: u64 = 1;

#[derive(Debug, Default)]
struct Connections {
    /// Idle HTTP/1.1 connections, the last used at the end.
    idle: Vec<Idle>,
    /// HTTP/2 connections.
    shared: Vec<Arc<Multiplexed>>,
}

#[derive(Debug)]
struct Idle {
    connection: Box<Connection>,
    since: Instant,
}

#[derive(Debug)]
struct Multiplexed {
    sender: SendRequest<Bytes>,
    /// It ended, or takes no more streams.
    is_closed: AtomicBool,
    /// It ended because the endpoint did not let us in.
    is_unaccepted: AtomicBool,
    streams: AtomicUsize,
    used: Mutex<Instant>,
    /// Streams that the endpoint allows at once, as it said last.
    bound: AtomicUsize,
}

/// The use of a connection by one request.
#[derive(Debug)]
pub struct Lease {
    pool: Arc<Pool>,
    home: usize,
    wire: Wire,
    origin: Origin,
}

#[derive(Debug)]
enum Wire {
    Http1(Box<Connection>),
    Http2(SendRequest<Bytes>, Arc<Multiplexed>),
    /// Given back, or never to be used again.
    None,
}

/// Where a leased connection came from.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Origin {
    /// Opened for this request.
    Opened,
    /// Used before.
    Reused,
    /// Used before, by another worker.
    Stolen,
}

impl Pool {
    pub(crate) fn new(key: Key, endpoint: Arc<Endpoint>, shared: Shared) -> Self {
        let shards = (0..shared.n_shards).map(|_| Shard::default()).collect();
        Self {
            key,
            endpoint,
            shared,
            shards,
            first_worker: 0,
            open: AtomicUsize::new(0),
            total: Arc::default(),
            stolen: AtomicU64::new(0),
            drivers: Mutex::default(),
            next_driver: AtomicU64::new(0),
            watcher: Mutex::default(),
        }
    }

    /// The pool of one client: with one shard, that of the worker which serves it first, because few others do.
    fn of_client(&self, key: Key, worker: usize) -> Self {
        let shared = Shared { n_shards: 1, ..self.shared.clone() };
        let mut pool = Self::new(key, Arc::clone(&self.endpoint), shared);
        pool.total = Arc::clone(&self.total);
        pool.first_worker = worker % self.shared.n_shards;
        pool
    }

    /// Whether it is the pool of one client beside this one.
    pub(super) fn is_beside(&self, pool: &Self) -> bool {
        let manner = Manner { client: None, ..self.key.manner };
        Arc::ptr_eq(&self.total, &pool.total) && manner == pool.key.manner
    }

    /// For whom its connections are opened; none serves all clients.
    pub const fn client(&self) -> Option<Client> {
        self.key.manner.client
    }

    /// The endpoint.
    pub const fn endpoint(&self) -> &Arc<Endpoint> {
        &self.endpoint
    }

    /// Connections that are open, from all workers.
    pub fn open_count(&self) -> usize {
        self.open.load(Ordering::Relaxed)
    }

    /// Connections that are idle, of all workers.
    pub fn idle_count(&self) -> usize {
        let idle = |connections: &Connections| {
            let unused = |c: &&Arc<Multiplexed>| c.streams.load(Ordering::Relaxed) == 0;
            connections.idle.len() + connections.shared.iter().filter(unused).count()
        };
        self.shards.iter().map(|shard| idle(&shard.connections.lock())).sum()
    }

    /// Leases of connections of other workers, ever.
    pub fn stolen_count(&self) -> u64 {
        self.stolen.load(Ordering::Relaxed)
    }

    /// A connection that exists: of this worker, else of another.
    pub fn reuse(self: &Arc<Self>, worker: usize) -> Option<Lease> {
        let n = self.shards.len();
        let home = worker % n;
        if let Some(lease) = self.take(home, Origin::Reused) {
            return Some(lease);
        }
        if self.open.load(Ordering::Relaxed) == 0 {
            return None;
        }
        let stolen = (1..n).find_map(|step| self.take((home + step) % n, Origin::Stolen))?;
        self.stolen.fetch_add(1, Ordering::Relaxed);
        Some(stolen)
    }

    /// A new connection over the link that `connect` yields, opened by this worker. It has the given place, or takes one.
    pub async fn open<F>(
        self: &Arc<Self>,
        worker: usize,
        place: Option<Place>,
        connect: F,
    ) -> Result<Lease, OpenError>
    where
        F: Future<Output = Result<Link, OpenError>>,
    {
        let home = worker % self.shards.len();
        let Some(shard) = self.shards.get(home) else { return Err(OpenError::Full) };
        match self.key.manner.protocol {
            Protocol::Http1 => {
                self.open_http1(home, place, connect).await.inspect_err(|cause| self.note(home, cause))
            }
            Protocol::Http2 => {
                let failures = shard.failures.load(Ordering::Acquire);
                let _turn = shard.opening.lock().await;
                if let Some(lease) = self.take(home, Origin::Reused) {
                    return Ok(lease);
                }
                let now = shard.failures.load(Ordering::Acquire);
                if now != failures {
                    let cause = io::Error::from(io::ErrorKind::ConnectionRefused);
                    let was_handshake = now & HANDSHAKE_FAILED != 0;
                    return Err(if was_handshake {
                        OpenError::Handshake(cause)
                    } else {
                        OpenError::Io(cause)
                    });
                }
                let opened = self.open_http2(home, place, connect).await;
                if let Err(cause) = &opened {
                    self.note(home, cause);
                    if cause.is_of_node() {
                        // Others may find room, and it says nothing about the endpoint.
                        return opened;
                    }
                    let kind = u64::from(matches!(cause, OpenError::Handshake(_)));
                    // Whoever has the turn is the only writer.
                    shard.failures.store(((now | HANDSHAKE_FAILED) + 1) | kind, Ordering::Release);
                }
                opened
            }
        }
    }

    /// Whether this worker should open a connection of its own because it lives on others'. One at a time: the answer
    /// is yes once, until [`Pool::grown`].
    pub fn should_grow(&self, worker: usize) -> bool {
        let n = self.shards.len();
        let Some(shard) = self.shards.get(worker % n) else { return false };
        let own = shard.open.load(Ordering::Relaxed);
        let few = own * n < self.open.load(Ordering::Relaxed);
        few && !shard.growing.swap(true, Ordering::AcqRel)
    }

    /// The background opening that [`Pool::should_grow`] asked for has ended.
    pub fn grown(&self, worker: usize) {
        if let Some(shard) = self.shards.get(worker % self.shards.len()) {
            shard.growing.store(false, Ordering::Release);
        }
    }

    fn take(self: &Arc<Self>, home: usize, origin: Origin) -> Option<Lease> {
        let mut connections = self.shards.get(home)?.connections.lock();
        let wire = match self.key.manner.protocol {
            Protocol::Http1 => {
                let n_before = connections.idle.len();
                let popped = connections.pop();
                self.shared.kept.remove(self.worker_of(home), n_before - connections.idle.len());
                Wire::Http1(popped?)
            }
            Protocol::Http2 => {
                let connection = connections.share()?;
                Wire::Http2(connection.sender.clone(), connection)
            }
        };
        drop(connections);
        Some(Lease { pool: Arc::clone(self), home, wire, origin })
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        if let Some(watcher) = self.watcher.get_mut().take() {
            watcher.abort();
        }
        for (worker, shard) in (self.first_worker..).zip(&mut self.shards) {
            self.shared.kept.remove(worker, shard.connections.get_mut().idle.len());
        }
    }
}

impl Connections {
    /// The connection that was used last and is still good.
    fn pop(&mut self) -> Option<Box<Connection>> {
        while let Some(mut idle) = self.idle.pop() {
            if idle.connection.is_idle() {
                return Some(idle.connection);
            }
        }
        None
    }

    /// A connection with room for a stream.
    fn share(&mut self) -> Option<Arc<Multiplexed>> {
        self.shared.retain(|connection| !connection.is_closed());
        // The endpoint's own bound may be lower than ours.
        let bound = |c: &Multiplexed| c.bound.load(Ordering::Relaxed).min(limits::UPSTREAM_STREAMS);
        let room = |c: &&Arc<Multiplexed>| c.streams.load(Ordering::Acquire) < bound(c);
        let connection = self.shared.iter().find(room)?;
        connection.streams.fetch_add(1, Ordering::AcqRel);
        Some(Arc::clone(connection))
    }
}

impl Multiplexed {
    fn is_closed(&self) -> bool {
        self.is_closed.load(Ordering::Acquire)
    }

    /// Since when it carries no stream.
    fn idle_since(&self) -> Option<Instant> {
        (self.streams.load(Ordering::Acquire) == 0).then(|| *self.used.lock())
    }
}

impl Lease {
    /// Where the connection came from.
    pub const fn origin(&self) -> Origin {
        self.origin
    }

    /// The endpoint it leads to.
    pub fn endpoint(&self) -> &Arc<Endpoint> {
        &self.pool.endpoint
    }

    /// What is spoken on it.
    pub fn protocol(&self) -> Protocol {
        self.pool.key.manner.protocol
    }

    /// Sends a request, and waits for the head of the response; what comes before it goes to `interim`. It is given up when
    /// only the endpoint has been waited for, for as long as `bound`. The head stays with whoever may have to send it again,
    /// the body is taken from there when it is time.
    pub async fn send(
        &mut self,
        head: &Parts,
        body: &mut RequestBody,
        interim: &dyn Interim,
        bound: Option<Duration>,
    ) -> Result<Response<Incoming>, SendError> {
        let sent = match &mut self.wire {
            Wire::Http1(_) => return self.send_http1(head, body, interim, bound).await,
            Wire::Http2(sender, connection) => {
                let sent = http2::send(sender, head, body, interim, bound).await;
                // The codec forgets why writing failed.
                let is_unaccepted = connection.is_unaccepted.load(Ordering::Acquire);
                sent.map_err(|failed| if is_unaccepted { http2::Failed::unaccepted() } else { failed })
            }
            Wire::None => return Err(SendError::Unsent),
        };
        sent.map(|response| response.map(Incoming::from)).map_err(|failed| {
            // What ended one stream says nothing about the others.
            if failed.is_of_connection {
                self.withdraw();
            }
            failed.error
        })
    }

    /// The connection goes with the response, and comes back in [`Lease::finish`].
    async fn send_http1(
        &mut self,
        head: &Parts,
        body: &mut RequestBody,
        interim: &dyn Interim,
        bound: Option<Duration>,
    ) -> Result<Response<Incoming>, SendError> {
        let Wire::Http1(mut connection) = std::mem::replace(&mut self.wire, Wire::None) else {
            return Err(SendError::Unsent);
        };
        // A moment may have passed since it was taken or opened.
        if !connection.is_idle() {
            return Err(SendError::Unsent);
        }
        Ok(http1::send(connection, head, body, interim, bound).await?.map(Incoming::from))
    }

    /// A tunnel over this connection, without a request; none where a connection carries many.
    pub fn raw(&mut self) -> Option<Incoming> {
        match std::mem::replace(&mut self.wire, Wire::None) {
            Wire::Http1(connection) => Some(Incoming::from(http1::Receiving::raw(connection))),
            wire @ (Wire::Http2(..) | Wire::None) => {
                self.wire = wire;
                None
            }
        }
    }

    /// Nobody else shall begin with a connection that failed, or that gave no answer; what is under way on it may go on.
    fn withdraw(&self) {
        if let Wire::Http2(_, connection) = &self.wire
            && let Some(shard) = self.pool.shards.get(self.home)
        {
            shard.connections.lock().shared.retain(|shared| !Arc::ptr_eq(shared, connection));
        }
    }

    /// The connection was not used after all.
    pub fn give_back(mut self) {
        match std::mem::replace(&mut self.wire, Wire::None) {
            Wire::Http1(connection) => self.pool.put(self.home, connection),
            Wire::Http2(_, connection) => self.pool.leave(&connection),
            Wire::None => {}
        }
    }

    /// The response has been read to its end: the connection can serve the next request.
    pub fn finish(&mut self, incoming: &mut Incoming) {
        match std::mem::replace(&mut self.wire, Wire::None) {
            // Nothing was received over it.
            Wire::Http1(connection) => drop(connection),
            // It went with the response.
            Wire::None => {
                if let Some(connection) = incoming.take() {
                    self.pool.put(self.home, connection);
                }
            }
            Wire::Http2(_, connection) => self.pool.leave(&connection),
        }
    }
}

impl Pool {
    fn leave(&self, connection: &Multiplexed) {
        if connection.streams.fetch_sub(1, Ordering::AcqRel) == 1 {
            *connection.used.lock() = self.shared.clock.now();
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        // An HTTP/1.1 connection in the middle of a response is of no use to anybody: dropping its handle closes it.
        if let Wire::Http2(_, connection) = &self.wire {
            self.pool.leave(connection);
        }
    }
}

#[cfg(test)]
mod tests;
