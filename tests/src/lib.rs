//! The harness of all suites: packets, memory and kernel environments, namespaces, origins and clients.
#![allow(
    clippy::disallowed_methods,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a harness fails loudly"
)]

pub mod agent;
pub mod bench;
pub mod client;
pub mod demo;
pub mod expect;
pub mod frame;
pub mod kernel_run;
pub mod memory;
pub mod netns;
pub mod node;
pub mod origin;
pub mod packet;
pub mod privilege;
pub mod report;
pub mod ticks;
pub mod world;
