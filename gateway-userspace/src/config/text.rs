//! Small languages inside scalars: addresses, ranges, patterns of interfaces.

use std::{
    net::{IpAddr, SocketAddr},
    ops::RangeInclusive,
};

use gateway_common::addr::Addr;

use crate::{
    config::{InterfacePattern, read::Wrong},
    network::Network,
};

/// An address that one machine can have: not unspecified, not multicast, not broadcast, not IPv4 dressed as IPv6.
pub fn unicast(text: &str) -> Result<IpAddr, Wrong> {
    let addr = ip_addr(text)?;
    let broadcast = matches!(addr, IpAddr::V4(v4) if v4.is_broadcast());
    if addr.is_unspecified() {
        return Err(Wrong::new("it is unspecified", "write the address of one machine"));
    }
    if addr.is_multicast() || broadcast {
        return Err(Wrong::new("it is a multicast or broadcast address", "write the address of one machine"));
    }
    Ok(addr)
}

fn ip_addr(text: &str) -> Result<IpAddr, Wrong> {
    let addr: IpAddr = text.parse().map_err(|_| {
        let remedy = if text.parse::<SocketAddr>().is_ok() {
            "write the port as `port`, apart from the address"
        } else if text.contains('/') {
            "write one address, without a prefix length"
        } else if text.starts_with('[') {
            "write it without brackets"
        } else {
            "write an address such as 10.0.0.10 or \"2001:db8::10\", not a name"
        };
        Wrong::new("it cannot be parsed", remedy)
    })?;
    if let IpAddr::V6(v6) = addr
        && let Some(v4) = v6.to_ipv4_mapped()
    {
        return Err(Wrong::new("it is an IPv4 address in IPv6 form", format!("write {v4}")));
    }
    Ok(addr)
}

/// An address of this machine and a port.
pub fn socket_addr(text: &str) -> Result<SocketAddr, Wrong> {
    let addr: SocketAddr = text.parse().map_err(|_| {
        let remedy = if text.parse::<IpAddr>().is_ok_and(|addr| addr.is_ipv6()) {
            format!("write [{text}]:9901")
        } else if text.parse::<IpAddr>().is_ok() {
            format!("write {text}:9901")
        } else {
            "write an address and a port, such as 127.0.0.1:9901 or [::1]:9901".to_owned()
        };
        Wrong::new("it cannot be parsed", remedy)
    })?;
    if addr.port() == 0 {
        return Err(Wrong::new("its port is 0", format!("write {}", SocketAddr::new(addr.ip(), 9_901))));
    }
    if addr.ip().is_multicast() {
        return Err(Wrong::new("it is a multicast address", "write an address of this machine"));
    }
    Ok(addr)
}

/// The name of an interface or a pattern of one. The kernel keeps 15 bytes of a name; a pattern may have some stars
/// on top of them.
pub fn interface(text: &str) -> Result<InterfacePattern, Wrong> {
    const NAME: usize = 15;
    if text.is_empty() {
        return Err(Wrong::new("it is empty", "write a name such as eth0, or a pattern such as eth*"));
    }
    if text.bytes().filter(|byte| *byte != b'*').count() > NAME || text.len() > 2 * NAME + 1 {
        return Err(Wrong::new("it is longer than 15 letters", "write the name as `ip link` shows it"));
    }
    if matches!(text, "." | "..")
        || text.contains(|c: char| c == '/' || c == ':' || c.is_whitespace() || c.is_control())
    {
        return Err(Wrong::new("a letter of it cannot be in a name", "write the name as `ip link` shows it"));
    }
    if text.contains(['?', '[', ']', '{', '}']) {
        return Err(Wrong::new("only `*` is a pattern", "write * for any letters, or list the names"));
    }
    Ok(InterfacePattern::new(text))
}

/// What a network of outer sources has to look like.
#[derive(Clone, Copy, Debug)]
pub struct OuterSource {
    /// Its length; the rest of the address follows from the flow.
    pub bits: u8,
    /// Its family.
    pub is_v4: bool,
    /// One that is good.
    pub example: &'static str,
}

/// The first address of a network that tunnelled packets come from.
pub fn outer_source(text: &str, wanted: &OuterSource) -> Result<Addr, Wrong> {
    let remedy = || format!("write a network of {} bits, such as {}", wanted.bits, wanted.example);
    let (addr, bits) = text.split_once('/').ok_or_else(|| Wrong::new("it has no length", remedy()))?;
    let addr: IpAddr = addr.parse().map_err(|_| Wrong::new("its address cannot be read", remedy()))?;
    if addr.is_ipv4() != wanted.is_v4 {
        return Err(Wrong::new("it is of the other address family", remedy()));
    }
    if bits.parse() != Ok(wanted.bits) {
        return Err(Wrong::new("it has another length", remedy()));
    }
    let network = Network { addr, prefix_bits: wanted.bits };
    if network.first() != addr || addr.is_multicast() || addr.is_unspecified() {
        return Err(Wrong::new("it names no network that packets come from", remedy()));
    }
    Ok(Addr::from(addr))
}

