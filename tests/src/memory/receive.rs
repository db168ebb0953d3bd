//! What the hooks of tunnels ask of a packet in memory.

use std::net::IpAddr;

use gateway_common::{addr::Addr, probe::OWN_MARK};
use gateway_ebpf::{
    env::Env as _,
    packet::eth,
    probe::Marked,
    receive::{Receiver, Shell},
};

use super::Memory;

impl Marked for Memory {
    fn mark(&self) -> u32 {
        OWN_MARK
    }
}

impl Receiver for Memory {
    fn is_delivered(&mut self, _source: Addr, destination: Addr) -> bool {
        IpAddr::from(destination).is_loopback()
    }

    fn leave_tunnel(&mut self, shell: Shell) -> Option<()> {
        let bytes = usize::try_from(shell.bytes).ok()?;
        self.bytes.get(14 + bytes)?;
        self.bytes.drain(14..14 + bytes);
        self.store(eth::TYPE, &if shell.inner_v6 { eth::IPV6 } else { eth::IPV4 })
    }
}
