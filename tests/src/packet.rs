//! Packets written like sentences: `tcp("192.0.2.1:40000", "198.51.100.1:80").syn().bytes()`.
//!
//! Checksums are computed here from scratch (RFC 1071), without any code of the pipeline, and checked the same way.

use std::net::{IpAddr, SocketAddr};

use gateway_common::{
    addr::{Addr, Port, Protocol},
    flow::FlowKey,
};

/// Link-layer address of the client's side.
pub const CLIENT_MAC: [u8; 6] = [0x02, 0, 0, 0, 0, 0x01];
/// Link-layer address of this node towards clients.
pub const NODE_MAC: [u8; 6] = [0x02, 0, 0, 0, 0, 0x02];

/// FIN flag of TCP.
pub const FIN: u8 = 0x01;
/// SYN flag of TCP.
pub const SYN: u8 = 0x02;
/// RST flag of TCP.
pub const RST: u8 = 0x04;
/// ACK flag of TCP.
pub const ACK: u8 = 0x10;

const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMP: u8 = 1;
const ICMP_V6: u8 = 58;

/// A packet to be built.
#[derive(Clone, Debug)]
pub struct Packet {
    source: SocketAddr,
    destination: SocketAddr,
    protocol: u8,
    flags: u8,
    ttl: u8,
    payload: Vec<u8>,
    ip_options: Vec<u8>,
    tcp_options: Vec<u8>,
    /// Sequence number and acknowledgment of TCP.
    numbers: (u32, u32),
    vlan: Option<u16>,
    fragment: Option<(u16, bool)>,
    extension: Option<u8>,
    udp_checksum: bool,
    /// Type, code and second word of an ICMP message; none for an echo request.
    message: Option<(u8, u8, u32)>,
    macs: ([u8; 6], [u8; 6]),
}

fn new(source: &str, destination: &str, protocol: u8) -> Packet {
    Packet {
        source: source.parse().expect("a test writes its source as addr:port"),
        destination: destination.parse().expect("a test writes its destination as addr:port"),
        protocol,
        flags: ACK,
        ttl: 64,
        payload: b"sluice".to_vec(),
        ip_options: Vec::new(),
        tcp_options: Vec::new(),
        numbers: (1, 2),
        vlan: None,
        fragment: None,
        extension: None,
        udp_checksum: true,
        message: None,
        macs: (CLIENT_MAC, NODE_MAC),
    }
}

/// A TCP packet with the ACK flag, between two addresses with ports.
pub fn tcp(source: &str, destination: &str) -> Packet {
    new(source, destination, TCP)
}

/// A UDP packet.
pub fn udp(source: &str, destination: &str) -> Packet {
    new(source, destination, UDP)
}

/// An ICMP echo request of the addresses' family; the ports mean nothing.
pub fn icmp(source: &str, destination: &str) -> Packet {
    let protocol = if destination.starts_with('[') { ICMP_V6 } else { ICMP };
    new(source, destination, protocol)
}

/// An ICMP error of the addresses' family, from one address to another, that quotes a packet from its IP header on; `rest` is
/// the second word of the message. IPv4 quotes `quoted` bytes, and so does IPv6.
pub fn icmp_error(
    from: &str,
    to: &str,
    (kind, code): (u8, u8),
    rest: u32,
    packet: &Packet,
    quoted: usize,
) -> Packet {
    let (from, to) = (format!("{from}:0"), format!("{to}:0"));
    let mut error = icmp(&from, &to);
    let frame = packet.bytes();
    let ip = &frame[14..];
    error.message = Some((kind, code, rest));
    error.payload = ip[..quoted.min(ip.len())].to_vec();
    error
}

impl Packet {
    /// Only the SYN flag.
    #[must_use]
    pub fn syn(self) -> Self {
        self.flags(SYN)
    }

    /// These flags.
    #[must_use]
    pub fn flags(mut self, flags: u8) -> Self {
        self.flags = flags;
        self
    }

    /// This time to live or hop limit.
    #[must_use]
    pub fn ttl(mut self, ttl: u8) -> Self {
        self.ttl = ttl;
        self
    }

    /// This payload after the transport header.
    #[must_use]
    pub fn payload(mut self, payload: &[u8]) -> Self {
        self.payload = payload.to_vec();
        self
    }

