//! Sweeping the flow table: entries that are over are freed, a slice at a time, by a program that shares the code of all
//! others and is on no hook.

use std::os::fd::AsFd as _;

use aya::{
    Ebpf,
    programs::{ProgramFd, Xdp},
};
use gateway_common::aside::{SWEEP, SWEPT_AT_ONCE};

use crate::kernel::{Error, sys};

/// Looks at all buckets are spread over so many calls, of which there is one in a second.
const CALLS: u32 = 60;

/// Buckets that a call looks at beyond what the spread asks for, at least and at most: at 50 to 200 ns each, the longest call
/// takes some milliseconds.
const BUCKETS: std::ops::RangeInclusive<u32> = SWEPT_AT_ONCE..=SWEPT_AT_ONCE * 32;

/// What `BPF_PROG_TEST_RUN` wants in front of the numbers: a link-layer header.
const HEADER: usize = 14;

/// The program, and how far it has come.
pub(super) struct Sweep {
    program: ProgramFd,
    buckets: u32,
    next: u32,
}

impl Sweep {
    /// Loads the program, for a table with so many buckets.
    pub(super) fn load(object: &mut Ebpf, buckets: u32) -> Result<Self, Error> {
        let failed = |source| Error::Verifier { what: SWEEP, source };
        let program = object.program_mut(SWEEP).ok_or(Error::NoMap { name: SWEEP })?;
        let program = <&mut Xdp>::try_from(program).map_err(failed)?;
        program.load().map_err(failed)?;
        let program = program.fd().and_then(|fd| Ok(fd.try_clone()?)).map_err(failed)?;
        Ok(Self { program, buckets, next: 0 })
    }

    /// Looks at the next slice; how many entries were freed.
    pub(super) fn go_on(&mut self) -> Result<u32, Error> {
        let wanted = (self.buckets / CALLS).clamp(*BUCKETS.start(), *BUCKETS.end());
        let mut freed = 0;
        let mut left = wanted.min(self.buckets);
        while left > 0 {
            let count = left.min(SWEPT_AT_ONCE).min(self.buckets - self.next);
            let mut input = [0; HEADER + 8];
            for (to, from) in input
                .iter_mut()
                .skip(HEADER)
                .zip(self.next.to_ne_bytes().into_iter().chain(count.to_ne_bytes()))
            {
                *to = from;
            }
            let failed = |source| Error::Memory { name: SWEEP, source };
            freed += sys::run_program(self.program.as_fd(), &input).map_err(failed)?;
            self.next = (self.next + count) % self.buckets;
            left -= count;
        }
        Ok(freed)
    }
}
