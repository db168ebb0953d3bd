//! The Sluice agent, as a library: one module per word of the design, in layers.
//!
//! A module imports only from strictly lower layers; `cargo xtask tidy` holds the table:
//!
//! 0. [`name`], [`limits`], [`clock`], [`drain`], [`secret`], [`metrics`]: words, bounds, time, shutdown, numbers.
//! 1. [`snapshot`], [`endpoint`], [`maglev`], [`image`]: plain data and pure tables.

pub mod admin;
pub mod balance;
pub mod clock;
pub mod compile;
pub mod drain;
pub mod endpoint;
pub mod health;
pub mod http;
pub mod image;
pub mod limits;
pub mod listener;
pub mod maglev;
pub mod metrics;
pub mod name;
pub mod net;
pub mod pool;
pub mod prober;
pub mod route;
pub mod secret;
pub mod snapshot;
pub mod state;
pub mod tcp;
pub mod tls;
pub mod udp;
pub mod upstream;
