//! The receiving end of tunnels: packets that a balancing node sent through one come out as their client sent them.
//!
//! It is a program of its own, because not every kernel has the devices for it, and because it opens tunnels of
//! configured peers only: whoever may send through one can claim any source.

use bytemuck::{Pod, Zeroable};
use gateway_common::{
    addr::{Addr, Port},
    counter::Reason,
    receive::Receive,
};

use crate::{
    checksum::Diff,
    count::counted,
    env::{Env, Maps},
    packet::{
        eth,
        ip::{self, V4, V6},
        transport::{UDP_LEN, Udp},
    },
    verdict::Verdict,
};

/// What a program that receives can do beside the rest.
pub trait Receiver: Env {
    /// Whether this node's stack would deliver a packet between these addresses, rather than forward it.
    fn is_delivered(&mut self, source: Addr, destination: Addr) -> bool;
    /// Removes what stands between the link-layer header and the packet inside. `EtherType` and the kernel's notion of
    /// the family become those of the packet inside.
    fn leave_tunnel(&mut self, shell: Shell) -> Option<()>;
}

/// What is taken off a packet.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Shell {
    /// Bytes of the outer headers.
    pub bytes: u32,
    /// Whether the outer IP header is IPv6.
    pub outer_v6: bool,
    /// Whether the packet inside is IPv6.
    pub inner_v6: bool,
}

/// IPv4 in something, as a protocol number (RFC 2003).
const IPV4: u8 = 4;
/// UDP.
const UDP: u8 = 17;
/// IPv6 in something (RFC 2473).
const IPV6: u8 = 41;

/// Bytes that may have to be read: Ethernet, IPv4 with all options, UDP, a GUE header with all its fields, IPv6.
pub const HEAD_BYTES: u32 = 14 + 60 + 8 + 128 + 40;

/// Congestion was experienced, as the two congestion bits say it (RFC 3168, section 5).
const CONGESTED: u8 = 3;

/// The outside of a packet.
#[derive(Clone, Copy)]
struct Outside {
    source: Addr,
    destination: Addr,
    protocol: u8,
    class: u8,
    v6: bool,
    /// Offset of what the IP header carries.
    end: u8,
}

/// The whole program for one packet, counted.
#[inline(always)]
pub fn receive<E: Receiver>(env: &mut E) -> Verdict {
    counted(env, run)
}

#[inline(always)]
fn run<E: Receiver>(env: &mut E) -> Verdict {
    let elsewhere = Verdict::Pass(Reason::NotTunnelled);
    let (None, Some(receive)) = (env.apart(), env.maps().receive()) else { return elsewhere };
    let Some(outside) = outside(env) else { return elsewhere };
    let Some(start) = payload(env, &receive, &outside) else { return elsewhere };
    if receive.n_peers == 0 || !env.is_delivered(outside.source, outside.destination) {
        return elsewhere;
    }
    if !is_peer(&receive, outside.source) {
        return Verdict::Drop(Reason::TunnelStranger);
    }
    match inside(env, &outside, start) {
        Ok((shell, class)) => open(env, shell, class, outside.class),
        Err(reason) => Verdict::Drop(reason),
    }
}

/// Reads the outer IP header. None for what the stack has to look at first: fragments, and headers that it refuses.
#[inline(always)]
fn outside<E: Receiver>(env: &E) -> Option<Outside> {
    let ethertype: [u8; 2] = env.load(eth::TYPE)?;
    match ethertype {
        eth::IPV4 => {
            let header: V4 = env.load(ip::OFFSET)?;
            let is_whole = header.is_sound() && !header.is_fragment();
            is_whole.then(|| Outside {
                source: header.source(),
                destination: header.destination(),
                protocol: header.protocol(),
                class: header.class(),
                v6: false,
                end: header.end(),
            })
        }
        eth::IPV6 => {
            let header: V6 = env.load(ip::OFFSET)?;
            header.is_sound().then(|| Outside {
                source: header.source(),
                destination: header.destination(),
                protocol: header.next_header(),
                class: header.class(),
                v6: true,
                end: ip::V6_END,
            })
        }
        _ => None,
    }
}

/// The GUE header of version 0 (draft-ietf-intarea-gue-09, section 3.1).
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Gue {
    /// Version, whether it is a control message, and words of the fields that follow.
    first: u8,
    protocol: u8,
    flags: [u8; 2],
}

/// Where the packet inside begins, and what it is said to be.
#[derive(Clone, Copy)]
struct Start {
    offset: u8,
    /// Protocol number; none when the packet itself says it.
    protocol: u8,
}

impl Start {
    /// The packet inside says itself what it is.
    const SELF: u8 = 0;
    /// Something that is no IP packet.
    const OTHER: u8 = 0xff;
}

/// What the outer IP header carries; none when that is no tunnel.
#[inline(always)]
fn payload<E: Receiver>(env: &E, receive: &Receive, outside: &Outside) -> Option<Start> {
    match outside.protocol {
        IPV4 | IPV6 => Some(Start { offset: outside.end, protocol: outside.protocol }),
        UDP => {
            let header: Udp = env.load(u32::from(outside.end))?;
            let is_ours = receive.port != Port::NONE && header.destination() == receive.port;
            is_ours.then(|| gue(env, outside.end + UDP_BYTES))
        }
        _ => None,
    }
}

