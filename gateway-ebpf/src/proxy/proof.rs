//! Cookies of the programs' own: when they are sent, and whether one came back.

use gateway_common::{
    cookie::{OwnCookie, SynCookie},
    counter::Reason,
    settings::Settings,
};

use super::{is_its, is_over};
use crate::{
    arrival::{Arrival, Errand},
    balance, cookie,
    env::Maps,
    guard, record,
    select::{self, NO_ROW},
    table::{self, Found, row::FlowRows},
};

/// Whether a SYN is answered with a cookie; for any other packet, whether it may bring one back. A SYN that is not takes a
/// token of its service.
///
/// # Errors
/// [`Reason::ServiceLimited`].
#[inline(always)]
pub(crate) fn arms<M: Maps>(maps: &M, arrival: &mut Arrival, settings: &Settings) -> Result<bool, Reason> {
    let is_apart = goes_apart(maps, arrival, settings);
    if !is_apart && arrival.packet.flags.opens() {
        guard::serve(maps, arrival, settings)?;
    }
    Ok(is_apart)
}

/// Whether a packet goes on in the program for cookies. One that may bring a cookie back comes where the connection before it
/// may still be remembered, but is over. Notes what is left to do.
#[inline(always)]
fn goes_apart<M: Maps>(maps: &M, arrival: &mut Arrival, settings: &Settings) -> bool {
    let Some(row) = maps.syn_cookie(arrival.id) else { return false };
    let opens = arrival.packet.flags.opens();
    if !opens {
        // Cheap, and enough as long as nothing happens.
        let [_, armed, _] = &*row;
        if !SynCookie::is_owed(M::load(armed), maps.moment()) {
            return false;
        }
    }
    if let Some(found) = table::find(maps, &arrival.spot, &arrival.who)
        && goes_on(maps, arrival, &found)
    {
        return false;
    }
    arrival.errand = if opens { Errand::GREET } else { Errand::TO_ENDPOINT };
    if !opens {
        return true;
    }
    let Some(service) = maps.service(arrival.id) else { return false };
    cookie::is_armed(maps, &row, &service, settings) && is_elsewhere(maps, arrival, settings)
}

/// Whether a packet is of the connection that is remembered, or of none.
#[inline(always)]
fn goes_on<M: Maps>(maps: &M, arrival: &Arrival, found: &Found<M::Row<FlowRows>>) -> bool {
    if is_its(&found.held, arrival) {
        return true;
    }
    let opens = arrival.packet.flags.opens();
    let may_bring = !opens && is_over(&found.held, arrival);
    match balance::present(maps, arrival, found) {
        Some(chosen) => !may_bring || chosen.endpoint.is_local(),
        None => arrival.wants_reset() || !opens && !may_bring,
    }
}

/// Whether the client's endpoint is on another node: this node's stack has cookies of its own.
#[inline(always)]
fn is_elsewhere<M: Maps>(maps: &M, arrival: &mut Arrival, settings: &Settings) -> bool {
    let mut row = NO_ROW;
    if arrival.is_sticky() {
        arrival.means_client(settings);
        row = record::of_client(maps, arrival);
        arrival.means_flow(settings);
    }
    if row == NO_ROW {
        row = select::select(maps, &arrival.seat(), arrival.choice).unwrap_or(NO_ROW);
    }
    maps.endpoint(row).is_some_and(|endpoint| !endpoint.is_local())
}

/// Makes the cookie for a connection that begins as [`Arrival::begins`] says; the notes have the size of its segments in place
/// of the cookie.
///
/// # Errors
/// [`Reason::CookieRefused`] when there are no keys.
#[inline(always)]
pub(crate) fn bake<M: Maps>(maps: &M, arrival: &Arrival) -> Result<u32, Reason> {
    let keys = maps.cookie_keys().ok_or(Reason::CookieRefused)?;
    let key = arrival.packet.key();
    Ok(OwnCookie::make(&keys, key, arrival.begins, arrival.cookie, maps.moment()).sequence())
}

/// Whether [`Arrival::cookie`] is the one for this connection; returns the segment size that it stands for. Probes of a window,
/// and of whether anybody is there, have the number before that of the first byte (RFC 9293, section 3.8.4).
///
/// # Errors
/// [`Reason::CookieRefused`].
#[inline(always)]
pub(crate) fn prove<M: Maps>(maps: &M, arrival: &mut Arrival) -> Result<u32, Reason> {
    let keys = maps.cookie_keys().ok_or(Reason::CookieRefused)?;
    let now = maps.moment();
    let cookie = OwnCookie::new(arrival.cookie);
    let sent = arrival.begins;
    for back in [1, 0] {
        arrival.begins = sent.wrapping_sub(back);
        if cookie.is_of(&keys, arrival.packet.key(), arrival.begins, now) {
            return Ok(u32::from(cookie.segment_bytes()));
        }
    }
    Err(Reason::CookieRefused)
}
