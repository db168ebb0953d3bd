//! Endpoints that learn by PROXY protocol who the client is: connections for requests belong to one client then.

#![expect(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    clippy::indexing_slicing,
    reason = "a test says what went wrong by failing, and its tasks end with it"
)]

mod support;

use std::{
    convert::Infallible,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use gateway_userspace::{
    drain::Tasks,
    health::Outcome,
    net::proxy_protocol::{self, Ends},
    network::Network,
    prober,
    snapshot::{
        Snapshot,
        service::{CheckKind, UpstreamProtocol},
    },
};
use http::{Request, Response};
use http_body_util::Full;
use hyper::{body::Incoming, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use support::{
    authority::Authority,
    client::Client,
    eventually, free_addr,
    origin::Origin,
    proxy::Proxy,
    wanted::{check, simple},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt as _},
    net::TcpStream,
};

/// Connections that begin with a header and are open, and an endpoint that answers with what the header said.
struct Told {
    origin: Origin,
    open: Arc<AtomicUsize>,
}

async fn told(terms: Option<rustls::ServerConfig>) -> Told {
    let open = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&open);
    let acceptor = terms.map(|terms| tokio_rustls::TlsAcceptor::from(Arc::new(terms)));
    let origin = Origin::raw(move |mut stream| {
        let (counter, acceptor) = (Arc::clone(&counter), acceptor.clone());
        async move {
            let Ok(ends) = proxy_protocol::read(&mut stream, Duration::from_secs(5)).await else { return };
            let word =
                ends.map_or("nobody".to_owned(), |ends| format!("{} for {}", ends.source, ends.destination));
            counter.fetch_add(1, Ordering::SeqCst);
            match acceptor {
                None => serve(stream, word).await,
                Some(acceptor) => serve(acceptor.accept(stream).await.unwrap(), word).await,
            }
            counter.fetch_sub(1, Ordering::SeqCst);
        }
    });
    Told { origin: origin.await, open }
}

async fn serve<S: AsyncRead + AsyncWrite + Send + Unpin + 'static>(stream: S, word: String) {
    let service = service_fn(move |_: Request<Incoming>| {
        let word = word.clone();
        async move { Ok::<_, Infallible>(Response::new(Full::new(Bytes::from(word)))) }
    });
    let builder = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
    drop(builder.serve_connection(TokioIo::new(stream), service).await);
}

fn announced(addr: SocketAddr, endpoint: &Told, protocol: UpstreamProtocol) -> Snapshot {
    let mut snapshot = simple(addr, &[endpoint.origin.addr]);
    snapshot.services[0].is_announced = true;
    snapshot.services[0].protocol = protocol;
    snapshot
}

/// A client, and what an endpoint should be told of it.
async fn client(addr: SocketAddr, is_http2: bool) -> (Client, String) {
    let stream = TcpStream::connect(addr).await.unwrap();
    let word = format!("{} for {addr}", stream.local_addr().unwrap());
    let client = if is_http2 { Client::over_http2(stream).await } else { Client::over_http1(stream).await };
    (client, word)
}

#[tokio::test(flavor = "multi_thread")]
async fn every_client_has_connections_of_its_own_and_they_end_with_it() {
    let ours = Authority::new("ours");
    for (protocol, is_secured) in [
        (UpstreamProtocol::Http1, false),
        (UpstreamProtocol::H2c, false),
        (UpstreamProtocol::Http1, true),
        (UpstreamProtocol::H2, true),
    ] {
        let terms = is_secured.then(|| ours.terms("app.internal", &["h2", "http/1.1"], None));
        let endpoint = told(terms).await;
        let addr = free_addr();
        let mut snapshot = announced(addr, &endpoint, protocol);
        snapshot.services[0].tls = is_secured.then(|| ours.towards("app.internal"));
        let proxy = Proxy::start(&snapshot);
        let mut clients = Vec::new();
        for n in 0..4 {
            clients.push(client(addr, n % 2 == 1).await);
        }
        for _ in 0..3 {
            for (client, word) in &mut clients {
                let answer = client.get("a.test", "/").await.unwrap();
                assert_eq!(String::from_utf8_lossy(&answer.body), *word, "{protocol:?}");
            }
        }
        assert_eq!(endpoint.origin.connections(), 4, "{protocol:?}: they are kept for their client");
        assert_eq!(proxy.pools.samples().iter().map(|sample| sample.open).collect::<Vec<_>>(), [4]);
        clients.truncate(1);
        let open = || endpoint.open.load(Ordering::SeqCst) == 1;
        eventually("those of clients that left are closed", Duration::from_secs(5), open).await;
        let (mut client, word) = clients.remove(0);
        assert_eq!(client.get("a.test", "/").await.unwrap().body, word.as_bytes());
        assert_eq!(endpoint.origin.connections(), 4, "{protocol:?}: the others' are not touched");
    }
}

