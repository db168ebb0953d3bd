//! Health checks of endpoints behind a tunnel: the agent's socket speaks with the endpoint's own address, and the packets
//! on the link are those of a client who speaks with the virtual address.
//!
//! So a check fails when the tunnel does, or when the endpoint does not own the virtual address, although everything else
//! there answers.

use gateway_common::{
    addr::{Port, Protocol},
    counter::Reason,
    endpoint::Endpoint,
    flow::FlowKey,
    hash,
    probe::{OWN_MARK, Probe},
};

use crate::{
    Aligned,
    count::counted,
    env::{Env, Maps},
    packet::{
        Packet, eth,
        ip::{self, V4, V6},
        transport::Ports,
    },
    rewrite::{self, Edit},
    tunnel::{self, Tunnel},
    verdict::Verdict,
    way::Way,
};

/// What a program on egress can do beside the rest.
pub trait Marked: Env {
    /// The mark of the socket that sent the packet.
    fn mark(&self) -> u32;
}

/// Sends the agent's own packets to an endpoint into its tunnel; the whole program for one packet, counted.
#[inline(always)]
pub fn out<E: Marked>(env: &mut E) -> Verdict {
    counted(env, run_out)
}

#[inline(always)]
fn run_out<E: Marked>(env: &mut E) -> Verdict {
    let elsewhere = Verdict::Pass(Reason::NotProbe);
    if env.mark() != OWN_MARK {
        return elsewhere;
    }
    let Some(packet) = parse(env) else { return elsewhere };
    let key = *packet.0.key();
    let row = Probe::row(key.source_port);
    let Some(probe) = env.maps().probe(row) else { return elsewhere };
    if probe.port != key.source_port || probe.endpoint != key.destination {
        return elsewhere;
    }
    let edit = Edit {
        source: key.source,
        destination: probe.destination,
        source_port: key.source_port,
        destination_port: key.destination_port,
    };
    let endpoint = Aligned(Endpoint { addr: probe.endpoint, ..Endpoint::default() });
    let mode = probe.mode;
    if rewrite::in_place(env, &packet.0, &edit).is_none()
        || enter(env, &packet.0, &endpoint.0, mode).is_none()
    {
        return Verdict::Drop(Reason::RewriteFailed);
    }
    env.maps().note_probe(row);
    Verdict::HandOver(Reason::ProbeSent)
}

#[inline(always)]
fn enter<E: Marked>(
    env: &mut E,
    packet: &Packet,
    endpoint: &Endpoint,
    mode: gateway_common::service::Mode,
) -> Option<()> {
    let settings = env.maps().settings()?;
    // The frame is addressed to the endpoint's next hop already.
    let frame: [u32; 3] = env.load(0)?;
    let way = Way::again(env.ingress(), frame);
    let hash = hash::flow(&settings.keys, packet.key(), packet.is_v6());
    let room = tunnel::room(mode, endpoint);
    tunnel::enter(env, &Tunnel { packet, endpoint, settings: &settings, way, hash }, room)
}

/// Gives answers to the agent's packets the address that its socket speaks with; the whole program for one packet, counted.
#[inline(always)]
pub fn back<E: Env>(env: &mut E) -> Verdict {
    counted(env, run_back)
}

#[inline(always)]
fn run_back<E: Env>(env: &mut E) -> Verdict {
    let elsewhere = Verdict::Pass(Reason::NotProbe);
    let Some(packet) = parse(env) else { return elsewhere };
    let key = *packet.0.key();
    let Some(probe) = env.maps().probe(Probe::row(key.destination_port)) else { return elsewhere };
    if probe.port != key.destination_port || probe.destination != key.source {
        return elsewhere;
    }
    let edit = Edit {
        source: probe.endpoint,
        destination: key.destination,
        source_port: key.source_port,
        destination_port: key.destination_port,
    };
    // Where the endpoint's own address was asked, the answer is right as it is, and of no other family.
    if probe.endpoint != key.source && rewrite::in_place(env, &packet.0, &edit).is_none() {
        return Verdict::Drop(Reason::RewriteFailed);
    }
    Verdict::HandOver(Reason::ProbeAnswered)
}

/// TCP without surprises: probes are nothing else.
#[inline(always)]
fn parse<E: Env>(env: &E) -> Option<Aligned<Packet>> {
    if env.apart().is_some() {
        return None;
    }
    let ethertype: [u8; 2] = env.load(eth::TYPE)?;
    let (source, destination, protocol, class, transport) = match ethertype {
        eth::IPV4 => {
            let header: V4 = env.load(ip::OFFSET)?;
            if !header.is_sound() || header.is_fragment() {
                return None;
            }
            (header.source(), header.destination(), header.protocol(), header.class(), header.end())
        }
        eth::IPV6 => {
            let header: V6 = env.load(ip::OFFSET)?;
            if !header.is_sound() {
                return None;
            }
            (header.source(), header.destination(), header.next_header(), header.class(), ip::V6_END)
        }
        _ => return None,
    };
    if protocol != Protocol::TCP.number() {
        return None;
    }
    let ports: Ports = env.load(u32::from(transport))?;
    let [from, to] = [ports.source, ports.destination].map(Port::from_wire);
    let key: FlowKey = FlowKey::new(source, from, destination, to, Protocol::TCP);
    let bytes = env.len_bytes().checked_sub(ip::OFFSET)?;
    Some(Aligned(Packet::tcp(key, bytes, transport, class)))
}
