//! Idle connections to endpoints: how many a worker keeps of all endpoints together, and which go when there are too many.
//!
//! Each holds a descriptor that a client, or another endpoint, may need more. At its bound, and where connections of all
//! workers have no place any more, a worker gives up the oldest ones of all its pools, some at a time, because looking for
//! them takes a look at every pool.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::sync::Notify;

use crate::{
    limits,
    metrics::names::Limit,
    pool::{Idle, OpenError, Pool, Shard, http1::Connection},
};

/// The part of its idle connections that a worker gives up at once.
const PART: usize = 8;

/// Counts idle connections of HTTP/1.1, of all endpoints; those of HTTP/2 are few.
#[derive(Clone, Debug)]
pub struct Kept {
    /// One for each worker.
    workers: Arc<[OfWorker]>,
    bound: usize,
}

/// Two cache lines apart, because processors fetch lines in pairs.
#[derive(Debug, Default)]
#[repr(align(128))]
struct OfWorker {
    n_idle: AtomicUsize,
    crowded: Notify,
}

impl Kept {
    /// So many for each of so many workers.
    pub fn new(n_workers: usize, bound: usize) -> Self {
        let workers = (0..n_workers.max(1)).map(|_| OfWorker::default()).collect();
        Self { workers, bound: bound.max(PART) }
    }

    /// Resolves when a worker should give some up.
    pub async fn crowded(&self, worker: usize) {
        match self.workers.get(worker) {
            Some(worker) => worker.crowded.notified().await,
            None => std::future::pending().await,
        }
    }

    /// Idle connections of a worker.
    pub(super) fn count(&self, worker: usize) -> usize {
        self.workers.get(worker).map_or(0, |worker| worker.n_idle.load(Ordering::Relaxed))
    }

    fn add(&self, worker: usize) {
        if let Some(worker) = self.workers.get(worker) {
            worker.n_idle.fetch_add(1, Ordering::Relaxed);
        }
    }

    pub(super) fn remove(&self, worker: usize, n: usize) {
        if let Some(worker) = self.workers.get(worker)
            && n > 0
        {
            worker.n_idle.fetch_sub(n, Ordering::Relaxed);
        }
    }

    pub(super) fn relieve_all(&self) {
        for worker in &*self.workers {
            worker.crowded.notify_one();
        }
    }

    fn relieve(&self, worker: usize) {
        if let Some(worker) = self.workers.get(worker) {
            worker.crowded.notify_one();
        }
    }
}

impl Pool {
    /// The worker that has a shard.
    pub(super) const fn worker_of(&self, home: usize) -> usize {
        self.first_worker + home
    }

    /// The shard that a worker has, where it has one.
    fn shard_of(&self, worker: usize) -> Option<&Shard> {
        self.shards.get(worker.checked_sub(self.first_worker)?)
    }

    /// Keeps a connection for the next request, unless there are far too many.
    pub(super) fn put(&self, home: usize, connection: Box<Connection>) {
        let Some(shard) = self.shards.get(home) else { return };
        let kept = &self.shared.kept;
        let worker = self.worker_of(home);
        let n_idle = kept.count(worker);
        if n_idle >= kept.bound {
            self.shared.families.limit(Limit::IdleConnections);
            kept.relieve(worker);
            if n_idle >= kept.bound + kept.bound / PART {
                // Until the worker comes to it.
                return;
            }
        }
        let since = self.shared.clock.now();
        let mut connections = shard.connections.lock();
        if connections.idle.len() >= limits::POOL_IDLE_CONNECTIONS {
            // The oldest one goes: it is the likeliest to be closed by the endpoint soon.
            drop(connections.idle.remove(0));
            self.shared.families.limit(Limit::PoolIdle);
        } else {
            kept.add(worker);
        }
        connections.idle.push(Idle { connection, since });
    }

    /// Closes what has been idle in this worker's shard for longer than `limit`.
    pub fn sweep(&self, worker: usize, limit: Duration) {
        let Some(shard) = self.shard_of(worker) else { return };
        let now = self.shared.clock.now();
        let mut connections = shard.connections.lock();
        let n_before = connections.idle.len();
        connections.idle.retain_mut(|idle| now.duration_since(idle.since) < limit && idle.connection.rest());
        self.shared.kept.remove(worker, n_before - connections.idle.len());
        connections.shared.retain(|connection| {
            let is_used = |since: Instant| now.duration_since(since) < limit;
            !connection.is_closed() && connection.idle_since().is_none_or(is_used)
        });
    }

    /// Since when this worker's connections are idle.
    pub(super) fn idle_since(&self, worker: usize, all: &mut Vec<Instant>) {
        if let Some(shard) = self.shard_of(worker) {
            let connections = shard.connections.lock();
            all.extend(connections.idle.iter().map(|idle| idle.since));
            all.extend(connections.shared.iter().filter_map(|connection| connection.idle_since()));
        }
    }

    /// Closes those that are idle since `last` or longer, so many at most; how many that were.
    pub(super) fn give_up(&self, worker: usize, last: Instant, most: usize) -> usize {
        let Some(shard) = self.shard_of(worker) else { return 0 };
        let mut connections = shard.connections.lock();
        // The oldest ones are in front.
        let n = connections.idle.iter().take(most).take_while(|idle| idle.since <= last).count();
        connections.idle.drain(..n);
        self.shared.kept.remove(worker, n);
        let mut n_left = most - n;
        connections.shared.retain(|connection| {
            let goes = n_left > 0 && connection.idle_since().is_some_and(|since| since <= last);
            n_left -= usize::from(goes);
            !goes
        });
        most - n_left
    }

    /// Where this node had nothing left for a connection, idle ones are in the way.
    pub(super) fn note(&self, home: usize, cause: &OpenError) {
        if cause.is_of_node() {
            self.shared.kept.relieve(self.worker_of(home));
        }
    }
}

/// The oldest ones of these that go at once: how many, and since when the youngest of them is idle.
pub(super) fn oldest(mut all: Vec<Instant>) -> Option<(usize, Instant)> {
    let n = all.len().div_ceil(PART);
    let (_, last, _) = (n > 0).then(|| all.select_nth_unstable(n - 1))?;
    Some((n, *last))
}