    /// `words` 32-bit words of options in the IPv4 header, all "no operation".
    #[must_use]
    pub fn ip_options(mut self, words: usize) -> Self {
        self.ip_options = vec![1; words * 4];
        self
    }

    /// `words` 32-bit words of options in the TCP header.
    #[must_use]
    pub fn tcp_options(mut self, words: usize) -> Self {
        self.tcp_options = vec![1; words * 4];
        self
    }

    /// These options in the TCP header, whole words.
    #[must_use]
    pub fn tcp_option_bytes(mut self, options: &[u8]) -> Self {
        self.tcp_options = options.to_vec();
        self
    }

    /// This sequence number and acknowledgment of TCP.
    #[must_use]
    pub fn numbers(mut self, sequence: u32, acknowledgment: u32) -> Self {
        self.numbers = (sequence, acknowledgment);
        self
    }

    /// A VLAN tag.
    #[must_use]
    pub fn vlan(mut self, id: u16) -> Self {
        self.vlan = Some(id);
        self
    }

    /// A fragment at `offset` units of eight bytes, with more to follow or not.
    #[must_use]
    pub fn fragment(mut self, offset: u16, more: bool) -> Self {
        self.fragment = Some((offset, more));
        self
    }

    /// An IPv6 extension header of this kind, eight bytes long.
    #[must_use]
    pub fn extension(mut self, kind: u8) -> Self {
        self.extension = Some(kind);
        self
    }

    /// No UDP checksum.
    #[must_use]
    pub fn without_checksum(mut self) -> Self {
        self.udp_checksum = false;
        self
    }

    /// These link-layer addresses: source, destination.
    #[must_use]
    pub fn macs(mut self, source: [u8; 6], destination: [u8; 6]) -> Self {
        self.macs = (source, destination);
        self
    }

    /// The key under which the packet is a flow.
    pub fn key(&self) -> FlowKey {
        FlowKey::new(
            Addr::from(self.source.ip()),
            Port::new(self.source.port()),
            Addr::from(self.destination.ip()),
            Port::new(self.destination.port()),
            Protocol::new(self.protocol),
        )
    }

    /// The frame.
    pub fn bytes(&self) -> Vec<u8> {
        let segment = self.segment();
        let (ethertype, ip) = match (self.source.ip(), self.destination.ip()) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                (0x0800_u16, self.v4(source.octets(), destination.octets(), &segment))
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                (0x86dd_u16, self.v6(source.octets(), destination.octets(), &segment))
            }
            _ => panic!("source and destination are of different families"),
        };
        let mut frame = [self.macs.1, self.macs.0].concat();
        if let Some(id) = self.vlan {
            frame.extend(0x8100_u16.to_be_bytes());
            frame.extend(id.to_be_bytes());
        }
        frame.extend(ethertype.to_be_bytes());
        frame.extend(ip);
        frame
    }

    fn v4(&self, source: [u8; 4], destination: [u8; 4], segment: &[u8]) -> Vec<u8> {
        let header_bytes = 20 + self.ip_options.len();
        let mut header = vec![0x40 | u8_of(header_bytes / 4), 0];
        header.extend(u16_of(header_bytes + segment.len()).to_be_bytes());
        header.extend([0x12, 0x34]);
        let fragment = self.fragment.map_or(0, |(offset, more)| offset | u16::from(more) << 13);
        header.extend(fragment.to_be_bytes());
        header.extend([self.ttl, self.protocol, 0, 0]);
        header.extend(source);
        header.extend(destination);
        header.extend(&self.ip_options);
        let sum = checksum(&header);
        header[10..12].copy_from_slice(&sum.to_be_bytes());
        header.extend(segment);
        header
    }

    fn v6(&self, source: [u8; 16], destination: [u8; 16], segment: &[u8]) -> Vec<u8> {
        let mut body = Vec::new();
        let mut next = self.protocol;
        if let Some((offset, more)) = self.fragment {
            body.extend([next, 0]);
            body.extend((offset << 3 | u16::from(more)).to_be_bytes());
            body.extend([0, 0, 0, 7]);
            next = 44;
        }
        if let Some(kind) = self.extension {
            body.splice(0..0, [next, 0, 1, 4, 0, 0, 0, 0]);
            next = kind;
        }
        body.extend(segment);
        let mut header = vec![0x60, 0, 0, 0];
        header.extend(u16_of(body.len()).to_be_bytes());
        header.extend([next, self.ttl]);
        header.extend(source);
        header.extend(destination);
        header.extend(body);
        header
    }

    fn segment(&self) -> Vec<u8> {
        let ports = [self.source.port().to_be_bytes(), self.destination.port().to_be_bytes()].concat();
        let (mut segment, at) = match self.protocol {
            TCP => {
                let mut header = ports;
                header.extend([self.numbers.0.to_be_bytes(), self.numbers.1.to_be_bytes()].concat());
                header.extend([u8_of(5 + self.tcp_options.len() / 4) << 4, self.flags, 0x20, 0, 0, 0, 0, 0]);
                header.extend(&self.tcp_options);
                (header, 16)
            }
            UDP => {
                let mut header = ports;
                header.extend(u16_of(8 + self.payload.len()).to_be_bytes());
                header.extend([0, 0]);
                (header, 6)
            }
            protocol => {
                let echo = if protocol == ICMP_V6 { 128 } else { 8 };
                let (kind, code, rest) = self.message.unwrap_or((echo, 0, 0x0001_0001));
                let mut header = vec![kind, code, 0, 0];
                header.extend(rest.to_be_bytes());
                (header, 2)
            }
        };
        segment.extend(&self.payload);
        let pseudo = if self.protocol == ICMP { Vec::new() } else { self.pseudo(segment.len()) };
        let mut sum = checksum(&[pseudo, segment.clone()].concat());
        if self.protocol == UDP {
            sum = match (self.udp_checksum, sum) {
                (false, _) => 0,
                (true, 0) => 0xffff,
                (true, sum) => sum,
            };
        }
        segment[at..at + 2].copy_from_slice(&sum.to_be_bytes());
        segment
    }

    fn pseudo(&self, len: usize) -> Vec<u8> {
        match (self.source.ip(), self.destination.ip()) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                pseudo(&source.octets(), &destination.octets(), self.protocol, len)
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                pseudo(&source.octets(), &destination.octets(), self.protocol, len)
            }
            _ => panic!("source and destination are of different families"),
        }
    }
}

