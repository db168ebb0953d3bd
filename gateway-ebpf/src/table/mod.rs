//! The flow table: where a flow stands, and which entry a new one may take.
//!
//! A hash table of fixed size in an array: four entries to a bucket, two buckets for a flow. There are no locks: an entry
//! is taken by exchanging its head, and whoever reads looks at the head before and after. A flow stands at its home, one
//! entry of its first bucket, unless that was taken; whether any flow of a bucket is displaced, to another entry or to its
//! second bucket, and so worth looking for there, is counted apart, in few bytes: most flows, and most that are new, touch
//! one line of the table. Entries that are over stay until their place is needed, or the agent has the table swept. While
//! there is no such place, a service gives up flows of its own, and flows of services that hold more than their share; it
//! never takes a place from a service within its share.

mod displaced;
pub mod reply;
pub mod row;
pub mod sequence;

use core::hint::black_box;

use bytemuck::{Pod, Zeroable};
use gateway_common::{
    addr::{Addr, Port, Protocol},
    counter::Reason,
    flow::Tick,
    settings::Settings,
};

use self::row::{FlowRow, FlowRows, HeadWord, Held, Who};
use crate::{env::Maps, select::NO_ROW};

/// Entries in a bucket, as a number of turns.
const WAYS: u32 = 4;

/// Where a flow may stand.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct Spot {
    wanted: HeadWord,
    first: u32,
    second: u32,
    way: u32,
    pad: u32,
}

impl Spot {
    /// The places of a flow with this hash.
    #[inline(always)]
    #[expect(clippy::as_conversions, clippy::cast_possible_truncation, reason = "parts of the hash")]
    pub const fn new(hash: u64, mask: u32, protocol: Protocol) -> Self {
        let tag = (hash >> 48) as u16;
        let low = hash as u32;
        let wanted = HeadWord::of(tag, protocol);
        Self { first: low & mask, second: partner(low, tag) & mask, way: home(tag), wanted, pad: 0 }
    }

    /// The place that is tried in a turn: four in each bucket, the flow's home first.
    #[inline(always)]
    pub const fn place(&self, turn: u32) -> (u32, u32) {
        (self.bucket(turn >= WAYS), self.way.wrapping_add(turn) & (WAYS - 1))
    }

    /// How flows are displaced that stand at the place of a turn, which is not the first.
    #[inline(always)]
    const fn to(turn: u32) -> displaced::To {
        if turn < WAYS { displaced::To::Entry } else { displaced::To::Bucket }
    }

    /// The head of the flow's entry, without its version.
    #[inline(always)]
    pub const fn wanted(&self) -> HeadWord {
        self.wanted
    }

    #[inline(always)]
    const fn bucket(&self, is_second: bool) -> u32 {
        if is_second { self.second } else { self.first }
    }
}

/// The other bucket of a flow with this tag: the second from the first, and the first from the second.
#[inline(always)]
#[expect(clippy::as_conversions, reason = "widening in a const function")]
const fn partner(bucket: u32, tag: u16) -> u32 {
    bucket ^ ((tag as u32) << 1 | 1).wrapping_mul(0x5bd1_e995)
}

/// The entry of its first bucket where a flow with this tag stands unless that was taken.
#[inline(always)]
#[expect(clippy::as_conversions, reason = "widening in a const function")]
const fn home(tag: u16) -> u32 {
    tag as u32 & (WAYS - 1)
}

/// One entry of the table.
#[derive(Clone, Copy, Debug)]
pub struct Place<R> {
    rows: R,
    bucket: u32,
    way: u32,
}

impl<R: core::ops::Deref<Target = FlowRows>> Place<R> {
    /// The entry.
    #[inline(always)]
    pub fn row(&self) -> &FlowRow {
        way(&self.rows, self.way)
    }

    /// Its number.
    #[inline(always)]
    pub const fn index(&self) -> u32 {
        self.bucket * WAYS + (self.way & (WAYS - 1))
    }

    /// Where a flow with this head is counted as displaced while it stands here, by its first bucket.
    #[inline(always)]
    fn displaced(&self, head: HeadWord, mask: u32) -> Option<(u32, displaced::To)> {
        if head.is_displaced() {
            return Some((partner(self.bucket, head.tag()) & mask, displaced::To::Bucket));
        }
        (self.way & (WAYS - 1) != home(head.tag())).then_some((self.bucket, displaced::To::Entry))
    }
}

