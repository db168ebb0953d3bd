//! "Send this to that service": its balancer, its pools, and a connection to the endpoint that was picked.

use std::{io, net::SocketAddr, os::fd::AsRawFd as _, sync::Arc, time::Duration};

use gateway_common::{flow::FlowKey, hash::Seed};
use parking_lot::Mutex;
use tokio::{io::AsyncWriteExt as _, time::Instant};

use crate::{
    balance::{Balancer, Member, Policy, Tried},
    drain::Tasks,
    endpoint::{Endpoint, EndpointId, Registry},
    metrics::{Metrics, shard::ServiceStats},
    name::ServiceName,
    net::{
        connect,
        proxy_protocol::{self, Ends},
    },
    pool::{
        Lease, OpenError, Origin, Pool, Protocol,
        link::Link,
        own::Own,
        places::Place,
        registry::{Client, Manner, Pools},
    },
    retry::{self, Budget},
    tls::connect::Connector,
};

/// How a service is reached; two that are equal are the same service.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Definition {
    /// Name of the service.
    pub name: ServiceName,
    /// Addresses and weights.
    pub endpoints: Vec<(SocketAddr, u32)>,
    /// What the endpoints speak.
    pub protocol: Protocol,
    /// How connections are secured; none leaves them in plain text.
    pub tls: Option<Connector>,
    /// How an endpoint is picked.
    pub policy: Policy,
    /// Bound on opening a connection, TLS included.
    pub connect_timeout: Duration,
    /// How many retries it bears.
    pub retries: retry::Limits,
    /// Whether endpoints are told by PROXY protocol who the client is.
    pub is_announced: bool,
}

/// Time between two reports of handshakes that failed, for each service.
const REPORT_INTERVAL: Duration = Duration::from_mins(1);

/// What services are made from, once per process.
#[derive(Clone, Debug)]
pub struct Parts {
    /// Live endpoints.
    pub registry: Arc<Registry>,
    /// Connections.
    pub pools: Arc<Pools>,
    /// Numbers.
    pub metrics: Arc<Metrics>,
    /// Runs what goes on in the background.
    pub tasks: Tasks,
    /// How connections are made.
    pub options: connect::Options,
}

/// A service that requests can be sent to.
#[derive(Debug)]
pub struct Upstream {
    definition: Definition,
    balancer: Balancer,
    /// By the index of the balancer's members.
    pools: Box<[Arc<Pool>]>,
    registry: Arc<Pools>,
    stats: Arc<ServiceStats>,
    budget: Budget,
    tasks: Tasks,
    opening: Opening,
    /// When a handshake that failed was reported last.
    reported: Mutex<Option<Instant>>,
}

/// How connections are opened.
#[derive(Clone, Debug)]
struct Opening {
    tls: Option<Connector>,
    timeout: Duration,
    options: connect::Options,
}

/// Whether a connection that exists may be used.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Freshness {
    /// Any good one.
    Any,
    /// A new one only, because one that existed turned out to be dead.
    New,
}

impl Upstream {
    /// Puts a service together. `seed` is the cluster's.
    pub fn new(definition: Definition, parts: &Parts, seed: &Seed) -> Self {
        let endpoint = |addr: &SocketAddr| {
            parts.registry.resolve(&EndpointId { service: definition.name.clone(), addr: *addr })
        };
        let members: Vec<Member> = definition
            .endpoints
            .iter()
            .map(|(addr, weight)| Member { endpoint: endpoint(addr), backend_weight: 1, weight: *weight })
            .collect();
        let security = definition.tls.as_ref().map(Connector::digest);
        let manner = Manner { protocol: definition.protocol, security, client: None };
        let pools = members.iter().map(|member| parts.pools.resolve(&member.endpoint, manner)).collect();
        Self {
            stats: parts.metrics.service(definition.name.as_str()),
            budget: Budget::new(definition.retries, parts.metrics.n_workers()),
            balancer: Balancer::new(definition.policy, members, seed),
            opening: Opening {
                tls: definition.tls.clone(),
                timeout: definition.connect_timeout,
                options: parts.options,
            },
            definition,
            pools,
            registry: Arc::clone(&parts.pools),
            tasks: parts.tasks.clone(),
            reported: Mutex::default(),
        }
    }

    /// How it was defined.
    pub const fn definition(&self) -> &Definition {
        &self.definition
    }

    /// Where tries are counted.
    pub fn stats(&self) -> &ServiceStats {
        &self.stats
    }

    /// What is left of the retries that it bears.
    pub const fn budget(&self) -> &Budget {
        &self.budget
    }

    /// Its live endpoints.
    pub fn endpoints(&self) -> impl Iterator<Item = &Arc<Endpoint>> {
        self.balancer.members().iter().map(|member| &member.endpoint)
    }

    /// The endpoint for the next request of this flow, as an index; none when none may receive.
    pub fn pick(&self, flow: &FlowKey, tried: &Tried) -> Option<usize> {
        self.balancer.pick(flow, tried)
    }

