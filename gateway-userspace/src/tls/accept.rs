//! The server's side of a handshake.

use std::{io, sync::Arc, time::Duration};

use rustls::ServerConfig;
use tokio::net::TcpStream;
use tokio_rustls::{TlsAcceptor, server::TlsStream};

use crate::tls::{Context, resolver::Resolver};

/// What a client and we agreed to speak.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Spoken {
    /// HTTP/1.1, or nothing was agreed.
    Http1,
    /// HTTP/2.
    Http2,
}

/// Accepts TLS with the certificates of one address.
#[derive(Clone)]
pub struct Acceptor(TlsAcceptor);

impl std::fmt::Debug for Acceptor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Acceptor")
    }
}

impl Acceptor {
    /// TLS 1.2 and 1.3, HTTP/2 before HTTP/1.1, resumption by tickets.
    pub fn new(context: &Context, resolver: Resolver) -> Result<Self, rustls::Error> {
        let mut config = ServerConfig::builder_with_provider(Arc::clone(&context.provider))
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(resolver));
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        config.ticketer = Arc::clone(&context.tickets);
        // A resumed session needs one round trip less; two tickets serve the two connections that browsers open.
        config.send_tls13_tickets = 2;
        Ok(Self(TlsAcceptor::from(Arc::new(config))))
    }

    /// Shakes hands; `TimedOut` when it takes longer than `timeout`.
    pub async fn accept(
        &self,
        stream: TcpStream,
        timeout: Duration,
    ) -> io::Result<(TlsStream<TcpStream>, Spoken)> {
        let stream = match tokio::time::timeout(timeout, self.0.accept(stream)).await {
            Ok(accepted) => accepted?,
            Err(_) => return Err(io::Error::from(io::ErrorKind::TimedOut)),
        };
        let spoken = match stream.get_ref().1.alpn_protocol() {
            Some(b"h2") => Spoken::Http2,
            Some(_) | None => Spoken::Http1,
        };
        Ok((stream, spoken))
    }
}