/// One entry of a bucket. The mask, not a comparison: the verifier follows it.
#[inline(always)]
fn way(rows: &FlowRows, way: u32) -> &FlowRow {
    let [first, ..] = rows;
    rows.get(usize::try_from(way & (WAYS - 1)).unwrap_or(0)).unwrap_or(first)
}

/// A flow that is remembered.
#[derive(Clone, Debug)]
pub struct Found<R> {
    /// Its entry.
    pub place: Place<R>,
    /// What the entry says.
    pub held: Held,
}

/// Looks for a flow: at its home, and elsewhere only if any flow of its first bucket stands there.
#[inline(always)]
pub fn find<M: Maps>(maps: &M, spot: &Spot, who: &Who) -> Option<Found<M::Row<FlowRows>>> {
    match at(maps, spot, 0, who) {
        // A number that the compiler knows nothing of: it would make a way of its own of every turn, and copy registers
        // that hold nothing where they meet.
        None => at(maps, spot, black_box(turn(maps, spot, who)), who),
        found => found,
    }
}

/// The turn in which a flow is found that is not at home; else the first, where it is not either.
#[inline(always)]
fn turn<M: Maps>(maps: &M, spot: &Spot, who: &Who) -> u32 {
    let counts = displaced::of(maps, spot.first);
    for turn in 1..WAYS * 2 {
        if !counts.is_to(Spot::to(turn)) {
            continue;
        }
        let (bucket, at) = spot.place(turn);
        let Some(rows) = maps.flows(bucket) else { return 0 };
        let row = way(&rows, at);
        if row.head::<M>().is_of(spot.wanted) && row.is_of::<M>(who) {
            return turn;
        }
    }
    0
}

#[inline(always)]
fn at<M: Maps>(maps: &M, spot: &Spot, turn: u32, who: &Who) -> Option<Found<M::Row<FlowRows>>> {
    let (bucket, at) = spot.place(turn);
    let rows = maps.flows(bucket)?;
    let held = way(&rows, at).read::<M>(spot.wanted, who)?;
    Some(Found { place: Place { rows, bucket, way: at }, held })
}

/// A flow that wants an entry.
#[derive(Clone, Copy, Debug)]
pub struct Wish<'a> {
    /// Where it may stand.
    pub spot: &'a Spot,
    /// Whose it is.
    pub who: &'a Who,
    /// The settings.
    pub settings: &'a Settings,
    /// Entries that its service may hold while others need room.
    pub share: u32,
    /// The present.
    pub now: Tick,
    /// Index of an entry that is not to be taken, or none that there is.
    pub keeps: u32,
}

impl Wish<'_> {
    /// Whether an entry is not to be taken.
    #[inline(always)]
    const fn keeps(&self, bucket: u32, way: u32) -> bool {
        self.keeps == bucket * WAYS + way
    }
}

/// An entry that is being written by this processor.
#[derive(Debug)]
pub struct Claimed<R> {
    /// The entry.
    pub place: Place<R>,
    /// Its head until it is published.
    pub busy: HeadWord,
}

/// Takes an entry for a flow that has none; returns its index.
///
/// # Errors
/// [`Reason::FlowTableFull`] or [`Reason::FlowContended`].
#[inline(always)]
pub fn claim<M: Maps>(maps: &M, wish: &Wish<'_>) -> Result<u32, Reason> {
    let (place, old) = match over(maps, wish) {
        Some(found) => found,
        None => evictable(maps, wish).ok_or(Reason::FlowTableFull)?,
    };
    let busy = old.taken_for(wish.spot.wanted, place.bucket != wish.spot.first);
    // Counted before the entry is there, so that whoever looks afterwards looks there, too.
    if let Some((first, to)) = place.displaced(busy, wish.settings.flow_mask)
        && !displaced::add(maps, first, to)
    {
        return Err(Reason::FlowContended);
    }
    if !place.row().exchange::<M>(old, busy) {
        back_home(maps, &place, busy, wish.settings);
        return Err(Reason::FlowContended);
    }
    if old.is_live() {
        let loser = place.row().service::<M>();
        left(maps, loser);
        if !place.row().expires::<M>().is_before(wish.now)
            && let Some(evicted) = maps.service_evictions(loser)
        {
            M::add(&evicted, 1);
        }
        parted(maps, counted::<M>(place.row()));
        reply::forget(maps, wish.settings, place.row(), old, place.index());
        back_home(maps, &place, old, wish.settings);
    }
    if is_elsewhere(maps, wish, &place) {
        place.row().publish::<M>(busy.free());
        back_home(maps, &place, busy, wish.settings);
        return Err(Reason::FlowContended);
    }
    if let Some(entries) = maps.service_flows(wish.who.service()) {
        M::add(&entries, 1);
    }
    Ok(place.index())
}

