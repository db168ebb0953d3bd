//! Networks: addresses that begin alike, as a configuration names them and connections are compared with them.

use std::net::IpAddr;

/// Addresses that begin alike.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Network {
    /// Any of them.
    pub addr: IpAddr,
    /// How many bits they have in common.
    pub prefix_bits: u8,
}

impl Network {
    /// The first of them.
    pub fn first(&self) -> IpAddr {
        let host_bits = |n_bits: u32| n_bits.saturating_sub(u32::from(self.prefix_bits));
        match self.addr {
            IpAddr::V4(addr) => {
                let mask = u32::MAX.checked_shl(host_bits(32)).unwrap_or(0);
                IpAddr::V4((addr.to_bits() & mask).into())
            }
            IpAddr::V6(addr) => {
                let mask = u128::MAX.checked_shl(host_bits(128)).unwrap_or(0);
                IpAddr::V6((addr.to_bits() & mask).into())
            }
        }
    }

    /// Whether an address is one of them.
    pub fn contains(&self, addr: IpAddr) -> bool {
        let differ = |a: u128, b: u128, n_bits: u32| match n_bits.checked_sub(u32::from(self.prefix_bits)) {
            Some(rest) => (a ^ b).checked_shr(rest).unwrap_or(0) != 0,
            None => a != b,
        };
        match (self.addr, addr) {
            (IpAddr::V4(a), IpAddr::V4(b)) => !differ(a.to_bits().into(), b.to_bits().into(), 32),
            (IpAddr::V6(a), IpAddr::V6(b)) => !differ(a.to_bits(), b.to_bits(), 128),
            (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_contain_what_begins_alike() {
        let check = |network: &str, prefix_bits: u8, addr: &str, expected: bool| {
            let network = Network { addr: network.parse().unwrap(), prefix_bits };
            assert_eq!(network.contains(addr.parse().unwrap()), expected, "{network:?} {addr}");
        };
        check("10.1.0.0", 16, "10.1.255.255", true);
        check("10.1.0.0", 16, "10.2.0.0", false);
        check("10.1.2.3", 32, "10.1.2.3", true);
        check("10.1.2.3", 32, "10.1.2.2", false);
        check("0.0.0.0", 0, "255.255.255.255", true);
        check("0.0.0.0", 0, "::1", false);
        check("2001:db8::", 33, "2001:db8:7fff::1", true);
        check("2001:db8::", 33, "2001:db8:8000::1", false);
        check("::", 0, "ffff::", true);
    }
}
