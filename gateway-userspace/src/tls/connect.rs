//! The client's side of a handshake, towards endpoints: whom to trust, which name to expect, who we are.

use std::{
    fmt, io,
    pin::Pin,
    sync::Arc,
    task::{Context as Task, Poll, ready},
};

use aws_lc_rs::digest;
use rustls::{
    AlertDescription, ClientConfig, RootCertStore,
    client::{ResolvesClientCert, Resumption},
    pki_types::{CertificateDer, ServerName, pem::PemObject as _},
    sign::SingleCertAndKey,
};
use tokio::io::{AsyncBufRead as _, AsyncRead, AsyncWrite, ReadBuf};
use tokio_rustls::{TlsConnector, client::TlsStream};

use crate::tls::{Context, accept::Spoken, certificate::Certificate};

/// Authorities that an endpoint's certificate may lead to.
#[derive(Clone, Debug)]
pub struct Trust {
    roots: Arc<RootCertStore>,
    digest: [u8; 32],
}

/// What is asked of an endpoint, and said to it.
#[derive(Debug)]
pub struct Terms<'a> {
    /// Whom to trust.
    pub trust: &'a Trust,
    /// The name or address that the certificate has to be good for; a name is also sent, so that the endpoint can choose.
    pub name: &'a str,
    /// Who we are; none says nothing.
    pub certificate: Option<&'a Certificate>,
    /// What is going to be spoken.
    pub spoken: Spoken,
}

/// Why TLS towards endpoints cannot be set up.
#[derive(Debug)]
pub enum Error {
    /// The authorities cannot be read.
    Trust(String),
    /// The name is neither a host name nor an address.
    Name,
    /// The library refuses.
    Tls(rustls::Error),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Trust(cause) => write!(
                f,
                "the trust bundle cannot be used: {cause}; give PEM blocks `CERTIFICATE` of certificate authorities"
            ),
            Self::Name => f.write_str("`serverName` cannot be used; write a host name or an address"),
            Self::Tls(cause) => write!(f, "TLS cannot be set up: {cause}"),
        }
    }
}

impl std::error::Error for Error {}

impl Trust {
    /// Reads a bundle. With `is_lenient`, authorities that cannot be used are left out, as long as there are others: that of
    /// the system is nobody's to correct.
    pub fn from_pem(pem: &[u8], is_lenient: bool) -> Result<Self, Error> {
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(pem) {
            let added = certificate
                .map_err(|cause| cause.to_string())
                .and_then(|certificate| roots.add(certificate).map_err(|cause| cause.to_string()));
            match added {
                Err(cause) if !is_lenient => return Err(Error::Trust(cause)),
                Ok(()) | Err(_) => {}
            }
        }
        if roots.is_empty() {
            return Err(Error::Trust("it holds no authority".to_owned()));
        }
        Ok(Self { roots: Arc::new(roots), digest: sha256(&[pem]) })
    }
}

/// Connects over TLS. Two are equal when their connections are exchangeable.
#[derive(Clone)]
pub struct Connector {
    config: Arc<ClientConfig>,
    name: ServerName<'static>,
    spoken: Spoken,
    digest: [u8; 32],
}

impl fmt::Debug for Connector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connector").field("name", &self.name).finish_non_exhaustive()
    }
}

impl PartialEq for Connector {
    fn eq(&self, other: &Self) -> bool {
        self.digest == other.digest
    }
}

impl Eq for Connector {}

impl Connector {
    /// TLS 1.2 and 1.3; sessions resume within this connector alone, so nothing outlives a change of its terms.
    pub fn new(context: &Context, terms: &Terms<'_>) -> Result<Self, Error> {
        let name = ServerName::try_from(terms.name.to_owned()).map_err(|_| Error::Name)?;
        let builder = ClientConfig::builder_with_provider(Arc::clone(&context.provider))
            .with_safe_default_protocol_versions()
            .map_err(Error::Tls)?
            .with_root_certificates(Arc::clone(&terms.trust.roots));
        let mut config = match terms.certificate {
            None => builder.with_no_client_auth(),
            Some(certificate) => {
                let resolver: Arc<dyn ResolvesClientCert> =
                    Arc::new(SingleCertAndKey::from(Arc::clone(&certificate.key)));
                builder.with_client_cert_resolver(resolver)
            }
        };
        config.alpn_protocols = vec![alpn(terms.spoken).to_vec()];
        let certificate: Vec<&[u8]> = match terms.certificate {
            None => Vec::new(),
            Some(certificate) => certificate.key.cert.iter().map(AsRef::as_ref).collect(),
        };
        let parts =
            [&[&terms.trust.digest, terms.name.as_bytes(), alpn(terms.spoken)], &*certificate].concat();
        Ok(Self { config: Arc::new(config), name, spoken: terms.spoken, digest: sha256(&parts) })
    }

