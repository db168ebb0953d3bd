//! A client's packet to a service: its flow, else its slot, else a new endpoint; then translated or tunnelled, and on its
//! way.

use gateway_common::{
    addr::Port,
    counter::Reason,
    endpoint::{Endpoint, EndpointState},
    flow::Phase,
    service::{Mode, Track},
    settings::Settings,
};

use crate::{
    arrival::{Arrival, NO_ENTRY},
    env::{Env, Hidden as _, Maps, Room},
    guard, health,
    outcome::Stage,
    packet, proxy, record,
    rewrite::{self, Edit},
    select::{self, Chosen},
    table::{self, Found, row::FlowRows},
    track,
    tunnel::{self, Tunnel},
    verdict::Verdict,
    way::Way,
};

/// Balances one packet.
#[inline(always)]
pub fn forward<E: Env>(env: &mut E, arrival: &mut Arrival, settings: &Settings) -> Verdict {
    match run(env, arrival, settings) {
        Ok(verdict) => verdict,
        Err(reason) => Verdict::Drop(reason),
    }
}

// One way to the end for all packets: what is inlined twice, the verifier goes through more than twice.
#[inline(always)]
fn run<E: Env>(env: &mut E, arrival: &mut Arrival, settings: &Settings) -> Result<Verdict, Reason> {
    let (known, port) = if arrival.track == Track::ALWAYS {
        remembered(env, arrival, settings)?
    } else {
        (by_slot::<E>(env.maps(), arrival)?, Port::NONE)
    };
    let endpoint =
        known.or_else(|| env.maps().endpoint(arrival.row)).ok_or_else(|| E::Maps::why(Reason::BadSlot))?;
    let way = aim(env, arrival, &endpoint)?;
    send(env, arrival, settings, &endpoint, way, port)
}

/// An endpoint whose row was looked up on the way, if it was.
type Known<E> = Option<<<E as Env>::Maps as Maps>::Row<Endpoint>>;

/// A service that remembers all its flows. Notes the row of the endpoint; returns the endpoint where it was looked up, and
/// the port.
#[inline(always)]
fn remembered<E: Env>(
    env: &E,
    arrival: &mut Arrival,
    settings: &Settings,
) -> Result<(Known<E>, Port), Reason> {
    proxy::begins(env.maps(), arrival)?;
    let found = table::find(env.maps(), &arrival.spot, &arrival.who);
    if let Some(found) = &found
        && proxy::has(arrival, &found.held)
    {
        return Err(E::Maps::why(Reason::CookieRefused));
    }
    let mut stays = found.as_ref().and_then(|found| present(env.maps(), arrival, found));
    if stays.is_none() {
        // What may not stay is a connection whose endpoint is down or gone: a SYN would begin another.
        if arrival.wants_reset() && found.is_some() {
            return Err(E::Maps::why(Reason::NoEndpoint));
        }
        // Before its client is remembered: a flow too many leaves nothing behind. Of others only once an endpoint is
        // chosen, whose slot and row are waited for while the flow's own line is: taking a token ends that.
        let is_sticky = arrival.is_sticky();
        let is_first = match &found {
            Some(found) => track::begins_anew(&found.held, &arrival.packet, arrival.now),
            None => true,
        };
        if is_sticky && is_first {
            guard::admits(env.maps(), arrival)?;
        }
        let entry = found.as_ref().map_or(NO_ENTRY, |found| found.place.index());
        record::seat(env.maps(), arrival, settings, entry)?;
        if !is_sticky && is_first {
            guard::admits(env.maps(), arrival)?;
        }
        // Where all endpoints drain, a flow is given back the one that it has.
        if found.as_ref().is_some_and(|found| record::has(env.maps(), arrival, &found.held)) {
            stays = env.maps().endpoint(arrival.row).map(|endpoint| Chosen { row: arrival.row, endpoint });
        }
    }
    if let Some(chosen) = stays
        && let Some(found) = &found
    {
        arrival.row = chosen.row;
        arrival.is_new = 0;
        if let Some(port) = refresh(env, arrival, settings, found, &chosen.endpoint) {
            return Ok((Some(chosen.endpoint), port));
        }
    } else {
        arrival.notes_entry(found.as_ref());
        arrival.is_new = 1;
        arrival.phase = arrival.first_phase();
        arrival.preferred = Port::NONE;
        arrival.proxied = 0;
        arrival.way_back = packet::way_back(env);
    }
    let recorded = env.maps().apart(Stage::Record, arrival);
    if arrival.mode != Mode::NAT {
        if !recorded.is_number() {
            // The endpoint is chosen, and without a port to be held for replies the packet needs no entry to get there.
            record::noted(env.maps(), arrival.id, false);
            arrival.is_new = u8::from(arrival.packet.flags.opens());
        }
        return Ok((None, Port::NONE));
    }
    let port = recorded.get()?;
    if arrival.is_new != 0 && health::is_timed(arrival) {
        let _nothing = env.maps().apart(Stage::Begin, arrival).word();
    }
    Ok((None, port_of(port)))
}

