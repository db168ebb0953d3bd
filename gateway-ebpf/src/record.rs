//! Recording flows: what is done once for a connection, not for each packet.

use gateway_common::{
    addr::{Port, Protocol},
    counter::Reason,
    endpoint::{Endpoint, EndpointState},
    flow::{Phase, Sequence},
    service::{Mode, Track},
    settings::Settings,
    slot::Slot,
};

use crate::{
    arrival::{Arrival, NO_ENTRY},
    env::Maps,
    event, guard, health,
    outcome::{Outcome, Stage},
    ports::{nth_port, offset, step},
    proxy::proof,
    select::{self, NO_ROW},
    standby,
    table::{
        self, Claimed, Found, reply,
        row::{Content, FlowRows, Held, Who},
        sequence,
    },
    track,
    way::Way,
};

/// Ports that are tried. With four fifths of the ports of an endpoint taken, one new flow in 1,200 finds none; with 8
/// tries it would be one in 6.
const TRIES: u32 = 32;

/// Ports that are tried once more when none of these was free: some may be held by flows that are over.
const MORE_TRIES: u32 = 8;

/// Does what is done apart.
#[inline(always)]
pub fn stage<M: Maps>(maps: &M, stage: Stage, arrival: &mut Arrival) -> Outcome {
    let Some(settings) = maps.settings() else { return Outcome::from(Err(Reason::FlowNotRecorded)) };
    let settings: &Settings = &settings;
    Outcome::from(match stage {
        Stage::Select => select::select(maps, &arrival.seat(), arrival.choice)
            .inspect(|row| expect(maps, arrival, settings, *row)),
        Stage::Stick => Ok(of_client(maps, arrival)),
        Stage::Record => record(maps, arrival, settings).map(|port| u32::from(port.number())),
        Stage::Note => note(maps, arrival, settings).map(|()| 0),
        Stage::Change => change(maps, arrival, settings),
        Stage::Source => guard::source(maps, arrival),
        Stage::Admit => guard::admit(maps, arrival, settings),
        Stage::Serve => guard::serve(maps, arrival, settings),
        Stage::Blame => {
            guard::blame(maps, arrival, settings);
            Ok(0)
        }
        Stage::Tell => {
            event::tell(maps, arrival, settings);
            Ok(0)
        }
        Stage::Begin => {
            health::begin(maps, arrival);
            Ok(0)
        }
        Stage::Retry => {
            health::retry(maps, arrival, arrival.entry);
            Ok(0)
        }
        Stage::Answer => {
            health::answer(maps, arrival);
            Ok(0)
        }
        Stage::StandBy => Ok(standby::takes_apart(maps, arrival, settings)),
        Stage::Arm => proof::arms(maps, arrival, settings).map(u32::from),
        Stage::Bake => proof::bake(maps, arrival),
        Stage::Prove => proof::prove(maps, arrival),
    })
}

/// Chooses the endpoint of a flow that is new, or has this entry, and notes its row: in memory, because the row of a result that is an error would be
/// undefined.
///
/// # Errors
/// See [`select::select`].
#[inline(always)]
pub(crate) fn seat<M: Maps>(
    maps: &M,
    arrival: &mut Arrival,
    settings: &Settings,
    entry: u32,
) -> Result<(), Reason> {
    if arrival.is_sticky() {
        arrival.kept = entry;
        arrival.means_client(settings);
        let stuck = stick(maps, arrival);
        arrival.means_flow(settings);
        stuck
    } else {
        choose(maps, arrival)
    }
}

#[inline(always)]
fn choose<M: Maps>(maps: &M, arrival: &mut Arrival) -> Result<(), Reason> {
    arrival.row = maps.apart(Stage::Select, arrival).get()?;
    Ok(())
}

/// The endpoint that the client of a new flow has, or gets for a while.
#[inline(always)]
fn stick<M: Maps>(maps: &M, arrival: &mut Arrival) -> Result<(), Reason> {
    arrival.row = maps.apart(Stage::Stick, arrival).get()?;
    if arrival.row != NO_ROW {
        return Ok(());
    }
    choose(maps, arrival)?;
    notes(maps, arrival);
    Ok(())
}

