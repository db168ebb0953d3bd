//! The harness of all suites: packets, memory and kernel environments, and what they need.

pub mod kernel_run;
pub mod memory;
pub mod packet;
pub mod privilege;
