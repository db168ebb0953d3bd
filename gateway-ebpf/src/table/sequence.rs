//! Sequence numbers of connections that began with a cookie, beside their entries of the flow table: of each bucket there is
//! one of these, so that none is ever without room. What stands there is about one version of an entry.

use core::sync::atomic::AtomicU64;

use gateway_common::flow::{Sequence, SequenceBucket, SequenceStage, WAYS};

use crate::{env::Maps, table::row::HeadWord};

/// The bytes of a [`Sequence`].
#[repr(transparent)]
#[derive(Debug, Default)]
pub struct SequenceRow {
    word: AtomicU64,
}

/// A bucket of [`Sequences`](gateway_common::map::Sequences).
pub type SequenceRows = [SequenceRow; WAYS];

const _: () = assert!(size_of::<SequenceRows>() == size_of::<SequenceBucket>());

impl SequenceRow {
    /// What stands there.
    #[inline(always)]
    pub fn get<M: Maps>(&self) -> Sequence {
        Sequence::from_word(M::load(&self.word))
    }
}

impl From<&Sequence> for SequenceRow {
    fn from(sequence: &Sequence) -> Self {
        Self { word: AtomicU64::new(sequence.word()) }
    }
}

/// One of a bucket. The mask, not a comparison: the verifier follows it.
#[inline(always)]
fn place(rows: &SequenceRows, index: u32) -> &SequenceRow {
    let [first, ..] = rows;
    rows.get(usize::try_from(index & (super::WAYS - 1)).unwrap_or(0)).unwrap_or(first)
}

/// Nothing is known.
pub const UNKNOWN: Sequence = Sequence::new(0, 0, SequenceStage::NONE);

/// What is known of the entry with this index, which has this head.
#[inline(always)]
pub fn of<M: Maps>(maps: &M, index: u32, head: HeadWord) -> Sequence {
    let Some(rows) = maps.sequences(index / super::WAYS) else { return UNKNOWN };
    let found = place(&rows, index).get::<M>();
    if found.version == head.version() { found } else { UNKNOWN }
}

/// Notes something about an entry that this processor is writing; says whether there is room, as there always is.
#[inline(always)]
pub fn note<M: Maps>(maps: &M, index: u32, sequence: Sequence) -> bool {
    let Some(rows) = maps.sequences(index / super::WAYS) else { return false };
    M::store(&place(&rows, index).word, sequence.word());
    true
}

/// The endpoint has answered: changes what is known if nobody else did; says whether it did.
#[inline(always)]
pub fn join<M: Maps>(maps: &M, index: u32, old: Sequence, new: Sequence) -> bool {
    let Some(rows) = maps.sequences(index / super::WAYS) else { return false };
    M::exchange(&place(&rows, index).word, old.word(), new.word())
}