/// Has it noted which endpoint was chosen. Who finds no place in the table goes on all the same, and is counted.
#[inline(always)]
fn notes<M: Maps>(maps: &M, arrival: &mut Arrival) {
    let is_noted = maps.apart(Stage::Note, arrival).get().is_ok();
    noted(maps, arrival.id, is_noted);
}

#[inline(always)]
pub(crate) fn of_client<M: Maps>(maps: &M, arrival: &mut Arrival) -> u32 {
    let expires = arrival.affinity_ends();
    let found = table::find(maps, &arrival.spot, &arrival.who);
    if let Some(found) = &found
        && !found.held.expires.is_before(arrival.now)
        && let Some(endpoint) = maps.endpoint(found.held.endpoint)
        && endpoint.still_holds(found.held.generation)
        && endpoint.service == arrival.id
        && endpoint.state == EndpointState::ACTIVE
    {
        found.place.row().refresh::<M>(&found.held, expires, Phase::OPEN);
        return found.held.endpoint;
    }
    arrival.notes_entry(found.as_ref());
    NO_ROW
}

/// Takes a new entry unless one was found.
///
/// # Errors
/// Those of [`table::claim`].
#[inline(always)]
fn take<M: Maps>(maps: &M, arrival: &mut Arrival, settings: &Settings, keeps: u32) -> Result<(), Reason> {
    if arrival.entry == NO_ENTRY {
        arrival.entry = table::claim(maps, &arrival.wish(settings, keeps))?;
        arrival.is_taken = 1;
    }
    Ok(())
}

/// The entry, which this processor is writing from now on.
#[inline(always)]
fn own<M: Maps>(maps: &M, arrival: &Arrival) -> Result<Claimed<M::Row<FlowRows>>, Reason> {
    let entry = table::entry(maps, arrival.entry).ok_or(Reason::FlowNotRecorded)?;
    if arrival.is_taken != 0 {
        return Ok(entry);
    }
    let busy = arrival.head.taken_for(arrival.head, arrival.head.is_displaced());
    if entry.place.row().exchange::<M>(arrival.head, busy) {
        Ok(Claimed { place: entry.place, busy })
    } else {
        Err(Reason::FlowContended)
    }
}

#[inline(always)]
fn publish<M: Maps>(
    maps: &M,
    arrival: &Arrival,
    claimed: &Claimed<M::Row<FlowRows>>,
    who: &Who,
    content: &Content,
) {
    let row = claimed.place.row();
    let former = if arrival.is_taken == 0 { row.endpoint::<M>() } else { NO_ROW };
    if who.client_port() != Port::NONE && former != content.endpoint {
        table::parted(maps, former);
        table::joined(maps, content.endpoint);
    }
    row.fill::<M>(who, content);
    row.publish::<M>(claimed.busy.live());
}

/// Gives an entry back, which is no flow's then.
#[inline(always)]
fn give_up<M: Maps>(maps: &M, arrival: &Arrival, settings: &Settings, claimed: &Claimed<M::Row<FlowRows>>) {
    // One that was taken from another flow is counted for nobody since.
    if arrival.is_taken == 0 && arrival.who.client_port() != Port::NONE {
        table::parted(maps, claimed.place.row().endpoint::<M>());
    }
    table::give_up(maps, claimed, arrival.id, settings);
}

/// Writes the entry of the flow, a new one where none was found, and gives it a port where it is translated; returns the
/// port. What is written stands in the arrival.
///
/// # Errors
/// [`Reason::PortsExhausted`], and those of [`table::claim`].
#[inline(always)]
fn record<M: Maps>(maps: &M, arrival: &mut Arrival, settings: &Settings) -> Result<Port, Reason> {
    take(maps, arrival, settings, NO_ENTRY)?;
    let claimed = own(maps, arrival)?;
    let filled = fill(maps, arrival, settings, &claimed);
    if filled.is_err() {
        // An entry that stayed taken would be nobody's for ever.
        give_up(maps, arrival, settings, &claimed);
    }
    filled
}

