//! Everything that crosses the line between the kernel programs and the agent, declared once.
//!
//! Neither side declares a map key, a map value, a map name, a capacity or a constant that the other side
//! also needs. Rules of this crate: no features, no `unsafe`, no dependency but `bytemuck`; every shared type
//! is `repr(C)` with named fields and derived `Pod`; padding is an explicit private field that a `const fn new`
//! zeroes; both IP families have one form (IPv4 as `::ffff:a.b.c.d`).
#![no_std]
#![forbid(unsafe_code)]
#![deny(missing_docs)]

pub mod addr;
pub mod answer;
pub mod aside;
pub mod cookie;
pub mod counter;
pub mod endpoint;
pub mod event;
pub mod filter;
pub mod flow;
pub mod fragment;
pub mod generator;
pub mod hash;
pub mod health;
pub mod heartbeat;
pub mod layout;
pub mod map;
pub mod probe;
pub mod receive;
pub mod service;
pub mod settings;
pub mod slot;
pub mod socket;
pub mod source;
mod word;
