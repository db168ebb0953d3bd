//! A client for what wrk and h2load cannot do: a new connection for each request, with a TLS handshake that is known to
//! have been full or resumed, at a fixed rate if wanted; and thousands of connections that are opened and then left alone.

use std::{
    future::Future,
    net::SocketAddr,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt as _, Empty};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::{
    ClientConfig, HandshakeKind, RootCertStore,
    client::Resumption,
    crypto::{CryptoProvider, aws_lc_rs},
    pki_types::{CertificateDer, IpAddr, ServerName, pem::PemObject as _},
};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::TcpStream,
};
use tokio_rustls::TlsConnector;

use super::load::{Amount, CONNECTIONS, Measured};
use crate::netns::Ns;

/// How a connection begins.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Opening {
    /// In plain text.
    Plain,
    /// With a handshake that knows nothing of the one before.
    Full,
    /// With a handshake that resumes a session.
    Resumed,
}

/// Bound on one exchange; slower ones are an error.
const PATIENCE: Duration = Duration::from_secs(10);
/// Connections that are opened at the same time.
const AT_ONCE: usize = 64;

/// Whom to ask, and how to know it.
#[derive(Clone)]
struct Target {
    addr: SocketAddr,
    tls: Option<TlsConnector>,
}

impl Target {
    /// One group for the exchange of keys, so that every proxy has the same work.
    fn new(port: u16, certificate: Option<&Path>, is_resuming: bool, alpn: &[u8]) -> Result<Self> {
        let addr = SocketAddr::from(([127, 0, 0, 1], port));
        let Some(certificate) = certificate else { return Ok(Self { addr, tls: None }) };
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(certificate)?)?;
        let provider =
            CryptoProvider { kx_groups: vec![aws_lc_rs::kx_group::X25519], ..aws_lc_rs::default_provider() };
        let mut config = ClientConfig::builder_with_provider(Arc::new(provider))
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = vec![alpn.to_vec()];
        config.resumption = if is_resuming { Resumption::default() } else { Resumption::disabled() };
        Ok(Self { addr, tls: Some(TlsConnector::from(Arc::new(config))) })
    }

    async fn connect(&self) -> Result<Box<dyn Stream>> {
        let stream = TcpStream::connect(self.addr).await?;
        stream.set_nodelay(true)?;
        Ok(match &self.tls {
            None => Box::new(stream),
            Some(tls) => {
                Box::new(tls.connect(ServerName::IpAddress(IpAddr::from(self.addr.ip())), stream).await?)
            }
        })
    }
}

/// What connections have in common.
trait Stream: AsyncRead + AsyncWrite + Send + Unpin {
    fn is_resumed(&self) -> bool;
}

impl Stream for TcpStream {
    fn is_resumed(&self) -> bool {
        false
    }
}

impl Stream for tokio_rustls::client::TlsStream<TcpStream> {
    fn is_resumed(&self) -> bool {
        self.get_ref().1.handshake_kind() == Some(HandshakeKind::Resumed)
    }
}

/// Clients that are ready to connect.
pub struct Clients {
    opening: Opening,
    targets: Vec<Target>,
}

/// Makes as many clients as there are connections at a time, each with a session of its own to resume if that is wanted.
///
/// # Errors
/// When a first answer is not good.
pub fn prepare(ns: &Ns, port: u16, certificate: &Path, opening: Opening) -> Result<Clients> {
    let certificate = (opening != Opening::Plain).then_some(certificate);
    let is_resuming = opening == Opening::Resumed;
    let targets: Vec<_> = (0..CONNECTIONS)
        .map(|_| Target::new(port, certificate, is_resuming, b"http/1.1"))
        .collect::<Result<_>>()?;
    if is_resuming {
        run(ns, async {
            for target in &targets {
                one(target, &Counts::default()).await?;
            }
            Ok(())
        })?;
    }
    Ok(Clients { opening, targets })
}

/// Sends each request over a connection of its own.
///
/// # Errors
/// When an answer is not good, or when handshakes were not what they should have been.
pub fn reconnect(ns: &Ns, clients: Clients, amount: Amount, time: Duration) -> Result<Measured> {
    let Clients { opening, targets } = clients;
    run(ns, async move {
        let counts = Arc::new(Counts::default());
        let started = Instant::now();
        let pace = match amount {
            Amount::Saturation => None,
            Amount::Rate(rate) => Some(Duration::from_secs(1) * CONNECTIONS / rate),
        };
        let mut tasks = tokio::task::JoinSet::new();
        for (idx, target) in (0..CONNECTIONS).zip(targets) {
            let counts = Arc::clone(&counts);
            tasks.spawn(async move { many(&target, &counts, pace, idx, started + time).await });
        }
        let mut latencies = Vec::new();
        while let Some(done) = tasks.join_next().await {
            latencies.extend(done??);
        }
        let seconds = started.elapsed().as_secs_f64();
        latencies.sort_unstable();
        let n_requests = u64::try_from(latencies.len())?;
        let n_resumed = counts.resumed.load(Ordering::Relaxed);
        let is_as_wanted = match opening {
            Opening::Plain | Opening::Full => n_resumed == 0,
            // A ticket that came too late is missed by the next connection.
            Opening::Resumed => n_resumed * 100 >= n_requests * 98,
        };
        ensure!(is_as_wanted, "{n_resumed} of {n_requests} handshakes were resumed");
        ensure!(n_requests > 0, "nothing was answered");
        Ok(Measured { n_requests, seconds, latencies_us: latencies })
    })
}