#[inline(always)]
fn fill<M: Maps>(
    maps: &M,
    arrival: &Arrival,
    settings: &Settings,
    claimed: &Claimed<M::Row<FlowRows>>,
) -> Result<Port, Reason> {
    let endpoint = maps.endpoint(arrival.row).ok_or(Reason::BadSlot)?;
    // First: what changes from here on makes it another one.
    let (generation, row) = (endpoint.generation, claimed.place.row());
    if arrival.is_taken == 0 && row.endpoint::<M>() != arrival.row {
        reply::forget(maps, settings, row, arrival.head, claimed.place.index());
    }
    let port = if arrival.mode == Mode::NAT {
        port(maps, arrival, settings, &endpoint, claimed).ok_or(Reason::PortsExhausted)?
    } else {
        Port::NONE
    };
    let content = Content {
        endpoint: arrival.row,
        generation,
        expires: arrival.expires(settings, arrival.phase),
        source_port: port,
        phase: arrival.phase,
        proxied: arrival.proxied,
        next_hop: arrival.way_back,
    };
    if arrival.proxied != 0 {
        let Sequence { number, stage, .. } = arrival.sequence;
        let known = Sequence::new(number, claimed.busy.version(), stage);
        if !sequence::note(maps, claimed.place.index(), known) {
            return Err(Reason::FlowNotRecorded);
        }
    }
    publish(maps, arrival, claimed, &arrival.who, &content);
    Ok(port)
}

/// Asks for the place that the reply to a new flow will have, unless it is taken: what no cache holds is on its way while the
/// flow itself is looked for and gets an entry.
#[inline(always)]
fn expect<M: Maps>(maps: &M, arrival: &Arrival, settings: &Settings, row: u32) {
    let Some(endpoint) = maps.endpoint(row).filter(|_| arrival.mode == Mode::NAT) else { return };
    let of = of(arrival, &endpoint);
    let key = arrival.packet.key();
    let (to, port) = if endpoint.is_local() {
        (key.source, key.source_port)
    } else {
        let offset = offset(arrival.hash, u32::from(settings.n_ports));
        (endpoint.source, nth_port(settings.first_port, offset))
    };
    reply::expect(maps, &reply::Spot::new(settings, &of, to, port));
}

/// The end from which replies come.
#[inline(always)]
fn of(arrival: &Arrival, endpoint: &Endpoint) -> reply::Of {
    let key = arrival.packet.key();
    reply::Of { addr: endpoint.addr, port: endpoint.port_for(key.destination_port), protocol: key.protocol }
}

/// The port that the flow has, or the first free one of a sequence that depends on the flow alone.
#[inline(always)]
fn port<M: Maps>(
    maps: &M,
    arrival: &Arrival,
    settings: &Settings,
    endpoint: &Endpoint,
    claimed: &Claimed<M::Row<FlowRows>>,
) -> Option<Port> {
    let key = arrival.packet.key();
    let of = of(arrival, endpoint);
    let by = reply::By { index: claimed.place.index(), version: claimed.busy.version(), now: arrival.now };
    if endpoint.is_local() {
        let spot = reply::Spot::new(settings, &of, key.source, key.source_port);
        return reply::note(maps, &spot, &by).then_some(key.source_port);
    }
    if settings.translates_from(arrival.preferred) {
        let spot = reply::Spot::new(settings, &of, endpoint.source, arrival.preferred);
        if reply::hold(maps, &spot, &by) {
            return Some(arrival.preferred);
        }
    }
    let n_ports = u32::from(settings.n_ports);
    let step = step(arrival.hash, n_ports);
    let mut offset = offset(arrival.hash, n_ports);
    for turn in 0..(TRIES + MORE_TRIES).min(n_ports) {
        let port = nth_port(settings.first_port, offset);
        let spot = reply::Spot::new(settings, &of, endpoint.source, port);
        let is_free =
            if turn < TRIES { reply::hold(maps, &spot, &by) } else { reply::take(maps, &spot, &by) };
        if is_free {
            return Some(port);
        }
        offset = (offset + step) % n_ports;
    }
    None
}

