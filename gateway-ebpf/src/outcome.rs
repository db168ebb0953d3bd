//! What a function of the kernel returns, as one word: half of a `Result` is undefined when it is an error, and the
//! verifier refuses to look at that.

use gateway_common::counter::Reason;

/// What is done in functions of their own. Each is verified once, by itself, knowing nothing of its callers; otherwise the
/// verifier would go through it again for every state in which it is called. None calls another: the stack of 512 bytes is
/// that of all who wait for each other.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Stage {
    /// Chooses the endpoint for [`Arrival::choice`](crate::arrival::Arrival::choice); the number is its row.
    Select,
    /// The endpoint that a client keeps for a while; the number is its row, or [`NO_ROW`](crate::select::NO_ROW).
    Stick,
    /// Records the flow, in an entry that is taken where it has none; the number is its port.
    Record,
    /// Remembers the endpoint of a client, or of a flow that is not translated.
    Note,
    /// Decides where a slot alone does not, and remembers the flow; notes the row, or [`NO_ROW`](crate::select::NO_ROW)
    /// when one is to be chosen. The number says whether the flow is to be remembered then: 0 or 1.
    Change,
    /// Looks for the source in the lists.
    Source,
    /// Counts a new flow against the limits.
    Admit,
    /// Counts a new flow against the limit of its service alone.
    Serve,
    /// Remembers whose packet was refused.
    Blame,
    /// Tells the agent of a packet.
    Tell,
    /// Notes when a connection began.
    Begin,
    /// Counts a SYN that came once more.
    Retry,
    /// Counts what an endpoint's packet says of a connection.
    Answer,
    /// Decides whether a packet to a service of the agent goes to an endpoint: 0 or 1.
    StandBy,
    /// Whether a packet that begins a connection is answered with a cookie, and any other may bring one back: 0 or 1. What
    /// begins without a cookie is counted against the limit of its service.
    Arm,
    /// Makes the cookie of a connection; the number is it.
    Bake,
    /// Looks whether a packet brings a cookie back; notes with which number the connection begins. The number is the segment
    /// size that the cookie stands for.
    Prove,
}

/// A number, or the reason why there is none.
#[must_use]
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Outcome {
    word: u64,
}

impl From<Result<u32, Reason>> for Outcome {
    #[inline(always)]
    fn from(result: Result<u32, Reason>) -> Self {
        Self {
            word: match result {
                Ok(number) => u64::from(number),
                Err(reason) => 1 << 32 | u64::from(reason.number()),
            },
        }
    }
}

impl Outcome {
    /// A stage that could not begin.
    pub const NOTHING: Self = Self { word: 1 << 32 };

    /// As one word.
    #[inline(always)]
    pub const fn word(self) -> u64 {
        self.word
    }

    /// From one word.
    #[inline(always)]
    pub const fn from_word(word: u64) -> Self {
        Self { word }
    }

    /// Whether it is a number.
    #[inline(always)]
    pub const fn is_number(self) -> bool {
        self.word >> 32 == 0
    }

    /// As a result.
    ///
    /// # Errors
    /// The reason why there is no number.
    #[inline(always)]
    #[expect(clippy::as_conversions, clippy::cast_possible_truncation, reason = "the lower half of a word")]
    pub fn get(self) -> Result<u32, Reason> {
        let low = self.word as u32;
        if self.is_number() {
            return Ok(low);
        }
        // The few that a stage ends with; a table of all would be long code wherever a stage is called.
        let all = [
            Reason::NoEndpoint,
            Reason::BadSlot,
            Reason::PortsExhausted,
            Reason::FlowTableFull,
            Reason::FlowContended,
            Reason::SourceLimited,
            Reason::ServiceLimited,
            Reason::CookieRefused,
        ];
        for reason in all {
            if reason.number() == low {
                return Err(reason);
            }
        }
        Err(Reason::FlowNotRecorded)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_lost_in_a_word() {
        for result in [Ok(0), Ok(u32::MAX), Err(Reason::NoEndpoint), Err(Reason::PortsExhausted)] {
            assert_eq!(Outcome::from(result).get(), result);
        }
    }
}
