//! From a snapshot to what is served: pure, without IO and without a clock. Everything compiles, or nothing changes.

pub mod id;
pub mod image;
pub mod listener;
mod recipe;
pub mod route;
pub mod service;
mod sources;
pub mod state;
pub mod tls;

use std::fmt;

/// Something in a snapshot that cannot be served.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Fault {
    /// What it is about, in the words of the configuration.
    pub place: String,
    /// What is wrong and what to do.
    pub message: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.message)
    }
}

/// Everything in a snapshot that cannot be served, at once.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Faults(pub Vec<Fault>);

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, fault) in self.0.iter().enumerate() {
            let separator = if n == 0 { "" } else { "\n" };
            write!(f, "{separator}{fault}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Faults {}
