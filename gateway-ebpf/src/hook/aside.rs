//! Going on in another program, which gets the packet as it is now. Nothing comes back, except where there is no such
//! program: the agent has not filled the map.
#![expect(unsafe_code, reason = "the helper ends the program")]

use aya_ebpf::{EbpfContext, btf_maps::ProgramArray};
use gateway_common::aside::Aside;

/// Ends in another program.
#[inline(always)]
pub(crate) fn go_on<C: EbpfContext, const N: usize>(programs: &ProgramArray<N>, ctx: &C, aside: Aside) {
    // SAFETY: nothing is left to be dropped, and the context is the program's own.
    unsafe { programs.tail_call(ctx, aside.index()) }
}
