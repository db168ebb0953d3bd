//! Sweeping the flow table: entries that are over are freed, and places for replies that led to such ones, a slice at a
//! time, by a program that shares the code of all others and is on no hook.

use std::{iter, os::fd::AsFd as _};

use aya::{
    Ebpf,
    programs::{ProgramFd, Xdp},
};
use gateway_common::aside::{SWEEP, SWEPT_AT_ONCE, Swept};

use crate::kernel::{Error, sys};

/// Looks at all buckets are spread over so many calls, of which there is one in a second.
const CALLS: u32 = 60;

/// Buckets that a call looks at beyond what the spread asks for, at least and at most: at 50 to 200 ns each, the longest call
/// takes some milliseconds.
const BUCKETS: std::ops::RangeInclusive<u32> = SWEPT_AT_ONCE..=SWEPT_AT_ONCE * 32;

/// What `BPF_PROG_TEST_RUN` wants in front of the numbers: a link-layer header.
const HEADER: usize = 14;

/// The program, and how far it has come in each table.
pub(super) struct Sweep {
    program: ProgramFd,
    flows: Table,
    replies: Table,
}

/// A table, and how far it has been swept.
struct Table {
    what: Swept,
    buckets: u32,
    next: u32,
}

impl Sweep {
    /// Loads the program, for tables with so many buckets.
    pub(super) fn load(object: &mut Ebpf, [flows, replies]: [u32; 2]) -> Result<Self, Error> {
        let failed = |source| Error::Verifier { what: SWEEP, source };
        let program = object.program_mut(SWEEP).ok_or(Error::NoMap { name: SWEEP })?;
        let program = <&mut Xdp>::try_from(program).map_err(failed)?;
        program.load().map_err(failed)?;
        let program = program.fd().and_then(|fd| Ok(fd.try_clone()?)).map_err(failed)?;
        let table = |what, buckets| Table { what, buckets, next: 0 };
        Ok(Self { program, flows: table(Swept::Flows, flows), replies: table(Swept::Replies, replies) })
    }

    /// Looks at the next slice of each table; how many entries and places were freed.
    pub(super) fn go_on(&mut self) -> Result<u32, Error> {
        let flows = self.flows.go_on(&self.program)?;
        Ok(flows + self.replies.go_on(&self.program)?)
    }
}

impl Table {
    fn go_on(&mut self, program: &ProgramFd) -> Result<u32, Error> {
        let wanted = (self.buckets / CALLS).clamp(*BUCKETS.start(), *BUCKETS.end());
        let mut freed = 0;
        let mut left = wanted.min(self.buckets);
        while left > 0 {
            let count = left.min(SWEPT_AT_ONCE).min(self.buckets - self.next);
            let words = [self.next, count, self.what.number()];
            let input: Vec<u8> =
                iter::repeat_n(0, HEADER).chain(words.into_iter().flat_map(u32::to_ne_bytes)).collect();
            let failed = |source| Error::Memory { name: SWEEP, source };
            freed += sys::run_program(program.as_fd(), &input).map_err(failed)?;
            self.next = (self.next + count) % self.buckets;
            left -= count;
        }
        Ok(freed)
    }
}
