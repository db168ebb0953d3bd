//! Answers that the programs send by themselves: how many, so that nobody can make a node send without end.

use bytemuck::{Pod, Zeroable};

use crate::flow::Tick;

/// Value of [`AnswersMap`](crate::map::AnswersMap): what a processor has sent in the present tick.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Pod, Zeroable)]
pub struct Answers {
    /// The tick.
    pub tick: Tick,
    /// Answers in it.
    pub sent: u32,
    /// Echo replies in it.
    pub echoes: u32,
}

impl Answers {
    /// Answers of one processor in a tick, which is about a second: what Linux allows a node by itself
    /// (`icmp_msgs_per_sec`).
    pub const PER_TICK: u32 = 1_000;

    /// Takes one of those that are left; says whether there was one.
    #[inline(always)]
    pub fn take(&mut self, now: Tick) -> bool {
        if self.tick != now {
            *self = Self { tick: now, sent: 0, echoes: 0 };
        }
        let is_left = self.sent < Self::PER_TICK;
        self.sent += u32::from(is_left);
        is_left
    }

    /// Echo replies of one processor in a tick: more than whoever measures sends, and apart from the others, so that neither
    /// flood takes those of the other.
    pub const ECHOES_PER_TICK: u32 = 1_000;

    /// The same for an echo reply.
    #[inline(always)]
    pub fn take_echo(&mut self, now: Tick) -> bool {
        if self.tick != now {
            *self = Self { tick: now, sent: 0, echoes: 0 };
        }
        let is_left = self.echoes < Self::ECHOES_PER_TICK;
        self.echoes += u32::from(is_left);
        is_left
    }
}

const _: () = assert!(size_of::<Answers>() == 12);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tick_has_so_many_answers() {
        let mut answers = Answers::default();
        for tick in [7, 8] {
            let taken = (0..2 * Answers::PER_TICK).filter(|_| answers.take(Tick::new(tick))).count();
            assert_eq!(u32::try_from(taken), Ok(Answers::PER_TICK));
            let taken =
                (0..2 * Answers::ECHOES_PER_TICK).filter(|_| answers.take_echo(Tick::new(tick))).count();
            assert_eq!(u32::try_from(taken), Ok(Answers::ECHOES_PER_TICK));
        }
    }
}