/// A packet of a service that remembers flows of slots that change, where the slot alone does not decide: it changed,
/// its endpoint takes no new flows, or the service remembers some flows. Notes the row of the endpoint, or [`NO_ROW`],
/// and remembers the flow; says whether it is still to be remembered, because it has no endpoint yet: 0 or 1.
///
/// # Errors
/// [`Reason::NoEndpoint`] for an open connection whose endpoint is down, where the service wants it reset.
#[inline(always)]
fn change<M: Maps>(maps: &M, arrival: &mut Arrival, settings: &Settings) -> Result<u32, Reason> {
    let service = maps.service(arrival.id).ok_or(Reason::NoEndpoint)?;
    arrival.has_flow(maps, &service, settings);
    let remembers = arrival.track == Track::CHANGE;
    let slot = arrival.as_remembered(arrival.slot);
    let is_same = slot.endpoint == slot.former;
    let own = usable(maps, arrival, slot.endpoint);
    let found = if remembers { table::find(maps, &arrival.spot, &arrival.who) } else { None };
    if let Some(found) = &found
        && !track::begins_anew(&found.held, &arrival.packet, arrival.now)
        && let Some(endpoint) = maps.endpoint(found.held.endpoint)
        && track::may_stay(arrival.id, &endpoint, &found.held, &arrival.packet)
    {
        arrival.row = found.held.endpoint;
        arrival.is_new = 0;
        stay(maps, arrival, settings, found, is_same && own == arrival.row);
        return Ok(0);
    }
    if arrival.wants_reset() && (found.is_some() || is_down(maps, arrival, slot)) {
        return Err(Reason::NoEndpoint);
    }
    arrival.notes_entry(found.as_ref());
    let former = former(maps, arrival, slot);
    arrival.row = if former == NO_ROW { own } else { former };
    let is_settled = is_same && own != NO_ROW && own == arrival.row;
    let is_noted = remembers && (arrival.entry != NO_ENTRY || !is_settled);
    // Where nothing is remembered, every packet of UDP would be a new flow.
    let is_udp = arrival.packet.key().protocol == Protocol::UDP;
    arrival.is_new = u8::from(arrival.packet.flags.opens() || is_noted && is_udp);
    if is_noted && arrival.row != NO_ROW {
        let is_noted = note(maps, arrival, settings).is_ok();
        noted(maps, arrival.id, is_noted);
        return Ok(0);
    }
    Ok(u32::from(is_noted))
}

/// A flow that finds no place in the table goes on all the same, and is counted.
#[inline(always)]
pub(crate) fn noted<M: Maps>(maps: &M, service: u32, is_noted: bool) {
    if !is_noted {
        maps.count_service(service, |count| count.unrecorded += 1);
    }
}

/// Whether the endpoint that was chosen is the one that the flow has already.
#[inline(always)]
pub(crate) fn has<M: Maps>(maps: &M, arrival: &Arrival, held: &Held) -> bool {
    held.endpoint == arrival.row
        && !track::begins_anew(held, &arrival.packet, arrival.now)
        && maps.endpoint(held.endpoint).is_some_and(|endpoint| endpoint.still_holds(held.generation))
}

/// Whether the endpoint is down where flows are that are not remembered: the one that the slot had before, while it
/// changes.
#[inline(always)]
fn is_down<M: Maps>(maps: &M, arrival: &Arrival, slot: Slot) -> bool {
    select::before(maps, &arrival.seat(), arrival.hash, slot)
        .is_none_or(|former| former.endpoint.state == EndpointState::DOWN)
}

