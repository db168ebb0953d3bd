//! "Is this endpoint alive": active checks, jittered once, then exactly on time, bounded in number.
//!
//! The check k of an endpoint begins at t0 + k * interval, where t0 is random within the first interval, so that the time
//! to notice a loss does not depend on how long checks take. The prober is the only writer of an endpoint's health.

use std::{
    collections::{HashMap, HashSet},
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use http::uri::Scheme;
use parking_lot::Mutex;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf},
    net::{TcpSocket, TcpStream},
    sync::Semaphore,
    task::AbortHandle,
    time::{Instant, MissedTickBehavior},
};

use crate::{
    client,
    drain::Tasks,
    endpoint::{Endpoint, EndpointId, Health, Reach},
    health::{Check, Kind, Outcome, Tracker},
    kernel::tunnelled::{Detour, Passage, Tunnelled},
    limits,
    metrics::{Metrics, names::ProbeLabels},
    name::ServiceName,
    net::{connect, proxy_protocol},
    pool,
    tls::connect::Connector,
};

/// One endpoint to check.
#[derive(Clone, Debug)]
pub struct Probe {
    /// Who.
    pub endpoint: Arc<Endpoint>,
    /// How.
    pub check: Arc<Check>,
    /// Through which tunnel, where it stands for clients' packets that take one.
    pub detour: Option<Detour>,
    /// How connections are secured; none leaves them in plain text.
    pub tls: Option<Connector>,
    /// Whether the endpoint expects the PROXY protocol.
    pub is_announced: bool,
}

/// Runs the checks of all endpoints on the runtime that [`Prober::apply`] is called on.
#[derive(Debug)]
pub struct Prober {
    running: Mutex<HashMap<(EndpointId, Reach), Running>>,
    tasks: Tasks,
    metrics: Arc<Metrics>,
    permits: Arc<Semaphore>,
    path: Path,
    /// When it was last told that checks cannot be made.
    told: Arc<Mutex<Option<Instant>>>,
}

/// Time between two lines about checks that this node cannot make.
const TOLD_EVERY: Duration = Duration::from_mins(1);

/// How checks reach endpoints.
#[derive(Clone, Debug, Default)]
pub struct Path {
    /// Of every connection.
    pub options: connect::Options,
    /// Tunnels; none without the kernel side, where no packet goes through one.
    pub tunnelled: Option<Arc<Tunnelled>>,
}

impl Path {
    /// What a check speaks for. Without tunnels all ways are the one straight to the endpoint.
    fn reach(&self, probe: &Probe) -> Reach {
        match (&self.tunnelled, probe.detour) {
            (Some(_), Some(detour)) => Reach::of(detour.mode),
            (Some(_), None) | (None, _) => Reach::Straight,
        }
    }
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
    pub fn new(tasks: Tasks, metrics: Arc<Metrics>, path: Path) -> Self {
        let permits = Arc::new(Semaphore::new(limits::PROBES));
        Self { running: Mutex::default(), tasks, metrics, permits, path, told: Arc::default() }
    }

