//! The data path as the agent runs it, without a control loop.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use gateway_common::hash::Seed;
use gateway_userspace::{
    access,
    clock::Clock,
    compile::{
        Faults,
        state::{Shared, state},
    },
    config::{AccessSettings, ClientSettings, ClientTimeouts, OverloadSettings, TraceSettings},
    drain::Tasks,
    endpoint::{EndpointId, Registry},
    guard::Sources,
    limits::Share,
    listener::{Settings, Workers},
    memory::Memory,
    metrics::Metrics,
    name::ServiceName,
    net::{connect, listen::Place},
    pool::registry::{self, Pools},
    snapshot::Snapshot,
    state::{Bind, Published},
    tls,
    upstream::Parts,
};

pub const SEED: Seed = Seed::new([11, 12]);

/// Bounds that no test reaches by being slow.
pub const CALM: OverloadSettings =
    OverloadSettings { requests: 100_000, delay: Duration::from_mins(10), memory_bytes: None };

/// More than any test's client holds.
pub const GENEROUS: ClientSettings = ClientSettings { connections: 100_000, streams: 100_000 };

/// As long as agents wait for clients that nothing else is written for.
pub const PATIENT: ClientTimeouts = ClientTimeouts {
    proxy_header: Duration::from_secs(5),
    hello: Duration::from_secs(10),
    handshake: Duration::from_secs(10),
    head: Duration::from_secs(10),
    idle: Duration::from_secs(75),
    answer: Duration::from_secs(25),
    stall: Duration::from_mins(1),
    bytes_per_second: 1_024,
};

/// What each worker may hold.
const ROOMY: Share = Share { connections: 1_024, upstream: 1_024, udp_flows: 1_024, is_scarce: false };

/// What is bounded for clients.
type Bounds = (OverloadSettings, ClientSettings, ClientTimeouts);
const FREE: Bounds = (CALM, GENEROUS, PATIENT);

pub struct Proxy {
    pub published: Arc<Published>,
    pub registry: Arc<Registry>,
    pub metrics: Arc<Metrics>,
    pub pools: Arc<Pools>,
    pub shared: Shared,
    workers: Mutex<Option<Workers>>,
    place: Place,
}

impl Proxy {
    pub fn start(snapshot: &Snapshot) -> Self {
        Self::with_workers(snapshot, 2)
    }

    pub fn with_workers(snapshot: &Snapshot, n_workers: usize) -> Self {
        Self::at(Place::Virtual, snapshot, n_workers)
    }

    /// With sockets that the kernel would steer to.
    pub fn steered(snapshot: &Snapshot) -> Self {
        Self::at(Place::Steered, snapshot, 2)
    }

    /// With a log of requests.
    pub fn logged(snapshot: &Snapshot, settings: &AccessSettings) -> Self {
        Self::all(Place::Virtual, snapshot, 2, Some(settings), FREE)
    }

    /// One worker with these bounds.
    pub fn bounded(snapshot: &Snapshot, overload: OverloadSettings) -> Self {
        Self::all(Place::Virtual, snapshot, 1, None, (overload, GENEROUS, PATIENT))
    }

    /// Two workers whose clients may hold as much.
    pub fn sharing(snapshot: &Snapshot, per_client: ClientSettings) -> Self {
        Self::all(Place::Virtual, snapshot, 2, None, (CALM, per_client, PATIENT))
    }

    /// One worker that waits so long for its clients.
    pub fn waiting(snapshot: &Snapshot, timeouts: ClientTimeouts) -> Self {
        Self::all(Place::Virtual, snapshot, 1, None, (CALM, GENEROUS, timeouts))
    }

    /// One worker whose flows of UDP take the places of so many connections.
    pub fn with_places(snapshot: &Snapshot, connections: usize) -> Self {
        let share = Share { connections, is_scarce: true, ..ROOMY };
        Self::sized(Place::Virtual, snapshot, 1, None, FREE, share)
    }

    /// One worker that may have so many connections to endpoints.
    pub fn with_upstream(snapshot: &Snapshot, upstream: usize) -> Self {
        Self::sized(Place::Virtual, snapshot, 1, None, FREE, Share { upstream, ..ROOMY })
    }

    /// One worker that may hold so many flows of UDP.
    pub fn with_flows(snapshot: &Snapshot, udp_flows: usize) -> Self {
        Self::sized(Place::Virtual, snapshot, 1, None, FREE, Share { udp_flows, ..ROOMY })
    }

    fn at(place: Place, snapshot: &Snapshot, n_workers: usize) -> Self {
        Self::all(place, snapshot, n_workers, None, FREE)
    }