fn pseudo(source: &[u8], destination: &[u8], protocol: u8, len: usize) -> Vec<u8> {
    let mut bytes = [source, destination].concat();
    bytes.extend([0, protocol]);
    bytes.extend(u16_of(len).to_be_bytes());
    bytes
}

pub(crate) fn u16_of(number: usize) -> u16 {
    u16::try_from(number).expect("a test's packet fits its length field")
}

pub(crate) fn u8_of(number: usize) -> u8 {
    u8::try_from(number).expect("a test's header fits its length field")
}

/// The Internet checksum of RFC 1071.
pub fn checksum(bytes: &[u8]) -> u16 {
    let mut sum = 0_u64;
    for pair in bytes.chunks(2) {
        let low = pair.get(1).copied().unwrap_or(0);
        sum += u64::from(u16::from_be_bytes([pair[0], low]));
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).expect("folded to 16 bits")
}

/// What a frame says, read independently of the pipeline.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Seen {
    /// Source with port.
    pub source: SocketAddr,
    /// Destination with port.
    pub destination: SocketAddr,
    /// Time to live or hop limit.
    pub ttl: u8,
    /// Link-layer source and destination.
    pub macs: ([u8; 6], [u8; 6]),
    /// The checksum field of the transport header.
    pub transport_checksum: u16,
}

