//! Whether the client of a connection is still there: one that is silent while it waits for responses is asked, and has time to
//! answer. How soon a connection without requests ends is another matter.

use std::time::Duration;

use tokio::time::Instant;

/// What is known of it.
#[derive(Debug)]
pub(super) struct Presence {
    n_reads: u64,
    /// When the last change of it was seen.
    heard: Instant,
    /// When it was asked, where it has not answered yet.
    asked: Option<Instant>,
    /// Silence after which it is asked while streams are under way, and time for its answer: a link may be full, or be gone
    /// and come back.
    answer: Duration,
}

/// What a look says.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Verdict {
    /// Nothing is to be done.
    Fine,
    /// It should be asked.
    Ask,
    /// Nobody is there.
    Gone,
}

impl Presence {
    /// One that has so long to answer.
    pub(super) const fn new(now: Instant, answer: Duration) -> Self {
        Self { n_reads: 0, heard: now, asked: None, answer }
    }

    pub(super) const fn is_asked(&self) -> bool {
        self.asked.is_some()
    }

    pub(super) const fn asked(&mut self, now: Instant) {
        self.asked = Some(now);
    }

    pub(super) const fn answered(&mut self) {
        self.asked = None;
    }

    /// At a moment, when so many reads have brought something.
    pub(super) fn look(&mut self, now: Instant, n_reads: u64, is_idle: bool) -> Verdict {
        if n_reads != self.n_reads {
            self.n_reads = n_reads;
            self.heard = now;
        }
        match self.asked {
            Some(asked) if now.duration_since(asked) >= self.answer => Verdict::Gone,
            None if !is_idle && now.duration_since(self.heard) >= self.answer => Verdict::Ask,
            Some(_) | None => Verdict::Fine,
        }
    }

    /// When to look next, at the latest after `pause`: not later than the answer is due.
    pub(super) fn next(&self, now: Instant, pause: Duration) -> Instant {
        let next = now + pause;
        self.asked.map_or(next, |asked| next.min(asked + self.answer))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ANSWER: Duration = Duration::from_secs(25);
    const SILENCE: Duration = ANSWER;
    /// Seconds between two looks of a connection that may be idle for five.
    const PAUSE: Duration = Duration::from_millis(1_666);

    /// Looks at a client that is silent from the beginning, for a while; the answers, with the time of each.
    fn looks(presence: &mut Presence, now: &mut Instant, lasting: Duration) -> Vec<Verdict> {
        let end = *now + lasting;
        let mut verdicts = Vec::new();
        while *now < end {
            *now = presence.next(*now, PAUSE);
            let verdict = presence.look(*now, 1, false);
            if verdict == Verdict::Ask {
                presence.asked(*now);
            }
            verdicts.push(verdict);
            if verdict == Verdict::Gone {
                break;
            }
        }
        verdicts
    }

    #[test]
    fn a_silent_client_is_asked_late_and_has_time_however_soon_idle_connections_end() {
        let begun = Instant::now();
        let (mut presence, mut now) = (Presence::new(begun, ANSWER), begun);
        let early = looks(&mut presence, &mut now, SILENCE.saturating_sub(PAUSE));
        assert!(early.iter().all(|verdict| *verdict == Verdict::Fine), "{early:?}");
        let asked = looks(&mut presence, &mut now, PAUSE * 2);
        assert!(asked.contains(&Verdict::Ask) && presence.is_asked(), "{asked:?}");
        let waited = looks(&mut presence, &mut now, ANSWER.saturating_sub(PAUSE * 3));
        assert!(waited.iter().all(|verdict| *verdict == Verdict::Fine), "{waited:?}");
        let gone = looks(&mut presence, &mut now, PAUSE * 3);
        assert_eq!(gone.last(), Some(&Verdict::Gone), "{gone:?}");
        assert!(now.duration_since(begun) <= SILENCE + ANSWER + PAUSE * 4);
    }

    #[test]
    fn whoever_answers_or_has_nothing_to_wait_for_is_not_gone() {
        let begun = Instant::now();
        let mut presence = Presence::new(begun, ANSWER);
        assert_eq!(presence.look(begun + SILENCE, 0, true), Verdict::Fine, "it may be idle");
        assert_eq!(presence.look(begun + SILENCE, 0, false), Verdict::Ask);
        presence.asked(begun + SILENCE);
        assert_eq!(presence.look(begun + SILENCE * 2 - PAUSE, 0, false), Verdict::Fine);
        presence.answered();
        assert_eq!(presence.look(begun + SILENCE * 2, 1, false), Verdict::Fine, "it was heard");
        assert_eq!(presence.look(begun + SILENCE * 3, 1, false), Verdict::Ask);
    }

    #[test]
    fn an_answer_is_due_at_its_time_also_where_looks_are_seldom() {
        let begun = Instant::now();
        let mut presence = Presence::new(begun, ANSWER);
        assert_eq!(presence.next(begun, PAUSE), begun + PAUSE);
        presence.asked(begun);
        let later = begun + Duration::from_secs(20);
        assert_eq!(presence.next(later, Duration::from_secs(25)), begun + ANSWER);
        assert_eq!(presence.look(later, 0, true), Verdict::Fine, "also when a look comes early");
    }
}
