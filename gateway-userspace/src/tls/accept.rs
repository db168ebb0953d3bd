//! The server's side of a handshake.

use std::{io, sync::Arc, time::Duration};

use rustls::{HandshakeKind, ServerConfig, server::NoServerSessionStorage};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::{TlsAcceptor, server::TlsStream};

use crate::{
    clock,
    taken::Taken,
    tls::{
        Context,
        client::{self, Demand, Identity},
        resolver::Resolver,
        ticket::{self, Ring, Scope, Ticketer},
    },
};

/// What a client and we agreed to speak.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Spoken {
    /// HTTP/1.1, or nothing was agreed.
    Http1,
    /// HTTP/2.
    Http2,
}

/// What one address accepts TLS with.
#[derive(Debug, Default)]
pub struct Terms {
    /// Certificates by name.
    pub resolver: Resolver,
    /// Keys of session tickets; none uses those of the process.
    pub tickets: Option<Ring>,
    /// Which certificates clients need, and the PEM bundle they have to lead to; none asks for no certificate.
    pub clients: Option<(Demand, Vec<u8>)>,
}

/// Why TLS cannot be accepted so.
#[derive(Debug)]
pub enum Error {
    /// Clients cannot be checked.
    Clients(client::Error),
    /// The library refuses.
    Tls(rustls::Error),
}

impl std::fmt::Display for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Clients(cause) => cause.fmt(f),
            Self::Tls(cause) => write!(f, "TLS cannot be set up: {cause}"),
        }
    }
}

impl std::error::Error for Error {}

/// Accepts TLS with the certificates of one address.
#[derive(Clone)]
pub struct Acceptor {
    tls: TlsAcceptor,
    scope: Scope,
}

impl std::fmt::Debug for Acceptor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Acceptor")
    }
}

/// A finished handshake.
#[derive(Debug)]
pub struct Accepted<S> {
    /// The connection; in room of its own, because it is large and goes from hand to hand.
    pub stream: Box<TlsStream<S>>,
    /// What is spoken on it.
    pub spoken: Spoken,
    /// Who the client proved to be; none without a certificate.
    pub identity: Option<Arc<Identity>>,
    /// Whether an earlier session went on, so that nothing had to be signed.
    pub is_resumed: bool,
}

impl<S: Taken> Taken for TlsStream<S> {
    fn n_taken(&self) -> Option<u64> {
        self.get_ref().0.n_taken()
    }

    fn n_queued(&self) -> Option<u64> {
        self.get_ref().0.n_queued()
    }

    /// Without the alert that closes it, it has broken off (RFC 8446, section 6.1), which not every client looks at.
    fn break_off(&self) {
        self.get_ref().0.break_off();
    }
}

impl Acceptor {
    /// TLS 1.2 and 1.3, HTTP/2 before HTTP/1.1, resumption by tickets.
    pub fn new(context: &Context, terms: Terms) -> Result<Self, Error> {
        let builder = ServerConfig::builder_with_provider(Arc::clone(&context.provider))
            .with_safe_default_protocol_versions()
            .map_err(Error::Tls)?;
        let (builder, scope) = match &terms.clients {
            None => (builder.with_no_client_auth(), Scope::of(&[])),
            Some((demand, trust_pem)) => {
                let verifier = client::verifier(context, *demand, trust_pem).map_err(Error::Clients)?;
                let word: &[u8] = match demand {
                    Demand::Required => b"required",
                    Demand::Optional => b"optional",
                };
                (builder.with_client_cert_verifier(verifier), Scope::of(&[word, trust_pem]))
            }
        };
        let mut config = builder.with_cert_resolver(Arc::new(terms.resolver));
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        let ring = terms.tickets.unwrap_or_else(|| context.tickets.clone());
        config.ticketer = Arc::new(Ticketer::new(ring, scope));
        // What a session needs is with the client, so that no number of clients fills a store here.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        // A resumed session needs one round trip less; two tickets serve the two connections that browsers open.
        config.send_tls13_tickets = 2;
        Ok(Self { tls: TlsAcceptor::from(Arc::new(config)), scope })
    }

    /// Which clients are let in. Certificates of our own do not count.
    pub const fn scope(&self) -> Scope {
        self.scope
    }

    /// Shakes hands; `TimedOut` when it takes longer than `timeout`.
    pub async fn accept<S>(&self, stream: S, timeout: Duration) -> io::Result<Accepted<S>>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let stream = match tokio::time::timeout(timeout, ticket::ageing(self.tls.accept(stream))).await {
            Ok(accepted) => accepted?,
            Err(_) => return Err(io::Error::from(io::ErrorKind::TimedOut)),
        };
        let connection = stream.get_ref().1;
        let spoken = match connection.alpn_protocol() {
            Some(b"h2") => Spoken::Http2,
            Some(_) | None => Spoken::Http1,
        };
        let is_resumed = connection.handshake_kind() == Some(HandshakeKind::Resumed);
        let identity = match connection.peer_certificates().and_then(|chain| chain.first()) {
            // A certificate that was found good and cannot be read must not turn into nobody.
            Some(leaf) => {
                // Nobody looked at it again; a full handshake would have ended here.
                if is_resumed && client::is_over(leaf, clock::wall_s()) {
                    return Err(io::Error::new(
                        io::ErrorKind::InvalidData,
                        "the client's certificate is over",
                    ));
                }
                Some(Arc::new(Identity::of(leaf).ok_or(io::ErrorKind::InvalidData)?))
            }
            None => None,
        };
        Ok(Accepted { stream: Box::new(stream), spoken, identity, is_resumed })
    }
}
