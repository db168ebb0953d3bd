//! Interim responses between an endpoint and a client (RFC 9110, section 15.2): which of them pass, and how many.

use std::sync::atomic::{AtomicUsize, Ordering};

use http::response::Parts;

use crate::{
    http::header,
    limits,
    metrics::names::{Families, Limit},
    pool::interim::Interim,
};

/// The way to a client, for the interim responses of one request.
pub(super) struct Bounded<'a> {
    client: &'a dyn Interim,
    families: &'a Families,
    n_passed: AtomicUsize,
}

impl<'a> Bounded<'a> {
    /// To this client; what is too much counts in `families`.
    pub(super) const fn new(client: &'a dyn Interim, families: &'a Families) -> Self {
        Self { client, families, n_passed: AtomicUsize::new(0) }
    }
}

impl Interim for Bounded<'_> {
    fn pass(&self, mut head: Parts) {
        if self.n_passed.fetch_add(1, Ordering::Relaxed) >= limits::INTERIMS {
            self.families.limit(Limit::Interims);
            return;
        }
        header::interim(&mut head);
        self.client.pass(head);
    }
}
