//! The PROXY protocol: a load balancer in front says who the client is (versions 1 and 2), and we say it to endpoints
//! (version 2). The text is `proxy-protocol.txt` of `HAProxy`.
//!
//! Only configured sources are believed, and they have to send it: a header that may be left out could be written by a client.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use tokio::io::{AsyncRead, AsyncReadExt};

use crate::limits;

/// What version 2 begins with.
const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
const V1_PREFIX: &[u8] = b"PROXY ";
/// Longest line of version 1, with its end (section 2.1).
const V1_BYTES: usize = 107;

const LOCAL: u8 = 0x20;
const PROXY: u8 = 0x21;
const UNSPECIFIED: u8 = 0x00;
const TCP_OVER_IPV4: u8 = 0x11;
const TCP_OVER_IPV6: u8 = 0x21;

/// Both ends of the connection that a header tells of.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Ends {
    /// The client.
    pub source: SocketAddr,
    /// What it connected to.
    pub destination: SocketAddr,
}

/// Reads a header and nothing after it; none when it tells of no other connection (a check of the balancer's own).
///
/// # Errors
/// `InvalidData` when it is no header, `TimedOut` when it does not arrive in time.
pub async fn read<S: AsyncRead + Unpin>(stream: &mut S, timeout: Duration) -> io::Result<Option<Ends>> {
    match tokio::time::timeout(timeout, header(stream)).await {
        Ok(read) => read,
        Err(_) => Err(io::ErrorKind::TimedOut.into()),
    }
}

async fn header<S: AsyncRead + Unpin>(stream: &mut S) -> io::Result<Option<Ends>> {
    let mut start = [0; SIGNATURE.len()];
    stream.read_exact(&mut start).await?;
    let wrong = || io::Error::new(io::ErrorKind::InvalidData, "no PROXY protocol header");
    if start == SIGNATURE {
        let mut head = [0; 4];
        stream.read_exact(&mut head).await?;
        let [command, family, len @ ..] = head;
        let len = usize::from(u16::from_be_bytes(len));
        if len > limits::PROXY_HEADER_BYTES {
            return Err(wrong());
        }
        let mut body = vec![0; len];
        stream.read_exact(&mut body).await?;
        return parse_v2(command, family, &body).map(Told::ends).ok_or_else(wrong);
    }
    if !start.starts_with(V1_PREFIX) {
        return Err(wrong());
    }
    // One byte at a time: what follows the line belongs to the client.
    let mut line = start.to_vec();
    while !line.ends_with(b"\n") {
        if line.len() == V1_BYTES {
            return Err(wrong());
        }
        line.push(stream.read_u8().await?);
    }
    parse_v1(&line).map(Told::ends).ok_or_else(wrong)
}

/// What a header says.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Told {
    /// For whom the sender connects.
    Client(Ends),
    /// It connects for itself, or does not know.
    Nobody,
}

impl Told {
    const fn ends(self) -> Option<Ends> {
        match self {
            Self::Client(ends) => Some(ends),
            Self::Nobody => None,
        }
    }
}

