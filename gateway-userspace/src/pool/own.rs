//! Connections that belong to one client, because they begin with a word about who that is. They are held by the client's
//! own connection, and end with it; where a load balancer has several connections for one client, with the last of these.

use std::sync::Arc;

use parking_lot::Mutex;

use crate::{
    limits,
    metrics::names::Limit,
    pool::{
        Pool,
        registry::{Client, Pools},
    },
};

/// Pools of one client.
#[derive(Debug)]
pub struct Own {
    client: Client,
    /// The last used at the end.
    pools: Mutex<Vec<Arc<Pool>>>,
}

impl Own {
    /// None yet.
    pub const fn new(client: Client) -> Self {
        Self { client, pools: Mutex::new(Vec::new()) }
    }

    /// This client's pool beside that of all clients, for a request that this worker serves.
    pub fn resolve(&self, registry: &Pools, pool: &Arc<Pool>, worker: usize) -> Arc<Pool> {
        let mut pools = self.pools.lock();
        if let Some(at) = pools.iter().position(|own| own.is_beside(pool)) {
            let own = pools.remove(at);
            pools.push(Arc::clone(&own));
            return own;
        }
        if pools.len() >= limits::OWN_POOLS {
            // What was used least recently: its connections end when their requests have.
            drop(pools.remove(0));
            pool.shared.families.limit(Limit::PoolIdle);
        }
        let own = registry.resolve_own(pool, self.client, worker);
        pools.push(Arc::clone(&own));
        own
    }
}