/// The entry with this index, and the head that it has at this moment.
#[inline(always)]
pub fn entry<M: Maps>(maps: &M, index: u32) -> Option<Claimed<M::Row<FlowRows>>> {
    let bucket = index / WAYS;
    let rows = maps.flows(bucket)?;
    let place = Place { rows, bucket, way: index & (WAYS - 1) };
    let busy = place.row().head::<M>();
    Some(Claimed { place, busy })
}

/// Gives an entry back that came to nothing.
#[inline(always)]
pub fn give_up<M: Maps>(maps: &M, claimed: &Claimed<M::Row<FlowRows>>, service: u32, settings: &Settings) {
    left(maps, service);
    claimed.place.row().publish::<M>(claimed.busy.free());
    back_home(maps, &claimed.place, claimed.busy, settings);
}

/// Counts a flow no more that stood at this place under this head, if it was not its home.
#[inline(always)]
fn back_home<M: Maps>(maps: &M, place: &Place<M::Row<FlowRows>>, head: HeadWord, settings: &Settings) {
    if let Some((first, to)) = place.displaced(head, settings.flow_mask) {
        displaced::remove(maps, first, to);
    }
}

/// Forgets a flow whose slot leads to the same endpoint, unless its entry changed meanwhile.
#[inline(always)]
pub fn release<M: Maps>(maps: &M, found: &Found<M::Row<FlowRows>>, who: &Who, settings: &Settings) {
    if found.place.row().exchange::<M>(found.held.head, found.held.head.free()) {
        left(maps, who.service());
        if who.client_port() != Port::NONE {
            parted(maps, found.held.endpoint);
        }
        back_home(maps, &found.place, found.held.head, settings);
    }
}

/// Forgets a flow with everything that leads to it, unless its entry changed meanwhile; says whether it did.
#[inline(always)]
pub fn forget<M: Maps>(maps: &M, found: &Found<M::Row<FlowRows>>, settings: &Settings) -> bool {
    let head = found.held.head;
    if !found.place.row().exchange::<M>(head, head.busy()) {
        return false;
    }
    clear(maps, &found.place, head, settings);
    true
}

/// Frees an entry that this processor has taken, and that had this head.
#[inline(always)]
fn clear<M: Maps>(maps: &M, place: &Place<M::Row<FlowRows>>, head: HeadWord, settings: &Settings) {
    let row = place.row();
    left(maps, row.service::<M>());
    parted(maps, counted::<M>(row));
    reply::forget(maps, settings, row, head, place.index());
    row.publish::<M>(head.free());
    back_home(maps, place, head, settings);
}

#[inline(always)]
fn left<M: Maps>(maps: &M, service: u32) {
    if let Some(entries) = maps.service_flows(service) {
        // Never below zero, whoever else wrote to the map: a service without entries would seem to have all there are.
        if M::load(&entries) != 0 {
            M::add(&entries, u64::MAX);
        }
    }
}

/// The endpoint row that an entry is counted for: what is remembered of clients counts for none.
#[inline(always)]
fn counted<M: Maps>(row: &FlowRow) -> u32 {
    let (_, port) = row.client::<M>();
    if port == Port::NONE { NO_ROW } else { row.endpoint::<M>() }
}

/// Counts one more flow of an endpoint row.
#[inline(always)]
pub fn joined<M: Maps>(maps: &M, row: u32) {
    if let Some(flows) = maps.endpoint_flows(row) {
        M::add(&flows, 1);
    }
}

/// Counts one flow less of an endpoint row, if it is one. Never below zero: flows that an earlier agent's programs recorded
/// may not have been counted.
#[inline(always)]
pub fn parted<M: Maps>(maps: &M, row: u32) {
    if let Some(flows) = maps.endpoint_flows(row)
        && M::load(&flows) != 0
    {
        M::add(&flows, u64::MAX);
    }
}

/// Frees the entries of a bucket that are over, and those whose endpoint left; how many. TCP connections that were open, and
/// may go on after a long silence, get twice their time.
#[inline(always)]
pub fn sweep<M: Maps>(maps: &M, bucket: u32) -> u32 {
    let Some(settings) = maps.settings() else { return 0 };
    let settings: &Settings = &settings;
    let now = maps.now(settings.tick_shift);
    let mut freed = 0;
    for at in 0..WAYS {
        let Some(rows) = maps.flows(bucket) else { return freed };
        let row = way(&rows, at);
        let head = row.head::<M>();
        if !head.is_live() || !is_no_more(maps, row, head, settings, now) {
            continue;
        }
        // Taken first, so that nobody else writes what is read here.
        if !row.exchange::<M>(head, head.busy()) {
            continue;
        }
        // A packet may have come in between.
        if !is_no_more(maps, row, head, settings, now) {
            row.publish::<M>(head);
            continue;
        }
        clear(maps, &Place { rows, bucket, way: at }, head, settings);
        freed += 1;
    }
    freed
}

