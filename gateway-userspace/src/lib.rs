//! The Sluice agent, as a library: one module per word of the design, in layers.
//!
//! A module imports only from strictly lower layers; `cargo xtask tidy` holds the table:
//! 0. [`name`], [`limits`], [`clock`], [`timer`], [`taken`], [`drain`], [`duration`], [`secret`], [`place`], [`pattern`], [`target`], [`filter`], [`retry`], [`network`], [`metrics`]: words, bounds, time, shutdown, numbers.
//! 1. [`config`], [`snapshot`], [`endpoint`], [`maglev`], [`image`]: plain data and pure tables; reading the file.
//! 2. [`source`], [`kernel`], [`address`], [`net`], [`tls`], [`health`], [`balance`], [`pool`], [`route`], [`client`], [`access`], [`guard`]: one
//!    capability each, unknown to each other.
//! 3. [`upstream`], [`prober`], [`observer`]: send this to that service; is this endpoint alive; do clients get through.
//! 4. [`state`]: the compiled whole, and its publication.
//! 5. [`compile`], [`http`], [`tcp`], [`udp`]: build the state; serve from it.
//! 6. [`listener`], [`admin`]: the accept loops; the operator's window.
//! 7. [`control`]: the control loop.
//! 8. [`app`]: the only place that knows all.

pub mod access;
pub mod address;
pub mod admin;
pub mod app;
pub mod balance;
pub mod client;
pub mod clock;
pub mod compile;
pub mod config;
pub mod control;
pub mod drain;
pub mod duration;
pub mod endpoint;
pub mod field;
pub mod filter;
pub mod guard;
pub mod h1;
pub mod health;
pub mod http;
pub mod image;
pub mod kernel;
pub mod limits;
pub mod listener;
pub mod maglev;
pub mod memory;
pub mod metrics;
pub mod name;
pub mod net;
pub mod network;
pub mod observer;
pub mod ocsp;
pub mod pattern;
pub mod place;
pub mod pool;
pub mod prober;
pub mod retry;
pub mod route;
pub mod secret;
pub mod snapshot;
pub mod source;
pub mod stapler;
pub mod state;
pub mod taken;
pub mod target;
pub mod tcp;
pub mod timer;
pub mod tls;
pub mod tunnel;
pub mod udp;
pub mod upstream;
