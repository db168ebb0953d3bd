//! TLS that ends or begins here: certificates by name, and what is offered and accepted.

pub mod accept;
pub mod certificate;
pub mod client;
pub mod connect;
pub mod fetched;
pub mod hello;
pub mod resolver;
pub mod signed;
pub mod ticket;

use std::{io, sync::Arc};

use rustls::crypto::CryptoProvider;

use crate::{
    clock::Clock,
    tls::{fetched::Staples, signed::Algorithms, ticket::Ring},
};

/// What every TLS configuration of the process shares, whatever certificates come and go.
#[derive(Clone)]
pub struct Context {
    provider: Arc<CryptoProvider>,
    /// Keys of tickets where no file gives others.
    tickets: Ring,
    /// Certificates that the agent asks about.
    staples: Staples,
}

impl std::fmt::Debug for Context {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Context")
    }
}

impl Context {
    /// With the provider that is named here and nowhere else, and ticket keys that outlive every reload.
    pub fn new() -> io::Result<Self> {
        let tickets = Ring::own(Clock::real()).ok_or_else(|| io::Error::other("no random bytes"))?;
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        Ok(Self { provider, tickets, staples: Staples::default() })
    }

    /// Ways to check signatures.
    pub fn algorithms(&self) -> Algorithms<'static> {
        self.provider.signature_verification_algorithms.all
    }
}
