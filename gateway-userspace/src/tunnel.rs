//! What clients may speak instead of HTTP, as a rule says it.

use std::time::Duration;

use crate::limits;

/// What clients may speak instead of HTTP.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Tunnels {
    /// WebSocket.
    pub websocket: bool,
    /// Whatever follows CONNECT.
    pub connect: bool,
    /// Time without a byte after which a tunnel ends.
    pub idle_timeout: Duration,
}

impl Tunnels {
    /// Where nothing is written.
    pub const DEFAULT: Self = Self { websocket: true, connect: false, idle_timeout: limits::TUNNEL_IDLE };
}
