//! Packets that are rare: what the programs of every day leave to programs of their own.

mod echo;
mod error;
pub mod fragment;
mod quoted;

use gateway_common::{counter::Reason, flow::FlowKey, settings::Settings};

use crate::{
    arrival::Arrival,
    env::{Env, Maps},
    event::told,
    ingress as every_day,
    packet::{
        self, Packet, Side, icmp,
        ip::{Ip, Piece},
        transport::{self, Flags, Transport},
    },
    reply,
    verdict::Verdict,
};

/// The pipeline of fragments and of packets with extension headers on ingress, counted: until they are understood.
#[inline(always)]
pub fn ingress<E: Env>(env: &mut E, arrival: &mut Arrival) -> Verdict {
    told(env, arrival, false, |env, arrival| {
        let Some(settings) = env.maps().settings() else {
            return Verdict::Pass(Reason::NoService);
        };
        match parse(env, Side::Destination, &settings, &mut arrival.packet) {
            Ok(()) => Verdict::Rare(Reason::NoService),
            Err(verdict) => verdict,
        }
    })
}

/// The rest of it, counted. Apart, because the verifier would go through all of it for each way to understand a packet.
#[inline(always)]
pub fn parsed<E: Env>(env: &mut E, arrival: &mut Arrival) -> Verdict {
    told(env, arrival, false, |env, arrival| match env.maps().settings() {
        Some(settings) => every_day::parsed(env, arrival, &settings),
        None => Verdict::Pass(Reason::NoService),
    })
}

/// The same on egress.
#[inline(always)]
pub fn egress<E: Env>(env: &mut E, arrival: &mut Arrival) -> Verdict {
    told(env, arrival, false, |env, arrival| {
        let Some(settings) = env.maps().settings() else {
            return Verdict::Pass(Reason::NotTranslated);
        };
        match parse(env, Side::Source, &settings, &mut arrival.packet) {
            Ok(()) => reply::leaves(env, arrival, &settings),
            Err(Verdict::Icmp(reason)) => Verdict::Icmp(reason),
            Err(_) => Verdict::Pass(Reason::NotTranslated),
        }
    })
}

/// Parses a packet of TCP or UDP, with whatever stands in front of its transport header, if it is there at all.
#[inline(always)]
fn parse<E: Env>(env: &E, side: Side, settings: &Settings, packet: &mut Packet) -> Result<(), Verdict> {
    let mut ip = Ip::UNKNOWN;
    packet::headers::<E, true>(env, side, &mut ip)?;
    let (source_port, destination_port, protocol, flags) = if ip.piece == Piece::Later {
        let lesson = fragment::recall(env.maps(), settings, &ip).ok_or(Verdict::Pass(Reason::Fragment))?;
        (lesson.source_port, lesson.destination_port, lesson.protocol, Flags::default())
    } else {
        let mut transport = Transport::UNKNOWN;
        transport::parse(env, &ip, &mut transport).map_err(|verdict| whole(&ip, verdict))?;
        let key = FlowKey::of_packet(ip.source, ip.destination, transport.ports, ip.protocol);
        (key.source_port, key.destination_port, ip.protocol, transport.flags)
    };
    fragment::teach(env.maps(), settings, &ip, (source_port, destination_port)).map_err(Verdict::Drop)?;
    let key = FlowKey::new(ip.source, source_port, ip.destination, destination_port, protocol);
    packet.is(key, &ip, flags);
    packet.is_later = u8::from(ip.piece == Piece::Later);
    Ok(())
}

/// ICMP messages in pieces are the stack's.
#[inline(always)]
fn whole(ip: &Ip, verdict: Verdict) -> Verdict {
    if matches!(verdict, Verdict::Icmp(_)) && ip.piece != Piece::Whole {
        Verdict::Pass(Reason::Fragment)
    } else {
        verdict
    }
}

/// The pipeline of ICMP messages on ingress, counted.
#[inline(always)]
pub fn icmp_ingress<E: Env>(env: &mut E, arrival: &mut Arrival) -> Verdict {
    told(env, arrival, true, message)
}

#[inline(always)]
fn message<E: Env>(env: &mut E, arrival: &mut Arrival) -> Verdict {
    let mut ip = Ip::UNKNOWN;
    if let Err(verdict) = packet::headers::<E, true>(env, Side::Destination, &mut ip) {
        return verdict;
    }
    let Some(settings) = env.maps().settings() else {
        return Verdict::Pass(Reason::NoService);
    };
    if let Some(verdict) = echo::ingress(env, arrival, &settings, &ip) {
        return verdict;
    }
    let quote = match icmp::quote(env, &ip, &mut arrival.packet) {
        Ok(quote) => quote,
        Err(verdict) => return verdict,
    };
    error::ingress(env, arrival, &settings, ip.source, &quote)
}

/// The pipeline of ICMP messages on egress, counted.
#[inline(always)]
pub fn icmp_egress<E: Env>(env: &mut E, arrival: &mut Arrival) -> Verdict {
    told(env, arrival, true, |env, arrival| {
        let packet = &mut arrival.packet;
        let mut ip = Ip::UNKNOWN;
        if packet::headers::<E, true>(env, Side::Source, &mut ip).is_err() {
            return Verdict::Pass(Reason::NotTranslated);
        }
        let Ok(quote) = icmp::quote(env, &ip, packet) else {
            return Verdict::Pass(Reason::NotTranslated);
        };
        let Some(settings) = env.maps().settings() else {
            return Verdict::Pass(Reason::NotTranslated);
        };
        error::egress(env, packet, &settings, ip.source, &quote)
    })
}
