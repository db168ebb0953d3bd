//! One accept loop: one worker, one address.

use std::{io, net::SocketAddr, pin::Pin, sync::Arc, time::Duration};

use prometheus_client::metrics::{counter::Counter, gauge::Gauge};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::{
    drain::{Drain, Rounds, Tasks},
    guard::{Refused, Sources},
    http::{self, Admitted, Downstream, Scheme, serve::Serving, stream::Spoken},
    metrics::{
        names::{BindLabels, Limit},
        timeout::ClientTimeout,
    },
    net::{
        accepted::{Accepted, Listener},
        proxy_protocol::{self, Ends},
    },
    network::Network,
    state::{Bind, BindKey},
    tcp,
    tls::accept::{self, Acceptor},
};

/// Pause after an error that is not the fault of one connection: without descriptors or memory, trying again at once
/// only burns the core.
const PAUSE: Duration = Duration::from_millis(20);

/// What a loop accepts with.
pub(super) struct Loop {
    pub(super) bind: BindKey,
    pub(super) worker: Arc<http::Worker>,
    pub(super) permits: Arc<Semaphore>,
    pub(super) connections: Tasks,
    pub(super) drain: Rounds,
    pub(super) labels: Arc<BindLabels>,
    pub(super) guard: Option<Arc<Sources>>,
}

/// Where connections of one loop are counted.
struct Counted {
    accepted: Counter,
    open: Gauge,
}

/// What becomes of an accepted connection.
enum Served {
    Http(Option<Acceptor>, Admitted),
    Forwarded,
}

