//! The harness: packets, namespaces, origins, clients and what the suites compare.
#![allow(
    clippy::disallowed_methods,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a harness fails loudly"
)]

pub mod expect;