/// A service that remembers flows of slots that change, or none: the slot decides as long as nothing speaks against it.
/// Notes the row of the endpoint; returns the endpoint where it was looked up.
#[inline(always)]
fn by_slot<E: Env>(maps: &E::Maps, arrival: &mut Arrival) -> Result<Known<E>, Reason> {
    if arrival.table.n_slots == 0 {
        return Err(E::Maps::why(Reason::NoEndpoint));
    }
    let slot =
        select::slot(maps, &arrival.table, arrival.hash).ok_or_else(|| E::Maps::why(Reason::BadSlot))?;
    let is_settled =
        arrival.track != Track::CHANGE || slot.endpoint == slot.former && !table::holds_any(maps, arrival.id);
    if is_settled
        && let Some(chosen) = select::local(maps, &arrival.seat(), slot.endpoint)
        && chosen.endpoint.state == EndpointState::ACTIVE
    {
        arrival.row = chosen.row;
        arrival.is_new = u8::from(arrival.packet.flags.opens());
        return Ok(Some(chosen.endpoint));
    }
    arrival.slot = slot;
    record::in_change(maps, arrival)?;
    Ok(None)
}

/// A port that was the number of an outcome.
#[inline(always)]
#[expect(clippy::as_conversions, clippy::cast_possible_truncation, reason = "it was one before")]
pub(crate) const fn port_of(number: u32) -> Port {
    Port::new(number as u16)
}

/// The endpoint of a flow, if it may still receive the packet.
#[inline(always)]
pub(crate) fn present<M: Maps>(
    maps: &M,
    arrival: &Arrival,
    found: &Found<M::Row<FlowRows>>,
) -> Option<Chosen<M::Row<Endpoint>>> {
    if track::begins_anew(&found.held, &arrival.packet, arrival.now) {
        return None;
    }
    let endpoint = maps.endpoint(found.held.endpoint)?;
    track::may_stay(arrival.id, &endpoint, &found.held, &arrival.packet)
        .then_some(Chosen { row: found.held.endpoint, endpoint })
}

/// Finds the way to an endpoint, before anything is recorded or changed. Unknown for an endpoint on this node.
#[inline(always)]
pub(crate) fn aim<E: Env>(env: &mut E, arrival: &mut Arrival, endpoint: &Endpoint) -> Result<Way, Reason> {
    if endpoint.is_local() {
        return Ok(Way::UNKNOWN);
    }
    if arrival.packet.ttl <= 1 {
        return Err(E::Maps::why(Reason::TtlExpired));
    }
    let way = Way::from(&endpoint.next_hop);
    if way.is_known() {
        return Ok(way);
    }
    let extra = extra(arrival, endpoint);
    let bytes = arrival.packet.bytes.wrapping_add(extra).min(0xffff);
    match env.next_hop(endpoint, arrival.packet.key().protocol, bytes) {
        Ok(way) => Ok(way),
        // Kernels before 5.12 say no size, and leave the packet's own.
        Err(most) if most != 0 && most < bytes => {
            arrival.fits(most.saturating_sub(extra));
            Err(E::Maps::why(Reason::TooBig))
        }
        Err(_) => Err(E::Maps::why(Reason::NoNextHop)),
    }
}

/// Bytes that are put in front of a packet.
#[inline(always)]
fn extra(arrival: &Arrival, endpoint: &Endpoint) -> u32 {
    if arrival.is_tunnelled() { tunnel::room(arrival.mode, endpoint).bytes() } else { 0 }
}

/// Keeps a flow alive, once per tick and when its phase changes; returns its port. None when the entry has to be written
/// anew: the client is behind another router now, and half of an old way and half of a new one would lead nowhere; or the
/// flow was silent for so long that another may have taken its port; or it goes to its endpoint from another address than
/// it did, or is translated now and was not, and has neither a port nor a place for replies there.
#[inline(always)]
pub(crate) fn refresh<E: Env>(
    env: &E,
    arrival: &mut Arrival,
    settings: &Settings,
    found: &Found<<E::Maps as Maps>::Row<FlowRows>>,
    endpoint: &Endpoint,
) -> Option<Port> {
    let held = &found.held;
    if held.phase == Phase::OPENING && arrival.packet.flags.opens() {
        arrival.entry = found.place.index();
        let _nothing = env.maps().apart(Stage::Retry, arrival).word();
    }
    let phase = track::forward_phase(held.phase, arrival.packet.key().protocol, arrival.packet.flags);
    let expires = arrival.expires(settings, phase);
    let has_port = held.source_port != Port::NONE;
    let goes_as_before = held.generation == endpoint.generation && (has_port || arrival.mode != Mode::NAT);
    if goes_as_before && held.expires == expires && held.phase == phase {
        return Some(held.source_port);
    }
    let row = found.place.row();
    if has_port || !goes_as_before {
        arrival.way_back = packet::way_back(env);
        let has_moved = !endpoint.is_local() && row.way::<E::Maps>() != arrival.way_back;
        if !goes_as_before || has_moved || held.expires.is_before(arrival.now) {
            arrival.phase = phase;
            arrival.preferred = held.source_port;
            arrival.proxied = held.proxied;
            arrival.notes_entry(Some(found));
            return None;
        }
    }
    row.refresh::<E::Maps>(held, expires, phase);
    Some(held.source_port)
}

