//! Echo requests to virtual addresses (RFC 792, RFC 4443), answered here: whoever floods an address with them keeps the
//! stack out of it.
//!
//! Which addresses are answered for stands in the index of services, under the number of the protocol and port zero. Those
//! with IP options or extension headers, and those in pieces, are the stack's.

use bytemuck::{Pod, Zeroable};
use gateway_common::{
    addr::{Port, Protocol},
    answer::Answers,
    counter::Reason,
    flow::FlowKey,
    service::ServiceKey,
    settings::Settings,
};

use crate::{
    Aligned,
    answer::{TTL, may_be_answered},
    arrival::Arrival,
    checksum::{self, Diff},
    count::dropped,
    env::{Env, Maps},
    guard, index,
    packet::{
        self, eth,
        icmp::{self, Header},
        ip::{self, Ip},
        transport::Flags,
    },
    rewrite::{V4Addrs, V6Addrs, ttl_word},
    select::NO_ROW,
    verdict::Verdict,
};

/// "Echo request" and "echo reply" of IPv4.
const V4: [u8; 2] = [8, 0];
/// The same for IPv6.
const V6: [u8; 2] = [128, 129];

/// The checksum of a message.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Sum {
    bytes: [u8; 2],
}

/// Answers an echo request; none when the message is another, or its destination no address that is answered for.
#[inline(always)]
pub(super) fn ingress<E: Env>(
    env: &mut E,
    arrival: &mut Arrival,
    settings: &Settings,
    ip: &Ip,
) -> Option<Verdict> {
    let (request, plain, protocol) = if ip.v6 {
        (V6[0], eth::LEN + ip::V6_LEN, Protocol::ICMP_V6)
    } else {
        (V4[0], eth::LEN + ip::V4_LEN, Protocol::ICMP)
    };
    if u32::from(ip.transport) != plain || ip.payload < icmp::LEN {
        return None;
    }
    let header: Header = env.load(plain)?;
    if header.kind != request || header.code != 0 {
        return None;
    }
    let key = Aligned(ServiceKey::new(ip.destination, Port::NONE, protocol));
    let id = index::only(env.maps(), &key.0)?;
    let service = env.maps().service(id)?;
    (arrival.id, arrival.row) = (id, NO_ROW);
    arrival.packet.is(
        FlowKey::new(ip.source, Port::NONE, ip.destination, Port::NONE, protocol),
        ip,
        Flags::default(),
    );
    if let Some(reason) = guard::refuses(env.maps(), arrival, &service, settings) {
        guard::blames(env.maps(), arrival, settings, reason);
        return Some(dropped(env.maps(), id, Verdict::Drop(reason)));
    }
    if !may_be_answered(env, arrival) {
        return None;
    }
    let now = env.maps().now(settings.tick_shift);
    if !env.maps().answers(|answers: &mut Answers| answers.take_echo(now)) {
        return Some(dropped(env.maps(), id, Verdict::Drop(Reason::EchoLimited)));
    }
    let way = packet::way_back(env);
    let done = turn(env, ip, header).and_then(|()| env.store_link(way));
    Some(match done {
        Some(()) => {
            arrival.leaves_by(way.interface());
            Verdict::Transmit(Reason::EchoAnswered)
        }
        None => dropped(env.maps(), id, Verdict::Drop(Reason::RewriteFailed)),
    })
}

/// Makes the reply of a request: what it carries stays.
#[inline(always)]
fn turn<E: Env>(env: &mut E, ip: &Ip, header: Header) -> Option<()> {
    let reply = if ip.v6 { V6[1] } else { V4[1] };
    if ip.v6 {
        let addrs = V6Addrs { source: ip.destination.octets(), destination: ip.source.octets() };
        env.store(ip::V6_ADDRS, &addrs)?;
        env.store(ip::V6_HOP_LIMIT, &TTL)?;
    } else {
        let addrs = V4Addrs { source: ip.destination.v4_octets(), destination: ip.source.v4_octets() };
        env.store(ip::V4_ADDRS, &addrs)?;
        env.store(ip::V4_TTL, &TTL)?;
        env.fix_ip_checksum(ip::V4_CHECKSUM, Diff::ZERO.replace(ttl_word(ip.ttl), ttl_word(TTL)))?;
    }
    let message = u32::from(ip.transport);
    let diff = Diff::ZERO.replace(kind_word(header.kind), kind_word(reply));
    env.store(message, &reply)?;
    env.store(message + icmp::CHECKSUM, &Sum { bytes: checksum::update(header.checksum, diff) })
}

/// The type as part of the 16-bit word that it shares with the code, which stays.
#[inline(always)]
const fn kind_word(kind: u8) -> u32 {
    u32::from_ne_bytes([kind, 0, 0, 0])
}
