//! The Sluice agent, as a library: one module per word of the design, in layers.
//!
//! A module imports only from strictly lower layers; `cargo xtask tidy` holds the table:
//!
//! 0. [`name`], [`limits`], [`clock`], [`drain`], [`duration`], [`secret`], [`place`], [`metrics`]: words, bounds, time, shutdown, numbers.
//! 1. [`config`], [`snapshot`], [`endpoint`], [`maglev`], [`image`]: plain data and pure tables; reading the file.
//! 2. [`source`]: where wants come from.

pub mod clock;
pub mod config;
pub mod drain;
pub mod duration;
pub mod endpoint;
pub mod image;
pub mod limits;
pub mod maglev;
pub mod name;
pub mod place;
pub mod secret;
pub mod snapshot;
pub mod source;