/// The row of an endpoint of the service that takes new flows; [`NO_ROW`] for one that does not.
#[inline(always)]
fn usable<M: Maps>(maps: &M, arrival: &Arrival, local: u16) -> u32 {
    match select::local(maps, &arrival.seat(), local) {
        Some(chosen) if chosen.endpoint.state == EndpointState::ACTIVE => chosen.row,
        Some(_) | None => NO_ROW,
    }
}

/// The endpoint that the slot had before, for a packet in the middle of a flow; else [`NO_ROW`].
#[inline(always)]
fn former<M: Maps>(maps: &M, arrival: &Arrival, slot: Slot) -> u32 {
    if arrival.packet.flags.opens() {
        return NO_ROW;
    }
    match select::before(maps, &arrival.seat(), arrival.hash, slot) {
        Some(former) if track::takes(&former.endpoint, &arrival.packet) => former.row,
        Some(_) | None => NO_ROW,
    }
}

/// A remembered flow goes on. One that its slot alone would lead to the same endpoint need not be remembered any longer.
#[inline(always)]
fn stay<M: Maps>(
    maps: &M,
    arrival: &Arrival,
    settings: &Settings,
    found: &Found<M::Row<FlowRows>>,
    is_settled: bool,
) {
    // What is remembered of a client is no connection: its next one begins, and nothing comes once more.
    let is_flow = arrival.who.client_port() != Port::NONE;
    if is_flow && found.held.phase == Phase::OPENING && arrival.packet.flags.opens() {
        health::retry(maps, arrival, found.place.index());
    }
    if is_settled {
        return table::release(maps, found, &arrival.who, settings);
    }
    let held = &found.held;
    let phase = track::forward_phase(held.phase, arrival.packet.key().protocol, arrival.packet.flags);
    let expires = arrival.expires(settings, phase);
    if held.expires != expires || held.phase != phase {
        found.place.row().refresh::<M>(held, expires, phase);
    }
}

/// Remembers the endpoint of a client, or of a flow that is not translated, in the entry that was found or in a new one.
/// Whether it may begin was asked before, where anybody asks: see [`guard::admits`].
///
/// # Errors
/// [`Reason::BadSlot`], and those of [`table::claim`].
#[inline(always)]
fn note<M: Maps>(maps: &M, arrival: &mut Arrival, settings: &Settings) -> Result<(), Reason> {
    // Where all endpoints drain, a flow is given back the one that it has.
    if arrival.entry != NO_ENTRY
        && let Some(found) = table::find(maps, &arrival.spot, &arrival.who)
        && has(maps, arrival, &found.held)
    {
        arrival.is_new = 0;
        stay(maps, arrival, settings, &found, false);
        return Ok(());
    }
    // What is remembered of a client takes no entry of the flow that it comes with, which may go on.
    let keeps = if arrival.who.client_port() == Port::NONE { arrival.kept } else { NO_ENTRY };
    take(maps, arrival, settings, keeps)?;
    let claimed = own(maps, arrival)?;
    let Some(endpoint) = maps.endpoint(arrival.row) else {
        // An entry that stayed taken would be nobody's for ever.
        give_up(maps, arrival, settings, &claimed);
        return Err(Reason::BadSlot);
    };
    let phase = arrival.first_phase();
    let content = Content {
        endpoint: arrival.row,
        generation: endpoint.generation,
        expires: arrival.expires(settings, phase),
        source_port: Port::NONE,
        phase,
        proxied: 0,
        next_hop: Way::UNKNOWN,
    };
    publish(maps, arrival, &claimed, &arrival.who, &content);
    Ok(())
}

/// Where the slot alone does not decide: notes the row of the endpoint.
///
/// # Errors
/// See [`select::select`].
#[inline(always)]
pub(crate) fn in_change<M: Maps>(maps: &M, arrival: &mut Arrival) -> Result<(), Reason> {
    let is_to_be_noted = maps.apart(Stage::Change, arrival).get()? != 0;
    if arrival.row == NO_ROW {
        choose(maps, arrival)?;
        if is_to_be_noted {
            notes(maps, arrival);
        }
    }
    Ok(())
}
