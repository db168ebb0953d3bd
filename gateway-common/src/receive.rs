//! Receiving: whose tunnels end at this node.

use bytemuck::{Pod, Zeroable};

use crate::addr::{Addr, Port};

/// Value of [`Receiving`](crate::map::Receiving), a single row. A zeroed row opens no tunnel.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Pod, Zeroable)]
pub struct Receive {
    /// Networks whose packets are taken out of their tunnels; those behind the first [`Receive::n_peers`] mean nothing.
    pub peers: [Peer; Receive::PEERS],
    /// How many networks there are.
    pub n_peers: u32,
    /// Destination port of tunnels over UDP; zero for none.
    pub port: Port,
    pad: [u8; 2],
}

impl Receive {
    /// Room for networks.
    pub const PEERS: usize = 32;

    /// The first [`Receive::PEERS`] of these networks, and the port of tunnels over UDP.
    pub fn new(peers: impl IntoIterator<Item = Peer>, port: Port) -> Self {
        let mut receive = Self { port, ..Self::default() };
        for (to, peer) in receive.peers.iter_mut().zip(peers) {
            *to = peer;
            receive.n_peers += 1;
        }
        receive
    }
}

/// A network of peers.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Pod, Zeroable)]
pub struct Peer {
    /// Its first address.
    pub first: Addr,
    /// The bits that all of its addresses have in common.
    pub mask: Addr,
}

impl Peer {
    /// The network of an address and the number of bits, from the left, that all of its addresses have in common. Bits
    /// beyond the family's length count as all of them.
    pub fn new(addr: Addr, prefix_bits: u8) -> Self {
        let bits = if addr.is_v4() { u32::from(prefix_bits) + 96 } else { u32::from(prefix_bits) };
        let mask = u128::MAX.checked_shl(128_u32.saturating_sub(bits)).unwrap_or(0);
        let first = u128::from_be_bytes(addr.octets()) & mask;
        Self { first: Addr::v6(first.to_be_bytes()), mask: Addr::v6(mask.to_be_bytes()) }
    }

    /// Whether an address is one of the network's.
    #[inline(always)]
    pub const fn contains(&self, addr: Addr) -> bool {
        let [a, b, c, d] = addr.words();
        let [e, f, g, h] = self.mask.words();
        let [i, j, k, l] = self.first.words();
        self.first.is_v4() == addr.is_v4() && a & e == i && b & f == j && c & g == k && d & h == l
    }
}

const _: () = assert!(size_of::<Receive>() == 1_032);

#[cfg(test)]
mod tests {
    use core::net::IpAddr;

    use super::*;

    #[test]
    fn peers_are_networks() {
        let check = |network: &str, bits: u8, addr: &str, expected: bool| {
            let [network, addr] = [network, addr].map(|text| Addr::from(text.parse::<IpAddr>().unwrap()));
            assert_eq!(Peer::new(network, bits).contains(addr), expected, "{network:?}/{bits} {addr:?}");
        };
        check("172.16.0.0", 16, "172.16.255.1", true);
        check("172.16.0.0", 16, "172.17.0.1", false);
        check("172.16.5.5", 16, "172.16.0.9", true);
        check("10.0.0.1", 32, "10.0.0.1", true);
        check("10.0.0.1", 32, "10.0.0.0", false);
        check("0.0.0.0", 0, "255.255.255.255", true);
        check("0.0.0.0", 0, "::1", false);
        check("100::", 64, "100::7", true);
        check("100::", 64, "100:0:0:1::7", false);
        check("::", 0, "ffff::", true);
        check("::", 0, "10.0.0.1", false);
        check("fd00::1", 128, "fd00::1", true);
    }

    #[test]
    fn what_does_not_fit_is_left_out() {
        let peer = Peer::new(Addr::v4([10, 0, 0, 0]), 8);
        let receive = Receive::new([peer; 40], Port::new(6_080));
        assert_eq!(receive.n_peers, 32);
        assert_eq!(Receive::default().n_peers, 0);
    }
}
