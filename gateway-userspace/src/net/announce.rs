//! Announcements: frames that tell a link where an address is from now on.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// A link-layer address.
type Mac = [u8; 6];

const BROADCAST: Mac = [0xff; 6];
/// All nodes of the link (RFC 2464, section 7; RFC 4291, section 2.7.1).
const ALL_NODES_MAC: Mac = [0x33, 0x33, 0, 0, 0, 1];
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);

const ARP: [u8; 2] = [0x08, 0x06];
const IPV6: [u8; 2] = [0x86, 0xdd];
const ICMPV6: u8 = 58;

/// The frame that says that an address is behind a link-layer address.
pub fn frame(mac: Mac, addr: IpAddr) -> Vec<u8> {
    match addr {
        IpAddr::V4(addr) => arp(mac, addr),
        IpAddr::V6(addr) => advertisement(mac, addr),
    }
}

/// An ARP announcement (RFC 5227, section 3): a request for the sender's own address.
fn arp(mac: Mac, addr: Ipv4Addr) -> Vec<u8> {
    let mut frame = [BROADCAST, mac].concat();
    frame.extend(ARP);
    // Ethernet, IPv4, six and four bytes, a request.
    frame.extend([0, 1, 0x08, 0x00, 6, 4, 0, 1]);
    frame.extend(mac);
    frame.extend(addr.octets());
    frame.extend([0; 6]);
    frame.extend(addr.octets());
    frame
}

/// An unsolicited neighbor advertisement that replaces what was known (RFC 4861, sections 4.4 and 7.2.6).
fn advertisement(mac: Mac, addr: Ipv6Addr) -> Vec<u8> {
    const OVERRIDE: u8 = 0x20;
    let mut message = vec![136, 0, 0, 0, OVERRIDE, 0, 0, 0];
    message.extend(addr.octets());
    // The target's link-layer address, in units of eight bytes.
    message.extend([2, 1]);
    message.extend(mac);
    let sum = checksum(addr, &message);
    if let Some(place) = message.get_mut(2..4) {
        place.copy_from_slice(&sum);
    }
    let len = u8::try_from(message.len()).unwrap_or(u8::MAX);
    let mut frame = [ALL_NODES_MAC, mac].concat();
    frame.extend(IPV6);
    // The hop limit shows that no router has passed it on.
    frame.extend([0x60, 0, 0, 0, 0, len, ICMPV6, 255]);
    frame.extend(addr.octets());
    frame.extend(ALL_NODES.octets());
    frame.extend(message);
    frame
}

/// The checksum of a message to all nodes (RFC 4443, section 2.3).
fn checksum(source: Ipv6Addr, message: &[u8]) -> [u8; 2] {
    let len = u32::try_from(message.len()).unwrap_or(u32::MAX).to_be_bytes();
    let pseudo = [&source.octets()[..], &ALL_NODES.octets(), &len, &[0, 0, 0, ICMPV6]].concat();
    let words = pseudo.chunks(2).chain(message.chunks(2));
    let sum: u32 = words.map(|word| word.iter().fold(0, |sum, byte| sum << 8 | u32::from(*byte))).sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    let folded = (folded & 0xffff) + (folded >> 16);
    u16::try_from(!folded & 0xffff).unwrap_or(0).to_be_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: Mac = [2, 0, 0, 0, 0, 7];

    #[test]
    fn an_announcement_over_arp() {
        let frame = frame(MAC, "10.8.0.1".parse().unwrap());
        let mut expected = vec![0xff; 6];
        expected.extend(MAC);
        expected.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
        expected.extend(MAC);
        expected.extend([10, 8, 0, 1, 0, 0, 0, 0, 0, 0, 10, 8, 0, 1]);
        assert_eq!(frame, expected);
    }

    #[test]
    fn an_advertisement_has_a_good_checksum() {
        let addr: Ipv6Addr = "fd08::1".parse().unwrap();
        let frame = frame(MAC, addr.into());
        assert_eq!(frame.len(), 14 + 40 + 32);
        assert_eq!(&frame[12..22], [0x86, 0xdd, 0x60, 0, 0, 0, 0, 32, 58, 255]);
        let message = &frame[54..];
        // Over a message with its checksum the sum is all ones, which is zero here.
        assert_eq!(checksum(addr, message), [0, 0]);
        assert_eq!((message[0], message[4]), (136, 0x20));
        assert_eq!(&message[8..24], addr.octets());
        assert_eq!(&message[24..], [2, 1, 2, 0, 0, 0, 0, 7]);
    }
}