    /// A connection to the endpoint that was picked; `own` are those of the client.
    pub async fn connect_or_reuse(
        &self,
        picked: usize,
        worker: usize,
        own: &Own,
        freshness: Freshness,
    ) -> Result<Lease, OpenError> {
        let gone = || OpenError::Io(io::Error::from(io::ErrorKind::NotFound));
        let mut pool = self.pools.get(picked).ok_or_else(gone)?;
        let of_client;
        if self.definition.is_announced {
            of_client = own.resolve(&self.registry, pool, worker);
            pool = &of_client;
        }
        if freshness == Freshness::Any
            && let Some(lease) = pool.reuse(worker)
        {
            if lease.origin() == Origin::Stolen && pool.should_grow(worker) {
                self.grow(Arc::clone(pool), worker);
            }
            return Ok(lease);
        }
        // Most requests open nothing, and should not carry the room for it.
        let mut opened = Box::pin(self.opening.open(pool, worker, None)).await;
        if opened.as_ref().is_err_and(OpenError::is_of_node)
            && let Ok(place) = self.registry.room(worker).await
        {
            opened = Box::pin(self.opening.open(pool, worker, Some(place))).await;
        }
        match &opened {
            Ok(_) => self.stats.connected(worker),
            Err(cause) => {
                self.stats.connect_failed(worker);
                self.report(pool.endpoint().addr(), cause);
            }
        }
        opened
    }

    /// Nobody but us knows why a handshake failed, and every request repeats it.
    fn report(&self, endpoint: SocketAddr, cause: &OpenError) {
        let service = &self.definition.name;
        match cause {
            OpenError::Handshake(cause) if self.is_report_due() => {
                tracing::warn!(%service, %endpoint, %cause, "no agreement with an endpoint over TLS");
            }
            OpenError::Handshake(_) | OpenError::Io(_) | OpenError::Full => {
                tracing::debug!(%service, %endpoint, ?cause, "no connection to an endpoint");
            }
        }
    }

    /// An endpoint said on an open connection that it does not accept our certificate, or misses one.
    pub fn unaccepted(&self, endpoint: SocketAddr) {
        let cause = io::Error::new(io::ErrorKind::PermissionDenied, "it did not accept our certificate");
        self.report(endpoint, &OpenError::Handshake(cause));
    }

    fn is_report_due(&self) -> bool {
        let now = Instant::now();
        let mut reported = self.reported.lock();
        let is_due = reported.is_none_or(|before| now.duration_since(before) >= REPORT_INTERVAL);
        if is_due {
            *reported = Some(now);
        }
        is_due
    }

    /// Opens a connection of this worker's own, for the next request.
    fn grow(&self, pool: Arc<Pool>, worker: usize) {
        let opening = self.opening.clone();
        drop(self.tasks.spawn("pool growth", async move {
            if let Ok(lease) = opening.open(&pool, worker, None).await {
                lease.give_back();
            }
            pool.grown(worker);
        }));
    }
}

impl Opening {
    async fn open(&self, pool: &Arc<Pool>, worker: usize, place: Option<Place>) -> Result<Lease, OpenError> {
        let addr = pool.endpoint().addr();
        let connect = async {
            let mut stream = connect::tcp(addr, self.timeout, self.options).await.map_err(OpenError::Io)?;
            if let Some(Client { source, destination }) = pool.client() {
                let header = proxy_protocol::write_v2(&Ends { source, destination });
                // It fits into the buffer of a new socket.
                stream.write_all(&header).await.map_err(OpenError::Io)?;
            }
            let Some(tls) = &self.tls else { return Ok(Link::Plain(stream)) };
            let stream = tls.connect(stream).await.map_err(OpenError::Handshake)?;
            let socket = stream.get_ref().as_raw_fd();
            Ok(Link::Secured(Box::new(stream), socket))
        };
        if self.tls.is_none() && pool.client().is_none() {
            return pool.open(worker, place, count(pool.endpoint(), connect)).await;
        }
        let bounded = async {
            let timed_out = || OpenError::Io(io::ErrorKind::TimedOut.into());
            tokio::time::timeout(self.timeout, connect).await.map_err(|_| timed_out())?
        };
        pool.open(worker, place, count(pool.endpoint(), bounded)).await
    }
}

/// Counts an attempt, unless it came to nothing for want of something here.
async fn count(
    endpoint: &Endpoint,
    opening: impl Future<Output = Result<Link, OpenError>>,
) -> Result<Link, OpenError> {
    let opened = opening.await;
    match &opened {
        Ok(_) => endpoint.attempted(false),
        Err(OpenError::Handshake(_)) => endpoint.attempted(true),
        Err(OpenError::Io(cause)) if connect::is_of_peer(cause) => endpoint.attempted(true),
        Err(OpenError::Io(_) | OpenError::Full) => {}
    }
    opened
}
