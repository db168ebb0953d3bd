//! The kernel's measure of time: ticks of so many timer interrupts.

use std::time::Duration;

use gateway_common::flow::tick_shift;

use crate::clock;

/// How durations become ticks on this machine.
#[derive(Clone, Copy, Debug)]
pub struct Ticks {
    per_second: u32,
    shift: u8,
}

impl Ticks {
    /// Those of the running kernel.
    pub fn of_this_kernel() -> Self {
        Self::of_interrupts(clock::interrupts_per_second())
    }

    /// Those of a kernel with so many timer interrupts in a second.
    pub const fn of_interrupts(per_second: u32) -> Self {
        Self { per_second, shift: tick_shift(per_second) }
    }

    /// A duration, in whole ticks.
    pub fn of(self, duration: Duration) -> u32 {
        let interrupts = duration.as_millis().saturating_mul(u128::from(self.per_second)) / 1_000;
        u32::try_from(interrupts >> self.shift).unwrap_or(u32::MAX)
    }

    /// Timer interrupts in a second.
    pub fn interrupts(self) -> u16 {
        u16::try_from(self.per_second).unwrap_or(u16::MAX)
    }

    /// See [`tick_shift`].
    pub const fn shift(self) -> u8 {
        self.shift
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_minute_is_as_many_ticks_as_interrupts_have_passed() {
        for per_second in [100, 250, 300, 1_000] {
            let ticks = Ticks::of_interrupts(per_second);
            assert_eq!(ticks.of(Duration::from_mins(1)), (60 * per_second) >> ticks.shift());
            assert_eq!(ticks.of(Duration::MAX), u32::MAX);
        }
    }
}