    /// The same, with a full handshake each time: one that goes on from an earlier session looks at no certificate.
    #[must_use]
    pub fn without_resumption(&self) -> Self {
        let mut config = ClientConfig::clone(&self.config);
        config.resumption = Resumption::disabled();
        Self { config: Arc::new(config), ..self.clone() }
    }

    /// What tells it from others, as SHA-256.
    pub const fn digest(&self) -> [u8; 32] {
        self.digest
    }

    /// Shakes hands. Without a bound: whoever opens a connection has one for all of it.
    ///
    /// # Errors
    /// `InvalidData` where TLS says no, and those of the stream.
    pub async fn connect<S>(&self, stream: S) -> io::Result<Stream<S>>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let connector = TlsConnector::from(Arc::clone(&self.config));
        let stream = connector.connect(self.name.clone(), stream).await?;
        let agreed = stream.get_ref().1.alpn_protocol();
        // An endpoint of HTTP/1.1 may know nothing of such an agreement.
        if self.spoken == Spoken::Http2 && agreed != Some(alpn(Spoken::Http2)) {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the endpoint does not offer HTTP/2"));
        }
        Ok(Stream { inner: stream, has_read: false, is_refused: false })
    }
}

/// An open connection. It fails with `PermissionDenied` when the endpoint did not accept our certificate, or misses one: with
/// TLS 1.3 it says so after the handshake is over for us, and then has looked at nothing that we sent.
#[derive(Debug)]
pub struct Stream<S> {
    inner: TlsStream<S>,
    /// Something came after the handshake, so that it was over for the endpoint, too.
    has_read: bool,
    is_refused: bool,
}

impl<S> Stream<S> {
    /// What is below.
    pub fn get_ref(&self) -> &S {
        self.inner.get_ref().0
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Stream<S> {
    fn told(&mut self, cause: io::Error) -> io::Error {
        let told = cause.get_ref().and_then(|source| source.downcast_ref());
        if let Some(rustls::Error::AlertReceived(alert)) = told
            && is_about_certificate(*alert)
        {
            self.is_refused = true;
        }
        if self.is_refused { io::Error::new(io::ErrorKind::PermissionDenied, cause) } else { cause }
    }

    /// An endpoint that closes without reading leaves its word behind: writing fails, and it can still be read. Whatever else
    /// is there stays for the reader.
    fn unwritten(&mut self, cx: &mut Task<'_>, cause: io::Error) -> Poll<io::Error> {
        if !self.has_read {
            // A socket that cannot be written to any more has something to be read, be it its end: this wait is short.
            match ready!(Pin::new(&mut self.inner).poll_fill_buf(cx)) {
                Err(word) => drop(self.told(word)),
                Ok(_) => self.has_read = true,
            }
        }
        Poll::Ready(self.told(cause))
    }

    fn poll_written<T>(&mut self, cx: &mut Task<'_>, written: io::Result<T>) -> Poll<io::Result<T>> {
        Poll::Ready(match written {
            Ok(written) => Ok(written),
            Err(cause) => Err(ready!(self.unwritten(cx, cause))),
        })
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Stream<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Task<'_>, bytes: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let read = ready!(Pin::new(&mut this.inner).poll_read(cx, bytes));
        this.has_read = true;
        Poll::Ready(read.map_err(|cause| this.told(cause)))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Stream<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Task<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = ready!(Pin::new(&mut this.inner).poll_write(cx, bytes));
        this.poll_written(cx, written)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Task<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = ready!(Pin::new(&mut this.inner).poll_write_vectored(cx, slices));
        this.poll_written(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Task<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let flushed = ready!(Pin::new(&mut this.inner).poll_flush(cx));
        this.poll_written(cx, flushed)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Task<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_shutdown(cx)
    }
}

/// What an endpoint says about our certificate (RFC 8446, section 6.2).
const fn is_about_certificate(alert: AlertDescription) -> bool {
    matches!(
        alert,
        AlertDescription::AccessDenied
            | AlertDescription::BadCertificate
            | AlertDescription::CertificateExpired
            | AlertDescription::CertificateRequired
            | AlertDescription::CertificateRevoked
            | AlertDescription::CertificateUnknown
            | AlertDescription::HandshakeFailure
            | AlertDescription::UnknownCA
            | AlertDescription::UnsupportedCertificate
    )
}

const fn alpn(spoken: Spoken) -> &'static [u8] {
    match spoken {
        Spoken::Http1 => b"http/1.1",
        Spoken::Http2 => b"h2",
    }
}

/// Of parts of any length, so that no two lists of them meet.
fn sha256(parts: &[&[u8]]) -> [u8; 32] {
    let mut context = digest::Context::new(&digest::SHA256);
    for part in parts {
        context.update(&u64::try_from(part.len()).unwrap_or(u64::MAX).to_be_bytes());
        context.update(part);
    }
    let mut sum = [0; 32];
    // The digest is as long as its algorithm says.
    sum.copy_from_slice(context.finish().as_ref());
    sum
}
