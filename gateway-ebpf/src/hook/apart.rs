//! Functions that the verifier looks at by themselves: it does so for functions with a name that is known outside, and
//! knows nothing of their arguments but their types (Linux 5.13).
#![expect(unsafe_code, reason = "names that are known outside, and arguments that are raw pointers")]

use gateway_common::{
    aside::{SWEPT_AT_ONCE, Swept},
    flow::Scratch,
};
use gateway_ebpf::{
    arrival::Arrival,
    outcome::{Outcome, Stage},
    record, table,
};

use crate::map::KernelMaps;

/// Does a part of the work in a function of its own.
#[inline(always)]
pub(crate) fn call(stage: Stage, arrival: &mut Arrival) -> Outcome {
    let notes: *mut Scratch = bytemuck::must_cast_mut(arrival);
    Outcome::from_word(match stage {
        Stage::Select => sluice_select(notes),
        Stage::Stick => sluice_stick(notes),
        Stage::Record => sluice_record(notes),
        Stage::Note => sluice_note(notes),
        Stage::Change => sluice_change(notes),
        Stage::Source => sluice_source(notes),
        Stage::Admit => sluice_admit(notes),
        Stage::Serve => sluice_serve(notes),
        Stage::Blame => sluice_blame(notes),
        Stage::Tell => sluice_tell(notes),
        Stage::Begin => sluice_begin(notes),
        Stage::Retry => sluice_retry(notes),
        Stage::Answer => sluice_answer(notes),
        Stage::StandBy => sluice_stand_by(notes),
        Stage::Arm => sluice_arm(notes),
        Stage::Bake => sluice_bake(notes),
        Stage::Prove => sluice_prove(notes),
    })
}

/// A number of which the verifier knows nothing, because it was in a map: with what it knows it would look at the words for
/// each reason and each way to it by themselves, which is too much. Overwrites this processor's notes; for a packet that
/// has no more need of them.
#[cfg(feature = "log")]
#[inline(always)]
pub(crate) fn forgotten(number: u32) -> u32 {
    let Some(notes) = crate::map::scratch() else { return 0 };
    let word = (&raw mut *notes).cast::<u32>();
    // SAFETY: the notes are this processor's, nothing else runs there in between, and whoever wrote them is done.
    unsafe { word.write_volatile(number) };
    // SAFETY: as above.
    unsafe { word.read_volatile() }
}

/// Frees what is over in a bucket; how many entries.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn sluice_sweep(bucket: u32) -> u64 {
    u64::from(table::sweep(&KernelMaps, bucket))
}

/// The same of places for replies.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn sluice_sweep_replies(bucket: u32) -> u64 {
    u64::from(table::reply::sweep(&KernelMaps, bucket))
}

/// The same for so many buckets.
#[inline(always)]
pub(crate) fn sweep(first: u32, count: u32, what: u32) -> u32 {
    let mut freed = 0;
    for turn in 0..SWEPT_AT_ONCE {
        if turn >= count {
            break;
        }
        let bucket = first.wrapping_add(turn);
        freed +=
            if what == Swept::Replies.number() { sluice_sweep_replies(bucket) } else { sluice_sweep(bucket) };
    }
    low(freed)
}

#[inline(always)]
#[expect(clippy::as_conversions, clippy::cast_possible_truncation, reason = "at most eight for each bucket")]
const fn low(number: u64) -> u32 {
    number as u32
}

macro_rules! apart {
    ($($name:ident $stage:ident)+) => {
        $(
            #[unsafe(no_mangle)]
            #[inline(never)]
            extern "C" fn $name(notes: *mut Scratch) -> u64 {
                // The verifier takes every argument for one that may be null.
                if notes.is_null() {
                    return Outcome::NOTHING.word();
                }
                // SAFETY: all callers pass the notes of their own processor, which nobody else uses meanwhile.
                let arrival = Arrival::of(unsafe { &mut *notes });
                record::stage(&KernelMaps, Stage::$stage, arrival).word()
            }
        )+
    };
}

apart! {
    sluice_select Select
    sluice_stick Stick
    sluice_record Record
    sluice_note Note
    sluice_change Change
    sluice_source Source
    sluice_admit Admit
    sluice_serve Serve
    sluice_blame Blame
    sluice_tell Tell
    sluice_begin Begin
    sluice_retry Retry
    sluice_answer Answer
    sluice_stand_by StandBy
    sluice_arm Arm
    sluice_bake Bake
    sluice_prove Prove
}
