//! TLS that ends or begins here: certificates by name, and what is offered and accepted.

pub mod accept;
pub mod certificate;
pub mod client;
pub mod connect;
pub mod hello;
pub mod resolver;
pub mod ticket;

use std::{io, sync::Arc};

use rustls::crypto::CryptoProvider;

use crate::{clock::Clock, tls::ticket::Ring};

/// What every TLS configuration of the process shares, whatever certificates come and go.
#[derive(Clone)]
pub struct Context {
    provider: Arc<CryptoProvider>,
    /// Keys of tickets where no file gives others.
    tickets: Ring,
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
        Ok(Self { provider: Arc::new(rustls::crypto::aws_lc_rs::default_provider()), tickets })
    }
}
