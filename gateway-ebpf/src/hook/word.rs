//! Words that several processors change: the instructions for them, which the compiler does not know for this target
//! (version 3 of the instruction set, Linux 5.12).
//!
//! Programs are also checked as if they were built for this machine, where the compiler has the operations.
#![expect(unsafe_code, reason = "instructions, and a table without a look at its bounds")]

use core::{mem, sync::atomic::AtomicU64};

use bytemuck::Pod;
use gateway_common::counter::Reason;
use gateway_ebpf::{env::Hidden, verdict::Verdict};

use crate::map::KernelMaps;

#[cfg(target_arch = "bpf")]
mod instructions {
    use core::{arch::asm, sync::atomic::AtomicU64};

    #[inline(always)]
    pub(crate) fn load(word: &AtomicU64) -> u64 {
        // SAFETY: the word is a live one of a map. Volatile, so that it is read once and where it is asked for.
        unsafe { word.as_ptr().read_volatile() }
    }

    #[inline(always)]
    pub(crate) fn store(word: &AtomicU64, value: u64) {
        // SAFETY: as above.
        unsafe { word.as_ptr().write_volatile(value) };
    }

    #[inline(always)]
    pub(crate) fn exchange(word: &AtomicU64, old: u64, new: u64) -> bool {
        let found: u64;
        // SAFETY: as above.
        unsafe {
            asm!(
                "r0 = cmpxchg_64({word} + 0, r0, {new})",
                word = in(reg) word.as_ptr(),
                new = in(reg) new,
                inout("r0") old => found,
            );
        }
        found == old
    }

    #[inline(always)]
    pub(crate) fn swap(word: &AtomicU64, new: u64) {
        // SAFETY: as above.
        unsafe {
            asm!(
                "{new} = xchg_64({word} + 0, {new})",
                word = in(reg) word.as_ptr(),
                new = inout(reg) new => _,
            );
        }
    }

    #[inline(always)]
    pub(crate) fn add(word: &AtomicU64, number: u64) {
        // SAFETY: as above.
        unsafe {
            asm!(
                "lock *(u64 *)({word} + 0) += {number}",
                word = in(reg) word.as_ptr(),
                number = in(reg) number,
            );
        }
    }

    #[inline(always)]
    pub(crate) fn masked<const MASK: u64>(mut number: u64) -> u64 {
        // SAFETY: the instruction reads and writes one register.
        unsafe {
            asm!("{number} &= {mask}", number = inout(reg) number, mask = const MASK, options(pure, nomem, nostack));
        }
        number
    }

    #[inline(always)]
    pub(crate) fn fixed(mut number: usize) -> usize {
        // SAFETY: the instruction reads and writes one register. An instruction, because lines of sources are counted by them.
        unsafe {
            asm!("{number} = {number}", number = inout(reg) number, options(pure, nomem, nostack));
        }
        number
    }
}

#[cfg(not(target_arch = "bpf"))]
mod instructions {
    use core::sync::atomic::{AtomicU64, Ordering::SeqCst};

    pub(crate) fn load(word: &AtomicU64) -> u64 {
        word.load(SeqCst)
    }

    pub(crate) fn store(word: &AtomicU64, value: u64) {
        word.store(value, SeqCst);
    }

    pub(crate) fn exchange(word: &AtomicU64, old: u64, new: u64) -> bool {
        word.compare_exchange(old, new, SeqCst, SeqCst).is_ok()
    }

    pub(crate) fn swap(word: &AtomicU64, new: u64) {
        word.swap(new, SeqCst);
    }

    pub(crate) fn add(word: &AtomicU64, number: u64) {
        word.fetch_add(number, SeqCst);
    }

    pub(crate) const fn masked<const MASK: u64>(number: u64) -> u64 {
        number & MASK
    }

    pub(crate) const fn fixed(number: usize) -> usize {
        number
    }
}

