//! Whether the client of a connection is still there: one that is silent while it waits for responses is asked, and has time to
//! answer. How soon a connection without requests ends is another matter.
//!
//! The question stands behind everything that was written before it, which a client that reads slowly may take minutes to come
//! to. So whatever it says meanwhile is an answer, and as long as its kernel takes more there is time.

use std::time::Duration;

use tokio::time::Instant;

/// Bytes that a client takes at least where it takes anything: more than the question itself, in its record of TLS, which a
/// kernel takes without anybody reading it.
const TAKEN_BYTES: u64 = 64;

/// What is known of it.
#[derive(Debug)]
pub(super) struct Presence {
    n_reads: u64,
    /// When the last change of it was seen.
    heard: Instant,
    /// Since when its answer is waited for, where it has given none.
    asked: Option<Instant>,
    /// A question is under way, whose answer may come after others.
    is_under_way: bool,
    /// What it had taken then.
    n_taken: Option<u64>,
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
        Self { n_reads: 0, heard: now, asked: None, is_under_way: false, n_taken: None, answer }
    }

    /// Whether a question is under way; no other one can be.
    pub(super) const fn is_asked(&self) -> bool {
        self.is_under_way
    }

    /// It is asked, or was and the question is still under way, when it has taken so many bytes.
    pub(super) const fn asked(&mut self, now: Instant, n_taken: Option<u64>) {
        self.asked = Some(now);
        self.is_under_way = true;
        self.n_taken = n_taken;
    }

    pub(super) const fn answered(&mut self) {
        self.asked = None;
        self.is_under_way = false;
    }

    /// At a moment, when so many reads have brought something; `n_taken` tells what it has taken, unless nobody can.
    pub(super) fn look(
        &mut self,
        now: Instant,
        n_reads: u64,
        n_taken: impl FnOnce() -> Option<u64>,
        is_idle: bool,
    ) -> Verdict {
        if n_reads != self.n_reads {
            self.n_reads = n_reads;
            self.heard = now;
            self.asked = None;
        }
        if self.asked.is_some()
            && let (Some(before), Some(taken)) = (self.n_taken, n_taken())
            && taken.saturating_sub(before) >= TAKEN_BYTES
        {
            self.asked = Some(now);
            self.n_taken = Some(taken);
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
            let verdict = presence.look(*now, 1, || Some(0), false);
            if verdict == Verdict::Ask {
                presence.asked(*now, Some(0));
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
        assert_eq!(presence.look(begun + SILENCE, 0, || None, true), Verdict::Fine, "it may be idle");
        assert_eq!(presence.look(begun + SILENCE, 0, || None, false), Verdict::Ask);
        presence.asked(begun + SILENCE, None);
        assert_eq!(presence.look(begun + SILENCE * 2 - PAUSE, 0, || None, false), Verdict::Fine);
        presence.answered();
        assert_eq!(presence.look(begun + SILENCE * 2, 1, || None, false), Verdict::Fine, "it was heard");
        assert_eq!(presence.look(begun + SILENCE * 3, 1, || None, false), Verdict::Ask);
    }

    #[test]
    fn an_answer_is_due_at_its_time_also_where_looks_are_seldom() {
        let begun = Instant::now();
        let mut presence = Presence::new(begun, ANSWER);
        assert_eq!(presence.next(begun, PAUSE), begun + PAUSE);
        presence.asked(begun, None);
        let later = begun + Duration::from_secs(20);
        assert_eq!(presence.next(later, Duration::from_secs(25)), begun + ANSWER);
        assert_eq!(presence.look(later, 0, || None, true), Verdict::Fine, "also when a look comes early");
    }

    #[test]
    fn whatever_is_heard_after_the_question_is_an_answer() {
        let begun = Instant::now();
        let mut presence = Presence::new(begun, ANSWER);
        assert_eq!(presence.look(begun + ANSWER, 0, || None, false), Verdict::Ask);
        presence.asked(begun + ANSWER, None);
        assert_eq!(presence.look(begun + ANSWER * 2 - PAUSE, 1, || None, false), Verdict::Fine);
        assert_eq!(presence.look(begun + ANSWER * 2, 1, || None, false), Verdict::Fine, "it was heard");
        // Its answer to the first question may still come.
        assert!(presence.is_asked());
        let silent = begun + ANSWER * 3 - PAUSE;
        assert_eq!(presence.look(silent, 1, || None, false), Verdict::Ask);
        presence.asked(silent, None);
        assert_eq!(presence.look(silent + ANSWER, 1, || None, false), Verdict::Gone);
    }

    #[test]
    fn whoever_takes_what_was_written_has_time_and_the_question_alone_is_nothing() {
        let begun = Instant::now();
        let mut presence = Presence::new(begun, ANSWER);
        presence.asked(begun, Some(1_000));
        let look = |presence: &mut Presence, n: u32, n_taken| {
            presence.look(begun + ANSWER / 2 * n, 0, || Some(n_taken), false)
        };
        for n in 1..10 {
            assert_eq!(look(&mut presence, n, 1_000 + u64::from(n) * 1_000), Verdict::Fine, "{n}");
        }
        // The kernel has taken the question, and nobody reads.
        assert_eq!(look(&mut presence, 10, 10_039), Verdict::Fine);
        assert_eq!(look(&mut presence, 11, 10_039), Verdict::Gone);
    }
}
