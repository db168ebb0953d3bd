//! Who may come: networks that are refused, sources that are forged, and how many new flows a source and a service may
//! begin.
//!
//! A bucket of tokens is one word: when it would be full again (the generic cell rate algorithm of ITU-T I.371). A flow
//! more moves that instant on, unless it would then be further ahead than the bucket is deep. What is behind the present,
//! and what is further ahead than a bucket can be, is a full bucket: so nobody has to fill buckets, or to empty them
//! when rates change.

use core::{ops::Deref, sync::atomic::AtomicU64};

use gateway_common::{
    addr::{Addr, Protocol},
    counter::Reason,
    hash,
    map::{REFUSED_ROWS, SOURCE_BUCKETS},
    service::{Mode, Rate, Service},
    settings::Settings,
    source::{self, RATE_WAYS, RefusedRow, RefusedSource, SourceNetwork, SourceRule},
};

use crate::{
    Aligned,
    arrival::Arrival,
    env::Maps,
    outcome::{Outcome, Stage},
    packet::Packet,
};

/// Shared form of [`SourceRateBucket`](gateway_common::source::SourceRateBucket).
pub type RateWords = [AtomicU64; RATE_WAYS];

/// Times that a word is tried which another processor changes. Each loss is a flow of another one that was let in between
/// two instructions: only where more processors than this begin flows at the same instant may one be refused for it.
const TRIES: u32 = 4;

/// Bits of a source's word that tell whose it is.
const TAG: u64 = 0xffff;

/// Why a packet to a service goes no further, if it does not.
#[inline(always)]
pub fn refuses<M: Maps>(
    maps: &M,
    arrival: &mut Arrival,
    service: &Service,
    settings: &Settings,
) -> Option<Reason> {
    if settings.guards == 0 {
        return None;
    }
    arrival.id = service.id;
    if settings.guards & Settings::SOURCES != 0
        && may_be_listed(maps, &arrival.packet, settings)
        && let Some(reason) = refused(maps.apart(Stage::Source, arrival))
    {
        return Some(reason);
    }
    if service.flags & Service::LIMITED != 0 && arrival.packet.flags.opens() {
        return refused(maps.apart(Stage::Admit, arrival));
    }
    None
}

/// Why a message about a flow goes no further: its sender is on a list. The packet is the sender's then, for whoever is told.
#[inline(always)]
pub(crate) fn refuses_message<M: Maps>(
    maps: &M,
    arrival: &mut Arrival,
    settings: &Settings,
    sender: Addr,
) -> Option<Reason> {
    if settings.guards & Settings::SOURCES == 0 {
        return None;
    }
    let of_flow = arrival.packet.key().source;
    arrival.packet.comes_from(sender);
    if may_be_listed(maps, &arrival.packet, settings)
        && let Some(reason) = refused(maps.apart(Stage::Source, arrival))
    {
        return Some(reason);
    }
    arrival.packet.comes_from(of_flow);
    None
}

/// Whether a flow that nothing remembers may be: one whose packet says that it begins was asked before.
///
/// With direct return a packet in the middle of a connection goes on: its connection began at another node, or lost its
/// entry here, and is where it belongs all the same. Translated, it would be a new one at its endpoint.
///
/// # Errors
/// [`Reason::SourceLimited`] or [`Reason::ServiceLimited`].
#[inline(always)]
pub(crate) fn admits<M: Maps>(maps: &M, arrival: &mut Arrival) -> Result<(), Reason> {
    if arrival.is_limited()
        && !arrival.packet.flags.opens()
        && (arrival.mode == Mode::NAT || arrival.packet.key().protocol == Protocol::UDP)
    {
        maps.apart(Stage::Admit, arrival).get()?;
    }
    Ok(())
}

/// Whether a connection that has brought its cookie back may begin.
///
/// # Errors
/// See [`serve`].
#[inline(always)]
pub(crate) fn serves<M: Maps>(maps: &M, arrival: &mut Arrival) -> Result<(), Reason> {
    if arrival.is_limited() {
        maps.apart(Stage::Serve, arrival).get()?;
    }
    Ok(())
}

