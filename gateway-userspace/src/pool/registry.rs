//! All pools, by what makes two connections exchangeable: they outlive a change of the configuration that keeps it.

use std::{
    collections::{BTreeMap, HashMap},
    io,
    net::SocketAddr,
    sync::{Arc, Weak},
    time::Duration,
};

use parking_lot::Mutex;

use crate::{
    clock::Clock,
    drain::Tasks,
    endpoint::{Endpoint, EndpointId},
    limits::Share,
    metrics::{
        limit::Limit,
        names::{Families, PoolSample},
    },
    pool::{
        Pool, Protocol,
        kept::{self, Kept},
        places::{Place, Places},
    },
};

/// What makes two connections exchangeable.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct Key {
    /// Service and address.
    pub endpoint: EndpointId,
    /// What is spoken, and over what.
    pub manner: Manner,
}

/// How a connection is spoken on.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct Manner {
    /// What is spoken.
    pub protocol: Protocol,
    /// A digest of everything that secures it; none in plain text.
    pub security: Option<[u8; 32]>,
    /// For whom it was opened; none serves all clients.
    pub client: Option<Client>,
}

/// Both ends of a client's connection, which an endpoint is told.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct Client {
    /// The client.
    pub source: SocketAddr,
    /// What it connected to.
    pub destination: SocketAddr,
}

impl From<Protocol> for Manner {
    /// In plain text.
    fn from(protocol: Protocol) -> Self {
        Self { protocol, security: None, client: None }
    }
}

/// What all pools share.
#[derive(Clone, Debug)]
pub struct Shared {
    /// Number of workers.
    pub n_shards: usize,
    /// Runs the connections.
    pub tasks: Tasks,
    /// Ages idle connections.
    pub clock: Clock,
    /// Counts bounds that are reached.
    pub families: Families,
    /// Counts idle connections.
    pub kept: Kept,
    /// Counts connections, idle or not.
    pub places: Places,
}

impl Shared {
    /// For so many workers, each of which has this share.
    pub fn new((n_shards, share): (usize, Share), tasks: &Tasks, clock: &Clock, families: &Families) -> Self {
        let n_shards = n_shards.max(1);
        Self {
            n_shards,
            tasks: tasks.clone(),
            clock: clock.clone(),
            families: families.clone(),
            kept: Kept::new(n_shards, share.idle_upstream()),
            places: Places::new(n_shards.saturating_mul(share.upstream)),
        }
    }

    /// A place for a connection, whatever endpoint it leads to. When there is none, the oldest idle ones make room for whoever
    /// comes next.
    ///
    /// # Errors
    /// As of a process that has no descriptor left.
    pub(super) fn place(&self) -> io::Result<Place> {
        self.places.take().inspect_err(|_| {
            self.families.limit(Limit::AllUpstreamConnections);
            self.kept.relieve_all();
        })
    }
}

/// All pools.
#[derive(Debug)]
pub struct Pools {
    shared: Shared,
    /// A pool lives as long as a state or a request holds it.
    pools: Mutex<HashMap<Key, Weak<Pool>>>,
}

impl Pools {
    /// None yet.
    pub fn new(shared: Shared) -> Self {
        Self { shared, pools: Mutex::default() }
    }

    /// The pool of an endpoint: the one there is, or a new one.
    pub fn resolve(&self, endpoint: &Arc<Endpoint>, manner: Manner) -> Arc<Pool> {
        let key = Key { endpoint: endpoint.id().clone(), manner };
        let mut pools = self.pools.lock();
        let there = pools.get(&key).and_then(Weak::upgrade);
        // The registry of endpoints may have forgotten one and made another of the same name since.
        if let Some(pool) = there.filter(|pool| Arc::ptr_eq(pool.endpoint(), endpoint)) {
            return pool;
        }
        let pool = Arc::new(Pool::new(key.clone(), Arc::clone(endpoint), self.shared.clone()));
        pools.insert(key, Arc::downgrade(&pool));
        pool
    }

    /// The pool of one client beside that of all: its connections count towards the same cap. A new one is in the care of this
    /// worker.
    pub(super) fn resolve_own(&self, pool: &Arc<Pool>, client: Client, worker: usize) -> Arc<Pool> {
        let key = Key { manner: Manner { client: Some(client), ..pool.key.manner }, ..pool.key.clone() };
        let mut pools = self.pools.lock();
        // A load balancer may have several connections for one client. What is there may also be of an earlier state.
        let there = pools.get(&key).and_then(Weak::upgrade);
        if let Some(own) = there.filter(|own| own.is_beside(pool)) {
            return own;
        }
        let own = Arc::new(pool.of_client(key.clone(), worker));
        pools.insert(key, Arc::downgrade(&own));
        own
    }

    /// Closes connections of this worker that have been idle for longer than `limit`, and forgets pools that are gone.
    pub fn sweep(&self, worker: usize, limit: Duration) {
        for pool in self.live() {
            pool.sweep(worker, limit);
        }
        self.pools.lock().retain(|_, pool| pool.strong_count() > 0);
    }

    /// A place for a connection that is in no pool. When there is none, idle connections make room: those of this worker at
    /// once, those of others as soon as their workers come to it, which is waited for.
    ///
    /// # Errors
    /// As of a process that has no descriptor left.
    pub async fn place(&self, worker: usize) -> io::Result<Place> {
        match self.shared.place() {
            Ok(place) => Ok(place),
            Err(_) => self.room(worker).await,
        }
    }

    /// Like [`Pools::place`], for whoever was already told that there is no room.
    ///
    /// # Errors
    /// As of a process that has no descriptor left.
    pub async fn room(&self, worker: usize) -> io::Result<Place> {
        self.make_room(worker);
        self.shared.places.wait().await
    }

    /// Resolves when [`Pools::relieve`] should be called.
    pub async fn crowded(&self, worker: usize) {
        self.shared.kept.crowded(worker).await;
    }

    /// Closes the oldest idle connections of this worker, whatever endpoints they lead to and whatever is spoken on them;
    /// whether there were any.
    pub fn relieve(&self, worker: usize) -> bool {
        let pools = self.live();
        let mut all = Vec::new();
        for pool in &pools {
            pool.idle_since(worker, &mut all);
        }
        let Some((mut n_left, last)) = kept::oldest(all) else { return false };
        for pool in pools {
            n_left -= pool.give_up(worker, last, n_left);
        }
        true
    }

    /// Like [`Pools::relieve`], at once and for whoever has no place: looks at nothing where no connection of HTTP/1.1 is idle.
    pub(super) fn make_room(&self, worker: usize) -> bool {
        self.shared.kept.count(worker) > 0 && self.relieve(worker)
    }

    /// Counts per service.
    pub fn samples(&self) -> Vec<PoolSample> {
        let mut samples: BTreeMap<String, PoolSample> = BTreeMap::new();
        for pool in self.live() {
            let service = pool.endpoint().id().service.as_str();
            let sample = samples.entry(service.to_owned()).or_insert_with(|| PoolSample {
                service: service.to_owned(),
                open: 0,
                idle: 0,
                stolen: 0,
            });
            sample.open += u64::try_from(pool.open_count()).unwrap_or(u64::MAX);
            sample.idle += u64::try_from(pool.idle_count()).unwrap_or(u64::MAX);
            sample.stolen += pool.stolen_count();
        }
        samples.into_values().collect()
    }

    fn live(&self) -> Vec<Arc<Pool>> {
        self.pools.lock().values().filter_map(Weak::upgrade).collect()
    }
}