    /// Starts, keeps and ends checks, so that those of `wanted` run. An endpoint that loses its check while it
    /// `is_served` is trusted again.
    pub fn apply(&self, wanted: &[Probe], is_served: impl Fn(&EndpointId) -> bool) {
        let by_way: HashMap<(EndpointId, Reach), &Probe> = wanted
            .iter()
            .map(|probe| ((probe.endpoint.id().clone(), self.path.reach(probe)), probe))
            .collect();
        let services: HashSet<&ServiceName> = by_way.keys().map(|(id, _)| &id.service).collect();
        for ((id, _), probe) in &by_way {
            probe.endpoint.set_straight(by_way.contains_key(&(id.clone(), Reach::Straight)));
            // What was said of a way before the endpoint went, and is said of none since it is back.
            for reach in Reach::ALL {
                if probe.endpoint.health_by(reach) != Health::Unknown
                    && !by_way.contains_key(&(id.clone(), reach))
                {
                    probe.endpoint.set_health_by(reach, Health::Unknown);
                }
            }
        }
        let mut running = self.running.lock();
        running.retain(|way, running| {
            let next = by_way.get(way);
            let (id, reach) = way;
            let stays = next.is_some_and(|next| {
                next.check == running.probe.check
                    && next.detour == running.probe.detour
                    && next.tls == running.probe.tls
                    && next.is_announced == running.probe.is_announced
                    && Arc::ptr_eq(&next.endpoint, &running.probe.endpoint)
            });
            if next.is_none() && is_served(id) {
                running.probe.endpoint.set_health_by(*reach, Health::Unknown);
            }
            if !services.contains(&id.service) {
                self.forget(&id.service);
            }
            stays
        });
        for (way, probe) in by_way {
            let reach = way.1;
            running.entry(way).or_insert_with(|| self.start(probe.clone(), reach));
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

    fn start(&self, probe: Probe, reach: Reach) -> Running {
        let (permits, path, tasks) = (Arc::clone(&self.permits), self.path.clone(), self.tasks.clone());
        let (metrics, told, running) = (Arc::clone(&self.metrics), Arc::clone(&self.told), probe.clone());
        let task = self.tasks.spawn("prober", async move {
            let first = Instant::now() + probe.check.interval.mul_f64(fastrand::f64());
            let mut ticks = tokio::time::interval_at(first, probe.check.interval);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
            let mut tracker = Tracker::new(probe.endpoint.health_by(reach));
            loop {
                ticks.tick().await;
                // The semaphore is never closed.
                let Ok(permit) = permits.acquire().await else { return };
                let Done { outcome, cause } = run(&probe, &path, &tasks).await;
                drop(permit);
                let service = probe.endpoint.id().service.as_str().to_owned();
                metrics
                    .families
                    .probes
                    .get_or_create(&ProbeLabels { service, outcome: outcome.as_str() })
                    .inc();
                if outcome == Outcome::Unasked && is_due(&told, Instant::now()) {
                    let (id, cause) = (probe.endpoint.id(), cause.as_ref().map(tracing::field::display));
                    tracing::warn!(
                        service = %id.service, endpoint = %id.addr, cause,
                        "this node cannot check endpoints, which keep the health that they have: see sluice_probes_total"
                    );
                }
                if let Some(health) = tracker.observe(outcome, probe.check.thresholds) {
                    report(&probe.endpoint, reach, health, &Done { outcome, cause });
                    probe.endpoint.set_health_by(reach, health);
                }
            }
        });
        Running { probe: running, task: task.abort_handle() }
    }
}

/// Whether it is time to tell of what may happen all the time.
fn is_due(told: &Mutex<Option<Instant>>, now: Instant) -> bool {
    let mut told = told.lock();
    let is_due = told.is_none_or(|told| now.saturating_duration_since(told) >= TOLD_EVERY);
    if is_due {
        *told = Some(now);
    }
    is_due
}

fn report(endpoint: &Endpoint, reach: Reach, health: Health, done: &Done) {
    let (service, addr, outcome) = (&endpoint.id().service, endpoint.addr(), done.outcome.as_str());
    let (way, cause) = (reach.as_str(), done.cause.as_ref().map(tracing::field::display));
    match health {
        Health::Down => tracing::warn!(%service, endpoint = %addr, way, outcome, cause, "endpoint is down"),
        Health::Unknown | Health::Up => {
            tracing::info!(%service, endpoint = %addr, way, outcome, "endpoint is up");
        }
    }
}

/// How one check ended, and why, when it was an error.
#[derive(Debug)]
pub struct Done {
    /// How.
    pub outcome: Outcome,
    /// Why.
    pub cause: Option<io::Error>,
}

impl From<Outcome> for Done {
    fn from(outcome: Outcome) -> Self {
        Self { outcome, cause: None }
    }
}

/// One check.
pub async fn run(probe: &Probe, path: &Path, tasks: &Tasks) -> Done {
    let timeout = probe.check.timeout;
    match tokio::time::timeout(timeout, attempt(probe, path, tasks)).await {
        Ok(done) => done,
        Err(_) => Outcome::Silent.into(),
    }
}

async fn attempt(probe: &Probe, path: &Path, tasks: &Tasks) -> Done {
    let failed = |cause: io::Error| Done { outcome: outcome_of(&cause), cause: Some(cause) };
    let check = &probe.check;
    let mut stream = match open(probe, path).await {
        Ok(stream) => stream,
        Err(cause) => return failed(cause),
    };
    if probe.is_announced
        && let Err(cause) = stream.write_all(&proxy_protocol::write_own()).await
    {
        return failed(cause);
    }
    let asked = match (&check.kind, &probe.tls) {
        (Kind::Tcp, _) => return Outcome::Passed.into(),
        (Kind::Http { .. }, None) => ask(stream, Scheme::HTTP, &check.kind, tasks).await,
        (Kind::Http { .. }, Some(tls)) => match tls.connect(stream).await {
            Ok(stream) => ask(stream, Scheme::HTTPS, &check.kind, tasks).await,
            Err(cause) => return Done { outcome: Outcome::Untrusted, cause: Some(cause) },
        },
    };
    asked.map_or_else(failed, Done::from)
}

/// A connection to an endpoint, on the way of clients' packets: the passage is the last to go, whoever holds both.
#[derive(Debug)]
struct Opened {
    stream: TcpStream,
    _passage: Option<Passage>,
}

impl AsyncRead for Opened {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Opened {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// Opens a connection to an endpoint.
async fn open(probe: &Probe, path: &Path) -> io::Result<Opened> {
    let (addr, timeout) = (probe.endpoint.addr(), probe.check.timeout);
    let (Some(detour), Some(tunnelled)) = (probe.detour, &path.tunnelled) else {
        let stream = connect::tcp(addr, timeout, path.options).await?;
        return Ok(Opened { stream, _passage: None });
    };
    let (socket, passage) = passage(addr, detour, tunnelled, path.options)?;
    let stream = connect::finish(socket, addr, timeout).await?;
    // An endpoint on this node needs no tunnel. Anything else that answered without one was reached by another way than
    // clients' packets take.
    if stream.local_addr()?.ip() != addr.ip() && !passage.is_used() {
        return Err(io::ErrorKind::NetworkUnreachable.into());
    }
    // What is left to say after it goes no longer through the tunnel: a reset is said at once, and it is all.
    socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
    Ok(Opened { stream, _passage: Some(passage) })
}

/// A socket whose packets go through a tunnel.
fn passage(
    addr: SocketAddr,
    detour: Detour,
    tunnelled: &Arc<Tunnelled>,
    options: connect::Options,
) -> io::Result<(TcpSocket, Passage)> {
    let mut taken = io::Error::from(io::ErrorKind::AddrInUse);
    for _ in 0..limits::PROBE_PORTS {
        let socket = connect::socket(addr, options)?;
        let any: IpAddr =
            if addr.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
        socket.bind(SocketAddr::new(any, 0))?;
        match tunnelled.begin(addr.ip(), socket.local_addr()?.port(), detour) {
            Ok(passage) => return Ok((socket, passage)),
            Err(error) => taken = error,
        }
    }
    Err(taken)
}

/// Asks for the status that a check wants.
async fn ask<S>(mut stream: S, scheme: Scheme, kind: &Kind, tasks: &Tasks) -> io::Result<Outcome>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let Kind::Http { path, host, statuses, is_http2 } = kind else { return Ok(Outcome::Passed) };
    let status = if *is_http2 {
        client::status_over_http2(stream, scheme, (host, path), tasks).await?
    } else {
        let request =
            format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: sluice\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        // Over TLS it may have been taken and not sent.
        stream.flush().await?;
        read_status(&mut stream).await?
    };
    let is_good = status.is_some_and(|status| statuses.contains(&status));
    Ok(if is_good { Outcome::Passed } else { Outcome::Wrong })
}

/// What an error of the network says about the endpoint.
fn outcome_of(cause: &io::Error) -> Outcome {
    let said_no = matches!(
        cause.kind(),
        io::ErrorKind::ConnectionRefused | io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe
    );
    if said_no {
        Outcome::Refused
    } else if cause.kind() == io::ErrorKind::PermissionDenied {
        // Over TLS 1.3 an endpoint says after the handshake that it misses a certificate.
        Outcome::Untrusted
    } else if is_own(cause) {
        Outcome::Unasked
    } else {
        // No route, no neighbor, no time: nobody said no.
        Outcome::Silent
    }
}

/// Whether this node lacks what it needs to ask: ports, descriptors, memory.
fn is_own(cause: &io::Error) -> bool {
    matches!(cause.kind(), io::ErrorKind::AddrInUse | io::ErrorKind::AddrNotAvailable)
        || pool::is_of_node(cause)
}

/// The status of a response; none when it is not HTTP, too long, or breaks off.
async fn read_status<S: AsyncRead + Unpin>(stream: &mut S) -> io::Result<Option<u16>> {
    let mut head = Vec::with_capacity(1_024);
    let mut n_read = 0;
    loop {
        match parse_status(&head) {
            // Interim responses come before the one that counts (RFC 9110, section 15.2).
            Ok(Some((status, end))) if status < 200 => drop(head.drain(..end)),
            Ok(Some((status, _))) => return Ok(Some(status)),
            Err(_) => return Ok(None),
            Ok(None) => {
                let n = stream.read_buf(&mut head).await?;
                n_read += n;
                if n == 0 || n_read > limits::PROBE_RESPONSE_BYTES {
                    return Ok(None);
                }
            }
        }
    }
}

/// Status and length of the first head, when it is complete.
fn parse_status(bytes: &[u8]) -> Result<Option<(u16, usize)>, httparse::Error> {
    let mut headers = [httparse::EMPTY_HEADER; limits::HEADERS];
    let mut response = httparse::Response::new(&mut headers);
    match response.parse(bytes)? {
        httparse::Status::Complete(end) => Ok(response.code.map(|code| (code, end))),
        httparse::Status::Partial => Ok(None),
    }
}

/// The longest time from the loss of an endpoint to the moment when nothing uses it, without the hundred milliseconds
/// that everything else may take.
pub fn time_to_notice(check: &Check, is_silent: bool) -> Duration {
    if is_silent { check.interval * check.thresholds.unhealthy + check.timeout } else { check.interval }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "the endpoint's tasks end with their test")]
mod tests {
    use std::net::SocketAddr;

    use http_body_util::Empty;
    use hyper::{Response, body::Bytes, service::service_fn};
    use tokio::net::TcpListener;

    use super::*;
    use crate::{endpoint::Registry, health::Thresholds};

    fn check(is_http2: bool) -> Check {
        let kind = Kind::Http { path: "/ok".into(), host: "a.test".into(), statuses: 200..=200, is_http2 };
        let thresholds = Thresholds { unhealthy: 1, healthy: 1 };
        Check { kind, interval: Duration::from_secs(1), timeout: Duration::from_millis(500), thresholds }
    }

    async fn outcome(addr: SocketAddr, is_http2: bool) -> Outcome {
        let id = EndpointId { service: ServiceName::new("a"), addr };
        let endpoint = Registry::default().resolve(&id);
        let probe = Probe {
            endpoint,
            check: Arc::new(check(is_http2)),
            detour: None,
            tls: None,
            is_announced: false,
        };
        run(&probe, &Path::default(), &Tasks::default()).await.outcome
    }

    #[test]
    fn what_this_node_lacks_says_nothing_about_an_endpoint() {
        use nix::errno::Errno;
        for errno in [Errno::EMFILE, Errno::ENFILE, Errno::ENOBUFS, Errno::ENOMEM, Errno::EADDRNOTAVAIL] {
            assert_eq!(outcome_of(&errno.into()), Outcome::Unasked, "{errno}");
        }
        for (errno, expected) in [
            (Errno::ECONNREFUSED, Outcome::Refused),
            (Errno::EHOSTUNREACH, Outcome::Silent),
            (Errno::ENETUNREACH, Outcome::Silent),
            (Errno::ETIMEDOUT, Outcome::Silent),
        ] {
            assert_eq!(outcome_of(&errno.into()), expected, "{errno}");
        }
        let mut tracker = Tracker::new(Health::Up);
        let thresholds = Thresholds { unhealthy: 1, healthy: 1 };
        assert_eq!(tracker.observe(Outcome::Unasked, thresholds), None);
    }

    #[tokio::test]
    async fn interim_responses_are_skipped() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut request = [0; 1_024];
                let _asked = stream.read(&mut request).await.unwrap();
                for part in ["HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 2", "00 OK\r\n\r\n"] {
                    stream.write_all(part.as_bytes()).await.unwrap();
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            }
        });
        assert_eq!(outcome(addr, false).await, Outcome::Passed);
        assert_eq!(outcome(addr, true).await, Outcome::Wrong, "it does not speak HTTP/2");
    }

    #[tokio::test]
    async fn a_service_over_http2_is_checked_over_http2() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let service = service_fn(|request: hyper::Request<hyper::body::Incoming>| async move {
                    let status = if request.uri().path() == "/ok" { 200 } else { 404 };
                    Response::builder().status(status).body(Empty::<Bytes>::new())
                });
                let io = hyper_util::rt::TokioIo::new(stream);
                let server = hyper::server::conn::http2::Builder::new(hyper_util::rt::TokioExecutor::new());
                tokio::spawn(server.serve_connection(io, service));
            }
        });
        assert_eq!(outcome(addr, true).await, Outcome::Passed);
        assert_eq!(outcome(addr, false).await, Outcome::Wrong, "it does not speak HTTP/1.1");
    }
}