    fn all(
        place: Place,
        snapshot: &Snapshot,
        n_workers: usize,
        access: Option<&AccessSettings>,
        bounds: Bounds,
    ) -> Self {
        Self::sized(place, snapshot, n_workers, access, bounds, ROOMY)
    }

    fn sized(
        place: Place,
        snapshot: &Snapshot,
        n_workers: usize,
        access: Option<&AccessSettings>,
        (overload, per_client, client_timeouts): Bounds,
        share: Share,
    ) -> Self {
        let metrics = Arc::new(Metrics::new(n_workers));
        let registry = Arc::new(Registry::default());
        let tasks = Tasks::default();
        let clock = Clock::real();
        let pools = Arc::new(Pools::new(registry::Shared::new(
            (n_workers, share),
            &tasks,
            &clock,
            &metrics.families,
        )));
        let parts = Parts {
            registry: Arc::clone(&registry),
            pools: Arc::clone(&pools),
            metrics: Arc::clone(&metrics),
            tasks: tasks.clone(),
            options: connect::Options::default(),
        };
        let shared = Shared { parts, tls: tls::Context::new().unwrap(), seed: SEED, is_guarding: true };
        let published = Arc::new(Published::default());
        let memory = match overload.memory_bytes {
            Some(_) => Memory::watched(overload.memory_bytes, &metrics.families, &tasks),
            None => Arc::new(Memory::new(None, metrics.families.clone())),
        };
        let settings = Settings {
            n_workers,
            share,
            published: Arc::clone(&published),
            metrics: Arc::clone(&metrics),
            pools: Arc::clone(&pools),
            clock: clock.clone(),
            guard: Some(Arc::new(Sources::new(clock))),
            access: access.map(|settings| access::Log::start(settings, &metrics).unwrap()),
            trace: TraceSettings { is_created: true, sampled_percent: 100 },
            overload,
            memory,
            per_client,
            client_timeouts,
            heart: None,
        };
        let workers = Mutex::new(Some(Workers::start(&settings).unwrap()));
        let proxy = Self { published, registry, metrics, pools, shared, workers, place };
        proxy.apply(snapshot).unwrap();
        proxy
    }

    /// In the order of the control loop: bind, publish, serve, retire.
    pub fn apply(&self, snapshot: &Snapshot) -> Result<(), Faults> {
        let before = self.published.load();
        let compiled = state(snapshot, &self.shared, Some(&before))?;
        for service in &snapshot.services {
            for endpoint in &service.endpoints {
                let id = EndpointId { service: service.name.clone(), addr: endpoint.addr };
                self.registry.resolve(&id).set_weight(endpoint.weight);
            }
        }
        let binds: Vec<_> = compiled.binds.keys().map(|key| (*key, self.place)).collect();
        let workers = self.workers.lock().unwrap();
        let workers = workers.as_ref().unwrap();
        workers.bind(&binds).unwrap();
        self.published.publish(Arc::new(compiled));
        let now = self.published.load();
        workers.renew(|key| now.admits_as(&before, key));
        workers.expect(|key| now.binds.get(key).is_some_and(Bind::hears_client_first));
        workers.serve();
        workers.retire(|key| now.binds.contains_key(key));
        Ok(())
    }

    /// Only publishes: what comes before and after it in the control loop does not happen.
    pub fn publish(&self, snapshot: &Snapshot) {
        let before = self.published.load();
        self.published.publish(Arc::new(state(snapshot, &self.shared, Some(&before)).unwrap()));
    }

    pub fn endpoint(
        &self,
        service: &str,
        addr: std::net::SocketAddr,
    ) -> Arc<gateway_userspace::endpoint::Endpoint> {
        self.registry.resolve(&EndpointId { service: ServiceName::new(service), addr })
    }

    /// What an agent does every second.
    pub fn keep_house(&self) {
        self.workers.lock().unwrap().as_ref().unwrap().forget_retired();
    }

    pub fn sockets(&self) -> Vec<gateway_userspace::listener::Listening> {
        self.workers.lock().unwrap().as_ref().unwrap().sockets().unwrap()
    }

    pub async fn drain(&self, deadline: Duration) -> usize {
        let workers = self.workers.lock().unwrap().take().unwrap();
        workers.drain(deadline).await
    }

    /// The value of a metric's line that begins with `series`.
    pub fn metric(&self, series: &str) -> f64 {
        let text = self.metrics.encode().unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix(series));
        line.map_or(0.0, |value| value.trim().parse().unwrap())
    }
}
