//! "Send this to that service": its balancer, its pools, and a connection to the endpoint that was picked.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use gateway_common::{flow::FlowKey, hash::Seed};

use crate::{
    balance::{Balancer, Member, Policy, Tried},
    drain::Tasks,
    endpoint::{Endpoint, EndpointId, Registry},
    metrics::{Metrics, shard::ServiceStats},
    name::ServiceName,
    net::connect,
    pool::{Lease, OpenError, Origin, Pool, Protocol, registry::Pools},
    retry::{self, Budget},
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
    /// How an endpoint is picked.
    pub policy: Policy,
    /// Bound on opening a connection.
    pub connect_timeout: Duration,
    /// How many retries it bears.
    pub retries: retry::Limits,
}

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
    stats: Arc<ServiceStats>,
    budget: Budget,
    tasks: Tasks,
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
        let pools = members.iter().map(|m| parts.pools.resolve(&m.endpoint, definition.protocol)).collect();
        Self {
            stats: parts.metrics.service(definition.name.as_str()),
            budget: Budget::new(definition.retries, parts.metrics.n_workers()),
            balancer: Balancer::new(definition.policy, members, seed),
            definition,
            pools,
            tasks: parts.tasks.clone(),
            options: parts.options,
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

    /// A connection to the endpoint that was picked.
    pub async fn connect_or_reuse(
        &self,
        picked: usize,
        worker: usize,
        freshness: Freshness,
    ) -> Result<Lease, OpenError> {
        let gone = || OpenError::Io(io::Error::from(io::ErrorKind::NotFound));
        let pool = self.pools.get(picked).ok_or_else(gone)?;
        if freshness == Freshness::Any
            && let Some(lease) = pool.reuse(worker)
        {
            if lease.origin() == Origin::Stolen && pool.should_grow(worker) {
                self.grow(Arc::clone(pool), worker);
            }
            return Ok(lease);
        }
        let opened = open(pool, worker, self.definition.connect_timeout, self.options).await;
        match &opened {
            Ok(_) => self.stats.connected(worker),
            Err(cause) => {
                self.stats.connect_failed(worker);
                tracing::debug!(endpoint = %pool.endpoint().addr(), ?cause, "no connection to an endpoint");
            }
        }
        opened
    }

    /// Opens a connection of this worker's own, for the next request.
    fn grow(&self, pool: Arc<Pool>, worker: usize) {
        let (timeout, options) = (self.definition.connect_timeout, self.options);
        drop(self.tasks.spawn("pool growth", async move {
            if let Ok(lease) = open(&pool, worker, timeout, options).await {
                lease.give_back();
            }
            pool.grown(worker);
        }));
    }
}

async fn open(
    pool: &Arc<Pool>,
    worker: usize,
    timeout: Duration,
    options: connect::Options,
) -> Result<Lease, OpenError> {
    let addr = pool.endpoint().addr();
    pool.open(worker, connect::tcp(addr, timeout, options)).await
}