#[inline(always)]
fn refused(outcome: Outcome) -> Option<Reason> {
    [Reason::Denied, Reason::ForgedSource, Reason::SourceLimited, Reason::ServiceLimited]
        .into_iter()
        .find(|reason| outcome == Outcome::from(Err(*reason)))
}

/// Whether some list may name the source; says yes too often, never too rarely.
#[inline(always)]
fn may_be_listed<M: Maps>(maps: &M, packet: &Packet, settings: &Settings) -> bool {
    let addr = packet.key().source;
    let [one, other] = source::bits_of(addr, packet.is_v6());
    let is_set = |bit: u32| maps.source_filter(bit >> 6).bits >> (bit & 63) & 1 != 0;
    is_set(one) || packet.is_v6() && settings.guards & Settings::BROAD != 0 && is_set(other)
}

/// Looks for the source in the lists.
///
/// # Errors
/// [`Reason::Denied`] or [`Reason::ForgedSource`].
#[inline(always)]
pub(crate) fn source<M: Maps>(maps: &M, arrival: &Arrival) -> Result<u32, Reason> {
    let rule = maps.source_rule(&SourceNetwork::of(arrival.packet.key().source));
    if rule == SourceRule::DENY {
        Err(Reason::Denied)
    } else if rule == SourceRule::FORGED {
        Err(Reason::ForgedSource)
    } else {
        Ok(0)
    }
}

/// Takes a token of the source and one of the service. The source's comes first, so that one that begins too many flows
/// takes nothing from others. A SYN of a service that may answer it with a cookie takes the service's later: see [`serve`].
///
/// # Errors
/// [`Reason::SourceLimited`] or [`Reason::ServiceLimited`].
#[inline(always)]
pub(crate) fn admit<M: Maps>(maps: &M, arrival: &Arrival, settings: &Settings) -> Result<u32, Reason> {
    let Some(service) = maps.service(arrival.id) else { return Ok(0) };
    let now = maps.instant(settings.tick_shift);
    if !source_may(maps, arrival, settings, service.source_rate, now) {
        return Err(Reason::SourceLimited);
    }
    let is_later = arrival.packet.flags.opens() && service.mode == Mode::NAT && service.has_own_cookies();
    if !is_later && !service_may(maps, arrival.id, &Pace::of(service.flow_rate, settings), now) {
        return Err(Reason::ServiceLimited);
    }
    Ok(0)
}

/// Takes a token of a service that sends cookies, once no cookie is sent or one has come back: a flood of SYNs that are
/// answered with cookies takes none.
///
/// # Errors
/// [`Reason::ServiceLimited`].
#[inline(always)]
pub(crate) fn serve<M: Maps>(maps: &M, arrival: &Arrival, settings: &Settings) -> Result<u32, Reason> {
    let Some(service) = maps.service(arrival.id).filter(|_| arrival.is_limited()) else { return Ok(0) };
    let now = maps.instant(settings.tick_shift);
    if service_may(maps, arrival.id, &Pace::of(service.flow_rate, settings), now) {
        Ok(0)
    } else {
        Err(Reason::ServiceLimited)
    }
}

/// A rate, in the units of the words.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pace {
    /// Between two flows.
    step: u64,
    /// How deep a bucket is.
    most: u64,
}

impl Pace {
    /// What a bucket holds at most: a quarter of the clock's round, twelve days of a thousand interrupts in a second. What is
    /// further ahead could not be told from what is long over.
    const DEEPEST: u64 = 1 << 62;

    #[inline(always)]
    pub(crate) fn of(rate: Rate, settings: &Settings) -> Self {
        if rate.per_second == 0 {
            return Self { step: 0, most: 0 };
        }
        let second = u64::from(settings.interrupts) << 32;
        let step = second / u64::from(rate.per_second);
        let burst = u64::from(rate.burst);
        // Asked before: the kernel's machine has no multiplication that says when it wrapped.
        let deep = if burst > Self::DEEPEST.checked_div(step).unwrap_or(0) {
            Self::DEEPEST
        } else {
            step.wrapping_mul(burst)
        };
        // The clock moves by whole interrupts: what comes between two of them has to fit.
        let most = deep.max(2 << 32).max(step);
        Self { step, most }
    }

