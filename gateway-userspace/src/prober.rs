//! "Is this endpoint alive": active checks, jittered once, then exactly on time, bounded in number.
//!
//! The check k of an endpoint begins at t0 + k * interval, where t0 is random within the first interval, so that the time
//! to notice a loss does not depend on how long checks take. The prober is the only writer of an endpoint's health.

use std::{
    collections::{HashMap, HashSet},
    io,
    net::SocketAddr,
    sync::Arc,
    time::Duration,
};

use parking_lot::Mutex;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::Semaphore,
    task::AbortHandle,
    time::{Instant, MissedTickBehavior},
};

use crate::{
    drain::Tasks,
    endpoint::{Endpoint, EndpointId, Health},
    health::{Check, Kind, Outcome, Tracker},
    limits,
    metrics::{Metrics, names::ProbeLabels},
    name::ServiceName,
    net::connect,
};

/// One endpoint to check.
#[derive(Clone, Debug)]
pub struct Probe {
    /// Who.
    pub endpoint: Arc<Endpoint>,
    /// How.
    pub check: Arc<Check>,
}

/// Runs the checks of all endpoints on the runtime that [`Prober::apply`] is called on.
#[derive(Debug)]
pub struct Prober {
    running: Mutex<HashMap<EndpointId, Running>>,
    tasks: Tasks,
    metrics: Arc<Metrics>,
    permits: Arc<Semaphore>,
    options: connect::Options,
}

#[derive(Debug)]
struct Running {
    probe: Probe,
    task: AbortHandle,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Prober {
    /// Checks nothing yet.
    pub fn new(tasks: Tasks, metrics: Arc<Metrics>, options: connect::Options) -> Self {
        let permits = Arc::new(Semaphore::new(limits::PROBES));
        Self { running: Mutex::default(), tasks, metrics, permits, options }
    }

    /// Starts, keeps and ends checks, so that those of `wanted` run. An endpoint that loses its check while it
    /// `is_served` is trusted again.
    pub fn apply(&self, wanted: &[Probe], is_served: impl Fn(&EndpointId) -> bool) {
        let by_id: HashMap<&EndpointId, &Probe> =
            wanted.iter().map(|probe| (probe.endpoint.id(), probe)).collect();
        let services: HashSet<&ServiceName> = by_id.keys().map(|id| &id.service).collect();
        let mut running = self.running.lock();
        running.retain(|id, running| {
            let next = by_id.get(id);
            let stays = next.is_some_and(|next| {
                next.check == running.probe.check && Arc::ptr_eq(&next.endpoint, &running.probe.endpoint)
            });
            if next.is_none() && is_served(id) {
                running.probe.endpoint.set_health(Health::Unknown);
            }
            if !services.contains(&id.service) {
                self.forget(&id.service);
            }
            stays
        });
        for (id, probe) in by_id {
            if !running.contains_key(id) {
                running.insert(id.clone(), self.start(probe.clone()));
            }
        }
    }

    /// Ends all checks.
    pub fn stop(&self) {
        self.running.lock().clear();
    }

    /// Labels never outnumber what is configured.
    fn forget(&self, service: &ServiceName) {
        for outcome in Outcome::ALL {
            let labels = ProbeLabels { service: service.as_str().to_owned(), outcome: outcome.as_str() };
            self.metrics.families.probes.remove(&labels);
        }
    }

    fn start(&self, probe: Probe) -> Running {
        let (permits, options) = (Arc::clone(&self.permits), self.options);
        let (metrics, running) = (Arc::clone(&self.metrics), probe.clone());
        let task = self.tasks.spawn("prober", async move {
            let first = Instant::now() + probe.check.interval.mul_f64(fastrand::f64());
            let mut ticks = tokio::time::interval_at(first, probe.check.interval);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
            let mut tracker = Tracker::new(probe.endpoint.health());
            loop {
                ticks.tick().await;
                // The semaphore is never closed.
                let Ok(permit) = permits.acquire().await else { return };
                let outcome = run(probe.endpoint.addr(), &probe.check, options).await;
                drop(permit);
                let service = probe.endpoint.id().service.as_str().to_owned();
                metrics
                    .families
                    .probes
                    .get_or_create(&ProbeLabels { service, outcome: outcome.as_str() })
                    .inc();
                if let Some(health) = tracker.observe(outcome, probe.check.thresholds) {
                    report(&probe.endpoint, health, outcome);
                    probe.endpoint.set_health(health);
                }
            }
        });
        Running { probe: running, task: task.abort_handle() }
    }
}

fn report(endpoint: &Endpoint, health: Health, outcome: Outcome) {
    let (service, addr, outcome) = (&endpoint.id().service, endpoint.addr(), outcome.as_str());
    match health {
        Health::Down => tracing::warn!(%service, endpoint = %addr, outcome, "endpoint is down"),
        Health::Unknown | Health::Up => tracing::info!(%service, endpoint = %addr, outcome, "endpoint is up"),
    }
}

/// One check.
pub async fn run(addr: SocketAddr, check: &Check, options: connect::Options) -> Outcome {
    let done = async {
        let mut stream = connect::tcp(addr, check.timeout, options).await?;
        match &check.kind {
            Kind::Tcp => Ok(Outcome::Passed),
            Kind::Http { path, host, statuses } => {
                let request = format!(
                    "GET {path} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: sluice\r\nConnection: close\r\n\r\n"
                );
                stream.write_all(request.as_bytes()).await?;
                let status = read_status(&mut stream).await?;
                Ok(if status.is_some_and(|status| statuses.contains(&status)) {
                    Outcome::Passed
                } else {
                    Outcome::Wrong
                })
            }
        }
    };
    match tokio::time::timeout(check.timeout, done).await {
        Ok(Ok(outcome)) => outcome,
        Ok(Err(cause)) => outcome_of(&cause),
        Err(_) => Outcome::Silent,
    }
}

/// What an error of the network says about the endpoint.
fn outcome_of(cause: &io::Error) -> Outcome {
    let said_no = matches!(
        cause.kind(),
        io::ErrorKind::ConnectionRefused | io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe
    );
    // No route, no neighbor, no time: nobody said no.
    if said_no { Outcome::Refused } else { Outcome::Silent }
}

/// The status of a response; none when it is not HTTP, too long, or breaks off.
async fn read_status(stream: &mut tokio::net::TcpStream) -> io::Result<Option<u16>> {
    let mut head = Vec::with_capacity(1_024);
    loop {
        if stream.read_buf(&mut head).await? == 0 || head.len() > limits::PROBE_RESPONSE_BYTES {
            return Ok(None);
        }
        let mut headers = [httparse::EMPTY_HEADER; limits::HEADERS];
        let mut response = httparse::Response::new(&mut headers);
        match response.parse(&head) {
            Ok(httparse::Status::Complete(_)) => return Ok(response.code),
            Ok(httparse::Status::Partial) => {}
            Err(_) => return Ok(None),
        }
    }
}

/// The longest time from the loss of an endpoint to the moment when nothing uses it, without the hundred milliseconds
/// that everything else may take.
pub fn time_to_notice(check: &Check, is_silent: bool) -> Duration {
    if is_silent { check.interval * check.thresholds.unhealthy + check.timeout } else { check.interval }
}
