//! Clients: HTTP/1.1 and HTTP/2, in plain text and behind TLS, and raw bytes.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::{
    body::Incoming,
    client::conn::{http1, http2},
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::{
    ClientConfig, ConfigBuilder, DigitallySignedStruct, SignatureScheme, SupportedProtocolVersion,
    client::{
        WantsClientCert,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    pki_types::{CertificateDer, ServerName, UnixTime},
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
};
use tokio_rustls::{TlsConnector, client::TlsStream};

#[derive(Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Answer {
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }
}

pub enum Client {
    Http1(http1::SendRequest<Full<Bytes>>),
    Http2(http2::SendRequest<Full<Bytes>>),
}

impl Client {
    pub async fn http1(addr: SocketAddr) -> Self {
        Self::over_http1(TcpStream::connect(addr).await.unwrap()).await
    }

    pub async fn http2(addr: SocketAddr) -> Self {
        Self::over_http2(TcpStream::connect(addr).await.unwrap()).await
    }

    pub async fn over_http1<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(stream: S) -> Self {
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(async move { drop(connection.await) });
        Self::Http1(sender)
    }

    pub async fn over_http2<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(stream: S) -> Self {
        let (sender, connection) =
            http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
        tokio::spawn(async move { drop(connection.await) });
        Self::Http2(sender)
    }

    pub async fn send(&mut self, request: Request<Full<Bytes>>) -> hyper::Result<Answer> {
        let response: Response<Incoming> = match self {
            Self::Http1(sender) => {
                sender.ready().await?;
                sender.send_request(request).await?
            }
            Self::Http2(sender) => {
                sender.ready().await?;
                sender.send_request(request).await?
            }
        };
        let (parts, body) = response.into_parts();
        let body = body.collect().await?.to_bytes();
        Ok(Answer { status: parts.status, headers: parts.headers, body })
    }

    pub async fn get(&mut self, host: &str, path: &str) -> hyper::Result<Answer> {
        self.call("GET", host, path, "").await
    }

    pub async fn call(
        &mut self,
        method: &str,
        host: &str,
        path: &str,
        body: &'static str,
    ) -> hyper::Result<Answer> {
        let builder = Request::builder().method(method);
        let builder = match self {
            Self::Http1(_) => builder.uri(path).header("host", host),
            Self::Http2(_) => builder.uri(format!("http://{host}{path}")),
        };
        self.send(builder.body(Full::new(Bytes::from_static(body.as_bytes()))).unwrap()).await
    }
}

/// One request on a connection of its own.
pub async fn get(addr: SocketAddr, host: &str, path: &str) -> Answer {
    Client::http1(addr).await.get(host, path).await.unwrap()
}

/// A TLS connection that trusts anybody: the tests look at the certificate themselves.
pub async fn tls(addr: SocketAddr, name: &str, alpn: &[&str]) -> std::io::Result<TlsStream<TcpStream>> {
    let mut config = builder(rustls::ALL_VERSIONS).with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
    tls_with(addr, name, config).await
}

/// The same with these settings.
pub async fn tls_with(
    addr: SocketAddr,
    name: &str,
    config: ClientConfig,
) -> std::io::Result<TlsStream<TcpStream>> {
    tls_of(addr, name, Arc::new(config)).await
}

/// The same with settings that hold sessions.
pub async fn tls_of(
    addr: SocketAddr,
    name: &str,
    config: Arc<ClientConfig>,
) -> std::io::Result<TlsStream<TcpStream>> {
    tls_over(TcpStream::connect(addr).await?, name, config).await
}

/// The same over a connection that is open.
pub async fn tls_over(
    stream: TcpStream,
    name: &str,
    config: Arc<ClientConfig>,
) -> std::io::Result<TlsStream<TcpStream>> {
    let name = ServerName::try_from(name.to_owned()).unwrap();
    TlsConnector::from(config).connect(name, stream).await
}

/// A connection that takes little of what is not read.
pub async fn narrow(addr: SocketAddr) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(16 * 1024).unwrap();
    socket.connect(addr).await.unwrap()
}

/// Reads a little of a lot, again and again for so long.
pub async fn slowly<S: AsyncRead + Unpin>(mut stream: S, lasting: Duration) -> S {
    let started = Instant::now();
    while started.elapsed() < lasting {
        let mut some = [0; 8 * 1024];
        let read = tokio::time::timeout(Duration::from_secs(5), stream.read_exact(&mut some)).await;
        let text = String::from_utf8_lossy(&some);
        assert!(matches!(read, Ok(Ok(_))), "{read:?} behind {:?}", text.trim_end_matches('\0'));
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    stream
}

/// Settings of a client that trusts anybody.
pub fn builder(
    versions: &[&'static SupportedProtocolVersion],
) -> ConfigBuilder<ClientConfig, WantsClientCert> {
    builder_of(versions, None)
}

/// The same, with these signatures alone.
pub fn builder_of(
    versions: &[&'static SupportedProtocolVersion],
    schemes: Option<Vec<SignatureScheme>>,
) -> ConfigBuilder<ClientConfig, WantsClientCert> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let schemes = schemes.unwrap_or_else(|| provider.signature_verification_algorithms.supported_schemes());
    ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(versions)
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anybody(schemes)))
}

/// Sends a request and reads, as long as it takes for tickets to arrive.
pub async fn read_a_little(stream: &mut TlsStream<TcpStream>) -> std::io::Result<()> {
    stream.write_all(b"GET / HTTP/1.1\r\nhost: a.test\r\n\r\n").await?;
    match stream.read(&mut [0; 256]).await? {
        0 => Err(std::io::ErrorKind::UnexpectedEof.into()),
        _ => Ok(()),
    }
}

pub fn served_certificate(stream: &TlsStream<TcpStream>) -> Vec<u8> {
    stream.get_ref().1.peer_certificates().unwrap()[0].to_vec()
}

/// Sends bytes and reads until the peer closes.
pub async fn raw(addr: SocketAddr, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(addr).await.unwrap();
    stream.write_all(bytes).await.unwrap();
    let mut answer = Vec::new();
    drop(tokio::time::timeout(Duration::from_secs(5), stream.read_to_end(&mut answer)).await);
    String::from_utf8_lossy(&answer).into_owned()
}

#[derive(Debug)]
struct Anybody(Vec<SignatureScheme>);

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.clone()
    }
}

/// The 99th percentile of requests one after the other.
pub async fn p99(addr: SocketAddr) -> Duration {
    let mut client = Client::http1(addr).await;
    let mut times = Vec::new();
    for _ in 0..300 {
        let started = Instant::now();
        assert_eq!(client.get("a", "/").await.unwrap().status, 200);
        times.push(started.elapsed());
    }
    times.sort_unstable();
    times.into_iter().nth(296).unwrap()
}