#[expect(clippy::as_conversions, clippy::cast_possible_truncation, reason = "eight")]
const UDP_BYTES: u8 = UDP_LEN as u8;

/// What a packet to the port of tunnels over UDP carries: an IP packet at once (version 1, section 4 of the draft), or one
/// behind a header.
#[inline(always)]
fn gue<E: Receiver>(env: &E, offset: u8) -> Start {
    let other = Start { offset, protocol: Start::OTHER };
    let Some(header) = env.load::<Gue>(u32::from(offset)) else { return other };
    match header.first >> 6 {
        0 => {
            let is_data = header.first & 0x20 == 0 && matches!(header.protocol, IPV4 | IPV6);
            let offset = offset + 4 + (header.first & 0x1f) * 4;
            if is_data { Start { offset, protocol: header.protocol } } else { other }
        }
        1 => Start { offset, protocol: Start::SELF },
        _ => other,
    }
}

#[inline(always)]
fn is_peer(receive: &Receive, addr: Addr) -> bool {
    let mut left = receive.n_peers;
    for peer in &receive.peers {
        if left == 0 {
            return false;
        }
        if peer.contains(addr) {
            return true;
        }
        left -= 1;
    }
    false
}

/// Reads the inner IP header: what has to be taken off, and the service class.
#[inline(always)]
fn inside<E: Receiver>(env: &E, outside: &Outside, start: Start) -> Result<(Shell, u8), Reason> {
    let offset = u32::from(start.offset);
    let bytes = offset - ip::OFFSET;
    let available = env.len_bytes().checked_sub(offset).ok_or(Reason::BadTunnel)?;
    // Two bytes: of a check for one, the verifier learns nothing.
    let [first, _]: [u8; 2] = env.load(offset).ok_or(Reason::BadTunnel)?;
    let is = |protocol| start.protocol == protocol || start.protocol == Start::SELF;
    let (class, is_whole) = match first >> 4 {
        4 if is(IPV4) => {
            let header: V4 = env.load(offset).ok_or(Reason::BadTunnel)?;
            (header.class(), header.is_sound() && header.fits(available))
        }
        6 if is(IPV6) => {
            let header: V6 = env.load(offset).ok_or(Reason::BadTunnel)?;
            (header.class(), header.fits(available))
        }
        _ => return Err(Reason::BadTunnel),
    };
    let shell = Shell { bytes, outer_v6: outside.v6, inner_v6: first >> 4 == 6 };
    if is_whole { Ok((shell, class)) } else { Err(Reason::BadTunnel) }
}

/// The congestion bits of the packet that comes out (RFC 6040, figure 4); none when it must not come out.
#[inline(always)]
const fn congestion(inner: u8, outer: u8) -> Option<u8> {
    match (inner, outer) {
        // The packet's sender does not understand marks, so that its loss is the only one.
        (0, CONGESTED) => None,
        (_, CONGESTED) => Some(CONGESTED),
        (2, 1) => Some(1),
        _ => Some(inner),
    }
}

/// Takes the packet out. The service class stays the inner one (RFC 2983, section 4), the congestion bits are combined.
#[inline(always)]
fn open<E: Receiver>(env: &mut E, shell: Shell, class: u8, outer_class: u8) -> Verdict {
    let Some(bits) = congestion(class & 3, outer_class & 3) else {
        return Verdict::Drop(Reason::TunnelCongested);
    };
    let marked = class & !3 | bits;
    let opened = env.leave_tunnel(shell);
    let marks = marked != class;
    if opened.is_none() || marks && mark(env, shell.inner_v6, class, marked).is_none() {
        return Verdict::Drop(Reason::RewriteFailed);
    }
    Verdict::HandOver(Reason::Decapsulated)
}

/// Writes the service class with its congestion bits.
#[inline(always)]
fn mark<E: Receiver>(env: &mut E, v6: bool, old: u8, new: u8) -> Option<()> {
    if v6 {
        // The congestion bits are the upper half of the lower four bits of the class, which begin the second byte.
        let [_, second]: [u8; 2] = env.load(ip::OFFSET)?;
        return env.store(ip::OFFSET + 1, &(new << 4 | second & 0x0f));
    }
    env.store(ip::OFFSET + 1, &new)?;
    let word = |class| u32::from_ne_bytes([0, class, 0, 0]);
    env.fix_ip_checksum(ip::V4_CHECKSUM, Diff::ZERO.replace(word(old), word(new)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn congestion_follows_the_table() {
        // Rows: inner not-ECT, ECT(1), ECT(0), CE; columns: outer not-ECT, ECT(1), ECT(0), CE, by their bits.
        let table = [
            [Some(0), Some(0), Some(0), None],
            [Some(1), Some(1), Some(1), Some(3)],
            [Some(2), Some(1), Some(2), Some(3)],
            [Some(3), Some(3), Some(3), Some(3)],
        ];
        for (inner, row) in (0..).zip(table) {
            for (outer, expected) in (0..).zip(row) {
                assert_eq!(congestion(inner, outer), expected, "inner {inner}, outer {outer}");
            }
        }
    }
}
