//! Counting: every packet once on arrival and once under the reason it ended with.

use gateway_common::counter::Hook;

use crate::{
    env::{Env, Maps},
    verdict::Verdict,
};

/// Runs one packet through `pipeline` and counts it.
#[inline(always)]
pub fn counted<E: Env>(env: &mut E, pipeline: impl FnOnce(&mut E) -> Verdict) -> Verdict {
    let bytes = u64::from(env.len_bytes());
    let verdict = pipeline(env);
    ended(env, bytes, verdict);
    verdict
}

/// Counts a packet that had so many bytes when it came, unless it goes on in a program aside.
#[inline(always)]
pub(crate) fn ended<E: Env>(env: &E, bytes: u64, verdict: Verdict) {
    let is_over = match verdict {
        Verdict::Rare(_) | Verdict::Icmp(_) | Verdict::Answer(_) | Verdict::Cookie(_) | Verdict::Proxy(_) => {
            false
        }
        Verdict::Pass(_) | Verdict::HandOver(_) | Verdict::Transmit(_) | Verdict::Drop(_) => true,
    };
    if is_over {
        env.maps().count_packet(env.hook(), verdict.reason(), bytes);
    }
}

/// Counts a packet whose program aside is not there: it ends as it is.
#[inline(always)]
pub fn alone<E: Env>(env: &E, verdict: Verdict) -> Verdict {
    env.maps().count_packet(env.hook(), verdict.reason(), u64::from(env.len_bytes()));
    verdict
}

/// The same for a connection at the socket lookup, which has no bytes.
#[inline(always)]
pub fn counted_lookup<M: Maps>(maps: &M, pipeline: impl FnOnce(&M) -> Verdict) -> Verdict {
    let verdict = pipeline(maps);
    maps.count_packet(Hook::SkLookup, verdict.reason(), 0);
    verdict
}

/// Adds a drop to the counts of a service.
#[inline(always)]
pub fn dropped<M: Maps>(maps: &M, service: u32, verdict: Verdict) -> Verdict {
    match verdict {
        Verdict::Drop(reason) | Verdict::Answer(reason) => {
            maps.count_service(service, |count| count.dropped += 1);
            maps.count_service_drop(service, reason);
        }
        Verdict::Pass(_)
        | Verdict::HandOver(_)
        | Verdict::Transmit(_)
        | Verdict::Rare(_)
        | Verdict::Icmp(_)
        | Verdict::Cookie(_)
        | Verdict::Proxy(_) => {}
    }
    verdict
}
