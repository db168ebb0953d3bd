//! A packet on its way back from an endpoint to its client.

use core::cell::Cell;

use gateway_common::{
    addr::{Addr, Port},
    counter::Reason,
    flow::{FlowKey, Phase, Translation},
};

use crate::{
    Aligned,
    count::{counted, dropped},
    env::{Env, Maps},
    packet::{self, Packet, Side},
    rewrite::{self, Edit},
    track,
    verdict::Verdict,
    way::Way,
};

/// Whether a translation is that of an endpoint on this node: only its destination was translated, so replies carry
/// the client's own address.
#[inline(always)]
pub fn is_local(translation: &Translation, key: &FlowKey) -> bool {
    translation.client_port == key.destination_port && translation.client == key.destination
}

/// Translates the reply of a remote endpoint and sends it to the client.
#[inline(always)]
pub fn to_client<E: Env>(
    env: &mut E,
    packet: &Packet,
    row: &<E::Maps as Maps>::Row<Cell<Translation>>,
) -> Verdict {
    if packet.ttl <= 1 {
        return Verdict::Drop(Reason::TtlExpired);
    }
    let held = row.get();
    // Learned from the client's own packet, so it is known unless something else wrote the entry.
    let way = Way::from(&held.next_hop);
    if !way.is_known() {
        return Verdict::Drop(Reason::NoNextHop);
    }
    refresh(env.maps(), packet, row, &held);
    let edit = edit(&held, held.client, held.client_port);
    if rewrite::forward(env, packet, &edit, way).is_none() {
        return Verdict::Drop(Reason::RewriteFailed);
    }
    count(env, &held);
    Verdict::Transmit(Reason::Replied, way.interface())
}

/// The whole egress pipeline for one packet, counted: replies of endpoints on this node get the virtual address as
/// their source.
#[inline(always)]
pub fn egress<E: Env>(env: &mut E) -> Verdict {
    counted(env, run_egress)
}

#[inline(always)]
fn run_egress<E: Env>(env: &mut E) -> Verdict {
    let packet = match packet::parse(env, Side::Source) {
        Ok(packet) => packet,
        Err(Verdict::Drop(_)) => return Verdict::Pass(Reason::NotTranslated),
        Err(verdict) => return verdict,
    };
    let key = packet.key();
    let Some(row) = env.maps().translation(key) else {
        return Verdict::Pass(Reason::NotTranslated);
    };
    let held = row.get();
    if !is_local(&held, key) {
        return Verdict::Pass(Reason::NotTranslated);
    }
    refresh(env.maps(), &packet, &row, &held);
    let edit = edit(&held, key.destination, key.destination_port);
    let verdict = if rewrite::in_place(env, &packet, &edit).is_none() {
        Verdict::Drop(Reason::RewriteFailed)
    } else {
        count(env, &held);
        Verdict::HandOver(Reason::Replied)
    };
    dropped(env.maps(), held.service, verdict)
}

#[inline(always)]
fn edit(held: &Translation, destination: Addr, destination_port: Port) -> Edit {
    Edit { source: held.addr, destination, source_port: held.port, destination_port }
}

/// Keeps the translation alive, and tells the other direction when the connection ends.
#[inline(always)]
fn refresh<M: Maps>(maps: &M, packet: &Packet, row: &M::Row<Cell<Translation>>, held: &Translation) {
    let now = maps.now();
    let phase = track::reply_phase(held.phase, packet.flags);
    if held.seen == now && held.phase == phase {
        return;
    }
    M::refresh_translation(row, now, phase);
    if phase == Phase::CLOSING && held.phase != phase {
        let client_key =
            Aligned(FlowKey::new(held.client, held.client_port, held.addr, held.port, packet.key().protocol));
        if let Some(flow) = maps.flow(&client_key.0) {
            M::close_flow(&flow);
        }
    }
}

#[inline(always)]
fn count<E: Env>(env: &E, held: &Translation) {
    let bytes = u64::from(env.len_bytes());
    env.maps().count_service(held.service, |count| {
        count.reply_packets += 1;
        count.reply_bytes += bytes;
    });
    env.maps().count_endpoint(held.endpoint, |count| {
        count.reply_packets += 1;
        count.reply_bytes += bytes;
    });
}
