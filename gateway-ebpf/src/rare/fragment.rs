//! Fragments: the first piece of a packet teaches the ports, the others are sent the same way.
//!
//! Pieces that come before the first one pass to the stack: nobody knows yet whose they are.

use core::sync::atomic::AtomicU64;

use gateway_common::{
    addr::{Port, Protocol},
    counter::Reason,
    flow::{FlowKey, Tick},
    fragment::{self, FragmentBucket, Lesson},
    hash,
    settings::Settings,
};

use crate::{
    env::Maps,
    packet::ip::{Ip, Piece},
};

/// A bucket of [`Fragments`](gateway_common::map::Fragments).
pub type FragmentRows = [FragmentRow; fragment::WAYS];

/// The bytes of a [`Fragmented`](fragment::Fragmented), as several processors share them.
#[repr(C)]
#[derive(Debug, Default)]
pub struct FragmentRow {
    tag: AtomicU64,
    lesson: AtomicU64,
}

const _: () = assert!(size_of::<FragmentRows>() == size_of::<FragmentBucket>());

impl FragmentRow {
    /// Tag and lesson.
    pub fn plain<M: Maps>(&self) -> [u64; 2] {
        [M::load(&self.tag), M::load(&self.lesson)]
    }
}

impl From<[u64; 2]> for FragmentRow {
    fn from([tag, lesson]: [u64; 2]) -> Self {
        Self { tag: AtomicU64::new(tag), lesson: AtomicU64::new(lesson) }
    }
}

/// Where a packet in pieces stands, and under which tag.
#[derive(Clone, Copy)]
struct Spot {
    bucket: u32,
    tag: u64,
}

impl Spot {
    /// Of a piece. Pieces of IPv6 need not agree about what follows their header (RFC 8200, section 4.5).
    #[inline(always)]
    #[expect(clippy::as_conversions, reason = "the upper half of the hash")]
    fn of(settings: &Settings, ip: &Ip) -> Self {
        let [a, b, c, d] = ip.identification.to_ne_bytes();
        let protocol = if ip.v6 { Protocol::default() } else { ip.protocol };
        let key = crate::Aligned(FlowKey::new(
            ip.source,
            Port::from_wire([a, b]),
            ip.destination,
            Port::from_wire([c, d]),
            protocol,
        ));
        let hash = hash::flow(&settings.keys, &key.0, ip.v6);
        Self { bucket: (hash >> 32) as u32 & u32::from(settings.fragment_mask), tag: hash | 1 }
    }
}

/// Remembers what a first piece told.
///
/// # Errors
/// [`Reason::FragmentsFull`] when there is no place at all.
#[inline(always)]
pub(super) fn teach<M: Maps>(
    maps: &M,
    settings: &Settings,
    ip: &Ip,
    (source_port, destination_port): (Port, Port),
) -> Result<(), Reason> {
    if ip.piece != Piece::First {
        return Ok(());
    }
    let now = maps.now(settings.tick_shift);
    let spot = Spot::of(settings, ip);
    let rows = maps.fragments(spot.bucket).ok_or(Reason::FragmentsFull)?;
    let row = place::<M>(&rows, &spot, now);
    let lesson = Lesson::new(source_port, destination_port, ip.protocol, now);
    // Readers see the tag before and after: half of a lesson is nobody's.
    M::swap(&row.tag, 0);
    M::store(&row.lesson, lesson.word());
    M::swap(&row.tag, spot.tag);
    Ok(())
}

/// The packet's own place, else the one whose lesson is the oldest: whoever sends first pieces only, to whatever address of
/// the node, could hold the places that others need.
#[inline(always)]
fn place<'a, M: Maps>(rows: &'a FragmentRows, spot: &Spot, now: Tick) -> &'a FragmentRow {
    let [a, b, c, d] = rows;
    let mut best = a;
    let mut best_age = 0;
    for row in [a, b, c, d] {
        let tag = M::load(&row.tag);
        if tag == spot.tag {
            return row;
        }
        let age = if tag == 0 { u16::MAX } else { Lesson::from_word(M::load(&row.lesson)).age(now) };
        if age > best_age {
            best_age = age;
            best = row;
        }
    }
    best
}

/// What the first piece told about this one; none when nobody saw it.
#[inline(always)]
pub(super) fn recall<M: Maps>(maps: &M, settings: &Settings, ip: &Ip) -> Option<Lesson> {
    let now = maps.now(settings.tick_shift);
    let spot = Spot::of(settings, ip);
    let rows = maps.fragments(spot.bucket)?;
    let [a, b, c, d] = &*rows;
    for row in [a, b, c, d] {
        if M::load(&row.tag) == spot.tag {
            let lesson = Lesson::from_word(M::load(&row.lesson));
            let is_whole = M::load(&row.tag) == spot.tag;
            return (is_whole && !lesson.is_over(now)).then_some(lesson);
        }
    }
    None
}
