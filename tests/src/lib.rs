//! The harness of all suites: packets, memory and kernel environments, namespaces, origins and clients.
#![allow(
    clippy::disallowed_methods,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a harness fails loudly"
)]

#[cfg(feature = "whole")]
pub mod agent;
#[cfg(feature = "whole")]
pub mod bench;
#[cfg(feature = "whole")]
pub mod cgroup;
#[cfg(feature = "whole")]
pub mod client;
#[cfg(feature = "whole")]
pub mod demo;
#[cfg(feature = "whole")]
pub mod expect;
#[cfg(feature = "whole")]
pub mod frame;
#[cfg(feature = "whole")]
mod kernel_events;
#[cfg(feature = "whole")]
mod kernel_health;
#[cfg(feature = "whole")]
pub mod kernel_run;
#[cfg(feature = "whole")]
pub mod kernel_sockets;
#[cfg(feature = "whole")]
mod kernel_sources;
#[cfg(feature = "whole")]
mod lookup_run;
pub mod memory;
#[cfg(feature = "whole")]
pub mod netns;
#[cfg(feature = "whole")]
pub mod node;
pub mod oracle;
#[cfg(feature = "whole")]
pub mod origin;
pub mod packet;
pub mod piece;
#[cfg(feature = "whole")]
pub mod privilege;
#[cfg(feature = "whole")]
pub mod report;
#[cfg(feature = "requests")]
pub mod requests;
#[cfg(feature = "whole")]
pub mod soak;
pub mod tables;
#[cfg(feature = "whole")]
pub mod ticks;
pub mod world;