/// Whether no packet goes on with an entry: it has been over for long, or the endpoint that it names has left its row, so that
/// the numbers of both may be given to others.
#[inline(always)]
fn is_no_more<M: Maps>(maps: &M, row: &FlowRow, head: HeadWord, settings: &Settings, now: Tick) -> bool {
    row.is_long_over::<M>(head, settings, now)
        || maps.endpoint(row.endpoint::<M>()).is_none_or(|endpoint| {
            endpoint.addr == Addr::UNSPECIFIED
                || endpoint.service != row.service::<M>()
                || !endpoint.still_holds(row.generation::<M>())
        })
}

/// A place that nobody needs.
#[inline(always)]
fn over<M: Maps>(maps: &M, wish: &Wish<'_>) -> Option<(Place<M::Row<FlowRows>>, HeadWord)> {
    for turn in 0..WAYS * 2 {
        let (bucket, at) = wish.spot.place(turn);
        let rows = maps.flows(bucket)?;
        let row = way(&rows, at);
        let head = row.head::<M>();
        let is_over = head.is_live() && row.expires::<M>().is_before(wish.now);
        if head.is_free() || is_over && !wish.keeps(bucket, at) {
            return Some((Place { rows, bucket, way: at }, head));
        }
    }
    None
}

/// The place of a flow that has to go: the one that would be over first, of the service itself or of one that holds more
/// than its share while this one does not.
#[inline(always)]
fn evictable<M: Maps>(maps: &M, wish: &Wish<'_>) -> Option<(Place<M::Row<FlowRows>>, HeadWord)> {
    let own = wish.who.service();
    let may_take = !has_more(maps, own, wish.share);
    let mut best: Option<(Place<M::Row<FlowRows>>, HeadWord)> = None;
    let mut best_left = u32::MAX;
    for turn in 0..WAYS * 2 {
        let (bucket, at) = wish.spot.place(turn);
        let rows = maps.flows(bucket)?;
        let row = way(&rows, at);
        let head = row.head::<M>();
        if !head.is_live() {
            continue;
        }
        let service = row.service::<M>();
        let is_allowed =
            !wish.keeps(bucket, at) && (service == own || may_take && holds_too_much(maps, service));
        let left = row.expires::<M>().count().wrapping_sub(wish.now.count());
        if is_allowed && left < best_left {
            best_left = left;
            best = Some((Place { rows, bucket, way: at }, head));
        }
    }
    best
}

/// Whether a service holds any entry.
#[inline(always)]
pub fn holds_any<M: Maps>(maps: &M, service: u32) -> bool {
    maps.service_flows(service).is_some_and(|entries| M::load(&entries) != 0)
}

#[inline(always)]
fn holds_too_much<M: Maps>(maps: &M, service: u32) -> bool {
    maps.service(service).is_none_or(|row| has_more(maps, service, row.flow_share))
}

#[inline(always)]
fn has_more<M: Maps>(maps: &M, service: u32, share: u32) -> bool {
    maps.service_flows(service).is_none_or(|entries| M::load(&entries) > u64::from(share))
}

/// Whether another processor records the same flow at this moment: then both give way, and the sender comes again.
#[inline(always)]
fn is_elsewhere<M: Maps>(maps: &M, wish: &Wish<'_>, place: &Place<M::Row<FlowRows>>) -> bool {
    // Whoever took another place counted it before, and looks here afterwards.
    let counts = displaced::of(maps, wish.spot.first);
    for turn in 0..WAYS * 2 {
        if turn != 0 && !counts.is_to(Spot::to(turn)) {
            continue;
        }
        let (bucket, at) = wish.spot.place(turn);
        let Some(rows) = maps.flows(bucket) else { return false };
        if bucket == place.bucket && at == place.way {
            continue;
        }
        let row = way(&rows, at);
        let head = row.head::<M>();
        if head.is_like(wish.spot.wanted) && (head.is_busy() || head.is_live() && row.is_of::<M>(wish.who)) {
            return true;
        }
    }
    false
}
