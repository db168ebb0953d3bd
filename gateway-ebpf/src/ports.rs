//! The order in which the ports of translation are tried for a flow.

use gateway_common::{addr::Port, hash};

/// Which of the ports is tried first.
#[inline(always)]
pub(crate) fn offset(hash: u64, n_ports: u32) -> u32 {
    hash::slot(hash.rotate_left(32), n_ports)
}

/// Step between two tries, from other bits of the hash than the first try: flows that meet at one port part again, so
/// that held ports do not gather in runs.
#[inline(always)]
pub(crate) fn step(hash: u64, n_ports: u32) -> u32 {
    hash::slot(hash.rotate_left(16), n_ports.saturating_sub(1)) + 1
}

/// The port with this offset from the first.
#[inline(always)]
#[expect(
    clippy::as_conversions,
    clippy::cast_possible_truncation,
    reason = "an offset is a difference of ports"
)]
pub(crate) const fn nth_port(first: Port, offset: u32) -> Port {
    Port::new(first.number().wrapping_add(offset as u16))
}