/// Many clients behind one load balancer, which says who they are: what is theirs is no other one's.
#[tokio::test(flavor = "multi_thread")]
async fn clients_that_a_load_balancer_names_have_connections_of_their_own_too() {
    for protocol in [UpstreamProtocol::Http1, UpstreamProtocol::H2c] {
        let endpoint = told(None).await;
        let addr = free_addr();
        let mut snapshot = announced(addr, &endpoint, protocol);
        snapshot.listeners[0].proxies = vec![Network { addr: "127.0.0.0".parse().unwrap(), prefix_bits: 8 }];
        let proxy = Proxy::start(&snapshot);
        let mut clients = Vec::new();
        for (n, is_http2) in [(1, true), (2, true), (3, false), (1, true)] {
            let source = SocketAddr::from(([192, 0, 2, n], 1_000 + u16::from(n)));
            let mut stream = TcpStream::connect(addr).await.unwrap();
            // The balancer has an address of its own, which its clients connect to.
            let destination = SocketAddr::from(([198, 51, 100, 1], 443));
            let header = proxy_protocol::write_v2(&Ends { source, destination });
            stream.write_all(&header).await.unwrap();
            let client =
                if is_http2 { Client::over_http2(stream).await } else { Client::over_http1(stream).await };
            clients.push((client, format!("{source} for {destination}")));
        }
        for _ in 0..3 {
            for (client, word) in &mut clients {
                let answer = client.get("a.test", "/").await.unwrap();
                assert_eq!(String::from_utf8_lossy(&answer.body), *word, "{protocol:?}");
            }
        }
        // Two that say the same have theirs together.
        assert_eq!(endpoint.origin.connections(), 3, "{protocol:?}");
        assert_eq!(proxy.pools.samples().iter().map(|sample| sample.open).collect::<Vec<_>>(), [3]);
        clients.truncate(2);
        let open = || endpoint.open.load(Ordering::SeqCst) == 2;
        eventually("those of clients that left are closed", Duration::from_secs(5), open).await;
        assert_eq!(proxy.pools.samples().iter().map(|sample| sample.open).collect::<Vec<_>>(), [2]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn health_checks_say_that_they_are_nobodys() {
    for protocol in [UpstreamProtocol::Http1, UpstreamProtocol::H2c] {
        let endpoint = told(None).await;
        let mut snapshot = announced(free_addr(), &endpoint, protocol);
        let kind = CheckKind::Http { path: "/".to_owned(), host: None, statuses: 200..=200 };
        snapshot.services[0].health = Some(check(kind));
        let proxy = Proxy::start(&snapshot);
        let probe = proxy.published.load().probes[0].clone();
        let check = gateway_userspace::health::Check {
            timeout: Duration::from_secs(5),
            ..gateway_userspace::health::Check::clone(&probe.check)
        };
        let probe = prober::Probe { check: Arc::new(check), ..probe };
        let done = prober::run(&probe, &prober::Path::default(), &Tasks::default()).await;
        assert_eq!(done.outcome, Outcome::Passed, "{protocol:?}: {done:?}");
        assert_eq!(endpoint.origin.connections(), 1);
    }
}
