//! Whether clients get through to an endpoint, judged from their own attempts: counts in, verdicts out, no clock of its own.
//!
//! An endpoint is trusted until too many attempts to connect to it fail, then out for a while, then on trial: it has its
//! share again, half of the failures take it out once more, and only a window without them makes it trusted. Each time
//! is twice as long as the one before. Whoever is out gets no new flows and keeps those it has: attempts say nothing
//! about connections that are open.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use crate::endpoint::{Attempts, Availability, Endpoint, EndpointId};

/// When an endpoint is taken out, and for how long.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Terms {
    /// Time that attempts count.
    pub window: Duration,
    /// Attempts within it below which nothing is judged; at least one.
    pub minimum: u32,
    /// Failures in percent of the attempts that take an endpoint out.
    pub failure_percent: u32,
    /// How long it is out the first time.
    pub out_for: Duration,
    /// How long it is out at most, apart from the tenth that chance adds.
    pub out_for_at_most: Duration,
    /// Endpoints of a service that may be without new flows, in percent; beyond it nobody is taken out.
    pub share_percent: u32,
}

impl Terms {
    /// For how long the nth time, by chance up to a tenth longer, so that those that fell together do not come back
    /// together.
    fn time_out(&self, nth: u32, chance: f64) -> Duration {
        let doubled = 2_u32.saturating_pow(nth.saturating_sub(1));
        let time = self.out_for.saturating_mul(doubled).min(self.out_for_at_most);
        time + time.mul_f64(chance.clamp(0.0, 1.0) / 10.0)
    }
}

/// Parts of the window: its oldest part is forgotten at once.
const PARTS: usize = 8;

/// The attempts of a window.
#[derive(Clone, Copy, Debug)]
struct Window {
    parts: [Attempts; PARTS],
    /// When the present part began, which is the first one.
    began: Instant,
}

impl Window {
    fn new(now: Instant) -> Self {
        Self { parts: [Attempts::default(); PARTS], began: now }
    }

    fn add(&mut self, new: Attempts, now: Instant, whole: Duration) {
        let part = (whole / 8).max(Duration::from_millis(1));
        let gone = now.saturating_duration_since(self.began);
        if gone >= part * 16 {
            *self = Self::new(now);
        }
        while now.saturating_duration_since(self.began) >= part {
            self.began += part;
            self.parts.rotate_right(1);
            let [first, ..] = &mut self.parts;
            *first = Attempts::default();
        }
        let [first, ..] = &mut self.parts;
        *first = first.and(new);
    }

    fn sum(&self) -> Attempts {
        self.parts.iter().fold(Attempts::default(), |sum, part| sum.and(*part))
    }
}

/// How far an endpoint is trusted.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Standing {
    Trusted { since: Instant },
    Out { until: Instant },
    Trial { since: Instant },
}

/// What is remembered of one endpoint.
#[derive(Clone, Copy, Debug)]
struct Record {
    window: Window,
    standing: Standing,
    /// Times that it was taken out and that count.
    falls: u32,
    /// It should be out, and others are already.
    is_spared: bool,
}

/// Something that changed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Verdict {
    /// It gets no new flows.
    Out {
        /// For so long.
        time: Duration,
        /// What it was judged by.
        seen: Attempts,
    },
    /// It should get none, and does, because too many others get none.
    Spared {
        /// What it was judged by.
        seen: Attempts,
    },
    /// It gets new flows again, to be looked at more strictly.
    Trial,
    /// The trial is over.
    Trusted,
}

impl Verdict {
    /// Values of the metric's label.
    pub const WORDS: [&str; 4] = ["out", "spared", "trial", "trusted"];

    /// The value of the metric's label.
    pub const fn as_str(&self) -> &'static str {
        let [out, spared, trial, trusted] = Self::WORDS;
        match self {
            Self::Out { .. } => out,
            Self::Spared { .. } => spared,
            Self::Trial => trial,
            Self::Trusted => trusted,
        }
    }
}

impl Record {
    fn new(now: Instant) -> Self {
        let standing = Standing::Trusted { since: now };
        Self { window: Window::new(now), standing, falls: 0, is_spared: false }
    }

    /// Whether the attempts say that it should be out. On trial half of the failures are enough.
    fn fails(&self, terms: &Terms) -> bool {
        let Attempts { tried, failed } = self.window.sum();
        let percent = match self.standing {
            Standing::Trusted { .. } => terms.failure_percent,
            Standing::Trial { .. } => terms.failure_percent.div_ceil(2),
            Standing::Out { .. } => return false,
        };
        tried >= u64::from(terms.minimum)
            && failed.saturating_mul(100) >= tried.saturating_mul(percent.into())
    }

