//! Probes: health checks of endpoints behind a tunnel, which take the way of clients' packets.

use bytemuck::{Pod, Zeroable};

use crate::{
    addr::{Addr, Port},
    service::Mode,
};

/// The mark (`SO_MARK`) of everything that the agent itself sends to endpoints. It stays clear of the bits that kube-proxy
/// (0x4000, 0x8000), Cilium (0x0f00) and Calico (0xffff0000) use.
pub const OWN_MARK: u32 = 0x51;

/// Value of [`Probes`](crate::map::Probes): a probe on its way, at the row of its port. A zeroed row is nobody's.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Pod, Zeroable)]
pub struct Probe {
    /// Where the agent's socket connects to, and where the tunnel ends.
    pub endpoint: Addr,
    /// What the packet inside is addressed to: the virtual address, or the endpoint itself where the tunnel is of the
    /// other family.
    pub destination: Addr,
    /// The port of the agent's socket.
    pub port: Port,
    /// [`Mode::DSR_IPIP`] or [`Mode::DSR_GUE`].
    pub mode: Mode,
    pad: u8,
    /// Whether a packet went into the tunnel: 0 or 1.
    pub sent: u32,
}

impl Probe {
    /// Room for probes.
    pub const ROWS: u32 = 16_384;

    /// A probe that sent nothing yet.
    pub const fn new(endpoint: Addr, destination: Addr, port: Port, mode: Mode) -> Self {
        Self { endpoint, destination, port, mode, pad: 0, sent: 0 }
    }

    /// The row of a port.
    #[inline(always)]
    pub fn row(port: Port) -> u32 {
        u32::from(port.number()) & (Self::ROWS - 1)
    }
}

const _: () = assert!(size_of::<Probe>() == 40);