/// Reads a TCP or UDP frame and checks every checksum in it.
///
/// # Errors
///
/// What is wrong with the frame.
pub fn inspect(frame: &[u8]) -> Result<Seen, String> {
    let macs = (array(frame, 6)?, array(frame, 0)?);
    let ip = frame.get(14..).ok_or("no IP header")?;
    let (source, destination, protocol, ttl, segment): (IpAddr, IpAddr, u8, u8, &[u8]);
    if array::<2>(frame, 12)? == [0x08, 0x00] {
        let header_bytes = usize::from(ip.first().ok_or("no IP header")? & 0x0f) * 4;
        let header = ip.get(..header_bytes).ok_or("short IPv4 header")?;
        if checksum(header) != 0 {
            return Err(format!("IPv4 header checksum is off by {:#06x}", checksum(header)));
        }
        let total = usize::from(u16::from_be_bytes(array(ip, 2)?));
        (source, destination) = (array::<4>(ip, 12)?.into(), array::<4>(ip, 16)?.into());
        (ttl, protocol) = (ip[8], ip[9]);
        segment = ip.get(header_bytes..total).ok_or("short IPv4 payload")?;
    } else {
        let payload = usize::from(u16::from_be_bytes(array(ip, 4)?));
        (source, destination) = (array::<16>(ip, 8)?.into(), array::<16>(ip, 24)?.into());
        (protocol, ttl) = (ip[6], ip[7]);
        segment = ip.get(40..40 + payload).ok_or("short IPv6 payload")?;
    }
    let at = if protocol == TCP { 16 } else { 6 };
    let transport_checksum = u16::from_be_bytes(array(segment, at)?);
    if !(protocol == UDP && transport_checksum == 0) {
        let sum = match (source, destination) {
            (IpAddr::V4(a), IpAddr::V4(b)) => pseudo(&a.octets(), &b.octets(), protocol, segment.len()),
            (IpAddr::V6(a), IpAddr::V6(b)) => pseudo(&a.octets(), &b.octets(), protocol, segment.len()),
            _ => return Err("mixed families".to_owned()),
        };
        let off = checksum(&[sum, segment.to_vec()].concat());
        if off != 0 {
            return Err(format!("transport checksum is off by {off:#06x}"));
        }
    }
    Ok(Seen {
        source: SocketAddr::new(source, u16::from_be_bytes(array(segment, 0)?)),
        destination: SocketAddr::new(destination, u16::from_be_bytes(array(segment, 2)?)),
        ttl,
        macs,
        transport_checksum,
    })
}

/// What an ICMP frame says, read independently of the pipeline.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct SeenIcmp {
    /// Source.
    pub source: IpAddr,
    /// Destination.
    pub destination: IpAddr,
    /// Time to live or hop limit.
    pub ttl: u8,
    /// Link-layer source and destination.
    pub macs: ([u8; 6], [u8; 6]),
    /// Type, code and second word.
    pub message: (u8, u8, u32),
    /// What follows.
    pub payload: Vec<u8>,
}

/// Reads an ICMP frame and checks the checksums of its IP header and of the message.
///
/// # Errors
///
/// What is wrong with the frame.
pub fn inspect_icmp(frame: &[u8]) -> Result<SeenIcmp, String> {
    let macs = (array(frame, 6)?, array(frame, 0)?);
    let ip = frame.get(14..).ok_or("no IP header")?;
    let (source, destination, protocol, ttl, message): (IpAddr, IpAddr, u8, u8, &[u8]);
    let mut sum = Vec::new();
    if array::<2>(frame, 12)? == [0x08, 0x00] {
        let header_bytes = usize::from(ip.first().ok_or("no IP header")? & 0x0f) * 4;
        if checksum(ip.get(..header_bytes).ok_or("short IPv4 header")?) != 0 {
            return Err("the IPv4 header checksum is off".to_owned());
        }
        let total = usize::from(u16::from_be_bytes(array(ip, 2)?));
        (source, destination) = (array::<4>(ip, 12)?.into(), array::<4>(ip, 16)?.into());
        (ttl, protocol) = (ip[8], ip[9]);
        message = ip.get(header_bytes..total).ok_or("short IPv4 payload")?;
    } else {
        let payload = usize::from(u16::from_be_bytes(array(ip, 4)?));
        (source, destination) = (array::<16>(ip, 8)?.into(), array::<16>(ip, 24)?.into());
        (protocol, ttl) = (ip[6], ip[7]);
        message = ip.get(40..40 + payload).ok_or("short IPv6 payload")?;
        sum = pseudo(&array::<16>(ip, 8)?, &array::<16>(ip, 24)?, ICMP_V6, payload);
    }
    if protocol != if source.is_ipv4() { ICMP } else { ICMP_V6 } {
        return Err(format!("protocol {protocol}"));
    }
    sum.extend(message);
    if checksum(&sum) != 0 {
        return Err(format!("the ICMP checksum is off by {:#06x}", checksum(&sum)));
    }
    let [kind, code, _, _, a, b, c, d] = array(message, 0)?;
    let message_of = (kind, code, u32::from_be_bytes([a, b, c, d]));
    Ok(SeenIcmp { source, destination, ttl, macs, message: message_of, payload: message[8..].to_vec() })
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> Result<[u8; N], String> {
    bytes.get(at..at + N).and_then(|part| part.try_into().ok()).ok_or_else(|| format!("no {N} bytes at {at}"))
}