    /// What time alone changes.
    fn age(&mut self, now: Instant, terms: &Terms) -> Option<Verdict> {
        match self.standing {
            Standing::Out { until } if now >= until => {
                self.standing = Standing::Trial { since: now };
                self.window = Window::new(now);
                Some(Verdict::Trial)
            }
            Standing::Trial { since } => {
                let is_long = now.saturating_duration_since(since) >= terms.window;
                let is_enough = self.window.sum().tried >= u64::from(terms.minimum);
                let is_over = is_long && is_enough && !self.fails(terms);
                is_over.then(|| {
                    self.standing = Standing::Trusted { since: now };
                    Verdict::Trusted
                })
            }
            // As long in good standing as it was out makes up for one time.
            Standing::Trusted { since }
                if self.falls > 0
                    && now.saturating_duration_since(since) >= terms.time_out(self.falls, 0.0) =>
            {
                self.falls -= 1;
                self.standing = Standing::Trusted { since: now };
                None
            }
            Standing::Out { .. } | Standing::Trusted { .. } => None,
        }
    }

    fn fall(&mut self, now: Instant, terms: &Terms, chance: f64) -> Verdict {
        let seen = self.window.sum();
        self.falls = self.falls.saturating_add(1);
        let time = terms.time_out(self.falls, chance);
        self.standing = Standing::Out { until: now + time };
        self.window = Window::new(now);
        self.is_spared = false;
        Verdict::Out { time, seen }
    }

    const fn is_out(&self) -> bool {
        matches!(self.standing, Standing::Out { .. })
    }
}

/// The endpoints of one service.
#[derive(Debug, Default)]
pub struct Judge {
    records: HashMap<EndpointId, Record>,
}

impl Judge {
    /// Takes what was seen since the last time, of every endpoint that the service has now. The others are forgotten.
    ///
    /// `chance` yields numbers from zero to one.
    pub fn look(
        &mut self,
        seen: &[(Arc<Endpoint>, Attempts)],
        terms: &Terms,
        now: Instant,
        mut chance: impl FnMut() -> f64,
    ) -> Vec<(Arc<Endpoint>, Verdict)> {
        let mut before = std::mem::take(&mut self.records);
        let mut verdicts = Vec::new();
        let mut n_without = 0;
        for (endpoint, new) in seen {
            let mut record = before.remove(endpoint.id()).unwrap_or_else(|| Record::new(now));
            record.window.add(*new, now, terms.window);
            verdicts.extend(record.age(now, terms).map(|verdict| (Arc::clone(endpoint), verdict)));
            n_without += usize::from(record.is_out() || is_without(endpoint));
            self.records.insert(endpoint.id().clone(), record);
        }
        for (endpoint, _) in seen {
            let Some(record) = self.records.get_mut(endpoint.id()) else { continue };
            // One that gets no new flows anyway is not judged by those it had.
            if is_without(endpoint) || !record.fails(terms) {
                record.is_spared = false;
                continue;
            }
            let share = usize::try_from(terms.share_percent).unwrap_or(100);
            if (n_without + 1) * 100 <= seen.len() * share {
                n_without += 1;
                verdicts.push((Arc::clone(endpoint), record.fall(now, terms, chance())));
            } else if !record.is_spared {
                record.is_spared = true;
                verdicts.push((Arc::clone(endpoint), Verdict::Spared { seen: record.window.sum() }));
            }
        }
        if n_without >= seen.len() {
            verdicts.extend(self.release(seen, now));
        }
        verdicts
    }

    /// Nobody else is left: whoever is out comes back at once, because it may be better than nothing.
    fn release(&mut self, seen: &[(Arc<Endpoint>, Attempts)], now: Instant) -> Vec<(Arc<Endpoint>, Verdict)> {
        let mut back = Vec::new();
        for (endpoint, _) in seen {
            if let Some(record) = self.records.get_mut(endpoint.id())
                && record.is_out()
            {
                record.standing = Standing::Trial { since: now };
                record.window = Window::new(now);
                back.push((Arc::clone(endpoint), Verdict::Trial));
            }
        }
        back
    }
}

/// Whether it gets no new flows, for whatever reason but an earlier verdict.
fn is_without(endpoint: &Endpoint) -> bool {
    !endpoint.is_out() && endpoint.availability() != Availability::Active
}

#[cfg(test)]
mod tests;
