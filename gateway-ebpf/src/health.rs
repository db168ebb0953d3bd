//! What packets that are seen anyway tell of their endpoints: SYNs that come again, resets, and the time to the answer.
//!
//! Only packets that change how far a connection has come say anything, so that all others pay nothing.

use gateway_common::{
    flow::{Phase, Reply},
    health::Handshake,
    map::HANDSHAKES,
};

use crate::{
    arrival::Arrival,
    env::Maps,
    table::{self, row::HeadWord},
};

/// One in so many connections is timed.
const SAMPLE: u64 = 8;

/// Whether a connection begins that is timed.
#[inline(always)]
pub(crate) fn is_timed(arrival: &Arrival) -> bool {
    // Bits of the hash that choose neither bucket nor slot.
    arrival.packet.flags.opens() && (arrival.hash >> 29) & (SAMPLE - 1) == 0
}

/// A connection begins that is timed.
#[inline(always)]
pub(crate) fn begin<M: Maps>(maps: &M, arrival: &Arrival) {
    let entry = arrival.entry;
    let Some(recorded) = table::entry(maps, entry) else { return };
    if let Some(word) = maps.handshake(entry & (HANDSHAKES - 1)) {
        let sent = Handshake::new(flow(entry, recorded.busy), now_us(maps));
        M::store(&word, sent.word());
    }
}

/// The SYN of the flow with this entry came once more: whoever waits for the answer now cannot tell which one it is for.
#[inline(always)]
pub(crate) fn retry<M: Maps>(maps: &M, arrival: &Arrival, entry: u32) {
    maps.count_health(arrival.row, |health| health.syn_retransmits += 1);
    if let Some(word) = maps.handshake(entry & (HANDSHAKES - 1)) {
        let waiting = Handshake::from_word(M::load(&word));
        if Reply::new(0, waiting.flow, 0).index() == entry {
            M::store(&word, 0);
        }
    }
}

/// A packet of TCP from the endpoint changed how far the connection has come. The arrival says how far that was.
#[inline(always)]
pub(crate) fn answer<M: Maps>(maps: &M, arrival: &Arrival) {
    let is_opening = arrival.phase == Phase::OPENING;
    if arrival.packet.flags.resets() {
        maps.count_health(arrival.row, |health| {
            if is_opening {
                health.refused += 1;
            } else {
                health.resets += 1;
            }
        });
    } else if is_opening && let Some(word) = maps.handshake(arrival.entry & (HANDSHAKES - 1)) {
        let waiting = Handshake::from_word(M::load(&word));
        if waiting.flow != flow(arrival.entry, arrival.head) || waiting.sent_us == 0 {
            return;
        }
        M::store(&word, 0);
        let us = now_us(maps).wrapping_sub(waiting.sent_us);
        maps.count_health(arrival.row, |health| {
            health.handshakes += 1;
            health.handshake_us += u64::from(us);
        });
    }
}

/// A version of an entry, in one number.
#[inline(always)]
const fn flow(entry: u32, head: HeadWord) -> u32 {
    Reply::new(0, entry, head.version()).flow
}

/// The present; never zero, which stands for nothing.
#[inline(always)]
#[expect(clippy::as_conversions, clippy::cast_possible_truncation, reason = "around the end of the range")]
fn now_us<M: Maps>(maps: &M) -> u32 {
    (maps.clock_ns() / 1_000) as u32 | 1
}
