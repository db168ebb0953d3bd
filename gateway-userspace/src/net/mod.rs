//! Sockets: how they are opened, and the options that nobody else wraps.

pub mod accepted;
pub mod announce;
pub mod clients;
pub mod connect;
pub mod listen;
pub mod proxy_protocol;
pub mod sys;
