//! The Sluice agent, as a library: one module per word of the design, in layers.
//!
//! A module imports only from strictly lower layers; `cargo xtask tidy` holds the table:
//!
//! 0. [`name`], [`limits`], [`clock`], [`drain`], [`secret`], [`metrics`]: words, bounds, time, shutdown, numbers.
//! 1. [`snapshot`], [`endpoint`], [`maglev`], [`image`]: plain data and pure tables.

pub mod clock;
pub mod drain;
pub mod endpoint;
pub mod image;
pub mod limits;
pub mod maglev;
pub mod name;
pub mod secret;
pub mod snapshot;
