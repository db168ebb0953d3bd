//! A packet on its way in: a reply to translate back, or a client's packet to a service.

use gateway_common::{
    counter::Reason,
    service::{Mode, ServiceKey},
};

use crate::{
    Aligned, balance,
    count::{counted, dropped},
    env::{Env, Maps},
    packet::{self, Side},
    port, reply,
    verdict::Verdict,
};

/// The whole ingress pipeline for one packet, counted.
#[inline(always)]
pub fn ingress<E: Env>(env: &mut E) -> Verdict {
    counted(env, run)
}

#[inline(always)]
fn run<E: Env>(env: &mut E) -> Verdict {
    let packet = match packet::parse(env, Side::Destination) {
        Ok(packet) => packet,
        Err(verdict) => return verdict,
    };
    let Some(settings) = env.maps().settings() else {
        return Verdict::Pass(Reason::NoService);
    };
    let key = packet.key();
    let may_be_reply = port::is_translation_port(&settings, key.destination_port);
    if may_be_reply && let Some(translation) = env.maps().translation(key) {
        let held = translation.get();
        if !reply::is_local(&held, key) {
            let verdict = reply::to_client(env, &packet, &translation);
            return dropped(env.maps(), held.service, verdict);
        }
    }
    let service_key = Aligned(ServiceKey::new(key.destination, key.destination_port, key.protocol));
    let Some(service) = env.maps().service(&service_key.0) else {
        return Verdict::Pass(if may_be_reply { Reason::NoTranslation } else { Reason::NoService });
    };
    if service.mode == Mode::AGENT {
        return Verdict::Pass(Reason::Agent);
    }
    let verdict = if service.mode == Mode::NAT {
        balance::forward(env, &packet, &service, &settings)
    } else {
        Verdict::Drop(Reason::UnknownMode)
    };
    dropped(env.maps(), service.id, verdict)
}