/// A whole line of version 1.
fn parse_v1(line: &[u8]) -> Option<Told> {
    let line = std::str::from_utf8(line.strip_suffix(b"\r\n")?).ok()?.strip_prefix("PROXY ")?;
    if line == "UNKNOWN" || line.starts_with("UNKNOWN ") {
        return Some(Told::Nobody);
    }
    let mut parts = line.split(' ');
    let family = parts.next()?;
    let mut address = || -> Option<IpAddr> {
        let text = parts.next()?;
        match family {
            "TCP4" => Some(IpAddr::V4(text.parse::<Ipv4Addr>().ok()?)),
            "TCP6" => Some(IpAddr::V6(text.parse::<Ipv6Addr>().ok()?)),
            _ => None,
        }
    };
    let (source, destination) = (address()?, address()?);
    let mut port = || {
        let text = parts.next()?;
        let is_plain =
            text.bytes().all(|byte| byte.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
        is_plain.then(|| text.parse::<u16>().ok()).flatten()
    };
    let (source_port, destination_port) = (port()?, port()?);
    let ends = Ends {
        source: SocketAddr::new(source, source_port),
        destination: SocketAddr::new(destination, destination_port),
    };
    parts.next().is_none().then_some(Told::Client(ends))
}

/// What follows the signature of version 2. What stands behind the addresses (TLVs) is skipped.
fn parse_v2(command: u8, family: u8, body: &[u8]) -> Option<Told> {
    match (command, family) {
        (LOCAL, _) | (PROXY, UNSPECIFIED) => Some(Told::Nobody),
        (PROXY, TCP_OVER_IPV4) => {
            let (addresses, _) = body.split_first_chunk::<12>()?;
            let [s0, s1, s2, s3, d0, d1, d2, d3, sp0, sp1, dp0, dp1] = *addresses;
            let source = SocketAddr::from(([s0, s1, s2, s3], u16::from_be_bytes([sp0, sp1])));
            let destination = SocketAddr::from(([d0, d1, d2, d3], u16::from_be_bytes([dp0, dp1])));
            Some(Told::Client(Ends { source, destination }))
        }
        (PROXY, TCP_OVER_IPV6) => {
            let (source, rest) = body.split_first_chunk::<16>()?;
            let (destination, rest) = rest.split_first_chunk::<16>()?;
            let (source_port, rest) = rest.split_first_chunk::<2>()?;
            let (destination_port, _) = rest.split_first_chunk::<2>()?;
            let source = SocketAddr::from((*source, u16::from_be_bytes(*source_port)));
            let destination = SocketAddr::from((*destination, u16::from_be_bytes(*destination_port)));
            Some(Told::Client(Ends { source, destination }))
        }
        _ => None,
    }
}

/// A header of version 2. Addresses of both families are written as IPv6.
pub fn write_v2(ends: &Ends) -> Vec<u8> {
    let mut header = SIGNATURE.to_vec();
    let ports = [ends.source.port().to_be_bytes(), ends.destination.port().to_be_bytes()].concat();
    match (ends.source.ip(), ends.destination.ip()) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            header.extend([PROXY, TCP_OVER_IPV4, 0, 12]);
            header.extend(source.octets());
            header.extend(destination.octets());
        }
        (source, destination) => {
            header.extend([PROXY, TCP_OVER_IPV6, 0, 36]);
            for ip in [source, destination] {
                header.extend(match ip {
                    IpAddr::V4(ip) => ip.to_ipv6_mapped().octets(),
                    IpAddr::V6(ip) => ip.octets(),
                });
            }
        }
    }
    header.extend(ports);
    header
}