#[derive(Debug, Default)]
struct Counts {
    resumed: AtomicU64,
}

async fn many(
    target: &Target,
    counts: &Counts,
    pace: Option<Duration>,
    idx: u32,
    until: Instant,
) -> Result<Vec<u32>> {
    let mut latencies = Vec::new();
    let mut next = Instant::now() + pace.unwrap_or_default() * idx / CONNECTIONS;
    loop {
        if let Some(pace) = pace {
            tokio::time::sleep_until(next.into()).await;
            next += pace;
        }
        let started = Instant::now();
        if started >= until {
            return Ok(latencies);
        }
        tokio::time::timeout(PATIENCE, one(target, counts)).await.context("no answer in time")??;
        latencies.push(u32::try_from(started.elapsed().as_micros())?);
    }
}

async fn one(target: &Target, counts: &Counts) -> Result<()> {
    let mut stream = target.connect().await?;
    if stream.is_resumed() {
        counts.resumed.fetch_add(1, Ordering::Relaxed);
    }
    stream.write_all(b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n").await?;
    let mut answer = Vec::with_capacity(4_096);
    // How TLS ends is not looked at: a missing `close_notify` says nothing about a body of known length.
    let _ended = stream.read_to_end(&mut answer).await;
    ensure!(
        answer.starts_with(b"HTTP/1.1 200") && answer.len() > super::proxy::RESPONSE,
        "the answer was {:?}",
        String::from_utf8_lossy(&answer)
    );
    Ok(())
}

/// Opens `n` connections one request each was answered on, and leaves them alone while `meanwhile` runs: with HTTP/2
/// over TLS, or else with HTTP/1.1 in plain text.
///
/// # Errors
/// When a connection fails.
pub fn idle<T: Send>(
    ns: &Ns,
    port: u16,
    certificate: Option<&Path>,
    n: usize,
    meanwhile: impl FnOnce() -> Result<T> + Send,
) -> Result<T> {
    let target = Target::new(port, certificate, false, b"h2")?;
    run(ns, async move {
        let mut opening = tokio::task::JoinSet::new();
        let mut held = Vec::with_capacity(n);
        for _ in 0..n {
            if opening.len() >= AT_ONCE {
                held.extend(opening.join_next().await.transpose()?.transpose()?);
            }
            let target = target.clone();
            opening.spawn(async move { tokio::time::timeout(PATIENCE, hold(&target)).await? });
        }
        while let Some(done) = opening.join_next().await {
            held.push(done??);
        }
        // What is freed late is freed by now.
        tokio::time::sleep(Duration::from_secs(2)).await;
        ensure!(held.len() == n, "{} of {n} connections are open", held.len());
        meanwhile()
    })
}

/// An open connection.
enum Held {
    Http1 { _stream: Box<dyn Stream> },
    Http2 { _sender: http2::SendRequest<Empty<Bytes>> },
}

async fn hold(target: &Target) -> Result<Held> {
    let mut stream = target.connect().await?;
    if target.tls.is_none() {
        stream.write_all(b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n").await?;
        let mut n = 0;
        let mut answer = [0; 2_048];
        while n < super::proxy::RESPONSE {
            let read = stream.read(answer.get_mut(n..).unwrap_or_default()).await?;
            ensure!(read > 0, "the connection was closed");
            n += read;
        }
        return Ok(Held::Http1 { _stream: stream });
    }
    let (mut sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    let request = Request::get("https://127.0.0.1/").body(Empty::new())?;
    let response = sender.send_request(request).await?;
    ensure!(response.status() == 200, "the answer was {}", response.status());
    response.into_body().collect().await?;
    Ok(Held::Http2 { _sender: sender })
}

/// Runs a client inside the namespace, on the core of the load.
fn run<T: Send>(ns: &Ns, work: impl Future<Output = Result<T>> + Send) -> Result<T> {
    ns.run(|| {
        let mut cores = nix::sched::CpuSet::new();
        cores.set(super::load::CORE.parse()?)?;
        nix::sched::sched_setaffinity(nix::unistd::Pid::from_raw(0), &cores)?;
        tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(work)
    })
}