    /// Whether there is no bound.
    #[inline(always)]
    const fn is_none(&self) -> bool {
        self.most == 0
    }

    /// When a bucket would be full after one flow more; none when it is empty.
    #[inline(always)]
    const fn take(&self, full_at: u64, now: u64) -> Option<u64> {
        let ahead = full_at.wrapping_sub(now);
        let ahead = if ahead > self.most { 0 } else { ahead };
        let next = ahead.wrapping_add(self.step);
        if next > self.most { None } else { Some(now.wrapping_add(next)) }
    }
}

#[inline(always)]
fn service_may<M: Maps>(maps: &M, id: u32, pace: &Pace, now: u64) -> bool {
    if pace.is_none() {
        return true;
    }
    maps.service_rate(id).is_none_or(|word| takes::<M>(&word, pace, now))
}

/// Takes a token of a bucket; says whether there was one.
#[inline(always)]
pub(crate) fn takes<M: Maps>(word: &AtomicU64, pace: &Pace, now: u64) -> bool {
    for _ in 0..TRIES {
        let old = M::load(word);
        let Some(next) = pace.take(old, now) else { return false };
        if M::exchange(word, old, next) {
            return true;
        }
    }
    false
}

#[inline(always)]
#[expect(clippy::as_conversions, clippy::cast_possible_truncation, reason = "part of the hash")]
fn source_may<M: Maps>(maps: &M, arrival: &Arrival, settings: &Settings, rate: Rate, now: u64) -> bool {
    let pace = Pace::of(rate, settings);
    if pace.is_none() {
        return true;
    }
    let site = Aligned(source::site(arrival.packet.key().source));
    let hash = hash::source(&settings.keys, site.0, arrival.id, arrival.packet.is_v6());
    let Some(words) = maps.source_rates(hash as u32 & (SOURCE_BUCKETS - 1)) else { return true };
    let tag = hash >> 48;
    let (at, mut old) = place::<M>(&words, tag, now);
    let word = word(&words, at);
    for _ in 0..TRIES {
        let full_at = if old & TAG == tag { old & !TAG } else { now };
        let Some(next) = pace.take(full_at, now) else { return false };
        if M::exchange(word, old, next & !TAG | tag) {
            return true;
        }
        // Whoever took the same place for another source in between loses it again: a full bucket, at worst.
        old = M::load(word);
    }
    false
}

/// The word of a source, else the one that has been full for longest; and what it says.
#[inline(always)]
fn place<M: Maps>(words: &impl Deref<Target = RateWords>, tag: u64, now: u64) -> (u32, u64) {
    let mut best = (0, 0);
    let mut best_age = 0;
    for at in 0..8 {
        let old = M::load(word(words, at));
        if old & TAG == tag {
            return (at, old);
        }
        // How long ago, on a scale on which what is still ahead comes first.
        let age = if old == 0 { u64::MAX } else { now.wrapping_sub(old).wrapping_add(1 << 63) };
        if at == 0 || age > best_age {
            best_age = age;
            best = (at, old);
        }
    }
    best
}

#[inline(always)]
fn word(words: &impl Deref<Target = RateWords>, at: u32) -> &AtomicU64 {
    let [first, ..] = &**words;
    words.get(usize::try_from(at & 7).unwrap_or(0)).unwrap_or(first)
}

/// Has it remembered whose packet was refused. Apart, because the stack of those who refuse is deep enough.
#[inline(always)]
pub fn blames<M: Maps>(maps: &M, arrival: &mut Arrival, settings: &Settings, reason: Reason) {
    if settings.guards != 0 && refused(Outcome::from(Err(reason))).is_some() {
        arrival.row = reason.number();
        let _nothing = maps.apart(Stage::Blame, arrival).word();
    }
}

