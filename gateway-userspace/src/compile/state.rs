//! The state: listeners grouped by address, their routes, the services behind them, and what to check.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use gateway_common::hash::Seed;

use crate::{
    compile::{Faults, listener, service, tls},
    snapshot::Snapshot,
    state::{Guards, State},
    tls::Context,
    upstream::Parts,
};

/// What a state is made from besides the snapshot, once per process.
#[derive(Clone)]
pub struct Shared {
    /// For services.
    pub parts: Parts,
    /// For certificates.
    pub tls: Context,
    /// The cluster's seed, the one that the kernel has.
    pub seed: Seed,
    /// Whether the agent decides who may come, because no kernel program does.
    pub is_guarding: bool,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("parts", &self.parts).finish_non_exhaustive()
    }
}

/// Compiles a snapshot. A service that did not change since `previous` is taken over with its balancer.
pub fn state(snapshot: &Snapshot, shared: &Shared, previous: Option<&State>) -> Result<State, Faults> {
    let mut faults = Faults::default();
    let mut connectors = tls::Connectors::default();
    let mut services = HashMap::new();
    let mut probes = Vec::new();
    let mut watched = Vec::new();
    let ways = service::Ways::of(snapshot);
    for wanted in &snapshot.services {
        let connector = connectors.connector(wanted, &shared.tls, &mut faults);
        probes.extend(service::probes(&ways, wanted, connector.as_ref(), &shared.parts.registry));
        watched.extend(service::watched(wanted, &shared.parts.registry));
        let definition = service::definition(wanted, connector);
        let kept = previous.and_then(|previous| previous.services.get(&wanted.name));
        let kept = kept.filter(|kept| service::is_current(kept, &definition, &shared.parts.registry));
        let made = kept.map_or_else(|| Arc::new(service::upstream(definition, shared)), Arc::clone);
        services.insert(wanted.name.clone(), made);
    }
    let mut expiries = BTreeMap::new();
    let binds = listener::binds(snapshot, shared, &services, &mut expiries, &mut faults);
    if faults.0.is_empty() {
        let identity_headers = tls::identity_headers(snapshot);
        let proxies = listener::proxies(snapshot);
        let former = previous.map(|previous| &previous.guards);
        let guards = if shared.is_guarding { listener::guards(snapshot, former) } else { Guards::default() };
        Ok(State {
            generation: snapshot.generation,
            binds,
            proxies,
            expiries,
            endpoint_expiries: connectors.expiries,
            services,
            identity_headers,
            probes,
            watched,
            guards,
        })
    } else {
        Err(faults)
    }
}
