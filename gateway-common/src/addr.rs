//! Addresses, ports and protocols, in types that make mixing byte orders a compile error.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use bytemuck::{Pod, Zeroable};

/// An IP address of either family; IPv4 is stored as `::ffff:a.b.c.d` (RFC 4291, section 2.5.5.2).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd, Pod, Zeroable)]
pub struct Addr {
    bytes: [u8; 16],
}

impl Addr {
    /// The unspecified address `::`, which no packet and no endpoint carries.
    pub const UNSPECIFIED: Self = Self { bytes: [0; 16] };

    /// An IPv4 address from its four bytes in wire order.
    #[inline(always)]
    pub const fn v4(octets: [u8; 4]) -> Self {
        let prefix = u32::from_ne_bytes([0, 0, 0xff, 0xff]);
        // Two words, as those of IPv6 are: where both meet, the compiler would keep four.
        Self::from_halves([0, bytemuck::must_cast([prefix, u32::from_ne_bytes(octets)])])
    }

    /// An IPv6 address from its sixteen bytes in wire order.
    #[inline(always)]
    pub const fn v6(octets: [u8; 16]) -> Self {
        Self { bytes: octets }
    }

    /// An IPv6 address from two words as they stand in a packet.
    #[inline(always)]
    pub const fn from_halves(halves: [u64; 2]) -> Self {
        bytemuck::must_cast(halves)
    }

    /// The two words of [`from_halves`](Self::from_halves).
    #[inline(always)]
    pub const fn halves(self) -> [u64; 2] {
        bytemuck::must_cast(self)
    }

    /// The sixteen bytes in wire order.
    #[inline(always)]
    pub const fn octets(self) -> [u8; 16] {
        self.bytes
    }

    /// The four bytes of an IPv4 address; meaningless for IPv6.
    #[inline(always)]
    pub const fn v4_octets(self) -> [u8; 4] {
        let [.., last] = self.words();
        last.to_ne_bytes()
    }

    /// Whether this is an IPv4 address.
    #[inline(always)]
    pub const fn is_v4(self) -> bool {
        let [high, low] = self.halves();
        let [prefix, _]: [u32; 2] = bytemuck::must_cast(low);
        high == 0 && prefix == u32::from_ne_bytes([0, 0, 0xff, 0xff])
    }

    /// The sixteen bytes as four words in native order, for hashing and comparing.
    #[inline(always)]
    pub const fn words(self) -> [u32; 4] {
        // A cast, not sixteen bytes put together: the kernel programs do this per packet.
        bytemuck::must_cast(self.bytes)
    }
}

impl From<IpAddr> for Addr {
    fn from(addr: IpAddr) -> Self {
        match addr {
            IpAddr::V4(v4) => Self::v4(v4.octets()),
            IpAddr::V6(v6) => Self::v6(v6.octets()),
        }
    }
}

impl From<Addr> for IpAddr {
    fn from(addr: Addr) -> Self {
        if addr.is_v4() {
            Self::V4(Ipv4Addr::from(addr.v4_octets()))
        } else {
            Self::V6(Ipv6Addr::from(addr.bytes))
        }
    }
}

/// A transport port. Stored as a number, so that bpftool prints `443`; packets go through the wire methods.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd, Pod, Zeroable)]
pub struct Port {
    number: u16,
}

impl Port {
    /// Port zero: "none".
    pub const NONE: Self = Self { number: 0 };

    /// From a number in host order.
    #[inline(always)]
    pub const fn new(number: u16) -> Self {
        Self { number }
    }

    /// From the two bytes of a header.
    #[inline(always)]
    pub const fn from_wire(bytes: [u8; 2]) -> Self {
        Self { number: u16::from_be_bytes(bytes) }
    }

    /// The number in host order.
    #[inline(always)]
    pub const fn number(self) -> u16 {
        self.number
    }

    /// The two bytes of a header.
    #[inline(always)]
    pub const fn to_wire(self) -> [u8; 2] {
        self.number.to_be_bytes()
    }
}

/// An IP protocol number (IANA). Only TCP and UDP are balanced.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd, Pod, Zeroable)]
pub struct Protocol {
    number: u8,
}

impl Protocol {
    /// TCP (RFC 9293).
    pub const TCP: Self = Self { number: 6 };
    /// UDP (RFC 768).
    pub const UDP: Self = Self { number: 17 };
    /// ICMP (RFC 792).
    pub const ICMP: Self = Self { number: 1 };
    /// ICMP for IPv6 (RFC 4443).
    pub const ICMP_V6: Self = Self { number: 58 };

    /// From the number of a header.
    #[inline(always)]
    pub const fn new(number: u8) -> Self {
        Self { number }
    }

    /// The number of the header.
    #[inline(always)]
    pub const fn number(self) -> u8 {
        self.number
    }
}

const _: () = assert!(size_of::<Addr>() == 16);
const _: () = assert!(size_of::<Port>() == 2);
const _: () = assert!(size_of::<Protocol>() == 1);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_share_one_form() {
        let v4 = Addr::from(IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1)));
        assert!(v4.is_v4());
        assert_eq!(IpAddr::from(v4), IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1)));
        let v6 = Addr::from(IpAddr::V6(Ipv6Addr::LOCALHOST));
        assert!(!v6.is_v4());
        assert_eq!(IpAddr::from(v6), IpAddr::V6(Ipv6Addr::LOCALHOST));
        assert!(!Addr::UNSPECIFIED.is_v4());
    }

    #[test]
    fn a_port_keeps_its_number_and_its_bytes() {
        assert_eq!(Port::from_wire([0x01, 0xbb]), Port::new(443));
        assert_eq!(Port::new(443).to_wire(), [0x01, 0xbb]);
    }
}
