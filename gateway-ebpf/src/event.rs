//! Events: the agent is told of single packets that ended early, where it asked for that.
//!
//! Only packets that end here come here, and what there is to do stands in a function of its own.

use gateway_common::{counter::Reason, event::Event, settings::Settings};

use crate::{
    arrival::{Arrival, Told},
    count::{self, counted},
    env::{Env, Maps},
    outcome::Stage,
    verdict::Verdict,
};

/// Runs one packet through `pipeline`, counts it, and tells of it when it was dropped.
#[inline(always)]
pub fn told<E: Env>(
    env: &mut E,
    arrival: &mut Arrival,
    is_icmp: bool,
    pipeline: impl FnOnce(&mut E, &mut Arrival) -> Verdict,
) -> Verdict {
    let seen = Seen::of(env);
    let verdict = pipeline(env, arrival);
    seen.told(env, arrival, verdict, is_icmp)
}

/// What is told of a packet that changes on its way. Beside [`told`] for the pipelines of every day: what a compiler is
/// given as a function it may leave one when it grows, and then the packet's addresses are read from memory each time.
pub(crate) struct Seen {
    len_bytes: u32,
}

impl Seen {
    /// Of a packet that just came.
    #[inline(always)]
    pub(crate) fn of<E: Env>(env: &E) -> Self {
        Self { len_bytes: env.len_bytes() }
    }

    /// Counts it, and tells of it when it was dropped.
    #[inline(always)]
    pub(crate) fn told<E: Env>(
        self,
        env: &E,
        arrival: &mut Arrival,
        verdict: Verdict,
        is_icmp: bool,
    ) -> Verdict {
        count::ended(env, u64::from(self.len_bytes), verdict);
        if let Verdict::Drop(reason) = verdict {
            tells(env, arrival, reason, self.len_bytes, is_icmp);
        }
        verdict
    }
}

/// The same for a packet that ends in any case: dropped or answered.
#[inline(always)]
pub fn told_in_any_case<E: Env>(
    env: &mut E,
    arrival: &mut Arrival,
    pipeline: impl FnOnce(&mut E, &mut Arrival) -> Verdict,
) -> Verdict {
    let len_bytes = env.len_bytes();
    let verdict = counted(env, |env| pipeline(env, arrival));
    tells(env, arrival, verdict.reason(), len_bytes, false);
    verdict
}

#[inline(always)]
fn tells<E: Env>(env: &E, arrival: &mut Arrival, reason: Reason, len_bytes: u32, is_icmp: bool) {
    if env.maps().settings().is_some_and(|settings| settings.events != 0) {
        arrival.is_told(Told::new(env.hook(), reason, len_bytes, is_icmp));
        let _nothing = env.maps().apart(Stage::Tell, arrival).word();
    }
}

/// Tells of the packet, unless enough were told of.
#[inline(always)]
pub(crate) fn tell<M: Maps>(maps: &M, arrival: &Arrival, settings: &Settings) {
    let told = arrival.told();
    let number = u32::from(told.reason);
    let now = maps.now(settings.tick_shift);
    let most = u32::from(settings.events);
    let mut skipped = 0;
    let may = maps.event_count(number, |count| {
        skipped = count.skipped;
        count.may_tell(now, most)
    });
    if !may {
        return;
    }
    let time_ns = maps.clock_ns();
    let is_told = maps.tell(|event: &mut Event| {
        let key = arrival.packet.key();
        event.time_ns = time_ns;
        event.source = key.source;
        event.destination = key.destination;
        event.source_port = key.source_port;
        event.destination_port = key.destination_port;
        event.protocol = key.protocol;
        event.hook = told.hook;
        event.reason = told.reason;
        event.is_icmp = told.is_icmp;
        event.service = arrival.id;
        event.endpoint = arrival.row;
        event.len_bytes = told.len_bytes;
        event.skipped = skipped;
    });
    maps.event_count(number, |count| {
        count.note(is_told);
        true
    });
}
