//! The harness of all suites: packets, memory and kernel environments, and what they need.
#![allow(
    clippy::disallowed_methods,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a harness fails loudly"
)]

pub mod kernel_run;
pub mod memory;
pub mod packet;
pub mod privilege;
pub mod world;