/// Translates or tunnels the packet, and counts it.
#[inline(always)]
fn send<E: Env>(
    env: &mut E,
    arrival: &mut Arrival,
    settings: &Settings,
    endpoint: &Endpoint,
    way: Way,
    port: Port,
) -> Result<Verdict, Reason> {
    let mode = arrival.mode;
    let bytes = u64::from(env.len_bytes());
    let local = endpoint.is_local();
    // Looked for once: what is written to the packet and to the notes might have changed the row, for all that the compiler
    // knows.
    let room = tunnel::room(mode, endpoint);
    if !local {
        let extra = if arrival.is_tunnelled() { room.bytes() } else { 0 };
        fits_with(env, arrival, endpoint, extra)?;
    }
    let done = if mode == Mode::NAT {
        translate(env, arrival, endpoint, way, port)
    } else if local {
        // The endpoint owns the virtual address.
        Some(())
    } else {
        // Programs for rare packets have no room on their stack to keep it.
        let room = if E::IS_RARE { tunnel::room(mode, endpoint) } else { room };
        direct(env, arrival, settings, endpoint, way, room)
    };
    done.ok_or_else(|| E::Maps::why(Reason::RewriteFailed))?;
    count(env.maps(), arrival, bytes);
    if local {
        Ok(Verdict::HandOver(Reason::ForwardedLocal))
    } else {
        arrival.leaves_by(way.interface());
        Ok(Verdict::Transmit(Reason::Forwarded))
    }
}

/// Counts a packet that was sent on.
#[inline(always)]
pub(crate) fn count<M: Maps>(maps: &M, arrival: &Arrival, bytes: u64) {
    let is_new = arrival.is_new != 0;
    maps.count_service(arrival.id, |count| {
        count.packets += 1;
        count.bytes += bytes;
        if is_new {
            count.new_flows += 1;
        }
    });
    maps.count_endpoint(arrival.row, |count| {
        count.packets += 1;
        count.bytes += bytes;
        if is_new {
            count.new_flows += 1;
        }
    });
}

/// Whether the packet, with what is put in front of it, fits the way to the endpoint.
#[inline(always)]
pub(crate) fn fits<E: Env>(env: &E, arrival: &mut Arrival, endpoint: &Endpoint) -> Result<(), Reason> {
    fits_with(env, arrival, endpoint, extra(arrival, endpoint))
}

/// The same, with so many bytes in front.
#[inline(always)]
fn fits_with<E: Env>(env: &E, arrival: &mut Arrival, endpoint: &Endpoint, extra: u32) -> Result<(), Reason> {
    let mtu = u32::from(endpoint.mtu);
    let bytes = packet::bytes_at_once(env, &arrival.packet);
    if mtu != 0 && bytes.wrapping_add(extra) > mtu {
        arrival.fits(mtu.saturating_sub(extra));
        return Err(E::Maps::why(Reason::TooBig));
    }
    Ok(())
}

#[inline(always)]
fn translate<E: Env>(
    env: &mut E,
    arrival: &Arrival,
    endpoint: &Endpoint,
    way: Way,
    port: Port,
) -> Option<()> {
    let key = arrival.packet.key();
    let local = endpoint.is_local();
    let edit = Edit {
        source: if local { key.source } else { endpoint.source },
        destination: endpoint.addr,
        source_port: port,
        destination_port: endpoint.port_for(key.destination_port),
    };
    if local {
        rewrite::in_place(env, &arrival.packet, &edit)
    } else {
        rewrite::forward(env, &arrival.packet, &edit, way)
    }
}

/// Sends the packet as it is, over the link or through a tunnel; the endpoint answers the client by itself.
#[inline(always)]
pub(crate) fn direct<E: Env>(
    env: &mut E,
    arrival: &Arrival,
    settings: &Settings,
    endpoint: &Endpoint,
    way: Way,
    room: Room,
) -> Option<()> {
    rewrite::hop(env, &arrival.packet)?;
    let mode = arrival.mode;
    if mode == Mode::DSR_L2 {
        return env.store_link(way);
    }
    let tunnel = Tunnel { packet: &arrival.packet, endpoint, settings, way, hash: arrival.hash };
    tunnel::enter(env, &tunnel, room)
}
