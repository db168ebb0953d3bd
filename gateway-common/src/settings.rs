//! Settings: what the agent switches while the programs run.

use bytemuck::{Pod, Zeroable};

use crate::{addr::Port, hash::Seed};

/// Value of [`SettingsMap`](crate::map::SettingsMap), a single row.
#[repr(C)]
#[derive(Clone, Copy, Default, Eq, PartialEq, Pod, Zeroable)]
pub struct Settings {
    /// The cluster's seed.
    pub seed: Seed,
    /// First port that translated packets may carry as their source.
    pub first_port: Port,
    /// Ports from there on; zero switches translation towards remote endpoints off.
    pub n_ports: u16,
    /// Ticks after which a flow that never got beyond its first packet may lose its port.
    pub opening_ticks: u32,
    /// Ticks after which a silent open TCP flow may lose its port.
    pub open_ticks: u32,
    /// Ticks after which a closed TCP flow may lose its port: longer than TIME-WAIT.
    pub closing_ticks: u32,
    /// Ticks after which a silent UDP flow selects an endpoint again and may lose its port.
    pub udp_ticks: u32,
    pad: [u8; 4],
}

impl Settings {
    /// The padding is zero by construction.
    pub const fn new(seed: Seed, first_port: Port, n_ports: u16, timeouts: Timeouts) -> Self {
        Self {
            seed,
            first_port,
            n_ports,
            opening_ticks: timeouts.opening,
            open_ticks: timeouts.open,
            closing_ticks: timeouts.closing,
            udp_ticks: timeouts.udp,
            pad: [0; 4],
        }
    }
}

/// The four timeouts of [`Settings`], in ticks.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Timeouts {
    /// See [`Settings::opening_ticks`].
    pub opening: u32,
    /// See [`Settings::open_ticks`].
    pub open: u32,
    /// See [`Settings::closing_ticks`].
    pub closing: u32,
    /// See [`Settings::udp_ticks`].
    pub udp: u32,
}

const _: () = assert!(size_of::<Settings>() == 40);
