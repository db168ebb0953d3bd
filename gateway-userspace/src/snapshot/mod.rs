//! The snapshot: everything that is wanted, checked and immutable, whatever source it came from.
//!
//! A snapshot cannot be wrong in itself: names are unique and every reference but a backend's service resolves
//! (a missing backend answers 500 for its share, as the Gateway API has it).

mod attach;
pub mod build;
pub mod draft;
pub mod listener;
mod meaning;
mod passive;
mod ports;
pub mod route;
pub mod service;
pub mod sources;
mod standby;

use crate::snapshot::{listener::Listener, route::Route, service::Service, sources::Sources};

/// Everything that is wanted.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// Counts the snapshots of this process.
    pub generation: u64,
    /// Addresses we accept on.
    pub listeners: Vec<Listener>,
    /// Matches and what follows.
    pub routes: Vec<Route>,
    /// Named groups of endpoints.
    pub services: Vec<Service>,
    /// Who may send packets.
    pub sources: Sources,
}
