//! Clients of every protocol, which check each answer to its last byte.

use std::{
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use http::{Method, Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::{
    body::Incoming,
    client::conn::{http1, http2},
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, ServerName},
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    task::JoinSet,
    time::MissedTickBehavior,
};
use tokio_rustls::TlsConnector;

use super::{agent::Addrs, endpoint::RESPONSES};

/// Bytes of the body that some requests have; what is retried is kept until then.
const UPLOAD: usize = 16 * 1_024;
/// So many requests have a connection in common.
const KEPT: u64 = 50;
/// Bound on one exchange.
const PATIENCE: Duration = Duration::from_secs(10);

/// How a client speaks.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Speech {
    Http1,
    Https1,
    H2c,
    H2,
}

impl Speech {
    pub(super) const ALL: [Self; 4] = [Self::Http1, Self::Https1, Self::H2c, Self::H2];

    fn is_h2(self) -> bool {
        matches!(self, Self::H2c | Self::H2)
    }

    fn is_secure(self) -> bool {
        matches!(self, Self::Https1 | Self::H2)
    }
}

/// What clients saw.
#[derive(Default)]
pub(super) struct Seen {
    pub(super) n_good: AtomicU64,
    pub(super) n_bad: AtomicU64,
    /// The first thing that went wrong.
    pub(super) first: OnceLock<String>,
}

/// One client.
pub(super) struct Client {
    speech: Speech,
    addrs: Addrs,
    tls: TlsConnector,
    open: Option<Connection>,
}

/// An open connection; what drives it ends with it.
struct Connection {
    sender: Sender,
    _driver: JoinSet<()>,
}

enum Sender {
    Http1(http1::SendRequest<Full<Bytes>>),
    H2(http2::SendRequest<Full<Bytes>>),
}

impl Sender {
    async fn send(&mut self, request: Request<Full<Bytes>>) -> Result<Response<Incoming>> {
        Ok(match self {
            Self::Http1(sender) => sender.send_request(request).await?,
            Self::H2(sender) => sender.send_request(request).await?,
        })
    }
}

impl Client {
    /// One that trusts `certificate`.
    pub(super) fn new(speech: Speech, addrs: Addrs, certificate: &CertificateDer<'static>) -> Result<Self> {
        let mut roots = RootCertStore::empty();
        roots.add(certificate.clone())?;
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = vec![if speech.is_h2() { b"h2".to_vec() } else { b"http/1.1".to_vec() }];
        Ok(Self { speech, addrs, tls: TlsConnector::from(Arc::new(config)), open: None })
    }

    /// Sends requests until `until`, so often or as fast as they are answered.
    pub(super) async fn run(mut self, every: Option<Duration>, until: Instant, seen: Arc<Seen>) {
        let mut ticks = tokio::time::interval(every.unwrap_or(Duration::from_secs(1)));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        for n in 0_u64.. {
            if Instant::now() >= until {
                return;
            }
            if every.is_some() {
                ticks.tick().await;
            }
            let outcome = tokio::time::timeout(PATIENCE, self.exchange(n)).await;
            let outcome = outcome.unwrap_or_else(|_| Err(anyhow::anyhow!("nothing in {PATIENCE:?}")));
            match outcome {
                Ok(()) => drop(seen.n_good.fetch_add(1, Ordering::Relaxed)),
                Err(error) => {
                    seen.n_bad.fetch_add(1, Ordering::Relaxed);
                    seen.first.get_or_init(|| format!("{:?}, request {n}: {error:#}", self.speech));
                    self.open = None;
                }
            }
            if n % KEPT == KEPT - 1 {
                self.open = None;
            }
        }
    }

    /// Every fourth request goes to endpoints of HTTP/2, every fifth has a body, every eighth gets a long response.
    async fn exchange(&mut self, n: u64) -> Result<()> {
        let prefix = if n % 4 == 3 { "/h2" } else { "" };
        let (page, len) = if n % 8 == 5 { ("/long", RESPONSES[1]) } else { ("/short", RESPONSES[0]) };
        let (method, sent) = if n % 5 == 4 { (Method::PUT, UPLOAD) } else { (Method::GET, 0) };
        let body = Full::new(Bytes::from(vec![b'b'; sent]));
        let open = match &mut self.open {
            Some(open) => open,
            none => none.insert(connect(self.speech, self.addrs, &self.tls).await.context("connecting")?),
        };
        let request = Request::builder().method(method.clone());
        let request = if self.speech.is_h2() {
            request.uri(format!("http://a{prefix}{page}"))
        } else {
            request.uri(format!("{prefix}{page}")).header("host", "a")
        };
        let doing = || format!("{method} {prefix}{page}");
        let response = open.sender.send(request.body(body)?).await.with_context(doing)?;
        let status = response.status();
        let got = response.into_body().collect().await.with_context(doing)?.to_bytes();
        ensure!(status == 200, "{} was answered {status}: {}", doing(), String::from_utf8_lossy(&got));
        ensure!(got.len() == len && got.iter().all(|byte| *byte == b'a'), "{}: {} bytes", doing(), got.len());
        Ok(())
    }
}

async fn connect(speech: Speech, addrs: Addrs, tls: &TlsConnector) -> Result<Connection> {
    let addr = if speech.is_secure() { addrs.secure } else { addrs.plain };
    let stream = TcpStream::connect(addr).await?;
    stream.set_nodelay(true)?;
    if speech.is_secure() {
        let name = ServerName::IpAddress(addr.ip().into());
        return shake(speech, tls.connect(name, stream).await?).await;
    }
    shake(speech, stream).await
}

async fn shake(
    speech: Speech,
    stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
) -> Result<Connection> {
    let (stream, mut driver) = (TokioIo::new(stream), JoinSet::new());
    let sender = if speech.is_h2() {
        let (sender, connection) = http2::handshake(TokioExecutor::new(), stream).await?;
        driver.spawn(async move { drop(connection.await) });
        Sender::H2(sender)
    } else {
        let (sender, connection) = http1::handshake(stream).await?;
        driver.spawn(async move { drop(connection.await) });
        Sender::Http1(sender)
    };
    Ok(Connection { sender, _driver: driver })
}