/// A network: an address and how many of its bits count; an address alone is one machine.
pub fn network(text: &str) -> Result<Network, Wrong> {
    let (addr, prefix) = text.split_once('/').map_or((text, None), |(addr, prefix)| (addr, Some(prefix)));
    let remedy = "write it such as 10.0.0.0/24 or 2001:db8::/64";
    let addr: IpAddr = addr.parse().map_err(|_| Wrong::new("its address cannot be read", remedy))?;
    let n_bits = if addr.is_ipv4() { 32 } else { 128 };
    let prefix_bits = match prefix {
        None => n_bits,
        Some(prefix) => prefix
            .parse::<u8>()
            .ok()
            .filter(|bits| *bits <= n_bits && bits.to_string() == prefix)
            .ok_or_else(|| {
                Wrong::new("its length cannot be read", format!("write 0 to {n_bits} behind the /"))
            })?,
    };
    let network = Network { addr, prefix_bits };
    let first = network.first();
    if first != addr {
        return Err(Wrong::new("it begins in the middle", format!("write {first}/{prefix_bits}")));
    }
    Ok(network)
}

/// A range of ports for translation: above the privileged ones, and wide enough to be of use.
pub fn translation_ports(text: &str) -> Result<RangeInclusive<u16>, Wrong> {
    let remedy = "write first-last, such as 61000-65535";
    let (first, last) = text.split_once('-').ok_or_else(|| Wrong::new("it has no `-`", remedy))?;
    let port = |text: &str| {
        let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        let port = text.parse::<u16>().ok().filter(|_| digits);
        port.ok_or_else(|| Wrong::new("a port is a number from 0 to 65535", remedy))
    };
    let (first, last) = (port(first.trim())?, port(last.trim())?);
    if first > last {
        return Err(Wrong::new("it ends before it begins", format!("write {last}-{first}")));
    }
    if first < FIRST_TRANSLATION_PORT {
        return Err(Wrong::new("it takes ports of system services", "begin at 1024 or above"));
    }
    if last - first < MIN_TRANSLATION_PORTS - 1 {
        let remedy = format!("write a range of at least {MIN_TRANSLATION_PORTS} ports");
        return Err(Wrong::new("it is too narrow", remedy));
    }
    Ok(first..=last)
}

/// Below it are the ports that only the superuser may bind, which services of the node listen on.
const FIRST_TRANSLATION_PORT: u16 = 1_024;

/// Chosen: with fewer, two clients with equal ports soon collide towards one endpoint.
const MIN_TRANSLATION_PORTS: u16 = 64;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_those_of_one_machine() {
        assert_eq!(unicast("10.0.0.1").unwrap(), "10.0.0.1".parse::<IpAddr>().unwrap());
        assert!(unicast("2001:db8::1").is_ok());
        for wrong in
            ["0.0.0.0", "::", "224.0.0.1", "ff02::1", "255.255.255.255", "10.0.0.1/8", "[::1]", "app"]
        {
            assert!(unicast(wrong).is_err(), "{wrong}");
        }
        assert_eq!(unicast("::ffff:10.0.0.1").unwrap_err().remedy, "write 10.0.0.1");
        assert!(unicast("10.0.0.1:80").unwrap_err().remedy.contains("`port`"));
    }

    #[test]
    fn ranges_of_ports_are_sane() {
        assert_eq!(translation_ports("61000-65535").unwrap(), 61_000..=65_535);
        for wrong in
            ["61000", "65535-61000", "80-6000", "61000-61010", "-", "a-b", "61000-70000", "+61000-65535"]
        {
            assert!(translation_ports(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn interfaces_fit_the_kernel() {
        for right in ["eth0", "veth*", "*", "enp0s31f6", "eth0.100", "br-lan"] {
            assert!(interface(right).is_ok(), "{right}");
        }
        for wrong in ["", "a/b", "a b", "eth[01]", "eth?", "..", "sixteen-letters1"] {
            assert!(interface(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn socket_addresses_have_ports() {
        assert!(socket_addr("127.0.0.1:9901").is_ok());
        assert_eq!(socket_addr("::1").unwrap_err().remedy, "write [::1]:9901");
        assert_eq!(socket_addr("127.0.0.1:0").unwrap_err().remedy, "write 127.0.0.1:9901");
        assert!(socket_addr("localhost:1").is_err());
    }
}
