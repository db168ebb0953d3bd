//! TLS that ends here: certificates by name, and what is offered and accepted.

pub mod accept;
pub mod certificate;
pub mod resolver;

use std::{io, sync::Arc};

use rustls::{crypto::CryptoProvider, server::ProducesTickets};

/// What every TLS configuration of the process shares, whatever certificates come and go.
#[derive(Clone)]
pub struct Context {
    provider: Arc<CryptoProvider>,
    tickets: Arc<dyn ProducesTickets>,
}

impl std::fmt::Debug for Context {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Context")
    }
}

impl Context {
    /// With the provider that is named here and nowhere else, and ticket keys that outlive every reload.
    pub fn new() -> io::Result<Self> {
        let tickets = rustls::crypto::aws_lc_rs::Ticketer::new().map_err(io::Error::other)?;
        Ok(Self { provider: Arc::new(rustls::crypto::aws_lc_rs::default_provider()), tickets })
    }
}
