//! The operator's window: numbers, readiness, and what is wanted, served and in the kernel.

pub mod dump;
pub mod events;
pub mod ready;
pub mod samples;
pub mod serve;

use crate::admin::ready::Readiness;

/// What the window shows; implemented by whoever knows all.
pub trait View: Send + Sync + 'static {
    /// The text that Prometheus reads.
    fn metrics(&self) -> String;

    /// Whether traffic should come here.
    fn readiness(&self) -> Readiness;

    /// Everything, in the words of the configuration, without secrets.
    fn dump(&self) -> serde_json::Value;

    /// The last single packets that the kernel programs told of.
    fn events(&self) -> serde_json::Value;
}
