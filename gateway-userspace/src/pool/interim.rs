//! Heads that come before the response: whoever reads from an endpoint passes them on to whoever writes to its client.

use http::response::Parts;

/// Takes interim responses on their way to a client.
pub trait Interim: Send + Sync {
    /// Passes one on, without waiting. Its status is informational, and not that of a change of protocols.
    fn pass(&self, head: Parts);
}

/// There is no client.
#[derive(Debug)]
pub struct Nobody;

impl Interim for Nobody {
    fn pass(&self, _: Parts) {}
}
