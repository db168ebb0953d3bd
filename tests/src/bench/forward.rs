//! The bare forwarder: hyper on both sides, rustls towards the client, one thread, and nothing else. What it costs is what
//! our libraries cost; the rest of our cost is our own. It runs as a process of its own, so that it can be measured.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
};

use anyhow::{Context as _, Result, bail};
use bytes::Bytes;
use http::{HeaderValue, Request, Response, StatusCode, Uri, Version, header};
use http_body_util::{BodyExt as _, Full};
use hyper::{
    body::Incoming,
    client::conn::http1 as client,
    server::conn::{http1, http2},
    service::service_fn,
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::{
    ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
};
use tokio_rustls::TlsAcceptor;

/// How it is called.
const USAGE: &str = "usage: sluice-bench forward HTTP_ADDRESS HTTPS_ADDRESS BACKEND_ADDRESS CERTIFICATE KEY";

/// Idle connections that are kept; more than any load opens.
const MOST_IDLE: usize = 1_024;

type Sender = client::SendRequest<Incoming>;

/// Connections to the backend that nobody uses now.
struct Backend {
    addr: SocketAddr,
    idle: Mutex<Vec<Sender>>,
}

impl Backend {
    async fn take(&self) -> Result<Sender> {
        loop {
            let kept = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
            let Some(mut sender) = kept else { break };
            if sender.ready().await.is_ok() {
                return Ok(sender);
            }
        }
        let stream = TcpStream::connect(self.addr).await?;
        stream.set_nodelay(true)?;
        let (sender, connection) = client::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        Ok(sender)
    }

    fn keep(&self, sender: Sender) {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() < MOST_IDLE {
            idle.push(sender);
        }
    }

    async fn forward(&self, mut request: Request<Incoming>) -> Result<Response<Full<Bytes>>> {
        if let Some(authority) = request.uri().authority() {
            let host = HeaderValue::from_str(authority.as_str())?;
            request.headers_mut().insert(header::HOST, host);
            let path = request.uri().path_and_query().map_or("/", |path| path.as_str());
            *request.uri_mut() = path.parse::<Uri>()?;
        }
        *request.version_mut() = Version::HTTP_11;
        // It belongs to the other connection; passed on, it would end this one after each request.
        request.headers_mut().remove(header::CONNECTION);
        let mut sender = self.take().await?;
        let (mut head, body) = sender.send_request(request).await?.into_parts();
        let body = body.collect().await?.to_bytes();
        self.keep(sender);
        head.headers.remove(header::CONNECTION);
        Ok(Response::from_parts(head, Full::new(body)))
    }
}

/// The forwarder's own main function.
///
/// # Errors
/// When it cannot listen.
pub fn main(words: &[&str]) -> Result<()> {
    let [plain, secure, backend, chain, key] = words else { bail!(USAGE) };
    let addrs = (plain.parse().context(USAGE)?, secure.parse().context(USAGE)?);
    let backend = Arc::new(Backend { addr: backend.parse().context(USAGE)?, idle: Mutex::default() });
    let tls = tls(chain, key)?;
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(serve(addrs, backend, tls))
}

fn tls(chain: &str, key: &str) -> Result<TlsAcceptor> {
    let chain: Vec<_> = CertificateDer::pem_file_iter(chain)?.collect::<Result<_, _>>()?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(chain, PrivateKeyDer::from_pem_file(key)?)?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}

async fn serve(addrs: (SocketAddr, SocketAddr), backend: Arc<Backend>, tls: TlsAcceptor) -> Result<()> {
    let (plain, secure) = (TcpListener::bind(addrs.0).await?, TcpListener::bind(addrs.1).await?);
    loop {
        tokio::select! {
            accepted = plain.accept() => {
                let (stream, _) = accepted?;
                stream.set_nodelay(true)?;
                tokio::spawn(connection(stream, false, Arc::clone(&backend)));
            }
            accepted = secure.accept() => {
                let (stream, _) = accepted?;
                stream.set_nodelay(true)?;
                let (tls, backend) = (tls.clone(), Arc::clone(&backend));
                tokio::spawn(async move {
                    // A client that breaks off its handshake is its own affair.
                    let Ok(stream) = tls.accept(stream).await else { return };
                    let is_h2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
                    connection(stream, is_h2, backend).await;
                });
            }
        }
    }
}

async fn connection<S>(stream: S, is_h2: bool, backend: Arc<Backend>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let service = service_fn(move |request| {
        let backend = Arc::clone(&backend);
        async move {
            let answer = backend.forward(request).await;
            Ok::<_, std::convert::Infallible>(answer.unwrap_or_else(|error| {
                let mut answer = Response::new(Full::new(Bytes::from(error.to_string())));
                *answer.status_mut() = StatusCode::BAD_GATEWAY;
                answer
            }))
        }
    });
    let stream = TokioIo::new(stream);
    // How a connection ends is the client's affair.
    if is_h2 {
        drop(http2::Builder::new(TokioExecutor::new()).serve_connection(stream, service).await);
    } else {
        drop(http1::Builder::new().serve_connection(stream, service).await);
    }
}