/// Reads a word.
#[inline(always)]
pub(crate) fn load(word: &AtomicU64) -> u64 {
    instructions::load(word)
}

/// Writes a word.
#[inline(always)]
pub(crate) fn store(word: &AtomicU64, value: u64) {
    instructions::store(word, value);
}

/// Replaces a word by another if it still is what it was; says whether it did.
#[inline(always)]
pub(crate) fn exchange(word: &AtomicU64, old: u64, new: u64) -> bool {
    instructions::exchange(word, old, new)
}

/// Replaces a word.
#[inline(always)]
pub(crate) fn swap(word: &AtomicU64, new: u64) {
    instructions::swap(word, new);
}

/// Adds to a word.
#[inline(always)]
pub(crate) fn add(word: &AtomicU64, number: u64) {
    instructions::add(word, number);
}

/// The bits of a mask. By an instruction of its own, because the compiler removes a mask that it knows to change nothing,
/// and the verifier does not know.
#[inline(always)]
pub(crate) fn masked<const MASK: u64>(number: u64) -> u64 {
    instructions::masked::<MASK>(number)
}

/// The same number, which the compiler computes once: the verifier knows that the very register which was compared is
/// inside the packet, not another one that got the same sum of a pointer and an offset.
#[inline(always)]
pub(crate) fn fixed(number: usize) -> usize {
    instructions::fixed(number)
}

impl Hidden for KernelMaps {
    #[inline(always)]
    #[expect(clippy::as_conversions, clippy::cast_possible_truncation, reason = "two bytes, as they came")]
    fn ends(verdict: Verdict) -> Verdict {
        // SAFETY: every verdict is two bytes that both have a value: its own, and that of its reason.
        let bytes: [u8; 2] = unsafe { mem::transmute(verdict) };
        let bytes = (instructions::fixed(usize::from(u16::from_ne_bytes(bytes))) as u16).to_ne_bytes();
        // SAFETY: the same bytes.
        unsafe { mem::transmute(bytes) }
    }

    #[inline(always)]
    #[expect(clippy::as_conversions, clippy::cast_possible_truncation, reason = "a byte, as it came")]
    fn why(reason: Reason) -> Reason {
        let number = instructions::fixed(usize::from(reason as u8)) as u8;
        // SAFETY: the same byte.
        unsafe { mem::transmute(number) }
    }

    #[inline(always)]
    #[expect(clippy::as_conversions, clippy::cast_possible_truncation, reason = "a byte, as it came")]
    fn hidden(number: u8) -> u8 {
        instructions::fixed(usize::from(number)) as u8
    }
}

/// A word at any place.
#[repr(C, packed)]
struct Anywhere<W>(W);

/// Five words of a packet, each read as a whole.
///
/// # Safety
/// All of them are inside the packet.
#[inline(always)]
pub(crate) unsafe fn five<W: Pod>(at: *const W) -> [W; 5] {
    // SAFETY: the caller's; volatile, so that the compiler reads no word in pieces; a packed word has no alignment.
    [0, 1, 2, 3, 4].map(|idx| unsafe { at.wrapping_add(idx).cast::<Anywhere<W>>().read_volatile() }.0)
}

/// The number of a reason, in a form that the verifier follows.
#[inline(always)]
pub(crate) fn number_of(reason: Reason) -> usize {
    const { assert!(Reason::LIMIT == 128, "the number of a reason has seven bits") };
    usize::try_from(masked::<127>(u64::from(reason.number()))).unwrap_or(0)
}

/// The place of a reason among those of a service, in a form that the verifier follows.
#[inline(always)]
pub(crate) fn place_of(reason: Reason) -> usize {
    const { assert!(Reason::PLACES == 32, "a place has five bits") };
    let place = Reason::BY_NUMBER.as_ptr().wrapping_add(number_of(reason));
    // SAFETY: the number is below that of the reasons.
    let place = unsafe { place.read() };
    usize::try_from(masked::<31>(u64::from(place))).unwrap_or(0)
}
