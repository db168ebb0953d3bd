//! One certificate: read from PEM, checked against its key, with the names it is good for.

use std::{fmt, sync::Arc};

use rustls::{
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    sign::CertifiedKey,
};

use crate::{
    clock,
    ocsp::{self, ask::Unasked},
    tls::{Context, fetched::Fetched},
};

/// A certificate that can be served.
#[derive(Clone)]
pub struct Certificate {
    pub(crate) key: Arc<CertifiedKey>,
    names: Vec<String>,
    not_after_s: i64,
    staple: Option<Staple>,
    fetched: Option<Arc<Fetched>>,
}

/// What the authority says about a certificate.
#[derive(Clone, Debug)]
pub(crate) struct Staple {
    /// The certificate with it.
    pub(crate) key: Arc<CertifiedKey>,
    /// Until when it is good, in seconds since 1970.
    pub(crate) until_s: i64,
}

impl fmt::Debug for Certificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Certificate").field("names", &self.names).finish_non_exhaustive()
    }
}

/// Why a certificate cannot be served.
#[derive(Debug)]
pub enum Error {
    /// The chain is not PEM of X.509 certificates.
    Chain(String),
    /// There is no certificate.
    Empty,
    /// The key is not PEM of a private key that we can use.
    Key(String),
    /// The key is not the certificate's.
    Mismatch,
    /// What the authority says cannot be sent to clients.
    Ocsp(ocsp::Error),
    /// The authority cannot be asked.
    Unasked(Unasked),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Chain(cause) => write!(
                f,
                "the certificate chain cannot be read: {cause}; give PEM blocks `CERTIFICATE`, the leaf first"
            ),
            Self::Empty => f.write_str(
                "there is no certificate in the chain; give PEM blocks `CERTIFICATE`, the leaf first",
            ),
            Self::Key(cause) => write!(
                f,
                "the private key cannot be used: {cause}; give one PEM block with an RSA, ECDSA or Ed25519 key"
            ),
            Self::Mismatch => f.write_str(
                "the private key does not belong to the certificate; give the key it was issued for",
            ),
            Self::Unasked(error) => write!(f, "its authority cannot be asked: {error}; {}", error.remedy()),
            Self::Ocsp(error) => write!(f, "the OCSP response cannot be sent: {error}; {}", error.remedy()),
        }
    }
}

impl std::error::Error for Error {}

impl Certificate {
    /// Reads a chain, leaf first, and its key.
    pub fn from_pem(context: &Context, chain_pem: &[u8], key_pem: &[u8]) -> Result<Self, Error> {
        let chain = CertificateDer::pem_slice_iter(chain_pem)
            .collect::<Result<Vec<_>, _>>()
            .map_err(|cause| Error::Chain(cause.to_string()))?;
        let leaf = chain.first().ok_or(Error::Empty)?;
        let names = webpki::EndEntityCert::try_from(leaf)
            .map_err(|cause| Error::Chain(cause.to_string()))?
            .valid_dns_names()
            .map(str::to_ascii_lowercase)
            .collect();
        // The parser that decides what is trusted does not tell this.
        let not_after_s = x509_parser::parse_x509_certificate(leaf)
            .map_err(|cause| Error::Chain(cause.to_string()))?
            .1
            .validity()
            .not_after
            .timestamp();
        // What the parser says about a key is not shown: it could quote it.
        let key =
            PrivateKeyDer::from_pem_slice(key_pem).map_err(|_| Error::Key("it is not PEM".to_owned()))?;
        let key = context
            .provider
            .key_provider
            .load_private_key(key)
            .map_err(|cause| Error::Key(cause.to_string()))?;
        let key = CertifiedKey::new(chain, key);
        match key.keys_match() {
            Ok(()) | Err(rustls::Error::InconsistentKeys(rustls::InconsistentKeys::Unknown)) => {}
            Err(_) => return Err(Error::Mismatch),
        }
        Ok(Self { key: Arc::new(key), names, not_after_s, staple: None, fetched: None })
    }

    /// With what its authority says about it, as DER.
    pub fn stapled(self, response: &[u8]) -> Result<Self, Error> {
        let until_s = ocsp::good_until(response, &self.key.cert).map_err(Error::Ocsp)?;
        let mut key = CertifiedKey::clone(&self.key);
        key.ocsp = Some(response.to_vec());
        Ok(Self { staple: Some(Staple { key: Arc::new(key), until_s }), ..self })
    }

    /// With what its authority says whenever it is asked; `origin` is the file of the chain.
    pub fn fetching(self, context: &Context, origin: &str) -> Result<Self, Error> {
        let fetched = context.staples.of(&self.key, origin).map_err(Error::Unasked)?;
        Ok(Self { fetched: Some(fetched), ..self })
    }

    /// What is asked about it, if anything is.
    pub const fn fetched(&self) -> Option<&Arc<Fetched>> {
        self.fetched.as_ref()
    }

    /// Until when clients are told what its authority says about it, in seconds since 1970.
    pub fn stapled_until_s(&self) -> Option<i64> {
        let fetched = self.fetched.as_ref().and_then(|fetched| fetched.until_s());
        fetched.or_else(|| self.staple.as_ref().map(|staple| staple.until_s))
    }

    /// With what its authority says about it, as long as that is good.
    pub(crate) fn now(&self) -> Arc<CertifiedKey> {
        let now_s = clock::wall_s();
        if let Some(key) = self.fetched.as_ref().and_then(|fetched| fetched.at(now_s)) {
            return key;
        }
        match &self.staple {
            Some(staple) if now_s < staple.until_s => Arc::clone(&staple.key),
            Some(_) | None => Arc::clone(&self.key),
        }
    }

    /// When it expires, in seconds since 1970.
    pub const fn not_after_s(&self) -> i64 {
        self.not_after_s
    }

    /// The DNS names it is good for, lower case; a wildcard begins with `*.`.
    pub fn names(&self) -> &[String] {
        &self.names
    }
}
