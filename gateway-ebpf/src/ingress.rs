//! A packet on its way in: a reply to translate back, or a client's packet to a service.

use gateway_common::{
    counter::Reason,
    service::{Mode, Service, ServiceKey, Track},
    settings::Settings,
};

use crate::{
    arrival::Arrival,
    balance,
    count::dropped,
    env::{Env, Hidden as _, Maps},
    event::Seen,
    guard, index,
    packet::{self, Packet, Side},
    reply, standby,
    verdict::Verdict,
};

/// The whole ingress pipeline for one packet, counted.
#[inline(always)]
pub fn ingress<E: Env>(env: &mut E, arrival: &mut Arrival) -> Verdict {
    let seen = Seen::of(env);
    let verdict = run(env, arrival);
    seen.told(env, arrival, verdict, false)
}

#[inline(always)]
fn run<E: Env>(env: &mut E, arrival: &mut Arrival) -> Verdict {
    if let Err(verdict) = packet::parse(env, Side::Destination, &mut arrival.packet) {
        return verdict;
    }
    let Some(settings) = env.maps().settings() else {
        return E::Maps::ends(Verdict::Pass(Reason::NoService));
    };
    parsed(env, arrival, &settings)
}

/// The rest of the pipeline, for a packet that was parsed.
#[inline(always)]
pub(crate) fn parsed<E: Env>(env: &mut E, arrival: &mut Arrival, settings: &Settings) -> Verdict {
    let may_be_reply = is_translation_port(settings, &arrival.packet);
    if may_be_reply && let Some(verdict) = reply::to_client(env, arrival, settings) {
        return verdict;
    }
    let key = arrival.packet.key();
    let service_key = ServiceKey::new(key.destination, key.destination_port, key.protocol);
    let Some(id) = index::service(env.maps(), service_key) else {
        let reason = if may_be_reply { Reason::NoTranslation } else { Reason::NoService };
        return E::Maps::ends(Verdict::Pass(reason));
    };
    let Some(service) = env.maps().service(id) else {
        return E::Maps::ends(Verdict::Pass(Reason::NoService));
    };
    let fails_open = standby::is_for(&service);
    // Where both programs are one, there is nothing to go on in.
    if fails_open && !E::IS_RARE {
        return E::Maps::ends(Verdict::Rare(Reason::Agent));
    }
    let verdict = if let Some(reason) = guard::refuses(env.maps(), arrival, &service, settings) {
        E::Maps::ends(Verdict::Drop(reason))
    } else if service.mode == Mode::AGENT
        && !(E::IS_RARE && fails_open && standby::takes(env.maps(), arrival, id))
    {
        if service.flags & Service::COOKIES != 0 && arrival.packet.flags.opens() {
            arrival.id = id;
            return E::Maps::ends(Verdict::Cookie(Reason::Agent));
        }
        return E::Maps::ends(Verdict::Pass(Reason::Agent));
    } else if service.mode.number() <= Mode::LAST.number() {
        if !(E::IS_RARE && fails_open) {
            arrival.is_for::<E::Maps>(id, &service, settings);
            if arrival.track == Track::ALWAYS {
                arrival.has_flow(env.maps(), &service, settings);
            }
        }
        balance::forward(env, arrival, settings)
    } else {
        arrival.id = id;
        E::Maps::ends(Verdict::Drop(Reason::UnknownMode))
    };
    let verdict = if E::IS_RARE && fails_open { standby::counted(verdict) } else { verdict };
    if let Verdict::Drop(reason) = verdict {
        if reason == Reason::CookieRefused {
            return Verdict::Proxy(reason);
        }
        guard::blames(env.maps(), arrival, settings, reason);
    }
    let is_answered = matches!(verdict, Verdict::Drop(Reason::NoEndpoint | Reason::TooBig));
    ended::<E>(env.maps(), arrival, verdict, is_answered)
}

/// Counts how a packet of a service ended, and has it answered where that helps: pieces of packets are not.
#[inline(always)]
pub(crate) fn ended<E: Env>(
    maps: &E::Maps,
    arrival: &mut Arrival,
    verdict: Verdict,
    is_answered: bool,
) -> Verdict {
    let is_later = E::IS_RARE && arrival.packet.is_later != 0;
    let verdict = if let Verdict::Drop(reason) = verdict
        && is_answered
        && !is_later
    {
        arrival.is_answered(reason);
        Verdict::Answer(reason)
    } else {
        verdict
    };
    dropped(maps, arrival.id, verdict)
}

/// Whether the packet goes to a port that translated packets may carry.
#[inline(always)]
pub(crate) fn is_translation_port(settings: &Settings, packet: &Packet) -> bool {
    settings.translates_from(packet.key().destination_port)
}