/// Remembers whose packet was refused.
#[inline(always)]
#[expect(clippy::as_conversions, clippy::cast_possible_truncation, reason = "part of the hash")]
pub(crate) fn blame<M: Maps>(maps: &M, arrival: &Arrival, settings: &Settings) {
    let packet = &arrival.packet;
    let site = Aligned(source::site(packet.key().source));
    let row = hash::source(&settings.keys, site.0, u32::MAX, packet.is_v6()) as u32 & (REFUSED_ROWS - 1);
    let now = maps.now(settings.tick_shift);
    let is_over = |one: &RefusedSource| one.last.after(settings.open_ticks).is_before(now);
    maps.note_refused(row, |RefusedRow { sources: [a, b, c, d] }| {
        let mut best: &mut RefusedSource = a;
        for one in [b, c, d] {
            let is_its = is(one, &site);
            if is_its || !is(best, &site) && one.packets < best.packets {
                best = one;
            }
        }
        let (id, number) = (arrival.id, arrival.row);
        if is(best, &site) {
            best.packets = best.packets.wrapping_add(1);
            (best.last, best.service, best.reason) = (now, id, number);
        } else {
            let others = if is_over(best) { 0 } else { best.packets };
            *best = RefusedSource::new(site.0, others, now, id, number);
        }
    });
}

#[inline(always)]
fn is(one: &RefusedSource, site: &Aligned<Addr>) -> bool {
    let [a, b]: [u64; 2] = bytemuck::must_cast(one.site);
    let [c, d]: [u64; 2] = bytemuck::must_cast(site.0);
    (a ^ c) | (b ^ d) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 250 << 32;

    fn pace(per_second: u32, burst: u32) -> Pace {
        let mut settings: Settings = bytemuck::Zeroable::zeroed();
        settings.interrupts = 250;
        Pace::of(Rate { per_second, burst }, &settings)
    }

    /// How many of a thousand flows that come at once a bucket lets through.
    fn burst(pace: &Pace, full_at: &mut u64, now: u64) -> usize {
        (0..1_000).filter_map(|_| pace.take(*full_at, now).map(|next| *full_at = next)).count()
    }

    #[test]
    fn a_bucket_holds_its_burst_and_fills_at_its_rate() {
        let pace = pace(50, 100);
        let (mut full_at, start) = (0, 77 << 32);
        assert_eq!(burst(&pace, &mut full_at, start), 100);
        assert_eq!(burst(&pace, &mut full_at, start + SECOND), 50);
        assert_eq!(burst(&pace, &mut full_at, start + SECOND + SECOND / 50), 1);
        assert_eq!(burst(&pace, &mut full_at, start + 10 * SECOND), 100);
    }

    #[test]
    fn a_bucket_of_another_rate_or_age_is_full() {
        let start = u64::MAX - SECOND;
        let mut full_at = start;
        assert_eq!(burst(&pace(1, 900), &mut full_at, start), 900);
        assert_eq!(burst(&pace(10, 20), &mut full_at, start), 20, "further ahead than the new one is deep");
        assert_eq!(burst(&pace(10, 20), &mut full_at, start.wrapping_add(2 * SECOND)), 20, "around the end");
    }

    #[test]
    fn what_comes_within_an_interrupt_fits() {
        let fast = pace(100_000, 1);
        let mut full_at = 0;
        let through: usize = (0..250_u64).map(|tick| burst(&fast, &mut full_at, tick << 32)).sum();
        assert!((99_000..101_000).contains(&through), "{through}");
        assert_eq!(burst(&pace(1, 1), &mut 0, 0), 1, "the slowest lets one through");
    }

    #[test]
    fn a_burst_of_months_is_none_of_nothing() {
        // 2^24 seconds of 2^8 interrupts are one round of the clock.
        let mut settings: Settings = bytemuck::Zeroable::zeroed();
        settings.interrupts = 256;
        for n in [1 << 24, (1 << 24) + 1, 100_000_000, u32::MAX] {
            let pace = Pace::of(Rate { per_second: 1, burst: n }, &settings);
            assert_eq!(pace.most, Pace::DEEPEST, "{n}");
            assert_eq!(burst(&pace, &mut 0, 77 << 32), 1_000, "{n}");
        }
        let pace = Pace::of(Rate { per_second: 1, burst: 1 << 22 }, &settings);
        assert_eq!(pace.most, Pace::DEEPEST, "the last that fits");
        let pace = Pace::of(Rate { per_second: 1, burst: (1 << 22) - 1 }, &settings);
        assert_eq!(pace.most, Pace::DEEPEST - (256 << 32));
    }
}