/// A header of version 2 for a connection of the agent's own, such as a check.
pub const fn write_own() -> [u8; 16] {
    let [a, b, c, d, e, f, g, h, i, j, k, l] = SIGNATURE;
    [a, b, c, d, e, f, g, h, i, j, k, l, LOCAL, UNSPECIFIED, 0, 0]
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What is read, and what is left.
    async fn read_all(bytes: &[u8]) -> (io::Result<Option<Ends>>, Vec<u8>) {
        let mut rest = bytes;
        let outcome = read(&mut rest, Duration::from_secs(1)).await;
        (outcome, rest.to_vec())
    }

    fn ends(source: &str, destination: &str) -> Ends {
        Ends { source: source.parse().unwrap(), destination: destination.parse().unwrap() }
    }

    #[tokio::test]
    async fn headers_of_both_versions_are_read_and_nothing_behind_them() {
        let v4 = ends("192.0.2.1:56324", "198.51.100.2:443");
        let v6 = ends("[2001:db8::1]:1", "[2001:db8::2]:65535");
        let mut with_tlv = write_v2(&v4);
        with_tlv[15] += 5;
        with_tlv.extend([4, 0, 2, 9, 9]);
        let local = [&SIGNATURE[..], &[LOCAL, 0, 0, 3, 1, 2, 3]].concat();
        for (header, expected) in [
            (b"PROXY TCP4 192.0.2.1 198.51.100.2 56324 443\r\n".to_vec(), Some(v4)),
            (b"PROXY TCP6 2001:db8::1 2001:db8::2 1 65535\r\n".to_vec(), Some(v6)),
            (b"PROXY UNKNOWN\r\n".to_vec(), None),
            (b"PROXY UNKNOWN ffff::1 what ever 1 2\r\n".to_vec(), None),
            (write_v2(&v4), Some(v4)),
            (write_v2(&v6), Some(v6)),
            (with_tlv, Some(v4)),
            (local, None),
            (write_own().to_vec(), None),
        ] {
            let (outcome, rest) = read_all(&[&header[..], b"GET /"].concat()).await;
            assert_eq!((outcome.unwrap(), rest), (expected, b"GET /".to_vec()), "{header:?}");
        }
    }

    #[tokio::test]
    async fn what_is_not_exactly_a_header_is_refused() {
        let long = format!("PROXY UNKNOWN {}\r\n", "x".repeat(107));
        let mut short = write_v2(&ends("192.0.2.1:1", "192.0.2.2:2"));
        short[15] = 11;
        let mut unix = short.clone();
        unix[13] = 0x31;
        let mut version = write_v2(&ends("192.0.2.1:1", "192.0.2.2:2"));
        version[12] = 0x11;
        let huge = [&SIGNATURE[..], &[PROXY, TCP_OVER_IPV4, 0xff, 0xff], &vec![0; 70_000]].concat();
        for header in [
            &b"GET / HTTP/1.1\r\n\r\n"[..],
            b"PROXY TCP4 192.0.2.1 198.51.100.2 56324 443\n",
            b"PROXY  TCP4 192.0.2.1 198.51.100.2 56324 443\r\n",
            b"PROXY TCP4 192.0.2.1 198.51.100.2 56324 443 \r\n",
            b"PROXY TCP4 192.0.2.01 198.51.100.2 56324 443\r\n",
            b"PROXY TCP4 192.0.2.1 198.51.100.2 056324 443\r\n",
            b"PROXY TCP4 192.0.2.1 198.51.100.2 +1 443\r\n",
            b"PROXY TCP4 192.0.2.1 198.51.100.2 65536 443\r\n",
            b"PROXY TCP4 2001:db8::1 2001:db8::2 1 2\r\n",
            b"PROXY UDP4 192.0.2.1 198.51.100.2 1 2\r\n",
            b"PROXY UNKNOWNS\r\n",
            long.as_bytes(),
            &short,
            &unix,
            &version,
            &huge,
        ] {
            let outcome = read_all(header).await.0;
            assert_eq!(outcome.unwrap_err().kind(), io::ErrorKind::InvalidData, "{header:?}");
        }
    }

    #[tokio::test]
    async fn a_header_that_does_not_come_ends_at_the_bound() {
        let (mut ours, _theirs) = tokio::io::duplex(16);
        let outcome = read(&mut ours, Duration::from_millis(20)).await;
        assert_eq!(outcome.unwrap_err().kind(), io::ErrorKind::TimedOut);
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_again(
            addresses in (any::<[u8; 16]>(), any::<[u8; 16]>(), any::<[u8; 4]>(), any::<[u8; 4]>()),
            ports in (any::<u16>(), any::<u16>()),
            is_v4: bool,
        ) {
            let (a, b, c, d) = addresses;
            let (source, destination) = if is_v4 { (c.into(), d.into()) } else { (a.into(), b.into()) };
            let ends = Ends {
                source: SocketAddr::new(source, ports.0),
                destination: SocketAddr::new(destination, ports.1),
            };
            let written = write_v2(&ends);
            let (head, body) = written[12..].split_at(4);
            prop_assert_eq!(parse_v2(head[0], head[1], body), Some(Told::Client(ends)));
            let family = if is_v4 { "TCP4" } else { "TCP6" };
            let line = format!("PROXY {family} {source} {destination} {} {}\r\n", ports.0, ports.1);
            prop_assert_eq!(parse_v1(line.as_bytes()), Some(Told::Client(ends)));
            prop_assert!(line.len() <= V1_BYTES);
        }
    }
}