impl Loop {
    /// Accepts until `closing` begins, then takes what still waits, and closes.
    pub(super) async fn run(self, socket: Listener, mut closing: Drain) {
        let own = socket.local_addr().ok();
        let families = &self.worker.metrics.families;
        let counted = Counted {
            accepted: families.accepted.get_or_create(&self.labels).clone(),
            open: families.open.get_or_create(&self.labels).clone(),
        };
        loop {
            let Some(permit) = self.permit(&mut closing).await else { break };
            let accepted = tokio::select! {
                biased;
                () = closing.begun() => break,
                accepted = socket.accept() => accepted,
            };
            match accepted {
                Ok((stream, peer)) => self.connection(stream, peer, own, (permit, &counted)),
                Err(cause) if is_of_one_connection(&cause) => {}
                Err(cause) => {
                    tracing::warn!(%cause, bind = %self.bind, "cannot accept connections");
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
        // Clients whose handshake the kernel has finished believe that they are connected.
        while let Ok(permit) = Arc::clone(&self.permits).try_acquire_owned() {
            let Some((stream, peer)) = socket.accept_now() else { break };
            self.connection(stream, peer, own, (permit, &counted));
        }
    }

    /// Waits for a place among the connections of this worker; none when the loop should close.
    async fn permit(&self, closing: &mut Drain) -> Option<OwnedSemaphorePermit> {
        if let Ok(permit) = Arc::clone(&self.permits).try_acquire_owned() {
            return Some(permit);
        }
        self.worker.metrics.families.limit(Limit::Connections);
        tokio::select! {
            permit = Arc::clone(&self.permits).acquire_owned() => permit.ok(),
            () = closing.begun() => None,
        }
    }

    /// Whether a client may not begin a connection, and why.
    fn refuses(&self, peer: SocketAddr) -> Option<Refused> {
        let sources = self.guard.as_ref()?;
        self.worker.published.load().guards.refuse(self.bind, peer.ip(), sources)
    }

    /// Whether clients here can be told why they are refused, at the cost of a short answer.
    fn speaks_plainly(&self) -> bool {
        let state = self.worker.published.load();
        matches!(state.binds.get(&self.bind), Some(Bind::Http(http)) if http.tls.is_none())
    }

    fn connection(
        &self,
        stream: Accepted,
        peer: SocketAddr,
        own: Option<SocketAddr>,
        (permit, counted): (OwnedSemaphorePermit, &Counted),
    ) {
        let families = &self.worker.metrics.families;
        // Whatever the kernel's maps said at the moment: a connection for one address is never served as another's. One
        // that came to the socket's own address was not steered; nothing is to a socket that is bound to what it serves.
        let is_meant = own == Some(self.bind.addr)
            || stream.local_addr().is_ok_and(|addr| addr == self.bind.addr || Some(addr) == own);
        if !is_meant {
            families.misdirected.get_or_create(&self.labels).inc();
            return;
        }
        if let Some(refused) = self.refuses(peer) {
            families.guarded.count(&self.labels, refused.as_str());
            // As if nobody were here.
            stream.reset();
            return;
        }
        if self.worker.load.refuses_connections(|| self.speaks_plainly()) {
            families.limit(Limit::MemoryConnections);
            // Before anything is read: a handshake takes more memory than most requests.
            stream.reset();
            return;
        }
        counted.accepted.inc();
        let open = counted.open.clone();
        let failures = families.handshake_failures.clone();
        let (worker, bind, drain) = (Arc::clone(&self.worker), self.bind, self.drain.drain());
        // Shared, because few connections need it.
        let labels = Arc::clone(&self.labels);
        drop(self.connections.spawn("downstream connection", async move {
            open.inc();
            if let Err(cause) = serve(worker, bind, stream, peer, drain).await {
                failures.get_or_create(&labels).inc();
                tracing::debug!(%cause, %peer, %bind, "a TLS handshake failed");
            }
            open.dec();
            drop(permit);
        }));
    }
}

/// Serves one connection to its end; an error is that of its TLS handshake.
async fn serve(
    worker: Arc<http::Worker>,
    bind: BindKey,
    mut stream: Accepted,
    peer: SocketAddr,
    drain: Drain,
) -> io::Result<()> {
    let Some(ends) = ends(&worker, bind, &mut stream, peer).await else { return Ok(()) };
    let peer = ends.source;
    let Some(place) = worker.clients.enter(peer.ip()) else {
        worker.metrics.families.limit(Limit::ClientConnections);
        tracing::debug!(%peer, %bind, "a client has as many connections as it may");
        return Ok(());
    };
    let served = match worker.published.load().binds.get(&bind) {
        Some(Bind::Http(http)) => Served::Http(http.tls.clone(), Admitted::by(http)),
        Some(Bind::Balanced(_) | Bind::Passthrough(_)) => Served::Forwarded,
        None => return Ok(()),
    };
    let streams = Some(place.streams());
    let downstream =
        |scheme, admitted| Downstream { admitted, streams, ..Downstream::new(bind, scheme, ends) };
    // Each in room of its own: a connection holds what it needs, and not what the largest of them would.
    let beginning: Pin<Box<dyn Future<Output = Option<Serving>> + Send>> = match served {
        Served::Forwarded => {
            let Ok(stream) = stream.watched() else { return Ok(()) };
            let terms = tcp::Terms {
                published: &worker.published,
                families: &worker.metrics.families,
                hello_timeout: worker.timeouts.hello,
                worker: worker.idx,
            };
            Box::pin(tcp::forward(terms, bind, stream, ends)).await;
            return Ok(());
        }
        Served::Http(None, admitted) => {
            let downstream = Arc::new(downstream(Scheme::Http, admitted));
            Box::pin(http::serve::begin(worker, downstream, stream, None, drain))
        }
        Served::Http(Some(acceptor), admitted) => {
            let accepted = Box::pin(acceptor.accept(stream, worker.timeouts.handshake)).await;
            let accepted = accepted.inspect_err(|cause| {
                // The kernel's own word for a client that is gone has a number.
                if cause.kind() == io::ErrorKind::TimedOut && cause.raw_os_error().is_none() {
                    worker.metrics.families.client_timeout(ClientTimeout::Handshake);
                }
            })?;
            worker.metrics.families.handshakes.count(bind.addr, accepted.is_resumed);
            let spoken = match accepted.spoken {
                accept::Spoken::Http1 => Spoken::Http1,
                accept::Spoken::Http2 => Spoken::Http2,
            };
            let server_name = accepted.stream.get_ref().1.server_name();
            let downstream = downstream(Scheme::Https, admitted).named(server_name);
            let downstream = Arc::new(Downstream { identity: accepted.identity, ..downstream });
            let (stream, spoken) = (accepted.stream, Some(spoken));
            Box::pin(http::serve::begin(worker, downstream, stream, spoken, drain))
        }
    };
    // Out here, where the room of what was made above is not held.
    if let Some(serving) = beginning.await {
        serving.await;
    }
    Ok(())
}

/// Who the client is and what it connected to: the peer and our address, or what a trusted load balancer says of the
/// connection in front of it. None when it does not say.
async fn ends(worker: &http::Worker, bind: BindKey, stream: &mut Accepted, peer: SocketAddr) -> Option<Ends> {
    let own = Ends { source: peer, destination: bind.addr };
    let is_told = |networks: &Vec<Network>| networks.iter().any(|network| network.contains(peer.ip()));
    if !worker.published.load().proxies.get(&bind).is_some_and(is_told) {
        return Some(own);
    }
    // In room of its own: few connections need it.
    match Box::pin(proxy_protocol::read(stream, worker.timeouts.proxy_header)).await {
        Ok(ends) => Some(ends.unwrap_or(own)),
        Err(cause) => {
            tracing::debug!(%cause, %peer, %bind, "no PROXY protocol header");
            if cause.kind() == io::ErrorKind::TimedOut && cause.raw_os_error().is_none() {
                worker.metrics.families.client_timeout(ClientTimeout::ProxyHeader);
            }
            worker.metrics.families.forwarded.no_header(bind.addr);
            None
        }
    }
}

/// Errors that accept(2) passes on from a connection that is already gone.
fn is_of_one_connection(cause: &io::Error) -> bool {
    matches!(
        cause.kind(),
        io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset | io::ErrorKind::Interrupted
    )
}
